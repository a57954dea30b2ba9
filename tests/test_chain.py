"""Chains against their members on machines of their own, and what is different: offloads, records, ends."""

from __future__ import annotations

import random
from collections import Counter
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any, ClassVar

import dpkt
import pytest

from actornet import (
    DROP,
    FORWARD,
    OFFLOADED,
    Chain,
    FlowActor,
    Meter,
    Owner,
    Packet,
    Rewrite,
    StreamActor,
    Struct,
    setting,
)
from actornet.embedded import Embedded
from actornet.errors import UsageError
from actornet.flow import FlowActor as Actor
from actornet.journal import path_of
from actornet.load import load_nf
from actornet.owner import Moment
from actornet.ports.memory import MemoryPort
from actornet.ports.pcap import read_capture
from actornet.replay.history import History
from actornet.replay.verification import verify
from actornet.setting import assign, resolve, settings_of
from actors.firewall import Firewall
from actors.ids import IDS
from actors.load_balancer import LoadBalancer
from actors.nat import SourceNAT
from tests import frames
from tests.nat_model import Packet as Dissected
from tests.nat_model import dissect

CAPTURES = Path(__file__).parent / "captures"
A, P, EXTERNAL = "10.0.0.2", "198.51.100.1", "203.0.113.1"
FIN, SYN, RST, ACK = 1, 2, 4, 16
SECOND = 10**9


class Box:
    """A function between two memory ports, in virtual time."""

    def __init__(self, nf: type[Actor], log: Path | None = None, **settings: Any) -> None:
        self.ports = {"lan": MemoryPort("lan"), "wan": MemoryPort("wan")}
        self.nf, self.log, self.settings = nf, log, settings
        self.errors: list[BaseException] = []
        self.now_ns = 1_700_000_000 * SECOND
        self.embedded = self.start()

    def start(self) -> Embedded:
        return Embedded(
            self.nf, list(self.ports.values()), self.settings, str(self.log) if self.log else None, flows_max=1 << 13,
            virtual_time=True, on_error=lambda flow, handler, error: self.errors.append(error),
        )  # fmt: skip

    def send(self, port: str, *packets: bytes, now_ns: int | None = None) -> dict[str, list[bytes]]:
        """What leaves by each port when these come in."""
        self.now_ns = now_ns or self.now_ns
        self.ports[port].feed([(self.now_ns, packet) for packet in packets])
        while len(self.ports[port]):
            self.embedded.run_burst()
        return {name: [bytes(frame) for _, frame in memory.take()] for name, memory in self.ports.items()}

    def lan(self, *packets: bytes) -> list[bytes]:
        left = self.send("lan", *packets)
        assert not left["lan"]
        return left["wan"]

    def wan(self, *packets: bytes) -> list[bytes]:
        left = self.send("wan", *packets)
        assert not left["wan"]
        return left["lan"]

    def wait(self, seconds: float) -> None:
        for _ in range(2):
            self.now_ns += int(seconds * SECOND / 2)
            self.send("lan", frames.ethernet(bytes(40), kind=0x88CC))
            for _ in range(20):
                self.embedded.run_burst()

    def crash(self) -> None:
        assert self.embedded._log is not None
        self.embedded._log.close()
        self.embedded = self.start()

    def state(self, owner: str) -> Any:
        return self.embedded.journal.replica.owners[owner].state

    def count(self, name: str) -> int:
        return self.embedded.counters()[name]

    def finish(self) -> None:
        self.embedded.finish()
        assert self.errors == [] and self.embedded.core.entries == 0
        if self.log:
            with History(self.log) as history:
                assert verify(history).problem is None


# ----------------------------------------------------------------------- as if each stood on a machine of its own


