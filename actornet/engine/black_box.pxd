from libc.stdint cimport uint64_t

from actornet.engine.types cimport an_key

cdef extern from "black_box.h" nogil:
    enum:
        AN_SHUNNED

    struct an_shunned:
        an_key key
        uint64_t seen_ns
        uint64_t due

    struct an_black_box:
        uint64_t handler
        an_key key
        uint64_t fatal
        uint64_t shunned_count
        an_shunned *shunned

    void an_black_box_enter(an_black_box *box, const an_key *key, int phase)
    void an_black_box_leave(an_black_box *box)


cdef class BlackBox:
    cdef an_black_box *boxes
    cdef size_t boxes_bytes
    cdef int cores
    cdef readonly int fd

    cdef an_black_box *box(self, int core) except NULL


cdef int shun(an_black_box *box, const an_key *key, uint64_t now_ns, uint64_t due) noexcept
cdef an_shunned *shunned(an_black_box *box, const an_key *key, uint64_t now_ns) noexcept
