"""Frames for tests, built by dpkt."""

from __future__ import annotations

import socket

import dpkt

LAN_MAC, WAN_MAC = b"\x02\0\0\0\0\x01", b"\x02\0\0\0\0\x02"


def ethernet(payload: bytes, kind: int = 0x0800, source: bytes = LAN_MAC, destination: bytes = WAN_MAC) -> bytes:
    return destination + source + kind.to_bytes(2, "big") + payload


def ipv4(source: str, destination: str, protocol: int, payload: bytes, ttl: int = 64) -> bytes:
    ip = dpkt.ip.IP(src=socket.inet_aton(source), dst=socket.inet_aton(destination), p=protocol, ttl=ttl, data=payload)
    ip.len = 20 + len(payload)
    return bytes(ip)


def udp(source: str, sport: int, destination: str, dport: int, data: bytes = b"x", ttl: int = 64) -> bytes:
    datagram = dpkt.udp.UDP(sport=sport, dport=dport, data=data, ulen=8 + len(data))
    ip = dpkt.ip.IP(
        src=socket.inet_aton(source),
        dst=socket.inet_aton(destination),
        p=17,
        ttl=ttl,
        len=28 + len(data),
        data=datagram,
    )
    return ethernet(bytes(ip))


def tcp(
    source: str, sport: int, destination: str, dport: int, flags: int, data: bytes = b"", seq: int = 1, ack: int = 0
) -> bytes:
    segment = dpkt.tcp.TCP(sport=sport, dport=dport, flags=flags, seq=seq, ack=ack, data=data)
    ip = dpkt.ip.IP(
        src=socket.inet_aton(source), dst=socket.inet_aton(destination), p=6, len=40 + len(data), data=segment
    )
    return ethernet(bytes(ip))


def echo(source: str, destination: str, identifier: int, kind: int = 8, data: bytes = b"ping") -> bytes:
    icmp = dpkt.icmp.ICMP(type=kind, data=dpkt.icmp.ICMP.Echo(id=identifier, seq=1, data=data))
    ip = dpkt.ip.IP(src=socket.inet_aton(source), dst=socket.inet_aton(destination), p=1, data=icmp)
    ip.len = 28 + len(data)
    return ethernet(bytes(ip))


def icmp_error(source: str, about: bytes, kind: int = 3, code: int = 3) -> bytes:
    """An ICMP error sent by `source` to the sender of the frame that it is about."""
    inner = about[14:][:28]
    body = bytes((kind, code, 0, 0, 0, 0, 0, 0)) + inner
    total = sum(int.from_bytes(body[i : i + 2].ljust(2, b"\0"), "big") for i in range(0, len(body), 2))
    total = (total & 0xFFFF) + (total >> 16)
    total = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
    body = body[:2] + total.to_bytes(2, "big") + body[4:]
    return ethernet(ipv4(source, socket.inet_ntoa(inner[12:16]), 1, body))
