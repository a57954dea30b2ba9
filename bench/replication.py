"""What does a backup take from the throughput of its primary?

    python -m bench.replication [--seconds 3] [--rounds 3]

The live NAT of a pair (root) without a backup and with one that must have applied a record before its packet leaves, in turn:
packets of 1000 flows that the core carries alone, in Mpps as the server's interface counts them, and new flows per second, each
of which logs the owner's decision and its own record, while 60-byte UDP comes at full load. Both nodes and the generator share
the machine's CPUs, so what the backup's own work takes from the primary is in the difference; on hosts of their own it is not.
What stays there is the primary's own work: the CPU time of its core and owner system for each new flow.
Where an owner system gets no CPU for 30 ms, the backup takes over: such rounds are counted, and not in the medians.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from actornet.errors import ActornetError
from actornet.limits import SILENCE_MS_DEFAULT
from actornet.testing.pair import Pair
from bench.forward import build_traffic, received
from bench.report import Row, table, write_json
from bench.scale import core_counters, generate

OFFLOADED_FLOWS = 1000
NEW_FLOWS = 1_000_000
WARM_S = 0.5


def offloaded_mpps(pair: Pair, binary: Path, seconds: float) -> float:
    rules = "table netdev t { chain c { type filter hook ingress device eth0 priority 0; meta l4proto udp drop; }; }"
    pair.lab.run("server", ["nft", rules])
    generator = generate(pair, binary, OFFLOADED_FLOWS, seconds + 2 * WARM_S)
    time.sleep(WARM_S)
    before, begun = received(pair.lab), time.perf_counter()
    time.sleep(seconds)
    mpps = (received(pair.lab) - before) / (time.perf_counter() - begun) / 1e6
    generator.wait()
    return mpps


def cpu_us(pair: Pair) -> float:
    """CPU time of the primary's core and owner system so far."""
    pids = [pair.process("a", name) for name in ("core-0", "owner-system")]
    tasks = [task for pid in pids for task in Path(f"/proc/{pid}/task").glob("*/schedstat")]
    return sum(int(task.read_text().split()[0]) for task in tasks) / 1e3


def new_flows(pair: Pair, binary: Path, seconds: float) -> tuple[float, float]:
    """How many open per second, and the primary's CPU time for each in microseconds."""
    before, cpu_before_us = core_counters(pair, "a")["flows_opened"], cpu_us(pair)
    begun = time.perf_counter()
    generate(pair, binary, NEW_FLOWS, seconds).wait()
    opened = core_counters(pair, "a")["flows_opened"] - before
    return opened / (time.perf_counter() - begun), (cpu_us(pair) - cpu_before_us) / opened


def measure(directory: Path, binary: Path, seconds: float, *, replicated: bool) -> tuple[float, ...] | None:
    """Offloaded Mpps, opens per second and CPU time per open; None if the backup took over meanwhile."""
    with Pair(directory, durability="applied" if replicated else "solo", silence_ms=SILENCE_MS_DEFAULT) as pair:
        pair.launch("a", "primary")
        if replicated:
            pair.launch("b", "backup")
            pair.wait_in_sync("b")
        try:
            return offloaded_mpps(pair, binary, seconds), *new_flows(pair, binary, seconds)
        except ActornetError:
            if replicated and '"took over"' in pair.printed("b"):
                return None
            raise


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    found: dict[bool, list[tuple[float, ...] | None]] = {False: [], True: []}
    with tempfile.TemporaryDirectory() as directory:
        binary = build_traffic(Path(directory))
        for number in range(arguments.rounds):
            for replicated, results in found.items():
                place = Path(directory) / f"{number}-{replicated}"
                results.append(measure(place, binary, arguments.seconds, replicated=replicated))
    rows: list[Row] = []
    for replicated, results in found.items():
        complete = [result for result in results if result is not None]
        if not complete:
            raise SystemExit("the backup took over in every round: this machine has too little CPU for both nodes")
        offloaded, opens, cost_us = (statistics.median(column) for column in zip(*complete, strict=True))
        failed = len(results) - len(complete)
        rows.append({"offloaded Mpps": offloaded, "opens/s": opens, "CPU us/open": cost_us, "takeovers": failed})
        if replicated:
            rows[1]["offloaded / alone"] = offloaded / float(rows[0]["offloaded Mpps"])
            rows[1]["opens / alone"] = opens / float(rows[0]["opens/s"])
            rows[1]["CPU / alone"] = cost_us / float(rows[0]["CPU us/open"])
    names = ["alone", "with a backup"]
    print(table(rows, names))
    print(write_json("replication", rows, names))


if __name__ == "__main__":
    main()
