"""Simulate many lives of two or three nodes, each from a seed; a failing one is traced, and cut down to what it takes.

python -m actornet.testing.simulate --seeds 10000
python -m actornet.testing.simulate --seed 4711 --shrink
"""

from __future__ import annotations

import argparse
import gc
import logging
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from itertools import count
from types import ModuleType

import structlog

from actornet.node import calm, catch_up, cores, upkeep
from actornet.replication import feed
from actornet.testing.simulation.schedule import Schedule, draw
from actornet.testing.simulation.world import World

_runs = count(1)

PACES: dict[ModuleType, dict[str, float]] = {
    cores: {"FLOWS_PER_FEED": 3},
    catch_up: {"SNAPSHOT_SLICES": 1},
    calm: {"CALM_MS": 5},
    feed: {"LINK_WINDOW_RECORDS": 6},
}
UPKEEP_PACE: dict[ModuleType, dict[str, float]] = {
    upkeep: {"AUDIT_RECORDS": 12, "AUDIT_S_MIN": 0.01, "SNAPSHOT_RECORDS": 30, "SNAPSHOT_S_MIN": 0.02},
}
"""What takes nodes thousands of records, or a second, takes simulated ones no more than this: their lives are short."""

COLLECT_EVERY = 20
"""A deployment that has ended is a few objects in cycles, and megabytes of tables that the collector knows nothing of."""


def simulate(schedule: Schedule, trace: list[str] | None = None) -> World:
    """One life of a deployment. Raises Violation, whose text begins with the guarantee that was broken."""
    with paced(with_upkeep=schedule.upkeep) if schedule.paced else nullcontext():
        return _simulate(schedule, trace)


@contextmanager
def paced(*, with_upkeep: bool = False) -> Iterator[None]:
    """Nodes come to what takes them long within a simulated life."""
    paces = PACES | UPKEEP_PACE if with_upkeep else PACES
    before = {module: {name: getattr(module, name) for name in limits} for module, limits in paces.items()}
    try:
        for module, limits in paces.items():
            vars(module).update(limits)
        yield
    finally:
        for module, limits in before.items():
            vars(module).update(limits)


def _simulate(schedule: Schedule, trace: list[str] | None) -> World:
    world = World(schedule, trace)
    try:
        world.run()
    finally:
        for node in world.nodes.values():
            node.kill("the end")
        if next(_runs) % COLLECT_EVERY == 0:
            gc.collect()
    return world


def fails(schedule: Schedule) -> str:
    """Why the simulation fails; empty if it does not."""
    try:
        simulate(schedule)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def shrink(schedule: Schedule) -> Schedule:
    """The schedule with as few events as still break the same guarantee."""

    def kind(failure: str) -> str:
        return ":".join(failure.split(":")[:2])

    broken = kind(fails(schedule))
    size = max(1, len(schedule.events) // 2)
    while True:
        at, shorter = 0, False
        while at < len(schedule.events):
            candidate = schedule.without(set(range(at, at + size)))
            if kind(fails(candidate)) == broken:
                schedule, shorter = candidate, True
            else:
                at += size
        if size > 1:
            size //= 2
        elif not shorter:
            return schedule


def quiet() -> None:
    """Nodes' own log lines say nothing here; the trace does."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))


def explain(schedule: Schedule) -> str:
    """The course of a simulation in readable lines."""
    trace: list[str] = []
    try:
        simulate(schedule, trace)
    except Exception as error:
        trace.append(f"{type(error).__name__}: {error}")
    settings = f"durability {schedule.durability}, without backup {schedule.without_backup}, cores {schedule.cores}"
    settings += ", with a witness" if schedule.witness else ""
    settings += f", {schedule.nodes} nodes, silent for {set(schedule.silence_ms[: schedule.nodes])} ms at most"
    settings += f", {schedule.nf}" + (", flows are idle" if schedule.idles else "")
    return "\n".join([f"seed {schedule.seed}: {settings}", *trace])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m actornet.testing.simulate", description=__doc__)
    parser.add_argument("--seeds", type=int, default=1000, help="how many simulations")
    parser.add_argument("--seed", type=int, help="this one alone, with its trace")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--shrink", action="store_true", help="leave out what the failure does not take")
    options = parser.parse_args(arguments)
    quiet()
    if options.seed is not None:
        schedule = draw(options.seed)
        if options.shrink and fails(schedule):
            schedule = shrink(schedule)
        print(explain(schedule))
        return 1 if fails(schedule) else 0
    begun, seen = time.monotonic(), Counter[str]()
    for seed in range(options.first, options.first + options.seeds):
        failure = fails(draw(seed))
        if failure:
            print(f"seed {seed} fails: {failure}")
            schedule = shrink(draw(seed)) if options.shrink else draw(seed)
            print(explain(schedule))
            return 1
        seen["simulations"] += 1
    print(f"{options.seeds} simulations, no violation, {time.monotonic() - begun:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
