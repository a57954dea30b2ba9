"""The load balancer: its table against the paper's pseudocode, every packet against an independent model, and changes of
the backends under connections that are open."""

from __future__ import annotations

import random
from collections import Counter
from hashlib import blake2b
from pathlib import Path
from typing import Any

import dpkt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actornet.cli.main import main
from actornet.embedded import Embedded
from actornet.errors import OwnerError, UsageError
from actornet.ports.memory import MemoryPort
from actornet.ports.pcap import read_capture
from actornet.replay.history import History
from actornet.replay.verification import verify
from actors.load_balancer import LoadBalancer, Pool, lookup_table
from tests import frames
from tests.nat_model import Endpoint as End
from tests.nat_model import Flow as Tuple
from tests.nat_model import Packet, differences, dissect

CAPTURES = Path(__file__).parent / "captures"
SERVICE = ("203.0.113.10", 80)
CLIENT, OTHER = "198.51.100.1", "198.51.100.2"
FIN, SYN, RST, ACK = 1, 2, 4, 16
SECOND = 10**9


def names(count: int) -> list[str]:
    return [f"10.0.0.{n + 2}:80" for n in range(count)]


# ------------------------------------------------------------------------------------------------------- the table


def populate(weights: list[tuple[str, int]], size: int) -> list[int]:
    """The paper's pseudocode 1, with permutations written out, and turns as `weights` allows."""
    permutation = []
    for name, _ in weights:
        digest = blake2b(name.encode(), digest_size=16).digest()
        offset = int.from_bytes(digest[:8], "big") % size
        skip = int.from_bytes(digest[8:], "big") % (size - 1) + 1
        permutation.append([(offset + j * skip) % size for j in range(size)])
    heaviest = max(weight for _, weight in weights)
    entry: list[int] = [-1] * size
    turn = 0
    while -1 in entry:
        turn += 1
        for i, (_, weight) in enumerate(weights):
            if turn * weight // heaviest > (turn - 1) * weight // heaviest:
                free = [c for c in permutation[i] if entry[c] < 0]
                if free:
                    entry[free[0]] = i
    return entry


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=6), st.sampled_from([3, 7, 31, 101]))
def test_the_table_is_the_papers(weights: list[int], size: int) -> None:
    pairs = list(zip(names(len(weights)), weights, strict=True))
    expected = populate(pairs, size) if any(weights) else []
    assert list(lookup_table(tuple(pairs), size)) == expected


def test_shares_are_even_or_as_the_weights_say() -> None:
    shares = Counter(lookup_table(tuple((name, 1) for name in names(50)), 5003))
    assert max(shares.values()) - min(shares.values()) <= 1
    weights = [1, 2, 3, 4]
    shares = Counter(lookup_table(tuple(zip(names(4), weights, strict=True)), 5003))
    assert [round(shares[i] / 5003 * 10, 1) for i in range(4)] == weights


@pytest.mark.parametrize("count", [3, 10, 50])
def test_a_backend_that_goes_takes_little_along(count: int) -> None:
    """Entries that change though their backend stays: the paper's figure 12 has up to some percent for small tables."""
    before = [names(count)[i] for i in lookup_table(tuple((name, 1) for name in names(count)), 5003)]
    left = [name for name in names(count) if name != "10.0.0.3:80"]
    after = [left[i] for i in lookup_table(tuple((name, 1) for name in left), 5003)]
    moved = sum(1 for old, new in zip(before, after, strict=True) if old != new and old != "10.0.0.3:80")
    assert moved < 0.06 * 5003
    assert len(set(after)) == count - 1


# -------------------------------------------------------------------------------------------- packet by packet


