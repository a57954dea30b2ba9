"""Flows whose handlers wait, when the core stops."""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar

from actornet import FORWARD, FlowActor, Packet
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
