from libc.stdint cimport uint8_t

from actornet.engine.types cimport an_key, an_packet, an_rewrite


cdef struct prefix:
    uint8_t version
    uint8_t address[16]
    uint8_t mask[16]


cdef class Readdressing:
    cdef an_key emitted
    cdef an_rewrite rewrite
    cdef uint8_t addresses[32]
    cdef bint identical


cdef class Playback:
    cdef uint8_t lan
    cdef uint8_t wan
    cdef bint as_is
    cdef prefix *prefixes
    cdef int prefix_count
    cdef dict replies
    cdef set outstanding
    cdef readonly unsigned long long readdressed
    cdef readonly unsigned long long forgotten

    cdef bint is_inside(self, const an_packet *p) noexcept
    cdef int arrive(self, an_packet *p) except -1
    cdef int depart(self, const an_packet *p) except -1
    cdef int learn(self, const an_key *asked, const an_key *emitted) except -1
