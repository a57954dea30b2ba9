"""A worker's process: its data plane in one thread, beside Thespian's main thread, which only serves control messages."""

from __future__ import annotations

import faulthandler
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import msgspec
import structlog
from thespian.actors import Actor, ActorExitRequest, ThespianWatch, WatchMessage

from actornet.errors import ActornetError, UsageError
from actornet.limits import CORE_ENDED_FIRST, WORKER_STOP_S
from actornet.node import events
from actornet.node.control import Call, Interrupt, Reply, StartWorker, StopWorker, WorkerLeaves, WorkerReady
from actornet.node.plan import WorkerPlan, load
from actornet.node.process import be_ended_first
from actornet.node.thread import run_early

LAST_WORDS_BYTES_MAX = 4096
FAILED_EXIT = 1

log = structlog.get_logger()


class SteadyActor(Actor):  # type: ignore[misc]
    """An actor whose handling never raises: Thespian would run it again, with the same message."""

    watch: ThespianWatch | None = None

    def receiveMessage(self, message: Any, sender: Any) -> ThespianWatch | None:
        try:
            self.handle(message, sender)
        except Exception as error:
            if not isinstance(error, ActornetError):
                log.exception("control message failed", message=type(message).__name__)
            self.failed(error)
        return self.watch  # Thespian forgets a watch that one message's handling did not return

    def handle(self, message: Any, sender: Any) -> None:
        raise NotImplementedError

    def failed(self, error: Exception) -> None:
        """What else to do about an error in `handle`."""


class LastWords(msgspec.Struct, frozen=True):
    """Why a worker's data plane failed, left in the pipe to its supervisor."""

    text: str
    operating: bool
    exit_code: int


class Report:
    """What a worker's data plane tells, and is asked; every method may be called in its thread.

    Handlers given to `on_status`, `on_command` and `on_interrupt` are called in the control thread, while the data plane runs.
    """

    def __init__(self, key: bytes, wake: Callable[[], None]) -> None:
        self.key = key
        """The deployment's key, as this process has it in memory."""
        self.stop_reason = ""
        """Why `stop_event` was set."""
        self.is_ready = False
        self.leave_reason = ""
        self.condemned = False
        """The handler that the process before this one was at was its end."""
        self.bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        """Rung when the data plane is to stop. It may wait for that, and have other threads ring it, too."""
        self._wake = wake
        self._status: Callable[[], dict[str, Any]] = dict
        self._command: Callable[[str, dict[str, Any]], Any] | None = None
        self.interrupt: Callable[[], None] = lambda: None

    def ready(self) -> None:
        """The data plane runs. Until then a failure ends the node instead of restarting the worker."""
        self.is_ready = True
        self._wake()

    def leave(self, reason: str) -> None:
        """Have the whole node stopped in order, as by `actornet stop`."""
        self.leave_reason = reason
        self._wake()

    def on_status(self, handler: Callable[[], dict[str, Any]]) -> None:
        """`handler()` gives this worker's part of the node's status."""
        self._status = handler

    def on_command(self, handler: Callable[[str, dict[str, Any]], Any]) -> None:
        """`handler(command, arguments)` answers a command, or raises an ActornetError that says why not."""
        self._command = handler

    def on_interrupt(self, handler: Callable[[], None]) -> None:
        """`handler()` gets the data plane out of what it does not return from, if it can."""
        self.interrupt = handler

    def answer(self, call: Call) -> Any:
        if call.command == "status":
            return self._status()
        if self._command is None:
            raise ActornetError(f"this worker takes no command {call.command!r}")
        return self._command(call.command, call.arguments)


