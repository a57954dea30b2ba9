"""A network function for live tests: flows are offloaded with the DSCP that an owner names, until it names another."""

from __future__ import annotations

from actornet import OFFLOADED, FlowActor, Owner, Packet, Rewrite, Struct, Verdict


class Marks(Struct):
    dscp: int = 10
    by_host: dict[str, int] = {}


class Policy(Owner[Marks]):
    def dscp(self, host: str) -> int:
        return self.state.by_host.get(host, self.state.dscp)

    def change(self, dscp: int, hosts: list[str] | None = None) -> list[str]:
        """Another DSCP, for all or for these hosts. Its reply: the hosts that have one of their own."""
        if not 0 <= dscp < 64:
            raise ValueError(f"no DSCP is {dscp}")
        if hosts is None:
            self.state.dscp = dscp
        else:
            self.state.by_host |= dict.fromkeys(hosts, dscp)
        self.revoke_offloads()
        return sorted(self.state.by_host)


class Marked(FlowActor):
    policy = Policy.named("policy")

    async def on_packet(self, packet: Packet) -> Verdict:
        self.offload(Rewrite(dscp=await self.policy.dscp(packet.source)))
        return OFFLOADED
