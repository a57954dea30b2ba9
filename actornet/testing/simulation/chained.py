"""The network function that is simulated for chains: a member with numbers of its own before `Ticketing`.

A packet leaves with both its members' numbers, the first one's in its destination address; each is a claim about the state.
"""

from __future__ import annotations

import msgspec

from actornet.chain import Chain, MemberState
from actornet.engine.packet import Packet
from actornet.engine.verdict import OFFLOADED, Rewrite, Verdict
from actornet.flow import FlowActor
from actornet.testing.simulation.ticketing import IDLE_FIRST, IDLE_S, STAMP_FIRST, Office, Ticketing


class Stamping(FlowActor):
    """One flow with its stamp; flows with odd numbers are offloaded, and stay so."""

    stamps = Office.named("stamps", first=STAMP_FIRST)
    fragments = "drop"
    idle_s = 1e6

    stamp: int = 0

    async def on_open(self, packet: Packet) -> None:
        flow = self.flow.source_port
        if flow >= IDLE_FIRST:
            self.idle_s = IDLE_S[flow % len(IDLE_S)]
        self.stamp = await self.stamps.take(flow)

    def on_packet(self, packet: Packet) -> Verdict:
        verdict = Rewrite("wan", destination=f"198.51.{self.stamp >> 8}.{self.stamp & 255}")
        if self.flow.source_port % 2 == 0:
            return verdict
        self.offload(verdict)
        return OFFLOADED

    async def on_close(self) -> None:
        if self.stamp:
            await self.stamps.give_back(self.stamp)


Chained = Chain(Stamping, Ticketing)

_decode = msgspec.msgpack.Decoder(list[MemberState]).decode


def fields_of(state: bytes) -> dict[str, int]:
    """What both members have, of a flow's record."""
    ((_, members),) = Chained.restore_arguments(state)[0]
    found: dict[str, int] = {}
    for part, member in zip(Chained.chained.values(), _decode(members), strict=False):
        found |= part.read_fields(member.fields)
    return found
