"""Parsing, rewriting, hashing and the flow table of the packet engine, for Python: tests and the layers above."""

from types import MemberDescriptorType
from typing import Optional, TypedDict

from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.long cimport PyLong_AsLongAndOverflow
from cpython.object cimport PyObject
from cpython.unicode cimport PyUnicode_AsUTF8AndSize, PyUnicode_DecodeASCII
from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset, strlen

from actornet.engine.types cimport *

from actornet.engine.five_tuple import FiveTuple
from actornet.errors import UsageError


cdef extern from "<arpa/inet.h>" nogil:
    const int AF_INET6
    int inet_pton(int family, const char *text, void *out)
    const char *inet_ntop(int family, const void *address, char *text, unsigned size)


cdef extern from "Python.h":
    bint PyUnicode_IS_ASCII(object text)


cdef extern from "structmember.h":
    ctypedef struct PyMemberDef:
        Py_ssize_t offset
    ctypedef struct PyMemberDescrObject:
        PyMemberDef *d_member


cdef extern from "toeplitz.h" nogil:
    const uint8_t AN_RSS_KEY_STANDARD[40]
    const uint8_t AN_RSS_KEY_SYMMETRIC[40]


RSS_KEY_STANDARD = PyBytes_FromStringAndSize(<const char *>AN_RSS_KEY_STANDARD, 40)
RSS_KEY_SYMMETRIC = PyBytes_FromStringAndSize(<const char *>AN_RSS_KEY_SYMMETRIC, 40)

TUNNELS = ("gre", "vxlan", "gtp-u")
"""In the order of enum an_tunnel, which begins with none."""

REASONS = ("ok", "malformed", "truncated", "not_ip", "fragment", "untracked")

Parsed = TypedDict(
    "Parsed",
    {
        "reason": str,
        "flow": Optional[FiveTuple],
        "port": int,
        "l3": int,
        "l4": int,
        "payload": int,
        "l3_end": int,
        "inner_l3": int,
        "inner_l4": int,
        "tunnel": Optional[str],
        "ttl": int,
        "dscp": int,
        "tcp_flags": int,
        "ip_options": bool,
        "icmp_error": bool,
        "vlan": bool,
        "udp_no_csum": bool,
    },
)


cdef int octet_text(uint8_t octet, char *text) noexcept nogil:
    cdef int n = 0
    if octet >= 100:
        text[n] = 48 + octet // 100
        n += 1
    if octet >= 10:
        text[n] = 48 + octet // 10 % 10
        n += 1
    text[n] = 48 + octet % 10
    return n + 1


cdef int address_chars(const uint8_t *address, int version, char *text) noexcept nogil:
    """Dotted text of IPv4, RFC 5952 text of IPv6; returns its length, at most 45. `text` has room for 64."""
    cdef int n = 0, i
    if version == 4:
        for i in range(4):
            n += octet_text(address[i], text + n)
            text[n] = 46
            n += 1
        return n - 1
    inet_ntop(AF_INET6, address, text, 64)
    return <int>strlen(text)


cdef object address_text(const uint8_t *address, int version):
    cdef char text[64]
    return PyUnicode_DecodeASCII(text, address_chars(address, version, text), NULL)


cdef object five_tuple(const an_key *key):
    """The key's `FiveTuple`; None for the key of a packet that is not IP."""
    if key.version == 0:
        return None
    return FiveTuple(
        key.protocol,
        address_text(key.source, key.version),
        key.source_port,
        address_text(key.destination, key.version),
        key.destination_port,
    )


cdef bint ipv4_of(const char *text, Py_ssize_t length, uint8_t *out) noexcept nogil:
    """Whether the text is an IPv4 address as inet_pton takes it; writes its 4 bytes. A fifth of inet_pton's time."""
    cdef int octet = -1, octets = 0
    cdef unsigned int digit
    cdef Py_ssize_t i
    for i in range(length):
        if text[i] == 46:
            if octet < 0 or octets == 3:
                return False
            out[octets] = <uint8_t>octet
            octets, octet = octets + 1, -1
            continue
        digit = <unsigned int>text[i] - 48
        if digit > 9 or octet == 0:
            return False
        octet = <int>digit if octet < 0 else octet * 10 + <int>digit
        if octet > 255:
            return False
    out[3] = <uint8_t>octet
    return octet >= 0 and octets == 3


