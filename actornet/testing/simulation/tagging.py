"""The network function that is simulated for streams: it edits, and part of that is what an owner has told.

A marker in what the client sends is replaced by a tag with a number that an owner gives out once, so each tag outside is a
claim about the state, as a datagram's port is with `Ticketing`. Other bytes are deleted, in both directions, without an ask.
"""

from __future__ import annotations

import re

from actornet.engine.direction import Direction
from actornet.stream import StreamActor
from actornet.testing.simulation.ticketing import TICKET_FIRST, Office

MARKER, DELETED = b"#", b"-"
TAG = re.compile(rb"\[(\d+)\]")
_PART = re.compile(rb"\[\d*$")


class Tagging(StreamActor):
    """One connection, which is known by its client's port."""

    tickets = Office.named("tickets", first=TICKET_FIRST)
    fragments = "drop"
    inline = True

    async def on_data(self, direction: Direction, data: bytes) -> bytes:
        data = data.replace(DELETED, b"")
        if direction is Direction.REPLY:
            return data
        first, *others = data.split(MARKER)
        for other in others:
            first += b"[%d]" % await self.tickets.take(self.flow.source_port) + other
        return first


def tags(data: bytes) -> list[int]:
    """The numbers in what left."""
    return [int(number) for number in TAG.findall(data)]


def is_edited(received: bytes, sent: bytes, *, whole: bool) -> bool:
    """Whether an end has received what the other one has sent, edited as it should be: all of it, or its beginning."""
    given = tags(received)
    received = TAG.sub(MARKER, received)
    kept = sent.replace(DELETED, b"")
    came = received == kept if whole else kept.startswith(_PART.sub(b"", received))
    return came and len(given) == len(set(given))
