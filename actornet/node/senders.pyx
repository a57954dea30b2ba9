"""Which cores of this host send packets: so that those of a new primary begin after those of a killed one have ended (G7).

A killed process is not gone. One of its threads may be in the kernel, about to send what it had decided upon, and have lost
its CPU there; on a host that both nodes share those that take over are what it waits for, and it would send tens of
milliseconds later, after packets that came after. So a core has its place for as long as it is active: a mutex in memory that
the nodes of a deployment share on one host. The kernel lets go of it when the thread ends (robust), and whoever waits lends the
thread its priority until then (priority inheritance), so that it ends at once.
"""

from libc.errno cimport errno
from libc.stdint cimport uint8_t, uint64_t
from posix.mman cimport MAP_FAILED, MAP_SHARED, PROT_READ, PROT_WRITE, mmap, munmap

import fcntl
import os
from contextlib import suppress

import structlog

from actornet.limits import CORES_MAX

cdef extern from "<errno.h>":
    enum:
        EBUSY, EEXIST, EINVAL, EOWNERDEAD

cdef extern from "<time.h>" nogil:
    struct timespec:
        long tv_sec, tv_nsec

    enum:
        CLOCK_MONOTONIC

    int clock_gettime(int clock, timespec *now)
    int nanosleep(const timespec *wanted, timespec *left)

cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_mutex_t:
        pass

    ctypedef struct pthread_mutexattr_t:
        pass

    enum:
        PTHREAD_PROCESS_SHARED, PTHREAD_MUTEX_ROBUST, PTHREAD_PRIO_INHERIT

    int pthread_mutexattr_init(pthread_mutexattr_t *attributes)
    int pthread_mutexattr_destroy(pthread_mutexattr_t *attributes)
    int pthread_mutexattr_setpshared(pthread_mutexattr_t *attributes, int shared)
    int pthread_mutexattr_setrobust(pthread_mutexattr_t *attributes, int robustness)
    int pthread_mutexattr_setprotocol(pthread_mutexattr_t *attributes, int protocol)
    int pthread_mutex_init(pthread_mutex_t *mutex, const pthread_mutexattr_t *attributes)
    int pthread_mutex_trylock(pthread_mutex_t *mutex)
    int pthread_mutex_clocklock(pthread_mutex_t *mutex, int clock, const timespec *until)
    int pthread_mutex_consistent(pthread_mutex_t *mutex)
    int pthread_mutex_unlock(pthread_mutex_t *mutex)

cdef extern from "ring.h" nogil:
    enum:
        AN_LINE

DEF LOOK_NS = 50_000

DIRECTORY = "/dev/shm"

cdef size_t places = CORES_MAX
cdef size_t size = AN_LINE * places
_log = structlog.get_logger()


def path_of(wire) -> str:
    """Where processes of this user and PID namespace have the places of the deployment with this number."""
    return f"{DIRECTORY}/actornet-places-{os.geteuid()}-{os.stat('/proc/self/ns/pid').st_ino:x}-{wire:08x}"


