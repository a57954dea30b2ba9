"""The firewall against an independent model: random and hostile packets, real captures, and rules that change."""

from __future__ import annotations

import random
from collections import Counter
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any, NamedTuple

import dpkt
import pytest

from actornet import FiveTuple
from actornet.cli.main import main
from actornet.embedded import Embedded
from actornet.errors import OwnerError, UsageError
from actornet.ports.memory import MemoryPort
from actornet.ports.pcap import read_capture
from actornet.replay.history import History
from actornet.replay.verification import verify
from actors.firewall import Firewall, Policy, parse
from tests import frames

CAPTURES = Path(__file__).parent / "captures"
A, B, P, Q = "10.0.0.2", "10.0.0.3", "198.51.100.1", "198.51.100.2"
FIN, SYN, RST, PSH, ACK, URG = 1, 2, 4, 8, 16, 32
ICMP, TCP, UDP, ICMP6 = 1, 6, 17, 58
SECOND = 10**9

LEGAL = [SYN, SYN | ACK, RST, RST | ACK, ACK, FIN | ACK]  # with or without PSH; URG not on RST and SYN|ACK


class Tuple(NamedTuple):
    protocol: int
    source: str
    source_port: int
    destination: str
    destination_port: int

    def back(self) -> Tuple:
        return Tuple(self.protocol, self.destination, self.destination_port, self.source, self.source_port)


class Tracked:
    """A connection in the words of nf_conntrack_proto_tcp.c, by who opened it."""

    def __init__(self, state: str) -> None:
        self.state = state
        self.acked = state == "OPEN"  # until then, what the opener sends is looked at
        self.fins: set[bool] = set()

    def passes(self, flags: int, reply: bool) -> bool:
        passed = self._passes(flags & (FIN | SYN | RST | ACK), reply)
        if self.state == "SYN_SENT":
            self.acked = False
        elif passed and not reply and flags & ACK and not flags & RST:
            self.acked = True
        return passed

    def _passes(self, flags: int, reply: bool) -> bool:
        if flags == RST or flags == RST | ACK:
            self.fins = {False, True}
            return True
        if flags == SYN | ACK:
            if self.state == "SYN_SENT":
                if not reply:
                    return False
                self.state = "OPEN"
            return True
        if flags == SYN:
            if self.fins == {False, True}:
                if reply:
                    return False
                self.state, self.fins = "SYN_SENT", set()
            elif reply:
                self.state = "OPEN"
            return True
        if self.state != "OPEN":
            return False
        if flags & FIN:
            self.fins.add(reply)
        return True


def legal(flags: int) -> bool:
    bare = flags & ~PSH & 63
    return bare in LEGAL or (bare & URG and bare & ~URG in (SYN, ACK, FIN | ACK)) > 0


class Model:
    """Which packets pass a firewall with these rules: (action, protocols, port, source, destination) each, from RFC 9293
    and conntrack's states. It shares no code with the NF."""

    def __init__(
        self, *rules: tuple[str, Any, str, tuple[str, range], tuple[str, range]], midstream: str = "lan"
    ) -> None:
        self.rules, self.midstream = rules, midstream
        self.tracked: dict[Tuple, Tracked] = {}
        self.decided: Counter[int] = Counter()

    def judge(self, key: Tuple, port: str) -> tuple[str, int]:
        for number, (action, protocols, on, *ends) in enumerate(self.rules):
            sides = ((key.source, key.source_port), (key.destination, key.destination_port))
            right = all(
                (not net or ip_address(address) in ip_network(net)) and at in ports
                for (net, ports), (address, at) in zip(ends, sides, strict=True)
            )
            if right and (protocols is None or key.protocol in protocols) and on in ("", port):
                return action, number
        return "deny", -1

    def passes(self, key: Tuple, port: str, flags: int = 0) -> bool:
        for owner, reply in ((key, False), (key.back(), True)):
            if owner in self.tracked:
                plain = not flags & (SYN | FIN | RST)
                connection = self.tracked[owner]
                passed_by = connection.state == "OPEN" and (reply or connection.acked)
                known = legal(flags) or (plain and passed_by)
                return key.protocol != TCP or (known and connection.passes(flags, reply))
        if key == key.back():
            return False
        state = "OPEN"
        if key.protocol == TCP:
            bare = flags & (FIN | SYN | RST | ACK)
            if not legal(flags) or not (bare == SYN or (bare == ACK and port == self.midstream)):
                return False
            state = "SYN_SENT" if bare == SYN else "OPEN"
        action, number = self.judge(key, port)
        self.decided[number] += 1
        if action == "allow":
            self.tracked[key] = Tracked(state)
        return action == "allow"


