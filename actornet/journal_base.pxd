from libc.stdint cimport uint8_t, uint16_t, uint64_t

from actornet.replication.replica_base cimport ReplicaBase


cdef class JournalBase:
    cdef public object log
    cdef public ReplicaBase replica
    cdef public uint64_t chain
    cdef public list _queue      # of (LSN, record)

    cdef int _enqueue_sealed(self, uint8_t kind, uint16_t core, bytes body) except -1
    cpdef bytes ask(self, uint16_t core, bytes request, uint64_t time_ns)
    cpdef int save(self, uint16_t core, bytes body, uint64_t time_ns) except -1
