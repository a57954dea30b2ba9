"""Parsing, rewriting and hashing of frames: against dpkt, against frames built anew, against Microsoft's vectors."""

import ipaddress
import random
import socket
import struct
from pathlib import Path

import dpkt
import pytest

from actornet.engine.five_tuple import FiveTuple
from actornet.engine.wire import (
    RSS_KEY_STANDARD,
    RSS_KEY_SYMMETRIC,
    Table,
    checksums_right,
    parse,
    rewrite,
    rss_core,
    rss_hash,
    toeplitz,
)
from actornet.errors import UsageError

CAPTURES = sorted((Path(__file__).parent / "captures").glob("*.pcap"))
ICMP, TCP, UDP, GRE, ICMP6 = 1, 6, 17, 47, 58
ETHERNET = bytes.fromhex("020000000002020000000001")


# -- frames built from their parts, checksums computed whole ----------------------------------------------------------


def packed(address: str) -> bytes:
    return ipaddress.ip_address(address).packed


def checksum(data: bytes) -> int:
    """RFC 1071, over the whole."""
    if len(data) % 2:
        data += b"\0"
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def transport(flow: FiveTuple, payload: bytes, *, no_csum: bool = False, partial: bool = False, kind: int = 0) -> bytes:
    """A TCP, UDP or ICMP echo header and payload. `kind`: the ICMP type."""
    if flow.protocol == TCP:
        offset, data = 16, struct.pack("!HHIIBBHHH", flow.source_port, flow.destination_port, 7, 9, 80, 24, 512, 0, 0)
    elif flow.protocol == UDP:
        offset, data = 6, struct.pack("!HHHH", flow.source_port, flow.destination_port, 8 + len(payload), 0)
    else:
        offset, data = 2, struct.pack("!BBHHH", kind, 0, 0, flow.source_port, 3)
    data += payload
    pseudo = packed(flow.source) + packed(flow.destination) + struct.pack("!II", flow.protocol, len(data))
    total = checksum(data if flow.protocol == ICMP else pseudo + data)
    if partial:
        total = ~checksum(pseudo) & 0xFFFF
    elif flow.protocol == UDP:
        total = 0 if no_csum else total or 0xFFFF
    return data[:offset] + struct.pack("!H", total) + data[offset + 2 :]


def ip(
    source: str,
    destination: str,
    protocol: int,
    data: bytes,
    *,
    ttl: int = 64,
    dscp: int = 0,
    fragment: int = 0,
    options: bytes = b"",
) -> bytes:
    """An IPv4 or IPv6 packet; `options` are IPv4 options, or IPv6 extension headers that `protocol` is the first of."""
    if ":" in source:
        first = struct.pack("!IHBB", 6 << 28 | dscp << 22 | 1 << 20 | 0xABCDE, len(options + data), protocol, ttl)
        return first + packed(source) + packed(destination) + options + data
    header = struct.pack(
        "!BBHHHBBH",
        0x45 + len(options) // 4,
        dscp << 2 | 1,
        20 + len(options) + len(data),
        0x1234,
        fragment,
        ttl,
        protocol,
        0,
    )
    header += packed(source) + packed(destination) + options
    return header[:10] + struct.pack("!H", checksum(header)) + header[12:] + data


def ethernet(packet: bytes, tags: bytes = b"") -> bytes:
    return ETHERNET + tags + (b"\x86\xdd" if packet[0] >> 4 == 6 else b"\x08\x00") + packet


def frame(
    flow: FiveTuple, payload: bytes = b"actor", *, tags: bytes = b"", ttl: int = 64, dscp: int = 0, **how
) -> bytes:
    if flow.protocol in (ICMP, ICMP6):
        how.setdefault("kind", 8 if flow.protocol == ICMP else 128)
    data = transport(flow, payload, **how)
    return ethernet(ip(flow.source, flow.destination, flow.protocol, data, ttl=ttl, dscp=dscp), tags)