class Lab:
    """A balancer between clients at wan and backends at lan, in virtual time."""

    def __init__(self, log: Path | None = None, **more: Any) -> None:
        self.ports = {"lan": MemoryPort("lan"), "wan": MemoryPort("wan")}
        self.settings = {"service": "203.0.113.10:80", "backends": names(3)} | more
        self.log, self.errors = log, list[BaseException]()
        self.now_ns = 1_700_000_000 * SECOND
        self.embedded = self.start()

    def start(self) -> Embedded:
        return Embedded(
            LoadBalancer, list(self.ports.values()), self.settings, str(self.log) if self.log else None,
            flows_max=1 << 12, virtual_time=True, on_error=lambda flow, handler, error: self.errors.append(error),
        )  # fmt: skip

    def send(self, port: str, *packets: bytes) -> list[bytes]:
        self.ports[port].feed([(self.now_ns, packet) for packet in packets])
        while len(self.ports[port]):
            self.embedded.run_burst()
        assert not self.ports[port].take()
        return [bytes(frame) for _, frame in self.ports["wan" if port == "lan" else "lan"].take()]

    def wait(self, seconds: float) -> None:
        for _ in range(2):
            self.now_ns += int(seconds * SECOND / 2)
            self.send("lan", frames.ethernet(bytes(40), kind=0x88CC))
            for _ in range(20):
                self.embedded.run_burst()

    def crash(self) -> None:
        """As if the process were gone; the next one begins with what the log has."""
        assert self.embedded._log is not None
        self.embedded._log.close()
        self.embedded = self.start()

    @property
    def pool(self) -> Pool:
        state = self.embedded.journal.replica.owners["balancer"].state
        assert isinstance(state, Pool)
        return state

    def connect(self, port: int, client: str = CLIENT) -> str:
        """Opens a connection; returns its backend, after every packet of the handshake was seen to be right."""
        (there,) = self.send("wan", frames.tcp(client, port, *SERVICE, SYN))
        backend = translated(frames.tcp(client, port, *SERVICE, SYN), there).destination
        for side, packet in (
            ("lan", frames.tcp(*backend, client, port, SYN | ACK)),
            ("wan", frames.tcp(client, port, *SERVICE, ACK)),
        ):
            self.passes(side, packet, backend)
        return f"{backend.address}:{backend.port}"

    def passes(self, side: str, packet: bytes, backend: End) -> None:
        (left,) = self.send(side, packet)
        flow = translated(packet, left)
        assert (flow.destination if side == "wan" else flow.source) == (backend if side == "wan" else End(*SERVICE))

    def talks(self, port: int, backend: str, client: str = CLIENT) -> None:
        """A connection that is open carries data in both directions, and to that backend."""
        address, at = backend.split(":")
        end = End(address, int(at))
        self.passes("wan", frames.tcp(client, port, *SERVICE, ACK, b"request"), end)
        self.passes("lan", frames.tcp(*end, client, port, ACK, b"response"), end)

    def finish(self) -> None:
        self.embedded.finish()
        assert self.errors == [] and self.embedded.core.entries == 0
        assert all(backend.open == 0 and not backend.leaving for backend in self.pool.backends.values())
        if self.log:
            with History(self.log) as history:
                assert verify(history).problem is None


def translated(came: bytes, left: bytes) -> Tuple:
    """What the packet's flow has become; nothing else but its TTL and checksums may be different."""
    before, after = dissect(came), dissect(left)
    assert isinstance(before, Packet) and isinstance(after, Packet)
    assert differences(before.addressed(after.flow), left) == ""
    return after.flow


def test_connections_are_spread_and_stay(tmp_path: Path) -> None:
    lab = Lab(tmp_path / "log")
    opened = {port: lab.connect(port) for port in range(1024, 1224)}
    assert all(count > 40 for count in Counter(opened.values()).values()) and len(set(opened.values())) == 3
    handled = lab.embedded.counters()["handled"]
    for port, backend in opened.items():
        lab.talks(port, backend)
    assert lab.embedded.counters()["handled"] == handled, "without Python"
    assert {b.name: b.open for b in lab.pool.backends.values()} == Counter(opened.values())
    lab.finish()


