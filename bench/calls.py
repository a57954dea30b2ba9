"""How often can CPython call handlers at all, if there is nothing else to do?

    python -m bench.calls [--flows 1,1000,100000] [--calls 1000000] [--times 5]

The bound of what a core can do with a handler per packet: a loop in C calls the handler of one actor after the other, in
another order than that in which they were made, as packets come. No packet is received, parsed, looked up, changed or sent.
`least` returns None; `NAT` is the handler of bench/nat.py, with an actor of the same shape, and what it returns. Million calls
per second of CPU time, the best of so many runs.
"""

from __future__ import annotations

import argparse
import gc
import random
import tempfile
import time
from importlib import import_module
from typing import Any

import pyximport

from actornet.engine.heap import use_huge_pages
from bench.report import Row, table, write_json

HANDLERS = {"least def": False, "least async def": True, "NAT def": False, "NAT async def": True}
"""Whether it is an `async def`."""


class Verdict:
    __slots__ = ("first", "second")


class Shared:
    """What a flow has before its function's own fields: as many slots as the compiled base takes."""

    __slots__ = tuple(f"field_{number}" for number in range(10))


class Actor(Shared):
    __slots__ = ("_back", "_out")

    def least(self, packet: Any) -> Any:
        return None

    async def least_async(self, packet: Any) -> Any:
        return None

    def nat(self, packet: Any) -> Any:
        return self._out if packet.destination_port == 53 else self._back or DROPPED

    async def nat_async(self, packet: Any) -> Any:
        return self._out if packet.destination_port == 53 else self._back or DROPPED


DROPPED = Verdict()
FUNCTIONS = dict(zip(HANDLERS, (Actor.least, Actor.least_async, Actor.nat, Actor.nat_async), strict=True))


def actors(count: int) -> list[Actor]:
    made = []
    for _ in range(count):
        actor = Actor()
        actor._out, actor._back = Verdict(), Verdict()
        made.append(actor)
    random.Random(1).shuffle(made)
    return made


def rate(bare: Any, name: str, of: list[Actor], calls: int, times: int) -> float:
    """Million calls per second."""
    rounds, best_s = max(1, calls // len(of)), float("inf")
    view = bare.View(53)
    for _ in range(times):
        begin = time.process_time()
        bare.call(FUNCTIONS[name], of, view, rounds, HANDLERS[name])
        best_s = min(best_s, time.process_time() - begin)
    return rounds * len(of) / best_s / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flows", default="1,1000,100000")
    parser.add_argument("--calls", type=int, default=1_000_000)
    parser.add_argument("--times", type=int, default=5)
    arguments = parser.parse_args()
    use_huge_pages()  # as a live core does
    with tempfile.TemporaryDirectory() as directory:
        pyximport.install(build_dir=directory, language_level=3)
        bare = import_module("bench.bare_calls")
    gc.disable()
    rows: list[Row] = []
    for flows in map(int, arguments.flows.split(",")):
        of = actors(flows)
        rows.append(
            {"flows": flows} | {name: rate(bare, name, of, arguments.calls, arguments.times) for name in HANDLERS}
        )
    print(table(rows))
    print(write_json("calls", rows))


if __name__ == "__main__":
    main()