cdef int address_of(object text, uint8_t *out) except -1:
    """Writes the address to `out` (16 bytes, unused ones 0) and returns 4 or 6. UsageError if it is none."""
    cdef const char *chars
    cdef Py_ssize_t n
    if isinstance(text, str) and PyUnicode_IS_ASCII(text):
        chars = PyUnicode_AsUTF8AndSize(text, &n)
        memset(out, 0, 16)
        if ipv4_of(chars, n, out):
            return 4
        if <Py_ssize_t>strlen(chars) == n and inet_pton(AF_INET6, chars, out) == 1:
            return 6
    raise UsageError(f"{text!r} is not an IPv4 or IPv6 address: write it like '192.0.2.1' or '2001:db8::1'")


cdef int number_of(object value, str name, int most) except -1:
    cdef int overflow
    cdef long number
    if isinstance(value, int):
        number = PyLong_AsLongAndOverflow(value, &overflow)
        if overflow == 0 and 0 <= number <= most:
            return <int>number
    raise UsageError(f"{name} {value!r} is not a number from 0 to {most}")


cdef Py_ssize_t slot_offset(object slot) except -1:
    """Where objects of a class have what this member descriptor names, be it made of `__slots__` or by msgspec."""
    if type(slot) is not MemberDescriptorType:
        raise TypeError(f"{slot!r} is no slot")
    return (<PyMemberDescrObject *>slot).d_member.offset


# As attributes these cost 0.03 us each, at their places next to nothing.
cdef Py_ssize_t at_protocol = slot_offset(FiveTuple.protocol)
cdef Py_ssize_t at_source = slot_offset(FiveTuple.source)
cdef Py_ssize_t at_source_port = slot_offset(FiveTuple.source_port)
cdef Py_ssize_t at_destination = slot_offset(FiveTuple.destination)
cdef Py_ssize_t at_destination_port = slot_offset(FiveTuple.destination_port)


cdef inline object field_of(object flow, Py_ssize_t at):
    cdef PyObject *value = (<PyObject **>(<char *><PyObject *>flow + at))[0]
    return <object>value if value != NULL else None


cdef int key_of(object flow, int port, an_key *out) except -1:
    """Writes the key of `flow` arriving at the port with index `port`. UsageError says what of it cannot be."""
    cdef int version
    if not isinstance(flow, FiveTuple):
        raise UsageError(f"{flow!r} is not a FiveTuple")
    version = address_of(field_of(flow, at_source), out.source)
    if address_of(field_of(flow, at_destination), out.destination) != version:
        raise UsageError(f"{flow}: source and destination must both be IPv4 or both be IPv6")
    out.protocol = number_of(field_of(flow, at_protocol), "protocol", 255)
    out.source_port = number_of(field_of(flow, at_source_port), "source port", 65535)
    out.destination_port = number_of(field_of(flow, at_destination_port), "destination port", 65535)
    if out.protocol == (1 if version == 4 else 58) and out.source_port != out.destination_port:
        raise UsageError(f"{flow}: both ports of ICMP echo are its identifier, so they must be equal")
    out.version = version
    if not 0 <= port <= 255:
        raise UsageError(f"port index {port} is not a number from 0 to 255")
    out.port = port
    out.zero = 0
    return 0


cdef int packet_of(const uint8_t[::1] frame, int port, bint csum_partial, an_packet *packet, tunnels=()) except -1:
    """Parses a frame where it lies; the packet borrows it."""
    cdef uint8_t wanted = 0
    memset(packet, 0, sizeof(an_packet))
    if frame.shape[0] > 0xffffffff:
        raise UsageError(f"a frame of {frame.shape[0]} bytes: frames have at most 65553")
    packet.data = <uint8_t *>&frame[0] if frame.shape[0] else NULL
    packet.length = <uint32_t>frame.shape[0]
    packet.port = number_of(port, "port index", 255)
    packet.flags = AN_CSUM_PARTIAL if csum_partial else 0
    an_parse(packet)
    for name in tunnels:
        wanted |= 1 << (1 + TUNNELS.index(name))
    if wanted:
        an_parse_inner(packet, wanted)
    return 0


