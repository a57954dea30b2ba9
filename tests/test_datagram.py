"""Datagrams with a payload of the network function's own: answers, and others' with their payload replaced."""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import dpkt
import pytest

from actornet import FORWARD, Chain, FlowActor, Packet, Rewrite
from actornet.embedded import Embedded
from actornet.engine.verdict import Answer
from actornet.engine.wire import TUNNELS, checksums_right, parse
from actornet.errors import UsageError
from actornet.limits import DATAGRAM_CUT_BYTES
from actornet.ports.memory import MemoryPort
from actornet.testing.netns import Lab
from actornet.testing.traffic import udp_socket
from actors.nat import SourceNAT
from tests import frames
from tests.test_core import SECOND, Bench, SlowLink
from tests.test_neighbors import NODE_MAC, between
from tests.test_tunnels import WRAPS, udp_packet

CLIENT, SERVER = "10.0.0.2", "198.51.100.1"
ASKED = frames.udp(CLIENT, 1000, SERVER, 53, b"who?")


class Says(FlowActor):
    """Decides each packet by the verdict at hand."""

    verdict: ClassVar[Any] = FORWARD

    def on_packet(self, packet: Packet) -> Any:
        verdict: Any = self.verdict
        return verdict(packet) if callable(verdict) else verdict


class SaysInside(Says):
    inner = TUNNELS


class Joins(Says):
    fragments = "reassemble"


@pytest.fixture
def says(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Bench]:
    def make(verdict: Any, nf: type[FlowActor] = Says, **keywords: Any) -> Bench:
        monkeypatch.setattr(Says, "verdict", staticmethod(verdict) if callable(verdict) else verdict)
        return Bench(nf, **keywords)

    return make


def tagged(frame: bytes, *tags: int) -> bytes:
    return frame[:12] + b"".join(b"\x81\0" + tag.to_bytes(2, "big") for tag in tags) + frame[12:]


def with_options(frame: bytes) -> bytes:
    """The IPv4 frame with eight bytes of options, and a right checksum."""
    ip = dpkt.ip.IP(frame[14:])
    ip.hl, ip.opts, ip.len, ip.sum = 7, b"\x94\x04\0\0\x01\x01\x01\0", ip.len + 8, 0
    return frame[:14] + bytes(ip)


def ipv6_udp(data: bytes) -> bytes:
    return udp_packet(53, data, True, six=True)


def taken(port: MemoryPort) -> list[bytes]:
    return [bytes(frame) for _, frame in port.take()]


@pytest.mark.parametrize("payload", [b"", b"x", b"It is the one that asks." * 20])
@pytest.mark.parametrize(
    ("asked", "tags"),
    [(ASKED, 0), (tagged(ASKED, 7), 4), (tagged(ASKED, 7, 9), 8), (with_options(ASKED), 0), (ipv6_udp(b"who?"), 0)],
    ids=["ipv4", "vlan", "qinq", "options", "ipv6"],
)
def test_an_answer_comes_from_whom_was_asked(
    says: Callable[..., Bench], asked: bytes, tags: int, payload: bytes
) -> None:
    """By the port at which the question arrived, its tags as they were; options were for the way there."""
    node = says(Answer(payload))
    node.lan_in(asked)
    (answer,) = taken(node.lan)
    assert node.out() == [] and node.count("answered_by_nf") == 1 and node.errors == []
    question = parse(asked)
    assert checksums_right(answer) and parse(answer)["flow"] == question["flow"].reversed()
    assert answer[:12] == asked[6:12] + asked[:6] and answer[12 : 14 + tags] == asked[12 : 14 + tags]
    ip = dpkt.ethernet.Ethernet(answer).data
    while not isinstance(ip, dpkt.ip.IP | dpkt.ip6.IP6):
        ip = ip.data
    assert ip.data.data == payload and ip.data.ulen == 8 + len(payload) and ip.data.sum != 0
    if isinstance(ip, dpkt.ip.IP):
        assert (ip.hl, ip.ttl, ip.len) == (5, 64, 28 + len(payload))
    else:
        assert (ip.hlim, ip.plen) == (64, 8 + len(payload))


