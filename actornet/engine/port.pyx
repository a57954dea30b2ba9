"""The base of every port driver: frames in by `rx`, frames out by `tx`, a burst at a time."""

from actornet.engine.types cimport an_packet


cdef class Port:
    """A named attachment of a core to a network.

    `rx` fills `data`, `length`, `port`, `flags`, `time_ns` and `vnet` of up to `limit` packets and returns how many; the
    frames may be rewritten in place and stay valid until the next `rx`. `tx` sends `count` frames, which are valid
    during the call only, and returns how many left; it counts the others in `counters`. Of a packet to send, only what
    `rx` fills is sure to be there: what the fast path forwards was never parsed.
    """

    def __init__(self, str name):
        self.name = name
        self.index = 0
        self.mac = None
        self.interface = None
        self.gateway = None
        self.counters = {}

    cdef int rx(self, an_packet *packets, int limit) except -1:
        raise NotImplementedError(f"port {self.name}: this driver cannot receive")

    cdef int tx(self, an_packet **packets, int count) except -1:
        raise NotImplementedError(f"port {self.name}: this driver cannot transmit")

    def fileno(self) -> int:
        """A descriptor that becomes readable when frames wait, or -1 if the port can only be polled."""
        return -1

    def activate(self) -> None:
        """Begin to receive: the node became primary."""

    def close(self) -> None:
        """Give back what the port holds; idempotent."""
