"""Memory that a node's processes share: rings of messages between two of them, and the control page of all.

Both are memfds that the parent makes before it forks; a child attaches by descriptor number. The parent keeps its
object: it holds the memory while a child that died is replaced. The layouts, and why no order of events loses a message
or a wake-up, are in ring.h and control_page.h.
"""

import errno
import fcntl
import os

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.errno cimport errno as c_errno
from libc.stdint cimport int64_t, uint8_t, uint64_t
from posix.mman cimport MAP_FAILED, MAP_SHARED, PROT_READ, PROT_WRITE, mmap, munmap
from posix.unistd cimport close

from actornet.errors import RingError
from actornet.limits import CORES_MAX, RING_BYTES

CORE_COUNTERS = AN_CORE_COUNTERS
OWNER_COUNTERS = AN_OWNER_COUNTERS
PASSIVE = AN_PASSIVE
ACTIVE = AN_ACTIVE
FENCED = AN_FENCED
NO_LEASE = AN_NO_LEASE


cdef int shared_file(str name, size_t size_bytes, bytes start) except -1:
    """A memfd of fixed size (a file that shrinks would kill its readers by SIGBUS) that begins with `start`."""
    cdef int fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, size_bytes)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        os.pwrite(fd, start, 0)
    except BaseException:
        os.close(fd)
        raise
    return fd


@cython.final
cdef class Ring:
    """A bounded queue of messages (0 bytes to a little under the ring's size) from one process to one other.

    One producer pushes, one consumer pops, without locks. After the death of either, a new process that attaches the
    same descriptors goes on where it stopped; it must not start before the dead one is reaped. Messages that a dead
    consumer popped are gone with it; one that it had peeked and not yet passed is delivered again. Whoever notices that
    a producer died calls `wake`, for the messages that it pushed and did not announce.

    Raises RingError when the other process left something that is no ring or no message.
    """

    def __cinit__(self, int fd, int wake_fd):
        self.fd = self.wake_fd = -1
        self.fd = os.dup(fd)
        self.wake_fd = os.dup(wake_fd)
        if an_ring_map(&self.ring, self.fd) < 0:
            if c_errno == errno.EINVAL:
                raise RingError(f"descriptor {fd} is not a ring of this version; make rings with Ring.create")
            raise OSError(c_errno, f"ring on descriptor {fd} cannot be mapped: {os.strerror(c_errno)}")
        self.name = (<bytes>self.ring.page.name[:AN_RING_NAME_BYTES]).rstrip(b"\0").decode(errors="replace")

    def __dealloc__(self):
        an_ring_unmap(&self.ring)
        if self.fd >= 0:
            close(self.fd)
        if self.wake_fd >= 0:
            close(self.wake_fd)

    @classmethod
    def create(cls, str name, size_t bytes=RING_BYTES):
        """A new empty ring of `bytes` (a power of two, at least a page)."""
        cdef uint64_t magic = AN_RING_MAGIC
        assert bytes & (bytes - 1) == 0 and bytes >= os.sysconf("SC_PAGESIZE"), f"ring {name}: {bytes} bytes"
        start = (<char *>&magic)[:sizeof(magic)] + name.encode()[:AN_RING_NAME_BYTES]
        fd = shared_file(f"actornet-{name}", bytes + os.sysconf("SC_PAGESIZE"), start)
        try:
            wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            try:
                return cls(fd, wake_fd)
            finally:
                os.close(wake_fd)
        finally:
            os.close(fd)

    def push(self, message, body=None):
        """Producer: append one message, `body` behind `message` if given; both bytes-like. False when full (counted).

        The consumer is not woken: call `wake` once behind a burst. Raises RingError when the message is larger than
        the ring.
        """
        cdef Py_buffer first, second
        if body is None and PyBytes_CheckExact(message):
            return self.push_bytes(
                <const uint8_t *>PyBytes_AS_STRING(message), <size_t>PyBytes_GET_SIZE(message), NULL, 0
            ) == 1
        PyObject_GetBuffer(message, &first, PyBUF_SIMPLE)
        try:
            PyObject_GetBuffer(b"" if body is None else body, &second, PyBUF_SIMPLE)
            try:
                return self.push_bytes(
                    <const uint8_t *>first.buf, <size_t>first.len, <const uint8_t *>second.buf, <size_t>second.len
                ) == 1
            finally:
                PyBuffer_Release(&second)
        finally:
            PyBuffer_Release(&first)

    def pop(self):
        """Consumer: take the oldest message; None when there is none."""
        cdef size_t length = 0
        cdef const uint8_t *message
        message = self.peek(&length)
        if message == NULL:
            return None
        result = PyBytes_FromStringAndSize(<const char *>message, <Py_ssize_t>length)
        self.advance()
        return result

    def pop_many(self, Py_ssize_t limit):
        """Consumer: take up to `limit` messages, oldest first. Whole messages before a damaged one are given first."""
        cdef const uint8_t *message
        cdef size_t length
        cdef int64_t span
        cdef uint64_t position = an_ring_head(&self.ring)
        cdef list messages = []
        while limit > 0:
            span = an_ring_read(&self.ring, position, &message, &length)
            if span <= 0:
                if span < 0 and not messages:
                    self._refuse(span, 0)
                break
            messages.append(PyBytes_FromStringAndSize(<const char *>message, <Py_ssize_t>length))
            position += <uint64_t>span
            limit -= 1
        if messages:
            an_ring_release(&self.ring, position)
        return messages

    def clear(self):
        """Consumer: drop every message, damaged ones included."""
        cdef int result = an_ring_clear(&self.ring)
        if result < 0:
            self._refuse(result, 0)

    def __len__(self):
        """Bytes in use, headers included; 0 when no message waits. Any process may ask."""
        return an_ring_used(&self.ring)

    @property
    def capacity(self):
        """Bytes that messages and their headers (8 bytes each, padded to 8) may take."""
        return self.ring.capacity

    @property
    def full(self):
        """Pushes refused because the ring was full, by all producers so far."""
        return an_word_load(&self.ring.page.full)

    cpdef bint wake(self) noexcept nogil:
        """Producer: wake the consumer if it sleeps; True if it had to. Cheap when it does not sleep."""
        return an_ring_wake(&self.ring, self.wake_fd)

    cpdef bint sleep_begin(self) noexcept nogil:
        """Consumer: declare sleep. True: wait until `fileno` is readable, then `sleep_end`; False: messages wait."""
        return an_ring_sleep_begin(&self.ring)

    cpdef void sleep_end(self) noexcept nogil:
        """Consumer: declare that it is awake, whatever woke it, and reset `fileno`."""
        an_ring_sleep_end(&self.ring, self.wake_fd)

    def fileno(self):
        """The descriptor that becomes readable when a sleeping consumer is woken."""
        return self.wake_fd

    cdef int push_bytes(self, const uint8_t *a, size_t a_bytes, const uint8_t *b, size_t b_bytes) except -1 nogil:
        cdef int result = an_ring_push(&self.ring, a, a_bytes, b, b_bytes)
        if result < 0:
            self._refuse(result, a_bytes + b_bytes)
        return result

    cdef const uint8_t *peek(self, size_t *length) except? NULL nogil:
        cdef const uint8_t *message = NULL
        cdef int result = an_ring_peek(&self.ring, &message, length)
        if result < 0:
            self._refuse(result, 0)
        return message

    cdef void advance(self) noexcept nogil:
        an_ring_advance(&self.ring)

    cdef int _refuse(self, int64_t result, size_t length) except -1 with gil:
        if result == AN_RING_TOO_LARGE:
            raise RingError(
                f"ring {self.name}: a message of {length} bytes does not fit in {self.ring.capacity}; "
                "send less at once or make the ring larger"
            )
        raise RingError(
            f"ring {self.name}: damaged between byte {self.ring.page.head} and {self.ring.page.tail}; "
            "clear it and restart the process at its other end"
        )


