"""Source NAT: hosts on `lan` share external addresses on `wan`.

What UDP-n, TCP-n and ICMP-n name here are the numbered requirements of RFC 4787, RFC 5382 and RFC 5508:

    UDP-1  TCP-1      endpoint-independent mapping: all flows of an inside endpoint leave from one external endpoint
    UDP-2             pooling is paired: all endpoints of a host have the same external address
    UDP-3  TCP-7      no two inside endpoints share an external one; the port is the inside one where that is free, and
                      otherwise at least of the same range, 1..1023 or 1024..65535
    UDP-4             and, if possible, of the same parity; on several `cores`, RSS comes before all but the first
    UDP-5  TCP-5  ICMP-2     time-outs
    UDP-6             packets in both directions keep a flow alive
    UDP-8  TCP-3      filtering is endpoint-independent, or stricter if so set
    UDP-9  TCP-8      hairpinning: who is inside may reach an inside host by its external endpoint
    UDP-14            fragments are put together first, whatever their order
    UDP-12 TCP-10 ICMP-6     ICMP errors neither end a flow nor keep it alive
    TCP-2             every way in which TCP opens and closes, a simultaneous open included
    TCP-4             a SYN that nobody asked for is not answered
    TCP-9  ICMP-4 ICMP-5 ICMP-7     ICMP errors are translated, the packet inside as well
    ICMP-1            queries (echo), with the identifier as the port
    ICMP-8            who cannot be served is told so: administratively prohibited

The mappings are the state of one owner. A flow is translated by the core from its first packet on; only TCP's SYN, FIN
and RST come back to its actor. Left out: IPv6, protocols without ports, application gateways (UDP-10, TCP-6), and a look at the
checksums of ICMP errors (ICMP-3): wrong ones stay wrong.
"""

from __future__ import annotations

from ipaddress import IPv4Address
from itertools import chain, islice, product
from zlib import crc32

from actornet import DROP, OFFLOADED, REJECT, FiveTuple, FlowActor, Owner, Packet, Rewrite, Struct, Verdict, setting

ICMP, TCP, UDP = 1, 6, 17
FIN, SYN, RST = 1, 2, 4
OPENER, OTHER, BOTH = 1, 2, 3  # sides of a connection

ENDPOINT_INDEPENDENT = "endpoint-independent"
ADDRESS_DEPENDENT = "address-dependent"
ADDRESS_AND_PORT_DEPENDENT = "address-and-port-dependent"
RSS_TABLE = 128
PORTS_TRIED = 2048
"""Where the cores are no power of two, answers must come to the same of so many parts; one port in as many does that."""

FILTERINGS = (ENDPOINT_INDEPENDENT, ADDRESS_DEPENDENT, ADDRESS_AND_PORT_DEPENDENT)


def addresses(text: str) -> list[str]:
    """The IPv4 addresses in a text with commas between them. Raises ValueError."""
    try:
        return [str(IPv4Address(part.strip())) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"{text!r} is no IPv4 address, nor several separated by commas") from None


class Endpoint(Struct, frozen=True, array_like=True, gc=False):
    """Protocol, address and port (for ICMP echo: the identifier)."""

    protocol: int
    address: str
    port: int


class Pool(Struct, frozen=True, array_like=True, gc=False):
    """The external ports of one protocol and address that are of one range (UDP-3a) and parity (UDP-4)."""

    protocol: int
    address: str
    low: bool
    odd: bool


class Mapping(Struct, frozen=True, gc=False):
    """Where the flows of an inside endpoint leave from, and how many there are."""

    outside: Endpoint
    flows: int = 1


class Mappings(Struct):
    """All mappings, each found from both its ends.

    `by_outside`: pool -> the ports of it that are in use -> inside endpoint. `remotes`, kept for address-dependent
    filtering alone: inside endpoint -> outside address -> how many flows go there.
    """

    addresses: list[str]
    first: int
    last: int
    by_inside: dict[Endpoint, Mapping] = {}
    by_outside: dict[Pool, dict[int, Endpoint]] = {}
    remotes: dict[Endpoint, dict[str, int]] = {}
    exhausted: int = 0
    cores: int = 1


