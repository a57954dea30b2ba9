from actornet.engine.parked cimport an_parked
from actornet.engine.types cimport an_packet
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

cdef extern from "fragments.h" nogil:
    struct an_fragments:
        uint32_t waiting
        uint32_t memory
        uint32_t datagrams_waiting
        uint64_t joined
        uint64_t overlap
        uint64_t expired
        uint64_t evicted

    struct an_cut:
        uint32_t at
        uint32_t end
        uint32_t l3
        uint32_t id
        uint8_t version

    int an_fragments_init(an_fragments *f, uint32_t datagrams_max, uint32_t fragments_max, uint32_t memory_max,
                          uint64_t life_ns, uint64_t seed)
    void an_fragments_free(an_fragments *f)
    void an_fragments_expire(an_fragments *f, uint64_t now_ns)
    int an_fragments_add(an_fragments *f, an_packet *p, uint64_t now_ns, an_parked **whole)
    int an_cut_begin(an_cut *cut, const an_packet *p, uint32_t bytes, uint32_t id)
    an_parked *an_cut_next(an_cut *cut, const an_packet *p)


cdef class Fragments:
    cdef void *core              # borrowed: the core has us
    cdef an_fragments table
    cdef uint64_t identification

    cdef int open(self) except -1
    cdef int receive(self, an_packet *p) except -1
    cdef int expire(self, uint64_t now_ns) except -1
    cdef int transmit(self, an_packet *p, int out) except -1
    cdef uint32_t _identification(self, const an_packet *p, const an_cut *cut) noexcept
    cdef int _count(self) except -1
