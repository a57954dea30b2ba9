"""Flows from the log, read from their records' bytes into the flow table.

`restore_plain` takes the records that most flows have: IPv4, offloads without terms that forward, drop, or rewrite addresses,
ports, DSCP and TTL. It reads all of one, with bounds, before it changes anything, and leaves every other record, and those that
are wrong, to `Core.restore`, which makes objects of them. Both end in the same table.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.object cimport PyObject_GenericSetAttr
from cpython.unicode cimport PyUnicode_AsUTF8AndSize
from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memset

from actornet.engine.asks cimport (
    AN_MP_ARRAY, AN_MP_NIL, an_mp, an_mp_read_bin, an_mp_read_str, an_mp_read_uint, an_mp_skip, an_mp_take,
)
from actornet.engine.core cimport Core
from actornet.engine.flow_base cimport FlowBase
from actornet.engine.types cimport (
    AN_DECREMENT_TTL, AN_DROP, AN_FORWARD, AN_SET_DESTINATION, AN_SET_DESTINATION_PORT, AN_SET_DSCP, AN_SET_SOURCE,
    AN_SET_SOURCE_PORT, an_key, an_rewrite,
)
from actornet.engine.wire cimport ipv4_of, key_of

from actornet.limits import KEYS_PER_FLOW_MAX

cdef enum:
    MP_FALSE = 0xc2
    MP_TRUE = 0xc3
    MP_ARRAY_16 = 0xdc
    KEYS_MAX = 16  # limits.KEYS_PER_FLOW_MAX
    ICMP = 1

assert KEYS_MAX == KEYS_PER_FLOW_MAX

cdef struct saved_key:
    an_key key
    an_rewrite rewrite
    bint offloaded
    bint punt
    const uint8_t *next_hop  # encoded; NULL: none
    size_t next_hop_bytes


def restore_plain(Core core not None, flow, int port, uint64_t incarnation, uint32_t asks, bytes state not None, tell) -> bool:
    """Make a flow as its record says (G6); False, and nothing has changed, where the record is for `Core.restore`.

    The arguments are a `FlowBody`'s; `tell` is told of a field that is not of its type. A flow for which the table has no
    room is left out, and counted. Raises UsageError for fields that are none of this network function.
    """
    cdef an_mp mp
    cdef saved_key keys[KEYS_MAX]
    cdef an_key first
    cdef const uint8_t *fields
    cdef size_t fields_bytes
    cdef uint64_t idle_ns, generation, count, head
    cdef uint64_t i
    cdef FlowBase actor
    cdef bint complete = False
    mp.at = <const uint8_t *>PyBytes_AS_STRING(state)
    mp.end = mp.at + PyBytes_GET_SIZE(state)
    if an_mp_take(&mp, 1) != AN_MP_ARRAY + 4:
        return False
    fields = mp.at
    an_mp_skip(&mp)
    fields_bytes = mp.at - fields if mp.at != NULL else 0
    head = an_mp_take(&mp, 1)
    count = an_mp_take(&mp, 2) if head == MP_ARRAY_16 else head - AN_MP_ARRAY
    if mp.at == NULL or count > (KEYS_MAX if head == MP_ARRAY_16 else KEYS_MAX - 1):
        return False
    for i in range(count):
        if not read_key(core, &mp, &keys[i]):
            return False
    idle_ns, generation = an_mp_read_uint(&mp), an_mp_read_uint(&mp)
    if mp.at == NULL or mp.at != mp.end:
        return False
    values = core.nf.read_fields(PyBytes_FromStringAndSize(<const char *>fields, <Py_ssize_t>fields_bytes), tell)
    key_of(flow, port, &first)
    actor = core.flows.begin_restored(&first, incarnation, asks, idle_ns)
    if actor is None:
        return True
    try:
        for name, value in values:
            PyObject_GenericSetAttr(actor, name, value)
        for i in range(count):
            if not core.flows.restore_key(actor, &keys[i].key):
                return True
            if keys[i].offloaded and generation == core.flows.revocations:
                know_next_hop(core, &keys[i])
                core.flows.place(core.flows.find(&keys[i].key), &keys[i].rewrite, None, keys[i].punt, NULL)
        complete = True
    finally:
        core.flows.end_restored(actor, complete)
    return True


cdef int know_next_hop(Core core, saved_key *saved) except -1:
    """Its MAC address is in the record, so that no ARP is needed."""
    cdef bytes form
    if saved.next_hop == NULL or saved.rewrite.action == AN_DROP or not core.routed >> saved.rewrite.out_port & 1:
        return 0
    form = PyBytes_FromStringAndSize(<const char *>saved.next_hop, <Py_ssize_t>saved.next_hop_bytes)
    return core.neighbors.restore_form(saved.rewrite.out_port, form)


cdef bint read_key(Core core, an_mp *mp, saved_key *out) except -1:
    """As `actornet.flow.KeyState`; False: for others to read."""
    cdef int port
    cdef uint64_t parts, head
    memset(out, 0, sizeof(saved_key))
    parts = an_mp_take(mp, 1) - AN_MP_ARRAY
    if (parts != 5 and parts != 6) or not read_five_tuple(mp, &out.key):
        return False
    port = read_port(core, mp)
    if port < 0:
        return False
    out.key.port = <uint8_t>port
    if mp.at == NULL or mp.at == mp.end:
        return False
    if mp.at[0] == MP_FALSE:
        an_mp_take(mp, 1)
    elif not read_offload(core, mp, &out.rewrite):
        return False
    else:
        out.offloaded = True
    head = an_mp_take(mp, 1)
    if head != MP_FALSE and head != MP_TRUE:
        return False
    out.punt = head == MP_TRUE
    if not is_nil(mp) and not read_next_hop(mp, out):
        return False
    return parts == 5 or is_nil(mp)  # no terms


cdef bint read_next_hop(an_mp *mp, saved_key *out) noexcept:
    """An address and a MAC address: where they lie, as flows share them."""
    cdef size_t length
    out.next_hop = mp.at
    if an_mp_take(mp, 1) != AN_MP_ARRAY + 2:
        return False
    an_mp_read_str(mp, &length)
    an_mp_read_bin(mp, &length)
    if mp.at == NULL or length != 6:
        return False
    out.next_hop_bytes = mp.at - out.next_hop
    return True


cdef bint read_five_tuple(an_mp *mp, an_key *out) noexcept:
    """Of IPv4. What cannot be a key is left to `key_of`, which says why."""
    cdef uint64_t protocol, source_port, destination_port
    if an_mp_take(mp, 1) != AN_MP_ARRAY + 5:
        return False
    protocol = an_mp_read_uint(mp)
    if not read_ipv4(mp, out.source):
        return False
    source_port = an_mp_read_uint(mp)
    if not read_ipv4(mp, out.destination):
        return False
    destination_port = an_mp_read_uint(mp)
    if mp.at == NULL or protocol > 255 or source_port > 65535 or destination_port > 65535 or (
            protocol == ICMP and source_port != destination_port):
        return False
    out.protocol, out.version = <uint8_t>protocol, 4
    out.source_port, out.destination_port = <uint16_t>source_port, <uint16_t>destination_port
    return True


cdef bint read_ipv4(an_mp *mp, void *out) noexcept:
    cdef size_t length
    cdef const uint8_t *text = an_mp_read_str(mp, &length)
    return text != NULL and ipv4_of(<const char *>text, <Py_ssize_t>length, <uint8_t *>out)


cdef int read_port(Core core, an_mp *mp) except -2:
    """The index of the port that is named; -1: there is none, or no name."""
    cdef size_t length
    cdef Py_ssize_t name_bytes
    cdef const char *name
    cdef const uint8_t *text = an_mp_read_str(mp, &length)
    cdef int i
    for i in range(core.port_count if text != NULL else 0):
        name = PyUnicode_AsUTF8AndSize(<str>core.port_names[i], &name_bytes)
        if name == NULL:
            raise MemoryError("a port's name")
        if <size_t>name_bytes == length and memcmp(name, text, length) == 0:
            return i
    return -1


cdef bint read_offload(Core core, an_mp *mp, an_rewrite *out) except -1:
    """As `encode_verdict` has it; False: for `decode_verdict`."""
    cdef uint64_t head = an_mp_take(mp, 1)
    cdef int port
    if mp.at == NULL:
        return False
    if head == AN_MP_NIL:
        out.action = AN_DROP
        return True
    if head != AN_MP_ARRAY + 1 and head != AN_MP_ARRAY + 7:
        return False
    port = read_port(core, mp)
    if port < 0:
        return False
    out.action, out.out_port = AN_FORWARD, <uint8_t>port
    return head == AN_MP_ARRAY + 1 or read_rewrite(mp, out)


cdef bint read_rewrite(an_mp *mp, an_rewrite *out) noexcept:
    cdef uint64_t number
    if not read_end(mp, &out.fields, AN_SET_SOURCE, &out.source, AN_SET_SOURCE_PORT, &out.source_port):
        return False
    if not read_end(mp, &out.fields, AN_SET_DESTINATION, &out.destination, AN_SET_DESTINATION_PORT, &out.destination_port):
        return False
    if not is_nil(mp):
        out.fields |= AN_SET_DSCP
        number = an_mp_read_uint(mp)
        if number > 63:
            return False
        out.dscp = <uint8_t>number
    number = an_mp_take(mp, 1)
    if mp.at == NULL or (number != MP_FALSE and number != MP_TRUE):
        return False
    if number == MP_TRUE:
        out.fields |= AN_DECREMENT_TTL
    return True


cdef bint read_end(an_mp *mp, uint8_t *fields, int with_address, void *address, int with_port, uint16_t *port) noexcept:
    """An address and a port, each of which may be nil, or else sets its bit in `fields`."""
    cdef uint64_t number
    if not is_nil(mp):
        fields[0] |= <uint8_t>with_address
        if not read_ipv4(mp, address):
            return False
    if not is_nil(mp):
        fields[0] |= <uint8_t>with_port
        number = an_mp_read_uint(mp)
        if number > 65535:
            return False
        port[0] = <uint16_t>number
    return True


cdef bint is_nil(an_mp *mp) noexcept:
    """Whether a nil comes next, and is taken."""
    if mp.at == NULL or mp.at == mp.end or mp.at[0] != AN_MP_NIL:
        return False
    mp.at += 1
    return True
