"""A primary with several backups, scenario by scenario. In all of them a witness has granted TERM, the primary has logged
its EPOCH record and two more, and it is `T` o'clock. Backups are `b` on connection 0 and `c` on connection 1."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from actornet.limits import BACKUPS_MAX, SILENCE_MS_DEFAULT, TERM_EPOCHS, YIELD_MS
from actornet.replication.backup import Backup
from actornet.replication.messages import (
    VERSION,
    Ack,
    AnyMessage,
    Heartbeat,
    Hello,
    Records,
    Refuse,
    Stop,
    Sync,
    Welcome,
    Yield,
)
from actornet.replication.primary import Primary
from actornet.replication.protocol import (
    Claim,
    Close,
    Durability,
    Identity,
    Leave,
    Match,
    NewEpoch,
    Position,
    Promote,
    Refused,
    Rewind,
    Send,
    State,
    StopNode,
    Unclaim,
    WithoutBackup,
)

MS = 1_000_000
IDENTITY = Identity("edge", "actors.nat:SourceNAT", "c0de")
TERM = TERM_EPOCHS
T = 1_000_000_000
B, C, D = 0, 1, 2


def primary(durability: Durability = "applied", policy: WithoutBackup = "solo") -> Primary:
    machine = Primary(
        IDENTITY,
        durability,
        policy,
        epoch=TERM,
        first_lsn=1,
        logged_lsn=0,
        takeover=False,
        now_ns=T,
        needs_lease=True,
    )
    machine.logged([b"r"] * 3, T)
    return machine


def joining(machine: Primary, peer: int) -> list[Any]:
    """A backup that has everything connects; it is not counted yet."""
    hello = Hello(0, VERSION, "edge", IDENTITY.nf, "c0de", "backup", machine.logged_lsn, 1, TERM, node="bcdefg"[peer])
    machine.connected(T, peer)
    machine.receive(hello, T, peer)
    end = Position(machine.logged_lsn, 1, TERM)
    return list(machine.compared(Match(1, Position(), 0), end, peer))


def join(machine: Primary, *peers: int) -> None:
    """Backups connect, and count."""
    for peer in peers:
        joining(machine, peer)
        ack(machine, peer)
        assert machine.feeds[peer].state is State.IN_SYNC


def two(durability: Durability = "applied", policy: WithoutBackup = "solo") -> Primary:
    machine = primary(durability, policy)
    join(machine, B, C)
    return machine


def ack(machine: Primary, peer: int, lsn: int | None = None, now_ns: int = T) -> list[Any]:
    lsn = machine.logged_lsn if lsn is None else lsn
    return list(machine.receive(Ack(machine.epoch, lsn, lsn, lsn), now_ns, peer))


def only(actions: Iterable[Any], kind: type[Any]) -> Any:
    found = [action for action in actions if isinstance(action, kind)]
    assert len(found) == 1, f"{kind.__name__} in {actions}"
    return found[0]


def sent(actions: Iterable[Any], peer: int) -> list[AnyMessage]:
    return [action.message for action in actions if isinstance(action, Send) and action.peer == peer]


def test_nothing_of_an_epoch_is_sent_before_it_is_told() -> None:
    """G7: and its record is in the log by then."""
    machine = two()
    only(machine.disconnected("reset", T, C), NewEpoch)
    assert machine.stream([b"epoch"], T) == []
    assert sent(machine.logged([b"epoch"], T), B) == [Sync(TERM + 1, 4, 0), Records(TERM + 1, 4, [b"epoch"])]
    assert sent(machine.stream([b"r"], T), B) == [Records(TERM + 1, 5, [b"r"])]


def test_output_waits_for_every_backup_that_counts() -> None:
    """G3."""
    machine = two()
    assert machine.watermark == 3
    actions = machine.logged([b"r"], T)
    assert sent(actions, B) == sent(actions, C) == [Records(TERM, 4, [b"r"])]
    ack(machine, B)
    assert machine.watermark == 3
    ack(machine, C)
    assert machine.watermark == 4


def test_while_another_joins_output_waits_for_what_was_logged_by_then() -> None:
    """G3, G6: and no longer."""
    machine = primary()
    join(machine, B)
    joining(machine, C)
    machine.receive(Ack(TERM, 2, 2, 2), T, C)
    machine.logged([b"r"], T)
    ack(machine, B, 4)
    assert machine.watermark == 3, "what was logged as C began to join"
    ack(machine, C, 3)
    assert machine.watermark == 3 and machine.feeds[C].counts
    ack(machine, C, 4)
    assert machine.watermark == 4


def test_a_lost_backup_is_left_out_by_a_new_epoch() -> None:
    """G3, G6, G7: logged, told, heard, granted, and only then committed in; those that remain may take over all along."""
    machine = two()
    assert only(machine.disconnected("reset", T, B), NewEpoch) == NewEpoch(TERM + 1, "reset", alone=False)
    actions = machine.logged([b"e"], T)
    assert sent(actions, C) == [Sync(TERM + 1, 4), Records(TERM + 1, 4, [b"e"])]
    assert not [action for action in actions if isinstance(action, Claim)], "C does not know yet"
    assert only(ack(machine, C, 4), Claim) == Claim(TERM + 1, None)
    assert machine.watermark == 3, "B may still take over"
    machine.logged([b"r"], T)
    assert not ack(machine, C, 5), "the witness is asked once"
    machine.granted(TERM + 1, T)
    assert machine.watermark == 5 and not machine.commits_alone


def test_an_acknowledgement_of_the_old_epoch_does_not_say_that_the_new_one_was_heard_of() -> None:
    """G6."""
    machine = two()
    machine.disconnected("reset", T, B)
    machine.logged([b"e"], T)
    assert not [a for a in machine.receive(Ack(TERM, 3, 3, 3), T, C) if isinstance(a, Claim)]


def test_losses_one_after_the_other() -> None:
    """G7: each begins an epoch; the last one as the policy says."""
    machine = two()
    machine.disconnected("reset", T, B)
    machine.logged([b"e"], T)
    assert only(machine.disconnected("reset", T, C), NewEpoch) == NewEpoch(TERM + 2, "reset", alone=True)
    assert only(machine.logged([b"e"], T), Claim) == Claim(TERM + 2, None)
    machine.granted(TERM + 1, T)  # an answer that was on its way
    assert machine.watermark == 3
    machine.granted(TERM + 2, T)
    assert machine.watermark == 5 and machine.commits_alone


def test_two_that_fall_silent_at_once() -> None:
    """G7: no epoch is begun before the one before it is logged."""
    machine = two()
    late = T + (SILENCE_MS_DEFAULT + 1) * MS
    machine.tick(late - 2 * MS)  # it did not sleep itself
    machine.feeds[B].heard_ns = machine.feeds[C].heard_ns = T
    actions = machine.tick(late)
    assert only(actions, NewEpoch).epoch == TERM + 1
    machine.logged([b"e"], late)
    assert only(machine.tick(late), NewEpoch).epoch == TERM + 2


def test_without_the_last_one_the_policy_waits_until_another_has_joined() -> None:
    """G7: who was lost may take over until then, so nothing is committed; after that it may not."""
    machine = primary(policy="wait")
    join(machine, B)
    assert not [a for a in machine.disconnected("reset", T, B) if isinstance(a, NewEpoch)]
    machine.logged([b"r"], T)
    assert machine.watermark == 3
    actions = joining(machine, C)
    assert sent(actions, C)[1] == Sync(TERM, 4) and only(actions, NewEpoch).epoch == TERM + 1
    machine.logged([b"e"], T)
    ack(machine, C)
    assert machine.watermark == 3
    machine.granted(TERM + 1, T)
    assert machine.watermark == 5


def test_the_last_one_comes_back_under_the_policy_wait() -> None:
    """G3: it is the one that output waits for: no new epoch."""
    machine = primary(policy="wait")
    join(machine, B)
    machine.disconnected("reset", T, B)
    join(machine, B)
    machine.logged([b"r"], T)
    ack(machine, B)
    assert machine.epoch == TERM and machine.watermark == 4


def test_none_joins_before_the_epoch_is_granted() -> None:
    """G6: the witness would deny its claim."""
    machine = primary()
    join(machine, B)
    machine.disconnected("reset", T, B)
    machine.logged([b"e"], T)
    joining(machine, C)
    assert ack(machine, C) == [] and machine.feeds[C].state is State.JOINING
    assert Sync(TERM + 1, 4) in sent(machine.granted(TERM + 1, T), C)


def test_a_node_that_connects_anew_has_lost_its_connection() -> None:
    """G7: whether that shows already or not; the other is not touched."""
    machine = two()
    machine.connected(T, D)
    hello = Hello(TERM, VERSION, "edge", IDENTITY.nf, "c0de", "backup", 3, 1, TERM, node="b")
    actions = machine.receive(hello, T, D)
    assert only(actions, Close) == Close("the node connected anew", B) and only(actions, NewEpoch)
    assert set(machine.feeds) == {C, D} and machine.feeds[C].counts


def test_backups_are_bounded() -> None:
    machine = primary()
    join(machine, *range(BACKUPS_MAX))
    machine.connected(T, BACKUPS_MAX)
    hello = Hello(0, VERSION, "edge", IDENTITY.nf, "c0de", "backup", 0, 0, 0, node="one too many")
    (refuse,) = sent(machine.receive(hello, T, BACKUPS_MAX), BACKUPS_MAX)
    assert isinstance(refuse, Refuse) and "the most" in refuse.reason


def test_durability_solo_waits_for_none() -> None:
    machine = two("solo")
    assert machine.epoch == TERM and machine.feeds[B].counts and machine.feeds[C].counts
    machine.logged([b"r"], T)
    assert machine.watermark == 4
    assert not [a for a in machine.disconnected("reset", T, B) if isinstance(a, NewEpoch)]


def test_handover_names_one_successor_once_all_have_everything() -> None:
    """G6."""
    machine = two()
    machine.logged([b"r"], T)
    ack(machine, B)
    assert machine.stop(T) == []
    actions = ack(machine, C)
    assert sent(actions, B) == [Stop(TERM, 4)] and sent(actions, C) == [Stop(TERM, 4, successor=False)]
    assert only(actions, StopNode).reason == "handed over to b"


def test_handover_to_the_one_that_is_left() -> None:
    """G6: the other dies meanwhile."""
    machine = two()
    machine.logged([b"r"], T)
    ack(machine, B)
    machine.stop(T)
    actions = machine.disconnected("reset", T, C)
    assert sent(actions, B) == [Stop(TERM, 4)] and only(actions, StopNode)


def test_an_operator_names_the_successor() -> None:
    """G6: who asks, if it counts; a stop that is under way stays as it is."""
    machine = two()
    machine.connected(T, D)
    assert machine.receive(Yield(TERM, "why"), T, D) == []
    only(machine.receive(Yield(TERM, "why"), T, C), Leave)
    actions = machine.stop(T)
    assert sent(actions, C) == [Stop(TERM, 3)] and sent(actions, B) == [Stop(TERM, 3, successor=False)]
    assert machine.receive(Yield(TERM, "why"), T, B) == []


# The backup's side.


def backup(rank: int = 0) -> Backup:
    """In sync in TERM, at LSN 3, and it has heard of TERM + 1 by Sync."""
    machine = Backup(IDENTITY, "applied", epoch=0, durable_lsn=0, now_ns=T, needs_lease=True, node="c")
    machine.connected(Position(), T)
    machine.receive(Welcome(TERM, "tail", 3), T)
    machine.receive(Records(TERM, 1, [b"r"] * 3), T)
    machine.applied(3, T)
    machine.receive(Sync(TERM, 3), T)
    assert machine.sync_epochs == range(TERM, TERM + 1)
    acks = machine.receive(Sync(TERM + 1, 4, rank), T)
    assert only(acks, Send).message == Ack(TERM + 1, 3, 0, 3), "at once: the primary waits for this"
    return machine


def test_a_backup_may_take_over_from_both_epochs() -> None:
    """G6, G7: whether the primary dies before or after the witness has granted the new one."""
    machine = backup()
    machine.disconnected("reset", T)
    assert only(machine.disconnected("refused", T), Claim) == Claim(2 * TERM, range(TERM, TERM + 2))
    assert only(machine.granted(2 * TERM, T), Promote).complete


def test_backups_are_told_who_comes_first() -> None:
    """So that they do not all claim at once; G7 does not depend on it."""
    machine = primary()
    for rank, peer in enumerate((B, C, D)):
        assert Sync(TERM, 3, rank) in sent(joining(machine, peer) + ack(machine, peer), peer)
    machine.disconnected("reset", T, B)
    actions = machine.logged([b"e"], T)
    assert [sent(actions, peer)[0] for peer in (C, D)] == [Sync(TERM + 1, 4, 0), Sync(TERM + 1, 4, 1)]


@pytest.mark.parametrize("told", [[1], [0, 1], [2, 1]])
def test_a_backup_leaves_others_time_to_be_first(told: list[int]) -> None:
    """By the rank that it was told last; who was named, by an operator or at a stop, does not wait."""
    machines = [backup(told[0]) for _ in range(4)]
    for machine in machines:
        for number, rank in enumerate(told[1:], 2):
            machine.receive(Sync(TERM + number, 4, rank), T)
    lost, silent, named, promoted = machines
    lost.disconnected("reset", T)
    assert only(lost.disconnected("refused", T), Claim).rank == 1
    silent.tick(T + SILENCE_MS_DEFAULT * MS)
    assert only(silent.tick(T + (SILENCE_MS_DEFAULT + 1) * MS), Claim).rank == 1
    assert only(named.receive(Stop(TERM + len(told), 3), T), Claim).rank == 0
    promoted.disconnected("reset", T)
    assert only(promoted.promote(force=False), Claim).rank == 0


def test_a_heartbeat_of_a_new_epoch_is_not_enough() -> None:
    """G7: who follows hears of epochs in which it does not count."""
    machine = backup()
    machine.receive(Heartbeat(TERM + 2, 3, T), T)
    machine.disconnected("reset", T)
    assert only(machine.disconnected("refused", T), Claim).after == range(TERM, TERM + 2)


def test_who_is_not_the_successor_waits_for_it() -> None:
    """G6: and takes over itself where that one does not."""
    machine = backup()
    machine.receive(Stop(TERM + 1, 3, successor=False), T)
    assert machine.state is State.DOUBT and machine.disconnected("refused", T) == []
    later = T + (YIELD_MS - 5) * MS
    machine.tick(later - MS)
    machine._heard_ns = T  # it did not sleep itself
    assert machine.tick(later) == [] and only(machine.tick(later + 10 * MS), Claim)


def test_the_loser_follows_the_winner_and_cuts_what_that_lacks() -> None:
    """G7, G8."""
    machine = backup()
    machine.disconnected("reset", T)
    machine.disconnected("refused", T)
    machine.connected(Position(3, 103, TERM), T)
    actions = machine.receive(Refuse(2 * TERM, "its records after LSN 2 were never committed", 2, 102), T)
    assert only(actions, Unclaim) and only(actions, Rewind).fork_lsn == 2
    assert not [action for action in actions if isinstance(action, Refused)]


@pytest.mark.parametrize("complete", [True, False])
def test_records_of_an_epoch_that_was_never_granted_are_cut(complete: bool) -> None:
    """G8: the primary died as it left a backup out. Where no witness vouches for the takeover, a person decides."""
    machine = primary()
    machine.logged_lsn = 9
    machine.connected(T, B)
    hello = Hello(TERM, VERSION, "edge", IDENTITY.nf, "c0de", "backup", 6, 1, TERM + 1, node="a")
    machine.epoch = 2 * TERM
    machine.receive(hello, T, B)
    found = Match(2, Position(3, 103, TERM), 2 * TERM, complete)
    (refuse,) = sent(machine.compared(found, Position(6, 1, TERM + 1), B), B)
    assert isinstance(refuse, Refuse) and refuse.fork_lsn == (3 if complete else 0)