class Machines:
    """Functions on machines of their own, one behind the other: what a chain of them is compared with."""

    def __init__(self, *functions: type[Actor], **settings: Any) -> None:
        self.boxes = [
            Box(nf, **{name: value for name, value in settings.items() if name in settings_of(nf)}) for nf in functions
        ]

    def send(self, port: str, packet: bytes, now_ns: int) -> dict[str, list[bytes]]:
        came = [packet]
        for box in self.boxes if port == "lan" else self.boxes[::-1]:
            left = [box.send(port, packet, now_ns=now_ns) for packet in came]
            assert not any(sent[port] for sent in left)
            came = [packet for sent in left for packet in sent["wan" if port == "lan" else "lan"]]
        return {port: [], "wan" if port == "lan" else "lan": came}


def readdressed(frame: bytes, to: tuple[str, int], source: bool = False) -> bytes:
    """The packet with another destination (or source), checksums computed anew."""
    ethernet = dpkt.ethernet.Ethernet(frame)
    ip = ethernet.data
    if source:
        ip.src, ip.data.sport = ip_address(to[0]).packed, to[1]
    else:
        ip.dst, ip.data.dport = ip_address(to[0]).packed, to[1]
    ip.sum = ip.data.sum = 0
    return bytes(ethernet)


def with_ttl(frame: bytes, more: int) -> bytes:
    """A frame with a higher TTL, its header's checksum updated."""
    assert more == 0 or frame[12:14] == b"\x08\x00"
    ip = bytearray(frame)
    if more:
        ip[22] += more
        total = (int.from_bytes(ip[24:26], "big") ^ 0xFFFF) + (more << 8)
        ip[24:26] = (((total & 0xFFFF) + (total >> 16)) ^ 0xFFFF).to_bytes(2, "big")
    return bytes(ip)


CHAINS: list[tuple[tuple[type[Actor], ...], int]] = [
    ((Firewall, SourceNAT), 0),
    ((SourceNAT, Firewall), 0),
    ((Firewall, LoadBalancer, SourceNAT), 1),  # two that rewrite: as machines, two hops
    ((Firewall, Firewall), 0),
    ((SourceNAT,), 0),
]


