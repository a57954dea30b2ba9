"""Routes: the neighbour that a packet goes to next. Asked twice for each new flow of a routed NAT, so without an object."""

from libc.string cimport memcmp, memset

from actornet.engine.wire cimport address_of, address_text

from actornet.limits import PORTS_MAX

assert ROUTES_MAX == PORTS_MAX


cdef bint is_host(const uint8_t *address, int version) noexcept:
    """Whether it can be the address of one host: no group, no broadcast, not nobody's, not that of every host itself."""
    cdef uint8_t zeros[15]
    if version == 4:
        if address[0] >= 224:
            return address[0] >= 240 and memcmp(address, b"\xff\xff\xff\xff", 4) != 0
        return address[0] != 0 and address[0] != 127
    memset(zeros, 0, 15)
    return address[0] != 0xff and (memcmp(address, zeros, 15) != 0 or address[15] > 1)


cdef bint is_link_local(const uint8_t *address, int version) noexcept:
    """Whether it is an IPv6 address of one link alone (fe80::/10)."""
    return version == 6 and address[0] == 0xfe and address[1] & 0xc0 == 0x80


cdef class Routes:
    """The networks and gateways of a core's ports, by the ports' index."""

    def __init__(self, list ports not None):
        cdef an_route *route
        assert len(ports) <= ROUTES_MAX
        self.count = <int>len(ports)
        memset(self.routes, 0, sizeof(self.routes))
        for i, port in enumerate(ports):
            if port.interface is None:
                continue
            route = &self.routes[<int>i]
            route.version = address_of(str(port.interface.ip), route.own)
            route.prefix_bits = port.interface.network.prefixlen
            if port.gateway is not None:
                route.gateway_version = address_of(str(port.gateway), route.gateway)

    cdef const uint8_t *hop(self, int out, const uint8_t *address, int version) noexcept:
        """The neighbour to send packets for `address` to: itself if it is on the port's network, else the gateway.

        NULL without a route: no gateway, or no address of a single other host. That of any port is this node itself.
        """
        cdef const an_route *route = &self.routes[out]
        cdef int i, bytes = 4 if version == 4 else 16
        for i in range(self.count):
            if self.routes[i].version == version and memcmp(self.routes[i].own, address, bytes) == 0:
                return NULL
        if not is_host(address, version):
            return NULL
        if route.version == version and (is_link_local(address, version) or is_within(route, address, bytes)):
            return NULL if version == 4 and is_end(route, address) else address
        return route.gateway if route.gateway_version == version else NULL

    def next_hop(self, int out, str ip):
        """The same, from text and as text; None without a route. Raises UsageError if `ip` is no address."""
        cdef uint8_t address[16]
        cdef int version = address_of(ip, address)
        cdef const uint8_t *hop
        assert 0 <= out < self.count
        hop = self.hop(out, address, version)
        return None if hop == NULL else address_text(hop, version)


cdef bint is_within(const an_route *route, const uint8_t *address, int bytes) noexcept:
    """Whether the address, of so many bytes, is of the port's network."""
    cdef int whole = route.prefix_bits // 8, rest = route.prefix_bits % 8
    return memcmp(route.own, address, whole) == 0 and (
        whole == bytes or (route.own[whole] ^ address[whole]) >> (8 - rest) == 0)


cdef bint is_end(const an_route *route, const uint8_t *address) noexcept:
    """Whether an address of the port's IPv4 network stands for the network, or for all its hosts (RFC 1812 section 5.3.5)."""
    cdef unsigned mask, number = <unsigned>address[0] << 24 | address[1] << 16 | address[2] << 8 | address[3]
    if route.prefix_bits >= 31:
        return False
    mask = <unsigned>0xffffffff >> route.prefix_bits
    return number & mask == 0 or number & mask == mask
