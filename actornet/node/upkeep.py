"""What an owner system does for its log and state while traffic runs, a slice at a time: audits, snapshots, pruning.

A slice takes a few tenths of a millisecond, and there is one in UPKEEP_MS at most: heartbeats and asks go on in between.
Only to hold the state still (`replication.frozen`) is one step for all of it, of which the peer is told before it begins;
`freeze_us_max` in the status is how long it took.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import structlog

from actornet.errors import StateError
from actornet.journal import Journal
from actornet.limits import (
    AUDIT_RECORDS,
    AUDIT_S_MIN,
    AUDIT_SHARE,
    LOG_PRUNE_SLICE,
    LOG_READERS_S,
    SNAPSHOT_RECORDS,
    SNAPSHOT_S_MIN,
    UPKEEP_MS,
    UPKEEP_PAUSE_MS_MAX,
)
from actornet.replication.frozen import pause_ns

_log = structlog.get_logger()
_S = 1_000_000_000


class Clock(Protocol):
    """As in `actornet.node.environment`."""

    def monotonic_ns(self) -> int: ...

    def time_ns(self) -> int: ...


class Upkeep:
    """The upkeep of one journal. `keep_records` are kept for replay behind what the newest snapshot needs.

    `before_pause` is told, in ns, of a pause that is about to be made; it must be short for a lease of `lease_ms` (0: none).
    """

    def __init__(
        self,
        journal: Journal,
        clock: Clock,
        keep_records: int,
        before_pause: Callable[[int], None] | None = None,
        lease_ms: int = 0,
    ) -> None:
        self.journal = journal
        self._clock = clock
        now_ns = clock.monotonic_ns()
        self._tell: Callable[[int], None] = lambda ns: None
        if before_pause is not None:
            self._tell = before_pause
        replica = journal.replica
        replica.patient, replica.before_pause, replica.after_pause = True, self._before_pause, self._after_pause
        self.freeze_us_max = 0
        self._pause_began_ns = 0
        self._pauses_ns = (replica.guess_ns, replica.guess_ns)  # the last two
        self.too_large = False
        self._misfits: dict[str, str] = {}  # what an audit, or a snapshot, has last found
        self.snapshot_lsn = journal.log.snapshots()[-1] if journal.log is not None and journal.log.snapshots() else 0
        self.pruned = 0
        self._keep_records = keep_records
        self._lease_ms = lease_ms
        self._turned_ns = self._marked_ns = self._snapshot_ns = self._released_ns = now_ns
        self._marked_lsn = journal.lsn
        self._audited_ns = 0  # what the present audit has taken so far
        self._snapshot: Iterator[None] | None = None
        self._storing_lsn = 0

    def turn(self, *, leads: bool, needed_lsn: int) -> bool:
        """One slice; everything in the journal has been committed. Records from `needed_lsn` on are not pruned.

        Returns whether there are records to commit. Raises DivergenceError when this state is not the primary's (G4).
        """
        now_ns = self._clock.monotonic_ns()
        if now_ns - self._turned_ns < UPKEEP_MS * 1_000_000:
            return False
        self._turned_ns = now_ns
        logged = self._audit(now_ns, leads)
        if not logged:
            self._store(now_ns)
            self._release_readers(now_ns)
            self._prune(needed_lsn)
        return logged

    @property
    def busy(self) -> bool:
        """Whether an audit or a snapshot is on its way, a slice at a time."""
        audit = self.journal.replica.audit
        return self._snapshot is not None or (audit is not None and audit.misfit is None)

    @property
    def misfit(self) -> str | None:
        """The value in an owner's state that does not fit its type, so that there are neither audits nor snapshots."""
        return next(iter(self._misfits.values()), None)

    def status(self) -> dict[str, Any]:
        replica = self.journal.replica
        return {
            "audited_lsn": replica.audited_lsn or None,
            "audited_hash": f"{replica.audited_hash:016x}" if replica.audited_lsn else None,
            "snapshot_lsn": self.snapshot_lsn or None,
            "pruned_records": self.pruned,
            "freeze_us_max": self.freeze_us_max,
            "too_large": self.too_large,
            "misfit": self.misfit,
        }

    def _audit(self, now_ns: int, leads: bool) -> bool:
        replica = self.journal.replica
        audit = replica.audit
        replica.work_on_audit(1)
        self._audited_ns += self._clock.monotonic_ns() - now_ns
        if audit is not None and audit.done:
            self._note("audit", audit.misfit, audit.lsn)
        if not leads:
            return False
        if audit is not None and audit.misfit is not None:
            replica.audit = None  # the log gets no hash for that mark, on the backup's side either
        if replica.audit is not None and replica.audit.actual is not None:
            return self.journal.tell_hash(self._clock.time_ns())
        pause_s = max(AUDIT_S_MIN, self._audited_ns / _S / AUDIT_SHARE)
        due = replica.lsn - self._marked_lsn >= AUDIT_RECORDS and now_ns - self._marked_ns >= pause_s * _S
        if replica.audit is not None or not due:
            return False
        self._marked_lsn, self._marked_ns, self._audited_ns = replica.lsn + 1, now_ns, 0
        if self._is_too_large():
            return False
        self.journal.mark(self._clock.time_ns())
        return True

    def _store(self, now_ns: int) -> None:
        if self._snapshot is not None:
            try:
                if next(self._snapshot, True):
                    self._snapshot = None
            except StateError as error:
                self._snapshot = None
                self._note("snapshot", str(error), self._storing_lsn)
            return
        grown = self.journal.lsn - self.snapshot_lsn >= SNAPSHOT_RECORDS
        if grown and now_ns - self._snapshot_ns >= SNAPSHOT_S_MIN * _S and self.journal.log is not None:
            self._snapshot_ns = now_ns
            self._snapshot = None if self._is_too_large() else self._storing()

    def _storing(self) -> Iterator[None]:
        log, lsn, chain = self.journal.log, self.journal.lsn, self.journal.chain
        assert log is not None
        self._storing_lsn = lsn
        encoding = self.journal.replica.snapshotting()
        pieces = []
        for piece in encoding:
            pieces.append(piece)
            yield
        del encoding
        for _ in log.snapshot_store(lsn, chain, pieces):
            yield
        self.snapshot_lsn = lsn
        self._note("snapshot", None, lsn)
        _log.info("snapshot", lsn=lsn, bytes=sum(map(len, pieces)), freeze_us_max=self.freeze_us_max)

    def _release_readers(self, now_ns: int) -> None:
        if self.journal.log is not None and now_ns - self._released_ns > LOG_READERS_S * _S:
            self._released_ns = now_ns
            self.journal.log.release_readers()

    def _prune(self, needed_lsn: int) -> None:
        log = self.journal.log
        if log is None or not self.snapshot_lsn:
            return
        before_lsn = min(self.journal.lsn - self._keep_records, needed_lsn, self.snapshot_lsn + 1)
        if before_lsn > max(1, log.first_lsn):
            self.pruned += log.prune(before_lsn, LOG_PRUNE_SLICE)

    def _is_too_large(self) -> bool:
        """Whether a pause for the state would be so long that this node's lease may end in it."""
        limit_ms = min(UPKEEP_PAUSE_MS_MAX, self._lease_ms / 4 or UPKEEP_PAUSE_MS_MAX)
        # The shorter of two pauses: one may have been that long for want of the CPU.
        too_large = pause_ns(self.journal.replica, min(self._pauses_ns)) > limit_ms * 1_000_000
        if too_large != self.too_large:
            self.too_large = too_large
            (_log.error if too_large else _log.info)(
                "upkeep rests" if too_large else "upkeep goes on",
                detail=f"the state asks for a pause of {limit_ms:.0f} ms or more: no audits, no snapshots but at a stop",
            )
        return too_large

    def _note(self, finder: str, misfit: str | None, lsn: int) -> None:
        """An audit or a snapshot has met a value that does not fit, or (None) has met none."""
        before = self.misfit
        if misfit is None:
            self._misfits.pop(finder, None)
        else:
            self._misfits[finder] = f"{misfit} (at or before LSN {lsn})"
        if (before is None) == (self.misfit is None):
            return
        if self.misfit is None:
            _log.info("upkeep goes on", detail=f"owners' states fit their types again at LSN {lsn}")
        else:
            _log.error(
                "upkeep rests",
                detail=f"{self.misfit}: no audits and no snapshots until it fits; the log goes on, unpruned. Mend the handler",
            )

    def _before_pause(self, estimate_ns: int) -> None:
        self._tell(estimate_ns)
        self._pause_began_ns = self._clock.monotonic_ns()

    def _after_pause(self) -> None:
        pause_ns = self._clock.monotonic_ns() - self._pause_began_ns
        self.freeze_us_max = max(self.freeze_us_max, pause_ns // 1000)
        self._pauses_ns = (self._pauses_ns[1], pause_ns)
        self.journal.replica.guess_ns = max(self._pauses_ns)
