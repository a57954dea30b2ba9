"""Thespian actors on a core: they reach its owners and its flows."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from thespian.actors import Actor, ActorSystem, PoisonMessage

from actornet import FORWARD, FiveTuple, FlowActor, Owner, Packet, Struct
from actornet.core_system import CoreSystem, OwnerMessage
from actornet.embedded import Embedded
from actornet.ports.memory import MemoryPort
from tests import frames

FLOW = FiveTuple(17, "10.0.0.2", 1000, "198.51.100.1", 53)


class Total(Struct):
    packets: int = 0


class Tally(Owner[Total]):
    def add(self, packets: int) -> int:
        if packets < 0:
            raise ValueError("packets cannot be taken back")
        self.state.packets += packets
        return self.state.packets


class Counted(FlowActor):
    tally = Tally.named("tally")
    seen: int = 0

    async def on_packet(self, packet: Packet) -> Any:
        await self.tally.add(1)
        self.seen += 1
        return FORWARD

    async def on_message(self, message: Any) -> Any:
        if message == "wait":
            await asyncio.sleep(0.01)
        if message == "fail":
            raise ValueError("as told")
        if message == "close":
            self.close()
            return None
        return (message, self.seen)


@pytest.fixture
def core(tmp_path: Any) -> Iterator[CoreSystem]:
    embedded = Embedded(Counted, [MemoryPort("lan"), MemoryPort("wan")], log_directory=str(tmp_path / "log"))
    yield CoreSystem(embedded)
    embedded.finish()


def feed(core: CoreSystem, packets: int) -> None:
    lan = core.embedded.core.ports[0]
    assert isinstance(lan, MemoryPort)
    lan.feed([(0, frames.udp("10.0.0.2", 1000, "198.51.100.1", 53))] * packets)
    core.run_burst()


class Bookkeeper(Actor):  # type: ignore[misc]
    """Asks the owner on behalf of who asks it."""

    def receiveMessage(self, message: Any, sender: Any) -> None:
        if isinstance(message, tuple) and message[0] == "book":
            self.client = sender
            self.send(message[1], OwnerMessage("add", (message[2],)))
        elif not isinstance(message, str):
            self.send(self.client, ("booked", message))


def test_an_ordinary_actor_reaches_an_owner(core: CoreSystem) -> None:
    """G2: through the same mailbox as the flows; the message is in the log."""
    system = ActorSystem(systemBase=core, transientUnique=True)
    feed(core, 2)
    keeper = system.createActor(Bookkeeper)
    booked = system.ask(keeper, ("book", core.address_of_owner("tally"), 5), timedelta(seconds=1))
    assert booked == ("booked", 7)
    assert core.embedded.journal.log is not None
    assert core.embedded.journal.log.last_lsn == core.embedded.journal.lsn, "the reply was committed first (G3)"
    system.shutdown()


class Asking(FlowActor):
    """Asks for every packet, and changes nothing of its own."""

    tally = Tally.named("tally")

    async def on_packet(self, packet: Packet) -> Any:
        await self.tally.add(1)
        return FORWARD


def test_a_flow_may_ask_for_every_packet(tmp_path: Any) -> None:
    """G5: recorded replies are bounded, because a flow that asks again and again is saved now and then."""
    embedded = Embedded(Asking, [MemoryPort("lan"), MemoryPort("wan")], log_directory=str(tmp_path / "log"))
    for _ in range(10):
        feed(CoreSystem(embedded), 30)
    counts = embedded.counters()
    assert counts["asks"] == 300 and counts["handler_error"] == 0
    assert sum(map(len, embedded.journal.replica.asks.values())) <= 32
    embedded.finish()


def test_an_owners_error_and_a_wrong_message_come_back_as_poison(core: CoreSystem) -> None:
    system = ActorSystem(systemBase=core, transientUnique=True)
    for message in (OwnerMessage("add", (-1,)), OwnerMessage("subtract", (1,)), "add"):
        answer = system.ask(core.address_of_owner("tally"), message, timedelta(seconds=1))
        assert isinstance(answer, PoisonMessage)
    assert "taken back" in str(
        system.ask(core.address_of_owner("tally"), OwnerMessage("add", (-1,)), timedelta(seconds=1)).details
    )
    system.shutdown()


def test_a_flow_actor_answers_in_turn_with_its_packets(core: CoreSystem) -> None:
    """G1: messages wait while a handler waits, and see its effect."""
    system = ActorSystem(systemBase=core, transientUnique=True)
    feed(core, 3)
    flow = core.address_of_flow(FLOW)
    assert system.ask(flow, "hello", timedelta(seconds=1)) == ("hello", 3)
    assert system.ask(flow, "wait", timedelta(seconds=1)) == ("wait", 3)
    assert isinstance(system.ask(core.address_of_flow(FLOW.reversed()), "hello", timedelta(seconds=1)), PoisonMessage)
    system.tell(flow, "close")
    core.run_burst()
    assert core.embedded.counters()["live_flows"] == 0
    system.shutdown()


def test_a_flow_whose_message_handler_fails_is_closed_and_the_asker_told(core: CoreSystem) -> None:
    system = ActorSystem(systemBase=core, transientUnique=True)
    feed(core, 1)
    answer = system.ask(core.address_of_flow(FLOW), "fail", timedelta(seconds=1))
    assert isinstance(answer, PoisonMessage) and "as told" in str(answer.details)
    assert core.embedded.counters()["live_flows"] == 0 and core.embedded.counters()["handler_error"] == 1
    system.shutdown()
