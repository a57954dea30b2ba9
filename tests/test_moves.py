"""Flows move between the cores of a node: the real owner system, cores, rings and log, in one thread, in a drawn order."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Coroutine

import pytest

from actornet.engine.ring import ACTIVE
from actornet.errors import UsageError
from actornet.log.record import FlowBody
from actornet.node import cores
from actornet.node.exchange import Revoked
from actornet.testing.simulation.network import Network
from actornet.testing.simulation.node import Fabric, Node, SimulatedCore, five_tuple, frame, read_frame
from actornet.testing.simulation.ticketing import COUNTING, OFFLOADING, Ticketing

CORES = 2
FABRIC = Fabric(CORES)
KINDS = (OFFLOADING, COUNTING)


class World:
    """A node that leads alone. What leaves is kept in order, by flow."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.now_ns = 1_000_000_000
        network = Network(lambda: self.now_ns)
        ignore = lambda *_: None  # noqa: E731
        self.node = Node("a", "b", network, FABRIC, "solo", "solo", ignore, ignore, ignore, ignore)
        self.node.launch("primary")
        self.sent: dict[int, list[int]] = defaultdict(list)
        self.left: dict[int, list[int]] = defaultdict(list)
        self.numbers: dict[int, set[int]] = defaultdict(set)
        self.counted: list[int] = []
        self.sequence = 0
        while self.node.page.role != ACTIVE or not all(core.link.attached for core in self.cores):
            self.turn(self.random)

    @property
    def cores(self) -> list[SimulatedCore]:
        cores = [core for core in self.node.cores if core is not None]
        assert len(cores) == CORES, self.node.end
        return cores

    def turn(self, order: random.Random, frames: list[list[bytes]] | None = None) -> None:
        """A turn of a core, or of the owner system; cores that frames come to have theirs first."""
        self.now_ns += order.randint(1_000, 1_000_000)
        for core, arriving in zip(self.cores, frames or [[], []], strict=True):
            if arriving:
                self.take(core.turn(arriving))
        who = order.randint(0, 3)
        if who < CORES:
            self.take(self.cores[who].turn([]))
        else:
            assert self.node.system is not None
            self.node.system.step()

    def take(self, frames: list[bytes]) -> None:
        for data in frames:
            flow, kind, sequence, number = read_frame(data)
            self.left[flow].append(sequence)
            if kind == OFFLOADING:
                self.numbers[flow].add(number)
            else:
                self.counted.append(number)

    def traffic(self, flows: int) -> list[list[bytes]]:
        arriving: list[list[bytes]] = [[] for _ in range(CORES)]
        for _ in range(self.random.choice((0, 1, 2, 4, 8))):
            flow = self.random.randint(1, flows)
            kind = KINDS[flow % 2]
            arriving[five_tuple(flow, kind).core(CORES)].append(frame(flow, kind, self.sequence))
            self.sent[flow].append(self.sequence)
            self.sequence += 1
        return arriving

    def give_away(self) -> None:
        hot = self.random.randrange(CORES)
        self.cores[hot].core.give_away(self.random.choice((0.3, 0.6, 1.0)), 1 - hot, self.random.choice((4, 16, 40)))

    def settle(self) -> None:
        for _ in range(300):
            self.turn(self.random)

    def moved(self) -> int:
        return sum(core.core.count()["flows_moved"] for core in self.cores)


@pytest.mark.parametrize("seed", range(20))
def test_a_flow_that_moves_loses_and_overtakes_nothing(seed: int) -> None:
    """G1, G5: every packet leaves once and in order, with the number that its flow was given once."""
    world = World(seed)
    for _ in range(400):
        if world.random.random() < 0.05:
            world.give_away()
        world.turn(world.random, world.traffic(30))
    world.settle()
    assert world.moved() >= 5
    assert world.left == world.sent, f"seed {seed}"
    assert all(len(numbers) == 1 for numbers in world.numbers.values())
    assert len(set(world.counted)) == len(world.counted), "each packet asked for a number of its own"
    counts = [core.core.count() for core in world.cores]
    assert sum(count["live_flows"] for count in counts) == sum(count["flows_opened"] for count in counts) == 30
    assert sum(count["handoff_stale"] + count["handoff_full"] + count["mailbox_full"] for count in counts) == 0