class WorkerActor(SteadyActor):
    """Runs a WorkerPlan's function in a thread and serves control messages beside it."""

    def __init__(self) -> None:
        self.plan: WorkerPlan | None = None
        self.node: Any = None
        self.thread: threading.Thread | None = None
        self.stop_event = threading.Event()
        self.told_ready = self.finished = False

    def handle(self, message: Any, sender: Any) -> None:
        match message:
            case StartWorker():
                self.node = sender
                self._start(message)
            case WatchMessage():
                self._look()
            case Call():
                self.send(sender, self._answer(message))
            case Interrupt():
                self.report.interrupt()
                run_early(nice=0)
            case StopWorker():
                self._stop(message.reason)
            case ActorExitRequest() if self.thread is not None:
                self._stop("the node's actor system ends")
                self.thread.join(WORKER_STOP_S)

    def _start(self, message: StartWorker) -> None:
        self.plan = plan = message.plan
        self.last_words = message.last_words
        events.configure(node=message.node, role=message.role, worker=plan.name)
        Path("/proc/self/comm").write_text(plan.name)  # what `top` shows
        faulthandler.enable(file=2)  # a crash in compiled code shows where Python was, then takes its default course
        if plan.kind == "core":
            be_ended_first(CORE_ENDED_FIRST)
        if plan.cpus:
            _pin(plan.name, plan.cpus)
        self.signal = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.watch = ThespianWatch([self.signal])
        self.report = Report(self._myRef.transport.key, lambda: os.eventfd_write(self.signal, 1))
        self.report.condemned = message.condemned
        self.thread = threading.Thread(target=self._run, name=plan.name, daemon=True)
        self.thread.start()

    def failed(self, error: Exception) -> None:
        if self.plan is not None and self.thread is None:
            die(error, self.last_words)
        elif isinstance(error, ActornetError):
            log.error("control message failed", error=str(error))

    def _run(self) -> None:
        assert self.plan is not None
        try:
            load(self.plan.run)(self.plan.spec, self.stop_event, self.report)
            if not self.stop_event.is_set():
                raise ActornetError(f"{self.plan.name} returned before it was told to stop")
        except BaseException as error:  # nothing that this process still holds may go on without its data plane
            die(error, self.last_words)
        self.finished = True
        os.eventfd_write(self.signal, 1)

    def _look(self) -> None:
        os.eventfd_read(self.signal)
        assert self.plan is not None
        if self.report.is_ready and not self.told_ready:
            self.told_ready = True
            self.send(self.node, WorkerReady(self.plan.name, os.getpid()))
        if self.report.leave_reason:
            self.send(self.node, WorkerLeaves(self.plan.name, self.report.leave_reason))
            self.report.leave_reason = ""
        if self.finished:
            self.send(self.myAddress, ActorExitRequest())

    def _stop(self, reason: str) -> None:
        if not self.stop_event.is_set():
            self.report.stop_reason = reason
            self.stop_event.set()
            os.eventfd_write(self.report.bell, 1)

    def _answer(self, call: Call) -> Reply:
        assert self.plan is not None
        try:
            return Reply(call.tag, value=self.report.answer(call), worker=self.plan.name)
        except ActornetError as error:
            return Reply(call.tag, error=str(error), worker=self.plan.name)
        except Exception as error:
            log.exception("command failed", command=call.command)
            return Reply(call.tag, error=f"{type(error).__name__}: {error}", worker=self.plan.name)


def _pin(name: str, cpus: tuple[int, ...]) -> None:
    available = sorted(os.sched_getaffinity(0))
    try:
        os.sched_setaffinity(0, cpus)
    except OSError:
        named = ", ".join(map(str, cpus))
        raise UsageError(f"{name} cannot be pinned to CPU {named}: choose from {available} in `cpus`") from None


def die(error: BaseException, last_words: int) -> NoReturn:
    """End this worker's process at once, leaving its supervisor a word on why, who tells it; only a bug needs more."""
    operating = isinstance(error, ActornetError)
    if not operating:
        log.error("worker failed", exc_info=error)
    text = str(error) if operating else f"{type(error).__name__}: {error}"
    code = getattr(error, "exit_code", FAILED_EXIT)
    words = msgspec.msgpack.encode(LastWords(text[: LAST_WORDS_BYTES_MAX // 4 - 32], operating, code))
    os.write(last_words, words)
    os._exit(code)
