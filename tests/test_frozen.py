"""Content held still: copies by type, snapshots and hashes that go on while handlers change what was copied."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Any, TypedDict

import msgspec
import pytest
from msgspec import Struct

from actornet.log.record import EpochBody
from actornet.owner import Owner
from actornet.replication import frozen
from actornet.replication.copying import GUESS_NS, copier, copy_ns
from actornet.replication.frozen import SLICE_ITEMS, finish, pause_ns
from actornet.replication.replica import Replica

TIME_NS = 1_700_000_000_000_000_000


class Point(Struct, frozen=True):
    x: float
    labels: tuple[str, ...] = ()


class Count(Struct):
    of: Point
    seen: int = 0


class Nested(Struct, frozen=True):
    points: list[Point]


@dataclass
class Mark:
    x: int = 0


class Typed(TypedDict):
    x: int


class Node(Struct):
    number: int
    children: dict[str, Node] = {}


class World(Struct):
    """A bit of everything that a state may be made of."""

    plain: dict[str, Point] = {}
    counts: dict[int, Count] = {}
    deep: dict[str, dict[int, Point]] = {}
    deeper: dict[str, dict[str, list[int]]] = {}
    queue: list[int] = []
    rows: list[list[int]] = []
    nested: Nested = Nested([])
    either: Count | None = None
    pairs: dict[int, tuple[int, list[int]]] = {}
    data: dict[int, Mark] = {}
    typed: Typed = msgspec.field(default_factory=lambda: Typed(x=0))
    tree: Node = msgspec.field(default_factory=lambda: Node(0))
    total: float = 0


class Sphere(Owner[World]):
    def start(self, entries: int = 0) -> World:
        return filled(entries)

    def stir(self, seed: int) -> int:
        """Change something in each of the fields, in place where that can be."""
        state, key = self.state, seed * 7919 % 1000
        state.plain[str(key)] = Point(key)
        state.plain.pop(str(key + 1), None)
        for count in list(state.counts.values())[:3]:
            count.seen += 1
        state.deep.setdefault("big", {})[-key] = Point(-key)
        state.deeper.setdefault("x", {}).setdefault("y", []).append(key)
        state.queue.append(key)
        state.rows[0].append(key)
        state.nested.points.append(Point(key))
        if state.either is not None:
            state.either.seen += 1
        for _, numbers in state.pairs.values():
            numbers.append(key)
        for mark in state.data.values():
            mark.x += 1
        state.typed["x"] += 1
        state.tree.children.setdefault("left", Node(key)).number += 1
        state.total += 1
        return key


def filled(entries: int) -> World:
    points = [Point(number, (str(number),)) for number in range(entries)]
    return World(
        plain={str(number): point for number, point in enumerate(points)},
        counts={number: Count(point) for number, point in enumerate(points)},
        deep={"big": dict(enumerate(points)), "small": dict(enumerate(points[:3])), "none": {}},
        deeper={"x": {"y": list(range(entries))}},
        queue=list(range(entries)),
        rows=[list(range(entries)), []],
        nested=Nested(points[:5]),
        either=Count(Point(1)),
        pairs={number: (number, [number]) for number in range(min(entries, 10))},
        data={number: Mark() for number in range(min(entries, 10))},
        typed={"x": 1},
        tree=Node(1, {"left": Node(2)}),
        total=entries,
    )


def world(entries: int) -> Replica:
    replica = Replica(lambda path: Sphere)
    replica.begin_epoch(1, EpochBody("n", "x:X", {}, "ab" * 8, 7, "start"), TIME_NS)
    replica.create_owner("sphere", "x:Sphere", {"entries": entries}, TIME_NS)
    return replica


def stirring(replica: Replica, work: Iterator[Any]) -> Iterator[Any]:
    for seed, piece in enumerate(work):
        replica.owners["sphere"].stir(seed)
        yield piece


@pytest.mark.parametrize("entries", [0, 1, SLICE_ITEMS, SLICE_ITEMS + 1, 4 * SLICE_ITEMS])
def test_a_snapshot_is_of_the_moment_at_which_it_began(entries: int) -> None:
    """G4: handlers go on between its slices, and change containers and Structs in place."""
    replica = world(entries)
    before, expected = replica.snapshot(), msgspec.msgpack.encode(replica.owners["sphere"].state)
    assert b"".join(stirring(replica, replica.snapshotting())) == before != replica.snapshot()
    restored = Replica.restore(before, lambda path: Sphere)
    assert msgspec.msgpack.encode(restored.owners["sphere"].state) == expected, "dicts in their order, too"


@pytest.mark.parametrize("entries", [0, 1, SLICE_ITEMS, SLICE_ITEMS + 1, 4 * SLICE_ITEMS])
def test_a_hash_is_of_the_moment_at_which_it_began(entries: int) -> None:
    """G4: as for a snapshot; and it is that of the restored replica, whose dicts were filled at once and whose ints in
    fields of floats are floats."""
    replica = world(entries)
    expected, data = replica.state_hash(), replica.snapshot()

    def work() -> Generator[None, None, int]:
        hashing = replica.hashing()
        for seed in range(10**6):
            try:
                yield next(hashing)
            except StopIteration as end:
                result: int = end.value
                return result
            replica.owners["sphere"].stir(seed)
        raise AssertionError

    assert finish(work()) == expected
    assert Replica.restore(data, lambda path: Sphere).state_hash() == expected
    assert not entries or replica.state_hash() != expected


def test_order_in_dicts_does_not_count_and_order_in_lists_does() -> None:
    """G4: however a dict was filled, small or so large that its entries are hashed by slices."""
    replica = world(2 * SLICE_ITEMS)
    expected, state = replica.state_hash(), replica.owners["sphere"].state
    for table in (state.plain, state.counts, state.deep, state.deep["big"]):
        entries = list(table.items())
        table.clear()
        table.update(reversed(entries))
        assert replica.state_hash() == expected
    state.deeper["x"]["y"].reverse()
    assert replica.state_hash() != expected


def test_copies_share_only_what_cannot_change() -> None:
    state = filled(10)
    copied = copier(World)
    assert copied is not None
    copy = copied(state)
    assert copy == state
    assert copy.plain is not state.plain and copy.plain["1"] is state.plain["1"]
    assert copy.counts[1] is not state.counts[1] and copy.counts[1].of is state.counts[1].of
    assert copy.deep["big"] is not state.deep["big"] and copy.deep["big"][1] is state.deep["big"][1]
    assert copy.deeper["x"]["y"] is not state.deeper["x"]["y"] and copy.rows[0] is not state.rows[0]
    assert copy.nested.points is not state.nested.points and copy.either is not state.either
    assert copy.data[1] is not state.data[1] and copy.typed is not state.typed
    assert copy.tree.children["left"] is not state.tree.children["left"]
    state.queue = (1, 2)  # type: ignore[assignment]
    assert copied(state).queue == [1, 2], "what the log would make of it"
    assert copier(Point) is None and copier(dict[str, int]) is not None


def test_a_copy_is_let_go_in_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """G6: to free a large one in one step would be a silence that no peer was told of. The state itself stays."""
    replica, held = world(500), list[World]()
    state = msgspec.msgpack.encode(replica.owners["sphere"].state)
    expected, snapshot = replica.state_hash(), replica.snapshot()
    monkeypatch.setattr(frozen, "FREED_ITEMS", 10)
    take = frozen._states

    def taking(of: Replica) -> list[Any]:
        states = take(of)
        held.extend(copy for *_, copy in states)
        return states

    monkeypatch.setattr(frozen, "_states", taking)
    assert (replica.state_hash(), replica.snapshot()) == (expected, snapshot) and len(held) == 2
    for copy in held:
        assert all(len(left) <= 10 for left in (copy.plain, copy.counts, copy.deep["big"], copy.deeper["x"]["y"]))
    assert msgspec.msgpack.encode(replica.owners["sphere"].state) == state


class Branch(Struct):
    children: list[Branch] = []


def branches(count: int) -> Branch:
    return Branch([Branch([Branch() for _ in range(9)]) for _ in range(count // 10)])


class Grove(Struct):
    trees: dict[int, Branch] = {}
    anything: dict[str, Any] = {}
    one: Branch = msgspec.field(default_factory=Branch)


def test_the_pause_of_what_is_coded_is_estimated_by_what_is_in_it() -> None:
    """A tree is as long as it is large; one that is too large to be looked through takes as long as the last time."""
    small, larger, large = branches(10), branches(400), branches(2500)
    assert 10 * copy_ns(Branch, small) < copy_ns(Branch, larger) < GUESS_NS == copy_ns(Branch, large)
    assert copy_ns(Branch, large, 70_000_000) == 70_000_000 and copy_ns(Branch, larger, 70_000_000) < GUESS_NS
    few, many = dict.fromkeys(range(10), larger), dict.fromkeys(range(1000), larger)
    assert 90 < copy_ns(dict[int, Branch], many) / copy_ns(dict[int, Branch], few) < 110
    assert copy_ns(dict[int, Branch], {1: small, 2: large}) == GUESS_NS
    assert copy_ns(dict[int, Branch], {}) == copy_ns(dict[str, list[Branch]], {}) == 0
    assert copy_ns(dict[str, list[Branch]], {"x": [larger] * 10}) > 9 * copy_ns(Branch, larger)
    texts = {"x": {"y": ["z" * 100_000, b"z" * 100_000]}}
    assert copy_ns(Any, {"x": 1}) < copy_ns(Any, {"x": "y" * 10_000}) < copy_ns(Any, texts) == GUESS_NS
    assert copy_ns(Grove, Grove({1: large})) >= GUESS_NS > copy_ns(Grove, Grove({1: small}, {"a": [1]}, small))


def test_the_pause_is_estimated_by_what_is_copied() -> None:
    """Shared entries take a tenth of those that are Structs which handlers change; the replica tells before it pauses."""
    shared, changed = {number: Point(number) for number in range(1000)}, {n: Count(Point(n)) for n in range(1000)}
    assert copy_ns(dict[int, Count], changed) > 10 * copy_ns(dict[int, Point], shared) > 0
    assert copy_ns(dict[str, dict[int, Point]], {"x": shared, "y": shared}) > 2 * copy_ns(dict[int, Point], shared)
    assert copy_ns(World, filled(1000)) > copy_ns(World, filled(10))
    replica = world(1000)
    told: list[int] = []
    replica.before_pause = told.append
    ended: list[int] = []
    replica.after_pause = lambda: ended.append(1)
    replica.state_hash()
    assert not told, "what is done at once ends before anybody could hear of it"
    for hold in (replica.hashing, replica.snapshotting):
        hold()
        assert told.pop() == pause_ns(replica) and not told and ended.pop() and not ended
