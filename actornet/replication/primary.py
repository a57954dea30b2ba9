"""The primary's side of the protocol; `protocol` has the theory of operation and the table of states."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from actornet.errors import FencedError
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
    SILENCE_MS,
    SNAPSHOT_BYTES_MAX,
    SNAPSHOT_CHUNK_BYTES,
    TAIL_RECORDS_MAX,
    TERM_EPOCHS,
)
from actornet.replication.messages import (
    VERSION,
    Ack,
    AnyMessage,
    Fence,
    Heartbeat,
    Hello,
    Records,
    Refuse,
    Snapshot,
    Stop,
    Sync,
    Welcome,
)
from actornet.replication.protocol import (
    TRANSITIONS,
    Close,
    Compare,
    Durability,
    Event,
    Fenced,
    Identity,
    Match,
    NewEpoch,
    Note,
    Position,
    PrimaryAction,
    Read,
    Send,
    State,
    StopNode,
    TakeSnapshot,
    WithoutBackup,
    epoch_going_on,
    told_ms,
)

_MS = 1_000_000
_SNAPSHOT_WINDOW = LINK_WINDOW_BYTES // SNAPSHOT_CHUNK_BYTES

_OVER = {State.STOPPED, State.FENCED}
_UNLINKED = _OVER | {State.ALONE}
_COUNTING = {State.IN_SYNC, State.HANDOVER}
_STREAMING = _COUNTING | {State.TAIL, State.JOINING}
_WELCOMED = _STREAMING | {State.SNAPSHOT}


class Primary:
    """The primary of a deployment, for as long as its process is that.

    `logged_lsn` is the log's last LSN; the EPOCH record of `epoch` must be the next one. `epoch` comes from
    `epoch_of_launch` or, with `takeover`, from a Promote action. `watermark` never falls. With `needs_lease` a witness has
    granted `epoch`, and has to grant every further one.
    """

    def __init__(
        self,
        identity: Identity,
        durability: Durability,
        without_backup: WithoutBackup,
        *,
        epoch: int,
        first_lsn: int,
        logged_lsn: int,
        takeover: bool,
        now_ns: int,
        needs_lease: bool = False,
    ) -> None:
        self.identity = identity
        self.durability = durability
        self.without_backup = without_backup
        self.epoch = epoch
        self.state = State.ALONE
        self.first_lsn = first_lsn  # the owner system raises it when it prunes the log, never above `needed_lsn`
        self.logged_lsn = logged_lsn
        self.watermark = 0
        self.commits_alone = takeover or without_backup == "solo"  # while no backup counts
        self.ack = Ack(epoch, 0, 0, 0)
        self.needs_lease = needs_lease
        self.granted_epoch = epoch  # by the witness; with no lease needed, whatever epoch it is
        self._highest_epoch = epoch  # heard of
        self._epoch_lsn = logged_lsn + 1  # nothing is committed in this epoch before its record is logged
        self._sent_lsn = 0
        self._join_lsn = 0  # what was logged when the watermark froze for the backup to join
        self._in_flight: deque[tuple[int, int]] = deque()  # (last LSN, bytes) of each Records not yet applied
        self._in_flight_bytes = 0
        self._reading = False  # a Read has not been answered
        self._damaged_lsn = 0  # the last record of the own log that proved damaged: nothing up to it is sent (G8)
        self._wants_snapshot = False
        self._chunks: list[Snapshot] = []
        self._heard_ns = self._ticked_ns = self._beat_ns = self._progress_ns = now_ns

    @property
    def lag(self) -> int | None:
        """Records that the backup has not applied; None without a backup."""
        return self.logged_lsn - self.ack.applied if self.state in _WELCOMED else None

    @property
    def sent_lsn(self) -> int:
        """What the backup was sent."""
        return self._sent_lsn

    def lag_ns(self, now_ns: int) -> int:
        """For how long the backup has not acknowledged what it was sent; 0 when it has."""
        return now_ns - self._progress_ns if self.lag else 0

    @property
    def needed_lsn(self) -> int:
        """Records from this LSN on must stay in the log: a backup is about to get them. The last one always does."""
        return min(self._sent_lsn + 1, self.logged_lsn) if self.state in _WELCOMED else self.logged_lsn

    def connected(self, now_ns: int) -> list[PrimaryAction]:
        """A peer has shown the key; its Hello comes next."""
        if self.state in _OVER:
            return [Send(Fence(self._highest_epoch)), Close(f"this primary is {self.state.value}")]
        assert self.state is State.ALONE, "the link has one peer"
        self._move(Event.CONNECTED)
        self._heard_ns = now_ns
        self._in_flight.clear()
        self._in_flight_bytes = 0
        self._reading = False
        self._chunks = []
        return []

    def disconnected(self, reason: str, now_ns: int) -> list[PrimaryAction]:
        """The link broke."""
        return [] if self.state in _UNLINKED else self._lost(reason)

    def receive(self, message: AnyMessage, now_ns: int) -> list[PrimaryAction]:
        """A message came from the connected peer."""
        if self.state in _UNLINKED:
            return []
        self._heard_ns = now_ns
        match message:
            case Hello() if self.state is State.GREETING:
                return self._hello(message)
            case _ if message.epoch > self.epoch:
                return self._fence(message.epoch)
            case _ if message.epoch < self.epoch:
                return [Send(Fence(self.epoch))]
            case Ack() if self.state in _WELCOMED:
                return self._acknowledged(message, now_ns)
            case Stop():
                reason = "the backup was stopped"
                return [Close(reason), *self._lost(reason)]
            case Fence():
                return []
            case _:
                return self._drop(f"unexpected {type(message).__name__} while {self.state.value}")

    def compared(self, found: Match, end: Position) -> list[PrimaryAction]:
        """The answer to Compare(end)."""
        if self.state is not State.MATCHING:
            return []
        new = end.lsn == 0
        if new and self._wants_snapshot:
            return self._feed_snapshot("was set aside")
        if found.chain == end.chain and end.lsn < self._damaged_lsn:
            return self._feed_snapshot(f"needs LSN {self._damaged_lsn}, which is damaged here")
        if found.chain == end.chain and not (new and self.logged_lsn > TAIL_RECORDS_MAX):
            return self._feed_tail(end.lsn)
        if new or end.lsn < self.first_lsn:
            return self._feed_snapshot("is empty" if new else f"ends at LSN {end.lsn}, this one begins later")
        fork = found.fork
        taken_over = fork.epoch == end.epoch and found.next_epoch // TERM_EPOCHS > end.epoch // TERM_EPOCHS
        if 0 < fork.lsn < end.lsn and taken_over and self.durability != "solo":
            reason = f"its records after LSN {fork.lsn} were never committed: it has to cut its log there"
            return self._refuse(reason, fork)
        if end.lsn > self.logged_lsn:
            return self._refuse(
                f"its log is longer (LSN {end.lsn}, epoch {end.epoch}) than the primary's (LSN {self.logged_lsn}, "
                f"epoch {self.epoch}): stop the primary and promote the backup, or give it an empty log directory"
            )
        return self._refuse(
            f"its log diverges: its last record (LSN {end.lsn}, epoch {end.epoch}) is not the primary's there; "
            "keep the log that you want, and give the backup an empty log directory"
        )

    def incomparable(self, end: Position, detail: str) -> list[PrimaryAction]:
        """The answer to Compare(end) when the own record there is damaged."""
        if self.state is not State.MATCHING:
            return []
        return [self._alarm(detail), *self._feed_snapshot(f"ends at LSN {end.lsn}, which is damaged here")]

    def damaged(self, detail: str) -> list[PrimaryAction]:
        """The answer to Read when the next record is damaged. The backup comes again, and gets a snapshot."""
        self._damaged_lsn = max(self._damaged_lsn, self._sent_lsn + 1)
        if self.state not in _STREAMING or not self._reading:
            return []
        self._reading = False
        return [self._alarm(detail), *self._drop(f"LSN {self._damaged_lsn} is damaged in the primary's log")]

    @staticmethod
    def _alarm(detail: str) -> Note:
        return Note("log damaged", f"{detail}. This node goes on; the backup gets its state by snapshot", alarm=True)

    def snapshot(self, end: Position, data: bytes, now_ns: int) -> list[PrimaryAction]:
        """The answer to TakeSnapshot: the state at `end`, a record of this log."""
        if self.state is not State.SNAPSHOT or self._chunks:
            return []
        assert self.first_lsn - 1 <= end.lsn <= self.logged_lsn, "no records would follow the snapshot"
        if len(data) > SNAPSHOT_BYTES_MAX:
            return self._drop(f"the snapshot has {len(data)} bytes, more than {SNAPSHOT_BYTES_MAX}")
        pieces = [data[at : at + SNAPSHOT_CHUNK_BYTES] for at in range(0, len(data), SNAPSHOT_CHUNK_BYTES)] or [b""]
        self._sent_lsn = end.lsn
        self._chunks = [
            Snapshot(self.epoch, end.lsn, end.epoch, end.chain, index, len(pieces), piece)
            for index, piece in enumerate(pieces)
        ]
        return [Send(chunk) for chunk in self._chunks[:_SNAPSHOT_WINDOW]]

    def tail(self, records: list[bytes], now_ns: int) -> list[PrimaryAction]:
        """The answer to Read: encoded records from its `first_lsn` on."""
        if self.state not in _STREAMING or not self._reading:
            return []
        self._reading = False
        if not records:
            return self._drop(f"LSN {self._sent_lsn + 1} is no longer in the log")
        return [*self._stream(records, now_ns), *self._pump(now_ns)]

    def logged(self, records: list[bytes], now_ns: int) -> list[PrimaryAction]:
        """These encoded records are in the log, after `logged_lsn`. FencedError: they should not be (G7)."""
        if self.state in _OVER:
            raise FencedError(f"epoch {self.epoch} is over ({self.state.value}): nothing may be logged in it any more")
        assert self.state is not State.HANDOVER, "logging ends before a handover"
        at_tail = self.state in _STREAMING and self._sent_lsn == self.logged_lsn
        self.logged_lsn += len(records)
        self._raise_watermark()
        live = self._stream(records, now_ns) if at_tail else []
        return [*live, *self._pump(now_ns)]

    def tick(self, now_ns: int) -> list[PrimaryAction]:
        """Time passes: heartbeat, silence, stall."""
        slept, self._ticked_ns = now_ns - self._ticked_ns > SILENCE_MS * _MS, now_ns
        if self.state in _UNLINKED:
            return []
        if slept:
            self._heard_ns = self._progress_ns = now_ns
        limit_ms = SILENCE_MS + min(self.ack.pause_ms, PAUSE_MS_MAX) if self.state in _COUNTING else PATIENCE_MS
        if self.state is State.GREETING:
            limit_ms = GREETING_MS
        if now_ns - self._heard_ns > limit_ms * _MS:
            return self._drop(f"silent for {limit_ms} ms")
        if self._owed() and now_ns - self._progress_ns > ACK_STALL_MS * _MS:
            return self._drop(f"acknowledged nothing for {ACK_STALL_MS} ms")
        if self.state in _WELCOMED and now_ns - self._beat_ns >= HEARTBEAT_MS * _MS:
            self._beat_ns = now_ns
            return [Send(Heartbeat(self.epoch, self.logged_lsn, now_ns))]
        return []

    def pausing(self, pause_ns: int, now_ns: int) -> list[PrimaryAction]:
        """This node will do nothing else for about so long."""
        if self.state not in _WELCOMED or not told_ms(pause_ns):
            return []
        self._beat_ns = now_ns
        return [Send(Heartbeat(self.epoch, self.logged_lsn, now_ns, told_ms(pause_ns)))]

    def stop(self, now_ns: int) -> list[PrimaryAction]:
        """Stop cleanly; nothing is logged any more. A backup in sync takes over once it has everything (handover)."""
        if self.state in _OVER or self.state is State.HANDOVER:
            return []
        linked, in_sync = self.state is not State.ALONE, self.state is State.IN_SYNC
        self._move(Event.STOP)
        if in_sync:
            self._progress_ns = now_ns
            return self._hand_over(now_ns)
        close: list[PrimaryAction] = [Close("the primary stops")] if linked else []
        return [*close, StopNode("stopped; no backup was in sync")]

    def go_on_alone(self) -> list[PrimaryAction]:
        """The operator ends the waiting for a backup."""
        if self.commits_alone or self.state in _OVER | _COUNTING:
            return []
        return self._begin_epoch("operator")

    def granted(self, epoch: int) -> list[PrimaryAction]:
        """The witness has granted this epoch: what waited for that is committed."""
        self.granted_epoch = epoch
        self._raise_watermark()
        return []

    def fenced(self, epoch: int) -> list[PrimaryAction]:
        """The witness says that the lease is another's, in that epoch."""
        return [] if self.state is State.FENCED else self._fence(epoch)

    def probe(self) -> Hello:
        """What to say to a node that may believe to be the primary, too; its answer goes to `rival`."""
        me = self.identity
        return Hello(
            self.epoch,
            VERSION,
            me.deployment,
            me.nf,
            me.fingerprint,
            "primary",
            self.logged_lsn,
            0,
            self.epoch,
            history=me.history,
        )

    def rival(self, answer: AnyMessage) -> list[PrimaryAction]:
        """A node answered to `probe`: it is the primary (Fenced), or has stood down (Note)."""
        if not isinstance(answer, Fence) or answer.epoch < self.epoch or self.state is State.FENCED:
            return []
        if answer.epoch > self.epoch:
            return self._fence(answer.epoch)
        return [Note("rival fenced", f"it obeys epoch {answer.epoch}")]

    def _move(self, event: Event) -> None:
        self.state = TRANSITIONS["primary"][self.state][event]

    def _hello(self, hello: Hello) -> list[PrimaryAction]:
        me = self.identity
        if (hello.deployment, hello.version) != (me.deployment, VERSION):
            return self._refuse(
                f"it is of deployment {hello.deployment!r}, version {hello.version}; "
                f"this primary is of {me.deployment!r}, version {VERSION}"
            )
        if hello.history and me.history and hello.history != me.history:
            return self._refuse(
                f"its log ({hello.lsn} records, epoch {hello.epoch}) diverges from the primary's from the first record on: "
                "keep the log that you want, and give the other node an empty log directory"
            )
        if hello.epoch > self.epoch:
            return self._fence(hello.epoch)
        if hello.role == "primary" and hello.epoch == self.epoch:
            return self._refuse(f"it is the primary of epoch {hello.epoch}, as this node is: stop one of the two")
        if hello.role == "primary":
            self._move(Event.REFUSED)
            return [Send(Fence(self.epoch)), Close(f"it is the primary of the older epoch {hello.epoch}")]
        if (hello.nf, hello.fingerprint) != (me.nf, me.fingerprint):
            return self._refuse(
                f"it runs {hello.nf} ({hello.fingerprint}), this primary {me.nf} ({me.fingerprint}): "
                "replay needs the same code on both"
            )
        self._wants_snapshot = hello.snapshot
        self._move(Event.HELLO)
        return [Compare(Position(hello.lsn, hello.chain, hello.log_epoch))]

    def _feed_tail(self, lsn: int) -> list[PrimaryAction]:
        self._move(Event.NEEDS_TAIL)
        self._sent_lsn = lsn
        self.ack = Ack(self.epoch, lsn, 0, lsn)
        note = Note("backup catches up", f"by LSN {lsn + 1} to {self.logged_lsn}")
        return [
            Send(Welcome(self.epoch, "tail", self.logged_lsn, self.identity.history)),
            note,
            *self._pump(self._heard_ns),
        ]

    def _feed_snapshot(self, why: str) -> list[PrimaryAction]:
        self._move(Event.NEEDS_SNAPSHOT)
        self._sent_lsn = self.first_lsn - 1  # keeps the log from there until the snapshot's LSN is known
        self.ack = Ack(self.epoch, 0, 0, 0)
        note = Note("backup catches up", f"by snapshot: its log {why}")
        return [Send(Welcome(self.epoch, "snapshot", self.logged_lsn, self.identity.history)), note, TakeSnapshot()]

    def _refuse(self, reason: str, fork: Position | None = None) -> list[PrimaryAction]:
        self._move(Event.REFUSED)
        refuse = Refuse(self.epoch, reason, fork.lsn, fork.chain) if fork else Refuse(self.epoch, reason)
        return [Send(refuse), Close(reason), Note("backup refused", reason, alarm=True)]

    def _drop(self, reason: str) -> list[PrimaryAction]:
        """Part from the peer. It is told so, hence does not take this for the primary's death."""
        told = Refuse(self.epoch, reason)
        return [Send(told), Close(reason), *self._lost(reason)]

    def _lost(self, reason: str) -> list[PrimaryAction]:
        counted = self.state is State.IN_SYNC and self.durability != "solo"
        actions: list[PrimaryAction] = [Note("backup lost", reason, alarm=True)] if self.state in _WELCOMED else []
        self._move(Event.LOST)
        if self.state is State.STOPPED:
            return [*actions, StopNode("stopped; the backup was lost before it had everything")]
        if counted and self.without_backup == "solo":
            return [*actions, *self._begin_epoch(reason)]
        if counted and self.without_backup == "stop":
            self._move(Event.STOP)
            return [*actions, StopNode(f"backup lost: {reason}")]
        return actions

    def _begin_epoch(self, reason: str) -> list[PrimaryAction]:
        try:
            self.epoch = epoch_going_on(self.epoch)
        except FencedError as error:
            self._move(Event.STOP)
            return [StopNode(str(error))]
        self._highest_epoch = self.epoch
        self._epoch_lsn = self.logged_lsn + 1
        self.commits_alone = True
        return [NewEpoch(self.epoch, reason)]

    def _fence(self, epoch: int) -> list[PrimaryAction]:
        linked = self.state not in _UNLINKED
        self._move(Event.FENCE)
        self._highest_epoch = epoch
        farewell: list[PrimaryAction] = [Send(Fence(epoch)), Close(f"fenced by epoch {epoch}")] if linked else []
        return [Fenced(epoch), *farewell]

    def _acknowledged(self, ack: Ack, now_ns: int) -> list[PrimaryAction]:
        if max(ack.received, ack.durable, ack.applied) > self._sent_lsn:
            return self._drop(f"acknowledged more than the LSN {self._sent_lsn} that it was sent: {ack}")
        if ack != self.ack:
            self._progress_ns = now_ns
        chunks_before, self.ack = self.ack.chunks, ack
        if self.state is State.SNAPSHOT:
            return self._feed_chunks(chunks_before, now_ns)
        while self._in_flight and self._in_flight[0][0] <= ack.applied:
            self._in_flight_bytes -= self._in_flight.popleft()[1]
        self._raise_watermark()
        if self.state is State.HANDOVER:
            return self._hand_over(now_ns)
        if self.state is State.JOINING and min(ack.applied, self._acked_lsn()) >= self._join_lsn:
            return self._count(now_ns)
        return self._pump(now_ns)

    def _feed_chunks(self, chunks_before: int, now_ns: int) -> list[PrimaryAction]:
        if self._chunks and self.ack.chunks == len(self._chunks) and self.ack.applied == self._sent_lsn:
            self._move(Event.RESTORED)
            self._chunks = []
            return self._pump(now_ns)
        first, end = chunks_before + _SNAPSHOT_WINDOW, self.ack.chunks + _SNAPSHOT_WINDOW
        return [Send(chunk) for chunk in self._chunks[first:end]]

    def _count(self, now_ns: int) -> list[PrimaryAction]:
        """The backup has all that was ever committed: from now on nothing is committed without it."""
        self._move(Event.LAG_0)
        self.commits_alone = False
        self._raise_watermark()
        note = Note("backup in sync", f"at LSN {self._join_lsn}, epoch {self.epoch}")
        return [Send(Sync(self.epoch, self._join_lsn)), note, *self._pump(now_ns)]

    def _hand_over(self, now_ns: int) -> list[PrimaryAction]:
        if min(self.ack.applied, self._acked_lsn()) < self.logged_lsn:
            return self._pump(now_ns)
        self._move(Event.HANDED_OVER)
        return [Send(Stop(self.epoch, self.logged_lsn)), StopNode("handed over to the backup")]

    def _acked_lsn(self) -> int:
        """The backup's acknowledgement of the kind that the durability mode asks for."""
        if self.durability == "received":
            return self.ack.received
        return self.ack.durable if self.durability == "durable" else self.ack.applied

    def _owed(self) -> bool:
        """An acknowledgement that output may be waiting for is outstanding."""
        return self.state in _COUNTING | {State.JOINING} and self._acked_lsn() < self._sent_lsn

    def _raise_watermark(self) -> None:
        if self.needs_lease and self.granted_epoch != self.epoch:
            return
        if self.durability == "solo":
            lsn = self.logged_lsn
        elif self.state in _COUNTING:
            lsn = min(self.logged_lsn, self._acked_lsn())
        elif self.commits_alone and self.state is not State.JOINING:
            lsn = self.logged_lsn
        else:
            return
        if lsn >= self._epoch_lsn:
            self.watermark = max(self.watermark, lsn)

    def _pump(self, now_ns: int) -> list[PrimaryAction]:
        """Read what the backup lacks, as far as the window allows; let it join when it lacks nothing."""
        if self.state not in _STREAMING or self._reading:
            return []
        if self._sent_lsn < self.logged_lsn:
            if not self._window_open():
                return []
            self._reading = True
            first_lsn = self._sent_lsn + 1
            return [Read(first_lsn, min(self.logged_lsn, self._sent_lsn + LINK_BATCH_RECORDS), LINK_BATCH_BYTES)]
        if self.state is not State.TAIL:
            return []
        self._move(Event.ALL_SENT)
        self._join_lsn, self._progress_ns = self.logged_lsn, now_ns
        return self._count(now_ns) if min(self.ack.applied, self._acked_lsn()) >= self._join_lsn else []

    def _window_open(self) -> bool:
        return self._in_flight_bytes < LINK_WINDOW_BYTES and self._sent_lsn - self.ack.applied < LINK_WINDOW_RECORDS

    def _stream(self, records: list[bytes], now_ns: int) -> list[PrimaryAction]:
        """Send the records that come next, as far as the window allows; the rest is read from the log later."""
        actions: list[PrimaryAction] = []
        for batch, size in _batches(records):
            if not self._window_open():
                break
            if not self._owed():
                self._progress_ns = now_ns
            actions.append(Send(Records(self.epoch, self._sent_lsn + 1, batch)))
            self._sent_lsn += len(batch)
            self._in_flight.append((self._sent_lsn, size))
            self._in_flight_bytes += size
            self._beat_ns = now_ns
        return actions


def _batches(records: list[bytes]) -> Iterator[tuple[list[bytes], int]]:
    """Cut into messages of at most LINK_BATCH_RECORDS and LINK_BATCH_BYTES (or one record); each with its bytes."""
    first = size = 0
    for index, record in enumerate(records):
        if index > first and (size + len(record) > LINK_BATCH_BYTES or index - first == LINK_BATCH_RECORDS):
            yield records[first:index], size
            first, size = index, 0
        size += len(record)
    if first < len(records):
        yield records[first:], size
