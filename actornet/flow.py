"""Flow actors: what a user writes to define a network function."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Iterator
from contextlib import suppress
from difflib import get_close_matches
from operator import attrgetter
from types import CodeType
from typing import Any, ClassVar

import msgspec

from actornet.engine import rss
from actornet.engine.core import FRAGMENT_POLICIES
from actornet.engine.five_tuple import FiveTuple
from actornet.engine.flow_base import FlowBase
from actornet.engine.flow_state import saved_state
from actornet.engine.handlers import HANDLERS
from actornet.engine.packet import Packet
from actornet.engine.verdict import DROP, FORWARD, Forward, Verdict
from actornet.engine.wire import TUNNELS
from actornet.errors import StateError, UsageError
from actornet.limits import AWAIT_DEADLINE_S, FLOW_KEEPS_BYTES_MAX, MESSAGE_BYTES_MAX
from actornet.misfit import holds, misfit, shown
from actornet.owner import Owner, how_to_refer
from actornet.setting import Setting

_IMMUTABLE = (int, float, bool, str, bytes, type(None), FiveTuple)


class KeyState(msgspec.Struct, array_like=True, gc=False):
    """One key of a flow, where it arrives, and its offload: `decode_verdict`'s form, or False; what TCP punts; the next
    hop and its MAC address; the terms as `{"until_ns", "meter", "mirror"}`, each only if asked for."""

    flow: FiveTuple
    port: str
    offload: list[Any] | bool | None
    punt_tcp: bool
    next_hop: tuple[str, bytes] | None = None
    terms: dict[str, Any] | None = None


class FlowState(msgspec.Struct, array_like=True):
    """What the log keeps of a flow: fields in order of definition, keys with their offloads, idle time-out.

    The offloads hold while owners have revoked offloads `generation` times, and no longer.
    """

    fields: msgspec.Raw
    keys: list[KeyState]
    idle_ns: int
    generation: int = 0

    @classmethod
    def decode(cls, data: bytes) -> FlowState:
        """From a record's bytes. Raises msgspec.MsgspecError if they are none."""
        return _decode_state(data)


_encode = msgspec.msgpack.Encoder().encode
_decode_state = msgspec.msgpack.Decoder(FlowState).decode


class FlowMeta(type):
    """Turns annotated class attributes into slots, so that a million flows fit and a changed field is noticed."""

    def __new__(mcs, name: str, bases: tuple[type, ...], namespace: dict[str, Any], **kwargs: Any) -> FlowMeta:
        defaults: dict[str, Any] = {}
        inherited = {field for base in bases for field, _ in getattr(base, "field_defaults", ())}
        for field, annotation in namespace.get("__annotations__", {}).items():
            if "ClassVar" in str(annotation) or isinstance(namespace.get(field), Setting):
                continue
            if field not in namespace:
                raise UsageError(f"{name}.{field}: a flow's field needs a default, which new flows begin with")
            if field in ("flow", "port", "packets", "bytes", "idle_s", "asks", "incarnation"):
                raise UsageError(f"{name}.{field}: every flow has this attribute already; choose another name")
            defaults[field] = namespace.pop(field)
        idle_s = namespace.pop("idle_s", None)
        if idle_s is not None and name != "FlowActor":
            _check_seconds(f"{name}.idle_s", idle_s)
        namespace["__slots__"] = tuple(field for field in defaults if field not in inherited)
        cls = super().__new__(mcs, name, bases, namespace, **kwargs)
        if idle_s is not None:
            cls.idle_default_s = idle_s
        merged = {**dict(getattr(cls, "field_defaults", ())), **defaults}
        cls.field_defaults = tuple(merged.items())
        with suppress(NameError):  # a type that is defined further down: `prepare` looks again
            _check_defaults(cls, defaults)
        return cls

    idle_default_s: float
    field_defaults: tuple[tuple[str, Any], ...]


