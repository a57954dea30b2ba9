"""What a node runs: the plan that its factory makes and NodeActor carries out.

A factory is named "module:function" and called in NodeActor's process with the deployment. It creates what the workers
share (memory, eventfds, sockets); the workers are forked from that process and so inherit the same descriptors, however
often they are restarted.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, Literal

import msgspec

from actornet.errors import UsageError
from actornet.limits import HANDLER_INTERRUPT_S, HANDLER_STALL_S

Kind = Literal["core", "owner", "monitor"]


class WorkerPlan(msgspec.Struct, frozen=True):
    """One worker: a process whose data plane is `run`, "module:function", called as function(spec, stop_event, report).

    `spec` is whatever it needs, pickled on the way (descriptors go as numbers). A core is restarted when it ends, with
    the same spec; the owner system is not: the node stops, and its peer takes over. `cpus` are those that it may run on;
    none: any.
    """

    name: str
    kind: Kind
    run: str
    spec: Any = None
    cpus: tuple[int, ...] = ()


class NodePlan(msgspec.Struct):
    """Workers, and how to see that they live: `beats`, "module:function", called as function(beats_spec).

    It returns [(worker's name, pid, beat, work)]; a core whose beat, once it is not 0, rests for `interrupt_s` is interrupted
    (`Report.on_interrupt`); `stall_s` costs any worker the life. `work` changes from one handler to the next.
    `last_handler`, "module:function", called as function(beats_spec, name), says which handler ran when a core ended.
    A core's process that takes more than `core_bytes_max` is warned of. `keep` holds what must exist as long as the node does.
    """

    workers: list[WorkerPlan]
    beats: str
    beats_spec: Any = None
    last_handler: str | None = None
    interrupt_s: float = HANDLER_INTERRUPT_S
    stall_s: float = HANDLER_STALL_S
    core_bytes_max: int | None = None
    keep: Any = None


def load(path: str) -> Callable[..., Any]:
    """The function named "module:function"; UsageError if there is none."""
    module_name, _, name = path.partition(":")
    try:
        found = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(f"there is no function {path!r}: {error}") from None
    assert callable(found), path
    return found  # type: ignore[no-any-return]