def icmp_error(source: str, destination: str, embedded: bytes, *, ttl: int = 64, kind: int | None = None) -> bytes:
    """Destination unreachable, unless another `kind`, about the IP packet whose first bytes are `embedded`."""
    six = ":" in source
    data = struct.pack("!BBHI", kind if kind is not None else 1 if six else 3, 3, 0, 0) + embedded
    pseudo = packed(source) + packed(destination) + struct.pack("!II", len(data), ICMP6) if six else b""
    data = data[:2] + struct.pack("!H", checksum(pseudo + data)) + data[4:]
    return ethernet(ip(source, destination, ICMP6 if six else ICMP, data, ttl=ttl))


def random_flow(rng: random.Random, protocol: int, six: bool) -> FiveTuple:
    def address() -> str:
        return str(ipaddress.IPv6Address(rng.getrandbits(128)) if six else ipaddress.IPv4Address(rng.getrandbits(32)))

    first, second = rng.randrange(65536), rng.randrange(65536)
    return FiveTuple(protocol, address(), first, address(), first if protocol in (ICMP, ICMP6) else second)


def changed(flow: FiveTuple, **fields) -> FiveTuple:
    return FiveTuple(*(fields.get(name, getattr(flow, name)) for name in flow.__struct_fields__))


FLOW = FiveTuple(UDP, "10.0.0.1", 1024, "192.0.2.53", 53)
FLOW6 = FiveTuple(TCP, "2001:db8::1", 1024, "2001:db8:1::53", 443)
EVERY_KIND = [(TCP, False), (UDP, False), (ICMP, False), (TCP, True), (UDP, True), (ICMP6, True)]


# -- parsing ----------------------------------------------------------------------------------------------------------


def expected_by_dpkt(data: bytes) -> tuple[str, FiveTuple | None]:
    """What the frame is, by a parser that shares nothing with the engine's."""
    packet = dpkt.ethernet.Ethernet(data).data
    if isinstance(packet, dpkt.ip.IP):
        source, destination, protocol = ipaddress.IPv4Address(packet.src), ipaddress.IPv4Address(packet.dst), packet.p
        is_fragment = packet.mf or packet.offset
    elif isinstance(packet, dpkt.ip6.IP6):
        source, destination, protocol = ipaddress.IPv6Address(packet.src), ipaddress.IPv6Address(packet.dst), packet.p
        is_fragment = any(isinstance(header, dpkt.ip6.IP6FragmentHeader) for header in packet.all_extension_headers)
    else:
        return "not_ip", None
    bare = FiveTuple(protocol, str(source), 0, str(destination), 0)
    segment = packet.data
    if is_fragment:
        return "fragment", bare
    if isinstance(segment, dpkt.tcp.TCP | dpkt.udp.UDP):
        return "ok", changed(bare, source_port=segment.sport, destination_port=segment.dport)
    if isinstance(segment, dpkt.icmp.ICMP) and isinstance(segment.data, dpkt.icmp.ICMP.Quote):
        about = segment.data.data
        return "ok", FiveTuple(
            about.p,
            str(ipaddress.IPv4Address(about.dst)),
            about.data.dport,
            str(ipaddress.IPv4Address(about.src)),
            about.data.sport,
        )
    if isinstance(segment, dpkt.icmp.ICMP) and isinstance(segment.data, dpkt.icmp.ICMP.Echo):
        return "ok", changed(bare, source_port=segment.data.id, destination_port=segment.data.id)
    return "untracked", bare


@pytest.mark.parametrize("path", CAPTURES, ids=lambda path: path.name)
def test_parses_real_captures_as_dpkt_does(path):
    with path.open("rb") as file:
        for _, data in dpkt.pcap.UniversalReader(file):
            found = parse(data)
            assert (found["reason"], found["flow"]) == expected_by_dpkt(data), data.hex()


