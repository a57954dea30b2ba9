"""Fragments: put together before their flow sees them (RFC 791, 8200), cut again when they leave, hostile ones dropped."""

from __future__ import annotations

import random
import socket
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest

from actornet import FORWARD, FlowActor, Packet, Rewrite
from actornet.embedded import Embedded
from actornet.engine.core import Core
from actornet.engine.counters import DROPS
from actornet.engine.handoff import Handoff
from actornet.engine.ring import Ring
from actornet.engine.wire import checksums_right, parse
from actornet.errors import UsageError
from actornet.limits import FRAGMENT_BYTES_MAX, FRAGMENT_WAIT_S, FRAGMENTED_DATAGRAMS_MAX, FRAGMENTS_PER_DATAGRAM_MAX
from actornet.ports.memory import MemoryPort
from actornet.ports.pcap import read_capture
from actornet.testing.pair import Pair
from actornet.testing.traffic import SERVER
from actors.nat import SourceNAT
from tests import frames
from tests.test_core import SECOND, Bench

CAPTURES = Path(__file__).parent / "captures"
DATA = random.Random(1).randbytes(4000)
INSIDE, OUTSIDE, EXTERNAL = "10.0.0.2", "198.51.100.1", "203.0.113.1"


class Seen(FlowActor):
    """Tells what its packets carry."""

    def on_packet(self, packet: Packet) -> Any:
        SEEN.append((packet.flow.source_port, packet.payload))
        return FORWARD


SEEN: list[tuple[int, bytes]] = []


@pytest.fixture(autouse=True)
def nothing_seen() -> None:
    SEEN.clear()


