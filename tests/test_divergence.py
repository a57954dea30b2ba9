"""Records that do not fit: a replica that decides otherwise is found, and damage and others' records are refused."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actornet.engine.five_tuple import FiveTuple, flow_key
from actornet.engine.records import HEADER_BYTES, checked, seal
from actornet.errors import DivergenceError, FencedError, LogDamagedError
from actornet.log.record import AskBody, HashBody, Kind, Record, decode, encode
from actornet.owner import Owner
from actornet.replication.replica import Replica
from tests.ledger import FLOW, FLOWS, SECOND, WAYS, Ledger, Primary, backup_of, epoch_body, load


class Miser(Ledger):
    """What a changed code decides otherwise."""

    def allocate(self, flow: FiveTuple) -> int | None:
        return None


def load_changed(path: str) -> type[Owner[Any]]:
    return Miser


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
