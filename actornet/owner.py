"""Owners: the only readers and writers of one shared data structure each.

An owner's state is one `Struct`; each public method is a message that runs to completion, alone, in the log's order
(G2). What a handler does may depend only on the state, its arguments, `self.now` and `self.random`, so that the backup
and a replay decide the same (G4)::

    class Counts(Struct):
        seen: dict[str, int] = {}

    class Counter(Owner[Counts]):
        def count(self, name: str) -> int:
            self.state.seen[name] = self.state.seen.get(name, 0) + 1
            return self.state.seen[name]

    class Watch(FlowActor):
        counter = Counter.named("counter")       # in a handler: n = await self.counter.count("x")
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial, reduce
from importlib import import_module
from random import Random
from types import FunctionType
from typing import Any, ClassVar, Generic, TypeVar, cast, get_args, get_origin, get_type_hints

import msgspec
from msgspec import inspect as shapes

from actornet.determinism import check
from actornet.engine.replies import ERROR
from actornet.errors import OwnerError, UsageError
from actornet.misfit import holds, misfit
from actornet.setting import Setting

State = TypeVar("State", bound=msgspec.Struct)

_RESERVED = {"state", "state_type", "messages", "now", "random", "named", "revoke_offloads"}

_encode = msgspec.msgpack.Encoder().encode


Struct = msgspec.Struct
"""A typed record: an owner's state, or a part of it. Its fields need type hints; mutable defaults are copied."""


class Moment:
    """Where in the log a handler runs: all that owners know of time and chance.

    `time_ns` is the record's Unix time, or -1 outside handlers; `seed` is the epoch's. `revocations` counts how often owners
    have revoked the flows' offloads.
    """

    __slots__ = ("_random", "_random_lsn", "lsn", "revocations", "seed", "time_ns")

    def __init__(self) -> None:
        self.lsn = 0
        self.time_ns = -1
        self.seed = 0
        self.revocations = 0
        self._random = Random(0)
        self._random_lsn = -1

    def now(self) -> float:
        """The record's time in seconds since 1970."""
        self._check("now")
        return self.time_ns / 1e9

    def random(self) -> Random:
        """One generator per record, seeded from the epoch's seed and the LSN."""
        self._check("random")
        if self._random_lsn != self.lsn:
            self._random.seed(self.seed << 64 | self.lsn)
            self._random_lsn = self.lsn
        return self._random

    def revoke(self) -> None:
        self._check("revoke_offloads")
        self.revocations += 1

    def _check(self, name: str) -> None:
        if self.time_ns < 0:
            raise UsageError(f"self.{name} of an owner is there only while a message is handled")


class Message:
    """One handler of an owner class, with what is needed to call it from bytes.

    `decode` takes the msgpack list of arguments to a tuple of the hinted types (msgspec.ValidationError if they do not
    fit), `decode_reply` a reply that is a value (`engine.replies`) to that pair. `normalise`, where set, does the same, for
    its floats.
    """

    __slots__ = ("_types", "decode", "decode_reply", "function", "name", "normalise", "signature")

    def __init__(self, function: FunctionType, where: str) -> None:
        hints = _hints(function, where)
        self.name = function.__name__
        self.function = function
        self.signature = inspect.signature(function)
        parameters = list(self.signature.parameters.values())[1:]
        for parameter in parameters:
            if parameter.kind is not inspect.Parameter.POSITIONAL_OR_KEYWORD:
                raise UsageError(f"{where}: parameter {parameter} must be an ordinary one: messages are sent as lists")
        for name in [*(parameter.name for parameter in parameters), "return"]:
            if name not in hints:
                what = f"parameter {name!r}" if name != "return" else "the result"
                raise UsageError(f"{where}: {what} needs a type hint: messages are decoded by it")
            _check_shape(hints[name], f"{where}: {name}", sets="use a list: a set's order varies")
        result: Any = hints["return"]
        self._types = types = [hints[parameter.name] for parameter in parameters]
        self.decode: Callable[[bytes], tuple[Any, ...]] = msgspec.msgpack.Decoder(
            tuple[*types]  # type: ignore[valid-type]
        ).decode
        self.decode_reply: Callable[[bytes], tuple[int, Any]] = msgspec.msgpack.Decoder(tuple[int, result]).decode
        self.normalise = self.decode_reply if holds(result, shapes.FloatType) else None

    def encode_texts(self, texts: Sequence[str]) -> bytes:
        """The arguments that a person typed, encoded: each as its type reads it, or as JSON. Raises UsageError."""
        try:
            given = self.signature.bind(None, *texts)
        except TypeError as error:
            raise UsageError(f"{self}: {error}") from None
        values = []
        for name, hint in zip(list(self.signature.parameters)[1:], self._types, strict=True):
            if name not in given.arguments:
                values.append(self.signature.parameters[name].default)
                continue
            text = given.arguments[name]
            try:
                values.append(msgspec.convert(text, hint, strict=False))
            except msgspec.ValidationError:
                try:
                    values.append(msgspec.json.decode(text, type=hint))
                except msgspec.DecodeError:
                    raise UsageError(
                        f"{self}: {name}={text!r} is no such value; write lists and tables as JSON"
                    ) from None
        return _encode(values)

    def __str__(self) -> str:
        """As a person asks for it: `weigh(name: str, weight: int) -> None`."""
        parameters = list(self.signature.parameters.values())[1:]
        return f"{self.name}{self.signature.replace(parameters=parameters)}".replace("'", "")

    def reply_value(self, reply: bytes) -> Any:
        """The value in a reply's bytes; raises OwnerError if the handler raised."""
        try:
            return self.decode_reply(reply)[1]
        except msgspec.ValidationError as mismatch:
            outcome = msgspec.msgpack.decode(reply)
            if outcome[0] != ERROR:
                raise OwnerError(f"{self.function.__qualname__} replied against its type hint: {mismatch}") from None
            raise OwnerError(f"{self.function.__qualname__}: {outcome[1]}: {outcome[2]}") from None


