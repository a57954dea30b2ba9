"""How many packets per second does one core carry out alone, in memory, by what it is to do and by frame size?

    python -m bench.offload [--flows 1000,100000,1000000] [--seconds 1] [--bytes 64,1500]

Each flow is offloaded in both directions at its first packet; counted is what leaves from then on, per second of CPU time.
"""

from __future__ import annotations

import argparse
import time
from typing import Any, ClassVar

import dpkt

from actornet import FORWARD, FlowActor, Meter, Mirror, Packet, Rewrite, Verdict
from actornet.embedded import Embedded
from actornet.engine.heap import use_huge_pages
from actornet.ports.memory import LoopPort
from bench.nat import reordered, templates
from bench.report import Row, table, write_json


class Firewall(FlowActor):
    """Passes what it allows, and the answers, unchanged."""

    terms: ClassVar[dict[str, Any]] = {}

    def on_open(self, packet: Packet) -> Any:
        answer = packet.flow.reversed()
        self.bind(answer)
        self.offload(self.decision(packet), **self.terms)
        self.offload(FORWARD, answer)

    def decision(self, packet: Packet) -> Verdict:
        return FORWARD


class LoadBalancer(Firewall):
    """Sends a flow to one of 256 servers."""

    def decision(self, packet: Packet) -> Verdict:
        return Rewrite(destination=f"10.1.0.{packet.source_port & 255}", destination_port=8053)


class Tagging(Firewall):
    def decision(self, packet: Packet) -> Verdict:
        return Rewrite(vlan=7)


class Metered(Firewall):
    terms: ClassVar[dict[str, Any]] = {"meter": Meter(packets_per_s=1 << 30, burst=1 << 30)}


class Mirrored(Firewall):
    terms: ClassVar[dict[str, Any]] = {"mirror": Mirror(every=100)}

    def on_mirror(self, packet: Packet) -> None:
        pass


FUNCTIONS: dict[str, type[FlowActor]] = {
    "firewall": Firewall,
    "load balancer": LoadBalancer,
    "metered": Metered,
    "every 100th mirrored": Mirrored,
    "VLAN tag put on": Tagging,
}


def stretched(frames: bytes, frame_bytes: int) -> bytes:
    """The 64-byte frames with as much payload as makes them so long."""
    if frame_bytes == 64:
        return frames
    out = []
    for at in range(0, len(frames), 64):
        ethernet = dpkt.ethernet.Ethernet(frames[at : at + 64])
        udp = ethernet.data.data
        udp.data = bytes(frame_bytes - 42)
        udp.ulen, ethernet.data.len, udp.sum, ethernet.data.sum = frame_bytes - 34, frame_bytes - 14, 0, 0
        out.append(bytes(ethernet))
    return b"".join(out)


def measure(nf: type[FlowActor], frames: bytes, frame_bytes: int, flows: int, seconds: float) -> float:
    """Packets per second, in millions."""
    lan = LoopPort("lan", frames, frame_bytes)
    wan = LoopPort("wan", bytes(frame_bytes), frame_bytes, count=0)
    node = Embedded(nf, [lan, wan], flows_max=max(4096, flows * 2 + 16))
    while lan.received_packets < flows:
        node.run_burst()
    lan.play(reordered(frames, frame_bytes))
    breathe, sent, begin = node.core.breathe, wan.sent_packets, time.process_time()
    while time.process_time() - begin < seconds:
        for _ in range(100):
            breathe()
    elapsed = time.process_time() - begin
    counts = node.counters()
    assert counts["flows_opened"] == flows and counts["tx_packets"] == counts["rx_packets"], counts
    return (wan.sent_packets - sent) / elapsed / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flows", default="1000,100000,1000000")
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--bytes", default="64,1500")
    arguments = parser.parse_args()
    use_huge_pages()  # as a live core does
    rows: list[Row] = []
    for frame_bytes in map(int, arguments.bytes.split(",")):
        for flows in map(int, arguments.flows.split(",")):
            if flows * frame_bytes > 1 << 28:
                continue  # the templates alone would not fit a small machine
            frames = stretched(templates(flows), frame_bytes)
            row: Row = {"bytes": frame_bytes, "flows": flows}
            for name, nf in FUNCTIONS.items():
                mpps = measure(nf, frames, frame_bytes, flows, arguments.seconds)
                row[f"{name} Mpps"] = mpps
                if frame_bytes > 64:
                    row[f"{name} Gbit/s"] = mpps * frame_bytes * 8 / 1000
            rows.append(row)
    print(table(rows))
    print(write_json("offload", rows))


if __name__ == "__main__":
    main()
