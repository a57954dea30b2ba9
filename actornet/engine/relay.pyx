"""Packets on their way between the members of a chain: private copies, as a member has rewritten or made them."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t, uint32_t
from libc.stdlib cimport free
from libc.string cimport memcpy, memset

from actornet.engine.counters cimport C_ANSWERED_BY_NF, C_DROPPED_BY_NF
from actornet.engine.datagram cimport datagram
from actornet.engine.packet cimport Packet
from actornet.engine.parked cimport an_park, an_parked
from actornet.engine.types cimport (
    AN_COPIED, AN_CSUM_PARTIAL, AN_DECREMENT_TTL, AN_REASSEMBLED, AN_SET_LINK, an_link, an_packet, an_rewrite,
)
from actornet.engine.verdict cimport Answer, Emit, Made, Rewrite
from actornet.engine.wire cimport an_parse, an_parse_inner, an_rewrite_apply, an_rewrite_prepare

from actornet.errors import UsageError

cdef extern from "link.h" nogil:
    void an_link_apply(an_packet *p, const an_link *link)


cdef class Relayed(Packet):
    """A packet between two members of a chain. Its direction is the flow's: its key is in no table."""
    cdef an_parked *item
    cdef int direction_known

    def __dealloc__(self):
        free(self.item)

    cdef int direction_index(self) except -1:
        return self.direction_known


cdef Relayed copy_of(Packet like, const an_packet *p, int direction):
    """A view of a copy of `p`."""
    cdef an_packet q = p[0]
    cdef an_parked *item
    q.flags &= ~AN_COPIED  # a parked packet would be its own copy
    item = an_park(&q)
    if item == NULL:
        raise MemoryError("a packet in a chain")
    return view_of(like, item, direction)


cdef Relayed view_of(Packet like, an_parked *item, int direction):
    """A view of a parked packet, which it owns."""
    cdef Relayed copy = Relayed.__new__(Relayed)
    copy.item = item
    copy.p = &copy.item.p
    copy.port_names, copy.table, copy.direction_known = like.port_names, like.table, direction
    return copy


cdef int parse(an_packet *p) except -1:
    """Describe the packet anew; its entry in the flow table stays, as the flow does."""
    cdef uint32_t entry = p.entry
    cdef uint8_t tunnel = p.tunnel
    an_parse(p)
    if tunnel:
        an_parse_inner(p, 1 << tunnel)
    p.entry = entry
    return 0


def rewritten(Packet packet not None, Rewrite rewrite not None, bint decrement) -> Relayed | None:
    """The packet as the rewrite makes it, its TTL lower if so asked (`decrement`); None if that has run out.

    Raises UsageError for an address of the other IP version.
    """
    cdef an_packet *p = packet.live()
    cdef Relayed copy
    cdef an_rewrite r = rewrite.rewrite
    if rewrite.version and rewrite.version != p.key.version:
        raise UsageError(f"rewrite: an IPv{rewrite.version} address in an IPv{p.key.version} packet")
    if rewrite.payload is None:
        copy = copy_of(packet, p, packet.direction_index())
    else:
        copy = view_of(packet, datagram(p, rewrite.payload, False), packet.direction_index())
        copy.p.entry = p.entry
    if not decrement:
        r.fields &= ~AN_DECREMENT_TTL
    an_rewrite_prepare(&r, &p.key, rewrite.ipv6_addresses())
    if an_rewrite_apply(copy.p, &r, rewrite.ipv6_addresses()) != 0:
        return None
    if r.fields & AN_SET_LINK:
        an_link_apply(copy.p, &rewrite.link)
    parse(copy.p)
    return copy


def taken(Packet like not None, Made made not None, int direction) -> Relayed:
    """What a member made, on its way in a direction (its number) of the connection that `like` is of."""
    cdef an_packet q
    cdef Relayed copy
    memset(&q, 0, sizeof(q))
    q.data = <uint8_t *>PyBytes_AS_STRING(made.frame)
    q.length = <uint32_t>PyBytes_GET_SIZE(made.frame)
    q.port, q.flags, q.time_ns = made.port, made.flags, made.time_ns
    q.fragment_bytes, q.fragment_id = made.fragment_bytes, made.fragment_id
    memcpy(q.vnet, made.vnet, sizeof(q.vnet))
    q.entry = like.live().entry
    copy = copy_of(like, &q, direction)
    parse(copy.p)
    return copy


def made(Packet packet not None) -> Made:
    """The packet as a frame to emit."""
    cdef an_packet *p = packet.live()
    cdef Made frame = Made.__new__(Made)
    frame.frame = PyBytes_FromStringAndSize(<const char *>p.data, p.length)
    frame.flags, frame.port, frame.time_ns = p.flags & (AN_CSUM_PARTIAL | AN_REASSEMBLED), p.port, p.time_ns
    frame.fragment_bytes, frame.fragment_id = p.fragment_bytes, p.fragment_id
    memcpy(frame.vnet, p.vnet, sizeof(frame.vnet))
    return frame


def answered(Packet packet not None, Answer answer not None, int other_port) -> Emit:
    """The answer, as if it had arrived at the port opposite to the packet's, in place of the packet."""
    cdef Packet back = view_of(packet, datagram(packet.live(), answer.payload, True), 0)
    back.p.port = <uint8_t>other_port
    return emit([made(back)], C_ANSWERED_BY_NF)


def emit(list frames not None, int counter) -> Emit:
    """The verdict to send frames in place of a packet, which is counted as `counter` unless that is -1."""
    cdef Emit verdict = Emit.__new__(Emit)
    verdict.frames, verdict.counter = frames, counter
    return verdict


def dropped() -> Emit:
    """Like DROP, but it does not refuse the flow."""
    return emit([], C_DROPPED_BY_NF)


def end(Packet packet not None) -> None:
    """The members are done with the packet: whoever kept it finds it used."""
    if isinstance(packet, Relayed):
        packet.p = NULL
