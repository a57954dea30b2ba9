"""What goes wrong in one simulation, and when: drawn from the seed, or written down to be cut shorter."""

from __future__ import annotations

from random import Random
from typing import Literal

import msgspec

from actornet.limits import LINKS_DOWN_MS, SILENCE_MS_DEFAULT, SILENCE_MS_MIN
from actornet.replication.protocol import Durability, WithoutBackup
from actornet.testing.simulation.node import CRASH_POINTS

STEPS = 70
"""Steps with faults, of a quarter to three milliseconds each; healing follows."""


class Event(msgspec.Struct, frozen=True):
    """One fault, before step `step`. `node` is "a", "b" or "c", `value` what the kind asks for."""

    step: int
    kind: str
    node: str = "a"
    text: str = ""
    value: int = 0

    def __str__(self) -> str:
        return " ".join(str(part) for part in (self.kind, self.node, self.text, self.value or "") if part)


class Schedule(msgspec.Struct, frozen=True):
    """One simulation: the same schedule always takes the same course. `silence_ms` is for which a node waits for another."""

    seed: int
    durability: Durability
    without_backup: WithoutBackup
    cores: int
    events: tuple[Event, ...]
    witness: bool = False
    nodes: int = 2
    silence_ms: tuple[int, ...] = (SILENCE_MS_DEFAULT,) * 3
    revokes: bool = False
    """A flow has all offloads revoked, again and again."""
    idles: bool = False
    """There are flows that end when they are idle, and offloads that end by themselves."""
    nf: Literal["ticketing", "tagging", "chained"] = "ticketing"
    """What is simulated: flows of datagrams, TCP connections that are edited, or a chain that flows of datagrams go through."""
    pause_ms: int = 0
    """For so long at most a node is busy when it holds its state still."""
    paced: bool = False
    """Nodes take few flows, and little of a snapshot, at a time, are calm soon, and owner systems sleep until work is due."""
    upkeep: bool = False
    """Nodes have their state audited and stored, and their logs pruned."""

    def without(self, indices: set[int]) -> Schedule:
        """The schedule less some of its events."""
        kept = tuple(event for index, event in enumerate(self.events) if index not in indices)
        return msgspec.structs.replace(self, events=kept)


KINDS = {
    "kill": 4,
    "leader down": 3,
    "kill at": 8,
    "machine down": 2,
    "kill core": 2,
    "reset": 4,
    "block": 3,
    "unblock": 4,
    "pause": 4,
    "disturb": 3,
    "slow": 2,
    "wall clock": 1,
    "disk full": 1,
    "damage": 1,
    "stop": 2,
    "promote": 1,
}
"""Kinds of faults, and how often they come."""


WITNESS_KINDS = {"freeze": 3, "witness cut": 3, "witness slow": 1, "witness down": 1}
"""And those that come where there is a witness."""


