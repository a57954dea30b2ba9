from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from actornet.engine.flow_base cimport FlowBase
from actornet.engine.types cimport an_entry, an_extra, an_key, an_rewrite, an_terms
from actornet.engine.verdict cimport Rewrite, Verdict
from actornet.engine.wire cimport an_table

cdef extern from "offload.h" nogil:
    uint32_t an_flow_from(const an_table *table, uint32_t index)
    bint an_revoked(const an_table *table, const an_entry *e)
    const uint8_t *an_addresses(const an_entry *e)

cdef extern from "terms.h" nogil:
    void an_terms_begin(an_terms *terms, uint64_t now_ns)
    bint an_terms_expired(const an_terms *terms, uint64_t now_ns)
    bint an_terms_conform(an_terms *terms, uint32_t bytes, uint64_t now_ns)
    bint an_terms_mirror(an_terms *terms, uint32_t bytes)


cdef class Flows:
    cdef an_table table
    cdef uint64_t revocations    # so many times have owners revoked all offloads
    cdef bint outdated           # what the running handler decides upon is from before the last time
    cdef uint64_t idle_from_ns   # no flow's silence counts before; UINT64_MAX: another core sees the packets
    cdef uint32_t hand           # where the search for a flow to evict has come to
    cdef void *core              # borrowed: the Core whose flows these are
    cdef tuple defaults          # offsets of slots, and values of a new flow's fields
    cdef tuple defaults_copied   # names and values of those that change in place

    cdef int open(self, uint32_t flows_max) except -1
    cdef uint32_t find(self, const an_key *key) noexcept
    cdef uint32_t find_at_any_port(self, object flow) except? 0
    cdef FlowBase begin(self, const an_key *key)
    cdef FlowBase create(self, const an_key *key)
    cdef int remove(self, FlowBase flow) except -1
    cdef bint add_key(self, FlowBase flow, const an_key *key, uint32_t index) noexcept
    cdef int set_state(self, FlowBase flow, uint8_t bit, bint on) except -1
    cdef int expire(self) except -1
    cdef bint ticks(self, uint64_t until_ns) noexcept
    cdef int pass_time(self, uint64_t until_ns) except -1
    cdef int make_room(self) except -1
    cdef uint64_t _idle_since_ns(self, FlowBase flow, uint64_t now_ns) noexcept
    cdef uint64_t last_seen_ns(self, FlowBase flow) noexcept
    cdef uint32_t _next_to_go(self) noexcept
    cdef int close_all(self, str reason) except -1
    cdef bint at_home(self, FlowBase flow) noexcept
    cdef int install(self, uint32_t index, Verdict verdict, bint punt, const an_terms *terms) except -1
    cdef int place(self, uint32_t index, an_rewrite *r, Rewrite rewrite, bint punt, const an_terms *terms) except -1
    cdef int withdraw(self, an_entry *e) noexcept
    cdef int end_offload(self, FlowBase flow, an_entry *e, int counter) except -1
    cdef bint stands(self, const an_entry *e) noexcept
    cdef bint decides(self, const an_entry *e) noexcept
    cdef object terms_form(self, const an_entry *e)
    cdef int revoke(self, uint64_t count) except -1
    cdef an_extra *extra(self, an_entry *e) except NULL
    cdef int restore(
        self, object flow, str port, uint64_t incarnation, uint32_t asks, object fields, object keys, uint64_t idle_ns,
        uint64_t generation
    ) except -1
    cdef FlowBase begin_restored(self, const an_key *key, uint64_t incarnation, uint32_t asks, uint64_t idle_ns)
    cdef bint restore_key(self, FlowBase actor, const an_key *key) except -1
    cdef int end_restored(self, FlowBase actor, bint complete) except -1
    cdef int asked(self, object flow, str port, uint32_t asks) except -1
    cdef int forget(self, object flow, str port) except -1
    cdef int redirect(self, object flow, str port, int to) except -1
    cdef int pass_on(self, const an_key *key, int to) except -1
    cdef int redirect_end(self, object flow, str port) except -1
    cdef list actors(self)

    cdef int _bind_reply(self, FlowBase flow, const an_key *key) except -1
    cdef uint32_t _insert(self, const an_key *key) noexcept
    cdef int _discard_held(self, FlowBase flow) except -1
    cdef int _free_keys(self, FlowBase flow) noexcept
    cdef int _free_entry(self, uint32_t index) noexcept
    cdef int _displace(self, const an_key *key) except -1


cdef bint make_terms(an_terms *out, uint64_t until_ns, object meter, object mirror) except -1
