"""What does not fit its type, named by its place."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
import pytest
from msgspec import Struct

from actornet.errors import StateError, UsageError
from actornet.log.record import EpochBody
from actornet.misfit import misfit
from actornet.owner import Owner
from actornet.replication.frozen import SLICE_ITEMS, finish, pause_ns, state_hash
from actornet.replication.replica import Replica


class Point(Struct, frozen=True):
    x: int
    labels: tuple[str, ...] = ()


class Node(Struct):
    children: dict[str, Node] = {}


class World(Struct):
    number: int = 0
    share: Annotated[float, msgspec.Meta(ge=0)] = 0
    plain: dict[str, int] = {}
    deep: dict[str, dict[int, Point]] = {}
    points: list[Point] = []
    either: Point | None = None
    pairs: dict[int, tuple[int, list[int]]] = {}
    seen: set[int] = set()
    tree: Node = msgspec.field(default_factory=Node)


class Sphere(Owner[World]):
    def size(self) -> int:
        return len(self.state.points)


MANY = SLICE_ITEMS * 2 + 44

MISFITS: list[tuple[str, Any, str]] = [
    ("number", 0.5, "number: expected int, got float"),
    ("number", 2**70, "number: expected int of 64 bits at most, got one of 71 bits"),
    ("number", object(), "number: expected int, got object, which cannot be logged"),
    ("number", None, "number: expected int, got NoneType"),
    ("plain", {"a": 1, "b": "text"}, "plain['b']: expected int, got str"),
    ("plain", {1: 1}, "plain key 1: expected str, got int"),
    ("plain", {"\ud800": 1}, r"plain key '\ud800': expected str, got str that cannot be logged: UnicodeEncodeError"),
    ("plain", {str(i): i for i in range(MANY)} | {"bad": None}, "plain['bad']: expected int, got NoneType"),
    ("deep", {"a": {i: Point(i) for i in range(MANY)} | {-1: Point("x")}}, "deep['a'][-1].x: expected int, got str"),  # type: ignore[arg-type]
    ("deep", {"a": 5}, "deep['a']: expected dict[int"),
    ("deep", 5, "deep: expected dict[str"),
    ("points", [Point(1)] * MANY + [Point(2, (3,))], f"points[{MANY}].labels[0]: expected str, got int"),  # type: ignore[arg-type]
    ("points", None, "points: expected list["),
    ("either", Point(0.5), "either.x: expected int, got float"),  # type: ignore[arg-type]
    ("pairs", {1: (1, [2, "x"])}, "pairs[1][1][1]: expected int, got str"),
    ("pairs", {1: None}, "pairs[1]: expected tuple[int"),
    ("seen", {1, "x"}, "seen entry: expected int, got str"),
    ("tree", Node({"a": Node({"b": 7})}), "tree.children['a'].children['b']: expected Node, got int"),  # type: ignore[dict-item]
]


def sphere() -> Replica:
    replica = Replica(lambda path: Sphere)
    replica.begin_epoch(1, EpochBody("n", "x:X", {}, "ab" * 8, 7, "start"), 1)
    replica.create_owner("sphere", "x:Sphere", {}, 1)
    return replica


@pytest.mark.parametrize(("field", "value", "said"), MISFITS, ids=[f"{f}-{n}" for n, (f, _, _) in enumerate(MISFITS)])
def test_a_value_that_does_not_fit_is_named(field: str, value: Any, said: str) -> None:
    """G4, G8: by an audit as by a snapshot; and there is neither then."""
    replica = sphere()
    setattr(replica.owners["sphere"].state, field, value)
    assert pause_ns(replica) > 0
    for wants in (replica.check_states, replica.state_hash, replica.snapshot):
        with pytest.raises(StateError) as raised:
            wants()
        assert str(raised.value).startswith(f"owner sphere (x:Sphere): state.{said}")


def test_what_an_annotation_forbids_is_found_by_the_snapshot() -> None:
    """G8: it would not be let in again."""
    replica = sphere()
    replica.owners["sphere"].state.share = -0.5
    with pytest.raises(StateError, match=r"state\.share: expected float >= 0"):
        replica.snapshot()


def test_what_fits_is_let_pass() -> None:
    """An int in a field of floats, large containers, and all of it comes back."""
    replica = sphere()
    state = replica.owners["sphere"].state
    state.share, state.points, state.deep = 1, [Point(1)] * MANY, {"a": {i: Point(i) for i in range(MANY)}}
    state.plain = {str(i): i for i in range(MANY)}
    replica.check_states()
    restored = Replica.restore(replica.snapshot(), lambda path: Sphere)
    assert finish(state_hash(restored)) == replica.state_hash()
    assert restored.owners["sphere"].state == state


def test_a_value_within_itself_ends() -> None:
    loop: list[Any] = []
    loop.append(loop)
    said = misfit(list[Point], loop, "points")
    assert said is not None and said.startswith("points[0]: expected Point, got list")


def test_a_first_state_that_does_not_fit_is_refused_by_its_place() -> None:
    class Wrong(Owner[World]):
        def start(self) -> World:
            return World(plain={"a": 2**70})

    replica = Replica(lambda path: Wrong)
    replica.begin_epoch(1, EpochBody("n", "x:X", {}, "ab" * 8, 7, "start"), 1)
    with pytest.raises(UsageError, match=r"start gave a state\.plain\['a'\]: expected int of 64 bits at most"):
        replica.create_owner("wrong", "x:Wrong", {}, 1)
