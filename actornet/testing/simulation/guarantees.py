"""What must hold after every step of simulated nodes, whatever happens to them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from random import Random
from typing import Any

from actornet.engine.ring import FENCED
from actornet.limits import TERM_EPOCHS
from actornet.log.record import FlowBody
from actornet.replication.backup import Backup
from actornet.replication.messages import AnyMessage, Fence, Hello, Sync, Welcome
from actornet.replication.primary import Primary
from actornet.replication.protocol import State
from actornet.testing.simulation.chained import fields_of
from actornet.testing.simulation.disk import SimulatedLog
from actornet.testing.simulation.node import SETTLE_NS, Node, read_frame
from actornet.testing.simulation.schedule import Schedule
from actornet.testing.simulation.streams import Streams, client_port, from_inside, payload
from actornet.testing.simulation.tagging import tags
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

_COUNTING_STATES = (State.IN_SYNC, State.HANDOVER, State.STOPPED)

_GIVEN = {"ticketing": {"tickets": "ticket"}, "chained": {"tickets": "ticket", "stamps": "stamp"}}
"""Owners whose numbers flows keep, and the fields where they do."""

assert TICKET_FIRST < COUNT_FIRST < STAMP_FIRST


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


def _entry(replica: Any, number: int) -> Entry | None:
    """What the owner that gives out such numbers knows of this one."""
    name = "tickets" if number < COUNT_FIRST else "counts" if number < STAMP_FIRST else "stamps"
    owner = replica.owners.get(name)
    return owner.state.given.get(number) if owner is not None else None


def _knows(replica: Any, number: int, claim: Claim) -> bool:
    entry = _entry(replica, number)
    return entry is not None and entry.flow == claim.owner_flow and entry.lsn == claim.lsn


class Guarantees:
    """Watches the nodes, and raises Violation. `random`: the world's own; `sent()`: the number of the next packet.

    What a primary sends to streams beside a newer one, where no witness keeps it from that, does not reach the ends: it goes on
    from records that the newer one does not have, and nothing is promised of both together. Where records are given up that
    something had left upon, connections begin anew.
    """

    def __init__(
        self,
        schedule: Schedule,
        nodes: dict[str, Node],
        register: Register,
        streams: Streams | None,
        random: Random,
        say: Callable[[str], None],
        sent: Callable[[], int],
    ) -> None:
        self.schedule = schedule
        self.nodes = nodes
        self.register = register
        self.streams = streams
        self.random = random
        self.say = say
        self.sent = sent
        self.emitted = self.takeovers = self.handovers = self.highest_flow = 0
        self.went_on: Counter[str] = Counter()  # packets of old primaries, resent or resumed
        self.leader_of: dict[int, str] = {}
        self.led_epoch = dict.fromkeys("abc", 0)
        self._announced: set[int] = set()  # epochs in which their primary has sent a message
        self._began: dict[int, Any] = {}  # by which machine
        self._told_epoch = dict.fromkeys("abc", 0)
        self._told_sync = dict.fromkeys("abc", False)
        self._heard_epoch = dict.fromkeys("abc", 0)  # in the step that goes on
        self._claims: dict[int, Claim] = {}
        self._tickets: dict[int, int] = {}  # of each offloaded flow that was seen outside and not closed since
        # Revocations of offloads that were seen outside: their number, and that of the next packet by then.
        self._revoked: list[tuple[Claim, int, int]] = []
        # How often handlers were given a number, from this LSN, again; and packets that left with it although it was revoked.
        self._given_again: Counter[tuple[int, int]] = Counter()
        self._repeated: dict[tuple[int, int], set[int]] = {}
        # Numbers of one packet each: by which record (epoch and LSN), whose cores, which packet, and when it left.
        self._used: dict[int, tuple[tuple[int | None, int], tuple[str, int], int, int]] = {}
        # Of each epoch's primary after each step: how far its cores' clocks are, the last LSN, and which cores those are.
        self._worked: dict[int, list[tuple[int, int, int]]] = {}
        self._newest: dict[int, tuple[Any, int]] = {}  # the packet of each flow that left last, and in whose life
        # Whose disk has lost what was safe on it as the mode understands that, and who has not been in sync since.
        self._forgetful: set[str] = set()
        self._watermarks: dict[str, tuple[Any, int]] = {}
        self._takeover: dict[str, Any] = {}
        self._left: dict[int, Record] = {}  # by LSN, where there are streams: what left may depend on any record before

    def demand(self, condition: bool, text: str) -> None:
        if not condition:
            self.say(f"VIOLATION: {text}")
            raise Violation(text)

    def _peers(self, node: Node) -> list[Node]:
        return [self.nodes[name] for name in node.peer_names]

    # -- what becomes of nodes --------------------------------------------------------------------------------------

    def on_launch(self, node: Node) -> None:
        """A process begins, and was told nothing yet."""
        self._heard_epoch[node.name], self._told_sync[node.name] = 0, False

    def on_wipe(self, node: Node) -> None:
        """Its log directory was emptied: it knows of no epoch."""
        self._told_epoch[node.name] = self._heard_epoch[node.name] = 0
        self._forgetful.add(node.name)

    def on_loss(self, node: Node) -> None:
        """Its machine went down with records that were not synced."""
        if self.schedule.durability != "durable":
            self._forgetful.add(node.name)
        self._revoked.clear()  # what is lost may come again with the same numbers
        self._worked.clear()
        epoch, lsn = node.disk.end()
        if self.schedule.durability == "solo":
            self._give_up_what_was_only_on(node, epoch, lsn)
        # A beginning that was not synced yet is forgotten, and made again.
        self.leader_of = {e: name for e, name in self.leader_of.items() if e <= epoch or name != node.name}

    def forget_if_nothing_is_left(self, best: Node) -> None:
        """The best log is empty: who leads with it begins a new history, and epochs are compared within one."""
        if not best.disk.end()[1]:
            for known in (self.leader_of, self._claims, self._tickets, self._announced, self._began, self._revoked):
                known.clear()
            self._begin_streams_anew(best)
            for told in (self._told_epoch, self._heard_epoch):
                told.update(dict.fromkeys(told, 0))

    # -- who leads, and with what -----------------------------------------------------------------------------------

    def leading(self, name: str) -> int:
        """The epoch that a node leads; 0: none."""
        node = self.nodes[name]
        return node.system.machine.epoch if node.leads and node.system is not None else 0

    def on_send(self, name: str, message: AnyMessage) -> None:
        if not isinstance(message, Fence | Hello) and message.epoch == self.leading(name):
            self._announced.add(message.epoch)

    def on_message(self, name: str, epoch: int, message: AnyMessage) -> None:
        """A node hears a message, of a sender that led this epoch (0: it led none)."""
        self._heard_epoch[name] = max(self._heard_epoch[name], epoch)
        if isinstance(message, Sync | Welcome):
            self._told_sync[name] = isinstance(message, Sync)

    def on_step(self, node: Node) -> None:
        """After each step of an owner system."""
        system = node.system
        assert system is not None
        machine, page = system.machine, node.page
        log: Any = system.log
        self._told_epoch[node.name] = max(self._told_epoch[node.name], self._heard_epoch[node.name])
        self._one_emitter()
        if machine.state is State.IN_SYNC:
            self._forgetful.discard(node.name)
        self.demand(page.lsn_logged <= log.last_lsn, "G3: more is said to be logged than is")
        if isinstance(machine, Primary):
            self._lead(node, machine)
            self._successors(node, machine)
            known, watermark = self._watermarks.get(node.name, (None, 0))
            if known is machine:
                self.demand(machine.watermark >= watermark, "G3: the watermark fell")
            self._watermarks[node.name] = (machine, machine.watermark)
            if node.leads and not system.left and all(node.cores):
                clocks = [core.core.now_ns for core in node.cores if core is not None]
                self._worked.setdefault(machine.epoch, []).append((min(clocks), system.journal.lsn, node.cores_begun))
            if system.takeover is not None and system.takeover is not self._takeover.get(node.name):
                self._takeover[node.name] = system.takeover
                self.went_on.update(system.takeover["packets"])
                self._taken_over(node)
        for peer in self._peers(node):
            if peer.system is not None and self.random.random() < 0.3:
                self._same_state(node, peer)

    def _lead(self, node: Node, machine: Primary) -> None:
        epoch = machine.epoch
        began = self._began.get(epoch)
        self.demand(began in (None, machine) or epoch not in self._announced, f"G7: epoch {epoch} begun twice")
        self._began[epoch] = machine
        if self.leader_of.get(epoch) != node.name:
            told = self._told_epoch[node.name]
            self.demand(epoch > told, f"G7: {node.name} begins epoch {epoch}, and was told of {told} before")
            self.demand(epoch not in self.leader_of, f"G7: epoch {epoch} begun by two nodes")
            self.leader_of[epoch] = node.name
            self.led_epoch[node.name] = epoch
            self.say(f"{node.name} leads epoch {epoch}")
            if (
                node.system is not None
                and node.system.takeover is None
                and self._watermarks.get(node.name, (None,))[0] is not machine
            ):
                self._give_up_what_is_missing(node)  # the operator chose it, though the other may have more

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
                self.demand(claims, f"G6: {feed.node} counts in epoch {entry.epoch}, and could not take over")

    def _same_state(self, node: Node, peer: Node) -> None:
        assert node.system is not None and peer.system is not None
        mine, theirs = node.system.journal, peer.system.journal
        if mine.lsn == theirs.lsn and mine.chain == theirs.chain:
            self.demand(
                mine.replica.state_hash() == theirs.replica.state_hash(), f"G4: the states differ at LSN {mine.lsn}"
            )

    def on_cut(self, node: Node, records: dict[bytes, bytes]) -> None:
        """Records were cut off a log that went another way: only those that the primary does not have."""
        leading = max(
            (peer for peer in self._peers(node) if peer.leads), key=lambda peer: peer.page.epoch, default=None
        )
        theirs = leading.disk.tables[b"records"].values if leading is not None else {}
        shared = [int.from_bytes(key, "big") for key, data in records.items() if theirs.get(key) == data]
        self.demand(not shared, f"G8: records {shared} are cut off a log that has them as the primary does")

    def _one_emitter(self) -> None:
        """With a witness no two nodes could let a packet leave in this instant, frozen or not (G7)."""
        if self.schedule.witness:
            emitters = [node for node in self.nodes.values() if node.leads and node.holds_lease]
            self.demand(len(emitters) < 2, "G7: two emitters")

    def _emitter(self, node: Node) -> Primary:
        """Who lets a packet leave is a primary, and none that another one has succeeded where a witness says so (G7)."""
        assert node.system is not None
        machine = node.system.machine
        self.demand(node.page.role != FENCED, "G7: a fenced node emits")
        self.demand(isinstance(machine, Primary), "G7: a backup emits")
        assert isinstance(machine, Primary)
        stale = self._is_stale(node, machine.epoch)
        where = f"epoch {machine.epoch} emits, {max(self.leader_of, default=0)} has begun"
        self.demand(not (stale and self.schedule.witness), f"G7: {where}")
        return machine

    def _is_stale(self, node: Node, epoch: int) -> bool:
        """Whether another node has begun a newer epoch."""
        newest = max(self.leader_of, default=0)
        return epoch < newest and self.leader_of[newest] != node.name

    # -- what a takeover has, and what is given up ------------------------------------------------------------------

    def _taken_over(self, node: Node) -> None:
        """Nothing that was promised is missing (G6)."""
        assert node.system is not None
        machine, journal = node.system.machine, node.system.journal
        reason = node.system.takeover["reason"] if node.system.takeover else ""
        self.takeovers += 1
        peers = [peer.links_down for peer in self._peers(node)]
        self.handovers += reason == "handover" and node.links_down < max(peers)
        told = self._told_sync[node.name] or self.schedule.witness  # whose grant is good without
        self.demand(told or "operator" in reason, f"G6: {node.name} takes over, and was not told it may")
        self.say(f"{node.name} took over: {reason}")
        if self.schedule.durability == "solo" or "forced" in reason:
            self._give_up_what_is_missing(node)
            return
        epoch = machine.epoch
        followed = self._epoch_before(node)

        def excused(promise: Promise) -> bool:
            # Alone after its backup had left it, the old primary could promise this to nobody, where no witness did.
            unpromised = promise.alone and not self.schedule.witness
            return unpromised and promise.epoch > followed and promise.epoch // TERM_EPOCHS >= epoch // TERM_EPOCHS - 1

        for number, claim in list(self._claims.items()):
            if _knows(journal.replica, number, claim):
                continue
            lost = f"number {number} of flow {claim.flow}, LSN {claim.lsn}"
            self.demand(excused(claim), f"G6: {lost}, is lost by the takeover")
            self._forget_claim(number)
        for record in self._missing(node):
            self.demand(excused(record), f"G6: LSN {record.lsn}, which packets had left upon, is lost by the takeover")
        self._begin_streams_anew(node)

    def _epoch_before(self, node: Node) -> int:
        """The epoch of the records that the new primary had followed."""
        assert node.system is not None
        machine = node.system.machine
        epochs = [epoch for epoch in self.leader_of if epoch < machine.epoch]
        log: Any = node.system.log
        return max((epoch for epoch in epochs if log.holds_epoch(epoch)), default=0)

    def _missing(self, node: Node) -> list[Record]:
        """What packets of streams had left upon, and this node's log does not have."""
        return [record for record in self._left.values() if not node.disk.has(record.lsn, record.data)]

    def _begin_streams_anew(self, node: Node) -> None:
        """Where this node leads without records that packets had left upon."""
        if self.streams is not None and (missing := self._missing(node)):
            self.say(f"connections begin anew: {node.name} has no LSN {missing[0].lsn} as packets left upon it")
            self.streams.begin_anew()
            self._left.clear()

    def _give_up_what_is_missing(self, node: Node) -> None:
        """The operator, or the mode, gave up what this node does not have."""
        assert node.system is not None
        replica = node.system.journal.replica
        self._revoked = [known for known in self._revoked if _knows(replica, known[1], known[0])]
        self._begin_streams_anew(node)
        for number, claim in list(self._claims.items()):
            if not _knows(replica, number, claim):
                self._forget_claim(number)

    def _give_up_what_was_only_on(self, node: Node, epoch: int, lsn: int) -> None:
        """This machine went down, and knows its log up to there only; in the mode `solo` nobody else need have the rest."""
        for number, claim in list(self._claims.items()):
            if self.leader_of.get(claim.epoch) == node.name and (claim.epoch, claim.lsn) > (epoch, lsn):
                self._forget_claim(number)

    def _forget_claim(self, number: int) -> None:
        claim = self._claims.pop(number)
        if self._tickets.get(claim.flow) == number:
            del self._tickets[claim.flow]

    # -- what leaves ------------------------------------------------------------------------------------------------

    def on_emit(self, node: Node, frames: list[bytes]) -> None:
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

    def _claim(self, node: Node, flow: int, kind: int, sequence: int, number: int) -> None:
        system = node.system
        assert system is not None
        since, newest_sent = self._newest.get(flow, (None, -1))
        ordered = sequence > newest_sent or since is not system
        self.demand(ordered, f"G1: packet {sequence} of flow {flow} leaves after {newest_sent}")
        self._newest[flow] = system, sequence
        self.highest_flow = max(self.highest_flow, flow)
        machine = self._emitter(node)
        entry = self._given(node, flow, number)
        self.demand(kind == READING or entry.flow == flow, f"G5: flow {flow} left with {entry.flow}'s number {number}")
        if kind in (COUNTING, REVOKING):
            self._used_once(node, flow, sequence, number, entry)
        if kind == OFFLOADING:
            self._not_revoked(system.journal.replica, flow, sequence, number, entry)
        elif kind == REVOKING:
            self._revoked.append((Claim(flow, entry, machine.epoch, alone=False), number, self.sent()))
        if self._seen_outside(node, machine, flow, number, entry):
            stale = self._is_stale(node, machine.epoch)
            self._ticket(system.journal.replica, flow, kind, number, entry, stale=stale)

    def _used_once(self, node: Node, flow: int, sequence: int, number: int, entry: Entry) -> None:
        """A packet that asks for a number has one of its own; but once who gave it, or the core, is no more, another packet's
        handler may be given the reply again, unless the flow should have been saved by then."""
        assert node.system is not None
        given = node.disk.epoch_of(entry.lsn), entry.lsn
        life = node.name, node.cores_begun
        used = self._used.get(number)
        self._used[number] = given, life, sequence, node.network.clock()
        if used is None or used[0] != given or used[2] == sequence:
            return
        by_these = used[1] == life and given[0] == node.system.machine.epoch
        reused = by_these or (used[1] != life and self._settled(node, *given, used[3], used[1][1]))
        self.demand(not reused, f"G5: packets {used[2]} and {sequence} of flow {flow} leave with number {number}")

    def _settled(self, node: Node, epoch: int | None, lsn: int, left_ns: int, cores_begun: int) -> bool:
        """Whether this node's log goes so far that the record is in it which says that the handler had ended that left this."""
        if epoch is None:
            return False  # it goes back to a snapshot
        while node.disk.epoch_of(lsn + 1) == epoch:
            lsn += 1
        due_ns = left_ns + 2 * SETTLE_NS
        return any(
            clock_ns >= due_ns and last <= lsn and begun == cores_begun
            for clock_ns, last, begun in self._worked.get(epoch, ())
        )

    def _stamped(self, node: Node, data: bytes) -> None:
        """A packet of a chain: what its other member did is a claim, too."""
        flow, stamp = read_frame(data)[0], int.from_bytes(data[32:34], "big")
        entry = self._given(node, flow, stamp)
        self.demand(entry.flow == flow, f"G5: flow {flow} left with {entry.flow}'s stamp {stamp}")
        self._seen_outside(node, self._emitter(node), flow, stamp, entry)

    def _tagged(self, node: Node, data: bytes) -> None:
        """A packet of a stream: each tag in it is a claim."""
        flow = client_port(data)
        machine = self._emitter(node)
        for number in tags(payload(data)) if from_inside(data) else ():
            entry = self._given(node, flow, number)
            self.demand(entry.flow == flow, f"G5: connection {flow} left with {entry.flow}'s number {number}")
            self._seen_outside(node, machine, flow, number, entry)

    def _depends(self, node: Node) -> None:
        """What leaves may depend on each record up to the watermark."""
        assert node.system is not None
        machine, log = node.system.machine, node.system.log
        assert isinstance(machine, Primary) and isinstance(log, SimulatedLog)
        lsn = machine.watermark
        data = log.disk.tables[b"records"].values.get(lsn.to_bytes(8, "big"))
        if data is not None and lsn not in self._left:
            alone = machine.state not in _COUNTING_STATES and machine.commits_alone
            self._left[lsn] = Record(lsn, data, machine.epoch, alone=alone)

    def _given(self, node: Node, flow: int, number: int) -> Entry:
        """What the node's own owner knows of a number that leaves."""
        assert node.system is not None
        entry = _entry(node.system.journal.replica, number)
        self.demand(entry is not None, f"G3: flow {flow} left with number {number}, which its own owner does not know")
        assert entry is not None
        return entry

    def _seen_outside(self, node: Node, machine: Primary, flow: int, number: int, entry: Entry) -> bool:
        """A number is seen outside, and so is claimed; False where a primary sends it that is alone beside a newer one."""
        known = self._claims.get(number)
        if known is not None and known.lsn == entry.lsn and known.owner_flow == entry.flow:
            return True
        alone = self._safe(node, machine, number, entry)
        if alone and self._is_stale(node, machine.epoch):
            return False
        self.demand(known is None, f"G6: number {number} was of flow {known.flow if known else 0}, is now of {flow}")
        self._claims[number] = Claim(flow, entry, machine.epoch, alone=alone)
        return True

    def _safe(self, node: Node, machine: Primary, number: int, entry: Entry) -> bool:
        """The record is as safe as the mode asks (G3); whether the node's own log was enough for that."""
        assert node.system is not None
        log: Any = node.system.log
        lsn, mode = entry.lsn, self.schedule.durability
        where = f"number {number}, LSN {lsn}, mode {mode}, {machine.state.value}, watermark {machine.watermark}"
        self.demand(log.last_lsn >= lsn, f"G3: it left before it was logged: {where}")
        if mode == "solo":
            return True
        counting = [self.nodes[feed.node] for feed in machine.feeds.values() if feed.counts]
        peers, all_or_any = (counting, all) if counting else (self._peers(node), any)  # the last one has just been lost
        holds = all_or_any(peer.disk.holds(log, lsn, durable=mode == "durable") for peer in peers)
        if machine.state not in _COUNTING_STATES and machine.commits_alone:
            self.demand(machine.watermark >= lsn, f"G3: it left above the watermark: {where}")
            return True
        if mode == "received" and not holds and any(peer.system is None for peer in peers):
            return False  # it was in the memory of a process that is gone
        excused = any(peer.name in self._forgetful for peer in peers)  # its link has just broken
        self.demand(holds or excused, f"G3: it left before every backup that counts had it: {where}")
        return False

    def _ticket(self, replica: Any, flow: int, kind: int, number: int, entry: Entry, *, stale: bool) -> None:
        """An offloaded flow has one number at a time: another only once it has ended and given that back. A primary that has
        been left behind, where no witness ends it, may still know the one before."""
        if kind != OFFLOADING or number >= COUNT_FIRST:
            return
        before = self._tickets.setdefault(flow, number)
        if before != number and not (stale and flow >= IDLE_FIRST):
            returned = replica.owners["tickets"].state.returned.get(before)
            ended = flow >= IDLE_FIRST and returned is not None and returned < entry.lsn
            self.demand(ended, f"G5: flow {flow} had number {before}, and now leaves with {number}")
            self._tickets[flow] = number

    def _not_revoked(self, replica: Any, flow: int, sequence: int, number: int, entry: Entry) -> None:
        """What came after the word that offloads are revoked had been seen leaves by a later decision: all but a packet whose
        handler was given the reply of an older one again."""
        older = [
            known.lsn
            for known, revoking, sent in self._revoked
            if sequence >= sent
            and revoking in self._claims
            and _knows(replica, revoking, known)
            and entry.lsn < known.lsn
        ]
        if older:
            packets = self._repeated.setdefault((number, entry.lsn), set())
            packets.add(sequence)
            where = f"by what was decided at LSN {entry.lsn}, revoked at {older[0]}"
            given = self._given_again[number, entry.lsn]
            self.demand(len(packets) <= given, f"G5: packet {sequence} of flow {flow} leaves {where}")

    def on_repeat(self, node: Node, number: int) -> None:
        """A handler is given the reply again that one before it had been given; its packet alone goes by that.

        That READING flows are told a number again counts as well; of the same number that is seldom.
        """
        assert node.system is not None
        entry = _entry(node.system.journal.replica, number)
        if entry is not None:
            self._given_again[number, entry.lsn] += 1

    # -- at rest ----------------------------------------------------------------------------------------------------

    def no_handler_failed(self) -> None:
        errors = [error for node in self.nodes.values() for error in node.flow_errors]
        self.demand(not errors, f"G9: handlers have failed: {errors[:2]}")

    def at_rest(self) -> None:
        """All nodes have the same state, it is what their logs say, and no number leaked (G4, G5)."""
        a, *others = (node.system.journal for node in self.nodes.values() if node.system is not None)
        for b in others:
            self.demand(a.lsn == b.lsn and a.chain == b.chain, "G4: one history: the logs' ends differ")
            self.demand(a.replica.state_hash() == b.replica.state_hash(), "G4: the states differ at rest")
        for number, claim in self._claims.items():
            self.demand(_knows(a.replica, number, claim), f"G6: number {number} of flow {claim.flow} is lost")
        orphans = [flow for flow, _, _ in a.replica.orphans()]
        self.demand(not orphans, f"G5: {orphans} were given something, and nobody knows them")
        if self.streams is not None:
            self.streams.check()
            return
        flows = {body.flow.source_port: body.state for body in map(FlowBody.decode, a.replica.flows.values())}
        for owner, field in _GIVEN[self.schedule.nf].items():
            state: Any = a.replica.owners[owner].state
            self.demand(not state.doubled, f"G5: given back twice: {state.doubled[:4]}")
            held: dict[int, list[int]] = {}
            for number, entry in state.given.items():
                if number not in state.returned:
                    held.setdefault(entry.flow, []).append(number)
            for flow in sorted(held.keys() | flows.keys()):
                has = self._fields(flows[flow]).get(field) if flow in flows else None
                numbers = held.get(flow, [])
                self.demand(
                    numbers == ([has] if has else []), f"G5: flow {flow} has {field} {has}, and the numbers {numbers}"
                )

    def _fields(self, state: bytes) -> dict[str, Any]:
        """What a flow's record says."""
        return fields_of(state) if self.schedule.nf == "chained" else dict(Ticketing.restore_arguments(state)[0])
