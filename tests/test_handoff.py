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


def pair() -> tuple[list[Core], list[MemoryPort], list[Ring]]:
    Pass.prepare()
    rings = [Ring.create("hand-off to 0"), Ring.create("hand-off to 1")]
    cores, inside = [], []
    for index in range(2):
        lan, wan = MemoryPort("lan"), MemoryPort("wan")
        core = Core(Pass, [lan, wan], index=index, cores=2, flows_max=256, virtual_time=True)
        other = Handoff(rings[1 - index], rings[index])
        core.siblings = [None, other] if index == 0 else [other, None]
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
    cores[0].siblings = []
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