@pytest.mark.parametrize(("protocol", "six"), EVERY_KIND)
def test_parses_what_was_built(protocol, six):
    rng = random.Random(protocol)
    for _ in range(200):
        flow = random_flow(rng, protocol, six)
        tags = rng.choice([b"", b"\x81\0\0\5", b"\x88\xa8\0\7\x81\0\0\5", b"\x91\0\0\7\x81\0\0\5"])
        ttl, dscp = rng.randrange(256), rng.randrange(64)
        payload = rng.randbytes(rng.randrange(40))
        padding = bytes(rng.randrange(20))
        data = frame(flow, payload, tags=tags, ttl=ttl, dscp=dscp) + padding
        found = parse(data, port=3)
        l3, ip_bytes = 14 + len(tags), 40 if six else 20
        assert found == {
            "reason": "ok",
            "flow": flow,
            "port": 3,
            "l3": l3,
            "l4": l3 + ip_bytes,
            "payload": l3 + ip_bytes + (20 if protocol == TCP else 8),
            "l3_end": len(data) - len(padding),
            "inner_l3": 0,
            "inner_l4": 0,
            "tunnel": None,
            "ttl": ttl,
            "dscp": dscp,
            "tcp_flags": 24 if protocol == TCP else 0,
            "ip_options": False,
            "icmp_error": False,
            "vlan": bool(tags),
            "udp_no_csum": False,
        }
        assert checksums_right(data)


def test_third_vlan_tag_is_not_ip():
    data = frame(FLOW, tags=b"\x88\xa8\0\7\x81\0\0\5\x81\0\0\6")
    assert (parse(data)["reason"], parse(data)["l3"]) == ("not_ip", 22)


@pytest.mark.parametrize("data", [frame(FLOW), frame(FLOW6), frame(FLOW6, tags=b"\x81\0\0\5")], ids=["4", "6", "tag"])
def test_every_shorter_frame_is_truncated(data):
    for length in range(len(data)):
        found = parse(data[:length])
        assert found["reason"] == "truncated", length
        assert found["flow"] is None


def with_bytes(data: bytes, at: int, value: bytes) -> bytes:
    return data[:at] + value + data[at + len(value) :]


V4, V6 = frame(FLOW), frame(FLOW6)
TCP4 = frame(changed(FLOW, protocol=TCP))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (with_bytes(V4, 12, b"\x08\x06"), "not_ip"),
        (with_bytes(V4, 12, b"\x00\x2e"), "not_ip"),
        (with_bytes(V4, 14, b"\x65"), "malformed"),  # version 6 under IPv4's EtherType
        (with_bytes(V4, 14, b"\x44"), "malformed"),  # header of 16 bytes
        (with_bytes(V4, 14, b"\x4f"), "truncated"),  # header longer than the frame
        (with_bytes(V4, 14, b"\x4f") + bytes(40), "malformed"),  # or than the packet
        (with_bytes(V4, 16, b"\x00\x13"), "malformed"),  # packet shorter than its header
        (with_bytes(V4, 16, b"\x00\x1b"), "malformed"),  # 7 bytes of UDP header
        (with_bytes(V4, 16, b"\x01\x00"), "truncated"),  # packet longer than the frame
        (with_bytes(V4, 38, b"\x00\x07"), "malformed"),  # UDP length below its header's
        (with_bytes(V4, 38, b"\x00\x0e"), "malformed"),  # and beyond the packet
        (with_bytes(V4, 38, b"\x00\x0c"), "ok"),  # bytes behind the datagram are allowed (RFC 9868)
        (with_bytes(TCP4, 46, b"\x40"), "malformed"),  # TCP header of 16 bytes
        (with_bytes(TCP4, 46, b"\x70"), "malformed"),  # and beyond the packet
        (with_bytes(TCP4, 16, b"\x00\x27"), "malformed"),  # 19 bytes of TCP header
        (with_bytes(V4, 20, b"\x20\x00"), "fragment"),  # first
        (with_bytes(V4, 20, b"\x00\x01"), "fragment"),  # last
        (with_bytes(V4, 20, b"\x1f\xff"), "malformed"),  # one that ends beyond 65,535 bytes
        (with_bytes(V4, 20, b"\x40\x00"), "ok"),  # don't fragment
        (with_bytes(V4, 23, b"\x2f"), "untracked"),
        (with_bytes(V6, 14, b"\x40"), "malformed"),
        (with_bytes(V6, 18, b"\x01\x00"), "truncated"),
        (with_bytes(V6, 18, b"\x00\x13"), "malformed"),  # 19 bytes of TCP header
        (with_bytes(V6, 20, bytes([59])), "untracked"),  # no next header
        (with_bytes(V6, 20, bytes([50])), "untracked"),  # ESP
        (with_bytes(V6, 20, bytes([ICMP])), "untracked"),  # ICMP for IPv4
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_reasons(data, reason):
    found = parse(data)
    assert found["reason"] == reason
    if reason in ("fragment", "untracked"):
        assert (found["flow"].source_port, found["flow"].destination_port) == (0, 0)
        assert found["flow"].protocol == data[20 if found["flow"].source == FLOW6.source else 23]
    assert (found["flow"] is None) == (reason in ("not_ip", "malformed", "truncated"))