@pytest.mark.parametrize("seed", range(20))
def test_cores_that_die_leave_every_flow_in_one_place(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """G1, G5, G6: what a dead core had taken is lost with it; nothing leaves twice, too early, or with another's number."""
    monkeypatch.setattr(cores, "FLOWS_PER_FEED", 4)
    world = World(seed)
    for _ in range(400):
        if world.random.random() < 0.05:
            world.give_away()
        if world.random.random() < 0.02:
            world.node.kill_core(world.random.randrange(CORES))
        world.turn(world.random, world.traffic(30))
    world.settle()
    for flow, sequences in world.left.items():
        assert sequences == sorted(set(sequences)), f"seed {seed}, flow {flow}"
    assert all(len(numbers) == 1 for numbers in world.numbers.values())
    world.left.clear()
    for flow in range(1, 31):
        kind = KINDS[flow % 2]
        arriving: list[list[bytes]] = [[], []]
        arriving[five_tuple(flow, kind).core(CORES)].append(frame(flow, kind, flow))
        world.turn(world.random, arriving)
    world.settle()
    assert world.left == {flow: [flow] for flow in range(1, 31)}, f"seed {seed}: each flow is somewhere, and reached"
    system = world.node.system
    assert system is not None
    places = sorted(str(actor.flow) for core in world.cores for actor in core.core.actors())
    assert places == sorted(str(FlowBody.decode(body).flow) for body in system.journal.replica.flows.values())


def test_a_flow_that_moved_and_closed_opens_at_home_again() -> None:
    world = World(1)
    flow, home = next((f, five_tuple(f, COUNTING).core(CORES)) for f in range(1, 30) if f % 2 == 1)
    arriving: list[list[bytes]] = [[], []]

    def send(close: bool = False) -> None:
        arriving[home] = [frame(flow, COUNTING, world.sequence, close=close)]
        world.sequence += 1
        world.turn(world.random, arriving)
        world.settle()

    world.cores[home].core.give_away(1.0, 1 - home, 3)
    for _ in range(5):
        send()
    assert len(world.cores[1 - home].core.actors()) == 1 and not world.cores[home].core.actors()
    assert world.cores[home].core.entries == 1, "the key, which says where its packets are to go"
    send(close=True)
    assert world.cores[home].core.entries == world.cores[1 - home].core.entries == 0
    send()
    assert len(world.cores[home].core.actors()) == 1
    assert len(world.left[flow]) == 6


def test_what_follows_a_flow_that_moved_and_closed_does_not_overtake_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """G1, G5: it closes while its output waits; a next flow of its key, on the first core, begins when that has left. Till then
    it has what owners gave it: a node that takes over has an open flow."""
    closed: list[int] = []
    monkeypatch.setattr(Ticketing, "on_close", _counted(Ticketing.on_close, closed))
    world = World(1)
    system = world.node.system
    assert system is not None
    flow = 1
    home = five_tuple(flow, COUNTING).core(CORES)
    here, there = world.cores[home], world.cores[1 - home]

    def arrive(*sequences: int, close: int = 0) -> None:
        frames = [frame(flow, COUNTING, sequence, close=sequence == close) for sequence in sequences]
        world.take(here.turn(frames))
        for _ in range(8):
            world.take(there.turn([]))
            system.step()
            world.take(here.turn([]))

    here.core.give_away(1.0, 1 - home, 2)
    for sequence in (1, 2, 3):
        arrive(sequence)
    assert len(there.core.actors()) == 1 and not here.core.actors()

    with monkeypatch.context() as no_backup:
        no_backup.setattr(system.cores, "publish", lambda watermark: None)
        arrive(4, 5, 6, close=6)
        assert there.core.held == 2 and not closed
        there.core.close_all()
        answers: list[object] = []
        there.core.tell(five_tuple(flow, COUNTING), "hello", answers.append)
        arrive(7)
        assert not closed and not system.journal.replica.owners["tickets"].state.returned
        assert not answers and len(there.core.actors()) == 1 and not here.core.actors()
        assert world.left[flow] == [1, 2, 3]
    system.step()
    world.take(here.turn([]))  # the first core hears of the watermark first
    arrive(8)
    assert closed == [flow] and len(system.journal.replica.owners["tickets"].state.returned) == 1
    assert [type(answer) for answer in answers] == [UsageError] and not there.core.actors()
    assert there.core.count()["handoff_stale"] == 2, "what came to the closed flow is counted"
    arrive(9)
    assert world.left[flow] == sorted(set(world.left[flow])) and {4, 5, 9} < set(world.left[flow])
    assert len(here.core.actors()) == 1 and closed == [flow], "on_close runs once"


def _counted(on_close: Callable[[Ticketing], Coroutine[None, None, None]], closed: list[int]) -> object:
    async def counting(actor: Ticketing) -> None:
        closed.append(actor.flow.source_port)
        await on_close(actor)

    return counting


def test_a_flow_goes_once_its_handler_is_done_and_its_record_committed(monkeypatch: pytest.MonkeyPatch) -> None:
    """G1, G3: before that it would leave behind what only this core knows."""
    world = World(2)
    system = world.node.system
    assert system is not None
    core = world.cores[five_tuple(1, COUNTING).core(CORES)]
    leaving: list[int] = []
    monkeypatch.setattr(core.link, "leaving", lambda flow, to: leaving.append(to))
    core.core.give_away(1.0, 1 - core.index, 2)
    for sequence in (1, 2, 3):
        core.turn([frame(1, COUNTING, sequence)])
    for _ in range(10):
        core.turn([])
    assert core.core.suspended == 1 and not leaving, "it waits for its owner"
    for _ in range(20):
        system.step()
        core.turn([])
        assert not leaving or not (core.core.suspended or core.core.held)
    assert leaving == [1 - core.index]


def test_a_flow_is_passed_on_only_when_the_other_core_can_know_of_it() -> None:
    """G6: the other core's ring is full, so the flow's packets wait at home until there is room."""
    world = World(3)
    system = world.node.system
    assert system is not None
    home = five_tuple(1, COUNTING).core(CORES)
    here, there = world.cores[home], world.cores[1 - home]
    world.take(here.turn([frame(1, COUNTING, 1)]))
    for _ in range(5):
        system.step()
        world.take(here.turn([]))
    while not system.cores.lines[1 - home].waiting:
        system.cores.lines[1 - home].send(Revoked(0))
    here.core.give_away(1.0, 1 - home, 2)
    for sequence in (2, 3):
        world.take(here.turn([frame(1, COUNTING, sequence)]))
        for _ in range(5):
            system.step()
            world.take(here.turn([]))
    world.take(here.turn([frame(1, COUNTING, 4)]))
    assert here.core.count()["flows_moved"] == 0 and world.left[1] == [1, 2, 3]
    for _ in range(5):
        world.take(there.turn([]))
        system.step()
        world.take(here.turn([]))
    assert here.core.count()["flows_moved"] == 1 and world.left[1] == [1, 2, 3, 4]
