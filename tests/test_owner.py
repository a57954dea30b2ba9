"""Owners: how they are defined, what is refused, and how flow actors reach them."""

import re
from random import Random
from typing import Any, Generic, TypeVar

import msgspec
import pytest

from actornet.engine.five_tuple import FiveTuple
from actornet.errors import OwnerError, UsageError
from actornet.owner import (
    Message,
    Moment,
    Owner,
    OwnerReference,
    Struct,
    create,
    decode_state,
    encode_state,
    import_owner,
    path_of,
)
from actornet.setting import setting

FLOW = FiveTuple(17, "10.0.0.1", 5000, "198.51.100.7", 53)
T = TypeVar("T", bound=Struct)


class Ports(Struct):
    free: list[int]
    used: dict[int, FiveTuple] = {}
    share: float = 0


class PortPool(Owner[Ports]):
    """External ports of one public address."""

    def start(self, address: str, first: int = 1024, last: int = 65535) -> Ports:
        if first > last:
            raise ValueError("first is above last")
        return Ports(list(range(first, last + 1)))

    def allocate(self, flow: FiveTuple, preferred: int | None = None) -> int | None:
        """A free port for the flow."""
        port = self._take(preferred)
        if port is not None:
            self.state.used[port] = flow
        return port

    def release(self, port: int) -> None:
        del self.state.used[port]

    def _take(self, preferred: int | None) -> int | None:
        if preferred in self.state.free:
            self.state.free.remove(preferred)
            return preferred
        return self.state.free.pop(0) if self.state.free else None


class Named:
    """Stands where a flow actor stands: it has `_ask`."""

    address = setting("203.0.113.1")
    pool = PortPool.named("wan-ports", address=address, first=2000)

    def __init__(self) -> None:
        self.sent: list[tuple[str, str, tuple[Any, ...]]] = []

    def _ask(self, reference: OwnerReference, message: Message, args: tuple[Any, ...]) -> str:
        self.sent.append((reference.name, message.name, args))
        return "reply"


def test_messages_are_the_public_methods() -> None:
    assert sorted(PortPool.messages) == ["allocate", "release"]
    assert PortPool.state_type is Ports
    assert PortPool.messages["release"].function is PortPool.release


def test_arguments_are_decoded_by_their_hints() -> None:
    allocate = PortPool.messages["allocate"]
    assert allocate.decode(msgspec.msgpack.encode((FLOW, None))) == (FLOW, None)
    for wrong in ([FLOW], [FLOW, "80"], [FLOW, 80, 81], [[17], 80], 5):
        with pytest.raises(msgspec.ValidationError):
            allocate.decode(msgspec.msgpack.encode(wrong))


def test_replies_are_decoded_by_their_hint() -> None:
    def reply(*outcome: object) -> bytes:
        return msgspec.msgpack.encode(outcome)

    class Finder(Owner[Ports]):
        def find(self, port: int) -> FiveTuple | None:
            return self.state.used.get(port)

    find = Finder.messages["find"]
    assert find.reply_value(reply(0, FLOW)) == FLOW
    assert find.reply_value(reply(0, None)) is None
    with pytest.raises(OwnerError, match=r"Finder.find: KeyError: 5"):
        find.reply_value(reply(1, "KeyError", "5"))
    with pytest.raises(OwnerError, match=r"Finder.find replied against its type hint: "):
        find.reply_value(reply(0, 5))


def test_a_flow_actor_sends_by_calling_the_message() -> None:
    actor = Named()
    assert actor.pool.allocate(FLOW, 80) == "reply"
    actor.pool.allocate(FLOW)
    actor.pool.allocate(preferred=7, flow=FLOW)
    actor.pool.release(80)
    assert actor.sent == [
        ("wan-ports", "allocate", (FLOW, 80)),
        ("wan-ports", "allocate", (FLOW, None)),
        ("wan-ports", "allocate", (FLOW, 7)),
        ("wan-ports", "release", (80,)),
    ]
    assert actor.pool.allocate.__doc__ == "A free port for the flow."
    with pytest.raises(TypeError, match="flow"):
        actor.pool.allocate()
    with pytest.raises(AttributeError, match="PortPool has no message 'alocate'; its messages are: allocate, release"):
        actor.pool.alocate(FLOW)
    with pytest.raises(AttributeError):
        actor.pool = None


