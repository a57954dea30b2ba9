"""Output behind the watermark: order, and when a flow is free again."""

from __future__ import annotations

from typing import Any

from actornet import DROP, FORWARD, FlowActor, Packet
from actornet.engine.core import Core
from tests import frames
from tests.test_core import Bench, SlowLink, packet, payloads


class Count(FlowActor):
    """Counts the packets from inside and keeps them; replies are offloaded. 9 closes the flow."""

    count: int = 0

    def on_open(self, packet: Packet) -> None:
        self.bind(packet.flow.reversed())
        self.offload(FORWARD, packet.flow.reversed())

    def on_packet(self, packet: Packet) -> Any:
        self.count += 1
        if packet.payload[0] == 9:
            self.close()
        return DROP if packet.payload[0] == 0 else FORWARD


IDLE_S = 600.0  # longer than any flow is idle by default
REPLY = frames.udp("198.51.100.1", 53, "10.0.0.2", 1000, b"r")


def test_an_offload_waits_for_the_last_record_of_its_flow() -> None:
    """G3: also for one that was saved while an earlier one had not been committed, and held nothing."""
    node = Bench(Count, link=SlowLink())
    node.core.commit_to(0)
    node.lan_in(packet(0), packet(0))
    node.core.commit_to(1)
    node.turn()
    node.wan_in(REPLY)
    assert node.lan.take() == [] and node.core.held == 1
    node.core.commit_to(2)
    node.turn()
    assert len(node.lan.take()) == 1 and node.core.held == 0
    node.wan_in(REPLY)
    assert len(node.lan.take()) == 1 and node.count("held") == 1


def test_a_flow_that_closes_leaves_its_held_output_in_the_queue() -> None:
    """G3: what it sent leaves when its record is committed; its keys are free at once."""
    node = Bench(Count, link=SlowLink())
    node.core.commit_to(0)
    node.lan_in(packet(1), packet(9))
    assert node.core.entries == 0 and node.core.held == 2 and node.out() == []
    node.core.commit_to(2)
    node.turn()
    assert payloads(node.out()) == [1, 9] and node.core.held == 0


def test_a_flow_whose_output_waits_is_not_idle() -> None:
    """G1: were it closed, a next flow of its keys might live on another core, and overtake what waits here."""
    node = Bench(Count, link=SlowLink())
    node.core.commit_to(0)
    node.lan_in(packet(1))
    for _ in range(3):  # virtual time goes by packets of another flow
        node.lan_in(packet(1, 2000), after_s=IDLE_S)
    assert node.count("flows_closed") == 0 and node.core.held == 4
    node.core.commit_to(100)
    node.turn()
    assert len(node.out()) == 4
    node.lan_in(packet(1, 2000), after_s=IDLE_S)
    node.lan_in(packet(1, 2000), after_s=1)
    assert node.count("flows_closed") >= 1


class SwiftLink(SlowLink):
    """From the third record on, each is committed at once, and with it all before."""

    core: Core | None = None

    def save(self, actor: FlowActor) -> int:
        sequence = super().save(actor)
        if sequence >= 3 and self.core is not None:
            self.core.commit_to(sequence)
        return sequence


def test_a_flow_that_opens_anew_stays_behind_what_its_predecessor_sent() -> None:
    """G1: although its own record is committed before the queue has been looked at."""
    link = SwiftLink()
    node = Bench(Count, link=link)
    link.core = node.core
    node.core.commit_to(0)
    node.lan_in(packet(9), packet(1))
    assert payloads(node.out()) == [9, 1] and node.core.held == 0