def test_ipv4_options_are_skipped():
    data = ethernet(ip(FLOW.source, FLOW.destination, UDP, transport(FLOW, b"x"), options=b"\x94\x04\0\0" * 10))
    found = parse(data)
    assert (found["flow"], found["l4"], found["ip_options"]) == (FLOW, 14 + 60, True)
    assert checksums_right(data)


HOP_BY_HOP, ROUTING, FRAGMENT, AH, OPTIONS = 0, 43, 44, 51, 60


def extended(*headers: tuple[int, bytes], flow: FiveTuple = FLOW6, data: bytes | None = None) -> bytes:
    """`flow`'s packet behind IPv6 extension headers, each given as its type and what follows its next-header byte."""
    following = [kind for kind, _ in headers[1:]] + [flow.protocol]
    chain = b"".join(bytes([after]) + body for after, (_, body) in zip(following, headers, strict=True))
    data = transport(flow, b"data") if data is None else data
    return ethernet(ip(flow.source, flow.destination, headers[0][0], data, options=chain))


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        ([(HOP_BY_HOP, bytes(7))], "ok"),
        ([(HOP_BY_HOP, bytes(7)), (OPTIONS, b"\1" + bytes(14)), (ROUTING, b"\0\4\0" + bytes(4))], "ok"),
        ([(AH, b"\4" + bytes(22))], "ok"),
        ([(FRAGMENT, bytes(7))], "ok"),  # atomic: RFC 6946
        ([(OPTIONS, bytes(7))] * 8, "ok"),
        ([(OPTIONS, bytes(7))] * 9, "malformed"),  # more than the engine's bound
        ([(ROUTING, b"\0\0\1" + bytes(4))], "untracked"),  # segments left: RFC 5095
        ([(FRAGMENT, b"\0\0\1" + bytes(4))], "fragment"),
        ([(HOP_BY_HOP, bytes(7)), (FRAGMENT, b"\0\1\0" + bytes(4))], "fragment"),
        ([(OPTIONS, b"\xff" + bytes(6))], "malformed"),  # longer than the packet
    ],
)
def test_ipv6_extension_headers(headers, reason):
    data = extended(*headers)
    found = parse(data)
    assert found["reason"] == reason
    if reason == "ok":
        assert found["flow"] == FLOW6
        assert found["ip_options"]
        assert found["l4"] == 54 + sum(1 + len(body) for _, body in headers)
        assert checksums_right(data)
        assert rewrite(data, source="2001:db8::2") == ethernet(
            data[14:22]
            + packed("2001:db8::2")
            + data[38 : found["l4"]]
            + transport(changed(FLOW6, source="2001:db8::2"), b"data")
        )


@pytest.mark.parametrize(("protocol", "six"), EVERY_KIND)
@pytest.mark.parametrize("shown", [8, 200])
def test_icmp_errors_find_the_flow_that_they_speak_of(protocol, six, shown):
    rng = random.Random(protocol)
    for kind in (1, 2, 3, 4) if six else (3, 4, 11, 12):
        flow, router = random_flow(rng, protocol, six), random_flow(rng, protocol, six).source
        sent = frame(flow, b"embedded")[14 : 14 + (40 if six else 20) + shown]
        found = parse(icmp_error(router, flow.source, sent, kind=kind))
        assert (found["reason"], found["icmp_error"], found["flow"]) == ("ok", True, flow.reversed())
        assert (found["inner_l3"], found["inner_l4"]) == ((62, 102) if six else (42, 62))


