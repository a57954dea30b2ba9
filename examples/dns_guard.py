"""Holds each DNS query until a reputation service has said whether its name is good; answers itself for those that are not.

    actornet run examples/dns_guard.py:DnsGuard --read examples/captures/skype.pcap --set blocked=config.skype.com

Handlers may be `async def` and await what asyncio offers: here a service that takes its time, and a time-out for when it
takes too long. Only the query's own flow waits meanwhile; its later packets queue behind it, in order. What the service
said is kept by an owner, so that all flows, and a backup that takes over, know it. Who asks for a bad name is told at once
that there is none such, in the server's name.
"""

import asyncio

import dpkt

from actornet import DROP, FORWARD, FlowActor, Owner, Packet, Struct, Verdict, setting

NAMES_MAX = 100_000
DNS, UDP = 53, 17


class Names(Struct):
    good: dict[str, bool] = {}
    denied: dict[str, int] = {}


class Reputation(Owner[Names]):
    """What is known of names."""

    def ask(self, name: str) -> bool | None:
        """Whether the name is good; None if nobody has asked the service yet."""
        return self.state.good.get(name)

    def learn(self, name: str, good: bool) -> None:
        if len(self.state.good) < NAMES_MAX:
            self.state.good[name] = good

    def count(self, name: str) -> None:
        """A query for the name was denied."""
        if name in self.state.denied or len(self.state.denied) < NAMES_MAX:
            self.state.denied[name] = self.state.denied.get(name, 0) + 1


async def look_up(name: str, blocked: list[str]) -> bool:
    """Stands for a service: a database, an HTTP request."""
    await asyncio.sleep(0.002)
    return not any(name == suffix or name.endswith("." + suffix) for suffix in blocked)


def question(payload: bytes) -> str | None:
    """The name that a query asks for; None if it is no query."""
    try:
        name: str = dpkt.dns.DNS(payload).qd[0].name
        return name.lower()
    except (dpkt.UnpackError, IndexError, UnicodeDecodeError):
        return None


def no_such_name(query: bytes) -> bytes:
    """The answer to a query that its name does not exist (RFC 1035 section 4.1.1)."""
    answer = dpkt.dns.DNS(query)
    answer.qr, answer.ra, answer.rcode = dpkt.dns.DNS_R, answer.rd, dpkt.dns.DNS_RCODE_NXDOMAIN
    answer.an, answer.ns, answer.ar = [], [], []
    return bytes(answer)


class DnsGuard(FlowActor):
    """One flow. Queries are looked at one by one; everything else is offloaded."""

    blocked = setting(["example.com"], "names that are bad, and what ends in them")
    patience_s = setting(0.5, "how long a query waits for the service; then it passes", least=0)
    names = Reputation.named("names")

    def on_open(self, packet: Packet) -> None:
        reply = packet.flow.reversed()
        self.bind(reply)
        self.offload(FORWARD, reply)
        if packet.protocol != UDP or packet.destination_port != DNS:
            self.offload(FORWARD)

    async def on_packet(self, packet: Packet) -> Verdict:
        if packet.protocol != UDP or packet.destination_port != DNS:
            return FORWARD
        name = question(packet.payload)
        if name is None:
            return DROP
        good = await self.names.ask(name)
        if good is None:
            try:
                async with asyncio.timeout(self.patience_s):
                    good = await look_up(name, self.blocked)
            except TimeoutError:
                return FORWARD
            self.names.learn(name, good)  # sent, not awaited: there is no answer to wait for
        if not good:
            self.names.count(name)
            return packet.answer(no_such_name(packet.payload))
        return FORWARD
