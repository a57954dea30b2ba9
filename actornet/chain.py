"""Chains: several network functions over the same connections, as if each stood on a machine of its own.

`Chain(Firewall, SourceNAT)` is a class of flow actors whose flows have a member for each of the functions. A packet that
arrives at the first port goes through the members in order, one from the other port in reverse order: the first member
stands at the first port's side, the last at the other's. Each sees the packet as the one before it has rewritten it, by an
actor of the class that the user wrote, whose `flow`, `bind`, `offload` and so on are about what it sees. What the members have
offloaded is composed: a key for which each packet would pass through offloads alone is offloaded with their product.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from types import CoroutineType
from typing import TYPE_CHECKING, Any, ClassVar, cast

import msgspec

from actornet.engine import relay
from actornet.engine.direction import Direction
from actornet.engine.five_tuple import FiveTuple
from actornet.engine.flow_base import FlowBase
from actornet.engine.packet import Packet
from actornet.engine.seat import Offload, Seat, composed, product
from actornet.engine.verdict import DROP, FORWARD, OFFLOADED, Answer, Emit, Forward, Rewrite, Verdict, decode_verdict
from actornet.errors import UsageError
from actornet.flow import FlowActor, FlowMeta
from actornet.limits import CHAIN_MEMBERS_MAX, KEYS_PER_FLOW_MAX
from actornet.owner import OwnerReference, owners_of
from actornet.setting import Setting
from actornet.stream import StreamActor

TCP = 6
SYN_FIN_RST = 7
Key = tuple[FiveTuple, str]
_encode = msgspec.msgpack.Encoder().encode


class KeyState(msgspec.Struct, array_like=True, gc=False):
    """A member's key and its offload: `decode_verdict`'s form, or False; and the rest of `Offload`."""

    flow: FiveTuple
    port: str
    form: list[Any] | bool | None = False
    punt_tcp: bool = True
    until_ns: int = 0
    revocations: int = 0


class MemberState(msgspec.Struct, array_like=True, gc=False):
    """A member in the flow's record; one that has seen no packet yet has no keys."""

    fields: msgspec.Raw
    keys: list[KeyState]
    idle_s: float


_decode_members = msgspec.msgpack.Decoder(list[MemberState]).decode