class Owner(Generic[State]):
    """Base of owner classes: `class PortPool(Owner[Ports])`.

    Public methods are messages: plain `def`, with type hints. Checked when the class is defined; UsageError says
    what is wrong, and where.
    """

    state: State
    state_type: ClassVar[type[Any]]
    messages: ClassVar[Mapping[str, Message]] = {}
    _sender: ClassVar[type[_Sender]]

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        _check_names(cls)
        state_type = _state_type(cls)
        if state_type is None:
            return
        cls.state_type = state_type
        _check_functions(cls)
        cls.messages = {
            name: Message(function, f"{cls.__qualname__}.{name}")
            for name, function in _functions(cls)
            if not name.startswith("_") and name != "start"
        }
        cls._sender = _sender(cls)

    def __init__(self, moment: Moment | None = None, /, **settings: Any) -> None:
        if not isinstance(moment, Moment):
            raise UsageError(f"{type(self).__qualname__}(...) makes no owner; {how_to_refer(type(self))}")
        self._moment = moment

    def start(self, *_: Any, **settings: Any) -> State:
        """The first state, from the owner's settings; the default gives them to the state's fields."""
        return cast(State, msgspec.convert(settings, self.state_type))

    @property
    def now(self) -> float:
        """Seconds since 1970, from the log: the same on the primary, the backup and at replay.

        It never goes back. Where the clock does (a takeover by a host whose clock is behind, a capture that is played onto
        the log of a later one) it stands still until the clock has caught up: time-outs last longer, meters fill later.
        """
        return self._moment.now()

    @property
    def random(self) -> Random:
        """A generator seeded from the log: the same on the primary, the backup and at replay."""
        return self._moment.random()

    def revoke_offloads(self) -> None:
        """A decision that concerns many flows, such as a new policy: none of the node's offloads holds any longer.

        Each flow's next packet comes to its actor again, which decides, and offloads, anew. Takes no time, however many
        flows there are; logged with this message, so that it holds on the backup and at replay, too.
        """
        self._moment.revoke()

    @classmethod
    def named(cls, name: str, **settings: Any) -> Any:
        """Refer to the owner of this class with this name from a flow actor's class; it is created if it is not there.

        Settings go to `start`, and may be `setting`s of the flow actor.
        """
        return OwnerReference(cls, name, settings)


