"""When a backup becomes primary, and when it must not: silence, links, the witness, operators (G6, G7)."""

from __future__ import annotations

import pytest

from actornet.limits import (
    GREETING_MS,
    HEARTBEAT_MS,
    PATIENCE_MS,
    PAUSE_MARGIN,
    PAUSE_MS_MAX,
    SILENCE_MS_DEFAULT,
    SILENCE_MS_MAX,
    SILENCE_MS_MIN,
)
from actornet.replication.backup import Backup
from actornet.replication.messages import Fence, Heartbeat, Records, Stop, Sync, Welcome, Yield
from actornet.replication.protocol import (
    Claim,
    Close,
    Note,
    Position,
    Promote,
    Refused,
    Remember,
    State,
    StopNode,
    Unclaim,
)
from tests.protocol_bench import (
    IDENTITY,
    MS,
    NOWHERE,
    TERM,
    T,
    acked,
    backup,
    following,
    hello,
    in_sync,
    only,
    primary,
    sent,
    synced,
)


@pytest.mark.parametrize("silence_ms", [SILENCE_MS_MIN, SILENCE_MS_DEFAULT, SILENCE_MS_MAX])
def test_silence(silence_ms: int) -> None:
    """G6: after `silence_ms`, and not before; unasked, the backup gives signs of life half as often as the primary."""
    machine, leader = synced(), in_sync("applied", "solo")
    machine.silence_ms = leader.silence_ms = silence_ms
    now_ns, signs = T, 0
    while now_ns < T + silence_ms * MS:
        now_ns += MS
        signs += len(sent(machine.tick(now_ns)))
        leader.tick(now_ns)
    assert machine.state is leader.state is State.IN_SYNC and signs == silence_ms // (2 * HEARTBEAT_MS)
    assert Close(f"silent for {silence_ms} ms") in leader.tick(now_ns + MS) and leader.epoch == TERM + 1
    actions = machine.tick(now_ns + MS)
    assert only(actions, Promote) == Promote(2 * TERM, f"primary silent for {silence_ms} ms")
    assert sent(actions) == [Fence(2 * TERM)] and machine.state is State.PROMOTED


def test_heartbeats_keep_a_backup_quiet() -> None:
    """G6: no takeover from a primary that lives."""
    leader, machine = in_sync(), synced()
    for step in range(1, 200):
        for message in sent(leader.tick(T + step * MS)):
            assert isinstance(message, Heartbeat)
            (answer,) = sent(machine.receive(message, T + step * MS))
            leader.receive(answer, T + step * MS)
        assert sent(machine.tick(T + step * MS)) == [], "it has just answered"
    assert machine.state is leader.state is State.IN_SYNC
    assert leader.leading is not None and machine.lag == leader.leading.lag == 0


