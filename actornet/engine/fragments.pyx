"""Fragments of one core: put together before their flow sees them, cut again when they leave (fragments.h)."""

import os

from libc.string cimport memcmp

from actornet.engine.core cimport Core
from actornet.engine.counters cimport (
    C_FRAGMENT_EVICTED, C_FRAGMENT_EXPIRED, C_FRAGMENT_OVERLAP, C_FRAGMENTS_JOINED, C_FRAGMENTS_MADE, C_MALFORMED,
    C_REASSEMBLED, C_REFRAGMENTED, C_TX_FAILED,
)
from actornet.engine.types cimport AN_FRAGMENT, AN_HANDED, AN_REASSEMBLED
from actornet.engine.wire cimport an_hash

from actornet.limits import FRAGMENT_BYTES_MAX, FRAGMENT_WAIT_S, FRAGMENTED_DATAGRAMS_MAX, FRAGMENTS_PER_DATAGRAM_MAX


cdef class Fragments:
    """The datagrams that are incomplete yet.

    A datagram takes the place of its last fragment in the order of its flow (G1), and is a packet like any other from
    then on, up to 64 KiB. Fragments that wait are in no flow yet: a takeover loses them, as a lossy link would.
    """

    def __dealloc__(self):
        an_fragments_free(&self.table)

    cdef int open(self) except -1:
        """Make room. Raises MemoryError."""
        if an_fragments_init(&self.table, FRAGMENTED_DATAGRAMS_MAX, FRAGMENTS_PER_DATAGRAM_MAX, FRAGMENT_BYTES_MAX,
                             FRAGMENT_WAIT_S * 1_000_000_000, int.from_bytes(os.urandom(8), "little")) != 0:
            raise MemoryError("fragments")
        self.identification = int.from_bytes(os.urandom(4), "little")
        return 0

    cdef int receive(self, an_packet *p) except -1:
        """Take a fragment; treat the datagram if it was the last one missing."""
        cdef Core core = <Core>self.core
        cdef an_parked *whole = NULL
        cdef an_packet *q
        cdef int status = an_fragments_add(&self.table, p, core.now_ns, &whole)
        self._count()
        if status < 0:
            return core.drop(p, C_MALFORMED)
        if status == 0:
            return 0
        core.counters[<int>C_REASSEMBLED] += 1
        q = &whole.p
        q.flags &= ~AN_HANDED
        core.parse(q)
        q.hash = <uint32_t>an_hash(&q.key, core.flows.table.seed)
        if q.reason == AN_FRAGMENT and not q.tunnel:
            return core.drop(q, C_MALFORMED)  # an IPv6 fragment inside of another
        return core.process(q)

    cdef int expire(self, uint64_t now_ns) except -1:
        """Give up what has waited for too long."""
        an_fragments_expire(&self.table, now_ns)
        return self._count()

    cdef int _count(self) except -1:
        cdef uint64_t *counters = (<Core>self.core).counters
        counters[<int>C_FRAGMENTS_JOINED] = self.table.joined
        counters[<int>C_FRAGMENT_OVERLAP] = self.table.overlap
        counters[<int>C_FRAGMENT_EXPIRED] = self.table.expired
        counters[<int>C_FRAGMENT_EVICTED] = self.table.evicted
        return 0

    cdef int transmit(self, an_packet *p, int out) except -1:
        """Send a datagram that came in fragments, in fragments no larger than those were."""
        cdef Core core = <Core>self.core
        cdef an_parked *item
        cdef an_cut cut
        cdef uint64_t made = 0
        p.flags &= ~AN_REASSEMBLED
        if not an_cut_begin(&cut, p, p.fragment_bytes, p.fragment_id):
            return core.transmit(p, out)
        cut.id = self._identification(p, &cut)
        while (item := an_cut_next(&cut, p)) != NULL:
            core.transmit(&item.p, out)
            made += 1
        core.counters[<int>C_REFRAGMENTED] += 1
        core.counters[<int>C_FRAGMENTS_MADE] += made
        if cut.at < cut.end:
            core.counters[<int>C_TX_FAILED] += 1  # no memory: an incomplete datagram, which its receiver gives up
        return core.discard(p)

    cdef uint32_t _identification(self, const an_packet *p, const an_cut *cut) noexcept:
        """The sender's, unless the packet has a new source: datagrams of many senders that now share an address must not
        share identifications (RFC 6864 section 5.3.1). Cores take turns."""
        cdef Core core = <Core>self.core
        if p.tunnel or memcmp(p.key.source, p.data + cut.l3 + (12 if cut.version == 4 else 8), 4 if cut.version == 4 else 16) == 0:
            return cut.id
        self.identification += 1
        return <uint32_t>(self.identification * core.cores + core.index)