class OwnerReference(property):
    """What `PortPool.named("wan-ports")` gives: on a flow actor, an object whose methods send messages to the owner.

    A property with a built-in getter: access costs no Python frame (0.15 us with the send, without `_ask`).
    """

    def __init__(self, owner: type[Owner[Any]], name: str, settings: Mapping[str, Any]) -> None:
        if not hasattr(owner, "_sender"):
            raise UsageError(f"{owner.__qualname__} has no state type, so there can be no owner of it")
        _bind(owner, settings, f"{owner.__qualname__}.named({name!r})")
        super().__init__(partial(owner._sender, self), doc=owner.__doc__)
        self.owner = owner
        self.name = name
        self.settings = dict(settings)

    @property
    def path(self) -> str:
        """The owner's class as `module:Class`."""
        return path_of(self.owner)

    def resolved(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The owner's settings, with each `setting` of the network function replaced by its value."""
        return {
            name: self._resolved(value, values) if isinstance(value, Setting) else value
            for name, value in self.settings.items()
        }

    def _resolved(self, declared: Setting, values: Mapping[str, Any]) -> Any:
        if declared.name not in values:
            raise UsageError(f"{self!r}: {declared!r} is not a setting of this network function")
        return values[declared.name]

    def __repr__(self) -> str:
        return f"{self.owner.__qualname__}.named({self.name!r})"


class _Sender(msgspec.Struct, gc=False):
    """A flow actor's view of an owner; a subclass per owner class has one method per message."""

    _reference: OwnerReference
    _actor: Any

    def __getattr__(self, name: str) -> Any:
        owner = self._reference.owner
        known = ", ".join(sorted(owner.messages)) or "none"
        raise AttributeError(f"{owner.__qualname__} has no message {name!r}; its messages are: {known}")


def how_to_refer(owner: type[Owner[Any]]) -> str:
    """What a flow actor's class says in place of the owner's class, or of a call of it."""
    return f'refer to one by {owner.__qualname__}.named("its-name", ...settings)'


@cache
def owners_of(nf: type) -> Mapping[str, OwnerReference]:
    """The owners that a network function's class refers to, by attribute."""
    found: dict[str, OwnerReference] = {}
    for base in reversed(nf.__mro__):
        found.update({name: value for name, value in vars(base).items() if isinstance(value, OwnerReference)})
    return found


def create(owner_type: type[Owner[Any]], settings: Mapping[str, Any], moment: Moment) -> Owner[Any]:
    """A new owner with the state that its `start` gives. Raises UsageError if the settings do not fit."""
    where = f"owner of {path_of(owner_type)}"
    owner = owner_type(moment)
    try:
        state = owner.start(**_bind(owner_type, settings, where))
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(f"{where} cannot start with {dict(settings)}: {type(error).__name__}: {error}") from error
    if type(state) is not owner_type.state_type:
        raise UsageError(f"{where}: start must return {owner_type.state_type.__name__}, not {type(state).__name__}")
    problem = misfit(owner_type.state_type, state, "state")
    if problem is not None:
        raise UsageError(f"{where}: start gave a {problem}")
    owner.state = state
    owner.state = decode_state(owner_type, encode_state(owner))  # as a snapshot would give it back
    return owner


def encode_state(owner: Owner[Any]) -> bytes:
    """The owner's state as msgpack, the order of its dicts kept: a handler may depend on it."""
    return _encode(owner.state)


def decode_state(owner_type: type[Owner[Any]], data: bytes) -> Any:
    """The state from `encode_state`. Raises UsageError if it does not fit the state's type hints."""
    try:
        return msgspec.msgpack.decode(data, type=owner_type.state_type)
    except msgspec.DecodeError as error:
        raise UsageError(
            f"state of {path_of(owner_type)} does not fit {owner_type.state_type.__name__}: {error}; "
            "its type changed, or a handler stored a value of another type"
        ) from error


def path_of(owner_type: type[Owner[Any]]) -> str:
    """The class as `module:Class`, as OWNER records name it."""
    return f"{owner_type.__module__}:{owner_type.__qualname__}"


def import_owner(path: str) -> type[Owner[Any]]:
    """The owner class at `module:Class`. Raises UsageError if there is none."""
    module_name, _, qualname = path.partition(":")
    try:
        found = reduce(getattr, qualname.split("."), import_module(module_name))
    except (ImportError, AttributeError, ValueError) as error:
        advice = (
            f"; be in the directory of {module_name}.py, or name it in PYTHONPATH"
            if isinstance(error, ModuleNotFoundError)
            else ""
        )
        raise UsageError(f"owner class {path} cannot be loaded: {error}{advice}") from error
    if not (isinstance(found, type) and issubclass(found, Owner)):
        raise UsageError(f"{path} is not an owner class")
    return found


def _state_type(cls: type[Owner[Any]]) -> type[Any] | None:
    """The `Ports` of `class PortPool(Owner[Ports])`; None for a class that is still generic."""
    for base in cls.__dict__.get("__orig_bases__", ()):
        origin = get_origin(base)
        if isinstance(origin, type) and issubclass(origin, Owner):
            found = get_args(base)[0]
            if isinstance(found, TypeVar):
                return None
            if not (isinstance(found, type) and issubclass(found, msgspec.Struct)):
                raise UsageError(f"{cls.__qualname__}: the state type {found!r} must be a Struct")
            _check_shape(found, f"state {found.__name__} of {cls.__qualname__}", exact=True)
            return found
    inherited: type[Any] | None = getattr(cls, "state_type", None)
    if inherited is None:
        raise UsageError(f"{cls.__qualname__}: name the type of its state: class {cls.__name__}(Owner[SomeStruct])")
    return inherited


def _functions(cls: type[Owner[Any]]) -> Iterator[tuple[str, FunctionType]]:
    """The plain methods of a class and its bases below Owner."""
    for name in dir(cls):
        found = inspect.getattr_static(cls, name)
        if isinstance(found, FunctionType) and found is not vars(Owner).get(name):
            yield name, found


def _check_names(cls: type[Owner[Any]]) -> None:
    for name, value in vars(cls).items():
        where = f"{cls.__qualname__}.{name}"
        if name in _RESERVED:
            raise UsageError(f"{where}: the name belongs to Owner; choose another")
        if name == "__init__":
            raise UsageError(f"{where}: an owner's first state comes from start(self, **settings)")
        if isinstance(value, staticmethod | classmethod) and not name.startswith("_"):
            raise UsageError(f"{where}: a message is a plain method; begin other names with _")


def _check_functions(cls: type[Owner[Any]]) -> None:
    kinds = {field.name: shapes.type_info(field.type) for field in msgspec.structs.fields(cls.state_type)}
    values = {name: getattr(kind, "value_type", getattr(kind, "item_type", None)) for name, kind in kinds.items()}
    set_fields, fields_of_sets = (
        frozenset(name for name, kind in some.items() if isinstance(kind, shapes.SetType | shapes.FrozenSetType))
        for some in (kinds, values)
    )
    for name, function in _functions(cls):
        where = f"{cls.__qualname__}.{name}"
        inner = inspect.unwrap(function)
        flags = inner.__code__.co_flags
        if flags & (inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR):
            raise UsageError(f"{where} is async: an owner may not wait; await in the flow actor, and send the result")
        if flags & inspect.CO_GENERATOR and not name.startswith("_"):
            raise UsageError(f"{where} is a generator: a message has one reply; return a list")
        check(inner, where, set_fields, fields_of_sets)


def _hints(function: FunctionType, where: str) -> dict[str, Any]:
    try:
        return get_type_hints(function)
    except NameError as error:
        raise UsageError(f"{where}: a type hint cannot be resolved: {error}; define it above, in the module") from None


def _check_shape(hint: Any, where: str, *, exact: bool = False, sets: str = "") -> None:
    """Raise UsageError if msgpack cannot carry the hinted type; `exact` also forbids Any: it comes back untyped."""
    if holds(hint, shapes.CustomType):
        raise UsageError(f"{where}: {_name(hint)} is no Struct and no plain data, so it cannot be logged")
    if exact and holds(hint, shapes.AnyType):
        raise UsageError(f"{where}: every field needs a full type, as in dict[str, int]: snapshots come back by it")
    if sets and holds(hint, shapes.SetType, shapes.FrozenSetType):
        raise UsageError(f"{where}: {sets}")


def _name(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) else str(hint)


def _bind(owner_type: type[Owner[Any]], settings: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The settings, converted to the hinted types of `start`'s parameters."""
    start = cast(FunctionType, owner_type.start)
    if start is Owner.start:
        known = owner_type.state_type.__struct_fields__
        for name in settings:
            if name not in known:
                raise UsageError(f"{where}: its state has no field {name!r}; its fields are: {', '.join(known)}")
        return dict(settings)
    try:
        inspect.signature(start).bind(None, **settings)
    except TypeError as error:
        raise UsageError(f"{where}: settings of start: {error}") from None
    hints = _hints(start, where)
    bound = {}
    for name, value in settings.items():
        try:
            given = value.default if isinstance(value, Setting) else value
            bound[name] = msgspec.convert(given, hints.get(name, Any))
        except msgspec.ValidationError as error:
            raise UsageError(f"{where}: setting {name}={given!r}: {error}") from None
    return bound


def _sender(cls: type[Owner[Any]]) -> type[_Sender]:
    """The class of a flow actor's views of such owners: methods with the handlers' own parameters and defaults."""
    source = []
    scope: dict[str, Any] = {}
    for message in cls.messages.values():
        scope[f"_message_{message.name}"] = message
        names = list(message.signature.parameters)[1:]
        parameters = []
        for name in names:
            default = message.signature.parameters[name].default
            if default is not inspect.Parameter.empty:
                scope[f"_default_{message.name}_{name}"] = default
                parameters.append(f"{name}=_default_{message.name}_{name}")
            else:
                parameters.append(name)
        args = "".join(f"{name}, " for name in names)
        source.append(
            f"def {message.name}({', '.join(['_sender', *parameters])}):\n"
            f"    return _sender._actor._ask(_sender._reference, _message_{message.name}, ({args}))"
        )
    exec("\n".join(source), scope)
    methods: dict[str, Any] = {name: scope[name] for name in cls.messages}
    for name, method in methods.items():
        method.__doc__ = cls.messages[name].function.__doc__
    sender = msgspec.defstruct(f"{cls.__name__}Sender", [], bases=(_Sender,), namespace=methods, gc=False)
    return cast(type[_Sender], sender)
