"""What a routed port answers for itself."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_interface
from random import Random
from typing import Any

import dpkt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actornet.engine.port import Port
from actornet.limits import ICMP_ERRORS_PER_S, NEIGHBORS_MAX
from actornet.ports.host import Host

OURS, THEIRS = bytes.fromhex("02005e005301"), bytes.fromhex("020000000002")
BROADCAST = b"\xff" * 6
S = 1_000_000_000


def port(address: str | None = "10.0.0.1/24", gateway: str | None = "10.0.0.254", name: str = "lan") -> Port:
    port = Port(name)
    port.mac = OURS
    port.interface = ip_interface(address) if address else None
    port.gateway = ip_address(gateway) if gateway else None
    return port


def port6(address: str = "2001:db8::1/64", gateway: str | None = "fe80::1") -> Port:
    return port(address, gateway)


def arp(
    operation: int, sender: str, target: str, sender_mac: bytes = THEIRS, target_mac: bytes = bytes(6), **fields: Any
) -> bytes:
    packet = dpkt.arp.ARP(
        op=operation, sha=sender_mac, spa=IPv4Address(sender).packed, tha=target_mac, tpa=IPv4Address(target).packed
    )
    for field, value in fields.items():
        setattr(packet, field, value)
    return bytes(dpkt.ethernet.Ethernet(src=THEIRS, dst=BROADCAST, type=0x0806, data=packet))


def ipv4(source: str, destination: str, payload: Any, *, to: bytes = OURS, **fields: Any) -> bytes:
    packet = dpkt.ip.IP(src=IPv4Address(source).packed, dst=IPv4Address(destination).packed, ttl=1, data=payload)
    packet.p = {dpkt.icmp.ICMP: 1, dpkt.tcp.TCP: 6}.get(type(payload), 17)
    packet.len = len(packet)
    for field, value in fields.items():
        setattr(packet, field, value)
    return bytes(dpkt.ethernet.Ethernet(src=THEIRS, dst=to, type=0x0800, data=packet))


def udp() -> Any:
    return dpkt.udp.UDP(sport=1000, dport=33434, ulen=40, data=bytes(range(32)))


def echo(kind: int = 8) -> Any:
    return dpkt.icmp.ICMP(type=kind, data=dpkt.icmp.ICMP.Echo(id=7, seq=3, data=b"payload"))


def icmp6(source: str, destination: str, kind: int, body: bytes, *, hops: int = 255, code: int = 0) -> bytes:
    addresses = IPv6Address(source).packed + IPv6Address(destination).packed
    message = bytes((kind, code, 0, 0)) + body
    checksum = dpkt.in_cksum(addresses + len(message).to_bytes(4, "big") + b"\0\0\0\x3a" + message)
    message = message[:2] + checksum.to_bytes(2, "big") + message[4:]
    return ipv6(addresses, 58, message, hops)


def ipv6(addresses: bytes, protocol: int, payload: bytes, hops: int = 64) -> bytes:
    header = b"\x60\0\0\0" + len(payload).to_bytes(2, "big") + bytes((protocol, hops))
    return OURS + THEIRS + b"\x86\xdd" + header + addresses + payload


def neighbor6(kind: int, target: str, option: bytes, source: str = "2001:db8::2", to: str = "2001:db8::1") -> bytes:
    return icmp6(source, to, kind, b"\x60\0\0\0" + IPv6Address(target).packed + option)


def only(answers: list[tuple[Port, bytes]]) -> Any:
    (answer,) = answers
    return dpkt.ethernet.Ethernet(answer[1])


# -- ARP --------------------------------------------------------------------------------------------------------------


def test_an_arp_request_for_our_address_is_answered_and_its_sender_learned() -> None:
    host, lan = Host(), port()
    reply = only(host.handle(lan, arp(1, "10.0.0.2", "10.0.0.1"), 0))
    assert (reply.src, reply.dst, reply.data.op) == (OURS, THEIRS, 2)
    assert (reply.data.sha, reply.data.spa) == (OURS, lan.interface.ip.packed)
    assert (reply.data.tha, reply.data.tpa) == (THEIRS, IPv4Address("10.0.0.2").packed)
    assert host.resolve(lan, "10.0.0.2") == THEIRS
    assert host.resolve(port(name="wan"), "10.0.0.2") is None, "another port is another network"


def test_a_probe_for_our_address_is_answered_but_teaches_nothing() -> None:
    """RFC 5227: the sender's address is not its own yet."""
    host, lan = Host(), port()
    assert only(host.handle(lan, arp(1, "0.0.0.0", "10.0.0.1"), 0)).data.op == 2
    assert host.resolve(lan, "0.0.0.0") is None


