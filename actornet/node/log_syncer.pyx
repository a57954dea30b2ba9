"""Brings the log to the disk, off the owner system's loop.

By a thread that never holds the interpreter. Others may take its CPU at any point, for milliseconds; with the interpreter in
its hands that would take the owner system along, whatever the priority of that, and a peer would hear nothing for so long.
For the same reason it `hurries` when the owner system does: in the kernel it locks pages that the next record may need.
"""

from libc.errno cimport EINTR, errno
from libc.stdint cimport uint64_t
from posix.unistd cimport fdatasync, read, write

import os
import threading

from actornet.limits import LOG_SYNC_S
from actornet.node.thread import leave_sockets, run_early, run_first

cdef extern from "control_page.h" nogil:
    uint64_t an_word_load(const uint64_t *word)
    void an_word_store(uint64_t *word, uint64_t value)

cdef extern from "<poll.h>" nogil:
    enum:
        POLLIN

    struct pollfd:
        int fd
        short events, revents

    int poll(pollfd *fds, unsigned long count, int timeout_ms)

cdef int period_ms = <int>(LOG_SYNC_S * 1000)


cdef class LogSyncer:
    """A thread that syncs the log's file now and then, and `soon` when asked; `error` is why it has ended.

    What was in the log when `soon` returned a number is on the disk once `synced` has reached that. Raises LogError if the
    file cannot be opened.
    """

    cdef object log, thread
    cdef int fd, due             # the file; readable when it is to be synced soon
    cdef uint64_t asked, done, failed, ended, count

    def __cinit__(self):
        self.fd = self.due = -1

    def __init__(self, log):
        self.log = log
        try:
            self.fd = os.open(log.file, os.O_RDWR | os.O_CLOEXEC)
            self.due = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        except OSError as error:
            raise log.io_failure(error.errno, error.strerror) from None
        self.thread = threading.Thread(target=self._run, name="log-sync", daemon=True)
        self.thread.start()

    def __dealloc__(self):
        for fd in (self.fd, self.due):
            if fd >= 0:
                os.close(fd)

    def soon(self) -> int:
        an_word_store(&self.asked, self.asked + 1)
        self._wake()
        return self.asked

    @property
    def synced(self) -> int:
        return an_word_load(&self.done)

    @property
    def syncs(self) -> int:
        """How often it was tried."""
        return an_word_load(&self.count)

    @property
    def error(self):
        cdef uint64_t failed = an_word_load(&self.failed)
        return self.log.io_failure(failed, os.strerror(failed)) if failed else None

    def hurry(self, bint hurries) -> None:
        """The thread is to run before ordinary ones, or as one of them."""
        if hurries:
            run_first(thread=self.thread.native_id)
        else:
            run_early(nice=0, thread=self.thread.native_id)

    def close(self) -> None:
        an_word_store(&self.ended, 1)
        self._wake()
        self.thread.join()

    def _wake(self):
        cdef uint64_t one = 1
        write(self.due, &one, sizeof(one))

    def _run(self):
        leave_sockets()  # the kernel does not end a thread that waits for the disk
        with nogil:
            self._sync()

    cdef void _sync(self) noexcept nogil:
        cdef pollfd due
        cdef uint64_t asked, times
        due.fd, due.events = self.due, POLLIN
        while not an_word_load(&self.ended):
            poll(&due, 1, period_ms)
            read(self.due, &times, sizeof(times))
            asked = an_word_load(&self.asked)
            an_word_store(&self.count, self.count + 1)
            while fdatasync(self.fd) != 0:
                if errno != EINTR:
                    an_word_store(&self.failed, errno)
                    return  # never tried again: after a failed sync the kernel may have dropped the pages
            an_word_store(&self.done, asked)