def test_neither_a_change_nor_a_restart_breaks_a_connection(tmp_path: Path) -> None:
    """G6: the flow's record has the backend; what the table says today does not count for it."""
    lab = Lab(tmp_path / "log")
    opened = {port: lab.connect(port) for port in range(1024, 1124)}
    lab.embedded.ask("balancer", "change", (["10.0.0.3:80", "10.0.0.9:80=3"],))
    for port, backend in opened.items():
        lab.talks(port, backend)
    later = {port: lab.connect(port) for port in range(2000, 2100)}
    assert set(later.values()) == {"10.0.0.3:80", "10.0.0.9:80"}
    lab.embedded.ask("balancer", "weigh", ("10.0.0.9:80", 0))
    lab.crash()
    for port, backend in (opened | later).items():
        lab.talks(port, backend)
    assert {lab.connect(port) for port in range(3000, 3050)} == {"10.0.0.3:80"}, "the other is drained"
    assert set(lab.pool.backends) == {*names(3), "10.0.0.9:80"}
    lab.finish()
    assert set(lab.pool.backends) == {"10.0.0.3:80", "10.0.0.9:80"}, "those not listed went with their connections"


def test_without_a_backend_clients_are_refused() -> None:
    lab = Lab(backends=["10.0.0.2:80=0"])
    assert lab.send("wan", frames.tcp(CLIENT, 5000, *SERVICE, SYN)) == []
    assert lab.embedded.counters()["rejected_by_nf"] == 1 and lab.embedded.core.entries == 0
    lab.embedded.ask("balancer", "weigh", ("10.0.0.2:80", 5))
    assert lab.connect(5000) == "10.0.0.2:80"
    lab.finish()


def test_a_client_sticks_to_its_backend() -> None:
    lab = Lab(sticky=True, backends=names(20))
    assert len({lab.connect(port) for port in range(1024, 1060)}) == 1
    assert len({lab.connect(5000, f"198.51.100.{n}") for n in range(60)}) > 10
    lab.finish()


def test_what_is_not_for_the_service() -> None:
    lab = Lab()
    strangers = [frames.udp(CLIENT, 5000, "203.0.113.10", 81), frames.tcp("10.0.0.2", 80, CLIENT, 5000, ACK)]
    strangers += [frames.echo(CLIENT, "203.0.113.10", 80), frames.tcp(CLIENT, 5000, *SERVICE, RST)]
    assert lab.send("wan", *strangers) == [] and lab.embedded.core.entries == 0
    lab.finish()
    lab = Lab(pass_others=True)
    assert lab.send("lan", frames.udp("10.0.0.2", 5000, CLIENT, 53)) == [frames.udp("10.0.0.2", 5000, CLIENT, 53)]
    assert lab.send("lan", frames.tcp("10.0.0.2", 80, CLIENT, 5000, ACK)) == [], "an answer that belongs to nothing"
    lab.finish()


def test_time_outs_and_a_connection_that_begins_anew() -> None:
    lab = Lab()
    assert lab.send("wan", frames.tcp(CLIENT, 4000, *SERVICE, SYN))
    backend = lab.connect(5000)
    lab.wait(70)
    assert sum(b.open for b in lab.pool.backends.values()) == 1, "a SYN that nobody followed up is forgotten"
    lab.talks(5000, backend)
    end = End(backend.split(":")[0], 80)
    lab.passes("wan", frames.tcp(CLIENT, 5000, *SERVICE, FIN | ACK), end)
    lab.passes("lan", frames.tcp(*end, CLIENT, 5000, FIN | ACK), end)
    assert lab.connect(5000) == backend
    lab.wait(7000)
    lab.talks(5000, backend)
    lab.passes("lan", frames.tcp(*end, CLIENT, 5000, RST), end)
    lab.wait(70)
    assert sum(b.open for b in lab.pool.backends.values()) == 0
    lab.finish()


def syn(lab: Lab, port: int) -> str:
    """Where a client's SYN goes."""
    (there,) = lab.send("wan", frames.tcp(CLIENT, port, *SERVICE, SYN))
    to = translated(frames.tcp(CLIENT, port, *SERVICE, SYN), there).destination
    return f"{to.address}:{to.port}"


def refuse(lab: Lab, port: int, backend: str) -> None:
    (back,) = lab.send("lan", frames.tcp(backend.split(":")[0], 80, CLIENT, port, RST | ACK))
    assert dissect(back).flow.source == End(*SERVICE)  # type: ignore[union-attr]


