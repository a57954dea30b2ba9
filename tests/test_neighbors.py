"""Next hops of routed ports: whom a packet goes to, and what waits for a MAC address."""

from __future__ import annotations

from ipaddress import IPv4Address, ip_address, ip_interface
from typing import Any, ClassVar

import pytest

from actornet import FORWARD, FlowActor, Packet, Rewrite
from actornet.engine.core import Core
from actornet.engine.flow_state import flow_body
from actornet.limits import ADJACENCIES_MAX
from actornet.log.record import FlowBody
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


class PassAll(FlowActor):
    """As Pass, and the core carries it out."""

    def on_open(self, packet: Packet) -> Any:
        self.offload(FORWARD)


class Log:
    """A link that keeps flows' records, as a backup is sent them; all is committed at once."""

    def __init__(self) -> None:
        self.saved: list[FlowBody] = []

    def save(self, actor: FlowActor) -> int:
        self.saved.append(FlowBody.decode(flow_body(actor)))
        return 0

    def flush(self) -> None: ...

    def poll(self, all: bool) -> None: ...


def routed(nf: type[FlowActor], address: str, gateway: str, link: Any = None) -> tuple[Core, MemoryPort, MemoryPort]:
    nf.prepare()
    lan, wan = MemoryPort("lan"), MemoryPort("wan")
    wan.interface, wan.gateway, wan.mac = ip_interface(address), ip_address(gateway), NODE_MAC
    return Core(nf, [lan, wan], flows_max=64, host=Host(), link=link, virtual_time=True), lan, wan


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


def test_a_flow_without_an_offload_is_not_logged_for_a_neighbours_address() -> None:
    """Its record says nothing of it; and what of its fields does not fit is not found for that."""
    log = Log()
    core, lan, wan = routed(Pass, "192.0.2.1/24", "192.0.2.254", log)
    lan.feed([(SECOND, frames.udp("10.0.0.2", 1000, "198.51.100.1", 53, b"1"))])
    core.breathe()
    saved = len(log.saved)
    wan.feed([(SECOND, arp_reply(GATEWAY_MAC, "192.0.2.254"))])
    core.breathe()
    assert len(sent(wan, 0x0800)) == 1 and len(log.saved) == saved


def test_a_flow_that_waited_for_a_neighbour_is_logged_with_its_address() -> None:
    """G6: so that a takeover needs no ARP, even if no other flow goes there. Flows that come later have it at once."""
    log = Log()
    core, lan, wan = routed(PassAll, "192.0.2.1/24", "192.0.2.254", log)
    lan.feed([(SECOND, frames.udp("10.0.0.2", 1000, "198.51.100.1", 53, b"1"))])
    core.breathe()
    wan.feed([(SECOND, arp_reply(GATEWAY_MAC, "192.0.2.254"))])
    core.breathe()
    lan.feed([(SECOND, frames.udp("10.0.0.2", 1001, "198.51.100.1", 53, b"2"))])
    core.breathe()
    known = [(body.flow.source_port, GATEWAY_MAC in body.state) for body in log.saved]
    assert known == [(1000, False), (1000, True), (1001, True)]
    assert len(sent(wan, 0x0800)) == 2, "neither waited for the record"


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


def datagram(source: str, destination: str) -> bytes:
    """From a host at lan to the node's MAC address."""
    if ":" in source:
        addresses = ip_address(source).packed + ip_address(destination).packed
        frame = frames.ethernet(b"\x60\0\0\0\0\x08\x11\x40" + addresses + b"\0\1\0\2\0\x08\0\0", 0x86DD)
    else:
        frame = frames.udp(source, 1000, destination, 53)
    return NODE_MAC + frame[6:]


def between(
    nf: type[FlowActor], lan_address: str, wan_address: str, gateway: IPv4Address | None = None
) -> tuple[Core, MemoryPort, MemoryPort]:
    """Two routed ports."""
    nf.prepare()
    lan, wan = MemoryPort("lan"), MemoryPort("wan")
    for port, address in ((lan, lan_address), (wan, wan_address)):
        port.interface, port.mac = ip_interface(address), NODE_MAC
    wan.gateway = gateway
    return Core(nf, [lan, wan], flows_max=8192, host=Host([lan, wan]), virtual_time=True), lan, wan


