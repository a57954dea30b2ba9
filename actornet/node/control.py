"""The control plane's messages, and the client that asks a running node."""

from __future__ import annotations

import time
import uuid
from types import TracebackType
from typing import Any

import msgspec
from thespian.actors import Thespian_StatusReq, Thespian_SystemStatus

from actornet.errors import NodeError
from actornet.limits import CONTROL_CALL_S
from actornet.node.plan import WorkerPlan
from actornet.node.thespian_base import NodeSystem

NODE = "node"
"""Global name of NodeActor."""


class Start(msgspec.Struct, frozen=True):
    """Launcher to NodeActor: carry out the NodePlan that `factory`, "module:function", makes of `argument`."""

    name: str
    role: str
    factory: str
    argument: Any


class NodeStarted(msgspec.Struct, frozen=True):
    """NodeActor to launcher, first of all."""

    pid: int


class NodeReady(msgspec.Struct, frozen=True):
    """NodeActor to launcher: every worker is ready, for the first time."""

    workers: int


class NodeEnded(msgspec.Struct, frozen=True):
    """NodeActor to launcher, last of all; `error` says why a node that nobody stopped has ended."""

    error: str | None = None
    exit_code: int = 0


class Call(msgspec.Struct, frozen=True):
    """Client to NodeActor, and on to a worker: `status`, `stop`, or a command for the owner system, say `promote`."""

    tag: str
    command: str
    arguments: dict[str, Any] = {}


class Reply(msgspec.Struct, frozen=True):
    """Answer to the Call with the same tag; `worker` names who answers."""

    tag: str
    value: Any = None
    error: str | None = None
    worker: str = ""


class StartWorker(msgspec.Struct, frozen=True):
    """NodeActor to a new worker. `last_words` is a pipe's descriptor, for what it has to say when it fails; `condemned`: the
    handler that the process before this one was at was its end."""

    node: str
    role: str
    plan: WorkerPlan
    last_words: int
    condemned: bool = False


class StopWorker(msgspec.Struct, frozen=True):
    """NodeActor to a worker: end in order."""

    reason: str


class WorkerReady(msgspec.Struct, frozen=True):
    """Worker to NodeActor, once its data plane runs."""

    name: str
    pid: int


class WorkerLeaves(msgspec.Struct, frozen=True):
    """Worker to NodeActor: the node is to stop in order."""

    name: str
    reason: str


class WorkerStalled(msgspec.Struct, frozen=True):
    """Monitor to NodeActor: the worker's beat has rested for `rest_s`, so that it is to be interrupted, or else killed.

    `stuck`: it has been at the same handler since it was interrupted.
    """

    name: str
    pid: int
    rest_s: float
    kill: bool
    stuck: bool = False


class Interrupt(msgspec.Struct, frozen=True):
    """NodeActor to a core: a handler does not return."""


class NodeClient:
    """Asks the node that runs at `control` ("host:port"); NodeError if none does, or if it has another key."""

    def __init__(self, control: str, key: bytes) -> None:
        self.control = control
        self._system = NodeSystem(control, key, join=True)
        answer = self._ask(self._system._systemBase.adminAddr, Thespian_StatusReq(), Thespian_SystemStatus)
        self.refused = int(answer.miscKeyVals["control.refused"])
        if NODE not in answer.globalActors:
            self.close()
            raise NodeError(f"the node at {control} is starting or ending: try again")
        self._node = answer.globalActors[NODE]

    def __enter__(self) -> NodeClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._system.leave()

    def status(self) -> dict[str, Any]:
        """The node's state and its workers', with each worker's own status; `refused` counts unauthenticated input."""
        status: dict[str, Any] = self.call("status")
        return status | {"refused": self.refused}

    def leads(self) -> int | None:
        """The epoch in which this node leads; None if it does not."""
        epoch: int | None = self.call("leads")
        return epoch

    def ask(self, owner: str, message: str, args: bytes) -> bytes:
        """An owner's encoded reply to a message, `args` being a msgpack list, once it is committed (G3)."""
        reply: bytes = self.call("ask", owner=owner, message=message, args=args)
        return reply

    def promote(self, *, force: bool = False) -> Any:
        """Make this node the primary, with `force` even one that may lack committed records; the owner system's answer."""
        return self.call("promote", force=True) if force else self.call("promote")

    def stop(self) -> None:
        """Stop the node in order: cores, then the owner system. NodeError if something had to be killed."""
        self.call("stop", timeout_s=4 * CONTROL_CALL_S)

    def call(self, command: str, timeout_s: float = CONTROL_CALL_S, **arguments: Any) -> Any:
        """Any command; NodeError with the node's own words if it refuses, or if it does not answer in time."""
        tag = uuid.uuid4().hex
        reply = self._ask(self._node, Call(tag, command, arguments), Reply, tag, timeout_s)
        if reply.error is not None:
            raise NodeError(f"the node at {self.control} refuses to {command}: {reply.error}")
        return reply.value

    def _ask(
        self, address: Any, message: Any, kind: type, tag: str | None = None, timeout_s: float = CONTROL_CALL_S
    ) -> Any:
        """`ask` of Thespian takes whatever message comes next, also a late answer to an earlier request."""
        deadline = time.monotonic() + timeout_s
        answer = self._system.ask(address, message, timeout_s)
        while not (isinstance(answer, kind) and (tag is None or getattr(answer, "tag", None) == tag)):
            remaining_s = deadline - time.monotonic()
            if remaining_s <= 0:
                raise NodeError(f"the node at {self.control} did not answer within {timeout_s:g} s: see its log")
            answer = self._system.listen(remaining_s)
        return answer
