from libc.stdint cimport uint32_t

from actornet.engine.flow_base cimport FlowBase
from actornet.engine.types cimport an_key


cdef class Moves:
    cdef void *core              # borrowed: the Core whose flows leave
    cdef bint due                # there is something to do at each turn
    cdef int to                  # the core that is to have some flows
    cdef double share            # of the packets
    cdef int packets             # so many to look at; 0: none
    cdef list sample             # a flow per packet that came, up to so many
    cdef list chosen             # flows that are to go as soon as they are at rest
    cdef int turns               # so often have we asked whether they are

    cdef int look(self, int n, const uint32_t *probed) except -1
    cdef int turn(self) except -1
    cdef int depart(self, FlowBase flow, int to) except -1

    cdef int _choose(self) except -1
    cdef int _let_go(self) except -1
    cdef bint _may_go(self, FlowBase flow) except -1
    cdef bint _rests(self, FlowBase flow) except -1
