"""What a routed port answers for itself: ARP, neighbour discovery and ping; and how to reach its neighbours.

RFC 826 (ARP), RFC 5227 (announcements), RFC 4861 (IPv6 neighbour discovery), RFC 792 and 4443 (ICMP), RFC 1812 section
4.3 (what a router says, and when it is silent). No I/O and no clock: frames go in and out, and time is an argument.
None of this is on the way of a flow's packets; frames are parsed and built with dpkt.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any

import dpkt

from actornet.engine.port import Port
from actornet.limits import ICMP_ERRORS_PER_S, NEIGHBORS_MAX, PORTS_MAX

Address = IPv4Address | IPv6Address

NS_PER_S = 1_000_000_000
BROADCAST = b"\xff" * 6
TTL, HOPS_ON_LINK = 64, 255
"""The second is of neighbour discovery: a router would have decremented it (RFC 4861 section 3.1)."""

INTERNETWORK_CONTROL = 0xC0
"""Type of service of ICMP errors (RFC 1812 section 4.3.2.5)."""

IPV4_ERROR_BYTES_MAX, IPV6_ERROR_BYTES_MAX = 576, 1280
"""An error with its quotation (RFC 1812 section 4.3.2.3, RFC 4443 section 2.4)."""

ECHO_REPLY, UNREACHABLE, ECHO, TIME_EXCEEDED = 0, 3, 8, 11
QUERIES = {ECHO, ECHO_REPLY, 9, 10, 13, 14, 15, 16, 17, 18}
"""ICMP types that are no errors (RFC 1122 section 3.2.2)."""

ECHO6, ECHO6_REPLY, SOLICITATION, ADVERTISEMENT, REDIRECT6 = 128, 129, 135, 136, 137
ALL_NODES = IPv6Address("ff02::1")
SOURCE_LINK_ADDRESS, TARGET_LINK_ADDRESS = 1, 2
ROUTER, SOLICITED, OVERRIDE = 0x80000000, 0x40000000, 0x20000000

ICMP6_OF_ICMP = {
    (UNREACHABLE, 0): (1, 0),
    (UNREACHABLE, 1): (1, 3),
    (UNREACHABLE, 3): (1, 4),
    (UNREACHABLE, 13): (1, 1),
    (TIME_EXCEEDED, 0): (3, 0),
}
"""ICMPv6 type and code that say what these of ICMP do (RFC 4443 sections 3.1 and 3.3)."""


class Host:
    """The routed ports of one core as hosts of their networks: their neighbours' MAC addresses, and what they say.

    `counters` tells how often the neighbour table was full, how many ICMP errors were not sent because there were more
    than ICMP_ERRORS_PER_S, and how often somebody else claimed an address of ours.
    """

    def __init__(self, ports: Collection[Port] = ()) -> None:
        self.counters = {"neighbor_evicted": 0, "icmp_error_limited": 0, "address_conflict": 0}
        self._macs: dict[tuple[str, Address], bytes] = {}  # bounded, the oldest goes first
        self._requested_ns: dict[tuple[str, Address], int] = {}  # likewise
        self._errors_left = float(ICMP_ERRORS_PER_S)
        self._errors_ns = 0
        for port in ports:
            if port.interface is not None and port.mac is not None:
                self.gratuitous(port)  # to be at hand at a takeover

    # -- neighbours ---------------------------------------------------------------------------------------------------

    def resolve(self, port: Port, ip: str) -> bytes | None:
        """The MAC address of a neighbour, if known."""
        return self._macs.get((port.name, ip_address(ip)))

    def request(self, port: Port, ip: str, now_ns: int) -> bytes | None:
        """A frame that asks for the MAC address of a neighbour; None if it was asked for less than a second ago."""
        address, interface, mac = ip_address(ip), port.interface, port.mac
        if interface is None or mac is None or interface.version != address.version:
            return None
        key = (port.name, address)
        asked_ns = self._requested_ns.get(key)
        if asked_ns is not None and 0 <= now_ns - asked_ns < NS_PER_S:
            return None
        self._requested_ns.pop(key, None)
        _put(self._requested_ns, key, now_ns)
        if isinstance(address, IPv4Address):
            return _arp(mac, BROADCAST, dpkt.arp.ARP_OP_REQUEST, interface.ip, bytes(6), address)
        group = IPv6Address(bytes.fromhex("ff0200000000000000000001ff") + address.packed[13:])
        body = bytes(4) + address.packed + _option(SOURCE_LINK_ADDRESS, mac)
        return _icmp6(mac, _group_mac(group), interface.ip, group, SOLICITATION, body, HOPS_ON_LINK)

    def gratuitous(self, port: Port) -> bytes:
        """A frame that tells all neighbours of a routed port that its address is here now, as after a takeover."""
        interface, mac = port.interface, port.mac
        assert interface is not None and mac is not None, "only a routed port has an address"
        return _gratuitous(mac, interface.ip)

    def _learn(self, port: Port, address: Address, mac: bytes) -> None:
        assert port.interface is not None
        if address == port.interface.ip:
            self.counters["address_conflict"] += mac != port.mac
        elif len(mac) == 6 and not mac[0] & 1 and any(mac) and _is_host(port, address) and _is_on_link(port, address):
            self._macs.pop((port.name, address), None)
            self.counters["neighbor_evicted"] += _put(self._macs, (port.name, address), mac)

    # -- frames for the port itself -----------------------------------------------------------------------------------

    def handle(self, port: Port, frame: bytes, now_ns: int) -> list[tuple[Port, bytes]]:
        """The answers to a frame that came in at a routed port: to ARP requests, neighbour solicitations and pings for
        its address. Learns neighbours from ARP and neighbour discovery. What is none of these, or wrong, is ignored."""
        answer = _ANSWERS.get(frame[12:14])
        if port.interface is None or port.mac is None or answer is None or frame[6] & 1:
            return []
        try:
            reply = answer(self, port, frame)
        except dpkt.UnpackError:
            return []
        return [] if reply is None else [(port, reply)]

    def _answer_arp(self, port: Port, frame: bytes) -> bytes | None:
        arp = dpkt.arp.ARP(frame[14:])
        interface, mac = port.interface, port.mac
        assert interface is not None and mac is not None
        if (arp.hrd, arp.pro, arp.hln, arp.pln) != (dpkt.arp.ARP_HRD_ETH, dpkt.arp.ARP_PRO_IP, 6, 4):
            return None
        sender = IPv4Address(arp.spa)
        self._learn(port, sender, arp.sha)
        if arp.op != dpkt.arp.ARP_OP_REQUEST or arp.tpa != interface.ip.packed or sender == interface.ip:
            return None
        return _arp(mac, frame[6:12], dpkt.arp.ARP_OP_REPLY, interface.ip, arp.sha, sender)

    def _answer_ipv4(self, port: Port, frame: bytes) -> bytes | None:
        interface, mac = port.interface, port.mac
        assert interface is not None and mac is not None
        packet = _ipv4_packet(frame)
        if packet is None or packet[9] != dpkt.ip.IP_PROTO_ICMP or packet[16:20] != interface.ip.packed:
            return None
        header_bytes = (packet[0] & 15) * 4
        is_fragment = int.from_bytes(packet[6:8], "big") & 0x3FFF
        if packet[header_bytes : header_bytes + 2] != bytes((ECHO, 0)) or is_fragment:
            return None
        if dpkt.in_cksum(packet[:header_bytes]) or dpkt.in_cksum(packet[header_bytes:]):
            return None
        source = IPv4Address(packet[12:16])
        if source == interface.ip or not _is_host(port, source):
            return None
        echo = dpkt.icmp.ICMP(packet[header_bytes:])
        reply = dpkt.icmp.ICMP(type=ECHO_REPLY, data=echo.data)
        return _ipv4(mac, frame[6:12], interface.ip, source, bytes(reply), tos=packet[1])

    def _answer_ipv6(self, port: Port, frame: bytes) -> bytes | None:
        interface, mac = port.interface, port.mac
        assert interface is not None and mac is not None
        packet = _ipv6_packet(frame)
        if packet is None or packet[6] != dpkt.ip.IP_PROTO_ICMP6 or len(packet) < 48 or not _icmp6_is_right(packet):
            return None
        source, destination = IPv6Address(packet[8:24]), IPv6Address(packet[24:40])
        kind, code, body = packet[40], packet[41], packet[44:]
        if code or source == interface.ip or source.is_multicast:
            return None
        if kind == ECHO6 and destination == interface.ip and _is_host(port, source):
            return _icmp6(mac, frame[6:12], interface.ip, source, ECHO6_REPLY, body, TTL)
        if kind in (SOLICITATION, ADVERTISEMENT) and packet[7] == HOPS_ON_LINK:
            return self._discover(port, frame[6:12], kind, source, body)
        return None

    def _discover(self, port: Port, neighbor_mac: bytes, kind: int, source: IPv6Address, body: bytes) -> bytes | None:
        """Neighbour discovery (RFC 4861 sections 7.1 and 7.2); `body` begins behind the ICMPv6 checksum."""
        options = _options(body[20:])
        if len(body) < 20 or options is None:
            return None
        target = IPv6Address(body[4:20])
        if kind == ADVERTISEMENT:
            self._learn(port, target, options.get(TARGET_LINK_ADDRESS, b""))
            return None
        interface, mac = port.interface, port.mac
        assert interface is not None and mac is not None
        if source.is_unspecified and SOURCE_LINK_ADDRESS in options:
            return None
        if not source.is_unspecified:
            self._learn(port, source, options.get(SOURCE_LINK_ADDRESS, b""))
        if target != interface.ip:
            return None
        if source.is_unspecified:  # somebody tests whether the address is free
            return _advertisement(mac, _group_mac(ALL_NODES), target, ALL_NODES, ROUTER | OVERRIDE)
        return _advertisement(mac, neighbor_mac, target, source, ROUTER | SOLICITED | OVERRIDE)

    # -- errors about packets passing through -------------------------------------------------------------------------

    def icmp_error(self, port: Port, frame: bytes, kind: int, code: int, now_ns: int) -> bytes | None:
        """An ICMP error of this type and code about a packet that came in at `port`, to its sender.

        The type and code are ICMP's for both versions of IP: TIME_EXCEEDED, or UNREACHABLE with code 0, 1, 3 or 13.
        None where RFC 1812 section 4.3.2.7 and RFC 4443 section 2.4 forbid an error (about an error, a fragment but the
        first, anything not from or to a single host), and beyond ICMP_ERRORS_PER_S.
        """
        interface, mac = port.interface, port.mac
        if interface is None or mac is None or len(frame) < 14 or frame[0] & 1 or frame[6] & 1:
            return None
        if isinstance(interface.ip, IPv4Address):
            packet = _ipv4_packet(frame)
            if packet is None or not _deserves_error(port, packet) or not self._may_err(now_ns):
                return None
            quotation = packet[: IPV4_ERROR_BYTES_MAX - 28]
            icmp = dpkt.icmp.ICMP(type=kind, code=code, data=bytes(4) + quotation)
            source = IPv4Address(packet[12:16])
            return _ipv4(mac, frame[6:12], interface.ip, source, bytes(icmp), tos=INTERNETWORK_CONTROL)
        packet = _ipv6_packet(frame)
        if packet is None or not _deserves_error6(port, packet) or not self._may_err(now_ns):
            return None
        kind, code = ICMP6_OF_ICMP[kind, code]
        body = bytes(4) + packet[: IPV6_ERROR_BYTES_MAX - 48]
        return _icmp6(mac, frame[6:12], interface.ip, IPv6Address(packet[8:24]), kind, body, TTL, code)

    def _may_err(self, now_ns: int) -> bool:
        """Take one of the errors that this second has left (a token bucket)."""
        gained = max(0, now_ns - self._errors_ns) * ICMP_ERRORS_PER_S / NS_PER_S
        self._errors_left = min(self._errors_left + gained, ICMP_ERRORS_PER_S)
        self._errors_ns = now_ns
        if self._errors_left < 1:
            self.counters["icmp_error_limited"] += 1
            return False
        self._errors_left -= 1
        return True


_ANSWERS: dict[bytes, Callable[[Host, Port, bytes], bytes | None]] = {
    b"\x08\x06": Host._answer_arp,
    b"\x08\x00": Host._answer_ipv4,
    b"\x86\xdd": Host._answer_ipv6,
}
"""By EtherType."""


def _put(table: dict[Any, Any], key: object, value: object) -> int:
    """Add an entry, at the cost of the oldest if the table is full; returns how many went."""
    evicted = len(table) >= NEIGHBORS_MAX
    if evicted:
        del table[next(iter(table))]
    table[key] = value
    return evicted


def _is_on_link(port: Port, address: Address) -> bool:
    interface = port.interface
    if interface is None or interface.version != address.version:
        return False
    return address in interface.network or (address.version == 6 and address.is_link_local)


def _is_host(port: Port, address: Address) -> bool:
    """Whether it can be the address of one other host (RFC 1812 section 5.3.7): no group, broadcast or network."""
    if address.is_multicast or address.is_unspecified or address.is_loopback:
        return False
    if isinstance(address, IPv6Address):
        return True
    if address.packed[0] == 0 or address.packed == b"\xff\xff\xff\xff":
        return False
    interface = port.interface
    if interface is None or interface.version == 6 or interface.network.prefixlen >= 31:
        return True
    return address not in (interface.network.network_address, interface.network.broadcast_address)


def _ipv4_packet(frame: bytes) -> bytes | None:
    """The IPv4 packet in an untagged frame, without padding; None if its header is not whole."""
    packet = frame[14:]
    if frame[12:14] != b"\x08\x00" or len(packet) < 20 or packet[0] >> 4 != 4:
        return None
    header_bytes, length = (packet[0] & 15) * 4, int.from_bytes(packet[2:4], "big")
    if header_bytes < 20 or len(packet) < header_bytes or length < header_bytes:
        return None
    return packet[:length]


def _ipv6_packet(frame: bytes) -> bytes | None:
    """The IPv6 packet in an untagged frame, without padding; None if its header is not whole."""
    packet = frame[14:]
    if frame[12:14] != b"\x86\xdd" or len(packet) < 40 or packet[0] >> 4 != 6:
        return None
    return packet[: 40 + int.from_bytes(packet[4:6], "big")]


def _deserves_error(port: Port, packet: bytes) -> bool:
    """RFC 1812 section 4.3.2.7."""
    header_bytes = (packet[0] & 15) * 4
    if int.from_bytes(packet[6:8], "big") & 0x1FFF:
        return False
    if packet[9] == dpkt.ip.IP_PROTO_ICMP and (len(packet) <= header_bytes or packet[header_bytes] not in QUERIES):
        return False
    return _is_host(port, IPv4Address(packet[12:16])) and _is_host(port, IPv4Address(packet[16:20]))


def _deserves_error6(port: Port, packet: bytes) -> bool:
    """RFC 4443 section 2.4 (e); a packet with extension headers may hide an error, so it gets none either."""
    if packet[6] == dpkt.ip.IP_PROTO_ICMP6:
        if len(packet) < 41 or packet[40] < ECHO6 or packet[40] == REDIRECT6:
            return False
    elif packet[6] not in (dpkt.ip.IP_PROTO_TCP, dpkt.ip.IP_PROTO_UDP):
        return False
    return _is_host(port, IPv6Address(packet[8:24])) and _is_host(port, IPv6Address(packet[24:40]))


# -- building ---------------------------------------------------------------------------------------------------------


def _frame(source: bytes, destination: bytes, ethertype: int, packet: bytes) -> bytes:
    # The header alone: with its data dpkt would parse that too, and complete the checksums of a quoted packet.
    header: bytes = dpkt.ethernet.Ethernet(src=source, dst=destination, type=ethertype).pack_hdr()
    return header + packet


@lru_cache(maxsize=2 * PORTS_MAX)
def _gratuitous(mac: bytes, address: Address) -> bytes:
    if isinstance(address, IPv4Address):
        return _arp(mac, BROADCAST, dpkt.arp.ARP_OP_REQUEST, address, bytes(6), address)
    return _advertisement(mac, _group_mac(ALL_NODES), address, ALL_NODES, ROUTER | OVERRIDE)


def _arp(mac: bytes, to: bytes, operation: int, ip: Address, target_mac: bytes, target: Address) -> bytes:
    arp = dpkt.arp.ARP(op=operation, sha=mac, spa=ip.packed, tha=target_mac, tpa=target.packed)
    return _frame(mac, to, dpkt.ethernet.ETH_TYPE_ARP, bytes(arp))


def _ipv4(mac: bytes, to: bytes, source: Address, destination: Address, icmp: bytes, *, tos: int) -> bytes:
    ip = dpkt.ip.IP(src=source.packed, dst=destination.packed, p=dpkt.ip.IP_PROTO_ICMP, ttl=TTL, tos=tos, data=icmp)
    ip.len = len(ip)
    return _frame(mac, to, dpkt.ethernet.ETH_TYPE_IP, bytes(ip))


def _icmp6(
    mac: bytes, to: bytes, source: Address, destination: Address, kind: int, body: bytes, hops: int, code: int = 0
) -> bytes:
    pseudo = source.packed + destination.packed + (len(body) + 4).to_bytes(4, "big") + b"\0\0\0\x3a"
    checksum = dpkt.in_cksum(pseudo + bytes((kind, code, 0, 0)) + body)
    icmp = dpkt.icmp6.ICMP6(type=kind, code=code, sum=checksum, data=body)
    ip = dpkt.ip6.IP6(src=source.packed, dst=destination.packed, nxt=dpkt.ip.IP_PROTO_ICMP6, hlim=hops, plen=len(icmp))
    return _frame(mac, to, dpkt.ethernet.ETH_TYPE_IP6, ip.pack_hdr() + bytes(icmp))


def _advertisement(mac: bytes, to: bytes, target: Address, destination: Address, flags: int) -> bytes:
    body = flags.to_bytes(4, "big") + target.packed + _option(TARGET_LINK_ADDRESS, mac)
    return _icmp6(mac, to, target, destination, ADVERTISEMENT, body, HOPS_ON_LINK)


def _option(kind: int, mac: bytes) -> bytes:
    """A link-layer address option (RFC 4861 section 4.6.1); the length is in units of 8 bytes."""
    return bytes((kind, 1)) + mac


def _options(data: bytes) -> dict[int, bytes] | None:
    """Type -> content of neighbour discovery options; None if they are malformed."""
    options: dict[int, bytes] = {}
    while data:
        length = data[1] * 8 if len(data) >= 2 else 0
        if length == 0 or length > len(data):
            return None
        options.setdefault(data[0], data[2:length])
        data = data[length:]
    return options


def _icmp6_is_right(packet: bytes) -> bool:
    pseudo = packet[8:40] + (len(packet) - 40).to_bytes(4, "big") + b"\0\0\0\x3a"
    return bool(dpkt.in_cksum(pseudo + packet[40:]) == 0)


def _group_mac(group: IPv6Address) -> bytes:
    """RFC 2464 section 7."""
    return b"\x33\x33" + group.packed[12:]
