"""Who is behind which transparent port, and what switches are told of that after a takeover."""

from __future__ import annotations

import os
import random

import dpkt
import pytest

from actornet import DROP, FORWARD, FlowActor, Packet, Verdict
from actornet.engine.core import Core
from actornet.engine.ring import ControlPage, Ring
from actornet.errors import LinkError
from actornet.limits import STATION_S, STATIONS_MAX, STATIONS_TOLD_S
from actornet.node import exchange
from actornet.node.core_worker import RingLink
from actornet.node.exchange import Seen
from actornet.ports.announcement import announcement
from actornet.ports.memory import MemoryPort
from actornet.replication import messages
from actornet.replication.stations import Stations
from tests.test_fuzz_core import mutated

SEED = int(os.environ.get("FUZZ_SEED", "0")) or random.SystemRandom().getrandbits(32)
SECOND = 1_000_000_000


class Wire(FlowActor):
    def on_packet(self, packet: Packet) -> Verdict:
        return FORWARD


class Closed(FlowActor):
    discovery = DROP

    def on_packet(self, packet: Packet) -> Verdict:
        return FORWARD


def udp(mac: bytes, number: int = 0, tags: bytes = b"") -> bytes:
    datagram = dpkt.udp.UDP(sport=1000 + number, dport=53, data=b"x")
    datagram.ulen = len(datagram)
    ip = dpkt.ip.IP(src=b"\x0a\0\0\1", dst=b"\x0a\0\0\2", p=17, data=datagram)
    return b"\2\0\0\0\0\x09" + mac + tags + b"\x08\0" + bytes(ip)


def arp(mac: bytes) -> bytes:
    return bytes(dpkt.ethernet.Ethernet(dst=b"\xff" * 6, src=mac, type=0x0806, data=dpkt.arp.ARP(sha=mac)))


class Sighted:
    """A core and what it has told its owner system of stations."""

    def __init__(self, nf: type[FlowActor] = Wire, ports: int = 2) -> None:
        self.requests, replies = Ring.create("requests", 1 << 20), Ring.create("replies", 1 << 16)
        link = RingLink(self.requests, replies, nf)
        nf.prepare()
        self.ports = [MemoryPort(f"p{number}") for number in range(ports)]
        self.core = Core(nf, [*self.ports], flows_max=1 << 16, link=link, virtual_time=True, now_ns=SECOND)
        link.core = self.core
        self.core.share(ControlPage.create(1), replies)
        self.core.look_for_stations()
        self.now_ns = SECOND

    def told(self, *frames: bytes, port: int = 0) -> list[tuple[int, int]]:
        self.ports[port].feed([(self.now_ns, frame) for frame in frames])
        while len(self.ports[port]):
            self.core.breathe()
        requests = [request for request in self.requests.pop_many(1 << 20) if not request.startswith(exchange.SAVE)]
        seen = [exchange.decode_request(request) for request in requests]
        return [(each.port, each.station) for each in seen if isinstance(each, Seen)]


A, B = b"\2\0\0\0\0\1", b"\2\0\0\0\0\2"


def test_a_station_is_told_once_and_again_when_it_is_behind_the_other_port() -> None:
    sighted = Sighted()
    assert sighted.told(*(udp(A, number) for number in range(50))) == [(0, 0x020000000001)]
    assert sighted.told(arp(B), arp(A), arp(B)) == [(0, 0x020000000002)]
    assert sighted.told(udp(A, 99), port=1) == [(1, 0x020000000001)]
    sighted.now_ns += STATIONS_TOLD_S * SECOND
    assert sighted.told(udp(A, 100), udp(A, 101), port=1) == [(1, 0x020000000001)], "that it is still there"


@pytest.mark.parametrize(
    ("tags", "bits"),
    [
        (b"\x81\0\x20\x07", 7 << 48),
        (b"\x88\xa8\x00\x07", 7 << 48 | 1 << 60),
        (b"\x88\xa8\x0f\xff\x81\0\0\x07", 0xFFF << 48 | 1 << 60),
        (b"\x81\0\x20\0", 0),  # a priority, and no VLAN
    ],
)
def test_each_vlan_has_its_stations(tags: bytes, bits: int) -> None:
    assert Sighted().told(udp(A, tags=tags)) == [(0, 0x020000000001 | bits)]


