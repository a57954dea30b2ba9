"""Exactly once (G5): what a flow asks again is answered from the log."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import pytest
from hypothesis import given, settings
from port_log import executed

from actornet import FORWARD, FlowActor, Owner, Packet, Struct, Verdict
from actornet.embedded import Embedded
from actornet.engine.asks import CLOSES, GOES_ON
from actornet.engine.five_tuple import FiveTuple, flow_key
from actornet.engine.records import checked
from actornet.engine.replies import ERROR, REPEATED
from actornet.limits import ASKS_OPEN_PER_FLOW_MAX, SETTLE_MS
from actornet.log.record import AskBody, FlowBody, decode
from actornet.ports.memory import MemoryPort
from actornet.replication.replica import AskRequest, Replica
from actornet.replication.replica_base import Asked
from tests import frames
from tests.ledger import (
    FLOW,
    FLOWS,
    SECOND,
    WAYS,
    Primary,
    backup_of,
    epoch_body,
    happen,
    load,
    outcome,
    pack,
    steps,
)

MS = 1_000_000

PAIR = b"\x92"
"""An array's head: what `flow_key` and a target lack to be decoded."""


@settings(max_examples=150, deadline=None)
@given(steps)
def test_what_is_asked_again_after_a_takeover_changes_nothing(history: list[Any]) -> None:
    """G5: whatever a flow asked since it was saved, the new primary answers from the log, with no state change."""
    primary = Primary()
    for step in history:
        happen(primary, step)
    replica = backup_of(primary)
    replica.begin_epoch(replica.epoch + 1, epoch_body(99), replica.time_ns)
    before = replica.state_hash()
    for key, recorded in replica.asks.items():
        flow, port = msgspec.msgpack.decode(PAIR + key, type=tuple[FiveTuple, int])
        for number, target, args, reply in recorded:
            owner, message = msgspec.msgpack.decode(PAIR + target)
            asked = AskRequest(flow, port, 1000, number, owner, message, args)
            again = reply if not replica.revocations or reply[1] == ERROR else bytes([reply[0], REPEATED]) + reply[2:]
            assert replica.execute_ask(asked.encoded(), replica.time_ns + 1) == (None, again)
    assert replica.state_hash() == before


def test_a_second_ask_gets_the_recorded_reply() -> None:
    """G5: the same number and message again, in the same or a later incarnation, is not executed again."""
    primary = Primary()
    first = primary.ask("allocate", FLOW, flow=FLOW)
    records = len(primary.log)
    assert primary.ask("allocate", FLOW, flow=FLOW) == first
    assert primary.ask("allocate", FLOW, flow=FLOW, incarnation=2) == first
    assert len(primary.log) == records
    assert primary.ask("allocate", FLOW, flow=FLOW, incarnation=2, number=2) != first
    assert len(primary.log) == records + 1


def test_other_flows_numbers_and_ports_are_others() -> None:
    """G5: flow, arriving port and number tell asks apart."""
    primary = Primary()
    ports = {primary.ask("allocate", FLOW, flow=flow, number=number)[1] for flow in FLOWS[:2] for number in (1, 2)}
    assert ports == {1, 2, 3, 4}
    record, reply = executed(primary.replica, AskRequest(FLOW, 2, 1, 1, "book", "allocate", pack(FLOW)), SECOND)
    assert record is not None and outcome(reply) == [0, None]


def test_a_flow_that_asks_otherwise_is_answered_anew() -> None:
    """G5: the recorded reply is for the same message and arguments only; the newer one replaces it."""
    primary = Primary()
    primary.ask("tag", "a", flow=FLOW)
    assert primary.ask("tag", "b", flow=FLOW, incarnation=2) == [0, ["a", "a'", "b", "b'"]]
    assert [args for _, _, args, _ in primary.replica.asks[flow_key(FLOW, 1)]] == [pack("b")]
    assert primary.ask("untag", "b", flow=FLOW, incarnation=2) == [0, ["a", "a'", "b'"]]
    assert primary.ask("untag", "b", flow=FLOW, incarnation=2, owner="nobody")[0] == 1
    backup_of(primary)


