from libc.stdint cimport uint64_t

from actornet.engine.port cimport Port
from actornet.engine.types cimport an_packet
from actornet.ports.memory cimport Arena
from actornet.ports.playback cimport Playback


cdef class CaptureFeed:
    cdef list sources
    cdef list heads
    cdef readonly list ports
    cdef public object suspended
    cdef readonly Playback playback
    cdef readonly bint exhausted
    cdef readonly uint64_t packets
    cdef readonly uint64_t total_bytes
    cdef readonly object first_ns
    cdef readonly object last_ns

    cdef int advance(self, int source) except -1
    cdef int earliest(self) noexcept
    cdef int fill(self, an_packet *packets, int limit, Arena arena) except -1


cdef class CapturePort(Port):
    cdef readonly CaptureFeed feed
    cdef Arena arena
    cdef tuple outlets
    cdef readonly uint64_t packets_in
    cdef readonly uint64_t bytes_in
    cdef readonly uint64_t packets_out
    cdef readonly uint64_t bytes_out

    cdef int rx(self, an_packet *packets, int limit) except -1
    cdef int tx(self, an_packet **packets, int count) except -1
