"""Seeded simulations of a primary and a backup that crash, sleep, and lose each other at any point.

The connections between them are TCP's: in order, up to where they break; beyond that, messages are now and then
repeated or swapped. A failing simulation prints its seed; `simulate(seed)` replays it.
"""

from __future__ import annotations

import os
import random
import struct
from collections import deque
from collections.abc import Iterable
from typing import Any

from actornet.limits import SNAPSHOT_CHUNK_BYTES, TERM_EPOCHS
from actornet.replication import messages
from actornet.replication.backup import Backup
from actornet.replication.messages import AnyMessage
from actornet.replication.primary import Primary
from actornet.replication.protocol import (
    Apply,
    Close,
    Compare,
    Durability,
    Fenced,
    Identity,
    InstallSnapshot,
    Leave,
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
    WithoutBackup,
    epoch_of_launch,
    match,
)

MS = 1_000_000
IDENTITY = Identity("edge", "actors.nat:SourceNAT", "c0de")
TERM = TERM_EPOCHS
SIMULATIONS = int(os.environ.get("ACTORNET_SIMULATIONS", "2000"))
_RECORD = struct.Struct(">QQQQ")  # LSN, epoch, chain before, chain


class Disk:
    """A log: what survives the process."""

    def __init__(self) -> None:
        self.base = Position()
        self.records: list[bytes] = []
        self.heard_epoch = 0
        self.led_epoch = 0
        self.durable_lsn = 0

    @property
    def last_lsn(self) -> int:
        return self.base.lsn + len(self.records)

    @property
    def end(self) -> Position:
        return self.position(self.last_lsn)

    def position(self, lsn: int) -> Position:
        if lsn == self.base.lsn:
            return self.base
        _, epoch, _, chain = _RECORD.unpack(self.records[lsn - self.base.lsn - 1])
        return Position(lsn, chain, epoch)

    def holds(self, lsn: int, chain: int) -> bool:
        """Whether the record is part of this log's history."""
        return lsn < self.base.lsn or (lsn <= self.last_lsn and self.position(lsn).chain == chain)

    def read(self, first_lsn: int, last_lsn: int) -> list[bytes]:
        return self.records[first_lsn - self.base.lsn - 1 : last_lsn - self.base.lsn]

    def append(self, record: bytes) -> None:
        lsn, epoch, before, _ = _RECORD.unpack(record)
        assert (lsn, before) == (self.last_lsn + 1, self.end.chain), "records are gapless and of one history"
        assert epoch >= self.end.epoch
        self.records.append(record)
        self.heard_epoch = max(self.heard_epoch, epoch)

    def cut(self, after_lsn: int) -> None:
        del self.records[after_lsn - self.base.lsn :]
        self.durable_lsn = min(self.durable_lsn, after_lsn)

    def prune(self, before_lsn: int) -> None:
        base = self.position(before_lsn - 1)
        del self.records[: before_lsn - 1 - self.base.lsn]
        self.base = base


