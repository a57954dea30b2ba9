from libc.stdint cimport uint8_t

cdef enum:
    ROUTES_MAX = 16              # limits.PORTS_MAX


cdef struct an_route:
    uint8_t version              # 4 or 6; 0: a transparent port
    uint8_t prefix_bits
    uint8_t gateway_version      # 0: there is none
    uint8_t own[16]
    uint8_t gateway[16]


cdef class Routes:
    cdef an_route routes[ROUTES_MAX]
    cdef int count

    cdef const uint8_t *hop(self, int out, const uint8_t *address, int version) noexcept


cdef bint is_host(const uint8_t *address, int version) noexcept
cdef bint is_link_local(const uint8_t *address, int version) noexcept
