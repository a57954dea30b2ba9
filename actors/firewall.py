"""A stateful firewall: rules say who may open a connection; what belongs to one that is open passes.

A rule is an action and what it applies to, and the first that matches decides; what none matches is denied:

    allow on lan                                    whatever is opened from the port lan
    allow tcp on wan to 192.0.2.10 port 443         a server that outside may reach
    deny udp from 10.0.0.0/8 to any port 137-139    no matter at which port
    reject icmp                                     like deny, but the sender is told (on routed ports)

ACTION [tcp|udp|icmp] [on PORT] [from PREFIX|any [port N[-N]]] [to PREFIX|any [port N[-N]]]; IPv4 and IPv6; icmp is ICMP and
ICMPv6 echo. A connection, which for UDP and ICMP is what a first packet and its answers have in common, passes through the
core. Only TCP's handshake, FIN and RST come to its actor, and ICMP errors, which pass if they are about a packet of it.

TCP (RFC 9293, RFC 5382 section 4; the checks are those of Linux's conntrack):

    SYN -> opening: both ways shut but for the handshake -> SYN from the other side, too, and an ACK of it: open
    -> both FINs, or an RST: closing -> SYN from the side that sent the first one: opening again

A connection does not begin with another packet than a SYN, except at the ports in `midstream`: there one goes on that is
older than the firewall, or was idle for too long. Combinations of flags that no TCP sends are dropped. Sequence numbers are
not looked at: an RST that somebody made up shortens the connection's time-out, but does not end it.

The rules are the state of one owner, which counts what each decided. When they change, every open connection is judged anew
by its next packet. Left out: rules for protocols without ports, and related connections (FTP's).
"""

from __future__ import annotations

from ipaddress import ip_address, ip_network

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
    Struct,
    Verdict,
    setting,
)

ICMP, TCP, UDP, ICMP6 = 1, 6, 17, 58
FIN, SYN, RST, ACK, URG = 1, 2, 4, 16, 32
FLAGS = FIN | SYN | RST | ACK | URG
VALID = {SYN, SYN | URG, SYN | ACK, RST, RST | ACK, FIN | ACK, FIN | ACK | URG, ACK, ACK | URG}
"""What of FLAGS a segment may have."""
OPENER, OTHER, BOTH = 1, 2, 3  # sides of a connection

ALLOW, DENY, REFUSE = "allow", "deny", "reject"
PROTOCOLS = {"tcp": [TCP], "udp": [UDP], "icmp": [ICMP, ICMP6]}
RULES_MAX = 1000


class End(Struct, frozen=True, array_like=True, gc=False):
    """Addresses from `first` to `last` (4 or 16 bytes; empty: any) with ports in the range."""

    first: bytes = b""
    last: bytes = b""
    port_first: int = 0
    port_last: int = 65535

    def holds(self, address: bytes, port: int) -> bool:
        inside = not self.first or (len(address) == len(self.first) and self.first <= address <= self.last)
        return inside and self.port_first <= port <= self.port_last


class Rule(Struct):
    """A rule, and how many connections it has decided about. No protocols, or no port (`on`): any."""

    text: str
    action: str
    protocols: list[int]
    on: str
    source: End
    destination: End
    decided: int = 0

    def matches(self, flow: FiveTuple, on: str, source: bytes, destination: bytes) -> bool:
        return (
            (not self.protocols or flow.protocol in self.protocols)
            and (not self.on or on == self.on)
            and self.source.holds(source, flow.source_port)
            and self.destination.holds(destination, flow.destination_port)
        )


def parse(text: str) -> Rule:
    """The rule in a text. Raises ValueError that quotes it."""
    words = iter(text.split())
    action, word = next(words, ""), next(words, "")
    try:
        if action not in (ALLOW, DENY, REFUSE):
            raise ValueError(f"it must begin with {ALLOW}, {DENY} or {REFUSE}")
        protocols, on, ends = [], "", {"from": End(), "to": End()}
        if word in PROTOCOLS:
            protocols, word = PROTOCOLS[word], next(words, "")
        if word == "on":
            on, word = next(words, ""), next(words, "")
        for side in ends:
            if word == side:
                network, word = next(words, ""), next(words, "")
                ports = "0-65535"
                if word == "port":
                    ports, word = next(words, ""), next(words, "")
                ends[side] = _end(network, ports)
        if word:
            raise ValueError(f"{word!r} does not belong there")
    except ValueError as error:
        raise ValueError(f"rule {text!r}: {error}; see the head of actors/firewall.py") from None
    return Rule(" ".join(text.split()), action, protocols, on, ends["from"], ends["to"])


def _end(network: str, ports: str) -> End:
    first, _, last = ports.partition("-")
    low, high = int(first), int(last or first)
    if not 0 <= low <= high <= 65535:
        raise ValueError(f"{ports!r} is no range of ports")
    if network == "any":
        return End(port_first=low, port_last=high)
    prefix = ip_network(network)
    return End(prefix.network_address.packed, prefix.broadcast_address.packed, low, high)


class Policy(Struct):
    """The rules in order, and how many connections none of them matched."""

    rules: list[Rule]
    unmatched: int = 0


