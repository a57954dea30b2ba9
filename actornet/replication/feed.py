"""What the primary feeds one backup: its log's tail or a snapshot, and how far that backup has acknowledged it.

`primary` has what is one for all backups: the epoch, the watermark, who counts.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypeVar

from actornet.limits import (
    ACK_STALL_MS,
    GREETING_MS,
    HEARTBEAT_MS,
    LINK_BATCH_BYTES,
    LINK_BATCH_RECORDS,
    LINK_WINDOW_BYTES,
    LINK_WINDOW_RECORDS,
    PATIENCE_MS,
    PAUSE_MS_MAX,
    SNAPSHOT_BYTES_MAX,
    SNAPSHOT_CHUNK_BYTES,
    TAIL_RECORDS_MAX,
    TERM_EPOCHS,
)
from actornet.replication.messages import Ack, Heartbeat, Records, Refuse, Snapshot, Welcome
from actornet.replication.protocol import (
    TRANSITIONS,
    Close,
    Event,
    Match,
    Note,
    Position,
    PrimaryAction,
    Read,
    Send,
    State,
    TakeSnapshot,
)

if TYPE_CHECKING:
    from actornet.replication.primary import Primary

Item = TypeVar("Item")

_MS = 1_000_000
_SNAPSHOT_WINDOW = LINK_WINDOW_BYTES // SNAPSHOT_CHUNK_BYTES

COUNTING = {State.IN_SYNC, State.HANDOVER}
STREAMING = COUNTING | {State.TAIL, State.JOINING}
WELCOMED = STREAMING | {State.SNAPSHOT}


class Feed:
    """One connected backup. `peer` is its connection, `node` its name once it has said it."""

    def __init__(self, primary: Primary, peer: int, now_ns: int) -> None:
        self.primary = primary
        self.peer = peer
        self.node = ""
        self.state = State.ALONE
        self.counts = False
        """Nothing is committed without it."""
        self.welcome = False
        """It is fed: by snapshot, or, if it `streams`, by records."""
        self.streams = False
        self.ack = Ack(primary.epoch, 0, 0, 0)
        self.heard_epoch = 0  # highest that the backup has shown to know
        self.sent_lsn = 0
        self.join_lsn = 0  # what was logged when it began to join: the watermark waits there
        self._tail_lsn = 0  # what was logged when it began with the tail: it does not join before it has that
        self.wants_snapshot = False
        self.stations_told = 0
        self._in_flight: deque[tuple[int, int]] = deque()  # (last LSN, bytes) of each Records not yet applied
        self._in_flight_bytes = 0
        self._reading = False  # a Read has not been answered
        self._chunks: list[memoryview] = []  # of the snapshot at `_snapshot_end`
        self._snapshot_end = Position()
        self.heard_ns = self._beat_ns = self.progress_ns = now_ns
        self._rests_ms = 0  # by so much more than else the next sign of life may be later, as the last one said

    def move(self, event: Event) -> None:
        self.state = state = TRANSITIONS["primary"][self.state][event]
        self.counts, self.streams, self.welcome = state in COUNTING, state in STREAMING, state in WELCOMED
        self.primary.recount()

    @property
    def lag(self) -> int:
        """Records that the backup has not applied."""
        return self.primary.logged_lsn - self.ack.applied

    def lag_ns(self, now_ns: int) -> int:
        """For how long the backup has not acknowledged what it was sent; 0 when it has."""
        return now_ns - self.progress_ns if self.lag else 0

    @property
    def acked_lsn(self) -> int:
        """The backup's acknowledgement of the kind that the durability mode asks for."""
        durability = self.primary.durability
        if durability == "received":
            return self.ack.received
        return self.ack.durable if durability == "durable" else self.ack.applied

    @property
    def has_joined(self) -> bool:
        """It has what was logged when it began to join."""
        return self.state is State.JOINING and min(self.ack.applied, self.acked_lsn) >= self.join_lsn

    @property
    def has_all(self) -> bool:
        return min(self.ack.applied, self.acked_lsn) >= self.primary.logged_lsn

    @property
    def needed_lsn(self) -> int:
        """Records from this LSN on must stay in the log."""
        return min(self.sent_lsn + 1, self.primary.logged_lsn)

    @property
    def is_at_tail(self) -> bool:
        return self.streams and self.sent_lsn == self.primary.logged_lsn

    def compared(self, found: Match, end: Position) -> list[PrimaryAction]:
        """The answer to Compare(end)."""
        primary = self.primary
        new = end.lsn == 0
        if new and self.wants_snapshot:
            return self.feed_snapshot("was set aside")
        if found.chain == end.chain and end.lsn < primary.damaged_lsn:
            return self.feed_snapshot(f"needs LSN {primary.damaged_lsn}, which is damaged here")
        if found.chain == end.chain and not (new and primary.logged_lsn > TAIL_RECORDS_MAX):
            return self._feed_tail(end.lsn)
        if new or end.lsn < primary.first_lsn:
            return self.feed_snapshot("is empty" if new else f"ends at LSN {end.lsn}, this one begins later")
        fork, term = found.fork, end.epoch // TERM_EPOCHS
        ended = fork.epoch == end.epoch or (found.complete and fork.epoch // TERM_EPOCHS == term)
        taken_over = ended and found.next_epoch // TERM_EPOCHS > term
        if 0 < fork.lsn < end.lsn and taken_over and primary.durability != "solo":
            reason = f"its records after LSN {fork.lsn} were never committed: it has to cut its log there"
            return self.refuse(reason, fork)
        if end.lsn > primary.logged_lsn:
            return self.refuse(
                f"its log is longer (LSN {end.lsn}, epoch {end.epoch}) than the primary's (LSN {primary.logged_lsn}, "
                f"epoch {primary.epoch}): stop the primary and promote the backup, or give it an empty log directory"
            )
        return self.refuse(
            f"its log diverges: its last record (LSN {end.lsn}, epoch {end.epoch}) is not the primary's there; "
            "keep the log that you want, and give the backup an empty log directory"
        )

    def damaged(self) -> list[PrimaryAction] | None:
        """The next record is damaged: part from the backup, which comes again and gets a snapshot. None: it waits for none."""
        if not self.streams or not self._reading:
            return None
        self._reading = False
        return self.drop(f"LSN {self.primary.damaged_lsn} is damaged in the primary's log")

    def snapshot(self, end: Position, data: bytes | bytearray) -> list[PrimaryAction]:
        """The answer to TakeSnapshot."""
        primary = self.primary
        if self.state is not State.SNAPSHOT or self._chunks:
            return []
        assert primary.first_lsn - 1 <= end.lsn <= primary.logged_lsn, "no records would follow the snapshot"
        if len(data) > SNAPSHOT_BYTES_MAX:
            return self.drop(f"the snapshot has {len(data)} bytes, more than {SNAPSHOT_BYTES_MAX}")
        self.sent_lsn = end.lsn
        view = memoryview(data)  # nothing is copied before it is sent: that takes a while
        self._chunks = [
            view[at : at + SNAPSHOT_CHUNK_BYTES] for at in range(0, max(1, len(data)), SNAPSHOT_CHUNK_BYTES)
        ]
        self._snapshot_end = end
        return self._send_chunks(0, _SNAPSHOT_WINDOW)

    def tail(self, records: list[bytes], now_ns: int) -> list[PrimaryAction]:
        """The answer to Read."""
        if not self.streams or not self._reading:
            return []
        self._reading = False
        if not records:
            return self.drop(f"LSN {self.sent_lsn + 1} is no longer in the log")
        return [*self.stream(records, now_ns), *self.pump(now_ns)]

    def tick(self, now_ns: int, *, slept: bool) -> list[PrimaryAction]:
        """Time passes: heartbeat, silence, stall."""
        if slept:
            self.heard_ns = self.progress_ns = now_ns
        limit_ms = self._limit_ms
        if now_ns - self.heard_ns > limit_ms * _MS:
            return self.drop(f"silent for {limit_ms} ms")
        if self._owed() and now_ns - self.progress_ns > ACK_STALL_MS * _MS:
            return self.drop(f"acknowledged nothing for {ACK_STALL_MS} ms")
        return self.beat(now_ns) if now_ns >= self._beat_due_ns else []

    def due_ns(self, now_ns: int) -> int:
        """When `tick` will have something to do."""
        if not self.welcome or self.state is State.HANDOVER:
            return now_ns + HEARTBEAT_MS * _MS
        return min(self._beat_due_ns, self.heard_ns + self._limit_ms * _MS + 1)

    @property
    def _limit_ms(self) -> int:
        """For how long the backup may be silent."""
        if self.state is State.GREETING:
            return GREETING_MS
        pause_ms = max(min(self.ack.pause_ms, PAUSE_MS_MAX), self.primary.pause_ms)
        return self.primary.silence_ms + pause_ms if self.counts else PATIENCE_MS

    @property
    def _beat_due_ns(self) -> int:
        return self._beat_ns + (HEARTBEAT_MS + min(self._rests_ms, self.primary.pause_ms)) * _MS

    def beat(self, now_ns: int, pause_ms: int = 0) -> list[PrimaryAction]:
        """A sign of life; the next one comes up to `pause_ms` later than usual."""
        if not self.welcome:
            return []
        primary = self.primary
        self._beat_ns, self._rests_ms = now_ns, primary.pause_ms
        pause_ms = min(pause_ms + primary.pause_ms, PAUSE_MS_MAX)
        return [Send(Heartbeat(primary.epoch, primary.logged_lsn, now_ns, pause_ms, primary.links_down), self.peer)]

    def acknowledged(self, ack: Ack, now_ns: int) -> list[PrimaryAction]:
        """The backup has more."""
        primary = self.primary
        if max(ack.received, ack.durable, ack.applied) > self.sent_lsn:
            return self.drop(f"acknowledged more than the LSN {self.sent_lsn} that it was sent: {ack}")
        if ack != self.ack:
            self.progress_ns = now_ns
        chunks_before, self.ack = self.ack.chunks, ack
        if self.state is State.SNAPSHOT:
            return self._feed_chunks(chunks_before, now_ns)
        while self._in_flight and self._in_flight[0][0] <= ack.applied:
            self._in_flight_bytes -= self._in_flight.popleft()[1]
        primary.raise_watermark()
        if self.state is State.HANDOVER:
            return primary.hand_over(now_ns)
        if self.has_joined:
            return primary.count(self, now_ns)
        return self.pump(now_ns)

    def refuse(self, reason: str, fork: Position | None = None) -> list[PrimaryAction]:
        """Not this backup."""
        epoch = self.primary.epoch
        self.primary.forget(self, Event.REFUSED)
        refuse = Refuse(epoch, reason, fork.lsn, fork.chain) if fork else Refuse(epoch, reason)
        return [Send(refuse, self.peer), Close(reason, self.peer), *self.primary.note_refusal(self.node, reason)]

    def drop(self, reason: str) -> list[PrimaryAction]:
        """Part from the peer. It is told so, hence does not take this for the primary's death."""
        told = Refuse(self.primary.epoch, reason)
        return [Send(told, self.peer), Close(reason, self.peer), *self.primary.lost(self, reason)]

    def feed_snapshot(self, why: str) -> list[PrimaryAction]:
        """The whole state, as the log does not do."""
        primary = self.primary
        self.move(Event.NEEDS_SNAPSHOT)
        self.sent_lsn = primary.first_lsn - 1  # keeps the log from there until the snapshot's LSN is known
        self.ack = Ack(primary.epoch, 0, 0, 0)
        note = Note("backup catches up", f"by snapshot: its log {why}")
        welcome = Welcome(primary.epoch, "snapshot", primary.logged_lsn, primary.identity.history)
        return [Send(welcome, self.peer), note, TakeSnapshot(self.peer)]

    def pump(self, now_ns: int) -> list[PrimaryAction]:
        """Read what the backup lacks, as far as the window allows; let it join when it lacks nothing."""
        if not self.streams or self._reading:
            return []
        logged_lsn = self.primary.logged_lsn
        if self.sent_lsn < logged_lsn:
            if not self._window_open():
                return []
            self._reading = True
            first_lsn, last_lsn = self.sent_lsn + 1, min(logged_lsn, self.sent_lsn + LINK_BATCH_RECORDS)
            return [Read(first_lsn, last_lsn, LINK_BATCH_BYTES, self.peer)]
        if self.state is not State.TAIL or self.ack.applied < self._tail_lsn:
            return []
        self.move(Event.ALL_SENT)
        self.join_lsn, self.progress_ns = logged_lsn, now_ns
        # Records stand for heartbeats, so where they come without a pause only this tells it of links that went before.
        links = self.beat(now_ns) if self.primary.links_down else []
        return [*links, *(self.primary.count(self, now_ns) if self.has_joined else [])]

    def stream(self, records: list[bytes], now_ns: int) -> list[PrimaryAction]:
        """Send the records that come next, as far as the window allows; the rest is read from the log later."""
        actions: list[PrimaryAction] = []
        for batch, size in batches(records, len):
            if not self._window_open():
                break
            if not self._owed():
                self.progress_ns = now_ns
            actions.append(Send(Records(self.primary.epoch, self.sent_lsn + 1, batch), self.peer))
            self.sent_lsn += len(batch)
            self._in_flight.append((self.sent_lsn, size))
            self._in_flight_bytes += size
            self._beat_ns, self._rests_ms = now_ns, 0
        return actions

    def _feed_tail(self, lsn: int) -> list[PrimaryAction]:
        primary = self.primary
        self.move(Event.NEEDS_TAIL)
        self.sent_lsn, self._tail_lsn = lsn, primary.logged_lsn
        self.ack = Ack(primary.epoch, lsn, 0, lsn)
        note = Note("backup catches up", f"by LSN {lsn + 1} to {primary.logged_lsn}")
        welcome = Welcome(primary.epoch, "tail", primary.logged_lsn, primary.identity.history)
        return [Send(welcome, self.peer), note, *self.pump(self.heard_ns)]

    def _feed_chunks(self, chunks_before: int, now_ns: int) -> list[PrimaryAction]:
        if self._chunks and self.ack.chunks == len(self._chunks) and self.ack.applied == self.sent_lsn:
            self.move(Event.RESTORED)
            self._chunks, self._tail_lsn = [], self.primary.logged_lsn
            return self.pump(now_ns)
        first, end = chunks_before + _SNAPSHOT_WINDOW, self.ack.chunks + _SNAPSHOT_WINDOW
        return self._send_chunks(first, end)

    def _send_chunks(self, first: int, end: int) -> list[PrimaryAction]:
        epoch, at, count = self.primary.epoch, self._snapshot_end, len(self._chunks)
        return [
            Send(Snapshot(epoch, at.lsn, at.epoch, at.chain, index, count, bytes(self._chunks[index])), self.peer)
            for index in range(first, min(end, count))
        ]

    def _owed(self) -> bool:
        """An acknowledgement that output may be waiting for is outstanding."""
        return (self.counts or self.state is State.JOINING) and self.acked_lsn < self.sent_lsn

    def _window_open(self) -> bool:
        return self._in_flight_bytes < LINK_WINDOW_BYTES and self.sent_lsn - self.ack.applied < LINK_WINDOW_RECORDS


def batches(items: list[Item], bytes_of: Callable[[Item], int]) -> Iterator[tuple[list[Item], int]]:
    """Cut into messages of at most LINK_BATCH_RECORDS and LINK_BATCH_BYTES (or one item); each with its bytes."""
    first = size = 0
    for index, item in enumerate(items):
        length = bytes_of(item)
        if index > first and (size + length > LINK_BATCH_BYTES or index - first == LINK_BATCH_RECORDS):
            yield items[first:index], size
            first, size = index, 0
        size += length
    if first < len(items):
        yield items[first:], size
