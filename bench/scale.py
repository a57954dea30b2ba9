"""What does a large state cost a pair: a new backup's way to being in sync, and a takeover?

    python -m bench.scale [--flows 10000 100000] [--timeout-s 120]

For each size (root): a primary, alone, translates that many UDP flows of some 60,000 inside endpoints. Then a backup joins.
Measured are the seconds until it may take over, and the longest time in which a new flow waited meanwhile (a new one begins
every 2 ms); then the primary is killed, and the outage is that of an established UDP stream. Flows that the backup's
cores hold are counted before.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

from actornet.limits import FLOWS_MAX_DEFAULT, SILENCE_MS_DEFAULT
from actornet.testing.netns import Lab
from actornet.testing.pair import Name, Pair
from actornet.testing.traffic import SERVER, Traffic, UdpEcho, UdpStream, udp_socket
from bench.forward import build_traffic
from bench.report import Row, table, write_json

PAIR_MAC = "02:00:5e:10:00:01"
PATIENCE_S = 2.0
FILL_PER_S = 40_000
"""What the flows begin at: more than a core opens on this kind of machine, and little enough to leave it the CPU."""


def generate(pair: Pair, binary: Path, flows: int, seconds: float, per_s: int = 0) -> subprocess.Popen[bytes]:
    """Start to send 60-byte UDP packets of so many flows, of 60,000 inside ends, in turn; `per_s` (0: full speed)."""
    cpu = str(max(os.sched_getaffinity(0)))
    source: str = json.loads(pair.lab.run("client", ["ip", "-j", "link", "show", "eth0"]).stdout)[0]["address"]
    argv = [
        "taskset",
        "-c",
        cpu,
        str(binary),
        "generate",
        "eth0",
        str(seconds),
        str(flows),
        source,
        PAIR_MAC,
        str(per_s),
    ]
    return pair.lab.popen("client", argv, stdout=subprocess.DEVNULL)


def fill(pair: Pair, binary: Path, flows: int, timeout_s: float) -> float:
    """Open the flows on node `a`; returns how many seconds it took."""
    begun = time.monotonic()
    generator = generate(pair, binary, flows, timeout_s, FILL_PER_S)
    while live_flows(pair, "a") < flows:
        if generator.poll() is not None:
            raise SystemExit(f"only {live_flows(pair, 'a')} of {flows} flows were open after {timeout_s} s")
        time.sleep(0.2)
    generator.kill()
    generator.wait()
    return time.monotonic() - begun


def core_counters(pair: Pair, node: Name) -> Counter[str]:
    """What a node's cores have counted, together."""
    total = Counter[str]()
    for worker in pair.status(node)["workers"]:
        if worker["name"].startswith("core-"):
            total.update(worker["status"]["counters"])
    return total


def live_flows(pair: Pair, node: Name) -> int:
    return core_counters(pair, node)["live_flows"]


class NewFlows(Traffic):
    """Begins a flow every 2 ms, from an inside end of its own; `longest_ms` is what one waited for its first echo."""

    def __init__(self, lab: Lab) -> None:
        self.longest_ms = 0.0
        self.lost = 0
        self._lab = lab
        self._ended = threading.Event()
        self._echo = UdpEcho(lab, 9200)
        self._threads = [threading.Thread(target=self._begin, daemon=True)]

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._threads[0].join(5)
        self._echo.close()

    def _begin(self) -> None:
        while not self._ended.is_set():
            with self._lab.call("client", udp_socket, "10.0.0.2") as sock:
                sock.settimeout(PATIENCE_S)
                begun = time.perf_counter()
                sock.sendto(b"x", (SERVER, 9200))
                try:
                    sock.recv(64)
                    self.longest_ms = max(self.longest_ms, (time.perf_counter() - begun) * 1e3)
                except TimeoutError:
                    self.lost += 1
            time.sleep(0.002)


def measure(directory: Path, binary: Path, flows: int, timeout_s: float) -> Row:
    with Pair(directory, silence_ms=SILENCE_MS_DEFAULT) as pair:
        flags = ["--flows-max", str(4 * flows + FLOWS_MAX_DEFAULT)]  # two keys per flow
        pair.launch("a", "primary", *flags)
        fill_s = fill(pair, binary, flows, timeout_s)
        with NewFlows(pair.lab) as alone:
            time.sleep(1.0)
        with NewFlows(pair.lab) as joining:
            begun = time.monotonic()
            pair.begin("b", "backup", *flags)
            pair.wait_for("b", r'"event":"in sync"', timeout_s)
            sync_s = time.monotonic() - begun
        held = live_flows(pair, "b")
        with UdpStream(pair.lab) as stream:
            time.sleep(0.7)
            killed_ns = pair.kill("a")
            taken = pair.wait_takeover("b")
            time.sleep(1.0)
        return {
            "flows": flows,
            "opens/s": flows / fill_s,
            "in sync after s": sync_s,
            "first packet max ms, alone": alone.longest_ms,
            "first packet max ms, joining": joining.longest_ms,
            "first packets lost": alone.lost + joining.lost,
            "flows held by backup": held,
            "outage ms": stream.outage_ms(killed_ns),
            "records replayed": taken["records_replayed"],
            "log MB": sum(file.stat().st_size for file in pair.log("a").rglob("*") if file.is_file()) / 1e6,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flows", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--timeout-s", type=float, default=120.0)
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as directory:
        binary = build_traffic(Path(directory))
        for flows in arguments.flows:
            rows.append(measure(Path(directory) / str(flows), binary, flows, arguments.timeout_s))
            print(table(rows[-1:]), file=sys.stderr)
    print(table(rows))
    print(write_json("scale", rows))


if __name__ == "__main__":
    main()
