"""A layer 4 load balancer: connections to one address and port are spread over backends.

The backend of a connection is looked up by the hash of its five-tuple (or, if `sticky`, of the client's address) in a table
that is filled as Maglev does (Eisenbud et al., NSDI 2016, section 3.4): each backend has a permutation of the table's
entries, and in turns, the heavier the more often, each takes the next of its own that is free. So shares are even, and
a backend that comes or goes changes little besides its own entries. Weights are turns left out: a backend of a third of the
heaviest one's weight takes every third.

Whoever has a backend keeps it: the flow's record says which one, so neither a change of the set nor a takeover breaks a
connection, and the table decides only about those that no record knows. The set is the state of one owner, which counts
connections. `change` replaces it, `weigh` gives one backend another weight: with 0 it gets no new connections and can be
taken away when its last one has ended.

Whether a backend is well is seen from the connections themselves (outlier detection): one that refuses some in a row, or
leaves them unanswered, is ejected, and gets no new ones for a while that is longer each time, until it answers one. A
client that repeats its SYN without an answer is given another backend. If all are ejected, all get connections: so whoever
sends SYNs that no backend can answer, with a wrong checksum for instance, makes shares uneven, but takes nothing down.

Destinations are translated on the way to the backend and sources on the way back, both by the core. TCP's SYN, FIN and
RST come to the connection's actor, and the client's first ACK: until then its time-out is short and its place in a full table
the first to go, so forged SYNs cost little. Packets to other destinations are dropped unless `pass_others`, and then those of
a backend's service all the same, if no connection is known that they belong to. The backend must send its answers this way.
"""

from __future__ import annotations

from functools import lru_cache
from hashlib import blake2b
from ipaddress import ip_address

from actornet import (
    DROP,
    FORWARD,
    OFFLOADED,
    REJECT,
    Direction,
    FiveTuple,
    FlowActor,
    Owner,
    Packet,
    Rewrite,
    Struct,
    Verdict,
    setting,
)

TCP, UDP = 6, 17
FIN, SYN, RST, ACK = 1, 2, 4, 16
CLIENT, BACKEND, BOTH = 1, 2, 3  # sides of a connection
TABLE_SIZE_MAX = 20_011
"""The table is filled while the owner's other messages wait, in about a microsecond per entry."""
WEIGHT_MAX = 1000
BACKENDS_MAX = 250
RETRY_S = 0.5
"""A SYN that comes again after so long was not answered; RFC 6298 section 2.1: clients wait for a second."""
TRIES_MAX = 4
"""Backends that a connection is given, one after the other, until one answers."""
EJECTIONS_MAX = 10


@lru_cache(1024)
def endpoint(text: str) -> tuple[str, int]:
    """Address and port of `203.0.113.10:80` or `[2001:db8::1]:80`. Raises ValueError that quotes it."""
    address, colon, port = text.rpartition(":")
    try:
        if not colon or not 0 < int(port) <= 65535:
            raise ValueError
        return str(ip_address(address.strip("[]"))), int(port)
    except ValueError:
        raise ValueError(f"{text!r} is no ADDRESS:PORT") from None


@lru_cache(8)
def lookup_table(weights: tuple[tuple[str, int], ...], size: int) -> tuple[int, ...]:
    """For each entry the place of a backend in `weights`, pairs of name and weight; empty if all weights are 0."""
    heaviest = max((weight for _, weight in weights), default=0)
    if not heaviest:
        return ()
    entries, free = [-1] * size, size
    at, skips = [], []
    for name, _ in weights:
        digest = blake2b(name.encode(), digest_size=16).digest()
        at.append(int.from_bytes(digest[:8], "big") % size)
        skips.append(int.from_bytes(digest[8:], "big") % (size - 1) + 1)
    turns = [0] * len(weights)
    while True:
        for i, (_, weight) in enumerate(weights):
            turns[i] += weight
            if turns[i] < heaviest:
                continue
            turns[i] -= heaviest
            place, skip = at[i], skips[i]
            while entries[place] >= 0:
                place = (place + skip) % size
            entries[place], at[i] = i, (place + skip) % size
            free -= 1
            if not free:
                return tuple(entries)


class Backend(Struct):
    """A backend's endpoint, its weight, and its connections: open ones, and all so far.

    `leaving`: it is not listed any more, and goes with its last connection. `failures` and `ejections` are those in a row.
    """

    name: str
    weight: int
    open: int = 0
    total: int = 0
    leaving: bool = False
    failures: int = 0
    ejections: int = 0
    ejected_until_s: float = 0.0


class Pool(Struct):
    """The backends by name in alphabetical order, so that the order in which they are listed does not count."""

    size: int
    sticky: bool
    failures_max: int
    ejected_s: float
    backends: dict[str, Backend]