class FlowActor(FlowBase, metaclass=FlowMeta):
    """One connection's actor: subclass it to write a network function.

    Annotated fields are the flow's replicated state (`_private` ones are local to the process). Handlers may be `def` or
    `async def`; one runs at a time per flow, in order of arrival (G1):

    - `on_open(packet)` prepares the flow at its first packet. It may return a verdict for that packet; None sends it on
      to the offload, or to `on_packet`. DROP, with nothing bound or offloaded, refuses the flow: nothing of it stays.
    - `on_packet(packet)` returns a verdict: DROP, FORWARD, `packet.to("wan")`, a `Rewrite`, or OFFLOADED (as the core
      would do it). Without it every packet that is not offloaded is dropped.
    - `on_close()` runs when the flow was idle for `idle_s` seconds, called `close()`, failed, or the node shuts down.
    - `on_mirror(packet)`, a plain `def`, sees those packets of an offloaded key that its `Mirror` says, before they leave.
      What it returns is ignored; it may withdraw or replace the offload, and then this packet goes by that.
    - `on_message(message)` takes what an ordinary Thespian actor tells or asks this flow (see `actornet.core_system`);
      what it returns, unless None, is the answer.

    A packet waits by itself for what it depends on (G3), a call does not: a handler that calls the outside world by asyncio
    with what owners have told it awaits `self.committed()` before.

    asyncio tasks that handlers begin and do not wait for, FLOW_TASKS_MAX at most, are cancelled when the flow ends.

    With `connection`, the actor gets both directions from the first packet on: the reply tuple is bound before `on_open`;
    `packet.direction` tells which one a packet has. A handler that waits longer than `deadline_s` for one thing gets a
    TimeoutError at that `await` (counted as `deadline_passed`); on a live node one that keeps its core busy for
    HANDLER_INTERRUPT_S gets a HandlerStalled (`handler_stalled`). When a handler raises, its packet is dropped, or forwarded
    as it is if `fail` is FORWARD (`failed_open`), and the flow closes; its next packet opens it anew. So it goes, too, when the
    actor's fields are found to keep more than `keeps_bytes_max` bytes that nobody else has (`flow_too_large`); one of some
    thousand handlers is looked at for that. On a live node a handler that is the end of its core's process, as it waits in
    compiled code or crashes in it, has its flow closed and shunned: packets go as `fail` says until none has come for 10 min.

    `untracked` is the verdict, DROP or FORWARD, for frames on transparent ports that belong to no flow (other protocols than
    IP, protocols without ports). ARP and IPv6 neighbour discovery, without which hosts do not find each other, have one of
    their own, `discovery`. `fragments` says what becomes of IP fragments: "reassemble" makes them a packet of their flow, which
    leaves in fragments again; "forward" passes them by the flows on transparent ports; "drop". With `sees_icmp_errors`, ICMP
    errors about a flow come to its `on_packet` even while the flow is offloaded; OFFLOADED then translates and sends them on.

    With `inner`, some of "gtp-u", "vxlan" and "gre", a packet in such a tunnel belongs to the flow of the packet inside:
    `packet` and verdicts are about that one, and what carries it stays as it is, but for checksums. Tunnels share one space
    of addresses; ports must be transparent; of a tunnel in a tunnel the outer one is opened; fragments inside are not put
    together (with "reassemble" they are dropped). ICMP errors about what carries it, which are for the tunnel's end, and what
    is no packet of a flow inside, such as ARP, go by `untracked`.

    A flow lives on the core that its addresses and ports hash to. With `shards_by`, fields as packets at the first port name
    them, those alone are hashed (the reverse ones at other ports), so flows that agree in them share a core; a mapping
    declares several such groups by name. `actornet rss` prints the keys for network cards, or why there are none.

    With `evict`, a full flow table makes room for a new flow by closing one (`flows_evicted`): the one, of some, that is
    nearest to its time-out, so give flows that are not established yet a short one. Without it, new flows are dropped.
    """

    idle_s = 60.0  # read and written on a flow, it is that flow's own time-out
    untracked: ClassVar[Verdict] = DROP
    discovery: ClassVar[Verdict] = FORWARD
    evict: ClassVar[bool] = False
    fragments: ClassVar[str] = "reassemble"
    inner: ClassVar[tuple[str, ...]] = ()
    sees_icmp_errors: ClassVar[bool] = False
    shards_by: ClassVar[rss.Shards] = ()
    connection: ClassVar[bool] = False
    deadline_s: ClassVar[float] = AWAIT_DEADLINE_S
    fail: ClassVar[Verdict] = DROP
    keeps_bytes_max: ClassVar[int] = FLOW_KEEPS_BYTES_MAX
    volatile: ClassVar[bool] = False
    holds: ClassVar[bool] = False
    _needs: ClassVar[str] = "on_packet, or an on_open that offloads"
    _handlers: ClassVar[tuple[str, ...]] = HANDLERS
    _switches: ClassVar[tuple[str, ...]] = ("evict", "sees_icmp_errors", "connection")
    _replicated: ClassVar[tuple[str, ...]] = ()
    _hints: ClassVar[list[Any]] = []
    _read_fields: ClassVar[Any] = None
    _field_types: ClassVar[msgspec.msgpack.Decoder[Any]]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        _check_methods(cls)
        for name in HANDLERS:
            handler = inspect.getattr_static(cls, name, None)
            if handler is not None and not inspect.isfunction(handler):
                raise UsageError(f"{cls.__name__}.{name} must be a plain `def` or `async def` method")
            if inspect.isasyncgenfunction(handler) or inspect.isgeneratorfunction(handler):
                raise UsageError(f"{cls.__name__}.{name} must not yield; use `await`")
        if inspect.iscoroutinefunction(cls.on_mirror):
            raise UsageError(f"{cls.__name__}.on_mirror must be a plain `def`: the packet does not wait for it")
        for name in ("untracked", "discovery"):
            policy = getattr(cls, name)
            if not isinstance(policy, (Forward, Verdict)) or policy.name not in ("DROP", "FORWARD"):
                raise UsageError(f"{cls.__name__}.{name} must be DROP or FORWARD")
        if not isinstance(cls.fail, (Forward, Verdict)) or cls.fail.name not in ("DROP", "FORWARD"):
            raise UsageError(f"{cls.__name__}.fail must be DROP (fail-closed) or FORWARD (fail-open)")
        _check_seconds(f"{cls.__name__}.deadline_s", cls.deadline_s)
        if type(cls.keeps_bytes_max) is not int or cls.keeps_bytes_max <= 0:
            raise UsageError(f"{cls.__name__}.keeps_bytes_max must be a number of bytes, not {cls.keeps_bytes_max!r}")
        for name in cls._switches:
            if not isinstance(getattr(cls, name), bool | Setting):
                raise UsageError(f"{cls.__name__}.{name} must be True or False, not {getattr(cls, name)!r}")
        if not isinstance(cls.inner, tuple | list | set | frozenset) or not all(name in TUNNELS for name in cls.inner):
            raise UsageError(f"{cls.__name__}.inner must be a tuple of some of {', '.join(TUNNELS)}, not {cls.inner!r}")
        if cls.fragments not in FRAGMENT_POLICIES:
            raise UsageError(f"{cls.__name__}.fragments must be one of {', '.join(FRAGMENT_POLICIES)}")

    @classmethod
    def is_complete(cls) -> bool:
        """Whether there is a handler at all."""
        return any(map(cls.handles, HANDLERS))

    @classmethod
    def handles(cls, handler: str) -> bool:
        """Whether this class overrides the handler."""
        return getattr(cls, handler) is not getattr(FlowActor, handler)

    @classmethod
    def rss_keys(cls) -> tuple[rss.RssKeys, rss.RssKeys] | None:
        """The keys under which `shards_by` holds, for IPv4 and IPv6; None: the symmetric one. Raises RssConflict."""
        return rss.keys_for(tuple(rss.declared(cls.shards_by).items())) if cls.shards_by else None

    @classmethod
    def moves(cls) -> bool:
        """Whether a flow may go on on another core: not where some of it is known to this process alone."""
        return not any(name.startswith("_") for name, _ in cls.field_defaults)

    @classmethod
    def suspends(cls, handler: str) -> bool:
        """Whether the handler is `async def`."""
        return inspect.iscoroutinefunction(getattr(cls, handler))

    @classmethod
    def replicated_fields(cls) -> tuple[str, ...]:
        """Names of the replicated fields in order of definition."""
        return tuple(name for name, _ in cls.field_defaults if not name.startswith("_"))

    @classmethod
    def prepare(cls) -> None:
        """Resolve the fields' types; called once before the first flow. Raises UsageError for one the log cannot keep."""
        if not cls.is_complete():
            raise UsageError(f"{cls.__name__} has no handler, so it would drop every packet: it needs {cls._needs}")
        names = cls._replicated = cls.replicated_fields()
        try:
            hints = typing.get_type_hints(cls)
        except NameError as error:
            raise UsageError(f"{cls.__name__}: the type of a field cannot be found: {error}") from None
        types = cls._hints = [hints[name] for name in names]
        _check_defaults(cls, {name: value for name, value in cls.field_defaults if name in names})
        try:
            cls._field_types = msgspec.msgpack.Decoder(tuple[tuple(types)] if types else tuple[()])  # type: ignore[misc]
            _encode([value for name, value in cls.field_defaults if name in names])
        except TypeError as error:
            raise UsageError(
                f"{cls.__name__}: a replicated field must be of a type that msgspec knows: {error}"
            ) from None
        cls.volatile = any(not _is_immutable(hint) for hint in types)
        cls._read_fields = attrgetter(*names) if len(names) > 1 else None

    saved_state = saved_state

    def check_fields(self) -> None:
        """Raise StateError if a replicated field would not come back from the log by its hint, or they are too large for it.

        The core has some saves of a class checked, and all that fail.
        """
        values = [getattr(self, name) for name in self._replicated]
        try:
            data = _encode(values)
            self._field_types.decode(data)
        except MemoryError:
            raise
        except Exception as error:
            raise StateError(self._misfit(values) or f"{type(self).__name__}: {error}") from None
        if len(data) > MESSAGE_BYTES_MAX:
            sizes = {name: len(_encode(value)) for name, value in zip(self._replicated, values, strict=True)}
            largest = max(sizes, key=sizes.__getitem__)
            raise StateError(
                f"{type(self).__name__}.{largest}: {sizes[largest]} bytes, of {len(data)} in the flow's fields; "
                f"{MESSAGE_BYTES_MAX} is the most that a flow's record holds"
            )

    def unsaved(self, error: Exception) -> Exception:
        """What a handler is told that left the flow in a state that cannot be saved."""
        if not isinstance(error, StateError):
            try:
                self.check_fields()
            except StateError as found:
                return found
        return error

    def _misfit(self, values: list[Any]) -> str | None:
        fields = zip(self._replicated, self._hints, values, strict=True)
        found = (misfit(hint, value, f"{type(self).__name__}.{name}") for name, hint, value in fields)
        return next(filter(None, found), None)

    @classmethod
    def restore_arguments(
        cls, state: bytes, tell: Callable[[str], None] | None = None
    ) -> tuple[list[tuple[str, Any]], list[KeyState], int, int]:
        """Fields by name, keys, idle time-out (ns) and generation of the offloads from a flow record's state.

        A field that is not of its type is taken as it is, as plain data, and `tell` is told. Raises UsageError if the record
        is not ours.
        """
        try:
            saved = _decode_state(state)
        except msgspec.MsgspecError as error:
            raise UsageError(f"a flow record does not fit {cls.__name__}: {error}; the log is of other code") from None
        return cls.read_fields(saved.fields, tell), saved.keys, saved.idle_ns, saved.generation

    @classmethod
    def read_fields(cls, data: msgspec.Raw, tell: Callable[[str], None] | None = None) -> list[tuple[str, Any]]:
        """The fields in a record's `fields`; as `restore_arguments`."""
        try:
            return list(zip(cls._replicated, cls._field_types.decode(data), strict=True))
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            problem: Exception = error
        try:
            values = msgspec.msgpack.decode(data, type=list[Any])
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            problem = error
            values = []
        if len(values) != len(cls._replicated):
            raise UsageError(f"a flow record does not fit {cls.__name__}: {problem}; the log is of other code")
        fields = []
        for name, hint, value in zip(cls._replicated, cls._hints, values, strict=True):
            try:
                fields.append((name, msgspec.convert(value, hint)))
            except msgspec.ValidationError:
                fields.append((name, value))
                if tell is not None:
                    tell(misfit(hint, value, f"{cls.__name__}.{name}") or f"{cls.__name__}.{name}: not a {shown(hint)}")
        return fields

    @staticmethod
    def bound_keys(state: bytes) -> list[tuple[FiveTuple, str]]:
        """The keys besides the first in a flow record's state, each with its port's name."""
        return [(key.flow, key.port) for key in _decode_state(state).keys[1:]]

    def on_open(self, packet: Packet) -> Any:
        """The flow's first packet has come; see the class."""

    def on_packet(self, packet: Packet) -> Any:
        """A packet that is not offloaded has come; see the class."""

    def on_close(self) -> Any:
        """The flow ends; see the class."""

    def on_mirror(self, packet: Packet) -> Any:
        """A packet is about to leave as the offload says; see the class."""

    def on_message(self, message: Any) -> Any:
        """Another actor speaks to this flow; see the class."""
        raise UsageError(f"{type(self).__name__} takes no messages: it has no on_message")


