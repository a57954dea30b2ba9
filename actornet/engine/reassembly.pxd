from libc.stdint cimport int32_t, uint32_t


cdef class Segment:
    cdef readonly uint32_t seq
    cdef readonly bytes data
    cdef readonly bint fin
    cdef readonly uint32_t missing
    cdef readonly object carrier
    cdef readonly int direction
    cdef readonly object replaced

    cdef uint32_t end(self) noexcept


cdef class Half:
    cdef readonly bint started
    cdef readonly bint ended
    cdef readonly bint full
    cdef readonly bint edited
    cdef readonly bint recovering
    cdef bint resumed            # another core began: what that passed, which we never saw, may be acknowledged yet
    cdef uint32_t resumed_at     # by the first acknowledgement that came here
    cdef public bint changed
    cdef readonly uint32_t next
    cdef readonly uint32_t acknowledged
    cdef readonly uint32_t conflicts
    cdef readonly uint32_t queued_bytes
    cdef bint inline
    cdef bint heard              # `acknowledged` is what the receiver has, not just where we began
    cdef int direction
    cdef uint32_t base
    cdef bint has_floor
    cdef uint32_t floor
    cdef uint32_t floor_saved
    cdef uint32_t edit_bytes
    cdef uint32_t kept_seq
    cdef bytearray kept
    cdef list queue
    cdef list edits

    cpdef int begin(self, uint32_t seq) except -1
    cpdef list receive(self, uint32_t seq, bytes data, bint fin, object carrier)
    cpdef list acknowledge(self, uint32_t seq)
    cpdef uint32_t out(self, uint32_t seq)
    cpdef uint32_t back(self, uint32_t seq)
    cpdef int replace(self, Segment segment, bytes data) except -1
    cpdef tuple again(self, uint32_t seq, bytes data)
    cpdef int pass_by(self, uint32_t end) except -1
    cpdef list flush(self)
    cdef bint is_fresh(self) noexcept
    cdef bint holds(self, object carrier) noexcept
    cdef bint _check_fin(self, uint32_t end, bint fin, bint in_order) except -1
    cdef list _insert(self, uint32_t seq, bytes data, bint fin, object carrier)
    cdef uint32_t probe(self, uint32_t seq)
    cdef list _ready(self)
    cdef list _recover(self, uint32_t seq)
    cdef int _deliver(self, Segment segment) except -1
    cdef list _skip(self, uint32_t to)
