"""Ports without an interface, on a live node: drivers `pcap` and `memory`. Their frames come from captures.

Theory of operation. Each core reads the captures itself and takes the frames that it is the home of, as a network card
would have given them to it; so nothing is shared between cores. All `pcap` ports of a core share a `Recording`, as the
ports of `actornet run --read` do: frames come merged by time, and of a capture that two ports read, those from inside
arrive at the first one and others at the second (`playback.pyx`). A recording plays at the pace of its time stamps, from the
moment when the first node of the deployment listens (`shared_start.py`): a passive port passes over what goes by, and is
where the wire is when its node takes over.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t, UINT64_MAX
from libc.string cimport memcpy, memset
from posix.time cimport itimerspec
from posix.unistd cimport close

from actornet.engine.core cimport an_now_ns
from actornet.engine.types cimport *
from actornet.engine.wire cimport an_parse, an_rss_core, an_rss_entry, an_rss_entry_keyed
from actornet.ports.live cimport LivePort, monotonic_ns
from actornet.ports.memory cimport Arena
from actornet.ports.playback cimport Playback

from actornet.errors import CaptureError
from actornet.limits import BURST_PACKETS, HANDLER_STALL_S, MEMORY_FRAMES_MAX, RECORDED_WAIT_MAX
from actornet.ports.pcap import CaptureAppender, read_capture
from actornet.ports.shared_start import SharedStart

cdef extern from "<sys/timerfd.h>":
    int TFD_NONBLOCK, TFD_CLOEXEC, TFD_TIMER_ABSTIME
    int timerfd_create(int clock, int flags)
    int timerfd_settime(int fd, int flags, const itimerspec *new, itimerspec *old)

cdef extern from "<time.h>":
    int CLOCK_MONOTONIC

DEF PASSED_OVER_MAX = 1024  # frames that a turn passes over, at most
DEF PAUSE_NS = 200_000  # until what waits for an output is looked at again
DEF OFFERED_NS = 50_000  # how often a core is woken to be offered frames, at most
DEF BEHIND_NS = 10_000_000  # of frames that a core did not take in time, it is offered the last ones

cdef int BURST = BURST_PACKETS
cdef int WAIT_MAX = RECORDED_WAIT_MAX
cdef uint64_t BLOCKED_NS = <uint64_t>(HANDLER_STALL_S * 1e9)  # how long an answer in a capture waits for its question to leave


cdef class Timer:
    """A descriptor that becomes readable at a time of CLOCK_MONOTONIC, until it is armed anew."""

    cdef readonly int fd
    cdef uint64_t due_ns

    def __cinit__(self):
        self.fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC)
        if self.fd < 0:
            raise OSError("no timer can be had")

    def __dealloc__(self):
        if self.fd >= 0:
            close(self.fd)

    cdef int arm(self, uint64_t when_ns) except -1:
        """0: never."""
        cdef itimerspec spec
        if when_ns == self.due_ns and (when_ns == 0 or when_ns > monotonic_ns()):
            return 0
        self.due_ns = when_ns
        memset(&spec, 0, sizeof(spec))
        spec.it_value.tv_sec, spec.it_value.tv_nsec = when_ns // 1_000_000_000, when_ns % 1_000_000_000
        timerfd_settime(self.fd, TFD_TIMER_ABSTIME, &spec, NULL)
        return 0


cdef class Share:
    """Which frames are those of one of `cores` cores: by `rss_keys`, for IPv4 and IPv6, or symmetrically."""

    cdef unsigned cores
    cdef unsigned core
    cdef bint keyed
    cdef uint8_t keys[4][40]

    def __init__(self, unsigned cores=1, unsigned core=0, rss_keys=None):
        cdef int i
        cdef bytes key
        self.cores, self.core, self.keyed = cores, core, rss_keys is not None
        for i in range(4 if rss_keys is not None else 0):
            key = rss_keys[i // 2].key(i % 2)
            memcpy(self.keys[i], <const char *>key, 40)

    cdef bint has(self, an_packet *p, int port) noexcept:
        """Frame `p`, parsed, arrives at port number `port`."""
        cdef unsigned entry
        if self.cores == 1:
            return True
        if p.key.version == 0:
            return self.core == 0
        if self.keyed:
            entry = an_rss_entry_keyed(self.keys[(port != 0) + 2 * (p.key.version == 6)], &p.key)
        else:
            entry = an_rss_entry(&p.key)
        return an_rss_core(entry, self.cores) == self.core


cdef class Recording:
    """The captures that one core's `pcap` ports read. `reads`: (path, index of the port that its frames arrive at), None
    for a path that two ports read, of which `playback` knows the indices. `speed`: times the captures' pace; 0: as fast as the core takes them.
    `group`: shared by the cores and nodes that play it together, None if nobody else does. Who `follows` passes over what goes
    by before it plays; another one, a late core of a node that was launched as primary, only what went by before it was there.
    """

    cdef list captures
    cdef list arrivals
    cdef list heads
    cdef list ports
    cdef readonly Playback playback
    cdef Share share
    cdef double speed
    cdef Timer timer
    cdef object start
    cdef object waits                  # how many packets wait in the core for anything, or None
    cdef uint64_t first_ns             # the captures' first time stamp
    cdef uint64_t begun_ns             # when that was, 0 as long as it is not known
    cdef uint64_t since_ns             # when this was made
    cdef uint64_t passed_ns            # what has an earlier time stamp has gone by
    cdef uint64_t blocked_ns
    cdef bint follows
    cdef bint playing
    cdef bint told

    def __init__(self, reads, Share share not None, Playback playback=None, double speed=1.0, group=None, bint follows=False):
        self.playback = playback
        self.share = share
        self.speed = speed
        self.follows = follows
        self.since_ns = monotonic_ns()
        self.timer = Timer()
        self.captures, self.arrivals, self.heads, self.ports = [], [], [], []
        self.start = self.waits = None
        try:
            for path, port in reads:
                self.captures.append(read_capture(path))
                self.arrivals.append(-1 if port is None else port)
                self.heads.append(None)
                self.advance(len(self.heads) - 1)
            if group is not None and speed > 0 and self.captures:
                self.start = SharedStart(reads[0][0], group)
        except BaseException:
            self.close()
            raise
        source = self.earliest()
        self.first_ns = self.heads[source][0] if source >= 0 else 0

    def restored(self, flow, port, bound) -> None:
        """A flow that arrived at port number `port` was another node's; `bound`: its other keys, each with its port's name."""
        if self.playback is not None and port == self.playback.lan:
            outside = next((each.name for each in self.ports if each.index == self.playback.wan), None)
            self.playback.remember(flow, next((key for key, name in bound if name == outside), flow.reversed()))

    def close(self) -> None:
        for capture in self.captures:
            capture.close()
        if self.start is not None:
            self.start.close()

    def play(self) -> None:
        """From now on frames are asked for. Idempotent."""
        cdef uint64_t now = monotonic_ns()
        if self.playing:
            return
        self.playing = True
        if self.speed > 0:
            if self.begun_ns == 0:
                start_ms = now // 1_000_000 + 1
                self.begun_ns = <uint64_t>(start_ms if self.start is None else self.start.join(start_ms)) * 1_000_000
            self.passed_ns = self.position(now if self.follows else self.since_ns)

    def pause(self) -> None:
        """From now on they pass by. Idempotent."""
        self.playing = False
        self.timer.arm(0)

    cdef uint64_t position(self, uint64_t now):
        """The time stamp that is due now."""
        if self.speed == 0:
            return UINT64_MAX
        return self.first_ns + (<uint64_t>((now - self.begun_ns) * self.speed) if now > self.begun_ns else 0)

    cdef int advance(self, int source) except -1:
        self.heads[source] = next(iter(self.captures[source]), None)
        return 0

    cdef int earliest(self) noexcept:
        """Index of the capture whose next frame is the oldest, -1 at the end of all."""
        cdef int i, best = -1
        for i in range(len(self.heads)):
            if self.heads[i] is not None and (best < 0 or self.heads[i][0] < self.heads[best][0]):
                best = i
        return best

    cdef int follow(self) except -1:
        """While others play: pass over what goes by."""
        cdef uint64_t now = monotonic_ns()
        if not self.follows:
            return 0
        if self.begun_ns == 0:
            found = self.start.find() if self.start is not None else None
            if found is None:
                return 0
            self.begun_ns = <uint64_t>found * 1_000_000
        self.passed_ns = self.position(now)
        return self.timer.arm(0 if self.pass_over() else now)

    cdef bint pass_over(self) except -1:
        """Whether all that has gone by is passed over."""
        cdef int source, n
        for n in range(PASSED_OVER_MAX):
            source = self.earliest()
            if source < 0 or <uint64_t>self.heads[source][0] >= self.passed_ns:
                return True
            self.advance(source)
        return False

    cdef int fill(self, an_packet *packets, int limit, Arena arena) except -1:
        cdef uint64_t now = monotonic_ns(), until
        cdef int source, n = 0, passed = 0
        cdef int64_t waits = 0 if self.waits is None else self.waits()
        cdef size_t used
        cdef an_packet *p
        cdef bytes frame
        cdef tuple head
        arena.used = 0
        if self.passed_ns and not self.pass_over():
            self.timer.arm(now)
            return 0
        if self.speed == 0 and waits >= WAIT_MAX:
            self.timer.arm(now + PAUSE_NS)
            return 0
        if self.playback is not None and (waits == 0 or self.blocked_ns and now - self.blocked_ns > BLOCKED_NS):
            self.playback.settle()
        until = self.position(now)
        while n < limit and n < BURST:
            source = self.earliest()
            if source < 0:
                self.end()
                break
            head = self.heads[source]
            if <uint64_t>head[0] > until:
                self.timer.arm(self.begun_ns + <uint64_t>((head[0] - self.first_ns) / self.speed) + 1)
                break
            frame = head[1]
            used = arena.used
            p = &packets[n]
            p.data = arena.place(frame)
            p.length = <uint32_t>PyBytes_GET_SIZE(frame)
            p.flags = 0
            memset(p.vnet, 0, sizeof(p.vnet))
            p.time_ns = an_now_ns()
            if not self.takes(p, self.arrivals[source]):
                arena.used = used
                self.advance(source)
                passed += 1
                if passed == PASSED_OVER_MAX:
                    self.timer.arm(now)
                    break
                continue
            if self.arrivals[source] < 0 and not self.playback.arrive(p):
                self.blocked_ns = self.blocked_ns or now
                self.timer.arm(now + PAUSE_NS)
                break
            self.blocked_ns = 0
            self.advance(source)
            n += 1
        return n

    cdef bint takes(self, an_packet *p, int port) except -1:
        """Whether the frame, which arrives at this port, is one of this core's."""
        p.port = port if port >= 0 else 0
        if self.share.cores == 1:
            return True
        p.reason = 0
        an_parse(p)
        if port < 0 and p.key.version != 0:
            port = self.playback.lan if self.playback.is_inside(p) else self.playback.wan
        return self.share.has(p, port)

    cdef int end(self) except -1:
        cdef RecordedPort port
        self.timer.arm(0)
        if not self.told and self.share.core == 0:
            self.told = True
            for capture, index in zip(self.captures, self.arrivals):
                damage = f": {capture.damage}; what stands before it was played" if capture.damage else ""
                port = next(each for each in self.ports if each.index == (self.playback.lan if index < 0 else index))
                port.tell(f"has ended{damage}")
        return 0