@pytest.mark.parametrize(
    "frame",
    [arp(2, "10.0.0.2", "10.0.0.1", target_mac=OURS), arp(1, "10.0.0.2", "10.0.0.2"), arp(1, "10.0.0.2", "10.0.0.9")],
    ids=["reply", "gratuitous", "request for another"],
)
def test_what_neighbors_say_is_learned_without_an_answer(frame: bytes) -> None:
    host, lan = Host(), port()
    assert host.handle(lan, frame, 0) == []
    assert host.resolve(lan, "10.0.0.2") == THEIRS


def test_a_neighbor_may_move_to_another_mac() -> None:
    host, lan = Host(), port()
    host.handle(lan, arp(1, "10.0.0.2", "10.0.0.2"), 0)
    host.handle(lan, arp(1, "10.0.0.2", "10.0.0.2", sender_mac=b"\x02\0\0\0\0\x09"), 0)
    assert host.resolve(lan, "10.0.0.2") == b"\x02\0\0\0\0\x09"


@pytest.mark.parametrize("mac", [BROADCAST, bytes(6), b"\x01\0\x5e\0\0\1"], ids=["broadcast", "zero", "group"])
def test_a_mac_that_no_host_can_have_is_not_learned(mac: bytes) -> None:
    host, lan = Host(), port()
    host.handle(lan, arp(2, "10.0.0.2", "10.0.0.1", sender_mac=mac), 0)
    assert host.resolve(lan, "10.0.0.2") is None


@pytest.mark.parametrize("sender", ["10.0.0.0", "10.0.0.255", "192.0.2.1", "224.0.0.1", "127.0.0.1"])
def test_an_address_that_no_neighbor_can_have_is_not_learned(sender: str) -> None:
    host, lan = Host(), port()
    host.handle(lan, arp(2, sender, "10.0.0.1"), 0)
    assert host.resolve(lan, sender) is None


def test_another_claim_to_our_address_is_counted_and_not_believed() -> None:
    host, lan = Host(), port()
    assert host.handle(lan, arp(1, "10.0.0.1", "10.0.0.1"), 0) == []
    assert host.resolve(lan, "10.0.0.1") is None
    assert host.counters["address_conflict"] == 1


@pytest.mark.parametrize("fields", [{"hrd": 6}, {"pro": 0x86DD}, {"hln": 8}, {"pln": 16}], ids=str)
def test_arp_of_other_kinds_is_ignored(fields: dict[str, int]) -> None:
    host, lan = Host(), port()
    assert host.handle(lan, arp(1, "10.0.0.2", "10.0.0.1", **fields), 0) == []
    assert host.resolve(lan, "10.0.0.2") is None


def test_the_neighbor_table_is_bounded() -> None:
    host, lan = Host(), port("10.0.0.1/8")
    for number in range(NEIGHBORS_MAX + 10):
        address = str(IPv4Address("10.1.0.0") + number)
        host.handle(lan, arp(2, address, "10.0.0.1"), 0)
        host.request(lan, address, 0)
    assert host.counters["neighbor_evicted"] == 10
    assert host.resolve(lan, "10.1.0.9") is None
    assert host.resolve(lan, "10.1.0.10") == THEIRS
    assert len(host._requested_ns) == NEIGHBORS_MAX


def test_a_request_asks_once_a_second_for_each_neighbor() -> None:
    """RFC 1122 section 2.3.2.1."""
    host, lan = Host(), port()
    request = dpkt.ethernet.Ethernet(host.request(lan, "10.0.0.2", 5 * S))
    assert (request.src, request.dst, request.data.op) == (OURS, BROADCAST, 1)
    assert (request.data.sha, request.data.spa) == (OURS, lan.interface.ip.packed)
    assert (request.data.tha, request.data.tpa) == (bytes(6), IPv4Address("10.0.0.2").packed)
    assert host.request(lan, "10.0.0.2", 6 * S - 1) is None
    assert host.request(lan, "10.0.0.3", 6 * S - 1) is not None
    assert host.request(lan, "10.0.0.2", 6 * S) is not None
    assert host.request(lan, "10.0.0.2", 1 * S) is not None, "a clock that is set back does not silence"
    assert host.request(lan, "2001:db8::2", 9 * S) is None