def test_a_reference_names_owner_class_and_settings() -> None:
    reference = Named.pool
    assert isinstance(reference, OwnerReference)
    assert (reference.name, reference.owner, reference.path) == ("wan-ports", PortPool, path_of(PortPool))
    assert reference.resolved({"address": "192.0.2.1"}) == {"address": "192.0.2.1", "first": 2000}
    with pytest.raises(UsageError, match="is not a setting of this network function"):
        reference.resolved({})


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({}, "missing a required argument: 'address'"),
        ({"address": "x", "lats": 5}, "unexpected keyword argument 'lats'"),
        ({"address": 5}, "setting address=5: Expected `str`, got `int`"),
        ({"address": "x", "first": "1"}, "setting first='1': Expected `int`, got `str`"),
    ],
)
def test_settings_are_checked_where_the_owner_is_named(settings: dict[str, Any], what: str) -> None:
    with pytest.raises(UsageError, match=r"PortPool.named\('p'\): .*" + re.escape(what)):
        PortPool.named("p", **settings)


def test_without_start_settings_are_fields_of_the_state() -> None:
    class Plain(Owner[Ports]):
        pass

    with pytest.raises(
        UsageError, match=r"Plain.named\('p'\): its state has no field 'fre'; its fields are: free, used, share"
    ):
        Plain.named("p", fre=[1])


@pytest.mark.parametrize("given", [("p",), ()])
def test_an_owner_is_not_made_by_hand(given: tuple[Any, ...]) -> None:
    with pytest.raises(UsageError, match=r"PortPool\(\.\.\.\) makes no owner; refer to one by PortPool\.named\("):
        PortPool(*given, address="x")


def test_create_gives_the_first_state() -> None:
    owner = create(PortPool, {"address": "x", "first": 5, "last": 6}, Moment())
    assert owner.state == Ports([5, 6])
    assert type(owner.state.share) is float, "as a snapshot would give it back"
    with pytest.raises(UsageError, match=r"cannot start with .*: ValueError: first is above last"):
        create(PortPool, {"address": "x", "first": 5, "last": 4}, Moment())


def test_without_start_the_settings_are_the_state() -> None:
    class Plain(Owner[Ports]):
        pass

    assert create(Plain, {"free": [1]}, Moment()).state == Ports([1])
    with pytest.raises(UsageError, match=r"Plain cannot start with .*missing required field `free`"):
        create(Plain, {}, Moment())


def test_start_must_give_the_state() -> None:
    class Wrong(Owner[Ports]):
        def start(self) -> Ports:
            return [1]  # type: ignore[return-value]

    with pytest.raises(UsageError, match="start must return Ports, not list"):
        create(Wrong, {}, Moment())


def test_a_state_comes_back_with_its_types_and_order() -> None:
    owner = create(PortPool, {"address": "x"}, Moment())
    owner.state.used = {9: FLOW, 3: FLOW.reversed()}
    state = decode_state(PortPool, encode_state(owner))
    assert state == owner.state
    assert list(state.used) == [9, 3]
    owner.state.used["nine"] = FLOW
    with pytest.raises(UsageError, match=r"state of .*:PortPool does not fit Ports: Expected `int`, got `str`"):
        decode_state(PortPool, encode_state(owner))


def test_now_and_random_come_from_the_moment() -> None:
    """G4: time and chance are functions of the record: its time, its LSN, its epoch's seed."""

    def moment(lsn: int, seed: int = 7) -> Moment:
        moment = Moment()
        moment.lsn, moment.seed, moment.time_ns = lsn, seed, 1_500_000_000
        return moment

    owner = create(PortPool, {"address": "x"}, moment(1))
    assert owner.now == 1.5
    assert isinstance(owner.random, Random)
    drawn = [owner.random.random(), owner.random.random()]
    again = create(PortPool, {"address": "x"}, moment(1))
    assert [again.random.random(), again.random.random()] == drawn, "one generator for one record"
    others = [create(PortPool, {"address": "x"}, other).random.random() for other in (moment(2), moment(1, 8))]
    assert len({drawn[0], *others}) == 3


def test_now_and_random_are_for_handlers_only() -> None:
    owner = create(PortPool, {"address": "x"}, Moment())
    with pytest.raises(UsageError, match=r"self.now of an owner is there only while a message is handled"):
        _ = owner.now
    with pytest.raises(UsageError, match=r"self.random of an owner"):
        _ = owner.random
    with pytest.raises(UsageError, match=r"self.revoke_offloads of an owner"):
        owner.revoke_offloads()


