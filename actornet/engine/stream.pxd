from libc.stdint cimport uint8_t, uint32_t

from actornet.engine.packet cimport Packet
from actornet.engine.reassembly cimport Half, Segment
from actornet.engine.types cimport an_packet
from actornet.engine.verdict cimport Emit


cdef class Carrier:
    """The headers of a packet whose bytes wait or are about to be changed."""
    cdef bytes head
    cdef uint32_t l3, l4
    cdef uint8_t version, flags, port
    cdef uint32_t tcp_flags
    cdef object time_ns
    cdef bytes vnet


cdef class Stream:
    cdef list halves
    cdef readonly bint inline
    cdef public bint released
    cdef readonly bint midstream
    cdef readonly bint reset
    cdef bint verify
    cdef bint whole              # the packet itself may go on
    cdef bint damaged
    cdef list outputs            # (carrier, sequence number out, bytes, FIN) or a ready segment
    cdef uint32_t payload_max[2]

    cpdef list receive(self, Packet packet)
    cdef list _take(self, an_packet *p, Half half, Half other, int direction)
    cdef int _again(self, Half half, Carrier carrier, uint32_t seq, bytes data, bint fin) except -1
    cdef int _fix_acknowledgements(self, uint8_t *l4, uint32_t bytes, Half other, bint partial, bint with_ack) except -1
    cdef object _made(self, Carrier carrier, uint32_t seq, bytes data, uint32_t clear, uint32_t set_)
