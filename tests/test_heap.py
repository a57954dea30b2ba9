"""Python's own memory in huge pages. Each test has a process of its own, as there is no way back."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PRELUDE = """
import gc, mmap, resource
from actornet.engine.heap import arenas, use_huge_pages

def resident_mb():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * mmap.PAGESIZE / 1e6

def actors(count):
    return [(index, [index]) for index in range(count)]
"""


def run(code: str) -> str:
    """What a process prints that runs this."""
    environment = os.environ | {"PYTHONMALLOC": "pymalloc"}
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + code], capture_output=True, text=True, env=environment, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_objects_lie_in_arenas_that_come_back_when_they_go() -> None:
    """G8: memory that is given back is used again, or is nobody's; what was there before stays with its allocator."""
    print_ = run("""
before = actors(50_000)
assert use_huge_pages() and use_huge_pages() and arenas() == 0
for _ in range(3):
    here = actors(300_000)
    assert all(one == (index, [index]) for index, one in enumerate(here))
    most, used_mb = arenas(), resident_mb()
    del here
    gc.collect()
    assert most > 30 and arenas() < most / 10, (most, arenas())
    assert resident_mb() < used_mb - 30
    print(most)
del before
gc.collect()
assert all(one == (index, [index]) for index, one in enumerate(actors(100_000)))
""")
    assert len(set(print_.split())) <= 2, "the same arenas, again and again"


def test_without_the_addresses_all_is_as_it_was() -> None:
    run("""
resource.setrlimit(resource.RLIMIT_AS, (4 << 30, resource.RLIM_INFINITY))
assert not use_huge_pages()
assert len(actors(300_000)) == 300_000 and arenas() == 0
""")


def test_a_thread_beside_the_core_backs_what_comes_next() -> None:
    """Who takes an arena then waits for no page to be cleared."""
    run("""
from actornet import FORWARD, FlowActor
from actornet.engine.core import Core
from actornet.ports.memory import MemoryPort

class Forwarder(FlowActor):
    def on_packet(self, packet):
        return FORWARD

assert use_huge_pages()
Forwarder.prepare()
core = Core(Forwarder, [MemoryPort("lan"), MemoryPort("wan")], flows_max=1024)
wanted = []
core.wants_memory = lambda: wanted.append(1)
while core.back_memory():
    pass
core.breathe()
assert not wanted, "enough is backed"
begun, pages, kept = arenas(), 0, []
while arenas() < begun + 60:
    kept.append(actors(5_000))
    core.breathe()
    if wanted:
        wanted.clear()
        while core.back_memory():
            pages += 1
assert abs(pages - 30) <= 2, pages
""")


@pytest.mark.skipif(
    not os.path.exists("/sys/kernel/mm/transparent_hugepage/enabled"), reason="this kernel has no huge pages"
)
def test_the_pages_are_huge() -> None:
    run("""
with open("/sys/kernel/mm/transparent_hugepage/enabled") as file:
    offered = "[never]" not in file.read()
use_huge_pages()
here = actors(300_000)
with open("/proc/self/smaps_rollup") as file:
    huge_kb = sum(int(line.split()[1]) for line in file if line.startswith("AnonHugePages"))
assert huge_kb > 20_000 or not offered, huge_kb
""")