cdef class RecordedPort(LivePort):
    """A port without an interface: its link is always there."""

    cdef Timer timer
    cdef Arena arena

    def __init__(self, str name, str device, Share share not None):
        LivePort.__init__(self, name, device, share.cores, share.core)
        self.arena = Arena()
        self.closed = False

    @property
    def noun(self) -> str:
        return "capture"

    def fileno(self) -> int:
        return self.timer.fd

    def attached(self) -> bool:
        return True

    def _attach(self):
        pass

    def _release(self):
        pass

    def wait_for(self, waiting) -> None:
        """`waiting()` says how many packets wait in the core, for anything."""
        raise NotImplementedError


cdef class PcapPort(RecordedPort):
    """Number `index` of a core's ports, at which frames of `recording` arrive: those of `read`, if that is given. What leaves is
    appended to the capture `write`, if that is given."""

    cdef readonly Recording recording
    cdef object outlet

    def __init__(self, str name, int index, Recording recording not None, read=None, write=None):
        RecordedPort.__init__(self, name, read or write or "", recording.share)
        self.index = index
        self.recording = recording
        self.timer = recording.timer
        recording.ports.append(self)
        if write is not None:
            self.outlet = CaptureAppender(write)
            self.counters["tx_unwritten"] = 0

    def wait_for(self, waiting) -> None:
        self.recording.waits = waiting

    def _open_gate(self):
        self.recording.play()

    def _close_gate(self):
        self.recording.pause()

    def _release(self):
        self.recording.close()
        if self.outlet is not None:
            self.outlet.close()

    cdef int rx(self, an_packet *packets, int limit) except -1:
        assert not self.closed, "the port is closed"
        if self.active:
            return self.recording.fill(packets, limit, self.arena)
        self.recording.follow()
        return 0

    cdef int tx(self, an_packet **packets, int count) except -1:
        cdef Playback playback = self.recording.playback
        cdef int i
        assert not self.closed, "the port is closed"
        if playback is not None and self.index == playback.wan:
            for i in range(count):
                if not packets[i].flags & AN_HANDED:  # another core has parsed that
                    playback.depart(packets[i])
        if self.outlet is None:
            return count
        try:
            self.outlet.append(self.records(packets, count))
        except CaptureError as error:
            if not self.counters["tx_unwritten"]:
                self.tell(str(error))
            self.counters["tx_unwritten"] += count
            return 0
        return count

    cdef bytes records(self, an_packet **packets, int count):
        """The frames as they stand in a pcap file."""
        cdef uint64_t now = an_now_ns()
        cdef size_t length = 0
        cdef uint32_t header[4]
        cdef int i
        cdef bytes made
        cdef char *at
        for i in range(count):
            length += sizeof(header) + packets[i].length
        made = PyBytes_FromStringAndSize(NULL, length)
        at = PyBytes_AS_STRING(made)
        header[0], header[1] = now // 1_000_000_000, now % 1_000_000_000
        for i in range(count):
            header[2] = header[3] = packets[i].length
            memcpy(at, header, sizeof(header))
            memcpy(at + sizeof(header), packets[i].data, packets[i].length)
            at += sizeof(header) + packets[i].length
        return made


