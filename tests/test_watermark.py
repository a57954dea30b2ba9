"""What of the log is committed (G3): with a backup, without one, and where one comes or leaves."""

from __future__ import annotations

import pytest

from actornet.errors import FencedError
from actornet.limits import ACK_STALL_MS
from actornet.replication.messages import Ack, Records, Refuse, Stop, Sync
from actornet.replication.primary import Primary
from actornet.replication.protocol import Durability, Fenced, NewEpoch, Note, State, StopNode
from tests.protocol_bench import IDENTITY, MS, TERM, T, acked, in_sync, only, primary, sent, synced, welcome


@pytest.mark.parametrize(
    ("durability", "ack", "watermark"),
    [
        ("solo", (3, 3, 3), 9),
        ("received", (7, 4, 6), 7),
        ("durable", (7, 4, 6), 4),
        ("applied", (7, 4, 6), 6),
    ],
)
def test_watermark(durability: Durability, ack: tuple[int, int, int], watermark: int) -> None:
    """G3: what the durability mode asks for, here and at the backup, and never less than before."""
    machine = in_sync(durability)
    machine.logged([b"r"] * 6, T)
    assert machine.watermark == (9 if durability == "solo" else 3)
    machine.receive(Ack(TERM, *ack), T)
    assert machine.watermark == watermark
    machine.receive(Ack(TERM, 3, 3, 3), T)
    assert machine.watermark == watermark


def test_records_travel_before_they_are_logged() -> None:
    """G3: and are committed only once they are, whatever the backup has by then."""
    for durability in ("solo", "received", "durable", "applied"):
        machine = in_sync(durability)
        assert sent(machine.stream([b"r", b"s"], T)) == [Records(TERM, 4, [b"r", b"s"])]
        assert machine.watermark == 3 and machine.logged_lsn == 3
        assert sent(machine.logged([b"r", b"s"], T)) == [], "they are under way"
        assert machine.watermark == (5 if durability == "solo" else 3)
        acked(machine, 5)
        assert machine.watermark == 5


def test_only_who_has_all_before_is_sent_records_ahead() -> None:
    """G4: a backup that catches up reads them from the log, in their turn."""
    machine = primary("applied", "solo")
    welcome(machine)
    machine.leading.sent_lsn -= 1  # type: ignore[union-attr]
    assert machine.stream([b"r"], T) == []


def test_nothing_is_sent_in_an_epoch_that_is_over() -> None:
    """G7: nor logged then."""
    machine = in_sync("applied")
    only(machine.receive(Ack(2 * TERM, 3, 3, 3), T), Fenced)
    with pytest.raises(FencedError):
        machine.stream([b"r"], T)


def test_policy_wait() -> None:
    """G3, G7: without a backup nothing is committed; with the next one it goes on, in the same epoch."""
    machine = primary("applied", "wait")
    assert machine.watermark == 0
    welcome(machine)
    acked(machine, 3)
    assert only(machine.disconnected("closed by the peer", T), Note).alarm
    machine.logged([b"r"], T)
    assert (machine.watermark, machine.epoch) == (3, TERM)
    welcome(machine)
    acked(machine, 4)
    assert (machine.watermark, machine.epoch) == (4, TERM)


def test_policy_solo() -> None:
    """G3, G7: to go on alone is a new epoch, and nothing is committed in it before the log says so."""
    machine = in_sync("applied", "solo")
    machine.logged([b"r"], T)
    actions = machine.disconnected("closed by the peer", T)
    assert only(actions, NewEpoch) == NewEpoch(TERM + 1, "closed by the peer")
    assert machine.watermark == 3
    assert machine.receive(Ack(TERM, 4, 4, 4), T) == []
    assert machine.watermark == 3, "an acknowledgement after the loss does not count"
    machine.logged([b"epoch record"], T)
    assert machine.watermark == 5


def test_policy_stop() -> None:
    """G7: the node stops; but it may be launched before its backup."""
    machine = primary("applied", "stop")
    assert machine.watermark == 0 and machine.state is State.ALONE
    welcome(machine)
    acked(machine, 3)
    assert "backup lost" in only(machine.disconnected("closed by the peer", T), StopNode).reason
    with pytest.raises(FencedError):
        machine.logged([b"r"], T)


def test_policy_does_not_ask_for_a_backup_that_never_counted() -> None:
    """G7: a backup that left while catching up changes nothing."""
    for policy in ("wait", "solo", "stop"):
        machine = primary("applied", policy)
        welcome(machine)
        before = machine.watermark
        assert not any(isinstance(a, NewEpoch | StopNode) for a in machine.disconnected("reset", T))
        assert (machine.watermark, machine.epoch, machine.state) == (before, TERM, State.ALONE)