def udp6(data: bytes = DATA, sport: int = 1000) -> bytes:
    datagram = bytearray(frames.udp("0.0.0.1", sport, "0.0.0.2", 53, data)[34:])
    source, destination = bytes(15) + b"\1", bytes(15) + b"\2"
    length = len(datagram).to_bytes(2, "big")
    datagram[6:8] = bytes(2)
    words = source + destination + bytes(2) + length + bytes(3) + b"\x11" + datagram + bytes(len(datagram) % 2)
    total = sum(int.from_bytes(words[i : i + 2], "big") for i in range(0, len(words), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    datagram[6:8] = (~total & 0xFFFF or 0xFFFF).to_bytes(2, "big")
    return frames.ethernet(b"\x60\0\0\0" + length + b"\x11\x40" + source + destination + datagram, kind=0x86DD)


def udp4(data: bytes = DATA, sport: int = 1000) -> bytes:
    return frames.udp(INSIDE, sport, OUTSIDE, 53, data)


def patched(frame: bytes, at: int, value: bytes) -> bytes:
    return frame[:at] + value + frame[at + len(value) :]


@pytest.mark.parametrize("whole", [udp4(), udp6()], ids=["IPv4", "IPv6"])
def test_a_datagram_is_seen_whole_in_whatever_order_it_comes(whole: bytes) -> None:
    assert checksums_right(whole)
    for order in permutations(frames.fragments(whole, 1500)):
        SEEN.clear()
        bench = Bench(Seen)
        bench.lan_in(*order)
        assert SEEN == [(1000, DATA)]
        left = bench.out()
        assert len(left) == len(order) and max(map(len, left)) <= 1514
        assert frames.joined(left)[14:] == frames.joined(list(order))[14:]
        assert bench.count("reassembled") == bench.count("refragmented") == 1
        assert bench.count("fragments_joined") == bench.count("fragments_made") == len(order)
        assert bench.core.waiting_fragments == 0


def test_identifications_stay_and_flags_too_where_the_source_does() -> None:
    bench = Bench(Seen)
    whole = patched(udp4(), 20, b"\x40")  # don't fragment, which is kept: path MTU discovery goes on
    cut = frames.fragments(whole, 1500, identification=4711)
    bench.lan_in(*cut)
    assert [frame[14:] for frame in bench.out()] == [frame[14:] for frame in cut]


def test_fragments_that_leave_are_no_larger_than_the_largest_that_came() -> None:
    for largest in (68, 576, 1280, 1500, 4000):
        bench = Bench(Seen)
        cut = frames.fragments(udp4(), largest)
        bench.lan_in(*cut)
        assert [len(frame) for frame in bench.out()] == [len(frame) for frame in cut]


@pytest.mark.parametrize("whole", [udp4(), udp6()], ids=["IPv4", "IPv6"])
def test_an_exact_duplicate_is_dropped_alone(whole: bytes) -> None:
    bench = Bench(Seen)
    first, second, third = frames.fragments(whole, 1500)
    bench.lan_in(second, first, second, first, third)
    assert SEEN == [(1000, DATA)] and bench.count("fragment_overlap") == 2


OVERLAPS = {
    "other bytes": lambda cut: [cut[0], patched(cut[0], 60, b"?"), cut[1], cut[2]],
    "begins before": lambda cut: [cut[0], cut[1], frames.fragments(udp4(), 1492)[1], cut[2]],
    "ends behind": lambda cut: [cut[1], cut[2], frames.fragments(udp4(), 1508)[0], cut[0]],
    "covers": lambda cut: [cut[1], *frames.fragments(udp4(), 3000), cut[2], cut[0]],
    "behind the end": lambda cut: [cut[2], frames.fragments(udp4(bytes(8000)), 1500)[3], cut[0], cut[1]],
    "two ends": lambda cut: [cut[0], cut[2], frames.fragments(udp4(bytes(2000)), 1500)[1], cut[1]],
    "an end before the end": lambda cut: [cut[0], cut[1], frames.fragments(udp4(bytes(1000)), 600)[1], cut[2]],
}


@pytest.mark.parametrize("name", OVERLAPS)
def test_overlapping_fragments_end_their_datagram(name: str) -> None:
    """RFC 5722, applied to IPv4 too: those that come later are dropped as well."""
    bench = Bench(Seen)
    came = OVERLAPS[name](frames.fragments(udp4(), 1500))
    bench.lan_in(*came)
    assert SEEN == [] and bench.out() == []
    assert bench.count("fragment_overlap") == len(came)
    bench.lan_in(*frames.fragments(udp4(), 1500), after_s=FRAGMENT_WAIT_S + 1)  # time over, the identification is free
    assert SEEN == [(1000, DATA)]


def test_overlapping_ipv6_fragments_end_their_datagram() -> None:
    bench = Bench(Seen)
    first, second, third = frames.fragments(udp6(), 1500)
    bench.lan_in(first, second, patched(second, 100, b"?"), third)
    assert SEEN == [] and bench.count("fragment_overlap") == 4


MALFORMED = {
    "no data": frames.fragments(udp4(bytes(8)), 1500)[0][:34],
    "a length that is no multiple of 8": patched(frames.fragments(udp4(), 1500)[0][:-1], 16, (1499).to_bytes(2, "big")),
    "beyond 64 KiB": patched(frames.fragments(udp4(bytes(900)), 1500)[0], 20, b"\x1f\xff"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_fragments_are_dropped_and_wait_for_nothing(name: str) -> None:
    bench = Bench(Seen)
    frame = MALFORMED[name]
    if name == "no data":
        frame = patched(patched(frame, 16, b"\0\x14"), 20, b"\x20\0")
    assert parse(frame)["reason"] in ("fragment", "malformed")
    bench.lan_in(frame)
    assert bench.count("malformed") == 1 and bench.core.waiting_fragments == 0


def test_the_largest_datagram_there_is() -> None:
    data = random.Random(2).randbytes(65507)
    whole = frames.ethernet(frames.ipv4(INSIDE, OUTSIDE, 17, b"\x03\xe8\0\x35\xff\xeb\0\0" + data))
    cut = frames.fragments(whole, 1500)
    bench = Bench(Seen)
    bench.lan_in(*cut)
    assert [(1000, data)] == SEEN and frames.joined(bench.out())[14:] == frames.joined(cut)[14:]


def test_a_header_may_be_cut_too() -> None:
    """RFC 3128: whoever looks for ports in the first fragment alone can be deceived; the whole datagram decides here."""
    segment = frames.tcp(INSIDE, 1000, OUTSIDE, 80, 2, b"data")
    bench = Bench(Seen)
    bench.lan_in(*frames.fragments(segment, 28))
    assert SEEN == [(1000, b"data")]


def test_what_is_incomplete_expires() -> None:
    bench = Bench(Seen)
    cut = frames.fragments(udp4(), 1500)
    bench.lan_in(*cut[:2])
    bench.lan_in(udp4(b"", 7), after_s=FRAGMENT_WAIT_S - 1)
    assert bench.core.waiting_fragments == 2
    bench.lan_in(udp4(b"", 7), after_s=2)
    assert bench.core.waiting_fragments == 0 and bench.count("fragment_expired") == 2
    bench.lan_in(cut[2])
    bench.core.close_all()
    assert bench.count("fragment_expired") == 3 and SEEN == [(7, b""), (7, b"")]


def test_the_oldest_goes_when_there_are_too_many() -> None:
    bench = Bench(Seen)
    cuts = [frames.fragments(udp4(), 1500, identification=n) for n in range(FRAGMENTED_DATAGRAMS_MAX + 1)]
    for cut in cuts:
        bench.lan_in(cut[0])
    assert bench.count("fragment_evicted") == 1 and bench.core.waiting_fragments == FRAGMENTED_DATAGRAMS_MAX
    bench.lan_in(*cuts[1][1:])
    assert SEEN == [(1000, DATA)]
    bench.lan_in(*cuts[0][1:])
    assert len(SEEN) == 1


def test_memory_is_bounded() -> None:
    bench = Bench(Seen)
    for number in range(200):
        bench.lan_in(frames.fragments(udp4(bytes(40_000)), 30_000, identification=number)[0])
    waiting = bench.core.waiting_fragments
    assert waiting * 30_000 <= FRAGMENT_BYTES_MAX < (waiting + 1) * 31_000
    assert bench.count("fragment_evicted") == 200 - waiting


def test_too_many_fragments_end_their_datagram() -> None:
    bench = Bench(Seen)
    cut = frames.fragments(udp4(bytes(8 * (FRAGMENTS_PER_DATAGRAM_MAX + 1))), 28)
    bench.lan_in(*cut)
    assert SEEN == [] and bench.count("fragment_overlap") == len(cut)


def test_what_differs_in_port_vlan_identification_protocol_or_address_is_not_mixed() -> None:
    first, second = frames.fragments(udp4(DATA[:2000]), 1500)
    for other in (
        patched(second, 19, b"\x08"),
        patched(second, 23, b"\x84"),
        patched(second, 29, b"\x09"),
        second[:12] + b"\x81\0\0\x05" + second[12:],
        second[:12] + b"\x88\xa8\0\x05\x81\0\0\x06" + second[12:],
    ):
        bench = Bench(Seen)
        bench.lan_in(first, other)
        assert SEEN == [] and bench.core.waiting_fragments == 2
    bench = Bench(Seen)
    bench.lan_in(first)
    bench.wan_in(second)
    assert SEEN == []


@pytest.mark.parametrize("tag", [b"\x81\0\0\x05", b"\x88\xa8\0\x05\x81\0\0\x06"], ids=["VLAN", "QinQ"])
def test_tagged_fragments(tag: bytes) -> None:
    bench = Bench(Seen)
    whole = udp4()
    tagged = whole[:12] + tag + whole[12:]
    cut = frames.fragments(tagged, 1500, tags=len(tag))
    bench.lan_in(*cut)
    assert SEEN == [(1000, DATA)]
    assert frames.joined(bench.out(), tags=len(tag)) == frames.joined(cut, tags=len(tag))


def test_congestion_that_one_fragment_met_is_told() -> None:
    """RFC 3168 section 5.3."""
    for whole, at, mark in ((udp4(), 15, b"\x03"), (udp6(), 15, b"\x30")):
        bench = Bench(Seen)
        cut = frames.fragments(whole, 1500)
        bench.lan_in(cut[0], patched(cut[1], at, mark), cut[2])
        assert all(frame[at] & mark[0] == mark[0] for frame in bench.out())


def test_ipv4_options_that_are_not_to_be_copied_are_not() -> None:
    """RFC 791 section 3.1: record route goes with the first fragment alone, router alert with all."""
    route, alert = b"\x07\x07\x04\0\0\0\0", b"\x94\x04\0\0"
    options = route + alert + b"\0"
    first, second = frames.fragments(udp4(DATA[:2000]), 1500)
    with_options = bytearray(first[:34] + options + first[34:])
    with_options[14] = 0x48
    with_options[16:18] = (len(with_options) - 14).to_bytes(2, "big")
    bench = Bench(Seen)
    bench.lan_in(bytes(with_options), second)
    assert [(1000, DATA[:2000])] == SEEN
    one, two = bench.out()
    assert one[34:46] == options and two[34:46] == b"\1" * 7 + alert + b"\0"


def test_ipv6_headers_in_front_of_the_fragment_header_are_in_every_fragment() -> None:
    cut = frames.fragments(udp6(), 1500)
    hop = b"\x2c\0\x05\x02\0\0\x01\0"  # router alert
    longer = [
        frame[:18]
        + (int.from_bytes(frame[18:20], "big") + 8).to_bytes(2, "big")
        + b"\0"
        + frame[21:54]
        + hop
        + frame[54:]
        for frame in cut
    ]
    bench = Bench(Seen)
    bench.lan_in(*longer)
    assert SEEN == [(1000, DATA)] and bench.out() == longer


def test_a_fragment_inside_a_fragment_is_malformed() -> None:
    bench = Bench(Seen)
    inner = frames.fragments(udp6(), 1500)[0]
    bench.lan_in(*frames.fragments(inner, 1000))
    assert SEEN == [] and bench.count("malformed") == 1


# ---------------------------------------------------------------------------------------------------- network functions


def test_policies() -> None:
    class Dropping(Seen):
        fragments = "drop"

    class Forwarding(Seen):
        fragments = "forward"

    cut = frames.fragments(udp4(), 1500)
    bench = Bench(Dropping)
    bench.lan_in(*cut)
    assert bench.count("fragment") == 3 and bench.out() == []
    bench = Bench(Forwarding)
    bench.lan_in(*cut)
    assert bench.out() == cut and SEEN == [] and bench.core.entries == 0
    with pytest.raises(UsageError, match="fragments must be one of drop, forward, reassemble"):

        class Wrong(Seen):
            fragments = "assemble"

    with pytest.raises(UsageError, match="with 3 ports"):
        Core(Forwarding, [MemoryPort(name) for name in "abc"])


def test_a_rewritten_source_gets_identifications_of_its_own() -> None:
    """RFC 6864 section 5.3.1: two hosts that share an address now may have chosen the same."""

    class Masked(FlowActor):
        def on_packet(self, packet: Packet) -> Any:
            return Rewrite(source=EXTERNAL)

    bench = Bench(Masked)
    ids = set()
    for host in ("10.0.0.2", "10.0.0.3"):
        bench.lan_in(*frames.fragments(frames.udp(host, 1000, OUTSIDE, 53, DATA), 1500, identification=9))
        left = bench.out()
        assert len({frame[18:20] for frame in left}) == 1
        ids.add(left[0][18:20])
        assert checksums_right(frames.joined(left))
    assert len(ids) == 2


class Nat:
    def __init__(self) -> None:
        self.lan, self.wan = MemoryPort("lan"), MemoryPort("wan")
        self.node = Embedded(SourceNAT, [self.lan, self.wan], {"address": EXTERNAL}, virtual_time=True)

    def through(self, port: MemoryPort, *packets: bytes) -> list[bytes]:
        port.feed([(SECOND, packet) for packet in packets])
        self.node.run_burst()
        return [bytes(frame) for _, frame in (self.wan if port is self.lan else self.lan).take()]


@pytest.mark.parametrize("protocol", ["udp", "icmp"])
def test_large_datagrams_through_the_nat_and_back(protocol: str) -> None:
    """RFC 4787 UDP-14: fragments are translated, in whatever order they come."""
    nat = Nat()
    out = (
        frames.udp(INSIDE, 5000, OUTSIDE, 53, DATA)
        if protocol == "udp"
        else frames.echo(INSIDE, OUTSIDE, 5000, data=DATA)
    )
    left = nat.through(nat.lan, *frames.fragments(out, 1500)[::-1])
    whole = frames.joined(left)
    assert parse(whole)["flow"].source == EXTERNAL and parse(whole)["flow"].source_port == 5000
    assert checksums_right(whole) and whole[-4000:] == DATA
    if protocol == "udp":
        back = frames.udp(OUTSIDE, 53, EXTERNAL, 5000, DATA)
    else:
        back = frames.echo(OUTSIDE, EXTERNAL, 5000, 0, data=DATA)
    left = nat.through(nat.wan, *frames.fragments(back, 576))
    whole = frames.joined(left)
    assert len(left) == 8 and parse(whole)["flow"].destination == INSIDE
    assert checksums_right(whole) and whole[-4000:] == DATA
    nat.node.finish()


# ------------------------------------------------------------------------------------------------------- several cores


def test_fragments_meet_on_one_core_and_their_flow_on_its_own() -> None:
    """G1: whichever core the fragments come to, the flow's core gets the datagram, and it leaves in fragments."""
    Seen.prepare()
    rings = [Ring.create("hand-off to 0"), Ring.create("hand-off to 1")]
    cores, lans, wans = [], [], []
    for index in range(2):
        lan, wan = MemoryPort("lan"), MemoryPort("wan")
        core = Core(Seen, [lan, wan], index=index, cores=2, flows_max=256, virtual_time=True)
        other = Handoff(rings[1 - index], rings[index])
        core.siblings.handoffs = [None, other] if index == 0 else [other, None]
        cores.append(core), lans.append(lan), wans.append(wan)
    for sport in range(1000, 1010):
        for number, fragment in enumerate(frames.fragments(udp4(sport=sport), 1500, identification=sport)):
            lans[number % 2].feed([(SECOND, fragment)])
            lans[number % 2].feed([(SECOND, udp4(b"", sport))])
    for _ in range(4):
        for core in cores:
            core.breathe()
    assert sorted(SEEN) == sorted([(sport, data) for sport in range(1000, 1010) for data in (DATA, b"", b"", b"")])
    counts = [core.count() for core in cores]
    assert all(count["flows_opened"] for count in counts)
    assert sum(count["flows_opened"] for count in counts) == 10
    left = [bytes(frame) for wan in wans for _, frame in wan.take()]
    assert len(left) == 60 and all(len(frame) <= 1514 for frame in left)


# ------------------------------------------------------------------------------------------------------------ captures


@pytest.mark.parametrize("name", ["ip_fragmented_garbage.pcap", "dns_fragmented.pcap"])
def test_captures_of_fragments(name: str, tmp_path: Path) -> None:
    """G9: what comes in is what leaves, is dropped by name, or was put together."""
    packets = [bytes(frame) for _, frame, _ in read_capture(str(CAPTURES / name))]
    bench = Bench(Seen)
    for at in range(0, len(packets), 100):
        bench.lan_in(*packets[at : at + 100], after_s=0.01)
    bench.core.close_all()
    counts = bench.core.count()
    left = len(bench.out()) - counts["fragments_made"] + counts["refragmented"]
    assert left + counts["fragments_joined"] - counts["reassembled"] + sum(counts[drop] for drop in DROPS) == len(
        packets
    )
    assert bench.core.waiting_fragments == 0 and counts["handler_error"] == 0
    if name == "dns_fragmented.pcap":
        assert counts["reassembled"] == 7 and counts["fragment_expired"] == 0


# ---------------------------------------------------------------------------------------------------------------- live


def _echo_request(size: int) -> bytes:
    body = bytes((8, 0, 0, 0, 0x12, 0x34, 0, 1)) + DATA[:size]
    total = sum(int.from_bytes(body[i : i + 2], "big") for i in range(0, len(body), 2))
    total = (total & 0xFFFF) + (total >> 16)
    return body[:2] + (~((total & 0xFFFF) + (total >> 16)) & 0xFFFF).to_bytes(2, "big") + body[4:]


@pytest.mark.root
def test_large_datagrams_through_a_live_nat(tmp_path: Path) -> None:
    """What `ping -s 4000` does, to a host beyond the NAT and to the NAT itself, and UDP up to the largest there is."""
    with Pair(tmp_path / "pair", cores=2) as pair:
        pair.launch("a", "primary")
        client = pair.lab.call("client", lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        server = pair.lab.call("server", lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        ping = pair.lab.call("client", lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP))
        with client, server, ping:
            for sock in (client, server, ping):
                sock.settimeout(5)
            server.bind((SERVER, 5353))
            for address in (SERVER, "10.0.0.1"):
                ping.sendto(_echo_request(4000), (address, 0))
                reply, _ = ping.recvfrom(65536)
                assert reply[20] == 0 and reply[28:] == DATA
            for size in (1472, 1473, 9000, 65507):
                data = random.Random(size).randbytes(size)
                client.sendto(data, (SERVER, 5353))
                received, source = server.recvfrom(65536)
                assert received == data and source[0] == "203.0.113.1"
                server.sendto(data[::-1], source)
                assert client.recv(65536) == data[::-1]
        workers = [pair.worker("a", f"core-{core}")["status"]["counters"] for core in range(2)]
        assert sum(worker["reassembled"] for worker in workers) == 9
        assert sum(worker["refragmented"] for worker in workers) == 9
