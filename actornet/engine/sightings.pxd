from libc.stdint cimport uint32_t, uint64_t

from actornet.engine.types cimport an_packet

cdef enum:
    SLOTS = 4096


cdef class Sightings:
    cdef void *core              # borrowed: the Core whose frames they are of
    cdef bint on
    cdef uint64_t told[SLOTS]    # what the owner system was told last, by hash
    cdef uint64_t begun_ns       # everything is told again some time after this
    cdef uint32_t left           # so much may be told until then
    cdef uint64_t untold         # so often it was more

    cdef int look(self, const an_packet *p) except -1
