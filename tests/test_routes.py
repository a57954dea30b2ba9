"""Which neighbour a packet goes to next, against Python's own `ipaddress`."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface, ip_address, ip_interface

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actornet.engine.port import Port
from actornet.engine.routes import Routes
from actornet.errors import UsageError

Address = IPv4Address | IPv6Address


def routed(address: str | None, gateway: str | None = None, name: str = "lan") -> Port:
    port = Port(name)
    port.interface = ip_interface(address) if address else None
    port.gateway = ip_address(gateway) if gateway else None
    return port


@pytest.mark.parametrize(
    ("address", "gateway", "ip", "expected"),
    [
        ("10.0.0.1/24", "10.0.0.254", "10.0.0.2", "10.0.0.2"),
        ("10.0.0.1/24", "10.0.0.254", "192.0.2.1", "10.0.0.254"),
        ("10.0.0.1/24", None, "192.0.2.1", None),
        ("10.0.0.1/24", "10.0.0.254", "10.0.0.1", None),
        ("10.0.0.1/24", "10.0.0.254", "10.0.0.255", None),
        ("10.0.0.1/24", "10.0.0.254", "255.255.255.255", None),
        ("10.0.0.1/24", "10.0.0.254", "239.1.1.1", None),
        ("10.0.0.1/24", "10.0.0.254", "127.0.0.1", None),
        ("10.0.0.1/24", "10.0.0.254", "2001:db8::2", None),
        ("10.0.0.0/31", None, "10.0.0.1", "10.0.0.1"),
        ("2001:db8::1/64", "fe80::1", "2001:db8::2", "2001:db8::2"),
        ("2001:db8::1/64", "fe80::1", "2001:db8:1::2", "fe80::1"),
        ("2001:db8::1/64", "fe80::1", "ff02::1", None),
        ("2001:db8::1/64", "fe80::1", "10.0.0.2", None),
    ],
)
def test_next_hop(address: str, gateway: str | None, ip: str, expected: str | None) -> None:
    assert Routes([routed(address, gateway)]).next_hop(0, ip) == expected


def test_a_transparent_port_has_no_next_hop() -> None:
    routes = Routes([routed(None), routed("10.0.0.1/24", "10.0.0.254")])
    assert routes.next_hop(0, "10.0.0.2") is None and routes.next_hop(1, "10.0.0.2") == "10.0.0.2"


def test_what_is_for_another_port_of_the_node_goes_nowhere() -> None:
    routes = Routes([routed("10.0.0.1/24"), routed("192.0.2.1/24", "192.0.2.254", "wan")])
    assert routes.next_hop(1, "10.0.0.1") is None and routes.next_hop(1, "10.0.0.2") == "192.0.2.254"


def test_what_is_no_address_is_refused() -> None:
    with pytest.raises(UsageError, match="not an IPv4 or IPv6 address"):
        Routes([routed("10.0.0.1/24")]).next_hop(0, "10.0.0")


def expected_hop(ports: list[Port], out: int, address: Address) -> Address | None:
    """RFC 1812 sections 5.2.4.3 and 5.3.7, in Python's terms."""
    interface, gateway = ports[out].interface, ports[out].gateway
    if interface is None or any(port.interface is not None and port.interface.ip == address for port in ports):
        return None
    if address.is_multicast or address.is_unspecified or address.is_loopback:
        return None
    if isinstance(address, IPv4Address):
        if address.packed[0] == 0 or address == IPv4Address("255.255.255.255"):
            return None
        network = interface.network
        ends = (network.network_address, network.broadcast_address)
        if network.version == 4 and network.prefixlen < 31 and address in ends:
            return None
    on_link = address in interface.network or (address.version == 6 and address.is_link_local)
    if on_link and interface.version == address.version:
        return address
    return gateway if gateway is not None and gateway.version == address.version else None


ADDRESSES_4 = st.one_of(st.ip_addresses(v=4), st.integers(0, 255).map(lambda n: IPv4Address(0x0A000000 + n)))
ADDRESSES_6 = st.one_of(st.ip_addresses(v=6), st.integers(0, 255).map(lambda n: IPv6Address((0xFE80 << 112) + n)))
INTERFACES = st.one_of(
    st.none(),
    st.tuples(ADDRESSES_4, st.integers(0, 32)).map(lambda pair: IPv4Interface(pair)),
    st.tuples(ADDRESSES_6, st.integers(0, 128)).map(lambda pair: IPv6Interface(pair)),
)


@given(
    st.lists(st.tuples(INTERFACES, st.one_of(st.none(), ADDRESSES_4, ADDRESSES_6)), min_size=1, max_size=3), st.data()
)
def test_it_is_what_ipaddress_says(
    of_ports: list[tuple[IPv4Interface | IPv6Interface | None, Address | None]], data: st.DataObject
) -> None:
    ports = [Port(f"p{number}") for number in range(len(of_ports))]
    for port, (interface, gateway) in zip(ports, of_ports, strict=True):
        port.interface, port.gateway = interface, gateway
    near: list[st.SearchStrategy[Address]] = [ADDRESSES_4, ADDRESSES_6]
    for interface in (port.interface for port in ports):
        if interface is not None:
            first, last = int(interface.network.network_address), int(interface.network.broadcast_address)
            made = IPv4Address if interface.version == 4 else IPv6Address
            near += [st.integers(first, last).map(made), st.sampled_from([interface.ip, made(first), made(last)])]
            near += [st.sampled_from([made(max(first - 1, 0)), made(min(last + 1, 2**interface.max_prefixlen - 1))])]
    address, out = data.draw(st.one_of(near)), data.draw(st.integers(0, len(ports) - 1))
    found = Routes(ports).next_hop(out, str(address))
    assert (ip_address(found) if found is not None else None) == expected_hop(ports, out, address)
