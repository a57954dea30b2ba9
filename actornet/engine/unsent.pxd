from libc.stdint cimport uint8_t, uint32_t, uint64_t

from actornet.engine.flow_base cimport FlowBase
from actornet.engine.parked cimport an_parked
from actornet.engine.types cimport an_packet


cdef enum:
    PACKET_HEAD = 1 + 12  # flags, virtio header


cdef class Unsent:
    cdef void *core                  # borrowed: the Core whose packets these are
    cdef const uint64_t *followed    # whether a backup is to know of them
    cdef uint64_t followed_own
    cdef uint64_t last               # number that a packet has got
    cdef list waits                  # and what is to be told of them
    cdef list done
    cdef uint32_t bytes              # of packets in `waits`

    cdef int tell(self, FlowBase flow, an_parked *item, int out) except -1
    cdef int settle(self, an_parked *item) except -1
    cdef int flush(self) except -1


cdef bytes packet_bytes(const an_packet *p)
cdef uint8_t *write_packet(uint8_t *out, const an_packet *p) noexcept
cdef int packet_from(an_packet *p, bytes kept) except -1
