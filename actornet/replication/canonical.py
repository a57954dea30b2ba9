"""Canonical bytes: equal values have equal ones, whatever the order in which dicts and sets were filled."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from operator import itemgetter
from typing import Any

import msgspec
from msgspec import inspect as shapes

from actornet.misfit import holds

_encode = msgspec.msgpack.Encoder().encode
_key = itemgetter(0)
_SCALARS = {int, str, bytes, float, bool, type(None)}


class _Plain(dict[type, bool]):
    """Whether a type's values have no dict or set in them, so that msgspec encodes them canonically as they are."""

    def __missing__(self, kind: type) -> bool:
        unordered = (shapes.DictType, shapes.SetType, shapes.FrozenSetType, shapes.AnyType)
        plain = kind in _SCALARS or (issubclass(kind, msgspec.Struct) and not holds(kind, *unordered))
        self[kind] = plain
        return plain


_plain = _Plain()


def canonical(value: Any) -> bytes:
    """Canonical msgpack of a value of Structs whose fields fit their hints, dicts, sets, lists, tuples and scalars."""
    return _encode(_ordered(value))


def canonical_each(values: Collection[Any]) -> Iterator[bytes]:
    """Canonical msgpack of each of the values."""
    return map(_encode if _all_plain(values) else canonical, values)


def _ordered(value: Any) -> Any:
    """The value with dicts and sets as lists that are sorted by their keys' canonical bytes."""
    if _plain[type(value)]:
        return value
    if isinstance(value, msgspec.Struct):
        value = msgspec.structs.astuple(value)
    if isinstance(value, list | tuple):
        return value if _all_plain(value) else list(map(_ordered, value))
    if isinstance(value, dict):
        keys = canonical_each(value)
        values = value.values()
        return sorted(zip(keys, values if _all_plain(values) else map(_ordered, values), strict=True), key=_key)
    if isinstance(value, set | frozenset):
        return sorted(map(canonical, value))
    return value


def _all_plain(values: Iterable[Any]) -> bool:
    return all(map(_plain.__getitem__, map(type, values)))
