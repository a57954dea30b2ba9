"""Flows whose handlers wait, when the core stops."""

from __future__ import annotations

import asyncio
import time
from typing import Any, ClassVar

import pytest

from actornet import DROP, FORWARD, FiveTuple, FlowActor, Packet
from actornet.errors import UsageError
from actornet.limits import FLOW_TASKS_MAX
from tests import frames
from tests.test_core import Bench, packet, payloads


class Slow(FlowActor):
    gates: ClassVar[list[asyncio.Future[Any]]] = []
    closed: ClassVar[list[str]] = []

    async def on_packet(self, packet: Packet) -> Any:
        Slow.gates.append(asyncio.get_running_loop().create_future())
        await Slow.gates[-1]
        return FORWARD

    def on_close(self) -> None:
        Slow.closed.append(str(self.flow))


def test_a_flow_whose_handler_waits_closes_when_it_has_completed() -> None:
    node = Bench(Slow)
    Slow.gates.clear()
    Slow.closed.clear()
    node.lan_in(packet(1), packet(2, port=2000))
    assert node.core.close_all() == 2 and Slow.closed == [] and node.core.suspended == 2
    assert node.core.close_all() == 2, "it can be repeated"
    for gate in Slow.gates:
        gate.set_result(None)
    node.wait()
    assert payloads(node.out()) == [1, 2] and len(Slow.closed) == 2
    assert node.core.close_all() == 0 and node.core.entries == 0 and node.count("flows_closed") == 2


def test_packets_that_waited_for_a_closing_flow_open_it_anew() -> None:
    node = Bench(Slow)
    Slow.gates.clear()
    node.lan_in(packet(1), packet(2))
    assert node.core.close_all() == 1
    for number in range(2):
        Slow.gates[number].set_result(None)
        node.wait()
        assert node.core.close_all() == (1 if number == 0 else 0)
    assert payloads(node.out()) == [1, 2] and node.count("flows_opened") == 2


def test_a_handler_that_awaits_what_cannot_be_awaited_fails_alone() -> None:
    class Odd:
        def __await__(self) -> Any:
            yield "tomorrow"

    class Confused(FlowActor):
        async def on_packet(self, packet: Packet) -> Any:
            if packet.payload[0] == 1:
                await Odd()
            await asyncio.sleep(0)
            return FORWARD

    node = Bench(Confused)
    node.lan_in(packet(1), packet(2), packet(3, port=2000))
    for _ in range(4):
        node.wait()
    assert sorted(payloads(node.out())) == [2, 3] and node.core.suspended == 0 and node.core.on_loop == 0
    assert "'tomorrow'" in str(node.errors[0][2]) and node.count("handler_error") == 1


class Stuck(FlowActor):
    """Waits for what never comes, if the payload says so."""

    deadline_s = 0.1  # a sanitized core on a busy machine takes 0.02 for the packets alone
    closed: ClassVar[list[int]] = []

    async def on_packet(self, packet: Packet) -> Any:
        if packet.payload[0] % 2 == 0:
            await asyncio.get_running_loop().create_future()
        return FORWARD

    def on_close(self) -> None:
        Stuck.closed.append(1)


class StuckOpen(Stuck):
    fail = FORWARD


def past_deadline(node: Bench, turns: int = 1) -> None:
    for _ in range(turns):
        time.sleep(0.12)
        node.turn()


@pytest.mark.parametrize(("nf", "passed"), [(Stuck, [7, 3]), (StuckOpen, [7, 2, 3])])
def test_a_wait_beyond_the_deadline_fails_its_flow_by_its_policy(nf: type[FlowActor], passed: list[int]) -> None:
    """G1: what waited behind the failed packet opens the flow anew, in order; the flow that failed is named."""
    node = Bench(nf)
    Stuck.closed.clear()
    node.lan_in(packet(2), packet(3), packet(7, port=2000))
    assert payloads(node.out()) == [7]
    node.turn()
    assert node.core.suspended == 1, "before the deadline nothing happens"
    past_deadline(node)
    assert payloads(node.out()) == passed[1:]
    assert node.count("deadline_passed") == 1 and node.core.suspended == node.core.on_loop == 0
    ((flow, handler, error),) = node.errors
    assert (flow, handler, type(error)) == (
        FiveTuple(17, "10.0.0.2", 1000, "198.51.100.1", 53),
        "on_packet",
        TimeoutError,
    )
    assert (node.count("handler_error"), node.count("failed_open")) == ((0, 1) if nf is StuckOpen else (1, 0))
    assert Stuck.closed == [1] and node.count("flows_opened") == 3


