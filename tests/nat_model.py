"""An independent model of the NAT: given what came in and what went out, it says what of it is wrong.

Written from RFC 791, 792, 768, 9293, 4787, 5382 and 5508; it shares no code with the engine. `Model.check` takes the
inputs in order and explains every output by exactly one of them: a packet is an input with nothing but its addresses,
ports (or identifier), TTL and checksums changed, to what the mapping of its flow says. A checksum that was right is right,
and one that was wrong is wrong by as much: its residual, the one's complement sum over all that it covers, is the same.

A flow that was idle for long enough to be closed may go on or begin anew: the NAT's timers may be late, never early.
After a `rest` it must begin anew.
"""

from __future__ import annotations

import socket
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import ip_network
from typing import NamedTuple

ICMP, TCP, UDP = 1, 6, 17
FIN, SYN, RST = 1, 2, 4
LAN, WAN = "lan", "wan"
TIMER_S = 0.1  # how late a timer may be
PRIVATE = ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10")


class Endpoint(NamedTuple):
    address: str
    port: int


class Flow(NamedTuple):
    protocol: int
    source: Endpoint
    destination: Endpoint

    def reversed(self) -> Flow:
        return Flow(self.protocol, self.destination, self.source)


@dataclass(frozen=True)
class Packet:
    """An IPv4 packet of a flow. An ICMP error's `flow` is the way back of the packet in it, which is at `inner`.

    `flow`, `source` and `destination` (the IP header's addresses) may be others than the frame's: see `addressed`.
    """

    frame: bytes
    ip: int
    transport: int
    end: int
    flow: Flow
    source: str
    destination: str
    inner: int = 0
    tcp_flags: int = 0

    @property
    def ttl(self) -> int:
        return self.frame[self.ip + 8]

    def addressed(self, flow: Flow) -> Packet:
        """The packet as one of another flow. Who sent an ICMP error is translated only if the flow's source is."""
        source, destination = flow.source.address, flow.destination.address
        if self.inner:
            source = self.source if source == self.flow.source.address else source
            destination = self.destination if destination == self.flow.destination.address else destination
        return replace(self, flow=flow, source=source, destination=destination)


def words(frame: bytes, at: int) -> int:
    return int.from_bytes(frame[at : at + 2], "big")


def address(frame: bytes, at: int) -> str:
    return socket.inet_ntoa(frame[at : at + 4])


def dissect(frame: bytes) -> Packet | str:
    """A packet of an IPv4 flow; or why it is none, by the name of the counter for it (`damaged`: of either of two)."""
    at = 12
    while words(frame, at) in (0x8100, 0x88A8) and at < 20:
        at += 4
    kind, ip = words(frame, at), at + 2
    if len(frame) < ip:
        return "damaged"
    if kind == 0x86DD:
        return _dissect_ipv6(frame, ip)
    if kind != 0x0800:
        return "not_ip"
    room = len(frame) - ip
    if room < 20 or frame[ip] >> 4 != 4:
        return "damaged"
    header_bytes, total_bytes = (frame[ip] & 15) * 4, words(frame, ip + 2)
    if not 20 <= header_bytes <= total_bytes <= room:
        return "damaged"
    if words(frame, ip + 6) & 0x3FFF:
        return "fragment"
    transport, end = ip + header_bytes, ip + total_bytes
    protocol, source, destination = frame[ip + 9], address(frame, ip + 12), address(frame, ip + 16)
    found = Packet(frame, ip, transport, end, Flow(0, Endpoint("", 0), Endpoint("", 0)), source, destination)
    if protocol == ICMP:
        return _dissect_icmp(found)
    if protocol not in (TCP, UDP):
        return "untracked"
    if end - transport < (20 if protocol == TCP else 8):
        return "damaged"
    if protocol == TCP and not 20 <= (frame[transport + 12] >> 4) * 4 <= end - transport:
        return "damaged"
    if protocol == UDP and not 8 <= words(frame, transport + 4) <= end - transport:
        return "damaged"
    flow = _flow(frame, protocol, ip, transport)
    return replace(found, flow=flow, tcp_flags=frame[transport + 13] if protocol == TCP else 0)