class Judge(Owner[Policy]):
    """Decides who may open a connection."""

    def start(self, rules: list[str]) -> Policy:
        return Policy(self._parsed(rules))

    def decide(self, flow: FiveTuple, on: str, again: bool = False) -> str:
        """What the rules say about a connection that opens at the port `on`; `again`: it is open and was counted."""
        source, destination = ip_address(flow.source).packed, ip_address(flow.destination).packed
        for rule in self.state.rules:
            if rule.matches(flow, on, source, destination):
                rule.decided += not again
                return rule.action
        self.state.unmatched += not again
        return DENY

    def change(self, rules: list[str]) -> None:
        """Other rules from here on, for connections that are open, too. Those that stay go on counting."""
        counted = {rule.text: rule.decided for rule in self.state.rules}
        self.state.rules = self._parsed(rules)
        for rule in self.state.rules:
            rule.decided = counted.get(rule.text, 0)
        self.revoke_offloads()

    def _parsed(self, rules: list[str]) -> list[Rule]:
        if len(rules) > RULES_MAX:
            raise ValueError(f"{len(rules)} rules are more than {RULES_MAX}")
        return [parse(rule) for rule in rules]


class Firewall(FlowActor):
    """One connection through the firewall."""

    connection = True
    sees_icmp_errors = True
    evict = True  # a flood of first packets, which have short time-outs, does not keep out others
    rules = setting(["allow on lan"], "first match decides; what no rule matches is denied")
    midstream = setting(["lan"], "ports at which TCP may begin in the middle of a connection")
    udp_idle_s = setting(300.0, "RFC 4787 REQ-5: not below 2 minutes, 5 recommended", least=0.001, most=1e9)
    tcp_idle_s = setting(7440.0, "established TCP, RFC 5382 REQ-5: not below 2 hours 4 minutes", least=0.001, most=1e9)
    tcp_transitory_idle_s = setting(
        240.0, "opening or closing TCP, RFC 5382 REQ-5: not below 4 minutes", least=0.001, most=1e9
    )
    icmp_idle_s = setting(60.0, "RFC 5508 REQ-2: not below 60 seconds", least=0.001, most=1e9)
    judge = Judge.named("judge", rules=rules)

    syn: int = 0  # the sides that have sent one
    fin: int = 0
    acked: bool = False  # the opener has answered the other side's SYN: it is no sender of forged SYNs

    async def on_open(self, packet: Packet) -> Verdict:
        flow, flags = packet.flow, packet.tcp_flags & FLAGS
        if flow == flow.reversed():
            return DROP  # "land": to itself
        if flow.protocol == TCP:
            if flags & SYN and flags in VALID and not flags & ACK:
                self.syn = OPENER
            elif flags & (SYN | FIN | RST) == 0 and flags in VALID and packet.port in self.midstream:
                self.syn, self.acked = BOTH, True
            else:
                return DROP
        action = await self.judge.decide(flow, packet.port)
        if action != ALLOW:
            return REJECT if action == REFUSE else DROP
        self._pass_on()
        return FORWARD

    async def on_packet(self, packet: Packet) -> Verdict:
        """SYN, FIN and RST; the opener's first ACK; ICMP errors; and the next packet after the rules have changed."""
        if not self.offloaded(self.flow.reversed()):
            action = await self.judge.decide(self.flow, self.port, True)
            if action != ALLOW:
                self.close()
                return REJECT if action == REFUSE else DROP
            self._pass_on()
        if packet.is_icmp_error:
            return FORWARD
        flags, opener = packet.tcp_flags & FLAGS, packet.direction is Direction.ORIGINAL
        if flags & (SYN | FIN | RST) and not self._advance(OPENER if opener else OTHER, flags):
            return DROP
        waiting = opener and self.syn == BOTH and not self.acked
        if waiting and flags & ACK and not flags & RST:
            self.acked, waiting = True, False
            self._pass_on()
        if flags & (SYN | FIN | RST):
            return FORWARD
        return DROP if waiting else OFFLOADED

    def _advance(self, side: int, flags: int) -> bool:
        """TCP's next state; whether the segment passes."""
        syn, fin = self.syn, self.fin
        if flags not in VALID:
            return False
        if flags & RST:
            fin = BOTH
        elif flags & ACK and flags & SYN:
            if not syn & ~side:
                return False  # it answers no SYN
            syn |= side
        elif flags & SYN:
            if fin != BOTH:
                syn |= side
            elif side == OPENER:
                syn, fin, self.acked = OPENER, 0, False
            else:
                return False  # a new connection, and not one that the rules were asked about
        elif syn == BOTH:
            fin |= side
        else:
            return False
        if (syn, fin) != (self.syn, self.fin):
            self.syn, self.fin = syn, fin
            self._pass_on()
        return True

    def _pass_on(self) -> None:
        """Let the core carry the connection on in its present state; the reply's key is offloaded in each."""
        flow = self.flow
        verdict: Verdict = FORWARD
        if flow.protocol == TCP:
            self.idle_s = self.tcp_idle_s if self.acked and self.fin != BOTH else self.tcp_transitory_idle_s
            verdict = FORWARD if self.syn == BOTH else DROP
        else:
            self.idle_s = self.udp_idle_s if flow.protocol == UDP else self.icmp_idle_s
        self.withdraw()
        if self.acked or self.syn != BOTH:
            self.offload(verdict)
        self.offload(verdict, flow.reversed())
