"""The flows of one core: which actor has which keys, what the core carries out for them, and their way from the log."""

import os

from cpython.object cimport PyObject, PyObject_GenericSetAttr
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport UINT64_MAX
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from actornet.engine.closing cimport begin_close
from actornet.engine.core cimport Core
from actornet.engine.counters cimport (
    C_FLOW_TABLE_FULL, C_FLOWS_EVICTED, C_FLOWS_OPENED, C_FLOWS_RESTORED, C_LIVE_FLOWS, C_STREAM_DISCARDED, C_STREAM_HELD,
)
from actornet.engine.flow_base cimport MARK_ASKED, MARK_CLOSING, MARK_DIRTY, MARK_LEAVING, MARK_SAVED
from actornet.engine.types cimport (
    AN_BUSY, AN_DROP, AN_FORWARD, AN_HELD, AN_NONE, AN_PRIMARY, AN_PUNT_TCP, AN_REDIRECT, AN_SET_LINK, AN_SLOW, AN_TERMS,
    an_rewrite,
)
from actornet.engine.verdict cimport VERDICT_DROP, VERDICT_FORWARD, VERDICT_REWRITE, Forward, Rewrite
from actornet.engine.wire cimport (
    AN_TIMER_SLOTS, AN_TIMER_TICK_SHIFT, an_entry_begin_slow, an_entry_key, an_hash, an_rewrite_prepare, an_table_find,
    an_table_free, an_table_init, an_table_insert, an_table_remove, an_timer_advance, an_timer_arm, key_of,
)

from actornet.engine.terms import Meter, Mirror
from actornet.engine.verdict import decode_verdict
from actornet.errors import NoRouteError, UsageError
from actornet.limits import EVICTION_CANDIDATES, EVICTION_WALK, KEYS_PER_FLOW_MAX

from actornet.engine.wire cimport slot_offset

cdef extern from "Python.h":
    void PyObject_GC_Track(PyObject *o)
    void PyObject_GC_UnTrack(PyObject *o)

DEF DUE_MAX = 64
DEF EVICTIONS_PER_OPEN = 2
DEF TURNS_IN_ORDER = 64  # 275 s each: more than the two hours of an established connection

cdef uint32_t candidates_max = EVICTION_CANDIDATES
cdef uint32_t walk_max = EVICTION_WALK
cdef uint32_t keys_max = KEYS_PER_FLOW_MAX

MUTABLE = (list, dict, set)


cdef bint terms_of(an_terms *out, object form) except -1:
    """Reads the record form of an offload's terms; False if there are none."""
    memset(out, 0, sizeof(an_terms))
    if form is None:
        return False
    meter, mirror = form.get("meter"), form.get("mirror")
    return make_terms(
        out, form.get("until_ns", 0), Meter(**meter) if meter else None, Mirror(**mirror) if mirror else None
    )


cdef bint make_terms(an_terms *out, uint64_t until_ns, object meter, object mirror) except -1:
    memset(out, 0, sizeof(an_terms))
    out.until_ns = until_ns
    if meter is not None:
        out.rate = meter.bytes_per_s or meter.packets_per_s
        out.burst = meter.burst
        out.meter_bytes = meter.bytes_per_s != 0
    if mirror is not None:
        out.mirror_every, out.mirror_packets, out.mirror_bytes = mirror.every, mirror.packets, mirror.bytes
    return until_ns != 0 or meter is not None or mirror is not None


