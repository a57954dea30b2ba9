"""The replicated state as a snapshot, and back."""

import msgspec
import pytest

from actornet.errors import LogDamagedError, UsageError
from actornet.owner import Owner, Struct
from actornet.replication.replica import Replica
from tests.ledger import FLOW, FLOWS, Primary, load, outcome, outside, pack


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