class Balancer(Owner[Pool]):
    """Knows the backends, and chooses one for each connection."""

    def start(
        self, service: str, backends: list[str], size: int, sticky: bool, failures_max: int, ejected_s: float
    ) -> Pool:
        endpoint(service)
        if size > TABLE_SIZE_MAX or size < 3 or any(size % n == 0 for n in range(2, int(size**0.5) + 1)):
            raise ValueError(f"the table's size must be a prime from 3 to {TABLE_SIZE_MAX}, not {size}")
        if failures_max < 0 or not 0 < ejected_s < 1e6:
            raise ValueError("failures_max must be 0 or more, and ejected_s positive seconds")
        return Pool(size, sticky, failures_max, ejected_s, self._listed(backends))

    def choose(self, flow: FiveTuple) -> tuple[str, bool]:
        """The backend for a connection of this five-tuple, empty when there is none; whether to tell if it `answered`."""
        return self._chosen(flow, "")

    def another(self, flow: FiveTuple, name: str) -> tuple[str, bool]:
        """A backend did not answer; as `choose`, another one if there is one."""
        self.failed(name)
        chosen, suspect = self._chosen(flow, name)
        if not chosen:
            return name, True
        self.release(name)
        return chosen, suspect

    def answered(self, name: str) -> None:
        """A backend has taken a connection: it is well."""
        if (backend := self.state.backends.get(name)) is not None:
            backend.failures = backend.ejections = 0
            backend.ejected_until_s = 0.0

    def failed(self, name: str) -> None:
        """A backend has refused a connection, or left it unanswered."""
        backend, now = self.state.backends.get(name), self.now
        if backend is None:
            return
        backend.failures += 1
        if 0 < self.state.failures_max <= backend.failures and backend.ejected_until_s <= now:
            backend.ejections = min(backend.ejections + 1, EJECTIONS_MAX)
            backend.ejected_until_s = now + self.state.ejected_s * backend.ejections

    def release(self, name: str) -> None:
        """A connection has ended."""
        backend = self.state.backends[name]
        backend.open -= 1
        if backend.leaving and not backend.open:
            del self.state.backends[name]

    def _chosen(self, flow: FiveTuple, instead_of: str) -> tuple[str, bool]:
        by_name, now = self.state.backends, self.now
        names = list(by_name)
        listed = tuple((name, by_name[name].weight) for name in names)
        well = tuple((n, 0 if n == instead_of or by_name[n].ejected_until_s > now else w) for n, w in listed)
        table = lookup_table(well, self.state.size) or lookup_table(listed, self.state.size)
        if not table:
            return "", False
        client = f"{flow.protocol} {flow.source} {flow.source_port} {flow.destination} {flow.destination_port}"
        digest = blake2b((flow.source if self.state.sticky else client).encode(), digest_size=8).digest()
        chosen = by_name[names[table[int.from_bytes(digest, "big") % len(table)]]]
        chosen.open += 1
        chosen.total += 1
        return chosen.name, chosen.failures > 0

    def change(self, backends: list[str]) -> None:
        """Other backends from here on, `ADDRESS:PORT` or `ADDRESS:PORT=WEIGHT`; those that are open stay where they are.

        A backend that is not listed any more is forgotten when its last connection has ended.
        """
        listed, known = self._listed(backends), self.state.backends
        for name, backend in known.items():
            if name in listed:
                backend.weight, backend.leaving = listed[name].weight, False
                listed[name] = backend
            elif backend.open:
                listed[name] = Backend(name, 0, backend.open, backend.total, leaving=True)
        self.state.backends = dict(sorted(listed.items()))

    def weigh(self, name: str, weight: int) -> None:
        """Give a backend another weight; 0: no new connections."""
        address, port = endpoint(name)
        known = self.state.backends.get(_name(address, port))
        if known is None or known.leaving or not 0 <= weight <= WEIGHT_MAX:
            raise ValueError(f"{name} must be a backend, and its weight 0..{WEIGHT_MAX}")
        known.weight = weight

    def serves(self, name: str) -> bool:
        """Whether this endpoint is a backend."""
        return name in self.state.backends

    def _listed(self, backends: list[str]) -> dict[str, Backend]:
        found = {}
        for text in backends:
            where, equals, weight = text.partition("=")
            if equals and (not weight.isdigit() or int(weight) > WEIGHT_MAX):
                raise ValueError(f"backend {text!r}: a weight is 0..{WEIGHT_MAX}")
            name = _name(*endpoint(where))
            found[name] = Backend(name, int(weight) if equals else 1)
        if len(found) > BACKENDS_MAX:
            raise ValueError(f"{len(found)} backends are more than {BACKENDS_MAX}")
        return dict(sorted(found.items()))


