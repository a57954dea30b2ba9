"""Tap devices: the port is what the kernel's interface of that name is connected to.

What the kernel sends out of the interface comes in at the port, and what the port sends arrives at the interface; for
hosts, containers and virtual machines on the same machine. An interface that is not there is created, brought up, and
goes with the port; one that was made before (`ip tuntap add dev tap0 mode tap`) stays. With several cores each has a
queue of its own (IFF_MULTI_QUEUE), and the kernel answers a flow on the queue that it came from.
"""

import errno
import fcntl
import os
import struct

from libc.stdint cimport uint64_t

from actornet.engine.types cimport an_packet
from actornet.ports.live cimport LivePort, monotonic_ns

from actornet.limits import BURST_PACKETS, FRAME_BYTES_MAX

cdef extern from "tap.h" nogil:
    struct an_tap_counts:
        uint64_t rx_truncated
        uint64_t tx_full
        uint64_t tx_refused

    struct an_tap:
        int fd
        an_tap_counts counts

    int an_tap_allocate(an_tap *s, int burst, size_t frame_bytes_max)
    void an_tap_free(an_tap *s)
    int an_tap_rx(an_tap *s, an_packet *packets, int limit, int port)
    int an_tap_tx(an_tap *s, an_packet **packets, int count, int *at, int *error)

cdef extern from "<linux/if_tun.h>":
    unsigned TUNSETIFF, TUNSETOFFLOAD, TUNGETIFF
    int IFF_TAP, IFF_NO_PI, IFF_VNET_HDR, IFF_MULTI_QUEUE, IFF_PERSIST
    int TUN_F_CSUM, TUN_F_TSO4, TUN_F_TSO6, TUN_F_TSO_ECN

cdef extern from "<net/if.h>":
    int IFF_UP

cdef extern from "<linux/sockios.h>":
    int SIOCGIFINDEX, SIOCGIFFLAGS, SIOCSIFFLAGS

DEF WATCH_NS = 10_000_000  # how often a port looks at its link


