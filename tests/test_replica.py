"""The replicated state machine: the primary's records, applied elsewhere, give the same state."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from port_log import executed

from actornet.engine.five_tuple import FiveTuple, flow_key
from actornet.engine.records import HEADER_BYTES, checked, seal
from actornet.engine.replies import ERROR, REPEATED
from actornet.errors import DivergenceError, FencedError, LogDamagedError, UsageError
from actornet.limits import ASKS_OPEN_PER_FLOW_MAX, MESSAGE_BYTES_MAX
from actornet.log.record import (
    CHAIN_START,
    AskBody,
    CloseBody,
    ControlBody,
    EpochBody,
    FlowBody,
    HashBody,
    Kind,
    OwnerBody,
    Record,
    decode,
    encode,
)
from actornet.owner import Owner, Struct, path_of
from actornet.replication.replica import AskRequest, Replica

PAIR = b"\x92"
"""An array's head: what `flow_key` and a target lack to be decoded."""

SECOND = 1_000_000_000
FLOWS = [FiveTuple(17, "10.0.0.1", 5000 + number, "198.51.100.7", 53) for number in range(3)]
FLOW = FLOWS[0]


class Book(Struct):
    free: list[int] = []
    used: dict[int, FiveTuple] = {}
    holders: dict[FiveTuple, int] = {}
    tags: set[str] = set()
    tokens: float = 0
    asked: int = 0


class Ledger(Owner[Book]):
    """Does all that owners do: gives, takes back, fails half-way, reads time and chance."""

    def start(self, first: int = 1, last: int = 5, burst: int = 10) -> Book:
        return Book(list(range(first, last + 1)), tokens=burst)

    def allocate(self, flow: FiveTuple) -> int | None:
        self.state.asked += 1
        if not self.state.free:
            return None
        port = self.state.free.pop(self.random.randrange(len(self.state.free)))
        self.state.used[port] = flow
        self.state.holders[flow] = port
        return port

    def release(self, port: int) -> None:
        self.state.asked += 1
        flow = self.state.used.pop(port)
        del self.state.holders[flow]
        self.state.free.append(port)

    def oldest(self) -> FiveTuple | None:
        return next(iter(self.state.used.values()), None)

    def tag(self, name: str) -> list[str]:
        self.state.tags |= {name, name + "'"}
        return sorted(self.state.tags)

    def spend(self, tokens: int) -> float:
        self.state.tokens = max(0, self.state.tokens - tokens)
        return self.state.tokens

    def roll(self) -> int:
        return self.random.randrange(1 << 30)

    def untag(self, name: str) -> list[str]:
        self.state.tags -= {name}
        return sorted(self.state.tags)

    def time(self) -> float:
        return self.now

    def revoke(self) -> None:
        self.revoke_offloads()

    def fail(self) -> None:
        self.state.asked += 1
        raise ValueError(f"no good: {object()}")

    def strange(self) -> int:
        return object()  # type: ignore[return-value]

    def much(self) -> bytes:
        return bytes(MESSAGE_BYTES_MAX)


class Miser(Ledger):
    """What a changed code decides otherwise."""

    def allocate(self, flow: FiveTuple) -> int | None:
        return None


PATH = path_of(Ledger)


def load(path: str) -> type[Owner[Any]]:
    assert path in (PATH, "other:Ledger")
    return Ledger


def load_changed(path: str) -> type[Owner[Any]]:
    return Miser


def pack(*args: object) -> bytes:
    return msgspec.msgpack.encode(args)


def outcome(reply: bytes) -> list[Any]:
    found: list[Any] = msgspec.msgpack.decode(reply)
    return found


def epoch_body(seed: int = 7) -> EpochBody:
    return EpochBody("a", "test", {}, "f00d", seed, "start")


def outside(message: str, args: bytes) -> AskRequest:
    """A message to the book from no flow."""
    return AskRequest(None, 0, 0, 0, "book", message, args)


