"""The core: bursts in, flow table, offload or handler or mailbox, bursts out.

Theory of operation. `breathe` takes a burst from each port and treats its packets in arrival order. A packet whose key
has an offloaded rewrite is carried out here in C (offload.h); any other goes to the handler of its flow's actor, with
one reused view of the packet; one that has no flow may begin one (miss.pyx). A handler that suspends keeps its packet
(copied out of the burst) and its flow's later packets wait in the flow's mailbox (suspension.pyx; G1). What a flow sends
while it depends on records that are not yet committed is parked in one queue per core (held.pyx) and leaves when the
watermark has passed (G3): execution never waits, output does.

A packet belongs to the function that it was given to. Whoever is done with one calls `discard`, which frees it if it is
parked (AN_COPIED): `drop`, `_flush_port` after the transmission, `Siblings.hand_off` after the copy.
"""

import os
import weakref
from asyncio import tasks as asyncio_tasks

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.ref cimport Py_DECREF
from libc.stdint cimport UINT64_MAX
from libc.stdlib cimport free
from libc.string cimport memcmp, memcpy, memset

from actornet.engine.black_box cimport BlackBox, an_black_box_enter, an_black_box_leave
from actornet.engine.closing cimport begin_close, end_close
from actornet.engine.counters cimport *
from actornet.engine.datagram cimport answer, replaced
from actornet.engine.failure cimport close_condemned, report, take_error, tell_unheard
from actornet.engine.flow_base cimport MARK_ASKED, MARK_CLOSING, MARK_DIRTY, Ask
from actornet.engine.flows cimport an_addresses, an_revoked, an_terms_conform, an_terms_expired, an_terms_mirror
from actornet.engine.handlers cimport PHASE_CLOSE, PHASE_MESSAGE, PHASE_MIRROR, PHASE_OPEN, PHASE_PACKET
from actornet.engine.handoff cimport Handoff
from actornet.engine.heap cimport heap_back, heap_wants
from actornet.engine.keeps cimport Keeps
from actornet.engine.miss cimport miss, untracked
from actornet.engine.parked cimport an_park
from actornet.engine.port cimport Port
from actornet.engine.ring cimport AN_CORE_COUNTERS, AN_NO_LEASE, an_lease_holds, an_word_load
from actornet.engine.saving cimport Settling, save
from actornet.engine.suspension cimport Suspension, end_waits
from actornet.engine.types cimport *
from actornet.engine.verdict cimport (
    VERDICT_ANSWER, VERDICT_DROP, VERDICT_OFFLOADED, VERDICT_REJECT, VERDICT_EMIT, VERDICT_REWRITE, Answer, Emit, Forward, Made, Verdict,
)
from actornet.engine.wire cimport (
    an_entry_key, an_entry_returned, an_hash, an_key_equal, an_parse, an_parse_inner, an_rewrite_apply, an_rewrite_prepare,
    an_table_back, an_table_find, an_table_prefetch, an_table_probe, an_table_wants, key_of,
)

from actornet.engine.counters import COUNTERS, PID_COUNTER
from actornet.engine.task import FlowTask, FlowTasks, current_task
from actornet.engine.verdict import DROP, FORWARD, OFFLOADED, REJECT
from actornet.engine.wire import TUNNELS
from actornet.errors import NoRouteError, StateError, UsageError
from actornet.limits import (
    BURST_PACKETS, FLOWS_MAX_DEFAULT, MAILBOX_PACKETS_MAX, MOVE_SAMPLE_PACKETS, PORT_NAME_BYTES_MAX,
    PORTS_MAX, TURNS_MAX,
)

cdef extern from "<stdlib.h>" nogil:
    void *aligned_alloc(size_t alignment, size_t size)

cdef extern from "ring.h" nogil:
    enum:
        AN_LINE

cdef extern from "link.h" nogil:
    bint an_link_grows(const an_packet *p, const an_link *link)
    void an_link_apply(an_packet *p, const an_link *link)

cdef extern from "Python.h":
    PyObject *PyObject_Vectorcall(PyObject *callable, PyObject **args, size_t nargsf, PyObject *kwnames)
    Py_ssize_t Py_REFCNT(PyObject *o)

cdef int turns_max = TURNS_MAX

FRAGMENT_POLICIES = ("drop", "forward", "reassemble")

assert len(COUNTERS) == C_COUNT <= PID_COUNTER == AN_CORE_COUNTERS - 1
assert BURST == BURST_PACKETS and PORTS == PORTS_MAX


