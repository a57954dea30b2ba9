"""Ports without a network: frames from and to Python, and an endless source for benchmarks."""

from collections import deque

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport UINT64_MAX
from libc.stdlib cimport free
from libc.string cimport memcpy, memset

from actornet.errors import PortError
from actornet.limits import BURST_PACKETS, FRAME_BYTES_MAX, MEMORY_FRAMES_MAX

DEF CACHE_LINE = 64
DEF RING_SLOTS = 128  # two bursts: what the core has just sent is not overwritten at once

cdef extern from "<stdlib.h>":
    void *aligned_alloc(size_t alignment, size_t size)

cdef int BURST = BURST_PACKETS
cdef int FRAME_BYTES = FRAME_BYTES_MAX
cdef Py_ssize_t FRAMES = MEMORY_FRAMES_MAX


cdef inline uint32_t aligned(Py_ssize_t length) noexcept nogil:
    return <uint32_t>((length + CACHE_LINE - 1) & ~<Py_ssize_t>(CACHE_LINE - 1))


cdef class Arena:
    """Room for one burst of frames, packed in the order of arrival; `used = 0` begins the next burst."""

    def __cinit__(self):
        self.room = <uint8_t *>aligned_alloc(CACHE_LINE, <size_t>BURST * aligned(FRAME_BYTES))
        if self.room == NULL:
            raise MemoryError("frames of a burst")

    def __dealloc__(self):
        free(self.room)

    cdef uint8_t *place(self, bytes frame) except NULL:
        cdef Py_ssize_t length = PyBytes_GET_SIZE(frame)
        cdef uint8_t *at = self.room + self.used
        assert length <= FRAME_BYTES and self.used + aligned(length) <= <size_t>BURST * aligned(FRAME_BYTES)
        memcpy(at, PyBytes_AS_STRING(frame), length)
        self.used += aligned(length)
        return at


cdef class MemoryPort(Port):
    """Frames that a program feeds come in; frames that are sent are handed back to it.

    Sent frames, as (time in ns, frame), wait for `take`, or are given as one list per burst to `sink`. Both queues hold
    MEMORY_FRAMES_MAX frames: `feed` refuses more, and frames sent beyond it count as `tx_full`. A frame of more than
    FRAME_BYTES_MAX counts as `rx_oversized`, as a network card would treat it.
    """

    def __init__(self, str name, sink=None):
        Port.__init__(self, name)
        self.arena = Arena()
        self.waiting = deque()
        self.sent = []
        self.sink = sink

    def __len__(self) -> int:
        return len(self.waiting)

    def feed(self, frames) -> None:
        """Queue (time in ns, frame) pairs for the next bursts. Raises PortError if more wait than MEMORY_FRAMES_MAX."""
        for time_ns, frame in frames:
            if len(self.waiting) >= FRAMES:
                raise PortError(f"port {self.name}: {FRAMES} frames wait already; run bursts before feeding more")
            if len(frame) > FRAME_BYTES:
                self.counters["rx_oversized"] = self.counters.get("rx_oversized", 0) + 1
            else:
                self.waiting.append((time_ns, bytes(frame)))

    def take(self) -> list:
        """The (time in ns, frame) pairs sent since the last call."""
        sent, self.sent = self.sent, []
        return sent

    cdef int rx(self, an_packet *packets, int limit) except -1:
        cdef int n = 0
        cdef an_packet *p
        cdef bytes frame
        self.arena.used = 0
        while n < limit and n < BURST and self.waiting:
            time_ns, frame = self.waiting.popleft()
            p = &packets[n]
            p.data = self.arena.place(frame)
            p.length = <uint32_t>PyBytes_GET_SIZE(frame)
            p.port = <uint8_t>self.index
            p.flags = 0
            p.time_ns = time_ns
            memset(p.vnet, 0, sizeof(p.vnet))
            n += 1
        return n

    cdef int tx(self, an_packet **packets, int count) except -1:
        cdef int i
        cdef Py_ssize_t room = FRAMES - len(self.sent)
        if self.sink is not None:
            self.sink([(packets[i].time_ns, PyBytes_FromStringAndSize(<char *>packets[i].data, packets[i].length))
                       for i in range(count)])
            return count
        if count > room:
            self.counters["tx_full"] = self.counters.get("tx_full", 0) + count - room
            count = <int>room
        for i in range(count):
            self.sent.append((packets[i].time_ns,
                              PyBytes_FromStringAndSize(<char *>packets[i].data, packets[i].length)))
        return count


cdef class LoopPort(Port):
    """Gives the equal-sized frames of `template` again and again, `count` frames in all (None: for ever); what is sent is
    only counted.

    Frames are copied into a small ring as a network card's DMA would, so that a rewrite leaves the template alone. Their
    times begin at `time_ns` and are `interval_ns` apart.
    """

    def __init__(self, str name, bytes template not None, uint32_t frame_bytes, *, count=None, uint64_t time_ns=0,
                 uint64_t interval_ns=0):
        Port.__init__(self, name)
        if not 14 <= frame_bytes <= <uint32_t>FRAME_BYTES:
            raise PortError(f"port {name}: frames have 14..{FRAME_BYTES} bytes, not {frame_bytes}")
        self.frame_bytes = frame_bytes
        self.play(template)
        self.stride = aligned(frame_bytes)
        self.left = UINT64_MAX if count is None else count
        self.time_ns = time_ns
        self.interval_ns = interval_ns
        self.ring = <uint8_t *>aligned_alloc(CACHE_LINE, <size_t>self.stride * RING_SLOTS)
        if self.ring == NULL:
            raise MemoryError("a ring of frames")

    def __dealloc__(self):
        free(self.ring)

    def play(self, bytes template not None) -> None:
        """Give these frames from now on, from the first of them."""
        if not template or len(template) % self.frame_bytes:
            raise PortError(f"port {self.name}: the template's {len(template)} bytes are no whole frames of {self.frame_bytes}")
        self.template, self.at = template, 0

    cdef int rx(self, an_packet *packets, int limit) except -1:
        cdef const uint8_t *template = <const uint8_t *>PyBytes_AS_STRING(self.template)
        cdef uint64_t size = <uint64_t>PyBytes_GET_SIZE(self.template)
        cdef uint64_t at = self.at, time_ns = self.time_ns
        cdef uint32_t slot = self.slot, frame_bytes = self.frame_bytes
        cdef uint8_t port = <uint8_t>self.index
        cdef an_packet *p
        cdef int i
        if limit > BURST:
            limit = BURST
        if <uint64_t>limit > self.left:
            limit = <int>self.left
        for i in range(limit):
            p = &packets[i]
            p.data = self.ring + slot * self.stride
            if frame_bytes == 64:
                memcpy(p.data, template + at, 64)  # a constant size is a few vector moves
            else:
                memcpy(p.data, template + at, frame_bytes)
            p.length = frame_bytes
            p.port = port
            p.flags = 0
            p.time_ns = time_ns
            memset(p.vnet, 0, sizeof(p.vnet))
            time_ns += self.interval_ns
            slot = (slot + 1) % RING_SLOTS
            at += frame_bytes
            if at == size:
                at = 0
        self.at, self.slot, self.time_ns = at, slot, time_ns
        if self.left != UINT64_MAX:
            self.left -= limit
        self.received_packets += limit
        return limit

    cdef int tx(self, an_packet **packets, int count) except -1:
        cdef uint64_t total = 0
        cdef int i
        for i in range(count):
            total += packets[i].length
        self.sent_packets += count
        self.sent_bytes += total
        return count
