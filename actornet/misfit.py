"""What keeps a value from coming back from the log as the type that its hint says: found, and named by its place.

The hints of an owner's state and a flow's fields are not checked at each assignment. A value that does not fit is carried
until it goes through the codec, and then named as a user would look for it: `used[1].port: expected int, got str`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import msgspec
from msgspec import inspect as shapes

DEPTH_MAX = 32
_PLACE = re.compile(r" - at `[^`]*`$")
_KINDS = re.compile(r"Expected `[^`]*`, got `[^`]*`")

_encode = msgspec.msgpack.Encoder().encode


def through(hint: Any, value: Any) -> Any:
    """The value as it comes back from the log. Raises what the codec raises."""
    return decoder(hint)(_encode(value))


def misfit(hint: Any, value: Any, place: str, first: int = 0) -> str | None:
    """What is wrong with the value at `place`, as one line that begins with the place of the innermost part; None: it fits.

    `first` is the index of a list's first entry, if it is a slice of one.
    """
    return _misfit(hint, value, place, first, 0)


@cache
def decoder(hint: Any) -> Any:
    """`decode` of the hinted type."""
    return msgspec.msgpack.Decoder(hint).decode


@cache
def field_hints(kind: type[msgspec.Struct]) -> dict[str, Any]:
    """The hinted types of a Struct's fields, with what `Annotated` says about their values."""
    return get_type_hints(kind, include_extras=True)


def shown(hint: Any) -> str:
    """The hint as a user writes it."""
    return hint.__name__ if isinstance(hint, type) and get_origin(hint) is None else str(hint).replace("typing.", "")


def holds(hint: Any, *wanted: type[shapes.Type]) -> bool:
    """Whether a type of one of these shapes is anywhere in the hinted type."""
    return any(isinstance(shape, wanted) for shape in shapes_in(hint))


def shapes_in(hint: Any) -> Iterator[Any]:
    """The shapes of all types that make up the hinted type, each class once."""
    todo: list[Any] = [shapes.type_info(hint)]
    seen: set[type] = set()
    while todo:
        shape = todo.pop()
        cls = getattr(shape, "cls", None)
        if cls in seen:
            continue
        if cls is not None:
            seen.add(cls)
        yield shape
        for value in msgspec.structs.astuple(shape):
            parts = value if isinstance(value, tuple) else (value,)
            todo.extend(part for part in parts if isinstance(part, shapes.Type | shapes.Field))


def _misfit(hint: Any, value: Any, place: str, first: int, depth: int) -> str | None:
    try:
        through(hint, value)
        return None
    except MemoryError:
        raise
    except Exception as error:
        problem = error
    if depth < DEPTH_MAX:
        for step, inner, part in _parts(_without_none(hint, value), value, first):
            found = _misfit(inner, part, place + step, 0, depth + 1)
            if found is not None:
                return found
    return f"{place}: {_text(hint, value, problem)}"


def _without_none(hint: Any, value: Any) -> Any:
    """`X` of `X | None` for a value that is not None."""
    if get_origin(hint) in (Union, UnionType) and value is not None:
        others = [part for part in get_args(hint) if part is not NoneType]
        return others[0] if len(others) == 1 else hint
    return hint


def _parts(hint: Any, value: Any, first: int) -> Iterator[tuple[str, Any, Any]]:
    """The steps to the value's parts, with their hints; none where the value is not of the hinted kind at all."""
    kind, arguments = get_origin(hint) or hint, get_args(hint)
    if kind is dict and isinstance(value, dict) and len(arguments) == 2:
        for key, entry in value.items():
            yield f" key {key!r:.80}", arguments[0], key
            yield f"[{key!r:.80}]", arguments[1], entry
    elif kind in (list, set, frozenset) and isinstance(value, kind) and arguments:
        for index, entry in enumerate(value, first):
            yield f"[{index}]" if kind is list else " entry", arguments[0], entry
    elif kind is tuple and isinstance(value, tuple | list) and arguments:
        hints = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else arguments
        for index, (inner, entry) in enumerate(zip(hints, value, strict=False)):
            yield f"[{index}]", inner, entry
    elif isinstance(kind, type) and issubclass(kind, msgspec.Struct) and isinstance(value, kind):
        hints_of = field_hints(kind)
        for name in kind.__struct_fields__:
            yield f".{name}", hints_of[name], getattr(value, name, None)


def _text(hint: Any, value: Any, problem: Exception) -> str:
    """Expected and actual."""
    if isinstance(problem, msgspec.ValidationError):
        if _KINDS.fullmatch(str(problem)):
            return f"expected {shown(hint)}, got {type(value).__name__}"
        text = _PLACE.sub("", str(problem)).replace("`", "")
        return text[:1].lower() + text[1:]
    if isinstance(value, int):
        return f"expected {shown(hint)} of 64 bits at most, got one of {value.bit_length()} bits"
    if isinstance(problem, TypeError):
        return f"expected {shown(hint)}, got {type(value).__name__}, which cannot be logged"
    return (
        f"expected {shown(hint)}, got {type(value).__name__} that cannot be logged: {type(problem).__name__}: {problem}"
    )
