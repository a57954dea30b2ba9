"""Supervision of a node's processes: NodeActor above one WorkerActor per core and owner system, and the MonitorActor.

    launcher - admin - NodeActor - WorkerActor "core-0" (pinned), ... "core-n"
                                 - WorkerActor "owners"
                                 - MonitorActor "monitor"

Every box is an OS process and dies with the one to its left. What happens when a worker ends that was not told to:

    core      restarted, at once and then with growing delays; after WORKER_RESTARTS_MAX in WORKER_RESTARTS_S the node
              stops with an error
    monitor   the same
    owners    cores are killed and the node stops (fail-stop): only the peer can take over
    any that fails with an operating error before it was ever ready: the node stops with that error

A core that was killed because a handler did not return, or that crashed in one, has left in its black box which one: that is
named, and the next process closes and shuns its flow.

The monitor compares beats; NodeActor does the killing, because only a parent can be sure whose pid it is.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from collections import deque
from dataclasses import dataclass, field
from datetime import timedelta
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import msgspec
import structlog
from thespian.actors import ActorExitRequest, ChildActorExited, WakeupMessage

from actornet.errors import ActornetError
from actornet.limits import (
    CONTROL_CALL_S,
    WORKER_RESTARTS_MAX,
    WORKER_RESTARTS_S,
    WORKER_STOP_S,
)
from actornet.node import events
from actornet.node.control import (
    Call,
    Interrupt,
    NodeEnded,
    NodeReady,
    NodeStarted,
    Reply,
    Start,
    StartWorker,
    StopWorker,
    WorkerLeaves,
    WorkerReady,
    WorkerStalled,
)
from actornet.node.monitor import MonitorActor
from actornet.node.plan import NodePlan, WorkerPlan, load
from actornet.node.process import is_stopped, resident_bytes
from actornet.node.thespian_base import process_of
from actornet.node.thread import push_ahead
from actornet.node.worker import FAILED_EXIT, LAST_WORDS_BYTES_MAX, LastWords, SteadyActor, WorkerActor

STATUS_S = 0.5
"""How long a status waits for the workers' own; who has not answered by then is reported without."""

RESTART_DELAY_S = 0.05
"""Delay of the second restart within WORKER_RESTARTS_S; the first has none, each further one the double."""

CRASHES = {-signal.SIGSEGV, -signal.SIGBUS, -signal.SIGFPE, -signal.SIGILL, -signal.SIGABRT}
"""Exit codes of a process that its own code has ended."""

log = structlog.get_logger()


@dataclass
class Worker:
    """A worker as its supervisor knows it. `state`: starting, running, restarting, stopping or ended."""

    plan: WorkerPlan
    address: Any = None
    process: BaseProcess | None = None
    last_words: int = -1
    state: str = "restarting"
    restarts: int = 0
    restarted_at: deque[float] = field(default_factory=deque)
    was_ready: bool = False
    stuck: bool = False
    condemned: bool = False

    @property
    def has_process(self) -> bool:
        return self.state in ("starting", "running", "stopping")

    @property
    def pid(self) -> int | None:
        return self.process.pid if self.process and self.has_process else None


@dataclass
class Pending:
    """A client's call that waits for workers' replies."""

    client: Any
    call: Call
    waiting: set[str]
    values: dict[str, Any] = field(default_factory=dict)