class PortPool(Owner[Mappings]):
    """The external endpoints of one NAT."""

    def start(
        self, address: str, first: int, last: int, filtering: str = ENDPOINT_INDEPENDENT, cores: int = 1
    ) -> Mappings:
        if not 0 < first <= last <= 65535:
            raise ValueError("ports must be 0 < first <= last <= 65535")
        if filtering not in FILTERINGS:
            raise ValueError(f"filtering must be one of {', '.join(FILTERINGS)}")
        return Mappings(addresses(address), first, last, cores=cores)

    def acquire(self, inside: Endpoint) -> Endpoint | None:
        """The external endpoint for one more flow of `inside`; None when no port is free."""
        state = self.state
        mapping = state.by_inside.get(inside)
        if mapping is not None:
            state.by_inside[inside] = Mapping(mapping.outside, mapping.flows + 1)
            return mapping.outside
        outside = self._free_endpoint(inside)
        if outside is None:
            state.exhausted += 1
            return None
        state.by_inside[inside] = Mapping(outside)
        state.by_outside.setdefault(_pool(outside), {})[outside.port] = inside
        return outside

    def release(self, inside: Endpoint) -> None:
        """A flow of `inside` has ended; the mapping goes with its last."""
        mapping = self.state.by_inside[inside]
        if mapping.flows > 1:
            self.state.by_inside[inside] = Mapping(mapping.outside, mapping.flows - 1)
        else:
            pool = _pool(mapping.outside)
            del self.state.by_inside[inside]
            del self.state.by_outside[pool][mapping.outside.port]
            if not self.state.by_outside[pool]:
                del self.state.by_outside[pool]

    def accept(self, outside: Endpoint, remote: str) -> Endpoint | None:
        """The inside endpoint for one more flow that comes to `outside`; None when nothing is mapped there.

        `remote`, unless empty: the address that it comes from, to which flows of that inside endpoint must go already.
        """
        inside = self._inside(outside)
        if inside is None or (remote and remote not in self.state.remotes.get(inside, ())):
            return None
        mapping = self.state.by_inside[inside]
        self.state.by_inside[inside] = Mapping(mapping.outside, mapping.flows + 1)
        return inside

    def leave(self, outside: Endpoint) -> None:
        """A flow that came to `outside` has ended."""
        inside = self._inside(outside)
        assert inside is not None, "a mapping lives as long as its flows"
        self.release(inside)

    def permit(self, inside: Endpoint, remote: str, flows: int) -> None:
        """So many more flows (or fewer) of `inside` go to the address `remote`, which may answer from any port."""
        remotes = self.state.remotes.setdefault(inside, {})
        remotes[remote] = remotes.get(remote, 0) + flows
        if remotes[remote] == 0:
            del remotes[remote]
        if not remotes:
            del self.state.remotes[inside]

    def _inside(self, outside: Endpoint) -> Endpoint | None:
        return self.state.by_outside.get(_pool(outside), {}).get(outside.port)

    def _free_endpoint(self, inside: Endpoint) -> Endpoint | None:
        """On the external address that all of the host's endpoints have (UDP-2).

        The port is the host's own if it is free; else, of the best pool that is not used up, the first free one from a
        random one on (RFC 6056, algorithm 1). On several cores it is one whose answers come to the core of the flow, if
        such a one is found.
        """
        if self.state.cores > 1 and inside.protocol != ICMP:  # an identifier is not hashed
            found = self._free_endpoint_for_core(inside)
            if found is not None:
                return found
        state, address, port = self.state, self._address(inside), inside.port
        own = Endpoint(inside.protocol, address, port)
        best = _pool(own)
        if state.first <= port <= state.last and port not in state.by_outside.get(best, ()):
            return own
        for low, odd in product((best.low, not best.low), (best.odd, not best.odd)):
            used = state.by_outside.get(Pool(inside.protocol, address, low, odd), {})
            ports = self._ports(low, odd)
            if len(used) < len(ports):
                start = self.random.randrange(len(ports))
                port = next(port for port in chain(ports[start:], ports[:start]) if port not in used)
                return Endpoint(inside.protocol, address, port)
        return None

    def _free_endpoint_for_core(self, inside: Endpoint) -> Endpoint | None:
        """Packets go out as (inside, remote) and answers come back as (remote, outside). What a remote contributes to the
        hash is the same in both, so both come to one core, whichever the remote, if inside and outside together contribute
        nothing."""
        cores = self.state.cores if self.state.cores & (self.state.cores - 1) == 0 else RSS_TABLE
        address = self._address(inside)
        own = Endpoint(inside.protocol, address, inside.port)
        best = _pool(own)

        def fits(port: int) -> bool:
            return FiveTuple(inside.protocol, address, port, inside.address, inside.port).core(cores) == 0

        if self._inside(own) is None and self.state.first <= own.port <= self.state.last and fits(own.port):
            return own
        for low, odd in product((best.low, not best.low), (best.odd, not best.odd)):
            used = self.state.by_outside.get(Pool(inside.protocol, address, low, odd), {})
            ports = self._ports(low, odd)
            start = self.random.randrange(len(ports)) if ports else 0
            for port in islice(chain(ports[start:], ports[:start]), PORTS_TRIED):
                if port not in used and fits(port):
                    return Endpoint(inside.protocol, address, port)
        return None

    def _address(self, inside: Endpoint) -> str:
        addresses = self.state.addresses
        return addresses[crc32(inside.address.encode()) % len(addresses)] if len(addresses) > 1 else addresses[0]

    def _ports(self, low: bool, odd: bool) -> range:
        first, last = (1, 1023) if low else (1024, 65535)
        first, last = max(first, self.state.first), min(last, self.state.last)
        return range(first + (first % 2 != odd), last + 1, 2)


