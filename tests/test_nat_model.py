"""The NAT against an independent model, packet by packet, over real captures; and that model itself."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from pathlib import Path

import pytest

from actornet.embedded import Embedded
from actornet.engine.port import Port
from actornet.ports.capture import CaptureFeed, CapturePort
from actornet.ports.pcap import read_capture
from actornet.ports.playback import Playback
from tests import frames
from tests.nat_bench import (
    EXTERNAL,
    ROUTER,
    SYN,
    A,
    B,
    Nat,
    P,
    Q,
    WithoutFragments,
    answer,
    assert_nothing_left,
    assert_sound,
    seen,
    tcp,
    udp,
)
from tests.nat_model import PRIVATE, Capture, Model, Packet, differences, dissect

CAPTURES = Path(__file__).parent / "captures"


# ------------------------------------------------------------------------------------------- the model itself


def test_the_model_sees_every_bit() -> None:
    """No bit of what leaves can be other than it is without a complaint, but for one: the complement of 0 in UDP."""
    one = Nat()
    left = one.lan(udp(A, 5000), tcp(A, 5000, SYN), frames.echo(A, P, 7))
    for came in [*map(answer, left), *[frames.icmp_error(ROUTER, frame) for frame in left]]:
        (delivered,) = one.wan(came)
        before = dissect(came)
        assert isinstance(before, Packet)
        before = before.addressed(seen(delivered))
        assert differences(before, delivered) == ""
        for bit in range(len(delivered) * 8):
            other = bytearray(delivered)
            other[bit // 8] ^= 1 << bit % 8
            assert differences(before, bytes(other)), bit
    one.finish()


def out(source: str, port: int, destination: str = P, data: bytes = b"x") -> bytes:
    """A datagram as it leaves."""
    return udp(source, port, destination, data=data, ttl=63)


FAULTS: dict[str, list[tuple[str, list[bytes], list[bytes]]]] = {
    "explains": [("wan", [udp(A, 5000)], [out(EXTERNAL, 5000)] * 2)],
    "no packet of": [("wan", [udp(A, 5000)], [])],
    "bytes .* are": [("wan", [udp(A, 5000)], [out(EXTERNAL, 5000)]), ("wan", [udp(A, 5000)], [udp(EXTERNAL, 5000)])],
    "no packet .* endpoint": [("wan", [udp(A, 5000)], [out("203.0.113.9", 5000)])],
    "the port 5000 was free": [("wan", [udp(A, 5000)], [out(EXTERNAL, 5002)])],
    "UDP-4": [("wan", [udp(A, 5000), udp(B, 5000)], [out(EXTERNAL, 5000), out(EXTERNAL, 5001)])],
    "UDP-3a": [("wan", [udp(A, 5000), udp(B, 5000)], [out(EXTERNAL, 5000), out(EXTERNAL, 500)])],
    "UDP-2": [("wan", [udp(A, 5000), udp(A, 5001)], [out(EXTERNAL, 5000), out("203.0.113.2", 5001)])],
    "endpoint that is free": [("wan", [udp(A, 5000), udp(B, 5000)], [out(EXTERNAL, 5000)] * 2)],
    "left by wan for it": [("wan", [udp(A, 5000), udp(A, 5000, Q)], [out(EXTERNAL, 5000), out(EXTERNAL, 5002, Q)])],
    "are 32, not 31": [
        ("wan", [udp(A, 5000)], [out(EXTERNAL, 5000)]),
        (
            "wan",
            [udp(A, 5000, data=b"1"), udp(A, 5000, data=b"2")],
            [out(EXTERNAL, 5000, data=d) for d in (b"2", b"1")],
        ),
    ],
    "left by lan for it": [
        ("wan", [udp(A, 5000), udp(B, 5001)], [out(EXTERNAL, 5000), out(EXTERNAL, 5001)]),
        ("lan", [udp(P, 53, EXTERNAL, 5000)], [udp(P, 53, B, 5000, ttl=63)]),
    ],
}


@pytest.mark.parametrize("what", FAULTS)
def test_the_model_sees_faults(what: str) -> None:
    model = Model([EXTERNAL, "203.0.113.2"])
    *right, (port, came, left) = FAULTS[what]
    for to, packets, sent in right:
        model.check([(0, "lan" if to == "wan" else "wan", packet) for packet in packets], {to: sent})
    with pytest.raises(AssertionError, match=what):
        model.check([(0, "lan" if port == "wan" else "wan", packet) for packet in came], {port: left})


# ------------------------------------------------------------------------------------------------- real captures

INSIDE = {
    "dns_fragmented.pcap": ["0.0.0.0/0"],  # public addresses alone: the first to speak is inside
    "ipv6_in_gtp.pcap": ["0.0.0.0/0"],
}
NAMES = sorted(path.name for path in CAPTURES.glob("*.pcap*"))


class Played:
    """A NAT over a capture, by the machinery of `actornet run`."""

    def __init__(self, name: str) -> None:
        path, inside = str(CAPTURES / name), INSIDE.get(name, list(PRIVATE))
        self.packets = iter(read_capture(path))
        self.feed = CaptureFeed([(read_capture(path), 0)], Playback(inside))
        self.model = Model(capture=Capture(inside))  # its playback is not that of `actornet run` either
        self.outlets: dict[str, list[tuple[int, bytes, int]]] = {"lan": [], "wan": []}
        self.ports: list[Port] = [CapturePort(port, self.feed, [self.outlets[port]]) for port in self.outlets]
        self.errors: list[BaseException] = []

    def start(self, log: Path | None) -> Embedded:
        embedded = Embedded(
            WithoutFragments,
            self.ports,
            {"address": EXTERNAL},
            str(log) if log else None,
            flows_max=1 << 14,
            virtual_time=True,
            on_error=lambda flow, handler, error: self.errors.append(error),
        )
        self.feed.suspended = lambda: embedded.core.suspended > 0
        return embedded

    def play(self, embedded: Embedded, packets: int = 1 << 60) -> dict[str, int]:
        """Play so many packets of it, or all; returns the counters."""
        while not self.feed.exhausted and self.feed.packets < packets:
            embedded.run_burst()
            came = islice(self.packets, self.feed.packets - self.model.received)
            left = {port: [frame for _, frame, _ in sent] for port, sent in self.outlets.items()}
            self.model.check([(time_ns, None, frame) for time_ns, frame, _ in came], left)
            for sent in self.outlets.values():
                sent.clear()
        assert self.errors == []
        return embedded.counters()


@pytest.mark.parametrize("name", NAMES)
def test_every_packet_of_a_capture(name: str) -> None:
    """G1: in order within each flow, too."""
    played = Played(name)
    embedded = played.start(None)
    played.model.compare(played.play(embedded))
    assert played.model.forwarded or set(played.model.drops) <= {"dropped_by_nf", "fragment"}, "IPv6 is not translated"
    assert next(played.packets, None) is None
    embedded.finish()
    assert_nothing_left(embedded)


@pytest.mark.parametrize("name", NAMES)
def test_every_packet_of_a_capture_with_a_log_and_again_on_it(name: str, tmp_path: Path) -> None:
    """G4: the log of each run replays to the same replies, and leaves nothing that changes the next run."""
    log = tmp_path / "log"
    for _ in range(2):
        played = Played(name)
        embedded = played.start(log)
        played.model.compare(played.play(embedded))
        embedded.finish()
        assert_nothing_left(embedded)
        if played.model.forwarded:
            assert_sound(log)


@pytest.mark.parametrize("name", ["skype.pcap", "1kxun.pcapng", "sip.pcap"])
def test_every_packet_of_a_capture_through_crashes(name: str, tmp_path: Path) -> None:
    """G6: flows go on as they were, from the log alone, when the process dies after every few bursts."""
    log, played, total = tmp_path / "log", Played(name), Counter[str]()
    embedded, restored = played.start(log), 0
    for stop in [*range(60, 600, 60), 1 << 60]:
        total += Counter(played.play(embedded, stop))
        if played.feed.exhausted:
            break
        assert embedded._log is not None
        embedded._log.close()
        embedded = played.start(log)
        restored += embedded.counters()["live_flows"]
    assert restored > 0
    played.model.compare(total)
    embedded.finish()
    assert_nothing_left(embedded)
    assert_sound(log)