ALL = ("", range(65536))
OUTGOING = ("allow", None, "lan", ALL, ALL)
SERVER = ("allow", {TCP}, "wan", ALL, ("10.0.0.2/32", range(80, 81)))


class Wall:
    """A firewall between two memory ports, in virtual time."""

    def __init__(self, log: Path | None = None, **settings: Any) -> None:
        self.ports = {"lan": MemoryPort("lan"), "wan": MemoryPort("wan")}
        self.errors: list[BaseException] = []
        self.now_ns = 1_700_000_000 * SECOND
        self.embedded = Embedded(
            Firewall, list(self.ports.values()), settings, str(log) if log else None, flows_max=1 << 12,
            virtual_time=True, on_error=lambda flow, handler, error: self.errors.append(error),
        )  # fmt: skip

    def send(self, port: str, *packets: bytes) -> list[bytes]:
        """What of these leaves by the other port; what passes is unchanged."""
        self.ports[port].feed([(self.now_ns, packet) for packet in packets])
        while len(self.ports[port]):
            self.embedded.run_burst()
        assert not self.ports[port].take()
        return [bytes(frame) for _, frame in self.ports["wan" if port == "lan" else "lan"].take()]

    def lan(self, *packets: bytes) -> list[bytes]:
        return self.send("lan", *packets)

    def wan(self, *packets: bytes) -> list[bytes]:
        return self.send("wan", *packets)

    def wait(self, seconds: float) -> None:
        for _ in range(2):
            self.now_ns += int(seconds * SECOND / 2)
            self.send("lan", frames.ethernet(bytes(40), kind=0x88CC))
            for _ in range(20):
                self.embedded.run_burst()

    @property
    def policy(self) -> Policy:
        state = self.embedded.journal.replica.owners["judge"].state
        assert isinstance(state, Policy)
        return state

    def count(self, name: str) -> int:
        return self.embedded.counters()[name]

    def finish(self) -> None:
        self.embedded.finish()
        assert self.errors == [] and self.embedded.core.entries == 0


def tcp(source: str, port: int, flags: int, destination: str = P, to: int = 80) -> bytes:
    return frames.tcp(source, port, destination, to, flags)


def opened(wall: Wall, port: int = 5000) -> None:
    """A connection from A to P that is established."""
    assert wall.lan(tcp(A, port, SYN)) and wall.wan(tcp(P, 80, SYN | ACK, A, port)) and wall.lan(tcp(A, port, ACK))


# --------------------------------------------------------------------------------------------------------- rules


@pytest.mark.parametrize(
    ("rule", "flow", "on", "expected"),
    [
        ("allow", FiveTuple(UDP, A, 1, P, 2), "lan", True),
        ("allow on lan", FiveTuple(UDP, A, 1, P, 2), "wan", False),
        ("deny tcp", FiveTuple(UDP, A, 1, P, 2), "wan", False),
        ("deny udp from 10.0.0.0/8", FiveTuple(UDP, A, 1, P, 2), "lan", True),
        ("deny udp from 10.0.0.0/31", FiveTuple(UDP, A, 1, P, 2), "lan", False),
        ("deny from any port 1 to any port 2-3", FiveTuple(UDP, A, 1, P, 2), "lan", True),
        ("deny from any port 1 to any port 3-4", FiveTuple(UDP, A, 1, P, 2), "lan", False),
        ("deny to 198.51.100.1 port 2", FiveTuple(UDP, A, 1, P, 2), "lan", True),
        ("deny to 2001:db8::/32", FiveTuple(UDP, A, 1, P, 2), "lan", False),
        ("deny to 2001:db8::/32", FiveTuple(TCP, "fe80::1", 1, "2001:db8:ffff::1", 2), "lan", True),
        ("deny from 0.0.0.0/0", FiveTuple(TCP, "fe80::1", 1, "2001:db8:ffff::1", 2), "lan", False),
        ("reject icmp", FiveTuple(ICMP6, "fe80::1", 1, "fe80::2", 1), "lan", True),
    ],
)
def test_what_a_rule_matches(rule: str, flow: FiveTuple, on: str, expected: bool) -> None:
    packed = [ip_address(text).packed for text in (flow.source, flow.destination)]
    assert parse(rule).matches(flow, on, *packed) is expected


