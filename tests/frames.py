"""Frames for tests, built by dpkt."""

from __future__ import annotations

import socket

import dpkt

LAN_MAC, WAN_MAC = b"\x02\0\0\0\0\x01", b"\x02\0\0\0\0\x02"


def ethernet(payload: bytes, kind: int = 0x0800, source: bytes = LAN_MAC, destination: bytes = WAN_MAC) -> bytes:
    return destination + source + kind.to_bytes(2, "big") + payload


def fragments(frame: bytes, largest: int, tags: int = 0, identification: int = 7) -> list[bytes]:
    """The frame's IP packet in fragments of at most so many bytes, in order. `tags`: bytes of VLAN tags. IPv6 extension
    headers, if there are any, are part of what is cut."""
    head, ip = frame[: 14 + tags], frame[14 + tags :]
    six = ip[0] >> 4 == 6
    header, body = (ip[:40], ip[40 : 40 + int.from_bytes(ip[4:6], "big")]) if six else (ip[:20], ip[20:])
    piece = (largest - len(header) - 8 * six) // 8 * 8
    cut = []
    for at in range(0, len(body), piece):
        part, more = body[at : at + piece], at + piece < len(body)
        if six:
            extension = bytes((header[6], 0)) + (at | more).to_bytes(2, "big") + identification.to_bytes(4, "big")
            length = (8 + len(part)).to_bytes(2, "big")
            cut.append(head + header[:4] + length + b"\x2c" + header[7:] + extension + part)
        else:
            one = bytearray(header)
            one[2:4] = (20 + len(part)).to_bytes(2, "big")
            one[4:6] = identification.to_bytes(2, "big")
            one[6:8] = ((one[6] & 0x40) << 8 | more << 13 | at // 8).to_bytes(2, "big")
            one[10:12] = bytes(2)
            total = sum(int.from_bytes(one[i : i + 2], "big") for i in range(0, 20, 2))
            total = (total & 0xFFFF) + (total >> 16)
            one[10:12] = (~((total & 0xFFFF) + (total >> 16)) & 0xFFFF).to_bytes(2, "big")
            cut.append(head + bytes(one) + part)
    return cut


def joined(pieces: list[bytes], tags: int = 0) -> bytes:
    """The frame that was cut into these fragments, whatever their order; fails unless they fit exactly."""
    start = 14 + tags
    six = pieces[0][start] >> 4 == 6
    places = {}
    for piece in pieces:
        ip = piece[start:]
        at = 48 if six else 20
        end = 40 + int.from_bytes(ip[4:6], "big") if six else int.from_bytes(ip[2:4], "big")
        field = int.from_bytes(ip[42:44] if six else ip[6:8], "big")
        offset, more = (field & 0xFFF8, field & 1) if six else ((field & 0x1FFF) * 8, field >> 13 & 1)
        assert (ip[6] == 44) if six else end == len(ip)
        places[offset] = (ip[at:end], more)
    body = b""
    for offset in sorted(places):
        assert offset == len(body), "a gap or an overlap"
        body += places[offset][0]
    assert [more for _, (_, more) in sorted(places.items())] == [1] * (len(places) - 1) + [0]
    head, ip = pieces[0][:start], bytearray(pieces[0][start:])
    if six:
        ip[6], ip[4:6] = ip[40], len(body).to_bytes(2, "big")
        return head + bytes(ip[:40]) + body
    ip[2:4], ip[4:8], ip[10:12] = (20 + len(body)).to_bytes(2, "big"), bytes((0, 0, ip[6] & 0x40, 0)), bytes(2)
    total = sum(int.from_bytes(ip[i : i + 2], "big") for i in range(0, 20, 2))
    total = (total & 0xFFFF) + (total >> 16)
    ip[10:12] = (~((total & 0xFFFF) + (total >> 16)) & 0xFFFF).to_bytes(2, "big")
    return head + bytes(ip[:20]) + body


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
