"""A flow as the log keeps it, as bytes: the same as msgspec makes of `actornet.flow.FlowState` and of `FlowBody`."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.unicode cimport PyUnicode_AsUTF8AndSize
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from actornet.engine.asks cimport (
    AN_MP_ARRAY, AN_MP_HEAD_MAX, AN_MP_NIL, KEY_BYTES_MAX, an_mp_bin_head, an_mp_head, an_mp_str, an_mp_uint, write_address,
    write_five_tuple, write_key,
)
from actornet.engine.core cimport Core
from actornet.engine.flow_base cimport FlowBase, core_of
from actornet.engine.types cimport (
    AN_DECREMENT_TTL, AN_DROP, AN_LINK_DESTINATION, AN_LINK_SOURCE, AN_LINK_VLAN, AN_PUNT_TCP, AN_SET_DESTINATION,
    AN_SET_DESTINATION_PORT, AN_SET_DSCP, AN_SET_LINK, AN_SET_SOURCE, AN_SET_SOURCE_PORT, AN_TERMS, an_entry, an_key,
    an_rewrite,
)
from actornet.engine.verdict cimport mac_text
from actornet.engine.wire cimport an_entry_key

import msgspec

from actornet.limits import KEYS_PER_FLOW_MAX, MESSAGE_BYTES_MAX, PORT_NAME_BYTES_MAX

cdef Py_ssize_t message_bytes_max = MESSAGE_BYTES_MAX

cdef enum:
    MP_FALSE = 0xc2
    MP_TRUE = 0xc3
    NAME_BYTES_MAX = 64          # limits.PORT_NAME_BYTES_MAX
    KEYS_MAX = 16                # limits.KEYS_PER_FLOW_MAX
    ADDRESS_BYTES_MAX = 64       # as text, with its head
    FORM_BYTES_MAX = 320         # terms, or a next hop, as msgspec encodes them
    OFFLOAD_BYTES_MAX = 9 + NAME_BYTES_MAX + 2 * ADDRESS_BYTES_MAX + 8 * AN_MP_HEAD_MAX + 2 * 18
    KEY_STATE_BYTES_MAX = KEY_BYTES_MAX + 9 + NAME_BYTES_MAX + OFFLOAD_BYTES_MAX + 1 + 2 * FORM_BYTES_MAX

assert NAME_BYTES_MAX == PORT_NAME_BYTES_MAX and KEYS_MAX == KEYS_PER_FLOW_MAX

_encode = msgspec.msgpack.Encoder().encode


def saved_state(FlowBase self) -> bytes:
    """The bytes that a flow record keeps: `restore_arguments` reads them."""
    cdef Core core = core_of(self)
    cdef object kind = type(self)
    cdef uint8_t room[KEYS_MAX * KEY_STATE_BYTES_MAX + 4 * AN_MP_HEAD_MAX]
    cdef uint8_t *out = write_head(room, self.keys)
    cdef bytes fields, state
    cdef Py_ssize_t length
    cdef uint32_t i = self.first
    cdef char *at
    if kind._read_fields is not None:
        fields = _encode(kind._read_fields(self))
    else:
        fields = _encode([getattr(self, name) for name in kind._replicated])
    length = PyBytes_GET_SIZE(fields)
    if length > message_bytes_max:
        self.check_fields()  # names the field
    for _ in range(self.keys):
        out = write_key_state(out, core, &core.flows.table.entries[i])
        i = core.flows.table.entries[i].next_key
    out = an_mp_uint(an_mp_uint(out, self.idle_ns), core.flows.revocations)
    state = PyBytes_FromStringAndSize(NULL, 1 + length + (out - room))
    at = PyBytes_AS_STRING(state)
    at[0] = <char>(AN_MP_ARRAY + 4)
    memcpy(at + 1, PyBytes_AS_STRING(fields), length)
    memcpy(at + 1 + length, room, out - room)
    return state


cpdef bytes flow_body(FlowBase flow):
    """The body of the FLOW record that saves the flow as it is."""
    cdef an_key key = an_entry_key(&core_of(flow).flows.table.entries[flow.first])
    cdef bytes state = saved_state(flow)
    cdef uint8_t head[KEY_BYTES_MAX + 4 * AN_MP_HEAD_MAX]
    cdef uint8_t *out = an_mp_head(head, AN_MP_ARRAY + 5, 0, 0)
    cdef bytes body
    out = write_key(out, &key)
    out = an_mp_bin_head(an_mp_uint(an_mp_uint(out, flow.incarnation), flow.asks), <uint32_t>PyBytes_GET_SIZE(state))
    body = PyBytes_FromStringAndSize(NULL, (out - head) + PyBytes_GET_SIZE(state))
    memcpy(PyBytes_AS_STRING(body), head, out - head)
    memcpy(PyBytes_AS_STRING(body) + (out - head), PyBytes_AS_STRING(state), PyBytes_GET_SIZE(state))
    return body


cdef uint8_t *write_head(uint8_t *out, int count) noexcept:
    """Of an array of up to 65535 items."""
    return an_mp_head(out, AN_MP_ARRAY + count, 0, 0) if count < 16 else an_mp_head(out, 0xdc, count, 2)


cdef uint8_t *write_text(uint8_t *out, str text) except NULL:
    cdef Py_ssize_t length
    cdef const char *chars = PyUnicode_AsUTF8AndSize(text, &length)
    return an_mp_str(out, chars, <uint32_t>length)


cdef uint8_t *write_form(uint8_t *out, object form) except NULL:
    return write_bytes(out, _encode(form))


cdef uint8_t *write_bytes(uint8_t *out, bytes encoded) except NULL:
    cdef Py_ssize_t length = PyBytes_GET_SIZE(encoded)
    assert length <= FORM_BYTES_MAX
    memcpy(out, PyBytes_AS_STRING(encoded), length)
    return out + length


cdef uint8_t *write_bool(uint8_t *out, bint value) noexcept:
    return an_mp_head(out, MP_TRUE if value else MP_FALSE, 0, 0)


cdef uint8_t *write_uint_or_nil(uint8_t *out, bint there, uint64_t value) noexcept:
    return an_mp_uint(out, value) if there else an_mp_head(out, AN_MP_NIL, 0, 0)


cdef uint8_t *write_key_state(uint8_t *out, Core core, const an_entry *e) except NULL:
    """As `actornet.flow.KeyState`."""
    cdef an_key key = an_entry_key(e)
    out = write_five_tuple(an_mp_head(out, AN_MP_ARRAY + 5 + (e.state & AN_TERMS != 0), 0, 0), &key)
    out = write_text(out, <str>core.port_names[e.port])
    out = write_offload(out, core, e) if core.flows.stands(e) else write_bool(out, False)
    out = write_bool(out, e.state & AN_PUNT_TCP != 0)
    out = write_bytes(out, core.neighbors.form(e.rewrite.adjacency))
    return write_form(out, core.flows.terms_form(e)) if e.state & AN_TERMS else out


cdef uint8_t *write_offload(uint8_t *out, Core core, const an_entry *e) except NULL:
    """As `encode_verdict` has the verdict."""
    cdef const an_rewrite *r = &e.rewrite
    cdef const uint8_t *source = <const uint8_t *>&r.source
    cdef const uint8_t *destination = <const uint8_t *>&r.destination
    if r.action == AN_DROP:
        return an_mp_head(out, AN_MP_NIL, 0, 0)
    if r.fields == 0:
        return write_text(an_mp_head(out, AN_MP_ARRAY + 1, 0, 0), <str>core.port_names[r.out_port])
    if e.version == 6 and e.extra != NULL:
        source, destination = e.extra.addresses, e.extra.addresses + 16
    out = an_mp_head(out, AN_MP_ARRAY + 7 + (3 if r.fields & AN_SET_LINK else 0), 0, 0)
    out = write_text(out, <str>core.port_names[r.out_port])
    out = write_address_or_nil(out, r.fields & AN_SET_SOURCE, source, e.version)
    out = write_uint_or_nil(out, r.fields & AN_SET_SOURCE_PORT, r.source_port)
    out = write_address_or_nil(out, r.fields & AN_SET_DESTINATION, destination, e.version)
    out = write_uint_or_nil(out, r.fields & AN_SET_DESTINATION_PORT, r.destination_port)
    out = write_uint_or_nil(out, r.fields & AN_SET_DSCP, r.dscp)
    out = write_bool(out, r.fields & AN_DECREMENT_TTL)
    if r.fields & AN_SET_LINK:
        out = write_form(out, mac_text(e.extra.link.source) if e.extra.link.fields & AN_LINK_SOURCE else None)
        out = write_form(out, mac_text(e.extra.link.destination) if e.extra.link.fields & AN_LINK_DESTINATION else None)
        out = write_uint_or_nil(out, e.extra.link.fields & AN_LINK_VLAN, e.extra.link.vlan)
    return out


cdef uint8_t *write_address_or_nil(uint8_t *out, bint there, const uint8_t *address, int version) noexcept:
    return write_address(out, address, version) if there else an_mp_head(out, AN_MP_NIL, 0, 0)