def test_a_request_is_answered_by_another_host() -> None:
    """Two of them agree on who is where."""
    ours, theirs = port(), port("10.0.0.2/24")
    theirs.mac = THEIRS
    us, them = Host(), Host()
    request = us.request(ours, "10.0.0.2", 0)
    assert request is not None
    ((_, reply),) = them.handle(theirs, request, 0)
    assert us.handle(ours, reply, 0) == []
    assert us.resolve(ours, "10.0.0.2") == THEIRS
    assert them.resolve(theirs, "10.0.0.1") == OURS


def test_gratuitous_arp_announces_our_address() -> None:
    """G6: after a takeover the neighbours send to the new primary at once (RFC 5227 section 2.3)."""
    lan = port()
    frame = dpkt.ethernet.Ethernet(Host().gratuitous(lan))
    assert (frame.dst, frame.src, frame.data.op) == (BROADCAST, OURS, 1)
    assert frame.data.spa == frame.data.tpa == lan.interface.ip.packed
    assert frame.data.sha == OURS


# -- ping -------------------------------------------------------------------------------------------------------------


def test_a_ping_of_our_address_is_answered() -> None:
    host, lan = Host(), port()
    reply = only(host.handle(lan, ipv4("192.0.2.7", "10.0.0.1", echo(), tos=0x10, opts=b"\1\1\1\0", hl=6, len=47), 0))
    packet = reply.data
    assert (reply.src, reply.dst) == (OURS, THEIRS)
    assert (packet.src, packet.dst) == (IPv4Address("10.0.0.1").packed, IPv4Address("192.0.2.7").packed)
    assert (packet.ttl, packet.tos, packet.data.type) == (64, 0x10, 0)
    assert bytes(packet.data.data) == bytes(echo().data)
    assert dpkt.in_cksum(bytes(packet)[:20]) == dpkt.in_cksum(bytes(packet)[20:]) == 0


def test_padding_behind_a_ping_is_not_sent_back() -> None:
    frame = ipv4("10.0.0.2", "10.0.0.1", echo())
    ((_, reply),) = Host().handle(port(), frame + bytes(17), 0)
    assert len(reply) == len(frame)


@pytest.mark.parametrize(
    "frame",
    [
        ipv4("10.0.0.2", "10.0.0.9", echo()),
        ipv4("10.0.0.2", "10.0.0.255", echo()),
        ipv4("10.0.0.255", "10.0.0.1", echo()),
        ipv4("0.0.0.0", "10.0.0.1", echo()),
        ipv4("10.0.0.1", "10.0.0.1", echo()),
        ipv4("10.0.0.2", "10.0.0.1", echo(kind=0)),
        ipv4("10.0.0.2", "10.0.0.1", echo(), mf=1),
        ipv4("10.0.0.2", "10.0.0.1", echo(), sum=1),
        ipv4("10.0.0.2", "10.0.0.1", udp()),
        ipv4("10.0.0.2", "10.0.0.1", echo())[:-1] + b"?",
        ipv4("10.0.0.2", "10.0.0.1", echo())[:-1],
    ],
    ids=["other", "broadcast", "from broadcast", "from nobody", "from us", "reply", "fragment", "header sum", "udp",
         "icmp sum", "cut"],
)  # fmt: skip
def test_what_is_no_sound_ping_of_ours_is_not_answered(frame: bytes) -> None:
    assert Host().handle(port(), frame, 0) == []


def test_a_port_without_an_address_answers_nothing() -> None:
    host, transparent = Host(), port(None, None)
    for frame in (arp(1, "10.0.0.2", "10.0.0.1"), ipv4("10.0.0.2", "10.0.0.1", echo())):
        assert host.handle(transparent, frame, 0) == []
    assert host.request(transparent, "10.0.0.2", 0) is None
    assert host.icmp_error(transparent, ipv4("10.0.0.2", "10.0.0.1", udp()), 11, 0, 0) is None


# -- ICMP errors ------------------------------------------------------------------------------------------------------


