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
    cdef bint waits              # its packet was counted as held, and nothing of it has left yet


cdef class Stream:
    cdef list halves
    cdef readonly bint inline
    cdef public bint released
    cdef readonly bint midstream
    cdef readonly bint reset     # by an RST that its receiver should have taken
    cdef readonly bint established  # both ends have answered each other
    cdef readonly bint renewed   # the packet that was received last has begun a new connection
    cdef int reset_direction
    cdef bint in_doubt           # the RST's receiver may have taken it for a wrong one
    cdef bint asked_anew         # one end has sent a SYN in the middle of the connection, with these numbers
    cdef int asked_direction
    cdef uint32_t asked_seq
    cdef bint crossed            # both ends have sent a SYN, and neither has answered yet
    cdef bint verify
    cdef bint whole              # the packet itself may go on
    cdef bint damaged
    cdef list outputs            # (carrier, sequence number out, bytes, FIN) or a ready segment
    cdef uint32_t payload_max[2]
    cdef bytes header            # TCP header of the packet that was received last, renumbered; None: as it came
    cdef Carrier carrier         # of the packet that was received last, if it may wait
    cdef readonly uint32_t waiting  # packets that were counted as held, and have not left

    cpdef list receive(self, Packet packet)
    cdef list _take(self, an_packet *p, Half half, Half other, int direction)
    cdef bint _synchronize(self, Half half, Half other, int direction, uint32_t seq, uint32_t ack, bint acknowledges) except -1
    cdef an_packet *_renumbered(self, Packet packet) except NULL
    cdef int _begin_anew(self) except -1
    cdef int _reset(self, Half half, Half other, uint32_t seq, uint32_t ack, bint acknowledges) except -1
    cdef int _again(self, Half half, Carrier carrier, uint32_t seq, bytes data, bint fin) except -1
    cdef int _fix_acknowledgements(self, uint8_t *l4, uint32_t bytes, Half other, bint partial, bint with_ack) except -1
    cdef object _made(self, Carrier carrier, uint32_t seq, bytes data, uint32_t clear, uint32_t set_)
