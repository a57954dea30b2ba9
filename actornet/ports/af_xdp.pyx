"""Live interfaces by AF_XDP: frames straight from the driver, or from the kernel's generic hook, through shared rings.

Theory of operation. The interface's XDP program (xdp.py) gives each RX queue's frames to the socket that stands for the
queue in its map. A core has a socket for every queue whose number is its own modulo `cores`; what comes to the wrong core
is handed over by the core. The sockets are bound when the port is made, behind a closed gate: they are not in the map, so
a passive port's interface is the kernel's. `activate` puts them there, which takes some microseconds.

AF_XDP knows neither checksum nor segmentation offload, but virtual interfaces hand over frames that count on both. What
was left undone is seen from the frame at reception and done in software at transmission (gso.h).
"""

import ctypes
import errno
import fcntl
import os
import select
import socket
import struct
import time

from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free

from actornet.engine.types cimport an_packet
from actornet.ports.live cimport LivePort, monotonic_ns

from actornet.errors import PortError
from actornet.limits import BURST_PACKETS, FRAME_BYTES_MAX, PORT_QUEUE_BYTES, XDP_QUEUES_MAX, XSK_FRAMES
from actornet.ports.xdp import attach

cdef extern from "xsk.h" nogil:
    struct an_xsk_counts:
        uint64_t rx_truncated
        uint64_t tx_full
        uint64_t tx_oversized
        uint64_t tx_refused

    struct an_xsk:
        int fd
        uint32_t queue
        an_xsk_counts counts

    int an_xsk_open(an_xsk *s, uint32_t frames, uint32_t burst, uint32_t frame_bytes_max)
    int an_xsk_bind(an_xsk *s, uint32_t ifindex, uint32_t queue)
    void an_xsk_close(an_xsk *s)
    int an_xsk_rx(an_xsk *s, an_packet *packets, int limit, int port, uint32_t mtu)
    int an_xsk_tx(an_xsk *s, an_packet **packets, int count, uint32_t mtu, int *at, int *error)
    void an_xsk_drain(an_xsk *s)
    void an_xsk_send_queue(const an_xsk *s, int bytes)
    uint64_t an_xsk_dropped(const an_xsk *s)

cdef extern from "<linux/if_packet.h>":
    int PACKET_ADD_MEMBERSHIP, PACKET_MR_PROMISC

cdef extern from "<sys/socket.h>":
    int SOL_PACKET

cdef extern from "<linux/sockios.h>":
    int SIOCETHTOOL, SIOCGIFMTU

DEF WATCH_NS = 10_000_000        # how often a port looks at its link: an AF_XDP socket does not tell
DEF STATISTICS_NS = 100_000_000  # how often the kernel is asked for its drops, and the interface for its queues
DEF GET_CHANNELS = 0x3c
DEF SET_CHANNELS = 0x3d
DEF RELEASE_S = 2.0              # a queue is free only when the kernel has taken its last socket apart


