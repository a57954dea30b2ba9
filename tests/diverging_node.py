"""A network function for live tests that is not deterministic: one decision depends on the process's environment."""

from __future__ import annotations

import os

from actornet import DROP, FORWARD, FiveTuple, FlowActor, Owner, Packet, Struct, Verdict

FAULTY = "ACTORNET_TEST_FAULTY" in os.environ
"""What a static check cannot see: a constant that is another one in another process."""

FAULT_AT = 3


class Count(Struct):
    asked: int = 0


class Policy(Owner[Count]):
    def allows(self, flow: FiveTuple) -> bool:
        self.state.asked += 1
        return not (FAULTY and self.state.asked == FAULT_AT)


class Guard(FlowActor):
    policy = Policy.named("policy")

    async def on_packet(self, packet: Packet) -> Verdict:
        return FORWARD if await self.policy.allows(packet.flow) else DROP
