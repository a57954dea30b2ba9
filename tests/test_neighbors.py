"""Next hops of routed ports: whom a packet goes to, and what waits for a MAC address."""

from __future__ import annotations

from ipaddress import ip_address, ip_interface
from typing import Any

from actornet import FORWARD, FlowActor, Packet, Rewrite
from actornet.engine.core import Core
from actornet.ports.host import Host
from actornet.ports.memory import MemoryPort
from tests import frames

SECOND = 1_000_000_000
NODE_MAC, GATEWAY_MAC, SERVER_MAC = b"\x02\0\0\0\0\x09", b"\x02\0\0\0\0\x0a", b"\x02\0\0\0\0\x0b"


class Pass(FlowActor):
    def on_packet(self, packet: Packet) -> Any:
        return FORWARD


class Balance(FlowActor):
    """Sends everything to one server, the first packet by a verdict and later ones by the offload."""

    def on_open(self, packet: Packet) -> Any:
        self.offload(Rewrite(destination="2001:db8:1::5"))
        return Rewrite(destination="2001:db8:1::5")


def routed(nf: type[FlowActor], address: str, gateway: str) -> tuple[Core, MemoryPort, MemoryPort]:
    nf.prepare()
    lan, wan = MemoryPort("lan"), MemoryPort("wan")
    wan.interface, wan.gateway, wan.mac = ip_interface(address), ip_address(gateway), NODE_MAC
    return Core(nf, [lan, wan], flows_max=64, host=Host(), virtual_time=True), lan, wan


def sent(port: MemoryPort, kind: int) -> list[bytes]:
    return [frame for _, frame in port.take() if frame[12:14] == kind.to_bytes(2, "big")]


def arp_reply(mac: bytes, address: str) -> bytes:
    body = b"\0\1\x08\0\6\4\0\2" + mac + ip_address(address).packed + NODE_MAC + ip_address("192.0.2.1").packed
    return frames.ethernet(body, 0x0806, mac, NODE_MAC)


def test_packets_wait_for_a_neighbour_and_leave_in_order() -> None:
    """G1."""
    core, lan, wan = routed(Pass, "192.0.2.1/24", "192.0.2.254")
    packets = [frames.udp("10.0.0.2", 1000, "198.51.100.1", 53, bytes((number,))) for number in range(3)]
    lan.feed([(SECOND, packet) for packet in packets])
    core.breathe()
    assert len(sent(wan, 0x0806)) == 1, "it asks once"
    wan.feed([(SECOND, arp_reply(GATEWAY_MAC, "192.0.2.254"))])
    core.breathe()
    assert sent(wan, 0x0800) == [GATEWAY_MAC + NODE_MAC + packet[12:] for packet in packets]
    wan.feed([(SECOND, arp_reply(SERVER_MAC, "192.0.2.254"))])
    core.breathe()
    lan.feed([(SECOND, packets[0])])
    core.breathe()
    assert sent(wan, 0x0800) == [SERVER_MAC + NODE_MAC + packets[0][12:]], "a new MAC address is believed"


def test_a_neighbour_that_never_answers_is_given_up() -> None:
    core, lan, wan = routed(Pass, "192.0.2.1/24", "192.0.2.254")
    packet = frames.udp("10.0.0.2", 1000, "198.51.100.1", 53)
    for second in range(1, 6):
        lan.feed([(second * SECOND, packet)] * (70 if second == 1 else 1))
        core.breathe()
        core.breathe()
        assert core.count()["neighbor_unresolved"] == (0 if second < 4 else 64)
    assert core.count()["neighbor_full"] == 6 + 3
    left = [frame[12:14] for _, frame in wan.take()]
    assert left == [b"\x08\x06"] * 4, "asked three times, and again for the last packet"


def test_an_ipv6_packet_goes_to_the_next_hop_of_its_new_destination() -> None:
    core, lan, wan = routed(Balance, "2001:db8:1::1/64", "2001:db8:1::fe")
    addresses = ip_address("2001:db8:2::2").packed + ip_address("2001:db8:3::3").packed
    datagram = b"\x60\0\0\0\0\x08\x11\x40" + addresses + b"\0\1\0\2\0\x08\0\0"
    lan.feed([(SECOND, frames.ethernet(datagram, 0x86DD))] * 2)
    core.breathe()
    (solicitation,) = sent(wan, 0x86DD)
    assert solicitation[62:78] == ip_address("2001:db8:1::5").packed, "the server is on the link: not the gateway"
