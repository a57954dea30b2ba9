"""The engine's C headers, for the other compiled modules, and keys to and from `FiveTuple`."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from actornet.engine.types cimport an_entry, an_key, an_packet, an_rewrite


cdef extern from "checksum.h" nogil:
    int an_csum_verify(const an_packet *packet)


cdef extern from "parse.h" nogil:
    void an_parse(an_packet *packet)
    bint an_is_discovery(const an_packet *packet)
    void an_parse_inner(an_packet *packet, uint8_t tunnels)


cdef extern from "toeplitz.h" nogil:
    uint32_t an_toeplitz(const uint8_t *key40, const uint8_t *data, int n)
    uint32_t an_rss_hash(const an_key *key)
    unsigned an_rss_core(unsigned entry, unsigned cores)
    unsigned an_rss_entry(const an_key *key)
    unsigned an_rss_entry_keyed(const uint8_t *key40, const an_key *key)


cdef extern from "rewrite.h" nogil:
    void an_rewrite_prepare(an_rewrite *rewrite, const an_key *key, const uint8_t *addresses)
    int an_rewrite_apply(an_packet *packet, const an_rewrite *rewrite, const uint8_t *addresses)


cdef extern from "flow_table.h" nogil:
    struct an_bucket:
        uint32_t spilled

    struct an_table:
        an_entry *entries
        an_bucket *buckets
        uint32_t bucket_mask
        uint64_t seed
        uint32_t entries_max
        uint32_t used
        uint32_t armed
        uint16_t generation
        uint32_t touched
        uint64_t tick

    enum:
        AN_TIMER_SLOTS
        AN_TIMER_TICK_SHIFT

    uint64_t an_hash(const an_key *key, uint64_t seed)
    int an_table_init(an_table *table, uint32_t entries_max, uint64_t seed, uint64_t now_ns)
    void an_table_free(an_table *table)
    int an_table_back(an_table *table)
    int an_table_wants(const an_table *table)
    void an_table_prefetch(const an_table *table, uint32_t hash)
    bint an_key_equal(const an_key *a, const an_key *b)
    bint an_entry_has(const an_entry *entry, const an_key *key)
    an_key an_entry_key(const an_entry *entry)
    void an_entry_begin_slow(an_entry *entry)
    void an_entry_returned(an_entry *entry, const void *verdict)
    uint32_t an_table_probe(const an_table *table, uint32_t hash, bint whole)
    uint32_t an_table_find(const an_table *table, const an_key *key, uint32_t hash)
    uint32_t an_table_find_probed(const an_table *table, const an_key *key, uint32_t hash, uint32_t probed)
    uint32_t an_table_insert(an_table *table, const an_key *key, uint32_t hash)
    void an_table_remove(an_table *table, uint32_t index)
    void an_timer_arm(an_table *table, uint32_t index, uint64_t deadline_ns)
    void an_timer_disarm(an_table *table, uint32_t index)
    uint32_t an_timer_advance(an_table *table, uint64_t now_ns, uint32_t *due, uint32_t limit)


cdef object five_tuple(const an_key *key)
cdef bint ipv4_of(const char *text, Py_ssize_t length, uint8_t *out) noexcept nogil
cdef int key_of(object flow, int port, an_key *out) except -1
cdef int address_of(object text, uint8_t *out) except -1
cdef int address_chars(const uint8_t *address, int version, char *text) noexcept nogil
cdef object address_text(const uint8_t *address, int version)
cdef Py_ssize_t slot_offset(object slot) except -1
cdef int number_of(object value, str name, int most) except -1