def parse(frame: bytes, port: int = 0, inner: tuple[str, ...] = ()) -> Parsed:
    """What the engine reads out of an Ethernet frame; `flow` is None where it has no addresses. `inner`: tunnels to open."""
    cdef an_packet packet
    packet_of(frame, port, False, &packet, inner)
    return {
        "reason": REASONS[packet.reason],
        "flow": five_tuple(&packet.key),
        "port": packet.key.port,
        "l3": packet.l3,
        "l4": packet.l4,
        "payload": packet.payload,
        "l3_end": packet.l3_end,
        "inner_l3": packet.inner_l3,
        "inner_l4": packet.inner_l4,
        "tunnel": TUNNELS[packet.tunnel - 1] if packet.tunnel else None,
        "ttl": packet.ttl,
        "dscp": packet.dscp,
        "tcp_flags": packet.tcp_flags,
        "ip_options": bool(packet.flags & AN_IP_OPTIONS),
        "icmp_error": bool(packet.flags & AN_ICMP_ERROR),
        "vlan": bool(packet.flags & AN_VLAN),
        "udp_no_csum": bool(packet.flags & AN_UDP_NO_CSUM),
    }


def rewrite(
    frame: bytes,
    *,
    source: str | None = None,
    source_port: int | None = None,
    destination: str | None = None,
    destination_port: int | None = None,
    decrement_ttl: bool = False,
    dscp: int | None = None,
    csum_partial: bool = False,
    csum_start: int | None = None,
    inner: tuple[str, ...] = (),
) -> bytes | None:
    """The frame rewritten as an offloaded packet is, or None when its TTL or hop limit expires.

    `inner`: tunnels to open. `csum_partial`: the transport checksum field holds only the pseudo-header's sum; that of the header at
    `csum_start`, if it is not the packet's own. UsageError: a value out of range, or an address of the other IP version.
    """
    cdef an_packet packet
    cdef an_rewrite wanted
    cdef uint8_t addresses[32]
    cdef bytes out = PyBytes_FromStringAndSize(<const char *>frame, len(frame)) # a copy of its own, rewritten in place
    cdef int version
    cdef uint16_t start
    packet_of(out, 0, csum_partial, &packet, inner)
    if csum_partial:
        start = number_of(csum_start, "start of the checksum", 65535) if csum_start is not None else packet.l4
        memcpy(packet.vnet + 6, &start, 2) # where it says which checksum that is
    version = packet.key.version
    memset(&wanted, 0, sizeof(wanted))
    memset(addresses, 0, sizeof(addresses))
    if source is not None:
        if address_of(source, addresses) != version and version:
            raise UsageError(f"source {source} is not of the packet's IP version {version}")
        memcpy(&wanted.source, addresses, 4)
        wanted.fields |= AN_SET_SOURCE
    if destination is not None:
        if address_of(destination, addresses + 16) != version and version:
            raise UsageError(f"destination {destination} is not of the packet's IP version {version}")
        memcpy(&wanted.destination, addresses + 16, 4)
        wanted.fields |= AN_SET_DESTINATION
    if source_port is not None:
        wanted.source_port = number_of(source_port, "source port", 65535)
        wanted.fields |= AN_SET_SOURCE_PORT
    if destination_port is not None:
        wanted.destination_port = number_of(destination_port, "destination port", 65535)
        wanted.fields |= AN_SET_DESTINATION_PORT
    if dscp is not None:
        wanted.dscp = number_of(dscp, "DSCP", 63)
        wanted.fields |= AN_SET_DSCP
    if decrement_ttl:
        wanted.fields |= AN_DECREMENT_TTL
    an_rewrite_prepare(&wanted, &packet.key, addresses)
    return None if an_rewrite_apply(&packet, &wanted, addresses) else out


def checksums_right(frame: bytes, csum_partial: bool = False, inner: tuple[str, ...] = ()) -> bool:
    """Are the IPv4 header's, the TCP, UDP or ICMP checksum, and that of an IPv4 header inside an ICMP error right?

    Of fragments and untracked protocols the IPv4 header's is checked; a packet that is not IP is never right.
    """
    cdef an_packet packet
    packet_of(frame, 0, csum_partial, &packet, inner)
    return bool(an_csum_verify(&packet))


def toeplitz(key: bytes, data: bytes) -> int:
    """The RSS hash of up to 36 bytes of `data` under a key of 40 bytes."""
    if len(key) != 40 or len(data) > 36:
        raise UsageError(f"Toeplitz takes a key of 40 bytes and up to 36 of data, not {len(key)} and {len(data)}")
    return an_toeplitz(<const uint8_t *><const char *>key, <const uint8_t *><const char *>data, <int>len(data))


def rss_hash(flow: FiveTuple) -> int:
    """The symmetric RSS hash of addresses and ports: the same for both directions."""
    cdef an_key key
    key_of(flow, 0, &key)
    return an_rss_hash(&key)