class Primary:
    """A replica, and the encoded log that it made."""

    def __init__(self) -> None:
        self.replica = Replica(load)
        self.log: list[bytes] = []
        self.hashes = [self.replica.state_hash()]
        self.keep(self.replica.begin_epoch(1, epoch_body(), SECOND))
        self.keep(self.replica.create_owner("book", PATH, {"last": 4}, SECOND))

    def keep(self, record: Record | None) -> None:
        if record is not None:
            data, _ = encode(record, decode(self.log[-1]).chain if self.log else CHAIN_START)
            self.log.append(data)
            self.hashes.append(self.replica.state_hash())

    def ask(
        self,
        message: str,
        *args: object,
        flow: FiveTuple | None = None,
        incarnation: int = 1,
        number: int = 1,
        owner: str = "book",
    ) -> list[Any]:
        time_ns = self.replica.time_ns + SECOND // 7
        asked = AskRequest(flow, 1, incarnation, number, owner, message, pack(*args))
        record, reply = executed(self.replica, asked, time_ns)
        self.keep(record)
        return outcome(reply)

    def do(self, body: FlowBody | CloseBody | ControlBody | OwnerBody) -> None:
        self.keep(self.replica.execute(body, 0, self.replica.time_ns))

    def save(self, flow: FiveTuple, asks: int, incarnation: int = 1) -> None:
        self.do(FlowBody(flow, 1, incarnation, asks, b"state %d" % asks))

    def close(self, flow: FiveTuple, incarnation: int = 1) -> None:
        self.do(CloseBody(flow, 1, incarnation, "idle"))


def apply_decoded(replica: Replica, data: bytes) -> None:
    replica.apply(decode(data))


def apply_encoded(replica: Replica, data: bytes) -> None:
    """As a backup does, for which an ask stays bytes."""
    body = replica.apply_record(checked(data), data)
    expected = decode(data).body
    if isinstance(expected, FlowBody):
        assert FlowBody.decode(body) == expected
    else:
        assert body == (None if isinstance(expected, AskBody) else expected)


WAYS = [apply_decoded, apply_encoded]


def backup_of(primary: Primary) -> Replica:
    replica = Replica(load)
    for data in primary.log:
        replica.apply(decode(data))
    assert replica.state_hash() == primary.replica.state_hash()
    return replica


EVENTS = [
    "revoke",
    "allocate",
    "release",
    "oldest",
    "tag",
    "spend",
    "time",
    "fail",
    "strange",
    "absent",
    "misfit",
    "save",
    "close",
    "epoch",
    "owner",
    "control",
    "hash",
]

# One step of a history: what happens, to which flow, under which incarnation, with which number.
steps = st.lists(
    st.tuples(
        st.sampled_from(EVENTS),
        st.sampled_from([*FLOWS, None]),
        st.integers(1, 3),
        st.integers(1, 4),
    ),
    max_size=40,
)


def happen(primary: Primary, step: tuple[str, FiveTuple | None, int, int]) -> None:
    what, flow, incarnation, number = step
    replica = primary.replica
    sender: dict[str, Any] = {"flow": flow, "incarnation": incarnation, "number": number}
    match what:
        case "allocate":
            primary.ask(what, flow or FLOW, **sender)
        case "release" | "spend":
            primary.ask(what, number, **sender)
        case "tag":
            primary.ask(what, f"tag {number}", **sender)
        case "absent":
            primary.ask("allocate", FLOW, owner="nobody", **sender)
            primary.ask("absent", **sender)
        case "misfit":
            primary.ask("allocate", "no flow", **sender)
        case "save":
            primary.save(flow or FLOW, number, incarnation)
        case "close":
            primary.close(flow or FLOW, incarnation)
        case "epoch":
            primary.keep(replica.begin_epoch(replica.epoch + number, epoch_body(number), replica.time_ns))
        case "owner":
            primary.keep(replica.create_owner(f"book {number}", PATH, {"last": number}, replica.time_ns))
        case "control":
            primary.do(ControlBody("note", f"number {number}"))
        case "hash":
            primary.keep(replica.hash_state(replica.time_ns))
        case _:
            primary.ask(what, **sender)


@settings(max_examples=150, deadline=None)
@given(steps, st.data())
def test_applying_the_log_gives_the_primarys_state(history: list[Any], data: st.DataObject) -> None:
    """G4: at every LSN, from the first record or from a snapshot at any LSN, the state is the primary's."""
    primary = Primary()
    for step in history:
        happen(primary, step)
    snapshot_at, apply = data.draw(st.integers(0, len(primary.log))), data.draw(st.sampled_from(WAYS))
    replica = Replica(load)
    for lsn, record in enumerate(primary.log):
        if lsn == snapshot_at:
            replica = Replica.restore(replica.snapshot(), load)
        assert replica.lsn == lsn
        assert replica.state_hash() == primary.hashes[lsn]
        apply(replica, record)
    assert replica.state_hash() == primary.hashes[-1]
    assert (replica.flows, replica.asks) == (primary.replica.flows, primary.replica.asks)
    assert [owner.state for owner in replica.owners.values()] == [
        owner.state for owner in primary.replica.owners.values()
    ]
    assert (replica.term, replica.time_ns) == (primary.replica.term, primary.replica.time_ns)


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


