"""A network function for live tests whose owner's state takes longer to be copied than a peer may be silent."""

from __future__ import annotations

from actornet import DROP, FORWARD, FiveTuple, FlowActor, Owner, Packet, Struct, Verdict

ENTRIES = 200_000


class Seen(Struct):
    """Changed in place by a handler, so that a copy of the state has a copy of it."""

    packets: int = 0


class Ledger(Struct):
    seen: dict[int, Seen] = {}


class Book(Owner[Ledger]):
    def start(self) -> Ledger:
        return Ledger({number: Seen() for number in range(ENTRIES)})

    def note(self, flow: FiveTuple) -> bool:
        self.state.seen[flow.source_port].packets += 1
        return True


class Watch(FlowActor):
    book = Book.named("book")

    async def on_packet(self, packet: Packet) -> Verdict:
        return FORWARD if await self.book.note(packet.flow) else DROP
