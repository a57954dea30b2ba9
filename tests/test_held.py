"""Output behind the watermark: order, and when a flow is free again."""

from __future__ import annotations

import asyncio
import time
from typing import Any, ClassVar

import msgspec

from actornet import DROP, FORWARD, Chain, FlowActor, Owner, Packet, Struct
from actornet.engine.core import Core
from actornet.engine.flow_base import Ask
from actornet.engine.replies import VALUE
from actornet.limits import HELD_PACKETS_MAX, SETTLE_MS
from tests import frames
from tests.test_core import Bench, SlowLink, packet, payloads


class Count(FlowActor):
    """Counts the packets from inside and keeps them; replies are offloaded. 9 closes the flow."""

    count: int = 0

    def on_open(self, packet: Packet) -> None:
        self.bind(packet.flow.reversed())
        self.offload(FORWARD, packet.flow.reversed())

    def on_packet(self, packet: Packet) -> Any:
        self.count += 1
        if packet.payload[0] == 9:
            self.close()
        return DROP if packet.payload[0] == 0 else FORWARD


IDLE_S = 600.0  # longer than any flow is idle by default
REPLY = frames.udp("198.51.100.1", 53, "10.0.0.2", 1000, b"r")


def test_an_offload_waits_for_the_last_record_of_its_flow() -> None:
    """G3: also for one that was saved while an earlier one had not been committed, and held nothing."""
    node = Bench(Count, link=SlowLink())
    node.core.commit_to(0)
    node.lan_in(packet(0), packet(0))
    node.core.commit_to(1)
    node.turn()
    node.wan_in(REPLY)
    assert node.lan.take() == [] and node.core.held == 1
    node.core.commit_to(2)
    node.turn()
    assert len(node.lan.take()) == 1 and node.core.held == 0
    node.wan_in(REPLY)
    assert len(node.lan.take()) == 1 and node.count("held") == 1


def test_a_flow_that_closes_leaves_its_held_output_in_the_queue() -> None:
    """G3: what it sent leaves when its record is committed; its keys are free at once."""
    node = Bench(Count, link=SlowLink())
    node.core.commit_to(0)
    node.lan_in(packet(1), packet(9))
    assert node.core.entries == 0 and node.core.held == 2 and node.out() == []
    node.core.commit_to(2)
    node.turn()
    assert payloads(node.out()) == [1, 9] and node.core.held == 0


def test_a_flow_whose_output_waits_is_not_idle() -> None:
    """G1: were it closed, a next flow of its keys might live on another core, and overtake what waits here."""
    node = Bench(Count, link=SlowLink())
    node.core.commit_to(0)
    node.lan_in(packet(1))
    for _ in range(3):  # virtual time goes by packets of another flow
        node.lan_in(packet(1, 2000), after_s=IDLE_S)
    assert node.count("flows_closed") == 0 and node.core.held == 4
    node.core.commit_to(100)
    node.turn()
    assert len(node.out()) == 4
    node.lan_in(packet(1, 2000), after_s=IDLE_S)
    node.lan_in(packet(1, 2000), after_s=1)
    assert node.count("flows_closed") >= 1


def test_no_flow_is_opened_while_as_much_waits_as_may() -> None:
    """G3: what cannot leave is not decided about, and nothing is logged of it."""
    link = SlowLink()
    node = Bench(Count, link=link)
    node.core.commit_to(0)
    frame = packet(1)
    while node.core.held < HELD_PACKETS_MAX:
        node.lan_in(*[frame] * 1024)
    saved = len(link.saved)
    node.lan_in(packet(1, 2000), packet(1, 2000))
    assert (node.count("held_full"), node.count("flows_opened"), len(link.saved)) == (2, 1, saved)
    node.lan_in(packet(1))
    assert node.count("held_full") == 3 and node.core.held == HELD_PACKETS_MAX
    node.core.commit_to(1 << 40)
    node.turn()
    node.lan_in(packet(2, 2000))
    assert len(node.out()) == HELD_PACKETS_MAX + 1 and node.count("flows_opened") == 2 and node.core.held == 0


class Meter(Struct):
    taken: int = 0


class Desk(Owner[Meter]):
    def take(self) -> int:
        raise AssertionError("it is the link that answers")


class Metered(Count):
    """Asks for each packet from inside, and keeps nothing of that."""

    desk = Desk.named("desk")

    async def on_packet(self, packet: Packet) -> Any:
        await self.desk.take()
        return FORWARD


