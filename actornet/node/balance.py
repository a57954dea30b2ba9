"""Which core is to give flows to which: decided once in BALANCE_S from how busy each of them was."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from actornet.limits import BALANCE_BUSY, BALANCE_GAP, BALANCE_S


class Shift(NamedTuple):
    """Core `hot` is to give flows with `share` (0 to 1) of its packets to core `cold`."""

    hot: int
    cold: int
    share: float


class Balance:
    """Watches the cores' times in turns with packets, which only grow while a core lives."""

    def __init__(self, now_ns: int) -> None:
        self._before_ns = now_ns
        self._busy_ns: list[int] = []
        self._gap_before = False

    def due(self, now_ns: int) -> bool:
        """Whether BALANCE_S have passed since the last `turn`; `now_ns` is steady time."""
        return now_ns - self._before_ns >= BALANCE_S * 1e9

    def turn(self, now_ns: int, busy_ns: Sequence[int]) -> Shift | None:
        """What to do, given each core's busy time so far (ns). Nothing, unless the gap was there the time before, too."""
        elapsed_ns = now_ns - self._before_ns
        before = self._busy_ns or busy_ns
        busy = [(now - then) / elapsed_ns for now, then in zip(busy_ns, before, strict=True)]
        self._before_ns, self._busy_ns = now_ns, list(busy_ns)
        if min(busy) < 0:  # a core has restarted and counts anew
            self._gap_before = False
            return None
        hot, cold = busy.index(max(busy)), busy.index(min(busy))
        gap = busy[hot] - busy[cold]
        gap_now = busy[hot] >= BALANCE_BUSY and gap >= BALANCE_GAP
        shift = Shift(hot, cold, gap / 2 / busy[hot]) if gap_now and self._gap_before else None
        self._gap_before = gap_now
        return shift
