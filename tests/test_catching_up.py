"""How a backup comes to have what its primary has: greeted or refused, by the tail or a snapshot, within a window (G8)."""

from __future__ import annotations

import os
from collections import deque
from typing import Any

import msgspec
import pytest

from actornet.limits import LINK_BATCH_RECORDS, LINK_WINDOW_RECORDS, SNAPSHOT_CHUNK_BYTES
from actornet.replication.messages import VERSION, Ack, Fence, Hello, Records, Refuse, Seen, Snapshot, Welcome
from actornet.replication.primary import Primary
from actornet.replication.protocol import (
    Apply,
    Close,
    Compare,
    Durability,
    InstallSnapshot,
    Learn,
    Note,
    Position,
    Refused,
    Rewind,
    Send,
    State,
    TakeSnapshot,
    match,
)
from actornet.replication.stations import Stations
from tests.protocol_bench import (
    IDENTITY,
    NOWHERE,
    TERM,
    T,
    acked,
    backup,
    feed,
    following,
    hello,
    in_sync,
    only,
    primary,
    sent,
    synced,
    welcome,
)

LOG = {lsn: Position(lsn, 100 + lsn, TERM if lsn <= 3 else 2 * TERM) for lsn in range(1, 6)}  # taken over after LSN 3


@pytest.mark.parametrize(
    ("end", "durability", "first_lsn", "outcome"),
    [
        (NOWHERE, "applied", 1, "tail"),
        (NOWHERE, "applied", 3, "snapshot"),
        (Position(3, 103, TERM), "applied", 1, "tail"),
        (Position(5, 105, 2 * TERM), "applied", 1, "tail"),
        (Position(2, 102, TERM), "applied", 4, "snapshot"),
        # The old primary comes back with records that nobody got ...
        (Position(4, 999, TERM), "applied", 1, "rewind"),
        (Position(7, 999, TERM), "applied", 1, "rewind"),
        # ... or that it committed by itself.
        (Position(7, 999, TERM), "solo", 1, "longer"),
        (Position(4, 999, TERM), "solo", 1, "diverges"),
        (Position(4, 999, TERM + 1), "applied", 1, "diverges"),
        (Position(7, 999, TERM + 1), "applied", 1, "longer"),
        # This primary's log is the older one.
        (Position(6, 106, 2 * TERM), "applied", 1, "longer"),
        (Position(3, 999, TERM), "applied", 1, "diverges"),
        (Position(2, 999, TERM), "applied", 1, "diverges"),
    ],
)
def test_how_a_backup_catches_up(end: Position, durability: Durability, first_lsn: int, outcome: str) -> None:
    """G8: by tail or snapshot, or not at all, and then with the reason; a good log is never overwritten."""
    machine = Primary(
        IDENTITY, durability, "wait", epoch=2 * TERM, first_lsn=first_lsn, logged_lsn=5, takeover=True, now_ns=T
    )
    machine.connected(T)
    said = hello(lsn=end.lsn, chain=end.chain, log_epoch=end.epoch)
    assert machine.receive(said, T) == [Compare(end)]
    answer = sent(machine.compared(match(end, first_lsn, 5, LOG.__getitem__), end))[0]
    match answer:
        case Welcome(_, how):
            assert how == outcome
        case Refuse(_, reason, 0):
            assert outcome in reason and "empty log directory" in reason
        case Refuse(_, _, fork_lsn, fork_chain):
            assert (outcome, fork_lsn, fork_chain) == ("rewind", 3, 103)
    assert (machine.state is State.ALONE) == isinstance(answer, Refuse)


@pytest.mark.parametrize("difference", [{"version": VERSION + 1}, {"nf": "actors.nat:Other"}, {"fingerprint": "beef"}])
def test_other_code_is_refused(difference: dict[str, Any]) -> None:
    """G4, G8: replay needs the same code; the reason names both."""
    machine = primary()
    machine.connected(T)
    reason = only(sent(machine.receive(hello(**difference), T)), Refuse).reason
    assert str(next(iter(difference.values()))) in reason and machine.state is State.ALONE


