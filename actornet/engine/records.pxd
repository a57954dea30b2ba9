from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

cdef bytes sealed(uint8_t kind, uint16_t core, uint32_t epoch, uint64_t lsn, uint64_t time_ns, bytes body, uint64_t *chain)
cpdef tuple checked(bytes data, object lsn=?)
