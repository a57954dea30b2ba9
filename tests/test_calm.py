"""A pair to which no packet comes: woken seldom, and not less safe than it says (G6, G7)."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from actornet.limits import CALM_HEARTBEAT_MS, CALM_MS, HEARTBEAT_MS, SILENCE_MS_DEFAULT, SILENCE_MS_MIN
from actornet.node.calm import Calm
from actornet.replication.backup import Backup
from actornet.replication.messages import Ack, Heartbeat, Records
from actornet.replication.primary import Primary
from actornet.replication.protocol import CALM_PAUSE_MS, Promote, State
from actornet.testing.pair import Pair
from tests.processes import sleeps
from tests.protocol_bench import MS, TERM, T, in_sync, only, sent, synced

LIMIT_MS = SILENCE_MS_DEFAULT + CALM_PAUSE_MS


def calm_pair() -> tuple[Primary, Backup]:
    leader, machine = in_sync("applied", "solo"), synced()
    leader.calm = True
    return leader, machine


def exchange(leader: Primary, machine: Backup, now_ns: int) -> int:
    """Both do what is due, and hear of it at once; how many messages went."""
    count = 0
    for beat in sent(leader.tick(now_ns)):
        count += 1
        for answer in sent(machine.receive(beat, now_ns)):
            count += 1
            leader.receive(answer, now_ns)
    machine.tick(now_ns)
    leader.tick(now_ns)
    return count


def run_until(leader: Primary, machine: Backup, now_ns: int, end_ns: int) -> tuple[int, int]:
    """Time passes as it does for nodes that sleep until something is due: messages, and how often somebody woke."""
    messages = wakes = 0
    while now_ns < end_ns:
        due_ns = [each.due_ns(now_ns) for each in (leader, machine)]
        now_ns = max(now_ns + 1, min(due for due in due_ns if due is not None))
        messages += exchange(leader, machine, now_ns)
        wakes += 1
    return messages, wakes


@pytest.mark.parametrize("silence_ms", [SILENCE_MS_MIN, SILENCE_MS_DEFAULT])
def test_a_pair_at_rest_says_little_and_stays_in_sync(silence_ms: int) -> None:
    """G6: no takeover from a primary that lives, however short the limit is."""
    leader, machine = calm_pair()
    leader.silence_ms = machine.silence_ms = silence_ms
    seconds = 20
    messages, wakes = run_until(leader, machine, T, T + seconds * 1000 * MS)
    assert machine.state is leader.state is State.IN_SYNC
    beats = seconds * 1000 / CALM_HEARTBEAT_MS
    assert 2 * beats - 2 <= messages <= 2 * beats + 4 and wakes <= beats + 4


def until_it_acts(machine: Primary | Backup, now_ns: int) -> tuple[int, list[Any]]:
    """The machine ticks when it is due, and hears nothing more: when it no longer is in sync, and what it does then."""
    actions: list[Any] = []
    while machine.state is State.IN_SYNC:
        due_ns = machine.due_ns(now_ns)
        assert due_ns is not None and due_ns > now_ns
        now_ns = due_ns
        actions = list(machine.tick(now_ns))
    return now_ns, actions


def test_a_calm_primary_that_freezes_is_taken_over_from_after_the_longer_limit() -> None:
    """G6: and not before."""
    leader, machine = calm_pair()
    begun_ns = T + HEARTBEAT_MS * MS
    exchange(leader, machine, begun_ns)
    now_ns, actions = until_it_acts(machine, begun_ns)
    assert only(actions, Promote) and now_ns == begun_ns + LIMIT_MS * MS + 1


def test_a_backup_that_freezes_is_lost_after_the_longer_limit() -> None:
    """G3, G6: as far as packets wait for it, they do so no longer than that."""
    leader, machine = calm_pair()
    begun_ns = T + HEARTBEAT_MS * MS
    exchange(leader, machine, begun_ns)
    now_ns, _ = until_it_acts(leader, begun_ns)
    assert now_ns == begun_ns + LIMIT_MS * MS + 1 and leader.epoch == TERM + 1


def test_what_comes_ends_the_calm() -> None:
    """G6: from the next message on the usual limit holds on both sides."""
    leader, machine = calm_pair()
    now_ns = T + HEARTBEAT_MS * MS
    exchange(leader, machine, now_ns)
    assert sent(leader.tick(now_ns + 2 * HEARTBEAT_MS * MS)) == []
    leader.calm = False
    now_ns += 3 * HEARTBEAT_MS * MS
    (beat,) = sent(leader.tick(now_ns))
    assert beat == Heartbeat(TERM, 3, now_ns)
    (answer,) = sent(machine.receive(beat, now_ns))
    assert answer == Ack(TERM, 3, 0, 3)
    leader.receive(answer, now_ns)
    for each in (leader, machine):
        each.tick(now_ns)
        due_ns = each.due_ns(now_ns)
        assert due_ns is not None and due_ns - now_ns <= 2 * HEARTBEAT_MS * MS
    silent_ns = now_ns + SILENCE_MS_DEFAULT * MS
    for each in (leader, machine):
        each.tick(silent_ns)
        assert each.state is State.IN_SYNC
    assert only(machine.tick(silent_ns + 1), Promote)
    leader.tick(silent_ns + 1)
    assert leader.epoch == TERM + 1


def test_records_end_the_calm_before_the_primary_knows() -> None:
    """G6: its heartbeats are at the usual interval behind them, and so is the limit."""
    leader, machine = calm_pair()
    now_ns = T + HEARTBEAT_MS * MS
    exchange(leader, machine, now_ns)
    now_ns += 50 * MS
    (records,) = sent(leader.logged([b"r"], now_ns))
    assert isinstance(records, Records)
    machine.receive(records, now_ns)
    leader.receive(sent(machine.applied(4, now_ns))[0], now_ns)
    assert leader.due_ns(now_ns) == now_ns + HEARTBEAT_MS * MS
    machine.tick(now_ns)
    machine.tick(now_ns + SILENCE_MS_DEFAULT * MS)
    assert machine.state is State.IN_SYNC
    assert only(machine.tick(now_ns + SILENCE_MS_DEFAULT * MS + 1), Promote)


def test_who_slept_in_the_calm_accuses_nobody() -> None:
    """G7: a heartbeat's time is no sleep, and a longer one is."""
    leader, machine = calm_pair()
    begun_ns = T + HEARTBEAT_MS * MS
    exchange(leader, machine, begun_ns)
    later_ns = begun_ns + 500 * MS
    machine.tick(later_ns)
    leader.tick(later_ns)
    assert machine.state is leader.state is State.IN_SYNC
    for wait_ms in range(LIMIT_MS + 2):
        machine.tick(later_ns + wait_ms * MS)
        leader.tick(later_ns + wait_ms * MS)
    assert machine.state is State.PROMOTED and leader.epoch == TERM + 1


