"""The clock of a capture: time-outs, meters and owners go with each packet, whatever burst it is in."""

from __future__ import annotations

from typing import Any

import pytest

from actornet import FORWARD, FlowActor, Meter, Owner, Packet, Struct
from actornet.embedded import Embedded
from actornet.ports.memory import MemoryPort
from tests import frames

SECOND = 1_000_000_000
START = 1_700_000_000


class Noted(Struct):
    notes: list[tuple[str, int, float]] = []


class Notes(Owner[Noted]):
    def note(self, what: str, port: int) -> None:
        self.state.notes.append((what, port, round(self.now - START, 2)))


class Observer(FlowActor):
    """Notes when each flow opens, has a packet, closes."""

    notes = Notes.named("notes")
    idle_s = 60.0

    async def on_open(self, packet: Packet) -> None:
        await self.notes.note("open", packet.source_port)

    async def on_packet(self, packet: Packet) -> Any:
        await self.notes.note("packet", packet.source_port)
        return FORWARD

    async def on_close(self) -> None:
        await self.notes.note("close", self.flow.source_port)


def play(nf: type[FlowActor], packets: list[tuple[float, int]], log: str | None = None) -> Embedded:
    """Packets of (seconds, source port), all in one port's queue, so that a burst may take 64 of them."""
    lan, wan = MemoryPort("lan"), MemoryPort("wan")
    node = Embedded(nf, [lan, wan], log_directory=log, virtual_time=True)
    frame = {port: frames.udp("10.0.0.2", port, "198.51.100.1", 53, b"x" * 50) for _, port in packets}
    lan.feed([(int((START + at_s) * SECOND), frame[port]) for at_s, port in packets])
    while node.run_burst():
        pass
    return node


def notes_of(node: Embedded) -> list[tuple[str, int, float]]:
    state: Any = node.journal.replica.owners["notes"].state
    return list(state.notes)


@pytest.mark.parametrize("logged", [False, True])
def test_an_owners_now_is_that_of_each_packet(tmp_path: Any, logged: bool) -> None:
    node = play(Observer, [(i, 1000) for i in range(20)], str(tmp_path / "log") if logged else None)
    assert notes_of(node) == [("open", 1000, 0)] + [("packet", 1000, i) for i in range(20)]
    node.finish()


@pytest.mark.parametrize("logged", [False, True])
def test_what_is_due_between_two_packets_happens_in_its_order_at_its_own_time(tmp_path: Any, logged: bool) -> None:
    packets = [(0.0, 1), (5.0, 2), (30.0, 1), (1000.0, 3), (1100.0, 3)]
    node = play(Observer, packets, str(tmp_path / "log") if logged else None)
    assert [note for note in notes_of(node) if note[0] != "packet"] == [
        ("open", 1, 0.0), ("open", 2, 5.0), ("close", 2, 65.0), ("close", 1, 90.0), ("open", 3, 1000.0),
        ("close", 3, 1060.0), ("open", 3, 1100.0),
    ]  # fmt: skip
    node.finish()


def test_many_flows_due_in_one_gap_close_in_order() -> None:
    node = play(Observer, [(i * 0.05, 1 + i) for i in range(200)] + [(10_000_000.0, 999)])
    closed = [note for note in notes_of(node) if note[0] == "close"]
    assert closed == [("close", 1 + i, round(i * 0.05 + 60, 2)) for i in range(200)]
    node.finish()


def test_a_meter_goes_with_the_packets_clock() -> None:
    class Metered(FlowActor):
        def on_open(self, packet: Packet) -> None:
            self.offload(FORWARD, meter=Meter(bytes_per_s=1000, burst=1000))

    node = play(Metered, [(i, 1000) for i in range(200)])
    assert node.counters()["offloaded"] == 199 and node.counters()["dropped_by_meter"] == 0
    node.finish()
    node = play(Metered, [(i * 0.001, 1000) for i in range(200)])
    assert node.counters()["dropped_by_meter"] > 150
    node.finish()


def test_a_flow_that_outlives_every_gap_is_no_endless_loop() -> None:
    class Patient(Observer):
        idle_s = 1e9

    node = play(Patient, [(0.0, 1), (9e8, 2)])
    assert node.counters()["live_flows"] == 2
    node.finish()
