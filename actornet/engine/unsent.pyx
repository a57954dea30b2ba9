"""Packets that this core has taken and not sent yet: a backup in sync is told of them, and goes on with them after a takeover.

Theory of operation. A packet that waits (with its handler, in a mailbox, for the watermark) has a number from when it begins to,
so that a flow's are in the order of arrival. The backup is told of it: as it came, later perhaps as it is to leave. It is settled
where the core is done with it (`Core.discard`), that is after it was sent, and the backup hears of that with what comes next, or
the next sign of life. So what a primary has sent in its last milliseconds leaves its backup once more at worst. What goes
through without waiting is told to nobody.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t
from libc.string cimport memcpy, memset

from actornet.engine.core cimport Core
from actornet.engine.counters cimport C_RESENT, C_RESUMED
from actornet.engine.ring cimport an_word_load
from actornet.engine.types cimport AN_CSUM_PARTIAL, AN_REASSEMBLED, an_key
from actornet.engine.wire cimport an_entry_key, an_hash

from actornet.limits import PACKET_KEPT_BYTES_MAX, UNSENT_TOLD_BYTES

cdef uint32_t packet_kept_max = PACKET_KEPT_BYTES_MAX
cdef uint32_t told_bytes = UNSENT_TOLD_BYTES

cdef class Unsent:
    """What is to be told: (number, port to leave by or -1, port of arrival, packet, RSS entry of its flow) of those that wait;
    numbers that are done."""

    def __cinit__(self):
        self.waits, self.done = [], []
        self.followed = &self.followed_own

    cdef int tell(self, FlowBase flow, an_parked *item, int out) except -1:
        """The flow's packet waits to leave by port `out`, or, -1, to be treated. What is too large, or is to be cut, is not told."""
        cdef Core core = <Core>self.core
        cdef an_key key
        if item.number == 0:
            self.last += 1
            item.number = self.last
        if not an_word_load(self.followed) or item.p.length > packet_kept_max or (
                out >= 0 and item.p.flags & AN_REASSEMBLED):
            return 0
        key = an_entry_key(&core.flows.table.entries[flow.first])
        item.told = True
        self.waits.append((item.number, out, item.p.port, packet_bytes(&item.p), core.siblings.rss_entry(&key)))
        self.bytes += PACKET_HEAD + item.p.length
        if self.bytes >= told_bytes:
            self.flush()
        return 0

    cdef int settle(self, an_parked *item) except -1:
        """The core is done with the packet."""
        if an_word_load(self.followed):
            self.done.append(item.number)
        return 0

    cdef int flush(self) except -1:
        """Tell it. The owner system is woken for what waits, with the core's requests; what is done it reads when it next runs."""
        cdef Core core = <Core>self.core
        cdef list waits = self.waits
        cdef list done = self.done
        self.waits, self.done, self.bytes = [], [], 0
        core.link.unsent(waits, done)
        if waits:
            core.submitted = True
        return 0

    def resume(self, int port, bytes packet not None) -> None:
        """Treat a packet that arrived at the port with this index at a core that is no more."""
        cdef Core core = <Core>self.core
        cdef bint entered
        cdef an_packet p
        assert 0 <= port < core.port_count
        packet_from(&p, packet)
        p.port = <uint8_t>port
        p.time_ns = core.now_ns
        core.parse(&p)
        p.hash = <uint32_t>an_hash(&p.key, core.flows.table.seed)
        core.counters[<int>C_RESUMED] += 1
        entered = core.enter_task()
        try:
            core.process(&core.park(&p).p)
            core.exhale()
        finally:
            core.leave_task(entered)

    def resend(self, int out, bytes packet not None) -> None:
        """Send a packet that another node had decided upon and has not sent; what it depends on is committed (G3)."""
        cdef Core core = <Core>self.core
        cdef an_packet p
        assert 0 <= out < core.port_count
        packet_from(&p, packet)
        p.port = <uint8_t>out
        p.time_ns = core.now_ns
        if core.routed >> out & 1:
            memcpy(p.data + 6, core.macs[out], 6)
        core.counters[<int>C_RESENT] += 1
        core.transmit(&core.park(&p).p, out)
        core.flush()


cdef bytes packet_bytes(const an_packet *p):
    """What it takes to treat or send a packet elsewhere: a byte of flags, the virtio header, and the frame."""
    cdef bytes kept = PyBytes_FromStringAndSize(NULL, PACKET_HEAD + <Py_ssize_t>p.length)
    write_packet(<uint8_t *>PyBytes_AS_STRING(kept), p)
    return kept


cdef uint8_t *write_packet(uint8_t *out, const an_packet *p) noexcept:
    """The same to where there is room for PACKET_HEAD bytes and the frame; returns the end."""
    out[0] = p.flags & AN_CSUM_PARTIAL
    memcpy(out + 1, p.vnet, PACKET_HEAD - 1)
    memcpy(out + PACKET_HEAD, p.data, p.length)
    return out + PACKET_HEAD + p.length


cdef int packet_from(an_packet *p, bytes kept) except -1:
    """The packet in `kept`, whose bytes it borrows."""
    cdef const uint8_t *begin = <const uint8_t *>PyBytes_AS_STRING(kept)
    assert PyBytes_GET_SIZE(kept) >= PACKET_HEAD
    memset(p, 0, sizeof(an_packet))
    p.data = <uint8_t *>begin + PACKET_HEAD
    p.length = <uint32_t>(PyBytes_GET_SIZE(kept) - PACKET_HEAD)
    p.flags = begin[0] & AN_CSUM_PARTIAL
    memcpy(p.vnet, begin + 1, PACKET_HEAD - 1)
    return 0
