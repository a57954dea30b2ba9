from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from actornet.engine.flow_base cimport FlowBase
from actornet.engine.parked cimport an_queue
from actornet.engine.routes cimport Routes
from actornet.engine.types cimport an_key, an_packet, an_rewrite

cdef extern from "offload.h" nogil:
    struct an_adjacency:
        uint8_t destination[6]
        uint8_t source[6]
        uint8_t resolved
        uint8_t attempts
        an_queue waiting


cdef class Neighbors:
    cdef void *core              # borrowed: the Core that these belong to
    cdef an_adjacency *table     # index 0 stands for none: the Ethernet header stays as it is
    cdef uint32_t count
    cdef Routes routes
    cdef dict indices            # port's index and next hop, as bytes -> index
    cdef list keys               # by index: port's index, next hop as text
    cdef list forms              # by index: as records keep it
    cdef set restored            # ports and forms that records have told of
    cdef set unresolved
    cdef uint64_t tick_ns        # when to ask again

    cdef int adjacency(self, int out, const an_key *key, const an_rewrite *rewrite, const uint8_t *addresses) except -2
    cdef int ethernet(self, FlowBase flow, an_packet *p, int out, uint32_t index) except -1
    cdef int learn(self, const an_packet *p) except -1
    cdef int tick(self) except -1
    cdef int answer(self, an_packet *p) except -1
    cdef int refuse(self, an_packet *p, int type, int code) except -1
    cdef int send(self, int out, bytes frame, uint16_t fragment_bytes=*) except -1
    cdef bint is_for_host(self, const an_packet *p) except -1
    cdef bint may_forward(self, const an_packet *p) noexcept
    cdef bytes form(self, uint32_t index)
    cdef int restore(self, int out, object form) except -1
    cdef int restore_form(self, int out, bytes form) except -1

    cdef int _index(self, int out, const uint8_t *address, int version) except -1
    cdef int _resolved(self, uint32_t index, const uint8_t *mac) except -1
    cdef bint _is_offloaded_to(self, FlowBase flow, uint32_t index) noexcept
    cdef int _solicit(self, uint32_t index) except -1
