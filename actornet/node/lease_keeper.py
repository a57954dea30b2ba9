"""Keeps the lease: asks the witness what `Lease` wants to know, and tells the cores until when packets may leave (G7)."""

from __future__ import annotations

from typing import Any, Protocol

import structlog

from actornet.errors import WitnessError
from actornet.replication.lease import Entry, Lease, LeaseEvent, Look, Swap

_log = structlog.get_logger()


class WitnessLine(Protocol):
    """Takes one request for the witness at a time, and has its answer later; see `actornet.node.witness.WitnessThread`."""

    @property
    def busy(self) -> bool: ...

    def ask(self, request: Look | Swap) -> None: ...

    def take(self) -> Entry | bool | WitnessError | None: ...

    def close(self, last: Swap | None) -> None: ...


class LeasePage(Protocol):
    lease_until_ns: int


class LeaseKeeper:
    """Drives one `Lease`. Until the witness grants it nothing may leave."""

    def __init__(self, place: str, lease: Lease, line: WitnessLine, page: LeasePage) -> None:
        self.place = place
        self.lease = lease
        self._line = line
        self._page = page
        self._problem = ""
        self._over = False
        page.lease_until_ns = 0

    def turn(self, now_ns: int) -> list[LeaseEvent]:
        """Hear the witness, ask it what is due. `now_ns` is of a clock that goes on while the machine sleeps."""
        events: list[LeaseEvent] = []
        lease = self.lease
        if not self._line.busy:
            if (answer := self._line.take()) is not None:
                events = self._heard(answer, now_ns)
            if (request := lease.request(now_ns)) is not None:
                self._line.ask(request)
        self._page.lease_until_ns = lease.until_ns
        over = lease.epoch != 0 and now_ns >= lease.until_ns
        if over != self._over:
            self._over = over
            if over:
                _log.error("lease over", witness=self.place, detail="nothing leaves before the witness renews it")
            elif lease.epoch:
                _log.warning("lease renewed", witness=self.place, epoch=lease.epoch)
        return events

    def rest_ns(self, now_ns: int) -> int | None:
        """How long until `turn` has something to do; None: not before the witness answers."""
        if self._line.busy:
            return None
        return 0 if self.lease.claims else max(0, self.lease.due_ns - now_ns)

    def close(self) -> None:
        """Give the lease back, so that another may have it at once. Nothing leaves from now on."""
        self._page.lease_until_ns = 0
        self._line.close(self.lease.giving_back())

    def status(self) -> dict[str, Any]:
        lease, entry = self.lease, self.lease.entry
        return {
            "at": self.place,
            "lease_ms": lease.lease_ms,
            "holds_epoch": lease.epoch or None,
            "claims": lease.claims,
            "holder": entry.holder if entry and entry.serial else None,
            "epoch": entry.epoch if entry and entry.serial else None,
            "problem": self._problem or None,
        }

    def _heard(self, answer: Entry | bool | WitnessError, now_ns: int) -> list[LeaseEvent]:
        problem = str(answer) if isinstance(answer, WitnessError) else ""
        if problem != self._problem:
            self._problem = problem
            if problem:
                waits = "" if self.lease.epoch else "; this node does not lead before it answers"
                _log.error("witness silent", detail=problem + waits)
            else:
                _log.warning("witness answers", witness=self.place)
        if isinstance(answer, WitnessError):
            self.lease.failed()
            return []
        if isinstance(answer, Entry):
            return self.lease.looked(answer, now_ns)
        return self.lease.swapped(answer, now_ns)
