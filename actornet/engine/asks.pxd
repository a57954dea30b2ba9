from libc.stdint cimport uint8_t, uint64_t

from actornet.engine.flow_base cimport Ask, FlowBase
from actornet.engine.ring cimport Ring


cdef class OwnerLink:
    cdef Ring requests
    cdef Ring replies
    cdef readonly uint64_t sequence
    cdef public bint attached
    cdef dict asks               # sequence number -> Ask on its way
    cdef list backlog            # messages that were taken while a request had to wait for room
    cdef uint8_t *buffer
    cdef size_t buffer_bytes

    cdef int _push(self, const uint8_t *data, size_t length) except -1
    cdef int _treat(self, bytes data) except -1
