"""Live interfaces by Linux packet sockets: Ethernet frames as the interface gives and takes them.

Theory of operation. The socket is bound once, when the port is made, behind a closed gate (a filter that refuses every
frame); `activate` opens the gate: its filter then passes the frames that this core is the home of (spread.py).
"""

import os
import socket
import struct

from libc.stdint cimport uint64_t

from actornet.engine.types cimport an_packet
from actornet.ports.live cimport LivePort, monotonic_ns

from actornet.limits import BURST_PACKETS, FRAME_BYTES_MAX, PORT_QUEUE_BYTES
from actornet.ports.live import forward
from actornet.ports.spread import INSTRUCTION_BYTES, filter_for

__all__ = ["AfPacketPort", "forward"]

cdef extern from "af_packet.h" nogil:
    struct an_af_counts:
        uint64_t rx_truncated
        uint64_t rx_refused
        uint64_t tx_full
        uint64_t tx_oversized
        uint64_t tx_refused

    struct an_af_packet:
        int fd
        an_af_counts counts

    int an_af_allocate(an_af_packet *s, int burst, size_t frame_bytes_max)
    void an_af_free(an_af_packet *s)
    int an_af_close_gate(int fd)
    int an_af_open_gate(int fd, const void *code, int count)
    int an_af_rx(an_af_packet *s, an_packet *packets, int limit, int port)
    int an_af_tx(an_af_packet *s, an_packet **packets, int count, int *at, int *error)

cdef extern from "<linux/if_packet.h>":
    int PACKET_ADD_MEMBERSHIP, PACKET_MR_PROMISC, PACKET_AUXDATA, PACKET_VNET_HDR, PACKET_IGNORE_OUTGOING
    int PACKET_STATISTICS

cdef extern from "<sys/socket.h>":
    int SOL_PACKET, SO_SNDBUFFORCE, SO_RCVBUFFORCE

cdef extern from "<linux/if_ether.h>":
    int ETH_P_ALL

DEF STATISTICS_NS = 100_000_000  # how often the kernel is asked for its drops