@cython.final
cdef class ControlPage:
    """What a node's processes tell each other continually, one 64-bit word each, every word with one writer.

    The owner system writes `committed` of each core, `watermark`, `lsn_logged`, `lsn_applied`, `epoch`, `followed`,
    `lease_until_ns`, `alert_until_ns`, `role` (PASSIVE, ACTIVE or FENCED), `owner_beat` and OWNER_COUNTERS counters; a core
    writes its `core_beat` and CORE_COUNTERS counters. What a counter's index means is for its writer to say. Raises IndexError
    for a core or counter that is not there.
    """

    def __cinit__(self, int fd, int cores):
        self.fd = -1
        self.page = NULL
        self.page_bytes = page_bytes(cores)
        self.cores = cores
        self.fd = os.dup(fd)
        if os.fstat(self.fd).st_size != self.page_bytes:
            raise RingError(f"descriptor {fd} is not a control page of {cores} cores; make it with ControlPage.create")
        page = mmap(NULL, self.page_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, self.fd, 0)
        if page == MAP_FAILED:
            raise OSError(c_errno, f"control page on descriptor {fd} cannot be mapped: {os.strerror(c_errno)}")
        self.page = <an_control_page *>page
        if self.page.magic != AN_CONTROL_MAGIC or self.page.cores != <uint64_t>cores:
            raise RingError(f"descriptor {fd} is not a control page of {cores} cores; make it with ControlPage.create")

    def __dealloc__(self):
        if self.page != NULL:
            munmap(self.page, self.page_bytes)
        if self.fd >= 0:
            close(self.fd)

    @classmethod
    def create(cls, int cores):
        """A new page for cores 0 to `cores` - 1; words are 0, so the role is PASSIVE, and no lease is needed."""
        assert 1 <= cores <= CORES_MAX, f"control page: {cores} cores"
        cdef uint64_t[2] start = [AN_CONTROL_MAGIC, <uint64_t>cores]
        fd = shared_file("actornet-control", page_bytes(cores), (<char *>start)[:sizeof(start)])
        try:
            made = cls(fd, cores)
            made.lease_until_ns = AN_NO_LEASE
            return made
        finally:
            os.close(fd)

    def committed(self, int core):
        """How many of the core's requests, in the order that it sent them, are below the commit watermark."""
        return an_word_load(self.committed_pointer(core))

    def set_committed(self, int core, uint64_t sequence):
        an_word_store(self.committed_pointer(core), sequence)

    def core_beat(self, int core):
        """Turns of the core's loop."""
        return an_word_load(self.beat_pointer(core))

    def set_core_beat(self, int core, uint64_t turns):
        an_word_store(self.beat_pointer(core), turns)

    def core_counters(self, int core):
        """The core's counters, by index."""
        return [an_word_load(self.counter_pointer(core, index)) for index in range(AN_CORE_COUNTERS)]

    def core_count(self, int core, int index, uint64_t more=1):
        """Core: add to one of its counters."""
        an_word_add(self.counter_pointer(core, index), more)

    def owner_counters(self):
        """The owner system's counters, by index."""
        return [an_word_load(self.owner_counter_pointer(index)) for index in range(AN_OWNER_COUNTERS)]

    def owner_count(self, int index, uint64_t more=1):
        """Owner system: add to one of its counters."""
        an_word_add(self.owner_counter_pointer(index), more)

    @property
    def watermark(self):
        """The LSN that is as durable as the deployment asks for; outputs that depend on later ones wait (G3)."""
        return an_word_load(&self.page.watermark)

    @watermark.setter
    def watermark(self, uint64_t lsn):
        an_word_store(&self.page.watermark, lsn)

    @property
    def followed(self):
        """Whether a backup is to know what waits in the cores; see `actornet.engine.unsent`."""
        return an_word_load(&self.page.followed) != 0

    @followed.setter
    def followed(self, bint counts):
        an_word_store(&self.page.followed, counts)

    @property
    def lsn_logged(self):
        """The last LSN in this node's log."""
        return an_word_load(&self.page.lsn_logged)

    @lsn_logged.setter
    def lsn_logged(self, uint64_t lsn):
        an_word_store(&self.page.lsn_logged, lsn)

    @property
    def lsn_applied(self):
        """The last LSN that this node's owners and flows have seen."""
        return an_word_load(&self.page.lsn_applied)

    @lsn_applied.setter
    def lsn_applied(self, uint64_t lsn):
        an_word_store(&self.page.lsn_applied, lsn)

    @property
    def epoch(self):
        """The primary's term that this node knows of."""
        return an_word_load(&self.page.epoch)

    @epoch.setter
    def epoch(self, uint64_t epoch):
        an_word_store(&self.page.epoch, epoch)

    @property
    def lease_until_ns(self):
        """The time of CLOCK_BOOTTIME from which on no packet may leave; NO_LEASE: no witness limits it (G7)."""
        return an_word_load(&self.page.lease_until_ns)

    @lease_until_ns.setter
    def lease_until_ns(self, uint64_t until_ns):
        an_word_store(&self.page.lease_until_ns, until_ns)

    @property
    def alert_until_ns(self):
        """Until then (CLOCK_MONOTONIC) a takeover may follow at once."""
        return an_word_load(&self.page.alert_until_ns)

    @alert_until_ns.setter
    def alert_until_ns(self, uint64_t until_ns):
        an_word_store(&self.page.alert_until_ns, until_ns)

    @property
    def role(self):
        """PASSIVE, ACTIVE or FENCED: only an active node emits packets (G7)."""
        return an_word_load(&self.page.role)

    @role.setter
    def role(self, uint64_t role):
        assert role <= AN_FENCED, f"control page: role {role}"
        an_word_store(&self.page.role, role)

    @property
    def owner_beat(self):
        """Turns of the owner system's loop."""
        return an_word_load(&self.page.beat)

    @owner_beat.setter
    def owner_beat(self, uint64_t turns):
        an_word_store(&self.page.beat, turns)

    cdef uint64_t *committed_pointer(self, int core) except NULL:
        return &self._core(core).committed

    cdef uint64_t *beat_pointer(self, int core) except NULL:
        return &self._core(core).beat

    cdef uint64_t *counter_pointer(self, int core, int index) except NULL:
        if not 0 <= index < AN_CORE_COUNTERS:
            raise IndexError(f"control page: counter {index} of a core, which has {AN_CORE_COUNTERS}")
        return &self._core(core).counters[index]

    cdef uint64_t *owner_counter_pointer(self, int index) except NULL:
        if not 0 <= index < AN_OWNER_COUNTERS:
            raise IndexError(f"control page: counter {index} of the owner system, which has {AN_OWNER_COUNTERS}")
        return &self.page.counters[index]

    cdef uint64_t *lease_pointer(self) noexcept:
        return &self.page.lease_until_ns

    cdef const uint64_t *followed_pointer(self) noexcept:
        return &self.page.followed

    cdef an_core_words *_core(self, int core) except NULL:
        if not 0 <= core < self.cores:
            raise IndexError(f"control page: core {core} of {self.cores}")
        return &self.page.core[core]


cdef size_t page_bytes(int cores) noexcept:
    return sizeof(an_control_page) + <size_t>cores * sizeof(an_core_words)
