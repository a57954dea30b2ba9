"""Was everything right that a pair of NATs did? Told from frames on both of its sides and the surviving log.

The checker shares no code with the packet engine: frames are taken apart by dpkt. It explains each frame that a node sent
by one frame that a host sent, with the same content but for addresses, ports, TTL and checksums, and each only once. So it
learns which inside endpoint was behind an external one at that time, and compares that to what the log says (`Mapped`).

Found are (G3, G6, G7): a packet with a translation that the survivor does not know, a mapping of two inside endpoints at
once, a packet that nobody sent, sent twice or to somebody else, a wrong checksum, and two nodes that send at the same time.
Only the node that takes over may send again what waited in the other, which may have sent it before it died.
"""

from __future__ import annotations

import struct
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import dpkt
import msgspec

from actornet.errors import ActornetError
from actornet.log.record import AskBody
from actornet.replay.history import History
from actornet.testing.wiretap import SECOND, Frame

ICMP, TCP, UDP = 1, 6, 17
WAITS_S = 15.0
"""A packet may be held in a node for so long; a mapping may be seen that much after its end, if its last packet waited."""
LATE_NS = 20_000_000
"""What a node sent before the other took over may be seen that much after the other's first frame: a frame waits in the
queue of the CPU that sent it, and each CPU empties its own when it comes to that."""
AGAIN_NS = SECOND
"""What a node sent last the other may send again, so much later at most: it was frozen before it could say that it had."""
EVER_NS = 1 << 62
PROBLEMS_MAX = 1000


class Endpoint(NamedTuple):
    """Protocol, address and port (for ICMP echo: the identifier)."""

    protocol: int
    address: str
    port: int

    def __str__(self) -> str:
        return (
            f"{ {ICMP: 'icmp', TCP: 'tcp', UDP: 'udp'}.get(self.protocol, self.protocol) } {self.address}:{self.port}"
        )


class Mapped(msgspec.Struct, frozen=True):
    """The log says that `outside` belonged to `inside` from `since_ns` to `until_ns` (Unix time)."""

    outside: Endpoint
    inside: Endpoint
    since_ns: int
    until_ns: int = EVER_NS


class Seen(msgspec.Struct):
    """Frames show that `outside` was that of one of `inside`, at these times and perhaps between them.

    Mostly it is one; several, if they sent the same bytes to the same place.
    """

    outside: Endpoint
    inside: set[Endpoint]
    first_ns: int
    last_ns: int


class Inputs(msgspec.Struct):
    """Frames of hosts with the same content: time and inside endpoint of each, how many have come out, by whom when at last,
    and who has sent one again."""

    came: deque[tuple[int, Endpoint]]
    left: int = 0
    sent_ns: dict[str, int] = {}
    again: str = ""

    def may_be_again(self, frame: Frame) -> bool:
        others = [sent_ns for node, sent_ns in self.sent_ns.items() if node != frame.sender]
        return self.again != frame.sender and bool(others) and frame.time_ns - max(others) <= AGAIN_NS


class Sender(msgspec.Struct):
    """A node's frames with none of the other node's in between."""

    node: str
    first_ns: int
    last_ns: int