cdef class Flows:
    """Flow actors by key. Each is in the table under the key that it was opened with and under those that it has bound.

    The table owns a reference to each actor; an actor only borrows its core.
    """

    def __dealloc__(self):
        cdef FlowBase flow
        cdef uint32_t i = an_flow_from(&self.table, 0)
        while i != AN_NONE:
            flow = <FlowBase>self.table.entries[i].actor
            flow.core = NULL
            self._free_keys(flow)
            PyObject_GC_Track(<PyObject *>flow)
            Py_DECREF(flow)
            i = an_flow_from(&self.table, i + 1)
        an_table_free(&self.table)

    cdef int open(self, uint32_t flows_max) except -1:
        """Make room for so many keys. Raises MemoryError."""
        # The seed is secret and random, so that nobody can choose keys that collide.
        cdef uint64_t seed = int.from_bytes(os.urandom(8), "little")
        cdef int status = an_table_init(&self.table, flows_max, seed, (<Core>self.core).now_ns)
        if status != 0:
            raise MemoryError(f"flow table of {flows_max} entries: {os.strerror(-status)}")
        defaults = (<Core>self.core).nf.field_defaults
        # At the place of its slot, which is empty in a new flow: to set it as an attribute takes 0.05 us.
        self.defaults = tuple(
            (slot_offset(getattr((<Core>self.core).nf, name)), value) for name, value in defaults if type(value) not in MUTABLE)
        self.defaults_copied = tuple(pair for pair in defaults if type(pair[1]) in MUTABLE)
        return 0

    # -- keys -------------------------------------------------------------------------------------------------------

    cdef uint32_t find(self, const an_key *key) noexcept:
        """The key's entry, or AN_NONE."""
        return an_table_find(&self.table, key, <uint32_t>an_hash(key, self.table.seed))

    cdef uint32_t find_at_any_port(self, object flow) except? 0:
        """The entry of a flow that has the five-tuple, at whichever port; AN_NONE if none has."""
        cdef Core core = <Core>self.core
        cdef an_key key
        cdef uint32_t index
        cdef int port
        key_of(flow, 0, &key)
        for port in range(core.port_count):
            key.port = port
            index = self.find(&key)
            if index != AN_NONE and self.table.entries[index].actor != NULL:
                return index
        return AN_NONE

    cdef FlowBase begin(self, const an_key *key):
        """A flow that begins here with this key; None when the table is full."""
        cdef Core core = <Core>self.core
        cdef FlowBase flow = self.create(key)
        if flow is None:
            return None
        core.counters[<int>C_FLOWS_OPENED] += 1
        flow.incarnation = core.incarnation_next
        core.incarnation_next += 1
        if core.connection:
            self._bind_reply(flow, key)
        return flow

    cdef int _bind_reply(self, FlowBase flow, const an_key *key) except -1:
        """Let the connection's other direction come to the same actor, unless another flow holds its key."""
        cdef Core core = <Core>self.core
        cdef an_key reply
        cdef uint32_t index
        memset(&reply, 0, sizeof(reply))
        memcpy(reply.source, key.destination, 16)
        memcpy(reply.destination, key.source, 16)
        reply.source_port, reply.destination_port = key.destination_port, key.source_port
        reply.protocol, reply.version = key.protocol, key.version
        reply.port = core.resolve_out(None, key.port)
        index = self.find(&reply)
        if index == AN_NONE or self.table.entries[index].actor == NULL:
            if not self.add_key(flow, &reply, index):
                core.counters[<int>C_FLOW_TABLE_FULL] += 1
        return 0

    cdef FlowBase create(self, const an_key *key):
        """A new actor with this key, all fields at their defaults; None when the table is full."""
        cdef Core core = <Core>self.core
        cdef FlowBase flow
        cdef an_entry *e
        cdef uint32_t index
        if self.table.used == self.table.entries_max:
            return None
        flow = core.nf.__new__(core.nf)
        for offset, value in self.defaults:
            Py_INCREF(value)
            (<PyObject **>(<char *><PyObject *>flow + <Py_ssize_t>offset))[0] = <PyObject *>value
        for name, value in self.defaults_copied:
            PyObject_GenericSetAttr(flow, name, value.copy())
        index = self._insert(key)
        flow.core = self.core
        flow.first = index
        flow.keys = 1
        flow.idle_ns = core.idle_ns_default
        e = &self.table.entries[index]
        e.actor = <void *>flow
        an_entry_begin_slow(e)
        Py_INCREF(flow)
        # What is in the table is no garbage, so the collector need not look: a full collection would take 0.2 us per flow,
        # in one go.
        PyObject_GC_UnTrack(<PyObject *>flow)
        e.state |= AN_PRIMARY
        e.last_seen_ns = core.now_ns
        an_timer_arm(&self.table, index, core.now_ns + flow.idle_ns)
        core.counters[<int>C_LIVE_FLOWS] += 1
        return flow

    cdef int remove(self, FlowBase flow) except -1:
        """Take a flow and its keys out of the table; packets that it holds do not leave any more."""
        if (<Core>self.core).holds:
            self._discard_held(flow)
        if (<Core>self.core).tasks_open:
            (<Core>self.core).tasks.end(flow)
        self._free_keys(flow)
        flow.core = NULL
        PyObject_GC_Track(<PyObject *>flow)
        (<Core>self.core).counters[<int>C_LIVE_FLOWS] -= 1
        Py_DECREF(flow)
        return 0

    cdef int _discard_held(self, FlowBase flow) except -1:
        """The flow's actor has kept packets of a stream back, and ends (G9: each is counted once)."""
        cdef uint64_t *counters = (<Core>self.core).counters
        cdef uint64_t packets = flow.held_packets()
        counters[<int>C_STREAM_HELD] -= packets
        counters[<int>C_STREAM_DISCARDED] += packets
        return 0

    cdef int _free_keys(self, FlowBase flow) noexcept:
        cdef uint32_t i = flow.first, following
        for _ in range(flow.keys):
            following = self.table.entries[i].next_key
            self._free_entry(i)
            i = following
        flow.keys = 0
        return 0

    cdef uint32_t _insert(self, const an_key *key) noexcept:
        return an_table_insert(&self.table, key, <uint32_t>an_hash(key, self.table.seed))

    cdef int _free_entry(self, uint32_t index) noexcept:
        free(self.table.entries[index].extra)
        an_table_remove(&self.table, index)
        return 0

    cdef bint add_key(self, FlowBase flow, const an_key *key, uint32_t index) noexcept:
        """Give the flow one more key, which no other flow has; False when the table is full. `index`: where `find` sees it."""
        cdef an_entry *first = &self.table.entries[flow.first]
        cdef an_entry *e
        if index != AN_NONE:
            self._free_entry(index)  # a redirection to another core, where the flow no longer is
        index = self._insert(key)
        if index == AN_NONE:
            return False
        e = &self.table.entries[index]
        e.actor = <void *>flow
        an_entry_begin_slow(e)
        e.last_seen_ns = (<Core>self.core).now_ns
        e.state |= first.state & (AN_HELD | AN_BUSY)
        e.next_key = first.next_key
        first.next_key = index
        flow.keys += 1
        return True

    cdef bint at_home(self, FlowBase flow) noexcept:
        """Whether packets of all keys of the flow come to this core."""
        cdef Core core = <Core>self.core
        cdef uint32_t i = flow.first
        cdef an_key key
        for _ in range(flow.keys if core.cores > 1 else 0):
            key = an_entry_key(&self.table.entries[i])
            if core.siblings.home(&key) != <unsigned>core.index:
                return False
            i = self.table.entries[i].next_key
        return True

    cdef int set_state(self, FlowBase flow, uint8_t bit, bint on) except -1:
        """Set or clear a bit in all entries of the flow."""
        cdef uint32_t i = flow.first
        for _ in range(flow.keys):
            if on:
                self.table.entries[i].state |= bit
            else:
                self.table.entries[i].state &= ~bit
            i = self.table.entries[i].next_key
        return 0

    cdef list actors(self):
        """The actors of all live flows."""
        cdef uint32_t i = an_flow_from(&self.table, 0)
        found = []
        while i != AN_NONE:
            found.append(<object>self.table.entries[i].actor)
            i = an_flow_from(&self.table, i + 1)
        return found

    cdef int expire(self) except -1:
        """Close the flows that have been idle for too long."""
        cdef Core core = <Core>self.core
        cdef uint32_t due[DUE_MAX]
        cdef uint32_t n, k
        cdef uint64_t last
        cdef FlowBase flow
        n = an_timer_advance(&self.table, core.now_ns, due, DUE_MAX)
        for k in range(n):
            if not self.table.entries[due[k]].state & AN_PRIMARY:
                continue  # closed together with one before it
            flow = <FlowBase>self.table.entries[due[k]].actor
            last = self._idle_since_ns(flow, core.now_ns)
            if last + flow.idle_ns <= core.now_ns:
                begin_close(core, flow, "idle")
            else:
                an_timer_arm(&self.table, flow.first, last + flow.idle_ns)
        return 0

    cdef bint ticks(self, uint64_t until_ns) noexcept:
        """Whether flows may come due before then."""
        return self.table.armed > 0 and until_ns >> AN_TIMER_TICK_SHIFT > self.table.tick

    cdef int pass_time(self, uint64_t until_ns) except -1:
        """`expire` for a clock that jumps, a capture's: close what is idle for too long at any time up to then, the earliest
        first, each at its own time.

        One turn of the wheel after the other, for in a longer step it would not come to its entries in their order; beyond
        TURNS_IN_ORDER of them the order no longer counts.
        """
        cdef Core core = <Core>self.core
        cdef uint32_t due
        cdef uint64_t horizon_ns, deadline_ns
        cdef FlowBase flow
        cdef int turn
        for turn in range(TURNS_IN_ORDER + 1):
            horizon_ns = (self.table.tick + AN_TIMER_SLOTS - 1) << AN_TIMER_TICK_SHIFT
            if turn == TURNS_IN_ORDER or horizon_ns > until_ns:
                horizon_ns = until_ns
            while an_timer_advance(&self.table, horizon_ns, &due, 1):
                if not self.table.entries[due].state & AN_PRIMARY:
                    continue
                flow = <FlowBase>self.table.entries[due].actor
                deadline_ns = self._idle_since_ns(flow, until_ns) + flow.idle_ns
                # The wheel stands right before the next entry that is due: what is due behind that one has time.
                if deadline_ns > until_ns or deadline_ns >> AN_TIMER_TICK_SHIFT > self.table.tick:
                    an_timer_arm(&self.table, flow.first, deadline_ns)
                    continue
                core.now_ns = max(core.now_ns, deadline_ns)
                begin_close(core, flow, "idle")
            if horizon_ns == until_ns:
                break
        return 0

    cdef uint64_t _idle_since_ns(self, FlowBase flow, uint64_t now_ns) noexcept:
        """When the flow's silence began: not yet where its output waits, or another core sees its packets."""
        if flow.suspension is not None or flow.held or self.idle_from_ns > now_ns:
            return now_ns
        return max(self.last_seen_ns(flow), self.idle_from_ns)

    cdef uint64_t last_seen_ns(self, FlowBase flow) noexcept:
        """When the latest packet of any of its keys came."""
        cdef uint64_t last = 0
        cdef uint32_t i = flow.first
        for _ in range(flow.keys):
            last = max(last, self.table.entries[i].last_seen_ns)
            i = self.table.entries[i].next_key
        return last

    cdef int make_room(self) except -1:
        """Where the table is all but full, evict flows, so that a new one has room for its keys.

        Of a few that come next in the table, the one goes that is nearest to its own time-out. So a connection that is
        not established, and has a short time-out for that, goes before one that is idle for longer but may be.
        """
        cdef uint32_t room = min(keys_max, self.table.entries_max // 8), index
        for _ in range(EVICTIONS_PER_OPEN):
            if self.table.used + room <= self.table.entries_max:
                return 0
            index = self._next_to_go()
            if index == AN_NONE:
                return 0
            (<Core>self.core).counters[<int>C_FLOWS_EVICTED] += 1
            begin_close(<Core>self.core, <FlowBase>self.table.entries[index].actor, "evicted")
        return 0

    cdef uint32_t _next_to_go(self) noexcept:
        cdef uint32_t best = AN_NONE, candidates = 0
        cdef uint64_t deadline_ns, soonest_ns = UINT64_MAX
        cdef an_entry *e
        for _ in range(min(self.table.touched, walk_max)):
            self.hand = self.hand + 1 if self.hand + 1 < self.table.touched else 0
            e = &self.table.entries[self.hand]
            if not e.state & AN_PRIMARY or e.state & (AN_BUSY | AN_HELD) or (<FlowBase>e.actor).marks & MARK_CLOSING:
                continue
            deadline_ns = self.last_seen_ns(<FlowBase>e.actor) + (<FlowBase>e.actor).idle_ns
            if deadline_ns < soonest_ns:
                best, soonest_ns = self.hand, deadline_ns
            candidates += 1
            if candidates == candidates_max:
                break
        return best

    cdef int close_all(self, str reason) except -1:
        cdef uint32_t i = an_flow_from(&self.table, 0)
        while i != AN_NONE:
            begin_close(<Core>self.core, <FlowBase>self.table.entries[i].actor, reason)
            i = an_flow_from(&self.table, i + 1)
        return 0

    # -- offloads ---------------------------------------------------------------------------------------------------

    cdef int install(self, uint32_t index, Verdict verdict, bint punt, const an_terms *terms) except -1:
        """Make `verdict` the entry's offload; `terms` may be NULL."""
        cdef Core core = <Core>self.core
        cdef an_key key = an_entry_key(&self.table.entries[index])
        cdef an_rewrite r
        cdef Rewrite rewrite = None
        memset(&r, 0, sizeof(r))
        if verdict.kind == VERDICT_DROP:
            r.action = AN_DROP
        elif verdict.kind == VERDICT_FORWARD:
            r.action = AN_FORWARD
            r.out_port = core.resolve_out((<Forward>verdict).to, key.port)
        elif verdict.kind == VERDICT_REWRITE:
            rewrite = <Rewrite>verdict
            if rewrite.payload is not None:
                raise UsageError("offload: a payload is one packet's, so it cannot be offloaded")
            if rewrite.version and rewrite.version != key.version:
                raise UsageError(f"offload: an IPv{rewrite.version} address for an IPv{key.version} flow")
            r = rewrite.rewrite
            r.out_port = core.resolve_out(rewrite.to, key.port)
        else:
            raise UsageError(f"offload: {verdict!r} is not a decision that the core can carry out")
        return self.place(index, &r, rewrite, punt, terms)

    cdef int place(self, uint32_t index, an_rewrite *r, Rewrite rewrite, bint punt, const an_terms *terms) except -1:
        """Make `r` the entry's offload; `rewrite` has what it lacks of addresses and link, or is None."""
        cdef Core core = <Core>self.core
        cdef an_entry *e = &self.table.entries[index]
        cdef an_key key = an_entry_key(e)
        cdef an_extra *extra
        cdef const uint8_t *addresses = rewrite.ipv6_addresses() if rewrite is not None else NULL
        cdef int adjacency
        if r.fields:
            an_rewrite_prepare(r, &key, addresses)
        if r.action == AN_FORWARD:
            adjacency = core.neighbors.adjacency(r.out_port, &key, r, addresses)
            if adjacency < 0:
                raise NoRouteError(f"offload: no route to the destination out of port {core.port_names[r.out_port]}")
            r.adjacency = adjacency
        if addresses != NULL:
            memcpy(self.extra(e).addresses, addresses, 32)
        if r.fields & AN_SET_LINK:
            self.extra(e).link = rewrite.link
        if terms != NULL:
            extra = self.extra(e)
            extra.terms = terms[0]
            an_terms_begin(&extra.terms, core.now_ns)
            e.state |= AN_TERMS
        else:
            e.state &= ~AN_TERMS
        e.rewrite = r[0]
        e.rewrite.generation = <uint16_t>(self.table.generation - self.outdated)
        if punt:
            e.state |= AN_PUNT_TCP
        else:
            e.state &= ~AN_PUNT_TCP
        return 0

    cdef an_extra *extra(self, an_entry *e) except NULL:
        if e.extra == NULL:
            e.extra = <an_extra *>calloc(1, sizeof(an_extra))
            if e.extra == NULL:
                raise MemoryError("offload")
        return e.extra

    cdef int withdraw(self, an_entry *e) noexcept:
        """Packets of this key come to the actor again."""
        an_entry_begin_slow(e)
        e.state &= ~AN_TERMS
        return 0

    cdef int end_offload(self, FlowBase flow, an_entry *e, int counter) except -1:
        """The offload of this key has ended by itself; the flow's record will say so when it is saved next."""
        (<Core>self.core).counters[counter] += 1
        flow.marks |= MARK_DIRTY
        return self.withdraw(e)

    cdef bint stands(self, const an_entry *e) noexcept:
        """Whether the key is offloaded."""
        return e.rewrite.action != AN_SLOW and not an_revoked(&self.table, e)

    cdef bint decides(self, const an_entry *e) noexcept:
        """Whether what is offloaded for the key says what becomes of the packet whose handler ends. Where the handler is outdated
        that is good for this packet, and for no other."""
        return self.stands(e) or (
            self.outdated and e.rewrite.action != AN_SLOW and e.rewrite.generation == <uint16_t>(self.table.generation - 1))

    cdef int revoke(self, uint64_t count) except -1:
        """Owners have revoked all offloads `count` times: none that was installed before the last of them holds."""
        cdef uint32_t i
        if count >> 16 != self.revocations >> 16:  # entries know the low bits only
            for i in range(self.table.touched):
                if self.table.entries[i].actor != NULL:
                    self.withdraw(&self.table.entries[i])
        self.revocations = count
        self.table.generation = <uint16_t>count
        return 0

    cdef object terms_form(self, const an_entry *e):
        """Record form of an offload's terms, or None: `terms_of` reads it."""
        cdef const an_terms *t
        if not e.state & AN_TERMS:
            return None
        t = &e.extra.terms
        form = {}
        if t.until_ns:
            form["until_ns"] = t.until_ns
        if t.rate:
            form["meter"] = {"burst": t.burst, "bytes_per_s" if t.meter_bytes else "packets_per_s": t.rate}
        if t.mirror_every or t.mirror_packets or t.mirror_bytes:
            form["mirror"] = {"every": t.mirror_every, "packets": t.mirror_packets, "bytes": t.mirror_bytes}
        return form

    # -- from the log -----------------------------------------------------------------------------------------------

    cdef int restore(
        self, object flow, str port, uint64_t incarnation, uint32_t asks, object fields, object keys, uint64_t idle_ns,
        uint64_t generation
    ) except -1:
        """Make a flow as its record says, offloads included; flows that hold its keys now are replaced (G6).

        A flow for which the table has no room is left out and counted as `flow_table_full`.
        """
        cdef Core core = <Core>self.core
        cdef an_key key
        cdef FlowBase actor
        cdef int at
        cdef bint complete = False
        cdef an_terms terms
        cdef bint asked
        key_of(flow, core.port_index(port), &key)
        actor = self.begin_restored(&key, incarnation, asks, idle_ns)
        if actor is None:
            return 0
        try:
            for name, value in fields:
                PyObject_GenericSetAttr(actor, name, value)
            for saved in keys:
                at = core.port_index(saved.port)
                key_of(saved.flow, at, &key)
                if not self.restore_key(actor, &key):
                    return 0
                if saved.offload is False or generation != self.revocations:
                    continue
                verdict = decode_verdict(saved.offload)
                if saved.next_hop is not None:
                    core.neighbors.restore(core.resolve_out(getattr(verdict, "to", None), at), saved.next_hop)
                asked = terms_of(&terms, saved.terms)
                self.install(self.find(&key), verdict, saved.punt_tcp, &terms if asked else NULL)
            complete = True
        finally:
            self.end_restored(actor, complete)
        return 0

    cdef FlowBase begin_restored(self, const an_key *key, uint64_t incarnation, uint32_t asks, uint64_t idle_ns):
        """The flow's actor, with this key; None, and it is counted: there is no room."""
        cdef Core core = <Core>self.core
        cdef FlowBase actor
        self._displace(key)
        actor = self.create(key)
        if actor is None:
            core.counters[<int>C_FLOW_TABLE_FULL] += 1
            return None
        actor.incarnation, actor.asks, actor.idle_ns = incarnation, asks, idle_ns
        an_timer_arm(&self.table, actor.first, core.now_ns + idle_ns)
        return actor

    cdef bint restore_key(self, FlowBase actor, const an_key *key) except -1:
        """Have the flow hold this key, if it does not; False, and it is counted: there is no room."""
        cdef uint32_t index = self.find(key)
        if index != AN_NONE and self.table.entries[index].actor == <void *>actor:
            return True
        self._displace(key)
        if self.add_key(actor, key, self.find(key)):
            return True
        (<Core>self.core).counters[<int>C_FLOW_TABLE_FULL] += 1
        return False

    cdef int end_restored(self, FlowBase actor, bint complete) except -1:
        """All of the flow is there; or it goes, for there is never half a flow."""
        cdef Core core = <Core>self.core
        if not complete:
            return self.remove(actor)
        actor.marks = MARK_SAVED | MARK_ASKED  # perhaps: its record need not say how often
        core.incarnation_next = max(core.incarnation_next, actor.incarnation + 1)
        core.counters[<int>C_FLOWS_RESTORED] += 1
        return 0

    cdef int asked(self, object flow, str port, uint32_t asks) except -1:
        """The flow that was opened with this key has asked owners so often by now."""
        cdef an_key key
        cdef uint32_t index
        key_of(flow, (<Core>self.core).port_index(port), &key)
        index = self.find(&key)
        if index != AN_NONE and self.table.entries[index].state & AN_PRIMARY:
            (<FlowBase>self.table.entries[index].actor).asks = asks  # and it is marked, as one that was restored
        return 0

    cdef int forget(self, object flow, str port) except -1:
        """Remove the flow that was opened with this key, without `on_close`."""
        cdef Core core = <Core>self.core
        cdef an_key key
        cdef uint32_t index
        key_of(flow, core.port_index(port), &key)
        index = self.find(&key)
        if index != AN_NONE and self.table.entries[index].state & AN_PRIMARY:
            self._displace(&key)
        return 0

    cdef int _displace(self, const an_key *key) except -1:
        """Free a key for a flow from the log: whoever holds it goes with all its keys."""
        cdef uint32_t index = self.find(key)
        cdef FlowBase flow
        if index == AN_NONE:
            return 0
        if self.table.entries[index].actor == NULL:
            return self._free_entry(index)
        flow = <FlowBase>self.table.entries[index].actor
        if flow.suspension is not None:
            flow.suspension.abandon()
        return self.remove(flow)

    cdef int redirect(self, object flow, str port, int to) except -1:
        """Packets of this key belong to a flow on core `to`: hand them over."""
        cdef an_key key
        cdef FlowBase holder
        cdef uint32_t index
        key_of(flow, (<Core>self.core).port_index(port), &key)
        index = self.find(&key)
        if index != AN_NONE and self.table.entries[index].actor != NULL:
            holder = <FlowBase>self.table.entries[index].actor
            return (<Core>self.core).moves.depart(holder, to) if holder.marks & MARK_LEAVING else 0
        return self.pass_on(&key, to)

    cdef int pass_on(self, const an_key *key, int to) except -1:
        """Hand packets of this key, which no flow here holds, over to core `to`."""
        cdef uint32_t index = self.find(key)
        if index == AN_NONE:
            index = self._insert(key)
            if index == AN_NONE:
                (<Core>self.core).counters[<int>C_FLOW_TABLE_FULL] += 1
                return 0
        self.table.entries[index].rewrite.action = AN_REDIRECT
        self.table.entries[index].rewrite.out_port = to
        return 0

    cdef int redirect_end(self, object flow, str port) except -1:
        """The flow on the other core has closed."""
        cdef Core core = <Core>self.core
        cdef an_key key
        cdef uint32_t index
        key_of(flow, core.port_index(port), &key)
        index = self.find(&key)
        if index != AN_NONE and self.table.entries[index].actor == NULL:
            self._free_entry(index)
        return 0
