"""The replica: everything that is replicated, as a function of the log's records.

The primary makes records (`execute_ask`, `execute`, ...), the backup and every replay apply them (`apply`); both end
in the same state, or a DivergenceError names the record (G4). Nothing here reads a clock, a file or a socket.

What is replicated, and what changes it:

- owners: OWNER creates one, ASK runs one of its handlers. A handler that raises replies with an error; what it changed
  before that stays, on every replica alike.
- flows: FLOW saves one, CLOSE removes it.
- recorded replies: ASK adds one for the flow that asked, FLOW drops those that the saved state covers, CLOSE the rest.
  A flow that runs again after a takeover asks the same again, under a new incarnation, and is given the recorded reply
  (G5).

Incarnations of a flow only grow. What an older one than the newest known says is stale: its asks are refused or given
their recorded reply, its FLOW and CLOSE records change nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from typing import Any

import msgspec
from xxhash import xxh3_64_intdigest

from actornet.engine.asks import is_packet, says_closes
from actornet.engine.five_tuple import FiveTuple, flow_key, key_parts
from actornet.errors import DivergenceError, FencedError, LogDamagedError, StateError, UsageError
from actornet.limits import ASKS_OPEN_PER_FLOW_MAX
from actornet.log.record import (
    AskBody,
    Body,
    CloseBody,
    ControlBody,
    EpochBody,
    FlowBody,
    HashBody,
    Kind,
    OwnerBody,
    Record,
)
from actornet.owner import Moment, Owner, create, decode_state, import_owner
from actornet.replication import frozen
from actornet.replication.copying import GUESS_NS
from actornet.replication.replica_base import OpenAsks, Recorded, ReplicaBase, error_reply, is_stale


class AskRequest(msgspec.Struct, array_like=True, tag=1, gc=False):
    """A message to an owner, as `execute_ask` takes it, encoded; `args` is a msgpack list.

    Cores write the same bytes without this class, and nothing but `read_ask` reads them.
    """

    flow: FiveTuple | None
    port: int
    incarnation: int
    number: int
    owner: str
    message: str
    args: bytes
    packet: bytes | None = None

    def encoded(self) -> bytes:
        return _encode(self)


def _nothing() -> None:
    """Nobody measures pauses."""


def _nobody(pause_ns: int) -> None:
    """Nobody has to know."""


class Audit:
    """The hash of one frozen state in the making: `actual` once it is done, `expected` once the log has told.

    `misfit`: there is none, as an owner's state does not fit its type, and the log will tell none either.
    """

    def __init__(self, lsn: int, work: Generator[None, None, int]) -> None:
        self.lsn = lsn
        self.expected: int | None = None
        self.actual: int | None = None
        self.misfit: str | None = None
        self._work = work

    @property
    def done(self) -> bool:
        return self.actual is not None or self.misfit is not None

    def step(self) -> None:
        """One slice."""
        try:
            next(self._work)
        except StopIteration as end:
            self.actual = end.value
        except StateError as error:
            self.misfit = str(error)


_KIND_OF: dict[type, Kind] = {
    OwnerBody: Kind.OWNER,
    FlowBody: Kind.FLOW,
    CloseBody: Kind.CLOSE,
    ControlBody: Kind.CONTROL,
    HashBody: Kind.HASH,
}

_PAIR = b"\x92"
_encode = msgspec.msgpack.Encoder().encode


class Snapshot(msgspec.Struct, array_like=True):
    """A replica's whole content at one LSN; owners' states as `encode_state` gives them.

    `asks` has each flow's key, newest incarnation, packet and recorded replies.
    """

    version: int
    lsn: int
    epoch: int
    time_ns: int
    term: EpochBody | None
    owners: list[tuple[OwnerBody, bytes]]
    flows: list[msgspec.Raw]
    asks: list[tuple[bytes, int, bytes, list[Recorded]]]
    revocations: int = 0


class Replica(ReplicaBase):
    """The replicated state at `lsn`, in `epoch`.

    `load` finds an owner class by its path. `term` is the current epoch's first record. `time_ns` is the last record's
    time: a primary makes no earlier one, so that owners never see time run backwards when a clock is set, or another
    node's goes on. `flows` (each an encoded `FlowBody`) and `asks` (recorded replies that no saved state covers, oldest
    first) are keyed by `flow_key`. `created` has the owners' OWNER records, by name.

    `audit` is the hash of the state at the last mark, in the making; see `Audit`. A replica that is not `patient` finishes
    it when the log says what it has to be. `before_pause` is told how many ns, by estimate, the replica will be busy, before it
    holds its state still for an audit or a snapshot, and `after_pause` is called when it has; see `frozen.pause_ns`.
    """

    def __init__(self, load: Callable[[str], type[Owner[Any]]] = import_owner) -> None:
        self._moment = Moment()
        super().__init__(self._moment)
        self.term: EpochBody | None = None
        self.owners: dict[str, Owner[Any]] = {}
        self.created: dict[str, OwnerBody] = {}
        self.audit: Audit | None = None
        self.audited_lsn = 0  # the last mark at which this state's hash was that in the log
        self.audited_hash = 0
        self.patient = False
        self.before_pause: Callable[[int], None] = _nobody
        self.after_pause: Callable[[], None] = _nothing
        self.guess_ns = GUESS_NS
        self._load = load

    # The primary's side: each call changes the state and returns the record to log.

    def begin_epoch(self, epoch: int, body: EpochBody, time_ns: int) -> Record:
        """Begin a primary's term. Raises FencedError unless the epoch is higher than all before."""
        record = Record(self.lsn + 1, epoch, max(time_ns, self.time_ns), Kind.EPOCH, 0, body)
        self.apply(record)
        return record

    def create_owner(self, name: str, path: str, settings: Mapping[str, Any], time_ns: int) -> Record | None:
        """Create an owner; None if it is there already, whatever its settings were then.

        Raises UsageError if the class cannot be loaded, its settings do not fit, or the name has another class.
        """
        created = self.created.get(name)
        if created is not None:
            if created.path != path:
                raise UsageError(f"owner {name!r} is a {created.path}; it cannot be a {path} too: choose another name")
            return None
        return self.execute(OwnerBody(name, path, dict(settings)), 0, time_ns)

    def execute(
        self, body: OwnerBody | FlowBody | CloseBody | ControlBody | HashBody, core: int, time_ns: int
    ) -> Record:
        """Do what the body says, and return its record."""
        record = Record(self.lsn + 1, self.epoch, max(time_ns, self.time_ns), _KIND_OF[type(body)], core, body)
        self.apply(record)
        return record

    def hash_state(self, time_ns: int) -> Record:
        """Record the state's hash, for every replica to check. Takes about 1 us per flow and item of owners' states."""
        body = HashBody(self.state_hash())
        self.lsn += 1
        self.time_ns = max(time_ns, self.time_ns)
        return Record(self.lsn, self.epoch, self.time_ns, Kind.HASH, 0, body)

    def mark(self, time_ns: int) -> Record:
        """Have every replica hash the state as it is after this record, in slices (`work_on_audit`)."""
        return self.execute(HashBody(0, self.lsn + 1), 0, time_ns)

    def tell_hash(self, time_ns: int) -> Record | None:
        """The record of the audit's result, for all replicas to compare; None while it is in the making."""
        if self.audit is None or self.audit.actual is None:
            return None
        lsn, actual = self.audit.lsn, self.audit.actual
        self.audit, self.audited_lsn, self.audited_hash = None, lsn, actual
        return self.execute(HashBody(actual, lsn), 0, time_ns)

    # Everyone's side.

    def work_on_audit(self, slices: int | None) -> None:
        """Go on hashing the state at the last mark, by so many slices, or to the end.

        Raises DivergenceError once it is done if the log says otherwise.
        """
        audit = self.audit
        if audit is None:
            return
        while not audit.done and slices != 0:
            audit.step()
            slices = slices - 1 if slices is not None else None
        if audit.misfit is not None and audit.expected is not None:
            raise DivergenceError(
                f"divergence at LSN {audit.lsn}: hash of the state after it: expected {audit.expected:016x}, but here there "
                f"is none: {audit.misfit}"
            )
        if audit.actual is not None and audit.expected is not None:
            self._compare(audit.lsn, audit.expected, audit.actual)
            self.audit = None

    def orphans(self) -> Iterator[tuple[FiveTuple, int, bytes]]:
        """Five-tuple, port and first packet of each flow that has asked and was not saved.

        Where its core has died nobody knows what it was given, a port for example. Who goes on has that packet treated
        again: the flow is given the recorded replies, and is there to end like any other.
        """
        for key, recorded in self.unfinished.items():
            if is_packet(recorded.packet) and key not in self.flows:
                yield *key_parts(key), recorded.packet

    def closing(self) -> Iterator[tuple[FiveTuple, int]]:
        """Five-tuple and port of each flow whose `on_close` has asked, and that has not closed.

        It may have given back what it had: where its core has died it is closed anew, and is given the recorded replies.
        """
        for key, recorded in self.unfinished.items():
            if says_closes(recorded.packet) and key in self.flows:
                yield key_parts(key)

    def flow(self, key: bytes) -> FlowBody | None:
        """A saved flow as it goes on: its next ask comes behind those of handlers that have ended. None: there is none."""
        saved, recorded = self.flows.get(key), self.asks.get(key)
        if saved is None:
            return None
        body = FlowBody.decode(saved)
        if recorded is not None and recorded.before > body.asks:
            body.asks = recorded.before
        return body

    def apply(self, record: Record) -> None:
        """Do what the record says.

        Raises LogDamagedError for another LSN than the next, FencedError for another epoch than the current, and
        DivergenceError if the outcome is not what the record says; the replica is of no use after that.
        """
        if record.lsn != self.lsn + 1:
            raise LogDamagedError(
                f"log record at LSN {record.lsn} came where LSN {self.lsn + 1} is due: records are missing or repeated"
            )
        body = record.body
        if (record.epoch <= self.epoch) if isinstance(body, EpochBody) else (record.epoch != self.epoch):
            raise FencedError(
                f"log record at LSN {record.lsn} is of epoch {record.epoch}, but epoch {self.epoch} is current"
            )
        self._apply_body(record, body)
        self.lsn = record.lsn
        self.time_ns = record.time_ns
        if isinstance(body, HashBody) and body.at_lsn == record.lsn:
            self.audit = Audit(record.lsn, self.hashing())

    def hashing(self) -> Generator[None, None, int]:
        """`state_hash` of the state as it is now, a slice at a time. Raises StateError, not before the first slice."""
        self.before_pause(frozen.pause_ns(self, self.guess_ns))
        work = frozen.state_hash(self)
        self.after_pause()
        return work

    def snapshotting(self) -> Iterator[bytes]:
        """`snapshot` of the state as it is now, in pieces, a slice at a time. Raises StateError, not before the first."""
        self.before_pause(frozen.pause_ns(self, self.guess_ns))
        work = frozen.snapshot(self)
        self.after_pause()
        return work

    def check_states(self) -> None:
        """Raise StateError if an owner's state would not come back from a snapshot."""
        frozen.check(self)

    def state_hash(self) -> int:
        """Hash (XXH3-64) of all replicated state; the same for equal states however they came about."""
        return frozen.finish(frozen.state_hash(self))

    def snapshot(self) -> bytes:
        """Everything, for `restore`: what a replica needs in place of the records up to `lsn`.

        Raises StateError if an owner's state would not come back.
        """
        return b"".join(frozen.snapshot(self))

    @classmethod
    def restore(cls, data: bytes, load: Callable[[str], type[Owner[Any]]] = import_owner) -> Replica:
        """The replica that `snapshot` was taken of.

        Raises LogDamagedError for changed or cut bytes, UsageError if a state does not fit its owner's class.
        """
        view = memoryview(data)
        content, digest = view[: -frozen.DIGEST_BYTES], view[-frozen.DIGEST_BYTES :]
        if len(digest) < frozen.DIGEST_BYTES or int.from_bytes(digest, "little") != xxh3_64_intdigest(content):
            raise LogDamagedError(f"snapshot of {len(data)} bytes is damaged: take an older one, or the other node's")
        try:
            snapshot = msgspec.msgpack.decode(content, type=Snapshot)
            flows = {_key_of(body): body for body in map(bytes, snapshot.flows)}
        except msgspec.DecodeError as error:
            raise LogDamagedError(f"snapshot is of another version: {error}") from error
        if snapshot.version != frozen.SNAPSHOT_VERSION:
            raise LogDamagedError(
                f"snapshot has format {snapshot.version}; this version reads {frozen.SNAPSHOT_VERSION}"
            )
        replica = cls(load)
        replica._moment.revocations = snapshot.revocations
        replica.lsn, replica.epoch, replica.time_ns = snapshot.lsn, snapshot.epoch, snapshot.time_ns
        if snapshot.term is not None:
            replica._begin(snapshot.term)
        for created, state in snapshot.owners:
            owner_type = load(created.path)
            owner = owner_type(replica._moment)
            owner.state = decode_state(owner_type, state)
            replica._add(created, owner)
        replica.flows = flows
        for key, newest, packet, entries in snapshot.asks:
            recorded = OpenAsks(newest, entries[0], packet)
            for entry in entries[1:]:
                recorded.remember(newest, entry, packet)
            replica.keep_asks(key, recorded)
        return replica

    def _apply_body(self, record: Record, body: Body) -> None:
        match body:
            case AskBody():
                self._apply_ask(record, body)
            case FlowBody():
                self._apply_save(body)
            case CloseBody():
                self._close(body)
            case OwnerBody():
                self._create(record, body)
            case EpochBody():
                self._begin(body)
                self.epoch = record.epoch
            case HashBody(at_lsn=0):
                self._compare(record.lsn - 1, body.state_hash, self.state_hash())
            case HashBody():
                if self.audit is not None and self.audit.lsn == body.at_lsn != record.lsn:
                    self.audit.expected = body.state_hash
                    if not self.patient:
                        self.work_on_audit(None)
            case ControlBody():
                pass

    def _compare(self, lsn: int, expected: int, actual: int) -> None:
        """The hash of the state at `lsn`, as the log has it and as it is here."""
        if actual != expected:
            since = (
                f"the states agreed at LSN {self.audited_lsn}" if self.audited_lsn else "no earlier state was compared"
            )
            raise DivergenceError(
                f"divergence at LSN {lsn}: hash of the state after it: expected {expected:016x}, actual {actual:016x}; "
                f"{since}: compare the owners' states in between"
            )
        self.audited_lsn, self.audited_hash = lsn, actual

    def _apply_ask(self, record: Record, body: AskBody) -> None:
        target = _target(body.owner, body.message)
        key = flow_key(body.flow, body.port) if body.flow is not None else None
        packet = body.packet or b""
        reply = self._reply_to(
            key, target, body.args, body.incarnation, body.number, packet, record.lsn, record.time_ns
        )
        actual = xxh3_64_intdigest(reply)
        if actual != body.reply_hash:
            self._diverged(record.lsn, target, body.reply_hash, actual, reply)

    def _diverged(self, lsn: int, target: bytes, expected: int, actual: int, reply: bytes) -> None:
        owner, message = msgspec.msgpack.decode(_PAIR + target)
        raise DivergenceError(
            f"divergence at LSN {lsn}: {owner}.{message}: expected reply hash {expected:016x}, actual {actual:016x} of reply "
            f"{_shown(reply)}; the code or the state differs from the primary's"
        )

    def _begin(self, body: EpochBody) -> None:
        self.term = body
        self._moment.seed = body.seed

    def _create(self, record: Record, body: OwnerBody) -> None:
        if body.name in self.owners:
            raise LogDamagedError(f"log record at LSN {record.lsn} creates owner {body.name!r}, which is there already")
        # As from the log: `start` must not see what msgpack does not carry, or keep what the caller still holds.
        body = msgspec.msgpack.decode(_encode(body), type=OwnerBody)
        moment = self._moment
        moment.lsn = record.lsn
        moment.time_ns = record.time_ns
        try:
            self._add(body, create(self._load(body.path), body.settings, moment))
        finally:
            moment.time_ns = -1

    def _add(self, body: OwnerBody, owner: Owner[Any]) -> None:
        self.created[body.name] = body
        self.owners[body.name] = owner
        for name, message in owner.messages.items():
            run = message.function.__get__(owner)
            self._handle(_target(body.name, name), run, message.decode, message.normalise)

    def _close(self, body: CloseBody) -> None:
        key = flow_key(body.flow, body.port)
        if is_stale(body.incarnation, self.asks.get(key), self.flows.get(key)):
            return
        self.flows.pop(key, None)
        self.forget_asks(key)

    def _known_reply(
        self,
        recorded: OpenAsks | None,
        body: bytes | None,
        incarnation: int,
        number: int,
        target: bytes,
        args: bytes,
    ) -> bytes | None:
        """The reply that needs no handler: a recorded one, or a refusal. `body`: what is saved of the flow."""
        if recorded is not None and number <= recorded.highest:
            for known in recorded:
                if known[:3] == (number, target, args):
                    return known[3]
        saved = FlowBody.decode(body) if body is not None else None
        if is_stale(incarnation, recorded, body):
            return error_reply("OwnerError", f"ask {number} comes from an incarnation of the flow that is gone")
        if saved is not None and saved.incarnation == incarnation and number <= saved.asks:
            return error_reply("OwnerError", f"ask {number} was answered before the flow was saved")
        if recorded is not None and len(recorded) >= ASKS_OPEN_PER_FLOW_MAX:
            return error_reply("OwnerError", f"the flow has {len(recorded)} asks since it was last saved, the most")
        return None

    def _unknown(self, target: bytes) -> bytes:
        owner, message = msgspec.msgpack.decode(_PAIR + target)
        if owner not in self.owners:
            return error_reply("UsageError", f"there is no owner {owner!r}")
        return error_reply("UsageError", f"owner {owner!r} has no message {message!r}")


def _target(owner: str, message: str) -> bytes:
    """As `read_ask` gives it."""
    return _encode((owner, message))[1:]


def _key_of(saved: bytes) -> bytes:
    body = FlowBody.decode(saved)
    return flow_key(body.flow, body.port)


def _shown(reply: bytes) -> str:
    text = repr(msgspec.msgpack.decode(reply)[1:])
    return text if len(text) <= 200 else text[:200] + "..."
