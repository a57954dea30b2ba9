"""One life of simulated nodes: the network between them, what goes wrong, traffic, and the operator's hand."""

from __future__ import annotations

from random import Random

from actornet.engine.five_tuple import FiveTuple
from actornet.engine.wire import rss_core
from actornet.flow import FlowActor
from actornet.replication.backup import Backup
from actornet.replication.primary import Primary
from actornet.replication.protocol import State
from actornet.testing.simulation.chained import Chained
from actornet.testing.simulation.guarantees import Guarantees
from actornet.testing.simulation.network import MS, Network
from actornet.testing.simulation.node import Fabric, Node, five_tuple, frame
from actornet.testing.simulation.schedule import STEPS, Event, Schedule
from actornet.testing.simulation.streams import Streams
from actornet.testing.simulation.streams import five_tuple as connection_tuple
from actornet.testing.simulation.tagging import Tagging
from actornet.testing.simulation.ticketing import COUNTING, IDLE_FIRST, OFFLOADING, READING, REVOKING, Ticketing
from actornet.testing.simulation.witness import Register

HEAL_STEPS_MAX = 4000
REST_TURNS_MAX = 400
UNDER_WAY_NS = 25 * MS
"""When the faults end, the longest delay in the network goes on for so long: a reset may be under way yet."""
_FLOWS = 12
_IDLE_FLOWS = 6
_RUSH = 12  # more packets in a step of a rush
_NEW_FIRST, _NEW_FLOWS = 151, 40
"""Flows that begin once all is well again, the first of them and how many at most."""
_fabrics: dict[tuple[str, int], Fabric] = {}

NFS: dict[str, type[FlowActor]] = {"ticketing": Ticketing, "tagging": Tagging, "chained": Chained}

_REVOCATIONS = {"ticketing": 1 << 30, "tagging": 0, "chained": 6}
"""A chain binds the reply of each rewriting that a flow gets, and a flow has 16 keys."""


