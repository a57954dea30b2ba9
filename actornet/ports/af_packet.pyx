"""Live interfaces by Linux packet sockets: Ethernet frames as the interface gives and takes them.

Theory of operation. The socket is bound once, when the port is made, behind a closed gate (a filter that refuses every
frame); `activate` opens the gate, so that a backup begins to receive within microseconds of its promotion. A port is
`passive` behind the closed gate, `up` once it is open, `down` while its interface is down or gone, and `closed` in the
end. When the interface comes back the port goes on, with a new socket if it is another interface of that name.
"""

import fcntl
import os
import socket
import struct

from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport uint64_t
from libc.stdlib cimport calloc, free
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

from actornet.engine.port cimport Port
from actornet.engine.types cimport an_packet

from actornet.errors import PortError
from actornet.limits import BURST_PACKETS, FRAME_BYTES_MAX, PORT_QUEUE_BYTES

cdef extern from "af_packet.h" nogil:
    struct an_af_counts:
        uint64_t rx_truncated
        uint64_t rx_refused
        uint64_t tx_full
        uint64_t tx_oversized
        uint64_t tx_refused
        uint64_t tx_down
        uint64_t link_lost

    struct an_af_packet:
        int fd
        an_af_counts counts

    int an_af_allocate(an_af_packet *s, int burst, size_t frame_bytes_max)
    void an_af_free(an_af_packet *s)
    int an_af_gate(int fd, bint closed)
    int an_af_rx(an_af_packet *s, an_packet *packets, int limit, int port)
    int an_af_tx(an_af_packet *s, an_packet **packets, int count, int *at, int *error)

cdef extern from "<linux/if_packet.h>":
    int PACKET_ADD_MEMBERSHIP, PACKET_MR_PROMISC, PACKET_AUXDATA, PACKET_VNET_HDR, PACKET_IGNORE_OUTGOING
    int PACKET_FANOUT, PACKET_FANOUT_HASH, PACKET_STATISTICS

cdef extern from "<sys/socket.h>":
    int SOL_PACKET, SO_SNDBUFFORCE, SO_RCVBUFFORCE

cdef extern from "<net/if_arp.h>":
    int ARPHRD_ETHER, ARPHRD_LOOPBACK

cdef extern from "<net/if.h>":
    int IFF_UP

cdef extern from "<linux/sockios.h>":
    int SIOCGIFINDEX, SIOCGIFFLAGS, SIOCGIFHWADDR

cdef extern from "<linux/if_ether.h>":
    int ETH_P_ALL

cdef extern from "<poll.h>" nogil:
    struct pollfd:
        int fd
        short events
        short revents
    short POLLIN
    int poll(pollfd *fds, unsigned long count, int timeout_ms)

DEF CHECK_NS = 10_000_000        # how often a port that is down looks for its link
DEF STATISTICS_NS = 100_000_000  # how often the kernel is asked for its drops


cdef inline uint64_t monotonic_ns() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return <uint64_t>now.tv_sec * 1_000_000_000 + <uint64_t>now.tv_nsec


