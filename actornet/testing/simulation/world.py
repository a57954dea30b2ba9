"""The simulated nodes, the network between them, the operator's hand, and what must hold after every step."""

from __future__ import annotations

from collections import Counter
from random import Random
from typing import Any

from actornet.engine.five_tuple import FiveTuple
from actornet.engine.ring import ACTIVE, FENCED
from actornet.engine.wire import rss_core
from actornet.flow import FlowActor
from actornet.limits import TERM_EPOCHS
from actornet.log.record import FlowBody
from actornet.replication.backup import Backup
from actornet.replication.messages import AnyMessage, Fence, Hello, Sync, Welcome
from actornet.replication.primary import Primary
from actornet.replication.protocol import State
from actornet.testing.simulation.chained import Chained, fields_of
from actornet.testing.simulation.disk import SimulatedLog
from actornet.testing.simulation.network import MS, Network
from actornet.testing.simulation.node import Fabric, Node, five_tuple, frame, read_frame
from actornet.testing.simulation.schedule import STEPS, Event, Schedule
from actornet.testing.simulation.streams import Streams, client_port, from_inside, payload
from actornet.testing.simulation.streams import five_tuple as connection_tuple
from actornet.testing.simulation.tagging import Tagging, tags
from actornet.testing.simulation.ticketing import (
    COUNT_FIRST,
    COUNTING,
    IDLE_FIRST,
    OFFLOADING,
    READING,
    REVOKING,
    STAMP_FIRST,
    TICKET_FIRST,
    Entry,
    Ticketing,
)
from actornet.testing.simulation.witness import Register

HEAL_STEPS_MAX = 4000
UNDER_WAY_NS = 25 * MS
"""When the faults end, the longest delay in the network goes on for so long: a reset may be under way yet."""
_COUNTING_STATES = (State.IN_SYNC, State.HANDOVER, State.STOPPED)
_FLOWS = 12
_IDLE_FLOWS = 6
_RUSH = 12  # more packets in a step of a rush
_fabrics: dict[tuple[str, int], Fabric] = {}

NFS: dict[str, type[FlowActor]] = {"ticketing": Ticketing, "tagging": Tagging, "chained": Chained}

_REVOCATIONS = {"ticketing": 1 << 30, "tagging": 0, "chained": 6}
"""A chain binds the reply of each rewriting that a flow gets, and a flow has 16 keys."""

_GIVEN = {"ticketing": {"tickets": "ticket"}, "chained": {"tickets": "ticket", "stamps": "stamp"}}
"""Owners whose numbers flows keep, and the fields where they do."""


def _owner(number: int) -> str:
    """Who gives out such numbers."""
    return "tickets" if number < COUNT_FIRST else "counts" if number < STAMP_FIRST else "stamps"


class Violation(AssertionError):
    """A guarantee was broken; the text begins with its number."""


class Promise:
    """Something left that depends on the log up to here: in which epoch, and whether its primary was alone then."""

    def __init__(self, lsn: int, epoch: int, *, alone: bool) -> None:
        self.lsn = lsn
        self.epoch = epoch
        self.alone = alone


class Claim(Promise):
    """A number was seen outside, which says this of the state."""

    def __init__(self, flow: int, entry: Entry, epoch: int, *, alone: bool) -> None:
        super().__init__(entry.lsn, epoch, alone=alone)
        self.flow = flow
        self.owner_flow = entry.flow


class Record(Promise):
    """The last record that may count for what left; `data` has the chain over those before."""

    def __init__(self, lsn: int, data: bytes, epoch: int, *, alone: bool) -> None:
        super().__init__(lsn, epoch, alone=alone)
        self.data = data