@pytest.mark.parametrize(
    ("source", "destination"),
    [
        ("10.0.0.2", "224.0.0.251"),
        ("10.0.0.2", "255.255.255.255"),
        ("10.0.0.2", "127.0.0.1"),
        ("10.0.0.2", "0.0.0.0"),
        ("0.0.0.0", "192.0.2.9"),
        ("127.0.0.1", "192.0.2.9"),
        ("224.0.0.1", "192.0.2.9"),
        ("255.255.255.255", "192.0.2.9"),
        ("2001:db8::2", "ff02::fb"),
        ("2001:db8::2", "::1"),
        ("::", "2001:db8:1::9"),
        ("fe80::2", "2001:db8:1::9"),
        ("2001:db8::2", "febf::9"),
    ],
)
def test_what_no_router_forwards_comes_to_no_handler(source: str, destination: str) -> None:
    """RFC 1812 section 5.3.7, RFC 4291 section 2.5.6: counted (G9), and nothing of it is logged."""
    version6 = ":" in source
    core, lan, wan = between(
        Pass, *(("2001:db8::1/64", "2001:db8:1::1/64") if version6 else ("10.0.0.1/24", "192.0.2.1/24"))
    )
    lan.feed([(SECOND, datagram(source, destination))])
    core.breathe()
    counted = core.count()
    assert (counted["no_route"], counted["flows_opened"], counted["handled"]) == (1, 0, 0)
    assert wan.take() == [] and lan.take() == []


@pytest.mark.parametrize("mac", [b"\xff" * 6, b"\x01\0\x5e\0\0\xfb"])
def test_what_came_by_broadcast_is_not_forwarded(mac: bytes) -> None:
    """RFC 1812 section 5.3.4."""
    core, lan, _ = between(Pass, "10.0.0.1/24", "192.0.2.1/24")
    lan.feed([(SECOND, mac + datagram("10.0.0.2", "192.0.2.9")[6:]), (SECOND, datagram("10.0.0.2", "240.0.0.1"))])
    core.breathe()
    assert core.count()["no_route"] == 2 and core.count()["flows_opened"] == 1


class Offloads(FlowActor):
    """Finds only when it has decided that there is no way; its first packets wait for something before that."""

    closed: ClassVar[int] = 0

    async def on_open(self, packet: Packet) -> Any:
        self.offload(Rewrite("wan", source="192.0.2.1"))
        return None

    def on_close(self) -> None:
        Offloads.closed += 1


class Rewrites(FlowActor):
    def on_packet(self, packet: Packet) -> Any:
        return Rewrite("wan", source="192.0.2.1")


@pytest.mark.parametrize("nf", [Pass, Offloads, Rewrites])
def test_a_destination_without_a_route_is_nobodys_mistake(nf: type[FlowActor]) -> None:
    """G9: anybody can send such packets. The sender is told (RFC 1812 section 5.2.7.1), the flow ends in order."""
    errors: list[Any] = []
    core, lan, wan = between(nf, "10.0.0.1/24", "192.0.2.1/24")
    core.on_error = lambda *error: errors.append(error)
    packet = datagram("10.0.0.2", "198.51.100.7")
    lan.feed([(SECOND, packet)])
    core.breathe()
    counted = core.count()
    assert errors == [] and (counted["no_route"], counted["handler_error"]) == (1, 0)
    assert counted["live_flows"] == (1 if nf is Pass else 0) and Offloads.closed == (nf is Offloads)
    Offloads.closed = 0
    ((_, told),) = lan.take()
    assert told[34:36] == b"\x03\x00" and packet[14:42] in bytes(told)
    assert wan.take() == []


def test_what_is_for_the_node_itself_does_not_leave_for_the_gateway() -> None:
    core, lan, wan = between(Rewrites, "10.0.0.1/24", "192.0.2.1/24", IPv4Address("192.0.2.254"))
    lan.feed([(SECOND, datagram("10.0.0.2", "10.0.0.1")), (SECOND, datagram("10.0.0.2", "198.51.100.1"))])
    core.breathe()
    assert core.count()["no_route"] == 1 and len(wan.take()) == 1, "the other one's next hop is asked for"


def test_more_next_hops_than_a_core_keeps_are_nobodys_mistake() -> None:
    """G9: hosts of a large network that are not there."""
    core, lan, wan = between(Rewrites, "10.0.0.1/24", "172.16.0.1/12")
    errors: list[Any] = []
    core.on_error = lambda *error: errors.append(error)
    packet = bytearray(datagram("10.0.0.2", "172.16.1.0"))
    left = ADJACENCIES_MAX - 1 + 3  # the sender is a next hop, too
    while left:
        batch = []
        for _ in range(min(left, 4096)):
            batch.append((SECOND, bytes(packet)))
            packet[30:34] = (int.from_bytes(packet[30:34], "big") + 1).to_bytes(4, "big")
        lan.feed(batch)
        left -= len(batch)
        while len(lan):
            core.breathe()
        wan.take()
        core.close_all()
    assert core.count()["no_route"] == 3 and core.count()["handler_error"] == 0 and errors == []
