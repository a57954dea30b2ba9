"""What each core of a node is at, in memory that outlives its process; see black_box.h."""

import os

cimport cython
from libc.errno cimport errno as c_errno
from libc.stdint cimport uint64_t
from libc.string cimport memcmp
from posix.mman cimport MAP_FAILED, MAP_SHARED, PROT_READ, PROT_WRITE, mmap, munmap
from posix.unistd cimport close

from actornet.engine.ring cimport shared_file
from actornet.engine.types cimport an_key
from actornet.engine.wire cimport five_tuple

from actornet.errors import RingError
from actornet.limits import CORES_MAX, SHUNNED_MAX, SHUNNED_S

cdef uint64_t shunned_ns = <uint64_t>(SHUNNED_S * 1e9)

assert AN_SHUNNED == SHUNNED_MAX


@cython.final
cdef class BlackBox:
    """A box per core. Raises RingError for a descriptor that has none."""

    def __cinit__(self, int fd, int cores):
        self.fd = -1
        self.boxes = NULL
        self.boxes_bytes = <size_t>cores * sizeof(an_black_box)
        self.cores = cores
        self.fd = os.dup(fd)
        if os.fstat(self.fd).st_size != self.boxes_bytes:
            raise RingError(f"descriptor {fd} has no black boxes of {cores} cores; make them with BlackBox.create")
        boxes = mmap(NULL, self.boxes_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, self.fd, 0)
        if boxes == MAP_FAILED:
            raise OSError(c_errno, f"black boxes on descriptor {fd} cannot be mapped: {os.strerror(c_errno)}")
        self.boxes = <an_black_box *>boxes

    def __dealloc__(self):
        if self.boxes != NULL:
            munmap(self.boxes, self.boxes_bytes)
        if self.fd >= 0:
            close(self.fd)

    @classmethod
    def create(cls, int cores):
        """New boxes for cores 0 to `cores` - 1, all of them empty."""
        assert 1 <= cores <= CORES_MAX, f"black boxes: {cores} cores"
        fd = shared_file("actornet-black-boxes", <size_t>cores * sizeof(an_black_box), b"")
        try:
            return cls(fd, cores)
        finally:
            os.close(fd)

    def last(self, int core):
        """(phase, five-tuple, port's index) of the handler that runs, or that ran when the core's process ended; None: none."""
        cdef an_black_box *box = self.box(core)
        cdef uint64_t handler = box.handler
        if handler == 0:
            return None
        return handler - 1, five_tuple(&box.key), box.key.port

    def condemn(self, int core, uint64_t now_ns):
        """Core, before it begins: the handler that `last` tells of was the end of the process before this one; its key is shunned."""
        cdef an_black_box *box = self.box(core)
        if box.handler == 0:
            return
        shun(box, &box.key, now_ns, box.handler)
        box.fatal += 1
        box.handler = 0

    cdef an_black_box *box(self, int core) except NULL:
        if not 0 <= core < self.cores:
            raise IndexError(f"black box of core {core} of {self.cores}")
        return &self.boxes[core]


cdef int shun(an_black_box *box, const an_key *key, uint64_t now_ns, uint64_t due) noexcept:
    """Shun one more key, in place of the one that was silent for the longest time if there are too many."""
    cdef an_shunned *chosen = shunned(box, key, now_ns)
    cdef uint64_t i
    if chosen == NULL and box.shunned_count < AN_SHUNNED:
        chosen = &box.shunned[box.shunned_count]
        box.shunned_count += 1
    if chosen == NULL:
        chosen = &box.shunned[0]
        for i in range(1, AN_SHUNNED):
            if box.shunned[i].seen_ns < chosen.seen_ns:
                chosen = &box.shunned[i]
    chosen.key, chosen.seen_ns, chosen.due = key[0], now_ns, due
    return 0


cdef an_shunned *shunned(an_black_box *box, const an_key *key, uint64_t now_ns) noexcept:
    """The key's slot, if it is shunned: until none of its packets has come for SHUNNED_S."""
    cdef uint64_t i
    for i in range(min(box.shunned_count, <uint64_t>AN_SHUNNED)):
        if memcmp(&box.shunned[i].key, key, sizeof(an_key)) == 0 and now_ns < box.shunned[i].seen_ns + shunned_ns:
            return &box.shunned[i]
    return NULL
