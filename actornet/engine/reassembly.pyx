"""One direction of a TCP connection: its bytes in order (RFC 9293 section 3.10.7.4), and what was changed in them.

Pure: sequence numbers and bytes in, segments out; no packets, no clock. Numbers are compared modulo 2**32.

Overlap: the bytes that came first win, in what waits and in what was delivered. What waits for a gap is bounded
(`STREAM_QUEUE_BYTES_MAX`, `STREAM_QUEUE_SEGMENTS_MAX`); beyond it `full` is set and the segment is not taken.

Edits: delivered bytes `[seq, seq + removed)` may have been replaced by others. `out` takes a sequence number of the sender
to the receiver's numbering, `back` takes one of the receiver's acknowledgements to the sender's; `again` edits a
retransmission as the original was. An edit is kept until it is acknowledged; then only its difference in length counts.
"""

from actornet.limits import (
    STREAM_EDIT_BYTES_MAX, STREAM_EDITS_MAX, STREAM_KEPT_BYTES_MAX, STREAM_QUEUE_BYTES_MAX, STREAM_QUEUE_SEGMENTS_MAX,
)

cdef uint32_t queue_bytes_max = STREAM_QUEUE_BYTES_MAX
cdef Py_ssize_t queue_segments_max = STREAM_QUEUE_SEGMENTS_MAX
cdef Py_ssize_t kept_bytes_max = STREAM_KEPT_BYTES_MAX
cdef Py_ssize_t edits_max = STREAM_EDITS_MAX
cdef uint32_t edit_bytes_max = STREAM_EDIT_BYTES_MAX

DEF UNKNOWN = 1 << 29  # so far back is where a stream begins whose place we do not know yet
DEF WINDOW_MAX = 1 << 30  # so much may be on its way (RFC 7323 section 2.3)
DEF FLOOR_STEP = 1 << 29  # a saved floor must stay within half the sequence space


cdef inline int32_t diff(uint32_t a, uint32_t b) noexcept:
    """How far `a` is behind `b`."""
    return <int32_t>(a - b)


cdef uint32_t end_of(tuple edit) except? 0:
    """The first byte behind what an edit has replaced."""
    return <uint32_t>edit[0] + <uint32_t>edit[1]


cdef Segment segment_of(uint32_t seq, bytes data, bint fin, object carrier, int direction):
    cdef Segment segment = Segment.__new__(Segment)
    segment.seq, segment.data, segment.fin = seq, data, fin
    segment.carrier, segment.direction = carrier, direction
    return segment


cdef class Segment:
    """Bytes of one packet that have come in order and were not delivered before.

    `missing` bytes before them have been lost to us; `carrier` is what came with them; `replaced` what goes in their place.
    """

    cdef uint32_t end(self) noexcept:
        return self.seq + <uint32_t>len(self.data) + self.fin