def test_other_code_that_has_repeated_the_log_is_welcome() -> None:
    """G4: it was tested with what this primary's code wrote; of what comes it checks every reply."""
    machine = primary()
    machine.connected(T)
    actions = machine.receive(hello(fingerprint="beef", tested=IDENTITY.fingerprint), T)
    assert only(actions, Compare) and not sent(actions)
    machine = primary()
    machine.connected(T)
    only(sent(machine.receive(hello(fingerprint="beef", tested="ba5e"), T)), Refuse)


@pytest.mark.parametrize(
    ("here", "there", "refused"), [(100, 99, True), (100, 100, False), (100, 0, False), (0, 9, False)]
)
def test_a_backup_must_have_room_for_every_flow(here: int, there: int, refused: bool) -> None:
    """G6."""
    machine = primary()
    machine.identity = msgspec.structs.replace(IDENTITY, keys_max=here)
    machine.connected(T)
    answers = sent(machine.receive(hello(keys_max=there), T))
    assert bool(answers) == refused
    assert not refused or "flows_max" in only(answers, Refuse).reason


def test_a_backup_that_is_refused_again_and_again_alarms_once() -> None:
    """It is told each time; the operator again when the reason is another, or it was in sync meanwhile."""
    machine = primary()

    def alarms(**changes: Any) -> int:
        machine.connected(T)
        actions = machine.receive(hello(node="b", **changes), T)
        assert only(sent(actions), Refuse)
        return sum(isinstance(action, Note) and action.alarm for action in actions)

    assert [alarms(fingerprint="0ther") for _ in range(3)] == [1, 0, 0]
    assert alarms(nf="other:NF") == alarms(fingerprint="0ther") == 1
    welcome(machine, "b")
    acked(machine, 3)
    assert machine.state is State.IN_SYNC
    machine.disconnected("reset", T)
    assert alarms(fingerprint="0ther") == 1


def test_refused_once_is_told_once() -> None:
    """G8: a backup asks again, and alarms only when the answer changes."""
    machine = backup()
    for reason, told in [("diverges", 1), ("diverges", 0), ("longer", 1)]:
        machine.connected(NOWHERE, T)
        actions = machine.receive(Refuse(TERM, reason), T)
        assert [a.reason for a in actions if isinstance(a, Refused)] == [reason] * told
    machine.connected(NOWHERE, T)
    assert only(machine.receive(Refuse(TERM, "cut", 7, 107), T), Rewind) == Rewind(7, 107, "cut")


def test_backups_are_told_of_stations_once() -> None:
    """Whoever joins is told of all; then of what is new. It decides nothing."""
    machine, stations = in_sync(), Stations()
    assert machine.tell(stations, T) == []
    stations.learn(0, 7, T)
    stations.learn(1, 8, T)
    assert sent(machine.tell(stations, T)) == [Seen(TERM, [(1, 8), (0, 7)])] and machine.tell(stations, T) == []
    stations.learn(1, 7, T)
    assert sent(machine.tell(stations, T)) == [Seen(TERM, [(1, 7)])]
    machine.disconnected("reset", T)
    machine.connected(T)
    stations.learn(0, 9, T)
    assert machine.tell(stations, T) == [], "it has not said hello"
    feed(machine, [*machine.receive(hello(), T), *machine.compared(match(NOWHERE, 1, 3, lambda lsn: NOWHERE), NOWHERE)])
    assert sent(machine.tell(stations, T)) == [Seen(machine.epoch, [(0, 9), (1, 7), (1, 8)])]
    assert following().receive(Seen(TERM, [(1, 8), (0, 7)]), T) == [Learn([(1, 8), (0, 7)])]
    assert sent(synced().receive(Seen(TERM - 1, [(1, 8)]), T)) == [Fence(TERM)]


def test_window() -> None:
    """A backup that lags is sent no more than the window; the rest waits in the log, and nothing is skipped."""
    machine = in_sync()
    total = 3 * LINK_WINDOW_RECORDS
    said = feed(machine, machine.logged([b"r"] * total, T))
    next_lsn = 4
    while next_lsn <= 3 + total:
        batches = [message for message in said if isinstance(message, Records)]
        assert batches, f"stuck at LSN {next_lsn}"
        for batch in batches:
            assert batch.first_lsn == next_lsn and 0 < len(batch.records) <= LINK_BATCH_RECORDS
            next_lsn += len(batch.records)
        assert next_lsn - machine.feeds[0].ack.applied <= LINK_WINDOW_RECORDS + LINK_BATCH_RECORDS
        said = feed(machine, acked(machine, next_lsn - 1))
    assert machine.watermark == 3 + total