class Node:
    """An owner system as the protocol sees it: a disk, a machine, and one end of at most one connection."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.disk = Disk()
        self.machine: Primary | Backup | None = None  # None: the process is dead
        self.peer: Node
        self.connection: Connection | None = None
        self.dial_at_ns = 0
        self.paused_until_ns = 0
        self.rival_asked = False
        self.notes: list[Note] = []
        self.refusals: list[str] = []

    # -- life

    def launch_primary(self) -> None:
        epoch = epoch_of_launch(self.disk.heard_epoch, self.disk.led_epoch)
        if epoch > TERM and epoch % TERM == 0:
            self.world.forced = True  # the operator made a follower's log the primary's
        self._lead(epoch, takeover=False)

    def launch_backup(self) -> None:
        self.machine = Backup(
            IDENTITY,
            self.world.durability,
            epoch=self.disk.heard_epoch,
            durable_lsn=self.disk.durable_lsn,
            now_ns=self.world.now_ns,
        )
        self.dial_at_ns = 0
        self.rival_asked = False

    def _lead(self, epoch: int, *, takeover: bool) -> None:
        self.machine = Primary(
            IDENTITY,
            self.world.durability,
            self.world.policy,
            epoch=epoch,
            first_lsn=self.disk.base.lsn + 1,
            logged_lsn=self.disk.last_lsn,
            takeover=takeover,
            now_ns=self.world.now_ns,
        )
        self.rival_asked = False
        self._begin_epoch(epoch)

    def _begin_epoch(self, epoch: int) -> None:
        self.world.epoch_begun(self, epoch)
        self.disk.led_epoch = epoch
        self.log(1)

    def crash(self) -> None:
        """kill -9: the kernel closes the connection, what was sent before may still arrive."""
        self.machine = None
        if self.connection is not None:
            self.connection.close(self)

    # -- what the owner system does

    def log(self, count: int) -> None:
        assert isinstance(self.machine, Primary)
        batch = []
        for _ in range(count):
            self.world.chain += 1
            end = self.disk.end
            batch.append(_RECORD.pack(end.lsn + 1, self.machine.epoch, end.chain, self.world.chain))
            self.disk.append(batch[-1])
        self.act(self.machine.logged(batch, self.world.now_ns))

    def act(self, actions: Iterable[Any]) -> None:
        todo = deque(actions)
        while todo:
            todo.extendleft(reversed(self._carry_out(todo.popleft())))
        self.world.observe(self)

    def _carry_out(self, action: Any) -> list[Any]:
        machine, disk, now_ns = self.machine, self.disk, self.world.now_ns
        match action:
            case Send(message):
                if self.connection is not None:
                    self.connection.send(self, message)
            case Close():
                if self.connection is not None:
                    self.connection.close(self)
                    self.dial_at_ns = now_ns + 5 * MS
            case Note():
                self.notes.append(action)
                if action.event == "rival fenced":
                    self.rival_asked = True
            case Compare(end):
                assert isinstance(machine, Primary)
                return machine.compared(match(end, disk.base.lsn + 1, disk.last_lsn, disk.position), end)
            case Read(first_lsn, last_lsn):
                assert isinstance(machine, Primary) and last_lsn <= disk.last_lsn
                records = disk.read(first_lsn, last_lsn)
                return machine.tail(records[: self.world.random.randint(1, len(records))], now_ns)
            case TakeSnapshot():
                assert isinstance(machine, Primary)
                data = bytes(self.world.random.randrange(3) * SNAPSHOT_CHUNK_BYTES)
                return machine.snapshot(disk.end, data, now_ns)
            case NewEpoch(epoch):
                self._begin_epoch(epoch)
            case Fenced(epoch) | Remember(epoch):
                disk.heard_epoch = max(disk.heard_epoch, epoch)
            case Apply(first_lsn, records):
                assert isinstance(machine, Backup) and first_lsn == disk.last_lsn + 1
                for record in records:
                    disk.append(record)
                return machine.applied(disk.last_lsn, now_ns)
            case InstallSnapshot(end):
                assert isinstance(machine, Backup)
                assert end.lsn > disk.last_lsn, "a good log is never overwritten by an older one (G8)"
                disk.base, disk.records = end, []
                return machine.applied(end.lsn, now_ns)
            case Promote(epoch, _):
                self.world.promoted(self, epoch)
                self._lead(epoch, takeover=True)
            case Rewind(fork_lsn, fork_chain):
                if fork_lsn >= disk.base.lsn and disk.holds(fork_lsn, fork_chain):
                    self.world.rewound(self, fork_lsn)
                    disk.cut(fork_lsn)
                    self.launch_backup()
                else:
                    self.refusals.append("rewind")
            case Refused(reason):
                self.refusals.append(reason)
            case Leave():
                assert isinstance(machine, Primary)
                return machine.stop(now_ns)
            case StopNode():
                self.world.stopping(self)
        return []

    # -- what happens to it

    @property
    def awake(self) -> bool:
        return self.machine is not None and self.world.now_ns >= self.paused_until_ns

    @property
    def is_primary(self) -> bool:
        return isinstance(self.machine, Primary)

    @property
    def leads(self) -> bool:
        return isinstance(self.machine, Primary) and self.machine.state not in (State.STOPPED, State.FENCED)

    def linked(self) -> None:
        """The connection stands."""
        if isinstance(self.machine, Backup):
            self.act(self.machine.connected(self.disk.end, self.world.now_ns))
        elif isinstance(self.machine, Primary):
            dials = self.connection is not None and self.connection.client is self
            self.act([Send(self.machine.probe())] if dials else self.machine.connected(self.world.now_ns))

    def unlinked(self, reason: str) -> None:
        """The connection broke, or could not be set up."""
        probed = isinstance(self.machine, Primary) and (self.connection is None or self.connection.client is self)
        self.connection = None
        if self.machine is not None and not probed:
            self.act(self.machine.disconnected(reason, self.world.now_ns))

    def hear(self, message: AnyMessage) -> None:
        if isinstance(self.machine, Primary) and self.connection is not None and self.connection.client is self:
            self.act(self.machine.rival(message))
            self.act([Close("asked")])
        elif self.machine is not None:
            self.act(self.machine.receive(message, self.world.now_ns))

    def tick(self) -> None:
        if self.machine is not None:
            self.act(self.machine.tick(self.world.now_ns))

    def sync_disk(self) -> None:
        self.disk.durable_lsn = self.disk.last_lsn
        if isinstance(self.machine, Backup):
            self.act(self.machine.durable(self.disk.durable_lsn, self.world.now_ns))


class Connection:
    """TCP between two nodes: what an end sends arrives in order, up to where the connection breaks."""

    END = object()

    def __init__(self, client: Node, server: Node) -> None:
        self.client = client
        self.inbox: dict[str, deque[Any]] = {client.name: deque(), server.name: deque()}
        client.connection = server.connection = self

    def send(self, sender: Node, message: AnyMessage) -> None:
        assert messages.decode(messages.encode(message)) == message
        self.inbox[sender.peer.name].append(message)

    def close(self, closer: Node) -> None:
        closer.connection = None
        self.inbox[closer.name].clear()
        self.inbox[closer.peer.name].append(self.END)

    def deliver(self, node: Node, most: int) -> None:
        inbox = self.inbox[node.name]
        for _ in range(most):
            if not inbox or node.connection is not self or node.machine is None:
                return
            message = inbox.popleft()
            if message is self.END:
                node.dial_at_ns = 0  # at once
                node.unlinked("closed by the peer")
            else:
                node.hear(message)

    def disturb(self, random_: random.Random) -> None:
        """What the link's MAC would notice: here the protocol has to stand it."""
        inbox = self.inbox[random_.choice(list(self.inbox))]
        if len(inbox) > 1 and self.END not in inbox:
            if random_.random() < 0.5:
                inbox.append(inbox[random_.randrange(len(inbox))])
            else:
                inbox.rotate(1)


