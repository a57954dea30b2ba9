"""Two cores: packets reach the one that holds their flow, which is woken for them alone."""

from __future__ import annotations

import select
from typing import Any

from actornet import FORWARD, FiveTuple, FlowActor, Packet
from actornet.engine.core import Core
from actornet.engine.handoff import Handoff
from actornet.engine.ring import Ring
from actornet.ports.memory import MemoryPort
from tests import frames

SECOND = 1_000_000_000


class Pass(FlowActor):
    def on_packet(self, packet: Packet) -> Any:
        return FORWARD


class Told(Pass):
    sees_icmp_errors = True
    errors: int = 0

    def on_packet(self, packet: Packet) -> Any:
        self.errors += packet.icmp_type is not None
        return FORWARD


def pair(nf: type[FlowActor] = Pass) -> tuple[list[Core], list[MemoryPort], list[Ring]]:
    nf.prepare()
    rings = [Ring.create("hand-off to 0"), Ring.create("hand-off to 1")]
    cores, inside = [], []
    for index in range(2):
        lan, wan = MemoryPort("lan"), MemoryPort("wan")
        core = Core(nf, [lan, wan], index=index, cores=2, flows_max=256, virtual_time=True)
        other = Handoff(rings[1 - index], rings[index])
        core.siblings.handoffs = [None, other] if index == 0 else [other, None]
        cores.append(core)
        inside.append(lan)
    return cores, inside, rings


def woken(ring: Ring) -> bool:
    found = bool(select.select([ring], [], [], 0)[0])
    ring.sleep_end()
    return found


def test_a_sibling_is_woken_when_it_is_given_packets_and_only_then() -> None:
    cores, inside, rings = pair()
    assert rings[1].sleep_begin()
    cores[0].breathe()
    assert not woken(rings[1]), "nothing was handed over"
    assert rings[1].sleep_begin()
    inside[0].feed([(SECOND, frames.udp("10.0.0.2", port, "198.51.100.1", 53)) for port in range(1000, 1030)])
    cores[0].breathe()
    assert woken(rings[1])
    handed = cores[0].count()["handed_off"]
    assert 0 < handed < 30 and cores[1].breathe() == handed
    assert cores[1].count()["flows_opened"] == handed and cores[0].count()["flows_opened"] == 30 - handed
    assert cores[1].count()["handed_off"] == 0


def test_a_full_ring_drops_by_name() -> None:
    cores, inside, _ = pair()
    cores[0].siblings.handoffs = []
    inside[0].feed([(SECOND, frames.udp("10.0.0.2", port, "198.51.100.1", 53)) for port in range(1000, 1030)])
    cores[0].breathe()
    assert cores[0].count()["handoff_full"] == 30 - cores[0].count()["flows_opened"] > 0


def test_a_redirected_key_goes_to_the_core_of_its_flow_until_the_flow_ends() -> None:
    cores, inside, _ = pair()
    ports = range(1000, 1020)
    flows = [FiveTuple(17, "10.0.0.2", port, "198.51.100.1", 53) for port in ports]
    for flow in flows:
        cores[0].redirect(flow, "lan", 1)
    inside[0].feed([(SECOND, frames.udp("10.0.0.2", port, "198.51.100.1", 53)) for port in ports])
    cores[0].breathe()
    assert cores[0].count()["handed_off"] == 20 and cores[0].entries == 20
    for flow in flows:
        cores[0].redirect_end(flow, "lan")
    assert cores[0].entries == 0


def test_an_icmp_error_comes_to_the_core_of_the_flow_that_it_is_about() -> None:
    """Its own addresses, a router's, may have it arrive at any core."""
    cores, inside, _ = pair(Told)
    for port in range(1000, 1020):
        home = FiveTuple(17, "10.0.0.2", port, "198.51.100.1", 53).core(2)
        inside[home].feed([(SECOND, frames.udp("10.0.0.2", port, "198.51.100.1", 53))])
        cores[home].breathe()
        about = frames.udp("198.51.100.1", 53, "10.0.0.2", port)
        inside[1 - home].feed([(SECOND, frames.icmp_error("192.0.2.1", about))])
        cores[1 - home].breathe()
        cores[home].breathe()
    actors = [actor for core in cores for actor in core.actors()]
    assert [actor.errors for actor in actors] == [1] * 20
    inside[0].feed(
        [
            (SECOND, frames.icmp_error("192.0.2.1", frames.udp("198.51.100.1", 53, "10.9.9.9", port)))
            for port in range(20)
        ]
    )
    for core in (*cores, *cores):
        core.breathe()
    assert sum(core.count()["icmp_error_unmatched"] for core in cores) == 20, "of no flow: handed over once at most"


def test_an_icmp_error_about_a_redirected_key_goes_where_the_flow_is() -> None:
    cores, inside, _ = pair(Told)
    flow = FiveTuple(17, "10.0.0.2", 1000, "198.51.100.1", 53)
    cores[0].redirect(flow, "lan", 1)
    inside[0].feed([(SECOND, frames.icmp_error("192.0.2.1", frames.udp("198.51.100.1", 53, "10.0.0.2", 1000)))])
    cores[0].breathe()
    assert cores[0].count()["handed_off"] == 1
