"""Messages to owners as bytes: what a core writes, what the owner system reads of it, and the replies.

An ask's request is the msgpack array `[1, five-tuple or nil, port, incarnation, number, owner, message, args, packet or
nil]`; an ASK record's body is the same without the 1, with the reply's hash at its end. So the body is made by copying,
and what the owner system looks up are slices: `key` is the bytes of five-tuple and port, `target` those of owner and
message. The reply is `[11, sequence number, reply]`.

`packet` is there in the first ask of a flow that the log does not know yet: if the flow's core dies before the flow is
saved, whoever goes on treats that packet again. It is as `actornet.engine.unsent` writes packets. Of a flow that the log knows
the first ask of a handler has a note in that place, if there is anything to note: CLOSES from `on_close`, else GOES_ON, and
behind it how often the flow had asked before (4 bytes, big-endian), if that is more than its record says: those asks were made by
handlers that have ended since, and left nothing to save, so none of them is asked again (G5).
"""

import time

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.unicode cimport PyUnicode_AsUTF8AndSize
from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy

from actornet.engine.core cimport Core
from actornet.engine.flow_base cimport MARK_ASKED, MARK_ON_CLOSE, MARK_SAVED, Ask, FlowBase
from actornet.engine.ring cimport Ring
from actornet.engine.types cimport an_key, an_packet
from actornet.engine.unsent cimport PACKET_HEAD, write_packet
from actornet.engine.wire cimport address_chars, an_entry_key

import msgspec

from actornet.errors import RingError, UsageError
from actornet.limits import MESSAGE_BYTES_MAX, PACKET_KEPT_BYTES_MAX


cdef enum:
    ASK = 1
    REPLY = 11
    FIELDS = 9
    REPLY_HEAD_MAX = 2 + 2 * 9   # type, sequence number, length
    POLL_MESSAGES = 256
    SMALL_REQUEST_BYTES = 2048

cdef double FULL_SLEEP_S = 50e-6
cdef uint32_t packet_kept_max = PACKET_KEPT_BYTES_MAX
cdef Py_ssize_t message_bytes_max = MESSAGE_BYTES_MAX

CLOSES, GOES_ON = b"\0", b"\1"
"""In place of a packet, of a flow that the log knows: `on_close` has asked, or another handler. If the core dies, whoever goes on
closes the flow that was closing."""

cdef enum:
    NOTE_BYTES_MAX = 5  # of such a note; a packet is longer

_encode_args = msgspec.msgpack.Encoder().encode


cdef bytes encoded_args(Ask ask, tuple args):
    """An ask's arguments as a msgpack list. Raises UsageError for more than MESSAGE_BYTES_MAX."""
    cdef bytes encoded = _encode_args(args)
    if PyBytes_GET_SIZE(encoded) > message_bytes_max:
        raise UsageError(
            f"{ask.owner}.{ask.message.name}: the arguments have {len(encoded)} bytes; {message_bytes_max} is the most")
    return encoded


cpdef bytes ask_request(FlowBase flow, str owner, str message, bytes args):
    """A message to an owner, `args` a msgpack list; `flow` is None when the sender is no flow."""
    cdef uint8_t room[SMALL_REQUEST_BYTES]
    cdef size_t most = request_bytes_max(flow, owner, message, args)
    cdef bytes request
    cdef uint8_t *begin = room
    if most > SMALL_REQUEST_BYTES:
        request = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>most)
        begin = <uint8_t *>PyBytes_AS_STRING(request)
    return (<const char *>begin)[:write_request(begin, flow, owner, message, args) - begin]


def is_ask(bytes message) -> bool:
    """Whether a core's message is an ask's request."""
    cdef const uint8_t *data = <const uint8_t *>PyBytes_AS_STRING(message)
    return PyBytes_GET_SIZE(message) > 2 and data[0] == AN_MP_ARRAY + FIELDS and data[1] == ASK


