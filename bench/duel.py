"""Which of several versions of actornet treats a packet in less time, and by how much?

    python -m bench.duel KIND TREE TREE ... [--flows 100000] [--turns 100] [--packets 40000]

On a noisy machine, runs of one version after the other differ by half. Here each has a live process, all on one CPU, which take
turns of some milliseconds, and a turn is compared with those beside it. TREE is a checkout in which `make build` was run,
of any version that has `LoopPort.play`. With `,NAME=value` behind it its process has that in its environment, so that a
tree can be compared with itself; named twice as it is, it shows how far to trust the rest.

KIND is what is done with each packet: a NAT's translation `offloaded` to the core, or by a handler that is a `def` or `async`
(bench/nat.py); or what the core carries out by itself, `firewall`, `meter`, `mirror` or `vlan` (bench/offload.py). Network
functions and frames are the tree's own. Packets come in another order than that in which their flows began.

Printed are ns of CPU time per packet: the least, the tenth percentile and the median of all turns; and the median and
quartiles of the ratios to what the first tree took just before.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from importlib import import_module
from pathlib import Path

from actornet import FlowActor
from actornet.embedded import Embedded
from actornet.ports.memory import LoopPort
from actors.nat import SourceNAT
from bench.nat import FRAME_BYTES, AsyncNAT, PacketNAT, reordered, templates
from bench.offload import Firewall, Metered, Mirrored, Tagging
from bench.report import Row, table, write_json

KINDS: dict[str, type[FlowActor]] = {
    "offloaded": SourceNAT,
    "def": PacketNAT,
    "async": AsyncNAT,
    "firewall": Firewall,
    "meter": Metered,
    "mirror": Mirrored,
    "vlan": Tagging,
}


def directory_and_environment(text: str) -> tuple[Path, dict[str, str]]:
    """Of `TREE[,NAME=value]...`. Raises SystemExit where that is no built tree, or no setting."""
    directory, *settings = text.split(",")
    if not any((Path(directory) / "actornet").rglob("*.so")):
        raise SystemExit(
            f"{directory} is no built source tree of actornet: name a checkout, and run `make build` there"
        )
    for setting in settings:
        if "=" not in setting[1:]:
            raise SystemExit(f"{text}: {setting!r} is nothing to set: write TREE,NAME=value")
    return Path(directory).resolve(), dict(setting.split("=", 1) for setting in settings)


@contextmanager
def contestant(text: str, *options: str) -> Iterator[Callable[[], float]]:
    """A live process of that tree. Yields what gives it a turn and returns ns of CPU time per packet, or raises SystemExit."""
    tree, environment = directory_and_environment(text)
    python = tree / ".venv" / "bin" / "python"
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(
            [str(python) if python.exists() else sys.executable, "-P", __file__, *options, str(tree)],
            cwd=tree,
            env=os.environ | environment | {"PYTHONPATH": str(tree)},  # goes before what is installed
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
        ) as process,
    ):

        def turn() -> float:
            assert process.stdin and process.stdout
            with suppress(BrokenPipeError):
                process.stdin.write(b"\n")
            answer = process.stdout.readline()
            if answer:
                return float(answer)
            code = process.wait()
            errors.seek(0)
            said = (errors.read().splitlines() or ["it said nothing"])[-1]
            raise SystemExit(
                f"{text}: the process of this tree ended with {code}: {said}; run `make build` there; "
                "versions without LoopPort.play cannot be compared"
            )

        yield turn


def treat(nf: type[FlowActor], tree: Path, cpu: int, flows: int, packets: int) -> None:
    """A contestant's process: open all flows; for each line that comes treat packets, and print the ns that each took."""
    os.sched_setaffinity(0, {cpu})
    with suppress(ModuleNotFoundError):  # in versions that had no such thing
        import_module("actornet.engine.heap").use_huge_pages()
    code = sys.modules[Embedded.__module__].__file__
    assert code is not None and Path(code).is_relative_to(tree), f"{code} is not of {tree}"
    frames = templates(flows)
    lan = LoopPort("lan", frames, FRAME_BYTES)
    wan = LoopPort("wan", bytes(FRAME_BYTES), FRAME_BYTES, count=0)
    node = Embedded(nf, [lan, wan], flows_max=max(4096, flows * 2 + 16))
    while lan.received_packets < flows:
        node.run_burst()
    lan.play(reordered(frames))
    gc.collect()
    breathe = node.core.breathe
    for _ in sys.stdin:
        begin, received = time.thread_time_ns(), lan.received_packets
        while lan.received_packets < received + packets:
            breathe()
        elapsed_ns = time.thread_time_ns() - begin
        counts = node.counters()
        assert counts["flows_opened"] == flows and counts["tx_packets"] == counts["rx_packets"], counts
        print(elapsed_ns / (lan.received_packets - received), flush=True)


def duel(trees: Sequence[str], kind: str, flows: int, turns: int, packets: int) -> list[Row]:
    """A row for each tree."""
    for text in trees:
        directory_and_environment(text)
    options = (kind, f"--flows={flows}", f"--packets={packets}", f"--cpu={max(os.sched_getaffinity(0))}")
    times: list[list[float]] = [[] for _ in trees]
    with ExitStack() as stack:
        contestants = [stack.enter_context(contestant(text, *options)) for text in trees]
        for turn in contestants:
            turn()  # opens the flows
        # Always in this order: who had two turns one after the other would find its memory in the caches.
        for _ in range(turns):
            for turn, took in zip(contestants, times, strict=True):
                took.append(turn())
    return [{"flows": flows, **compared(took, times[0])} for took in times]


def compared(took: Sequence[float], first: Sequence[float]) -> Row:
    """One tree's ns per packet, a figure for each turn, beside the first tree's."""
    ratios = [own / other for own, other in zip(took, first, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return {
        "best ns": min(took),
        "p10 ns": statistics.quantiles(took, n=10, method="inclusive")[0],
        "median ns": statistics.median(took),
        "ratio": middle,
        "ratio p25": low,
        "ratio p75": high,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", metavar="KIND")
    parser.add_argument("trees", metavar="TREE", nargs="+")
    parser.add_argument("--flows", type=int, default=100_000)
    parser.add_argument("--turns", type=int, default=100)
    parser.add_argument("--packets", type=int, default=40_000)
    parser.add_argument("--cpu", type=int, help=argparse.SUPPRESS)  # this is a contestant's process
    arguments = parser.parse_args()
    kind, trees, flows, packets = arguments.kind, arguments.trees, arguments.flows, arguments.packets
    if kind not in KINDS:
        raise SystemExit(f"there is no KIND {kind!r}: name one of {', '.join(KINDS)}")
    if arguments.cpu is not None:
        treat(KINDS[kind], Path(trees[0]), arguments.cpu, flows, packets)
        return
    if len(trees) < 2 or min(flows, packets) < 1 or arguments.turns < 2:
        raise SystemExit("there is nothing to compare: it takes two trees, two turns, a flow and a packet, or more")
    rows = duel(trees, kind, flows, arguments.turns, packets)
    print(table(rows, trees))
    print(write_json(f"duel_{kind}", rows, trees))


if __name__ == "__main__":
    main()