class Checker:
    """Takes frames in order of time; `problems` are lines about what was wrong, `check` adds what the log contradicts."""

    def __init__(self, external: str) -> None:
        self.external = external
        self.problems: list[str] = []
        self.senders: list[Sender] = []
        self.frames = {"host": 0, "node": 0, "translated": 0, "late": 0, "again": 0}
        self._inputs: dict[tuple[str, Endpoint, int], Inputs] = {}
        self._seen: dict[Endpoint, list[Seen]] = defaultdict(list)
        self._swept_ns = 0

    @property
    def translations(self) -> list[Seen]:
        """What the frames show."""
        return [seen for runs in self._seen.values() for seen in runs]

    def feed(self, frames: Iterable[Frame]) -> None:
        """Look at more frames, later than all before."""
        for frame in frames:
            from_node = frame.sender in ("a", "b")
            self.frames["node" if from_node else "host"] += 1
            came_ns = self._read(frame, from_node)
            if from_node:
                self._note_sender(frame, came_ns)
            self._sweep(frame.time_ns)

    def check(self, mapped: Sequence[Mapped], takeovers: int) -> list[str]:
        """Every problem there is, once all frames are in: `mapped` is the survivor's log (`mappings`)."""
        self.problems += overlaps(mapped)
        known: dict[Endpoint, list[Mapped]] = defaultdict(list)
        for one in mapped:
            known[one.outside].append(one)
        for seen in self.translations:
            fitting = [one for one in known[seen.outside] if one.inside in seen.inside]
            late_ns = int(WAITS_S * SECOND)
            if not any(one.since_ns <= seen.first_ns and seen.last_ns <= one.until_ns + late_ns for one in fitting):
                says = ", ".join(f"{one.inside} {_span(one.since_ns, one.until_ns)}" for one in known[seen.outside])
                claimed = f"{' or '.join(map(str, seen.inside))} {_span(seen.first_ns, seen.last_ns)}"
                self.problems.append(
                    f"{seen.outside} was {claimed}, but the survivor's log says {says or 'nothing of it'}"
                )
        if len(self.senders) - 1 > takeovers:
            turns = ", ".join(f"{turn.node} {_span(turn.first_ns, turn.last_ns)}" for turn in self.senders[:20])
            self.problems.append(f"nodes sent by turns, with {takeovers} takeovers: {turns}")
        return self.problems

    def _read(self, frame: Frame, from_node: bool) -> int:
        """Look at one frame. Returns when the packet came that a node's frame is of; 0 if it is of none."""
        try:
            ethernet = dpkt.ethernet.Ethernet(frame.data)
        except dpkt.UnpackError as error:
            self._problem(frame, f"is no Ethernet frame: {error}")
            return 0
        if not isinstance(ethernet.data, dpkt.ip.IP):
            return 0  # ARP
        if from_node and (wrong := wrong_checksum(frame, ethernet.data)):
            self._problem(frame, wrong)
        came_ns = 0
        for packet in _translated(ethernet.data):
            if from_node:
                came_ns = self._explain(frame, *packet)
            else:
                self._remember(frame, *packet)
        return came_ns

    def _note_sender(self, frame: Frame, came_ns: int) -> None:
        if not self.senders or self.senders[-1].node != frame.sender:
            if len(self.senders) > 1:
                began_ns = self.senders[-1].first_ns
                if came_ns <= began_ns and frame.time_ns - began_ns <= LATE_NS:
                    self.frames["late"] += 1  # of a packet that had come before the other sent anything
                    return
            self.senders.append(Sender(frame.sender, frame.time_ns, frame.time_ns))
        self.senders[-1].last_ns = frame.time_ns

    def _remember(self, frame: Frame, source: Endpoint, target: Endpoint, content: int) -> None:
        """What a host sends out may come out for its remote end, what it sends in for an inside one."""
        side, remote, inside = ("wan", target, source) if frame.side == "lan" else ("lan", source, target)
        inputs = self._inputs.setdefault((side, remote, content), Inputs(deque()))
        inputs.came.append((frame.time_ns, inside))

    def _explain(self, frame: Frame, source: Endpoint, target: Endpoint, content: int) -> int:
        """Find the packet that this frame is of; returns when it came, 0 if there is none."""
        remote, near = (target, source) if frame.side == "wan" else (source, target)
        if frame.side == "wan" and near.address != self.external:
            self._problem(frame, f"leaves with the address of {near}")
            return 0
        inputs = self._inputs.get((frame.side, remote, content))
        if inputs and 0 < inputs.left == len(inputs.came) and inputs.may_be_again(frame):
            inputs.left -= 1
            inputs.again = frame.sender
            self.frames["again"] += 1
        if inputs is None or inputs.left == len(inputs.came):
            self._problem(frame, f"{source} > {target}: " + ("it was sent once" if inputs else "nobody sent that"))
            return 0
        came_ns = inputs.came[inputs.left][0]
        inputs.left += 1
        inputs.sent_ns[frame.sender] = frame.time_ns
        self.frames["translated"] += 1
        others = {endpoint for _, endpoint in inputs.came}
        if frame.side == "wan":
            self._see(near, others, frame.time_ns)
        elif len(others) == 1:
            self._see(others.pop(), {near}, frame.time_ns)
        elif not any(seen.inside == {near} for other in others for seen in self._seen[other][-1:]):
            self._problem(frame, f"{source} > {target}: that was sent to others, {', '.join(map(str, others))}")
        return came_ns

    def _see(self, outside: Endpoint, inside: set[Endpoint], time_ns: int) -> None:
        runs = self._seen[outside]
        if runs and runs[-1].inside & inside:
            runs[-1].inside &= inside
            runs[-1].last_ns = time_ns
        else:
            runs.append(Seen(outside, set(inside), time_ns, time_ns))

    def _sweep(self, now_ns: int) -> None:
        """Forget what was not let through."""
        if now_ns - self._swept_ns < SECOND:
            return
        self._swept_ns = now_ns
        late_ns = now_ns - int(WAITS_S * SECOND)
        for key, inputs in list(self._inputs.items()):
            while inputs.came and inputs.came[0][0] < late_ns:
                inputs.came.popleft()
                inputs.left = max(0, inputs.left - 1)
            if not inputs.came:
                del self._inputs[key]

    def _problem(self, frame: Frame, what: str) -> None:
        if len(self.problems) < PROBLEMS_MAX:
            self.problems.append(f"frame of {frame.sender} on {frame.side} at {_clock(frame.time_ns)}: {what}")