def test_a_backend_that_refuses_connections_gets_no_new_ones_until_it_answers(tmp_path: Path) -> None:
    """The owner decides it, by the log's time: a node that takes over (here: starts anew) knows of it."""
    lab, ill, ports = Lab(tmp_path / "log"), "10.0.0.3:80", iter(range(2000, 9000))
    opened = {port: lab.connect(port) for port in range(1024, 1064)}
    for refused in range(3):
        assert lab.pool.backends[ill].failures == refused
        while syn(lab, port := next(ports)) != ill:
            pass
        refuse(lab, port, ill)
        refuse(lab, port, ill)  # counts once
    assert ill not in {lab.connect(next(ports)) for _ in range(40)}
    lab.crash()
    assert ill not in {lab.connect(next(ports)) for _ in range(40)}
    for port, backend in opened.items():
        lab.talks(port, backend)
    lab.wait(11)
    while syn(lab, port := next(ports)) != ill:
        pass
    refuse(lab, port, ill)  # one is enough, and the time twice as long
    lab.wait(11)
    assert ill not in {lab.connect(next(ports)) for _ in range(40)}
    lab.wait(10)
    assert ill in {lab.connect(next(ports)) for _ in range(40)}
    assert (lab.pool.backends[ill].failures, lab.pool.backends[ill].ejections) == (0, 0)
    lab.finish()


def test_if_all_backends_refuse_all_are_asked() -> None:
    lab = Lab()
    for port in range(2000, 2060):
        refuse(lab, port, syn(lab, port))
    assert all(backend.ejections == 1 for backend in lab.pool.backends.values())
    assert {syn(lab, port) for port in range(3000, 3060)} == set(names(3))
    lab.finish()


def test_a_client_that_gets_no_answer_is_given_another_backend() -> None:
    lab = Lab()
    first = syn(lab, 5000)
    assert syn(lab, 5000) == first, "at once it is a copy"
    lab.wait(1)
    second = syn(lab, 5000)
    assert second != first
    late = frames.tcp(first.split(":")[0], 80, CLIENT, 5000, SYN | ACK)
    assert lab.send("lan", late) == [], "too late: the client would hear two backends"
    lab.passes("lan", frames.tcp(second.split(":")[0], 80, CLIENT, 5000, SYN | ACK), End(second.split(":")[0], 80))
    lab.passes("wan", frames.tcp(CLIENT, 5000, *SERVICE, ACK), End(second.split(":")[0], 80))
    lab.talks(5000, second)
    backends = lab.pool.backends
    assert (backends[first].open, backends[first].failures, backends[second].open) == (0, 1, 1)
    lab.finish()


def test_without_another_backend_the_connection_stays_with_its_own() -> None:
    lab = Lab(backends=["10.0.0.2:80"])
    for _ in range(6):
        assert syn(lab, 5000) == "10.0.0.2:80"
        lab.wait(1)
    assert lab.pool.backends["10.0.0.2:80"].open == 1
    lab.embedded.ask("balancer", "weigh", ("10.0.0.2:80", 0))
    lab.wait(1)
    assert syn(lab, 5000) == "10.0.0.2:80"
    lab.finish()


@pytest.mark.parametrize(
    "wrong",
    [
        {"service": "203.0.113.10"}, {"service": "x:80"}, {"backends": ["10.0.0.1:0"]}, {"backends": ["10.0.0.1:80=-1"]},
        {"backends": ["10.0.0.1:80=5000"]}, {"table_size": 5000}, {"table_size": 65537}, {"table_size": 1},
        {"failures_max": -1}, {"ejected_s": 0.0},
    ],
)  # fmt: skip
def test_settings_that_cannot_be(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="cannot start"):
        Lab(**wrong)


def test_a_message_that_cannot_be_changes_nothing() -> None:
    lab = Lab()
    for message, args in (("weigh", ("10.9.9.9:80", 1)), ("weigh", ("10.0.0.2:80", 1001)), ("change", (["nonsense"],))):
        with pytest.raises(OwnerError):
            lab.embedded.ask("balancer", message, args)
    assert list(lab.pool.backends) == names(3)
    lab.finish()