cdef class Core:
    """One core's data plane.

    `nf` is a FlowActor class with its settings resolved; `ports` are the core's attachments in index order.
    `link` (see `actornet.local_link.LocalLink`) carries asks and flow records to the owner system; without one nothing is
    logged and output never waits. With `virtual_time` the clock is that of the packets (captures) and begins at
    `now_ns`, else the system's.
    """

    def __cinit__(self, *args, **kwargs):
        self.counters = self.counters_own
        self.committed_own = UINT64_MAX
        self.committed = &self.committed_own
        self.lease_own = AN_NO_LEASE
        self.lease = &self.lease_own
        self.box_own = <an_black_box *>aligned_alloc(AN_LINE, sizeof(an_black_box))
        if self.box_own == NULL:
            raise MemoryError("a black box")
        memset(self.box_own, 0, sizeof(an_black_box))
        self.box = self.box_own

    def __init__(self, nf, list ports not None, *, int index=0, int cores=1, flows_max=FLOWS_MAX_DEFAULT,
                 loop=None, host=None, link=None, bint virtual_time=False, now_ns=0, incarnation_first=1):
        cdef Port port
        cdef int i
        if not 1 <= len(ports) <= PORTS:
            raise UsageError(f"a core has 1..{PORTS} ports, not {len(ports)}")
        if nf.connection and len(ports) > 2:
            raise UsageError(f"{nf.__name__}.connection needs at most two ports: bind each reply where it arrives instead")
        self.ports = ports
        self.port_names = []
        self.port_count = len(ports)
        for i, port in enumerate(ports):
            if port.name in self.port_names:
                raise UsageError(f"two ports are named {port.name!r}")
            if len(port.name.encode()) > PORT_NAME_BYTES_MAX:
                raise UsageError(f"port name {port.name!r} has more than {PORT_NAME_BYTES_MAX} bytes: choose a shorter one")
            port.index = i
            self.port_objects[i] = <void *>port
            self.port_names.append(port.name)
            if port.interface is not None:
                if port.mac is None or len(port.mac) != 6:
                    raise UsageError(f"port {port.name}: a routed port needs a MAC address of 6 bytes")
                self.routed |= <uint64_t>1 << i
                memcpy(self.macs[i], <char *>port.mac, 6)
        self.virtual_time = virtual_time
        self.now_ns = now_ns if virtual_time else an_now_ns()
        self.neighbors = Neighbors(ports)
        self.neighbors.core = <void *>self
        self.output = Held()
        self.output.core = <void *>self
        self.flows = Flows()
        self.flows.core = <void *>self
        self.siblings = Siblings(nf.rss_keys())
        self.siblings.core = <void *>self
        self.moves = Moves()
        self.moves.core = <void *>self
        self.settling = Settling()
        self.settling.core = <void *>self
        self.sightings = Sightings()
        self.sightings.core = <void *>self
        self.unsent = Unsent()
        self.unsent.core = <void *>self
        self.nf = nf
        self.flows.open(flows_max)
        self.keeps = Keeps(nf)
        self.idle_ns_default = <uint64_t>(nf.idle_default_s * 1e9)
        self.incarnation_next = incarnation_first
        self.index = index
        self.cores = cores
        self.link = link
        self.host = host
        self.loop = loop
        self.task = FlowTask(loop) if loop is not None else None
        if loop is not None:
            self.tasks = FlowTasks(loop, _running(self))
            self.tasks_open = self.tasks.open
        self.on_open, self.has_open, self.open_async = nf.on_open, nf.handles("on_open"), nf.suspends("on_open")
        self.on_packet, self.has_packet = nf.on_packet, nf.handles("on_packet")
        self.packet_async = nf.suspends("on_packet")
        self.on_close, self.has_close, self.close_async = nf.on_close, nf.handles("on_close"), nf.suspends("on_close")
        self.on_message, self.message_async = nf.on_message, nf.suspends("on_message")
        self.on_mirror, self.has_mirror = nf.on_mirror, nf.handles("on_mirror")
        self.volatile_state = nf.volatile
        self.fields_begin = FlowBase.__basicsize__
        self.fields_end = min(nf.__basicsize__, FlowBase.__basicsize__ + 64)
        self.evicts = nf.evict
        self.holds = nf.holds
        self.connection = nf.connection
        self.fail_open = nf.fail.name == "FORWARD"
        self.deadline_ns = <uint64_t>(nf.deadline_s * 1e9)
        self.untracked_forward = nf.untracked.name == "FORWARD"
        self.discovery_forward = nf.discovery.name == "FORWARD" and self.port_count == 2
        self.sees_icmp_errors = nf.sees_icmp_errors
        for name in nf.inner:
            self.tunnels |= 1 << (1 + TUNNELS.index(name))
        if self.tunnels and self.routed:
            raise UsageError(f"{nf.__name__}: inner flows are for transparent ports; remove the ports' addresses")
        self.fragment_policy = FRAGMENT_POLICIES.index(nf.fragments)
        self.fragments = Fragments()
        self.fragments.core = <void *>self
        if self.fragment_policy == FRAGMENTS_REASSEMBLE:
            self.fragments.open()
        if self.port_count > 2 and (self.untracked_forward or self.fragment_policy == FRAGMENTS_FORWARD):
            raise UsageError(f"{nf.__name__}: with {self.port_count} ports, frames of no flow have no port to be forwarded "
                             "to: untracked must be DROP, and fragments 'drop' or 'reassemble'")
        self.view = self.new_view()

    def __dealloc__(self):
        cdef int out, i
        free(self.box_own)
        for out in range(self.port_count):
            for i in range(self.tx_count[out]):  # of a turn that an error has ended
                if self.tx[out][i].flags & AN_COPIED:
                    free(self.tx[out][i])

    cdef Packet new_view(self):
        cdef Packet view = Packet.__new__(Packet)
        view.p = NULL
        view.port_names = self.port_names
        view.table = &self.flows.table
        return view

    cdef int resolve_out(self, str to, int arriving) except -1:
        """Index of the port named `to`; None is the port opposite to `arriving`."""
        if to is not None:
            return self.port_index(to)
        if self.port_count > 2:
            raise UsageError(f"with {self.port_count} ports a verdict must name the one to leave by: "
                             f"{', '.join(self.port_names)}")
        return 1 - arriving if self.port_count == 2 else 0

    cdef int port_index(self, str name) except -1:
        try:
            return self.port_names.index(name)
        except ValueError:
            raise UsageError(f"no port is named {name!r}; there are {', '.join(self.port_names)}") from None

    # -- the loop ---------------------------------------------------------------------------------------------------

    def back_memory(self) -> bool:
        """Back one more huge page for flows ahead of need; False: there is none. For a thread beside the core's."""
        cdef an_table *table = &self.flows.table
        cdef bint backed
        with nogil:
            backed = heap_back() or an_table_back(table)
        if not backed:
            self.memory_wanted = False
        return backed

    def breathe(self) -> int:
        """Inhale a burst per port, treat it, commit, exhale; again while bursts come full, a bounded number of times.

        Returns the number of packets taken.
        """
        if self.loop is None:
            return self._turns()
        asyncio_tasks._enter_task(self.loop, self.task)
        try:
            return self._turns()
        finally:
            asyncio_tasks._leave_task(self.loop, self.task)

    cdef int _turns(self) except -1:
        cdef int n, taken = 0
        for _ in range(turns_max):
            n = self._turn()
            taken += n
            if n < BURST:
                break
        return taken

    cdef int _turn(self) except -1:
        cdef int i, taken = 0
        cdef uint64_t begun_ns = an_steady_ns() if self.cores > 1 else 0
        if not self.virtual_time:
            self.now_ns = an_now_ns()
        for i in range(self.port_count):
            taken += self._burst((<Port>self.port_objects[i]).rx(self.burst, BURST))
        if self.cores > 1:
            for handoff in self.siblings.handoffs:
                if handoff is not None:
                    taken += self._burst((<Handoff>handoff).rx(self.burst, BURST))
            if self.moves.due:
                self.moves.turn()
        if taken == 0:
            self._hear(False)
        if self.wants_memory is not None and not self.memory_wanted and (
                heap_wants() or an_table_wants(&self.flows.table)):
            self.memory_wanted = True
            self.wants_memory()
        self.neighbors.tick()
        self.flows.expire()
        if self.fragments.table.datagrams_waiting:
            self.fragments.expire(self.now_ns)
        if self.waits_first != NULL:
            end_waits(self)
        if self.unheard is not None:
            tell_unheard(self)
        if self.settling.due or self.settling.asked:
            self.settling.turn()
        self.exhale()
        if taken and self.cores > 1 and not self.virtual_time:
            self.counters[<int>C_BUSY_NS] += an_steady_ns() - begun_ns
        return taken

    cdef int _pass_time(self, uint64_t until_ns) except -1:
        """The packets' clock goes on within a burst, too. What was due before `until_ns` happens first, at its own time."""
        if self.flows.ticks(until_ns):
            self.exhale()  # what could leave before then no longer waits
            self.flows.pass_time(until_ns)
        self.now_ns = until_ns
        if self.fragments.table.datagrams_waiting:
            self.fragments.expire(until_ns)
        return 0

    cdef int _hear(self, bint all) except -1:
        """Take what the owner system sent. It may be all flows of a core that begins: then, a part at each turn."""
        cdef size_t length = 0
        if self.replies is not None and self.replies.peek(&length) != NULL:
            self.link.poll(all)
        return 0

    cdef int exhale(self) except -1:
        """Commit, and send what may leave."""
        if self.unsent.waits:
            self.unsent.flush()
        if self.submitted:
            self.submitted = False
            self.link.flush()
        if self.output.queue.head != NULL:
            self.output.release()
        if self.cores > 1 and self.siblings.handed:
            self.siblings.wake()
        self.flush()
        if self.unsent.done:
            self.unsent.flush()
        if self.output.ended:
            self.output.end_flows()
            return self.exhale()
        if self.output.due():
            self.output.tell()
            return self.exhale()
        return 0

    cdef int _burst(self, int n) except -1:
        """Treat the `n` packets in `burst`; returns `n`.

        Three passes, so that the cache misses of a burst overlap: hash, probe, treat; and while one packet is treated, what the
        handlers of the next two refer to is on its way. Packets that a glance at them tells all about are parsed only if the fast
        path cannot treat them.
        """
        cdef int i, out, queued, needs = 0
        cdef an_packet *p
        cdef an_table *table = &self.flows.table
        cdef const an_adjacency *adjacencies
        cdef uint64_t total = 0, offloaded = 0, options = 0
        cdef bint virtual_time = self.virtual_time
        cdef uint32_t hashes[BURST]
        cdef uint32_t probed[BURST]
        cdef an_glance glances[BURST]
        cdef bint glanced[BURST]
        if n == 0:
            return 0
        # Whatever these packets answer was sent before they came, so what the owner system told us before that is here.
        self._hear(True)
        for i in range(n):
            p = &self.burst[i]
            total += p.length
            glanced[i] = not self.tunnels and an_glance_at(p, &glances[i])
            if glanced[i]:
                hashes[i] = an_glance_hash(&glances[i], table.seed)
            else:
                an_parse(p)
                if p.flags & AN_IP_OPTIONS:
                    options += 1
                if self.tunnels:
                    an_parse_inner(p, self.tunnels)
                hashes[i] = p.hash = <uint32_t>an_hash(&p.key, table.seed)
            an_table_prefetch(table, hashes[i])
        for i in range(n):
            probed[i] = an_table_probe(table, hashes[i], self.needs_whole)
        if self.moves.due:
            self.moves.look(n, probed)
        for i in range(n):
            needs |= an_prefetch_beyond(table, probed[i], self.fields_end)
        self.needs_whole = needs & AN_WHOLE
        if table.used < FETCHED:
            needs = 0
        self.counters[<int>C_RX_PACKETS] += n
        self.counters[<int>C_RX_BYTES] += total
        self.counters[<int>C_IP_OPTIONS] += options
        for i in range(n):
            p = &self.burst[i]
            if needs & AN_ACTOR and i + 2 < n:
                an_prefetch_verdict(table, probed[i + 2])
                an_prefetch_fields(table, probed[i + 1], self.fields_begin, self.fields_end)
            if virtual_time and p.time_ns > self.now_ns:
                self._pass_time(p.time_ns)
            adjacencies = self.neighbors.table
            if self.routed and self.routed >> p.port & 1 and p.length >= 14 and not p.data[0] & 1 and (
                    memcmp(p.data, self.macs[p.port], 6) != 0):
                self.drop(p, C_OTHER_HOST)
                continue
            out = AN_GENERAL
            if glanced[i]:
                out = an_offload_glanced(table, p, &glances[i], probed[i], self.now_ns, adjacencies)
                if out == AN_GENERAL:
                    an_parse(p)
                    p.hash = hashes[i]
            if out == AN_GENERAL:
                out = an_offload(table, p, probed[i], self.now_ns, adjacencies)
            if out == AN_GENERAL:
                if p.entry == AN_NONE:
                    self.process(p)
                else:
                    self.meet(p)
                continue
            offloaded += 1
            queued = self.tx_count[out]
            if queued == TX_BATCH or p.flags & AN_REASSEMBLED:
                self.transmit(p, out)
                continue
            self.tx[out][queued] = p
            self.tx_count[out] = queued + 1
        self.counters[<int>C_OFFLOADED] += offloaded
        self.exhale()
        return n

    # -- a packet's way ---------------------------------------------------------------------------------------------

    cdef int parse(self, an_packet *p) except -1:
        an_parse(p)
        if self.tunnels:
            an_parse_inner(p, self.tunnels)
        return 0

    cdef an_packet *packet_of(self, FlowBase flow) noexcept:
        """The packet that the flow's running handler treats; NULL if it treats none."""
        if flow.suspension is not None and flow.suspension.view is not None:
            return flow.suspension.view.p
        return self.view.p

    cdef int process(self, an_packet *p) except -1:
        """A packet that offload.h leaves to us."""
        if p.reason != AN_OK:
            return untracked(self, p)
        p.entry = an_table_find(&self.flows.table, &p.key, p.hash)
        return miss(self, p) if p.entry == AN_NONE else self.meet(p)

    cdef int meet(self, an_packet *p) except -1:
        """A packet of a flow that this core has; `p.entry` is its key's."""
        cdef FlowBase flow
        cdef an_entry *e = &self.flows.table.entries[p.entry]
        e.packets += 1
        e.bytes += p.length
        if not p.flags & AN_ICMP_ERROR:
            e.last_seen_ns = self.now_ns
        if an_offloaded(&self.flows.table, e, p) and not e.state & AN_BUSY and not (
                self.sees_icmp_errors and p.flags & AN_ICMP_ERROR and e.actor != NULL):
            return self.offloaded(e, p)
        flow = <FlowBase>(e.slow.actor if e.rewrite.action == AN_SLOW else e.actor)
        if an_revoked(&self.flows.table, e):
            self.flows.end_offload(flow, e, C_OFFLOADS_REVOKED)
        if flow.suspension is not None:
            return flow.suspension.receive(p)
        return self._handle_packet(flow, p) if self.has_packet else self.handle(flow, p, PHASE_PACKET)

    cdef int offloaded(self, an_entry *e, an_packet *p) except -1:
        """A packet that an offload decides about, and its terms."""
        cdef FlowBase flow
        if e.state & AN_TERMS:  # without a reference to the actor: its memory is not needed
            if an_terms_expired(&e.extra.terms, self.now_ns):
                flow = <FlowBase>e.actor
                self.flows.end_offload(flow, e, C_OFFLOADS_EXPIRED)
                return self.handle(flow, p, PHASE_PACKET)
            if an_terms_mirror(&e.extra.terms, p.length):
                self.counters[<int>C_MIRRORED] += 1
                return self.handle(<FlowBase>e.actor, p, PHASE_MIRROR)
        self.counters[<int>C_OFFLOADED] += 1
        return self.carry_out(e, p)

    cdef int _mirrored(self, FlowBase flow, an_packet *p) except -1:
        """`on_mirror` has seen the packet: it goes as the offload says, or what stands in its place now."""
        p.entry = self.flows.find(&p.key)
        if p.entry == AN_NONE or self.flows.table.entries[p.entry].actor != <void *>flow:
            return self.process(p)
        if an_offloaded(&self.flows.table, &self.flows.table.entries[p.entry], p):
            self.counters[<int>C_OFFLOADED] += 1
            return self.carry_out(&self.flows.table.entries[p.entry], p)
        return self.handle(flow, p, PHASE_PACKET)

    cdef int carry_out(self, an_entry *e, an_packet *p) except -1:
        """Do what the entry's rewrite says."""
        cdef int out = e.rewrite.out_port
        if e.state & AN_TERMS and not an_terms_conform(&e.extra.terms, p.length, self.now_ns):
            return self.drop(p, C_DROPPED_BY_METER)
        if e.rewrite.action == AN_DROP:
            return self.drop(p, C_DROPPED_BY_OFFLOAD)
        if e.rewrite.action == AN_REDIRECT:
            return self.siblings.hand_off(p, out)
        if an_rewrite_apply(p, &e.rewrite, an_addresses(e)) != 0:
            return self._ttl_expired(p)
        if e.rewrite.fields & AN_SET_LINK:
            p = self._set_link(p, &e.extra.link)
        if e.rewrite.adjacency:
            return self.neighbors.ethernet(
                <FlowBase>e.actor if e.state & AN_HELD else None, p, out, e.rewrite.adjacency)
        if e.state & AN_HELD:
            return self.output.hold(<FlowBase>e.actor, p, out)
        return self.transmit(p, out)

    cdef an_packet *_set_link(self, an_packet *p, const an_link *link) except NULL:
        """Change the Ethernet header; a packet that grows by a tag is copied to where there is room before it."""
        if an_link_grows(p, link):
            p = &self.park(p).p
        an_link_apply(p, link)
        return p

    cdef int drop(self, an_packet *p, int counter) except -1:
        self.counters[counter] += 1
        if counter == C_HELD_FENCED and p.flags & AN_COPIED:
            free(p)  # and not settled: whoever leads now may send it
            return 0
        return self.discard(p)

    cdef int discard(self, an_packet *p) except -1:
        """Be done with a packet."""
        if p.flags & AN_COPIED:
            if (<an_parked *>p).told:
                self.unsent.settle(<an_parked *>p)
            free(p)
        return 0

    # -- handlers ---------------------------------------------------------------------------------------------------

    cdef int _handle_packet(self, FlowBase flow, an_packet *p) except -1:
        """`on_packet`: one call into Python, and no more than the verdict asks for behind it."""
        cdef PyObject *args[2]
        cdef PyObject *result = NULL
        cdef PyObject *coroutine
        cdef PySendResult status
        cdef Packet view = self.view
        self.counters[<int>C_HANDLED] += 1
        view.p = p
        flow.began = flow.asks
        args[0] = <PyObject *>flow
        args[1] = <PyObject *>view
        an_black_box_enter(self.box, &p.key, PHASE_PACKET)
        if self.packet_async:
            self.driving = flow
            coroutine = PyObject_Vectorcall(<PyObject *>self.on_packet, args, 2, NULL)
            if coroutine == NULL:
                return self._failed(flow, p, PHASE_PACKET)
            status = PyIter_Send(coroutine, <PyObject *>None, &result)
            handler = <object>coroutine
            Py_DECREF(handler)
            if status != PYGEN_RETURN:
                return self._stopped(flow, handler, status, result, p, PHASE_PACKET)
            self.driving = None
        else:
            result = PyObject_Vectorcall(<PyObject *>self.on_packet, args, 2, NULL)
            if result == NULL:
                return self._failed(flow, p, PHASE_PACKET)
        verdict = <object>result
        Py_DECREF(verdict)
        if Py_REFCNT(<PyObject *>view) > 2 or flow.marks & (MARK_DIRTY | MARK_CLOSING) or self.volatile_state or (
                flow.depends > an_word_load(self.committed)) or self.keeps.due_in <= 1:
            return self.completed(flow, p, PHASE_PACKET, verdict)
        an_black_box_leave(self.box)
        view.p = NULL
        self.keeps.due_in -= 1
        return self._apply(flow, p, verdict)

    cdef int handle(self, FlowBase flow, an_packet *p, int phase) except -1:
        """Run the handler of `phase`."""
        cdef PyObject *args[2]
        cdef PyObject *result
        cdef PyObject *handler
        cdef bint asynchronous
        if phase == PHASE_PACKET:
            self.counters[<int>C_HANDLED] += 1
            if not self.has_packet:
                return self.completed(flow, p, phase, DROP)
            handler, asynchronous = <PyObject *>self.on_packet, self.packet_async
        elif phase == PHASE_OPEN:
            handler, asynchronous = <PyObject *>self.on_open, self.open_async
        elif phase == PHASE_CLOSE:
            handler, asynchronous = <PyObject *>self.on_close, self.close_async
        elif phase == PHASE_MIRROR:
            handler, asynchronous = <PyObject *>self.on_mirror, False
        else:
            handler, asynchronous = <PyObject *>self.on_message, self.message_async
        self.view.p = p
        args[0] = <PyObject *>flow
        args[1] = <PyObject *>self.view if phase != PHASE_MESSAGE else <PyObject *>self.message
        self.driving = flow
        flow.began = flow.asks
        self.enter(flow, p, phase)
        result = PyObject_Vectorcall(handler, args, 1 if phase == PHASE_CLOSE else 2, NULL)
        if result == NULL:
            return self._failed(flow, p, phase)
        outcome = <object>result
        Py_DECREF(outcome)
        if asynchronous:
            return self._step(flow, outcome, p, phase)
        return self.completed(flow, p, phase, outcome)

    cdef bint enter_task(self) except -1:
        """Let handlers that run from here on be asyncio's running task; False where there is one already, or no loop."""
        if self.loop is None or current_task(self.loop) is not None:
            return False
        asyncio_tasks._enter_task(self.loop, self.task)
        return True

    cdef int leave_task(self, bint entered) except -1:
        if entered:
            asyncio_tasks._leave_task(self.loop, self.task)
        return 0

    cdef int enter(self, FlowBase flow, an_packet *p, int phase) except -1:
        """Note in the black box that a handler begins, or goes on, with this packet, or NULL."""
        cdef an_key key
        if p == NULL:
            key = an_entry_key(&self.flows.table.entries[flow.first])
        an_black_box_enter(self.box, &p.key if p != NULL else &key, phase)
        return 0

    cdef int _step(self, FlowBase flow, object coroutine, an_packet *p, int phase) except -1:
        """Drive a handler until it completes or waits."""
        cdef PyObject *result = NULL
        cdef PySendResult status = PyIter_Send(<PyObject *>coroutine, <PyObject *>None, &result)
        if status != PYGEN_RETURN:
            return self._stopped(flow, coroutine, status, result, p, phase)
        outcome = <object>result
        Py_DECREF(outcome)
        return self.completed(flow, p, phase, outcome)

    cdef int _stopped(self, FlowBase flow, object coroutine, PySendResult status, PyObject *result, an_packet *p,
                      int phase) except -1:
        """A handler has raised, or waits for `result`, whose reference we take."""
        if status == PYGEN_ERROR:
            return self._failed(flow, p, phase)
        outcome = <object>result
        Py_DECREF(outcome)
        an_black_box_leave(self.box)
        self.driving = None
        if flow.suspension is None:
            flow.suspension = Suspension.__new__(Suspension)
            flow.suspension.flow = flow
            self.flows.set_state(flow, AN_BUSY, True)
        return flow.suspension.begin(coroutine, outcome, p, phase)

    cdef int _retire_view(self) except -1:
        """The handler is done with the packet: a view that it kept must not see the next one."""
        an_black_box_leave(self.box)
        self.driving = None
        self.view.p = NULL
        if Py_REFCNT(<PyObject *>self.view) > 1:
            self.view = self.new_view()
        return 0

    cdef int completed(self, FlowBase flow, an_packet *p, int phase, object verdict) except -1:
        """A handler has returned `verdict`."""
        try:
            return self._complete(flow, p, phase, verdict)
        finally:
            self.flows.outdated = False

    cdef int _complete(self, FlowBase flow, an_packet *p, int phase, object verdict) except -1:
        cdef an_entry *e
        self._retire_view()
        if phase == PHASE_CLOSE:
            return end_close(self, flow)
        self.keeps.due_in -= 1
        if self.keeps.due_in <= 0:
            error = self.keeps.look(flow)
            if error is not None:
                return report(self, flow, error, p, phase)
        if phase == PHASE_OPEN:
            e = &self.flows.table.entries[flow.first]
            if verdict is None:
                if not an_offloaded(&self.flows.table, e, p):
                    return self.handle(flow, p, PHASE_PACKET)
                verdict = OFFLOADED
            elif (verdict is DROP or verdict is REJECT) and flow.keys <= 1 + self.connection and not self.flows.stands(e):
                # Refused: a flow that was never opened leaves nothing behind.
                self.counters[<int>C_FLOWS_REFUSED] += 1
                self.counters[<int>C_FLOWS_OPENED] -= 1
                self._apply(flow, p, verdict)
                flow.reason = "refused"
                return end_close(self, flow)
        try:
            if flow.marks & MARK_DIRTY or self.volatile_state or flow.depends > an_word_load(self.committed):
                save(self, flow)
            if flow.asks != flow.began and flow.marks & MARK_ASKED:
                self.settling.note(flow)
        except (TypeError, ValueError, OverflowError, RecursionError, StateError) as error:
            return report(self, flow, flow.unsaved(error), p, phase)  # a field holds what its type does not allow
        if phase == PHASE_MESSAGE:
            self.answer_message(verdict)
        elif phase == PHASE_MIRROR:
            self._mirrored(flow, p)
        else:
            self._apply(flow, p, verdict)
        if flow.marks & MARK_CLOSING:
            return begin_close(self, flow, "closed by the network function")
        return 0

    cdef int _failed(self, FlowBase flow, an_packet *p, int phase) except -1:
        error = take_error()
        self._retire_view()
        self.flows.outdated = False
        return report(self, flow, error, p, phase)

    def note_unheard(self, Ask ask not None) -> None:
        """The ask has failed, and nobody waited for it so far."""
        if self.unheard is None:
            self.unheard = []
        self.unheard.append(ask)

    def record_in(self, BlackBox box not None) -> None:
        """Tell there which handler runs, and shun the flows that are to be shunned by what it says."""
        self.black_box = box
        self.box = box.box(self.index)
        self.box.handler = 0
        self.counters[<int>C_HANDLER_FATAL] = self.box.fatal

    def close_condemned(self) -> list:
        """Close the flows whose handler was the end of a process: with `on_close`, unless it was that one.

        They are here, from the log, or have never been saved: then the log is told that they have closed, so that nobody
        begins them anew. Returns (handler, five-tuple) of each.
        """
        return close_condemned(self)

    cdef int answer_message(self, object value) except -1:
        reply, self.reply = self.reply, None
        if reply is not None:
            reply(value)
        return 0

    def tell(self, flow, message, reply=None) -> None:
        """Hand `message` to the flow's `on_message`, in turn with its packets (G1).

        `reply`, if given, is called once with what the handler returned, or with the exception that it raised. Raises
        UsageError if no flow holds the five-tuple.
        """
        cdef uint32_t index = self.flows.find_at_any_port(flow)
        cdef FlowBase actor
        if index == AN_NONE:
            raise UsageError(f"there is no flow {flow}")
        actor = <FlowBase>self.flows.table.entries[index].actor
        if actor.suspension is not None:
            if len(actor.suspension.messages) >= MAILBOX_PACKETS_MAX:
                raise UsageError(f"flow {flow}: {MAILBOX_PACKETS_MAX} messages wait already")
            actor.suspension.messages.append((message, reply))
            return
        self.deliver(actor, message, reply)
        self.exhale()

    cdef int deliver(self, FlowBase flow, object message, object reply) except -1:
        """Run `on_message`."""
        cdef bint entered = self.enter_task()
        self.message, self.reply = message, reply
        try:
            return self.handle(flow, NULL, PHASE_MESSAGE)
        finally:
            self.message = self.reply = None
            self.leave_task(entered)

    # -- flows' ends that others ask for ----------------------------------------------------------------------------

    def close_anew(self, flow, int port) -> None:
        """Close a flow whose `on_close` had asked owners for something when its core ended: it is given the recorded replies (G5)."""
        cdef an_key key
        cdef uint32_t index
        cdef bint entered
        key_of(flow, port, &key)
        index = self.flows.find(&key)
        if index == AN_NONE or self.flows.table.entries[index].actor == NULL:
            return
        entered = self.enter_task()
        try:
            begin_close(self, <FlowBase>self.flows.table.entries[index].actor, "was closing when its core ended")
            self.exhale()
        finally:
            self.leave_task(entered)

    def close_all(self, str reason="shutdown") -> int:
        """Close every flow; returns how many are left, because a handler waits: they close when it has completed.

        Packets in their mailboxes may then open flows anew: call again until none is left.
        """
        self.fragments.expire(UINT64_MAX)
        self.flows.close_all(reason)
        if self.unheard is not None:
            tell_unheard(self)
        self.exhale()
        return self.counters[<int>C_LIVE_FLOWS]

    # -- verdicts ---------------------------------------------------------------------------------------------------

    cdef int _apply(self, FlowBase flow, an_packet *p, object verdict) except -1:
        cdef Verdict decision
        cdef Rewrite rewrite
        cdef int out, adjacency
        if type(verdict) is Rewrite and (<Rewrite>verdict).payload is None and self._is_prepared(<Rewrite>verdict, p):
            if p.entry != AN_NONE:
                an_entry_returned(&self.flows.table.entries[p.entry], <void *>verdict)
            return self._rewrite(flow, p, <Rewrite>verdict)
        if not isinstance(verdict, Verdict):
            return report(self, flow, TypeError(f"{self.nf.__name__}.on_packet must return a verdict, not {verdict!r}"),
                          p, PHASE_PACKET)
        decision = <Verdict>verdict
        if decision.kind == VERDICT_DROP:
            return self.drop(p, C_DROPPED_BY_NF)
        if decision.kind == VERDICT_REJECT:
            self.neighbors.refuse(p, 3, 13)
            return self.drop(p, C_REJECTED_BY_NF)
        if decision.kind == VERDICT_EMIT:
            return self._emit_made(flow, p, <Emit>decision)
        if decision.kind == VERDICT_OFFLOADED:
            if p.entry == AN_NONE or not self.flows.decides(&self.flows.table.entries[p.entry]):
                return report(self, flow, TypeError(f"{self.nf.__name__} returned OFFLOADED for a key without offload"),
                              p, PHASE_PACKET)
            return self.carry_out(&self.flows.table.entries[p.entry], p)
        try:
            if decision.kind == VERDICT_ANSWER:
                return answer(self, flow, p, (<Answer>decision).payload)
            if decision.kind == VERDICT_REWRITE:
                rewrite = <Rewrite>decision
                if rewrite.payload is not None:
                    p = replaced(self, p, rewrite.payload)
                self._prepare(rewrite, p)
            else:
                out = self.resolve_out((<Forward>decision).to, p.port)
                adjacency = self.neighbors.adjacency(out, &p.key, NULL, NULL)
        except UsageError as error:
            return report(self, flow, error, p, PHASE_PACKET)
        if decision.kind == VERDICT_REWRITE:
            return self._rewrite(flow, p, rewrite)
        if adjacency < 0:
            return self.no_route(p)
        if adjacency:
            return self.neighbors.ethernet(flow, p, out, adjacency)
        return self.emit(flow, p, out)

    cdef int _rewrite(self, FlowBase flow, an_packet *p, Rewrite verdict) except -1:
        """Carry out a rewrite that is prepared for the packet's key."""
        if an_rewrite_apply(p, &verdict.rewrite, NULL if p.key.version == 4 else verdict.ipv6_addresses()) != 0:
            return self._ttl_expired(p)
        if verdict.rewrite.fields & AN_SET_LINK:
            p = self._set_link(p, &verdict.link)
        if verdict.rewrite.adjacency:
            return self.neighbors.ethernet(flow, p, verdict.rewrite.out_port, verdict.rewrite.adjacency)
        return self.emit(flow, p, verdict.rewrite.out_port)

    cdef int _emit_made(self, FlowBase flow, an_packet *p, Emit emit) except -1:
        """Send frames in place of a packet, which is counted if so asked."""
        cdef Made made
        cdef an_packet q
        cdef an_parked *item
        for made in emit.frames:
            memset(&q, 0, sizeof(q))
            q.data = <uint8_t *>PyBytes_AS_STRING(made.frame)
            q.length = <uint32_t>PyBytes_GET_SIZE(made.frame)
            q.port, q.flags, q.time_ns = made.port, made.flags, made.time_ns
            q.fragment_bytes, q.fragment_id = made.fragment_bytes, made.fragment_id
            memcpy(q.vnet, made.vnet, sizeof(q.vnet))
            self.parse(&q)
            q.hash = <uint32_t>an_hash(&q.key, self.flows.table.seed)
            q.entry = an_table_find(&self.flows.table, &q.key, q.hash)
            item = self.park(&q)
            self._apply(flow, &item.p, FORWARD)
        self.counters[<int>C_STREAM_MADE] += len(emit.frames)
        if emit.counter >= 0:
            return self.drop(p, emit.counter)
        self.counters[<int>C_STREAM_REPLACED] += 1
        return self.discard(p)

    cdef bint _is_prepared(self, Rewrite verdict, an_packet *p) noexcept:
        # Unlike its address, a core's seed is never that of a later core.
        return verdict.prepared_by == <void *><size_t>self.flows.table.seed and (
            an_key_equal(&verdict.prepared_for, &p.key))

    cdef int _prepare(self, Rewrite verdict, an_packet *p) except -1:
        """Resolve port, next hop and checksum deltas for this packet's key, unless they are this key's already."""
        cdef int adjacency
        if self._is_prepared(verdict, p):
            return 0
        if verdict.version and verdict.version != p.key.version:
            raise UsageError(f"rewrite: an IPv{verdict.version} address in an IPv{p.key.version} packet")
        verdict.prepared_by = NULL
        verdict.rewrite.out_port = self.resolve_out(verdict.to, p.key.port)
        an_rewrite_prepare(&verdict.rewrite, &p.key, verdict.ipv6_addresses())
        adjacency = self.neighbors.adjacency(
            verdict.rewrite.out_port, &p.key, &verdict.rewrite, verdict.ipv6_addresses())
        if adjacency < 0:
            raise NoRouteError(f"no route to the destination out of port {self.port_names[verdict.rewrite.out_port]}")
        verdict.rewrite.adjacency = adjacency
        verdict.prepared_for = p.key
        verdict.prepared_by = <void *><size_t>self.flows.table.seed
        return 0

    cdef int no_route(self, an_packet *p) except -1:
        self.neighbors.refuse(p, 3, 0)
        return self.drop(p, C_NO_ROUTE)

    cdef int _ttl_expired(self, an_packet *p) except -1:
        self.neighbors.refuse(p, 11, 0)
        return self.drop(p, C_TTL_EXPIRED)

    # -- output -----------------------------------------------------------------------------------------------------

    cdef int emit(self, FlowBase flow, an_packet *p, int out) except -1:
        if flow.held or flow.depends > an_word_load(self.committed):
            return self.output.hold(flow, p, out)
        return self.transmit(p, out)

    cdef int transmit(self, an_packet *p, int out) except -1:
        if p.flags & AN_REASSEMBLED:
            return self.fragments.transmit(p, out)
        if self.tx_count[out] == TX_BATCH:
            self._flush_port(out)
        self.tx[out][self.tx_count[out]] = p
        self.tx_count[out] += 1
        return 0

    cdef int _flush_port(self, int out) except -1:
        cdef int i, sent = 0, count = self.tx_count[out], count_failed = count
        cdef uint64_t total = 0
        cdef uint8_t flags = 0
        for i in range(count):
            total += self.tx[out][i].length
            flags |= self.tx[out][i].flags
        self.tx_count[out] = 0
        try:
            if an_lease_holds(self.lease):
                sent = (<Port>self.port_objects[out]).tx(self.tx[out], count)
            else:
                self.counters[<int>C_LEASE_OVER] += count
                count_failed = 0
        finally:
            self.counters[<int>C_TX_PACKETS] += sent
            self.counters[<int>C_TX_BYTES] += total
            self.counters[<int>C_TX_FAILED] += count_failed - sent
            if flags & AN_COPIED:
                for i in range(count):
                    self.discard(self.tx[out][i])
        return 0

    cdef int flush(self) except -1:
        cdef int out
        for out in range(self.port_count):
            if self.tx_count[out]:
                self._flush_port(out)
        return 0

    cdef an_parked *park(self, an_packet *p) except NULL:
        """A copy of the packet that outlives the burst; one that is parked already is itself. NULL makes a marker."""
        cdef an_parked *item = an_park(p)
        if item == NULL:
            raise MemoryError("a parked packet")
        return item

    def stand_by(self) -> None:
        """Another node's cores treat the packets: flows stay as the log has them, and none is idle (G6)."""
        self.flows.idle_from_ns = UINT64_MAX

    def go_active(self) -> None:
        """This core treats the packets from now on, as one does that never stood by; before, no flow was idle."""
        self.flows.idle_from_ns = self.now_ns

    def drop_held(self) -> None:
        """Drop what waits for the watermark: this node is no longer the primary, it must not leave (G7)."""
        self.output.drop()

    @property
    def running(self):
        """The actor whose handler runs, or None. For another thread that asks why this core does not turn."""
        cdef uint32_t index = AN_NONE
        if self.driving is not None:
            return self.driving
        if self.view.p != NULL:
            index = self.flows.find(&self.view.p.key)
        if index == AN_NONE or self.flows.table.entries[index].actor == NULL:
            return None
        return <object>self.flows.table.entries[index].actor

    @property
    def held(self) -> int:
        """Packets that wait for the watermark."""
        return self.output.packets

    @property
    def hold_ms(self) -> dict:
        """How long packets wait for the watermark, in ms: `oldest_ms` of those that do, `mean_ms` and `max_ms` of those that did."""
        return self.output.times(self.now_ns if self.virtual_time else an_now_ns())

    @property
    def waiting_fragments(self) -> int:
        """Fragments that wait for the rest of their datagram."""
        return self.fragments.table.waiting

    def announce(self) -> None:
        """Tell the neighbours of every routed port that its addresses are here now (gratuitous ARP, unsolicited NA)."""
        self.send([(port.index, self.host.gratuitous(port)) for port in self.ports if self.routed >> port.index & 1])

    def send(self, list frames not None) -> None:
        """Send frames that the node itself made, each with the index of its port."""
        for out, frame in frames:
            self.neighbors.send(out, frame)
        self.flush()

    def look_for_stations(self) -> None:
        """Where frames pass between two ports as they are: tell `link.seen(port, station)` who is behind which of them."""
        self.sightings.on = self.port_count == 2 and not self.routed

    @property
    def stations_untold(self) -> int:
        """Frames of stations that the owner system was not told of, as there were too many at once."""
        return self.sightings.untold

    # -- flows from the log -----------------------------------------------------------------------------------------

    def restore(self, flow, str port, incarnation, asks, fields, keys, idle_ns, generation=0) -> None:
        """Make a flow as its record says, offloads included; flows that hold its keys now are replaced (G6).

        A flow for which the table has no room is left out and counted as `flow_table_full`.
        """
        self.flows.restore(flow, port, incarnation, asks, fields, keys, idle_ns, generation)

    def leave_out(self) -> None:
        """Count a flow of the log that cannot be restored."""
        self.counters[<int>C_FLOWS_LEFT_OUT] += 1

    def revoke(self, count) -> None:
        """Owners have revoked all offloads `count` times by now: packets come to their actors again."""
        self.flows.revoke(count)

    @property
    def revocations(self) -> int:
        return self.flows.revocations

    def asked(self, flow, str port, uint32_t asks) -> None:
        """The flow that was opened with this key, and that another core serves, has asked so often by now."""
        self.flows.asked(flow, port, asks)

    def forget(self, flow, str port) -> None:
        """Remove the flow that was opened with this key, without `on_close`: the log says that it closed elsewhere."""
        self.flows.forget(flow, port)

    def redirect(self, flow, str port, int core) -> None:
        """Packets of this key belong to a flow on core `core`: hand them over."""
        self.flows.redirect(flow, port, core)

    def give_away(self, double share, int to, int packets=MOVE_SAMPLE_PACKETS) -> None:
        """Let flows that have about this share of the next so many packets go to core `to`; see `actornet.engine.moves`.

        For each that can, `link.leaving(flow, to)` is called.
        """
        assert 0 <= to < self.cores and to != self.index
        self.moves.share, self.moves.to, self.moves.packets, self.moves.due = share, to, packets, True

    def redirect_end(self, flow, str port) -> None:
        """The flow on the other core has closed."""
        self.flows.redirect_end(flow, port)

    def actors(self) -> list:
        """The actors of all live flows."""
        return self.flows.actors()

    @property
    def entries(self) -> int:
        """Keys in the flow table."""
        return self.flows.table.used

    # -- counters and the watermark ---------------------------------------------------------------------------------

    def share(self, ControlPage page not None, Ring replies not None) -> None:
        """Take the watermark from, and count in, the node's control page; `replies` is the owner system's ring."""
        self.page = page
        self.committed = page.committed_pointer(self.index)
        self.lease = page.lease_pointer()
        self.unsent.followed = page.followed_pointer()
        self.counters = page.counter_pointer(self.index, 0)
        memset(self.counters, 0, C_COUNT * sizeof(uint64_t))
        self.counters[<int>PID_COUNTER] = os.getpid()
        self.replies = replies

    def commit_to(self, uint64_t sequence) -> None:
        """Outputs that need `sequence` or less may leave (on a live node the owner system's word says so)."""
        self.committed = &self.committed_own
        self.committed_own = sequence

    def count(self) -> dict:
        """Counter name -> value; ports' own counters as `port.name`."""
        counts = {name: self.counters[i] for i, name in enumerate(COUNTERS)}
        for port in self.ports:
            for name, value in port.counters.items():
                counts[f"{port.name}.{name}"] = value
        return counts


def _running(Core core not None):
    """Who asks `core.running`, without keeping the core: the loop may outlive it."""
    known = weakref.ref(core)

    def running():
        alive = known()
        return alive.running if alive is not None else None

    return running