def test_a_sender_that_is_no_flow_is_never_deduplicated() -> None:
    primary = Primary()
    assert {primary.ask("allocate", FLOW)[1] for _ in range(4)} == {1, 2, 3, 4}
    assert primary.replica.asks == {}


def test_recorded_replies_go_when_the_flow_is_saved_or_closed() -> None:
    """G5: replies are kept from the ask until a saved state covers them, or the flow is closed."""
    primary = Primary()
    for number in (1, 2, 3):
        primary.ask("tag", f"{number}", flow=FLOW, number=number)
    primary.save(FLOW, 2)
    assert [number for number, *_ in primary.replica.asks[flow_key(FLOW, 1)]] == [3]
    assert FlowBody.decode(primary.replica.flows[flow_key(FLOW, 1)]).state == b"state 2"
    assert primary.ask("tag", "2", flow=FLOW, number=2)[:2] == [1, "OwnerError"]
    primary.save(FLOW, 3)
    assert primary.replica.asks == {}
    primary.ask("tag", "4", flow=FLOW, number=4)
    primary.close(FLOW)
    assert (primary.replica.asks, primary.replica.flows) == ({}, {})
    assert primary.ask("tag", "5", flow=FLOW, incarnation=2) == [
        0,
        [f"{n}{c}" for n in (1, 2, 3, 4, 5) for c in ("", "'")],
    ]
    backup_of(primary)


def test_what_an_older_incarnation_says_changes_nothing() -> None:
    """G5: late words of a flow's earlier incarnation are refused, or already known."""
    primary = Primary()
    primary.ask("tag", "a", flow=FLOW, incarnation=1)
    primary.ask("tag", "b", flow=FLOW, incarnation=2, number=2)
    records = len(primary.log)
    assert primary.ask("tag", "a", flow=FLOW, incarnation=1) == [0, ["a", "a'"]]
    assert primary.ask("tag", "c", flow=FLOW, incarnation=1, number=2) == [
        1,
        "OwnerError",
        "ask 2 comes from an incarnation of the flow that is gone",
    ]
    assert len(primary.log) == records
    primary.close(FLOW, incarnation=1)
    assert len(primary.replica.asks[flow_key(FLOW, 1)]) == 2
    primary.save(FLOW, 2, incarnation=2)
    primary.save(FLOW, 9, incarnation=1)
    primary.close(FLOW, incarnation=1)
    assert FlowBody.decode(primary.replica.flows[flow_key(FLOW, 1)]).asks == 2
    assert primary.ask("tag", "d", flow=FLOW, incarnation=1, number=9)[0] == 1
    backup_of(primary)


@pytest.mark.parametrize("way", WAYS)
def test_what_handlers_asked_that_have_ended_is_not_asked_again(way: Callable[[Replica, bytes], None]) -> None:
    """G5: a handler's first ask says how often the flow had asked before, and it goes on from there, wherever it goes on."""
    primary = Primary()
    primary.save(FLOW, 0)
    for number in (1, 2, 3):
        primary.ask("tag", "a", flow=FLOW, number=number)
    given = primary.ask("allocate", FLOW, flow=FLOW, number=4, packet=GOES_ON + (3).to_bytes(4, "big"))
    primary.ask("roll", flow=FLOW, number=5)
    replica = Replica(load)
    for data in primary.log:
        way(replica, data)
    for one in (primary.replica, replica, Replica.restore(replica.snapshot(), load)):
        key = flow_key(FLOW, 1)
        assert [number for number, *_ in one.asks[key]] == [4, 5]
        body = one.flow(key)
        assert body is not None and body.asks == 3 and FlowBody.decode(one.flows[key]).asks == 0
        assert not list(one.orphans()) and not list(one.closing())
    again = AskRequest(FLOW, 1, 1, 4, "book", "allocate", pack(FLOW), GOES_ON + (3).to_bytes(4, "big"))
    assert executed(replica, again, SECOND)[0] is None and outcome(executed(replica, again, SECOND)[1]) == given
    primary.save(FLOW, 5)
    assert not primary.replica.asks and primary.replica.flow(flow_key(FLOW, 1)) == FlowBody(FLOW, 1, 1, 5, b"state 5")