@pytest.mark.parametrize("payload", [b"", b"y", b"somebody else" * 90])
@pytest.mark.parametrize("asked", [ASKED, with_options(ASKED), ipv6_udp(b"who?")], ids=["ipv4", "options", "ipv6"])
def test_a_payload_takes_the_place_of_the_packets_own(says: Callable[..., Bench], asked: bytes, payload: bytes) -> None:
    """Headers stay, options too, but for what the rewrite changes; lengths and checksums follow."""
    node = says(Rewrite(destination_port=5353, payload=payload))
    node.lan_in(asked)
    (sent,) = node.out()
    was, now = parse(asked), parse(sent)
    assert checksums_right(sent) and now["flow"].destination_port == 5353 and now["ttl"] == was["ttl"] - 1
    assert sent.endswith(payload) and len(sent) - len(payload) == len(asked) - len(b"who?")
    assert (with_options(ASKED) is not asked) or sent[34:42] == asked[34:42]


@pytest.mark.parametrize("six", [False, True], ids=["ipv4", "ipv6"])
@pytest.mark.parametrize("back", [False, True], ids=["on", "back"])
def test_what_no_link_carries_leaves_in_fragments(says: Callable[..., Bench], six: bool, back: bool) -> None:
    asked = ipv6_udp(b"who?") if six else bytearray(ASKED)
    if not six:
        ip = dpkt.ip.IP(bytes(asked[14:]))
        ip.df, ip.sum = 1, 0
        asked = ASKED[:14] + bytes(ip)
    payload = bytes(range(256)) * 20
    node = says(Answer(payload) if back else Rewrite(payload=payload))
    node.lan_in(asked, asked)
    pieces = taken(node.lan if back else node.wan)
    half = len(pieces) // 2
    assert max(len(piece) for piece in pieces) <= 14 + DATAGRAM_CUT_BYTES and node.count("refragmented") == 2
    named = [piece[58:62] if six else piece[18:20] for piece in pieces]
    assert len(set(named)) == 2 and named[0] == named[half - 1] != named[half]
    whole = frames.joined(pieces[:half])
    assert checksums_right(whole) and whole.endswith(payload)


def test_a_larger_packet_says_what_its_link_carries(says: Callable[..., Bench]) -> None:
    """1,500 bytes came, so 1,500 can go, but no more."""
    node = says(
        lambda packet: Answer(packet.payload) if packet.destination_port == 53 else Answer(packet.payload + b".")
    )
    full = b"f" * (1500 - 28)
    node.lan_in(frames.udp(CLIENT, 1000, SERVER, 53, full), frames.udp(CLIENT, 1000, SERVER, 54, full))
    assert [len(frame) for frame in taken(node.lan)] == [1514, 1514, 14 + 20 + 1]


def test_a_question_in_fragments_is_answered_in_fragments_as_large(says: Callable[..., Bench]) -> None:
    node = says(lambda packet: packet.answer(packet.payload[::-1]), Joins)
    asked = frames.udp(CLIENT, 1000, SERVER, 53, bytes(range(250)) * 12)
    node.lan_in(*frames.fragments(asked, 1400))
    pieces = taken(node.lan)
    assert max(map(len, pieces)) <= 14 + 1400 and frames.joined(pieces).endswith(bytes(range(250))[::-1] * 12)


@pytest.mark.parametrize(
    ("nf", "packet", "verdict", "complaint"),
    [
        (Says, frames.tcp(CLIENT, 1000, SERVER, 80, 2), Answer(b"no"), "UDP datagrams only"),
        (Says, frames.tcp(CLIENT, 1000, SERVER, 80, 2), Rewrite(payload=b"no"), "UDP datagrams only"),
        (Says, frames.echo(CLIENT, SERVER, 7), Answer(b"no"), "UDP datagrams only"),
        (SaysInside, WRAPS[0][1](frames.udp(CLIENT, 1, SERVER, 2), True), Answer(b"no"), "in a tunnel"),
        (Says, ASKED, Answer(bytes(65508)), "cannot hold a payload of 65508 bytes"),
        (Says, ASKED, Rewrite(payload=bytes(1 << 17)), "cannot hold a payload of 131072 bytes"),
    ],
)
def test_what_cannot_be_made_fails_its_handler(
    says: Callable[..., Bench], nf: type[FlowActor], packet: bytes, verdict: Any, complaint: str
) -> None:
    """G9: the packet goes as `fail` says, the flow closes."""
    node = says(verdict, nf)
    node.lan_in(packet)
    ((_, handler, error),) = node.errors
    assert handler == "on_packet" and complaint in str(error) and isinstance(error, UsageError)
    assert node.count("handler_error") == 1 and taken(node.lan) == node.out() == [] and node.core.entries == 0


