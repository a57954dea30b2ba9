"""A network function for live tests with a common mistake: an owner's field is an int, and its handler stores a float."""

from __future__ import annotations

from actornet import FORWARD, FlowActor, Owner, Packet, Struct, Verdict


class Totals(Struct):
    mean: int = 0


class Mean(Owner[Totals]):
    def add(self, size: int) -> None:
        self.state.mean = (self.state.mean + size) / 2  # type: ignore[assignment]


class Half(FlowActor):
    mean = Mean.named("mean")

    async def on_packet(self, packet: Packet) -> Verdict:
        await self.mean.add(packet.length)
        return FORWARD
