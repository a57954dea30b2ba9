"""The network function that is simulated: whatever it sends tells what it depended on.

Every number that an owner gives out is given once, to one flow, and stays in the owner's state. A packet leaves with such
a number as its source port, so each packet outside is a claim about the state, which can be looked up in any replica.
"""

from __future__ import annotations

from actornet.engine.packet import Packet
from actornet.engine.verdict import DROP, OFFLOADED, Rewrite, Verdict
from actornet.flow import FlowActor
from actornet.owner import Owner, Struct

OFFLOADING, COUNTING, READING, REVOKING = 1, 2, 3, 4
"""Destination ports: kinds of flows."""

TICKET_FIRST, COUNT_FIRST, STAMP_FIRST = 1024, 30_000, 50_000

IDLE_FIRST = 101
"""From this number on flows end when they are idle, and every second of their offloads after HARD_S."""

IDLE_S, HARD_S = (0.02, 0.025, 0.03), 0.015


class Entry(Struct, frozen=True, array_like=True):
    """Who was given a number, and by which record."""

    flow: int
    lsn: int


class Numbers(Struct):
    """Numbers from `first` on; `given` has all that ever were, `returned` those that came back, `doubled` twice."""

    first: int
    given: dict[int, Entry] = {}
    returned: dict[int, int] = {}
    doubled: list[int] = []


class Office(Owner[Numbers]):
    """Gives out numbers."""

    def start(self, first: int) -> Numbers:
        return Numbers(first)

    def take(self, flow: int) -> int:
        """The next number."""
        number = self.state.first + len(self.state.given)
        self.state.given[number] = Entry(flow, self._moment.lsn)
        return number

    def revoke(self, flow: int) -> int:
        """As `take`; and no offload from before counts any more."""
        self.revoke_offloads()
        return self.take(flow)

    def give_back(self, number: int) -> None:
        """The flow that had it has ended."""
        if number in self.state.returned:
            self.state.doubled.append(number)
        self.state.returned[number] = self._moment.lsn

    def latest(self) -> int:
        """The number that was given out last; 0: none was."""
        return self.state.first + len(self.state.given) - 1 if self.state.given else 0


class Ticketing(FlowActor):
    """One flow with its ticket."""

    tickets = Office.named("tickets", first=TICKET_FIRST)
    counts = Office.named("counts", first=COUNT_FIRST)
    fragments = "drop"
    idle_s = 1e6

    ticket: int = 0

    async def on_open(self, packet: Packet) -> Verdict | None:
        kind, flow = packet.destination_port, self.flow.source_port
        if flow >= IDLE_FIRST:
            self.idle_s = IDLE_S[flow % len(IDLE_S)]
        if kind == READING:
            latest = await self.counts.latest()
            return Rewrite("wan", source_port=latest) if latest else DROP
        if kind == REVOKING:
            return None
        self.ticket = await self.tickets.take(flow)
        if kind == OFFLOADING:
            self._offload_as(self.ticket)
        return None

    async def on_packet(self, packet: Packet) -> Verdict:
        if packet.payload.startswith(b"close"):
            self.close()
            return DROP
        if packet.destination_port == READING:
            latest = await self.counts.latest()
            return Rewrite("wan", source_port=latest) if latest else DROP
        if packet.destination_port == REVOKING:
            return Rewrite("wan", source_port=await self.counts.revoke(self.flow.source_port))
        if packet.destination_port == OFFLOADING:
            if not self.offloaded(self.flow):
                self._offload_as(await self.counts.take(self.flow.source_port))
            return OFFLOADED
        return Rewrite("wan", source_port=await self.counts.take(self.flow.source_port))

    def _offload_as(self, number: int) -> None:
        ends = self.flow.source_port >= IDLE_FIRST and number % 2
        self.offload(Rewrite("wan", source_port=number), hard_s=HARD_S if ends else None)

    async def on_close(self) -> None:
        if self.ticket:
            await self.tickets.give_back(self.ticket)