def test_time_exceeded_quotes_the_packet_to_its_sender() -> None:
    host, lan = Host(), port()
    frame = ipv4("10.0.0.2", "192.0.2.1", udp())
    frame = frame[:40] + b"\0\0" + frame[42:]  # without a UDP checksum, and it stays so
    error = host.icmp_error(lan, frame + bytes(20), 11, 0, 0)
    assert error is not None
    reply = dpkt.ethernet.Ethernet(error)
    packet = reply.data
    assert (reply.src, reply.dst) == (OURS, THEIRS)
    assert (packet.src, packet.dst) == (lan.interface.ip.packed, IPv4Address("10.0.0.2").packed)
    assert (packet.data.type, packet.data.code, packet.tos) == (11, 0, 0xC0)
    assert error[14 + 20 + 8 :] == frame[14:], "without the frame's padding"
    assert dpkt.in_cksum(error[14:34]) == dpkt.in_cksum(error[34:]) == 0


def test_an_error_has_at_most_576_bytes() -> None:
    """RFC 1812 section 4.3.2.3."""
    frame = ipv4("10.0.0.2", "192.0.2.1", dpkt.udp.UDP(data=bytes(1400), ulen=1408))
    error = Host().icmp_error(port(), frame, 3, 1, 0)
    assert error is not None
    assert len(error) == 14 + 576
    assert error[42:] == frame[14 : 14 + 548]


@pytest.mark.parametrize(
    "frame",
    [
        ipv4("10.0.0.2", "192.0.2.1", dpkt.icmp.ICMP(type=3, data=bytes(32))),
        ipv4("10.0.0.2", "192.0.2.1", dpkt.icmp.ICMP(type=5, data=bytes(32))),
        ipv4("10.0.0.2", "192.0.2.1", udp(), offset=3),
        ipv4("10.0.0.2", "192.0.2.1", udp(), to=BROADCAST),
        ipv4("10.0.0.2", "10.0.0.255", udp()),
        ipv4("10.0.0.2", "224.0.0.9", udp()),
        ipv4("0.0.0.0", "192.0.2.1", udp()),
        ipv4("127.0.0.1", "192.0.2.1", udp()),
        ipv4("224.0.0.9", "192.0.2.1", udp()),
        ipv4("10.0.0.255", "192.0.2.1", udp()),
        arp(1, "10.0.0.2", "10.0.0.9"),
        ipv4("10.0.0.2", "192.0.2.1", udp())[:33],
        b"",
    ],
    ids=["error", "redirect", "fragment", "link broadcast", "broadcast", "multicast", "from nobody", "from loopback",
         "from multicast", "from broadcast", "arp", "cut", "empty"],
)  # fmt: skip
def test_no_error_is_sent_about(frame: bytes) -> None:
    """RFC 1812 section 4.3.2.7."""
    assert Host().icmp_error(port(), frame, 11, 0, 0) is None


@pytest.mark.parametrize("payload", [echo(), echo(kind=0), dpkt.tcp.TCP()], ids=["ping", "pong", "tcp"])
def test_errors_about_queries_and_the_first_fragment_are_sent(payload: Any) -> None:
    frame = ipv4("10.0.0.2", "192.0.2.1", payload, mf=1)
    assert Host().icmp_error(port(), frame, 11, 0, 0) is not None


