"""How many packets per second of a capture are told apart by connection, and counted?

    python -m bench.capture [--packets 300000] [--seconds 3] [--times 3] [--peers nfstream,dpkt,pypacker,scapy]

Every subject reads the same file, made of real captures over and over (IPv4, TCP and UDP), and counts the packets of each
connection, both directions together; who reads all of it must find the same. actornet does so three times: with the core
counting what is offloaded, by a `def` and by an `async def` handler per packet. dpkt, pypacker and scapy are loops over their
packet objects, ended after so many seconds; NFStream counts with one meter and without dissecting protocols, and its processes'
start is taken off. The best of several times each.
"""

from __future__ import annotations

import argparse
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any, ClassVar

import dpkt

from actornet import FORWARD, OFFLOADED, FlowActor, Packet, Verdict
from actornet.embedded import Embedded
from actornet.ports.capture import CaptureFeed, CapturePort
from actornet.ports.pcap import CaptureWriter, read_capture
from bench.report import Row, table, write_json

CAPTURES = Path(__file__).parents[1] / "tests" / "captures"
NAMES = ("skype.pcap", "bittorrent.pcap", "chrome.pcap", "ftp.pcap", "http-manipulated.pcap", "quic.pcap")
BEGIN_NS, GAP_NS = 1_600_000_000_000_000_000, 10_000
NEVER_S = 10_000_000

Counts = dict[Any, int]
"""Packets of each connection."""


class Counted(FlowActor):
    """The core counts both directions; what it has counted is read when the connection ends."""

    idle_s = float(NEVER_S)
    found: ClassVar[Counts] = {}

    def on_open(self, packet: Packet) -> None:
        answer = packet.flow.reversed()
        self.bind(answer, "in")
        self.offload(FORWARD, punt_tcp=False)
        self.offload(FORWARD, answer, "in", punt_tcp=False)

    def on_packet(self, packet: Packet) -> Verdict:
        return OFFLOADED

    def on_close(self) -> None:
        self.found[self.flow] = self.packets


class Counting(FlowActor):
    """A handler counts each packet."""

    idle_s = float(NEVER_S)
    found: ClassVar[Counts] = {}
    _seen: int = 0

    def on_open(self, packet: Packet) -> None:
        self.bind(packet.flow.reversed(), "in")

    def on_packet(self, packet: Packet) -> Any:
        self._seen += 1
        return FORWARD

    def on_close(self) -> None:
        self.found[self.flow] = self._seen


class CountingAsync(Counting):
    async def on_packet(self, packet: Packet) -> Any:
        self._seen += 1
        return FORWARD


