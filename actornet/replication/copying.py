"""Copies of owners' states, made by their types: what cannot change is shared.

Per entry a `dict[Endpoint, Binding]` of frozen Structs takes 5 ns, one of Structs that handlers change in place 110 ns;
anything else that may change (a tuple with a list in it, a tree) goes through the codec, in 1 us. So a state that is to grow
large should have frozen Structs, tuples and scalars in its containers.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from operator import methodcaller
from typing import Any, get_args, get_origin, get_type_hints

import msgspec
from msgspec import inspect as shapes

from actornet.owner import holds, shapes_in

SHARED_NS = 10
COPIED_NS = 200
CODED_NS = 1000
"""What an entry of a container takes that is shared, copied itself, or coded, and let go of later; measured, and rounded up."""

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


def copy_ns(hint: Any, value: Any) -> int:
    """About how long the copy of a value of the hinted type takes; looks at its containers' sizes only."""
    kind, arguments = get_origin(hint), get_args(hint)
    if not _changes(hint):
        return 0
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct) and not _holds_itself(hint):
        hints = get_type_hints(hint)
        return COPIED_NS + sum(copy_ns(hints[name], getattr(value, name)) for name in hint.__struct_fields__)
    if kind not in (dict, list):
        return CODED_NS
    total = _entry_ns(arguments[-1]) * len(value)
    if get_origin(arguments[-1]) in (dict, list):
        total += _entry_ns(get_args(arguments[-1])[-1]) * sum(map(len, value.values() if kind is dict else value))
    return total


def _entry_ns(hint: Any) -> int:
    if not _changes(hint):
        return SHARED_NS
    plain = isinstance(hint, type) and issubclass(hint, msgspec.Struct) and not _holds_itself(hint)
    return COPIED_NS if plain or get_origin(hint) in (dict, list) else CODED_NS


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