cpdef tuple read_ask(bytes request):
    """Of a request: key, incarnation, number, target, args, packet; RingError for other bytes.

    The key is empty when the sender is no flow, the packet when there is none.
    """
    cdef an_mp mp
    cdef tuple found
    assert request is not None
    mp.at = <const uint8_t *>PyBytes_AS_STRING(request)
    mp.end = mp.at + PyBytes_GET_SIZE(request)
    if an_mp_take(&mp, 1) != AN_MP_ARRAY + FIELDS or an_mp_take(&mp, 1) != ASK:
        raise RingError("request ring: a message is no ask; the node's processes differ in version")
    found = take_ask(&mp)
    if mp.at == NULL or mp.at != mp.end:
        raise RingError("request ring: an ask cannot be read; the node's processes differ in version")
    return found


cdef tuple read_ask_body(bytes record, size_t offset, uint64_t *reply_hash):
    """The same of an ASK record, whose body begins at `offset`, and the hash of the reply; None for other bytes."""
    cdef an_mp mp
    cdef tuple found
    assert <size_t>PyBytes_GET_SIZE(record) >= offset
    mp.at = <const uint8_t *>PyBytes_AS_STRING(record) + offset
    mp.end = <const uint8_t *>PyBytes_AS_STRING(record) + PyBytes_GET_SIZE(record)
    if an_mp_take(&mp, 1) != AN_MP_ARRAY + FIELDS:
        return None
    found = take_ask(&mp)
    reply_hash[0] = an_mp_read_uint(&mp)
    return found if mp.at != NULL and mp.at == mp.end else None


cdef tuple take_ask(an_mp *mp):
    """What a request and a record have in common; `mp.at` is NULL behind other bytes."""
    cdef const uint8_t *begin = mp.at
    cdef const uint8_t *target
    cdef const uint8_t *args
    cdef const uint8_t *packet = NULL
    cdef size_t length, packet_bytes = 0
    cdef uint64_t incarnation, number
    cdef bytes key
    if skip_flow(mp):
        take_number(mp)
        key = PyBytes_FromStringAndSize(<const char *>begin, mp.at - begin) if mp.at != NULL else b""
    else:
        an_mp_read_uint(mp)
        key = b""
    incarnation = an_mp_read_uint(mp)
    number = an_mp_read_uint(mp)
    target = mp.at
    an_mp_read_str(mp, &length)
    an_mp_read_str(mp, &length)
    begin = mp.at
    args = an_mp_read_bin(mp, &length)
    if mp.at != NULL and mp.at < mp.end and mp.at[0] == AN_MP_NIL:
        an_mp_take(mp, 1)
    else:
        packet = an_mp_read_bin(mp, &packet_bytes)
    if mp.at == NULL:
        return None
    return (
        key, incarnation, number,
        PyBytes_FromStringAndSize(<const char *>target, begin - target),
        PyBytes_FromStringAndSize(<const char *>args, <Py_ssize_t>length),
        PyBytes_FromStringAndSize(<const char *>packet, <Py_ssize_t>packet_bytes) if packet != NULL else b"",
    )


cpdef bytes ask_body(bytes request, uint64_t reply_hash):
    """The body of the ASK record for a request that `read_ask` has read."""
    cdef Py_ssize_t length = PyBytes_GET_SIZE(request) - 2
    cdef bytes body = PyBytes_FromStringAndSize(NULL, 1 + length + AN_MP_HEAD_MAX)
    cdef uint8_t *out = <uint8_t *>PyBytes_AS_STRING(body)
    out[0] = AN_MP_ARRAY + FIELDS
    memcpy(out + 1, PyBytes_AS_STRING(request) + 2, length)
    an_mp_head(out + 1 + length, 0xcf, reply_hash, 8)
    return body