def test_what_a_snapshot_has_of_a_flows_asks_is_all_that_counts() -> None:
    """G4: a flow begins anew beside asks of one before it; who has it from a snapshot goes on as who saw all of it."""
    primary = Primary()
    primary.save(FLOW, 0)
    for number, before in ((4, 3), (5, 4)):
        primary.ask("roll", flow=FLOW, number=number, packet=GOES_ON + before.to_bytes(4, "big"))
    primary.ask("tag", "a", flow=FLOW, incarnation=2, packet=bytes(73))
    late = Replica.restore(primary.replica.snapshot(), load)
    assert [one.asks[flow_key(FLOW, 1)].before for one in (primary.replica, late)] == [0, 0]
    again = AskRequest(FLOW, 1, 2, 3, "book", "tag", pack("b"), GOES_ON + (2).to_bytes(4, "big"))
    for one in (primary.replica, late):
        executed(one, again, one.time_ns)
    assert late.snapshot() == primary.replica.snapshot() and late.state_hash() == primary.replica.state_hash()


def test_a_backup_is_told_how_often_a_flow_has_asked() -> None:
    """G5, G6: where a record does not say it, the ask does; no other does."""
    primary = Primary()
    primary.save(FLOW, 0)
    primary.ask("roll", flow=FLOW)
    primary.ask("roll", flow=FLOW, number=2, packet=CLOSES)
    primary.ask("roll", flow=FLOW, number=3, packet=CLOSES + (2).to_bytes(4, "big"))
    replica = Replica(load)
    told = [replica.apply_record(checked(data), data) for data in primary.log]
    assert told[-3:] == [None, None, Asked(flow_key(FLOW, 1), 2)]
    assert list(replica.closing()) == [(FLOW, 1)]


def test_who_goes_on_looks_at_the_flows_that_are_not_finished_and_no_others() -> None:
    """G5, G6: a takeover takes no longer because many flows have asked since they were saved."""
    primary = Primary()
    opening, closing = flow_key(FLOWS[1], 1), flow_key(FLOWS[2], 1)
    packet = bytes(73)
    primary.save(FLOW, 0)
    primary.save(FLOWS[2], 0)
    primary.ask("roll", flow=FLOW)
    primary.ask("roll", flow=FLOWS[1], packet=packet)
    primary.ask("roll", flow=FLOWS[1], number=2)
    primary.ask("roll", flow=FLOWS[2], packet=CLOSES)
    for one in (primary.replica, backup_of(primary), Replica.restore(primary.replica.snapshot(), load)):
        assert len(one.asks) == 3 and one.unfinished.keys() == {opening, closing}
        assert list(one.orphans()) == [(FLOWS[1], 1, packet)] and list(one.closing()) == [(FLOWS[2], 1)]
    primary.save(FLOWS[1], 2)
    primary.close(FLOWS[2])
    assert primary.replica.asks.keys() == {flow_key(FLOW, 1)} and not primary.replica.unfinished


def test_open_asks_of_a_flow_are_bounded() -> None:
    primary = Primary()
    for number in range(ASKS_OPEN_PER_FLOW_MAX):
        assert primary.ask("spend", 0, flow=FLOW, number=number + 1)[0] == 0
    refused = primary.ask("spend", 0, flow=FLOW, number=ASKS_OPEN_PER_FLOW_MAX + 1)
    assert refused == [1, "OwnerError", "the flow has 64 asks since it was last saved, the most"]
    assert primary.ask("spend", 0, flow=FLOWS[1])[0] == 0
    primary.save(FLOW, ASKS_OPEN_PER_FLOW_MAX)
    assert primary.ask("spend", 0, flow=FLOW, number=ASKS_OPEN_PER_FLOW_MAX + 1)[0] == 0


