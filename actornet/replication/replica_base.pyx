"""What a replica does for every ask and every flow that is saved; `replica.py` has all else, and says what it is about."""

from libc.stdint cimport uint32_t, uint64_t

from actornet.engine.asks cimport ask_body, asked_before, is_packet, read_ask, read_ask_body, read_flow_body, says_closes

import re
from collections import namedtuple

import msgspec
from xxhash import xxh3_64_intdigest

from actornet.engine.five_tuple import flow_key
from actornet.errors import RingError
from actornet.limits import ASKS_OPEN_PER_FLOW_MAX, MESSAGE_BYTES_MAX
from actornet.engine.records import HEADER_BYTES as RECORD_HEADER_BYTES
from actornet.engine.replies import ERROR, REPEATED, VALUE
from actornet.log.record import FlowBody, Kind, decode

cdef int ASK = Kind.ASK, FLOW = Kind.FLOW
cdef size_t HEADER_BYTES = RECORD_HEADER_BYTES
cdef uint32_t asks_open_max = ASKS_OPEN_PER_FLOW_MAX
cdef Py_ssize_t message_bytes_max = MESSAGE_BYTES_MAX

ERROR_TEXT_MAX = 500
ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")

_encode = msgspec.msgpack.Encoder().encode
cdef bytes head_value = _encode((VALUE, None))[:2], head_repeated = _encode((REPEATED, None))[:2]


Recorded = tuple[int, bytes, bytes, bytes]
"""An ask and its reply: number, target, args, reply."""


def error_reply(str type_name not None, str text not None) -> bytes:
    """An error as the flow will get it; object addresses, which differ from process to process, are cut out."""
    return _encode((ERROR, type_name, ADDRESS.sub("", text)[:ERROR_TEXT_MAX]))


cdef bytes repeated(bytes reply):
    """A recorded reply, as it is given again once offloads have been revoked."""
    return head_repeated + reply[2:] if reply.startswith(head_value) else reply


Asked = namedtuple("Asked", ("key", "before"))
"""How often a flow had asked when the handler began that has just asked for the first time."""


cdef class OpenAsks(list):
    """A flow's asks that no saved state covers, and their replies, as they came; one number is in it once.

    `packet` is the one that the first of them came with, or what the latest handler has noted in its place (`engine.asks`); empty
    if neither was kept. `before` is the number of asks that no handler will repeat: they are not in it. `highest` is the highest
    number in it, `newest` the newest incarnation of the flow that is known. What comes above the one and is not older than the
    other is new, and needs no search.
    """

    def __init__(self, uint64_t incarnation, tuple entry not None, bytes packet not None):
        self._begin(incarnation, entry, packet)

    cdef int _begin(self, uint64_t incarnation, tuple entry, bytes packet) except -1:
        self.append(entry)
        self._note(packet)
        self.newest = incarnation
        self.highest = entry[0]
        return 0

    cdef int _note(self, bytes packet) except -1:
        """What a snapshot has is all that there is: `before` is what the latest note says, and no earlier one."""
        self.packet, self.before = packet, asked_before(packet)
        if self.before:
            self[:] = [known for known in self if known[0] > self.before]
        return 0

    cpdef int remember(self, uint64_t incarnation, tuple entry, bytes packet) except -1:
        """Add one; a new incarnation that asks otherwise under a known number replaces."""
        cdef uint64_t number = entry[0]
        if packet:
            self._note(packet)
        if number > self.highest:
            self.highest = number
        else:
            self[:] = [known for known in self if known[0] != number]
        self.newest = incarnation
        self.append(entry)
        return 0


