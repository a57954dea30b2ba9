cdef bint heap_wants() noexcept nogil
cdef bint heap_back() noexcept nogil
