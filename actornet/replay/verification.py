"""Is a log sound? The whole of it is re-executed, and everything in it that can be checked is checked (G4, G8)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from time import perf_counter

import msgspec

from actornet.errors import ActornetError, DivergenceError, FencedError, LogDamagedError, LogError, StateError
from actornet.log.record import Kind
from actornet.log.snapshot import Snapshot
from actornet.owner import path_of
from actornet.replay.history import History
from actornet.replication.replica import Replica


class Verification(msgspec.Struct):
    """What was checked, and the first problem, if any; `lsn` is the last LSN up to which everything is sound.

    Checked are: the structure of the file (if nobody writes it), every record's checksum, chain and LSN, the reply of
    every ask, every recorded state hash, every snapshot, and the state in it.
    """

    base_lsn: int = 0
    lsn: int = 0
    kinds: dict[str, int] = {}
    owners: dict[str, str] = {}
    flows: int = 0
    snapshots: int = 0
    epoch: int = 0
    chain: int = 0
    elapsed_s: float = 0.0
    problem: ActornetError | None = None
    misfit: str | None = None
    """A value in an owner's last state that does not fit its type: replay has it, a snapshot could not bring it back."""

    @property
    def records(self) -> int:
        """How many records are sound."""
        return sum(self.kinds.values())


def verify(history: History, progress: Callable[[int, int], None] | None = None) -> Verification:
    """Re-execute a log from its oldest state to what it has reached now; `progress` is told each LSN and the last.

    Nothing is raised for what is wrong with the log, but UsageError is when an owner's class cannot be loaded.
    """
    done = Verification()
    begun = perf_counter()
    try:
        _verify(history, done, progress)
    except (LogError, FencedError) as problem:
        done.problem = problem
    done.elapsed_s = perf_counter() - begun
    return done


def _verify(history: History, done: Verification, progress: Callable[[int, int], None] | None) -> None:
    log = history.log
    for problem in log.problems():
        raise LogDamagedError(f"log {log.directory}: its file is damaged: {problem}; restore from the other node")
    last = log.last_lsn
    replica, done.chain = history.base()
    done.base_lsn = done.lsn = replica.lsn
    snapshots = set(log.snapshots())
    done.snapshots = len(snapshots & {replica.lsn})
    kinds: Counter[Kind] = Counter()
    try:
        for entry in history.replay(replica, done.chain, last):
            assert entry.record is not None
            if entry.lsn in snapshots:
                _verify_snapshot(history, log.snapshot(entry.lsn), replica, entry.record.chain)
                done.snapshots += 1
            kinds[entry.record.kind] += 1
            done.lsn, done.chain = entry.lsn, entry.record.chain
            if progress is not None:
                progress(entry.lsn, last)
        assert replica.lsn == last
    finally:
        done.kinds = {kind.name: kinds[kind] for kind in Kind if kinds[kind]}
        done.owners = {name: path_of(type(owner)) for name, owner in replica.owners.items()}
        done.flows = len(replica.flows)
        done.epoch = replica.epoch
        try:
            replica.check_states()
        except StateError as error:
            done.misfit = str(error)


def _verify_snapshot(history: History, snapshot: Snapshot, replica: Replica, chain: int) -> None:
    where = f"the snapshot at LSN {snapshot.lsn}"
    if snapshot.chain != chain:
        raise LogDamagedError(f"{where} continues chain {snapshot.chain:016x}, the record there has {chain:016x}")
    expected, actual = history.restore(snapshot).state_hash(), replica.state_hash()
    if expected != actual:
        raise DivergenceError(f"divergence at {where}: state hash: expected {expected:016x}, actual {actual:016x}")