def test_what_is_no_station_is_not_told() -> None:
    sighted = Sighted()
    assert sighted.told(udp(b"\3\0\0\0\0\1"), udp(bytes(6)), arp(b"\xff" * 6), arp(A)[:12], b"") == []
    assert Sighted(Closed).told(arp(A)) == [], "its frame does not pass"
    assert Sighted(ports=3).told(udp(A)) == [], "there is no other side"


def test_so_many_stations_are_told_in_a_while() -> None:
    """G9: who makes up addresses does not keep the owner system busy."""
    sighted = Sighted()
    told = sighted.told(*(arp(b"\2" + number.to_bytes(5, "big")) for number in range(3 * STATIONS_MAX)))
    assert len(told) == STATIONS_MAX and sighted.core.stations_untold == 2 * STATIONS_MAX
    sighted.now_ns += STATIONS_TOLD_S * SECOND
    assert sighted.told(arp(A)) == [(0, 0x020000000001)]


def named(frame: bytes) -> int:
    """The station that a frame names, as `actornet.engine.sightings` has it, and 0 if it names none."""
    mac = int.from_bytes(frame[6:12], "big")
    if len(frame) < 14 or frame[6] & 1 or not mac:
        return 0
    vlan = int.from_bytes(frame[14:16], "big") & 0xFFF
    if len(frame) < 18 or frame[12:14] not in (b"\x81\0", b"\x88\xa8") or not vlan:
        return mac
    return mac | vlan << 48 | (frame[12] == 0x88) << 60


def test_hostile_frames_tell_of_the_stations_that_they_name() -> None:
    """G9."""
    rng = random.Random(SEED)
    base = [
        arp(A),
        udp(A),
        udp(B, tags=b"\x81\0\0\7"),
        udp(B, tags=b"\x88\xa8\0\7\x81\0\0\1"),
        udp(A)[:13],
        arp(B)[:17],
    ]
    sighted, told = Sighted(), 0
    for _ in range(3000):
        frame = bytearray(mutated(rng, rng.choice(base)))
        frame[6:12] = rng.randbytes(len(frame[6:12]))
        sighted.now_ns += SECOND
        found = sighted.told(bytes(frame), port=rng.randrange(2))
        assert len(found) <= 1 and all(station == named(frame) for _, station in found), (SEED, frame.hex())
        told += len(found)
    assert told > 100, f"{SEED}: few frames got so far"


def test_stations_that_were_seen_last_are_kept_for_an_hour() -> None:
    stations = Stations()
    for station in range(1, STATIONS_MAX + 3):
        stations.learn(0, station, 0)
    assert len(stations) == STATIONS_MAX and stations.evicted == 2
    number = stations.number
    assert len(stations.since(0, 0)) == STATIONS_MAX and stations.since(number, 0) == []
    stations.learn(1, 3, SECOND)
    stations.learn(0, 9, 2 * SECOND)
    assert stations.since(number, 2 * SECOND) == [(0, 9), (1, 3)], "the last first"
    assert stations.since(0, (STATION_S + 1) * SECOND) == [(0, 9), (1, 3)]
    assert stations.since(0, (STATION_S + 3) * SECOND) == []


def test_an_announcement_is_a_reverse_arp_request_of_the_station() -> None:
    """RFC 903, as QEMU sends it for a machine that has moved."""
    frame = announcement(0x020000000001)
    assert frame == bytes.fromhex("ffffffffffff 020000000001 8035 0001 0800 06 04 0003") + (A + bytes(4)) * 2 + bytes(
        18
    )
    assert announcement(0x020000000001 | 7 << 48)[12:18] == b"\x81\0\0\7\x80\x35"
    assert announcement(0x020000000001 | 0xFFF << 48 | 1 << 60)[12:18] == b"\x88\xa8\x0f\xff\x80\x35"


@pytest.mark.parametrize("station", [0, 1 << 61, -1])
def test_a_peer_that_tells_of_no_station_is_not_heard(station: int) -> None:
    with pytest.raises(LinkError):
        messages.decode(messages.encode(messages.Seen(1, [(0, station)])))
    with pytest.raises(LinkError):
        messages.decode(messages.encode(messages.Seen(1, [(2, 5)])))
