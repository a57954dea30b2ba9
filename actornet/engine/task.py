"""What asyncio sees as the running task while a handler runs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any


class FlowTask:
    """Stands in for `asyncio.Task` in a handler, so that `asyncio.timeout` and its kin work there.

    The core keeps one for all handlers that do not suspend; a handler that suspends keeps its own until it completes
    (the same trick as the reused packet). A real Task per packet would cost more than the handler itself.
    """

    __slots__ = ("__weakref__", "_cancel", "_cancelling", "_loop")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._cancel: Callable[[], bool] | None = None
        self._cancelling = 0

    def suspended(self, cancel: Callable[[], bool]) -> None:
        """The handler waits; `cancel` throws CancelledError into it and says whether it could."""
        self._cancel = cancel

    def cancel(self, msg: Any = None) -> bool:
        self._cancelling += 1
        return self._cancel() if self._cancel is not None else False

    def cancelling(self) -> int:
        return self._cancelling

    def uncancel(self) -> int:
        self._cancelling = max(0, self._cancelling - 1)
        return self._cancelling

    def done(self) -> bool:
        return False

    def cancelled(self) -> bool:
        return False

    def get_loop(self) -> asyncio.AbstractEventLoop:
        return self._loop

    def get_name(self) -> str:
        return "flow"

    def get_coro(self) -> Coroutine[Any, Any, Any] | None:
        return None
