"""A primary and a backup on a bench, for the protocol's tests, scenario by scenario. In all of them a primary has logged its
EPOCH record and two more, a backup's log is empty, and it is `T` o'clock."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any

import msgspec

from actornet.limits import TERM_EPOCHS
from actornet.replication.backup import Backup
from actornet.replication.messages import VERSION, Ack, AnyMessage, Hello, Records, Sync, Welcome
from actornet.replication.primary import Primary
from actornet.replication.protocol import (
    Apply,
    Compare,
    Durability,
    Identity,
    Position,
    Read,
    Remember,
    Send,
    State,
    WithoutBackup,
    match,
)

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
