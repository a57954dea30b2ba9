"""The primary/backup protocol itself: its table, epochs and who is fenced by them, and messages that make no sense."""

from __future__ import annotations

import random
from typing import Any, Literal

import pytest

from actornet.errors import FencedError, LinkError
from actornet.replication import messages
from actornet.replication.messages import Ack, AnyMessage, Fence, Hello, Records, Refuse, Snapshot, Stop, Sync, Welcome
from actornet.replication.protocol import (
    TRANSITIONS,
    Adopt,
    Close,
    Event,
    Fenced,
    Note,
    Send,
    State,
    diagram,
    epoch_going_on,
    epoch_of_launch,
    epoch_of_takeover,
)
from tests.protocol_bench import NOWHERE, TERM, T, acked, backup, hello, in_sync, only, primary, sent, synced


def test_table() -> None:
    """G6, G7: the table itself lets only a backup in sync, or an operator's, become primary; nothing leaves FENCED."""
    for table in TRANSITIONS.values():
        reached = {next(iter(table))} | {target for moves in table.values() for target in moves.values()}
        assert reached == set(table)
    for state, moves in TRANSITIONS["backup"].items():
        ways = {event for event, target in moves.items() if target is State.PROMOTED}
        by_itself = {State.IN_SYNC, State.DOUBT}
        assert ways <= {Event.OPERATOR, Event.GRANTED} or state in by_itself
    assert not TRANSITIONS["primary"][State.FENCED]


@pytest.mark.parametrize("role", ["primary", "backup"])
def test_diagram(role: Any) -> None:
    """The picture has every arrow of the table."""
    lines = diagram(role).splitlines()
    assert lines[0] == "stateDiagram-v2"
    for state, moves in TRANSITIONS[role].items():
        for event, target in moves.items():
            arrows = [line for line in lines if line.strip().startswith(f"{state.name} --> {target.name} :")]
            assert len(arrows) == 1 and event.value in arrows[0]


def test_epochs() -> None:
    """G7: whoever goes on and whoever takes over never begin the same epoch, and the takeover's is the higher."""
    assert epoch_going_on(0) == TERM
    assert [epoch_going_on(TERM), epoch_going_on(TERM + 7)] == [TERM + 1, TERM + 8]
    assert epoch_of_takeover(TERM) == epoch_of_takeover(2 * TERM - 1) == 2 * TERM
    with pytest.raises(FencedError, match="last of its term"):
        epoch_going_on(2 * TERM - 1)
    assert epoch_of_launch(0, 0) == TERM
    assert epoch_of_launch(TERM + 3, TERM + 3) == TERM + 4
    assert epoch_of_launch(2 * TERM, TERM + 3) == 3 * TERM, "who was fenced, or followed, may not go on from there"


def test_older_epoch_is_refused() -> None:
    """G7: on both sides a message of an older epoch has no effect and is answered with Fence."""
    machine = in_sync()
    machine.logged([b"r"], T)
    assert machine.receive(Ack(TERM - 1, 4, 4, 4), T) == [Send(Fence(TERM))]
    assert machine.watermark == 3
    follower = synced()
    assert follower.receive(Records(TERM - 1, 4, [b"r"]), T) == [Send(Fence(TERM))]
    assert follower.received_lsn == 3


@pytest.mark.parametrize("message", [Fence(2 * TERM), Ack(2 * TERM, 9, 9, 9), Stop(2 * TERM, 0)])
def test_higher_epoch_fences(message: AnyMessage) -> None:
    """G7: a fenced primary neither commits nor logs, and stays so."""
    machine = in_sync("applied", "solo")
    machine.logged([b"r"], T)
    actions = machine.receive(message, T)
    assert only(actions, Fenced).epoch == 2 * TERM and only(actions, Close)
    with pytest.raises(FencedError, match="over"):
        machine.logged([b"r"], T)
    assert acked(machine, 4) == machine.tick(T + 10**10) == machine.stop(T) == machine.go_on_alone() == []
    assert sent(machine.connected(T)) == [Fence(2 * TERM)]
    assert (machine.watermark, machine.state) == (3, State.FENCED)


def test_hello_of_a_higher_epoch_fences() -> None:
    """G7: a backup that has seen a later primary, or that primary itself."""
    for role in ("primary", "backup"):
        machine = primary("applied", "solo")
        machine.connected(T)
        assert Fenced(2 * TERM) in machine.receive(hello(epoch=2 * TERM, role=role), T)


