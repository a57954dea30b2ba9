"""How many new flows per second does one core open and offload, where does the time go, and what is slowest?

    python -m bench.opens [--flows 100000] [--times 5]

In process, of this process's CPU time, the best of so many runs. The first rows are one step each, for a connection whose
both directions are offloaded as they are: `on_open` as a plain `def`, as `async def`, with an ask to an owner, with
that ask and the flow logged and committed; then a firewall that decides by itself, and a NAT that asks its owner for
a port, without and with a log. `p99` and `longest` are turns of up to 32 opens, in microseconds, with idle turns in
between, in which the core backs memory ahead. `across`: the owners and the log are in a process of their own, as on live
nodes; flows per second on the clock, and what each takes of the core's CPU time.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager

from actornet import FORWARD, FlowActor, Packet
from actornet.embedded import Embedded
from actornet.engine.heap import use_huge_pages
from actornet.ports.memory import LoopPort, MemoryPort
from actors.nat import SourceNAT
from bench.nat import FRAME_BYTES, templates
from bench.offload import Firewall
from bench.owner import Tally, core_across, turn_until
from bench.report import Row, resident_bytes, table, write_json

TURN_PACKETS = 31  # fewer than a burst, so that a turn ends


class Plain(FlowActor):
    """What every step has: both directions are bound and offloaded."""

    def on_open(self, packet: Packet) -> None:
        self.pass_both(packet)

    def pass_both(self, packet: Packet) -> None:
        answer = packet.flow.reversed()
        self.bind(answer)
        self.offload(FORWARD)
        self.offload(FORWARD, answer)


class Asynchronous(Plain):
    async def on_open(self, packet: Packet) -> None:  # type: ignore[override]
        self.pass_both(packet)


class Asking(Plain):
    tally = Tally.named("tally")

    async def on_open(self, packet: Packet) -> None:  # type: ignore[override]
        await self.tally.add(1)
        self.pass_both(packet)


STEPS: dict[str, tuple[type[FlowActor], bool]] = {
    "plain def": (Plain, False),
    "plain def, logged": (Plain, True),
    "async def": (Asynchronous, False),
    "with an ask": (Asking, False),
    "with an ask, logged": (Asking, True),
    "firewall": (Firewall, False),
    "NAT": (SourceNAT, False),
    "NAT, logged": (SourceNAT, True),
}
"""The network function, and whether it has a log."""

ACROSS = {"with an ask, logged, across": "bench.opens:Asking", "NAT, logged, across": "actors.nat:SourceNAT"}


def rate(nf: type[FlowActor], frames: bytes, flows: int, log_directory: str | None) -> Row:
    """Flows per second of this process's CPU time, and the memory that each takes in RAM."""
    gc.collect()
    before = resident_bytes()
    lan = LoopPort("lan", frames, FRAME_BYTES)
    wan = LoopPort("wan", bytes(FRAME_BYTES), FRAME_BYTES, count=0)
    node = Embedded(nf, [lan, wan], log_directory=log_directory, flows_max=flows * 2 + 64)
    begin = time.process_time()
    while lan.received_packets < flows:
        node.run_burst()
    elapsed = time.process_time() - begin
    assert node.counters()["flows_opened"] == flows
    gc.collect()
    return {"opens/s": flows / elapsed, "us": elapsed / flows * 1e6, "bytes/flow": (resident_bytes() - before) / flows}


def across(nf_path: str, frames: bytes, flows: int, directory: str) -> Row:
    """Until all have left; the owners and the log are in another process."""
    lan = LoopPort("lan", frames, FRAME_BYTES)
    wan = LoopPort("wan", bytes(FRAME_BYTES), FRAME_BYTES, count=0)
    made = core_across(nf_path, [lan, wan], directory, lambda: False, flows_max=flows * 2 + 64)
    with made as (core, turn, sleep):
        begin, begin_cpu = time.perf_counter(), time.thread_time()
        turn_until(lambda: wan.sent_packets >= flows, turn, sleep)
        elapsed, cpu = time.perf_counter() - begin, time.thread_time() - begin_cpu
        assert core.count()["flows_opened"] == flows and core.count()["handler_error"] == 0
    return {"opens/s": flows / elapsed, "us": cpu / flows * 1e6}


def best(nf: type[FlowActor], logged: bool, frames: bytes, flows: int, times: int) -> Row:
    rows = []
    for _ in range(times):
        with tempfile.TemporaryDirectory() as directory:
            rows.append(rate(nf, frames, flows, directory if logged else None))
    # Memory is that of the first run: what it has freed is used again.
    return {**max(rows, key=lambda row: float(row["opens/s"])), "bytes/flow": rows[0]["bytes/flow"]}


@contextmanager
def running(loop: asyncio.AbstractEventLoop) -> Iterator[None]:
    asyncio._set_running_loop(loop)
    try:
        yield
    finally:
        asyncio._set_running_loop(None)


def turns(nf: type[FlowActor], frames: bytes, flows: int) -> Row:
    """How long turns take in which flows are opened, while the table grows."""
    lan, wan = MemoryPort("lan"), MemoryPort("wan")
    node = Embedded(nf, [lan, wan], flows_max=flows * 2 + 64)
    core, took = node.core, []
    with running(node._loop):
        for at in range(0, flows, TURN_PACKETS):
            numbers = range(at, min(at + TURN_PACKETS, flows))
            core.breathe()
            lan.feed([(0, frames[number * FRAME_BYTES : (number + 1) * FRAME_BYTES]) for number in numbers])
            begin = time.thread_time_ns()
            core.breathe()
            took.append((time.thread_time_ns() - begin) / 1000)
            wan.take()
    took.sort()
    return {"p50 us": took[len(took) // 2], "p99 us": took[len(took) * 99 // 100], "longest us": took[-1]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flows", type=int, default=100_000)
    parser.add_argument("--times", type=int, default=5)
    arguments = parser.parse_args()
    use_huge_pages()  # as a live core does
    flows, frames = arguments.flows, templates(arguments.flows)
    rows: list[Row] = []
    for name, (nf, logged) in STEPS.items():
        row = best(nf, logged, frames, flows, arguments.times)
        if nf in (Firewall, SourceNAT) and not logged:
            row |= turns(nf, frames, flows)
        rows.append(row)
        print(
            f"{name:20} {row['opens/s']:>10,.0f} opens/s  {row['us']:>6.2f} us  {row['bytes/flow']:>6,.0f} bytes/flow",
            flush=True,
        )
    for name, nf_path in ACROSS.items():
        found = []
        for _ in range(arguments.times):
            with tempfile.TemporaryDirectory() as directory:
                found.append(across(nf_path, frames, flows, directory))
        rows.append(max(found, key=lambda row: float(row["opens/s"])))
        print(f"{name:27} {rows[-1]['opens/s']:>10,.0f} opens/s  {rows[-1]['us']:>6.2f} us of the core", flush=True)
    names = [*STEPS, *ACROSS]
    print(table(rows, names))
    print(write_json("opens", rows, names))


if __name__ == "__main__":
    main()
