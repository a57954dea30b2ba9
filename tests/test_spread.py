"""The filters that spread frames over the cores' packet sockets, run by the kernel, against the cores' own hash."""

from __future__ import annotations

import ctypes
import socket
import struct
from collections.abc import Iterator
from ipaddress import ip_address
from random import Random

import pytest

from actornet.engine.five_tuple import FiveTuple
from actornet.engine.rss import RssKeys, keys_for
from actornet.engine.wire import rss_core
from actornet.ports.spread import filter_for

SO_ATTACH_FILTER = 26
KEYED = keys_for((("per client", ("source",)),))

Keys = tuple[RssKeys, RssKeys] | None


class Filtered:
    """A socket that passes what a program does: the kernel runs it on a datagram as on a frame."""

    def __init__(self, program: bytes) -> None:
        self._out, self._in = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        if program:
            code = ctypes.create_string_buffer(program)
            self._in.setsockopt(
                socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(code))
            )
        self._in.setblocking(False)

    def passes(self, frame: bytes) -> bool:
        self._out.send(frame)
        try:
            return self._in.recv(2000) == frame
        except BlockingIOError:
            return False

    def close(self) -> None:
        self._out.close()
        self._in.close()


def takers(frame: bytes, cores: int, keys: Keys = None, port: int = 0) -> list[int]:
    """The cores whose filters pass the frame."""
    found = []
    for core in range(cores):
        filtered = Filtered(filter_for(core, cores, keys, port))
        if filtered.passes(frame):
            found.append(core)
        filtered.close()
    return found


def packet(flow: FiveTuple, tags: bytes = b"", *, options: int = 0, fragment: int = 0) -> bytes:
    source, destination = ip_address(flow.source).packed, ip_address(flow.destination).packed
    transport = struct.pack("!HH", flow.source_port, flow.destination_port) + bytes(16)
    if len(source) == 4:
        header = struct.pack("!BBHHHBBH", 0x45 + options, 0, 40 + 4 * options, 1, fragment, 64, flow.protocol, 0)
        return bytes(12) + tags + b"\x08\0" + header + source + destination + bytes(4 * options) + transport
    header = struct.pack("!IHBB", 6 << 28, len(transport), flow.protocol, 64)
    return bytes(12) + tags + b"\x86\xdd" + header + source + destination + transport


def flows(count: int) -> Iterator[FiveTuple]:
    chance = Random(5)
    for number in range(count):
        width = 32 if number % 2 else 128
        source, destination = (str(ip_address(chance.getrandbits(width).to_bytes(width // 8, "big"))) for _ in range(2))
        yield FiveTuple(chance.choice((6, 17)), source, chance.randrange(65536), destination, chance.randrange(65536))


@pytest.mark.parametrize("keys", [None, KEYED], ids=["symmetric", "keyed"])
@pytest.mark.parametrize("cores", [1, 2, 3, 4, 7, 64])
def test_each_frame_is_taken_by_the_core_of_its_flow_alone(cores: int, keys: Keys) -> None:
    """G1: by one, and by none other, at either port, whatever tags stand in front."""
    tags = [b"", b"\x81\0\0\x07", b"\x88\xa8\0\x09\x81\0\0\x07", b"\x91\0\0\x09\x81\0\0\x07"]
    for port in (0, 1):
        filters = [Filtered(filter_for(core, cores, keys, port)) for core in range(cores)]
        homes = set()
        for number, flow in enumerate(flows(64)):
            key = keys[":" in flow.source].key(port) if keys else None
            home = rss_core(flow, cores, key)
            frame = packet(flow, tags[number % 4], options=number % 3 if "." in flow.source else 0)
            assert [core for core, each in enumerate(filters) if each.passes(frame)] == [home], flow
            homes.add(home)
        assert len(homes) > cores // 3, "the flows are spread"
        for each in filters:
            each.close()


def test_both_directions_meet_under_the_symmetric_key() -> None:
    for flow in flows(20):
        assert takers(packet(flow), 4) == takers(packet(flow.reversed()), 4)


def test_fragments_and_what_has_no_ports_are_spread_by_their_addresses() -> None:
    for flow in flows(20):
        bare = FiveTuple(flow.protocol, flow.source, 0, flow.destination, 0)
        if "." in flow.source:
            assert (
                takers(packet(flow, fragment=0x2000), 4) == takers(packet(flow, fragment=185), 4) == [rss_core(bare, 4)]
            )
        icmp = FiveTuple(1 if "." in flow.source else 58, flow.source, 800, flow.destination, 7)
        assert takers(packet(icmp), 4) == [rss_core(bare, 4)]


@pytest.mark.parametrize("keys", [None, KEYED], ids=["symmetric", "keyed"])
def test_no_frame_is_nobodys_however_short(keys: Keys) -> None:
    """G9: what the program cannot judge is the first core's, and counted there."""
    arp = bytes(12) + b"\x08\x06" + bytes(28)
    assert takers(arp, 3, keys) == [0]
    four, six = list(flows(2))[::-1]
    for flow in (four, six):
        for tags in (b"", b"\x81\0\0\x07", b"\x88\xa8\0\x09\x81\0\0\x07"):
            whole = packet(flow, tags)
            for length in range(14, len(whole)):
                assert len(takers(whole[:length], 3, keys)) == 1, length
