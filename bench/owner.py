"""How many messages a second do flows ask of one owner, each waiting for its reply?

    python -m bench.owner [--waiting 1,32,1024] [--seconds 1] [--times 3] [--peers thespian,pykka,lock]

A packet per flow goes round through one core. Each time its handler asks the owner to add to a number, ASKS times in a
row, and awaits each reply; then the flow is saved, and its packet leaves when all of that is committed. `waiting` is
the number of flows, so of asks on their way at once (in process a reply is there with the call, and there is one).

Measured are: owners in the core's process, without and with a log; owners in a real owner system, another process, over
the shared-memory rings, logged (durability solo); and the same with a second owner system that follows over a loopback
link, when nothing is committed that it has not applied. In the same run, for the same addition: two Thespian actors in
one process and in two, a Pykka proxy, and a number in shared memory or in a manager's dict under a lock, for which
`waiting` is the number of processes, at most one per CPU. The peers log nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import secrets
import select
import signal
import socket
import statistics
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pykka
import structlog
from thespian.actors import Actor, ActorSystem

from actornet import FORWARD, FlowActor, Owner, Packet, Struct, Verdict
from actornet.embedded import Embedded
from actornet.engine.core import Core
from actornet.engine.port import Port
from actornet.limits import FLOWS_MAX_DEFAULT
from actornet.node import owner_process
from actornet.node.core_worker import IDLE_SLEEP_S, RingLink
from actornet.node.fabric import Fabric
from actornet.node.network_function import load_nf
from actornet.node.owner_system import OwnerSpec
from actornet.node.worker import Report
from actornet.ports.memory import MemoryPort
from bench.nat import templates
from bench.report import Row, table, write_json

ASKS = 32
"""Asks that a flow makes for one packet, after which it is saved."""

FRAME_BYTES = 64
NF = "bench.owner:Asker"
PATIENCE_S = 20.0

RATIOS = [
    ("in process, logged", "Thespian simple"),
    ("in process, logged", "Pykka"),
    ("across, logged", "Thespian TCP"),
    ("across, logged", "Lock + Manager"),
    ("across, logged", "Lock + Value"),
    ("across, logged", "in process, logged"),
    ("across, replicated", "across, logged"),
]
"""What is compared: like with like, then what a process boundary costs, and a backup."""


class Sum(Struct):
    total: int = 0


class Tally(Owner[Sum]):
    def add(self, n: int) -> int:
        self.state.total += n
        return self.state.total


class Asker(FlowActor):
    tally = Tally.named("tally")
    rounds: int = 0

    async def on_packet(self, packet: Packet) -> Verdict:
        add = self.tally.add
        for _ in range(ASKS):
            await add(1)
        self.rounds += 1
        return FORWARD


def circle(flows: int) -> tuple[MemoryPort, MemoryPort]:
    """Two ports: what leaves by the second comes in again at the first. A packet of each flow waits there."""
    lan = MemoryPort("lan")
    wan = MemoryPort("wan", sink=lan.feed)
    frames = templates(flows)
    lan.feed((0, frames[at : at + FRAME_BYTES]) for at in range(0, len(frames), FRAME_BYTES))
    return lan, wan


def rate(core: Core, flows: int, breathe: Callable[[], int], sleep: Callable[[], None], seconds: float) -> float:
    """Asks per second, once every flow has been round."""
    turn_until(lambda: core.count()["tx_packets"] >= 2 * flows, breathe, sleep)
    begun, asked = time.perf_counter(), core.count()["asks"]
    while (elapsed := time.perf_counter() - begun) < seconds:
        if not breathe():
            sleep()
    counts = core.count()
    assert counts["handler_error"] == 0 and counts["live_flows"] == flows, counts
    return (counts["asks"] - asked) / elapsed


def in_process(flows: int, seconds: float, log: str | None) -> float:
    node = Embedded(Asker, circle(flows), None, log)
    found = rate(node.core, flows, node.run_burst, lambda: None, seconds)
    node.finish()
    return found


def across_processes(flows: int, seconds: float, directory: str, *, replicated: bool) -> float:
    lan, wan = circle(flows)
    with core_across(NF, [lan, wan], directory, lambda: len(lan) > 0, replicated=replicated) as (core, turn, sleep):
        return rate(core, flows, turn, sleep, seconds)


@contextmanager
def core_across(
    nf_path: str,
    ports: list[Port],
    directory: str,
    has_packets: Callable[[], bool],
    *,
    replicated: bool = False,
    flows_max: int = FLOWS_MAX_DEFAULT,
) -> Iterator[tuple[Core, Callable[[], int], Callable[[], None]]]:
    """A core here, its owner system and the one that follows in processes of their own; a turn of it, and how it sleeps."""
    address = f"127.0.0.1:{_free_port()}"
    key = secrets.token_bytes(32)
    fabrics = [Fabric.create(1) for _ in range(2 if replicated else 1)]
    specs = [
        OwnerSpec(
            name="bench",
            role=role,
            node=role,
            nf=nf_path,
            settings={},
            ports=["lan", "wan"],
            log=f"{directory}/{role}",
            links=[address] if replicated else [],
            listen=address if replicated else None,
            durability="applied" if replicated else "solo",
            without_backup="wait" if replicated else "solo",
            fabric=fabric.spec,
        )
        for role, fabric in zip(("primary", "backup"), fabrics, strict=False)
    ]
    with _processes([(_owner_system, (spec, key)) for spec in specs]) as owner_systems:
        nf, _ = load_nf(nf_path, {})
        page, replies = fabrics[0].page, fabrics[0].replies[0]
        link = RingLink(fabrics[0].requests[0], fabrics[0].replies[0], nf)
        core = Core(nf, ports, link=link, loop=asyncio.new_event_loop(), flows_max=flows_max)  # as a core worker has
        core.share(page, replies)
        link.core = core
        epoll = select.epoll()
        epoll.register(replies.fileno(), select.EPOLLIN)
        committed = 0

        def turn() -> int:
            nonlocal committed
            committed = page.committed(0)
            return core.breathe()

        def sleep() -> None:  # as a core worker does, whose ports would wake it
            if replies.sleep_begin() and page.committed(0) == committed and not has_packets():
                epoll.poll(IDLE_SLEEP_S)
            replies.sleep_end()

        def listen() -> int:
            link.poll()
            return 0

        if replicated:  # the backup follows once its core holds its flows, of which there are none yet
            standby = RingLink(fabrics[1].requests[0], fabrics[1].replies[0], nf)
            standby.core = Core(nf, [MemoryPort("lan"), MemoryPort("wan")], link=standby)
            standby.attach()
            turn_until(lambda: standby.attached, lambda: standby.poll() or 0, lambda: time.sleep(0.001))
        link.attach()
        turn_until(lambda: link.attached, listen, sleep)
        yield core, turn, sleep
        assert all(process.is_alive() for process in owner_systems), "an owner system ended before its time"


def _owner_system(spec: OwnerSpec, key: bytes) -> None:
    """An owner system's process, until SIGTERM."""
    structlog.configure(processors=[_drop])
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda number, frame: stop.set())
    owner_process.run(spec, stop, Report(key, lambda: None))