cdef class Half:
    """`inline`: nothing passes before it was delivered, and delivered bytes are kept until acknowledged, so that a
    retransmission that differs does not get past."""

    def __init__(self, bint inline=False, int direction=0):
        self.inline, self.direction = inline, direction
        self.queue, self.edits, self.kept = [], [], bytearray()

    cpdef int begin(self, uint32_t seq) except -1:
        """The next byte has this number: behind a SYN, or wherever the stream is joined."""
        self.started, self.ended, self.full, self.heard = True, False, False, False
        if self.recovering:  # what was decided stays so; what follows waits until the receiver says how far it has come
            if self.edits:
                seq = end_of(self.edits[-1])
            else:
                seq = self.floor if self.has_floor else seq - UNKNOWN
        self.next = self.kept_seq = self.acknowledged = seq
        self.queue, self.queued_bytes, self.kept = [], 0, bytearray()
        return 0

    def restart(self, uint32_t seq) -> None:
        """A new connection with the same five-tuple: nothing of the old one counts."""
        self.changed = self.changed or self.edited
        self.edits, self.edit_bytes, self.base = [], 0, 0
        self.edited = self.has_floor = self.recovering = self.resumed = False
        self.begin(seq)
        self.heard = True  # before a SYN there is nothing

    cdef bint is_fresh(self) noexcept:
        """Whether a SYN is all that has come."""
        return self.started and self.heard and self.next == self.acknowledged and not (
            self.edited or self.ended or self.recovering or self.queue)

    def resume(self) -> None:
        """Another core has begun this stream: the receiver's first acknowledgement tells where to go on, those that come later
        how much further: the first may have been on its way, or sent over a gap, and all that the receiver has was passed."""
        self.recovering = self.resumed = True

    cdef uint32_t probe(self, uint32_t seq):
        """A number, at or before that of the first byte that the receiver lacks, while `recovering`; `seq` was sent."""
        return self.next if self.edits or self.has_floor else seq

    # -- bytes in order ---------------------------------------------------------------------------------------------

    cpdef list receive(self, uint32_t seq, bytes data, bint fin, object carrier):
        """Take a segment; returns those that can be delivered now. `full` says that it was not taken."""
        cdef uint32_t length = <uint32_t>len(data)
        cdef int32_t old
        cdef Segment segment
        self.full = False
        if self.ended:
            return []
        old = diff(self.next, seq)
        if old >= <int32_t>(length + fin):
            return []
        if old > 0:
            seq, data = self.next, data[old:]
            length -= <uint32_t>old
        if len(self.edits) >= edits_max or self.edit_bytes >= edit_bytes_max:
            self.full = True  # until the receiver has acknowledged some
            return []
        if not self.queue and seq == self.next:
            segment = segment_of(seq, data, fin, carrier, self.direction)
            self._deliver(segment)
            return [segment]
        if seq != self.next and (
            self.queued_bytes + length > queue_bytes_max or len(self.queue) >= queue_segments_max or (
                diff(seq, self.next) > 1 << 30)
        ):
            if self.inline or not self.queue:
                self.full = True
                return []
            return self._skip((<Segment>self.queue[0]).seq) + self.receive(seq, data, fin, carrier)
        fin = self._check_fin(seq + length, fin, seq == self.next)
        self.queue = self._insert(seq, data, fin, carrier)
        return self._ready()

    cdef bint _check_fin(self, uint32_t end, bint fin, bint in_order) except -1:
        """No FIN has bytes behind it: its receiver cannot have taken such a one, it was beyond its window. One that is in order
        was. Returns whether a FIN at `end` stands; those in the queue that do not are taken out."""
        cdef Segment held
        cdef Py_ssize_t i
        for i in range(len(self.queue) - 1, -1, -1):
            held = self.queue[i]
            if not in_order and held.data and diff(held.seq + <uint32_t>len(held.data), end) > 0:
                fin = False
            if held.fin and diff(end, held.end()) >= 0:
                if held.data:
                    self.queue[i] = segment_of(held.seq, held.data, False, held.carrier, held.direction)
                else:
                    del self.queue[i]
        return fin

    cdef bint holds(self, object carrier) noexcept:
        """Whether bytes wait that came with it."""
        cdef Segment held
        for held in self.queue:
            if held.carrier is carrier:
                return True
        return False

    cdef list _insert(self, uint32_t seq, bytes data, bint fin, object carrier):
        """The queue with the segment's parts in its holes."""
        cdef uint32_t at = seq, end = seq + <uint32_t>len(data) + fin
        cdef uint32_t upto
        cdef Segment held
        cdef list merged = []
        cdef bint last
        for held in self.queue + [None]:
            last = held is None or diff(held.seq, end) >= 0
            upto = end if last else held.seq
            if diff(upto, at) > 0:
                piece = segment_of(at, data[at - seq:upto - seq], fin and upto == end, carrier, self.direction)
                self.queued_bytes += <uint32_t>len(piece.data)
                merged.append(piece)
                at = upto
            if held is not None:
                merged.append(held)
                if diff(held.end(), at) > 0:
                    at = held.end()
        return merged

    cdef list _ready(self):
        cdef Segment segment
        cdef Py_ssize_t count = 0
        for segment in self.queue:
            if segment.seq != self.next or self.ended:
                break
            self.queued_bytes -= <uint32_t>len(segment.data)
            self._deliver(segment)
            count += 1
        ready = self.queue[:count]
        if self.ended:
            self.queue, self.queued_bytes = [], 0  # nothing comes behind a FIN
        elif count:
            self.queue = self.queue[count:]
        return ready

    cdef int _deliver(self, Segment segment) except -1:
        cdef Py_ssize_t beyond
        self.next = segment.end()
        self.ended = segment.fin
        if self.resumed and not self.recovering and diff(self.next, self.resumed_at) > WINDOW_MAX:
            self.resumed = False
        if self.inline:
            self.kept += segment.data
            beyond = len(self.kept) - kept_bytes_max
            if beyond > 0:
                del self.kept[:beyond]
                self.kept_seq += <uint32_t>beyond
        return 0

    cdef list _skip(self, uint32_t to):
        """The bytes before `to` will not come: go on there."""
        cdef uint32_t missing = to - self.next
        cdef Segment first
        self.next = to
        ready = self._ready()
        if ready:
            first = <Segment>ready[0]
        else:
            first = segment_of(to, b"", False, None, self.direction)
            ready = [first]
        first.missing = missing
        return ready

    cpdef int pass_by(self, uint32_t end) except -1:
        """The bytes before `end` went past without being looked at."""
        if diff(end, self.next) > 0:
            self.next = end
        return 0

    cpdef list flush(self):
        """What waits, in order but with its gaps; it waits no longer."""
        waiting, self.queue, self.queued_bytes = self.queue, [], 0
        return waiting

    # -- acknowledgements and edits ---------------------------------------------------------------------------------

    cpdef list acknowledge(self, uint32_t seq):
        """The receiver has everything before `seq` (the sender's numbering). Returns what becomes ready: unless inline,
        bytes that it has and we never saw are given up."""
        cdef int32_t done
        if self.recovering or (self.resumed and 0 < diff(seq, self.next) and not self.ended and (
                diff(seq, self.resumed_at) <= WINDOW_MAX)):
            return self._recover(seq)
        if not self.started:
            return []
        if diff(seq, self.next) > 0:
            if self.inline or diff(seq, self.next) > 1 << 30 or self.ended:
                return []
            self.acknowledged = seq
            return self._skip(seq if not self.queue or diff((<Segment>self.queue[0]).seq, seq) > 0
                              else (<Segment>self.queue[0]).seq)
        if diff(seq, self.acknowledged) < self.heard:
            return []
        self.heard = True
        self.acknowledged = seq
        done = diff(seq, self.kept_seq)
        if self.inline and done > 0:
            del self.kept[:done]
            self.kept_seq = seq
        if self.edited:
            while self.edits and diff(end_of(self.edits[0]), seq) <= 0:
                _, removed, inserted = self.edits.pop(0)
                self.base += <uint32_t>len(inserted) - <uint32_t>removed
                self.edit_bytes -= <uint32_t>len(inserted)
                self.changed = True
            self.floor, self.has_floor = seq, True
            if diff(seq, self.floor_saved) > FLOOR_STEP or diff(seq, self.floor_saved) < 0:
                self.changed = True
        return []

    cdef list _recover(self, uint32_t seq):
        """An acknowledgement after a takeover: what it covers was decided and passed by another core."""
        if not self.started:
            self.begin(seq)
        waiting = self.flush()
        if 0 < diff(seq, self.next) <= WINDOW_MAX:
            self.next = self.kept_seq = seq
            self.kept = bytearray()
        if self.recovering:
            self.recovering, self.resumed_at = False, self.next
        ready = self.acknowledge(seq)
        for held in waiting:
            ready = ready + self.receive(held.seq, held.data, held.fin, held.carrier)
        return ready

    cpdef uint32_t out(self, uint32_t seq):
        """Where the receiver has the byte `seq`; inside of replaced bytes, where those begin that it has instead."""
        cdef uint32_t shift = self.base, at, removed
        for at_, removed_, inserted in self.edits:
            at, removed = at_, removed_
            if diff(seq, at) <= 0:
                break
            if diff(seq, at + removed) < 0:
                return at + shift
            shift += <uint32_t>len(inserted) - removed
        return seq + shift

    cpdef uint32_t back(self, uint32_t seq):
        """The sender's number for the receiver's `seq`; inside of inserted bytes, that of the first which they replace."""
        cdef uint32_t shift = self.base, at, removed, length
        if self.has_floor and diff(seq, self.floor + shift) < 0:
            return self.floor  # an old packet: its edits are forgotten, but the receiver has all up to there
        for at_, removed_, inserted in self.edits:
            at, removed, length = at_, removed_, <uint32_t>len(inserted)
            if diff(seq, at + shift + length) >= 0 and diff(seq, at + shift) >= 0:
                shift += length - removed
                continue
            if diff(seq, at + shift) > 0:
                return at
            break
        return seq - shift

    cpdef int replace(self, Segment segment, bytes data) except -1:
        """Let `data` go in place of the delivered segment's bytes. Segments are edited in order."""
        cdef const unsigned char *old = segment.data
        cdef const unsigned char *new = data
        cdef Py_ssize_t removed = len(segment.data), inserted = len(data), same = 0
        assert removed > 0
        if segment.data == data:
            return 0
        segment.replaced = data
        while removed > 1 and inserted > 0 and old[same] == new[same]:
            same, removed, inserted = same + 1, removed - 1, inserted - 1
        while removed > 1 and inserted > 0 and old[same + removed - 1] == new[same + inserted - 1]:
            removed, inserted = removed - 1, inserted - 1
        if not self.edited:
            self.floor = self.floor_saved = self.acknowledged
            self.has_floor = self.heard
        self.edits.append((segment.seq + <uint32_t>same & 0xffffffff, removed, data[same:same + inserted]))
        self.edit_bytes += <uint32_t>inserted
        self.edited = self.changed = True
        return 0

    cpdef tuple again(self, uint32_t seq, bytes data):
        """A retransmission of delivered bytes as the receiver was sent them: its sequence number and bytes.

        Of bytes that the receiver has acknowledged nothing is left when something was edited: what lies before an edit
        cannot be placed any more once the edit is forgotten. The number is then that of the first byte it lacks.
        """
        cdef uint32_t at, end = seq + <uint32_t>len(data), first, upto
        cdef int32_t before
        cdef bytearray original, result
        if self.edited and self.has_floor:
            before = diff(self.floor, seq)
            if before >= <int32_t>len(data):
                return (self.out(self.floor), b"")
            if before > 0:
                seq, data = self.floor, data[before:]
        original = bytearray(data)
        first = seq if diff(seq, self.kept_seq) > 0 else self.kept_seq
        upto = self.kept_seq + <uint32_t>len(self.kept)
        upto = end if diff(end, upto) < 0 else upto
        if diff(upto, first) > 0:
            known = self.kept[first - self.kept_seq:upto - self.kept_seq]
            if original[first - seq:upto - seq] != known:
                self.conflicts += 1
                original[first - seq:upto - seq] = known
        result, at = bytearray(), seq
        for edit_, removed, inserted in self.edits:
            first = edit_
            upto = first + <uint32_t>removed
            if diff(upto, at) <= 0:
                continue
            if diff(first, end) >= 0:
                break
            if diff(first, at) > 0:
                result += original[at - seq:first - seq]
            result += inserted
            at = upto
        if diff(end, at) > 0:
            result += original[at - seq:]
        return (self.out(seq), bytes(result))

    def save(self) -> tuple:
        """What a takeover needs of the edits: `load` takes it."""
        self.changed = False
        self.floor_saved = self.floor
        return (self.base, self.floor if self.has_floor else None, list(self.edits))

    def load(self, tuple saved) -> None:
        self.base, floor, edits = saved
        self.edits = [(seq, removed, inserted) for seq, removed, inserted in edits]
        self.edit_bytes = sum([len(inserted) for _, _, inserted in edits])
        self.has_floor = floor is not None
        if self.has_floor:
            self.floor = self.floor_saved = floor
        self.edited = self.has_floor or bool(self.edits) or self.base != 0
