"""A NAT on a bench: packets in, packets out, each of which an independent model checks."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from actornet.embedded import Embedded
from actornet.ports.memory import MemoryPort
from actornet.replay.history import History
from actornet.replay.verification import verify
from actors.nat import Mappings, SourceNAT
from tests import frames
from tests.nat_model import Flow, Model, Packet, dissect

EXTERNAL = "203.0.113.1"
A, B, C = "10.0.0.2", "10.0.0.3", "10.0.0.4"  # inside
P, Q, ROUTER = "198.51.100.1", "198.51.100.2", "192.0.2.9"  # outside
ICMP, TCP, UDP = 1, 6, 17
FIN, SYN, RST, ACK = 1, 2, 4, 16
SECOND = 1_000_000_000


class WithoutFragments(SourceNAT):
    """The model does not put fragments together; tests/test_fragments.py has them."""

    fragments = "drop"


class Nat:
    """A NAT between two memory ports, in virtual time, each packet of which the model checks."""

    def __init__(self, log: Path | None = None, nf: type[SourceNAT] = SourceNAT, **settings: object) -> None:
        self.ports = {name: MemoryPort(name) for name in ("lan", "wan")}
        self.settings, self.log, self.nf = settings, log, nf
        self.now_ns = 1_700_000_000 * SECOND
        self.errors: list[BaseException] = []
        self.left: dict[str, list[bytes]] = {"lan": [], "wan": []}
        self.model = self.make_model()
        self.counted: Counter[str] = Counter()
        self.embedded = self.start()

    def start(self) -> Embedded:
        return Embedded(
            self.nf,
            list(self.ports.values()),
            self.settings,
            str(self.log) if self.log else None,
            flows_max=1 << 14,
            virtual_time=True,
            on_error=lambda flow, handler, error: self.errors.append(error),
        )

    def lan(self, *packets: bytes) -> list[bytes]:
        """What leaves, by either port, when these come in."""
        return self._send("lan", packets)

    def wan(self, *packets: bytes) -> list[bytes]:
        return self._send("wan", packets)

    def _send(self, port: str, packets: tuple[bytes, ...]) -> list[bytes]:
        self.ports[port].feed([(self.now_ns, packet) for packet in packets])
        while len(self.ports[port]):
            self.embedded.run_burst()
        left = {name: [bytes(frame) for _, frame in memory.take()] for name, memory in self.ports.items()}
        self.model.check([(self.now_ns, port, packet) for packet in packets], left)
        for name, sent in left.items():
            self.left[name] += sent
        return left["lan"] + left["wan"]

    def left_at_start(self) -> list[bytes]:
        """What left before any packet came: that of flows which a crash had cut short. The model does not know them."""
        left = [bytes(frame) for memory in self.ports.values() for _, frame in memory.take()]
        self.model = self.make_model()
        return left

    def wait(self, seconds: float) -> None:
        """Let time pass, with a frame that is no IP as the clock's tick; twice, because timers may be late."""
        for _ in range(2):
            self.now_ns += int(seconds * SECOND / 2)
            self.lan(frames.ethernet(bytes(40), kind=0x88CC))
            for _ in range(20):
                self.embedded.run_burst()
            self.model.rest()

    @property
    def state(self) -> Mappings:
        state = self.embedded.journal.replica.owners["wan-ports"].state
        assert isinstance(state, Mappings)
        return state

    def count(self, name: str) -> int:
        return self.embedded.counters()[name]

    def crash(self) -> None:
        """As if the process were gone: nothing is closed or saved; the next one begins with what the log has."""
        assert self.embedded._log is not None
        self.embedded._log.close()
        self.counted += Counter(self.embedded.counters())
        self.embedded = self.start()

    def make_model(self) -> Model:
        known: dict[str, Any] = {"address": EXTERNAL, "first_port": 1, "last_port": 65535}
        known |= {"filtering": "endpoint-independent"} | self.settings
        return Model(known["address"].split(", "), known["first_port"], known["last_port"], known["filtering"])

    def finish(self) -> None:
        """Every packet was right by the model; no state is left when all flows have closed; the log replays (G4)."""
        self.counted += Counter(self.embedded.counters())
        self.model.compare(self.counted)
        self.embedded.finish()
        assert_nothing_left(self.embedded)
        assert self.errors == []
        if self.log is not None:
            assert_sound(self.log)


def assert_nothing_left(embedded: Embedded) -> None:
    state = embedded.journal.replica.owners["wan-ports"].state
    assert state.by_inside == {} and state.by_outside == {} and state.remotes == {}
    assert embedded.core.entries == 0 and embedded.journal.replica.flows == {} and embedded.journal.replica.asks == {}


def assert_sound(log: Path) -> None:
    with History(log) as history:
        done = verify(history)
    assert done.problem is None and done.flows == 0
    assert "ASK" in done.kinds


def seen(frame: bytes) -> Flow:
    packet = dissect(frame)
    assert isinstance(packet, Packet)
    return packet.flow


def outside_of(frame: bytes) -> tuple[str, int]:
    return seen(frame).source


def udp(source: str, port: int, destination: str = P, to: int = 53, data: bytes = b"x", ttl: int = 64) -> bytes:
    return frames.udp(source, port, destination, to, data, ttl)


def tcp(source: str, port: int, flags: int, destination: str = P, to: int = 80) -> bytes:
    return frames.tcp(source, port, destination, to, flags)


def first_of(protocol: int, source: str, port: int, destination: str = P, to: int = 80) -> bytes:
    """The packet that opens a flow of this protocol."""
    if protocol == UDP:
        return udp(source, port, destination, to)
    if protocol == ICMP:
        return frames.echo(source, destination, port)
    return tcp(source, port, SYN, destination, to)


def answer(frame: bytes, flags: int = SYN | ACK) -> bytes:
    """The answer to what left by wan."""
    flow = seen(frame).reversed()
    if flow.protocol == ICMP:
        return frames.echo(flow.source.address, flow.destination.address, flow.source.port, kind=0)
    make = frames.udp if flow.protocol == UDP else frames.tcp
    more: tuple[Any, ...] = (b"answer",) if flow.protocol == UDP else (flags,)
    return make(*flow.source, *flow.destination, *more)