def test_errors_are_limited_per_second() -> None:
    """RFC 1812 section 4.3.2.8."""
    host, lan, frame = Host(), port(), ipv4("10.0.0.2", "192.0.2.1", udp())

    def sent(now_ns: int) -> int:
        return sum(host.icmp_error(lan, frame, 11, 0, now_ns) is not None for _ in range(3 * ICMP_ERRORS_PER_S))

    assert sent(7 * S) == ICMP_ERRORS_PER_S
    assert sent(7 * S + S // 2) == ICMP_ERRORS_PER_S // 2
    assert sent(3 * S) == 0, "a clock that is set back gives nothing"
    assert sent(1000 * S) == ICMP_ERRORS_PER_S
    assert host.counters["icmp_error_limited"] == 3 * 4 * ICMP_ERRORS_PER_S - 2.5 * ICMP_ERRORS_PER_S


# -- IPv6 -------------------------------------------------------------------------------------------------------------


def checked6(frame: bytes) -> Any:
    """The IPv6 packet in a frame, its ICMPv6 checksum verified."""
    packet = dpkt.ip6.IP6(frame[14:])
    pseudo = packet.src + packet.dst + packet.plen.to_bytes(4, "big") + b"\0\0\0\x3a"
    assert dpkt.in_cksum(pseudo + frame[54:]) == 0
    return packet


def test_a_solicitation_for_our_address_is_answered_and_its_sender_learned() -> None:
    host, lan = Host(), port6()
    frame = neighbor6(135, "2001:db8::1", b"\x01\x01" + THEIRS, to="ff02::1:ff00:1")
    ((_, reply),) = host.handle(lan, frame, 0)
    packet = checked6(reply)
    assert reply[:12] == THEIRS + OURS
    assert (packet.hlim, packet.dst) == (255, IPv6Address("2001:db8::2").packed)
    assert reply[54:] == b"\x88\0" + reply[56:58] + b"\xe0\0\0\0" + lan.interface.ip.packed + b"\x02\x01" + OURS
    assert host.resolve(lan, "2001:db8::2") == THEIRS


def test_a_test_for_duplicates_of_our_address_is_answered_to_all() -> None:
    """RFC 4862 section 5.4.3 and RFC 4861 section 7.2.4."""
    frame = neighbor6(135, "2001:db8::1", b"", source="::", to="ff02::1:ff00:1")
    ((_, reply),) = Host().handle(port6(), frame, 0)
    assert reply[:6] == bytes.fromhex("333300000001")
    assert checked6(reply).dst == IPv6Address("ff02::1").packed
    assert reply[58:62] == b"\xa0\0\0\0"
    assert Host().handle(port6(), neighbor6(135, "2001:db8::1", b"\1\1" + THEIRS, source="::"), 0) == []


def test_an_advertisement_is_learned() -> None:
    host, lan = Host(), port6()
    assert host.handle(lan, neighbor6(136, "fe80::1", b"\x02\x01" + THEIRS), 0) == []
    assert host.resolve(lan, "fe80::1") == THEIRS


@pytest.mark.parametrize(
    "frame",
    [
        icmp6("2001:db8::2", "2001:db8::1", 135, bytes(4) + IPv6Address("2001:db8::1").packed, hops=254),
        icmp6("2001:db8::2", "2001:db8::1", 135, bytes(4) + IPv6Address("2001:db8::1").packed, code=1),
        icmp6("2001:db8::2", "2001:db8::1", 135, bytes(19)),
        neighbor6(135, "2001:db8::9", b""),
        neighbor6(135, "2001:db8::1", b"\x01"),
        neighbor6(135, "2001:db8::1", b"\x01\x00" + THEIRS),
        neighbor6(135, "2001:db8::1", b"\x01\x02" + THEIRS),
        neighbor6(135, "2001:db8::1", b"", source="ff02::2"),
        neighbor6(135, "2001:db8::1", b"\x01\x01" + THEIRS)[:-1] + b"?",
    ],
    ids=["routed here", "code", "short", "other", "half option", "empty option", "long option", "from group", "sum"],
)
def test_an_unsound_solicitation_is_ignored(frame: bytes) -> None:
    """RFC 4861 section 7.1.1."""
    assert Host().handle(port6(), frame, 0) == []


def test_a_solicitation_is_answered_by_another_host() -> None:
    ours, theirs = port6(), port6("2001:db8::ab:cdef/64")
    theirs.mac = THEIRS
    us, them = Host(), Host()
    request = us.request(ours, "2001:db8::ab:cdef", 0)
    assert request is not None
    assert request[:6] == bytes.fromhex("3333ffabcdef")
    assert checked6(request).dst == IPv6Address("ff02::1:ffab:cdef").packed
    ((_, reply),) = them.handle(theirs, request, 0)
    us.handle(ours, reply, 0)
    assert us.resolve(ours, "2001:db8::ab:cdef") == THEIRS
    assert them.resolve(theirs, "2001:db8::1") == OURS


def test_an_unsolicited_advertisement_announces_our_address() -> None:
    """G6: as gratuitous ARP does (RFC 4861 section 7.2.6)."""
    lan = port6()
    frame = Host().gratuitous(lan)
    packet = checked6(frame)
    assert (frame[:6], packet.hlim, packet.dst) == (bytes.fromhex("333300000001"), 255, IPv6Address("ff02::1").packed)
    assert frame[58:] == b"\xa0\0\0\0" + lan.interface.ip.packed + b"\x02\x01" + OURS


def test_a_ping_of_our_ipv6_address_is_answered() -> None:
    lan = port6()
    ((_, reply),) = Host().handle(lan, icmp6("2001:db8:9::7", "2001:db8::1", 128, b"\0\7\0\3data", hops=60), 0)
    packet = checked6(reply)
    assert (packet.src, packet.dst) == (lan.interface.ip.packed, IPv6Address("2001:db8:9::7").packed)
    assert (reply[54], reply[58:]) == (129, b"\0\7\0\3data")


@pytest.mark.parametrize(
    ("kind", "code", "expected"), [(11, 0, (3, 0)), (3, 0, (1, 0)), (3, 1, (1, 3)), (3, 3, (1, 4)), (3, 13, (1, 1))]
)
def test_icmpv6_errors_say_what_those_of_icmp_do(kind: int, code: int, expected: tuple[int, int]) -> None:
    addresses = IPv6Address("2001:db8::2").packed + IPv6Address("2001:db8:9::1").packed
    frame = ipv6(addresses, 17, bytes(1400), hops=1)
    error = Host().icmp_error(port6(), frame, kind, code, 0)
    assert error is not None
    packet = checked6(error)
    assert (error[54], error[55]) == expected
    assert packet.dst == addresses[:16]
    assert len(error) == 14 + 1280
    assert error[62:] == frame[14 : 14 + 1232]


@pytest.mark.parametrize(
    "frame",
    [
        icmp6("2001:db8::2", "2001:db8:9::1", 1, bytes(60)),
        icmp6("2001:db8::2", "2001:db8:9::1", 137, bytes(60)),
        icmp6("::", "2001:db8:9::1", 128, bytes(60)),
        icmp6("2001:db8::2", "ff0e::1", 128, bytes(60)),
        ipv6(bytes(15) + b"\2" + bytes(15) + b"\3", 44, bytes(40)),
        ipv4("10.0.0.2", "192.0.2.1", udp()),
    ],
    ids=["error", "redirect", "from nobody", "to group", "fragment", "ipv4"],
)
def test_no_icmpv6_error_is_sent_about(frame: bytes) -> None:
    """RFC 4443 section 2.4 (e)."""
    assert Host().icmp_error(port6(), frame, 11, 0, 0) is None


# -- hostile input ----------------------------------------------------------------------------------------------------

SOUND = [
    arp(1, "10.0.0.2", "10.0.0.1"),
    ipv4("10.0.0.2", "10.0.0.1", echo()),
    ipv4("10.0.0.2", "192.0.2.1", udp()),
    neighbor6(135, "2001:db8::1", b"\x01\x01" + THEIRS),
    icmp6("2001:db8::2", "2001:db8::1", 128, b"\0\7\0\3data"),
]
PORTS = [port(), port6(), port(None, None)]


def expose(host: Host, frame: bytes) -> None:
    for target in PORTS:
        for _, reply in host.handle(target, frame, 0):
            assert reply[6:12] == OURS
        host.icmp_error(target, frame, 11, 0, 0)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200), st.sampled_from([b"\x08\x06", b"\x08\x00", b"\x86\xdd", b"\x81\x00"]))
def test_random_frames_do_no_harm(content: bytes, ethertype: bytes) -> None:
    """G9"""
    expose(Host(), OURS + THEIRS + ethertype + content)
    expose(Host(), content)


def test_damaged_frames_do_no_harm() -> None:
    """G9: every truncation of sound frames, and flipped bytes anywhere in them."""
    random, host = Random(1), Host()
    for frame in SOUND:
        for length in range(len(frame)):
            expose(host, frame[:length])
        for _ in range(500):
            damaged = bytearray(frame)
            for _ in range(random.randint(1, 4)):
                damaged[random.randrange(12, len(frame))] = random.randrange(256)
            expose(host, bytes(damaged))


def test_errors_quoting_errors_a_thousand_deep_do_no_harm() -> None:
    """G9"""
    packet = b""
    for _ in range(1000):
        packet = bytes(dpkt.ip.IP(p=1, len=20 + 8 + len(packet), data=b"\x03\0\0\0\0\0\0\0" + packet))
    expose(Host(), OURS + THEIRS + b"\x08\x00" + packet)
