"""Copies of owners' states, made by their types: what cannot change is shared.

Per entry a `dict[Endpoint, Binding]` of frozen Structs takes 5 ns, one of Structs that handlers change in place 110 ns;
anything else that may change (a tuple with a list in it, a tree) goes through the codec, in 1 us. So a state that is to grow
large should have frozen Structs, tuples and scalars in its containers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import is_dataclass
from functools import cache
from itertools import chain
from operator import methodcaller
from typing import Any, get_args, get_origin, get_type_hints

import msgspec
from msgspec import inspect as shapes

from actornet.misfit import holds, shapes_in

SHARED_NS = 10
COPIED_NS = 200
CODED_NS = 1000
"""What an entry of a container takes that is shared, copied itself, or coded, and let go of later; measured, and rounded up."""

ITEM_NS = 100
BYTES_PER_ITEM = 64
ITEMS_MAX = 2000
GUESS_NS = 10_000_000
"""And each item in an entry that is coded. So many are counted for an estimate, as counting takes longer than coding; where
that is not enough for a single entry, a guess has to do."""

_copy = methodcaller("__copy__")  # of a Struct; half the time of copy.copy

_CHANGEABLE = (
    *(shapes.DictType, shapes.ListType, shapes.SetType, shapes.ByteArrayType, shapes.MemoryViewType),
    *(shapes.TypedDictType, shapes.DataclassType, shapes.AnyType, shapes.CustomType),
)


class NotCopiedError(Exception):
    """A Struct's `field` is not what its hint says, and cannot be copied as that."""

    def __init__(self, field: str) -> None:
        super().__init__(field)
        self.field = field


@cache
def copier(hint: Any) -> Callable[[Any], Any] | None:
    """What copies values of the hinted type; None if they cannot change. A Struct's raises NotCopiedError."""
    if not _changes(hint):
        return None
    kind, arguments = get_origin(hint), get_args(hint)
    if kind is dict and not _changes(arguments[0]):
        inner = copier(arguments[1])
        return dict if inner is None else _dict_copier(inner)
    if kind is list:
        inner = copier(arguments[0])
        return list if inner is None else lambda value: list(map(inner, value))
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct) and not _holds_itself(hint):
        hints = get_type_hints(hint)
        fields = [(name, inner) for name in hint.__struct_fields__ if (inner := copier(hints[name])) is not None]
        return _struct_copier(fields) if fields else _copy
    decode = msgspec.msgpack.Decoder(hint).decode
    return lambda value: decode(msgspec.msgpack.encode(value))


def copy_ns(hint: Any, value: Any, guess_ns: int = GUESS_NS) -> int:
    """About how long the copy of a value of the hinted type takes, from its containers' sizes.

    Of entries that are coded it looks through the first ones; if one is too large for that, they all take `guess_ns`.
    """
    kind, arguments = get_origin(hint), get_args(hint)
    if not _changes(hint):
        return 0
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct) and not _holds_itself(hint):
        hints = get_type_hints(hint)
        return COPIED_NS + sum(copy_ns(hints[name], getattr(value, name), guess_ns) for name in hint.__struct_fields__)
    if kind not in (dict, list):
        return _coded_ns([value], 1, guess_ns)
    inner, entries = arguments[-1], value.values() if kind is dict else value
    total = _entries_ns(inner, entries, len(value), guess_ns)
    if get_origin(inner) in (dict, list):
        nested = (entry.values() if isinstance(entry, dict) else entry for entry in entries)
        count = sum(map(len, entries))
        total += _entries_ns(get_args(inner)[-1], chain.from_iterable(nested), count, guess_ns)
    return total


def _entries_ns(hint: Any, entries: Iterable[Any], count: int, guess_ns: int) -> int:
    if not _changes(hint):
        return SHARED_NS * count
    plain = isinstance(hint, type) and issubclass(hint, msgspec.Struct) and not _holds_itself(hint)
    return COPIED_NS * count if plain or get_origin(hint) in (dict, list) else _coded_ns(entries, count, guess_ns)


def _coded_ns(entries: Iterable[Any], count: int, guess_ns: int) -> int:
    """By what is in the first entries, up to ITEMS_MAX in all."""
    items = looked_at = 0
    for entry in entries:
        found = _items(entry, ITEMS_MAX)
        if found > ITEMS_MAX:
            return max(guess_ns, CODED_NS * count)
        items, looked_at = items + found, looked_at + 1
        if items >= ITEMS_MAX:
            break
    return (CODED_NS + ITEM_NS * items // looked_at) * count if looked_at else 0


def _items(value: Any, limit: int) -> int:
    """How many scalars and containers are in a value; anything above `limit` if they are more."""
    found, rest = 0, [value]
    while rest and found <= limit:
        entry = rest.pop()
        found += 1
        if isinstance(entry, str | bytes | bytearray):
            found += len(entry) // BYTES_PER_ITEM
            continue
        if isinstance(entry, msgspec.Struct):
            entry = msgspec.structs.astuple(entry)
        elif is_dataclass(entry):
            entry = list(vars(entry).values())
        if isinstance(entry, dict):
            found += len(entry)
            entry = entry.values()
        elif not isinstance(entry, list | tuple | set | frozenset):
            continue
        if len(entry) > limit:
            return limit + 1
        rest.extend(entry)
    return found


def _dict_copier(inner: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: {key: inner(entry) for key, entry in value.items()}


def _struct_copier(fields: list[tuple[str, Callable[[Any], Any]]]) -> Callable[[Any], Any]:
    def copied(value: Any) -> Any:
        new = _copy(value)
        for name, inner in fields:
            try:
                msgspec.structs.force_setattr(new, name, inner(getattr(value, name)))
            except MemoryError:
                raise
            except Exception as error:
                raise NotCopiedError(name) from error
        return new

    return copied


@cache
def _holds_itself(kind: type[msgspec.Struct]) -> bool:
    """Whether the Struct has others of its type in it, as a tree's node does."""
    fields = (hint for name, hint in get_type_hints(kind).items() if name in kind.__struct_fields__)
    return any(getattr(shape, "cls", None) is kind for hint in fields for shape in shapes_in(hint))


@cache
def _changes(hint: Any) -> bool:
    """Whether values of the hinted type may be changed in place."""
    structs = (shape.cls for shape in shapes_in(hint) if isinstance(shape, shapes.StructType))
    return holds(hint, *_CHANGEABLE) or any(not cls.__struct_config__.frozen for cls in structs)