def _pool(outside: Endpoint) -> Pool:
    return Pool(outside.protocol, outside.address, outside.port < 1024, outside.port % 2 == 1)


class SourceNAT(FlowActor):
    """One connection through the NAT, in both directions."""

    discovery = DROP  # its ports answer for themselves: what is inside is not outside's affair
    address = setting("203.0.113.1", "external address, or several separated by commas", addresses)
    first_port = setting(1, "first external port", least=1, most=65535)
    last_port = setting(65535, "last external port", least=1, most=65535)
    filtering = setting(ENDPOINT_INDEPENDENT, "who may come in to a mapping; or address-[and-port-]dependent")
    cores = setting(1, "cores of the node: ports are chosen so that answers come to their flow's core", least=1)
    udp_idle_s = setting(300.0, "UDP-5: not below 2 minutes, 5 recommended", least=0.001, most=1e9)
    tcp_idle_s = setting(7440.0, "established TCP, TCP-5: not below 2 hours 4 minutes", least=0.001, most=1e9)
    tcp_transitory_idle_s = setting(240.0, "opening or closing TCP, TCP-5: not below 4 minutes", least=0.001, most=1e9)
    icmp_idle_s = setting(60.0, "ICMP-2: not below 60 seconds", least=0.001, most=1e9)
    pool = PortPool.named(
        "wan-ports", address=address, first=first_port, last=last_port, filtering=filtering, cores=cores
    )

    outbound: bool = False  # its source is mapped
    inbound: bool = False  # its destination is mapped; a hairpinned flow is both
    syn: int = 0  # the sides that have sent one
    fin: int = 0

    async def on_open(self, packet: Packet) -> Verdict | None:
        flow = packet.flow
        if packet.ip_version != 4:
            return DROP
        if flow.protocol == TCP and not packet.tcp_flags & SYN:
            if packet.port != "lan":
                return DROP
            self.syn = BOTH  # a connection that is older than the NAT, or was idle for too long, goes on
        self.idle_s = self._idle_time_s(flow.protocol)
        return await (self._from_inside(flow) if packet.port == "lan" else self._from_outside(flow))

    def on_packet(self, packet: Packet) -> Verdict:
        """SYN, FIN and RST alone: they tell in which phase the connection is (RFC 5382 section 5).

        The handshake's third packet is not seen: a SYN from both sides is taken for established. After an RST the
        connection lives on while there are packets, because anybody could have sent it.
        """
        side = OPENER if packet.flow == self.flow else OTHER
        flags, syn, fin = packet.tcp_flags, self.syn, self.fin
        if flags & RST:
            fin = BOTH
        elif flags & SYN:
            syn, fin = (side, 0) if fin == BOTH else (syn | side, fin)  # after BOTH, a new one with the same five-tuple
        elif flags & FIN:
            fin |= side
        if (syn, fin) != (self.syn, self.fin):
            self.syn, self.fin = syn, fin
            self.idle_s = self._idle_time_s(TCP)
        return OFFLOADED

    def on_close(self) -> None:
        flow = self.flow
        if self.outbound:
            source = Endpoint(flow.protocol, flow.source, flow.source_port)
            if self.filtering == ADDRESS_DEPENDENT:
                self.pool.permit(source, flow.destination, -1)
            self.pool.release(source)
        if self.inbound:
            self.pool.leave(Endpoint(flow.protocol, flow.destination, flow.destination_port))

    async def _from_inside(self, flow: FiveTuple) -> Verdict | None:
        source = Endpoint(flow.protocol, flow.source, flow.source_port)
        target: Endpoint | None = Endpoint(flow.protocol, flow.destination, flow.destination_port)
        port = "wan"
        if flow.destination in self.address and flow.destination in self.address.replace(" ", "").split(","):
            # hairpinning: filtering is for outside
            port = "lan"
            target = await self.pool.accept(target, "") if flow.protocol != ICMP else None
            self.inbound = target is not None
        if target is None:
            return DROP
        outside = await self.pool.acquire(source)
        if outside is None:
            self.on_close()
            return REJECT
        self.outbound = True
        if self.filtering == ADDRESS_DEPENDENT:
            self.pool.permit(source, flow.destination, 1)
        target_port = outside.port if flow.protocol == ICMP else target.port
        self._become(FiveTuple(flow.protocol, outside.address, outside.port, target.address, target_port), port)
        return None

    async def _from_outside(self, flow: FiveTuple) -> Verdict | None:
        if flow.protocol == ICMP or self.filtering == ADDRESS_AND_PORT_DEPENDENT:
            return DROP  # an identifier names no inside endpoint; replies belong to a flow, and open none
        remote = flow.source if self.filtering == ADDRESS_DEPENDENT else ""
        target = await self.pool.accept(Endpoint(flow.protocol, flow.destination, flow.destination_port), remote)
        if target is None:
            return DROP
        self.inbound = True
        self._become(FiveTuple(flow.protocol, flow.source, flow.source_port, target.address, target.port), "lan")
        return None

    def _become(self, translated: FiveTuple, port: str) -> None:
        """From here on this flow's packets leave by `port` as `translated`, and answers to that come back."""
        flow, reply = self.flow, translated.reversed()
        self._translate(_rewrite(flow, translated, port), reply, port, _rewrite(reply, flow.reversed(), self.port))

    def _translate(self, out: Rewrite, reply: FiveTuple, reply_port: str, back: Rewrite) -> None:
        self.bind(reply, reply_port)
        self.offload(out)
        self.offload(back, reply, reply_port)

    def _idle_time_s(self, protocol: int) -> float:
        if protocol == TCP:
            return self.tcp_idle_s if self.syn == BOTH != self.fin else self.tcp_transitory_idle_s
        return self.udp_idle_s if protocol == UDP else self.icmp_idle_s


def _rewrite(old: FiveTuple, new: FiveTuple, port: str) -> Rewrite:
    """Only what differs: in an ICMP error about a flow, an outer source that stays is the router's own (ICMP-4)."""
    return Rewrite(
        port,
        source=new.source if new.source != old.source else None,
        source_port=new.source_port if new.source_port != old.source_port else None,
        destination=new.destination if new.destination != old.destination else None,
        destination_port=new.destination_port if new.destination_port != old.destination_port else None,
    )
