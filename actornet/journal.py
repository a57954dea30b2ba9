"""The journal: a replica and the log that keeps its records. What the owner system and the embedded mode share."""

from __future__ import annotations

import hashlib
import inspect
import secrets
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any

from actornet.engine.core import Core
from actornet.engine.records import checked
from actornet.engine.records import verify_chain as check_chain
from actornet.engine.restored import restore_plain
from actornet.errors import DivergenceError, LogDamagedError, OtherCodeError, UsageError
from actornet.flow import FlowActor
from actornet.journal_base import JournalBase
from actornet.log.record import (
    CHAIN_START,
    Body,
    CloseBody,
    ControlBody,
    EpochBody,
    FlowBody,
    Record,
    decode,
    encode,
)
from actornet.log.snapshot import Snapshot
from actornet.log.store import Log
from actornet.owner import owners_of
from actornet.replication.replica import Replica
from actornet.replication.replica_base import Asked

Batch = list[tuple[int, bytes]]
"""Encoded records by LSN, without gaps."""


class Journal(JournalBase):
    """Replicated state and its log, moved on together.

    Each operation changes the replica and queues the record; `commit` writes the queue in one transaction, after which
    outputs that depend on it may leave in the mode `solo`. Without a log (`log` None) the records are only counted.
    `random_bits` gives each term's seed. `code` is the fingerprint of the code that goes on with the log. If other code
    wrote it this one is tested: all that the log still has is executed anew. OtherCodeError where it decides otherwise;
    else `tested` is the other's fingerprint.
    """

    def __init__(
        self, log: Log | None = None, random_bits: Callable[[int], int] = secrets.randbits, code: str = ""
    ) -> None:
        self.log = log
        self.tested = ""
        self._random_bits = random_bits
        self.replica, self.chain = Replica(), CHAIN_START
        if log is not None and log.last_lsn:
            self.replica, self.chain = _executed(log, log.snapshot_latest(), code, patient=True)
            writer = self.replica.term.fingerprint if self.replica.term is not None else code
            if code and code != writer:
                self._test(log, code)
                self.tested = writer
        if log is not None:
            log.proved()
        self._queue = []

    @property
    def lsn(self) -> int:
        """The last LSN given out; `commit` makes it the last one logged."""
        return self.replica.lsn

    @property
    def epoch(self) -> int:
        return self.replica.epoch

    def begin_epoch(
        self,
        epoch: int,
        node: str,
        nf: type[FlowActor],
        settings: Mapping[str, Any],
        reason: str,
        time_ns: int,
        *,
        complete: bool = False,
    ) -> None:
        """Begin a primary's term, and create the owners that the network function refers to and the log lacks."""
        body = EpochBody(node, path_of(nf), dict(settings), fingerprint(nf), self._random_bits(64), reason, complete)
        self._enqueue(self.replica.begin_epoch(epoch, body, time_ns))
        created = self.replica.created
        for reference in owners_of(nf).values():
            if reference.name not in created or created[reference.name].path != reference.path:
                wanted = reference.resolved(settings)
                self._enqueue(self.replica.create_owner(reference.name, reference.path, wanted, time_ns))

    def owners_kept(self, nf: type[FlowActor], settings: Mapping[str, Any]) -> dict[str, Any]:
        """Owners that began with other settings than these, with those: they keep their state."""
        created = self.replica.created
        return {
            reference.name: created[reference.name].settings
            for reference in owners_of(nf).values()
            if created[reference.name].settings != reference.resolved(settings)
        }

    def execute(self, body: FlowBody | CloseBody | ControlBody, core: int, time_ns: int) -> None:
        """Log what happened: a flow saved or closed, something for the operator."""
        self._enqueue(self.replica.execute(body, core, max(time_ns, self.replica.time_ns)))

    def apply(self, records: Iterable[bytes]) -> list[Body | Asked | bytes]:
        """Apply the primary's records, in order; they are queued as they are.

        Returns the bodies of all but asks; those of saved flows as the replica keeps them, encoded.

        Raises LogDamagedError for a record that does not continue the log, DivergenceError if it decides otherwise here.
        """
        bodies, replica, queue = [], self.replica, self._queue
        for data in records:
            head = checked(data)
            chain = check_chain(data, self.chain)
            body = replica.apply_record(head, data)
            self.chain = chain
            queue.append((head[3], data))
            if body is not None:
                bodies.append(body)
        return bodies

    def install(self, lsn: int, chain: int, snapshot: bytes) -> None:
        """Begin with the primary's state at `lsn` in place of its log. The log must be empty."""
        replica = Replica.restore(snapshot)
        if replica.lsn != lsn:
            raise LogDamagedError(f"the peer's snapshot is of LSN {replica.lsn}, not {lsn} as it said")
        if self.log is not None:
            self.log.snapshot_install(lsn, snapshot, chain)
        self.replica, self.chain, self._queue = replica, chain, []

    @property
    def queued(self) -> list[bytes]:
        """What `commit` will write."""
        return [data for _, data in self._queue]

    def commit(self) -> Batch:
        """Write the queued records; returns them. Raises LogFullError: nothing of the queue was written then."""
        batch, self._queue = self._queue, []
        if batch and self.log is not None:
            self.log.append(batch)
        return batch

    def snapshot(self) -> tuple[int, int, bytes]:
        """The committed state: LSN, chain, bytes. Takes about 1 us per flow and item of owners' states."""
        assert not self._queue, "commit first: a snapshot is of what the log holds"
        return self.lsn, self.chain, self.replica.snapshot()

    def mark(self, time_ns: int) -> None:
        """Have every replica hash its state as of the next record."""
        self._enqueue(self.replica.mark(time_ns))

    def tell_hash(self, time_ns: int) -> bool:
        """Log the hash of the state at the last mark; False while it is in the making."""
        record = self.replica.tell_hash(time_ns)
        self._enqueue(record)
        return record is not None

    def save_snapshot(self) -> None:
        """Let the next start begin here instead of at the log's first record. Raises StateError, and saves nothing."""
        if self.log is not None and self.lsn:
            lsn, chain, data = self.snapshot()
            self.log.snapshot_save(lsn, data, chain)

    def _test(self, log: Log, code: str) -> None:
        """Whether this code, too, decides as the whole log says, and ends in the same state."""
        base = log.snapshot(log.base_lsn) if log.base_lsn else None
        replica, _ = _executed(log, base, code, patient=False)
        if replica.state_hash() != self.replica.state_hash():
            raise _other_code(log, replica, code, "the state that it ends in differs")

    def _enqueue(self, record: Record | None) -> None:
        if record is not None and self.log is not None:
            data, self.chain = encode(record, self.chain)
            self._queue.append((record.lsn, data))


