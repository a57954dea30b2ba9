"""The primary/backup protocol, scenario by scenario. In all of them a primary has logged its EPOCH record and two more,
a backup's log is empty, and it is `T` o'clock."""

from __future__ import annotations

import os
import random
from collections import deque
from collections.abc import Iterable
from typing import Any, Literal

import msgspec
import pytest

from actornet.errors import FencedError, LinkError
from actornet.limits import (
    ACK_STALL_MS,
    GREETING_MS,
    HEARTBEAT_MS,
    LINK_BATCH_RECORDS,
    LINK_WINDOW_RECORDS,
    PATIENCE_MS,
    PAUSE_MARGIN,
    PAUSE_MS_MAX,
    SILENCE_MS_DEFAULT,
    SILENCE_MS_MAX,
    SILENCE_MS_MIN,
    SNAPSHOT_CHUNK_BYTES,
    TERM_EPOCHS,
)
from actornet.replication import messages
from actornet.replication.backup import Backup
from actornet.replication.messages import (
    VERSION,
    Ack,
    AnyMessage,
    Fence,
    Heartbeat,
    Hello,
    Records,
    Refuse,
    Seen,
    Snapshot,
    Stop,
    Sync,
    Welcome,
    Yield,
)
from actornet.replication.primary import Primary
from actornet.replication.protocol import (
    TRANSITIONS,
    Adopt,
    Apply,
    Claim,
    Close,
    Compare,
    Durability,
    Event,
    Fenced,
    Identity,
    InstallSnapshot,
    Learn,
    NewEpoch,
    Note,
    Position,
    Promote,
    Read,
    Refused,
    Remember,
    Rewind,
    Send,
    State,
    StopNode,
    TakeSnapshot,
    Unclaim,
    WithoutBackup,
    diagram,
    epoch_going_on,
    epoch_of_launch,
    epoch_of_takeover,
    match,
)
from actornet.replication.stations import Stations

MS = 1_000_000
IDENTITY = Identity("edge", "actors.nat:SourceNAT", "c0de")
TERM = TERM_EPOCHS
T = 1_000_000_000
NOWHERE = Position()


def primary(
    durability: Durability = "applied", policy: WithoutBackup = "wait", *, logged: int = 3, history: str = ""
) -> Primary:
    me = msgspec.structs.replace(IDENTITY, history=history)
    machine = Primary(me, durability, policy, epoch=TERM, first_lsn=1, logged_lsn=0, takeover=False, now_ns=T)
    assert machine.logged([b"r"] * logged, T) == []
    return machine


def backup(durability: Durability = "applied", *, epoch: int = 0) -> Backup:
    return Backup(IDENTITY, durability, epoch=epoch, durable_lsn=0, now_ns=T)


def hello(**changes: Any) -> Hello:
    plain = Hello(0, VERSION, "edge", IDENTITY.nf, "c0de", "backup", 0, 0, 0)
    return msgspec.structs.replace(plain, **changes)


def sent(actions: Iterable[Any]) -> list[AnyMessage]:
    return [action.message for action in actions if isinstance(action, Send)]


def only(actions: Iterable[Any], kind: type[Any]) -> Any:
    found = [action for action in actions if isinstance(action, kind)]
    assert len(found) == 1, f"{kind.__name__} in {actions}"
    return found[0]


def feed(machine: Primary, actions: list[Any]) -> list[AnyMessage]:
    """Answer every Read, as from a log; what was sent."""
    said, todo = [], deque(actions)
    while todo:
        action = todo.popleft()
        if isinstance(action, Read):
            todo.extend(machine.tail([b"r"] * (action.last_lsn - action.first_lsn + 1), T))
        elif isinstance(action, Send):
            said.append(action.message)
    return said


def welcome(machine: Primary, node: str = "") -> list[AnyMessage]:
    """A new backup comes, and is sent everything."""
    assert machine.connected(T) == []
    assert machine.receive(hello(node=node), T) == [Compare(NOWHERE)]
    said = feed(machine, machine.compared(match(NOWHERE, 1, machine.logged_lsn, lambda lsn: Position(lsn)), NOWHERE))
    assert machine.state is State.TAIL
    return said


def acked(machine: Primary, lsn: int, now_ns: int = T) -> list[Any]:
    """The backup has everything up to `lsn`."""
    return list(machine.receive(Ack(machine.epoch, lsn, lsn, lsn), now_ns))


def in_sync(durability: Durability = "applied", policy: WithoutBackup = "wait") -> Primary:
    machine = primary(durability, policy)
    welcome(machine)
    assert Sync(TERM, 3) in sent(acked(machine, 3))
    assert machine.state is State.IN_SYNC and machine.watermark == 3
    return machine


def following(durability: Durability = "applied") -> Backup:
    """A backup with LSN 1 to 3, not in sync yet."""
    machine = backup(durability)
    assert sent(machine.connected(NOWHERE, T)) == [hello()]
    assert Remember(TERM) in machine.receive(Welcome(TERM, "tail", 3), T)
    apply = only(machine.receive(Records(TERM, 1, [b"r"] * 3), T), Apply)
    assert apply == Apply(1, [b"r"] * 3)
    assert sent(machine.applied(3, T)) == [Ack(TERM, 3, 0, 3)]
    assert machine.state is State.FOLLOWING
    return machine


def synced(durability: Durability = "applied") -> Backup:
    machine = following(durability)
    machine.receive(Sync(TERM, 3), T)
    assert machine.state is State.IN_SYNC
    return machine


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


@pytest.mark.parametrize("silence_ms", [SILENCE_MS_MIN, SILENCE_MS_DEFAULT, SILENCE_MS_MAX])
def test_silence(silence_ms: int) -> None:
    """G6: after `silence_ms`, and not before; acknowledgements are the backup's own signs of life."""
    machine, leader = synced(), in_sync("applied", "solo")
    machine.silence_ms = leader.silence_ms = silence_ms
    now_ns, signs = T, 0
    while now_ns < T + silence_ms * MS:
        now_ns += MS
        signs += len(sent(machine.tick(now_ns)))
        leader.tick(now_ns)
    assert machine.state is leader.state is State.IN_SYNC and signs == silence_ms // HEARTBEAT_MS
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
            assert machine.receive(message, T + step * MS) == []
        for message in sent(machine.tick(T + step * MS)):
            leader.receive(message, T + step * MS)
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


def test_going_on_alone_waits_for_the_witness() -> None:
    """G3, G7: the backup may still claim the lease for the old epoch; then what is logged now was never committed."""
    machine = in_sync("applied", "solo")
    machine.needs_lease = True
    assert only(machine.disconnected("reset", T), NewEpoch).epoch == TERM + 1
    machine.logged([b"r"], T)
    assert machine.watermark == 3
    assert machine.granted(TERM + 1, T) == [] and machine.watermark == 4
    assert only(machine.fenced(2 * TERM), Fenced).epoch == 2 * TERM and machine.state is State.FENCED


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


def test_stop_without_a_backup() -> None:
    """A clean stop needs nobody, and does not wait for one that leaves."""
    assert only(primary().stop(T), StopNode)
    machine = in_sync()
    machine.logged([b"r"], T)
    machine.stop(T)
    assert only(machine.disconnected("reset", T), StopNode) and machine.watermark == 3


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
