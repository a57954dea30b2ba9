from libc.stdint cimport uint64_t

from actornet.engine.flow_base cimport FlowBase


cdef class Keeps:
    cdef object nf
    cdef tuple names
    cdef list offsets
    cdef Py_ssize_t bytes_max
    cdef uint64_t chance
    cdef readonly uint64_t visits    # of the last look
    cdef int due_in              # handlers that may yet run before the next look

    cdef object look(self, FlowBase flow)
