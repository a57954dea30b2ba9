"""A TCP connection's packets and its bytes: out of packets in order, and back into packets when they were edited.

`Stream.receive` takes a packet and returns the segments that can be delivered; after each was decided on (and perhaps
`replace`d), `output` is the verdict for the packet: FORWARD, or the packets that go in its place.

Once bytes have been edited, every packet of the connection has its sequence number, acknowledgement and SACK blocks
(RFC 2018) taken from one end's numbering to the other's. Checksums of packets that only have numbers changed are updated
(RFC 1624), those of packets that are made are computed, or left to the interface as they were (AN_CSUM_PARTIAL).
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport int32_t, uint16_t, uint64_t
from libc.string cimport memcpy

from actornet.engine.counters cimport C_MALFORMED, C_STREAM_DISCARDED, C_STREAM_FULL, C_STREAM_HELD
from actornet.engine.types cimport AN_CSUM_PARTIAL, AN_ICMP_ERROR
from actornet.engine.verdict cimport Made
from actornet.engine.wire cimport an_csum_verify

from actornet.engine.verdict import FORWARD


cdef extern from "checksum.h" nogil:
    uint16_t an_load16(const void *at)
    void an_store16(void *at, uint16_t word)
    uint16_t an_swap16(uint16_t word)
    uint16_t an_fold(uint64_t sum)
    uint64_t an_sum(const uint8_t *at, uint32_t bytes, uint64_t sum)
    uint16_t an_sum_diff(const void *old, const void *new, uint32_t bytes)
    uint16_t an_csum_update(uint16_t csum, uint16_t delta)
    uint64_t an_pseudo_sum(const uint8_t *ip, uint8_t protocol, uint32_t l4_bytes)

DEF FIN = 1
DEF SYN = 2
DEF RST = 4
DEF PSH = 8
DEF ACK = 16
DEF URG = 32
DEF TCP = 6
DEF PAYLOAD_LEAST = 536  # RFC 9293 section 3.7.1: what every host takes
DEF IP_BYTES_MAX = 65535


cdef uint32_t load32(const uint8_t *at) noexcept:
    return <uint32_t>at[0] << 24 | <uint32_t>at[1] << 16 | <uint32_t>at[2] << 8 | at[3]


cdef void store32(uint8_t *at, uint32_t value) noexcept:
    at[0], at[1], at[2], at[3] = value >> 24, value >> 16 & 255, value >> 8 & 255, value & 255


cdef void change32(uint8_t *l4, uint32_t offset, uint32_t value, bint partial) noexcept:
    """Write a number into the TCP header; its checksum follows. `offset` may be odd (options are not aligned)."""
    cdef uint8_t new[8]
    cdef uint32_t even = offset & ~<uint32_t>1
    memcpy(new, l4 + even, 6)
    store32(new + (offset - even), value)
    if not partial:
        an_store16(l4 + 16, an_csum_update(an_load16(l4 + 16), an_sum_diff(l4 + even, new, 6)))
    memcpy(l4 + even, new, 6)


cdef Carrier carrier_of(const an_packet *p):
    cdef Carrier carrier = Carrier.__new__(Carrier)
    carrier.head = PyBytes_FromStringAndSize(<const char *>p.data, p.payload)
    carrier.l3, carrier.l4, carrier.version, carrier.port = p.l3, p.l4, p.key.version, p.key.port
    carrier.flags = p.flags & AN_CSUM_PARTIAL
    carrier.tcp_flags = p.tcp_flags
    carrier.time_ns = p.time_ns
    carrier.vnet = PyBytes_FromStringAndSize(<const char *>p.vnet, sizeof(p.vnet))
    return carrier


cdef class Stream:
    """Both directions of one connection. `verify`: a packet with a wrong checksum brings no bytes, for its receiver will
    not take them either; inline it is dropped."""

    def __init__(self, bint inline=False, bint verify=True):
        self.inline, self.verify = inline, verify
        self.halves = [Half(inline, 0), Half(inline, 1)]
        self.outputs = []

    @property
    def edited(self) -> bool:
        return self.halves[0].edited or self.halves[1].edited

    @property
    def changed(self) -> bool:
        """Whether what `save` gives is another than the last time."""
        return self.halves[0].changed or self.halves[1].changed

    @property
    def ended(self) -> bool:
        """Both ends have sent a FIN, and all before it."""
        return self.halves[0].ended and self.halves[1].ended

    @property
    def gone(self) -> bool:
        """An RST ended the connection, and all before it had come: nothing is left to wait for."""
        return self.reset and not self.in_doubt

    @property
    def conflicts(self) -> int:
        """Retransmissions whose bytes were not those that had come first."""
        return self.halves[0].conflicts + self.halves[1].conflicts

    def save(self) -> list:
        return [half.save() for half in self.halves]

    def load(self, saved) -> None:
        """Go on with a connection that another core has begun."""
        for half, state in zip(self.halves, saved):
            half.load(tuple(state))

    def resume(self) -> None:
        """The connection is not new: begin where its receivers say that they are."""
        for half in self.halves:
            half.resume()

    cpdef list receive(self, Packet packet):
        """The segments that this packet makes ready, in order; [] for packets that are not this connection's TCP.

        The packet itself stays as it came: while a handler waits, its node may die, and the next one begins with it (G1).
        """
        cdef an_packet *p = packet.live()
        cdef int direction = packet.direction_index()
        cdef bytes came
        self.outputs, self.whole, self.damaged, self.carrier, self.renewed = [], True, False, None, False
        self.header = None
        if p.key.protocol != TCP or p.flags & AN_ICMP_ERROR:
            return []
        if self.verify and not an_csum_verify(p):
            self.damaged = True
            return []
        if not self.edited:
            return self._take(p, self.halves[direction], self.halves[1 - direction], direction)
        came = PyBytes_FromStringAndSize(<const char *>p.data + p.l4, p.payload - p.l4)
        ready = self._take(p, self.halves[direction], self.halves[1 - direction], direction)
        self.header = PyBytes_FromStringAndSize(<const char *>p.data + p.l4, p.payload - p.l4)
        memcpy(p.data + p.l4, PyBytes_AS_STRING(came), len(came))
        return ready

    cdef an_packet *_renumbered(self, Packet packet) except NULL:
        """The packet that was received last, with the numbers with which it goes on."""
        cdef an_packet *p = packet.live()
        if self.header is not None:
            memcpy(p.data + p.l4, PyBytes_AS_STRING(self.header), len(self.header))
            self.header = None
        return p

    cdef list _take(self, an_packet *p, Half half, Half other, int direction):
        cdef uint8_t *l4 = p.data + p.l4
        cdef uint32_t end = p.length if p.l3_end == 0xffff or p.l3_end > p.length else p.l3_end
        cdef uint32_t length = end - p.payload if end > p.payload else 0
        cdef uint32_t seq = load32(l4 + 4), ack = load32(l4 + 8)
        cdef int32_t old
        cdef bint partial = p.flags & AN_CSUM_PARTIAL, fin = p.tcp_flags & FIN
        cdef list ready = [], taken
        cdef bytes data
        cdef Carrier carrier
        cdef bint syn = p.tcp_flags & SYN and not p.tcp_flags & RST, void = False
        if syn:
            seq += 1
            void = self._synchronize(half, other, direction, seq, ack, p.tcp_flags & ACK)
        elif p.tcp_flags & RST:
            self._reset(half, other, seq, ack, p.tcp_flags & ACK)
        else:
            if not half.started:
                half.begin(seq)
                self.midstream = True
            if self.reset and direction != self.reset_direction:
                self.reset = False  # who was to be reset goes on
            if other.started and p.tcp_flags & ACK:
                self.established = True
        if p.tcp_flags & ACK:
            if not void and not (p.tcp_flags & RST and not self.reset):
                ready = other.acknowledge(other.back(ack))
            if other.edited:
                self._fix_acknowledgements(l4, p.payload - p.l4, other, partial, True)
        if length > self.payload_max[direction]:
            self.payload_max[direction] = length
        if self.inline and ready:
            self.whole = False
            self.outputs.extend(ready)
        if not length and not fin or p.tcp_flags & (SYN | RST):
            if half.edited and not p.tcp_flags & SYN:
                change32(l4, 4, half.out(seq), partial)
            if not (length and syn) or void:
                if void and length:
                    self.whole = False
                if not self.whole:
                    self.outputs.append((carrier_of(p), load32(l4 + 4), None, False))
                return ready
        data = PyBytes_FromStringAndSize(<const char *>p.data + p.payload, length)
        carrier = self.carrier = carrier_of(p) if self.inline else None
        if self.released:
            if half.edited:
                self.whole = False
                self._again(half, carrier, seq, data, fin)
            half.pass_by(seq + length + fin)
            return ready
        old = <int32_t>(half.next - seq)
        taken = half.receive(seq, data, fin, carrier)
        if self.inline:
            self.whole = not half.edited and len(taken) <= 1 and not ready
            if old > 0:
                self._again(half, carrier, seq, data[:old], fin and old > <int32_t>length)
                data, seq = data[old:], half.next
                self.whole = self.whole and self.outputs[0][2] == PyBytes_FromStringAndSize(
                    <const char *>p.data + p.payload, length - <uint32_t>len(data)) and len(data) == (
                    len(taken[0].data) if taken else 0)
            elif self.whole:
                self.whole = len(taken) == 1 and taken[0].seq == seq and (
                    len(taken[0].data) == length and taken[0].fin == fin)
            self.outputs.extend(taken)
            if half.recovering:  # a byte below the window makes the receiver say what it has
                self.outputs.append((carrier, half.out(half.probe(seq)), b"", False))
        return ready + taken

    cdef bint _synchronize(self, Half half, Half other, int direction, uint32_t seq, uint32_t ack, bint acknowledges) except -1:
        """A SYN, whose first byte is `seq`: begins a connection, or means nothing to an end that has one (RFC 5961 section 4.2) and
        is only remembered: if the other end has lost the connection, it will answer with a SYN of its own. Where both ends send one
        at once (RFC 9293 section 3.5), both count. Returns whether the bytes that the packet has count for nobody."""
        cdef bint crossed
        if acknowledges and self.asked_anew and direction != self.asked_direction and ack == self.asked_seq:
            self._begin_anew()
            self.renewed = True
            other.restart(ack)
            half.restart(seq)
            return False
        if acknowledges and self.crossed and not self.established and ack == other.next and seq != half.next:
            half.restart(seq)  # its own SYN, which had crossed the other's, was of a connection before
            return False
        if half.started and not self.ended and not self.gone and not (self.reset and not self.established):
            if not acknowledges and (self.established or seq != half.acknowledged):
                self.asked_anew, self.asked_direction, self.asked_seq = True, direction, seq
            return self.established
        if not acknowledges:
            crossed = not half.started and not self.reset and other.is_fresh()
            self._begin_anew()
            self.crossed = crossed
            self.renewed = half.started or (other.started and not crossed)
            if not crossed:
                other.started = other.ended = False
                if other.edited:
                    other.restart(0)
                    other.started = False
        half.restart(seq)
        return False

    cdef int _begin_anew(self) except -1:
        self.reset = self.established = self.asked_anew = self.crossed = False
        return 0

    cdef int _reset(self, Half half, Half other, uint32_t seq, uint32_t ack, bint acknowledges) except -1:
        """An RST ends the connection if its receiver waits for exactly that byte (RFC 5961 section 3.2), or, if that has sent a
        SYN and knows no number yet, if its SYN is acknowledged (RFC 9293 section 3.10.7.3); any other is none.

        As some of what passed here may not have come there, there is doubt until all is acknowledged."""
        if half.started:
            if seq != half.next or half.recovering:
                return 0
            self.in_doubt = half.acknowledged != seq
        elif other.started:
            if not acknowledges or other.next - ack > other.next - other.acknowledged:
                return 0
            self.in_doubt = False
        else:
            self.in_doubt = False  # of a connection that we know nothing about
        self.reset, self.reset_direction = True, half.direction
        return 0

    cdef int _again(self, Half half, Carrier carrier, uint32_t seq, bytes data, bint fin) except -1:
        """What was delivered before passes as it did then."""
        out, passed = half.again(seq, data)
        if fin and not passed:
            out = half.out(seq + <uint32_t>len(data))
        self.outputs.append((carrier, out, passed, fin))
        return 0

    def replace(self, Segment segment, bytes data) -> None:
        """Let these bytes go in place of the segment's."""
        cdef Half half = self.halves[segment.direction]
        half.replace(segment, data)
        if segment.replaced is not None:
            self.whole = False

    def release(self) -> list:
        """From here on bytes are not delivered any more; what waits goes on."""
        self.released = True
        for half in self.halves:
            waiting = half.flush()
            if self.inline and waiting:
                self.whole = False
                self.outputs.extend(waiting)
        return []

    def output(self, Packet packet):
        """The verdict for the packet that was received last."""
        cdef an_packet *p = self._renumbered(packet)
        cdef Half half = self.halves[packet.direction_index()]
        cdef Segment segment
        cdef Emit emit
        if not self.inline:
            return FORWARD
        emit = Emit.__new__(Emit)
        if self.damaged:
            emit.counter = C_MALFORMED
            return emit
        if self.whole:
            return FORWARD
        emit.counter = -1
        for item in self.outputs:
            if isinstance(item, Segment):
                segment = <Segment>item
                data = segment.data if segment.replaced is None else segment.replaced
                self._make(emit, segment.carrier, self.halves[segment.direction].out(segment.seq), data, segment.fin)
            else:
                carrier, seq, data, fin = item
                self._make(emit, carrier, seq, data, fin)
        self.outputs = []
        if not emit.frames:
            emit.counter = C_STREAM_FULL if half.full else C_STREAM_DISCARDED
            if half.holds(self.carrier):
                emit.counter = C_STREAM_HELD
                self.carrier.waits = True
                self.waiting += 1
        return emit

    def _make(self, Emit emit, Carrier carrier, seq, bytes data, bint fin) -> None:
        """The packets that take `data` on: several if it has grown beyond what the sender puts into one. None: only the
        headers."""
        cdef Py_ssize_t at = 0, piece, most = IP_BYTES_MAX - (<Py_ssize_t>len(carrier.head) - carrier.l3)
        cdef uint32_t largest = max(self.payload_max[0], self.payload_max[1], <uint32_t>PAYLOAD_LEAST)
        cdef bint last
        if not carrier.vnet[1] and largest < most:
            most = largest
        if data is None:
            emit.frames.append(self._made(carrier, seq, b"", 0, 0))
            return
        if not data and not fin:
            # Nothing is left of it. A segment below the window makes the receiver acknowledge (RFC 9293, 3.10.7.4).
            seq = seq - 1 & 0xffffffff
        if carrier.tcp_flags & SYN:
            seq = seq - 1 & 0xffffffff
        while True:
            piece = min(most, len(data) - at)
            last = at + piece == len(data)
            emit.frames.append(self._made(
                carrier, <uint32_t>(<uint64_t>seq + <uint64_t>at & 0xffffffff), data[at:at + piece],
                FIN | URG | (0 if last else PSH), FIN if fin and last else 0))
            at += piece
            if last:
                break

    cdef object _made(self, Carrier carrier, uint32_t seq, bytes data, uint32_t clear, uint32_t set_):
        """A packet with the carrier's headers."""
        cdef Made made = Made.__new__(Made)
        cdef Py_ssize_t head = len(carrier.head), length = head + len(data)
        cdef bytes frame = PyBytes_FromStringAndSize(NULL, length)  # ours alone until it is returned
        cdef uint8_t *at = <uint8_t *>PyBytes_AS_STRING(frame)
        cdef uint8_t *ip = at + carrier.l3
        cdef uint8_t *l4 = at + carrier.l4
        cdef uint32_t bytes_ = <uint32_t>(length - carrier.l4)
        cdef uint64_t sum
        if carrier.waits:
            carrier.waits = False
            self.waiting -= 1
        memcpy(at, PyBytes_AS_STRING(carrier.head), head)
        memcpy(at + head, PyBytes_AS_STRING(data), len(data))
        if carrier.version == 4:
            an_store16(ip + 2, an_swap16(<uint16_t>(length - carrier.l3)))
            an_store16(ip + 10, 0)
            an_store16(ip + 10, ~an_fold(an_sum(ip, (ip[0] & 15) * 4, 0)) & 0xffff)
        else:
            an_store16(ip + 4, an_swap16(<uint16_t>(length - carrier.l3 - 40)))
        store32(l4 + 4, seq)
        l4[13] = <uint8_t>((l4[13] & ~clear) | set_)
        if clear & URG:
            an_store16(l4 + 18, 0)
        an_store16(l4 + 16, 0)
        sum = an_pseudo_sum(ip, TCP, bytes_)
        if carrier.flags & AN_CSUM_PARTIAL:
            an_store16(l4 + 16, an_fold(sum))
        else:
            an_store16(l4 + 16, ~an_fold(an_sum(l4, bytes_, sum)) & 0xffff)
        made.frame, made.flags, made.port, made.time_ns = frame, carrier.flags, carrier.port, carrier.time_ns
        memcpy(made.vnet, PyBytes_AS_STRING(carrier.vnet), 12)
        return made

    cdef int _fix_acknowledgements(self, uint8_t *l4, uint32_t bytes, Half other, bint partial, bint with_ack) except -1:
        """The acknowledgement and the SACK blocks, in the numbering of who reads them."""
        cdef uint32_t at = 20, length, edge
        if with_ack:
            change32(l4, 8, other.back(load32(l4 + 8)), partial)
        while at + 1 < bytes and l4[at] != 0:
            if l4[at] == 1:
                at += 1
                continue
            length = l4[at + 1]
            if length < 2 or at + length > bytes:
                break
            if l4[at] == 5:
                edge = at + 2
                while edge + 4 <= at + length:
                    change32(l4, edge, other.back(load32(l4 + edge)), partial)
                    edge += 4
            at += length
        return 0

    def refuse(self, Packet packet, Segment segment, int other_port):
        """The verdict that ends the connection at both ends, by RST; nothing from `segment` on passes. `other_port`: index
        of the port opposite to the packet's."""
        cdef an_packet *p = self._renumbered(packet)
        cdef Half half = self.halves[packet.direction_index()]
        cdef Emit emit = Emit.__new__(Emit)
        cdef Carrier ahead = carrier_of(p), back = carrier_of(p)
        cdef bytes head = back.head
        cdef uint8_t *l4 = p.data + p.l4
        cdef uint32_t ack = load32(l4 + 8)
        cdef Half other = self.halves[1 - packet.direction_index()]
        cdef uint32_t l3 = p.l3, span = 4 if p.key.version == 4 else 16, source = l3 + (12 if p.key.version == 4 else 8)
        cdef bytearray mirrored = bytearray(head)
        emit.counter = -1
        ahead.vnet = back.vnet = bytes(12)
        ahead.flags = back.flags = 0
        # A receiver takes an RST at exactly the byte that it waits for (RFC 5961 section 3.2).
        emit.frames.append(self._made(ahead, half.out(segment.seq), b"", 0xff & ~ACK, RST))
        mirrored[:6], mirrored[6:12] = head[6:12], head[:6]
        mirrored[source:source + span], mirrored[source + span:source + 2 * span] = (
            head[source + span:source + 2 * span], head[source:source + span])
        mirrored[p.l4:p.l4 + 2], mirrored[p.l4 + 2:p.l4 + 4] = head[p.l4 + 2:p.l4 + 4], head[p.l4:p.l4 + 2]
        mirrored[p.l4 + 8:p.l4 + 12] = (half.next & 0xffffffff).to_bytes(4, "big")
        back.head, back.port = bytes(mirrored), other_port
        emit.frames.append(self._made(back, other.out(ack), b"", 0xff, RST | ACK))
        return emit
