from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from actornet.engine.flow_base cimport Ask, FlowBase
from actornet.engine.ring cimport Ring
from actornet.engine.types cimport an_key

cdef extern from "msgpack.h" nogil:
    enum:
        AN_MP_NIL, AN_MP_ARRAY, AN_MP_HEAD_MAX

    struct an_mp:
        const uint8_t *at
        const uint8_t *end

    uint8_t *an_mp_big_endian(uint8_t *out, uint64_t value, int bytes)
    uint8_t *an_mp_head(uint8_t *out, uint8_t first, uint64_t value, int bytes)
    uint8_t *an_mp_uint(uint8_t *out, uint64_t value)
    uint8_t *an_mp_str(uint8_t *out, const void *text, uint32_t length)
    uint8_t *an_mp_bin(uint8_t *out, const void *bytes, uint32_t length)
    uint8_t *an_mp_bin_head(uint8_t *out, uint32_t length)
    uint64_t an_mp_take(an_mp *mp, int bytes)
    uint8_t *an_mp_content_head(uint8_t *out, uint8_t first, uint32_t length)
    uint64_t an_mp_read_uint(an_mp *mp)
    const uint8_t *an_mp_read_content(an_mp *mp, uint8_t kind, size_t *length)
    const uint8_t *an_mp_read_str(an_mp *mp, size_t *length)
    void an_mp_skip(an_mp *mp)
    const uint8_t *an_mp_read_bin(an_mp *mp, size_t *length)

cdef enum:
    KEY_BYTES_MAX = 128          # head, five-tuple with two addresses as text, port


cdef class OwnerLink:
    cdef Ring requests
    cdef Ring replies
    cdef readonly uint64_t sequence
    cdef public bint attached
    cdef dict asks               # sequence number -> Ask on its way
    cdef list backlog            # messages that were taken while a request had to wait for room
    cdef uint8_t *buffer
    cdef size_t buffer_bytes

    cdef int _push(self, const uint8_t *data, size_t length) except -1
    cdef int _treat(self, bytes data) except -1


cdef uint8_t *write_key(uint8_t *out, const an_key *key) noexcept
cdef uint8_t *write_five_tuple(uint8_t *out, const an_key *key) noexcept
cdef uint8_t *write_address(uint8_t *out, const uint8_t *address, int version) noexcept
cdef bint skip_flow(an_mp *mp) noexcept
cdef uint64_t take_number(an_mp *mp) noexcept
cdef const uint8_t *take_content(an_mp *mp, uint8_t kind, size_t *length) noexcept
cdef uint8_t *write_note(uint8_t *out, FlowBase flow) noexcept
cpdef bint is_packet(bytes kept)
cpdef bint says_closes(bytes kept)
cdef uint64_t asked_before(bytes note) noexcept
cdef bytes encoded_args(Ask ask, tuple args)
cpdef bytes ask_request(FlowBase flow, str owner, str message, bytes args)
cpdef tuple read_ask(bytes request)
cpdef bytes ask_body(bytes request, uint64_t reply_hash)
cdef bytes read_flow_body(bytes record, size_t offset, uint64_t *incarnation, uint64_t *asks)
cdef tuple read_ask_body(bytes record, size_t offset, uint64_t *reply_hash)
cdef tuple take_ask(an_mp *mp)