def test_an_ask_changes_the_state_and_is_recorded() -> None:
    primary = Primary()
    kind, port = primary.ask("allocate", FLOW, flow=FLOW, number=1)
    assert kind == 0
    record = decode(primary.log[-1])
    assert (record.lsn, record.epoch, record.kind) == (3, 1, Kind.ASK)
    assert isinstance(record.body, AskBody)
    assert (record.body.flow, record.body.number, record.body.message) == (FLOW, 1, "allocate")
    assert primary.replica.owners["book"].state.used == {port: FLOW}
    assert primary.ask("oldest") == [0, list(msgspec.structs.astuple(FLOW))]


def test_time_and_chance_are_the_records() -> None:
    """G4: `now` is the record's time, and every replica draws the same."""
    primary = Primary()
    assert primary.ask("time") == [0, decode(primary.log[-1]).time_ns / 1e9]
    drawn = [primary.ask("allocate", FLOW) for _ in range(4)]
    assert drawn != sorted(drawn), "chosen by chance, with this seed"
    backup_of(primary)


def test_chance_is_seeded_by_the_epoch() -> None:
    """G4: another seed, another draw; an epoch's record brings its own."""

    def drawn(first: int, second: int) -> list[Any]:
        primary = Primary()
        replies = []
        for epoch, seed in ((2, first), (3, second)):
            primary.keep(primary.replica.begin_epoch(epoch, epoch_body(seed), SECOND))
            replies += [primary.ask("roll") for _ in range(4)]
        return replies

    assert drawn(1, 2) == drawn(1, 2)
    assert drawn(1, 2)[:4] == drawn(1, 3)[:4]
    assert drawn(1, 2)[4:] != drawn(1, 3)[4:]


def test_outside_a_handler_there_is_no_time() -> None:
    primary = Primary()
    primary.ask("fail")
    for _ in range(2):
        with pytest.raises(UsageError, match="only while a message is handled"):
            _ = primary.replica.owners["book"].now
        primary.ask("time")


def test_time_never_runs_backwards() -> None:
    """G4: a clock that was set back, or is another primary's, gives no earlier record."""
    replica = Primary().replica
    latest = replica.begin_epoch(2, epoch_body(), 50 * SECOND).time_ns
    record, reply = executed(replica, outside("time", pack()), 40 * SECOND)
    assert record is not None and (record.time_ns, outcome(reply)) == (latest, [0, 50.0])
    assert replica.execute(ControlBody("note", ""), 0, SECOND).time_ns == latest
    assert replica.hash_state(SECOND).time_ns == latest
    assert replica.begin_epoch(3, epoch_body(), SECOND).time_ns == latest


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


def test_open_asks_of_a_flow_are_bounded() -> None:
    primary = Primary()
    for number in range(ASKS_OPEN_PER_FLOW_MAX):
        assert primary.ask("spend", 0, flow=FLOW, number=number + 1)[0] == 0
    refused = primary.ask("spend", 0, flow=FLOW, number=ASKS_OPEN_PER_FLOW_MAX + 1)
    assert refused == [1, "OwnerError", "the flow has 64 asks since it was last saved, the most"]
    assert primary.ask("spend", 0, flow=FLOWS[1])[0] == 0
    primary.save(FLOW, ASKS_OPEN_PER_FLOW_MAX)
    assert primary.ask("spend", 0, flow=FLOW, number=ASKS_OPEN_PER_FLOW_MAX + 1)[0] == 0


