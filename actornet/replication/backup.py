class Backup:
    """A backup, from its start until it is promoted or stopped.

    `epoch` is the highest that the log (or its metadata) knows, `durable_lsn` what of the log is synced to disk.
    After a Resync a new Backup begins with the empty log.
    """

    def __init__(
        self, identity: Identity, durability: Durability, *, epoch: int, durable_lsn: int = 0, now_ns: int
    ) -> None:
        self.identity = identity
        self.durability = durability
        self.epoch = epoch
        self.state = S.ABSENT
        self.primary_lsn = 0  # as last heard
        self.received_lsn = 0
        self.applied_lsn = 0
        self.durable_lsn = durable_lsn
        self._chunks: list[bytes] = []
        self._snapshot_end = Position()
        self._refusal = ""
        self._heard_ns = self._ticked_ns = self._acked_ns = now_ns

    @property
    def lag(self) -> int | None:
        """Records that the primary has logged and this backup has not applied, as far as it knows; None: no primary."""
        return max(0, self.primary_lsn - self.applied_lsn) if self.state in _FOLLOWS else None

    def connected(self, end: Position, now_ns: int) -> list[BackupAction]:
        """The link to the primary stands; `end` is the log's last record."""
        if self.state in _DONE:
            return []
        assert self.state in (S.ABSENT, S.REFUSED, S.DOUBT), "the link has one peer"
        if self.state is not S.DOUBT:
            self._move(E.CONNECTED)
            self._heard_ns = now_ns
        self.received_lsn = self.applied_lsn = end.lsn
        self._chunks = []
        hello = Hello(
            max(self.epoch, end.epoch),
            version=VERSION,
            deployment=self.identity.deployment,
            nf=self.identity.nf,
            fingerprint=self.identity.fingerprint,
            role="backup",
            lsn=end.lsn,
            chain=end.chain,
            log_epoch=end.epoch,
        )
        return [Send(hello)]

    def disconnected(self, reason: str, now_ns: int) -> list[BackupAction]:
        """The link broke, or could not be set up."""
        if self.state in _DONE or self.state in (S.ABSENT, S.REFUSED):
            return []
        if self.state is S.DOUBT:
            return self._promote(E.LOST, f"link lost: {reason}")
        if self.state is S.IN_SYNC:
            self._heard_ns = now_ns  # how long to stay in doubt
            self._move(E.LOST)
            return [Note("link lost", f"{reason}; asking once more")]
        return self._leave(reason)

    def receive(self, message: AnyMessage, now_ns: int) -> list[BackupAction]:
        """A message came from the primary."""
        if self.state in _DONE or self.state in (S.ABSENT, S.REFUSED):
            return []
        if self.state is not S.DOUBT:
            self._heard_ns = now_ns
        if isinstance(message, Refuse):
            return self._refused(message)
        if message.epoch < self.epoch:
            return [Send(Fence(self.epoch))]
        if message.epoch > self.epoch:
            self.epoch = message.epoch
            return [Remember(self.epoch), *self._accept(message, now_ns)]
        return self._accept(message, now_ns)

    def applied(self, lsn: int, now_ns: int) -> list[BackupAction]:
        """Everything up to `lsn` is in the log and in the state."""
        assert self.applied_lsn <= lsn <= max(self.received_lsn, self._snapshot_end.lsn)
        self.applied_lsn = lsn
        if self.state is S.SNAPSHOT and lsn == self._snapshot_end.lsn:
            self._move(E.RESTORED)
            self.received_lsn = lsn
        return [self._ack(now_ns)] if self.state in _FOLLOWS else []

    def durable(self, lsn: int, now_ns: int) -> list[BackupAction]:
        """Everything up to `lsn` is synced to disk."""
        self.durable_lsn = lsn
        return [self._ack(now_ns)] if self.durability == "durable" and self.state in _FOLLOWS else []

    def tick(self, now_ns: int) -> list[BackupAction]:
        """Time passes: acknowledgements as signs of life, silence of the primary."""
        slept, self._ticked_ns = now_ns - self._ticked_ns > _SILENCE_NS, now_ns
        if self.state in _DONE or self.state in (S.ABSENT, S.REFUSED):
            return []
        if slept:
            self._heard_ns = now_ns
        doubtful = self.state in (S.IN_SYNC, S.DOUBT)
        limit_ms = SILENCE_MS if doubtful else PATIENCE_MS
        if now_ns - self._heard_ns > limit_ms * _MS:
            reason = f"primary silent for {limit_ms} ms"
            return self._promote(E.SILENT, reason) if doubtful else [Close(reason), *self._leave(reason)]
        if self.state in _FOLLOWS and now_ns - self._acked_ns >= HEARTBEAT_MS * _MS:
            return [self._ack(now_ns)]
        return []

    def promote(self, *, force: bool) -> list[BackupAction]:
        """The operator promotes this backup; `force` also when it may lack committed records."""
        if self.state in _DONE:
            return []
        if self.state not in (S.IN_SYNC, S.DOUBT) and not force:
            behind = f"{self.lag} records behind" if self.lag is not None else "no link to a primary"
            return [Refused(f"this backup is {self.state.value} ({behind}) and may lack committed records: force it")]
        return self._promote(E.OPERATOR, "operator, forced" if force else "operator")

    def stop(self) -> list[BackupAction]:
        """Leave cleanly."""
        if self.state in _DONE:
            return []
        linked = self.state in _FOLLOWS
        self._move(E.STOP)
        return [Send(Stop(self.epoch, self.applied_lsn)), Close("the backup was stopped")] if linked else []

    def _move(self, event: Event) -> None:
        self.state = TRANSITIONS["backup"][self.state][event]

    def _accept(self, message: AnyMessage, now_ns: int) -> list[BackupAction]:
        match message:
            case Records() if self.state in (S.FOLLOWING, S.IN_SYNC):
                return self._records(message, now_ns)
            case Heartbeat() if self.state in _FOLLOWS:
                self.primary_lsn = message.lsn
                return []
            case Welcome() if self.state in (S.GREETING, S.DOUBT):
                self._move(E.NEEDS_TAIL if message.how == "tail" else E.NEEDS_SNAPSHOT)
                self._heard_ns = now_ns
                self.primary_lsn = message.lsn
                self._refusal = ""
                return [Note("catching up", f"by {message.how}, from LSN {self.applied_lsn} to {message.lsn}")]
            case Snapshot() if self.state is S.SNAPSHOT and self._fits(message):
                return self._chunk(message, now_ns)
            case Sync() if self.state is S.FOLLOWING and self.applied_lsn >= message.lsn:
                self._move(E.LAG_0)
                return [Note("in sync", f"LSN {message.lsn}, epoch {self.epoch}: ready to take over")]
            case Stop() if self.state is S.IN_SYNC and self.applied_lsn == message.lsn:
                return self._promote(E.HANDED_OVER, "handover")
            case Fence():
                return self._part("this backup spoke of an older epoch")
            case _:
                return self._part(f"unexpected {type(message).__name__} while {self.state.value}")

    def _records(self, message: Records, now_ns: int) -> list[BackupAction]:
        if message.first_lsn != self.received_lsn + 1:
            return self._part(f"records from LSN {message.first_lsn}, but {self.received_lsn + 1} is the next")
        self.received_lsn += len(message.records)
        self.primary_lsn = max(self.primary_lsn, self.received_lsn)
        apply = Apply(message.first_lsn, message.records)
        return [self._ack(now_ns), apply] if self.durability == "received" else [apply]

    def _fits(self, chunk: Snapshot) -> bool:
        end = Position(chunk.lsn, chunk.chain, chunk.log_epoch)
        return (
            chunk.index == len(self._chunks) < chunk.count <= SNAPSHOT_BYTES_MAX // SNAPSHOT_CHUNK_BYTES
            and len(chunk.data) <= SNAPSHOT_CHUNK_BYTES
            and (chunk.index == 0 or end == self._snapshot_end)
        )

    def _chunk(self, chunk: Snapshot, now_ns: int) -> list[BackupAction]:
        self._snapshot_end = Position(chunk.lsn, chunk.chain, chunk.log_epoch)
        self._chunks.append(chunk.data)
        if len(self._chunks) < chunk.count:
            return [self._ack(now_ns)]
        self.received_lsn = self.applied_lsn = min(self.applied_lsn, chunk.lsn)
        return [self._ack(now_ns), InstallSnapshot(self._snapshot_end, b"".join(self._chunks))]

    def _ack(self, now_ns: int) -> Send:
        self._acked_ns = now_ns
        durable_lsn = min(self.durable_lsn, self.applied_lsn)
        return Send(Ack(self.epoch, self.received_lsn, durable_lsn, self.applied_lsn, len(self._chunks)))

    def _part(self, reason: str) -> list[BackupAction]:
        """The primary broke the protocol: leave it, come back later."""
        return [Close(reason), *self._leave(reason)]

    def _leave(self, reason: str) -> list[BackupAction]:
        """Not in sync any more, if it ever was; this is no evidence that the primary died."""
        known = self.state in _FOLLOWS
        if self.state in (S.IN_SYNC, S.DOUBT):
            self._move(E.REFUSED)
        else:
            self._move(E.LOST)
        self._chunks = []
        return [Note("primary lost", f"{reason}; not in sync, so no takeover", alarm=True)] if known else []

    def _refused(self, refuse: Refuse) -> list[BackupAction]:
        self._move(E.REFUSED)
        self._chunks = []
        close = Close(refuse.reason)
        if refuse.fork_lsn > 0:
            return [close, Resync(refuse.fork_lsn, refuse.fork_chain, refuse.reason)]
        if refuse.reason == self._refusal:  # asked again, answered as before
            return [close]
        self._refusal = refuse.reason
        return [close, Refused(refuse.reason)]

    def _promote(self, event: Event, reason: str) -> list[BackupAction]:
        linked = self.state in _FOLLOWS
        self._move(event)
        self.epoch = epoch_of_takeover(self.epoch)
        fence: list[BackupAction] = [Send(Fence(self.epoch)), Close("this node is the primary now")] if linked else []
        return [*fence, Promote(self.epoch, self.applied_lsn, reason)]


_DONE = {S.PROMOTED, S.STOPPED}
_FOLLOWS = {S.SNAPSHOT, S.FOLLOWING, S.IN_SYNC}