def test_the_largest_payload_there_is(says: Callable[..., Bench]) -> None:
    node = says(Answer(bytes(65507)))
    node.lan_in(ASKED)
    assert len(frames.joined(taken(node.lan))) == 14 + 65535 and node.errors == []


def test_only_bytes_are_a_payload() -> None:
    with pytest.raises(UsageError, match="a payload is bytes, not 'text'"):
        Answer("text")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="a payload is bytes, not 3"):
        Rewrite(payload=3)  # type: ignore[arg-type]
    assert Answer(bytearray(b"a")).payload == b"a" and Rewrite(payload=memoryview(b"b")).payload == b"b"
    assert repr(Answer(b"a")) == "Answer(b'a')" and "payload=b'b'" in repr(Rewrite(payload=b"b"))


class OffloadsIt(FlowActor):
    def on_packet(self, packet: Packet) -> Any:
        self.offload(Rewrite(payload=b"each the same"))
        return FORWARD


@pytest.mark.parametrize("nf", [OffloadsIt, Chain(OffloadsIt, Says)])
def test_a_payload_cannot_be_offloaded(nf: type[FlowActor]) -> None:
    node = Bench(nf)
    node.lan_in(ASKED)
    assert "cannot be offloaded" in str(node.errors[0][2])


class Counts(FlowActor):
    seen: int = 0

    def on_packet(self, packet: Packet) -> Any:
        self.seen += 1
        return packet.answer(bytes((self.seen,))) if packet.payload == b"ask" else FORWARD


def test_an_answer_waits_for_the_watermark() -> None:
    """G3: it may tell of state that only this node has yet. G1: it leaves behind what its flow sent before."""
    node = Bench(Counts, link=SlowLink())
    node.core.commit_to(0)
    asks, goes = (frames.udp(CLIENT, 1000, SERVER, 53, data) for data in (b"ask", b"go"))
    node.lan_in(asks, goes, asks)
    assert taken(node.lan) == node.out() == [] and node.core.held == 3
    node.core.commit_to(2)
    node.turn()
    assert [frame[42:] for frame in taken(node.lan)] == [b"\x01"] and len(node.out()) == 1
    node.core.commit_to(3)
    node.turn()
    assert [frame[42:] for frame in taken(node.lan)] == [b"\x03"] and node.core.held == 0


class Gate(FlowActor):
    """Lets through what goes out, and back in what it has let out; counts both."""

    connection = True
    ways: ClassVar[list[str]] = []

    def on_packet(self, packet: Packet) -> Any:
        self.ways.append(f"{packet.port} {packet.source} {packet.payload.decode()}")
        return Rewrite(decrement_ttl=False)


class Guard(FlowActor):
    def on_packet(self, packet: Packet) -> Any:
        if packet.payload == b"who?":
            return packet.answer(b"me")
        return Rewrite(payload=packet.payload + b"!", decrement_ttl=False)


