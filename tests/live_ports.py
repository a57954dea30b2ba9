"""What tests of live ports share: a lab, frames, and neighbours that see and send them."""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from random import Random
from typing import Any

import dpkt

from actornet.ports.live import LivePort, forward
from actornet.ports.memory import MemoryPort
from actornet.testing.netns import Lab

CLIENT_IP, SERVER_IP = b"\x0a\0\0\x01", b"\x0a\0\0\x02"
CLIENT, SERVER = b"\x02\0\0\0\0\x01", b"\x02\0\0\0\0\x02"
ETH_P_ALL = 3
SOL_PACKET, PACKET_VNET_HDR, PACKET_IGNORE_OUTGOING = 263, 15, 23
VNET = struct.Struct("=BBHHHH")
"""virtio_net_hdr: flags, gso_type, hdr_len, gso_size, csum_start, csum_offset."""


@contextmanager
def new_lab() -> Iterator[Lab]:
    """Client and server in one network, on either side of a box that can only forward frames."""
    with Lab.single("10.0.0.1/24", "10.0.0.2/24", gateway=None) as lab:
        yield lab


def raw_socket(interface: str, *, vnet: bool = False) -> socket.socket:
    """What a neighbour of the port uses to see and send frames; reads time out after 1 s."""
    raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    raw.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
    if vnet:
        raw.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
    raw.bind((interface, ETH_P_ALL))
    raw.settimeout(1.0)
    return raw


def received(raw: socket.socket, count: int) -> list[bytes]:
    return [raw.recv(65_700) for _ in range(count)]


def take(port: LivePort, count: int, seconds: float = 1.0) -> list[bytes]:
    """The frames that come in at the port until there are `count`."""
    memory = MemoryPort("memory")
    forward(port, memory, packets=count, seconds=seconds)
    return [frame for _, frame in memory.take()]


def send(port: LivePort, frames: list[bytes]) -> int:
    memory = MemoryPort("memory")
    memory.feed((0, frame) for frame in frames)
    sent = 0
    while len(memory):
        sent += forward(memory, port, seconds=0.001)
    return sent


def udp_frame(number: int, source_port: int = 1000, tags: bytes = b"", payload_bytes: int = 18) -> bytes:
    udp = dpkt.udp.UDP(sport=source_port, dport=2000, data=Random(number).randbytes(payload_bytes))
    udp.ulen = len(udp)
    ip = dpkt.ip.IP(src=CLIENT_IP, dst=SERVER_IP, p=17, id=number & 0xFFFF, data=udp)
    return SERVER + CLIENT + tags + b"\x08\0" + bytes(ip)


def gso_frame(version: int, tags: bytes, payload: bytes, mss: int) -> tuple[bytes, bytes]:
    """A TCP frame to be cut into segments, its checksum field holding the pseudo-header's sum; and its vnet header."""
    tcp = bytes(dpkt.tcp.TCP(sport=1000, dport=2000, seq=1, flags=dpkt.tcp.TH_ACK))
    ip: Any
    if version == 4:
        ip = dpkt.ip.IP(src=CLIENT_IP, dst=SERVER_IP, p=6, hl=6, opts=b"\1\1\1\0", len=24 + len(tcp) + len(payload))
        header, ethertype = ip.pack_hdr() + ip.opts, b"\x08\0"
        header = header[:10] + struct.pack("!H", dpkt.in_cksum(header)) + header[12:]
    else:
        ip = dpkt.ip6.IP6(src=bytes(15) + b"\1", dst=bytes(15) + b"\2", nxt=6, plen=len(tcp) + len(payload))
        header, ethertype = ip.pack_hdr(), b"\x86\xdd"
    pseudo = ip.src + ip.dst + struct.pack("!II", len(tcp) + len(payload), 6)
    tcp = tcp[:16] + struct.pack("!H", ~dpkt.in_cksum(pseudo) & 0xFFFF) + tcp[18:]
    l4 = 14 + len(tags) + len(header)
    vnet = VNET.pack(1, {4: 1, 6: 4}[version], l4 + len(tcp), mss, l4, 16)
    return SERVER + CLIENT + tags + ethertype + header + tcp + payload, vnet


def tcp_checksum_is_right(packet: Any, version: int) -> bool:
    segment = bytes(packet)[packet.hl * 4 :] if version == 4 else bytes(packet.data)
    pseudo = packet.src + packet.dst + struct.pack("!II", len(segment), 6)
    return bool(dpkt.in_cksum(pseudo + segment) == 0)


def set_offloads(interface: str, on: bool, checksums: bool = True) -> None:
    """ethtool -K: transmit checksums, unless these are left as they are; segmentation of TCP, generic segmentation."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        for command in (0x17, 0x1F, 0x24)[not checksums :]:
            value = ctypes.create_string_buffer(struct.pack("II", command, on))
            fcntl.ioctl(any_socket, 0x8946, struct.pack("16sP16x", interface.encode(), ctypes.addressof(value)))


def tun(name: bytes, flags: int) -> int:
    """A tun or tap interface, which lasts as long as the descriptor of its other end that is returned."""
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    fcntl.ioctl(descriptor, 0x400454CA, struct.pack("16sH14x", name, flags | 0x1000))
    return descriptor


def until(condition: Callable[[], bool], seconds: float = 2.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.002)


def reversed_frame(frame: bytes) -> bytes:
    return frame[:26] + frame[30:34] + frame[26:30] + frame[36:38] + frame[34:36] + frame[38:]


def ping(host: str, count: int) -> list[float]:
    """Round trips in microseconds; raises TimeoutError if one is lost."""
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as icmp:
        icmp.settimeout(1.0)
        round_trips = []
        for number in range(count):
            echo = dpkt.icmp.ICMP(type=8, data=dpkt.icmp.ICMP.Echo(id=77, seq=number, data=bytes(32)))
            begin = time.perf_counter()
            icmp.sendto(bytes(echo), (host, 0))
            while (answer := icmp.recv(1500))[20:21] != b"\0" or answer[24:28] != struct.pack("!HH", 77, number):
                pass
            round_trips.append((time.perf_counter() - begin) * 1e6)
    return round_trips


def set_queues(interface: str, count: int) -> None:
    """ethtool -L INTERFACE rx COUNT tx COUNT."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        value = ctypes.create_string_buffer(struct.pack("9I", 0x3D, 0, 0, 0, 0, count, count, 0, 0))
        fcntl.ioctl(any_socket, 0x8946, struct.pack("16sP16x", interface.encode(), ctypes.addressof(value)))
