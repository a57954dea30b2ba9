"""The monitor: sees whether a node's workers turn, and what memory its cores take. What is done about it is NodeActor's."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import structlog
from thespian.actors import WakeupMessage

from actornet.limits import BEAT_CHECK_S, MEMORY_CHECK_S, MEMORY_TOLD_AGAIN
from actornet.node import events
from actornet.node.control import Call, Reply, StartWorker, WorkerReady, WorkerStalled
from actornet.node.plan import load
from actornet.node.process import resident_bytes
from actornet.node.worker import SteadyActor, die

log = structlog.get_logger()


@dataclass
class Beat:
    """The last beat seen of a worker, and since when."""

    pid: int
    beat: int
    since: float
    work: int
    interrupted: bool = False
    reported: bool = False


class MonitorActor(SteadyActor):
    """Compares the workers' beats every BEAT_CHECK_S and reports those that rest."""

    def __init__(self) -> None:
        self.beats: dict[str, Beat] = {}
        self.stalls = 0
        self.memory_due = 0.0
        self.memory_told: dict[int, float] = {}

    def handle(self, message: Any, sender: Any) -> None:
        match message:
            case StartWorker():
                self.node = sender
                self.last_words = message.last_words
                events.configure(node=message.node, role=message.role, worker=message.plan.name)
                Path("/proc/self/comm").write_text(message.plan.name)
                self.read = load(message.plan.run)
                self.spec, self.interrupt_s, self.stall_s, self.core_bytes_max = message.plan.spec
                self.send(self.node, WorkerReady(message.plan.name, os.getpid()))
                self.wakeupAfter(timedelta(0))
            case WakeupMessage():
                self.wakeupAfter(timedelta(seconds=BEAT_CHECK_S))
                self._compare(time.monotonic())
                self._weigh(time.monotonic())
            case Call():
                now = time.monotonic()
                rests = {name: round(now - beat.since, 3) for name, beat in self.beats.items()}
                self.send(sender, Reply(message.tag, {"stalls": self.stalls, "rest_s": rests}, worker="monitor"))

    def failed(self, error: Exception) -> None:
        die(error, self.last_words)  # a monitor that cannot see is none

    def _compare(self, now: float) -> None:
        for name, pid, beat, work in self.read(self.spec):
            seen = self.beats.get(name)
            if seen is None or (seen.pid, seen.beat) != (pid, beat):
                self.beats[name] = Beat(pid, beat, now, work)
            elif beat and not seen.reported and now - seen.since >= self.stall_s:
                seen.reported = True
                self.stalls += 1
                stuck = seen.interrupted and seen.work == work
                self.send(self.node, WorkerStalled(name, pid, now - seen.since, kill=True, stuck=stuck))
            elif beat and not seen.interrupted and now - seen.since >= self.interrupt_s:
                seen.interrupted, seen.work = True, work
                self.send(self.node, WorkerStalled(name, pid, now - seen.since, kill=False))

    def _weigh(self, now: float) -> None:
        """What a core takes that no flow can be blamed for (a table of the module's, say) is for a person to look at."""
        if now < self.memory_due:
            return
        self.memory_due = now + MEMORY_CHECK_S
        told, self.memory_told = self.memory_told, {}
        for name, beat in self.beats.items():
            if not name.startswith("core-"):
                continue
            size = resident_bytes(beat.pid)
            limit = told.get(beat.pid, float(self.core_bytes_max or 0))
            if limit and size > limit:
                log.warning(
                    "a core takes much memory",
                    name=name,
                    pid=beat.pid,
                    memory_mb=size >> 20,
                    core_memory_mb=self.core_bytes_max >> 20,
                    advice="flows that keep too much are closed by themselves: look at the module's own tables; `promote` "
                    "the backup, or kill this process, which comes back with its flows; or raise core_memory_mb",
                )
                limit = size * MEMORY_TOLD_AGAIN
            self.memory_told[beat.pid] = limit