cdef class LoadPort(RecordedPort):
    """The frames of the capture `read`, kept in memory and offered over and over; what leaves is let go.

    All cores together are offered `packets_per_s`, or as many as they take. What a core does not take in time is counted
    as `rx_missed`. Of a capture that holds both directions, `playback` says what arrives at this port. Without `read` the port
    only lets go.
    """

    cdef list frames
    cdef object waits
    cdef double per_ns
    cdef uint64_t begun_ns
    cdef uint64_t given
    cdef size_t at

    def __init__(self, str name, int index, Share share not None, read=None, packets_per_s=None, Playback playback=None):
        RecordedPort.__init__(self, name, read or "", share)
        self.index = index
        self.timer = Timer()
        self.frames = []
        self.counters["rx_missed"] = 0
        total = 0 if read is None else self._load(read, playback, share)
        if packets_per_s is not None and total:
            self.per_ns = packets_per_s * len(self.frames) / total / 1e9

    def _load(self, read, Playback playback, Share share):
        """Keep what is this port's and this core's; returns how many frames are the port's."""
        cdef an_packet packet
        cdef bytes frame
        total = 0
        with read_capture(read) as capture:
            for _, frame, _ in capture:
                memset(&packet, 0, sizeof(packet))
                packet.data = <uint8_t *>PyBytes_AS_STRING(frame)
                packet.length = <uint32_t>PyBytes_GET_SIZE(frame)
                an_parse(&packet)
                if playback is not None:
                    inside = packet.key.version == 0 or playback.is_inside(&packet)
                    if self.index != (playback.lan if inside else playback.wan):
                        continue
                total += 1
                if total > MEMORY_FRAMES_MAX:
                    raise CaptureError(
                        f"{read}: a memory port holds {MEMORY_FRAMES_MAX} packets at most; give it a part of the capture"
                    )
                if share.has(&packet, self.index):
                    self.frames.append(frame)
        return total

    def wait_for(self, waiting) -> None:
        self.waits = waiting

    def _open_gate(self):
        self.begun_ns, self.given = monotonic_ns(), 0

    def _close_gate(self):
        self.timer.arm(0)

    cdef int rx(self, an_packet *packets, int limit) except -1:
        cdef uint64_t now
        cdef int64_t due = limit
        cdef an_packet *p
        cdef bytes frame
        cdef int n
        assert not self.closed, "the port is closed"
        if not self.active or not self.frames:
            return 0
        now = monotonic_ns()
        if self.per_ns > 0:
            due = <int64_t>((now - self.begun_ns) * self.per_ns) - <int64_t>self.given
            if due > BEHIND_NS * self.per_ns + BURST:
                self.counters["rx_missed"] += due - BURST
                self.given += due - BURST
            if due <= 0:
                self.timer.arm(max(now + OFFERED_NS, self.begun_ns + <uint64_t>((self.given + 1) / self.per_ns) + 1))
                return 0
        elif self.waits is not None and self.waits() >= WAIT_MAX:
            self.timer.arm(now + PAUSE_NS)
            return 0
        self.arena.used = 0
        for n in range(min(due, limit, BURST)):
            frame = self.frames[self.at]
            self.at = self.at + 1 if self.at + 1 < <size_t>len(self.frames) else 0
            p = &packets[n]
            p.data = self.arena.place(frame)
            p.length = <uint32_t>PyBytes_GET_SIZE(frame)
            p.port = <uint8_t>self.index
            p.flags = 0
            p.time_ns = 0
            memset(p.vnet, 0, sizeof(p.vnet))
        n = min(due, limit, BURST)
        self.given += n
        return n

    cdef int tx(self, an_packet **packets, int count) except -1:
        assert not self.closed, "the port is closed"
        return count