def inner(data: bytes) -> bytes:
    return icmp_error("192.0.2.1", FLOW.source, data)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (inner(V4[14:41]), "malformed"),  # 7 bytes of transport header
        (inner(V4[14:33]), "malformed"),  # 19 bytes of IP header
        (inner(with_bytes(V4, 14, b"\x65")[14:]), "malformed"),
        (inner(with_bytes(V4, 14, b"\x44")[14:]), "malformed"),
        (inner(with_bytes(V4, 20, b"\0\1")[14:]), "untracked"),  # about a later fragment
        (inner(with_bytes(V4, 23, bytes([GRE]))[14:]), "untracked"),
        (inner(inner(V4[14:])[14:]), "untracked"),  # about another ICMP error
        (with_bytes(inner(V4[14:]), 34, b"\5"), "untracked"),  # a redirect
        (with_bytes(inner(V4[14:]), 34, b"\x0d"), "untracked"),  # a time stamp request
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_icmp_that_speaks_of_no_flow(data, reason):
    found = parse(data)
    assert (found["reason"], found["icmp_error"], found["inner_l3"]) == (reason, False, 0)


def test_offsets_stay_inside_a_frame_that_is_cut_and_damaged():
    rng = random.Random(5)
    for _ in range(3000):
        data = rng.choice([V4, V6, TCP4, inner(V4[14:]), extended((HOP_BY_HOP, bytes(7)))])
        data = with_bytes(data, rng.randrange(len(data)), rng.randbytes(2))[: rng.randrange(len(data) + 1)]
        found = parse(data)
        assert found["l3"] <= found["l4"] <= found["payload"] <= found["l3_end"] <= len(data)


# -- rewriting --------------------------------------------------------------------------------------------------------


def random_rewrite(rng: random.Random, six: bool, echo: bool) -> dict[str, object]:
    fields: dict[str, object] = {}
    new = random_flow(rng, ICMP if echo else UDP, six)
    for name in ("source", "source_port", "destination", "destination_port"):
        if rng.random() < 0.5:
            fields[name] = getattr(new, name)
    if rng.random() < 0.5:
        fields["decrement_ttl"] = True
    if rng.random() < 0.3:
        fields["dscp"] = rng.randrange(64)
    return fields


def rewritten(flow: FiveTuple, fields: dict[str, object]) -> FiveTuple:
    """`flow` with the new addresses and ports; an echo's identifier is both of its ports."""
    new = changed(flow, **fields)
    if flow.protocol in (ICMP, ICMP6) and ("source_port" in fields or "destination_port" in fields):
        identifier = fields.get("source_port", fields.get("destination_port"))
        new = changed(new, source_port=identifier, destination_port=identifier)
    return new


@pytest.mark.parametrize(
    ("protocol", "six", "how"),
    [(protocol, six, {}) for protocol, six in EVERY_KIND]
    + [(protocol, six, {"partial": True}) for protocol in (TCP, UDP) for six in (False, True)]
    + [(UDP, six, {"no_csum": True}) for six in (False, True)],
)
def test_a_rewritten_packet_equals_one_built_anew(protocol, six, how):
    rng = random.Random(protocol)
    for _ in range(400):
        flow = random_flow(rng, protocol, six)
        fields = random_rewrite(rng, six, protocol in (ICMP, ICMP6))
        payload, dscp, tags = rng.randbytes(rng.randrange(9)), rng.randrange(64), rng.choice([b"", b"\x81\0\0\5"])
        found = rewrite(frame(flow, payload, tags=tags, dscp=dscp, **how), csum_partial="partial" in how, **fields)
        assert found == frame(
            rewritten(flow, fields),
            payload,
            tags=tags,
            dscp=fields.get("dscp", dscp),
            ttl=63 if fields.get("decrement_ttl") else 64,
            **how,
        )
        assert checksums_right(found, csum_partial="partial" in how)