def test_who_is_kept_by_what_ends_a_pause_accuses_nobody() -> None:
    """G7: a backup that copies a large state, as the record that came behind the primary's pause asks it to."""
    machine = synced()
    machine.receive(Heartbeat(TERM, 3, T, 4 * SILENCE_MS_DEFAULT), T)
    machine.tick(T)
    machine.receive(Records(TERM, 4, [b"r"]), T + 20 * MS)
    machine.tick(T + 20 * MS + (SILENCE_MS_DEFAULT + 10) * MS)
    assert machine.state is State.IN_SYNC


def test_calm_begins_late_and_ends_at_once() -> None:
    calm, now_ns = Calm(), T
    assert calm.is_due(now_ns) and not calm.turn((0,), now_ns)
    assert not calm.is_due(now_ns + MS), "the look is no work for every turn"
    now_ns += CALM_MS * MS - MS
    assert not calm.turn((0,), now_ns)
    now_ns += MS
    assert calm.turn((0,), now_ns) and calm.is_due(now_ns)
    assert not calm.turn((1,), now_ns)
    assert not calm.turn((1,), now_ns + CALM_MS * MS - MS) and calm.turn((1,), now_ns + CALM_MS * MS)


@pytest.mark.root
def test_owner_systems_of_a_pair_at_rest_sleep(tmp_path: Path) -> None:
    """Without traffic an owner system is woken for a heartbeat and its answer, and not much besides."""
    with Pair(tmp_path / "pair") as pair:
        pair.launch("a", "primary")
        pair.launch("b", "backup")
        pair.wait_in_sync("b")
        owners = [pair.process(node, "owner-system") for node in "ab"]
        time.sleep(2.2 + CALM_MS / 1000)  # until the primary has announced itself for the last time, and is calm
        before = [sleeps(owner) for owner in owners]
        time.sleep(2.0)
        a, b = (sleeps(owner) - slept for owner, slept in zip(owners, before, strict=True))
        beats = 2000 / CALM_HEARTBEAT_MS
        assert 0.8 * beats < b < 2 * beats and 1.6 * beats < a < 3 * beats, (a, b)