def judge(frames: Iterable[Frame], log: Path, takeovers: int, external: str = "203.0.113.1") -> list[str]:
    """What is wrong with these frames of a pair, of which `log` is the survivor's, closed; nothing if all is right."""
    checker = Checker(external)
    checker.feed(frames)
    if not checker.frames["translated"]:
        raise ActornetError("no translated packet was seen: nothing can be said")
    with History(str(log)) as history:
        return checker.check(mappings(history), takeovers)


def mappings(history: History, owner: str = "wan-ports") -> list[Mapped]:
    """What the NAT's owner had mapped, and when, by re-executing a log. Raises as `History.replay` does."""
    replica, chain = history.base()
    open_: dict[Endpoint, Mapped] = {}  # by inside
    done: list[Mapped] = []

    def state_of() -> dict[Any, Any]:
        found: dict[Any, Any] = replica.owners[owner].state.by_inside if owner in replica.owners else {}
        return found

    def note(inside: Endpoint, outside: Endpoint | None, time_ns: int) -> None:
        known = open_.get(inside)
        if known is not None and known.outside != outside:
            done.append(msgspec.structs.replace(open_.pop(inside), until_ns=time_ns))
        if outside is not None and inside not in open_:
            open_[inside] = Mapped(outside, inside, time_ns)

    def endpoint(it: object) -> Endpoint:
        return Endpoint(*msgspec.to_builtins(it))

    for inside, mapping in state_of().items():
        note(endpoint(inside), endpoint(mapping.outside), 0)
    by_outside = {one.outside: one.inside for one in open_.values()}
    for entry in history.replay(replica, chain, history.log.last_lsn):
        record = entry.record
        if record is None or not isinstance(record.body, AskBody) or record.body.owner != owner:
            continue
        arguments = msgspec.msgpack.decode(record.body.args)
        named = Endpoint(*arguments[0])  # every message names an inside endpoint, or an external one, first
        state = state_of()
        for inside in {named, by_outside.get(named, named)}:
            mapping = state.get(_key(state, inside))
            outside = endpoint(mapping.outside) if mapping is not None else None
            note(inside, outside, record.time_ns)
            if outside is not None:
                by_outside[outside] = inside
    final = {endpoint(inside): endpoint(mapping.outside) for inside, mapping in state_of().items()}
    if final != {inside: one.outside for inside, one in open_.items()}:
        raise ActornetError("the owner's mappings changed otherwise than by its messages")
    return [*done, *open_.values()]