@pytest.mark.parametrize("role", ["primary", "backup"])
def test_another_history_does_not_fence(role: Literal["primary", "backup"]) -> None:
    """G7, G8: epochs of other logs say nothing of this one's; a log without a history, or with this one, is heard."""
    for history in ("", "mine"):
        machine = primary(history="mine")
        machine.connected(T)
        assert Fenced(5 * TERM) in machine.receive(hello(epoch=5 * TERM, role=role, history=history), T)
    machine = primary(history="mine")
    machine.connected(T)
    refuse = only(sent(machine.receive(hello(epoch=5 * TERM, role=role, lsn=9, history="theirs"), T)), Refuse)
    assert "diverges" in refuse.reason and machine.state is State.ALONE


def test_a_backup_has_the_history_of_its_primary() -> None:
    """G8."""
    machine = backup()
    machine.connected(NOWHERE, T)
    assert Adopt("mine") in machine.receive(Welcome(TERM, "tail", 3, "mine"), T)
    machine.disconnected("closed", T)
    assert only(sent(machine.connected(NOWHERE, T)), Hello).history == "mine"
    assert not [action for action in machine.receive(Welcome(TERM, "tail", 3, "mine"), T) if isinstance(action, Adopt)]


def test_a_stranger_does_not_fence() -> None:
    """G7: a node of another deployment has epochs of its own."""
    machine = primary()
    machine.connected(T)
    refuse = only(sent(machine.receive(hello(deployment="core", epoch=9 * TERM), T)), Refuse)
    assert "'core'" in refuse.reason and "'edge'" in refuse.reason and machine.state is State.ALONE


def test_rivals() -> None:
    """G7: of two primaries that speak, the one of the older epoch stands down."""
    old, new = primary("applied", "solo"), primary("applied", "solo")
    new.epoch = 2 * TERM
    old.connected(T)
    answer = only(sent(old.receive(new.probe(), T)), Fence)
    assert old.state is State.FENCED and answer == Fence(2 * TERM)
    assert only(new.rival(answer), Note).event == "rival fenced"

    old = primary("applied", "solo")
    new.connected(T)
    answer = only(sent(new.receive(old.probe(), T)), Fence)
    assert new.state is State.ALONE and only(old.rival(answer), Fenced).epoch == 2 * TERM

    twin = primary("applied", "solo")
    machine = primary("applied", "solo")
    machine.connected(T)
    assert "stop one of the two" in only(sent(machine.receive(twin.probe(), T)), Refuse).reason


@pytest.mark.parametrize(
    "message",
    [
        Records(TERM, 5, [b"r"]),
        Records(TERM, 3, [b"r"]),
        Sync(TERM, 3),
        Welcome(TERM, "tail", 9),
        Snapshot(TERM, 9, TERM, 1, 0, 1, b""),
        Stop(TERM, 9),
        Ack(TERM, 0, 0, 0),
    ],
)
def test_nonsense_parts_without_takeover(message: AnyMessage) -> None:
    """G6, G8: a gap, a repetition, or a message out of place is no evidence of the primary's death."""
    machine = synced()
    actions = machine.receive(message, T)
    assert only(actions, Close) and only(actions, Note).alarm and machine.state is State.REFUSED
    assert machine.disconnected("connection refused", T) == []


@pytest.mark.parametrize(
    "message", [Ack(TERM, 9, 0, 0), Ack(TERM, 3, 9, 3), Ack(TERM, 3, 3, 9), Sync(TERM, 3), Records(TERM, 4, [b"r"])]
)
def test_nonsense_from_a_backup(message: AnyMessage) -> None:
    """G3: it cannot acknowledge what it was not sent."""
    machine = in_sync()
    actions = machine.receive(message, T)
    assert only(sent(actions), Refuse) and only(actions, Close)
    assert (machine.watermark, machine.state) == (3, State.ALONE)


def test_messages_from_garbage() -> None:
    """Whatever bytes come, they are a message or a LinkError."""
    random_ = random.Random(7)
    valid = [
        messages.encode(message)
        for message in (hello(), Records(1, 2, [b"abc", b""]), Ack(1, 2, 3, 4), Refuse(5, "über"), Fence(6))
    ]
    decoded = 0
    for _ in range(5_000):
        data = bytearray(random_.choice(valid))
        for _ in range(random_.randint(0, 4)):
            data[random_.randrange(len(data))] = random_.randrange(256)
        try:
            messages.decode(bytes(data[: random_.randint(0, len(data) + 20)]))
            decoded += 1
        except LinkError as error:
            assert "none of version" in str(error)
    assert decoded > 100
    for deep in (b"\x9c\x0a\x01" + b"\x91" * 100_000, b"\x93\x0a\x01" + b"\x91" * 100_000):
        with pytest.raises(LinkError):
            messages.decode(deep)
