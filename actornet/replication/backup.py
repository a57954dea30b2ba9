"""The backup's side of the protocol; `protocol` has the theory of operation and the table of states."""

from __future__ import annotations

import msgspec

from actornet.limits import (
    GREETING_MS,
    HEARTBEAT_MS,
    LINKS_DOWN_MS,
    PATIENCE_MS,
    PAUSE_MS_MAX,
    SILENCE_MS_DEFAULT,
    SNAPSHOT_BYTES_MAX,
    SNAPSHOT_CHUNK_BYTES,
    YIELD_MS,
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
    Seen,
    Snapshot,
    Stop,
    Sync,
    Unsent,
    Welcome,
    Yield,
)
from actornet.replication.protocol import (
    CALM_PAUSE_MS,
    TRANSITIONS,
    Adopt,
    Apply,
    BackupAction,
    Claim,
    Close,
    Durability,
    Event,
    Identity,
    InstallSnapshot,
    Keep,
    Learn,
    Note,
    Position,
    Promote,
    Refused,
    Remember,
    Rewind,
    Send,
    State,
    Unclaim,
    epoch_of_takeover,
    told_ms,
)

_MS = 1_000_000

_DONE = {State.PROMOTED, State.STOPPED}
_UNLINKED = _DONE | {State.ABSENT, State.REFUSED}
_ONCE_IN_SYNC = {State.DOUBT, State.CLAIMING}
_MAY_TAKE_OVER = {State.IN_SYNC, State.DOUBT}
_WELCOMED = {State.SNAPSHOT, State.FOLLOWING, State.IN_SYNC}