@pytest.mark.parametrize(
    "text",
    [
        "", "permit all", "allow from", "allow to 10.0.0.0/33", "allow to 10.0.0.1/8", "allow port 5",
        "allow to any port 70000", "allow to any port 9-2", "allow udp tcp", "allow from any to any extra",
        "deny to any from any", "allow to any port x",
    ],
)  # fmt: skip
def test_a_wrong_rule_is_quoted(text: str) -> None:
    with pytest.raises(UsageError, match="rule"):
        Wall(rules=["allow on lan", text])


# ------------------------------------------------------------------------------------------------ TCP, UDP, ICMP


def test_outside_cannot_open_and_answers_pass(tmp_path: Path) -> None:
    wall = Wall(tmp_path / "log")
    for packet in (
        tcp(P, 80, SYN, A, 5000),
        tcp(P, 80, ACK, A, 5000),
        frames.udp(P, 53, A, 5000),
        frames.echo(P, A, 1),
    ):
        assert wall.wan(packet) == []
    opened(wall)
    query, answer = frames.udp(A, 5000, P, 53), frames.udp(P, 53, A, 5000)
    assert wall.lan(query, query) == [query, query] and wall.wan(answer, answer) == [answer, answer]
    assert wall.wan(frames.udp(Q, 53, A, 5000), frames.udp(P, 54, A, 5000)) == []
    assert wall.lan(frames.echo(A, P, 7)) and wall.wan(frames.echo(P, A, 7, kind=0))
    assert [rule.decided for rule in wall.policy.rules] == [3] and wall.policy.unmatched == 5
    wall.finish()
    with History(tmp_path / "log") as history:
        assert verify(history).problem is None


def test_established_packets_need_no_python() -> None:
    wall = Wall()
    opened(wall)
    handled = wall.count("handled")
    data = [frames.tcp(A, 5000, P, 80, ACK | PSH, b"x" * n, seq=2) for n in range(1, 50)]
    assert wall.lan(*data) == data and wall.count("handled") == handled
    wall.finish()


def test_data_before_the_handshake_does_not_pass() -> None:
    """In neither direction, whoever opened."""
    wall = Wall(rules=["allow on lan", "allow tcp on wan to 10.0.0.2 port 80"])
    assert wall.lan(tcp(A, 5000, SYN)) and wall.wan(tcp(P, 80, SYN, A, 80))
    for flags in (ACK, ACK | PSH, FIN | ACK):
        assert wall.lan(tcp(A, 5000, flags)) == [] and wall.wan(tcp(P, 80, flags, A, 5000)) == []
        assert wall.wan(tcp(P, 80, flags, A, 80)) == []
    assert wall.lan(tcp(A, 5000, SYN)), "a SYN is repeated"
    assert wall.wan(tcp(P, 80, SYN | ACK, A, 5000)) and wall.lan(tcp(A, 5000, ACK))
    wall.finish()


def test_a_simultaneous_open_and_a_refusal() -> None:
    wall = Wall()
    assert wall.lan(tcp(A, 5000, SYN)) and wall.wan(tcp(P, 80, SYN, A, 5000))
    assert (
        wall.lan(tcp(A, 5000, SYN | ACK)) and wall.wan(tcp(P, 80, SYN | ACK, A, 5000)) and wall.lan(tcp(A, 5000, ACK))
    )
    assert wall.lan(tcp(A, 5001, SYN)) and wall.wan(tcp(P, 80, RST | ACK, A, 5001))
    wall.finish()


@pytest.mark.parametrize("flags", [f for f in range(64) if not legal(f)])
def test_flags_that_no_tcp_sends(flags: int) -> None:
    """They open nothing from either side, and those that are not plain data do not pass on a connection that is open."""
    wall = Wall(rules=["allow"], midstream=["lan", "wan"])
    assert wall.lan(tcp(A, 5000, flags)) == [] and wall.wan(tcp(P, 80, flags, A, 5000)) == []
    opened(wall)
    if flags & (SYN | FIN | RST):
        assert wall.lan(tcp(A, 5000, flags)) == [] and wall.wan(tcp(P, 80, flags, A, 5000)) == []
    wall.finish()


def test_midstream() -> None:
    wall = Wall(rules=["allow"])
    assert wall.wan(tcp(P, 80, ACK, A, 5000)) == [] and wall.wan(tcp(P, 80, SYN | ACK, A, 5000)) == []
    assert wall.lan(tcp(A, 5000, RST)) == [] and wall.lan(tcp(A, 5000, FIN | ACK)) == []
    assert wall.lan(tcp(A, 5000, ACK)) and wall.wan(tcp(P, 80, ACK, A, 5000))
    wall.finish()
    wall = Wall(rules=["allow"], midstream=[])
    assert wall.lan(tcp(A, 5000, ACK)) == []
    wall.finish()