@pytest.mark.parametrize(("protocol", "six"), EVERY_KIND)
@pytest.mark.parametrize("shown", [8, 10, 18, 200])
@pytest.mark.parametrize("from_flow_end", [False, True], ids=["router", "end"])
def test_a_rewritten_icmp_error_equals_one_built_anew(protocol, six, shown, from_flow_end):
    """Outer addresses and, mirrored, the embedded packet, with as much of its transport header as routers return."""
    rng = random.Random(shown)
    for _ in range(100):
        sent = random_flow(rng, protocol, six)
        router = sent.destination if from_flow_end else random_flow(rng, protocol, six).source
        fields = random_rewrite(rng, six, protocol in (ICMP, ICMP6))
        fields.pop("dscp", None)
        no_csum = protocol == UDP and rng.random() < 0.2
        how = {"no_csum": True} if no_csum else {}
        ip_bytes, inner_ttl = 40 if six else 20, rng.randrange(256)
        data = icmp_error(router, sent.source, frame(sent, b"embedded", ttl=inner_ttl, **how)[14:][: ip_bytes + shown])
        found = rewrite(data, **fields)
        new = rewritten(sent.reversed(), fields).reversed()
        expected = icmp_error(
            fields.get("source", router),
            new.source,
            frame(new, b"embedded", ttl=inner_ttl, **how)[14:][: ip_bytes + shown],
            ttl=63 if fields.get("decrement_ttl") else 64,
        )
        assert checksums_right(found)
        assert found == expected


def test_the_return_of_an_icmp_error_undoes_it():
    """Source NAT one way, destination NAT the other: the inside host sees an error about the packet that it sent."""
    inside = FiveTuple(UDP, "10.0.0.1", 5000, "198.51.100.7", 33434)
    outside = FiveTuple(UDP, "203.0.113.1", 1024, "198.51.100.7", 33434)
    sent = rewrite(frame(inside, ttl=2), source="203.0.113.1", source_port=1024, decrement_ttl=True)
    assert parse(sent)["flow"] == outside
    error = icmp_error("192.0.2.254", "203.0.113.1", sent[14:])
    assert parse(error)["flow"] == outside.reversed()
    back = rewrite(error, destination="10.0.0.1", destination_port=5000)
    assert back == icmp_error("192.0.2.254", "10.0.0.1", frame(inside, ttl=1)[14:])


@pytest.mark.parametrize("path", CAPTURES, ids=lambda path: path.name)
def test_checksums_of_real_captures_stay_as_right_as_they_were(path):
    """Right ones stay right, those of offloading senders stay partial, wrong ones stay wrong."""
    rng = random.Random(6)
    with path.open("rb") as file:
        for _, data in dpkt.pcap.UniversalReader(file):
            flow = parse(data)["flow"]
            if flow is None:
                continue
            fields = random_rewrite(rng, ":" in flow.source, flow.protocol in (ICMP, ICMP6))
            for partial in (False, True):
                before = checksums_right(data, partial)
                found = rewrite(data, csum_partial=partial, **fields)
                if found is None:
                    assert fields["decrement_ttl"]
                    assert parse(data)["ttl"] <= 1
                else:
                    assert checksums_right(found, partial) == before


def test_a_checksum_that_becomes_zero_is_sent_as_all_ones():
    """RFC 768: zero would mean that the sender computed none."""
    new = changed(FLOW, source="203.0.113.1", source_port=2000)
    zero = frame(new, bytes(2))[40:42]  # as payload, it makes the sum all ones
    assert frame(new, zero)[40:42] == b"\xff\xff"
    assert rewrite(frame(FLOW, zero), source=new.source, source_port=2000) == frame(new, zero)


def test_a_partial_checksum_may_have_either_form_of_zero():
    """In one's complement both 0 and all ones are zero (RFC 1071); a rewrite makes the one of the other."""
    ones = frame(FiveTuple(UDP, "240.0.0.0", 1000, "15.228.0.0", 53), bytes(2), partial=True)
    assert ones[40:42] == b"\xff\xff" and checksums_right(ones, True)
    assert checksums_right(ones[:40] + b"\0\0" + ones[42:], True)
    assert not checksums_right(ones[:40] + b"\0\1" + ones[42:], True)