cdef class TapPort(LivePort):
    """A queue of the tap device `interface`, which is created if it is not there; passive until `activate`.

    `mac` is the address that the port goes by: not that of the interface, which is the kernel's end of the wire, but by
    default one made from it. Frames that are yet to be segmented and checksums yet to be completed pass both ways as
    they are (AN_CSUM_PARTIAL).

    Raises PortError without the privilege, if the interface is no tap, or if it is one for a single queue and there are
    several cores.
    """

    cdef an_tap io
    cdef object file
    cdef bint created
    cdef uint64_t next_watch_ns

    def __cinit__(self, *args, **kwargs):
        self.io.fd = -1
        if an_tap_allocate(&self.io, BURST_PACKETS, FRAME_BYTES_MAX) < 0:
            raise MemoryError("frames of a burst")

    def __init__(self, str name, str interface, int cores=1, int core=0, bytes mac=None):
        LivePort.__init__(self, name, interface, cores, core, mac)
        self.counters.update(self.io.counts)
        self.created = True
        self.file = self._open()
        self.io.fd = self.file.fileno()
        if self.mac is None:
            other = self._interface_mac()
            self.mac = bytes((other[0] & 0xFE | 2,)) + other[1:5] + bytes((other[5] ^ 1,))
        self.closed = False

    def __dealloc__(self):
        an_tap_free(&self.io)

    def fileno(self) -> int:
        """The queue's descriptor for poll. Its number stays the same when the interface is made anew, but a
        registration with epoll does not survive that."""
        return self.io.fd

    # -- attaching ----------------------------------------------------------------------------------------------------

    def _open(self):
        try:
            file = open("/dev/net/tun", "r+b", buffering=0)
        except PermissionError:
            raise self._error("tap devices need root, or CAP_NET_ADMIN and access to /dev/net/tun") from None
        except OSError as error:
            raise self._error(f"this kernel has no tap devices: /dev/net/tun: {error.strerror}") from None
        try:
            os.set_blocking(file.fileno(), False)
            self._take_queue(file)
            persistent = self._flags(file) & IFF_PERSIST
            if not persistent:
                self._bring_up()
            self.ifindex = self._check_interface()
            self.created = not persistent
            fcntl.ioctl(file, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN)
        except BaseException:
            file.close()
            raise
        return file

    def _take_queue(self, file):
        """Attach the descriptor to the interface; a single-queue one that others made will do for one core."""
        kinds = [IFF_MULTI_QUEUE] if self.cores > 1 else [0, IFF_MULTI_QUEUE]
        for kind in kinds:
            flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | kind
            try:
                fcntl.ioctl(file, TUNSETIFF, struct.pack("16sH22x", self.device.encode()[:15], flags))
                return
            except OSError as error:
                refused = error
                if error.errno != errno.EINVAL:
                    break
        if refused.errno == errno.EBUSY:
            raise self._error("another process has this tap device; end it, or make it one of several queues")
        if refused.errno == errno.EPERM:
            raise self._error("tap devices need root or CAP_NET_ADMIN, or one made for you: "
                              f"`ip tuntap add dev {self.device} mode tap user $USER`") from None
        if refused.errno == errno.EINVAL:
            several = " multi_queue" if self.cores > 1 else ""
            raise self._error(f"there is an interface of that name that is no tap device that {self.cores} cores can "
                              f"use; make one by `ip tuntap add dev {self.device} mode tap{several}`") from None
        raise self._error(f"the tap device cannot be attached to ({refused.strerror})") from None

    def _flags(self, file):
        return struct.unpack("16xH22x", fcntl.ioctl(file, TUNGETIFF, bytes(40)))[0]

    def _bring_up(self):
        flags, = self._request(SIOCGIFFLAGS, "16xH22x")
        if not flags & IFF_UP:
            fcntl.ioctl(self.probe, SIOCSIFFLAGS, struct.pack("16sH22x", self.device.encode()[:15], flags | IFF_UP))

    def _attach(self):
        """Attach anew; the descriptor keeps its number. Only an interface that was this port's own is made again."""
        if not self.created:
            self._check_interface()
        else:
            try:
                self._request(SIOCGIFINDEX, "16xi20x")
            except OSError:
                pass
            else:
                self._check_interface()  # down, but there
        with self._open() as file:
            os.dup2(file.fileno(), self.io.fd, inheritable=False)

    def _release(self):
        self.counters.update(self.io.counts)
        self.file.close()
        self.file = None
        self.io.fd = -1

    def _open_gate(self):
        self._drain()

    def _close_gate(self):
        self._drain()

    cdef int _drain(self) except -1:
        cdef an_packet packets[32]
        while an_tap_rx(&self.io, packets, 32, 0) > 0:
            pass
        return 0

    # -- packets ------------------------------------------------------------------------------------------------------

    cdef int rx(self, an_packet *packets, int limit) except -1:
        cdef uint64_t now
        cdef int n
        assert not self.closed, "the port is closed"
        if self.lost and not self.resume():
            return 0
        now = monotonic_ns()
        if now >= self.next_watch_ns:
            self.next_watch_ns = now + WATCH_NS
            if not self.attached():
                self.link_lost()
                return 0
        n = an_tap_rx(&self.io, packets, limit, self.index)
        if n < 0:
            self.link_lost()
            return 0
        return n if self.active else 0  # what comes while it is passive is forgotten

    cdef int tx(self, an_packet **packets, int count) except -1:
        cdef int sent = 0, at = 0, error = 0, here = 0, attempt
        assert not self.closed, "the port is closed"
        for attempt in range(2):  # the error may be of the past: the link went and came back
            if self.lost and not self.resume():
                break
            sent += an_tap_tx(&self.io, packets + at, count - at, &here, &error)
            at += here
            if not error:
                break
            self.link_lost()
        if at < count:
            self.counters["tx_down"] += count - at
        if sent < count:
            self.counters.update(self.io.counts)
        return sent
