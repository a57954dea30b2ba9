"""What asyncio sees as the running task while a handler runs, and the tasks that handlers begin."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from actornet.errors import UsageError
from actornet.limits import FLOW_TASKS_MAX

_tasks = getattr(asyncio.tasks, "_current_tasks", None)  # where it is a dict: up to Python 3.13

current_task: Callable[[asyncio.AbstractEventLoop], Any] = asyncio.current_task if _tasks is None else _tasks.get
"""What asyncio sees as the running task of a loop, or None. Its own function for that is ten times as slow in Python 3.11."""


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


class FlowTasks:
    """The tasks that flows' handlers, and these tasks, have begun and nobody has seen the end of: they end with their flow."""

    def __init__(self, loop: asyncio.AbstractEventLoop, running: Callable[[], Any]) -> None:
        """`running()` is the actor whose handler runs, or None."""
        self.open: dict[int, set[asyncio.Task[Any]]] = {}
        """By the identity of the flow's actor."""
        self._flows: dict[asyncio.Task[Any], int] = {}
        self._running = running
        loop.set_task_factory(self._begin)  # type: ignore[arg-type]

    def _begin(
        self, loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, Any], **keywords: Any
    ) -> asyncio.Task[Any]:
        """Raises UsageError, in the handler, for one more than a flow may have."""
        actor = self._running()
        flow = id(actor) if actor is not None else None
        if flow is None and isinstance(parent := asyncio.current_task(loop), asyncio.Task):
            flow = self._flows.get(parent)
        if flow is not None and len(self.open.get(flow, ())) >= FLOW_TASKS_MAX:
            coroutine.close()
            raise UsageError(f"{FLOW_TASKS_MAX} asyncio tasks of this flow run already, the most that it may have")
        task = asyncio.Task(coroutine, loop=loop, **keywords)
        if flow is not None:
            self.open.setdefault(flow, set()).add(task)
            self._flows[task] = flow
            task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        flow = self._flows.pop(task)
        tasks = self.open.get(flow)
        if tasks is not None:
            tasks.discard(task)
            if not tasks:
                del self.open[flow]

    def end(self, actor: Any) -> None:
        """The flow has gone: cancel what it has left behind."""
        for task in self.open.pop(id(actor), ()):
            task.cancel()