cdef class AfXdpPort(LivePort):
    """The network interface `interface`, by AF_XDP; passive until `activate`.

    With `cores` > 1 each core makes a port of its own, with the same `group`; an interface with fewer RX queues than
    there are cores is given as many, if its driver can. `native` True or False asks for XDP in the driver or for the
    generic hook, None takes the driver if it can; `mode` tells which it is. `mac` as for every live port.

    Raises PortError without the privilege, if the interface is absent, down or not Ethernet, has too few queues, or
    carries another XDP program.
    """

    cdef an_xsk *sockets
    cdef int socket_count
    cdef int turn
    cdef uint32_t mtu
    cdef object attachment
    cdef object native
    cdef object membership           # a packet socket that keeps the interface promiscuous
    cdef object epoll                # of all queues' sockets, readable if one is
    cdef int group
    cdef readonly int queues
    cdef uint64_t next_watch_ns
    cdef uint64_t next_statistics_ns
    cdef dict kernel_dropped         # by queue, so far of its socket

    def __init__(self, str name, str interface, int group=0, int cores=1, int core=0, bytes mac=None, native=None):
        LivePort.__init__(self, name, interface, cores, core, mac)
        self.group = group
        self.native = native
        for counter in ("rx_kernel_dropped", "rx_truncated", "tx_full", "tx_oversized", "tx_refused", "queues_changed"):
            self.counters[counter] = 0
        self.epoll = select.epoll()
        self.kernel_dropped = {}
        deadline = time.monotonic() + RELEASE_S
        while True:
            try:
                self._attach()
                break
            except QueueBusyError:  # of a process that has just died
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.005)
        self.mac = self.mac or self._interface_mac()
        self.closed = False

    def __dealloc__(self):
        cdef int i
        if self.sockets != NULL:
            for i in range(self.socket_count):
                an_xsk_close(&self.sockets[i])
            free(self.sockets)

    @property
    def mode(self) -> str:
        """How the program is attached: `native` or `generic`."""
        return self.attachment.mode if self.attachment is not None else ""

    def fileno(self) -> int:
        return self.epoll.fileno()

    # -- attaching ----------------------------------------------------------------------------------------------------

    def _attach(self):
        ifindex = self._check_interface()
        self._release_sockets()
        self.mtu, = self._request(SIOCGIFMTU, "16xi20x")
        self.queues = self._enough_queues()
        mode = None if self.native is None else "native" if self.native else "generic"
        try:
            self.attachment = attach(ifindex, self.group, mode)
        except PortError as error:
            raise self._error(str(error).replace("INTERFACE", self.device)) from None
        try:
            self._open_sockets(ifindex)
            self.membership = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
            self.membership.setsockopt(
                SOL_PACKET, PACKET_ADD_MEMBERSHIP, struct.pack("iHH8x", ifindex, PACKET_MR_PROMISC, 0))
        except BaseException:
            self._release_sockets()
            raise
        self.ifindex = ifindex

    cdef int _open_sockets(self, ifindex) except -1:
        cdef int error = 0, queue
        numbers = range(self.core, self.queues, self.cores)
        self.sockets = <an_xsk *>calloc(len(numbers), sizeof(an_xsk))
        if self.sockets == NULL:
            raise MemoryError("AF_XDP sockets")
        for queue in numbers:
            error = an_xsk_open(&self.sockets[self.socket_count], XSK_FRAMES, BURST_PACKETS, FRAME_BYTES_MAX)
            if error < 0:
                raise self._refusal(-error)
            self.socket_count += 1
            error = an_xsk_bind(&self.sockets[self.socket_count - 1], ifindex, queue)
            if error == -errno.EBUSY:
                raise QueueBusyError(str(self._error(f"queue {queue} belongs to another AF_XDP socket: end who has it")))
            if error < 0:
                raise self._refusal(-error)
            an_xsk_send_queue(&self.sockets[self.socket_count - 1], PORT_QUEUE_BYTES)
            self.epoll.register(self.sockets[self.socket_count - 1].fd, select.EPOLLIN)
        return 0

    def _refusal(self, number):
        if number == errno.EPERM:
            return self._error("AF_XDP sockets need root, or CAP_NET_RAW and CAP_BPF; run as root")
        return self._error(f"this kernel gives no AF_XDP socket ({os.strerror(number)}); Linux 5.9 or later is needed; "
                           "driver af_packet works everywhere")

    def _release_sockets(self):
        cdef int i
        for i in range(self.socket_count):
            an_xsk_close(&self.sockets[i])
        free(self.sockets)
        self.sockets = NULL
        self.socket_count = 0
        self.ifindex = 0
        self.kernel_dropped.clear()
        if self.attachment is not None:
            self.attachment.close()
            self.attachment = None
        if self.membership is not None:
            self.membership.close()
            self.membership = None

    def _release(self):
        if self.socket_count:
            self._close_gate()
        self._release_sockets()
        self.epoll.close()

    # -- queues of the interface --------------------------------------------------------------------------------------

    def _channels(self):
        """ethtool_channels: command, then the most and the number of RX, TX, other and combined ones; None if unknown."""
        channels = ctypes.create_string_buffer(struct.pack("I32x", GET_CHANNELS))
        request = struct.pack("16sP16x", self.device.encode()[:15], ctypes.addressof(channels))
        try:
            fcntl.ioctl(self.probe, SIOCETHTOOL, request)
        except OSError:
            return None
        return struct.unpack("9I", channels.raw[:36])

    def _queue_count(self):
        channels = self._channels()
        return 1 if channels is None else max(1, min(channels[5] + channels[8], XDP_QUEUES_MAX))

    def _enough_queues(self):
        """The number of RX queues; raised to the number of cores if the driver can."""
        channels = self._channels()
        if channels is not None and channels[5] + channels[8] < self.cores:
            _, rx_max, tx_max, _, combined_max, rx, tx, other, combined = channels
            if combined_max >= self.cores:
                wanted = (rx, tx, other, self.cores)
            else:
                wanted = (min(self.cores, rx_max), max(tx, min(self.cores, tx_max)), other, combined)
            value = ctypes.create_string_buffer(struct.pack("9I", SET_CHANNELS, 0, 0, 0, 0, *wanted))
            try:
                fcntl.ioctl(self.probe, SIOCETHTOOL,
                            struct.pack("16sP16x", self.device.encode()[:15], ctypes.addressof(value)))
            except OSError:
                pass
        queues = self._queue_count()
        if queues < self.cores:
            raise self._error(f"{self.cores} cores need as many RX queues, there are {queues}: `ethtool -L "
                              f"{self.device} combined {self.cores}`, fewer cores, or driver af_packet")
        return queues

    # -- the gate -----------------------------------------------------------------------------------------------------

    def _open_gate(self):
        cdef int i
        for i in range(self.socket_count):
            an_xsk_drain(&self.sockets[i])
            try:
                self.attachment.give(self.sockets[i].queue, self.sockets[i].fd)
            except OSError as error:
                raise self._error(f"queue {self.sockets[i].queue} cannot be taken ({error.strerror})") from None

    def _close_gate(self):
        cdef int i
        for i in range(self.socket_count):
            self.attachment.take_back(self.sockets[i].queue)
            an_xsk_drain(&self.sockets[i])
        self._take_statistics()

    # -- packets ------------------------------------------------------------------------------------------------------

    cdef int rx(self, an_packet *packets, int limit) except -1:
        cdef int n = 0, i
        cdef uint64_t now
        assert not self.closed, "the port is closed"
        if self.lost and not self.resume():
            return 0
        now = monotonic_ns()
        if now >= self.next_watch_ns:
            self._watch(now)
            if self.lost:
                return 0
        if not self.active:
            return 0
        if self.turn >= self.socket_count:
            self.turn = 0
        for i in range(self.turn, self.socket_count):
            n += an_xsk_rx(&self.sockets[i], packets + n, limit - n, self.index, self.mtu)
            if n >= limit:
                break
        for i in range(self.turn):
            if n >= limit:
                break
            n += an_xsk_rx(&self.sockets[i], packets + n, limit - n, self.index, self.mtu)
        self.turn += 1
        return n

    cdef int tx(self, an_packet **packets, int count) except -1:
        cdef int sent = 0, at = 0, error = 0, here = 0, attempt
        assert not self.closed, "the port is closed"
        for attempt in range(2):  # the error may be of the past: the link went and came back
            if self.lost and not self.resume():
                break
            if not self.socket_count:
                break
            sent += an_xsk_tx(&self.sockets[0], packets + at, count - at, self.mtu, &here, &error)
            at += here
            if not error:
                break
            self.link_lost()
        if at < count:
            self.counters["tx_down"] += count - at
        if sent < count:
            self._publish()
        return sent

    # -- off the hot path ---------------------------------------------------------------------------------------------

    cdef int _watch(self, uint64_t now) except -1:
        """Look whether the interface is as it was."""
        self.next_watch_ns = now + WATCH_NS
        if not self.attached():
            self.link_lost()
            return 0
        try:
            self.mtu, = self._request(SIOCGIFMTU, "16xi20x")
        except OSError:
            return 0
        if now >= self.next_statistics_ns:
            self.next_statistics_ns = now + STATISTICS_NS
            self._take_statistics()
            if self._queue_count() != self.queues:
                self.counters["queues_changed"] += 1
                self.tell("has another number of queues")
                self.lost = True
                self.ifindex = 0  # attach anew
                self.next_check_ns = 0
        return 0

    cdef int _take_statistics(self) except -1:
        cdef int i
        for i in range(self.socket_count):
            dropped = an_xsk_dropped(&self.sockets[i])
            self.counters["rx_kernel_dropped"] += dropped - self.kernel_dropped.get(self.sockets[i].queue, 0)
            self.kernel_dropped[self.sockets[i].queue] = dropped
        return self._publish()

    cdef int _publish(self) except -1:
        cdef int i
        for i in range(self.socket_count):
            for name, value in (<dict>self.sockets[i].counts).items():
                self.counters[name] += value
            self.sockets[i].counts = an_xsk_counts(0, 0, 0, 0)
        return 0


class QueueBusyError(PortError):
    """A queue belongs to another socket; the kernel takes one that has been closed apart only a little later."""