class Member:
    """What a flow actor is to its core, by way of the chain in which it is a member."""

    __slots__ = ()
    _seat: Seat
    if TYPE_CHECKING:  # FlowBase's, beside which this stands in each member's class

        def _set_dirty(self, dirty: bool) -> None: ...

    @property
    def flow(self) -> FiveTuple:
        return self._seat.first[0]

    @property
    def port(self) -> str:
        return self._seat.chain.port

    @property
    def port_index(self) -> int:
        return self._seat.chain.port_index

    @property
    def idle_s(self) -> float:
        return self._seat.idle_s

    @idle_s.setter
    def idle_s(self, value: float) -> None:
        if not 0 < value < 1e9:
            raise UsageError(f"idle_s must be positive seconds, not {value!r}")
        self._seat.idle_s = value

    @property
    def incarnation(self) -> int:
        return self._seat.chain.incarnation

    @property
    def asks(self) -> int:
        return self._seat.chain.asks

    @property
    def packets(self) -> int:
        return self._seat.chain.packets

    @property
    def bytes(self) -> int:
        return self._seat.chain.bytes

    def bind(self, flow: FiveTuple, port: str | None = None) -> None:
        seat = self._seat
        key = (flow, port if port is not None else seat.chain._opposite(seat.chain.port))
        if key not in seat.keys:
            if len(seat.keys) >= KEYS_PER_FLOW_MAX:
                raise UsageError(f"bind: {self.flow} holds {len(seat.keys)} keys, the most a flow may have")
            seat.keys[key] = None
            self._set_dirty(True)

    def offload(
        self,
        verdict: Verdict,
        flow: FiveTuple | None = None,
        port: str | None = None,
        *,
        idle_s: float | None = None,
        hard_s: float | None = None,
        meter: Any = None,
        mirror: Any = None,
        punt_tcp: bool = True,
    ) -> None:
        if meter is not None or mirror is not None:
            raise UsageError(f"{type(self).__name__}: a member's offload can have no meter and no mirror in a chain")
        if verdict is not DROP and not isinstance(verdict, Forward):
            raise UsageError(f"offload: {verdict!r} is not a decision that the core can carry out")
        if isinstance(verdict, Rewrite) and verdict.payload is not None:
            raise UsageError("offload: a payload is one packet's, so it cannot be offloaded")
        chain, key = self._seat.chain, self._key(flow, port, "offload")
        until_ns = chain._now_ns() + int(hard_s * 1e9) if hard_s is not None else 0
        self._seat.keys[key] = Offload(verdict, punt_tcp, until_ns, chain._revocations())
        self._set_dirty(True)
        if idle_s is not None:
            self.idle_s = idle_s

    def offloaded(self, flow: FiveTuple | None = None, port: str | None = None) -> bool:
        return self._seat.standing(self._key(flow, port, "offloaded")) is not None

    def withdraw(self) -> None:
        self._seat.keys = dict.fromkeys(self._seat.keys)
        self._set_dirty(True)

    def counted(self, flow: FiveTuple | None = None, port: str | None = None) -> tuple[int, int]:
        """Of the connection's packets, those that came in at the key's port."""
        chain, (_, at) = self._seat.chain, self._key(flow, port, "counted")
        counts = [chain.counted(real, where) for real, where in chain._bound() if where == at]
        return sum(count[0] for count in counts), sum(count[1] for count in counts)

    def close(self) -> None:
        self._seat.chain.close()

    def _key(self, flow: FiveTuple | None, port: str | None, what: str) -> Key:
        keys = self._seat.keys
        if flow is None:
            return self._seat.first
        for key in keys:
            if key[0] == flow and port in (None, key[1]):
                return key
        raise UsageError(f"{what}: {flow} is not bound to this flow; call bind first")

    def _bound(self) -> list[Key]:
        return list(self._seat.keys)

    def committed(self) -> Any:
        return self._seat.chain.committed()

    def _ask(self, reference: Any, message: Any, args: tuple[Any, ...]) -> Any:
        return self._seat.chain._ask(reference, message, args)

    def _note_gap(self) -> None:
        self._seat.chain._note_gap()

    def _opposite_port(self, port: int) -> int:
        return self._seat.chain._opposite_port(port)

    def _now_ns(self) -> int:
        return self._seat.chain._now_ns()


class _Refused(Exception):
    """A member's `on_open` refuses the flow by this verdict."""

    def __init__(self, verdict: Verdict) -> None:
        self.verdict = verdict