def _check_seconds(where: str, value: Any) -> None:
    if isinstance(value, Setting):
        raise UsageError(f"{where} cannot be a setting; set self.idle_s in on_open")
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value <= 1e9:
        raise UsageError(f"{where} must be positive seconds, not {value!r}")


def _check_methods(cls: type[FlowActor]) -> None:
    """Raise UsageError for methods that nobody would ever call, and for owners' classes that are not references."""
    for name, method in vars(cls).items():
        where = f"{cls.__name__}.{name}"
        if isinstance(method, type) and issubclass(method, Owner):
            raise UsageError(f"{where} is a class of owners, not an owner: {how_to_refer(method)}")
        if not inspect.isfunction(method):
            continue
        if name == "__init__":
            raise UsageError(
                f"{where} is never called: a flow begins with its fields' defaults; do the rest in on_open"
            )
        if not name.startswith("on_") or name in cls._handlers or any(name in vars(base) for base in cls.__mro__[1:]):
            continue
        if not any(name in _names(code) for code in _codes(cls)):
            close = get_close_matches(name, cls._handlers, 1, 0.7)
            meant = f"did you mean {close[0]}?" if close else f"handlers are {', '.join(cls._handlers)}"
            if name in ("on_data", "on_gap"):
                meant = "only a StreamActor has it"
            raise UsageError(f"{where} is no handler, and nothing calls it: {meant}")