cdef class AfPacketPort(Port):
    """The network interface `interface`, seen through a packet socket; passive until `activate`.

    With `cores` > 1 each core makes a port of its own and the kernel spreads flows over them, both directions of a
    connection alike (PACKET_FANOUT_HASH): `fanout_group` must be the same for all of them, and 0 derives it from the
    interface. `core` is this one's number, for messages. `mac` is the address that the port goes by, the interface's
    own if None. Frames larger than the MTU that the interface is to segment, and checksums that it is to complete, pass
    through as they are (AN_CSUM_PARTIAL).

    Raises PortError without the privilege, or if the interface is absent, down or not Ethernet.
    """

    cdef an_af_packet io
    cdef object socket
    cdef readonly str device
    cdef readonly int ifindex
    cdef int fanout_group
    cdef int cores
    cdef int core
    cdef bint active
    cdef bint lost
    cdef uint64_t next_check_ns
    cdef uint64_t next_statistics_ns

    def __cinit__(self, *args, **kwargs):
        self.io.fd = -1
        if an_af_allocate(&self.io, BURST_PACKETS, FRAME_BYTES_MAX) < 0:
            raise MemoryError("frames of a burst")

    def __init__(self, str name, str interface, int fanout_group=0, int cores=1, int core=0, bytes mac=None):
        Port.__init__(self, name)
        self.device = interface
        self.fanout_group = fanout_group
        self.cores = cores
        self.core = core
        if mac is not None and (len(mac) != 6 or mac[0] & 1):
            raise self._error(f"{mac.hex(':')} is no unicast MAC address")
        self.counters = dict.fromkeys(self.io.counts, 0)
        self.counters["rx_kernel_dropped"] = 0
        self.socket = self._open()
        self.io.fd = self.socket.fileno()
        self.mac = mac or self._request(self.socket, SIOCGIFHWADDR, "16x2x6s16x")[0]

    def __dealloc__(self):
        an_af_free(&self.io)

    # -- opening ------------------------------------------------------------------------------------------------------

    def _error(self, what):
        where = f"port {self.name} on {self.device}" + (f", core {self.core}" if self.cores > 1 else "")
        return PortError(f"{where}: {what}")

    def _request(self, sock, int request, layout):
        """Ask the kernel about the interface (netdevice(7)); OSError(ENODEV) if there is none of that name."""
        answer = fcntl.ioctl(sock, request, struct.pack("16s24x", self.device.encode()[:15]))
        return struct.unpack(layout, answer)

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
        try:
            ifindex, = self._request(sock, SIOCGIFINDEX, "16xi20x")
            flags, = self._request(sock, SIOCGIFFLAGS, "16xH22x")
            kind, = self._request(sock, SIOCGIFHWADDR, "16xH22x")
        except OSError:
            raise self._error(f"there is no interface {self.device!r} here; `ip link` lists them") from None
        if not flags & IFF_UP:
            raise self._error(f"the interface is down; `ip link set {self.device} up`")
        if kind not in (ARPHRD_ETHER, ARPHRD_LOOPBACK):
            raise self._error(f"the interface does not carry Ethernet frames (hardware type {kind})")
        try:
            for option in (PACKET_VNET_HDR, PACKET_AUXDATA, PACKET_IGNORE_OUTGOING):
                sock.setsockopt(SOL_PACKET, option, 1)
            self._set_queues(sock)
            if an_af_gate(sock.fileno(), True) < 0:
                raise OSError("the socket takes no filter")
            sock.bind((self.device, ETH_P_ALL))
            sock.setsockopt(SOL_PACKET, PACKET_ADD_MEMBERSHIP, struct.pack("iHH8x", ifindex, PACKET_MR_PROMISC, 0))
            if self.cores > 1:
                group = self.fanout_group & 0xFFFF or ifindex & 0xFFFF
                sock.setsockopt(SOL_PACKET, PACKET_FANOUT, group | PACKET_FANOUT_HASH << 16)
        except OSError as error:
            raise self._error(f"cannot attach ({error.strerror or error}); Linux 4.20 or later is needed, and for "
                              "several cores a fanout group that nothing else uses") from None
        self.ifindex = ifindex

    def _set_queues(self, sock):
        for force, plain in ((SO_RCVBUFFORCE, socket.SO_RCVBUF), (SO_SNDBUFFORCE, socket.SO_SNDBUF)):
            try:
                sock.setsockopt(socket.SOL_SOCKET, force, PORT_QUEUE_BYTES)
            except PermissionError:  # CAP_NET_RAW without CAP_NET_ADMIN: what net.core.[rw]mem_max allows
                sock.setsockopt(socket.SOL_SOCKET, plain, PORT_QUEUE_BYTES)

    # -- state --------------------------------------------------------------------------------------------------------

    @property
    def state(self) -> str:
        """`passive`, `up`, `down` or `closed`."""
        if self.socket is None:
            return "closed"
        if self.lost:
            return "down"
        return "up" if self.active else "passive"

    def fileno(self) -> int:
        """The socket's descriptor for poll. Its number stays the same when the interface is made anew, but a
        registration with epoll does not survive that."""
        return self.io.fd

    def activate(self) -> None:
        """Begin to receive, with an empty queue. Idempotent."""
        if not self.active:
            self._set_gate(False)
            self.active = True
            if not self._attached():
                self._link_lost()

    def deactivate(self) -> None:
        """Stop to receive and forget what waits. Idempotent."""
        if self.active:
            self.active = False
            self._set_gate(True)
            self._take_statistics()

    def _set_gate(self, bint closed):
        assert self.socket is not None, "the port is closed"
        if an_af_gate(self.io.fd, closed) < 0:
            raise self._error("the filter in front of the socket cannot be changed")

    def close(self) -> None:
        if self.socket is not None:
            self._take_statistics()
            self.socket.close()
            self.socket = None
            self.io.fd = -1

    # -- packets ------------------------------------------------------------------------------------------------------

    cdef int rx(self, an_packet *packets, int limit) except -1:
        cdef uint64_t now
        cdef int n
        assert self.socket is not None, "the port is closed"
        if self.lost and not self._resume():
            return 0
        n = an_af_rx(&self.io, packets, limit, self.index)
        if n < 0:
            self._link_lost()
            return 0
        now = monotonic_ns()
        if now >= self.next_statistics_ns:
            self.next_statistics_ns = now + STATISTICS_NS
            self._take_statistics()
        return n if self.active else 0

    cdef int tx(self, an_packet **packets, int count) except -1:
        cdef int sent = 0, at = 0, error = 0, here = 0, attempt
        assert self.socket is not None, "the port is closed"
        for attempt in range(2):  # the error may be of the past: the link went and came back
            if self.lost and not self._resume():
                break
            sent += an_af_tx(&self.io, packets + at, count - at, &here, &error)
            at += here
            if not error:
                break
            self._link_lost()
        if at < count:
            self.io.counts.tx_down += count - at
        if sent < count:
            self._publish()
        return sent

    # -- off the hot path ---------------------------------------------------------------------------------------------

    cdef int _link_lost(self) except -1:
        """The kernel says that the link went away; it may be back already, so look at once."""
        self.lost = True
        self.next_check_ns = 0
        self.io.counts.link_lost += 1
        self._publish()
        return 0

    cdef bint _resume(self) except -1:
        """Look whether the link is back; True if it is."""
        cdef uint64_t now = monotonic_ns()
        if now < self.next_check_ns:
            return False
        self.next_check_ns = now + CHECK_NS
        if not self._attached():
            try:
                self._reopen()
            except PortError:  # still down or gone
                return False
        self.lost = False
        return True

    def _attached(self):
        """Whether the interface that the socket is bound to is there and up."""
        try:
            ifindex, = self._request(self.socket, SIOCGIFINDEX, "16xi20x")
            flags, = self._request(self.socket, SIOCGIFFLAGS, "16xH22x")
        except OSError:
            return False
        return ifindex == self.ifindex and bool(flags & IFF_UP)

    def _reopen(self):
        """Attach to the interface that has this name now; the descriptor keeps its number."""
        with self._open() as sock:
            os.dup2(sock.fileno(), self.io.fd, inheritable=False)
        if self.active:
            self._set_gate(False)

    cdef int _take_statistics(self) except -1:
        _, dropped = struct.unpack("II", self.socket.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))
        self.counters["rx_kernel_dropped"] += dropped
        return self._publish()

    cdef int _publish(self) except -1:
        self.counters.update(self.io.counts)
        return 0


