"""Ports whose frames come from capture files.

All ports share one feed, which gives the frames of all files in order of time: whichever port the core asks first
receives the next ones, and each frame's `port` says where it arrives. So a burst is a stretch of the capture, in its order,
whatever the number of ports.
"""

from cpython.bytes cimport PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint32_t, uint8_t
from libc.string cimport memset

from actornet.limits import BURST_PACKETS

cdef int BURST = BURST_PACKETS


cdef class CaptureFeed:
    """The frames of `sources`, merged by time: pairs of an iterator of (time in ns, frame, original length) and the index
    of the port that its frames arrive at.

    With a `playback`, it says where a frame arrives. `suspended`, if set, tells whether handlers wait for something:
    answers to what they have not sent yet are then held back, and the feed may give nothing for a while.
    """

    def __init__(self, sources, Playback playback=None):
        cdef int i
        self.sources = [(iter(frames), port) for frames, port in sources]
        self.heads = [None] * len(self.sources)
        self.ports = []
        self.playback = playback
        self.suspended = None
        self.first_ns = self.last_ns = None
        for i in range(len(self.sources)):
            self.advance(i)
        self.exhausted = self.earliest() < 0

    cdef int advance(self, int source) except -1:
        self.heads[source] = next(self.sources[source][0], None)
        return 0

    cdef int earliest(self) noexcept:
        """Index of the source whose next frame is the oldest, -1 at the end of all."""
        cdef int i, best = -1
        cdef int count = len(self.heads)
        if count == 1:
            return 0 if self.heads[0] is not None else -1
        for i in range(count):
            if self.heads[i] is not None and (best < 0 or self.heads[i][0] < self.heads[best][0]):
                best = i
        return best

    cdef int fill(self, an_packet *packets, int limit, Arena arena) except -1:
        cdef int source, n = 0
        cdef an_packet *p
        cdef bytes frame
        cdef tuple head
        cdef CapturePort port
        arena.used = 0
        if self.playback is not None and (self.suspended is None or not self.suspended()):
            self.playback.settle()
        while n < limit and n < BURST:
            source = self.earliest()
            if source < 0:
                self.exhausted = True
                break
            head = self.heads[source]
            frame = head[1]
            p = &packets[n]
            p.data = arena.place(frame)
            p.length = <uint32_t>PyBytes_GET_SIZE(frame)
            p.port = <uint8_t>self.sources[source][1]
            p.flags = 0
            p.time_ns = head[0]
            memset(p.vnet, 0, sizeof(p.vnet))
            if self.playback is not None and not self.playback.arrive(p):
                break
            port = <CapturePort>self.ports[p.port]
            port.packets_in += 1
            port.bytes_in += p.length
            self.packets += 1
            self.total_bytes += p.length
            if self.first_ns is None:
                self.first_ns = head[0]
            self.last_ns = head[0]
            self.advance(source)
            n += 1
        return n


cdef class CapturePort(Port):
    """The next port of `feed`; what it sends is appended to each of `outlets` as (time in ns, frame, original length)."""

    def __init__(self, str name, CaptureFeed feed not None, outlets=()):
        Port.__init__(self, name)
        self.index = len(feed.ports)
        feed.ports.append(self)
        self.feed = feed
        self.arena = Arena()
        self.outlets = tuple(outlets)

    cdef int rx(self, an_packet *packets, int limit) except -1:
        return self.feed.fill(packets, limit, self.arena)

    cdef int tx(self, an_packet **packets, int count) except -1:
        cdef int i
        cdef an_packet *p
        cdef Playback playback = self.feed.playback
        for i in range(count):
            p = packets[i]
            self.bytes_out += p.length
            if playback is not None and self.index == playback.wan:
                playback.depart(p)
            if self.outlets:
                sent = (p.time_ns, PyBytes_FromStringAndSize(<char *>p.data, p.length), p.length)
                for outlet in self.outlets:
                    (<list>outlet).append(sent)
        self.packets_out += count
        return count
