"""Flows inside GTP-U, VXLAN and GRE: keyed, handled and translated as others are; what carries them stays right."""

from __future__ import annotations

import json
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from ipaddress import ip_interface
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from actornet import DROP, FORWARD, OFFLOADED, FiveTuple, FlowActor, Packet, Rewrite
from actornet.embedded import Embedded
from actornet.engine.core import Core
from actornet.engine.wire import TUNNELS, checksums_right, parse, rewrite
from actornet.errors import UsageError
from actornet.ports.memory import MemoryPort
from actornet.ports.pcap import read_capture
from actornet.stream import StreamActor
from actornet.testing.netns import Lab
from actors.nat import SourceNAT
from tests import frames
from tests.test_core import SECOND, Bench

CAPTURES = Path(__file__).parent / "captures"
A, P, EXTERNAL = "10.0.0.2", "198.51.100.1", "203.0.113.1"
LEFT, RIGHT = "192.0.2.1", "192.0.2.2"
LEFT6, RIGHT6 = "2001:db8::1", "2001:db8::2"

Wrap = Callable[[bytes, bool], bytes]


def summed(data: bytes) -> int:
    """The one's complement sum of RFC 1071."""
    total = sum(int.from_bytes(data[at : at + 2].ljust(2, b"\0"), "big") for at in range(0, len(data), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def udp_packet(dport: int, data: bytes, checksum: bool, six: bool = False) -> bytes:
    header = (40000).to_bytes(2, "big") + dport.to_bytes(2, "big") + (8 + len(data)).to_bytes(2, "big")
    if six:
        addresses = socket.inet_pton(socket.AF_INET6, LEFT6) + socket.inet_pton(socket.AF_INET6, RIGHT6)
        ip = b"\x60\0\0\0" + header[4:6] + b"\x11\x40" + addresses
    else:
        addresses = socket.inet_aton(LEFT) + socket.inet_aton(RIGHT)
        ip = frames.ipv4(LEFT, RIGHT, 17, header + bytes(2) + data)[:20]
    pseudo = addresses + b"\0\x11" + header[4:6]
    value = (~summed(pseudo + header + data) & 0xFFFF or 0xFFFF) if checksum else 0
    return frames.ethernet(ip + header + value.to_bytes(2, "big") + data, 0x86DD if six else 0x0800)


def outer_udp_right(frame: bytes) -> bool:
    """Whether the first UDP checksum in the frame is right, or absent."""
    at = 14
    while frame[at - 2 : at] == b"\x81\0":
        at += 4
    six = frame[at] >> 4 == 6
    l4, addresses = (at + 40, frame[at + 8 : at + 40]) if six else (at + 20, frame[at + 12 : at + 20])
    length = int.from_bytes(frame[l4 + 4 : l4 + 6], "big")
    segment = frame[l4 : l4 + length]
    return segment[6:8] == b"\0\0" or summed(addresses + b"\0\x11" + segment[4:6] + segment) == 0xFFFF


def vxlan(frame: bytes, checksum: bool = False) -> bytes:
    return udp_packet(4789, b"\x08\0\0\0\0\x12\x34\0" + frame, checksum)


def vxlan6(frame: bytes, checksum: bool = False) -> bytes:
    return udp_packet(4789, b"\x08\0\0\0\0\x12\x34\0" + frame[:12] + b"\x81\0\0\7" + frame[12:], checksum, six=True)


def gtp_u(frame: bytes, checksum: bool = False) -> bytes:
    data = frame[14:]
    return udp_packet(2152, b"\x30\xff" + len(data).to_bytes(2, "big") + b"\0\0\x12\x34" + data, checksum)


def gtp_u_extended(frame: bytes, checksum: bool = False) -> bytes:
    """With a sequence number and two extension headers, as 5G's user plane has them."""
    data = b"\0\x01\0\x85" + b"\x01\x10\x05\xc0" + b"\x02" + bytes(6) + b"\0" + frame[14:]
    return udp_packet(2152, b"\x36\xff" + len(data).to_bytes(2, "big") + b"\0\0\x12\x34" + data, checksum)


def gre(frame: bytes, checksum: bool = False) -> bytes:
    body = frame[12:14] + b"\0\0\0\0" * checksum + b"\0\0\x12\x34" + frame[14:]
    header = bytes((0x20 | 0x80 * checksum, 0))
    if checksum:
        value = (~summed(header + body) & 0xFFFF).to_bytes(2, "big")
        body = body[:2] + value + body[4:]
    return frames.ethernet(frames.ipv4(LEFT, RIGHT, 47, header + body))


def gre_ethernet(frame: bytes, checksum: bool = False) -> bytes:
    """NVGRE, but for what its key means (RFC 7637)."""
    return frames.ethernet(frames.ipv4(LEFT, RIGHT, 47, b"\x20\0\x65\x58\0\0\x12\x34" + frame))


WRAPS: list[tuple[str, Wrap]] = [
    ("vxlan", vxlan),
    ("vxlan", vxlan6),
    ("gtp-u", gtp_u),
    ("gtp-u", gtp_u_extended),
    ("gre", gre),
    ("gre", gre_ethernet),
]
each_wrap = pytest.mark.parametrize(("name", "wrap"), WRAPS, ids=[wrap.__name__ for _, wrap in WRAPS])


def carrier_right(frame: bytes) -> bool:
    """Whether the checksums of what carries the packet are right: IPv4 header, UDP, GRE."""
    ip = frame[14:]
    if ip[0] >> 4 == 4 and summed(ip[:20]) != 0xFFFF:
        return False
    if ip[0] >> 4 == 4 and ip[9] == 47:
        return not ip[20] & 0x80 or summed(ip[20:]) == 0xFFFF
    return outer_udp_right(frame)


@each_wrap
@pytest.mark.parametrize("tag", [b"", b"\x81\0\0\5"], ids=["", "VLAN"])
def test_the_packet_inside_is_the_packet(name: str, wrap: Wrap, tag: bytes) -> None:
    seen: list[Any] = []

    class Watch(FlowActor):
        inner = TUNNELS

        def on_packet(self, packet: Packet) -> Any:
            seen.append((packet.tunnel, packet.tunnel_id, packet.flow, packet.payload, packet.outer))
            return FORWARD

    inside = frames.udp(A, 1000, P, 53, b"query")
    frame = wrap(inside, True)
    frame = frame[:12] + tag + frame[12:]
    node = Bench(Watch)
    node.lan_in(frame, inside)
    ends = (LEFT6, RIGHT6) if wrap is vxlan6 else (LEFT, RIGHT)
    number, ports = (47, (0, 0)) if name == "gre" else (17, (40000, 4789 if name == "vxlan" else 2152))
    outer = FiveTuple(number, ends[0], ports[0], ends[1], ports[1])
    flow = FiveTuple(17, A, 1000, P, 53)
    assert seen == [(name, 0x1234, flow, b"query", outer), (None, None, flow, b"query", None)]
    assert node.out() == [frame, inside]
    assert node.core.entries == 1, "one flow, wherever its packets come from"


@each_wrap
def test_only_tunnels_that_are_asked_for_are_opened(name: str, wrap: Wrap) -> None:
    frame = wrap(frames.udp(A, 1000, P, 53), False)
    others = tuple(other for other in TUNNELS if other != name)
    assert parse(frame, inner=others)["tunnel"] is None and parse(frame)["tunnel"] is None
    assert parse(frame, inner=(name,))["tunnel"] == name
    assert parse(frame, inner=others) == parse(frame)


def rewriting(name: str, verdict: Rewrite) -> list[type[FlowActor]]:
    """Network functions that do this to every packet, in Python and offloaded."""

    class Translate(FlowActor):
        inner = (name,)

        def on_packet(self, packet: Packet) -> Any:
            return verdict

    class Offloaded(Translate):
        def on_open(self, packet: Packet) -> None:
            self.offload(verdict)

    return [Translate, Offloaded]


@each_wrap
@pytest.mark.parametrize("checksum", [False, True], ids=["without", "with"])
@pytest.mark.parametrize("protocol", ["udp", "udp without", "tcp", "icmp", "error", "udp6"])
def test_a_rewrite_is_of_the_packet_inside(name: str, wrap: Wrap, checksum: bool, protocol: str) -> None:
    """All checksums are right afterwards: that of the packet, and that of the tunnel if it has one."""
    rng = random.Random(5)
    for size in (0, 1, 5, 100):
        data = rng.randbytes(size)
        six = protocol == "udp6"
        if protocol.startswith("udp") and not six:
            inside = frames.udp(A, 1000, P, 53, data)
        elif protocol == "tcp":
            inside = frames.tcp(A, 1000, P, 80, 2, data)
        elif protocol == "icmp":
            inside = frames.echo(A, P, 1000, data=data)
        elif protocol == "error":
            inside = frames.icmp_error(A, frames.udp(P, 53, A, 1000, data))
        else:
            inside = udp_packet(53, data, True, six=True)
        if protocol == "udp without":
            inside = inside[:40] + b"\0\0" + inside[42:]
        frame = wrap(inside, checksum)
        assert carrier_right(frame) and checksums_right(frame, inner=TUNNELS)
        source = "2001:db8::99" if six else EXTERNAL

        verdict = Rewrite(source=source, source_port=7777, dscp=9)
        for nf in rewriting(name, verdict):
            node = Bench(nf)
            if protocol == "error":  # speaks of a flow that must be there
                node.lan_in(wrap(frames.udp(A, 1000, P, 53), checksum))
                node.out()
            node.lan_in(frame)
            (left,) = node.out()
            assert len(left) == len(frame) and carrier_right(left) and checksums_right(left, inner=TUNNELS)
            found = parse(left, inner=(name,))
            assert found["tunnel"] == name and found["dscp"] == 9 and found["ttl"] == 63
            flow = found["flow"]
            assert flow is not None and (flow.source, flow.source_port) == (source, 7777)
            start = found["l3"]
            if six or name in ("gtp-u", "gre"):
                head = 14 + 20 + (8 if wrap is gtp_u else 0)
                assert left[14:26] == frame[14:26] and left[26:34] == frame[26:34] and head <= start


@each_wrap
def test_a_wrong_checksum_stays_wrong(name: str, wrap: Wrap) -> None:
    class Translate(FlowActor):
        inner = (name,)

        def on_packet(self, packet: Packet) -> Any:
            return Rewrite(source=EXTERNAL)

    frame = bytearray(wrap(frames.udp(A, 1000, P, 53, b"data"), False))
    frame[-1] ^= 1
    node = Bench(Translate)
    node.lan_in(bytes(frame))
    (left,) = node.out()
    assert not checksums_right(left, inner=TUNNELS)


@pytest.mark.parametrize("wrap", [vxlan, gtp_u])
def test_a_checksum_that_the_card_is_to_complete(wrap: Wrap) -> None:
    """Local checksum offload: that of the tunnel is right already for the packet as it will be."""

    whole = wrap(frames.tcp(A, 1000, P, 80, 2, b"hello"), True)
    l4 = parse(whole, inner=TUNNELS)["l4"]
    pseudo = summed(whole[l4 - 8 : l4] + b"\0\x06" + (25).to_bytes(2, "big"))
    partial = whole[: l4 + 16] + pseudo.to_bytes(2, "big") + whole[l4 + 18 :]
    left = rewrite(partial, source=EXTERNAL, source_port=7777, csum_partial=True, inner=TUNNELS)
    assert left is not None
    segment = left[l4:]
    completed = left[: l4 + 16] + (~summed(segment) & 0xFFFF).to_bytes(2, "big") + left[l4 + 18 :]
    assert checksums_right(completed, inner=TUNNELS) and outer_udp_right(completed)


@pytest.mark.parametrize("udp_checksum", [False, True])
@pytest.mark.parametrize("wrap", [vxlan, gtp_u])
def test_a_checksum_inside_that_the_card_is_to_complete_is_not_the_tunnels(wrap: Wrap, udp_checksum: bool) -> None:
    """An NF that does not look into the tunnel: a checksum that the tunnel has stays right, and none stays none."""
    whole = wrap(frames.tcp(A, 1000, P, 80, 2, b"hello"), udp_checksum)
    l4 = parse(whole, inner=TUNNELS)["l4"]
    left = rewrite(whole, source=EXTERNAL, source_port=7777, csum_partial=True, csum_start=l4)
    assert left is not None and left != whole and parse(left)["flow"].source == EXTERNAL
    assert checksums_right(left)
    udp = parse(left)["l4"]
    assert (left[udp + 6 : udp + 8] != bytes(2)) == udp_checksum


class InnerNAT(SourceNAT):
    inner = ("gtp-u", "vxlan", "gre")
    untracked = FORWARD


@each_wrap
def test_the_nat_inside_a_tunnel(name: str, wrap: Wrap) -> None:
    lan, wan = MemoryPort("lan"), MemoryPort("wan")
    node = Embedded(InnerNAT, [lan, wan], {"address": EXTERNAL}, virtual_time=True)
    lan.feed([(SECOND, wrap(frames.udp(A, 5000, P, 53, b"query"), True))])
    node.run_burst()
    ((_, left),) = wan.take()
    assert parse(bytes(left), inner=(name,))["flow"] == FiveTuple(17, EXTERNAL, 5000, P, 53)
    wan.feed([(SECOND, wrap(frames.udp(P, 53, EXTERNAL, 5000, b"answer"), True))])
    node.run_burst()
    ((_, back),) = lan.take()
    back = bytes(back)
    assert parse(back, inner=(name,))["flow"] == FiveTuple(17, P, 53, A, 5000)
    assert carrier_right(back) and checksums_right(back, inner=TUNNELS)
    node.finish()


def icmp6_error(about: bytes) -> bytes:
    """Packet too big, sent to who sent the IPv6 frame; with a wrong checksum."""
    quoted = b"\2\0\0\0\0\0\5\0" + about[14:]
    header = b"\x60\0\0\0" + len(quoted).to_bytes(2, "big") + b"\x3a\x40"
    return frames.ethernet(header + socket.inet_pton(socket.AF_INET6, "2001:db8::7") + about[22:38] + quoted, 0x86DD)


@each_wrap
@pytest.mark.parametrize("six", [False, True], ids=["IPv4", "IPv6"])
def test_an_icmp_error_inside_comes_to_the_flow_that_it_speaks_of(name: str, wrap: Wrap, six: bool) -> None:
    seen: list[Any] = []

    class Watch(FlowActor):
        inner = (name,)
        sees_icmp_errors = True

        def on_open(self, packet: Packet) -> None:
            self.bind(packet.flow.reversed())
            self.offload(FORWARD)
            self.offload(FORWARD, packet.flow.reversed())

        def on_packet(self, packet: Packet) -> Any:
            seen.append((packet.tunnel, packet.is_icmp_error, packet.icmp_type, packet.flow))
            return OFFLOADED

    sent = udp_packet(53, b"query", True, six)
    error = wrap(icmp6_error(sent) if six else frames.icmp_error("192.0.2.9", sent), True)
    node = Bench(Watch)
    node.lan_in(wrap(sent, True))
    node.out()
    seen.clear()
    node.wan_in(error)
    ends = (RIGHT6, 53, LEFT6, 40000) if six else (RIGHT, 53, LEFT, 40000)
    assert seen == [(name, True, 2 if six else 3, FiveTuple(17, *ends))]
    assert [bytes(frame) for _, frame in node.lan.take()] == [error]


@pytest.mark.parametrize("wrap", [vxlan, vxlan6, gtp_u, gre])
def test_an_icmp_error_about_a_carrier_goes_to_the_end_of_the_tunnel(wrap: Wrap) -> None:
    """RFC 2003 section 5: it is that one's to tell those inside."""

    class Passing(FlowActor):
        inner = TUNNELS
        untracked = FORWARD

        def on_packet(self, packet: Packet) -> Any:
            return FORWARD

    sent = wrap(frames.udp(A, 1000, P, 53, b"data"), True)
    error = icmp6_error(sent) if wrap is vxlan6 else frames.icmp_error("192.0.2.9", sent)
    found = parse(error, inner=TUNNELS)
    assert found["reason"] == "untracked" and found["tunnel"] is None
    node = Bench(Passing)
    node.lan_in(sent)
    node.out()
    node.wan_in(error)
    assert [bytes(frame) for _, frame in node.lan.take()] == [error]
    assert node.count("icmp_error_unmatched") == 0

    class Dropping(Passing):
        untracked = DROP

    node = Bench(Dropping)
    node.wan_in(error)
    assert node.count("untracked") == 1


def test_a_fragmented_tunnel_packet_is_put_together_and_cut_again() -> None:
    seen = []

    class Watch(FlowActor):
        inner = ("vxlan",)

        def on_packet(self, packet: Packet) -> Any:
            seen.append((str(packet.flow), packet.payload))
            return Rewrite(source=EXTERNAL)

    data = random.Random(9).randbytes(1480)
    node = Bench(Watch)
    cut = frames.fragments(vxlan(frames.udp(A, 1000, P, 53, data), True), 1500)
    assert len(cut) == 2
    node.lan_in(*cut[::-1])
    left = node.out()
    assert seen == [(f"udp {A}:1000 > {P}:53", data)]
    assert [len(frame) for frame in left] == [len(frame) for frame in cut]
    assert {frame[18:20] for frame in left} == {cut[0][18:20]}, "the sender is the tunnel's, and stays"
    whole = frames.joined(left)
    assert outer_udp_right(whole) and checksums_right(whole, inner=TUNNELS)


def test_what_is_inside_and_no_packet_of_a_flow_goes_by_the_policies() -> None:
    class Passing(FlowActor):
        inner = TUNNELS
        untracked = FORWARD
        fragments = "forward"

        def on_packet(self, packet: Packet) -> Any:
            return DROP

    arp = frames.ethernet(bytes(28), 0x0806)
    fragment = frames.fragments(frames.udp(A, 1000, P, 53, bytes(2000)), 1500)[0]
    node = Bench(Passing)
    came = [vxlan(arp), gre_ethernet(arp), vxlan(fragment), gtp_u(fragment)]
    node.lan_in(*came)
    assert node.out() == came

    class Whole(Passing):
        fragments = "reassemble"

    node = Bench(Whole)
    node.lan_in(gtp_u(fragment))
    assert node.count("fragment") == 1 and node.core.waiting_fragments == 0


def test_what_carries_no_packet_is_a_packet_itself() -> None:
    inside = frames.udp(A, 1000, P, 53)
    for frame in (
        udp_packet(2152, b"\x32\x01\0\x04\0\0\0\0\0\x01\0\0", True),  # GTP-U's own echo request
        udp_packet(4789, bytes(8) + inside, True),  # VXLAN without a VNI
        udp_packet(2152, b"\x50\xff\0\0\0\0\0\0" + inside[14:], True),  # GTP version 2
        udp_packet(2152, b"\x34\xff\0\0\0\0\0\0\0\0\0\x85\0\0\0\0" + inside[14:], True),  # an extension of no length
    ):
        assert parse(frame, inner=TUNNELS) == parse(frame) and parse(frame)["reason"] == "ok"
    for header in (b"\x20\1\x88\x0b\0\0\0\0", b"\x40\0\x08\0\0\0\0\0", b"\0\0\x88\xbe"):  # PPTP, routing, ERSPAN
        frame = frames.ethernet(frames.ipv4(LEFT, RIGHT, 47, header + inside[14:]))
        assert parse(frame, inner=TUNNELS) == parse(frame) and parse(frame)["reason"] == "untracked"


def test_what_is_cut_short_inside_is_dropped_by_name() -> None:
    inside = frames.udp(A, 1000, P, 53, b"data")
    reasons = [
        parse(gtp_u(inside[:14] + inside[14:][:size]), inner=TUNNELS)["reason"] for size in range(1, len(inside) - 13)
    ]
    assert set(reasons[:-1]) <= {"truncated", "malformed"} and reasons[-1] == "ok"
    reasons = [parse(vxlan(inside[:size]), inner=TUNNELS)["reason"] for size in range(len(inside) + 1)]
    assert set(reasons[:-1]) <= {"truncated", "ok", "not_ip"} and reasons[-1] == "ok"


def test_a_tunnel_in_a_tunnel_is_opened_once() -> None:
    frame = vxlan(gtp_u(frames.udp(A, 1000, P, 53)))
    found = parse(frame, inner=TUNNELS)
    assert found["tunnel"] == "vxlan" and str(found["flow"]) == f"udp {LEFT}:40000 > {RIGHT}:2152"


def test_the_gtp_capture() -> None:
    packets = [bytes(frame) for _, frame, _ in read_capture(str(CAPTURES / "ipv6_in_gtp.pcap"))]
    found = [parse(frame, inner=("gtp-u",)) for frame in packets]
    assert all(one["tunnel"] == "gtp-u" and one["vlan"] for one in found)
    assert all(one["flow"] is None or ":" in one["flow"].source for one in found)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(UsageError, match="inner must be a tuple of some of gre, vxlan, gtp-u"):

        class Wrong(FlowActor):
            inner = ("ipip",)

    with pytest.raises(UsageError, match="streams inside of tunnels"):

        class Stream(StreamActor):
            inner = ("vxlan",)

    class Routed(FlowActor):
        inner = ("vxlan",)

    port = MemoryPort("lan")
    port.mac, port.interface = bytes(6), ip_interface("10.0.0.1/24")
    with pytest.raises(UsageError, match="transparent ports"):
        Core(Routed, [port, MemoryPort("wan")])


def connected(address: tuple[str, int], seconds: float = 10.0) -> socket.socket:
    """A connection, as soon as the way is there."""
    end = time.monotonic() + seconds
    while True:
        try:
            return socket.create_connection(address, 1)
        except OSError:
            if time.monotonic() > end:
                raise


@pytest.mark.root
@pytest.mark.parametrize("driver", ["af_packet", "af_xdp"])
@pytest.mark.parametrize("checksum", ["noudpcsum", "udpcsum"])
def test_tcp_between_vxlan_devices_through_a_nat(driver: str, checksum: str) -> None:
    """The kernel's tunnels, which leave it to interfaces to cut what is inside, and to complete its checksums."""
    argv = [sys.executable, "-m", "actornet.cli.main", "run", "tests.test_tunnels:InnerNAT", "--json"]
    argv += ["-i", f"lan=lan0:{driver}", "-i", f"wan=wan0:{driver}", "--set", "address=10.8.0.77"]
    data = random.Random(3).randbytes(3_000_000)
    with Lab.single("10.0.0.2/24", "10.0.0.3/24", gateway=None) as lab:
        for space, own, other, host in (("client", "10.0.0.2", "10.0.0.3", 2), ("server", "10.0.0.3", "10.0.0.2", 3)):
            tunnel = f"type vxlan id 5 dstport 4789 local {own} remote {other} dev eth0 {checksum}"
            lab.ip(
                space,
                f"link add vx0 address 02:00:00:00:01:0{host} {tunnel}",
                "link set vx0 up",
                f"addr add 10.8.0.{host}/24 dev vx0",
            )
        lab.ip("server", "neigh add 10.8.0.77 lladdr 02:00:00:00:01:02 dev vx0")
        node = lab.popen("box", argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        listener = lab.call("server", socket.create_server, ("10.8.0.3", 8000))
        client = lab.call("client", connected, ("10.8.0.3", 8000))
        server, peer = listener.accept()
        with listener, client, server:
            assert peer[0] == "10.8.0.77"
            for sender, receiver in ((client, server), (server, client)):
                receiver.settimeout(10)
                sending = Thread(target=sender.sendall, args=(data,))
                sending.start()
                got = bytearray()
                while len(got) < len(data):
                    got += receiver.recv(1 << 20)
                sending.join()
                assert got == data
        node.send_signal(signal.SIGINT)
        output, errors = node.communicate(timeout=10)
    assert node.returncode == 0, errors
    counters = json.loads(output)["counters"]
    assert counters["offloaded"] > 100 and not counters.keys() & {"malformed", "truncated"}
    assert counters["tx_packets"] == counters["rx_packets"] and not counters.keys() & {"tx_refused", "tx_oversized"}
    segments = 2 * len(data) // 1398
    assert driver == "af_xdp" or counters["rx_packets"] < segments, "no frame came that was yet to be cut"
