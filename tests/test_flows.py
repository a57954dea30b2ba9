"""The flows of a core: those from the log, and what becomes of all when the core goes."""

from __future__ import annotations

import asyncio
import gc
from typing import Any, ClassVar

import pytest

from actornet import FORWARD, FiveTuple, FlowActor, Packet
from actornet.errors import StateError, UsageError
from actornet.flow import KeyState
from tests.test_core import Bench, Pass, SlowLink, Wait, packet

FLOW = FiveTuple(17, "10.0.0.2", 1000, "198.51.100.1", 53)
KEYS = [KeyState(FLOW, "lan", False, True), KeyState(FLOW.reversed(), "wan", ["lan"], True)]
MINUTE_NS = 60 * 10**9


def test_a_flow_that_does_not_fit_is_counted_and_leaves_nothing() -> None:
    """G6: a flow from the log is there as a whole or not at all."""
    node = Bench(Pass, flows_max=2)
    node.lan_in(packet(1, port=2000))
    node.core.restore(FLOW, "lan", 7, 0, [], KEYS, MINUTE_NS)
    assert node.core.entries == 1 and node.count("live_flows") == 1
    assert node.count("flow_table_full") == 1 and node.count("flows_restored") == 0
    node.lan_in(packet(1, port=3000), packet(1))
    node.core.restore(FLOW.reversed(), "wan", 8, 0, [], KEYS[1:], MINUTE_NS)
    assert node.core.entries == 2 and node.count("flow_table_full") == 3
    assert len(node.core.actors()) == 2


def test_a_record_that_does_not_fit_the_node_leaves_nothing() -> None:
    """G6."""
    node = Bench(Pass)
    with pytest.raises(UsageError, match="no port is named 'dmz'"):
        node.core.restore(FLOW, "lan", 7, 0, [], [KEYS[0], KeyState(FLOW, "dmz", False, True)], MINUTE_NS)
    assert node.core.entries == 0 and node.count("live_flows") == 0 and node.core.actors() == []


def test_a_flow_from_the_log_replaces_one_whose_handler_waits() -> None:
    """G6: the handler ends, its packets never leave, and who waits for it is told."""
    node, ended, told = Bench(Waiting), Waiting.ended, list[Any]()
    ended.clear()
    node.lan_in(packet(1), packet(2), packet(3))
    node.core.tell(FLOW, "hello", told.append)
    node.core.restore(FLOW, "lan", 7, 0, [], KEYS, MINUTE_NS)
    assert node.core.suspended == 0 and node.core.on_loop == 0 and node.count("held_fenced") == 3
    assert ended == [1] and [type(error) for error in told] == [UsageError]
    Waiting.gates[-1].set_result(None)
    node.wait()
    assert node.out() == [] and [actor.incarnation for actor in node.core.actors()] == [7]
    node.core.forget(FLOW, "lan")
    assert node.core.entries == 0


class Waiting(FlowActor):
    ended: ClassVar[list[int]] = []
    gates: ClassVar[list[asyncio.Future[Any]]] = []

    async def on_packet(self, packet: Packet) -> Any:
        Waiting.gates.append(asyncio.get_running_loop().create_future())
        try:
            await Waiting.gates[-1]
        finally:
            Waiting.ended.append(1)
        return FORWARD


class Mortal(Wait):
    gone: ClassVar[list[int]] = []

    def __del__(self) -> None:
        Mortal.gone.append(1)


def test_a_core_that_goes_frees_its_flows() -> None:
    """Waiting ones with their mailboxes too, although nobody closed them; what wakes them later finds nothing."""
    node = Bench(Mortal)
    node.lan_in(packet(1), packet(2, port=2000), packet(3, port=2000))
    gate = Wait.gates[-1]
    loop = node.loop
    kept = node.core.actors()[0]
    del node
    gc.collect()
    assert len(Mortal.gone) == 0, "one is kept by the test, and the other's handler waits for a gate that may open"
    gate.set_result(None)
    loop.call_later(0, loop.stop)
    loop.run_forever()
    loop.close()
    with pytest.raises(RuntimeError, match="this flow is closed"):
        _ = kept.flow
    del gate, kept
    Wait.gates.clear()
    gc.collect()
    assert len(Mortal.gone) == 2