def _dissect_icmp(p: Packet) -> Packet | str:
    frame, at = p.frame, p.transport
    if p.end - at < 4:
        return "damaged"
    kind = frame[at]
    if kind in (0, 8):
        return replace(p, flow=_flow(frame, ICMP, p.ip, at)) if p.end - at >= 8 else "damaged"
    if kind not in (3, 4, 11, 12):
        return "untracked"
    inner = at + 8
    if p.end - inner < 20 or frame[inner] >> 4 != 4 or frame[inner] & 15 < 5:
        return "damaged"
    transport, protocol = inner + (frame[inner] & 15) * 4, frame[inner + 9]
    if words(frame, inner + 6) & 0x1FFF or protocol not in (ICMP, TCP, UDP):
        return "untracked"
    if p.end - transport < 8:
        return "damaged"
    if protocol == ICMP and frame[transport] not in (0, 8):
        return "untracked"
    return replace(p, flow=_flow(frame, protocol, inner, transport).reversed(), inner=inner)


def _dissect_ipv6(frame: bytes, ip: int) -> str:
    """The NAT is for IPv4: why it drops this."""
    if len(frame) - ip < 40 or ip + 40 + words(frame, ip + 4) > len(frame):
        return "damaged"
    kind, at = frame[ip + 6], ip + 40
    while kind in (0, 43, 60):
        kind, at = frame[at], at + (frame[at + 1] + 1) * 8
    if kind == 44:
        return "fragment"
    if kind == 58 and 1 <= frame[at] <= 4:
        return "icmp_error_unmatched"
    return "dropped_by_nf" if kind in (TCP, UDP) or (kind == 58 and frame[at] in (128, 129)) else "untracked"


def _flow(frame: bytes, protocol: int, ip: int, transport: int) -> Flow:
    ports = (
        (words(frame, transport + 4),) * 2
        if protocol == ICMP
        else (words(frame, transport), words(frame, transport + 2))
    )
    return Flow(protocol, Endpoint(address(frame, ip + 12), ports[0]), Endpoint(address(frame, ip + 16), ports[1]))


def differences(before: Packet, after: bytes) -> str:
    """What is wrong with `after` as the translation of `before`, as which it is addressed; empty if nothing is."""
    frame, ip, transport, end = before.frame, before.ip, before.transport, before.end
    if len(after) != len(frame):
        return f"{len(frame)} bytes became {len(after)}"
    expected = bytearray(frame)
    expected[ip + 8] -= 1
    expected[ip + 12 : ip + 20] = socket.inet_aton(before.source) + socket.inet_aton(before.destination)
    sums = [ip + 10]
    covered: list[Callable[[Packet, bytes], int | str]] = [_header_residual]
    if before.inner:
        inner_transport = before.inner + (frame[before.inner] & 15) * 4
        embedded = before.flow.reversed()
        expected[before.inner + 12 : before.inner + 20] = _addresses(embedded)
        _put_ports(expected, embedded, inner_transport)
        sums += [transport + 2, before.inner + 10]
        offset = inner_transport + {ICMP: 2, TCP: 16, UDP: 6}[embedded.protocol]
        if offset + 2 <= end:
            sums.append(offset)
            covered.append(_embedded_residual)
        covered += [_icmp_residual, _inner_header_residual]
    else:
        _put_ports(expected, before.flow, transport)
        sums.append(transport + {ICMP: 2, TCP: 16, UDP: 6}[before.flow.protocol])
        covered.append(_icmp_residual if before.flow.protocol == ICMP else _transport_residual)
    for at in sums:
        expected[at : at + 2] = after[at : at + 2]
    if expected != after:
        wrong = [at for at in range(len(after)) if expected[at] != after[at]]
        return f"bytes {wrong} are {bytes(after[at] for at in wrong).hex()}, not {bytes(expected[at] for at in wrong).hex()}"
    for residual in covered:
        if residual(before, frame) != residual(before, after):
            return f"a checksum is wrong ({residual.__name__[1:]})"
    return ""


def _addresses(flow: Flow) -> bytes:
    return socket.inet_aton(flow.source.address) + socket.inet_aton(flow.destination.address)


