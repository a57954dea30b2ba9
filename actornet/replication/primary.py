class Primary:
    """The primary of one epoch.

    `logged_lsn` is the log's last LSN; the epoch's EPOCH record must be the next one. `epoch` comes from
    `epoch_going_on` or, with `takeover`, from a Promote action. `watermark` never falls.
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
    ) -> None:
        self.identity = identity
        self.durability = durability
        self.without_backup = without_backup
        self.epoch = epoch
        self.state = S.ALONE
        self.first_lsn = first_lsn  # the owner system raises it when it prunes the log; see `needed_lsn`
        self.logged_lsn = logged_lsn
        self.watermark = 0
        self.commits_alone = takeover or without_backup == "solo"  # in the states in which no backup counts
        self.ack = Ack(epoch, 0, 0, 0)
        self._epoch_lsn = logged_lsn + 1  # nothing is committed in this epoch before its record is logged
        self._sent_lsn = 0
        self._join_lsn = 0
        self._in_flight: deque[tuple[int, int]] = deque()  # (last LSN, bytes) of each Records not yet applied
        self._in_flight_bytes = 0
        self._reading = False
        self._snapshot: list[Snapshot] = []
        self._heard_ns = self._ticked_ns = self._beat_ns = self._progress_ns = now_ns

    @property
    def needed_lsn(self) -> int:
        """Records from this LSN on must stay in the log: a backup is about to get them."""
        return self._sent_lsn + 1 if self.state in _FED else self.logged_lsn + 1

    @property
    def lag(self) -> int | None:
        """Records that the backup has not applied; None without a backup."""
        return self.logged_lsn - self.ack.applied if self.state in _FED else None

    def connected(self, now_ns: int) -> list[PrimaryAction]:
        """A peer has shown the key; its Hello comes next."""
        if self.state in _OVER:
            return [Send(Fence(self.epoch)), Close(f"this primary is {self.state.value}")]
        assert self.state is S.ALONE, "the link has one peer"
        self._move(E.CONNECTED)
        self._heard_ns = now_ns
        self.ack = Ack(self.epoch, 0, 0, 0)
        self._in_flight.clear()
        self._in_flight_bytes = 0
        self._reading = False
        return []

    def disconnected(self, reason: str, now_ns: int) -> list[PrimaryAction]:
        """The link broke."""
        return [] if self.state in _UNLINKED else self._lost(reason)

    def receive(self, message: AnyMessage, now_ns: int) -> list[PrimaryAction]:
        """A message came from the connected peer."""
        if self.state in _UNLINKED:
            return []
        self._heard_ns = now_ns
        if message.epoch > self.epoch:
            return self._fenced(message.epoch)
        match message:
            case Hello() if self.state is S.GREETING:
                return self._hello(message)
            case Ack() | Stop() if message.epoch < self.epoch:
                return [Send(Fence(self.epoch))]
            case Ack() if self.state in _FED:
                return self._acknowledged(message, now_ns)
            case Stop():
                return [Close("the backup was stopped"), *self._lost("the backup was stopped")]
            case Fence():
                return []
            case _:
                return self._drop(f"unexpected {type(message).__name__} while {self.state.value}")

    def compared(self, found: Match, end: Position) -> list[PrimaryAction]:
        """The answer to Compare(end)."""
        if self.state is not S.MATCHING:
            return []
        new = end.lsn == 0
        forked = (
            found.fork.lsn > 0
            and found.fork.epoch == end.epoch
            and found.next_epoch // TERM_EPOCHS > end.epoch // TERM_EPOCHS
            and self.durability != "solo"
        )
        if found.chain == end.chain and not (new and self.logged_lsn > TAIL_RECORDS_MAX):
            return self._welcome_tail(end.lsn)
        if new or end.lsn < self.first_lsn:
            self._move(E.NEEDS_SNAPSHOT)
            self._snapshot = []
            self._sent_lsn = self.logged_lsn
            note = Note("backup catches up", "by snapshot: its log " + ("is empty" if new else f"ends at LSN {end.lsn}"))
            return [Send(Welcome(self.epoch, "snapshot", self.logged_lsn)), TakeSnapshot(), note]
        if forked:
            return self._refuse(
                f"its records after LSN {found.fork.lsn} were never committed: set them aside and start anew",
                found.fork,
            )
        if end.lsn > self.logged_lsn:
            return self._refuse(
                f"the backup's log is longer (LSN {end.lsn}, epoch {end.epoch}) than the primary's (LSN "
                f"{self.logged_lsn}, epoch {self.epoch}): stop this primary and promote the backup, or give the "
                "backup an empty log directory"
            )
        return self._refuse(
            f"the logs diverge: the backup's ends at LSN {end.lsn} in epoch {end.epoch}, the primary's has another "
            "record there: keep the one that you want, and give the backup an empty log directory"
        )

    def snapshot(self, end: Position, data: bytes, now_ns: int) -> list[PrimaryAction]:
        """The answer to TakeSnapshot: the state at `end`, a record of this log."""
        if self.state is not S.SNAPSHOT or self._snapshot:
            return []
        assert self.first_lsn - 1 <= end.lsn <= self.logged_lsn
        if len(data) > SNAPSHOT_BYTES_MAX:
            return self._drop(f"the snapshot has {len(data)} bytes, more than {SNAPSHOT_BYTES_MAX}")
        offsets = range(0, max(len(data), 1), SNAPSHOT_CHUNK_BYTES)
        self._snapshot = [
            Snapshot(
                self.epoch,
                lsn=end.lsn,
                log_epoch=end.epoch,
                chain=end.chain,
                index=index,
                count=len(offsets),
                data=data[offset : offset + SNAPSHOT_CHUNK_BYTES],
            )
            for index, offset in enumerate(offsets)
        ]
        self._sent_lsn = end.lsn
        window = LINK_WINDOW_BYTES // SNAPSHOT_CHUNK_BYTES
        return [Send(chunk) for chunk in self._snapshot[:window]]

    def tail(self, records: list[bytes], now_ns: int) -> list[PrimaryAction]:
        """The answer to Read: encoded records from its `first_lsn` on."""
        if self.state not in _STREAMING or not self._reading:
            return []
        self._reading = False
        if not records:
            return self._drop(f"LSN {self._sent_lsn + 1} is no longer in the log")
        return [self._send_records(records, now_ns), *self._pump(now_ns)]

    def logged(self, records: list[bytes], now_ns: int) -> list[PrimaryAction]:
        """These encoded records are in the log, after `logged_lsn`. FencedError: they should not be (G7)."""
        if self.state in _OVER:
            raise FencedError(f"epoch {self.epoch} is over ({self.state.value}): nothing may be logged in it any more")
        assert self.state is not S.HANDOVER, "stop logging before a handover"
        at_tail = self._sent_lsn == self.logged_lsn and self.state in _STREAMING
        self.logged_lsn += len(records)
        self._raise_watermark()
        if at_tail and len(records) <= LINK_BATCH_RECORDS and self._window_open() and _small(records):
            return [self._send_records(records, now_ns)]
        return self._pump(now_ns)

    def tick(self, now_ns: int) -> list[PrimaryAction]:
        """Time passes: heartbeat, silence, stall."""
        slept, self._ticked_ns = now_ns - self._ticked_ns > _SILENCE_NS, now_ns
        if self.state in _UNLINKED:
            return []
        if slept:
            self._heard_ns = self._progress_ns = now_ns
        limit_ms = SILENCE_MS if self.state in _COUNTING else PATIENCE_MS
        if now_ns - self._heard_ns > limit_ms * _MS:
            return self._drop(f"silent for {limit_ms} ms")
        if self._owed() and now_ns - self._progress_ns > ACK_STALL_MS * _MS:
            return self._drop(f"acknowledged nothing for {ACK_STALL_MS} ms")
        if self.state in _FED and now_ns - self._beat_ns >= HEARTBEAT_MS * _MS:
            self._beat_ns = now_ns
            return [Send(Heartbeat(self.epoch, self.logged_lsn, now_ns))]
        return []

    def stop(self, now_ns: int) -> list[PrimaryAction]:
        """Stop cleanly; nothing is logged any more. A backup in sync takes over once it has everything (handover)."""
        if self.state in _OVER or self.state is S.HANDOVER:
            return []
        linked = self.state is not S.ALONE
        self._move(E.STOP)
        if self.state is S.HANDOVER:
            self._progress_ns = now_ns
            return self._hand_over()
        close: list[PrimaryAction] = [Close("the primary stops")] if linked else []
        return [*close, StopNode("stopped without a backup in sync")]

    def go_on_alone(self, now_ns: int) -> list[PrimaryAction]:
        """The operator ends the waiting for a backup."""
        if self.state in _OVER | _COUNTING or self.commits_alone:
            return []
        return self._new_epoch("operator")

    def probe(self) -> Hello:
        """What to say to a node that may believe to be the primary, too; its answer goes to `rival`."""
        return Hello(
            self.epoch,
            version=VERSION,
            deployment=self.identity.deployment,
            nf=self.identity.nf,
            fingerprint=self.identity.fingerprint,
            role="primary",
            lsn=self.logged_lsn,
            chain=0,
            log_epoch=self.epoch,
        )

    def rival(self, answer: AnyMessage) -> list[PrimaryAction]:
        """A node answered to `probe`. Fenced: it is the primary. Note: it has stood down."""
        if not isinstance(answer, Fence):
            return []
        if answer.epoch > self.epoch:
            return self._fenced(answer.epoch)
        return [Note("rival fenced", f"it obeys epoch {answer.epoch}")] if answer.epoch == self.epoch else []

    def _move(self, event: Event) -> None:
        self.state = TRANSITIONS["primary"][self.state][event]

    def _hello(self, hello: Hello) -> list[PrimaryAction]:
        if (hello.deployment, hello.version) != (self.identity.deployment, VERSION):
            return self._refuse(
                f"it is of deployment {hello.deployment!r}, version {hello.version}; this primary is of "
                f"{self.identity.deployment!r}, version {VERSION}"
            )
        if hello.role == "primary":
            self._move(E.REFUSED)
            return [Send(Fence(self.epoch)), Close("it is a primary of an older epoch")]
        if (hello.nf, hello.fingerprint) != (self.identity.nf, self.identity.fingerprint):
            return self._refuse(
                f"it runs {hello.nf} ({hello.fingerprint}), this primary {self.identity.nf} "
                f"({self.identity.fingerprint}): replay needs the same code on both"
            )
        self._move(E.HELLO)
        return [Compare(Position(hello.lsn, hello.chain, hello.log_epoch))]

    def _welcome_tail(self, lsn: int) -> list[PrimaryAction]:
        self._move(E.NEEDS_TAIL)
        self._sent_lsn = lsn
        self.ack = Ack(self.epoch, lsn, 0, lsn)
        note = Note("backup catches up", f"from LSN {lsn} to {self.logged_lsn}")
        return [Send(Welcome(self.epoch, "tail", self.logged_lsn)), note, *self._pump(self._heard_ns)]

    def _refuse(self, reason: str, fork: Position | None = None) -> list[PrimaryAction]:
        self._move(E.REFUSED)
        fork = fork or Position()
        refuse = Refuse(self.epoch, reason, fork.lsn, fork.chain)
        return [Send(refuse), Close(reason), Note("backup refused", reason, alarm=True)]

    def _drop(self, reason: str) -> list[PrimaryAction]:
        """Part from a peer; being told so, it does not promote itself."""
        lost = self._lost(reason)
        return [Send(Refuse(self.epoch, reason)), Close(reason), *lost]

    def _lost(self, reason: str) -> list[PrimaryAction]:
        counted = self.state is S.IN_SYNC and self.durability != "solo"
        known = self.state in _FED
        self._move(E.LOST)
        self._snapshot = []
        if self.state is S.STOPPED:
            return [StopNode(f"stopped; the backup left before the handover was complete: {reason}")]
        note: list[PrimaryAction] = [Note("backup lost", reason, alarm=True)] if known else []
        if not counted:
            return note
        self.commits_alone = False
        if self.without_backup == "solo":
            return note + self._new_epoch(reason)
        if self.without_backup == "stop":
            self._move(E.STOP)
            return [*note, StopNode(f"backup lost: {reason}")]
        return note

    def _new_epoch(self, reason: str) -> list[PrimaryAction]:
        try:
            self.epoch = epoch_going_on(self.epoch)
        except FencedError as error:
            self._move(E.STOP)
            return [StopNode(str(error))]
        self.commits_alone = True
        self._epoch_lsn = self.logged_lsn + 1
        return [NewEpoch(self.epoch, reason)]

    def _fenced(self, epoch: int) -> list[PrimaryAction]:
        linked = self.state not in _UNLINKED
        self._move(E.FENCE)
        farewell: list[PrimaryAction] = [Send(Fence(epoch)), Close(f"fenced by epoch {epoch}")] if linked else []
        return [Fenced(epoch), *farewell]

    def _acknowledged(self, ack: Ack, now_ns: int) -> list[PrimaryAction]:
        if max(ack.received, ack.applied) > self._sent_lsn:
            return self._drop(f"acknowledged LSN {max(ack.received, ack.applied)}, but {self._sent_lsn} was the last sent")
        if ack != self.ack:
            self._progress_ns = now_ns
        previous, self.ack = self.ack, ack
        while self._in_flight and self._in_flight[0][0] <= ack.applied:
            self._in_flight_bytes -= self._in_flight.popleft()[1]
        if self.state is S.SNAPSHOT:
            return self._snapshot_acknowledged(previous.chunks, now_ns)
        if self.state is S.JOINING and ack.applied >= self._join_lsn and self._acked_lsn() >= self._join_lsn:
            self._move(E.LAG_0)
            self.commits_alone = False
            self._raise_watermark()
            note = Note("backup in sync", f"LSN {self._join_lsn}, epoch {self.epoch}")
            return [Send(Sync(self.epoch, self._join_lsn)), note, *self._pump(now_ns)]
        self._raise_watermark()
        return self._hand_over() if self.state is S.HANDOVER else self._pump(now_ns)

    def _snapshot_acknowledged(self, chunks_before: int, now_ns: int) -> list[PrimaryAction]:
        if self._snapshot and self.ack.applied == self._sent_lsn and self.ack.chunks == len(self._snapshot):
            self._move(E.RESTORED)
            self._snapshot = []
            return self._pump(now_ns)
        window = LINK_WINDOW_BYTES // SNAPSHOT_CHUNK_BYTES
        return [Send(chunk) for chunk in self._snapshot[chunks_before + window : self.ack.chunks + window]]

    def _hand_over(self) -> list[PrimaryAction]:
        if self._sent_lsn < self.logged_lsn:
            return self._pump(self._heard_ns)
        if min(self.ack.applied, self._acked_lsn()) < self.logged_lsn:
            return []
        self._raise_watermark()
        self._move(E.HANDED_OVER)
        return [Send(Stop(self.epoch, self.logged_lsn)), StopNode("handed over to the backup")]

    def _acked_lsn(self) -> int:
        """The backup's acknowledgement of the kind that the durability mode asks for."""
        if self.durability == "received":
            return self.ack.received
        return self.ack.durable if self.durability == "durable" else self.ack.applied

    def _owed(self) -> bool:
        return self.state in _COUNTING | {S.JOINING} and self._acked_lsn() < self._sent_lsn

    def _raise_watermark(self) -> None:
        if self.durability == "solo":
            lsn = self.logged_lsn
        elif self.state in _COUNTING:
            lsn = min(self.logged_lsn, self._acked_lsn())
        elif self.commits_alone and self.state is not S.JOINING:
            lsn = self.logged_lsn
        else:
            return
        if lsn >= self._epoch_lsn and self.state not in _OVER:
            self.watermark = max(self.watermark, lsn)

    def _window_open(self) -> bool:
        return self._in_flight_bytes < LINK_WINDOW_BYTES and self._sent_lsn - self.ack.applied < LINK_WINDOW_RECORDS

    def _pump(self, now_ns: int) -> list[PrimaryAction]:
        """Read what the backup lacks, as far as the window allows; at the tail, let it join."""
        if self.state not in _STREAMING or self._reading:
            return []
        if self._sent_lsn == self.logged_lsn:
            if self.state is S.TAIL:
                self._join_lsn = self.logged_lsn
                self._progress_ns = now_ns
                self._move(E.ALL_SENT)
            return []
        if not self._window_open():
            return []
        self._reading = True
        last_lsn = min(self.logged_lsn, self._sent_lsn + LINK_BATCH_RECORDS)
        return [Read(self._sent_lsn + 1, last_lsn, LINK_BATCH_BYTES)]

    def _send_records(self, records: list[bytes], now_ns: int) -> Send:
        if not self._owed():
            self._progress_ns = now_ns
        first_lsn = self._sent_lsn + 1
        self._sent_lsn += len(records)
        size = sum(map(len, records))
        self._in_flight.append((self._sent_lsn, size))
        self._in_flight_bytes += size
        self._beat_ns = now_ns
        return Send(Records(self.epoch, first_lsn, records))


_OVER = {S.STOPPED, S.FENCED}
_UNLINKED = _OVER | {S.ALONE}
_COUNTING = {S.IN_SYNC, S.HANDOVER}
_STREAMING = _COUNTING | {S.TAIL, S.JOINING}
_FED = _STREAMING | {S.SNAPSHOT}


def _small(records: list[bytes]) -> bool:
    return len(records) == 1 or sum(map(len, records)) <= LINK_BATCH_BYTES
