"""Network functions with common mistakes: handlers store what the hints do not say, and too much."""

from __future__ import annotations

from actornet import FORWARD, FlowActor, Owner, Packet, Struct, Verdict
from actornet.limits import MESSAGE_BYTES_MAX


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


class Sloppy(FlowActor):
    """Does to its fields what the packet's first byte says."""

    count: int = 0
    table: bytes = b""

    def on_packet(self, packet: Packet) -> Verdict:
        match packet.payload[0]:
            case 1:
                self.count += 1
            case 2:
                self.count = 0.5  # type: ignore[assignment]
            case 3:
                self.table = bytes(2 * MESSAGE_BYTES_MAX)
            case 4:
                self.count = 2**70
        return FORWARD
