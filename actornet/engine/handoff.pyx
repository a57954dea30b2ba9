"""Packets from core to core: those that the NIC or the kernel gave to the wrong one."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from actornet.engine.ring cimport Ring
from actornet.engine.types cimport AN_CSUM_PARTIAL, AN_HANDED, AN_REASSEMBLED, an_packet
from actornet.errors import RingError
from actornet.limits import BURST_PACKETS, FRAME_BYTES_MAX

cdef int BURST = BURST_PACKETS
cdef size_t FRAME_BYTES = FRAME_BYTES_MAX

cdef packed struct Header:
    uint64_t time_ns
    uint8_t port
    uint8_t flags
    uint8_t vnet[12]
    uint16_t fragment_bytes
    uint32_t fragment_id


cdef class Handoff:
    """Both directions between this core and one sibling."""

    def __cinit__(self, Ring outgoing not None, Ring incoming not None):
        self.outgoing = outgoing
        self.incoming = incoming
        self.frames = <uint8_t *>malloc(BURST * FRAME_BYTES)
        if self.frames == NULL:
            raise MemoryError("hand-off buffers")

    def __dealloc__(self):
        free(self.frames)

    cdef int push(self, an_packet *p) except -1:
        """Copy the packet into the sibling's ring; False when it is full."""
        cdef Header header
        cdef int pushed
        header.time_ns = p.time_ns
        header.port = p.port
        header.flags = p.flags & (AN_CSUM_PARTIAL | AN_REASSEMBLED)
        memcpy(header.vnet, p.vnet, sizeof(header.vnet))
        header.fragment_bytes = p.fragment_bytes
        header.fragment_id = p.fragment_id
        pushed = self.outgoing.push_bytes(<uint8_t *>&header, sizeof(header), p.data, p.length)
        return pushed

    cdef int rx(self, an_packet *packets, int limit) except -1:
        cdef const uint8_t *message
        cdef size_t length = 0
        cdef int n = 0
        cdef Header header
        while n < limit and n < BURST:
            message = self.incoming.peek(&length)
            if message == NULL:
                break
            if length < sizeof(Header) or length - sizeof(Header) > FRAME_BYTES:
                self.incoming.advance()
                raise RingError(f"hand-off ring: a message of {length} bytes is not a packet")
            memcpy(&header, message, sizeof(header))
            packets[n].data = self.frames + n * FRAME_BYTES
            packets[n].length = <uint32_t>(length - sizeof(Header))
            memcpy(packets[n].data, message + sizeof(Header), packets[n].length)
            packets[n].time_ns = header.time_ns
            packets[n].port = header.port
            packets[n].flags = header.flags | AN_HANDED
            memcpy(packets[n].vnet, header.vnet, sizeof(header.vnet))
            packets[n].fragment_bytes = header.fragment_bytes
            packets[n].fragment_id = header.fragment_id
            self.incoming.advance()
            n += 1
        return n