def forward(Port first not None, Port second not None, unsigned long packets=0, double seconds=0.0) -> int:
    """Pass frames between two ports as they are, in both directions; the floor under every network function on them.

    Ends when `packets` have passed or `seconds` have gone by (0: no such end), or by an exception such as
    KeyboardInterrupt. Returns how many frames left.
    """
    cdef pollfd descriptors[2]
    cdef an_packet *burst = <an_packet *>calloc(BURST_PACKETS, sizeof(an_packet))
    cdef an_packet **out = <an_packet **>calloc(BURST_PACKETS, sizeof(an_packet *))
    cdef int limit = BURST_PACKETS, i, side, n, taken
    cdef unsigned long passed = 0
    cdef uint64_t end_ns = monotonic_ns() + <uint64_t>(seconds * 1e9)
    try:
        if burst == NULL or out == NULL:
            raise MemoryError("a burst of packets")
        for i in range(limit):
            out[i] = &burst[i]
        while not (packets and passed >= packets) and not (seconds and monotonic_ns() >= end_ns):
            taken = 0
            for side in range(2):
                n = (second if side else first).rx(burst, limit)
                if n:
                    passed += (first if side else second).tx(out, n)
                    taken += n
            PyErr_CheckSignals()
            if not taken:
                descriptors[0] = pollfd(first.fileno(), POLLIN, 0)
                descriptors[1] = pollfd(second.fileno(), POLLIN, 0)
                with nogil:
                    poll(descriptors, 2, 10)
    finally:
        free(burst)
        free(out)
    return passed