def test_a_pause_that_was_announced_is_no_silence() -> None:
    """G6, G7: a node that holds its state still is given so much longer, until its next message; a broken link still tells."""
    pause_ns, told_ms = 20 * MS, 20 * PAUSE_MARGIN
    leader, machine = in_sync("applied", "solo"), synced()
    assert leader.pausing(MS // 2, T) == [] and machine.pausing(MS // 2, T) == [], "too short to matter"
    assert sent(leader.pausing(pause_ns, T)) == [Heartbeat(TERM, 3, T, told_ms)]
    (heartbeat,), (ack,) = sent(leader.pausing(pause_ns, T)), sent(machine.pausing(pause_ns, T))
    machine.receive(heartbeat, T)
    leader.receive(ack, T)
    for wait_ms in range(0, SILENCE_MS_DEFAULT + told_ms + 1, 5):
        machine.tick(T + wait_ms * MS)
        leader.tick(T + wait_ms * MS)
    later = T + (SILENCE_MS_DEFAULT + told_ms) * MS
    assert machine.state is leader.state is State.IN_SYNC
    machine.receive(Heartbeat(TERM, 3, T), later)
    acked(leader, 3, later)
    for wait_ms in range(SILENCE_MS_DEFAULT + 2):
        machine.tick(later + wait_ms * MS)
        leader.tick(later + wait_ms * MS)
    assert machine.state is State.PROMOTED and leader.epoch == TERM + 1

    machine = synced()
    machine.receive(heartbeat, T)
    machine.disconnected("closed by the peer", T)
    assert only(machine.disconnected("refused", T), Promote)
    machine = synced()
    machine.receive(Heartbeat(TERM, 3, T, 10**9), T)
    for wait_ms in range(0, SILENCE_MS_DEFAULT + PAUSE_MS_MAX + 10, 5):
        machine.tick(T + wait_ms * MS)
    assert machine.state is State.PROMOTED, "nobody is waited for forever"


def test_a_process_that_slept_accuses_nobody() -> None:
    """G7: after a pause of the backup (or primary) the other is not at fault; silence is counted anew."""
    machine, leader = synced(), in_sync("applied", "solo")
    later = T + 5_000 * MS
    machine.tick(later)
    leader.tick(later)
    assert machine.state is leader.state is State.IN_SYNC
    for wait_ms in range(SILENCE_MS_DEFAULT + 2):
        machine.tick(later + wait_ms * MS)
        leader.tick(later + wait_ms * MS)
    assert machine.state is State.PROMOTED and leader.epoch == TERM + 1


def test_a_dead_primary_refuses_the_connection() -> None:
    """G6: the takeover is then immediate."""
    machine = synced()
    assert not any(isinstance(action, Promote) for action in machine.disconnected("closed by the peer", T))
    assert machine.state is State.DOUBT
    promote = only(machine.disconnected("connection refused", T), Promote)
    assert promote == Promote(2 * TERM, "link lost: connection refused")


def test_a_live_primary_welcomes_again() -> None:
    """G7: a connection that breaks between two live nodes makes no second primary."""
    machine = synced()
    machine.disconnected("reset", T)
    assert sent(machine.connected(Position(3, 103, TERM), T)) == [hello(epoch=TERM, lsn=3, chain=103, log_epoch=TERM)]
    machine.receive(Welcome(TERM, "tail", 3), T)
    assert machine.state is State.FOLLOWING
    machine.receive(Sync(TERM, 3), T)
    assert machine.state is State.IN_SYNC


def test_doubt_ends() -> None:
    """G6: a primary that takes the connection and says nothing is dead, too, `silence_ms` after the break."""
    machine = synced()
    machine.disconnected("reset", T)
    machine.connected(Position(3, 103, TERM), T + 10 * MS)
    for wait_ms in range(SILENCE_MS_DEFAULT + 1):
        assert machine.tick(T + wait_ms * MS) == []
    assert only(machine.tick(T + (SILENCE_MS_DEFAULT + 1) * MS), Promote)


def test_not_in_sync_is_no_successor() -> None:
    """G6: whatever happens to the link; and it alarms."""
    machine = following()
    assert only(machine.disconnected("reset", T), Note).alarm
    assert machine.disconnected("connection refused", T) == machine.tick(T + 10**12) == []
    assert machine.state is State.ABSENT
    machine = following()
    for wait_ms in range(0, PATIENCE_MS + 20, 10):
        if any(isinstance(action, Close) for action in machine.tick(T + wait_ms * MS)):
            break
    assert machine.state is State.ABSENT and wait_ms > PATIENCE_MS


def test_a_greeting_that_was_lost_is_given_up_soon() -> None:
    """G6: who holds connections and swallows what is said on them keeps a backup away no longer than he does that."""
    for machine in (backup(), primary()):
        if isinstance(machine, Backup):
            machine.connected(NOWHERE, T)
        else:
            machine.connected(T)
        assert machine.state is State.GREETING
        for wait_ms in range(0, GREETING_MS + 20, 10):
            if any(isinstance(action, Close) for action in machine.tick(T + wait_ms * MS)):
                break
        assert machine.state in (State.ABSENT, State.ALONE) and GREETING_MS < wait_ms < PATIENCE_MS


def test_a_connection_made_while_claiming_does_not_outlive_the_claim() -> None:
    """G6: its Welcome could come when the backup is absent, and would be lost."""
    machine = Backup(IDENTITY, "applied", epoch=0, durable_lsn=0, now_ns=T, needs_lease=True)
    machine.connected(NOWHERE, T)
    machine.receive(Welcome(TERM, "tail", 0), T)
    machine.receive(Sync(TERM, 0), T)
    machine.disconnected("reset", T)
    only(machine.disconnected("reset", T), Claim)
    assert sent(machine.connected(NOWHERE, T))
    actions = machine.denied(TERM, "the primary holds the lease")
    assert only(actions, Close) and machine.state is State.ABSENT
    assert machine.receive(Welcome(TERM, "tail", 0), T) == []


def test_operator_promotes() -> None:
    """G6: a backup in sync has its primary hand over; one whose link broke leads without ado, any other only by force."""
    machine = synced()
    for force in (False, True):
        assert only(sent(machine.promote(force=force)), Yield) and machine.state is State.IN_SYNC
    machine.disconnected("reset", T)
    assert only(machine.promote(force=False), Promote).reason == "operator"
    machine = following()
    assert "force" in only(machine.promote(force=False), Refused).reason
    assert only(machine.promote(force=True), Promote) == Promote(2 * TERM, "operator, forced while following")
    assert only(backup(epoch=3 * TERM + 5).promote(force=True), Promote).epoch == 4 * TERM


def claiming() -> Backup:
    """A backup in sync in TERM whose primary fell silent, with a witness to be asked."""
    machine = synced()
    machine.needs_lease = True
    for step in range(SILENCE_MS_DEFAULT + 2):
        actions = machine.tick(T + step * MS)
        if actions and machine.state is State.CLAIMING:
            break
    assert only(actions, Claim) == Claim(2 * TERM, range(TERM, TERM + 1))
    assert only(actions, Close) and not any(isinstance(action, Promote) for action in actions)
    return machine


def test_a_takeover_waits_for_the_witness() -> None:
    """G7: whatever the link does meanwhile."""
    machine = claiming()
    assert machine.disconnected("refused", T) == machine.tick(T + 10**12) == []
    assert machine.state is State.CLAIMING
    actions = machine.granted(2 * TERM, T)
    assert only(actions, Promote) == Promote(2 * TERM, f"primary silent for {SILENCE_MS_DEFAULT} ms", complete=True)
    assert machine.epoch == 2 * TERM


def test_a_claim_that_is_denied() -> None:
    """G7, G8: the primary has gone on alone; this backup lacks what it committed, and has to follow."""
    machine = claiming()
    assert only(machine.denied(TERM + 1, "the primary went on"), Note).alarm
    assert machine.state is State.ABSENT and machine.epoch == TERM + 1
    assert machine.tick(T + 10**12) == [] and machine.disconnected("refused", T) == []


def test_force_after_a_denied_claim_begins_a_later_term() -> None:
    """G7, G10: a node may be granted a term and die before it logs that; nobody would ever lead again."""
    machine = following()
    machine.needs_lease = True
    assert only(machine.promote(force=True), Claim) == Claim(2 * TERM, None)
    assert only(machine.denied(2 * TERM, "a dead process holds the lease"), Remember) == Remember(2 * TERM)
    assert only(machine.promote(force=True), Claim) == Claim(3 * TERM, None)
    assert only(machine.granted(3 * TERM, T), Promote).epoch == 3 * TERM


def test_a_claim_ends_when_the_primary_answers() -> None:
    machine = claiming()
    assert sent(machine.connected(Position(3, 103, TERM), T)) == [hello(epoch=TERM, lsn=3, chain=103, log_epoch=TERM)]
    assert only(machine.receive(Welcome(TERM + 1, "tail", 4), T), Unclaim)
    assert machine.state is State.FOLLOWING and machine.sync_epochs == range(TERM, TERM + 1)
    machine.receive(Records(TERM + 1, 4, [b"r"]), T)
    machine.applied(4, T)
    machine.receive(Sync(TERM + 1, 4), T)
    assert machine.sync_epochs == range(TERM + 1, TERM + 2)


def test_an_operator_asks_the_witness_too() -> None:
    """G7: force is for what this backup may lack, not for a second primary."""
    machine = following()
    machine.needs_lease = True
    assert only(machine.promote(force=True), Claim) == Claim(2 * TERM, None)
    assert "witness" in only(machine.promote(force=False), Refused).reason


def test_handover() -> None:
    """G6: a clean stop ends with the backup as primary, which has every record, and the old one commits them all."""
    machine, follower = in_sync(), synced()
    (records,) = sent(machine.logged([b"r"], T))
    assert machine.stop(T) == [] and machine.state is State.HANDOVER
    follower.receive(records, T)
    (ack,) = sent(follower.applied(4, T))
    actions = machine.receive(ack, T)
    assert machine.watermark == 4 and "handed over" in only(actions, StopNode).reason
    assert only(follower.receive(only(sent(actions), Stop), T), Promote) == Promote(2 * TERM, "handover")