class Drawer(Struct):
    taken: int = 0
    returned: list[int] = []


class Desk(Owner[Drawer]):
    def take(self) -> int:
        self.state.taken += 1
        return self.state.taken

    def give_back(self, number: int) -> None:
        self.state.returned.append(number)


class Leaving(FlowActor):
    """Gives back what it has when it closes; and then, if it `hangs`, is not done yet."""

    desk = Desk.named("desk")
    hangs: ClassVar[bool] = True
    number: int = 0

    async def on_open(self, packet: Packet) -> Verdict:
        self.number = await self.desk.take()
        return FORWARD

    def on_packet(self, packet: Packet) -> Verdict:
        self.close()
        return FORWARD

    async def on_close(self) -> None:
        await self.desk.give_back(self.number)
        if self.hangs:
            await asyncio.get_running_loop().create_future()


def _lives(nf: type[FlowActor], place: Path, *payloads: bytes) -> Embedded:
    """A node that goes on where its log ends; what comes is of the flow that the first byte names."""
    ports = [MemoryPort("lan"), MemoryPort("wan")]
    node = Embedded(nf, ports, log_directory=str(place / "log"), virtual_time=True)
    _take(node, 1, *payloads)
    return node


def _take(node: Embedded, time_ns: int, *payloads: bytes) -> None:
    """These packets come at one time, or none does, and a turn passes."""
    lan = node.core.ports[0]
    assert isinstance(lan, MemoryPort)
    lan.feed([(time_ns, frames.udp("10.0.0.2", 1000 + data[0], "198.51.100.1", 53, data)) for data in payloads])
    node.run_burst()


def _die(node: Embedded) -> None:
    """As a process does that is killed: the log is closed, and nothing else happens."""
    assert node.journal.log is not None
    node.journal.log.close()


def test_a_flow_that_dies_while_it_closes_is_closed_by_who_goes_on(tmp_path: Path) -> None:
    """G5: else it lived on with what it has given back, which is another's by then. Others are left alone."""
    Leaving.hangs = True
    died = _lives(Leaving, tmp_path, b"\1", b"\2", b"\1")
    assert died.journal.replica.owners["desk"].state.returned == [1] and died.core.suspended == 1
    _die(died)
    Leaving.hangs = False
    node = _lives(Leaving, tmp_path)
    replica, log = node.journal.replica, node.journal.log
    assert replica.owners["desk"].state.returned == [1], "and it is given back once"
    assert [FlowBody.decode(body).flow.source_port for body in replica.flows.values()] == [1002]
    assert not list(replica.closing()) and not replica.asks
    assert log is not None
    bodies = [decode(log.read(lsn), lsn).body for lsn in range(1, log.last_lsn + 1)]
    marked = [body.message for body in bodies if isinstance(body, AskBody) and body.packet == CLOSES]
    assert marked == ["give_back"]
    node.finish()


class Spending(Leaving):
    """As `Leaving`; and each packet of its flow takes a number that the flow does not keep."""

    async def on_packet(self, packet: Packet) -> Verdict:
        if packet.payload[1:]:
            self.close()
        else:
            await self.desk.take()
        return FORWARD


def test_what_a_flow_gives_back_as_it_closes_is_given_back_once_however_often_it_had_asked(tmp_path: Path) -> None:
    """G5: handlers that had ended, and left nothing to save, are not those that run again."""
    Spending.hangs = True
    died = _lives(Spending, tmp_path, b"\1", b"\1", b"\1", b"\1close")
    assert died.journal.replica.owners["desk"].state.returned == [1] and died.core.suspended == 1
    _die(died)
    Spending.hangs = False
    node = _lives(Spending, tmp_path)
    assert node.journal.replica.owners["desk"].state.returned == [1]
    assert not node.journal.replica.flows and not node.journal.replica.asks
    node.finish()