def test_state_that_cannot_be_saved_fails_its_flow_only() -> None:
    class Careless(FlowActor):
        count: int = 0

        def on_packet(self, packet: Packet) -> Any:
            self.count = object() if packet.payload == b"\x09" else self.count + 1  # type: ignore[assignment]
            return FORWARD

    node = Bench(Careless, link=SlowLink())
    node.lan_in(packet(1), packet(9), packet(1, port=2000))
    assert len(node.out()) == 2 and node.count("handler_error") == 1 and node.count("live_flows") == 1
    error = node.errors[0][2]
    assert isinstance(error, StateError) and str(error).startswith("Careless.count: expected int, got object")


class Evicts(FlowActor):
    """Its port says how long it may be idle."""

    evict = True
    closed: ClassVar[list[int]] = []

    def on_open(self, packet: Packet) -> Any:
        self.idle_s = float(packet.source_port)
        self.bind(packet.flow.reversed())

    def on_packet(self, packet: Packet) -> Any:
        return FORWARD

    def on_close(self) -> None:
        self.closed.append(self.flow.source_port)


def test_a_full_table_evicts_who_is_nearest_to_its_time_out() -> None:
    """64 entries, room for 8 kept free before a flow opens: 29 of two keys fit."""
    Evicts.closed.clear()
    node = Bench(Evicts, flows_max=64)
    node.lan_in(*[packet(1, 5000 + n) for n in range(29)])
    assert Evicts.closed == [] and node.core.entries == 58
    node.lan_in(packet(2, 5000), after_s=27.5)  # used again, so that it is nearest to its end no more
    node.lan_in(*[packet(1, 9000 + n) for n in range(5)])
    assert node.count("flows_evicted") == 5 and sorted(Evicts.closed) == [5001, 5002, 5003, 5004, 5005]
    for n in range(1000):
        node.lan_in(packet(1, 100 + n))
    assert node.core.entries <= 58 and node.count("flow_table_full") == 0 and not node.errors
    survivors = {actor.flow.source_port for actor in node.core.actors()}
    assert {5000, *range(9000, 9005)} <= survivors, "a flood of flows with short time-outs evicts itself"
    assert node.count("flows_opened") == 1034 == len(Evicts.closed) + len(survivors)


def test_without_eviction_new_flows_are_dropped() -> None:
    node = Bench(Pass, flows_max=4)
    node.lan_in(*[packet(1, 5000 + n) for n in range(9)])
    assert node.count("flow_table_full") == 5 and node.count("flows_evicted") == 0


class EvictsWaiting(Evicts):
    evict = True

    async def on_packet(self, packet: Packet) -> Any:  # type: ignore[override]
        await asyncio.get_running_loop().create_future()


def test_a_flow_whose_handler_waits_is_not_evicted() -> None:
    Evicts.closed.clear()
    node = Bench(EvictsWaiting, flows_max=16)
    node.lan_in(*[packet(1, 5000 + n) for n in range(12)])
    assert node.count("flows_evicted") == 0 and node.count("flow_table_full") > 0 and Evicts.closed == []


class Cyclic(FlowActor):
    _itself: Any = None

    def on_packet(self, packet: Packet) -> Any:
        self._itself = self
        return FORWARD


def test_the_collector_sees_flows_only_after_they_have_closed() -> None:
    """A live flow is no garbage; a closed one that refers to itself is."""
    node = Bench(Cyclic)
    node.lan_in(*[packet(1, 1000 + n) for n in range(10)])
    assert not any(map(gc.is_tracked, node.core.actors()))
    kept = node.core.actors()[0]
    assert node.core.close_all() == 0
    assert gc.is_tracked(kept)
    del kept
    gc.collect()
    assert not [one for one in gc.get_objects() if isinstance(one, Cyclic)]
    node.lan_in(packet(1))
    del node
    gc.collect()  # the core, and with it
    gc.collect()  # its flows
    assert not [one for one in gc.get_objects() if isinstance(one, Cyclic)]