class World:
    """One life of a deployment. `trace`, if given, gets a line for each thing that happens.

    Streams go by way of the node that leads; if two do, by the newer one. What the other one sends, where no witness keeps it
    from that, does not reach the ends: it goes on from records that the newer one does not have, and nothing is promised
    of both together. Where records are given up that something had left upon, connections begin anew.
    """

    def __init__(self, schedule: Schedule, trace: list[str] | None = None) -> None:
        self.nf = NFS[schedule.nf]
        self.nf.prepare()
        self.schedule = schedule
        self.trace = trace
        self.now_ns = 1_000_000_000
        self.step = 0
        self.random = Random(schedule.seed)
        self.network = Network(lambda: self.now_ns)
        names = "abc"[: schedule.nodes]
        self.nodes = {name: self._node(name, [other for other in names if other != name]) for name in names}
        self.a, self.b = self.nodes["a"], self.nodes["b"]
        self.network.leading = self._leading
        self.network.on_message = self._told
        self.network.on_send = self._tells
        self.network.time_at = lambda name: self.nodes[name].time_here_ns
        self.announced: set[int] = set()  # epochs in which their primary has sent a message
        self._began: dict[int, Any] = {}  # by which machine
        self.register = Register(lambda: self.now_ns)
        if schedule.witness:
            for node in self.nodes.values():
                node.register = self.register
        self.leader_of: dict[int, str] = {}
        self.led_epoch = dict.fromkeys("abc", 0)
        self.told_epoch = dict.fromkeys("abc", 0)
        self.told_sync = dict.fromkeys("abc", False)
        self._heard_epoch = dict.fromkeys("abc", 0)  # in the step that goes on
        self.claims: dict[int, Claim] = {}
        self.tickets: dict[int, int] = {}  # of each offloaded flow that was seen outside and not closed since
        self.closed: set[int] = set()
        # Revocations of offloads that were seen outside: their number, and that of the next packet by then.
        self.revoked: list[tuple[Claim, int, int]] = []
        # How often handlers were given a number, from this LSN, again; and packets that left with it although it was revoked.
        self.given_again: Counter[tuple[int, int]] = Counter()
        self.repeated: dict[tuple[int, int], set[int]] = {}
        self.newest: dict[int, tuple[Any, int]] = {}  # the packet of each flow that left last, and in whose life
        self.wiped = False  # a disk has lost what was safe on it as the mode understands that
        self.sent = self.emitted = self.takeovers = self.handovers = self.rewinds = self.promotions = 0
        self.reached: set[str] = set()
        self.went_on: Counter[str] = Counter()  # packets of old primaries, resent or resumed
        self._watermarks: dict[str, tuple[Any, int]] = {}
        self._takeover: dict[str, Any] = {}
        self._sync_rate = (0.02, 0.2)[schedule.seed % 2]
        self._full_until = dict.fromkeys("abc", 0)
        self._down_until = dict.fromkeys("abc", 0)
        self._rush_until = self._lull_until = 0
        self._revocations_left = _REVOCATIONS[schedule.nf]
        self.streams: Streams | None = None
        self.left: dict[int, Record] = {}  # by LSN, where there are streams: what left may depend on any record before
        if schedule.nf == "tagging":
            self.streams = Streams(Random(f"{schedule.seed} streams"), lambda text: self._demand(False, f"G6: {text}"))
        self._flows = _FLOWS + (_IDLE_FLOWS if schedule.idles else 0)

    def _node(self, name: str, peers: list[str]) -> Node:
        cores, plan = self.schedule.cores, self.schedule
        fabric = _fabrics.get((name, cores)) or _fabrics.setdefault((name, cores), Fabric(cores))
        watched = (self._observe, self._seen, self._cut, self._given_again)
        node = Node(name, peers, self.network, fabric, plan.durability, plan.without_backup, *watched)
        node.nf, node.ticks = self.nf, plan.idles
        node.silence_ms = plan.silence_ms["abc".index(name)]
        node.paced, node.upkeep, node.pause_ms = plan.paced, plan.upkeep, plan.pause_ms
        node.rate = 1 + self.random.uniform(-0.01, 0.01)
        return node

    def say(self, text: str) -> None:
        if self.trace is not None:
            self.trace.append(f"{self.now_ns / 1e6 - 1000:9.3f} ms  {self.step:4}  {text}")

    # -- the course -------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """All of it. Raises Violation."""
        self._launch(self.a, "primary")
        for node in list(self.nodes.values())[1:]:
            self._launch(node, "backup")
        events: dict[int, list[Event]] = {}
        for event in self.schedule.events:
            events.setdefault(event.step, []).append(event)
        for step in range(STEPS):
            for event in events.get(step, ()):
                self.say(f"-- {event}")
                self._fault(event)
            self.go()
        self.heal()

    def go(self) -> None:
        """A few milliseconds pass. What is random in a step depends on seed and step alone."""
        self.step += 1
        self.random.seed(self.schedule.seed << 20 | self.step)
        self.network.random.seed(self.schedule.seed << 20 | self.step | 1 << 60)
        self.register.random.seed(self.schedule.seed << 20 | self.step | 1 << 61)
        if self.streams is not None:
            self.streams.random.seed(self.schedule.seed << 20 | self.step | 1 << 62)
            self.streams.pass_time()
            if self._newest_leader() is None:
                self.streams.lose()
        self.now_ns += self.random.randint(MS // 4, 3 * MS)
        order = list(self.nodes.values())
        if len(order) > 2:
            self.random.shuffle(order)
        elif self.random.random() >= 0.5:
            order.reverse()
        for node in order:
            if node.disk.full and self.step >= self._full_until[node.name]:
                node.disk.full = False
            if node.system is None:
                if self.random.random() < 0.15 and self.step >= self._down_until[node.name]:
                    self._restart(node)
            elif node.awake:
                before = node.system
                node.syncs = self.random.random() < self._sync_rate
                node.turn(self._traffic(node))
                if node.system is None and before is not None:
                    self.say(f"{node.name} is gone: {node.end}")
                    self.reached.add(node.end.partition(":")[0])
                elif self.random.random() < self._sync_rate:
                    node.sync()

    def _traffic(self, node: Node) -> list[list[bytes]]:
        """What the switch gives to the node that leads, by core."""
        arriving: list[list[bytes]] = [[] for _ in node.cores]
        if self.step < self._lull_until:
            return arriving
        if self.streams is not None:
            for data in self.streams.arriving() if node is self._newest_leader() else ():
                arriving[self._core(connection_tuple(data))].append(data)
            return arriving
        count = self.random.choice((0, 1, 1, 2, 4)) + (_RUSH if self.step < self._rush_until else 0)
        for _ in range(count if node.leads else 0):
            flow = self.random.randint(1, self._flows)
            if flow > _FLOWS:
                flow += IDLE_FIRST - _FLOWS - 1
            kind = (OFFLOADING, COUNTING, READING)[flow % 3]
            if flow == _FLOWS and self.schedule.revokes:
                if not self._revocations_left:
                    continue
                kind = REVOKING
                self._revocations_left -= 1
            close = kind == COUNTING and self.random.random() < 0.1
            if close:
                self.closed.add(flow)
            arriving[self._core(five_tuple(flow, kind))].append(frame(flow, kind, self.sent, close=close))
            self.sent += 1
        return arriving

    def _core(self, flow: FiveTuple) -> int:
        cores = self.schedule.cores
        return rss_core(flow, cores) if cores > 1 else 0

    def _newest_leader(self) -> Node | None:
        return max((node for node in self.nodes.values() if node.leads), key=lambda node: node.page.epoch, default=None)

    # -- what must hold ---------------------------------------------------------------------------------------------

    def _demand(self, condition: bool, text: str) -> None:
        if not condition:
            self.say(f"VIOLATION: {text}")
            raise Violation(text)

    def _peers(self, node: Node) -> list[Node]:
        return [self.nodes[name] for name in node.peer_names]

    def _leads_besides(self, node: Node) -> bool:
        return any(peer.leads for peer in self._peers(node))

    def _observe(self, node: Node) -> None:
        """After each step of an owner system."""
        system = node.system
        assert system is not None
        machine, page = system.machine, node.page
        log: Any = system.log
        self.told_epoch[node.name] = max(self.told_epoch[node.name], self._heard_epoch[node.name])
        self._one_emitter()
        self._demand(page.lsn_logged <= log.last_lsn, "G3: more is said to be logged than is")
        if isinstance(machine, Primary):
            self._lead(node, machine)
            self._successors(node, machine)
            known, watermark = self._watermarks.get(node.name, (None, 0))
            if known is machine:
                self._demand(machine.watermark >= watermark, "G3: the watermark fell")
            self._watermarks[node.name] = (machine, machine.watermark)
            if system.takeover is not None and system.takeover is not self._takeover.get(node.name):
                self._takeover[node.name] = system.takeover
                self.went_on.update(system.takeover["packets"])
                self._taken_over(node)
        for peer in self._peers(node):
            if peer.system is not None and self.random.random() < 0.3:
                self._same_state(node, peer)

    def _successors(self, node: Node, machine: Primary) -> None:
        """Each backup that counts would be granted the lease now, if it is to take over at any moment (G6)."""
        entry = self.register.entry
        if not self.schedule.witness or not node.leads or entry.epoch != machine.epoch:
            return
        for feed in machine.feeds.values():
            system = self.nodes[feed.node].system if feed.counts else None
            backup = system.machine if system is not None else None
            if isinstance(backup, Backup) and backup.state is State.IN_SYNC:
                claims = entry.epoch in backup.sync_epochs
                self._demand(claims, f"G6: {feed.node} counts in epoch {entry.epoch}, and could not take over")

    def _leading(self, name: str) -> int:
        """The epoch that a node leads; 0: none."""
        system = self.nodes[name].system
        leads = system is not None and isinstance(system.machine, Primary) and self.nodes[name].page.role == ACTIVE
        return system.machine.epoch if leads and system is not None else 0

    def _tells(self, name: str, message: AnyMessage) -> None:
        if not isinstance(message, Fence | Hello) and message.epoch == self._leading(name):
            self.announced.add(message.epoch)

    def _told(self, name: str, epoch: int, message: AnyMessage) -> None:
        """A node hears a message, of a sender that led this epoch (0: it led none)."""
        self._heard_epoch[name] = max(self._heard_epoch[name], epoch)
        if isinstance(message, Sync | Welcome):
            self.told_sync[name] = isinstance(message, Sync)

    def _lead(self, node: Node, machine: Primary) -> None:
        epoch = machine.epoch
        began = self._began.get(epoch)
        self._demand(began in (None, machine) or epoch not in self.announced, f"G7: epoch {epoch} begun twice")
        self._began[epoch] = machine
        if self.leader_of.get(epoch) != node.name:
            told = self.told_epoch[node.name]
            self._demand(epoch > told, f"G7: {node.name} begins epoch {epoch}, and was told of {told} before")
            self._demand(epoch not in self.leader_of, f"G7: epoch {epoch} begun by two nodes")
            self.leader_of[epoch] = node.name
            self.led_epoch[node.name] = epoch
            self.say(f"{node.name} leads epoch {epoch}")
            if (
                node.system is not None
                and node.system.takeover is None
                and self._watermarks.get(node.name, (None,))[0] is not machine
            ):
                self._give_up_what_is_missing(node)  # the operator chose it, though the other may have more

    def _same_state(self, node: Node, peer: Node) -> None:
        assert node.system is not None and peer.system is not None
        mine, theirs = node.system.journal, peer.system.journal
        if mine.lsn == theirs.lsn and mine.chain == theirs.chain:
            self._demand(
                mine.replica.state_hash() == theirs.replica.state_hash(), f"G4: the states differ at LSN {mine.lsn}"
            )

    def _taken_over(self, node: Node) -> None:
        """Nothing that was promised is missing (G6)."""
        assert node.system is not None
        machine, journal = node.system.machine, node.system.journal
        reason = node.system.takeover["reason"] if node.system.takeover else ""
        self.takeovers += 1
        peers = [peer.links_down for peer in self._peers(node)]
        self.handovers += reason == "handover" and node.links_down < max(peers)
        told = self.told_sync[node.name] or self.schedule.witness  # whose grant is good without
        self._demand(told or "operator" in reason, f"G6: {node.name} takes over, and was not told it may")
        self.say(f"{node.name} took over: {reason}")
        if self.schedule.durability == "solo" or "forced" in reason:
            self._give_up_what_is_missing(node)
            return
        epoch = machine.epoch
        ended = [record_epoch for record_epoch in self.leader_of if record_epoch < epoch]
        followed = max((e for e in ended if e <= self._epoch_before(node)), default=0)

        def excused(promise: Promise) -> bool:
            # Alone after its backup had left it, the old primary could promise this to nobody, where no witness did.
            unpromised = promise.alone and not self.schedule.witness
            return unpromised and promise.epoch > followed and promise.epoch // TERM_EPOCHS >= epoch // TERM_EPOCHS - 1

        for number, claim in list(self.claims.items()):
            if self._knows(journal.replica, number, claim):
                continue
            lost = f"number {number} of flow {claim.flow}, LSN {claim.lsn}"
            self._demand(excused(claim), f"G6: {lost}, is lost by the takeover")
            self._forget_claim(number)
        for record in self._missing(node):
            self._demand(excused(record), f"G6: LSN {record.lsn}, which packets had left upon, is lost by the takeover")
        self._begin_streams_anew(node)

    def _epoch_before(self, node: Node) -> int:
        """The epoch of the records that the new primary had followed."""
        assert node.system is not None
        machine = node.system.machine
        epochs = [epoch for epoch in self.leader_of if epoch < machine.epoch]
        log: Any = node.system.log
        return max((epoch for epoch in epochs if log.holds_epoch(epoch)), default=0)

    def _give_up_what_is_missing(self, node: Node) -> None:
        """The operator, or the mode, gave up what this node does not have."""
        assert node.system is not None
        replica = node.system.journal.replica
        self.revoked = [known for known in self.revoked if self._knows(replica, known[1], known[0])]
        self._begin_streams_anew(node)
        for number, claim in list(self.claims.items()):
            if not self._knows(replica, number, claim):
                self._forget_claim(number)

    def _missing(self, node: Node) -> list[Record]:
        """What packets of streams had left upon, and this node's log does not have."""
        return [record for record in self.left.values() if not node.disk.has(record.lsn, record.data)]

    def _begin_streams_anew(self, node: Node) -> None:
        """Where this node leads without records that packets had left upon."""
        if self.streams is not None and (missing := self._missing(node)):
            self.say(f"connections begin anew: {node.name} has no LSN {missing[0].lsn} as packets left upon it")
            self.streams.begin_anew()
            self.left.clear()

    def _give_up_what_was_only_on(self, node: Node, epoch: int, lsn: int) -> None:
        """This machine went down, and knows its log up to there only; in the mode `solo` nobody else need have the rest."""
        for number, claim in list(self.claims.items()):
            if self.leader_of.get(claim.epoch) == node.name and (claim.epoch, claim.lsn) > (epoch, lsn):
                self._forget_claim(number)

    def _forget_claim(self, number: int) -> None:
        claim = self.claims.pop(number)
        if self.tickets.get(claim.flow) == number:
            del self.tickets[claim.flow]

    @staticmethod
    def _entry(replica: Any, number: int) -> Entry | None:
        owner = replica.owners.get(_owner(number))
        return owner.state.given.get(number) if owner is not None else None

    def _knows(self, replica: Any, number: int, claim: Claim) -> bool:
        entry = self._entry(replica, number)
        return entry is not None and entry.flow == claim.owner_flow and entry.lsn == claim.lsn

    def _cut(self, node: Node, records: dict[bytes, bytes]) -> None:
        """Records were cut off a log that went another way: only those that the primary does not have."""
        leading = max(
            (peer for peer in self._peers(node) if peer.leads), key=lambda peer: peer.page.epoch, default=None
        )
        theirs = leading.disk.tables[b"records"].values if leading is not None else {}
        shared = [int.from_bytes(key, "big") for key, data in records.items() if theirs.get(key) == data]
        self._demand(not shared, f"G8: records {shared} are cut off a log that has them as the primary does")

    def _one_emitter(self) -> None:
        """With a witness no two nodes could let a packet leave in this instant, frozen or not (G7)."""
        if self.schedule.witness:
            emitters = [node for node in self.nodes.values() if node.leads and node.holds_lease]
            self._demand(len(emitters) < 2, "G7: two emitters")

    def _seen(self, node: Node, frames: list[bytes]) -> None:
        """Packets came out of a node."""
        self._one_emitter()
        for data in frames:
            if self.streams is None:
                self._claim(node, *read_frame(data))
                if self.schedule.nf == "chained":
                    self._stamped(node, data)
            else:
                self._tagged(node, data)
            self.emitted += 1
        if frames and self.streams is not None:
            assert node.system is not None
            if not self._is_stale(node, node.system.machine.epoch):
                self._depends(node)
                self.streams.take(frames)

    def _stamped(self, node: Node, data: bytes) -> None:
        """A packet of a chain: what its other member did is a claim, too."""
        flow, stamp = read_frame(data)[0], int.from_bytes(data[32:34], "big")
        entry = self._given(node, flow, stamp)
        self._demand(entry.flow == flow, f"G5: flow {flow} left with {entry.flow}'s stamp {stamp}")
        self._seen_outside(node, self._emitter(node), flow, stamp, entry)

    def _tagged(self, node: Node, data: bytes) -> None:
        """A packet of a stream: each tag in it is a claim."""
        flow = client_port(data)
        machine = self._emitter(node)
        for number in tags(payload(data)) if from_inside(data) else ():
            entry = self._given(node, flow, number)
            self._demand(entry.flow == flow, f"G5: connection {flow} left with {entry.flow}'s number {number}")
            self._seen_outside(node, machine, flow, number, entry)

    def _depends(self, node: Node) -> None:
        """What leaves may depend on each record up to the watermark."""
        assert node.system is not None
        machine, log = node.system.machine, node.system.log
        assert isinstance(machine, Primary) and isinstance(log, SimulatedLog)
        lsn = machine.watermark
        data = log.disk.tables[b"records"].values.get(lsn.to_bytes(8, "big"))
        if data is not None and lsn not in self.left:
            alone = machine.state not in _COUNTING_STATES and machine.commits_alone
            self.left[lsn] = Record(lsn, data, machine.epoch, alone=alone)

    def _emitter(self, node: Node) -> Primary:
        """Who lets a packet leave is a primary, and none that another one has succeeded where a witness says so (G7)."""
        assert node.system is not None
        machine = node.system.machine
        self._demand(node.page.role != FENCED, "G7: a fenced node emits")
        self._demand(isinstance(machine, Primary), "G7: a backup emits")
        assert isinstance(machine, Primary)
        stale = self._is_stale(node, machine.epoch)
        where = f"epoch {machine.epoch} emits, {max(self.leader_of, default=0)} has begun"
        self._demand(not (stale and self.schedule.witness), f"G7: {where}")
        return machine

    def _is_stale(self, node: Node, epoch: int) -> bool:
        """Whether another node has begun a newer epoch."""
        newest = max(self.leader_of, default=0)
        return epoch < newest and self.leader_of[newest] != node.name

    def _given(self, node: Node, flow: int, number: int) -> Entry:
        """What the node's own owner knows of a number that leaves."""
        assert node.system is not None
        entry = self._entry(node.system.journal.replica, number)
        self._demand(entry is not None, f"G3: flow {flow} left with number {number}, which its own owner does not know")
        assert entry is not None
        return entry

    def _seen_outside(self, node: Node, machine: Primary, flow: int, number: int, entry: Entry) -> bool:
        """A number is seen outside, and so is claimed; False where a primary sends it that is alone beside a newer one."""
        known = self.claims.get(number)
        if known is not None and known.lsn == entry.lsn and known.owner_flow == entry.flow:
            return True
        alone = self._safe(node, machine, number, entry)
        if alone and self._is_stale(node, machine.epoch):
            self.reached.add("stale primary emits alone")
            return False
        self._demand(known is None, f"G6: number {number} was of flow {known.flow if known else 0}, is now of {flow}")
        self.claims[number] = Claim(flow, entry, machine.epoch, alone=alone)
        return True

    def _claim(self, node: Node, flow: int, kind: int, sequence: int, number: int) -> None:
        system = node.system
        assert system is not None
        since, newest_sent = self.newest.get(flow, (None, -1))
        ordered = sequence > newest_sent or since is not system
        self._demand(ordered, f"G1: packet {sequence} of flow {flow} leaves after {newest_sent}")
        self.newest[flow] = system, sequence
        machine = self._emitter(node)
        entry = self._given(node, flow, number)
        self._demand(kind == READING or entry.flow == flow, f"G5: flow {flow} left with {entry.flow}'s number {number}")
        if kind == OFFLOADING:
            self._not_revoked(system.journal.replica, flow, sequence, number, entry)
        elif kind == REVOKING:
            self.revoked.append((Claim(flow, entry, machine.epoch, alone=False), number, self.sent))
        if self._seen_outside(node, machine, flow, number, entry):
            stale = self._is_stale(node, machine.epoch)
            self._ticket(system.journal.replica, flow, kind, number, entry, stale=stale)

    def _not_revoked(self, replica: Any, flow: int, sequence: int, number: int, entry: Entry) -> None:
        """What came after the word that offloads are revoked had been seen leaves by a later decision: all but a packet whose
        handler was given the reply of an older one again."""
        older = [
            known.lsn
            for known, revoking, sent in self.revoked
            if sequence >= sent
            and revoking in self.claims
            and self._knows(replica, revoking, known)
            and entry.lsn < known.lsn
        ]
        if older:
            packets = self.repeated.setdefault((number, entry.lsn), set())
            packets.add(sequence)
            where = f"by what was decided at LSN {entry.lsn}, revoked at {older[0]}"
            given = self.given_again[number, entry.lsn]
            self._demand(len(packets) <= given, f"G5: packet {sequence} of flow {flow} leaves {where}")

    def _given_again(self, node: Node, number: int) -> None:
        """A handler is given the reply again that one before it had been given; its packet alone goes by that.

        That READING flows are told a number again counts as well; of the same number that is seldom.
        """
        assert node.system is not None
        entry = self._entry(node.system.journal.replica, number)
        if entry is not None:
            self.given_again[number, entry.lsn] += 1

    def _ticket(self, replica: Any, flow: int, kind: int, number: int, entry: Entry, *, stale: bool) -> None:
        """An offloaded flow has one number at a time: another only once it has ended and given that back. A primary that has
        been left behind, where no witness ends it, may still know the one before."""
        if kind != OFFLOADING or number >= COUNT_FIRST:
            return
        before = self.tickets.setdefault(flow, number)
        if before != number and not (stale and flow >= IDLE_FIRST):
            returned = replica.owners["tickets"].state.returned.get(before)
            ended = flow >= IDLE_FIRST and returned is not None and returned < entry.lsn
            self._demand(ended, f"G5: flow {flow} had number {before}, and now leaves with {number}")
            self.tickets[flow] = number

    def _safe(self, node: Node, machine: Primary, number: int, entry: Entry) -> bool:
        """The record is as safe as the mode asks (G3); whether the node's own log was enough for that."""
        assert node.system is not None
        log: Any = node.system.log
        lsn, mode = entry.lsn, self.schedule.durability
        where = f"number {number}, LSN {lsn}, mode {mode}, {machine.state.value}, watermark {machine.watermark}"
        self._demand(log.last_lsn >= lsn, f"G3: it left before it was logged: {where}")
        if mode == "solo":
            return True
        counting = [self.nodes[feed.node] for feed in machine.feeds.values() if feed.counts]
        peers, all_or_any = (counting, all) if counting else (self._peers(node), any)  # the last one has just been lost
        holds = all_or_any(peer.disk.holds(log, lsn, durable=mode == "durable") for peer in peers)
        if machine.state not in _COUNTING_STATES and machine.commits_alone:
            self._demand(machine.watermark >= lsn, f"G3: it left above the watermark: {where}")
            return True
        if mode == "received" and not holds and any(peer.system is None for peer in peers):
            return False  # it was in the memory of a process that is gone
        self._demand(holds or self.wiped, f"G3: it left before every backup that counts had it: {where}")
        return False

    # -- faults -----------------------------------------------------------------------------------------------------

    def _fault(self, event: Event) -> None:
        node = self.nodes[event.node]
        match event.kind:
            case "kill":
                node.kill("killed")
            case "leader down":
                for one in self.nodes.values():
                    if one.leads:
                        one.kill("killed, and stays down")
                        self.keep_down(one, event.value)
            case "kill at":
                if node.system is not None:
                    node.crash_point = event.text
            case "machine down":
                node.kill("machine down")
                if node.disk.lose_unsynced():
                    self.wiped |= self.schedule.durability != "durable"
                    self.revoked.clear()  # what is lost may come again with the same numbers
                    epoch, lsn = node.disk.end()
                    if self.schedule.durability == "solo":
                        self._give_up_what_was_only_on(node, epoch, lsn)
                    # A beginning that was not synced yet is forgotten, and made again.
                    self.leader_of = {e: name for e, name in self.leader_of.items() if e <= epoch or name != node.name}
            case "kill core":
                node.kill_core(event.value % len(node.cores))
            case "give away":
                hot = event.value
                if (core := node.cores[hot]) is not None:
                    core.core.give_away(0.8, (hot + 1) % len(node.cores), packets=5)
            case "reset":
                self.network.reset()
            case "block":
                for peer in node.peer_names if event.text != "one" else node.peer_names[event.value % 2 :][:1]:
                    self.network.blocked.add((node.name, peer))
                    if event.step % 2:
                        self.network.blocked.add((peer, node.name))
            case "unblock":
                self.network.blocked.clear()
            case "pause":
                node.paused_until_ns = self.now_ns + event.value * MS
            case "disturb":
                self.network.disturb(event.text)
            case "slow":
                self.network.delay_ns = (MS // 20, max(MS // 2, event.value * MS))
            case "wall clock":
                node.wall_offset_ns += event.value * 1_000_000_000
            case "disk full":
                node.disk.full = True
                self._full_until[node.name] = self.step + event.value
            case "damage":
                if node.system is None and self._leads_besides(node):
                    node.disk.damage(event.text, event.value)
            case "rush":
                self._rush_until = self.step + event.value
            case "lull":
                self._lull_until = self.step + event.value
            case "freeze":
                node.frozen_until_ns[event.text] = self.now_ns + event.value * MS
            case "witness cut":
                self.register.cut_until_ns[node.name] = self.now_ns + event.value * MS
            case "witness slow":
                self.register.delay_ns = (MS // 20, max(1, event.value) * MS)
            case "witness down":
                self.register.restart()
            case "link":
                node.links_down = event.value
            case "calm":
                end_ns = self.now_ns + event.value * MS
                while self.now_ns < end_ns:
                    self.go()
            case "stop":
                if node.system is not None:
                    node.system.leave()
            case "promote":
                error = node.command("promote", {})
                self.say(f"{node.name}: {error or 'promoted'}")

    def _launch(self, node: Node, role: str) -> None:
        self.say(f"{node.name} is launched as {role}")
        self._heard_epoch[node.name], self.told_sync[node.name] = 0, False
        node.launch(role)
        if node.system is None:
            self.say(f"{node.name} does not start: {node.end}")
            self.reached.add(node.end[:30])

    def keep_down(self, node: Node, steps: int) -> None:
        """Nobody starts this node for so many steps."""
        self._down_until[node.name] = self.step + steps

    def _restart(self, node: Node) -> None:
        """The operator starts what has ended in the role that fits, now and then in the other."""
        led = self._leads_besides(node)
        refused = "diverge" in node.end or "longer" in node.end
        if refused and not led and self.random.random() < 0.5:
            self._launch(node, "primary")  # "keep the log that you want"
            return
        if "LogDamagedError" in node.end or (refused and self.random.random() < 0.2):
            self._wipe(node)
        last = max(self.leader_of, default=0)
        empty = not node.disk.end()[1]
        own = self.leader_of.get(last) == node.name and not empty and "the witness" not in node.end
        if not empty and not led and (own or self.random.random() < 0.15):
            self._launch(node, "primary")
        elif led or not own:
            self._launch(node, "backup")

    def _wipe(self, node: Node) -> None:
        """As told: an empty log directory."""
        self.say(f"{node.name} gets an empty log directory")
        node.disk.wipe()
        self.told_epoch[node.name] = self._heard_epoch[node.name] = 0
        self.wiped = True

    # -- healing ----------------------------------------------------------------------------------------------------

    @property
    def in_sync(self) -> bool:
        machines = [node.system.machine for node in self.nodes.values() if node.system is not None]
        primaries = [machine for machine in machines if isinstance(machine, Primary)]
        return (
            len(machines) == len(self.nodes)
            and {machine.state for machine in machines} == {State.IN_SYNC}
            and len(primaries) == 1
            and sum(feed.counts for feed in primaries[0].feeds.values()) == len(self.nodes) - 1
        )

    @property
    def has_way(self) -> bool:
        """Who leads has as many ports with a link as any other node; and has not just taken over for that."""
        down = {node.links_down for node in self.nodes.values()}
        leads = [node.links_down for node in self.nodes.values() if node.leads]
        return len(down) == 1 or (leads == [min(down)] and self.in_sync)

    def heal(self) -> None:
        """No more faults: the pair must find together, and new flows must pass (liveness)."""
        self.say("-- healing")
        self.network.blocked.clear()
        self.network.delay_ns = (MS // 20, MS // 2)
        for node in self.nodes.values():
            node.disk.full = False
            node.crash_point = None
            node.paused_until_ns = self.register.cut_until_ns[node.name] = 0
            node.frozen_until_ns = {"owner": 0, "cores": 0}
        self.register.delay_ns = (MS // 20, MS)
        emitted_in_sync, moved_on, rest_ns = 0, self.streams is None, self.now_ns + UNDER_WAY_NS
        for step in range(HEAL_STEPS_MAX):
            before = self.emitted
            in_sync = self.in_sync
            self.go()
            if in_sync and self.in_sync:
                emitted_in_sync += self.emitted - before
                if self.streams is not None:
                    self.streams.mark()
                    moved_on = self.streams.moved_on
            if emitted_in_sync > 3 and moved_on and self.now_ns > rest_ns and self.has_way:
                break
            if step % 50 == 49 and not self.in_sync:
                self._operate()
        else:
            states = [node.system.machine.state.value if node.system else node.end for node in self.nodes.values()]
            links = [node.links_down for node in self.nodes.values()]
            self._demand(False, f"liveness: the nodes do not find together: {states}, ports without a link: {links}")
        self._settled()

    def _operate(self) -> None:
        """An operator looks after the pair now and then."""
        nodes = list(self.nodes.values())
        for node in nodes:
            led = self._leads_besides(node)
            if node.system is None or any(one.system is not None and one.system.leadership.seeking for one in nodes):
                continue  # one order at a time
            machine = node.system.machine
            if node.leads and led:
                leading = [one for one in nodes if one.leads]
                older = min(leading, key=lambda one: self.led_epoch[one.name])
                older.kill("the operator ends one of two primaries")
                self.say(f"{older.name} is ended: two primaries")
            elif isinstance(machine, Primary) and not node.leads:
                node.kill("no longer the primary")
            elif isinstance(machine, Backup) and machine.state is State.REFUSED and led:
                node.kill("refused: it diverges")
            elif isinstance(machine, Backup) and not led and self._is_best(node):
                self._forget_if_nothing_is_left(node)
                error = node.command("promote", {"force": True})
                self.promotions += 1
                self.say(f"{node.name} is promoted by force: {error or 'done'}")
        if all(node.system is None for node in nodes):
            best = next(node for node in nodes if self._is_best(node))
            self._forget_if_nothing_is_left(best)
            self._launch(best, "primary")

    def _forget_if_nothing_is_left(self, best: Node) -> None:
        """The best log is empty: who leads with it begins a new history, and epochs are compared within one."""
        if not best.disk.end()[1]:
            for known in (self.leader_of, self.claims, self.tickets, self.announced, self._began, self.revoked):
                known.clear()
            self._begin_streams_anew(best)
            for told in (self.told_epoch, self._heard_epoch):
                told.update(dict.fromkeys(told, 0))

    def _is_best(self, node: Node) -> bool:
        return all(node.disk.end() >= peer.disk.end() for peer in self._peers(node))

    def _settled(self) -> None:
        """At rest: both have the same state, it is what their logs say, no number leaked, and no handler failed (G4, G5)."""
        errors = [error for node in self.nodes.values() for error in node.flow_errors]
        self._demand(not errors, f"G9: handlers have failed: {errors[:2]}")
        for _ in range(400):
            self.now_ns += 2 * MS
            for node in self.nodes.values():
                if node.system is not None:
                    node.turn([[] for _ in node.cores])
            systems = [node.system for node in self.nodes.values()]
            rest = all(systems) and not any(node.at_work for node in self.nodes.values())
            if rest and len({system.journal.lsn for system in systems if system}) == 1 and self.in_sync:
                break
        self._demand(self.in_sync, "liveness: the nodes fell apart at rest")
        a, *others = (node.system.journal for node in self.nodes.values() if node.system is not None)
        for b in others:
            self._demand(a.lsn == b.lsn and a.chain == b.chain, "G4: one history: the logs' ends differ")
            self._demand(a.replica.state_hash() == b.replica.state_hash(), "G4: the states differ at rest")
        for number, claim in self.claims.items():
            self._demand(self._knows(a.replica, number, claim), f"G6: number {number} of flow {claim.flow} is lost")
        orphans = [flow for flow, _, _ in a.replica.orphans()]
        self._demand(not orphans, f"G5: {orphans} were given something, and nobody knows them")
        if self.streams is not None:
            self.streams.check()
            return
        flows = {body.flow.source_port: body.state for body in map(FlowBody.decode, a.replica.flows.values())}
        for owner, field in _GIVEN[self.schedule.nf].items():
            state: Any = a.replica.owners[owner].state
            held: dict[int, list[int]] = {}
            for number, entry in state.given.items():
                if number not in state.returned:
                    held.setdefault(entry.flow, []).append(number)
            for flow, numbers in held.items():
                has = self._fields(flows[flow]).get(field) if flow in flows else None
                self._demand(numbers == [has], f"G5: flow {flow} has {field} {has}, and the numbers {numbers}")

    def _fields(self, state: bytes) -> dict[str, Any]:
        """What a flow's record says."""
        return fields_of(state) if self.nf is Chained else dict(self.nf.restore_arguments(state)[0])


assert TICKET_FIRST < COUNT_FIRST < STAMP_FIRST