@pytest.mark.parametrize(
    ("owner", "message", "args", "error"),
    [
        ("book", "fail", (), [1, "ValueError", "no good: <object object>"]),
        ("book", "release", (9,), [1, "KeyError", "9"]),
        ("book", "strange", (), [1, "TypeError", "Encoding objects of type object is unsupported"]),
        ("book", "much", (), [1, "OwnerError", "the reply has 1048583 bytes; 1048576 is the most"]),
        ("book", "start", (), [1, "UsageError", "owner 'book' has no message 'start'"]),
        ("nobody", "fail", (), [1, "UsageError", "there is no owner 'nobody'"]),
        ("book", "tag", (5,), [1, "ValidationError", "Expected `str`, got `int` - at `$[0]`"]),
        ("book", "tag", (), [1, "ValidationError", "Expected `array` of length 1, got 0"]),
    ],
)
def test_what_goes_wrong_is_a_reply(owner: str, message: str, args: tuple[object, ...], error: list[object]) -> None:
    """G4: an error is a reply like any other: logged, the same everywhere; the state changed before it stays so."""
    primary = Primary()
    asked = primary.replica.owners["book"].state.asked
    assert primary.ask(message, *args, owner=owner) == error
    assert decode(primary.log[-1]).kind is Kind.ASK
    assert primary.replica.owners["book"].state.asked == asked + (error[1] in ("ValueError", "KeyError"))
    backup_of(primary)


def test_arguments_that_are_not_msgpack_are_a_reply() -> None:
    primary = Primary()
    record, reply = executed(primary.replica, outside("tag", b"\x91"), SECOND)
    primary.keep(record)
    assert outcome(reply) == [1, "DecodeError", "Input data was truncated"]
    backup_of(primary)


def test_numbers_are_the_same_before_and_after_a_snapshot() -> None:
    """G4: an int that a handler leaves in a field of floats is the float that it becomes in a snapshot."""
    primary = Primary()
    assert primary.ask("spend", 100) == [0, 0.0]
    assert type(primary.replica.owners["book"].state.tokens) is int
    restored = Replica.restore(primary.replica.snapshot(), load)
    assert restored.state_hash() == primary.replica.state_hash()
    assert (
        restored.execute_ask(outside("spend", pack(0)).encoded(), 5)[1]
        == primary.replica.execute_ask(outside("spend", pack(0)).encoded(), 5)[1]
        == b"\x92\x00\xcb" + bytes(8)
    )


def test_the_order_of_dicts_survives_a_snapshot() -> None:
    """G4: handlers may depend on the order in which a dict was filled."""
    primary = Primary()
    state = primary.replica.owners["book"].state
    state.used = {9: FLOWS[2], 1: FLOWS[0]}
    restored = Replica.restore(primary.replica.snapshot(), load)
    reply = restored.execute_ask(outside("oldest", pack()).encoded(), 5)[1]
    assert outcome(reply)[1] == list(msgspec.structs.astuple(FLOWS[2]))


@pytest.mark.parametrize("apply", WAYS)
def test_a_divergence_is_named(apply: Callable[[Replica, bytes], None]) -> None:
    """G4: code that decides otherwise is found at its first record: LSN, owner, message, expected and actual."""
    primary = Primary()
    primary.ask("time")
    primary.ask("allocate", FLOW)
    expected = decode(primary.log[3]).body
    assert isinstance(expected, AskBody)
    replica = Replica(load_changed)
    for data in primary.log[:3]:
        replica.apply(decode(data))
    with pytest.raises(
        DivergenceError,
        match=rf"LSN 4: book.allocate: expected reply hash {expected.reply_hash:016x}, actual \w+ of reply \[None\]",
    ):
        apply(replica, primary.log[3])
    assert replica.lsn == 3


@pytest.mark.parametrize("apply", WAYS)
def test_what_does_not_continue_the_log_is_refused(apply: Callable[[Replica, bytes], None]) -> None:
    """G7, G8: records that are repeated or missing, or of another epoch, change nothing."""
    primary = Primary()
    primary.ask("allocate", FLOW, flow=FLOW)
    primary.save(FLOW, 1)
    replica = backup_of(primary)
    before = replica.state_hash()
    for at in (-1, -2):
        with pytest.raises(LogDamagedError, match="records are missing or repeated"):
            apply(replica, primary.log[at])
    for kind, body in ((Kind.ASK, decode(primary.log[-2]).body), (Kind.FLOW, decode(primary.log[-1]).body)):
        data, _ = encode(Record(replica.lsn + 1, 2, SECOND, kind, 0, body), 0)
        with pytest.raises(FencedError, match="epoch 2"):
            apply(replica, data)
    assert replica.state_hash() == before and replica.lsn == len(primary.log)


