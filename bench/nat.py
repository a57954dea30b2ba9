"""How many 64-byte UDP packets per second does a source NAT translate on one core, in memory?

    python -m bench.nat [--flows 1,1000,100000,1000000] [--seconds 2] [--peers c,dpkt,pypacker,scapy]

The same NAT three times: offloaded to the compiled core, by a `def` handler and by an `async def` handler per packet;
beside it, in the same run, a plain C loop that does the same work (bench/c_nat.c) and loops over dpkt, pypacker and scapy
objects.
Packets are copied from templates into a ring of buffers, as a network card would. They come in another order than that in
which their flows began: caches help no more than they would elsewhere. Seconds are of CPU time, for all alike.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dpkt

from actornet import OFFLOADED, FiveTuple, Packet, Rewrite, Verdict
from actornet.embedded import Embedded
from actornet.engine.heap import use_huge_pages
from actornet.ports.memory import LoopPort
from actors.nat import SourceNAT
from bench.report import Row, resident_bytes, table, write_json

FRAME_BYTES = 64
EXTERNAL = "203.0.113.1"


class PacketNAT(SourceNAT):
    """The NAT with a handler call for every packet in place of the offload."""

    _out: Rewrite | None = None
    _back: Rewrite | None = None

    def _translate(self, out: Rewrite, reply: FiveTuple, reply_port: str, back: Rewrite) -> None:
        self.bind(reply, reply_port)
        self._out, self._back = out, back

    def on_packet(self, packet: Packet) -> Verdict:
        return self._out if packet.destination_port == 53 else self._back or OFFLOADED  # type: ignore[return-value]


class AsyncNAT(PacketNAT):
    async def on_packet(self, packet: Packet) -> Verdict:  # type: ignore[override]
        return self._out if packet.destination_port == 53 else self._back or OFFLOADED  # type: ignore[return-value]


def templates(flows: int) -> bytes:
    """One 64-byte frame per flow, in random order: up to 60,000 inside endpoints, and as many servers as it takes."""
    endpoints = min(flows, 60_000)
    frames = []
    for number in range(flows):
        inside, server = number % endpoints, number // endpoints
        udp = dpkt.udp.UDP(sport=1024 + inside % 60_000, dport=53, data=b"\0" * 22, ulen=30)
        ip = dpkt.ip.IP(
            src=bytes((10, 0, inside >> 8 & 255, inside & 255)),
            dst=bytes((198, 18, server >> 8, server & 255)),
            p=dpkt.ip.IP_PROTO_UDP,
            ttl=64,
            len=50,
            data=udp,
        )
        frames.append(bytes(dpkt.ethernet.Ethernet(src=b"\2" * 6, dst=b"\4" * 6, data=ip)))
    random.Random(1).shuffle(frames)
    return b"".join(frames)


def reordered(frames: bytes, frame_bytes: int = FRAME_BYTES) -> bytes:
    """The frames in another order than that in which they have opened flows, and in which those lie in memory."""
    each = [frames[at : at + frame_bytes] for at in range(0, len(frames), frame_bytes)]
    random.Random(2).shuffle(each)
    return b"".join(each)


def measure(nf: type[SourceNAT], frames: bytes, flows: int, seconds: float) -> dict[str, float]:
    """Packets per second after every flow has been opened, and bytes per flow."""
    before = resident_bytes()
    lan, wan = LoopPort("lan", frames, FRAME_BYTES), LoopPort("wan", b"\0" * FRAME_BYTES, FRAME_BYTES, count=0)
    node = Embedded(nf, [lan, wan], flows_max=max(4096, flows * 2 + 16))
    opening = time.process_time()
    while lan.received_packets < flows:
        node.run_burst()
    opened_s = time.process_time() - opening
    gc.collect()
    memory = (resident_bytes() - before) / flows
    lan.play(reordered(frames))
    breathe = node.core.breathe
    begin, sent = time.process_time(), wan.sent_packets
    while time.process_time() - begin < seconds:
        for _ in range(1000):
            breathe()
    elapsed = time.process_time() - begin
    counts = node.counters()
    assert counts["flows_opened"] == flows and counts["tx_packets"] == counts["rx_packets"], counts
    return {
        "mpps": (wan.sent_packets - sent) / elapsed / 1e6,
        "bytes_per_flow": memory,
        "opens_per_s": flows / opened_s,
    }


def c_loop(flows: int, seconds: float) -> float:
    with tempfile.TemporaryDirectory() as directory:
        binary = Path(directory) / "c_nat"
        source = Path(__file__).with_name("c_nat.c")
        subprocess.run(["cc", "-O3", "-std=gnu11", "-o", str(binary), str(source)], check=True)
        done = subprocess.run([str(binary), str(flows), str(seconds)], check=True, capture_output=True, text=True)
    mpps: float = json.loads(done.stdout)["mpps"]
    return mpps


def object_loop(translate: Callable[[bytes, dict[Any, int]], bytes], frames: bytes, seconds: float) -> float:
    """Packets per second of a NAT that parses and builds packet objects."""
    ports: dict[Any, int] = {}
    count, begin = 0, time.process_time()
    while (elapsed := time.process_time() - begin) < seconds:
        for _ in range(100):
            at = count * FRAME_BYTES % len(frames)
            translate(frames[at : at + FRAME_BYTES], ports)
            count += 1
    return count / elapsed / 1e6


def dpkt_nat(frame: bytes, ports: dict[Any, int]) -> bytes:
    ethernet = dpkt.ethernet.Ethernet(frame)
    ip = ethernet.data
    udp = ip.data
    port = ports.setdefault((ip.p, ip.src, udp.sport), 1024 + len(ports) % 64000)
    ip.src, udp.sport, ip.ttl = b"\xcb\x00\x71\x01", port, ip.ttl - 1
    ip.sum = udp.sum = 0
    return bytes(ethernet)


def pypacker_nat(frame: bytes, ports: dict[Any, int]) -> bytes:
    from pypacker.layer3.ip import IP
    from pypacker.layer4.udp import UDP
    from pypacker.layer12.ethernet import Ethernet

    packet = Ethernet(frame)
    ip = packet[IP]
    udp = ip[UDP]
    ip.src_s, udp.sport, ip.ttl = (
        EXTERNAL,
        ports.setdefault((ip.p, ip.src, udp.sport), 1024 + len(ports) % 64000),
        ip.ttl - 1,
    )
    return packet.bin()  # type: ignore[no-any-return]


def scapy_nat(frame: bytes, ports: dict[Any, int]) -> bytes:
    from scapy.layers.inet import IP, UDP
    from scapy.layers.l2 import Ether

    packet = Ether(frame)
    ip, udp = packet[IP], packet[UDP]
    port = ports.setdefault((ip.proto, ip.src, udp.sport), 1024 + len(ports) % 64000)
    ip.src, udp.sport, ip.ttl = EXTERNAL, port, ip.ttl - 1
    del ip.chksum, udp.chksum
    return bytes(packet)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flows", default="1,1000,100000,1000000")
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--peers", default="c,dpkt,pypacker,scapy")
    arguments = parser.parse_args()
    use_huge_pages()  # as a live core does
    peers = arguments.peers.split(",")
    rows: list[Row] = []
    for flows in map(int, arguments.flows.split(",")):
        frames = templates(flows)
        row: Row = {"flows": flows}
        for name, nf in (("offloaded", SourceNAT), ("def", PacketNAT), ("async def", AsyncNAT)):
            result = measure(nf, frames, flows, arguments.seconds)
            row[f"{name} Mpps"] = result["mpps"]
            if nf is SourceNAT:
                row["bytes/flow offloaded"] = result["bytes_per_flow"]
                row["opens/s"] = result["opens_per_s"]
            elif nf is PacketNAT:
                row["bytes/flow live actor"] = result["bytes_per_flow"]
        if "c" in peers:
            row["C loop Mpps"] = c_loop(flows, arguments.seconds)
            row["offloaded / C"] = row["offloaded Mpps"] / row["C loop Mpps"]
        if "dpkt" in peers:
            row["dpkt Mpps"] = object_loop(dpkt_nat, frames, min(arguments.seconds, 1))
        if "pypacker" in peers:
            row["pypacker Mpps"] = object_loop(pypacker_nat, frames, min(arguments.seconds, 1))
        if "scapy" in peers:
            row["scapy Mpps"] = object_loop(scapy_nat, frames, min(arguments.seconds, 1))
        rows.append(row)
    print(table(rows))
    print(write_json("nat", rows))


if __name__ == "__main__":
    main()
