"""UDP datagrams with a payload of the network function's own, in place of a received one."""

import os

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE

from actornet.engine.counters cimport C_ANSWERED_BY_NF, C_NO_ROUTE
from actornet.engine.types cimport AN_ICMP_ERROR, AN_NONE
from actornet.engine.wire cimport an_parse

from actornet.errors import UsageError
from actornet.limits import DATAGRAM_CUT_BYTES

cdef unsigned int cut_bytes = DATAGRAM_CUT_BYTES
cdef unsigned int identification = int.from_bytes(os.urandom(4), "little")  # of datagrams that are cut


cdef an_parked *datagram(const an_packet *p, bytes payload, bint back) except NULL:
    """The packet with this payload, on its way or (`back`) to its sender; the caller owns it.

    What is larger than both the packet was and DATAGRAM_CUT_BYTES leaves in fragments. Raises UsageError if the packet is no
    UDP datagram of its own, or one cannot hold the payload.
    """
    global identification
    cdef Py_ssize_t bytes_ = PyBytes_GET_SIZE(payload)
    cdef an_parked *item
    cdef unsigned int ip_bytes, most
    if p.key.protocol != 17 or p.flags & AN_ICMP_ERROR:
        raise UsageError("a payload can be given to UDP datagrams only; a StreamActor changes the bytes of a TCP connection")
    if p.tunnel:
        raise UsageError("a payload cannot be given to a packet in a tunnel")
    if p.vnet[1]:
        raise UsageError("a payload cannot be given to datagrams that the sender's kernel left in one (UDP GSO)")
    if bytes_ > 0xffff or not an_datagram_fits(p, back, <unsigned int>bytes_):
        raise UsageError(f"a datagram cannot hold a payload of {bytes_} bytes")
    item = an_datagram_make(p, back, <const unsigned char *>PyBytes_AS_STRING(payload), <unsigned int>bytes_)
    if item == NULL:
        raise MemoryError("a datagram")
    an_parse(&item.p)
    ip_bytes, most = item.p.length - item.p.l3, p.length - p.l3
    if p.fragment_bytes:
        most = p.fragment_bytes
    most = max(most, cut_bytes)
    if ip_bytes > most:
        identification += 1
        an_datagram_cut(&item.p, most, p.fragment_id if p.fragment_bytes and not back else identification)
    return item


cdef an_packet *replaced(Core core, an_packet *p, bytes payload) except NULL:
    """The datagram with another payload, and done with the one that it was."""
    cdef an_packet *q = &datagram(p, payload, False).p
    q.hash, q.entry = p.hash, p.entry
    core.discard(p)
    return q


cdef int answer(Core core, FlowBase flow, an_packet *p, bytes payload) except -1:
    """Send the answer out of the port that the datagram came in at, in the order of the flow's output."""
    cdef int out = p.port, adjacency
    cdef an_packet *q = &datagram(p, payload, True).p
    q.entry = AN_NONE
    adjacency = core.neighbors.adjacency(out, &q.key, NULL, NULL)
    core.counters[<int>C_ANSWERED_BY_NF] += 1
    core.discard(p)
    if adjacency < 0:
        return core.drop(q, C_NO_ROUTE)
    if adjacency:
        return core.neighbors.ethernet(flow, q, out, adjacency)
    return core.emit(flow, q, out)
