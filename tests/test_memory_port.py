"""Memory and loop ports, driven by a real core."""

from itertools import chain, repeat

import pytest

from actornet import FORWARD, FlowActor, Rewrite
from actornet.embedded import Embedded
from actornet.errors import PortError
from actornet.limits import BURST_PACKETS, FRAME_BYTES_MAX, MEMORY_FRAMES_MAX
from actornet.ports.memory import LoopPort, MemoryPort


class Pass(FlowActor):
    """Lets everything through, frames that are no IP too."""

    untracked = FORWARD

    def on_packet(self, packet):
        return FORWARD


class Renumber(FlowActor):
    """Offloads a rewrite, which is carried out in the port's own buffers."""

    def on_open(self, packet):
        self.offload(Rewrite("wan", source="203.0.113.1"))


def udp(source_port, payload=b""):
    header = bytes.fromhex("450000000000400040110000") + bytes([10, 0, 0, 1, 192, 0, 2, 1])
    length = 28 + len(payload)
    ip = header[:2] + length.to_bytes(2, "big") + header[4:]
    transport = source_port.to_bytes(2, "big") + b"\0\x35" + (8 + len(payload)).to_bytes(2, "big") + b"\0\0"
    return bytes(12) + b"\x08\0" + ip + transport + payload


def frames(count):
    return [(1_000 + n, udp(1024 + n % 50, bytes([n % 256]) * (n % 1400))) for n in range(count)]


def drain(embedded):
    while embedded.run_burst():
        pass


def test_frames_go_through_in_order_unchanged():
    """G1: also across bursts, with frames of every size."""
    lan, wan = MemoryPort("lan"), MemoryPort("wan")
    embedded = Embedded(Pass, [lan, wan], virtual_time=True)
    given = frames(5 * BURST_PACKETS + 7)
    lan.feed(given)
    assert len(lan) == len(given)
    drain(embedded)
    assert wan.take() == given
    assert (wan.take(), lan.take(), len(lan)) == ([], [], 0)
    embedded.finish()


def test_sink_gets_a_list_per_burst():
    bursts = []
    lan, wan = MemoryPort("lan"), MemoryPort("wan", sink=bursts.append)
    embedded = Embedded(Pass, [lan, wan], virtual_time=True)
    lan.feed(frames(BURST_PACKETS + 3))
    drain(embedded)
    assert [len(burst) for burst in bursts] == [BURST_PACKETS, 3]
    assert list(chain(*bursts)) == frames(BURST_PACKETS + 3)
    assert wan.take() == []
    embedded.finish()


def test_the_fed_bytes_are_not_rewritten():
    lan, wan = MemoryPort("lan"), MemoryPort("wan")
    embedded = Embedded(Renumber, [lan, wan], virtual_time=True)
    frame = udp(1024, b"payload")
    lan.feed([(1, frame), (2, memoryview(bytearray(frame)))])
    drain(embedded)
    assert frame == udp(1024, b"payload")
    assert [sent[26:30] for _, sent in wan.take()] == [bytes([203, 0, 113, 1])] * 2
    embedded.finish()


def test_the_largest_frame_passes_and_a_larger_one_is_counted():
    lan, wan = MemoryPort("lan"), MemoryPort("wan")
    embedded = Embedded(Pass, [lan, wan], virtual_time=True)
    largest = bytes(range(256)) * (FRAME_BYTES_MAX // 256 + 1)
    lan.feed([(1, largest[: FRAME_BYTES_MAX + 1])] + [(2, largest[:FRAME_BYTES_MAX])] * (BURST_PACKETS + 1))
    drain(embedded)
    assert wan.take() == [(2, largest[:FRAME_BYTES_MAX])] * (BURST_PACKETS + 1)
    assert lan.counters == {"rx_oversized": 1}
    embedded.finish()


def test_both_queues_are_bounded():
    lan = MemoryPort("lan")
    lan.feed(repeat((1, b"frame"), MEMORY_FRAMES_MAX))
    with pytest.raises(PortError, match="port lan: 1048576 frames wait already"):
        lan.feed([(1, b"frame")])

    wan = MemoryPort("wan")
    source = LoopPort("lan", udp(1024), len(udp(1024)), count=MEMORY_FRAMES_MAX + 40, time_ns=1)
    embedded = Embedded(Renumber, [source, wan], virtual_time=True)
    drain(embedded)
    assert len(wan.take()) == MEMORY_FRAMES_MAX
    assert wan.counters == {"tx_full": 40}
    assert embedded.counters()["tx_failed"] == 40
    embedded.finish()


@pytest.mark.parametrize("payload_bytes", [22, 0, 1400])
def test_loop_port_repeats_its_template(payload_bytes):
    """22 bytes of payload: frames of 64 bytes, which are copied by a path of their own."""
    template = [udp(port, bytes([port % 256]) * payload_bytes) for port in range(1024, 1027)]
    lan = LoopPort("lan", b"".join(template), len(template[0]), count=300, time_ns=5_000, interval_ns=10)
    wan = MemoryPort("wan")
    embedded = Embedded(Pass, [lan, wan], virtual_time=True)
    drain(embedded)
    assert wan.take() == [(5_000 + 10 * n, template[n % 3]) for n in range(300)]
    assert lan.received_packets == 300
    embedded.finish()


def test_loop_port_counts_and_keeps_its_template():
    """Rewritten frames must not come round again as already rewritten."""
    frame = udp(1024)
    lan, wan = LoopPort("lan", frame, len(frame), count=1000, time_ns=1), LoopPort("wan", frame, len(frame), count=0)
    embedded = Embedded(Renumber, [lan, wan], virtual_time=True)
    drain(embedded)
    assert (wan.sent_packets, wan.sent_bytes) == (1000, 1000 * len(frame))
    assert embedded.counters()["flows_opened"] == 1
    embedded.finish()


def test_loop_port_never_ends_without_a_count():
    frame = udp(1024)
    lan = LoopPort("lan", frame, len(frame), time_ns=1)
    embedded = Embedded(Renumber, [lan, LoopPort("wan", frame, len(frame), count=0)], virtual_time=True)
    assert all(embedded.run_burst() >= BURST_PACKETS for _ in range(100))
    embedded.finish()


@pytest.mark.parametrize(
    ("template", "frame_bytes", "message"),
    [(b"", 64, "no whole frames"), (bytes(65), 64, "no whole frames"), (bytes(13), 13, "14..65553 bytes, not 13")],
)
def test_loop_port_refuses_what_is_no_frames(template, frame_bytes, message):
    with pytest.raises(PortError, match=message):
        LoopPort("lan", template, frame_bytes)