def _name(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


class LoadBalancer(FlowActor):
    """One connection, from its client to its backend and back."""

    evict = True
    service = setting("203.0.113.10:80", "what clients connect to")
    backends = setting(["10.0.0.2:80", "10.0.0.3:80"], "ADDRESS:PORT, or ADDRESS:PORT=WEIGHT; 1 without, 0: drained")
    table_size = setting(5003, "entries of the lookup table: a prime, a hundred times the backends or more")
    sticky = setting(False, "one backend for all connections of a client, while it has the weight for it")
    pass_others = setting(False, "packets to other destinations pass unchanged")
    udp_idle_s = setting(120.0, "UDP", least=0.001, most=1e9)
    tcp_idle_s = setting(7440.0, "established TCP, RFC 5382 REQ-5: not below 2 hours 4 minutes", least=0.001, most=1e9)
    tcp_transitory_idle_s = setting(60.0, "opening or closing TCP", least=0.001, most=1e9)
    failures_max = setting(
        3, "TCP connections in a row that a backend fails until it gets no new ones; 0: it gets them"
    )
    ejected_s = setting(10.0, "for how long; so much longer each time, until it answers")
    balancer = Balancer.named(
        "balancer",
        service=service,
        backends=backends,
        size=table_size,
        sticky=sticky,
        failures_max=failures_max,
        ejected_s=ejected_s,
    )

    backend: str = ""
    tries: int = 0  # backends that were asked to take the connection
    tried_s: float = 0.0
    suspect: bool = False  # the last connections to the backend have failed
    answered: bool = False  # the backend has taken the connection, or refused it
    fin: int = 0  # the sides that have sent one
    acked: bool = False  # the client has answered the backend: it is no sender of forged SYNs

    async def on_open(self, packet: Packet) -> Verdict | None:
        flow, flags = packet.flow, packet.tcp_flags
        address, port = endpoint(self.service)
        if (flow.destination, flow.destination_port) != (address, port) or flow.protocol not in (TCP, UDP):
            return await self._other(flow)
        if flags & (FIN | RST) or (flags & SYN and flags & ACK):
            return DROP
        chosen, self.suspect = await self.balancer.choose(flow)
        if not chosen:
            return REJECT
        self.acked = flow.protocol == UDP or not flags & SYN  # a connection that is older than the balancer goes on
        self._give_to(chosen, packet)
        return self._there()

    async def on_packet(self, packet: Packet) -> Verdict:
        """SYN, FIN and RST, and what the client sends until it has answered the backend."""
        flags, client = packet.tcp_flags, packet.direction is Direction.ORIGINAL
        if not self.backend:
            return FORWARD
        if not client and packet.flow != self._answer():
            return DROP  # of a backend that was too late
        if not self.acked and not self.answered:
            await self._try(packet, flags, client)
        fin, acked = self.fin, self.acked
        if flags & RST:
            fin = BOTH  # or so somebody says: it lives on while there are packets
        elif flags & SYN and not flags & ACK and client and fin == BOTH:
            fin, acked = 0, False  # a new connection with the same five-tuple
            self.answered, self.tries, self.tried_s = False, 1, packet.time
        elif flags & FIN:
            fin |= CLIENT if client else BACKEND
        acked = acked or (client and flags & (ACK | SYN) == ACK)
        if (fin, acked) != (self.fin, self.acked):
            self.fin, self.acked = fin, acked
            self._pass_on()
        return self._there() if client and not acked else OFFLOADED

    def on_close(self) -> None:
        if self.backend:
            self.balancer.release(self.backend)

    async def _try(self, packet: Packet, flags: int, client: bool) -> None:
        """The connection is not answered yet: is it by this packet, or should another backend be asked?"""
        if not client and flags & (SYN | RST):
            self.answered = True
            if flags & RST:
                self.balancer.failed(self.backend)
            elif self.suspect:
                self.balancer.answered(self.backend)
            return
        again = client and flags & (SYN | ACK | RST) == SYN and packet.time - self.tried_s >= RETRY_S
        if again and self.tries < TRIES_MAX and self.fin != BOTH:
            chosen, self.suspect = await self.balancer.another(self.flow, self.backend)
            self._give_to(chosen, packet)

    def _give_to(self, backend: str, packet: Packet) -> None:
        self.backend, self.tries, self.tried_s = backend, self.tries + 1, packet.time
        self.bind(self._answer())
        self._pass_on()

    async def _other(self, flow: FiveTuple) -> Verdict:
        if not self.pass_others or await self.balancer.serves(_name(flow.source, flow.source_port)):
            return DROP
        self.bind(flow.reversed())
        self.offload(FORWARD)
        self.offload(FORWARD, flow.reversed())
        return FORWARD

    def _there(self) -> Rewrite:
        to, port = endpoint(self.backend)
        return Rewrite(destination=to, destination_port=port)

    def _answer(self) -> FiveTuple:
        to, port = endpoint(self.backend)
        return FiveTuple(self.flow.protocol, to, port, self.flow.source, self.flow.source_port)

    def _pass_on(self) -> None:
        """Let the core carry the connection on in its present state."""
        if self.flow.protocol == UDP:
            self.idle_s = self.udp_idle_s
        else:
            self.idle_s = self.tcp_idle_s if self.acked and self.fin != BOTH else self.tcp_transitory_idle_s
        address, port = endpoint(self.service)
        self.withdraw()
        self.offload(Rewrite(source=address, source_port=port), self._answer())
        if self.acked:
            self.offload(self._there())
