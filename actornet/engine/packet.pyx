"""The packet that a handler sees: a zero-copy view, reused for the next packet."""

from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.object cimport PyObject_GenericGetAttr

from libc.stdint cimport uint8_t, uint16_t, uint32_t

from actornet.engine.types cimport (
    AN_GRE, AN_GTP_U, AN_ICMP_ERROR, AN_IP_OPTIONS, AN_NONE, AN_PRIMARY, AN_VXLAN, an_key, an_packet,
)
from actornet.engine.direction import Direction
from actornet.engine.verdict import Answer, Forward
from actornet.engine.wire cimport address_text, five_tuple
from actornet.engine.wire import TUNNELS

cdef dict _forwards = {}


cdef extern from "parse.h" nogil:
    void an_key_set(an_key *key, const uint8_t *ip, bint reversed, uint16_t source_port, uint16_t destination_port,
                    uint8_t protocol, uint8_t version, uint8_t port)


cdef uint32_t an_swap32(const uint8_t *at) noexcept:
    return <uint32_t>at[0] << 24 | <uint32_t>at[1] << 16 | <uint32_t>at[2] << 8 | at[3]
cdef tuple _directions = tuple(Direction)


cdef class Packet:
    """One received frame, valid until its handler returns (for `async def`: until it has completed).

    Reading a field copies nothing; `payload` and `frame` are copies, free to keep. A packet kept beyond its handler
    raises RuntimeError when read.
    """

    cdef an_packet *live(self) except NULL:
        if self.p == NULL:
            raise RuntimeError("packet used after its handler returned: keep packet.frame or the fields instead")
        return self.p

    def __getattribute__(self, str name):
        # What handlers read of most packets, by the identity of the interned name: on its way through the type's dictionary
        # a property takes a hundred instructions more.
        cdef an_packet *p = self.p
        if p != NULL:
            if name is "destination_port":
                return p.key.destination_port
            if name is "source_port":
                return p.key.source_port
            if name is "protocol":
                return p.key.protocol
            if name is "port":
                return self.port_names[p.key.port]
            if name is "tcp_flags":
                return p.tcp_flags
            if name is "flow":
                return five_tuple(&p.key)
        return PyObject_GenericGetAttr(self, name)

    @property
    def flow(self):
        """FiveTuple as received (of an ICMP error: of the flow that it speaks of)."""
        return five_tuple(&self.live().key)

    @property
    def port(self) -> str:
        """Name of the port that the packet arrived at."""
        return self.port_names[self.live().key.port]

    cdef int direction_index(self) except -1:
        cdef an_packet *p = self.live()
        return p.entry != AN_NONE and not self.table.entries[p.entry].state & AN_PRIMARY

    @property
    def port_index(self) -> int:
        """Index of that port."""
        return self.live().key.port

    @property
    def direction(self) -> Direction:
        """ORIGINAL if it came by the key that the flow was opened with, REPLY if by one that the flow has bound."""
        return _directions[self.direction_index()]

    @property
    def protocol(self) -> int:
        return self.live().key.protocol

    @property
    def source(self) -> str:
        return address_text(self.live().key.source, self.p.key.version)

    @property
    def destination(self) -> str:
        return address_text(self.live().key.destination, self.p.key.version)

    @property
    def source_port(self) -> int:
        return self.live().key.source_port

    @property
    def destination_port(self) -> int:
        return self.live().key.destination_port

    @property
    def ip_version(self) -> int:
        return self.live().key.version

    @property
    def ttl(self) -> int:
        """TTL or hop limit as received."""
        return self.live().ttl

    @property
    def dscp(self) -> int:
        return self.live().dscp

    @property
    def tcp_flags(self) -> int:
        """TCP flag bits: FIN 1, SYN 2, RST 4, PSH 8, ACK 16, URG 32; 0 for other protocols."""
        return self.live().tcp_flags

    @property
    def is_icmp_error(self) -> bool:
        """An ICMP error about this flow; forwarding it translates the embedded packet too."""
        return bool(self.live().flags & AN_ICMP_ERROR)

    @property
    def tunnel(self):
        """"gtp-u", "vxlan" or "gre" if the packet came in such a tunnel and the network function asks for `inner` ones."""
        cdef an_packet *p = self.live()
        return TUNNELS[p.tunnel - 1] if p.tunnel else None

    @property
    def tunnel_id(self):
        """Of GTP-U the TEID, of VXLAN the VNI, of GRE the key; None outside of tunnels and in GRE without a key."""
        cdef an_packet *p = self.live()
        cdef const uint8_t *header = p.data + p.outer_l4
        if p.tunnel == AN_GTP_U:
            return an_swap32(header + 12)
        if p.tunnel == AN_VXLAN:
            return an_swap32(header + 12) >> 8
        if p.tunnel == AN_GRE and header[0] & 0x20:
            return an_swap32(header + (8 if header[0] & 0x80 else 4))
        return None

    @property
    def outer(self):
        """FiveTuple of the packet that carries this one (of GRE with ports 0); None outside of tunnels."""
        cdef an_packet *p = self.live()
        cdef an_key key
        cdef const uint8_t *header = p.data + p.outer_l4
        cdef bint ports = p.tunnel != AN_GRE
        if not p.tunnel:
            return None
        an_key_set(&key, p.data + p.outer_l3, False, header[0] << 8 | header[1] if ports else 0,
                   header[2] << 8 | header[3] if ports else 0, 17 if ports else 47, p.data[p.outer_l3] >> 4, p.port)
        return five_tuple(&key)

    @property
    def icmp_type(self):
        """Type of an ICMP or ICMPv6 message, of the error itself if it is one; None for other protocols."""
        cdef an_packet *p = self.live()
        return p.data[p.l4] if p.flags & AN_ICMP_ERROR or p.key.protocol in (1, 58) else None

    @property
    def icmp_code(self):
        """Code of an ICMP or ICMPv6 message; None for other protocols."""
        cdef an_packet *p = self.live()
        return p.data[p.l4 + 1] if p.flags & AN_ICMP_ERROR or p.key.protocol in (1, 58) else None

    @property
    def has_options(self) -> bool:
        """IPv4 options or IPv6 extension headers are present."""
        return bool(self.live().flags & AN_IP_OPTIONS)

    @property
    def time(self) -> float:
        """Arrival in seconds since the Unix epoch."""
        return self.live().time_ns / 1e9

    @property
    def length(self) -> int:
        """Frame length in bytes."""
        return self.live().length

    @property
    def payload(self) -> bytes:
        """Bytes behind the transport header (a copy)."""
        cdef an_packet *p = self.live()
        cdef uint32_t end = p.length if p.l3_end == 0xffff or p.l3_end > p.length else p.l3_end
        if p.payload == 0 or p.payload >= end:
            return b""
        return PyBytes_FromStringAndSize(<char *>p.data + p.payload, end - p.payload)

    @property
    def frame(self) -> bytes:
        """The whole Ethernet frame (a copy)."""
        return PyBytes_FromStringAndSize(<char *>self.live().data, self.p.length)

    def to(self, str port):
        """Verdict: forward out of `port`."""
        verdict = _forwards.get(port)
        if verdict is None:
            verdict = _forwards[port] = Forward(port)
        return verdict

    def answer(self, payload):
        """Verdict: these bytes go back to whom this UDP datagram came from, in its destination's name; it goes no further.

        The answer leaves by the port at which the datagram arrived, in fragments if it is larger than both that was and 1280
        bytes. Raises UsageError for what is not bytes; a packet that cannot be answered so (TCP, in a tunnel) fails its handler.
        """
        return Answer(payload)

    def __repr__(self) -> str:
        return "<Packet: done>" if self.p == NULL else f"<Packet {self.flow} at {self.port}, {self.length} B>"