def write(path: Path, packets: int) -> int:
    """A capture of at least so many packets, without fragments and what is cut; returns how many it has."""
    frames: list[bytes] = []
    for name in NAMES:
        frames += [bytes(frame) for _, frame, length in read_capture(CAPTURES / name) if plain(frame, length)]
    rounds = -(-packets // len(frames))
    times = count(BEGIN_NS, GAP_NS)  # not their own: some were recorded years apart
    with CaptureWriter(path, nanoseconds=False) as writer:
        for _ in range(rounds):
            writer.write_burst([(time_ns, frame, 0) for time_ns, frame in zip(times, frames, strict=False)])
    return rounds * len(frames)


def plain(frame: bytes, length: int) -> bool:
    ip = dpkt.ethernet.Ethernet(frame).data
    if len(frame) != length or not isinstance(ip, dpkt.ip.IP) or ip.mf or ip.offset:
        return False
    return isinstance(ip.data, dpkt.tcp.TCP | dpkt.udp.UDP)


def actornet(nf: type[Any], path: Path) -> tuple[float, Counts]:
    """Packets per second, in thousands, and what was found."""
    nf.found.clear()
    begin = time.perf_counter()
    with read_capture(path) as capture:
        feed = CaptureFeed([(capture, 0)])
        ports = [CapturePort("in", feed), CapturePort("out", feed)]
        node = Embedded(nf, ports, virtual_time=True)
        while not feed.exhausted:
            node.run_burst()
        node.finish()
    elapsed = time.perf_counter() - begin
    return feed.packets / elapsed / 1e3, dict(nf.found)


def loop(keys: Callable[[Path], Iterator[Any]], path: Path, seconds: float) -> tuple[float, Counts]:
    """As `actornet`, of a reader that yields (protocol, source, port, destination, port)."""
    counts: Counts = {}
    packets, begin = 0, time.perf_counter()
    for protocol, source, source_port, destination, destination_port in keys(path):
        ends = (source, source_port), (destination, destination_port)
        key = protocol, *(ends if ends[0] < ends[1] else ends[::-1])
        counts[key] = counts.get(key, 0) + 1
        packets += 1
        if packets % 256 == 0 and time.perf_counter() - begin > seconds:
            break
    return packets / (time.perf_counter() - begin) / 1e3, counts


def by_dpkt(path: Path) -> Iterator[Any]:
    with path.open("rb") as file:
        for _, frame in dpkt.pcap.Reader(file):
            ip = dpkt.ethernet.Ethernet(frame).data
            yield ip.p, ip.src, ip.data.sport, ip.dst, ip.data.dport


def by_pypacker(path: Path) -> Iterator[Any]:
    from pypacker.layer3.ip import IP
    from pypacker.layer4.tcp import TCP
    from pypacker.layer4.udp import UDP
    from pypacker.layer12.ethernet import Ethernet
    from pypacker.ppcap import Reader

    for _, frame in Reader(filename=str(path)):
        ip = Ethernet(frame)[IP]
        segment = ip[TCP if ip.p == socket.IPPROTO_TCP else UDP]
        yield ip.p, ip.src, segment.sport, ip.dst, segment.dport


def by_scapy(path: Path) -> Iterator[Any]:
    from scapy.layers.inet import IP
    from scapy.utils import PcapReader

    with PcapReader(str(path)) as reader:
        for packet in reader:
            ip = packet[IP]
            yield ip.proto, ip.src, ip.payload.sport, ip.dst, ip.payload.dport


def nfstream(path: Path) -> tuple[float, Counts]:
    from nfstream import NFStreamer

    counts: Counts = {}
    begin = time.perf_counter()
    streamer = NFStreamer(
        source=str(path), idle_timeout=NEVER_S, active_timeout=NEVER_S, n_dissections=0, n_meters=1, snapshot_length=96
    )
    for flow in streamer:
        key = flow.protocol, flow.src_ip, flow.src_port, flow.dst_ip, flow.dst_port
        counts[key] = counts.get(key, 0) + flow.bidirectional_packets
    return time.perf_counter() - begin, counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packets", type=int, default=300_000)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--peers", default="nfstream,dpkt,pypacker,scapy")
    arguments = parser.parse_args()
    peers = arguments.peers.split(",")
    if "nfstream" in peers and find_spec("nfstream") is None:
        print("NFStream is left out: it is not installed (pip install nfstream)")
        peers.remove("nfstream")
    subjects: list[str] = []
    speeds: list[float] = []
    expected: list[int] = []

    def measure(subject: str, count_packets: Callable[[], tuple[float, Counts]]) -> None:
        """The best of several times. Who has read everything must have found what the first one found."""
        results = [count_packets() for _ in range(arguments.times)]
        for _, counts in results:
            if sum(counts.values()) == packets:
                expected[:] = expected or sorted(counts.values())
                assert sorted(counts.values()) == expected, subject
        subjects.append(subject)
        speeds.append(max(speed for speed, _ in results))

    with tempfile.TemporaryDirectory() as directory:
        path, little = Path(directory) / "capture.pcap", Path(directory) / "little.pcap"
        packets = write(path, arguments.packets)
        few = write(little, 1)
        measure("actornet, offloaded", lambda: actornet(Counted, path))
        assert expected
        measure("actornet, def per packet", lambda: actornet(Counting, path))
        measure("actornet, async def per packet", lambda: actornet(CountingAsync, path))
        if "nfstream" in peers:
            start_s = min(nfstream(little)[0] for _ in range(arguments.times))

            def without_start() -> tuple[float, Counts]:
                elapsed_s, counts = nfstream(path)
                return (packets - few) / (elapsed_s - start_s) / 1e3, counts

            measure("NFStream", without_start)
        for name, keys in (("dpkt", by_dpkt), ("pypacker", by_pypacker), ("scapy", by_scapy)):
            if name in peers:
                measure(name, partial(loop, keys, path, arguments.seconds))
    rows: list[Row] = [{"packets/s (thousand)": speed, "offloaded / this": speeds[0] / speed} for speed in speeds]
    print(f"{packets} packets of {len(expected)} connections")
    print(table(rows, subjects))
    print(write_json("capture", rows, subjects))


if __name__ == "__main__":
    main()