def test_a_handler_may_decide_itself_at_the_deadline_and_each_wait_has_its_own() -> None:
    class Own(FlowActor):
        deadline_s = 0.1

        async def on_packet(self, packet: Packet) -> Any:
            for _ in range(2):
                try:
                    await asyncio.sleep(30)
                except TimeoutError:
                    continue
                return DROP
            await asyncio.sleep(0)
            return FORWARD

    node = Bench(Own)
    node.lan_in(packet(1))
    past_deadline(node)
    assert node.core.suspended == 1 and node.out() == []
    past_deadline(node)
    node.wait()
    assert payloads(node.out()) == [1] and node.count("deadline_passed") == 2 and not node.errors


def test_deadlines_of_many_waits_end_in_order_whichever_were_answered() -> None:
    node = Bench(StuckOpen)
    node.lan_in(*(packet(2, port=1000 + i) for i in range(20)))
    waiting = {actor.flow.source_port: actor for actor in node.core.actors()}
    for port in (1000, 1007, 1019):
        node.core.forget(waiting[port].flow, "lan")
    past_deadline(node)
    assert node.count("deadline_passed") == 17 == len(node.out()) and node.core.suspended == 0


def test_fail_open_and_fail_closed_for_a_handler_that_raises() -> None:
    class Broken(FlowActor):
        def on_packet(self, packet: Packet) -> Any:
            raise ValueError("no")

    class BrokenOpen(Broken):
        fail = FORWARD

    for nf, passed in ((Broken, []), (BrokenOpen, [1, 2])):
        node = Bench(nf)
        node.lan_in(packet(1), packet(2))
        assert payloads(node.out()) == passed and len(node.errors) == 2
        assert node.count("handler_error") + node.count("failed_open") == 2 and node.core.entries == 0


def test_policies_are_checked_when_the_class_is_defined() -> None:
    with pytest.raises(UsageError, match="fail must be DROP"):
        type("A", (FlowActor,), {"fail": "open"})
    with pytest.raises(UsageError, match="deadline_s must be positive"):
        type("A", (FlowActor,), {"deadline_s": 0})


def test_a_connection_sees_both_directions_from_the_first_packet_on() -> None:
    class Both(FlowActor):
        connection = True
        seen: ClassVar[list[tuple[str, str]]] = []

        def on_open(self, packet: Packet) -> Any:
            return DROP if packet.payload[0] == 9 else None

        def on_packet(self, packet: Packet) -> Any:
            Both.seen.append((packet.direction.name, packet.port))
            return FORWARD

    node = Bench(Both)
    node.lan_in(packet(1))
    node.wan_in(frames.udp("198.51.100.1", 53, "10.0.0.2", 1000, b"r"))
    assert (
        Both.seen == [("ORIGINAL", "lan"), ("REPLY", "wan")] and len(node.core.actors()) == 1 and node.core.entries == 2
    )
    node.lan_in(packet(9, port=4000))
    assert node.count("flows_refused") == 1 and node.core.entries == 2, "a refused connection leaves nothing"


class Leaves(FlowActor):
    """Begins tasks, each of which begins another, and waits for none."""

    ended: ClassVar[list[int]] = []

    def on_packet(self, packet: Packet) -> Any:
        asyncio.create_task(self.run(packet.source_port, 1))  # noqa: RUF006
        return FORWARD

    async def run(self, number: int, children: int) -> None:
        if children:
            asyncio.create_task(self.run(number, children - 1))  # noqa: RUF006
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            Leaves.ended.append(number)
            raise


class LeavesAsync(Leaves):
    async def on_packet(self, packet: Packet) -> Any:
        return super().on_packet(packet)


@pytest.mark.parametrize("nf", [Leaves, LeavesAsync])
def test_tasks_that_handlers_leave_behind_end_with_their_flow(nf: type[Leaves]) -> None:
    node = Bench(nf)
    Leaves.ended.clear()
    node.lan_in(packet(1), packet(2), packet(3, port=2000))
    node.wait()
    assert len(asyncio.all_tasks(node.loop)) == 6
    for _ in range(2):
        node.lan_in(packet(4, port=2000), after_s=50)
        node.wait()
    assert node.count("flows_closed") == 1 and Leaves.ended == [1000] * 4
    assert len(asyncio.all_tasks(node.loop)) == 6 and node.count("live_flows") == 1
    node.core.close_all()
    node.wait()
    assert not asyncio.all_tasks(node.loop)


def test_a_flow_has_so_many_tasks_and_no_more() -> None:
    node = Bench(Leaves)
    Leaves.ended.clear()
    for number in range(FLOW_TASKS_MAX):
        node.lan_in(packet(number % 256))
    assert not node.errors
    node.lan_in(packet(0, port=2000), packet(0))
    ((flow, _, error),) = node.errors
    assert (
        flow is not None and flow.source_port == 1000 and f"{FLOW_TASKS_MAX} asyncio tasks of this flow" in str(error)
    )
    node.wait()
    assert {task for task in asyncio.all_tasks(node.loop) if not task.done()} and node.count("live_flows") == 1
    node.core.close_all()
    node.wait()
    assert not asyncio.all_tasks(node.loop)
