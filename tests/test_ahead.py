"""Memory for flows is backed by a thread beside the core's, which would stand still meanwhile."""

from __future__ import annotations

import resource
import time

from actornet import FORWARD, FlowActor, Packet
from actornet.engine.ahead import MemoryAhead
from actornet.engine.core import Core
from actornet.ports.memory import MemoryPort
from tests import frames

FLOWS_MAX = 1 << 20
PAGES_MIN = 5
"""Of 2 MiB: buckets for a million keys, and entries for the first 65,536."""


class Forwarder(FlowActor):
    def on_packet(self, packet: Packet) -> object:
        return FORWARD


def new_core() -> Core:
    Forwarder.prepare()
    return Core(Forwarder, [MemoryPort("lan"), MemoryPort("wan")], flows_max=FLOWS_MAX)


def pages_left(core: Core) -> int:
    pages = 0
    while core.back_memory():
        pages += 1
    return pages


def test_a_core_with_nothing_to_do_backs_no_memory() -> None:
    """It would be deaf for milliseconds: just when it has become active, and the first packets come."""
    core, idle = new_core(), new_core()
    for _ in range(100):
        idle.breathe()
    assert pages_left(idle) == pages_left(core) > PAGES_MIN


def await_pages(ahead: MemoryAhead, pages: int) -> None:
    deadline = time.monotonic() + 20
    while ahead.pages < pages:
        assert time.monotonic() < deadline, f"{ahead.pages} of {pages} pages were backed"
        time.sleep(0.01)


def test_the_thread_backs_what_will_be_needed_and_goes_on_as_flows_come() -> None:
    core = new_core()
    pages = pages_left(new_core())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    ahead = MemoryAhead(core)
    await_pages(ahead, pages)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt >= before + pages
    lan = core.ports[0]
    for host in range(200):
        lan.feed([(0, frames.udp(f"10.0.{host}.9", port, "192.0.2.1", 53)) for port in range(1, 301)])
        core.breathe()
    assert core.count()["live_flows"] == 60_000
    await_pages(ahead, pages + 2)
    ahead.close()
    core.breathe()
    assert pages_left(core) <= 3, "half as much again as is backed ahead is missing at most"
