"""How much more do two cores translate than one?

    python -m bench.cores [--flows 10000] [--seconds 2] [--rounds 5]

The offloaded source NAT of bench.nat on 64-byte UDP in memory, a process pinned to each CPU, each with flows of its own, as RSS
gives them. One CPU alone and both together take turns, so that other work on the machine weighs on all alike; quoted are the
medians of each CPU's own time, and the load average: above the number of CPUs, they were not ours alone.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
from multiprocessing.connection import Connection
from typing import Any

from actors.nat import SourceNAT
from bench.nat import measure, templates
from bench.report import Row, table, write_json


def core(cpu: int, flows: int, seconds: float, barrier: Any, result: Connection) -> None:
    """One core's packets per second, in millions. All begin at once and open their flows first, in a tenth of a second."""
    os.sched_setaffinity(0, {cpu})
    frames = templates(flows)
    barrier.wait()
    result.send(measure(SourceNAT, frames, flows, seconds)["mpps"])


def together(cpus: list[int], flows: int, seconds: float) -> float:
    """The sum of what the CPUs do at the same time."""
    context = multiprocessing.get_context("fork")
    barrier, pipes, processes = context.Barrier(len(cpus)), [], []
    for cpu in cpus:
        receiving, sending = context.Pipe(duplex=False)
        process = context.Process(target=core, args=(cpu, flows, seconds, barrier, sending))
        process.start()
        pipes.append(receiving)
        processes.append(process)
    total = sum(pipe.recv() for pipe in pipes)
    for process in processes:
        process.join()
    return float(total)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flows", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    cpus = sorted(os.sched_getaffinity(0))[:2]
    if len(cpus) < 2:
        raise SystemExit("there is one CPU only: nothing to compare")
    found: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(arguments.rounds):
        for count in found:
            found[count].append(together(cpus[:count], arguments.flows, arguments.seconds))
    alone, both = statistics.median(found[1]), statistics.median(found[2])
    row: Row = {
        "flows per core": float(arguments.flows),
        "1 core Mpps": alone,
        "2 cores Mpps": both,
        "ratio": both / alone,
        "load average": os.getloadavg()[0],
    }
    print(table([row]))
    print(write_json("cores", [row]))


if __name__ == "__main__":
    main()