cdef bytes read_flow_body(bytes record, size_t offset, uint64_t *incarnation, uint64_t *asks):
    """Of an encoded `FlowBody`, which begins at `offset`: the `flow_key`, and two of its numbers.

    None for other bytes, and for those that msgspec would not write: equal bodies are equal bytes.
    """
    cdef an_mp mp
    cdef const uint8_t *begin
    cdef const uint8_t *end
    cdef size_t length
    assert <size_t>PyBytes_GET_SIZE(record) >= offset
    mp.at = <const uint8_t *>PyBytes_AS_STRING(record) + offset
    mp.end = <const uint8_t *>PyBytes_AS_STRING(record) + PyBytes_GET_SIZE(record)
    begin = mp.at + 1
    if an_mp_take(&mp, 1) != AN_MP_ARRAY + 5 or not skip_flow(&mp):
        mp.at = NULL
    take_number(&mp)
    end = mp.at
    incarnation[0] = take_number(&mp)
    asks[0] = take_number(&mp)
    take_content(&mp, 0xc4, &length)
    if mp.at == NULL or mp.at != mp.end:
        return None
    return PyBytes_FromStringAndSize(<const char *>begin, end - begin)


def ask_reply(uint64_t sequence, bytes reply) -> bytes:
    """The reply to the request with this sequence number, as it is sent."""
    cdef uint8_t head[REPLY_HEAD_MAX]
    return (<const char *>head)[:write_reply_head(head, sequence, reply) - head] + reply


def push_reply(Ring ring, uint64_t sequence, bytes reply) -> bool:
    """Send `ask_reply`. False: the ring is full."""
    cdef uint8_t head[REPLY_HEAD_MAX]
    cdef size_t length = write_reply_head(head, sequence, reply) - head
    return ring.push_bytes(
        head, length, <const uint8_t *>PyBytes_AS_STRING(reply), <size_t>PyBytes_GET_SIZE(reply)
    ) == 1


cdef class OwnerLink:
    """A core's end of the rings to its owner system; a subclass says what other messages mean.

    `sequence` counts the requests that are answered or logged; `ask`, `save` and `close` return it: the commit word must
    reach it before outputs may leave. Until `attached` replies are those to a process before this one, and are dropped.
    """

    def __cinit__(self, Ring requests not None, Ring replies not None, *args):
        self.requests, self.replies = requests, replies
        self.asks = {}
        self.backlog = []

    def __dealloc__(self):
        free(self.buffer)

    def ask(self, FlowBase actor, Ask ask, tuple args):
        """Send a flow's message to an owner."""
        cdef bytes encoded = encoded_args(ask, args)
        cdef str message = ask.message.name
        cdef size_t most = request_bytes_max(actor, ask.owner, message, encoded)
        cdef uint8_t *buffer
        if most > self.buffer_bytes:
            buffer = <uint8_t *>realloc(self.buffer, most)
            if buffer == NULL:
                raise MemoryError
            self.buffer, self.buffer_bytes = buffer, most
        end = write_request(self.buffer, actor, ask.owner, message, encoded)
        self._push(self.buffer, end - self.buffer)
        self.sequence += 1
        self.asks[self.sequence] = ask
        return self.sequence

    def push(self, bytes message not None, bint counted=True):
        """Send a message; returns the sequence number, which it has if it is `counted`."""
        self._push(<const uint8_t *>PyBytes_AS_STRING(message), <size_t>PyBytes_GET_SIZE(message))
        self.sequence += counted
        return self.sequence

    def flush(self):
        """Called once per burst: wake the owner system if it sleeps."""
        self.requests.wake()

    def poll(self, bint all=True):
        """Treat what the owner system sent; if not `all` of it, as much as takes a few milliseconds."""
        cdef list messages
        cdef bint more = True
        while more:
            more = all
            messages = self.backlog or self.replies.pop_many(POLL_MESSAGES)
            if not messages:
                return
            self.backlog = []
            for message in messages:
                self._treat(<bytes>message)

    def unheard(self, ask):
        """An ask has failed that nobody waits for, so far."""

    def heard(self, data):
        """The owner system sent something else than a reply."""
        raise NotImplementedError

    cdef int _push(self, const uint8_t *data, size_t length) except -1:
        """The ring is bounded: when it is full the core waits here, which is how back-pressure reaches its queue."""
        while not self.requests.push_bytes(data, length, NULL, 0):
            self.requests.wake()
            self.backlog += self.replies.pop_many(POLL_MESSAGES)  # the owner system may be waiting for room there
            time.sleep(FULL_SLEEP_S)
        return 0

    cdef int _treat(self, bytes data) except -1:
        cdef an_mp mp
        cdef const uint8_t *reply
        cdef size_t length
        cdef uint64_t sequence
        cdef Ask ask
        mp.at = <const uint8_t *>PyBytes_AS_STRING(data)
        mp.end = mp.at + PyBytes_GET_SIZE(data)
        if an_mp_take(&mp, 1) != AN_MP_ARRAY + 3 or an_mp_take(&mp, 1) != REPLY:
            self.heard(data)
            return 0
        sequence = an_mp_read_uint(&mp)
        reply = an_mp_read_bin(&mp, &length)
        if mp.at == NULL or mp.at != mp.end:
            raise RingError("reply ring: a reply cannot be read; the node's processes differ in version")
        if self.attached:
            ask = <Ask>self.asks.pop(sequence)
            ask.answer(PyBytes_FromStringAndSize(<const char *>reply, <Py_ssize_t>length))
            if ask.error is not None and not ask.waited and ask.future is None:
                self.unheard(ask)
        return 0


