from libc.stdint cimport uint8_t, uint64_t

from actornet.engine.types cimport an_key, an_packet


cdef class Siblings:
    cdef void *core              # borrowed: the Core that these are the others of
    cdef public list handoffs    # by number; None: itself, or one that is not there
    cdef uint64_t handed         # bit per sibling that was given packets in this turn
    cdef bint sharded            # by the keys in `rss_keys`: of the first and the other ports for IPv4, then for IPv6
    cdef uint8_t rss_keys[4][40]

    cdef unsigned home(self, const an_key *key) noexcept
    cdef unsigned rss_entry(self, const an_key *key) noexcept
    cdef int hand_off(self, an_packet *p, int to) except -1
    cdef bint push(self, an_packet *p, int to) except -1
    cdef int wake(self) except -1
