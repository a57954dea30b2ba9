"""Source NAT: hosts on `lan` share external addresses on `wan` (RFC 4787 for UDP, 5382 for TCP, 5508 for ICMP).

Mapping is endpoint-independent: all flows of one inside endpoint leave from one external endpoint, whose port is the
inside one where it is free. Filtering is endpoint-independent too, or address-and-port-dependent if so set. Who is
inside may reach an inside host by its external endpoint (hairpinning). The mappings are one owner's state; translating
is offloaded from a flow's first packet on, and only TCP's SYN, FIN and RST come back to the actor.

Left out: IPv6, protocols without ports, application gateways, fragments (dropped as `fragment`).
"""

from __future__ import annotations

from actornet import DROP, OFFLOADED, REJECT, FiveTuple, FlowActor, Owner, Packet, Rewrite, Struct, Verdict, setting

ICMP, TCP, UDP = 1, 6, 17
FIN, SYN, RST = 1, 2, 4

UDP_IDLE_S = 300.0  # RFC 4787 REQ-5: not below 2 minutes, 5 recommended
TCP_ESTABLISHED_IDLE_S = 7440.0  # RFC 5382 REQ-5: not below 2 hours 4 minutes
TCP_TRANSITORY_IDLE_S = 240.0  # RFC 5382 REQ-5: not below 4 minutes
ICMP_IDLE_S = 60.0  # RFC 5508 REQ-1: not below 60 seconds

RANDOM_TRIES = 8


class Endpoint(Struct, frozen=True, array_like=True):
    """Protocol, address and port (for ICMP echo: the identifier)."""

    protocol: int
    address: str
    port: int


class Mapping(Struct):
    """An inside endpoint's external one, and how many flows use it."""

    inside: Endpoint
    outside: Endpoint
    flows: int


class Mappings(Struct):
    """All mappings, by inside and by external endpoint; `paired` keeps a host on one external address."""

    addresses: list[str]
    first: int
    last: int
    by_inside: dict[Endpoint, Mapping] = {}
    by_outside: dict[Endpoint, Endpoint] = {}
    paired: dict[str, str] = {}
    exhausted: int = 0


class PortPool(Owner[Mappings]):
    """The external endpoints of one NAT."""

    def start(self, address: str, first: int, last: int) -> Mappings:
        addresses = [part.strip() for part in address.split(",") if part.strip()]
        if not addresses or not 0 < first <= last <= 65535:
            raise ValueError("a NAT needs an address, and ports with 0 < first <= last <= 65535")
        return Mappings(addresses, first, last)

    def acquire(self, inside: Endpoint) -> Endpoint | None:
        """The external endpoint for one more flow of `inside`; None when no port is free."""
        mapping = self.state.by_inside.get(inside)
        if mapping is None:
            outside = self._free_endpoint(inside)
            if outside is None:
                self.state.exhausted += 1
                return None
            mapping = self.state.by_inside[inside] = Mapping(inside, outside, 0)
            self.state.by_outside[outside] = inside
        mapping.flows += 1
        return mapping.outside

    def accept(self, outside: Endpoint) -> Endpoint | None:
        """The inside endpoint for one more flow that comes to `outside`; None when nothing is mapped there."""
        inside = self.state.by_outside.get(outside)
        if inside is not None:
            self.state.by_inside[inside].flows += 1
        return inside

    def release(self, inside: Endpoint) -> None:
        """A flow of `inside` has ended; the mapping goes with its last."""
        mapping = self.state.by_inside[inside]
        mapping.flows -= 1
        if mapping.flows == 0:
            del self.state.by_inside[inside]
            del self.state.by_outside[mapping.outside]

    def _free_endpoint(self, inside: Endpoint) -> Endpoint | None:
        """On the host's own external address (RFC 4787 REQ-2): its port if free, else a random one, else the next free."""
        address = self.state.paired.get(inside.address)
        if address is None:
            address = self.state.addresses[len(self.state.paired) % len(self.state.addresses)]
            self.state.paired[inside.address] = address
        first, last = self.state.first, self.state.last
        port = inside.port
        for _ in range(RANDOM_TRIES):
            outside = Endpoint(inside.protocol, address, port)
            if first <= port <= last and outside not in self.state.by_outside:
                return outside
            port = self.random.randint(first, last)
        for offset in range(last - first + 1):
            outside = Endpoint(inside.protocol, address, first + (port - first + offset) % (last - first + 1))
            if outside not in self.state.by_outside:
                return outside
        return None