def path_of(nf: type[FlowActor]) -> str:
    """How `load_nf` finds it: `module:Class`, or those of a chain's members joined by `+`."""
    chained = getattr(nf, "chained", {})
    return "+".join(map(path_of, chained.values())) or f"{nf.__module__}:{nf.__qualname__}"


@cache
def fingerprint(nf: type[FlowActor]) -> str:
    """Hash of the source files that decide what the replica does: the network function's and its owners' modules."""
    digest = hashlib.sha256()
    modules = {part.__module__ for part in (nf, *getattr(nf, "chained", {}).values())}
    modules |= {reference.owner.__module__ for reference in owners_of(nf).values()}
    for module in sorted(modules):
        try:
            source = inspect.getsource(sys.modules[module])
        except (OSError, TypeError, KeyError):
            source = module  # typed into an interpreter: nothing to read
        digest.update(source.encode())
    return digest.hexdigest()[:16]


def restore_flow(core: Core, nf: type[FlowActor], body: FlowBody, tell: Callable[[str], None] | None = None) -> None:
    """Put a flow from the log into a core's table, as it was saved (G6); `tell` is told of a field that is not of its type.

    Raises UsageError if that cannot be: the flow is of other code, or of other ports.
    """
    if restore_plain(core, body.flow, body.port, body.incarnation, body.asks, body.state, tell):
        return
    fields, keys, idle_ns, generation = nf.restore_arguments(body.state, tell)
    core.restore(body.flow, core.ports[body.port].name, body.incarnation, body.asks, fields, keys, idle_ns, generation)


def _executed(log: Log, snapshot: Snapshot | None, code: str, *, patient: bool) -> tuple[Replica, int]:
    """The state that a log ends in, and its last chain: a snapshot (None: nothing) and what follows it, re-executed."""
    replica, chain = Replica(), CHAIN_START
    if snapshot is not None:
        replica, chain = Replica.restore(snapshot.data), snapshot.chain
    replica.patient = patient  # audits of the past cost a whole state each; every reply is compared all the same
    for lsn, data in log.scan(replica.lsn + 1):
        record = decode(data, lsn)
        chain = check_chain(data, chain)
        try:
            replica.apply(record)
        except (DivergenceError, UsageError) as error:
            if code and replica.term is not None and replica.term.fingerprint != code:
                raise _other_code(log, replica, code, str(error)) from error
            raise
    if replica.lsn != log.last_lsn:  # LMDB may pass over what hangs on a damaged page
        raise LogDamagedError(
            f"log {log.directory} ends at LSN {log.last_lsn}, but its records can be read up to {replica.lsn} only; "
            "restore from the other node"
        )
    return replica, chain


def _other_code(log: Log, replica: Replica, code: str, why: str) -> OtherCodeError:
    writer = replica.term.fingerprint if replica.term is not None else "none"
    return OtherCodeError(
        f"log {log.directory} was written by code {writer}, and this code, {code}, decides otherwise: {why}. Go on with the "
        "code that wrote it, or begin with an empty directory"
    )