cdef uint8_t *write_reply_head(uint8_t *out, uint64_t sequence, bytes reply) noexcept:
    out = an_mp_uint(an_mp_head(out, AN_MP_ARRAY + 3, REPLY, 1), sequence)
    return an_mp_head(out, 0xc6, <uint64_t>PyBytes_GET_SIZE(reply), 4)


cdef an_packet *packet_kept(FlowBase flow) noexcept:
    """The packet that goes with the flow's next ask, or NULL."""
    cdef an_packet *packet = NULL
    if flow is not None and flow.core != NULL and flow.asks == 1 and not flow.marks & MARK_SAVED:
        packet = (<Core>flow.core).packet_of(flow)
    return packet if packet != NULL and packet.length <= packet_kept_max else NULL


cdef size_t request_bytes_max(FlowBase flow, str owner, str message, bytes args) except 0:
    cdef an_packet *packet = packet_kept(flow)
    cdef Py_ssize_t owner_bytes, message_bytes
    PyUnicode_AsUTF8AndSize(owner, &owner_bytes)
    PyUnicode_AsUTF8AndSize(message, &message_bytes)
    return <size_t>(
        2 + KEY_BYTES_MAX + 6 * AN_MP_HEAD_MAX + owner_bytes + message_bytes + PyBytes_GET_SIZE(args)
        + PACKET_HEAD + (packet.length if packet != NULL else 0)
    )


cdef uint8_t *write_request(uint8_t *out, FlowBase flow, str owner, str message, bytes args) except NULL:
    """Writes at most `request_bytes_max`; returns the end."""
    cdef Py_ssize_t length
    cdef const char *text
    cdef an_key key
    cdef an_packet *packet = packet_kept(flow)
    if flow is not None:
        if flow.core == NULL:
            raise RuntimeError("this flow is closed")
        key = an_entry_key(&(<Core>flow.core).flows.table.entries[flow.first])
    out = write_key(an_mp_head(out, AN_MP_ARRAY + FIELDS, ASK, 1), &key if flow is not None else NULL)
    out = an_mp_uint(out, flow.incarnation if flow is not None else 0)
    out = an_mp_uint(out, flow.asks if flow is not None else 0)
    text = PyUnicode_AsUTF8AndSize(owner, &length)
    out = an_mp_str(out, text, <uint32_t>length)
    text = PyUnicode_AsUTF8AndSize(message, &length)
    out = an_mp_str(out, text, <uint32_t>length)
    out = an_mp_bin(out, PyBytes_AS_STRING(args), <uint32_t>PyBytes_GET_SIZE(args))
    if packet != NULL:
        return write_packet(an_mp_bin_head(out, PACKET_HEAD + packet.length), packet)
    return write_note(out, flow)


cdef uint8_t *write_note(uint8_t *out, FlowBase flow) noexcept:
    """What the first ask of a handler says in place of a packet; nil if nothing."""
    cdef uint8_t note[NOTE_BYTES_MAX]
    cdef bint closes, behind
    if flow is None or not flow.marks & MARK_SAVED or flow.asks != flow.began + 1:
        return an_mp_head(out, AN_MP_NIL, 0, 0)
    closes, behind = flow.marks & MARK_ON_CLOSE != 0, flow.marks & MARK_ASKED != 0
    if not closes and not behind:
        return an_mp_head(out, AN_MP_NIL, 0, 0)
    note[0] = 0 if closes else 1
    an_mp_big_endian(note + 1, flow.began, 4)
    return an_mp_bin(out, note, NOTE_BYTES_MAX if behind else 1)