class SourceNAT(FlowActor):
    """One connection through the NAT, in both directions."""

    address = setting("203.0.113.1", "external address, or several separated by commas")
    first_port = setting(1024, "first external port")
    last_port = setting(65535, "last external port")
    filtering = setting("endpoint-independent", "or address-and-port-dependent: only replies come in")
    pool = PortPool.named("wan-ports", address=address, first=first_port, last=last_port)

    source: Endpoint | None = None  # the inside endpoints of which this flow holds the mappings
    target: Endpoint | None = None  # only with hairpinning, and when the flow came from outside
    syn: int = 0  # bit 0: seen from the side that opened the flow, bit 1: from the other
    fin: int = 0

    async def on_open(self, packet: Packet) -> Verdict | None:
        flow = packet.flow
        if flow.protocol not in (TCP, UDP, ICMP) or packet.ip_version != 4:
            return DROP
        self.idle_s = {
            UDP: UDP_IDLE_S,
            ICMP: ICMP_IDLE_S,
            TCP: TCP_TRANSITORY_IDLE_S if packet.tcp_flags & SYN else TCP_ESTABLISHED_IDLE_S,
        }[flow.protocol]
        if packet.port == "lan" and flow.destination not in self._addresses():
            return await self._from_inside(flow)
        if flow.protocol == ICMP:
            return DROP  # an identifier names no inside endpoint: only the side that asked can be answered
        return await (self._hairpin(flow) if packet.port == "lan" else self._from_outside(flow))

    def on_packet(self, packet: Packet) -> Verdict:
        """TCP only: follow the connection's beginning and end (RFC 5382 section 5), then translate as offloaded."""
        side = 1 if packet.flow == self.flow else 2
        flags = packet.tcp_flags
        if flags & RST or (flags & FIN and self.fin | side == 3):
            self.fin = 3
            self.idle_s = TCP_TRANSITORY_IDLE_S
        elif flags & FIN:
            self.fin |= side
        elif flags & SYN and not self.syn & side:
            self.syn |= side
            if self.syn == 3:
                self.idle_s = TCP_ESTABLISHED_IDLE_S
        return OFFLOADED

    def on_close(self) -> None:
        for inside in (self.source, self.target):
            if inside is not None:
                self.pool.release(inside)

    async def _from_inside(self, flow: FiveTuple) -> Verdict | None:
        source = Endpoint(flow.protocol, flow.source, flow.source_port)
        outside = await self.pool.acquire(source)
        if outside is None:
            return REJECT
        self.source = source
        remote_port = outside.port if flow.protocol == ICMP else flow.destination_port
        self._translate(
            Rewrite("wan", source=outside.address, source_port=outside.port),
            FiveTuple(flow.protocol, flow.destination, remote_port, outside.address, outside.port),
            "wan",
            Rewrite("lan", destination=flow.source, destination_port=flow.source_port),
        )
        return None

    async def _from_outside(self, flow: FiveTuple) -> Verdict | None:
        if flow.destination not in self._addresses() or self.filtering != "endpoint-independent":
            return DROP
        target = await self.pool.accept(Endpoint(flow.protocol, flow.destination, flow.destination_port))
        if target is None:
            return DROP
        self.target = target
        self._translate(
            Rewrite("lan", destination=target.address, destination_port=target.port),
            FiveTuple(flow.protocol, target.address, target.port, flow.source, flow.source_port),
            "lan",
            Rewrite("wan", source=flow.destination, source_port=flow.destination_port),
        )
        return None

    async def _hairpin(self, flow: FiveTuple) -> Verdict | None:
        """RFC 4787 REQ-9: from inside to an external endpoint, seen there as coming from an external endpoint."""
        target = await self.pool.accept(Endpoint(flow.protocol, flow.destination, flow.destination_port))
        if target is None:
            return DROP
        source = Endpoint(flow.protocol, flow.source, flow.source_port)
        outside = await self.pool.acquire(source)
        if outside is None:
            self.pool.release(target)
            return REJECT
        self.source, self.target = source, target
        self._translate(
            Rewrite(
                "lan",
                source=outside.address,
                source_port=outside.port,
                destination=target.address,
                destination_port=target.port,
            ),
            FiveTuple(flow.protocol, target.address, target.port, outside.address, outside.port),
            "lan",
            Rewrite(
                "lan",
                source=flow.destination,
                source_port=flow.destination_port,
                destination=flow.source,
                destination_port=flow.source_port,
            ),
        )
        return None

    def _translate(self, out: Rewrite, reply: FiveTuple, reply_port: str, back: Rewrite) -> None:
        self.bind(reply, reply_port)
        self.offload(out)
        self.offload(back, reply, reply_port)

    def _addresses(self) -> list[str]:
        return [part.strip() for part in self.address.split(",")]