cdef class ReplicaBase:
    """The tables that asks and flows change, and how; see `Replica`."""

    def __init__(self, moment) -> None:
        self.flows, self.asks, self.unfinished, self.handlers, self.moment = {}, {}, {}, {}, moment

    @property
    def revocations(self) -> int:
        """How often owners have revoked all offloads; what was installed before the last of them is void."""
        return self.moment.revocations

    def _handle(self, bytes target not None, run, decode, normalise) -> None:
        """Let `run` treat the messages to this target."""
        self.handlers[target] = (run, decode, normalise)

    cpdef tuple execute_ask(self, bytes request, uint64_t time_ns):
        """Handle one message to an owner, as `AskRequest` encodes it: the ASK record's body and the reply.

        The record is that of `lsn` and `time_ns`, as they are then. There is none (None), and nothing changes, when the
        flow is given a recorded reply (G5) or is refused: its incarnation is stale, or too many of its asks are open.
        """
        cdef bytes key, target, args, packet, reply
        cdef bytes saved
        cdef uint64_t incarnation, number, newest = 0, covered = 0
        cdef OpenAsks recorded = None
        cdef bint doubtful
        key, incarnation, number, target, args, packet = read_ask(request)
        if key:
            recorded = self.asks.get(key)
            if recorded is not None:
                doubtful = number <= recorded.highest or incarnation < recorded.newest or (
                    len(recorded) >= asks_open_max)
            else:
                saved = self.flows.get(key)
                if saved is not None:
                    read_flow_body(saved, 0, &newest, &covered)
                doubtful = number <= covered or incarnation < newest
            if doubtful:
                known = self._known_reply(recorded, self.flows.get(key), incarnation, number, target, args)
                if known is not None:
                    return None, repeated(known) if self.moment.revocations else known
        time_ns = max(time_ns, self.time_ns)
        reply = self._run(target, args, self.lsn + 1, time_ns)
        self.lsn += 1
        self.time_ns = time_ns
        if key:
            self._record(recorded, key, incarnation, (number, target, args, reply), packet)
        return ask_body(request, xxh3_64_intdigest(reply)), reply

    cpdef int execute_save(self, bytes body, uint64_t time_ns) except -1:
        """Save a flow, as `FlowBody` encodes it. The record is that of `lsn` and `time_ns`, as they are then.

        Raises RingError for other bytes, and changes nothing.
        """
        cdef uint64_t incarnation = 0, asks = 0
        cdef bytes key
        assert body is not None
        key = read_flow_body(body, 0, &incarnation, &asks)
        if key is None:
            raise RingError("request ring: a flow's record cannot be read; the node's processes differ in version")
        self._save(key, body, incarnation, asks)
        self.lsn += 1
        self.time_ns = max(time_ns, self.time_ns)
        return 0

    cpdef object apply_record(self, tuple head, bytes data):
        """Do what an encoded record says, of which `head` is what `checked` found.

        Returns its body: encoded if it is that of a flow that is saved. Of an ask it is None, or `Asked` if it says how often the
        flow had asked before.

        Raises what `Replica.apply` raises.
        """
        cdef bytes key, target, args, packet, reply
        cdef uint64_t kind, epoch, lsn, time_ns, incarnation = 0, number = 0, expected = 0, actual, before
        cdef tuple ask
        cdef bytes body
        kind, _, epoch, lsn, time_ns, _ = head
        if lsn == self.lsn + 1 and epoch == self.epoch and data is not None:
            if kind == ASK:
                ask = read_ask_body(data, HEADER_BYTES, &expected)
                if ask is not None:
                    key, incarnation, number, target, args, packet = ask
                    try:
                        reply = self._run(target, args, lsn, time_ns)
                    except (msgspec.DecodeError, UnicodeDecodeError):  # there is no such owner, and its name is no text
                        decode(data)
                        raise
                    actual = xxh3_64_intdigest(reply)
                    if actual != expected:
                        self._diverged(lsn, target, expected, actual, reply)
                    if key:
                        self._record(self.asks.get(key), key, incarnation, (number, target, args, reply), packet)
                    self.lsn, self.time_ns = lsn, time_ns
                    before = asked_before(packet)
                    return Asked(key, before) if before else None
            elif kind == FLOW:
                key = read_flow_body(data, HEADER_BYTES, &incarnation, &number)
                if key is not None:  # else `decode` says what is wrong, or takes what we did not expect
                    body = data[HEADER_BYTES:]
                    self._save(key, body, incarnation, number)
                    self.lsn, self.time_ns = lsn, time_ns
                    return body
        record = decode(data)
        self.apply(record)
        return None if kind == ASK else _encode(record.body) if kind == FLOW else record.body

    def _apply_save(self, body) -> None:
        self._save(flow_key(body.flow, body.port), _encode(body), body.incarnation, body.asks)

    cdef int _record(self, OpenAsks recorded, bytes key, uint64_t incarnation, tuple entry, bytes packet) except -1:
        """Keep an ask and its reply until a saved state of the flow covers it."""
        if recorded is None:
            recorded = OpenAsks.__new__(OpenAsks)
            recorded._begin(incarnation, entry, packet)
            return self.keep_asks(key, recorded)
        recorded.remember(incarnation, entry, packet)
        return self.keep_asks(key, recorded) if packet else 0

    cpdef int keep_asks(self, bytes key, OpenAsks recorded) except -1:
        """These are the flow's asks."""
        self.asks[key] = recorded
        if is_packet(recorded.packet) or says_closes(recorded.packet):
            self.unfinished[key] = recorded
        else:
            self.unfinished.pop(key, None)
        return 0

    cpdef int forget_asks(self, bytes key) except -1:
        """None of the flow's asks will be repeated."""
        self.asks.pop(key, None)
        self.unfinished.pop(key, None)
        return 0

    def _reply_to(self, bytes key, bytes target not None, bytes args not None, uint64_t incarnation, uint64_t number,
                  bytes packet not None, uint64_t lsn, uint64_t time_ns) -> bytes:
        """The reply to an ask of the log, which is recorded if `key` names a flow that asked."""
        cdef bytes reply = self._run(target, args, lsn, time_ns)
        if key is not None:
            self._record(self.asks.get(key), key, incarnation, (number, target, args, reply), packet)
        return reply

    cdef bytes _run(self, bytes target, bytes args, uint64_t lsn, uint64_t time_ns):
        """Run a handler; its value or its error, encoded."""
        cdef tuple handler = self.handlers.get(target)
        cdef bytes reply
        if handler is None:
            return self._unknown(target)
        run, decode, normalise = handler
        moment = self.moment
        moment.lsn = lsn
        moment.time_ns = time_ns
        try:
            reply = _encode((VALUE, run(*decode(args))))
            if normalise is not None:
                reply = _encode(normalise(reply))
        except (MemoryError, KeyboardInterrupt):  # this machine's trouble, not the message's: it must not enter the history
            raise
        except BaseException as error:  # SystemExit, too: a handler ends no node
            reply = error_reply(type(error).__name__, str(error))
        finally:
            moment.time_ns = -1
        if len(reply) > message_bytes_max:
            return error_reply("OwnerError", f"the reply has {len(reply)} bytes; {message_bytes_max} is the most")
        return reply

    cdef int _save(self, bytes key, bytes body, uint64_t incarnation, uint64_t asks) except -1:
        cdef OpenAsks recorded = self.asks.get(key)
        if is_stale(incarnation, recorded, self.flows.get(key) if recorded is None else None):
            return 0
        self.flows[key] = body
        if recorded is None:
            return 0
        if recorded.highest <= asks:
            self.forget_asks(key)
        else:
            recorded[:] = [entry for entry in recorded if entry[0] > asks]
            recorded.newest = incarnation
        return 0


cpdef bint is_stale(uint64_t incarnation, OpenAsks recorded, bytes saved) except -1:
    """Whether a newer incarnation of the flow is known. `saved`: as in `flows`, or None."""
    cdef uint64_t newest = 0, asks = 0
    if recorded is not None:
        return incarnation < recorded.newest
    if saved is not None:
        read_flow_body(saved, 0, &newest, &asks)
    return incarnation < newest