def draw(seed: int, witness: bool | None = None, nodes: int | None = None, *, plain: bool = False) -> Schedule:
    """The schedule of a seed. Some have a story that chance alone seldom tells.

    `plain`: without rushes, revocations, idle flows, streams, chains, more than two cores, and other limits of silence than the
    default, as seeds meant before there were these.
    """
    random = Random(seed)
    durability: Durability = random.choice(("solo", "received", "durable", "applied", "applied"))
    without_backup: WithoutBackup = random.choice(("wait", "solo", "stop"))
    rate = random.choice((0.04, 0.1, 0.25))
    if witness is None:
        witness = seed % 3 == 1
    kinds, weights = zip(*(KINDS | WITNESS_KINDS if witness else KINDS).items(), strict=True)
    events = []
    for step in range(4, STEPS):
        if random.random() < rate:
            kind = random.choices(kinds, weights)[0]
            events.append(_event(random, step, kind))
    begin, story = random.randint(8, 20), random.random()
    if story < 0.15:  # two logs go different ways, and each is wanted
        durability = "solo"
        events += [
            *two_ways(begin),
            Event(begin + random.randint(15, 40), "leader down", value=STEPS),
        ]
    elif story < 0.3:  # the primary goes while a backup has much to catch up with
        without_backup = "solo"
        events += [
            Event(begin, "slow", value=5),
            Event(begin, "kill", "b"),
            Event(begin + random.randint(10, 20), "leader down", value=random.randint(10, STEPS)),
        ]
    elif story < 0.45:  # the backup dies in the middle of applying, and the primary after it
        durability = random.choice(("durable", "applied"))
        point = random.choice(("before append", "after append", "before sync", "before flush"))
        events += [Event(begin, "kill at", "b", point), Event(begin + random.randint(1, 20), "reset")]
    elif story < 0.6:  # the machine forgets an epoch that has just begun, and nobody else leads
        without_backup = "solo"
        end = begin + random.randint(5, 16)
        events = [event for event in events if event.step < begin]
        events += [Event(begin, "kill", "b"), Event(end, "machine down", "a"), Event(end, "kill", "b")]
    events.sort(key=lambda event: event.step)
    cores = random.choice((1, 1, 2))
    if witness and random.random() < 0.8:  # the nodes lose sight of each other, then the primary of the witness
        begin = random.randrange(13, 22, 2)
        lost = begin + random.randint(0, 25)
        events = [event for event in events if event.step > lost + 20]
        events += [
            Event(begin, "witness slow", value=random.choice((0, 4, 8, 8))),
            Event(begin, "block", "a"),
            random.choice(
                (
                    Event(lost, "witness cut", "a", value=100),
                    Event(lost, "freeze", "a", "owner", 100),
                    Event(lost, "pause", "a", value=100),
                    Event(lost, "leader down", value=STEPS),
                )
            ),
        ]
        without_backup = random.choice(("wait", "solo", "solo"))
        durability = random.choice(("received", "durable", "applied"))
        events.sort(key=lambda event: event.step)
    if cores > 1:
        events += _moves(Random(f"{seed} moves"), cores)
        events.sort(key=lambda event: event.step)
    if nodes is None:
        nodes = 3 if witness and seed % 2 else 2
    if nodes > 2:
        events = _among_three(Random(f"{seed} three"), events)
    events = _links(Random(f"{seed} links"), events, nodes)
    schedule = Schedule(seed, durability, without_backup, cores, tuple(events), witness, nodes)
    if plain:
        return schedule
    events = _rushes(Random(f"{seed} rush"), events)
    events = _lulls(Random(f"{seed} lull"), events)
    limits = _silences(Random(f"{seed} silence"))
    revokes = Random(f"{seed} revokes").random() < 0.3
    idles = Random(f"{seed} idles").random() < 0.3
    cores, events = _more_cores(Random(f"{seed} cores"), cores, events)
    upkeep = Random(f"{seed} upkeep").random() < 0.5
    pause_ms = _pause_ms(Random(f"{seed} pause"), witness) if upkeep else 0
    share = Random(f"{seed} nf").random()
    nf: Literal["ticketing", "tagging", "chained"]
    nf = "tagging" if share < 0.2 else "chained" if share < 0.3 else "ticketing"
    return msgspec.structs.replace(
        schedule,
        events=tuple(events),
        silence_ms=limits,
        revokes=revokes,
        idles=idles,
        cores=cores,
        nf=nf,
        pause_ms=pause_ms,
        paced=True,
        upkeep=upkeep,
    )


def two_ways(begin: int) -> list[Event]:
    """What node `a` has logged last, nobody else gets before it dies."""
    return [
        Event(begin - 1, "block", "a"),
        Event(begin, "kill at", "a", "after append"),
        Event(begin + 1, "reset"),
        Event(begin + 1, "unblock"),
    ]


def _pause_ms(random: Random, witness: bool) -> int:
    """Mostly none; a node does not make one in which its lease could end (`Upkeep`)."""
    return random.choice((0, 0, 0, 3, 3, 3) if witness else (0, 0, 0, 3, 15, 50))


def _more_cores(random: Random, cores: int, events: list[Event]) -> tuple[int, list[Event]]:
    """Three or four, now and then: any of them gives flows away, or is killed."""
    if random.random() >= 0.12:
        return cores, events
    cores = random.choice((3, 4))
    struck = [
        msgspec.structs.replace(event, value=random.randrange(cores)) if event.kind == "kill core" else event
        for event in events
        if event.kind != "give away"
    ]
    return cores, sorted([*struck, *_moves(random, cores)], key=lambda event: event.step)


def _rushes(random: Random, events: list[Event]) -> list[Event]:
    """Much traffic for a while, mostly where something goes wrong."""
    if random.random() < 0.5:
        return events
    steps = [event.step for event in events if event.step < STEPS] + [random.randrange(4, STEPS)]
    begins = [max(4, random.choice(steps) - random.randint(0, 3)) for _ in range(random.randint(1, 3))]
    rushes = [Event(begin, "rush", value=random.randint(2, 30)) for begin in begins]
    return sorted([*events, *rushes], key=lambda event: event.step)


