"""The five-tuple: what tells one flow's packets from another's."""

from __future__ import annotations

import msgspec


class FiveTuple(msgspec.Struct, frozen=True, array_like=True, order=True, gc=False):
    """Protocol, source and destination of one direction of a connection.

    Addresses are in text form (RFC 5952 for IPv6); ports are 0..65535. For ICMP and ICMPv6 echo both ports are the
    identifier, so a request and its reply are each other's `reversed()`. Other protocols have ports 0.
    """

    protocol: int
    source: str
    source_port: int
    destination: str
    destination_port: int

    def reversed(self) -> FiveTuple:
        """The other direction."""
        return FiveTuple(self.protocol, self.destination, self.destination_port, self.source, self.source_port)

    def core(self, cores: int) -> int:
        """The core of `cores` that its packets belong to, as this node and network cards with the symmetric RSS key hash.

        The hash is a sum over GF(2) of what addresses and ports contribute, so where `cores` is a power of two, the core
        number of a sum is the exclusive or of those of its parts.
        """
        from actornet.engine.wire import rss_core  # which imports us

        return rss_core(self, cores)

    def __str__(self) -> str:
        name = {1: "icmp", 6: "tcp", 17: "udp", 58: "icmp6"}.get(self.protocol, str(self.protocol))
        return f"{name} {_endpoint(self.source, self.source_port)} > " + _endpoint(
            self.destination, self.destination_port
        )


_PAIR = b"\x92"
_encode = msgspec.msgpack.Encoder().encode
_decode_pair = msgspec.msgpack.Decoder(tuple[FiveTuple, int]).decode


def flow_key(flow: FiveTuple, port: int) -> bytes:
    """A flow and the index of the port it arrives at, as bytes to look it up by: their msgpack, without an array's head."""
    return _encode((flow, port))[1:]


def key_parts(key: bytes) -> tuple[FiveTuple, int]:
    """The flow and port of a `flow_key`."""
    return _decode_pair(_PAIR + key)


def _endpoint(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