def test_an_owner_class_is_found_by_its_path() -> None:
    assert import_owner(path_of(PortPool)) is PortPool
    for path, what in (
        ("absent:Pool", "cannot be loaded: No module named 'absent'"),
        (f"{__name__}:Absent", "cannot be loaded: .*has no attribute 'Absent'"),
        (f"{__name__}:Ports", "is not an owner class"),
        ("", "cannot be loaded"),
    ):
        with pytest.raises(UsageError, match=what):
            import_owner(path)


def test_a_class_may_inherit_state_and_messages() -> None:
    class Generous(PortPool):
        def release(self, port: int) -> None:
            self.state.used.pop(port, None)

    assert Generous.state_type is Ports
    assert sorted(Generous.messages) == ["allocate", "release"]
    assert Generous.messages["release"].function is Generous.release


def test_a_generic_class_waits_for_its_state_type() -> None:
    class Counted(Owner[T], Generic[T]):
        def kind(self) -> str:
            return type(self.state).__name__

    class Full(Counted[Ports]):
        pass

    assert sorted(Full.messages) == ["kind"]
    with pytest.raises(UsageError, match="Counted has no state type"):
        Counted.named("x")


def test_a_state_must_be_a_fully_typed_struct() -> None:
    class Loose(Struct):
        ports: list  # type: ignore[type-arg]

    class Strange(Struct):
        maker: Random

    with pytest.raises(UsageError, match="name the type of its state"):

        class Stateless(Owner):  # type: ignore[type-arg]
            pass

    with pytest.raises(UsageError, match="the state type <class 'dict'> must be a Struct"):

        class Bare(Owner[dict]):  # type: ignore[type-arg,type-var]
            pass

    with pytest.raises(UsageError, match=r"state Loose of .*every field needs a full type"):

        class OfLoose(Owner[Loose]):
            pass

    with pytest.raises(UsageError, match=r"state Strange of .* cannot be logged"):

        class OfStrange(Owner[Strange]):
            pass


async def waits(self: Any) -> int:
    return 1


def yields(self: Any) -> Any:
    yield 1


def unhinted(self: Any, port) -> int:  # type: ignore[no-untyped-def]
    return 1


def resultless(self: Any, port: int):  # type: ignore[no-untyped-def]
    return 1


def starred(self: Any, *ports: int) -> int:
    return 1


def keyword(self: Any, *, port: int) -> int:
    return 1


def strange(self: Any, maker: Random) -> int:
    return 1


def unordered(self: Any) -> set[int]:
    return set()


def missing(self: Any, port: "Missing") -> int:  # type: ignore[name-defined]  # noqa: F821
    return 1


@pytest.mark.parametrize(
    ("name", "function", "what"),
    [
        ("count", waits, r"Bad.count is async: an owner may not wait"),
        ("_count", waits, r"Bad._count is async: an owner may not wait"),
        ("count", yields, r"Bad.count is a generator"),
        ("count", unhinted, r"Bad.count: parameter 'port' needs a type hint"),
        ("count", resultless, r"Bad.count: the result needs a type hint"),
        ("count", starred, r"Bad.count: parameter \*ports: int must be an ordinary one"),
        ("count", keyword, r"Bad.count: parameter port: int must be an ordinary one"),
        ("count", strange, r"Bad.count: maker: Random is no Struct and no plain data"),
        ("count", unordered, r"Bad.count: return: use a list: a set's order varies"),
        ("count", missing, r"Bad.count: a type hint cannot be resolved: name 'Missing' is not defined"),
        ("count", staticmethod(unordered), r"Bad.count: a message is a plain method"),
        ("now", unordered, r"Bad.now: the name belongs to Owner"),
        ("state", unordered, r"Bad.state: the name belongs to Owner"),
        ("__init__", unordered, r"Bad.__init__: an owner's first state comes from start"),
    ],
)
def test_what_cannot_be_a_message_is_refused(name: str, function: object, what: str) -> None:
    with pytest.raises(UsageError, match=what):
        type(PortPool)("Bad", (PortPool,), {name: function})


def test_private_names_are_free() -> None:
    class Free(Owner[Ports]):
        LIMIT = 5
        _each = yields

        @staticmethod
        def _double(port: int) -> int:
            return 2 * port

        def double(self, port: int) -> int:
            return self._double(port)

    assert list(Free.messages) == ["double"]
    assert isinstance(Free.messages["double"], Message)
