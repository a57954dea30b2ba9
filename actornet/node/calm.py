"""Whether a node is at rest: no packet has come, and nothing was logged, for CALM_MS. Then what is periodic may be seldom."""

from __future__ import annotations

from typing import Any

from actornet.limits import CALM_MS

_MS = 1_000_000


class Calm:
    """Looks whether the node has done more than by the last time; ten times in CALM_MS, and at every turn while it is calm."""

    def __init__(self) -> None:
        self._work: Any = None
        self._since_ns = 0
        self._looked_ns = 0
        self._calm = False

    def is_due(self, now_ns: int) -> bool:
        """Whether `turn` wants to know the work."""
        return self._calm or now_ns - self._looked_ns >= CALM_MS * _MS // 10

    def turn(self, work: Any, now_ns: int) -> bool:
        """Whether the node is calm, which has done `work` so far: a value that is another after any work."""
        self._looked_ns = now_ns
        if work != self._work:
            self._work, self._since_ns = work, now_ns
        self._calm = now_ns - self._since_ns >= CALM_MS * _MS
        return self._calm