def test_window_in_bytes() -> None:
    """Large records fill the window by their bytes."""
    machine = in_sync()
    said = feed(machine, machine.logged([bytes(1 << 20)] * 10, T))
    assert [len(message.records) for message in said if isinstance(message, Records)] == [1] * 4


def test_snapshot() -> None:
    """G8: in chunks, within a window, whole and in order; then the tail follows."""
    leader, follower = primary(logged=9), backup()
    leader.first_lsn = 5
    leader.connected(T)
    leader.receive(only(sent(follower.connected(NOWHERE, T)), Hello), T)
    actions = leader.compared(match(NOWHERE, 5, 9, lambda lsn: Position(lsn)), NOWHERE)
    assert only(actions, TakeSnapshot) and leader.needed_lsn <= 5
    state = os.urandom(20 * SNAPSHOT_CHUNK_BYTES + 1)
    under_way = deque(sent(actions) + sent(leader.snapshot(Position(9, 109, TERM), state, T)))
    leader.logged([b"r"], T)
    installed = None
    while under_way:
        assert len(under_way) <= 17
        for action in follower.receive(under_way.popleft(), T):
            if isinstance(action, InstallSnapshot):
                installed = action
                under_way.extend(feed(leader, leader.receive(only(sent(follower.applied(9, T)), Ack), T)))
            elif isinstance(action, Apply):
                assert action == Apply(10, [b"r"])
                assert leader.state is State.TAIL, "it has to have what was logged meanwhile, before it joins"
                under_way.extend(feed(leader, leader.receive(only(sent(follower.applied(10, T)), Ack), T)))
            elif isinstance(action, Send):
                under_way.extend(feed(leader, leader.receive(action.message, T)))
    assert installed == InstallSnapshot(Position(9, 109, TERM), state)
    assert follower.state is leader.state is State.IN_SYNC and follower.received_lsn == 10


def test_a_backup_is_told_why_there_is_no_snapshot_for_it() -> None:
    """G8: a state that would not come back from a snapshot is not sent; the backup comes again, and is told once."""
    leader, follower = primary(logged=9), backup()
    leader.first_lsn = 5
    for told in (True, False):
        leader.connected(T)
        leader.receive(only(sent(follower.connected(NOWHERE, T)), Hello), T)
        actions = leader.compared(match(NOWHERE, 5, 9, lambda lsn: Position(lsn)), NOWHERE)
        for message in sent(actions):
            follower.receive(message, T)
        actions = leader.no_snapshot("owner mean: state.mean: expected int, got float")
        assert any(isinstance(action, Note) and action.event == "backup refused" for action in actions) is told
        assert leader.state is State.ALONE and only(actions, Close)
        refused = [action for action in follower.receive(only(sent(actions), Refuse), T) if isinstance(action, Refused)]
        assert bool(refused) is told and follower.state is State.REFUSED
        assert not told or "state.mean: expected int, got float" in refused[0].reason
    assert leader.no_snapshot("late") == []


@pytest.mark.parametrize(
    "second",
    [
        Snapshot(TERM, 9, TERM, 109, 2, 3, b"x"),
        Snapshot(TERM, 9, TERM, 109, 0, 3, b"x"),
        Snapshot(TERM, 8, TERM, 109, 1, 3, b"x"),
        Snapshot(TERM, 9, TERM, 108, 1, 3, b"x"),
        Snapshot(TERM, 9, TERM, 109, 1, 1 << 40, b"x"),
        Snapshot(TERM, 9, TERM, 109, 1, 3, bytes(SNAPSHOT_CHUNK_BYTES + 1)),
    ],
)
def test_wrong_chunk(second: Snapshot) -> None:
    """G8: a snapshot that does not fit together is not installed."""
    machine = backup()
    machine.connected(NOWHERE, T)
    machine.receive(Welcome(TERM, "snapshot", 9), T)
    assert sent(machine.receive(Snapshot(TERM, 9, TERM, 109, 0, 3, b"x"), T)) == [Ack(TERM, 0, 0, 0, 1)]
    assert only(machine.receive(second, T), Close) and machine.state is State.REFUSED