class ChainActor(FlowActor):
    """The flow of a chain; `Chain` makes the classes."""

    chained: ClassVar[Mapping[str, type[FlowActor]]] = {}
    forgettable: ClassVar[bool] = False
    members: bytes = b""
    _members: list[Any] | None = None

    @classmethod
    def prepare(cls) -> None:
        super().prepare()
        for part in cls.chained.values():
            part.prepare()

    @classmethod
    def moves(cls) -> bool:
        return cls.forgettable

    def check_fields(self) -> None:
        super().check_fields()
        for member in self._members or ():
            member.check_fields()

    async def on_open(self, packet: Packet) -> Any:
        """Members open as the packet comes to them. If one refuses it, those before it close, and nothing is left."""
        try:
            verdict = await self._through(packet)
        except _Refused as refused:
            await self.on_close()
            return refused.verdict
        return relay.dropped() if verdict.name in ("DROP", "REJECT") else verdict

    async def on_packet(self, packet: Packet) -> Any:
        try:
            return await self._through(packet)
        except _Refused as refused:
            self.close()
            return refused.verdict

    async def on_close(self) -> None:
        """Members close in the reverse of the order in which they opened."""
        failed: Exception | None = None
        for member in reversed(self._in_order(self.port_index)):
            if member._seat.keys:
                try:
                    if isinstance(outcome := member.on_close(), CoroutineType):
                        await outcome
                except Exception as error:  # the others still close
                    failed = failed or error
        self._members = None
        if failed is not None:
            raise failed

    async def on_message(self, message: Any) -> Any:
        """To the first member that takes messages."""
        for member in self._joined():
            if type(member).handles("on_message"):
                answer = member.on_message(message)
                if isinstance(answer, CoroutineType):
                    answer = await answer
                self._settle()
                return answer
        return super().on_message(message)

    def held_packets(self) -> int:
        return sum(member.held_packets() for member in self._members or ())

    def parts(self) -> list[Any]:
        return self._members or [self]

    # -- a packet's way ---------------------------------------------------------------------------------------------

    async def _through(self, packet: Packet) -> Verdict:
        members = self._joined()
        step = 1 if packet.port_index == 0 else -1
        verdict = await self._travel(packet, 0 if step == 1 else len(members) - 1, step)
        self._settle()
        return verdict

    async def _travel(self, packet: Packet, at: int, step: int) -> Verdict:
        """Take a packet through the members from number `at` on; what becomes of it, as a verdict on `packet`."""
        members, current, arrived = self._joined(), packet, packet.port
        first = flow = packet.flow
        opposite = self._opposite(arrived)
        rewrites: list[Rewrite] = []
        edited = False
        while 0 <= at < len(members):
            member = members[at]
            verdict = await self._treat(member, current, (flow, arrived))
            if isinstance(verdict, Answer):
                verdict = relay.answered(current, verdict, self._opposite_port(current.port_index))
            if not isinstance(verdict, Forward):
                return await self._take_on(verdict, current, at) if isinstance(verdict, Emit) else verdict
            if verdict.to == arrived != opposite:
                raise UsageError(
                    f"{type(member).__name__} sends a packet back out of port {arrived}, where it came in; "
                    "through a chain packets only pass"
                )
            edited |= current is not packet and isinstance(member, StreamActor) and member.inline
            if isinstance(verdict, Rewrite):
                edited |= verdict.payload is not None
                # A chain is one hop, however many members rewrite.
                following = relay.rewritten(current, verdict, not any(before.decrement_ttl for before in rewrites))
                if following is None:
                    return Rewrite()  # the core will see, and say, that the TTL has run out
                rewrites.append(verdict)
                if current is not packet:
                    relay.end(current)
                current, flow = following, following.flow
            at += step
        if packet.direction is Direction.ORIGINAL and not packet.is_icmp_error and self._touched():
            self.bind(flow.reversed(), self._opposite(self.port))
        if edited:
            return relay.emit([relay.made(current)], -1)
        return product(first, flow, rewrites)

    async def _take_on(self, made: Emit, like: Packet, at: int) -> Verdict:
        """Frames that member number `at` made go on from there, each in its own direction."""
        frames = []
        for frame in made.frames:
            step = 1 if frame.port == 0 else -1
            packet = relay.taken(like, frame, Direction.ORIGINAL if frame.port == self.port_index else Direction.REPLY)
            verdict = await self._travel(packet, at + step, step)
            if isinstance(verdict, Emit):
                frames += verdict.frames
            elif isinstance(verdict, Rewrite):
                following = relay.rewritten(packet, verdict, True)
                frames += [relay.made(following)] if following is not None else []
            elif isinstance(verdict, Forward):
                frames.append(relay.made(packet))
            relay.end(packet)
        return relay.emit(frames, made.counter)

    async def _treat(self, member: Any, packet: Packet, key: Key) -> Verdict:
        """What a member decides about a packet, by itself or by what it has offloaded."""
        seat = cast(Seat, member._seat)
        if not seat.keys:
            if packet.is_icmp_error:
                return DROP  # about nothing that it knows
            seat.keys[key] = None
            if member.connection:
                seat.keys[key[0].reversed(), self._opposite(key[1])] = None
            member._set_dirty(True)
            known, verdict = len(seat.keys), member.on_open(packet)
            if isinstance(verdict, CoroutineType):
                verdict = await verdict
            if verdict is not None:
                verdict = _meant(member, verdict, key)
                refuses = verdict.name in ("DROP", "REJECT")
                if refuses and len(seat.keys) == known and seat.standing(key) is None:
                    seat.keys.clear()
                    raise _Refused(verdict)
                return verdict
        found = seat.standing(key)
        punted = found is not None and found.punt_tcp and packet.tcp_flags & SYN_FIN_RST
        if found is not None and not punted and not (packet.is_icmp_error and member.sees_icmp_errors):
            return found.verdict
        verdict = member.on_packet(packet)
        return _meant(member, await verdict if isinstance(verdict, CoroutineType) else verdict, key)

    # -- keys, offloads and the record ------------------------------------------------------------------------------

    def _joined(self) -> list[Any]:
        """The members; new ones, or as the record says."""
        if self._members is None:
            parts = list(self.chained.values())
            states = _decode_members(self.members) if self.members else [None] * len(parts)
            self._members = [self._member(part, state) for part, state in zip(parts, states, strict=True)]
        return self._members

    def _member(self, part: type[FlowActor], state: MemberState | None) -> Any:
        member: Any = part.__new__(part)
        member._seat = Seat(self, part.idle_default_s if state is None else state.idle_s)
        for name, value in part.field_defaults:
            if name != "_seat":
                setattr(member, name, value.copy() if isinstance(value, list | dict | set) else value)
        if state is not None:
            for name, value in part.read_fields(state.fields):
                setattr(member, name, value)
            member._seat.keys = {(key.flow, key.port): _offload(key) for key in state.keys}
        member._set_dirty(False)
        return member

    def _in_order(self, port_index: int) -> list[Any]:
        """The members as a packet that arrives at this port meets them."""
        members = self._joined()
        return members if port_index == 0 else members[::-1]

    def _touched(self) -> bool:
        return any(map(FlowBase._is_dirty, self._joined()))

    def _settle(self) -> None:
        """Members have decided: what of it is the core's, and what belongs into the flow's record."""
        members = self._joined()
        touched = self._touched()
        if not touched and not any(type(member).volatile for member in members):
            return
        if touched:
            names = self._port_names()
            for member, port in ((members[0], names[0]), (members[-1], names[self._opposite_port(0)])):
                for flow, at in list(member._seat.keys):
                    if at == port:  # nobody stands between this member and the port
                        self.bind(flow, at)
            idle_s = max((member._seat.idle_s for member in members if member._seat.keys), default=self.idle_s)
            if idle_s != self.idle_s:
                self.idle_s = idle_s
            complete = self._install()
            for member in members:
                member._set_dirty(False)
        state = _encode([_state(member) for member in members])
        if state != self.members:
            self.members = state
        if touched and complete and self.forgettable:
            self._members = None  # the record has them, and the core needs them no more

    def _install(self) -> bool:
        """Offload what can be composed; whether that is every key."""
        seats = [member._seat for member in self._joined()]
        names, complete = self._port_names(), True
        found = []
        for flow, port in self._bound():
            of_key = composed(seats if port == names[0] else seats[::-1], flow, port, self._opposite(port))
            if of_key is None:
                complete = False
            else:
                found.append((flow, port, of_key))
        self.withdraw()
        for flow, port, of_key in found:
            hard_s = max(of_key.until_ns - self._now_ns(), 1) / 1e9 if of_key.until_ns else None
            self.offload(of_key.verdict, flow, port, punt_tcp=of_key.punt_tcp, hard_s=hard_s)
        return complete


