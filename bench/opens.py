"""How many new flows per second does one core open and offload, and what is slowest?

    python -m bench.opens [--flows 100000]

In process: a firewall that decides alone, a NAT that asks its owner for a port, and the same with every decision and flow
logged and committed. `p99` and `longest` are turns of up to 32 opens, in microseconds, with idle turns in between, in which
the core backs memory ahead.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager

from actornet import FlowActor
from actornet.embedded import Embedded
from actornet.ports.memory import LoopPort, MemoryPort
from actors.nat import SourceNAT
from bench.nat import FRAME_BYTES, templates
from bench.offload import Firewall
from bench.report import Row, resident_bytes, table, write_json

TURN_PACKETS = 31  # fewer than a burst, so that a turn ends


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
    return {"opens/s": flows / elapsed, "bytes/flow": (resident_bytes() - before) / flows}


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
    flows = parser.parse_args().flows
    frames = templates(flows)
    names = ("firewall", "NAT", "NAT, logged")
    rows: list[Row] = []
    for name in names:
        nf = Firewall if name == "firewall" else SourceNAT
        with tempfile.TemporaryDirectory() as directory:
            row = rate(nf, frames, flows, directory if name == names[-1] else None)
        rows.append({"flows": flows, **row, **(turns(nf, frames, flows) if name != names[-1] else {})})
        print(f"{name:12} {row['opens/s']:>10,.0f} opens/s  {row['bytes/flow']:>6,.0f} bytes/flow", flush=True)
    print(table(rows))
    print(write_json("opens", rows))


if __name__ == "__main__":
    main()
