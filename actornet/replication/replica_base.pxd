from libc.stdint cimport uint64_t


cdef class OpenAsks(list):
    cdef public uint64_t highest
    cdef public uint64_t newest
    cdef public bytes packet
    cdef readonly uint64_t before

    cdef int _begin(self, uint64_t incarnation, tuple entry, bytes packet) except -1
    cdef int _note(self, bytes packet) except -1
    cpdef int remember(self, uint64_t incarnation, tuple entry, bytes packet) except -1


cdef class ReplicaBase:
    cdef public uint64_t lsn
    cdef public uint64_t epoch
    cdef public uint64_t time_ns
    cdef public dict flows       # `flow_key` -> `FlowBody`, encoded as msgspec does
    cdef public dict asks
    cdef readonly dict unfinished  # of `asks` those that whoever goes on acts upon: a takeover does not look through all
    cdef dict handlers           # target -> the owner's bound method, its decoder, its normaliser
    cdef object moment

    cpdef tuple execute_ask(self, bytes request, uint64_t time_ns)
    cpdef int execute_save(self, bytes body, uint64_t time_ns) except -1
    cpdef object apply_record(self, tuple head, bytes data)
    cpdef int keep_asks(self, bytes key, OpenAsks recorded) except -1
    cpdef int forget_asks(self, bytes key) except -1
    cdef int _record(self, OpenAsks recorded, bytes key, uint64_t incarnation, tuple entry, bytes packet) except -1
    cdef bytes _run(self, bytes target, bytes args, uint64_t lsn, uint64_t time_ns)
    cdef int _save(self, bytes key, bytes body, uint64_t incarnation, uint64_t asks) except -1
