"""How an owner system treats cores that begin: they get their flows by and by, and a backup counts once they have them."""

from __future__ import annotations

import pytest
from msgspec.msgpack import encode

from actornet.engine.core import Core
from actornet.engine.five_tuple import FiveTuple
from actornet.engine.ring import ControlPage, Ring
from actornet.log.record import FlowBody
from actornet.node import cores, exchange
from actornet.node.core_worker import RingLink
from actornet.node.exchange import Attached, Attaching, CloseRequest, Forget, Restore
from actornet.ports.memory import MemoryPort
from actornet.testing.simulation.node import SimulatedCore
from actornet.testing.simulation.schedule import Schedule
from actornet.testing.simulation.ticketing import Ticketing
from actornet.testing.simulation.world import World


@pytest.mark.parametrize("late", [False, True])
def test_a_backup_whose_cores_do_not_hold_the_flows_does_not_count(monkeypatch: pytest.MonkeyPatch, late: bool) -> None:
    """G6: neither one that gets a snapshot, nor one that comes back with a log of its own."""
    monkeypatch.setattr(cores, "FLOWS_PER_FEED", 3)
    world = World(Schedule(11, "applied", "solo", 2, ()))
    a, b = world.a, world.b
    try:
        a.launch("primary")
        if late:
            b.launch("backup")
            while not world.in_sync or world.guarantees.emitted < 50:
                world.go()
            b.kill("killed")
            world.keep_down(b, 10)
        while world.guarantees.emitted < 200:
            world.go()
        world.keep_down(b, 0)
        b.launch("backup")
        b.frozen_until_ns["cores"] = 1 << 62
        for _ in range(100):
            world.go()
            assert not world.in_sync and a.leads
        b.frozen_until_ns["cores"] = 0
        for _ in range(100):
            world.go()
        assert world.in_sync and a.leads
        assert a.system is not None
        held = sum(len(core.core.actors()) for core in b.cores if core is not None)
        assert held >= len(a.system.journal.replica.flows) - 4, "but for records that are under way"
    finally:
        a.kill("the end")
        b.kill("the end")


def test_what_a_core_is_told_while_it_begins_counts() -> None:
    """G4, G6: a flow that closes before all others have been sent is none of its flows, nor what another process was sent."""
    world = World(Schedule(13, "applied", "solo", 1, ()))
    core = SimulatedCore(world.a, 0, 7)
    replies = world.a.fabric.replies[0]
    state = encode(((0,), [], int(1e15), 0))
    flows = [FiveTuple(17, "10.0.0.2", port, "198.51.100.1", 2) for port in (1, 2, 3)]
    messages = [Attaching(6), Restore(FlowBody(flows[0], 0, 1, 1, state)), Attached(6, 1), Attaching(7)]
    messages += [Restore(FlowBody(flow, 0, 1, 1, state)) for flow in flows[1:]]
    messages += [Forget(flows[1], 0), Attached(7, 5)]
    for message in messages:
        assert replies.push(exchange.encode(message))
    core.turn([])
    assert [actor.flow for actor in core.core.actors()] == [flows[2]] and core.link.attached


def test_a_core_that_begins_takes_its_flows_a_part_at_a_turn() -> None:
    """Its loop goes on: the monitor sees that it lives."""
    Ticketing.prepare()
    requests, replies = Ring.create("requests", 1 << 16), Ring.create("replies", 1 << 20)
    link = RingLink(requests, replies, Ticketing)
    core = Core(Ticketing, [MemoryPort("lan"), MemoryPort("wan")], flows_max=8192, link=link, virtual_time=True)
    link.core = core
    core.share(ControlPage.create(1), replies)
    assert replies.push(exchange.encode(Attaching(link.pid)))
    for port in range(1, 2001):
        flow = FiveTuple(17, "10.0.0.2", port, "198.51.100.1", 2)
        state = encode(((0,), [[flow, "lan", False, True]], int(1e15), 0))
        assert replies.push(exchange.encode(Restore(FlowBody(flow, 0, port, 1, state))))
    assert replies.push(exchange.encode(Attached(link.pid, 1)))
    core.breathe()
    assert 0 < core.count()["flows_restored"] < 500 and not link.attached
    for _ in range(20):
        core.breathe()
    assert core.count()["flows_restored"] == 2000 and link.attached


def test_a_core_that_stands_by_has_nothing_logged() -> None:
    """G4: a backup's records are the primary's, and one that has others ends rather than counts."""
    world = World(Schedule(12, "applied", "solo", 1, ()))
    a, b = world.a, world.b
    try:
        a.launch("primary")
        b.launch("backup")
        while not world.in_sync or world.guarantees.emitted < 50:
            world.go()
        assert a.system is not None
        saved = FlowBody.decode(next(iter(a.system.journal.replica.flows.values())))
        assert b.fabric.requests[0].push(
            exchange.encode(CloseRequest(saved.flow, saved.port, saved.incarnation, "idle"))
        )
        b.turn([[]])
        assert b.system is None and "core 0 stands by" in b.end
        assert a.leads and a.disk.end() >= b.disk.end(), "nothing of it came into the log"
    finally:
        a.kill("the end")
        b.kill("the end")