@pytest.mark.parametrize("kind", [Kind.ASK, Kind.FLOW])
@settings(max_examples=300, deadline=None)
@given(at=st.integers(0, 200), value=st.integers(0, 255), more=st.binary(max_size=20))
def test_a_changed_body_is_applied_refused_or_diverges(kind: Kind, at: int, value: int, more: bytes) -> None:
    """G8: whatever bytes a record with a right checksum has. What a backup makes of them is what a replay does."""
    primary = Primary()
    primary.ask("allocate", FLOW, flow=FLOW)
    primary.save(FLOW, 1)
    body = bytearray(primary.log[-2 if kind is Kind.ASK else -1][HEADER_BYTES:])
    body[at % len(body)] = value
    data, _ = seal(kind, 0, 1, len(primary.log) + 1, SECOND, bytes(body) + more, 0)
    ends = []
    for apply in WAYS:
        replica = backup_of(primary)
        try:
            apply(replica, data)
        except (LogDamagedError, DivergenceError) as error:
            ends.append(str(error))
        else:
            ends.append(f"{replica.state_hash()}")
    assert ends[0] == ends[1]


@pytest.mark.parametrize("kind", [Kind.ASK, Kind.FLOW])
def test_a_body_that_cannot_be_read_is_damage(kind: Kind) -> None:
    """G8: though its checksum and its place in the chain are right."""
    primary = Primary()
    primary.ask("allocate", FLOW, flow=FLOW)
    primary.save(FLOW, 1)
    replica = backup_of(primary)
    whole = primary.log[-2 if kind is Kind.ASK else -1][HEADER_BYTES:]
    for body in [whole[:cut] for cut in range(len(whole))] + [whole + b"\xc0", b"\xc1" + whole[1:]]:
        data, _ = seal(kind, 0, 1, replica.lsn + 1, SECOND, body, 0)
        with pytest.raises(LogDamagedError, match=f"its {kind.name} body cannot be read"):
            replica.apply_record(checked(data), data)
    assert replica.lsn == len(primary.log)


def test_a_divergence_of_states_is_found_by_a_hash_record() -> None:
    """G4: states that differ while replies agree are found at the next HASH record."""
    primary = Primary()
    replica = backup_of(primary)
    replica.owners["book"].state.free.append(77)
    primary.keep(primary.replica.hash_state(SECOND))
    expected = decode(primary.log[-1]).body
    assert isinstance(expected, HashBody)
    with pytest.raises(
        DivergenceError, match=f"LSN 2: hash of the state after it: expected {expected.state_hash:016x}, actual "
    ):
        replica.apply(decode(primary.log[-1]))


def change_flows(replica: Replica) -> None:
    replica.flows[flow_key(FLOW, 1)] += b"other"


def change_asks(replica: Replica) -> None:
    replica.asks[flow_key(FLOWS[1], 1)].pop()


def change_owner(replica: Replica) -> None:
    replica.owners["book"].state.holders[FLOW] = 5


@pytest.mark.parametrize("change", [change_flows, change_asks, change_owner])
def test_the_state_hash_covers_everything(change: Callable[[Replica], None]) -> None:
    """G4: owners, flows and recorded replies are all under the hash."""
    primary = Primary()
    primary.save(FLOW, 0)
    primary.ask("tag", "a", flow=FLOWS[1], number=1)
    primary.ask("tag", "b", flow=FLOWS[1], number=2)
    replica = backup_of(primary)
    change(replica)
    assert replica.state_hash() != primary.replica.state_hash()


def test_missing_and_repeated_records_are_refused() -> None:
    """G8: only the next LSN is applied."""
    primary = Primary()
    replica = Replica(load)
    with pytest.raises(LogDamagedError, match="LSN 2 came where LSN 1 is due"):
        replica.apply(decode(primary.log[1]))
    replica.apply(decode(primary.log[0]))
    with pytest.raises(LogDamagedError, match="LSN 1 came where LSN 2 is due"):
        replica.apply(decode(primary.log[0]))


