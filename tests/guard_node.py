"""A network function for live tests: flows are offloaded as an owner allows, and a datagram to port 9999 has it decide anew."""

from __future__ import annotations

from actornet import DROP, FORWARD, FiveTuple, FlowActor, Owner, Packet, Struct, Verdict

DECIDE_PORT = 9999


class Rules(Struct):
    decided: int = 0


class Policy(Owner[Rules]):
    def allows(self, flow: FiveTuple) -> bool:
        return True

    def decide(self) -> None:
        self.state.decided += 1
        self.revoke_offloads()


class Guard(FlowActor):
    policy = Policy.named("policy")

    async def on_packet(self, packet: Packet) -> Verdict:
        if packet.destination_port == DECIDE_PORT:
            await self.policy.decide()
            return DROP
        verdict = FORWARD if await self.policy.allows(packet.flow) else DROP
        self.offload(verdict)
        return verdict
