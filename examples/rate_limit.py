"""Let each inside host open no more than so many connections per second: one token bucket per host, shared by its flows.

    actornet run examples/rate_limit.py:RateLimit --read examples/captures/skype.pcap --set per_second=2
"""

from __future__ import annotations

from actornet import DROP, FORWARD, FlowActor, Owner, Packet, Struct, Verdict, setting


class Bucket(Struct):
    tokens: float
    filled_at: float


class Buckets(Struct):
    per_second: float
    burst: float
    hosts: dict[str, Bucket] = {}


class Limiter(Owner[Buckets]):
    """The buckets. Time comes from the log, so the backup and a replay decide the same."""

    def start(self, per_second: float, burst: float) -> Buckets:
        return Buckets(per_second, burst)

    def take(self, host: str) -> bool:
        bucket = self.state.hosts.setdefault(host, Bucket(self.state.burst, self.now))
        waited = max(0.0, self.now - bucket.filled_at)
        bucket.tokens = min(self.state.burst, bucket.tokens + waited * self.state.per_second)
        bucket.filled_at = self.now
        if bucket.tokens < 1:
            return False
        bucket.tokens -= 1
        return True


class RateLimit(FlowActor):
    per_second = setting(10.0, "new connections per host and second")
    burst = setting(20.0, "connections that a host may open at once")
    limiter = Limiter.named("limiter", per_second=per_second, burst=burst)

    async def on_open(self, packet: Packet) -> Verdict | None:
        if packet.port == "lan" and not await self.limiter.take(packet.source):
            return DROP
        answers = packet.flow.reversed()
        self.bind(answers)
        self.offload(FORWARD)
        self.offload(FORWARD, answers)
        return None

    def on_packet(self, packet: Packet) -> Verdict:
        return FORWARD