def test_records_of_another_epoch_are_refused() -> None:
    """G7: epochs only grow, and a record belongs to the current one."""
    primary = Primary()
    replica = backup_of(primary)
    with pytest.raises(FencedError, match="epoch 1, but epoch 1 is current"):
        replica.begin_epoch(1, epoch_body(), SECOND)
    replica.begin_epoch(4, epoch_body(), SECOND)
    assert replica.epoch == 4 and replica.term == epoch_body()
    primary.ask("time")
    primary.ask("time")
    with pytest.raises(FencedError, match="LSN 4 is of epoch 1, but epoch 4 is current"):
        replica.apply(decode(primary.log[3]))


def test_an_owner_is_created_once() -> None:
    primary = Primary()
    replica = primary.replica
    assert replica.create_owner("book", PATH, {"last": 9}, SECOND) is None
    assert replica.owners["book"].state.free == [1, 2, 3, 4]
    with pytest.raises(UsageError, match=r"owner 'book' is a .*; it cannot be a other:Ledger too"):
        replica.create_owner("book", "other:Ledger", {}, SECOND)
    with pytest.raises(LogDamagedError, match="LSN 3 creates owner 'book', which is there already"):
        replica.apply(Record(3, 1, SECOND, Kind.OWNER, 0, OwnerBody("book", PATH, {})))


def test_an_owner_that_cannot_start_leaves_no_record() -> None:
    primary = Primary()
    before = primary.replica.state_hash()
    with pytest.raises(UsageError, match="setting last='x': Expected `int`"):
        primary.replica.create_owner("other", PATH, {"last": "x"}, SECOND)
    assert primary.replica.lsn == 2
    assert primary.replica.state_hash() == before


def test_settings_are_taken_as_the_log_has_them() -> None:
    """G4: what the caller does to the settings later does not reach the primary's owner."""
    given = [1, 2]

    class Plain(Owner[Book]):
        pass

    replica = Replica(lambda path: Plain)
    replica.begin_epoch(1, epoch_body(), SECOND)
    replica.create_owner("plain", "x:Plain", {"free": given}, SECOND)
    before = replica.state_hash()
    given.append(3)
    assert replica.owners["plain"].state.free == [1, 2]
    assert replica.state_hash() == before


def test_every_changed_byte_of_a_snapshot_is_found() -> None:
    """G8: a flipped or cut snapshot is never restored."""
    primary = Primary()
    primary.ask("tag", "a", flow=FLOW)
    primary.save(FLOWS[1], 0)
    data = primary.replica.snapshot()
    for at in range(len(data)):
        flipped = bytearray(data)
        flipped[at] ^= 1 << at % 8
        for damaged in (bytes(flipped), data[:at]):
            with pytest.raises(LogDamagedError, match="is damaged"):
                Replica.restore(damaged, load)


def test_a_snapshot_of_other_code_is_named() -> None:
    class Narrow(Struct):
        free: list[str]

    class Other(Owner[Narrow]):
        pass

    with pytest.raises(UsageError, match=r"state of .*Other does not fit Narrow"):
        Replica.restore(Primary().replica.snapshot(), lambda path: Other)


def fixed_history() -> Primary:
    primary, random = Primary(), Random(5)
    for _ in range(300):
        happen(
            primary, (random.choice(EVENTS), random.choice([*FLOWS, None]), random.randint(1, 3), random.randint(1, 4))
        )
    return primary


def test_the_same_history_in_other_processes() -> None:
    """G4: two processes with other hash seeds make the same log, byte by byte: chains and state hashes agree."""
    chains = set()
    for hash_seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.pathsep.join(sys.path)}
        made = subprocess.run(
            [sys.executable, "-c", "import test_replica; print(test_replica.summary())"],
            cwd=Path(__file__).parent,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        chains.add(made.stdout)
    assert chains == {summary() + "\n"}


def summary() -> str:
    primary = fixed_history()
    return f"{len(primary.log)} {decode(primary.log[-1]).chain:016x} {primary.hashes[-1]:016x}"


def test_revocations_are_replicated() -> None:
    """G4, G6: by the log and by a snapshot; a state without them is another."""
    primary = Primary()
    before = primary.replica.state_hash()
    for _ in range(3):
        assert primary.ask("revoke") == [0, None]
    backup = backup_of(primary)
    assert primary.replica.revocations == backup.revocations == 3
    restored = Replica.restore(primary.replica.snapshot(), load)
    assert restored.revocations == 3 and restored.state_hash() == primary.replica.state_hash() != before
