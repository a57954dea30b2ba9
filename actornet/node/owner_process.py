"""The process around an owner system: its loop, sockets, threads, clocks and signals."""

from __future__ import annotations

import fcntl
import gc
import os
import secrets
import select
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from actornet.engine.ring import ControlPage
from actornet.errors import ActornetError, LinkError, NodeError
from actornet.limits import (
    COMMAND_S,
    LINGER_US,
    OWNER_BUSY_MS,
    OWNER_REST_SHARE,
    RESTED_US,
    SENDERS_END_MS,
    SPIN_RESTED_US,
    SPIN_US,
    WORKER_STOP_S,
)
from actornet.log.store import Log, set_aside
from actornet.node.core_line import RingLine
from actornet.node.cpu_latency import CpuLatency
from actornet.node.events import later
from actornet.node.fabric import Fabric
from actornet.node.link import LinkClient, LinkServer
from actornet.node.log_syncer import LogSyncer
from actornet.node.operators import Answer
from actornet.node.owner_system import OwnerSpec, OwnerSystem
from actornet.node.senders import Senders
from actornet.node.thread import NICE, own_descriptors, run_early, run_first
from actornet.node.witness import WitnessThread, witness_at

OWNER_PID_COUNTER = 31
"""The last word of the owner system's counter block: its process."""

NEVER = 1 << 30

SIOCGIFFLAGS = 0x8913
IFF_UP, IFF_RUNNING = 0x1, 0x40
"""netdevice(7)"""

PRIORITY = 2
"""Above that of a core that sets up, stands by or has just become active: the peer counts on signs of life meanwhile. Nobody
does on those of a backup that restores a snapshot, for seconds maybe, on a CPU that others may need: it runs as they do."""


class Machine:
    """The environment of an owner system that is for real: shared memory, sockets, files and clocks of this machine."""

    def __init__(self, spec: OwnerSpec, key: bytes, bell: int) -> None:
        self._spec = spec
        self._key = key
        self._bell = bell
        self._fabric = fabric = Fabric.attach(spec.fabric)
        self.page: ControlPage = fabric.page
        self.lines = [
            RingLine(requests, replies) for requests, replies in zip(fabric.requests, fabric.replies, strict=True)
        ]
        self.epoll = select.epoll()
        for line in self.lines:
            self.epoll.register(line.fileno(), select.EPOLLIN)
        self.monotonic_ns = time.monotonic_ns
        self.time_ns = time.time_ns
        self.random_bits = secrets.randbits
        self._syncer: LogSyncer | None = None
        self.hurry(True)
        self._probe = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self.epoll.register(bell, select.EPOLLIN | select.EPOLLET)
        self._senders = Senders(spec.wire)
        self.cpu_latency = CpuLatency(spec.cpu_latency_us) if spec.cpu_latency_us is not None else None

    def links_down(self) -> int:
        return sum(not self._has_link(interface) for interface in self._spec.interfaces)

    def _has_link(self, interface: str) -> bool:
        request = struct.pack("16s24x", interface.encode()[:15])
        try:
            (flags,) = struct.unpack("16xH22x", fcntl.ioctl(self._probe, SIOCGIFFLAGS, request))
        except OSError:
            return False
        return bool(flags & IFF_UP and flags & IFF_RUNNING)

    def rest(self, rests: bool) -> None:
        if self.cpu_latency is not None:
            self.cpu_latency.hold(not rests)

    def still_sending(self) -> int:
        return self._senders.wait(SENDERS_END_MS * 1_000_000)

    def close(self) -> None:
        self._senders.close()
        if self.cpu_latency is not None:
            self.cpu_latency.close()

    def open_log(self, nf: str) -> Log:
        return Log(self._spec.log, name=self._spec.name, nf=nf)

    def open_syncer(self, log: Log) -> LogSyncer:
        self._syncer = LogSyncer(log)
        self._syncer.hurry(self.hurries)
        return self._syncer

    def hurry(self, hurries: bool) -> None:
        """Have the process' threads run before all but real-time ones, or as others do.

        This one, the one that brings the log to the disk, and, a little, the control thread: busy cores could take the CPU from
        that while it has the interpreter, for which this one waits. It is no real-time one: mostly it ends last of a process
        that is killed, and frees the memory, on a CPU where others take over.
        """
        self.hurries = hurries
        if hurries:
            run_first(PRIORITY)
        else:
            run_early(nice=0)
        run_early(nice=NICE if hurries else 0, thread=os.getpid())
        if self._syncer is not None:
            self._syncer.hurry(hurries)

    def boot_ns(self) -> int:
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME)

    def open_witness(self) -> WitnessThread | None:
        if self._spec.witness is None:
            return None
        return WitnessThread(witness_at(self._spec.witness, self._spec.name, self._spec.etcd), self._bell)

    def dial_peers(self) -> list[LinkClient]:
        return [LinkClient(peer, self._key, self.epoll) for peer in self._spec.peers]

    def set_aside_log(self) -> Path:
        return set_aside(self._spec.log)

    def listen(self) -> LinkServer | None:
        if self._spec.listen is None:
            return None
        try:
            return LinkServer(self._spec.listen, self._key, self.epoll)
        except LinkError as error:
            raise LinkError(f"{error}: set `link`, or `listen`, to a free address of this host") from None

    def dial(self) -> LinkClient:
        if not self._spec.links:
            raise LinkError("[backup] has no `link`: name the address at which the primary listens")
        return LinkClient(self._spec.links, self._key, self.epoll)


