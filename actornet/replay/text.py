"""Values and records of a log, for people (lines of text) and for programs (what JSON can carry)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from textwrap import wrap
from typing import Any

import msgspec
from msgspec.structs import replace

from actornet.engine.five_tuple import FiveTuple
from actornet.engine.verdict import decode_verdict
from actornet.errors import ActornetError
from actornet.flow import FlowState
from actornet.log.record import (
    OPERATOR,
    AskBody,
    CloseBody,
    ControlBody,
    EpochBody,
    FlowBody,
    HashBody,
    OwnerBody,
    Record,
)
from actornet.replay.history import Entry
from actornet.replay.query import flow_of

WIDTH = 100
"""Columns in which lists of scalars are wrapped."""

_RUN_MIN = 4
_SCALARS = (int, float, str, bytes, bool, type(None), FiveTuple)


def instant(time_ns: int) -> str:
    """A record's time in UTC with microseconds, as in 2026-01-31T12:00:00.000000Z."""
    seconds, ns = divmod(time_ns, 10**9)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{ns // 1000:06}Z"


def unpack(data: bytes) -> Any:
    """Bytes of the log as a value, if they are msgpack; five-tuples in it are recognised. Else the bytes."""
    try:
        return _with_five_tuples(msgspec.msgpack.decode(data))
    except (msgspec.DecodeError, RecursionError):
        return data


def flow_state(data: bytes, names: Sequence[str] = ()) -> Any:
    """A flow record's state with the names of its parts, its offloads as verdicts; `names` are the fields', if known.

    Other bytes as `unpack` gives them.
    """
    try:
        saved = FlowState.decode(data)
        fields = unpack(saved.fields)
        keys = [
            replace(key, offload=None if isinstance(key.offload, bool) else decode_verdict(key.offload))
            for key in saved.keys
        ]
    except (msgspec.MsgspecError, ActornetError, TypeError, ValueError):
        return unpack(data)
    if names and len(names) == len(fields):
        fields = msgspec.defstruct("Fields", [(name, Any) for name in names])(*fields)
    return replace(saved, fields=fields, keys=keys)


def plain(value: Any) -> Any:
    """The value as JSON can carry it: five-tuples and keys as text, bytes as hexadecimal digits."""
    match value:
        case FiveTuple():
            return str(value)
        case msgspec.Struct():
            return {name: plain(getattr(value, name)) for name in value.__struct_fields__}
        case dict():
            return {key if isinstance(key, str) else brief(key): plain(item) for key, item in value.items()}
        case list() | tuple():
            return [plain(item) for item in value]
        case set() | frozenset():
            return [plain(item) for item in sorted(value, key=brief)]
        case bytes():
            return value.hex()
    return value


def brief(value: Any) -> str:
    """The value on one line."""
    match value:
        case FiveTuple():
            return str(value)
        case str():
            return msgspec.json.encode(value).decode()
        case bytes():
            return f"0x{value.hex()}"
        case msgspec.Struct():
            return f"{type(value).__name__}({named(msgspec.structs.asdict(value))})"
        case dict():
            return "{" + ", ".join(f"{brief(key)}: {brief(item)}" for key, item in value.items()) + "}"
        case list() | tuple():
            return "[" + ", ".join(_runs(value)) + "]"
        case set() | frozenset():
            return "{" + ", ".join(sorted(map(brief, value))) + "}"
    return str(value)


def named(values: Mapping[str, Any]) -> str:
    """Values by name as in a call: `a=1, b="x"`."""
    return ", ".join(f"{name}={brief(value)}" for name, value in values.items())


def tree(value: Any, indent: str = "") -> list[str]:
    """The value on as many lines as are good to read; long runs of integers as `1024..65535`."""
    match value:
        case FiveTuple():
            pass
        case msgspec.Struct():
            return _branches(((name, getattr(value, name)) for name in value.__struct_fields__), indent)
        case dict() if value:
            return _branches(((brief(key), item) for key, item in value.items()), indent)
        case list() | tuple() if not all(isinstance(item, _SCALARS) for item in value):
            return _branches(((f"[{index}]", item) for index, item in enumerate(value)), indent)
    text = brief(value)
    if len(indent) + len(text) <= WIDTH or not isinstance(value, list | tuple | set | frozenset):
        return [indent + text]
    return wrap(
        text,
        WIDTH,
        initial_indent=indent,
        subsequent_indent=indent + " ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def summary(record: Record) -> str:
    """What a record tells, on one line."""
    match record.body:
        case EpochBody(node=node, nf=nf, settings=settings, fingerprint=fingerprint, reason=reason):
            return f"{node} begins ({reason}): {nf}({named(settings)}), code {fingerprint[:12]}"
        case OwnerBody(name=name, path=path, settings=settings):
            return f"{name} = {path}({named(settings)})"
        case AskBody(flow=flow, owner=owner, message=message, args=args):
            values = unpack(args)
            # Most asks are about the flow that asks: do not say it twice.
            told = ["flow" if flow is not None and value == flow else brief(value) for value in _items(values)]
            return f"{owner}.{message}({', '.join(told)})"
        case FlowBody(asks=asks, state=state):
            return f"saved with asks up to {asks}, {len(state)} bytes"
        case CloseBody(reason=reason):
            return reason
        case ControlBody(event=event, detail=detail):
            return f"{event}: {detail}" if detail else event
        case HashBody(state_hash=state_hash):
            return f"state {state_hash:016x}"


class Lines:
    """Aligned lines, one an entry, under a heading; columns widen when they must."""

    def __init__(self, lsn_last: int) -> None:
        self._lsn_width = max(3, len(str(lsn_last)))
        self._flow_width = 38

    def heading(self) -> str:
        """The names of the columns."""
        return self._line("lsn", "time (UTC)", "epoch", "kind", "flow", "")

    def line(self, entry: Entry) -> str:
        """One entry."""
        record = entry.record
        if record is None:
            what = entry.damage if not entry.data else entry.damage.split("; ")[0]
            return f"{entry.lsn:>{self._lsn_width}}  DAMAGED  {what}"
        flow = flow_of(record)
        return self._line(
            str(entry.lsn),
            instant(record.time_ns),
            str(record.epoch),
            record.kind.name,
            str(flow) if flow is not None else "operator" if record.core == OPERATOR else "-",
            summary(record),
        )

    def _line(self, lsn: str, time: str, epoch: str, kind: str, flow: str, what: str) -> str:
        self._flow_width = max(self._flow_width, len(flow))
        return (
            f"{lsn:>{self._lsn_width}}  {time:<27}  {epoch:>5}  {kind:<7}  {flow:<{self._flow_width}}  {what}".rstrip()
        )


def describe(entry: Entry) -> dict[str, Any]:
    """An entry for programs: its header, and its body's fields; hashes and chains as hexadecimal digits."""
    record = entry.record
    if record is None:
        return {"lsn": entry.lsn, "lsn_last": entry.lsn_last, "damage": entry.damage}
    body = {name: getattr(record.body, name) for name in record.body.__struct_fields__}
    for name in ("reply_hash", "state_hash"):
        if name in body:
            body[name] = f"{body[name]:016x}"
    for name in ("args", "state"):
        if name in body:
            body[name] = unpack(body[name])
    return {
        "lsn": record.lsn,
        "time": instant(record.time_ns),
        "time_ns": record.time_ns,
        "epoch": record.epoch,
        "kind": record.kind.name,
        "core": record.core if record.core != OPERATOR else None,
        "chain": f"{record.chain:016x}",
        "bytes": len(entry.data),
        **plain(body),
    }


def count(number: int) -> str:
    """A number for people, in groups of three digits."""
    return f"{number:,}".replace(",", " ")


def _items(values: Any) -> list[Any]:
    return values if isinstance(values, list) else [values]


def _branches(parts: Iterable[tuple[str, Any]], indent: str) -> list[str]:
    """`name  value` where the value fits behind its name, else the value below it, further in."""
    known = list(parts)
    width = min(max((len(name) for name, _ in known), default=0), WIDTH // 2)
    lines = []
    for name, value in known:
        below = tree(value, indent + "  ")
        if len(below) == 1 and (
            not isinstance(value, msgspec.Struct | dict) or isinstance(value, FiveTuple) or not value
        ):
            lines.append(f"{indent}{name:<{width}}  {below[0].strip()}")
        else:
            size = f"  ({count(len(value))})" if isinstance(value, dict | list | tuple | set | frozenset) else ""
            lines += [f"{indent}{name}{size}", *below]
    return lines


def _runs(values: list[Any] | tuple[Any, ...]) -> list[str]:
    """The values one by one, but integers that follow each other as `first..last`."""
    shown: list[str] = []
    at = 0
    while at < len(values):
        end = at + 1
        if type(values[at]) is int:
            while end < len(values) and type(values[end]) is int and values[end] == values[end - 1] + 1:
                end += 1
        if end - at >= _RUN_MIN:
            shown.append(f"{values[at]}..{values[end - 1]}")
        else:
            shown += [brief(value) for value in values[at:end]]
        at = end
    return shown


def _with_five_tuples(value: Any) -> Any:
    match value:
        case [int(), str(), int(), str(), int()] if _is_address(value[1]) and _is_address(value[3]):
            return FiveTuple(*value)
        case list():
            return [_with_five_tuples(item) for item in value]
        case tuple():
            return tuple(_with_five_tuples(item) for item in value)
        case dict():
            return {_with_five_tuples(key): _with_five_tuples(item) for key, item in value.items()}
    return value


def _is_address(text: str) -> bool:
    return ("." in text or ":" in text) and all(letter in "0123456789abcdef.:" for letter in text)