cdef class AfPacketPort(LivePort):
    """The network interface `interface`, seen through a packet socket; passive until `activate`.

    With `cores` > 1 each core, of which `core` is this one's number, makes a port of its own and takes the frames that it is
    the home of: by `rss_keys`, those of the NF for IPv4 and IPv6, or the symmetric key. `mac` is the address that the port
    goes by, the interface's own if None. Frames larger than the MTU that the interface is to segment, and checksums that it is to complete, pass
    through as they are (AN_CSUM_PARTIAL).

    Raises PortError without the privilege, or if the interface is absent, down or not Ethernet.
    """

    cdef an_af_packet io
    cdef object socket
    cdef object rss_keys
    cdef uint64_t next_statistics_ns

    def __cinit__(self, *args, **kwargs):
        self.io.fd = -1
        if an_af_allocate(&self.io, BURST_PACKETS, FRAME_BYTES_MAX) < 0:
            raise MemoryError("frames of a burst")

    def __init__(self, str name, str interface, int cores=1, int core=0, bytes mac=None, rss_keys=None):
        LivePort.__init__(self, name, interface, cores, core, mac)
        self.rss_keys = rss_keys
        self.counters.update(self.io.counts)
        self.counters["rx_kernel_dropped"] = 0
        self.socket = self._open()
        self.io.fd = self.socket.fileno()
        self.mac = self.mac or self._interface_mac()
        self.closed = False

    def __dealloc__(self):
        an_af_free(&self.io)

    # -- opening ------------------------------------------------------------------------------------------------------

    def _open(self):
        """A socket bound to the interface behind the closed gate."""
        try:
            sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
        except PermissionError:
            raise self._error("packet sockets need root or CAP_NET_RAW; run as root, or grant it to the interpreter "
                              "with `setcap cap_net_raw,cap_net_admin+ep`") from None
        except OSError as error:
            raise self._error(f"this kernel has no packet sockets: {error.strerror}") from None
        try:
            self._bind(sock)
        except BaseException:
            sock.close()
            raise
        return sock

    def _bind(self, sock):
        ifindex = self._check_interface()
        try:
            for option in (PACKET_VNET_HDR, PACKET_AUXDATA, PACKET_IGNORE_OUTGOING):
                sock.setsockopt(SOL_PACKET, option, 1)
            self._set_queues(sock)
            if an_af_close_gate(sock.fileno()) < 0:
                raise OSError("the socket takes no filter")
            sock.bind((self.device, ETH_P_ALL))
            sock.setsockopt(SOL_PACKET, PACKET_ADD_MEMBERSHIP, struct.pack("iHH8x", ifindex, PACKET_MR_PROMISC, 0))
        except OSError as error:
            raise self._error(f"cannot attach ({error.strerror or error}); Linux 4.20 or later is needed") from None
        self.ifindex = ifindex

    def _set_queues(self, sock):
        for force, plain in ((SO_RCVBUFFORCE, socket.SO_RCVBUF), (SO_SNDBUFFORCE, socket.SO_SNDBUF)):
            try:
                sock.setsockopt(socket.SOL_SOCKET, force, PORT_QUEUE_BYTES)
            except PermissionError:  # CAP_NET_RAW without CAP_NET_ADMIN: what net.core.[rw]mem_max allows
                sock.setsockopt(socket.SOL_SOCKET, plain, PORT_QUEUE_BYTES)

    def _attach(self):
        """Attach to the interface that has this name now; the descriptor keeps its number."""
        with self._open() as sock:
            os.dup2(sock.fileno(), self.io.fd, inheritable=False)

    def _release(self):
        self._take_statistics()
        self.socket.close()
        self.socket = None
        self.io.fd = -1

    def fileno(self) -> int:
        """The socket's descriptor for poll. Its number stays the same when the interface is made anew, but a
        registration with epoll does not survive that."""
        return self.io.fd

    def _open_gate(self):
        cdef bytes program = filter_for(self.core, self.cores, self.rss_keys, self.index)
        if an_af_open_gate(self.io.fd, <const char *>program, <int>(len(program) // INSTRUCTION_BYTES)) < 0:
            raise self._error("the filter in front of the socket cannot be changed")

    def _close_gate(self):
        if an_af_close_gate(self.io.fd) < 0:
            raise self._error("the filter in front of the socket cannot be changed")
        self._take_statistics()

    # -- packets ------------------------------------------------------------------------------------------------------

    cdef int rx(self, an_packet *packets, int limit) except -1:
        cdef uint64_t now
        cdef int n
        assert not self.closed, "the port is closed"
        if self.lost and not self.resume():
            return 0
        n = an_af_rx(&self.io, packets, limit, self.index)
        if n < 0:
            self.link_lost()
            return 0
        now = monotonic_ns()
        if now >= self.next_statistics_ns:
            self.next_statistics_ns = now + STATISTICS_NS
            self._take_statistics()
        return n if self.active else 0

    cdef int tx(self, an_packet **packets, int count) except -1:
        cdef int sent = 0, at = 0, error = 0, here = 0, attempt
        assert not self.closed, "the port is closed"
        for attempt in range(2):  # the error may be of the past: the link went and came back
            if self.lost and not self.resume():
                break
            sent += an_af_tx(&self.io, packets + at, count - at, &here, &error)
            at += here
            if not error:
                break
            self.link_lost()
        if at < count:
            self.counters["tx_down"] += count - at
        if sent < count:
            self.counters.update(self.io.counts)
        return sent

    cdef int _take_statistics(self) except -1:
        _, dropped = struct.unpack("II", self.socket.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))
        self.counters["rx_kernel_dropped"] += dropped
        self.counters.update(self.io.counts)
        return 0