def test_random_packets(tmp_path: Path) -> None:
    """Whatever the flags and the order: what leaves is translated right, and to one backend while a connection lives."""
    lab, chance = Lab(tmp_path / "log"), random.Random(5)
    backend_of: dict[tuple[str, int], End] = {}
    for _ in range(3000):
        client = (chance.choice([CLIENT, OTHER]), chance.randrange(5000, 5010))
        flags = chance.choice([SYN, SYN | ACK, ACK, FIN | ACK, RST, chance.randrange(64)])
        if chance.random() < 0.5 or client not in backend_of:
            packet = frames.tcp(*client, *SERVICE, flags)
            left = lab.send("wan", packet)
            if client not in backend_of:
                opens = not flags & (FIN | RST) and flags & (SYN | ACK) != SYN | ACK
                assert len(left) == opens
                if opens:
                    backend_of[client] = translated(packet, left[0]).destination
            else:
                assert translated(packet, left[0]) == Tuple(6, End(*client), backend_of[client])
        else:
            packet = frames.tcp(*backend_of[client], *client, flags)
            (back,) = lab.send("lan", packet)
            assert translated(packet, back) == Tuple(6, End(*SERVICE), End(*client))
    lab.finish()


def test_ipv6() -> None:
    lab = Lab(service="[2001:db8::10]:80", backends=["[fd00::2]:8080"])

    def frame(source: str, sport: int, destination: str, dport: int, hop: int = 64) -> bytes:
        from ipaddress import ip_address

        tcp = dpkt.tcp.TCP(sport=sport, dport=dport, flags=SYN)
        ip = dpkt.ip6.IP6(src=ip_address(source).packed, dst=ip_address(destination).packed, nxt=6, hlim=hop, data=tcp)
        ip.plen = 20
        return bytes(frames.ethernet(bytes(ip), kind=0x86DD))

    came, left = frame("2001:db8::99", 5000, "2001:db8::10", 80), frame("2001:db8::99", 5000, "fd00::2", 8080, 63)
    assert lab.send("wan", came) == [left]
    back, out = frame("fd00::2", 8080, "2001:db8::99", 5000), frame("2001:db8::10", 80, "2001:db8::99", 5000, 63)
    assert lab.send("lan", back) == [out]
    lab.finish()


def test_a_capture(tmp_path: Path) -> None:
    """Real connections to one server, played to two in its place."""
    capture, out, log = CAPTURES / "ftp.pcap", tmp_path / "out.pcap", tmp_path / "log"
    flows = [dissect(frame) for _, frame, _ in read_capture(str(capture))]
    packets = [packet for packet in flows if isinstance(packet, Packet) and packet.flow.protocol == 6]
    client, server = packets[0].flow.source.address, packets[0].flow.destination
    ours = [p for p in packets if server in (p.flow.source, p.flow.destination)]
    command = [
        "run",
        "actors.load_balancer:LoadBalancer",
        "--read",
        str(capture),
        "--inside",
        f"{client}/32",
        "--quiet",
    ]
    command += ["--set", f"service={server.address}:{server.port}", "--set", "backends=192.0.2.1:2100,192.0.2.2:2100"]
    assert main([*command, "--write", str(out), "--log", str(log)]) == 0
    left = [
        packet for packet in (dissect(frame) for _, frame, _ in read_capture(str(out))) if isinstance(packet, Packet)
    ]
    assert len(left) == len(ours) > 5
    for before, after in zip(ours, left, strict=True):
        assert differences(before.addressed(after.flow), after.frame) == ""
        flow = after.flow if before.flow.destination == server else after.flow.reversed()
        assert flow.source == (before.flow if before.flow.destination == server else before.flow.reversed()).source
        mine = flow.destination
        assert mine == server if before.flow.source == server else mine.address.startswith("192.0.2.")
    with History(log) as history:
        assert verify(history).problem is None