def test_takeover_goes_on_alone() -> None:
    """G6: a promoted backup needs no backup of its own to serve, whatever the policy."""
    machine = Primary(IDENTITY, "applied", "wait", epoch=2 * TERM, first_lsn=1, logged_lsn=7, takeover=True, now_ns=T)
    assert machine.watermark == 0
    machine.logged([b"epoch record"], T)
    assert machine.watermark == 8


def test_nothing_is_committed_before_the_epochs_record() -> None:
    """G7: however early the backup has everything."""
    machine = Primary(IDENTITY, "applied", "wait", epoch=TERM, first_lsn=1, logged_lsn=7, takeover=False, now_ns=T)
    welcome(machine)
    acked(machine, 7)
    assert (machine.state, machine.watermark) == (State.IN_SYNC, 0)
    machine.logged([b"epoch record"], T)
    acked(machine, 8)
    assert machine.watermark == 8


def test_operator_ends_the_waiting() -> None:
    """G7: also by a new epoch."""
    machine = primary("applied", "wait")
    assert machine.go_on_alone() == [NewEpoch(TERM + 1, "operator")]
    assert machine.go_on_alone() == []
    machine.logged([b"epoch record"], T)
    assert machine.watermark == 4


def test_joining_freezes_the_watermark() -> None:
    """G3, G6: a primary that went on alone commits nothing between 'everything is sent' and 'the backup has it'. What was
    there when the backup came, and may take it long, it has before that."""
    machine = primary("applied", "solo")
    welcome(machine)
    assert sent(machine.logged([b"r"] * 2, T)) == [Records(TERM, 4, [b"r"] * 2)]
    assert machine.watermark == 5, "it goes on alone meanwhile"
    assert sent(acked(machine, 2)) == [] and machine.state is State.TAIL
    assert sent(acked(machine, 3)) == [] and machine.state is State.JOINING
    assert sent(machine.logged([b"r"], T)) == [Records(TERM, 6, [b"r"])] and machine.watermark == 5
    assert sent(acked(machine, 4)) == []
    assert sent(acked(machine, 5)) == [Sync(TERM, 5)]
    assert machine.watermark == 5
    acked(machine, 5)
    assert machine.watermark == 5


def test_going_on_alone_waits_for_the_witness() -> None:
    """G3, G7: the backup may still claim the lease for the old epoch; then what is logged now was never committed."""
    machine = in_sync("applied", "solo")
    machine.needs_lease = True
    assert only(machine.disconnected("reset", T), NewEpoch).epoch == TERM + 1
    machine.logged([b"r"], T)
    assert machine.watermark == 3
    assert machine.granted(TERM + 1, T) == [] and machine.watermark == 4
    assert only(machine.fenced(2 * TERM), Fenced).epoch == 2 * TERM and machine.state is State.FENCED


def test_stop_without_a_backup() -> None:
    """A clean stop needs nobody, and does not wait for one that leaves."""
    assert only(primary().stop(T), StopNode)
    machine = in_sync()
    machine.logged([b"r"], T)
    machine.stop(T)
    assert only(machine.disconnected("reset", T), StopNode) and machine.watermark == 3


def test_backup_leaves() -> None:
    """G7: a backup's clean stop is no loss in disguise: the policy applies, with that reason."""
    machine = in_sync("applied", "solo")
    actions = machine.receive(only(sent(synced().stop()), Stop), T)
    assert only(actions, NewEpoch).reason == "the backup was stopped"


def test_stalled_backup_is_told() -> None:
    """G3, G7: alive, but it acknowledges nothing: it no longer counts, is told so, and does not promote itself."""
    machine, follower = in_sync("applied", "solo"), synced()
    machine.logged([b"r"], T)
    refuse = None
    for wait_ms in range(0, ACK_STALL_MS + 10, 5):
        machine.receive(Ack(TERM, 3, 3, 3), T + wait_ms * MS)
        if said := [message for message in sent(machine.tick(T + wait_ms * MS)) if isinstance(message, Refuse)]:
            refuse = said[0]
            break
    assert refuse is not None and wait_ms > ACK_STALL_MS and machine.epoch == TERM + 1
    follower.receive(refuse, T)
    assert follower.disconnected("closed by the peer", T) == [] and follower.state is State.REFUSED


def test_acknowledges() -> None:
    """G3: once after applying; in mode `received` also before; in mode `durable` also after a sync."""
    for durability, before in (("applied", 0), ("received", 1), ("durable", 0)):
        machine = synced(durability)
        actions = machine.receive(Records(TERM, 4, [b"r"] * 5), T)
        assert sent(actions) == [Ack(TERM, 8, 0, 3)] * before
        assert sent(machine.applied(8, T)) == [Ack(TERM, 8, 0, 8)]
        assert sent(machine.durable(8, T)) == ([Ack(TERM, 8, 8, 8)] if durability == "durable" else [])
