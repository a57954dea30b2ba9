"""The base of the drivers of live interfaces: what a port is while its link comes and goes, and the two-port floor.

Theory of operation. A port is made `passive`: it holds all that it needs and takes nothing from the interface, so that a
backup begins to receive within microseconds of its promotion (`activate`). It is `up` once active, `down` while its
interface is down or gone, and `closed` in the end. When the interface comes back the port goes on, attached anew if it
is another interface of that name.
"""

import fcntl
import socket
import struct

from cpython.exc cimport PyErr_CheckSignals
from libc.stdlib cimport calloc, free

from actornet.engine.types cimport an_packet

from actornet.errors import PortError
from actornet.limits import BURST_PACKETS

cdef extern from "<net/if.h>":
    int IFF_UP

cdef extern from "<net/if_arp.h>":
    int ARPHRD_ETHER, ARPHRD_LOOPBACK

cdef extern from "<linux/sockios.h>":
    int SIOCGIFINDEX, SIOCGIFFLAGS, SIOCGIFHWADDR

cdef extern from "<poll.h>" nogil:
    struct pollfd:
        int fd
        short events
        short revents
    short POLLIN
    int poll(pollfd *fds, unsigned long count, int timeout_ms)

DEF CHECK_NS = 10_000_000  # how often a port that is down looks for its link


cdef class LivePort(Port):
    """A port on the network interface `interface`; passive until `activate`.

    With `cores` > 1 each core makes a port of its own, `core` is this one's number. `mac` is the address that the port
    goes by, the interface's own if None. `on_link(port, what)`, if set, is told what becomes of the interface. Drivers fill in `_attach`, `_release`, `_open_gate` and `_close_gate`.
    """

    def __init__(self, str name, str interface, int cores=1, int core=0, bytes mac=None):
        Port.__init__(self, name)
        self.device = interface
        self.cores = cores
        self.core = core
        self.closed = True
        if mac is not None and (len(mac) != 6 or mac[0] & 1):
            raise self._error(f"{mac.hex(':')} is no unicast MAC address")
        self.mac = mac
        self.counters["link_lost"] = 0
        self.counters["tx_down"] = 0
        self.probe = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)

    # -- the interface ------------------------------------------------------------------------------------------------

    @property
    def noun(self) -> str:
        """What `device` is the name of."""
        return "interface"

    def _error(self, what):
        where = f"port {self.name} on {self.device}" + (f", core {self.core}" if self.cores > 1 else "")
        return PortError(f"{where}: {what}")

    def _request(self, int request, layout):
        """Ask the kernel about the interface (netdevice(7)); OSError(ENODEV) if there is none of that name."""
        answer = fcntl.ioctl(self.probe, request, struct.pack("16s24x", self.device.encode()[:15]))
        return struct.unpack(layout, answer)

    def _check_interface(self):
        """The index of the interface, if it is there, up, and carries Ethernet frames; otherwise PortError."""
        try:
            ifindex, = self._request(SIOCGIFINDEX, "16xi20x")
            flags, = self._request(SIOCGIFFLAGS, "16xH22x")
            kind, = self._request(SIOCGIFHWADDR, "16xH22x")
        except OSError:
            raise self._error(f"there is no interface {self.device!r} here; `ip link` lists them") from None
        if not flags & IFF_UP:
            raise self._error(f"the interface is down; `ip link set {self.device} up`")
        if kind not in (ARPHRD_ETHER, ARPHRD_LOOPBACK):
            raise self._error(f"the interface does not carry Ethernet frames (hardware type {kind})")
        return ifindex

    def _interface_mac(self):
        return self._request(SIOCGIFHWADDR, "16x2x6s16x")[0]

    def attached(self) -> bool:
        """Whether the interface that the port is attached to is there and up."""
        try:
            ifindex, = self._request(SIOCGIFINDEX, "16xi20x")
            flags, = self._request(SIOCGIFFLAGS, "16xH22x")
        except OSError:
            return False
        return ifindex == self.ifindex and bool(flags & IFF_UP)

    # -- what drivers do ----------------------------------------------------------------------------------------------

    def _attach(self):
        """Attach to the interface that has this name now, behind a closed gate; PortError says why not."""
        raise NotImplementedError

    def _release(self):
        """Let go of the interface."""
        raise NotImplementedError

    def _open_gate(self):
        """Begin to receive, with an empty queue."""
        raise NotImplementedError

    def _close_gate(self):
        """Take nothing from the interface any more, and forget what waits."""
        raise NotImplementedError

    # -- state --------------------------------------------------------------------------------------------------------

    @property
    def state(self) -> str:
        """`passive`, `up`, `down` or `closed`."""
        if self.closed:
            return "closed"
        if self.lost:
            return "down"
        return "up" if self.active else "passive"

    def activate(self) -> None:
        """Begin to receive, with an empty queue. Idempotent."""
        assert not self.closed, "the port is closed"
        if not self.active:
            self._open_gate()
            self.active = True
            if not self.attached():
                self.link_lost()

    def deactivate(self) -> None:
        """Stop to receive and forget what waits. Idempotent."""
        if self.active:
            self.active = False
            self._close_gate()

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self._release()
            self.probe.close()

    cdef int link_lost(self) except -1:
        """The link went away; it may be back already, so look at once."""
        self.lost = True
        self.next_check_ns = 0
        self.counters["link_lost"] += 1
        return self.tell("is down")

    cdef int tell(self, str what) except -1:
        if self.on_link is not None:
            self.on_link(self, what)
        return 0

    cdef bint resume(self) except -1:
        """Look whether the link is back; True if it is."""
        cdef uint64_t now = monotonic_ns()
        if now < self.next_check_ns:
            return False
        self.next_check_ns = now + CHECK_NS
        try:
            if not self.attached():
                self._attach()
                if self.active:
                    self._open_gate()
        except PortError:  # still down or gone
            return False
        self.lost = False
        self.tell("is up")
        return True


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