class NodeActor(SteadyActor):
    """Creates what the workers share, starts them, keeps them running, and stops them in order."""

    def __init__(self) -> None:
        self.launcher: Any = None
        self.state = "starting"
        self.started_at = time.monotonic()
        self.workers: dict[str, Worker] = {}
        self.pending: dict[str, Pending] = {}
        self.stop_calls: list[tuple[Any, Call]] = []
        self.stages: list[str] = []
        self.error: str | None = None
        self.exit_code = 0
        self.refused = False

    def handle(self, message: Any, sender: Any) -> None:
        match message:
            case Start():
                self.launcher = sender
                self.start = message
                self._start()
            case WorkerReady():
                self._worker_ready(message)
            case WorkerStalled():
                self._worker_stalled(message)
            case WorkerLeaves() if self.state not in ("stopping", "ended"):
                log.info("node is to stop", worker=message.name, reason=message.reason)
                self._stop(None)
            case ChildActorExited():
                self._child_exited(message.childAddress)
            case Call() if self.launcher is None:
                self.send(sender, Reply(message.tag, error="it has not started yet"))
            case Call():
                try:
                    self._call(message, sender)
                except Exception as error:  # a question must not harm the node
                    log.exception("call failed", command=message.command)
                    self.send(sender, Reply(message.tag, error=f"{type(error).__name__}: {error}"))
            case Reply():
                self._worker_replied(message)
            case WakeupMessage():
                self._woken(*message.payload)
            case ActorExitRequest():  # the system ends; Thespian tells the workers
                self.state = "ended"
                for worker in self.workers.values():
                    worker.state = "stopping" if worker.has_process else "ended"

    def failed(self, error: Exception) -> None:
        """A supervisor that has lost its way stops its node rather than leaving it unsupervised."""
        if self.state not in ("stopping", "ended"):
            self._stop(f"supervision failed: {type(error).__name__}: {error}", kill_cores=True)

    # Starting

    def _start(self) -> None:
        name, role = self.start.name, self.start.role
        events.configure(node=name, role=role, worker="node")
        Path("/proc/self/comm").write_text("node")
        self.send(self.launcher, NodeStarted(os.getpid()))
        try:
            self.plan: NodePlan = load(self.start.factory)(self.start.argument)
        except ActornetError as error:
            return self._refuse(str(error), error.exit_code)
        except Exception as error:
            log.exception("the node's plan failed", factory=self.start.factory)
            return self._stop(f"{self.start.factory} failed: {type(error).__name__}: {error}")
        plan = self.plan
        beats_spec = (plan.beats_spec, plan.interrupt_s, plan.stall_s, plan.core_bytes_max)
        monitor = WorkerPlan("monitor", "monitor", self.plan.beats, beats_spec)
        for plan in (*self.plan.workers, monitor):
            assert plan.name not in self.workers, plan.name
            self.workers[plan.name] = Worker(plan)
        for worker in self.workers.values():
            self._start_worker(worker)
        return None

    def _start_worker(self, worker: Worker) -> None:
        if worker.last_words >= 0:
            os.close(worker.last_words)
        worker.last_words, write_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        worker.address = self.createActor(MonitorActor if worker.plan.kind == "monitor" else WorkerActor)
        worker.process = process_of(self, worker.address)
        os.close(write_end)  # the forked child has its own
        worker.state = "starting"
        self.send(
            worker.address, StartWorker(self.start.name, self.start.role, worker.plan, write_end, worker.condemned)
        )
        worker.stuck = worker.condemned = False

    def _worker_ready(self, message: WorkerReady) -> None:
        worker = self.workers[message.name]
        if worker.state != "starting" or worker.process is None or worker.process.pid != message.pid:
            return
        worker.state = "running"
        worker.was_ready = True
        log.info("worker ready", name=message.name, pid=message.pid, cpus=worker.plan.cpus, restarts=worker.restarts)
        if self.state == "starting" and all(each.was_ready for each in self.workers.values()):
            self.state = "running"
            self.send(self.launcher, NodeReady(len(self.plan.workers)))

    # Keeping alive

    def _worker_stalled(self, message: WorkerStalled) -> None:
        worker = self.workers[message.name]
        if worker.state not in ("starting", "running") or worker.process is None or worker.process.pid != message.pid:
            return
        if not message.kill:
            if worker.plan.kind == "core" and worker.state == "running":
                push_ahead(message.pid)  # a handler may have been called by a real-time thread on the same CPU
                self.send(worker.address, Interrupt())
            return
        log.error("worker stalled: killed", name=message.name, pid=message.pid, rest_s=round(message.rest_s, 3))
        worker.stuck = message.stuck and not is_stopped(message.pid)
        worker.process.kill()

    def _child_exited(self, address: Any) -> None:
        worker = next((each for each in self.workers.values() if each.has_process and each.address == address), None)
        if worker is None or worker.process is None:
            return
        worker.process.join(0.2)  # an actor says goodbye before its process has ended
        if worker.process.exitcode is None:
            return  # comes again by SIGCHLD
        told = worker.state == "stopping"
        worker.state = "ended"
        self._answer_without(worker.plan.name)
        words = self._read_last_words(worker)
        how = _describe_exit(worker.process.exitcode) + (f": {words.text}" if words else "")
        cannot_begin = words is not None and words.operating and not worker.was_ready
        gives_up = words is not None and words.operating and worker.plan.kind == "owner"
        if not told and not cannot_begin and not gives_up:
            log.error("worker ended", name=worker.plan.name, pid=worker.process.pid, how=how, restarts=worker.restarts)
            code = worker.process.exitcode
            if worker.plan.kind == "core" and (worker.stuck or code in CRASHES or (code >= 0 and words is None)):
                self._condemn(worker)
        if self.state in ("stopping", "ended"):
            self._stop_next()
        elif words is not None and cannot_begin:
            self._refuse(words.text, words.exit_code)
        elif words is not None and gives_up:
            self._stop(words.text, exit_code=words.exit_code, kill_cores=True)
        elif worker.plan.kind == "owner":
            self._stop(f"the owner system {worker.plan.name} ended ({how})", kill_cores=True)
        else:
            self._restart_later(worker, how)

    def _condemn(self, worker: Worker) -> None:
        """Say which handler was the end of a core; the next process is to close that flow."""
        find = self.plan.last_handler
        last = load(find)(self.plan.beats_spec, worker.plan.name) if find is not None else None
        if last is not None:
            why = "it did not return, and could not be interrupted" if worker.stuck else "it crashed"
            worker.condemned = True
            log.error("a handler was the end of a core", name=worker.plan.name, why=why, **last)

    def _read_last_words(self, worker: Worker) -> LastWords | None:
        try:
            data = os.read(worker.last_words, LAST_WORDS_BYTES_MAX)
        except BlockingIOError:
            return None
        return msgspec.msgpack.decode(data, type=LastWords) if data else None

    def _restart_later(self, worker: Worker, how: str) -> None:
        now = time.monotonic()
        while worker.restarted_at and now - worker.restarted_at[0] > WORKER_RESTARTS_S:
            worker.restarted_at.popleft()
        recent = len(worker.restarted_at)
        if recent >= WORKER_RESTARTS_MAX:
            times = f"{recent + 1} times within {WORKER_RESTARTS_S:g} s"
            self._stop(f"{worker.plan.name} ended {times}, at last so: {how}; see the log")
            return
        worker.restarted_at.append(now)
        worker.restarts += 1
        worker.state = "restarting"
        if recent == 0:
            self._start_worker(worker)
        else:
            self.wakeupAfter(timedelta(seconds=RESTART_DELAY_S * 2 ** (recent - 1)), ("restart", worker.plan.name))

    def _woken(self, what: str, name: str) -> None:
        if what == "restart":
            if self.state in ("starting", "running") and self.workers[name].state == "restarting":
                self._start_worker(self.workers[name])
        elif what == "answer":
            if name in self.pending:
                self._finish_call(self.pending.pop(name))
        else:
            assert what == "stop", what
            self._kill_late(name)

    # Answering

    def _call(self, call: Call, client: Any) -> None:
        if call.command == "stop":
            self.stop_calls.append((client, call))
            if self.state in ("starting", "running"):
                self._stop(None)
            return
        if call.command == "status":
            asked = [worker for worker in self.workers.values() if worker.state == "running"]
        else:
            asked = [each for each in self.workers.values() if each.plan.kind == "owner" and each.state == "running"]
            if not asked:
                self.send(client, Reply(call.tag, error=f"its owner system does not run, the node is {self.state}"))
                return
        pending = Pending(client, call, {worker.plan.name for worker in asked})
        self.pending[call.tag] = pending
        for worker in asked:
            self.send(worker.address, call)
        limit_s = STATUS_S if call.command == "status" else CONTROL_CALL_S
        self.wakeupAfter(timedelta(seconds=limit_s), ("answer", call.tag))
        if not asked:
            self._finish_call(self.pending.pop(call.tag))

    def _worker_replied(self, reply: Reply) -> None:
        pending = self.pending.get(reply.tag)
        if pending is None or reply.worker not in pending.waiting:
            return  # too late
        if pending.call.command != "status":
            del self.pending[reply.tag]
            self.send(pending.client, reply)
            return
        pending.waiting.discard(reply.worker)
        pending.values[reply.worker] = reply.value if reply.error is None else {"error": reply.error}
        if not pending.waiting:
            self._finish_call(self.pending.pop(reply.tag))

    def _answer_without(self, name: str) -> None:
        """Calls that only wait for a worker that has ended need not wait longer."""
        for pending in list(self.pending.values()):
            pending.waiting.discard(name)
            if not pending.waiting:
                self._finish_call(self.pending.pop(pending.call.tag))

    def _finish_call(self, pending: Pending) -> None:
        if pending.call.command == "status":
            reply = Reply(pending.call.tag, self._status(pending.values))
        elif pending.waiting:
            reply = Reply(pending.call.tag, error=f"its owner system did not answer within {CONTROL_CALL_S:g} s")
        else:
            reply = Reply(pending.call.tag, error="its owner system has ended")
        self.send(pending.client, reply)

    def _status(self, values: dict[str, Any]) -> dict[str, Any]:
        return {
            "name": self.start.name,
            "role": self.start.role,
            "state": self.state,
            "pid": os.getpid(),
            "up_s": round(time.monotonic() - self.started_at, 3),
            "workers": [
                {
                    "name": worker.plan.name,
                    "kind": worker.plan.kind,
                    "state": worker.state,
                    "pid": worker.pid,
                    "cpus": worker.plan.cpus,
                    "restarts": worker.restarts,
                    "memory_bytes": resident_bytes(worker.pid) if worker.pid is not None else None,
                    "status": values.get(worker.plan.name),
                }
                for worker in self.workers.values()
            ],
        }

    # Stopping

    def _refuse(self, error: str, exit_code: int) -> None:
        """The node cannot begin: what its launcher says of that, in one line, is enough."""
        self.refused = True
        self._stop(error, exit_code=exit_code)

    def _stop(self, error: str | None, *, exit_code: int = FAILED_EXIT, kill_cores: bool = False) -> None:
        self.state = "stopping"
        if error is not None:
            self.error, self.exit_code = error, exit_code
        if not self.refused:
            log.log(logging.ERROR if error else logging.INFO, "node stops", **({"error": error} if error else {}))
        self.stages = ["monitor", "core", "owner"]
        for worker in self.workers.values():
            if worker.has_process and (worker.plan.kind == "monitor" or (kill_cores and worker.plan.kind == "core")):
                worker.state = "stopping"
                assert worker.process is not None
                worker.process.kill()
        self._stop_next()

    def _stop_next(self) -> None:
        """Each kind of worker is told once the kind before it has ended."""
        while self.stages:
            left = [each for each in self.workers.values() if each.plan.kind == self.stages[0] and each.has_process]
            for worker in left:
                if worker.state != "stopping":
                    worker.state = "stopping"
                    self.send(worker.address, StopWorker(self.error or "asked to"))
                    self.wakeupAfter(timedelta(seconds=WORKER_STOP_S), ("stop", worker.plan.name))
            if left:
                return
            del self.stages[0]
        if self.state != "ended":
            self._end()

    def _kill_late(self, name: str) -> None:
        worker = self.workers[name]
        if worker.state == "stopping":
            log.error("worker did not stop in time: killed", name=name)
            self.error = self.error or f"{name} did not stop within {WORKER_STOP_S:g} s and was killed"
            self.exit_code = self.exit_code or FAILED_EXIT
            assert worker.process is not None
            worker.process.kill()

    def _end(self) -> None:
        self.state = "ended"
        if not self.refused:
            log.info("node stopped")
        for client, call in self.stop_calls:
            self.send(client, Reply(call.tag, error=self.error))
        self.send(self.launcher, NodeEnded(self.error, self.exit_code))
        self.send(self.myAddress, ActorExitRequest())


def _describe_exit(code: int) -> str:
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