def test_what_a_flow_had_asked_is_known_from_a_snapshot_as_well(tmp_path: Path) -> None:
    """G5: it closes on a node that had it from a log, and again on one that has it from a snapshot of that."""
    Spending.hangs = True
    for payloads in ((b"\1", b"\1", b"\1"), (b"\1close",)):
        died = _lives(Spending, tmp_path, *payloads)
        assert died.journal.log is not None
        died.journal.save_snapshot()
        died.journal.log.close()
    assert died.journal.replica.owners["desk"].state.returned == [1]
    Spending.hangs = False
    node = _lives(Spending, tmp_path)
    assert node.journal.replica.owners["desk"].state.returned == [1] and not node.journal.replica.flows
    node.finish()


class Forgetful(FlowActor):
    """Asks as it opens, keeps nothing of the reply, and ends when all that it depends on is committed long since."""

    desk = Desk.named("desk")

    async def on_open(self, packet: Packet) -> Verdict:
        await self.desk.take()
        await asyncio.sleep(0)
        return FORWARD

    def on_packet(self, packet: Packet) -> Verdict:
        return FORWARD


def test_a_flow_that_has_asked_is_in_the_log_once_its_handler_has_ended(tmp_path: Path) -> None:
    """G5: else whoever goes on would treat its first packet again."""
    node = _lives(Forgetful, tmp_path, b"\1")
    while node.core.suspended:
        node.run_burst()
    assert len(node.journal.replica.flows) == 1
    assert not node.journal.replica.asks and not list(node.journal.replica.orphans())
    node.finish()


class Metered(FlowActor):
    """Has a number of its own for each packet, and keeps none; one that says so waits, and asks for nothing."""

    desk = Desk.named("desk")
    numbers: ClassVar[list[int]] = []
    waits: ClassVar[bool] = False

    async def on_packet(self, packet: Packet) -> Verdict:
        if packet.payload[1:]:
            while self.waits:
                await asyncio.sleep(0)
            return FORWARD
        self.numbers.append(await self.desk.take())
        return FORWARD


def _saved(node: Embedded) -> list[int]:
    """What the flows' records say of how often they had asked."""
    log = node.journal.log
    assert log is not None
    bodies = [decode(log.read(lsn), lsn).body for lsn in range(1, log.last_lsn + 1)]
    return [body.asks for body in bodies if isinstance(body, FlowBody)]


def test_after_a_takeover_no_packet_is_given_what_an_earlier_one_was(tmp_path: Path) -> None:
    """G5: that handlers have ended which left nothing to save is in the log a moment later, once for many of them."""
    Metered.numbers = []
    died = _lives(Metered, tmp_path, b"\1")
    for at_ms in range(5, SETTLE_MS, 5):
        _take(died, at_ms * MS, b"\1")
    assert _saved(died) == [1]
    _take(died, 2 * SETTLE_MS * MS, b"\2")
    assert _saved(died) == [1, 1, 10]
    _take(died, 4 * SETTLE_MS * MS, b"\2")
    _take(died, 6 * SETTLE_MS * MS, b"\3")
    assert _saved(died) == [1, 1, 10, 1, 2], "and once for each that has asked since"
    _die(died)
    node = _lives(Metered, tmp_path, b"\1", b"\2", b"\1")
    assert Metered.numbers == list(range(1, 17))
    node.finish()


def test_a_flow_whose_next_handler_waits_is_saved_when_that_has_ended(tmp_path: Path) -> None:
    """G5: of a handler in progress nothing is saved; those before it are not forgotten meanwhile."""
    Metered.numbers, Metered.waits = [], True
    node = _lives(Metered, tmp_path, b"\1", b"\1", b"\1wait")
    for turn in (1, 2, 3):
        _take(node, turn * 2 * SETTLE_MS * MS, bytes([10 + turn]))
    assert set(_saved(node)) == {1} and node.core.suspended == 1
    Metered.waits = False
    while node.core.suspended:
        _take(node, 0)
    _take(node, 8 * SETTLE_MS * MS, b"\2")
    assert _saved(node)[-2:] == [1, 2]
    node.finish()