class Backup:
    """A backup, from its start until it is promoted or stopped.

    `epoch` is the highest that the log or its metadata knows, `durable_lsn` what of the log is synced to disk. With
    `needs_lease` a witness has to agree to a takeover; with `wants_snapshot` records are not to be applied from the first. A
    primary that is silent for `silence_ms` is dead.
    """

    def __init__(
        self,
        identity: Identity,
        durability: Durability,
        *,
        epoch: int,
        durable_lsn: int,
        now_ns: int,
        silence_ms: int = SILENCE_MS_DEFAULT,
        needs_lease: bool = False,
        wants_snapshot: bool = False,
        node: str = "",
    ) -> None:
        self.identity = identity
        self.node = node
        self.durability = durability
        self.silence_ms = silence_ms
        self.epoch = epoch
        self.needs_lease = needs_lease
        self.wants_snapshot = wants_snapshot
        self.state = State.ABSENT
        self.sync_epochs = range(0)  # in a row, in which a primary counted this backup last
        self._rank = 0  # so many others come before this backup in a takeover
        self._yields = False  # a successor was named, and it is another
        self._claim_reason = ""
        self.primary_lsn = 0  # as last heard
        self.received_lsn = 0
        self.applied_lsn = 0
        self.durable_lsn = durable_lsn
        self._chunks: list[bytes] = []
        self._snapshot_end = Position()
        self._refusal = ""
        self._heard_ns = self._ticked_ns = self._acked_ns = now_ns
        self._pause_ms = 0  # for which the primary may be silent besides, as it said last
        self._rests_ms = 0  # by so much more than else ticks may have been apart
        self.links_down = 0  # of the own ports
        self._primary_links_down = 0
        self._better_since_ns = 0  # more of the own ports have a link since then; 0: they have not

    @property
    def lag(self) -> int | None:
        """Records that the primary has logged and this backup not applied, as far as it knows; None without primary."""
        return max(0, self.primary_lsn - self.applied_lsn) if self.state in _WELCOMED else None

    @property
    def calm(self) -> bool:
        """Whether the primary has said that it is; or there is none, of which this would have to take over."""
        return self.state not in (*_WELCOMED, *_ONCE_IN_SYNC) or self._pause_ms >= CALM_PAUSE_MS

    def lag_ns(self, now_ns: int) -> int:
        """For how long the primary has not been heard of."""
        return now_ns - self._heard_ns

    def connected(self, end: Position, now_ns: int) -> list[BackupAction]:
        """The link to the primary stands; `end` is the log's last record."""
        if self.state in _DONE:
            return []
        if self.state not in _ONCE_IN_SYNC:  # of which DOUBT has its own deadline
            self._move(Event.CONNECTED)
            self._heard_ns = now_ns
        self.received_lsn = self.applied_lsn = end.lsn
        self._primary_links_down = 0
        me = self.identity
        hello = Hello(
            self.epoch,
            VERSION,
            me.deployment,
            me.nf,
            me.fingerprint,
            "backup",
            end.lsn,
            end.chain,
            end.epoch,
            self.wants_snapshot,
            me.history,
            self.node,
            me.tested,
            me.keys_max,
        )
        return [Send(hello)]

    def disconnected(self, reason: str, now_ns: int) -> list[BackupAction]:
        """The link broke, or could not be set up."""
        if self.state in _UNLINKED or self.state is State.CLAIMING:
            return []
        if self.state is State.DOUBT and self._yields:
            return []
        if self.state is State.DOUBT:
            return self._promote(Event.LOST, f"link lost: {reason}")
        if self.state is State.IN_SYNC:
            self._move(Event.LOST)
            self._heard_ns, self._pause_ms = now_ns, 0
            return [Note("link lost", f"{reason}; asks the primary once more")]
        return self._lost(reason)

    def receive(self, message: AnyMessage, now_ns: int) -> list[BackupAction]:
        """A message came from the primary."""
        if self.state in _UNLINKED:
            return []
        if self.state is not State.DOUBT:
            self._heard_ns = now_ns
        if isinstance(message, Heartbeat):
            self._pause_ms = min(message.pause_ms, PAUSE_MS_MAX)
            self._primary_links_down = message.links_down
        elif isinstance(message, Records):
            self._pause_ms = 0
        if message.epoch < self.epoch and not isinstance(message, Refuse):
            return [Send(Fence(self.epoch))]
        heard: list[BackupAction] = []
        if message.epoch > self.epoch:
            self.epoch = message.epoch
            heard.append(Remember(self.epoch))
        return [*heard, *(self._refused(message) if isinstance(message, Refuse) else self._accept(message, now_ns))]

    def applied(self, lsn: int, now_ns: int) -> list[BackupAction]:
        """Everything up to `lsn` is in the log and in the state."""
        if self.state is State.SNAPSHOT:
            assert lsn == self._snapshot_end.lsn
            self._move(Event.RESTORED)
            self._refusal = ""
            self.received_lsn = lsn
        assert self.applied_lsn <= lsn <= self.received_lsn
        self.applied_lsn = lsn
        return [self._ack(now_ns)] if self.state in _WELCOMED else []

    def durable(self, lsn: int, now_ns: int) -> list[BackupAction]:
        """Everything up to `lsn` is synced to disk."""
        self.durable_lsn = lsn
        return [self._ack(now_ns)] if self.durability == "durable" and self.state in _WELCOMED else []

    def tick(self, now_ns: int) -> list[BackupAction]:
        """Time passes: signs of life for the primary, silence of the primary."""
        # Never more than the limit: what ended the pause may have been what kept this node from its next tick.
        rests_ms, self._rests_ms = min(self._rests_ms, self._answer_pause_ms), self._answer_pause_ms
        slept, self._ticked_ns = now_ns - self._ticked_ns > (self.silence_ms + rests_ms) * _MS, now_ns
        if self.state in _UNLINKED:
            return []
        if slept:
            self._heard_ns = now_ns
        if self.state is State.CLAIMING:
            return []
        limit_ms = self._limit_ms
        if now_ns - self._heard_ns > limit_ms * _MS:
            reason = f"primary silent for {limit_ms} ms"
            if self.state in _MAY_TAKE_OVER:
                return self._promote(Event.SILENT, reason)
            return [Close(reason), *self._lost(reason)]
        actions = self._compare_links(now_ns)
        if self.state in _WELCOMED and now_ns >= self._ack_due_ns:
            actions.append(self._ack(now_ns))
        return actions

    def due_ns(self, now_ns: int) -> int | None:
        """When `tick` will have something to do; None: not before something else has happened."""
        if self.state in _DONE:
            return None
        if self.state not in _WELCOMED:
            return now_ns + HEARTBEAT_MS * _MS
        return min(self._ack_due_ns, self._heard_ns + self._limit_ms * _MS + 1)

    @property
    def _limit_ms(self) -> int:
        """For how long the primary may be silent."""
        if self.state is State.GREETING:
            return GREETING_MS
        if self.state is State.DOUBT and self._yields:
            return YIELD_MS
        return self.silence_ms + self._pause_ms if self.state in _MAY_TAKE_OVER else PATIENCE_MS

    @property
    def _answer_pause_ms(self) -> int:
        """By how much acknowledgements come later than else: they answer heartbeats."""
        return min(self._pause_ms, CALM_PAUSE_MS)

    @property
    def _ack_due_ns(self) -> int:
        """When to say something unasked, as no heartbeat has come."""
        return self._acked_ns + (2 * HEARTBEAT_MS + self._answer_pause_ms) * _MS

    def links(self, down: int, now_ns: int) -> list[BackupAction]:
        """So many of this node's ports have no link now."""
        self.links_down = down
        return []

    def _compare_links(self, now_ns: int) -> list[BackupAction]:
        """Ask to lead if traffic has had a way through this node for a while, and less of one through the primary."""
        if self.state is not State.IN_SYNC or self._primary_links_down <= self.links_down:
            self._better_since_ns = 0
        elif not self._better_since_ns:
            self._better_since_ns = now_ns
        elif now_ns - self._better_since_ns > LINKS_DOWN_MS * _MS:
            self._better_since_ns = now_ns
            why = f"ports without a link: {self._primary_links_down} of the primary's, {self.links_down} of {self._me()}'s"
            return [Send(Yield(self.epoch, why)), Note("handover asked for", why, alarm=True)]
        return []

    def _me(self) -> str:
        return self.node or "the backup"

    def pausing(self, pause_ns: int, now_ns: int) -> list[BackupAction]:
        """This node will do nothing else for about so long."""
        return [self._ack(now_ns, told_ms(pause_ns))] if self.state in _WELCOMED and told_ms(pause_ns) else []

    def promote(self, *, force: bool) -> list[BackupAction]:
        """The operator promotes this backup; with `force` even if it may lack committed records."""
        if self.state in _DONE:
            return []
        if self.state is State.IN_SYNC:  # its primary lives, as far as anybody knows, and has the last word
            why = f"an operator wants {self._me()} to lead"
            return [Send(Yield(self.epoch, why)), Note("handover asked for", why)]
        if self.state in _MAY_TAKE_OVER:
            return self._promote(Event.OPERATOR, "operator")
        if force:
            self.sync_epochs = range(0)
            return self._promote(Event.OPERATOR, f"operator, forced while {self.state.value}")
        if self.state is State.CLAIMING:
            return [Refused("this backup waits for the witness to grant it the lease already: see its status")]
        return [
            Refused(
                f"this backup is {self.state.value}, not in sync: it may lack committed records; "
                "promote it with --force if those may be given up"
            )
        ]

    def granted(self, epoch: int, now_ns: int) -> list[BackupAction]:
        """The witness has granted the claim: the primary commits nothing any more (G7)."""
        if self.state in _DONE:
            return []
        return self._lead(Event.GRANTED, epoch, self._claim_reason)

    def denied(self, epoch: int, why: str) -> list[BackupAction]:
        """The witness, which is of `epoch`, stands against the claim for good: the primary has gone on without this backup,
        or somebody was granted that epoch and died before it was logged. A forced promotion after this begins a later one.
        """
        if self.state is not State.CLAIMING:
            return []
        self._move(Event.DENIED)
        heard: list[BackupAction] = []
        if epoch > self.epoch:
            self.epoch = epoch
            heard = [Remember(epoch)]
        # What was said on a connection made meanwhile is lost on who is ABSENT: it begins anew.
        close = Close("this backup may not take over, and comes again")
        return [*heard, close, Note("takeover denied", f"{why}; this backup follows when it is let", alarm=True)]

    def stop(self) -> list[BackupAction]:
        """Leave cleanly."""
        if self.state in _DONE:
            return []
        self._move(Event.STOP)
        return [Send(Stop(self.epoch, self.applied_lsn)), Close("the backup was stopped")]

    def _move(self, event: Event) -> None:
        self.state = TRANSITIONS["backup"][self.state][event]

    def _accept(self, message: AnyMessage, now_ns: int) -> list[BackupAction]:
        match message:
            case Records() if self.state in (State.FOLLOWING, State.IN_SYNC):
                return self._records(message, now_ns)
            case Heartbeat() if self.state in _WELCOMED:
                self.primary_lsn = message.lsn
                return [self._ack(now_ns)]
            case Welcome() if self.state in (State.GREETING, State.DOUBT, State.CLAIMING):
                return self._welcome(message, now_ns)
            case Snapshot() if self.state is State.SNAPSHOT and self._is_next(message):
                return self._chunk(message, now_ns)
            case Sync() if self.state is State.FOLLOWING and self.applied_lsn >= message.lsn:
                self._move(Event.LAG_0)
                self.sync_epochs, self._rank = range(self.epoch, self.epoch + 1), message.rank
                return [Note("in sync", f"at LSN {message.lsn}, epoch {self.epoch}: ready to take over")]
            case Sync() if self.state is State.IN_SYNC and self.epoch not in self.sync_epochs:
                self.sync_epochs, self._rank = range(self.sync_epochs.start, self.epoch + 1), message.rank
                return [self._ack(now_ns)]
            case Stop() if self.state is State.IN_SYNC and self.applied_lsn == message.lsn:
                if message.successor:
                    return self._promote(Event.HANDED_OVER, "handover")
                self._move(Event.LOST)
                self._yields = True
                return [Close("the primary stops"), Note("link lost", "the primary stops, and another takes over")]
            case Seen() if self.state in _WELCOMED:
                return [Learn(message.stations)]
            case Unsent() if self.state in _WELCOMED:
                return [Keep(message.unsent)]
            case Fence():
                return []
            case _:
                return self._part(f"unexpected {type(message).__name__} while {self.state.value}")

    def _welcome(self, welcome: Welcome, now_ns: int) -> list[BackupAction]:
        self._heard_ns = now_ns
        if welcome.how != "snapshot":  # none may come of it, for the same reason as before
            self._refusal = ""
        self._yields = False
        self._chunks = []
        self.primary_lsn = welcome.lsn
        note = Note("catching up", f"by {welcome.how}, from LSN {self.applied_lsn} to {welcome.lsn}")
        claimed = self.state is State.CLAIMING
        adopted: list[BackupAction] = []
        if welcome.history != self.identity.history:
            self.identity = msgspec.structs.replace(self.identity, history=welcome.history)
            adopted = [Adopt(welcome.history)]
        if welcome.how == "tail":
            self._move(Event.NEEDS_TAIL)
        else:
            self._move(Event.NEEDS_SNAPSHOT)
            self.received_lsn = self.applied_lsn = 0
        return [Unclaim(), *adopted, note] if claimed else [*adopted, note]

    def _records(self, message: Records, now_ns: int) -> list[BackupAction]:
        if message.first_lsn != self.received_lsn + 1:
            return self._part(f"records from LSN {message.first_lsn} came, {self.received_lsn + 1} is next")
        self.received_lsn += len(message.records)
        self.primary_lsn = max(self.primary_lsn, self.received_lsn)
        apply = Apply(message.first_lsn, message.records)
        return [self._ack(now_ns), apply] if self.durability == "received" else [apply]

    def _is_next(self, chunk: Snapshot) -> bool:
        return (
            chunk.index == len(self._chunks) < chunk.count <= SNAPSHOT_BYTES_MAX // SNAPSHOT_CHUNK_BYTES
            and len(chunk.data) <= SNAPSHOT_CHUNK_BYTES
            and (chunk.index == 0 or self._snapshot_end == Position(chunk.lsn, chunk.chain, chunk.log_epoch))
        )

    def _chunk(self, chunk: Snapshot, now_ns: int) -> list[BackupAction]:
        self._snapshot_end = Position(chunk.lsn, chunk.chain, chunk.log_epoch)
        self._chunks.append(chunk.data)
        if len(self._chunks) < chunk.count:
            return [self._ack(now_ns)]
        return [self._ack(now_ns), InstallSnapshot(self._snapshot_end, b"".join(self._chunks))]

    def _ack(self, now_ns: int, pause_ms: int = 0) -> Send:
        self._acked_ns = now_ns
        pause_ms = min(pause_ms + self._answer_pause_ms, PAUSE_MS_MAX)
        durable_lsn = min(self.durable_lsn, self.applied_lsn)
        return Send(Ack(self.epoch, self.received_lsn, durable_lsn, self.applied_lsn, len(self._chunks), pause_ms))

    def _part(self, reason: str) -> list[BackupAction]:
        """The primary broke the protocol, which is no evidence that it died: leave it, and come again."""
        welcomed = self.state in _WELCOMED
        actions: list[BackupAction] = [Close(reason)]
        if self.state is State.CLAIMING:
            return actions
        self._move(Event.REFUSED)
        return [*actions, Note("primary lost", reason, alarm=True)] if welcomed else actions

    def _lost(self, reason: str) -> list[BackupAction]:
        welcomed = self.state in _WELCOMED
        self._move(Event.LOST)
        return [Note("primary lost", f"{reason}; not in sync, so no takeover", alarm=True)] if welcomed else []

    def _refused(self, refuse: Refuse) -> list[BackupAction]:
        claimed = self.state is State.CLAIMING
        self._move(Event.REFUSED)
        close = Close(refuse.reason)
        unclaim: list[BackupAction] = [Unclaim()] if claimed else []
        if claimed and not refuse.fork_lsn:
            return [*unclaim, close, Refused(refuse.reason)]
        if refuse.fork_lsn > 0:
            return [*unclaim, close, Rewind(refuse.fork_lsn, refuse.fork_chain, refuse.reason)]
        if refuse.reason == self._refusal:  # came again, and was told the same
            return [close]
        self._refusal = refuse.reason
        return [close, Refused(refuse.reason)]

    def _promote(self, event: Event, reason: str) -> list[BackupAction]:
        epoch = epoch_of_takeover(self.epoch)
        if not self.needs_lease:
            return self._lead(event, epoch, reason)
        if self.state is not State.CLAIMING:
            self._move(Event.CLAIM)
        self._claim_reason = reason
        rank = self._rank if event in (Event.LOST, Event.SILENT) else 0  # who was named goes first
        claim = Claim(epoch, self.sync_epochs or None, rank)
        return [Close("this node asks the witness whether it may take over"), Note("claiming the lease", reason), claim]

    def _lead(self, event: Event, epoch: int, reason: str) -> list[BackupAction]:
        self._move(event)
        self.epoch = epoch
        complete = self.needs_lease and len(self.sync_epochs) > 0
        return [Send(Fence(epoch)), Close("this node is the primary now"), Promote(epoch, reason, complete)]