cdef class Senders:
    """The places of all cores of a deployment's nodes on this host; `wire` is the deployment's number.

    Only processes of one user that see each other (one PID namespace) share them. Where there is no such memory, which is
    logged, nobody has a place, and a takeover does not wait.
    """

    cdef uint8_t *memory
    cdef object path
    cdef int fd

    def __init__(self, wire):
        self.path = path_of(wire)
        self.fd = -1
        try:
            self.fd = self._open()
            self.memory = _map(self.fd)
        except OSError as error:
            self.close()
            _log.warning("nodes on this host cannot tell when each other's cores have ended",
                         error=f"{self.path}: {error.strerror or error}")

    cdef int _open(self) except -1:
        """The file, made if there is none, and locked (shared) for as long as it is used."""
        cdef int fd
        while True:
            try:
                fd = os.open(self.path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            except FileNotFoundError:
                self._make()
                continue
            try:
                fcntl.flock(fd, fcntl.LOCK_SH)
                status = os.fstat(fd)
                if status.st_uid != os.geteuid() or status.st_size != size:
                    raise FileExistsError(EEXIST, "it is not of this program and user: remove it")
            except OSError:
                os.close(fd)
                raise
            if status.st_nlink:
                return fd
            os.close(fd)  # its last user has just removed it

    cdef int _make(self) except -1:
        """A file that has all places, or none if another process was faster."""
        cdef pthread_mutexattr_t attributes
        cdef uint8_t *memory
        cdef size_t i
        cdef int error = 0, fd = os.open(DIRECTORY, os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(fd, size)
            memory = _map(fd)
            pthread_mutexattr_init(&attributes)
            error = error or pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED)
            error = error or pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST)
            error = error or pthread_mutexattr_setprotocol(&attributes, PTHREAD_PRIO_INHERIT)
            for i in range(places):
                error = error or pthread_mutex_init(<pthread_mutex_t *>(memory + AN_LINE * i), &attributes)
            pthread_mutexattr_destroy(&attributes)
            munmap(memory, size)
            if error:
                raise OSError(error, os.strerror(error))
            with suppress(FileExistsError):
                os.link(f"/proc/thread-self/fd/{fd}", self.path, src_dir_fd=fd)  # which has Python call linkat(2)
        finally:
            os.close(fd)
        return 0

    def close(self) -> None:
        """This process is done with it; the last one removes the file."""
        if self.fd < 0:
            return
        with suppress(BlockingIOError):
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(self.path)
        os.close(self.fd)
        self.fd = -1

    cdef pthread_mutex_t *_place(self, size_t core) noexcept nogil:
        return <pthread_mutex_t *>(self.memory + AN_LINE * core)

    def take(self, size_t core) -> bool:
        """This thread sends from now on, as the core of this number, until it `leaves` or ends. False: it has no place, as
        another thread has it."""
        assert core < places
        return self.memory != NULL and _lock(self._place(core), NULL) == 0

    def leave(self, size_t core) -> None:
        """This thread, which has taken the place, sends no more."""
        assert core < places and self.memory != NULL
        pthread_mutex_unlock(self._place(core))

    def wait(self, uint64_t limit_ns) -> int:
        """Wait until nobody sends, for `limit_ns` at most in all; returns how many still do."""
        cdef timespec until
        cdef size_t i
        cdef int left = 0
        if self.memory == NULL:
            return 0
        with nogil:
            clock_gettime(CLOCK_MONOTONIC, &until)
            until.tv_sec += limit_ns // 1_000_000_000
            until.tv_nsec += limit_ns % 1_000_000_000
            if until.tv_nsec >= 1_000_000_000:
                until.tv_sec += 1
                until.tv_nsec -= 1_000_000_000
            for i in range(places):
                if _lock(self._place(i), &until) == 0:
                    pthread_mutex_unlock(self._place(i))
                else:
                    left += 1
        return left


cdef int _lock(pthread_mutex_t *place, const timespec *until) noexcept nogil:
    """0 once this thread has the mutex; another error otherwise, at that monotonic time at the latest (NULL: at once)."""
    cdef timespec now, nap
    cdef int error = pthread_mutex_trylock(place)
    if error == EBUSY and until != NULL:
        error = pthread_mutex_clocklock(place, CLOCK_MONOTONIC, until)
        while error == EINVAL or error == EBUSY:  # Linux before 5.14 cannot wait by this clock
            clock_gettime(CLOCK_MONOTONIC, &now)
            if now.tv_sec > until.tv_sec or (now.tv_sec == until.tv_sec and now.tv_nsec >= until.tv_nsec):
                break
            nap.tv_sec, nap.tv_nsec = 0, LOOK_NS
            nanosleep(&nap, NULL)
            error = pthread_mutex_trylock(place)
    if error == EOWNERDEAD:
        error = pthread_mutex_consistent(place)
    return error


cdef uint8_t *_map(int fd) except NULL:
    """The file in memory, for good: the kernel refers to a place that a thread has until that ends."""
    cdef void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)
    if memory == MAP_FAILED:
        raise OSError(errno, os.strerror(errno))
    return <uint8_t *>memory