def test_time_outs() -> None:
    wall = Wall()
    opened(wall)
    assert wall.lan(tcp(A, 5001, SYN)) and wall.lan(frames.udp(A, 5002, P, 53))
    wall.wait(250)
    assert wall.wan(tcp(P, 80, SYN | ACK, A, 5001)) == [], "it took longer than tcp_transitory_idle_s"
    assert wall.wan(frames.udp(P, 53, A, 5002))
    wall.wait(301)
    assert wall.wan(frames.udp(P, 53, A, 5002)) == []
    wall.wait(6800)
    assert wall.wan(tcp(P, 80, ACK, A, 5000)) and wall.wan(tcp(P, 80, FIN | ACK, A, 5000))
    wall.wait(250)
    assert wall.lan(tcp(A, 5000, FIN | ACK)), "half closed is not closing"
    wall.wait(250)
    assert wall.wan(tcp(P, 80, ACK, A, 5000)) == []
    wall.finish()


def test_icmp_errors_pass_if_they_are_about_a_connection() -> None:
    wall = Wall()
    syn, query = tcp(A, 5000, SYN), frames.udp(A, 5001, P, 53)
    stranger = frames.icmp_error(Q, frames.udp(A, 6000, P, 53))
    assert wall.lan(syn, query) == [syn, query] and wall.wan(stranger) == []
    errors = [frames.icmp_error(Q, syn), frames.icmp_error(Q, query)]
    assert wall.wan(*errors) == errors, "a connection that is only opening can fail, too"
    wall.finish()


def test_a_handshake_that_one_side_forges_has_a_short_time_out() -> None:
    wall = Wall(rules=["allow on lan", "allow tcp on wan to 10.0.0.2"])
    assert wall.wan(tcp(P, 1000, SYN, A, 80)) and wall.lan(frames.tcp(A, 80, P, 1000, SYN | ACK))
    wall.wait(250)
    assert wall.lan(frames.tcp(A, 80, P, 1000, SYN | ACK)) == []
    wall.finish()


def test_who_floods_does_not_keep_out_others() -> None:
    """Half-open connections are evicted, one that is established is not."""
    wall = Wall(rules=["allow on lan", "allow tcp on wan to 10.0.0.2"])
    opened(wall)
    for n in range(5000):
        wall.wan(tcp(f"198.51.{n >> 8}.{n & 255}", 1000, SYN, A, 80))
    assert wall.count("flows_evicted") > 1000 and wall.count("flow_table_full") == 0
    assert wall.wan(tcp(P, 80, ACK, A, 5000))
    wall.finish()


def test_random_packets_pass_as_the_model_says() -> None:
    """Any flags, few endpoints, from both sides; UDP and pings among them."""
    for seed in range(40):
        chance, model = random.Random(seed), Model(OUTGOING, SERVER)
        wall = Wall(rules=["allow on lan", "allow tcp on wan to 10.0.0.2 port 80"])
        for _ in range(400):
            port = chance.choice(["lan", "wan"])
            inside, outside = (chance.choice([A, B]), chance.choice([80, 5000])), (chance.choice([P, Q]), 80)
            ends = (*inside, *outside) if port == "lan" else (*outside, *inside)
            kind, flags = chance.choice([TCP, TCP, TCP, UDP]), 0
            if kind == TCP:
                flags = chance.choice([SYN, SYN | ACK, ACK, FIN | ACK, RST, chance.randrange(64)])
            packet = frames.tcp(*ends, flags) if kind == TCP else frames.udp(*ends)
            expected = model.passes(Tuple(kind, *ends), port, flags)
            assert wall.send(port, packet) == [packet] * expected, (seed, port, ends, flags)
        assert [rule.decided for rule in wall.policy.rules] == [model.decided[0], model.decided[1]]
        assert wall.policy.unmatched == model.decided[-1]
        wall.finish()


# ------------------------------------------------------------------------------------------------ rules that change