def test_in_a_chain_an_answer_goes_back_through_those_before() -> None:
    """As the members would do on machines of their own: translated there and back, seen by the gate both times."""
    Gate.ways.clear()
    nf = Chain(Gate, SourceNAT, Guard)
    nf.prepare()
    lan, wan = MemoryPort("lan"), MemoryPort("wan")
    node = Embedded(nf, [lan, wan], {"SourceNAT.address": "203.0.113.1"}, virtual_time=True)
    lan.feed([(SECOND, ASKED), (SECOND, frames.udp(CLIENT, 1000, SERVER, 53, b"hello"))])
    while node.run_burst():
        pass
    (answer,), (passed,) = taken(lan), taken(wan)
    counts = node.counters()
    node.finish()
    assert (
        checksums_right(answer) and answer.endswith(b"me") and parse(answer)["flow"] == parse(ASKED)["flow"].reversed()
    )
    assert checksums_right(passed) and passed.endswith(b"hello!") and parse(passed)["flow"].source == "203.0.113.1"
    assert Gate.ways == [f"lan {CLIENT} who?", f"wan {SERVER} me", f"lan {CLIENT} hello"]
    assert counts["answered_by_nf"] == 1 and counts["handler_error"] == 0


class Hello(FlowActor):
    def on_packet(self, packet: Packet) -> Any:
        return packet.answer(b"here")


def test_on_a_routed_port_an_answer_goes_to_the_next_hop() -> None:
    """From the port's own MAC address, to that of its sender."""
    core, lan, _ = between(Hello, "10.0.0.1/24", "192.0.2.1/24")
    lan.feed([(SECOND, NODE_MAC + frames.LAN_MAC + frames.udp("10.0.0.2", 1000, "192.0.2.9", 53, b"?")[12:])])
    core.breathe()
    (answer,) = taken(lan)
    assert answer[:12] == frames.LAN_MAC + NODE_MAC and answer.endswith(b"here") and checksums_right(answer)


NF = """
from actornet import DROP, FlowActor, Owner, Packet, Rewrite, Struct

class Count(Struct):
    asked: int = 0

class Counter(Owner[Count]):
    def ask(self) -> int:
        self.state.asked += 1
        return self.state.asked

class Oracle(FlowActor):
    counter = Counter.named("counter")

    async def on_packet(self, packet: Packet):
        if packet.direction.name == "REPLY":
            return Rewrite(payload=packet.payload.upper())
        if packet.payload.startswith(b"count"):
            return packet.answer(b"%d %s" % (await self.counter.ask(), b"." * int(packet.payload[5:] or b"0")))
        self.bind(packet.flow.reversed())
        return Rewrite(payload=b"you said: " + packet.payload)
"""


@pytest.mark.root
@pytest.mark.parametrize("driver", ["af_packet", "af_xdp"])
def test_kernels_take_what_is_made(tmp_path: Path, driver: str) -> None:
    """Between hosts on either side of a node: answers, also in fragments, and payloads changed both ways."""
    (tmp_path / "oracle.py").write_text(NF)
    argv = [sys.executable, "-m", "actornet.cli.main", "run", f"{tmp_path}/oracle.py:Oracle"]
    argv += ["-i", f"lan=lan0:{driver}", "-i", f"wan=wan0:{driver}"]
    with Lab.single("172.16.0.1/24", "172.16.0.2/24", None) as lab, (tmp_path / "output").open("wb") as output:
        node = lab.popen("box", argv, stdout=output, stderr=output)
        server = lab.call("server", udp_socket, "172.16.0.2", 9000)
        client = lab.call("client", udp_socket, "172.16.0.1")
        with server, client:
            deadline = time.monotonic() + 15
            while not ask(client, b"count", 1, 0.2):
                assert node.poll() is None and time.monotonic() < deadline, (tmp_path / "output").read_text()
            number, dots = ask(client, b"count4000", 4000, 5).split()
            assert int(number) >= 2 and dots == b"." * 4000
            client.sendto(b"hello", ("172.16.0.2", 9000))
            server.settimeout(5)
            said, address = server.recvfrom(100)
            assert said == b"you said: hello"
            server.sendto(b"aha", address)
            assert client.recv(100) == b"AHA"
        node.terminate()
        assert node.wait(15) == 0


def ask(client: socket.socket, question: bytes, least: int, patience_s: float) -> bytes:
    """The first answer of at least so many bytes; none if it takes too long."""
    client.settimeout(patience_s)
    client.sendto(question, ("172.16.0.2", 9000))
    answer = b""
    with suppress(TimeoutError):
        while len(answer) < least:
            answer = client.recv(9000)
    return answer
