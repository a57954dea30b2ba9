"""G9: whatever arrives, no packet crashes or wedges a core, and every one is counted."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import pytest

from actornet import (
    DROP,
    FORWARD,
    OFFLOADED,
    Direction,
    FlowActor,
    Meter,
    Mirror,
    Packet,
    Rewrite,
    StreamActor,
)
from actornet.embedded import Embedded
from actornet.engine.counters import DROPS
from actornet.engine.wire import TUNNELS
from actornet.ports.memory import MemoryPort
from actornet.ports.pcap import read_capture
from actors.nat import SourceNAT
from tests import frames
from tests.test_tunnels import WRAPS

SEED = int(os.environ.get("FUZZ_SEED", "0")) or random.SystemRandom().getrandbits(32)
PACKETS = int(os.environ.get("FUZZ_PACKETS", "20000"))
CAPTURES = sorted(Path(__file__).parent.joinpath("captures").glob("*.pcap*"))


class Curious(FlowActor):
    """Reads everything there is to read."""

    idle_s = 0.5

    def on_packet(self, packet: Packet) -> Any:
        read = [
            getattr(packet, name) for name in dir(packet) if not name.startswith("_") and name not in ("to", "answer")
        ]
        return FORWARD if len(str(read)) % 3 else DROP


class CuriousInside(Curious):
    inner = TUNNELS


class Offloads(FlowActor):
    """Offloads with terms of every kind, and changes them in mid-stream."""

    evict = True
    idle_s = 0.5
    turn: int = 0

    def on_packet(self, packet: Packet) -> Any:
        self.turn += 1
        rng = random.Random(f"{packet.flow} {self.turn}")
        source = "2001:db8::1" if packet.ip_version == 6 else "192.0.2.1"
        vlan = rng.choice((None, 0, 7, 4094))
        verdict = rng.choice(
            (FORWARD, DROP, Rewrite(source=source, vlan=vlan), Rewrite(source_mac="02:00:00:00:00:01"))
        )
        meter = rng.choice((None, Meter(packets_per_s=50, burst=3), Meter(bytes_per_s=1 << 40, burst=1 << 33)))
        mirror = rng.choice((None, Mirror(every=2), Mirror(bytes=100), Mirror(packets=3)))
        self.offload(verdict, hard_s=rng.choice((None, 0.07)), meter=meter, mirror=mirror, punt_tcp=rng.random() < 0.5)
        return rng.choice((verdict, OFFLOADED))

    def on_mirror(self, packet: Packet) -> Any:
        if len(packet.frame) % 3 == 0:
            self.withdraw()
        elif len(packet.frame) % 5 == 0:
            self.close()


class OffloadsInside(Offloads):
    inner = TUNNELS


def corpus() -> list[bytes]:
    found = [bytes(frame) for path in CAPTURES for _, frame, _ in list(read_capture(path))[:200]]
    outgoing = frames.udp("10.0.0.2", 1000, "198.51.100.1", 53)
    carried = [frame for frame in found if len(frame) < 1500]
    found += [wrap(frame, len(frame) % 2 == 0) for frame in carried[::5] for _, wrap in WRAPS]
    found += [outgoing, frames.tcp("10.0.0.2", 9, "198.51.100.1", 80, 2), frames.echo("10.0.0.2", "198.51.100.1", 7)]
    return [*found, frames.icmp_error("192.0.2.1", frames.udp("203.0.113.1", 1000, "198.51.100.1", 53))]


def mutated(rng: random.Random, frame: bytes) -> bytes:
    data = bytearray(frame)
    for _ in range(rng.choice((0, 1, 1, 2, 8))):
        kind = rng.randrange(4)
        if kind == 0 and data:
            data[rng.randrange(len(data))] = rng.choice((0, 1, 255, rng.randrange(256)))
        elif kind == 1:
            del data[rng.randrange(len(data) + 1) :]
        elif kind == 2 and len(data) > 14:
            at = rng.randrange(14, min(len(data), 60))
            data[at] ^= 1 << rng.randrange(8)
        else:
            data += rng.randbytes(rng.randrange(40))
    return bytes(data[:1600])


class Editor(StreamActor):
    """Edits whatever it gets, of packets that are wrong in any way."""

    idle_s = 0.5
    inline = True
    verify_checksums = False

    def on_data(self, direction: Direction, data: bytes) -> Any:
        return data.replace(b"\0", b"zero") if data[0] % 3 else data[1:]


class Speaker(FlowActor):
    """Answers datagrams, and gives them other payloads, of all sizes."""

    idle_s = 0.5
    fragments = "reassemble"

    def on_packet(self, packet: Packet) -> Any:
        if packet.protocol != 17 or packet.is_icmp_error:
            return FORWARD
        payload = (packet.payload[::-1] * (len(packet.payload) % 9))[:60_000]
        source = "2001:db8::1" if packet.ip_version == 6 else "192.0.2.1"
        return (
            packet.answer(payload)
            if len(packet.frame) % 2
            else Rewrite(source=source, payload=payload, decrement_ttl=False)
        )


@pytest.mark.parametrize("nf", [SourceNAT, Curious, CuriousInside, Offloads, OffloadsInside, Editor, Speaker])
def test_hostile_frames_are_all_counted(nf: type[FlowActor], tmp_path: Path) -> None:
    rng = random.Random(SEED)
    base = corpus()
    lan, wan = MemoryPort("lan"), MemoryPort("wan")
    node = Embedded(nf, [lan, wan], {}, str(tmp_path / "log"), flows_max=4096, virtual_time=True)
    fed, now_ns = 0, 10**18
    while fed < PACKETS:
        for port in (lan, wan):
            batch = [(now_ns, mutated(rng, rng.choice(base))) for _ in range(100)]
            port.feed(batch)
            fed += len(batch)
        now_ns += 50_000_000
        while node.run_burst():
            pass
    out = len(lan.take()) + len(wan.take())
    node.finish()
    counts = node.counters()
    assert counts["rx_packets"] == fed, f"seed {SEED}"
    joined = counts["fragments_joined"] - counts["reassembled"]
    cut = counts["fragments_made"] - counts["refragmented"]
    joined += counts["stream_held"] + counts["stream_replaced"] - counts["stream_made"]
    assert out - cut + joined + sum(counts[name] for name in DROPS) == fed, f"seed {SEED}: {counts}"
    assert counts["handler_error"] == 0, f"seed {SEED}"
    assert node.core.entries == 0 and node.core.held == 0, f"seed {SEED}"
