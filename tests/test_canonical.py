"""Canonical bytes are the same for equal values, and differ for others."""

from random import Random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from actornet.engine.five_tuple import FiveTuple
from actornet.owner import Struct
from actornet.replication.canonical import canonical, canonical_each


class Nested(Struct):
    names: dict[str, set[int]]
    flow: FiveTuple


keys = st.one_of(
    st.integers(-5, 5),
    st.text(max_size=2),
    st.none(),
    st.builds(FiveTuple, st.integers(0, 1), *[st.just("a"), st.just(0)] * 2),
)
values = st.recursive(
    keys | st.sets(keys) | st.booleans() | st.binary(max_size=2),
    lambda inner: st.lists(inner) | st.dictionaries(keys, inner) | st.tuples(inner, inner),
    max_leaves=8,
)


def refilled(value: Any, random: Random) -> Any:
    """An equal value whose dicts and sets were filled in another order."""
    if isinstance(value, dict):
        items = [(key, refilled(inner, random)) for key, inner in value.items()]
        random.shuffle(items)
        return dict(items)
    if isinstance(value, set):
        items = [*value, *(f"gone {number}" for number in range(50))]
        random.shuffle(items)
        filled = set(items)
        for number in range(50):
            filled.discard(f"gone {number}")
        return filled
    if isinstance(value, list | tuple):
        return type(value)(refilled(inner, random) for inner in value)
    return value


@settings(max_examples=40)
@given(values, st.randoms(use_true_random=False))
def test_order_of_filling_does_not_matter(value: Any, random: Random) -> None:
    assert canonical(value) == canonical(refilled(value, random))


def test_structs_are_entered() -> None:
    flow = FiveTuple(6, "10.0.0.1", 1, "10.0.0.2", 2)
    one = Nested({"a": {1, 2}, "b": {8, 0}}, flow)
    assert canonical(one) == canonical(Nested({"b": {0, 8}, "a": {2, 1}}, flow))
    assert canonical(one) != canonical(Nested({"a": {1, 2}, "b": {8}}, flow))
    assert canonical(one) != canonical(Nested({"a": {1, 2}, "b": {8, 0}}, flow.reversed()))


def test_order_of_lists_matters() -> None:
    assert canonical([1, 2]) != canonical([2, 1])


@given(st.lists(values, max_size=4))
def test_of_many_it_is_that_of_each(many: list[Any]) -> None:
    assert list(canonical_each(many)) == list(map(canonical, many))