def _meant(member: Any, verdict: Any, key: Key) -> Verdict:
    """A handler's verdict, with what OFFLOADED stands for."""
    if verdict is OFFLOADED:
        found = member._seat.deciding(key)
        if found is None:
            raise TypeError(f"{type(member).__name__} returned OFFLOADED for a key without offload")
        return cast(Verdict, found.verdict)
    if not isinstance(verdict, Verdict):
        raise TypeError(f"{type(member).__name__}.on_packet must return a verdict, not {verdict!r}")
    return verdict


def _state(member: Any) -> tuple[Any, ...]:
    """`MemberState` of a member."""
    seat = cast(Seat, member._seat)
    return [getattr(member, name) for name in member._replicated], seat.saved_keys(), seat.idle_s


def _offload(key: KeyState) -> Offload | None:
    if key.form is False:
        return None
    form = cast("list[Any] | None", key.form)
    return Offload(decode_verdict(form), key.punt_tcp, key.until_ns, key.revocations)


def Chain(*functions: type[FlowActor]) -> type[ChainActor]:
    """The network function that has these, from the first port's side to the second's, one behind the other.

    For each of them a connection is one flow, with both directions, whether or not it has bound the reply. Settings are
    those of the members, by `Member.name`, or by name alone for all that have it. Where members differ in what holds for
    all, the careful one counts: `fail`, `untracked` and `fragments` as the strictest, `deadline_s` as the shortest; a flow
    lives until the longest of its members' time-outs has passed. A chain is one hop: the TTL goes down by one at most.

    Each way in which a flow's packets leave is a key of it, for the replies, until it ends: where members rewrite otherwise
    again and again, it has KEYS_PER_FLOW_MAX of them in all.

    Members' offloads can have no `Meter` and no `Mirror`; packets are not sent back out of the port where they came in.
    Raises UsageError for functions that do not go together.
    """
    if not 1 <= len(functions) <= CHAIN_MEMBERS_MAX:
        raise UsageError(f"a chain has 1..{CHAIN_MEMBERS_MAX} members, not {len(functions)}")
    for function in functions:
        if not (isinstance(function, type) and issubclass(function, FlowActor)) or issubclass(function, ChainActor):
            raise UsageError(f"Chain: {function!r} is no network function, or a chain itself: name its members instead")
    return _chain(functions)


