"""Limits how many connections a network may open: so many at once, and so many a second from then on.

    actornet run examples/rate_limit.py:RateLimit --read examples/captures/skype.pcap --set burst=20 --set per_second=0.5

Connections share what is left of their network's allowance, so it belongs to an owner: an actor that alone reads and
writes one piece of state. Its messages are handled one after the other, and logged where there is a log
(`--log DIR`): a backup or a replay comes to the same decisions, the passing of time included.
"""

from ipaddress import ip_network

from actornet import DROP, FORWARD, FlowActor, Owner, Packet, Struct, Verdict, setting

NETWORKS_MAX = 100_000  # state has a bound: beyond it the network that came first starts anew


class Bucket(Struct):
    """What a network may still open, as of a time in seconds."""

    tokens: float
    time: float


class Buckets(Struct):
    """The owner's whole state is one typed struct; `actornet replay state` shows it."""

    burst: float
    per_second: float
    by_network: dict[str, Bucket] = {}


class Allowance(Owner[Buckets]):
    """A token bucket for each network."""

    def take(self, network: str) -> bool:
        """Whether one more connection may be opened. A public method is a message, its hints say what it carries."""
        state = self.state
        bucket = state.by_network.get(network)
        if bucket is None:
            if len(state.by_network) == NETWORKS_MAX:
                del state.by_network[next(iter(state.by_network))]
            bucket = state.by_network[network] = Bucket(state.burst, self.now)
        # self.now, not time.time(): it comes from the log, so that it is the same whenever this runs again.
        bucket.tokens = min(state.burst, bucket.tokens + (self.now - bucket.time) * state.per_second)
        bucket.time = self.now
        if bucket.tokens < 1:
            return False
        bucket.tokens -= 1
        return True


class RateLimit(FlowActor):
    """One connection."""

    burst = setting(100.0, "connections that a network may open at once", least=0)
    per_second = setting(10.0, "and so many more each second", least=0)
    allowance = Allowance.named("allowance", burst=burst, per_second=per_second)

    async def on_open(self, packet: Packet) -> Verdict | None:
        network = ip_network(f"{packet.source}/{24 if packet.ip_version == 4 else 48}", strict=False)
        if not await self.allowance.take(str(network)):  # this connection waits for the answer, others go on
            return DROP  # nothing of the connection stays, its next packet asks again
        self.bind(packet.flow.reversed())
        self.offload(FORWARD)  # the compiled core needs no Python for the rest of it
        self.offload(FORWARD, packet.flow.reversed())
        return None  # the first packet goes the way of the others

    def on_packet(self, packet: Packet) -> Verdict:
        return FORWARD  # TCP's SYN, FIN and RST come here even so