class World:
    """One life of a deployment. `trace`, if given, gets a line for each thing that happens.

    Streams go by way of the node that leads; if two do, by the newer one.
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
        self.register = Register(lambda: self.now_ns)
        self.streams: Streams | None = None
        if schedule.nf == "tagging":
            random = Random(f"{schedule.seed} streams")
            self.streams = Streams(random, lambda text: self.guarantees.demand(False, f"G6: {text}"))
        self.sent = 0
        self.nodes: dict[str, Node] = {}
        watched = (self.nodes, self.register, self.streams)
        self.guarantees = Guarantees(schedule, *watched, self.random, self.say, lambda: self.sent)
        names = "abc"[: schedule.nodes]
        for name in names:
            self.nodes[name] = self._node(name, [other for other in names if other != name])
        self.a, self.b = self.nodes["a"], self.nodes["b"]
        if schedule.witness:
            for node in self.nodes.values():
                node.register = self.register
        self.network.leading = self.guarantees.leading
        self.network.on_message = self.guarantees.on_message
        self.network.on_send = self.guarantees.on_send
        self.network.time_at = lambda name: self.nodes[name].time_here_ns
        self._sync_rate = (0.02, 0.2)[schedule.seed % 2]
        self._full_until = dict.fromkeys("abc", 0)
        self._down_until = dict.fromkeys("abc", 0)
        self._rush_until = self._lull_until = 0
        self._revocations_left = _REVOCATIONS[schedule.nf]
        self._flows = _FLOWS + (_IDLE_FLOWS if schedule.idles else 0)
        self._new = _NEW_FIRST
        self._healed = False  # new flows begin

    def _node(self, name: str, peers: list[str]) -> Node:
        cores, plan = self.schedule.cores, self.schedule
        fabric = _fabrics.get((name, cores)) or _fabrics.setdefault((name, cores), Fabric(cores))
        guarantees = self.guarantees
        watched = (guarantees.on_step, guarantees.on_emit, guarantees.on_cut, guarantees.on_repeat)
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
            arriving[self._core(five_tuple(flow, kind))].append(frame(flow, kind, self.sent, close=close))
            self.sent += 1
        if self._healed and node.leads and self._new < _NEW_FIRST + _NEW_FLOWS:
            arriving[self._core(five_tuple(self._new, COUNTING))].append(frame(self._new, COUNTING, self.sent))
            self._new += 1
            self.sent += 1
        return arriving

    def _core(self, flow: FiveTuple) -> int:
        cores = self.schedule.cores
        return rss_core(flow, cores) if cores > 1 else 0

    def _newest_leader(self) -> Node | None:
        return max((node for node in self.nodes.values() if node.leads), key=lambda node: node.page.epoch, default=None)

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
                    self.guarantees.on_loss(node)
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
        self.guarantees.on_launch(node)
        node.launch(role)
        if node.system is None:
            self.say(f"{node.name} does not start: {node.end}")

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
        leader_of = self.guarantees.leader_of
        last = max(leader_of, default=0)
        empty = not node.disk.end()[1]
        own = leader_of.get(last) == node.name and not empty and "the witness" not in node.end
        if not empty and not led and (own or self.random.random() < 0.15):
            self._launch(node, "primary")
        else:
            self._launch(node, "backup")

    def _wipe(self, node: Node) -> None:
        """As told: an empty log directory."""
        self.say(f"{node.name} gets an empty log directory")
        node.disk.wipe()
        self.guarantees.on_wipe(node)

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
        emitted_in_sync, moved_on, rest_ns = 0, False, self.now_ns + UNDER_WAY_NS
        if any(
            event.kind == "disturb" for event in self.schedule.events
        ):  # a frame's length may have been: its end is waited for
            rest_ns += max(self.schedule.silence_ms) * MS
        for step in range(HEAL_STEPS_MAX):
            before = self.guarantees.emitted
            self._healed = in_sync = self.in_sync
            self.go()
            if in_sync and self.in_sync:
                emitted_in_sync += self.guarantees.emitted - before
                if self.streams is not None:
                    self.streams.mark()
                    moved_on = self.streams.moved_on
                else:
                    moved_on = self.guarantees.highest_flow >= _NEW_FIRST
            if emitted_in_sync > 3 and moved_on and self.now_ns > rest_ns and self.has_way:
                break
            if step % 50 == 49 and not self.in_sync:
                self._operate()
        else:
            states = [node.system.machine.state.value if node.system else node.end for node in self.nodes.values()]
            links = [node.links_down for node in self.nodes.values()]
            where = f"{states}, ports without a link: {links}"
            self.guarantees.demand(False, f"liveness: the nodes do not find together: {where}")
        self._rest()
        self.guarantees.no_handler_failed()
        self.guarantees.at_rest()

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
                older = min(leading, key=lambda one: self.guarantees.led_epoch[one.name])
                older.kill("the operator ends one of two primaries")
                self.say(f"{older.name} is ended: two primaries")
            elif isinstance(machine, Primary) and not node.leads:
                node.kill("no longer the primary")
            elif isinstance(machine, Backup) and machine.state is State.REFUSED and led:
                node.kill("refused: it diverges")
            elif isinstance(machine, Backup) and not led and self._is_best(node):
                self.guarantees.forget_if_nothing_is_left(node)
                error = node.command("promote", {"force": True})
                self.say(f"{node.name} is promoted by force: {error or 'done'}")
        if all(node.system is None for node in nodes):
            best = next(node for node in nodes if self._is_best(node))
            self.guarantees.forget_if_nothing_is_left(best)
            self._launch(best, "primary")

    def _leads_besides(self, node: Node) -> bool:
        return any(self.nodes[name].leads for name in node.peer_names)

    def _is_best(self, node: Node) -> bool:
        return all(node.disk.end() >= self.nodes[name].disk.end() for name in node.peer_names)

    def _rest(self) -> None:
        """Time passes without traffic, until nothing is under way."""
        for _ in range(REST_TURNS_MAX):
            self.now_ns += 2 * MS
            for node in self.nodes.values():
                if node.system is not None:
                    node.turn([[] for _ in node.cores])
            systems = [node.system for node in self.nodes.values()]
            rest = all(systems) and not any(node.at_work for node in self.nodes.values())
            if rest and len({system.journal.lsn for system in systems if system}) == 1 and self.in_sync:
                return
        self.guarantees.demand(self.in_sync, "liveness: the nodes fell apart at rest")
        self.guarantees.demand(False, "liveness: somebody is at work yet, and nothing is to do")