def _put_ports(frame: bytearray, flow: Flow, at: int) -> None:
    if flow.protocol == ICMP:
        frame[at + 4 : at + 6] = flow.source.port.to_bytes(2, "big")
    else:
        frame[at : at + 4] = flow.source.port.to_bytes(2, "big") + flow.destination.port.to_bytes(2, "big")


# Of 16-bit words, the one's complement sum is the whole number modulo 65535: 0 for what a right checksum covers.


def _residual(*parts: bytes) -> int:
    return sum(int.from_bytes(part + bytes(len(part) % 2), "big") for part in parts) % 0xFFFF


def _header_residual(p: Packet, frame: bytes) -> int:
    return _residual(frame[p.ip : p.transport])


def _transport_residual(p: Packet, frame: bytes) -> int | str:
    return _segment_residual(frame, p.flow.protocol, p.ip, p.transport, p.end)


def _icmp_residual(p: Packet, frame: bytes) -> int:
    return _residual(frame[p.transport : p.end])


def _inner_header_residual(p: Packet, frame: bytes) -> int:
    return _residual(frame[p.inner : p.inner + (frame[p.inner] & 15) * 4])


def _embedded_residual(p: Packet, frame: bytes) -> int | str:
    """Over as much of the embedded segment as is there: what is missing is the same before and after."""
    protocol, transport = frame[p.inner + 9], p.inner + (frame[p.inner] & 15) * 4
    if protocol == ICMP:
        return _residual(frame[transport : p.end])
    return _segment_residual(frame, protocol, p.inner, transport, p.end)


def _segment_residual(frame: bytes, protocol: int, ip: int, transport: int, end: int) -> int | str:
    if protocol == UDP and words(frame, transport + 6) == 0:
        return "none"  # RFC 768: the sender computed none
    pseudo = frame[ip + 12 : ip + 20] + bytes((0, protocol)) + (end - transport).to_bytes(2, "big")
    return _residual(pseudo, frame[transport:end])


class Capture:
    """Where the packets of a capture of both directions arrive, and how: as the playback's documentation says.

    A packet from inside arrives at `lan`, any other at `wan`; one that answers what was translated is addressed to that.
    """

    def __init__(self, inside: Sequence[str] = PRIVATE) -> None:
        self._inside = [ip_network(prefix) for prefix in inside]
        self._replies: dict[Flow, Flow] = {}

    def arrive(self, p: Packet) -> tuple[str, Packet]:
        emitted = self._replies.get(p.flow)
        if emitted is not None:
            return WAN, p.addressed(emitted.reversed())
        number = int.from_bytes(socket.inet_aton(p.source), "big")
        inside = any(
            number >> 32 - net.prefixlen == int(net.network_address) >> 32 - net.prefixlen for net in self._inside
        )
        return (LAN if inside else WAN), p

    def emitted(self, came: Packet, flow: Flow) -> None:
        if not came.inner:
            self._replies[came.flow.reversed()] = flow


@dataclass(eq=False)
class Binding:
    """`outside` is unknown until a packet has left; `connections` hold it."""

    protocol: int
    inside: Endpoint
    outside: Endpoint | None = None
    connections: list[Connection] = field(default_factory=list)


@dataclass(eq=False)
class Connection:
    """A flow in both directions: at each (port, flow) it has, the mappings that say what becomes of its packets."""

    flow: Flow
    port: str
    source: Binding | None
    target: Binding | None
    seen_s: float = 0.0
    syn: int = 0
    fin: int = 0

    def translated(self) -> tuple[str, Flow] | None:
        """Where the opener's packets leave, and as what; None while the external endpoint is unknown."""
        source, destination = self.flow.source, self.flow.destination
        if self.source is not None:
            if self.source.outside is None:
                return None
            source = self.source.outside
            if self.flow.protocol == ICMP:
                destination = Endpoint(destination.address, source.port)
        if self.target is not None:
            destination = self.target.inside
        return (LAN if self.target else WAN), Flow(self.flow.protocol, source, destination)

    def follow(self, flags: int, side: int) -> None:
        """RFC 5382, section 5: opening, established, closing."""
        if flags & RST:
            self.fin = 3
        elif flags & SYN and self.fin == 3:
            self.syn, self.fin = side, 0
        elif flags & SYN:
            self.syn |= side
        elif flags & FIN:
            self.fin |= side

    def idle_s(self) -> float:
        if self.flow.protocol == TCP:
            return 7440.0 if self.syn == 3 and self.fin != 3 else 240.0
        return 300.0 if self.flow.protocol == UDP else 60.0


