"""A frame by which the switches of a network learn that a station is reached by another way now.

What a hypervisor sends for a machine that has moved to it (QEMU's announce-self): a reverse ARP request (RFC 903) in the
station's name, to everybody, so that each switch on its way learns; hosts have no use for it.
"""

from __future__ import annotations

REVERSE_ARP = b"\x80\x35"
_REQUEST = b"\x00\x01\x08\x00\x06\x04\x00\x03"  # Ethernet, IPv4, lengths, "request reverse"
FRAME_BYTES_MIN = 60


def announcement(station: int) -> bytes:
    """The frame, for a station as in `actornet.engine.sightings`."""
    mac = (station & (1 << 48) - 1).to_bytes(6, "big")
    vlan = station >> 48 & 0xFFF
    tag = (b"\x88\xa8" if station >> 60 & 1 else b"\x81\x00") + vlan.to_bytes(2, "big") if vlan else b""
    body = _REQUEST + mac + bytes(4) + mac + bytes(4)
    return (b"\xff" * 6 + mac + tag + REVERSE_ARP + body).ljust(FRAME_BYTES_MIN, b"\0")