def _drop(*_: object) -> Any:
    raise structlog.DropEvent


# ---------------------------------------------------------------------------------------------- peers


class TallyActor(Actor):  # type: ignore[misc]
    """The owner, in Thespian."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def receiveMessage(self, message: Any, sender: Any) -> None:
        if isinstance(message, int):
            self.total += message
            self.send(sender, self.total)


class AskerActor(Actor):  # type: ignore[misc]
    """Asks the tally for so many seconds, with so many asks on their way, and says how many replies came a second."""

    def receiveMessage(self, message: Any, sender: Any) -> None:
        if isinstance(message, tuple):
            self.waiting, self.seconds = message
            self.sender, self.replies, self.begun = sender, -1, 0.0  # from the first reply on
            self.tally = self.createActor(TallyActor)
            for _ in range(self.waiting):
                self.send(self.tally, 1)
        elif isinstance(message, int):
            self.replies += 1
            if self.replies == 0:
                self.begun = time.perf_counter()
            elapsed = time.perf_counter() - self.begun
            if elapsed < self.seconds:
                self.send(self.tally, 1)
            elif self.sender is not None:
                self.send(self.sender, self.replies / elapsed)
                self.sender = None


def thespian(base: str, waiting: int, seconds: float) -> float:
    capabilities = {"Admin Port": _free_port()} if base != "simpleSystemBase" else None
    system = ActorSystem(base, capabilities, transientUnique=True)
    try:
        asks: float = system.ask(system.createActor(AskerActor), (waiting, seconds), seconds + PATIENCE_S)
        return asks
    finally:
        system.shutdown()


class PykkaTally(pykka.ThreadingActor):
    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def add(self, n: int) -> int:
        self.total += n
        return self.total


def pykka_proxy(waiting: int, seconds: float) -> float:
    tally = PykkaTally.start().proxy()
    try:
        futures = deque(tally.add(1) for _ in range(waiting))
        begun, replies = time.perf_counter(), 0
        while (elapsed := time.perf_counter() - begun) < seconds:
            futures.popleft().get()
            replies += 1
            futures.append(tally.add(1))
        return replies / elapsed
    finally:
        tally.stop()


def lock_and_value(waiting: int, seconds: float) -> float:
    value = multiprocessing.Value("q", 0)
    return _contended(_add_to_value, (value,), waiting, seconds)


def lock_and_manager(waiting: int, seconds: float) -> float:
    with multiprocessing.Manager() as manager:
        shared = manager.dict(total=0)
        return _contended(_add_to_dict, (shared, multiprocessing.Lock()), waiting, seconds)


def _add_to_value(until: float, value: Any) -> int:
    done = 0
    while time.perf_counter() < until:
        with value.get_lock():
            value.value += 1
        done += 1
    return done


def _add_to_dict(until: float, shared: Any, lock: Any) -> int:
    done = 0
    while time.perf_counter() < until:
        with lock:
            shared["total"] += 1
        done += 1
    return done


def _contended(add: Callable[..., int], args: tuple[Any, ...], waiting: int, seconds: float) -> float:
    """Additions per second of as many processes as wait, at most one per CPU."""
    count = min(waiting, os.cpu_count() or 1)
    results: multiprocessing.Queue[int] = multiprocessing.Queue()
    begin = time.perf_counter() + 0.1

    def run() -> None:
        time.sleep(max(0.0, begin - time.perf_counter()))
        results.put(add(begin + seconds, *args))

    with _processes([(run, ())] * count):
        return sum(results.get(timeout=seconds + PATIENCE_S) for _ in range(count)) / seconds


# ---------------------------------------------------------------------------------------------- inside


@contextmanager
def _processes(targets: list[tuple[Callable[..., None], tuple[Any, ...]]]) -> Iterator[list[BaseProcess]]:
    """Forked processes that end with the block."""
    fork = multiprocessing.get_context("fork")
    running: list[BaseProcess] = [fork.Process(target=target, args=args, daemon=True) for target, args in targets]
    for process in running:
        process.start()
    try:
        yield running
    finally:
        for process in reversed(running):  # a backup first, lest it take over
            process.terminate()
            process.join(5)
            process.kill()
            process.join()


def turn_until(done: Callable[[], bool], turn: Callable[[], int], sleep: Callable[[], None]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not done():
        assert time.monotonic() < deadline, "the owner system does not answer"
        if not turn():
            sleep()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def candidates(peers: list[str]) -> dict[str, Callable[[int, float, Path], float]]:
    """What is measured: called with asks waiting, seconds, and an empty directory."""
    found: dict[str, Callable[[int, float, Path], float]] = {
        "in process": lambda waiting, seconds, _: in_process(waiting, seconds, None),
        "in process, logged": lambda waiting, seconds, place: in_process(waiting, seconds, str(place)),
        "across, logged": lambda waiting, seconds, place: across_processes(
            waiting, seconds, str(place), replicated=False
        ),
        "across, replicated": lambda waiting, seconds, place: across_processes(
            waiting, seconds, str(place), replicated=True
        ),
    }
    if "thespian" in peers:
        found["Thespian simple"] = lambda waiting, seconds, _: thespian("simpleSystemBase", waiting, seconds)
        found["Thespian TCP"] = lambda waiting, seconds, _: thespian("multiprocTCPBase", waiting, seconds)
    if "pykka" in peers:
        found["Pykka"] = lambda waiting, seconds, _: pykka_proxy(waiting, seconds)
    if "lock" in peers:
        found["Lock + Value"] = lambda waiting, seconds, _: lock_and_value(waiting, seconds)
        found["Lock + Manager"] = lambda waiting, seconds, _: lock_and_manager(waiting, seconds)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--waiting", default="1,32,1024")
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--times", type=int, default=3, help="the median of so many is shown")
    parser.add_argument("--peers", default="thespian,pykka,lock")
    arguments = parser.parse_args()
    rows: list[Row] = []
    for waiting in map(int, arguments.waiting.split(",")):
        row: Row = {"waiting": waiting}
        measured = candidates(arguments.peers.split(","))
        rates: dict[str, list[float]] = {name: [] for name in measured}
        for _ in range(arguments.times):
            for name, measure in measured.items():
                with tempfile.TemporaryDirectory() as directory:
                    rates[name].append(measure(waiting, arguments.seconds, Path(directory)))
        row |= {name: statistics.median(found) for name, found in rates.items()}
        rows.append(row)
    print("asks per second, median")
    print(table(rows))
    ratios: list[Row] = [
        {"waiting": row["waiting"]} | {f"{a} / {b}": row[a] / row[b] for a, b in RATIOS if a in row and b in row}
        for row in rows
    ]
    print(table(ratios))
    print(write_json("owner", [row | ratio for row, ratio in zip(rows, ratios, strict=True)]))


if __name__ == "__main__":
    main()