def _lulls(random: Random, events: list[Event]) -> list[Event]:
    """No traffic for a while, so that nodes are calm, and what goes wrong then."""
    if random.random() < 0.7:
        return events
    lulls = [
        Event(random.randrange(4, STEPS), "lull", value=random.randint(5, 40)) for _ in range(random.randint(1, 2))
    ]
    return sorted([*events, *lulls], key=lambda event: event.step)


def _silences(random: Random) -> tuple[int, ...]:
    """Mostly the default; else another, which nodes need not agree on: their files may differ while they are changed."""
    others = SILENCE_MS_MIN, 60, 120, 400
    match random.random():
        case share if share < 0.6:
            return (SILENCE_MS_DEFAULT,) * 3
        case share if share < 0.85:
            return (random.choice(others),) * 3
    return tuple(random.choices((*others, SILENCE_MS_DEFAULT), k=3))


def _among_three(random: Random, events: list[Event]) -> list[Event]:
    """What strikes a pair strikes any of three; and one that counts is lost, and comes back, while another goes on."""
    events = [
        msgspec.structs.replace(event, node=random.choice("abc")) if random.random() < 0.6 else event
        for event in events
    ]
    for _ in range(random.randint(0, 2)):
        begin, one = random.randint(6, STEPS - 20), random.choice("bc")
        loss = random.choice(
            (
                Event(begin, "kill", one),
                Event(begin, "pause", one, value=random.choice((40, 100))),
                Event(begin, "block", "a", "one", random.randint(0, 1)),
                Event(begin, "machine down", one),
            )
        )
        then = begin + random.choice((1, 2, 3, 5, 12, 30))  # before, while and after it is left out
        death = random.choice(
            (
                Event(then, "leader down", value=random.choice((5, 40))),
                Event(then, "witness cut", "a", value=100),
                Event(then, "freeze", "a", "owner", 60),
                Event(then, "unblock"),
            )
        )
        events += [loss, death]
    events.sort(key=lambda event: event.step)
    return events


def _moves(random: Random, cores: int) -> list[Event]:
    """Flows move from core to core now and then."""
    steps = [step for step in range(4, STEPS) if random.random() < 0.1]
    return [Event(step, "give away", random.choice("ab"), value=random.randrange(cores)) for step in steps]


def _links(random: Random, events: list[Event], nodes: int) -> list[Event]:
    """Ports lose their links, now and then, and traffic its way through the primary: long enough that a backup asks to lead.
    What else goes wrong then comes while it does."""
    if random.random() > 0.06:  # it takes longer than all else together
        return events
    begin, names = random.randint(6, STEPS - 10), "abc"[:nodes]
    lost = [Event(begin, "link", random.choice(names), value=random.randint(1, 2)) for _ in range(random.randint(1, 2))]
    until = Event(begin, "calm", value=random.randint(LINKS_DOWN_MS, LINKS_DOWN_MS + 120))
    back = [Event(random.randint(begin + 1, STEPS - 1), "link", event.node) for event in lost if random.random() < 0.3]
    strikes = random.choice(([], ["kill"], ["pause"], ["reset"], ["leader down"], ["kill core"], ["link", "calm"]))
    for kind in strikes:
        event = _event(random, begin + random.randint(1, 3), kind)
        value = LINKS_DOWN_MS + 120 if kind == "calm" else random.randint(0, 2) if kind == "link" else event.value
        back.append(msgspec.structs.replace(event, value=value))
    return sorted([*events, *lost, until, *back], key=lambda event: event.step)


def _event(random: Random, step: int, kind: str) -> Event:
    node, text, value = random.choice("ab"), "", 0
    match kind:
        case "kill at":
            text = random.choice(CRASH_POINTS)
        case "leader down":
            value = random.randint(2, 40)
        case "freeze":
            text, value = random.choice(("owner", "cores")), random.randint(5, 80)
        case "witness cut":
            value = random.randint(5, 80)
        case "witness slow":
            value = random.choice((0, 3, 12))
        case "pause":
            value = random.randint(5, 80)
        case "disturb":
            text = random.choice(("flip", "repeat", "swap"))
        case "slow":
            value = random.choice((0, 1, 5, 20))
        case "wall clock":
            value = random.randint(-10, 10)
        case "disk full":
            value = random.randint(1, 20)
        case "damage":
            text, value = random.choice(("flip", "misplace")), random.getrandbits(30)
    return Event(step, kind, node, text, value)
