"""The process that a user starts: it opens the node's actor system, and stays in the foreground until the node ends."""

from __future__ import annotations

import os
import select
import signal
import time
import uuid
from collections.abc import Callable
from typing import Any

from actornet.errors import NodeError
from actornet.limits import WORKER_STOP_S
from actornet.node.control import NODE, Call, NodeEnded, NodeReady, NodeStarted, Start
from actornet.node.supervisor import NodeActor
from actornet.node.thespian_base import NodeSystem

LOOK_S = 0.1
STOP_S = 3 * WORKER_STOP_S
INTERRUPTED_EXIT = 130


def launch(control: str, key: bytes, start: Start, on_ready: Callable[[NodeReady], None]) -> None:
    """Run a node until SIGTERM, SIGINT or its own end; every process of it has ended when this returns.

    Returns after an orderly stop, by signal or by a client's `stop`. NodeError otherwise, in one line, with the node's
    `exit_code`. A second signal ends everything at once.
    """
    signals: list[int] = []

    def note(number: int, _frame: Any) -> None:
        if signals:
            os._exit(INTERRUPTED_EXIT)  # the kernel kills the others
        signals.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    system = NodeSystem(control, key)
    try:
        ended = _follow(system, start, signals, on_ready)
    finally:
        system.shutdown()
        for number, handler in before.items():
            signal.signal(number, handler)
    if ended.error is not None:
        error = NodeError(ended.error)
        error.exit_code = ended.exit_code
        raise error


def _follow(system: NodeSystem, start: Start, signals: list[int], on_ready: Callable[[NodeReady], None]) -> NodeEnded:
    node = system.createActor(NodeActor, globalName=NODE)
    system.tell(node, start)
    supervisor: int | None = None
    stop_by = None
    try:
        while True:
            match system.listen(LOOK_S):
                case NodeStarted(pid=pid):
                    supervisor = os.pidfd_open(pid)
                case NodeReady() as ready:
                    on_ready(ready)
                case NodeEnded() as ended:
                    return ended
                case None if not system.is_alive() or (supervisor is not None and _has_ended(supervisor)):
                    return NodeEnded("the node's supervisor died, so everything of it was killed: see the log", 1)
            if signals and stop_by is None:
                stop_by = time.monotonic() + STOP_S
                system.tell(node, Call(uuid.uuid4().hex, "stop"))
            if stop_by is not None and time.monotonic() > stop_by:
                return NodeEnded(f"the node did not stop within {STOP_S:g} s and was killed", 1)
    finally:
        if supervisor is not None:
            os.close(supervisor)


def _has_ended(pidfd: int) -> bool:
    return bool(select.select([pidfd], [], [], 0)[0])