class OwnerProcess:
    """An owner system's loop. `bell`: an eventfd by which other threads wake it."""

    def __init__(self, spec: OwnerSpec, key: bytes, bell: int, stop: threading.Event) -> None:
        self.stop = stop
        self.machine = Machine(spec, key, bell)
        self._bell = bell
        self.machine.page.owner_count(OWNER_PID_COUNTER, os.getpid())
        self.system = OwnerSystem(spec, self.machine)
        self._rested_ns = time.monotonic_ns()
        self._spins = spec.spins
        self._spin_us = SPIN_US
        self._commands: deque[tuple[str, dict[str, Any], Future[Any]]] = deque()
        self._answers: deque[tuple[Answer, Future[Any]]] = deque()

    def run(self, ready: Callable[[], None], leave: Callable[[str], None]) -> None:
        """Until the node stops; `leave` has its supervisor stop it in order. Raises what ends the node in error."""
        system, lines = self.system, self.machine.lines
        try:
            system.start()
            told = left = False
            while system.ending is None:
                if not system.leadership.seeking and not told:
                    ready()
                    told = True
                self._turn()
                if system.wants_to_leave and not left:
                    leave(system.wants_to_leave)
                    left = True
                if self.stop.is_set() or all(line.detached for line in lines):
                    system.leave()
        except ActornetError as error:
            system.fail(error)
        finally:
            self.machine.hurry(False)  # a backup that takes over does not wait for a CPU on which this one ends
            system.close()
            self.machine.close()
        if system.failure is not None:
            raise system.failure
        if not system.left:
            raise NodeError(f"the node stops: {system.ending}")
        self.stop.wait(WORKER_STOP_S)

    def _turn(self) -> None:
        """Wait until there is something to do, and do it."""
        begun_ns = time.monotonic_ns()
        lines = self.machine.lines
        busy_ns = begun_ns - self._rested_ns
        if busy_ns > OWNER_BUSY_MS * 1_000_000:
            time.sleep(busy_ns * OWNER_REST_SHARE / 1e9)
            self._rested_ns = time.monotonic_ns()
        elif not self.system.hastens and not self._has_come(begun_ns) and all(line.sleep_begin() for line in lines):
            self.machine.epoll.poll(self._sleep_s(begun_ns))
            now_ns = time.monotonic_ns()
            self._spin_us = SPIN_RESTED_US if now_ns - begun_ns > RESTED_US * 1000 else SPIN_US
            if now_ns - begun_ns > busy_ns * OWNER_REST_SHARE:
                self._rested_ns = now_ns
        for line in lines:
            line.sleep_end()
        self._obey()
        with later:  # a takeover does not wait for its lines
            self.system.step()
        self._answer()
        if self.system.hurries != self.machine.hurries:
            self.machine.hurry(self.system.hurries)

    def _has_come(self, begun_ns: int) -> bool:
        """Look for a moment whether what is about to come has come; others that want this CPU go first."""
        lingers = self.system.lingers
        limit_us = LINGER_US if lingers else self._spin_us if self.system.expects else 0
        if not self._spins or not limit_us:
            return False
        lines, poll = self.machine.lines, self.machine.epoll.poll
        until_ns = begun_ns + limit_us * 1000
        while time.monotonic_ns() < until_ns:
            if any(line.requested for line in lines) or (not lingers and poll(0)):
                return True
            os.sched_yield()
        return lingers

    def _sleep_s(self, now_ns: int) -> float:
        return LINGER_US / 1e6 if self.system.lingers else max(0, self.system.due_ns - now_ns) / 1e9

    def command(self, command: str, arguments: dict[str, Any]) -> Any:
        """Called from the control thread: have the loop carry out a command, and answer."""
        future: Future[Any] = Future()
        self._commands.append((command, arguments, future))
        os.eventfd_write(self._bell, 1)
        try:
            return future.result(timeout=COMMAND_S)
        except TimeoutError:
            raise NodeError(
                f"no answer within {COMMAND_S:g} s. What it asked for may be logged all the same, and wait for a backup: "
                "see `actornet status`, and `actornet replay ls` of the log"
            ) from None

    def _obey(self) -> None:
        while self._commands:
            command, arguments, future = self._commands.popleft()
            try:
                self._answers.append((self.system.operators.command(command, arguments), future))
            except Exception as error:
                future.set_exception(error)

    def _answer(self) -> None:
        while self._answers and self._answers[0][0].ready():
            answer, future = self._answers.popleft()
            future.set_result(answer.value())


def run(spec: OwnerSpec, stop: threading.Event, report: Any) -> None:
    """The owner system's data plane; see `actornet.node.plan.WorkerPlan`."""
    own_descriptors()
    process = OwnerProcess(spec, report.key, report.bell, stop)
    report.on_status(process.system.status)
    report.on_command(process.command)
    # A full collection takes 0.2 us per flow, without any heartbeat; what lives long here is no garbage in cycles.
    gc.freeze()
    gc.set_threshold(*gc.get_threshold()[:2], NEVER)
    process.run(report.ready, report.leave)
