from libc.stdint cimport uint64_t

from actornet.engine.core cimport Core
from actornet.engine.flow_base cimport FlowBase


cdef int save(Core core, FlowBase flow) except -1
cdef int save_anew(Core core, FlowBase flow, bint waits=*) except -1


cdef class Settling:
    cdef void *core              # borrowed
    cdef readonly list asked     # flows since `since_ns`, each once
    cdef readonly list due       # and those of before, which are being saved
    cdef uint64_t since_ns
    cdef public uint64_t wait_ns

    cdef int note(self, FlowBase flow) except -1
    cdef int turn(self) except -1
    cpdef int end(self) except -1
    cdef int _save(self, int most) except -1
