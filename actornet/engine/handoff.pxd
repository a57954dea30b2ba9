from actornet.engine.ring cimport Ring
from actornet.engine.types cimport an_packet
from libc.stdint cimport uint8_t


cdef class Handoff:
    cdef readonly Ring outgoing
    cdef readonly Ring incoming
    cdef uint8_t *frames

    cdef int push(self, an_packet *p) except -1
    cdef int rx(self, an_packet *packets, int limit) except -1