def rss_core(flow: FiveTuple, cores: int, rss_key: bytes | None = None) -> int:
    """The core, from 0 to `cores` - 1, that `flow` belongs to: with the symmetric key, its other direction too.

    `rss_key`: 40 bytes, see `actornet.engine.rss`.
    """
    cdef an_key key
    if not 0 < cores <= 65535:
        raise UsageError(f"{cores} cores: give 1 to 65535")
    key_of(flow, 0, &key)
    if rss_key is None:
        return an_rss_core(an_rss_entry(&key), cores)
    if len(rss_key) != 40:
        raise UsageError(f"an RSS key has 40 bytes, not {len(rss_key)}")
    return an_rss_core(an_rss_entry_keyed(<const uint8_t *><const char *>rss_key, &key), cores)


def rss_entry_core(entry: int, cores: int) -> int:
    """The core, from 0 to `cores` - 1, that an entry (0 to 127) of the indirection table names."""
    return an_rss_core(entry, cores)


cdef class Table:
    """A flow table with its timer wheel. `hash_mask` cuts the hash down, to make keys collide."""

    cdef an_table table
    cdef uint32_t hash_mask

    def __cinit__(self, entries_max: int, seed: int = 0, now_ns: int = 0, hash_mask: int = 0xffffffff):
        self.hash_mask = hash_mask
        memset(&self.table, 0, sizeof(an_table))
        cdef int error = an_table_init(&self.table, entries_max, seed, now_ns)
        if error:
            raise UsageError(f"a flow table of {entries_max} entries cannot be had: errno {-error}")

    def __dealloc__(self):
        an_table_free(&self.table)

    def __len__(self) -> int:
        return self.table.used

    @property
    def armed(self) -> int:
        """Entries in the timer wheel."""
        return self.table.armed

    @property
    def spilled(self) -> int:
        """How many full buckets the live entries were pushed past, all together."""
        return sum([self.table.buckets[i].spilled for i in range(self.table.bucket_mask + 1)])

    cdef uint32_t hash(self, const an_key *key):
        return <uint32_t>an_hash(key, self.table.seed) & self.hash_mask

    def find(self, flow: FiveTuple, port: int = 0, probed: int | None = None) -> int | None:
        """The index of the flow's entry. `probed`: an index to try first, as a burst's earlier stage guessed it."""
        cdef an_key key
        key_of(flow, port, &key)
        cdef uint32_t hash = self.hash(&key)
        an_table_prefetch(&self.table, hash)
        cdef uint32_t guess = an_table_probe(&self.table, hash, True)
        if probed is not None:
            guess = number_of(probed, "index", self.table.entries_max - 1)
        cdef uint32_t index = an_table_find_probed(&self.table, &key, hash, guess)
        return None if index == AN_NONE else index

    def insert(self, flow: FiveTuple, port: int = 0) -> int | None:
        """The index of a new entry, or None when the table is full."""
        cdef an_key key
        if self.find(flow, port) is not None:
            raise UsageError(f"{flow} is in the table already")
        key_of(flow, port, &key)
        cdef uint32_t index = an_table_insert(&self.table, &key, self.hash(&key))
        return None if index == AN_NONE else index

    cdef uint32_t live(self, index) except? 0xffffffff:
        if not 0 <= index < self.table.entries_max or not self.table.entries[<uint32_t>index].state & AN_LIVE:
            raise UsageError(f"no live entry has index {index}")
        return index

    def remove(self, index: int) -> None:
        """Forgets a live entry."""
        an_table_remove(&self.table, self.live(index))

    def flow(self, index: int) -> FiveTuple:
        """The key of a live entry."""
        cdef an_key key = an_entry_key(&self.table.entries[self.live(index)])
        return five_tuple(&key)

    def arm(self, index: int, deadline_ns: int) -> None:
        """Arms or re-arms the timer of a live entry."""
        an_timer_arm(&self.table, self.live(index), deadline_ns)

    def disarm(self, index: int) -> None:
        """Takes a live entry out of the wheel, if it is there."""
        an_timer_disarm(&self.table, self.live(index))

    def advance(self, now_ns: int, limit: int = 4096) -> list[int]:
        """Up to `limit` entries that came due; as many as `limit` means that more may wait."""
        cdef uint32_t *due = <uint32_t *>malloc(max(limit, 1) * sizeof(uint32_t))
        if due == NULL:
            raise MemoryError
        try:
            count = an_timer_advance(&self.table, now_ns, due, limit)
            return [due[i] for i in range(count)]
        finally:
            free(due)