@cache
def _chain(functions: tuple[type[FlowActor], ...]) -> type[ChainActor]:
    """One class per chain, so that whoever loads it again finds it."""
    first = functions[0]
    sharded = [function.shards_by for function in functions if function.shards_by]
    if any(shards != sharded[0] for shards in sharded) or any(function.inner != first.inner for function in functions):
        raise UsageError("a chain's members must agree in shards_by, if they have it, and in inner")
    parts: dict[str, type[FlowActor]] = {}
    for function in functions:
        same = sum(1 for part in parts.values() if part.__name__ == function.__name__)
        parts[function.__name__ + (str(same + 1) if same else "")] = _part(function)
    policies = {function.fragments for function in functions}
    attributes: dict[str, Any] = {
        "__module__": first.__module__,
        "__doc__": f"{', then '.join(function.__name__ for function in functions)}.",
        "chained": parts,
        "forgettable": not any(_is_private(part) for part in parts.values()),
        "untracked": FORWARD if all(part.untracked.name == "FORWARD" for part in functions) else DROP,
        "discovery": FORWARD if all(part.discovery.name == "FORWARD" for part in functions) else DROP,
        "evict": any(function.evict for function in functions),
        "holds": any(function.holds for function in functions),
        "fragments": next(policy for policy in ("drop", "reassemble", "forward") if policy in policies),
        "inner": first.inner,
        "sees_icmp_errors": any(function.sees_icmp_errors for function in functions),
        "shards_by": sharded[0] if sharded else (),
        "deadline_s": min(function.deadline_s for function in functions),
        "keeps_bytes_max": sum(function.keeps_bytes_max for function in functions),
        "fail": FORWARD if all(function.fail.name == "FORWARD" for function in functions) else DROP,
    }
    named: dict[str, OwnerReference] = {}
    for (label, _), function in zip(parts.items(), functions, strict=True):
        for attribute, reference in owners_of(function).items():
            known = named.setdefault(reference.name, reference)
            if known is not reference:
                raise UsageError(
                    f"two members of a chain have an owner named {reference.name!r}: "
                    f"{known.owner.__qualname__} and {reference.owner.__qualname__}"
                )
            settings = {
                name: value.renamed(f"{label}.{value.name}") if isinstance(value, Setting) else value
                for name, value in reference.settings.items()
            }
            attributes[f"{label}_{attribute}"] = OwnerReference(reference.owner, reference.name, settings)
    return cast(type[ChainActor], FlowMeta("+".join(parts), (ChainActor,), attributes))


def _part(function: type[FlowActor]) -> type[FlowActor]:
    """The function as a member: a class of its own, so that settings given to it are not others'."""
    names = {"__module__": function.__module__, "__qualname__": function.__qualname__, "__doc__": function.__doc__}
    seat = {"__annotations__": {"_seat": Any}, "_seat": None}
    return cast(type[FlowActor], FlowMeta(function.__name__, (Member, function), names | seat))


def _is_private(part: type[FlowActor]) -> bool:
    """Whether a member has fields that the record does not keep."""
    return any(name.startswith("_") and name != "_seat" for name, _ in part.field_defaults)
