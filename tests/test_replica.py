"""The replicated state machine: the primary's records, applied elsewhere, give the same state."""

import os
import subprocess
import sys
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from port_log import executed

from actornet.errors import LogDamagedError, UsageError
from actornet.log.record import AskBody, ControlBody, Kind, OwnerBody, Record, decode
from actornet.owner import Owner
from actornet.replication.replica import Replica
from tests.ledger import (
    EVENTS,
    FLOW,
    FLOWS,
    PATH,
    SECOND,
    WAYS,
    Book,
    Primary,
    backup_of,
    epoch_body,
    happen,
    load,
    outcome,
    outside,
    pack,
    steps,
)


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