class World:
    """Two nodes, the network between them, the operator's hand, and the invariants."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.durability: Durability = self.random.choice(["solo", "received", "durable", "applied"])
        self.policy: WithoutBackup = self.random.choice(["wait", "solo", "stop"])
        self.now_ns = 1_000_000_000
        self.chain = 0
        self.partitioned = False
        self.forced = False  # the operator gave up guarantees
        self.a, self.b = Node(self, "a"), Node(self, "b")
        self.a.peer, self.b.peer = self.b, self.a
        self.leader_of: dict[int, str] = {}
        self.emitted: list[tuple[int, int, int, bool]] = []  # epoch, LSN, chain, alone
        self.watermarks: dict[Primary, int] = {}
        self.takeovers = 0
        self.rewinds = 0

    # -- invariants

    def epoch_begun(self, node: Node, epoch: int) -> None:
        assert epoch not in self.leader_of, f"epoch {epoch} has begun already, on {self.leader_of[epoch]} (G7)"
        assert epoch > node.disk.end.epoch
        self.leader_of[epoch] = node.name

    def observe(self, node: Node) -> None:
        """After each step of a node: has its watermark moved, and was that right?"""
        machine = node.machine
        if not isinstance(machine, Primary):
            return
        before, after = self.watermarks.get(machine, 0), machine.watermark
        assert after >= before, "the watermark never falls"
        if after == before:
            return
        self.watermarks[machine] = after
        assert machine.state is not State.FENCED, "a fenced primary does not commit (G7)"
        assert after <= node.disk.last_lsn and node.disk.position(after).epoch == machine.epoch
        chain = node.disk.position(after).chain
        alone = machine.state not in (State.IN_SYNC, State.HANDOVER, State.STOPPED)
        if self.durability == "solo":
            alone = True
        elif alone:
            assert machine.commits_alone and machine.state is not State.JOINING
        else:
            disk = node.peer.disk
            assert self.forced or disk.holds(after, chain), f"LSN {after} was committed, the backup lacks it (G3)"
            on_disk = self.durability != "durable" or disk.durable_lsn >= after
            assert self.forced or on_disk, f"LSN {after} was committed, the backup has it not on disk (G3)"
        self.emitted.append((machine.epoch, after, chain, alone))

    def promoted(self, node: Node, epoch: int) -> None:
        """The backup takes over: nothing that was committed is missing (G6)."""
        self.takeovers += 1
        assert isinstance(node.machine, Backup) and node.machine.state is State.PROMOTED
        if self.forced:
            return
        assert node.machine.applied_lsn == node.disk.last_lsn, "nothing is to be replayed"
        if self.durability == "solo":
            return
        assert node.peer.disk.led_epoch < epoch, "the old primary is of an older epoch (G7)"
        for emitted_epoch, lsn, chain, alone in self.emitted:
            if not alone or emitted_epoch // TERM < epoch // TERM - 1 or emitted_epoch <= node.disk.end.epoch:
                assert node.disk.holds(lsn, chain), f"committed LSN {lsn} of epoch {emitted_epoch} is lost (G6)"

    def rewound(self, node: Node, fork_lsn: int) -> None:
        self.rewinds += 1
        for _, lsn, chain, _ in self.emitted if not self.forced else []:
            cut = fork_lsn < lsn <= node.disk.last_lsn and node.disk.position(lsn).chain == chain
            assert not cut, f"committed LSN {lsn} is cut off (G8)"

    def stopping(self, node: Node) -> None:
        assert isinstance(node.machine, Primary) and node.machine.state is State.STOPPED

    # -- network

    def dial(self, node: Node) -> None:
        server = node.peer
        if node.connection is not None or self.now_ns < node.dial_at_ns or self.partitioned:
            return
        if isinstance(node.machine, Primary) and (node.rival_asked or not node.leads or server.is_primary is False):
            return
        node.dial_at_ns = self.now_ns + 5 * MS
        if not server.is_primary:
            node.unlinked("connection refused")
        elif server.awake:
            if server.connection is not None:
                replaced = server.connection
                server.unlinked("the peer connected anew")
                replaced.close(server)
            Connection(node, server)
            node.linked()
            server.linked()

    def step(self, *, most_messages: int = 6) -> None:
        """A few milliseconds pass."""
        self.now_ns += self.random.randint(MS // 4, 3 * MS)
        for node in self.random.sample((self.a, self.b), 2):
            if not node.awake:
                continue
            if node.connection is not None and not self.partitioned:
                node.connection.deliver(node, self.random.randint(0, most_messages))
            node.tick()
            self.dial(node)
            if node.leads and node.machine.state is not State.HANDOVER and self.random.random() < 0.5:
                node.log(self.random.randint(1, 5))
            if self.random.random() < 0.2:
                node.sync_disk()

    @property
    def in_sync(self) -> bool:
        states = {getattr(node.machine, "state", None) for node in (self.a, self.b)}
        return states == {State.IN_SYNC} and self.a.is_primary != self.b.is_primary

    # -- faults

    def fault(self) -> None:
        node = self.random.choice((self.a, self.b))
        connection = node.connection
        match self.random.randrange(12):
            case 0 | 1:
                if node.machine is not None:
                    node.crash()
            case 2 | 3 | 4:  # a reset: what was under way is lost
                if connection is not None:
                    for inbox in connection.inbox.values():
                        while inbox and self.random.random() < 0.5:
                            inbox.pop()
                        inbox.append(Connection.END)
            case 5:
                self.partitioned = not self.partitioned
            case 6 | 7:
                node.paused_until_ns = self.now_ns + self.random.randint(5, 80) * MS
            case 8:
                if connection is not None:
                    connection.disturb(self.random)
            case 9:
                first_lsn = node.disk.base.lsn + 1
                if isinstance(node.machine, Primary) and node.machine.watermark >= first_lsn:
                    most_lsn = min(node.machine.needed_lsn, node.machine.watermark + 1)
                    node.machine.first_lsn = self.random.randint(first_lsn, most_lsn)
                    node.disk.prune(node.machine.first_lsn)
            case 10:
                if node.awake and self.random.random() < 0.3:
                    self.operate(node)
            case 11:
                pass
        self.restart()

    def operate(self, node: Node) -> None:
        """The operator intervenes."""
        machine = node.machine
        if isinstance(machine, Primary):
            node.act(machine.stop(self.now_ns))
        elif isinstance(machine, Backup) and self.random.random() < 0.5:
            node.act(machine.promote(force=False))
        elif isinstance(machine, Backup):
            node.act(machine.stop())

    def restart(self) -> None:
        """The operator starts what has ended again, in the role that fits, and now and then in the other."""
        for node in (self.a, self.b):
            if isinstance(node.machine, Primary) and not node.leads:
                node.crash()
            if getattr(node.machine, "state", None) is State.STOPPED:
                node.crash()
            if node.machine is None and self.random.random() < 0.6:
                own = node.disk.led_epoch >= node.disk.heard_epoch > 0
                if own and (not node.peer.leads or self.random.random() < 0.3):
                    node.launch_primary()
                else:
                    node.launch_backup()

    def heal(self) -> None:
        """No more faults: the operator puts right what is left to a person, and the pair must find together."""
        self.partitioned = False
        for node in (self.a, self.b):
            if node.refusals and isinstance(node.machine, Backup):  # to hear again what is in its way
                node.crash()
                node.launch_backup()
            node.refusals.clear()
        for _ in range(4000):
            if self.in_sync:
                return
            self.step()
            self.restart()
            for node in (self.a, self.b):
                if isinstance(node.machine, Backup) and node.peer.leads and node.refusals:
                    node.crash()
                    self.forced = True
                    node.disk = Disk()  # as told: an empty log directory
                    node.launch_backup()
                node.refusals.clear()
            if not self.a.leads and not self.b.leads and self.random.random() < 0.05:
                best = max((self.a, self.b), key=lambda node: (node.disk.heard_epoch, node.disk.last_lsn))
                if isinstance(best.machine, Backup) and best.awake:
                    self.forced = True
                    best.act(best.machine.promote(force=True))
        raise AssertionError(f"the pair does not find together: {self.a.machine!r} {self.b.machine!r}")


def simulate(seed: int) -> World:
    """One life of a pair, faults included."""
    world = World(seed)
    world.a.launch_primary()
    world.b.launch_backup()
    rate = world.random.choice([0.02, 0.05, 0.15])
    for _ in range(60):
        world.step()
        if world.random.random() < rate:
            world.fault()
    world.heal()
    a, b = world.a.disk, world.b.disk
    assert a.holds(b.last_lsn, b.end.chain) or b.holds(a.last_lsn, a.end.chain), "one history"
    return world


def test_simulation() -> None:
    """G3, G6, G7, G8 hold in every one of many random lives of a pair."""
    takeovers = rewinds = 0
    for seed in range(SIMULATIONS):
        try:
            world = simulate(seed)
        except AssertionError as error:
            raise AssertionError(f"simulate({seed}): {error}") from error
        takeovers += world.takeovers
        rewinds += world.rewinds
    assert takeovers > SIMULATIONS / 4 and rewinds > SIMULATIONS / 100, "the simulation exercises what it should"