def _key(state: dict[Any, Any], inside: Endpoint) -> object:
    """The owner's own key for an endpoint."""
    return type(next(iter(state)))(*inside) if state else None


def overlaps(mapped: Sequence[Mapped]) -> Iterator[str]:
    """External endpoints that belonged to two inside ones at once."""
    before: Mapped | None = None
    for one in sorted(mapped, key=lambda one: (one.outside, one.since_ns)):
        if before is not None and before.outside == one.outside and one.since_ns < before.until_ns:
            yield f"{one.outside} belongs to {before.inside} and {one.inside} at once"
        before = one


def wrong_checksum(frame: Frame, ip: dpkt.ip.IP) -> str | None:
    """What is wrong with a packet's checksums, if anything. Over right ones, too, the sum is 0 (RFC 1071)."""
    if dpkt.in_cksum(frame.data[14 : 14 + ip.hl * 4]):
        return "wrong checksum of the IP header"
    segment = frame.data[14 + ip.hl * 4 : 14 + ip.len]
    if len(segment) < ip.len - ip.hl * 4 or ip.mf or ip.offset:
        return None  # not whole
    pseudo = ip.src + ip.dst + struct.pack("!BBH", 0, ip.p, len(segment))
    if ip.p == ICMP:
        return "wrong ICMP checksum" if dpkt.in_cksum(segment) else None
    if ip.p not in (TCP, UDP):
        return None
    at = 16 if ip.p == TCP else 6
    written = segment[at : at + 2]
    if frame.partial:
        sum_ = 0xFFFF ^ dpkt.in_cksum(pseudo)
        return None if written == sum_.to_bytes(2, "big") else "wrong sum of the pseudo-header"
    if ip.p == UDP and written == b"\0\0":
        return None  # RFC 768: none
    return "wrong checksum" if dpkt.in_cksum(pseudo + segment) else None


def _translated(ip: dpkt.ip.IP) -> Iterator[tuple[Endpoint, Endpoint, int]]:
    """Source, target and a hash of the content of a packet that a NAT translates; nothing for others."""
    source, target = (".".join(map(str, address)) for address in (ip.src, ip.dst))
    match ip.data:
        case dpkt.tcp.TCP() as tcp:
            content = hash((ip.id, tcp.seq, tcp.ack, tcp.flags, bytes(tcp.opts), bytes(tcp.data)))
            yield Endpoint(TCP, source, tcp.sport), Endpoint(TCP, target, tcp.dport), content
        case dpkt.udp.UDP() as udp:
            yield Endpoint(UDP, source, udp.sport), Endpoint(UDP, target, udp.dport), hash((ip.id, bytes(udp.data)))
        case dpkt.icmp.ICMP(data=dpkt.icmp.ICMP.Echo() as echo, type=kind) if kind in (0, 8):
            # Only the inside end has an identifier, and the translation is in it.
            ends = (echo.id, 0) if kind == 8 else (0, echo.id)
            content = hash((kind, ip.id, echo.seq, bytes(echo.data)))
            yield Endpoint(ICMP, source, ends[0]), Endpoint(ICMP, target, ends[1]), content


def _clock(time_ns: int) -> str:
    return f"{time_ns / SECOND % 10_000:.6f}"


def _span(since_ns: int, until_ns: int) -> str:
    return f"from {_clock(since_ns)} " + ("on" if until_ns == EVER_NS else f"to {_clock(until_ns)}")
