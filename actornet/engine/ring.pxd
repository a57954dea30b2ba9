cimport cython
from libc.stdint cimport int64_t, uint8_t, uint64_t


cdef extern from "ring.h" nogil:
    enum:
        AN_RING_DAMAGED, AN_RING_TOO_LARGE, AN_RING_NAME_BYTES

    uint64_t AN_RING_MAGIC

    struct an_ring_page:
        char *name
        uint64_t head
        uint64_t tail
        uint64_t full

    struct an_ring:
        an_ring_page *page
        uint64_t capacity

    int an_ring_map(an_ring *ring, int fd)
    void an_ring_unmap(an_ring *ring)
    int an_ring_push(an_ring *ring, const uint8_t *a, size_t a_bytes, const uint8_t *b, size_t b_bytes)
    uint64_t an_ring_head(const an_ring *ring)
    int64_t an_ring_read(an_ring *ring, uint64_t position, const uint8_t **message, size_t *length)
    void an_ring_release(an_ring *ring, uint64_t position)
    int an_ring_peek(an_ring *ring, const uint8_t **message, size_t *length)
    void an_ring_advance(an_ring *ring)
    int an_ring_clear(an_ring *ring)
    uint64_t an_ring_used(const an_ring *ring)
    int an_ring_sleep_begin(an_ring *ring)
    void an_ring_sleep_end(an_ring *ring, int wake_fd)
    int an_ring_wake(an_ring *ring, int wake_fd)


cdef extern from "control_page.h" nogil:
    enum:
        AN_CORE_COUNTERS, AN_OWNER_COUNTERS
        AN_PASSIVE, AN_ACTIVE, AN_FENCED

    uint64_t AN_CONTROL_MAGIC, AN_NO_LEASE

    struct an_core_words:
        uint64_t committed
        uint64_t beat
        uint64_t *counters

    struct an_control_page:
        uint64_t magic
        uint64_t cores
        uint64_t role
        uint64_t epoch
        uint64_t followed
        uint64_t lease_until_ns
        uint64_t alert_until_ns
        uint64_t watermark
        uint64_t lsn_logged
        uint64_t lsn_applied
        uint64_t beat
        uint64_t *counters
        an_core_words *core

    uint64_t an_word_load(const uint64_t *word)
    void an_word_store(uint64_t *word, uint64_t value)
    void an_word_add(uint64_t *word, uint64_t value)
    int an_lease_holds(const uint64_t *lease_until_ns)


cdef int shared_file(str name, size_t size_bytes, bytes start) except -1


@cython.final
cdef class Ring:
    cdef an_ring ring
    cdef readonly str name
    cdef readonly int fd
    cdef readonly int wake_fd

    # Producer: 1 pushed, 0 full; RingError when the message could never fit.
    cdef int push_bytes(self, const uint8_t *a, size_t a_bytes, const uint8_t *b, size_t b_bytes) except -1 nogil
    # Consumer: the oldest message, valid until `advance`; NULL when there is none.
    cdef const uint8_t *peek(self, size_t *length) except? NULL nogil
    cdef void advance(self) noexcept nogil
    cpdef bint wake(self) noexcept nogil
    cpdef bint sleep_begin(self) noexcept nogil
    cpdef void sleep_end(self) noexcept nogil

    cdef int _refuse(self, int64_t result, size_t length) except -1 with gil


@cython.final
cdef class ControlPage:
    cdef an_control_page *page
    cdef size_t page_bytes
    cdef readonly int fd
    cdef readonly int cores

    # Words to be read and written by an_word_load, an_word_store and an_word_add; valid as long as the page.
    cdef uint64_t *committed_pointer(self, int core) except NULL
    cdef uint64_t *beat_pointer(self, int core) except NULL
    cdef uint64_t *counter_pointer(self, int core, int index) except NULL
    cdef uint64_t *owner_counter_pointer(self, int index) except NULL
    cdef uint64_t *lease_pointer(self) noexcept
    cdef const uint64_t *followed_pointer(self) noexcept

    cdef an_core_words *_core(self, int core) except NULL