class Model:
    """A NAT with these external addresses and ports. Every complaint is raised as an AssertionError by `check`."""

    def __init__(
        self,
        addresses: Sequence[str] = ("203.0.113.1",),
        first: int = 1,
        last: int = 65535,
        filtering: str = "endpoint-independent",
        capture: Capture | None = None,
    ) -> None:
        self.addresses, self.first, self.last, self.filtering, self.capture = addresses, first, last, filtering, capture
        self.drops: Counter[str] = Counter()
        self.received = self.forwarded = 0
        self.now_s = 0.0
        self._bindings: dict[tuple[int, Endpoint], Binding] = {}
        self._outside: dict[tuple[int, Endpoint], Binding] = {}
        self._hosts: dict[str, list[Binding]] = defaultdict(list)
        self._at: dict[tuple[str, Flow], Connection] = {}
        self._left: dict[str, dict[Flow, deque[tuple[int, bytes]]]] = {LAN: {}, WAN: {}}
        self._to: dict[tuple[int, str, int], dict[Flow, None]] = defaultdict(dict)

    def check(self, inputs: Iterable[tuple[int, str | None, bytes]], outputs: Mapping[str, Iterable[bytes]]) -> None:
        """`inputs` (time in ns, port, frame) in order of arrival; a `capture` decides the port. `outputs` by port.

        Called again with what came after, the fewer at once the less is left open.
        """
        self._index(outputs)
        for time_ns, port, frame in inputs:
            self.now_s = max(self.now_s, time_ns / 1e9)
            self.received += 1
            try:
                self._receive(port, frame)
            except AssertionError as error:
                raise AssertionError(f"input {self.received} at {port}: {error}: {frame.hex()}") from None
        for port, flows in self._left.items():
            for flow, frames in flows.items():
                assert not frames, f"{len(frames)} packets left by {port} that nothing explains: {flow}"
            flows.clear()
        self._to.clear()

    def rest(self) -> None:
        """The NAT had all the time it needs for its timers since the last packet."""
        for connection in set(self._at.values()):
            if self.now_s - connection.seen_s >= connection.idle_s() + TIMER_S:
                self._end(connection)

    def compare(self, counters: Mapping[str, int]) -> None:
        """The NAT's counters with what came in, left and was dropped."""
        counted = Counter({name: counters[name] for name in counters if name in DROPS and counters[name]})
        counted["damaged"] = counted.pop("malformed", 0) + counted.pop("truncated", 0)
        assert +counted == +self.drops, f"the NAT counts drops {+counted}, the model {+self.drops}"
        assert counters["tx_packets"] == self.forwarded
        assert counters["rx_packets"] == self.received == self.forwarded + self.drops.total()

    def _index(self, outputs: Mapping[str, Iterable[bytes]]) -> None:
        order = 0
        for port, frames in outputs.items():
            for frame in frames:
                p = dissect(frame)
                assert isinstance(p, Packet), f"what left by {port} is {p}: {frame.hex()}"
                assert p.ttl > 0
                self._left[port].setdefault(p.flow, deque()).append((order, frame))
                self._to[_remote(p.flow)][p.flow] = None
                order += 1

    def _receive(self, port: str | None, frame: bytes) -> None:
        p = dissect(frame)
        if isinstance(p, str):
            self.drops[p] += 1
            return
        if self.capture is not None:
            port, p = self.capture.arrive(p)
        assert port is not None
        connection = self._at.get((port, p.flow))
        if connection is not None and not self._is_alive(connection) and not self._goes_on(connection, p):
            self._end(connection)
            connection = None
        if p.inner:
            if connection is None:
                self.drops["icmp_error_unmatched"] += 1
            else:
                self._translate(connection, p)
            return
        if connection is None:
            connection = self._open(port, p)
            if connection is None:
                return
        connection.seen_s = self.now_s
        if p.flow.protocol == TCP:
            connection.follow(p.tcp_flags, 1 if p.flow == connection.flow else 2)
        self._translate(connection, p)

    def _open(self, port: str, p: Packet) -> Connection | None:
        flow = p.flow
        if flow.protocol == TCP and port == WAN and not p.tcp_flags & SYN:
            self.drops["dropped_by_nf"] += 1
            return None
        source = target = None
        if port == WAN or flow.destination.address in self.addresses:
            target = self._outside.get((flow.protocol, flow.destination)) if flow.protocol != ICMP else None
            came = Connection(flow, port, None, target)
            if target is None or not (
                self._lets_in(came, True) or (self._lets_in(came, False) and self._left_as(came, p))
            ):
                self.drops["dropped_by_nf"] += 1
                return None
        if port == LAN:
            source = self._bindings.get((flow.protocol, flow.source))
            if (
                source is not None
                and not self._holds(source)
                and not self._left_as(Connection(flow, port, source, target), p)
            ):
                self._forget(source)
                source = None
            if source is None:
                source = Binding(flow.protocol, flow.source)
                if self._is_exhausted(flow.protocol) and not self._candidate(Connection(flow, port, source, target), p):
                    self.drops["rejected_by_nf"] += 1
                    return None
                self._bindings[flow.protocol, flow.source] = source
                self._hosts[flow.source.address].append(source)
        connection = Connection(flow, port, source, target)
        if flow.protocol == TCP and not p.tcp_flags & SYN:
            connection.syn = 3
        for binding in (source, target):
            if binding is not None:
                binding.connections.append(connection)
        self._at[port, flow] = connection
        self._bind(connection)
        return connection

    def _bind(self, connection: Connection) -> None:
        became = connection.translated()
        if became is not None:
            out, flow = became
            other = self._at.get((out, flow.reversed()))
            if other is not None and other is not connection and not self._is_alive(other):
                self._end(other)
            other = self._at.setdefault((out, flow.reversed()), connection)
            assert other is connection, f"{connection.flow} and {other.flow} are both answered by {flow.reversed()}"

    def _translate(self, connection: Connection, p: Packet) -> None:
        if p.ttl <= 1:
            self.drops["ttl_expired"] += 1
            return
        opener = p.flow == connection.flow
        if connection.translated() is None:
            self._learn(connection, p)
        became = connection.translated()
        assert became is not None
        out, flow = became if opener else (connection.port, connection.flow.reversed())
        frames = self._left[out].get(flow)
        assert frames, f"no packet of {flow} left by {out} for it"
        _, after = frames.popleft()
        wrong = differences(p.addressed(flow), after)
        assert not wrong, f"as {flow} by {out}: {wrong}: {after.hex()}"
        self.forwarded += 1
        if self.capture is not None and out == WAN and opener:
            self.capture.emitted(p, flow)

    def _learn(self, connection: Connection, p: Packet) -> None:
        """The first packet of a binding that has left shows the external endpoint."""
        binding = connection.source
        assert binding is not None
        outside = self._candidate(connection, p)
        assert outside, f"no packet of {connection.flow} left from an external endpoint that is free"
        before = self._outside.get((binding.protocol, outside))
        if before is not None:
            self._forget(before)
        self._check_choice(binding, outside)
        binding.outside = outside
        self._outside[binding.protocol, outside] = binding
        for held in binding.connections:
            self._bind(held)

    def _candidate(self, connection: Connection, p: Packet) -> Endpoint | None:
        """The external endpoint of the first output that may be this packet of a binding of which it is unknown."""
        flow, best, found = connection.flow, 1 << 60, None
        destination = connection.target.inside if connection.target else flow.destination
        for left in self._to[_remote(Flow(flow.protocol, flow.source, destination))]:
            frames = self._left[LAN if connection.target else WAN].get(left)
            if not frames or frames[0][0] > best or left.source.address not in self.addresses:
                continue
            holder = self._outside.get((flow.protocol, left.source))
            if not (holder and self._holds(holder)) and not differences(p.addressed(left), frames[0][1]):
                best, found = frames[0][0], left.source
        return found

    def _check_choice(self, binding: Binding, outside: Endpoint) -> None:
        protocol, inside = binding.protocol, binding.inside
        assert self.first <= outside.port <= self.last
        for other in self._hosts[inside.address]:
            if other.outside is not None and self._holds(other):
                assert outside.address == other.outside.address, f"{inside.address} has two external addresses (UDP-2)"
        if len(self._outside) < len(self._bindings) - 1:
            return  # one whose external endpoint is unknown may hold what is preferred
        own = Endpoint(outside.address, inside.port)
        if self.first <= inside.port <= self.last and (protocol, own) not in self._outside:
            assert outside == own, f"the port {inside.port} was free, {outside.port} was taken (UDP-3)"
        if self.first == 1 and self.last == 65535 and len(self._bindings) < 200:
            assert (outside.port < 1024) == (inside.port < 1024), f"{inside.port} became {outside.port} (UDP-3a)"
            assert outside.port % 2 == inside.port % 2, f"{inside.port} became {outside.port} (UDP-4)"

    def _lets_in(self, came: Connection, surely: bool) -> bool:
        """Whether it may come to its target's binding; `surely`, by flows that cannot have been closed yet."""
        assert came.target is not None
        holding = [one for one in came.target.connections if not surely or self._is_alive(one)]
        if came.port == LAN or self.filtering == "endpoint-independent":
            return bool(holding)
        remote = came.flow.source.address
        return self.filtering == "address-dependent" and any(
            one.source is came.target and one.flow.destination.address == remote for one in holding
        )

    def _is_exhausted(self, protocol: int) -> bool:
        """Whether some external address may have no free port."""
        if len(self._bindings) <= self.last - self.first:
            return False
        held = Counter(key[1].address for key in self._outside if key[0] == protocol)
        return max(held.values(), default=0) > self.last - self.first

    def _holds(self, binding: Binding) -> bool:
        return any(self._is_alive(connection) for connection in binding.connections)

    def _is_alive(self, connection: Connection) -> bool:
        return self.now_s - connection.seen_s < connection.idle_s()

    def _goes_on(self, connection: Connection, p: Packet) -> bool:
        """Whether the NAT had not yet closed a flow that was idle for long enough: its next packet left as before."""
        return connection.translated() is None or self._left_as(connection, p)

    def _left_as(self, connection: Connection, p: Packet) -> bool:
        became = connection.translated()
        if became is None:
            return False
        out, flow = became if p.flow == connection.flow else (connection.port, connection.flow.reversed())
        frames = self._left[out].get(flow)
        return frames is not None and len(frames) > 0 and not differences(p.addressed(flow), frames[0][1])

    def _end(self, connection: Connection) -> None:
        del self._at[connection.port, connection.flow]
        became = connection.translated()
        if became is not None:
            self._at.pop((became[0], became[1].reversed()), None)  # an endpoint that speaks to itself has one key
        for binding in (connection.source, connection.target):
            if binding is not None:
                binding.connections.remove(connection)
                if not binding.connections:
                    del self._bindings[binding.protocol, binding.inside]
                    self._hosts[binding.inside.address].remove(binding)
                    if binding.outside is not None:
                        del self._outside[binding.protocol, binding.outside]

    def _forget(self, binding: Binding) -> None:
        while binding.connections:
            self._end(binding.connections[0])


def _remote(flow: Flow) -> tuple[int, str, int]:
    """What of a flow's destination no source NAT changes."""
    return flow.protocol, flow.destination.address, 0 if flow.protocol == ICMP else flow.destination.port


DROPS = {
    "malformed", "truncated", "not_ip", "fragment", "untracked", "other_host", "icmp_error_unmatched", "dropped_by_nf",
    "fragment_overlap", "fragment_expired", "fragment_evicted", "rejected_by_nf", "dropped_by_offload", "ttl_expired",
    "flow_table_full", "mailbox_full", "held_full", "held_fenced", "handler_error", "no_route", "neighbor_full",
    "neighbor_unresolved", "handoff_full", "handoff_stale", "tx_failed",
}  # fmt: skip