def test_open_connections_are_judged_anew_when_the_rules_change(tmp_path: Path) -> None:
    wall = Wall(tmp_path / "log", rules=["allow on lan"])
    opened(wall)
    assert wall.lan(frames.udp(A, 5000, P, 53), frames.udp(A, 5000, Q, 53), tcp(A, 5001, SYN))
    wall.embedded.ask("judge", "change", (["deny udp to 198.51.100.2", "deny to any port 80", "allow on lan"],))
    assert wall.lan(frames.udp(A, 5000, P, 53)) and wall.wan(frames.udp(P, 53, A, 5000))
    assert wall.wan(frames.udp(Q, 53, A, 5000)) == [] and wall.lan(frames.udp(A, 5000, Q, 53)) == []
    assert wall.lan(tcp(A, 5000, ACK)) == [] and wall.wan(tcp(P, 80, ACK, A, 5000)) == []
    assert wall.wan(tcp(P, 80, SYN | ACK, A, 5001)) == [], "one that was only opening, too"
    assert {rule.text: rule.decided for rule in wall.policy.rules}["allow on lan"] == 4
    before = wall.policy.rules[0].decided
    with pytest.raises(OwnerError, match="rule 'nonsense'"):
        wall.embedded.ask("judge", "change", (["nonsense"],))
    assert wall.lan(frames.udp(A, 5000, Q, 53)) == [] and wall.policy.rules[0].decided == before + 1
    wall.finish()
    with History(tmp_path / "log") as history:
        assert verify(history).problem is None


def test_rejected_connections_leave_nothing() -> None:
    wall = Wall(rules=["reject tcp", "allow"])
    assert wall.lan(tcp(A, 5000, SYN)) == [] and wall.count("rejected_by_nf") == 1
    assert wall.embedded.core.entries == 0 and wall.count("flows_refused") == 1
    wall.finish()


# ------------------------------------------------------------------------------------------------------- captures


def seen(frame: bytes) -> tuple[Tuple, int] | None:
    """The five-tuple and TCP flags of a whole packet; None for what has none, or is a fragment or damaged."""
    try:
        ip = dpkt.ethernet.Ethernet(frame).data
        if isinstance(ip, dpkt.ip.IP):
            if ip.offset or ip.mf or len(ip) > len(frame) - 14:
                return None
        elif not isinstance(ip, dpkt.ip6.IP6):
            return None
        addresses = str(ip_address(ip.src)), str(ip_address(ip.dst))
        if isinstance(ip.data, dpkt.tcp.TCP):
            key = Tuple(TCP, addresses[0], ip.data.sport, addresses[1], ip.data.dport)
            return key, ip.data.flags & 63
        if isinstance(ip.data, dpkt.udp.UDP):
            return Tuple(UDP, addresses[0], ip.data.sport, addresses[1], ip.data.dport), 0
    except (dpkt.UnpackError, ValueError):
        return None
    return None


INSIDE = {"skype.pcap": "192.168.1.0/24", "chrome.pcap": "192.168.1.0/24"}


@pytest.mark.parametrize(
    "name", ["skype.pcap", "chrome.pcap", "ftp.pcap", "http_ipv6.pcap", "bittorrent.pcap", "sip.pcap"]
)
def test_a_capture_passes_as_the_model_says(name: str, tmp_path: Path) -> None:
    came = [frame for _, frame, _ in read_capture(str(CAPTURES / name))]
    inside = INSIDE.get(name) or network_of(next(key.source for key, _ in filter(None, map(seen, came))))
    out, log = tmp_path / "out.pcap", tmp_path / "log"
    command = [
        "run",
        "actors.firewall:Firewall",
        "--read",
        str(CAPTURES / name),
        "--inside",
        inside,
        "--as-is",
        "--quiet",
    ]
    shunned = next(key.destination for key, _ in filter(None, map(seen, came)))
    rules = f"deny to {shunned},allow on lan"
    assert main([*command, "--set", f"rules={rules}", "--write", str(out), "--log", str(log)]) == 0
    model = Model(("deny", None, "", ALL, (shunned, range(65536))), OUTGOING)
    expected = []
    for frame in came:
        found = seen(frame)
        if found:
            key, flags = found
            port = "lan" if ip_address(key.source) in ip_network(inside) else "wan"
            if model.passes(key, port, flags):
                expected.append(frame)
    left = [frame for _, frame, _ in read_capture(str(out)) if seen(frame)]
    assert left == expected and len(left) < len(came)
    with History(log) as history:
        assert verify(history).problem is None
        decided = [rule.decided for rule in history.state().owners["judge"].state.rules]
    assert decided[0] == model.decided[0] and decided[1] >= model.decided[1], "pings are not the model's"


def network_of(address: str) -> str:
    return str(ip_network(f"{address}/{64 if ':' in address else 24}", strict=False))