def _codes(cls: type) -> Iterator[CodeType]:
    """Of all methods below FlowActor."""
    for base in cls.__mro__[: cls.__mro__.index(FlowBase)]:
        for value in vars(base).values():
            function = inspect.unwrap(value) if callable(value) else getattr(value, "fget", None)
            if inspect.isfunction(function):
                yield function.__code__


def _names(code: CodeType) -> set[str]:
    """What the code refers to by name, functions within it included."""
    inner = (part for part in code.co_consts if isinstance(part, CodeType))
    return set(code.co_names).union(*map(_names, inner))


def _check_defaults(cls: type, defaults: dict[str, Any]) -> None:
    """Raise UsageError for a replicated field that the log cannot keep, or whose default is of another type."""
    wanted = {name: value for name, value in defaults.items() if not name.startswith("_")}
    hints = typing.get_type_hints(cls) if wanted else {}
    for name, default in wanted.items():
        hint, where = hints[name], f"{cls.__name__}.{name}"
        try:
            unknown = holds(hint, msgspec.inspect.CustomType)
        except TypeError as error:
            raise UsageError(f"{where}: a replicated field must be of a type that msgspec knows: {error}") from None
        if unknown:
            raise UsageError(
                f"{where}: {shown(hint)} is no Struct and no plain data, so it cannot be logged; a field whose name begins "
                "with _ stays in this process"
            )
        problem = misfit(hint, default, where)
        if problem is not None:
            raise UsageError(f"{problem}; a field's default has to be of its type")


def _is_immutable(hint: Any) -> bool:
    """Whether a field of this type changes only by assignment."""
    origin = typing.get_origin(hint)
    if origin is not None:
        inner = [argument for argument in typing.get_args(hint) if argument is not Ellipsis]
        return origin not in (list, dict, set) and all(_is_immutable(argument) for argument in inner)
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        return bool(hint.__struct_config__.frozen)
    return hint in _IMMUTABLE