@pytest.mark.parametrize("data", [frame(FLOW, ttl=1), frame(FLOW, ttl=0), frame(FLOW6, ttl=1)], ids=["1", "0", "6"])
def test_an_expiring_packet_is_left_alone(data):
    assert rewrite(data, decrement_ttl=True) is None
    assert rewrite(data) == data


@pytest.mark.parametrize("six", [False, True])
def test_fragments_keep_their_datagram_right(six):
    """First fragments have their ports and checksum rewritten, later ones only addresses: reassembled, all is right."""
    rng = random.Random(7)
    for protocol in (TCP, UDP):
        for _ in range(100):
            flow = random_flow(rng, protocol, six)
            fields = random_rewrite(rng, six, False)
            payload = rng.randbytes(64)
            data = transport(flow, payload)
            parts = []
            for at, chunk, more in ((0, data[:40], 1), (40, data[40:], 0)):
                if six:
                    header = struct.pack("!BBHI", protocol, 0, at | more, 99)
                    whole = ip(flow.source, flow.destination, FRAGMENT, chunk, options=header)
                else:
                    whole = ip(flow.source, flow.destination, protocol, chunk, fragment=at // 8 | more << 13)
                assert parse(ethernet(whole))["reason"] == "fragment"
                found = rewrite(ethernet(whole), **fields)
                assert checksums_right(found)
                parts.append(found[14 + (48 if six else 20) :])
            assert b"".join(parts) == transport(rewritten(flow, fields), payload)


def test_untracked_protocols_have_their_addresses_rewritten():
    found = rewrite(ethernet(ip("10.0.0.1", "192.0.2.1", GRE, b"tunnel")), source="203.0.113.1", decrement_ttl=True)
    assert found == ethernet(ip("203.0.113.1", "192.0.2.1", GRE, b"tunnel", ttl=63))


def test_what_is_not_ip_is_left_alone():
    arp = ETHERNET + b"\x08\x06" + bytes(28)
    assert rewrite(arp, source="203.0.113.1", source_port=1, decrement_ttl=True) == arp
    assert not checksums_right(arp)


# -- hashing ----------------------------------------------------------------------------------------------------------

# "Verifying the RSS hash calculation", Microsoft: source, destination, hash of the addresses, hash with ports (TCP)
PUBLISHED = [
    ("66.9.149.187", 2794, "161.142.100.80", 1766, 0x323E8FC2, 0x51CCC178),
    ("199.92.111.2", 14230, "65.69.140.83", 4739, 0xD718262A, 0xC626B0EA),
    ("24.19.198.95", 12898, "12.22.207.184", 38024, 0xD2D0A5DE, 0x5C2B394A),
    ("38.27.205.30", 48228, "209.142.163.6", 2217, 0x82989176, 0xAFC7327F),
    ("153.39.163.191", 44251, "202.188.127.2", 1303, 0x5D1809C5, 0x10E828A2),
    ("3ffe:2501:200:1fff::7", 2794, "3ffe:2501:200:3::1", 1766, 0x2CC18CD5, 0x40207D3D),
    ("3ffe:501:8::260:97ff:fe40:efab", 14230, "ff02::1", 4739, 0x0F0C461C, 0xDDE51BBF),
    ("3ffe:1900:4545:3:200:f8ff:fe21:67cf", 44251, "fe80::200:f8ff:fe21:67cf", 38024, 0x4B61E985, 0x02D1FEEF),
]


@pytest.mark.parametrize(("source", "source_port", "destination", "destination_port", "addresses", "ports"), PUBLISHED)
def test_toeplitz_vectors(source, source_port, destination, destination_port, addresses, ports):
    data = packed(source) + packed(destination)
    assert toeplitz(RSS_KEY_STANDARD, data) == addresses
    assert toeplitz(RSS_KEY_STANDARD, data + struct.pack("!HH", source_port, destination_port)) == ports


@pytest.mark.parametrize("six", [False, True])
def test_the_symmetric_hash_is_toeplitz_and_the_same_both_ways(six):
    rng = random.Random(8)
    seen = set()
    for _ in range(300):
        flow = random_flow(rng, TCP, six)
        data = packed(flow.source) + packed(flow.destination)
        data += struct.pack("!HH", flow.source_port, flow.destination_port)
        assert rss_hash(flow) == toeplitz(RSS_KEY_SYMMETRIC, data) == rss_hash(flow.reversed())
        assert rss_core(flow, 3) == rss_core(flow.reversed(), 3) == ((rss_hash(flow) % 128 + 1) * 3 - 1) // 128
        seen.add(rss_core(flow, 3))
    assert seen == {0, 1, 2}


def test_toeplitz_refuses_other_lengths():
    for key, data in ((bytes(39), b""), (bytes(40), bytes(37))):
        with pytest.raises(UsageError, match="40 bytes"):
            toeplitz(key, data)
    with pytest.raises(UsageError, match="cores"):
        rss_core(FLOW, 0)


# -- keys -------------------------------------------------------------------------------------------------------------


def test_address_texts_are_those_of_ipaddress():
    rng = random.Random(9)
    table = Table(2000)
    for _ in range(500):
        six = rng.random() < 0.5
        flow = random_flow(rng, rng.choice([TCP, UDP, GRE]), six)
        if six and rng.random() < 0.7:  # runs of zeros
            flow = changed(flow, source=str(ipaddress.IPv6Address(0x2001 << 112 | rng.getrandbits(8) << 64 | 1)))
        port = rng.randrange(16)
        assert table.flow(table.insert(flow, port)) == flow
        assert table.find(flow, port) is not None
        assert table.find(flow, port + 1) is None


def test_ipv4_addresses_are_those_of_inet_pton():
    """What is nearly an address, too."""
    rng = random.Random(3)
    taken = 0
    for _ in range(20_000):
        text = ".".join(str(rng.randrange(300)) for _ in range(4))
        for _ in range(rng.randrange(3)):
            at = rng.randrange(len(text) + 1)
            text = text[:at] + rng.choice(["", ".", "0", "00", "7", "a", "-", " "]) + text[at + rng.randrange(2) :]
        flow = changed(FLOW, source=text, destination=text)
        try:
            expected = socket.inet_ntoa(socket.inet_pton(socket.AF_INET, text))
        except OSError:
            with pytest.raises(UsageError, match="is not an IPv4 or IPv6 address"):
                rss_hash(flow)
        else:
            table = Table(16)
            assert table.flow(table.insert(flow)).source == expected == text
            taken += 1
    assert taken > 1000


@pytest.mark.parametrize(
    ("flow", "message"),
    [
        (("udp", "10.0.0.1"), "not a FiveTuple"),
        (changed(FLOW, source="10.0.0.256"), "'10.0.0.256' is not an IPv4 or IPv6 address"),
        (changed(FLOW, source="10.0.0.1\0"), "not an IPv4"),
        (changed(FLOW, source="10.0.0.١"), "not an IPv4"),
        (changed(FLOW, source=7), "not an IPv4"),
        (changed(FLOW, source="2001:db8::1"), "both be IPv4 or both be IPv6"),
        (changed(FLOW6, source="fe80::1%eth0"), "not an IPv4"),
        (changed(FLOW, source_port=65536), "source port 65536 is not a number from 0 to 65535"),
        (changed(FLOW, destination_port=-1), "destination port -1"),
        (changed(FLOW, destination_port="53"), "destination port '53'"),
        (changed(FLOW, protocol=256), "protocol 256"),
        (changed(FLOW, protocol=ICMP), "identifier"),
    ],
)
def test_bad_flows_are_refused(flow, message):
    with pytest.raises(UsageError, match=message):
        Table(8).find(flow)


def test_bad_rewrites_are_refused():
    with pytest.raises(UsageError, match="not of the packet's IP version 4"):
        rewrite(V4, source="2001:db8::1")
    with pytest.raises(UsageError, match="not of the packet's IP version 6"):
        rewrite(V6, destination="10.0.0.1")
    with pytest.raises(UsageError, match="DSCP 64"):
        rewrite(V4, dscp=64)
    with pytest.raises(UsageError, match="port index 256"):
        parse(V4, port=256)
