from libc.stdint cimport uint64_t
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

from actornet.engine.port cimport Port


cdef class LivePort(Port):
    cdef readonly str device
    cdef readonly int ifindex
    cdef readonly int cores
    cdef readonly int core
    cdef object probe                # a socket to ask about the interface, in the namespace of the port's maker
    cdef bint active
    cdef bint lost
    cdef bint closed
    cdef public object on_link        # called with this port, and what has become of its interface
    cdef uint64_t next_check_ns

    cdef int link_lost(self) except -1
    cdef int tell(self, str what) except -1
    cdef bint resume(self) except -1


cdef inline uint64_t monotonic_ns() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return <uint64_t>now.tv_sec * 1_000_000_000 + <uint64_t>now.tv_nsec
