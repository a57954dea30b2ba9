from libc.stdint cimport uint8_t, uint32_t, uint64_t

from actornet.engine.port cimport Port
from actornet.engine.types cimport an_packet


cdef class Arena:
    cdef uint8_t *room
    cdef size_t used

    cdef uint8_t *place(self, bytes frame) except NULL


cdef class MemoryPort(Port):
    cdef Arena arena
    cdef object waiting
    cdef list sent
    cdef object sink

    cdef int rx(self, an_packet *packets, int limit) except -1
    cdef int tx(self, an_packet **packets, int count) except -1


cdef class LoopPort(Port):
    cdef bytes template
    cdef uint8_t *ring
    cdef uint32_t frame_bytes
    cdef uint32_t stride
    cdef uint32_t slot
    cdef uint64_t at
    cdef uint64_t left
    cdef uint64_t time_ns
    cdef uint64_t interval_ns
    cdef readonly uint64_t received_packets
    cdef readonly uint64_t sent_packets
    cdef readonly uint64_t sent_bytes

    cdef int rx(self, an_packet *packets, int limit) except -1
    cdef int tx(self, an_packet **packets, int count) except -1