class AskedLink(SlowLink):
    def ask(self, actor: FlowActor, ask: Ask, args: tuple[Any, ...]) -> int:
        ask.answer(msgspec.msgpack.encode((VALUE, 1)))
        self.sequence += 1
        return self.sequence


def test_no_output_waits_for_the_record_that_says_how_often_a_flow_has_asked() -> None:
    """G3, G5: nothing depends on that; it is logged a moment later."""
    link = AskedLink()
    node = Bench(Metered, link=link)
    node.core.commit_to(0)
    node.lan_in(packet(1))
    node.core.commit_to(2)
    node.lan_in(packet(2))
    assert payloads(node.out()) == [1] and node.core.held == 1, "it waits for what was asked"
    node.core.commit_to(3)
    node.lan_in(packet(3, 2000), after_s=2 * SETTLE_MS / 1000)
    assert payloads(node.out()) == [2] and (link.sequence, len(link.saved)) == (6, 3)
    node.wan_in(REPLY)
    assert len(node.lan.take()) == 1, "the flow's offload does not wait"


class Caller(FlowActor):
    """Calls the outside world by asyncio, as soon as that may depend on what was logged; 2 calls nobody."""

    deadline_s = 0.05
    calls: ClassVar[list[int]] = []
    seen: int = 0

    async def on_packet(self, packet: Packet) -> Any:
        number = packet.payload[0]
        if number != 2:
            await self.committed()
            Caller.calls.append(number)
            await asyncio.sleep(0)
        self.seen = number
        return FORWARD


def test_a_call_to_the_outside_waits_for_what_it_depends_on() -> None:
    """G3: with what was logged before, a call is as much output as a packet; the flow's later packets stay behind it (G1)."""
    Caller.calls.clear()
    node = Bench(Caller, link=SlowLink())
    node.core.commit_to(0)
    node.lan_in(packet(1))
    node.wait()
    assert Caller.calls == [1], "there was nothing to depend on"
    node.lan_in(packet(3), packet(4), packet(2, 2000))
    node.wait()
    assert Caller.calls == [1] and node.out() == [] and node.core.suspended == 1
    node.core.commit_to(1)
    for _ in range(3):
        node.turn()
        node.wait()
    assert Caller.calls == [1, 3] and payloads(node.out()) == [1], "what 3 saved is the third record"
    node.core.commit_to(9)
    for _ in range(3):
        node.turn()
        node.wait()
    assert Caller.calls == [1, 3, 4] and sorted(payloads(node.out())) == [2, 3, 4] and node.core.suspended == 0


class Through(FlowActor):
    def on_packet(self, packet: Packet) -> Any:
        return FORWARD


def test_a_call_of_a_member_of_a_chain_waits_too() -> None:
    """G3."""
    Caller.calls.clear()
    node = Bench(Chain(Through, Caller), link=SlowLink())
    node.core.commit_to(0)
    node.lan_in(packet(2), packet(3))
    node.wait()
    assert Caller.calls == [] and node.core.suspended == 1
    node.core.commit_to(9)
    node.turn()
    node.wait()
    node.turn()
    assert Caller.calls == [3] and payloads(node.out()) == [2, 3] and not node.errors


def test_a_call_that_is_never_safe_is_not_made() -> None:
    """G3, G7: the handler gets its deadline's TimeoutError where it waits, and goes no further."""
    Caller.calls.clear()
    node = Bench(Caller, link=SlowLink())
    node.core.commit_to(0)
    node.lan_in(packet(2), packet(3))
    time.sleep(2 * Caller.deadline_s)
    node.turn()
    assert Caller.calls == [] and node.count("deadline_passed") == 1 and isinstance(node.errors[0][2], TimeoutError)
    node.core.commit_to(9)
    node.turn()
    assert Caller.calls == []


class SwiftLink(SlowLink):
    """From the third record on, each is committed at once, and with it all before."""

    core: Core | None = None

    def save(self, actor: FlowActor) -> int:
        sequence = super().save(actor)
        if sequence >= 3 and self.core is not None:
            self.core.commit_to(sequence)
        return sequence


def test_a_flow_that_opens_anew_stays_behind_what_its_predecessor_sent() -> None:
    """G1: although its own record is committed before the queue has been looked at."""
    link = SwiftLink()
    node = Bench(Count, link=link)
    link.core = node.core
    node.core.commit_to(0)
    node.lan_in(packet(9), packet(1))
    assert payloads(node.out()) == [9, 1] and node.core.held == 0