@pytest.mark.parametrize("name", ["skype.pcap", "ftp.pcap", "bittorrent.pcap", "chrome.pcap", "quic.pcap"])
@pytest.mark.parametrize(("functions", "hops"), CHAINS)
def test_a_chain_does_what_its_members_do_one_behind_the_other(
    functions: tuple[type[Actor], ...], hops: int, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Packet for packet, checksums included, on real traffic whose answers follow what was translated."""
    monkeypatch.setattr(Moment, "random", lambda moment: NoChance())
    first = next(p for p in (dissect(f) for _, f, _ in read_capture(str(CAPTURES / name))) if isinstance(p, Dissected))
    inside = ip_network(f"{first.flow.source.address}/24", strict=False)
    server = f"{first.flow.destination.address}:{first.flow.destination.port}"
    settings: dict[str, Any] = {"address": EXTERNAL}
    if LoadBalancer in functions:
        settings |= {"service": server, "backends": ["192.0.2.1:80", "192.0.2.2:80"], "pass_others": True}
    only = Firewall in functions and SourceNAT not in functions
    chain = Box(Chain(*functions), tmp_path / "log", **({} if only else settings))
    machines = Machines(*functions, **settings)
    outside: dict[Any, Any] = {}
    left, came_back = 0, 0
    for time_ns, frame, _ in read_capture(str(CAPTURES / name)):
        packet = dissect(frame)
        port = "lan"
        if isinstance(packet, Dissected):
            port = "lan" if ip_address(packet.flow.source.address) in inside else "wan"
            if port == "wan" and packet.flow in outside and packet.flow.protocol in (6, 17) and not packet.inner:
                to = outside[packet.flow]
                frame = readdressed(readdressed(frame, to.source), to.destination, source=True)
        got, expected = chain.send(port, frame, now_ns=time_ns), machines.send(port, frame, time_ns)
        if not isinstance(packet, Dissected) or packet.ttl > 2:
            lowered = {side: [with_ttl(f, hops * rewritten(f, frame)) for f in sent] for side, sent in expected.items()}
            assert got == lowered, packet
        if port == "lan" and got["wan"] and isinstance(packet, Dissected):
            emitted = dissect(got["wan"][0])
            assert isinstance(emitted, Dissected)
            outside[packet.flow.reversed()] = emitted.flow
        left, came_back = left + len(got["wan"]), came_back + len(got["lan"])
    assert left > 20 and (came_back > 5 or name == "bittorrent.pcap")
    assert chain.count("offloaded") > 0
    chain.finish()


class NoChance(random.Random):
    """Both sides get the same external ports where the inside one is taken."""

    def randrange(self, *bounds: int, **more: int) -> int:
        return 0


def rewritten(frame: bytes, came: bytes) -> bool:
    """Whether both of two translating machines took this packet for one of theirs: it lost two hops."""
    return len(frame) > 22 and frame[12:14] == b"\x08\x00" and frame[22] + 2 == came[22]


# ----------------------------------------------------------------------------------------- offloads and records


def tcp(source: str, port: int, flags: int, destination: str = P, to: int = 80, data: bytes = b"") -> bytes:
    return frames.tcp(source, port, destination, to, flags, data)


def opened(box: Box, port: int = 5000) -> None:
    """A connection from A through a NAT that is established."""
    assert box.lan(tcp(A, port, SYN)) and box.wan(tcp(P, 80, SYN | ACK, EXTERNAL, port)) and box.lan(tcp(A, port, ACK))


def test_the_composed_decision_is_the_cores() -> None:
    """Data in both directions is translated without Python, and members that the record has are not in memory."""
    box = Box(Chain(Firewall, SourceNAT), address=EXTERNAL)
    opened(box)
    handled = box.count("handled")
    for data in (b"one", b"two"):
        (there,) = box.lan(tcp(A, 5000, ACK, data=data))
        (back,) = box.wan(tcp(P, 80, ACK, EXTERNAL, 5000, data=data))
        for frame, source, destination in ((there, (EXTERNAL, 5000), (P, 80)), (back, (P, 80), (A, 5000))):
            packet = dissect(frame)
            assert isinstance(packet, Dissected) and packet.ttl == 63
            assert (packet.flow.source, packet.flow.destination) == (source, destination)
    assert box.count("handled") == handled
    (actor,) = box.embedded.core.actors()
    assert actor._members is None and len(actor._bound()) == 2
    box.finish()


def test_a_policy_change_reaches_connections_that_are_offloaded() -> None:
    box = Box(Chain(Firewall, SourceNAT), address=EXTERNAL)
    opened(box)
    box.embedded.ask("judge", "change", (["deny to any port 80", "allow on lan"],))
    assert box.lan(tcp(A, 5000, ACK)) == [] and box.wan(tcp(P, 80, ACK, EXTERNAL, 5000)) == []
    assert box.state("wan-ports").by_inside == {}, "the other member has closed, too"
    box.finish()


@pytest.mark.parametrize("when", ["opening", "open", "closing"])
def test_a_takeover_keeps_all_members(when: str, tmp_path: Path) -> None:
    """G6: one record has the state, keys and offloads of all."""
    box = Box(Chain(Firewall, LoadBalancer, SourceNAT), tmp_path / "log", address=EXTERNAL, service=f"{P}:80",
              backends=["192.0.2.1:8080"])  # fmt: skip
    server = ("192.0.2.1", 8080)
    (syn,) = box.lan(tcp(A, 5000, SYN))
    packet = dissect(syn)
    assert isinstance(packet, Dissected) and packet.flow.destination == server
    back = packet.flow.source
    if when == "opening":
        box.crash()
    assert box.wan(frames.tcp(*server, *back, SYN | ACK)) and box.lan(tcp(A, 5000, ACK))
    if when == "open":
        box.crash()
        assert box.embedded.core.entries == 2
    handled = box.count("handled")
    assert box.wan(frames.tcp(*server, *back, ACK, b"x")) and box.lan(tcp(A, 5000, ACK, data=b"y"))
    assert box.count("handled") == handled
    assert box.lan(tcp(A, 5000, FIN | ACK)) and box.wan(frames.tcp(*server, *back, FIN | ACK))
    if when == "closing":
        box.crash()
    box.wait(250)
    assert box.embedded.core.entries == 0 and box.state("balancer").backends["192.0.2.1:8080"].open == 0
    assert box.state("wan-ports").by_inside == {}
    box.finish()


def test_time_to_live_goes_down_once_and_runs_out_once() -> None:
    box = Box(Chain(LoadBalancer, SourceNAT), address=EXTERNAL, pass_others=True)
    (left,) = box.lan(frames.udp(A, 5000, P, 53, ttl=2))
    assert left[22] == 1 and box.lan(frames.udp(A, 5000, P, 53, ttl=1)) == [] == box.lan(
        frames.udp(A, 5001, P, 53, ttl=1)
    )
    assert box.count("ttl_expired") == 2
    box.finish()


# --------------------------------------------------------------------------------------------- opening and closing


class Steps(FlowActor):
    """Notes what it is called for."""

    noted: ClassVar[list[str]] = []
    refuses = setting(False, "refuse every flow")
    name = "?"
    seen: int = 0

    def on_open(self, packet: Packet) -> Any:
        self.noted.append(f"{self.name} opens {packet.port}")
        return DROP if self.refuses else None

    def on_packet(self, packet: Packet) -> Any:
        self.seen += 1
        self.noted.append(f"{self.name} {packet.direction.name}")
        return FORWARD

    def on_close(self) -> None:
        self.noted.append(f"{self.name} closes")


class First(Steps):
    name = "first"


class Second(Steps):
    name = "second"


@pytest.fixture
def noted() -> list[str]:
    Steps.noted.clear()
    return Steps.noted


def test_members_are_met_in_order_and_in_reverse_order(noted: list[str]) -> None:
    box = Box(Chain(First, Second))
    assert box.lan(frames.udp(A, 1, P, 2)) and box.wan(frames.udp(P, 2, A, 1))
    assert noted == [
        "first opens lan",
        "first ORIGINAL",
        "second opens lan",
        "second ORIGINAL",
        "second REPLY",
        "first REPLY",
    ]
    box.finish()
    assert noted[6:] == ["second closes", "first closes"]
    noted.clear()
    box = Box(Chain(First, Second))
    assert box.wan(frames.udp(P, 2, A, 1))
    box.finish()
    assert noted == [
        "second opens wan",
        "second ORIGINAL",
        "first opens wan",
        "first ORIGINAL",
        "first closes",
        "second closes",
    ]


def test_who_refuses_closes_those_before_it(noted: list[str]) -> None:
    box = Box(Chain(First, Second), **{"Second.refuses": True})
    assert box.lan(frames.udp(A, 1, P, 2)) == [] and box.embedded.core.entries == 0
    assert noted == ["first opens lan", "first ORIGINAL", "second opens lan", "first closes"]
    assert box.count("flows_refused") == 1
    box.finish()


class Fails(Steps):
    name = "fails"

    def on_packet(self, packet: Packet) -> Any:
        raise ValueError("as a test")


class FailsOpen(Fails):
    fail = FORWARD


def test_an_error_of_a_member_ends_its_flow_alone(noted: list[str]) -> None:
    box = Box(Chain(First, Fails))
    assert box.lan(frames.udp(A, 1, P, 2)) == [] and box.count("handler_error") == 1
    assert noted[-2:] == ["fails closes", "first closes"] and box.embedded.core.entries == 0
    assert [str(error) for error in box.errors] == ["as a test"]
    box.errors.clear()
    box.finish()


def test_a_chain_fails_open_only_if_all_do() -> None:
    assert Chain(First, FailsOpen).fail is DROP and Chain(FailsOpen).fail is FORWARD


class Waits(FlowActor):
    deadline_s = 0.05

    async def on_packet(self, packet: Packet) -> Any:
        import asyncio

        await asyncio.sleep(60)


def test_a_deadline_is_kept(noted: list[str]) -> None:
    import time

    box = Box(Chain(First, Waits))
    box.lan(frames.udp(A, 1, P, 2))
    begun = time.monotonic()
    while not box.errors and time.monotonic() < begun + 5:
        box.embedded.run_burst()
    assert [type(error) for error in box.errors] == [TimeoutError] and noted[-1] == "first closes"
    box.errors.clear()
    box.finish()


def test_every_members_fields_are_in_the_record(tmp_path: Path, noted: list[str]) -> None:
    box = Box(Chain(First, Second), tmp_path / "log")
    for _ in range(3):
        box.lan(frames.udp(A, 1, P, 2))
    box.crash()
    box.lan(frames.udp(A, 1, P, 2))
    (actor,) = box.embedded.core.actors()
    assert [member.seen for member in actor._members] == [4, 4]
    assert not any("opens" in note for note in noted[4:]), "a restored member was opened already"
    box.finish()


def test_idle_for_the_longest_time_out() -> None:
    class Short(FlowActor):
        idle_s = 5.0

        def on_packet(self, packet: Packet) -> Any:
            return FORWARD

    class Long(Short):
        idle_s = 100.0

    box = Box(Chain(Short, Long))
    box.lan(frames.udp(A, 1, P, 2))
    box.wait(50)
    assert box.embedded.core.entries == 2
    box.wait(110)
    assert box.embedded.core.entries == 0
    box.finish()


# ---------------------------------------------------------------------------------------------- streams in chains


class Shout(StreamActor):
    """Makes each exclamation mark three."""

    inline = True

    def on_data(self, direction: Any, data: bytes) -> Any:
        return data.replace(b"!", b"!!!")


@pytest.mark.parametrize("functions", [(Shout, SourceNAT), (SourceNAT, Shout), (Firewall, Shout, SourceNAT)])
def test_an_editing_stream_is_translated(functions: tuple[type[Actor], ...]) -> None:
    """Sequence numbers of both directions fit, and so do the checksums."""
    box = Box(Chain(*functions), address=EXTERNAL)
    assert box.lan(frames.tcp(A, 5000, P, 80, SYN, seq=99))
    assert box.wan(frames.tcp(P, 80, EXTERNAL, 5000, SYN | ACK, seq=499, ack=100))
    assert box.lan(frames.tcp(A, 5000, P, 80, ACK, seq=100, ack=500))
    (there,) = box.lan(frames.tcp(A, 5000, P, 80, ACK, b"hi! ", seq=100, ack=500))
    (more,) = box.lan(frames.tcp(A, 5000, P, 80, ACK, b"you", seq=104, ack=500))
    (back,) = box.wan(frames.tcp(P, 80, EXTERNAL, 5000, ACK, b"oh!", seq=500, ack=109))
    for frame, seq, ack, data in ((there, 100, 500, b"hi!!! "), (more, 106, 500, b"you"), (back, 500, 107, b"oh!!!")):
        ip = dpkt.ethernet.Ethernet(frame).data
        assert (ip.data.seq, ip.data.ack, ip.data.data) == (seq, ack, data)
        fresh = dpkt.ethernet.Ethernet(frame)
        fresh.data.sum = fresh.data.data.sum = 0
        assert bytes(fresh) == frame, "checksums"
    assert dpkt.ethernet.Ethernet(back).data.dst == ip_address(A).packed
    box.finish()


def test_an_ids_behind_a_nat_resets_both_ends() -> None:
    box = Box(Chain(SourceNAT, IDS), address=EXTERNAL)
    opened(box)
    attack = frames.tcp(A, 5000, P, 80, ACK, b"GET /?q=<script>", seq=2, ack=1)
    left = box.send("lan", attack)
    to_server, to_client = (dissect(left[port][0]) for port in ("wan", "lan"))
    assert isinstance(to_server, Dissected) and isinstance(to_client, Dissected)
    assert to_server.flow.source == (EXTERNAL, 5000) and to_server.tcp_flags & RST
    assert to_client.flow.destination == (A, 5000) and to_client.flow.source == (P, 80) and to_client.tcp_flags & RST
    assert box.lan(frames.tcp(A, 5000, P, 80, ACK, b"more", seq=20)) == []
    box.finish()


# ------------------------------------------------------------------------------------- names, settings, mistakes


def test_settings_are_the_members() -> None:
    nf = Chain(Firewall, SourceNAT)
    values = resolve(nf, {"udp_idle_s": "7", "SourceNAT.udp_idle_s": 130, "address": "192.0.2.7"})
    assert values["Firewall.udp_idle_s"] == 7.0 and values["SourceNAT.udp_idle_s"] == 130.0
    assert values["SourceNAT.address"] == "192.0.2.7" and "Firewall.address" not in values
    assign(nf, values)
    assert nf.chained["Firewall"].udp_idle_s == 7.0 and nf.chained["SourceNAT"].udp_idle_s == 130.0
    assert resolve(Firewall, {})["udp_idle_s"] == 300.0, "a function alone is not touched"
    with pytest.raises(UsageError, match=r"has no setting 'adress'"):
        resolve(nf, {"adress": "x"})
    with pytest.raises(UsageError, match=r"'Firewall.udp_idle_s' must be float"):
        resolve(nf, {"udp_idle_s": "soon"})


def test_a_chain_is_found_by_its_members_paths() -> None:
    spec = "actors.firewall:Firewall+actors.nat:SourceNAT"
    nf = load_nf(spec)
    assert nf is Chain(Firewall, SourceNAT) and path_of(nf) == spec and nf.__name__ == "Firewall+SourceNAT"
    assert load_nf("tests.test_chain:EDGE") is Chain(Firewall, SourceNAT)
    with pytest.raises(UsageError, match="no module"):
        load_nf("actors.firewall:Firewall+actors.nothing:X")


EDGE = Chain(Firewall, SourceNAT)


class Count(Struct):
    n: int = 0


class Counts(Owner[Count]):
    def add(self) -> None:
        self.state.n += 1


class Mine(FlowActor):
    judge = Counts.named("judge")


class Metered(FlowActor):
    def on_packet(self, packet: Packet) -> Any:
        self.offload(FORWARD, meter=Meter(packets_per_s=1, burst=1))
        return OFFLOADED


class Turns(FlowActor):
    def on_packet(self, packet: Packet) -> Any:
        return Rewrite("lan")


def test_what_does_not_go_together() -> None:
    with pytest.raises(UsageError, match="owner named 'judge'"):
        Chain(Firewall, Mine)
    with pytest.raises(UsageError, match="members"):
        Chain()
    with pytest.raises(UsageError, match="no network function"):
        Chain(Firewall, EDGE)
    with pytest.raises(UsageError, match="no network function"):
        Chain(Count)  # type: ignore[arg-type]
    for nf, message in ((Metered, "no meter"), (Turns, "back out of port lan")):
        box = Box(Chain(First, nf))
        assert box.lan(frames.udp(A, 1, P, 2)) == [] and message in str(box.errors[0])
        box.errors.clear()
        box.finish()


def test_hostile_packets_do_no_harm() -> None:
    """G9: any flags, to and from a few endpoints, through everything at once."""
    chance = random.Random(3)
    box = Box(
        Chain(Firewall, IDS, SourceNAT), address=EXTERNAL, **{"Firewall.rules": ["allow"], "midstream": ["lan", "wan"]}
    )
    for _ in range(3000):
        inside, server = (A, chance.randrange(5000, 5004)), (P, 80)
        flags, data = chance.randrange(64), bytes(chance.randrange(20))
        more = {"seq": chance.randrange(90, 120), "ack": chance.randrange(90, 120)}
        if chance.random() < 0.5:
            box.send("lan", frames.tcp(*inside, *server, flags, data, **more))
        else:
            box.send("wan", frames.tcp(*server, EXTERNAL, inside[1], flags, data, **more))
    box.finish()
    assert Counter(box.state("wan-ports").by_inside) == {}