cpdef bint is_packet(bytes kept):
    """Whether what an ask came with in its packet's place is one."""
    return PyBytes_GET_SIZE(kept) > NOTE_BYTES_MAX


cpdef bint says_closes(bytes kept):
    """Whether it is the note of an `on_close`."""
    return 0 < PyBytes_GET_SIZE(kept) <= NOTE_BYTES_MAX and kept[0] == 0


cdef uint64_t asked_before(bytes note) noexcept:
    """How often a flow had asked before the handler whose first ask came with this in its packet's place; 0: not known."""
    cdef const uint8_t *at = <const uint8_t *>PyBytes_AS_STRING(note)
    if PyBytes_GET_SIZE(note) != NOTE_BYTES_MAX:
        return 0
    return <uint64_t>at[1] << 24 | at[2] << 16 | at[3] << 8 | at[4]


cdef uint8_t *write_key(uint8_t *out, const an_key *key) noexcept:
    """Five-tuple and port index; nil and 0 for NULL. At most KEY_BYTES_MAX."""
    out = write_five_tuple(out, key) if key != NULL else an_mp_head(out, AN_MP_NIL, 0, 0)
    return an_mp_uint(out, key.port if key != NULL else 0)


cdef uint8_t *write_five_tuple(uint8_t *out, const an_key *key) noexcept:
    """As `FiveTuple` is encoded; nil for the key of a packet that is not IP."""
    if key.version == 0:
        return an_mp_head(out, AN_MP_NIL, 0, 0)
    out = an_mp_uint(an_mp_head(out, AN_MP_ARRAY + 5, 0, 0), key.protocol)
    out = an_mp_uint(write_address(out, key.source, key.version), key.source_port)
    return an_mp_uint(write_address(out, key.destination, key.version), key.destination_port)


cdef uint8_t *write_address(uint8_t *out, const uint8_t *address, int version) noexcept:
    cdef char text[64]
    return an_mp_str(out, text, <uint32_t>address_chars(address, version, text))


cdef bint skip_flow(an_mp *mp) noexcept:
    """Whether a five-tuple is there and not nil."""
    cdef uint64_t first = an_mp_take(mp, 1)
    if first != AN_MP_ARRAY + 5:
        if first != AN_MP_NIL:
            mp.at = NULL
        return False
    take_number(mp)
    skip_address(mp)
    take_number(mp)
    skip_address(mp)
    take_number(mp)
    return True


cdef int skip_address(an_mp *mp) noexcept:
    """An address is ASCII: what is not may be no text at all, and msgspec has to say so."""
    cdef size_t length, i
    cdef const uint8_t *text = take_content(mp, 0xd9, &length)
    for i in range(length if text != NULL else 0):
        if text[i] >= 0x80:
            mp.at = NULL
    return 0


cdef uint64_t take_number(an_mp *mp) noexcept:
    """A number in its shortest form: bytes that are looked up, compared and hashed have no other."""
    cdef uint8_t room[AN_MP_HEAD_MAX]
    cdef const uint8_t *begin = mp.at
    cdef uint64_t value = an_mp_read_uint(mp)
    if mp.at != NULL and mp.at - begin != an_mp_uint(room, value) - room:
        mp.at = NULL
    return value


cdef const uint8_t *take_content(an_mp *mp, uint8_t kind, size_t *length) noexcept:
    """The content of a string (0xd9) or of bytes (0xc4), likewise."""
    cdef uint8_t room[AN_MP_HEAD_MAX]
    cdef const uint8_t *begin = mp.at
    cdef const uint8_t *content = an_mp_read_content(mp, kind, length)
    if content != NULL and content - begin != an_mp_content_head(room, kind, <uint32_t>length[0]) - room:
        mp.at = NULL
        return NULL
    return content
