"""The node's other cores: which packets are theirs, and the way there. A NIC's or the kernel's choice must not change the result."""

from libc.string cimport memcpy

from actornet.engine.core cimport Core
from actornet.engine.counters cimport C_HANDED_OFF, C_HANDOFF_FULL
from actornet.engine.handoff cimport Handoff
from actornet.engine.wire cimport an_rss_core, an_rss_entry, an_rss_entry_keyed


cdef class Siblings:
    """A hand-off per sibling, once they are known; `rss_keys`, if the NF has such, say whose a packet is."""

    def __cinit__(self, rss_keys):
        cdef int i
        self.handoffs = []
        self.sharded = rss_keys is not None
        for i in range(4 if self.sharded else 0):
            rss_key = rss_keys[i // 2].key(i % 2)
            memcpy(self.rss_keys[i], <const char *>rss_key, 40)

    cdef unsigned home(self, const an_key *key) noexcept:
        """The core that packets with this key belong to."""
        return an_rss_core(self.rss_entry(key), (<Core>self.core).cores)

    cdef unsigned rss_entry(self, const an_key *key) noexcept:
        """And the entry of a network card's indirection table that names it, however many cores there are."""
        if self.sharded:
            return an_rss_entry_keyed(self.rss_keys[(key.port != 0) + 2 * (key.version == 6)], key)
        return an_rss_entry(key)

    cdef int hand_off(self, an_packet *p, int to) except -1:
        """Give the packet to core `to`, which holds its flow."""
        cdef Core core = <Core>self.core
        return core.discard(p) if self.push(p, to) else core.drop(p, C_HANDOFF_FULL)

    cdef bint push(self, an_packet *p, int to) except -1:
        """Copy the packet to core `to`; False when it cannot take it."""
        cdef Handoff handoff = self.handoffs[to] if to < len(self.handoffs) else None
        if handoff is None or not handoff.push(p):
            return False
        (<Core>self.core).counters[<int>C_HANDED_OFF] += 1
        self.handed |= <uint64_t>1 << to
        return True

    cdef int wake(self) except -1:
        """Wake those that were given packets."""
        cdef int i
        for i in range((<Core>self.core).cores):
            if self.handed >> i & 1:
                (<Handoff>self.handoffs[i]).outgoing.wake()
        self.handed = 0
        return 0
