"""The core: bursts in, flow table, offload or handler or mailbox, bursts out.

Theory of operation. `breathe` takes a burst from each port and treats its packets in arrival order. A packet whose key
has an offloaded rewrite is carried out here in C; any other goes to the handler of its flow's actor, with one reused
view of the packet. A handler that suspends keeps its packet (copied out of the burst) and its flow's later packets wait
in the flow's mailbox (G1). What a flow sends while it depends on records that are not yet committed is parked in one
queue per core, ordered by the sequence number it needs, and leaves when the watermark has passed (G3): execution
never waits, output does.
"""

import asyncio
import os
from asyncio import tasks as asyncio_tasks

from cpython.object cimport PyObject, PyObject_GenericSetAttr
from cpython.ref cimport Py_DECREF, Py_INCREF, Py_XDECREF
from libc.stdint cimport UINT64_MAX
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcmp, memcpy, memset

from actornet.engine.handoff cimport Handoff
from actornet.engine.port cimport Port
from actornet.engine.ring cimport ControlPage, Ring, an_word_load
from actornet.engine.types cimport *
from actornet.engine.verdict cimport (
    VERDICT_DROP, VERDICT_FORWARD, VERDICT_OFFLOADED, VERDICT_REJECT, VERDICT_REWRITE, Forward, Rewrite, Verdict,
)
from actornet.engine.wire cimport (
    address_text, an_hash, an_parse, an_rewrite_apply, an_rewrite_prepare, an_rss_core, an_table_find, an_table_free,
    an_table_init, an_table_insert, an_table_prefetch, an_table_probe, an_table_remove, an_timer_advance, an_timer_arm,
    five_tuple, key_of,
)

from actornet.engine.task import FlowTask
from actornet.engine.verdict import DROP, OFFLOADED, REJECT, decode_verdict
from actornet.errors import OwnerError, UsageError
from actornet.limits import (
    FLOWS_MAX_DEFAULT, HELD_PACKETS_MAX, KEYS_PER_FLOW_MAX, MAILBOX_PACKETS_MAX, NEIGHBOR_PACKETS_MAX, PORTS_MAX,
)

cdef extern from "Python.h":
    ctypedef enum PySendResult:
        PYGEN_RETURN = 0
        PYGEN_ERROR = -1
        PYGEN_NEXT = 1
    PySendResult PyIter_Send(PyObject *iterator, PyObject *argument, PyObject **result)
    PyObject *PyObject_Vectorcall(PyObject *callable, PyObject **args, size_t nargsf, PyObject *kwnames)
    Py_ssize_t Py_REFCNT(PyObject *o)

DEF BURST = 32
DEF TURNS_MAX = 16
DEF TX_BATCH = 64
DEF TCP_SYN_FIN_RST = 0x07
DEF NANOSECONDS = 1_000_000_000
DEF ADJACENCIES_MAX = 65536

cdef enum:
    PHASE_OPEN
    PHASE_PACKET
    PHASE_CLOSE
    PHASE_MESSAGE

# FlowBase.marks
cdef enum:
    MARK_DIRTY = 0x01     # replicated state changed since it was last saved
    MARK_CLOSING = 0x02   # close when the handler has completed
    MARK_CLOSED = 0x04
    MARK_SAVED = 0x08     # the log knows this flow

cdef enum:
    C_FLOWS_OPENED
    C_FLOWS_CLOSED
    C_FLOWS_REFUSED
    C_FLOWS_RESTORED
    C_OFFLOADED
    C_HANDLED
    C_SUSPENDED
    C_ASKS
    C_HELD
    C_HANDED_OFF
    C_ANSWERED
    C_MALFORMED
    C_TRUNCATED
    C_NOT_IP
    C_FRAGMENT
    C_UNTRACKED
    C_OTHER_HOST
    C_ICMP_ERROR_UNMATCHED
    C_DROPPED_BY_NF
    C_REJECTED_BY_NF
    C_DROPPED_BY_OFFLOAD
    C_TTL_EXPIRED
    C_FLOW_TABLE_FULL
    C_MAILBOX_FULL
    C_HELD_FULL
    C_HELD_FENCED
    C_HANDLER_ERROR
    C_NO_ROUTE
    C_NEIGHBOR_FULL
    C_NEIGHBOR_UNRESOLVED
    C_HANDOFF_FULL
    C_HANDOFF_STALE
    C_TX_FAILED
    C_RX_PACKETS
    C_RX_BYTES
    C_TX_PACKETS
    C_TX_BYTES
    C_LIVE_FLOWS
    C_COUNT

COUNTERS = (
    "flows_opened", "flows_closed", "flows_refused", "flows_restored", "offloaded", "handled", "suspended", "asks", "held",
    "handed_off", "answered", "malformed", "truncated", "not_ip", "fragment", "untracked", "other_host",
    "icmp_error_unmatched", "dropped_by_nf", "rejected_by_nf", "dropped_by_offload", "ttl_expired", "flow_table_full", "mailbox_full",
    "held_full", "held_fenced", "handler_error", "no_route", "neighbor_full", "neighbor_unresolved", "handoff_full", "handoff_stale", "tx_failed",
    "rx_packets", "rx_bytes", "tx_packets", "tx_bytes", "live_flows",
)
"""Names of a core's counters, in the order of its counter block. Counts of packets unless the name says otherwise."""

PID_COUNTER = 63
"""The last word of a core's counter block: its process."""

HANDLERS = ("on_open", "on_packet", "on_close", "on_message")

MUTABLE = (list, dict, set)

DROPS = COUNTERS[COUNTERS.index("malformed"):COUNTERS.index("tx_failed") + 1]
"""The counters that count packets dropped."""

assert len(COUNTERS) == C_COUNT <= PID_COUNTER


cdef class Ask:
    """An owner message on its way; await it for the reply, or don't, if none is needed.

    Raises OwnerError, the same text on primary, backup and replay, when the owner's handler raised.
    """

    def __await__(self):
        return self

    def __iter__(self):
        return self

    def __next__(self):
        cdef Core core
        if self.done:
            if self.error is not None:
                raise self.error
            raise StopIteration(self.value)
        core = self.flow.core
        if core is not None and core.driving is self.flow:
            return self
        # Awaited inside a real asyncio task (gather, wait_for): be a future there.
        self.future = asyncio.get_running_loop().create_future()
        self.future._asyncio_future_blocking = True
        return self.future

    def resolve(self, value) -> None:
        """The reply has come."""
        self._finish(value, None)

    def fail(self, error: BaseException) -> None:
        """There will be no value: the waiting handler gets `error`."""
        self._finish(None, error)

    def _finish(self, value, error):
        cdef Core core = self.flow.core
        if self.done:
            return
        self.done = True
        self.value = value
        self.error = error
        if self.future is not None:
            if not self.future.done():
                self.future.set_result(None)
        elif self.waited and core is not None:
            self.waited = False
            core.resume_now(self.flow)


cdef class Suspension:
    pass


cdef class FlowBase:
    """The compiled base of `FlowActor`: one connection's place in its core."""

    def __setattr__(self, name, value):
        PyObject_GenericSetAttr(self, name, value)
        if not (<str>name).startswith("_"):
            self.marks |= MARK_DIRTY

    @property
    def flow(self):
        """FiveTuple that the flow was opened with."""
        if self.core is None:
            raise RuntimeError("this flow is closed")
        return five_tuple(&self.core.table.entries[self.first].key)

    @property
    def port(self) -> str:
        """Name of the port at which the flow was opened."""
        if self.core is None:
            raise RuntimeError("this flow is closed")
        return self.core.port_names[self.core.table.entries[self.first].key.port]

    @property
    def port_index(self) -> int:
        if self.core is None:
            raise RuntimeError("this flow is closed")
        return self.core.table.entries[self.first].key.port

    @property
    def idle_s(self) -> float:
        """Seconds without a packet on any key after which the flow closes."""
        return self.idle_ns / 1e9

    @idle_s.setter
    def idle_s(self, value):
        if not 0 < value < 1e9:
            raise UsageError(f"idle_s must be positive seconds, not {value!r}")
        self.idle_ns = <uint64_t>(value * 1e9)
        if self.core is not None and not self.marks & MARK_CLOSED:
            an_timer_arm(&self.core.table, self.first, self.core.now_ns + self.idle_ns)

    @property
    def incarnation(self) -> int:
        return self.incarnation

    @property
    def asks(self) -> int:
        return self.asks

    @property
    def packets(self) -> int:
        """Packets of all keys so far, offloaded ones included."""
        return self._total(True)

    @property
    def bytes(self) -> int:
        """Bytes of all keys so far, offloaded ones included."""
        return self._total(False)

    def _total(self, bint packets):
        cdef uint64_t total = 0
        cdef uint32_t i = self.first
        cdef int n
        if self.core is None:
            return 0
        for n in range(self.keys):
            total += self.core.table.entries[i].packets if packets else self.core.table.entries[i].bytes
            i = self.core.table.entries[i].next_key
        return total

    def bind(self, flow, str port=None) -> None:
        """Let packets of `flow` that arrive at `port` (None: the port opposite to where this flow was opened) come here.

        Raises UsageError if another flow holds the key, if this one holds KEYS_PER_FLOW_MAX, or the table is full.
        """
        cdef Core core = self._open_core()
        cdef an_key key
        cdef uint32_t index, hash
        cdef an_entry *e
        cdef int number = core.resolve_out(port, core.table.entries[self.first].key.port)
        key_of(flow, number, &key)
        hash = <uint32_t>an_hash(&key, core.seed)
        index = an_table_find(&core.table, &key, hash)
        if index != AN_NONE:
            if core.table.entries[index].actor == <void *>self:
                return
            if core.table.entries[index].actor != NULL:
                raise UsageError(f"bind: {flow} at {core.port_names[number]} belongs to another flow")
            an_table_remove(&core.table, index)
        if self.keys >= <int>KEYS_PER_FLOW_MAX:
            raise UsageError(f"bind: {self.flow} holds {self.keys} keys, the most a flow may have")
        index = an_table_insert(&core.table, &key, hash)
        if index == AN_NONE:
            core.counters[C_FLOW_TABLE_FULL] += 1
            raise UsageError("bind: the flow table is full; raise flows_max")
        e = &core.table.entries[index]
        e.actor = <void *>self
        e.last_seen_ns = core.now_ns
        e.state |= core.table.entries[self.first].state & (AN_HELD | AN_BUSY)
        e.next_key = core.table.entries[self.first].next_key
        core.table.entries[self.first].next_key = index
        self.keys += 1
        self.marks |= MARK_DIRTY

    def offload(self, Verdict verdict not None, flow=None, str port=None, *, idle_s=None, bint punt_tcp=True) -> None:
        """Let the core carry out `verdict` for this key's packets without the actor, from the watermark on (G3).

        `flow` and `port` name a bound key; without them it is the key that the flow was opened with. TCP packets with
        SYN, FIN or RST still come to `on_packet` unless `punt_tcp` is False. Raises UsageError for an unbound key.
        """
        cdef Core core = self._open_core()
        cdef an_key key
        cdef uint32_t index = self.first
        cdef int number
        if flow is not None:
            if port is None:
                # the port at which this flow holds that key
                index = core._key_of_flow(self, flow)
            else:
                number = core.resolve_out(port, 0)
                key_of(flow, number, &key)
                index = an_table_find(&core.table, &key, <uint32_t>an_hash(&key, core.seed))
            if index == AN_NONE or core.table.entries[index].actor != <void *>self:
                raise UsageError(f"offload: {flow} is not bound to this flow; call bind first")
        core.install(self, index, verdict, punt_tcp)
        if idle_s is not None:
            self.idle_s = idle_s
        self.marks |= MARK_DIRTY

    def withdraw(self) -> None:
        """Cancel the offload of all keys: packets come to the actor again."""
        cdef Core core = self._open_core()
        cdef uint32_t i = self.first
        cdef int n
        for n in range(self.keys):
            core.table.entries[i].rewrite.action = AN_SLOW
            i = core.table.entries[i].next_key
        self.marks |= MARK_DIRTY

    def close(self) -> None:
        """Close the flow once the running handler has completed; `on_close` runs."""
        self.marks |= MARK_CLOSING

    def _open_core(self):
        if self.core is None or self.marks & MARK_CLOSED:
            raise RuntimeError("this flow is closed")
        return self.core

    def _ask(self, reference, str message, tuple args):
        """Send an owner message; called by the proxies that `Owner.named` makes."""
        cdef Ask ask = Ask.__new__(Ask)
        cdef Core core = self._open_core()
        ask.flow = self
        ask.owner = reference.name
        ask.message = message
        self.asks += 1
        core.counters[C_ASKS] += 1
        if core.link is None:
            raise UsageError(f"owner {reference.name!r} is not running: this core has no owner system")
        core.submitted = True
        self.depends = max(self.depends, core.link.ask(self, ask, message, args))
        return ask

    def _keys(self) -> list:
        """Record form of the keys: [five-tuple, port, verdict form or False, punt, next hop or None] each."""
        cdef Core core = self.core
        cdef uint32_t i = self.first
        cdef an_entry *e
        cdef int n
        keys = []
        for n in range(self.keys):
            e = &core.table.entries[i]
            keys.append([
                five_tuple(&e.key), core.port_names[e.key.port],
                False if e.rewrite.action == AN_SLOW else core.offload_form(e),
                bool(e.state & AN_PUNT_TCP), core._next_hop_form(e.rewrite.out_port, e.rewrite.adjacency),
            ])
            i = e.next_key
        return keys


cdef class Core:
    """One core's data plane.

    `nf` is a FlowActor class with its settings resolved; `ports` are the core's attachments in index order.
    `link` (see `actornet.owners`) carries asks and flow records to the owner system; without one nothing is logged and
    output never waits. With `virtual_time` the clock is that of the packets (captures) and begins at `now_ns`, else the
    system's.
    """

    def __cinit__(self, *args, **kwargs):
        self.committed_own = UINT64_MAX
        self.committed = &self.committed_own
        self.counters = self.counters_own

    def __init__(self, nf, list ports not None, *, int index=0, int cores=1, flows_max=FLOWS_MAX_DEFAULT,
                 loop=None, host=None, link=None, bint virtual_time=False, now_ns=0, incarnation_first=1):
        cdef Port port
        cdef int i, status
        if not 1 <= len(ports) <= <int>PORTS_MAX:
            raise UsageError(f"a core has 1..{PORTS_MAX} ports, not {len(ports)}")
        self.nf = nf
        self.index = index
        self.cores = cores
        self.ports = ports
        self.port_names = []
        self.port_count = len(ports)
        self.link = link
        self.host = host
        self.loop = loop
        self.virtual_time = virtual_time
        self.incarnation_next = incarnation_first
        self.siblings = []
        for i, port in enumerate(ports):
            if port.name in self.port_names:
                raise UsageError(f"two ports are named {port.name!r}")
            port.index = i
            self.port_objects[i] = <void *>port
            self.port_names.append(port.name)
            if port.interface is not None:
                if port.mac is None or len(port.mac) != 6:
                    raise UsageError(f"port {port.name}: a routed port needs a MAC address of 6 bytes")
                self.routed |= <uint64_t>1 << i
                memcpy(self.macs[i], <char *>port.mac, 6)
        self.seed = int.from_bytes(os.urandom(8), "little")
        self.now_ns = now_ns if virtual_time else an_now_ns()
        status = an_table_init(&self.table, flows_max, self.seed, self.now_ns)
        if status != 0:
            raise MemoryError(f"flow table of {flows_max} entries: {os.strerror(-status)}")
        self.adjacencies = <an_adjacency *>calloc(ADJACENCIES_MAX, sizeof(an_adjacency))
        if self.adjacencies == NULL:
            raise MemoryError("adjacency table")
        self.adjacency_count = 1
        self.adjacencies[0].resolved = 1  # no adjacency: the Ethernet header stays as it is
        self.adjacency_index = {}
        self.adjacency_keys = [None]
        self.unresolved = set()
        self.has_open = nf.handles("on_open")
        self.has_packet = nf.handles("on_packet")
        self.has_close = nf.handles("on_close")
        self.on_open, self.open_async = nf.on_open, nf.suspends("on_open")
        self.on_packet, self.packet_async = nf.on_packet, nf.suspends("on_packet")
        self.on_close, self.close_async = nf.on_close, nf.suspends("on_close")
        self.on_message, self.message_async = nf.on_message, nf.suspends("on_message")
        self.volatile_state = nf.volatile
        self.untracked_forward = nf.untracked.name == "FORWARD"
        self.idle_ns_default = <uint64_t>(nf.idle_default_s * 1e9)
        if self.loop is not None:
            self.task = FlowTask(self.loop)
        self.view = self._new_view()

    def __dealloc__(self):
        cdef an_parked *item
        while self.held_head != NULL:
            item = self.held_head
            self.held_head = item.next
            Py_XDECREF(<PyObject *>item.flow)
            free(item)
        an_table_free(&self.table)
        free(self.adjacencies)

    cdef Packet _new_view(self):
        cdef Packet view = Packet.__new__(Packet)
        view.p = NULL
        view.port_names = self.port_names
        return view

    # -- the loop ---------------------------------------------------------------------------------------------------

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
        cdef int n, turn, taken = 0
        for turn in range(TURNS_MAX):
            n = self._turn()
            taken += n
            if n < BURST:
                break
        return taken

    cdef int _turn(self) except -1:
        cdef int i, n, taken = 0
        if not self.virtual_time:
            self.now_ns = an_now_ns()
        for i in range(self.port_count):
            n = (<Port>self.port_objects[i]).rx(self.burst, BURST)
            if n:
                taken += n
                self._burst(n)
        for sibling in self.siblings:
            if sibling is not None:
                n = (<Handoff>sibling).rx(self.burst, BURST)
                if n:
                    taken += n
                    self._burst(n)
        if taken == 0:
            self._hear()
        self.expire()
        self._exhale()
        for sibling in self.siblings:
            if sibling is not None:
                (<Handoff>sibling).outgoing.wake()
        return taken

    cdef int _hear(self) except -1:
        """Take what the owner system sent."""
        cdef size_t length = 0
        if self.replies is not None and self.replies.peek(&length) != NULL:
            self.link.poll()
        return 0

    cdef int _exhale(self) except -1:
        if self.submitted:
            self.submitted = False
            self.link.flush()
        if self.held_head != NULL:
            self.release()
        return self.flush()

    cdef int _burst(self, int n) except -1:
        cdef int i, out
        cdef uint32_t index
        cdef an_packet *p
        cdef uint64_t total = 0, offloaded = 0
        cdef uint32_t found[BURST]
        # Whatever these packets answer was sent before they came, so what the owner system told us before that is here.
        self._hear()
        for i in range(n):
            p = &self.burst[i]
            total += p.length
            an_parse(p)
            p.hash = <uint32_t>an_hash(&p.key, self.seed)
            an_table_prefetch(&self.table, p.hash)
        for i in range(n):
            found[i] = an_table_probe(&self.table, self.burst[i].hash)
        if self.has_packet:
            for i in range(n):
                an_prefetch_actor(&self.table, found[i])
        self.counters[C_RX_PACKETS] += n
        self.counters[C_RX_BYTES] += total
        if self.virtual_time and self.burst[n - 1].time_ns > self.now_ns:
            self.now_ns = self.burst[n - 1].time_ns
        for i in range(n):
            p = &self.burst[i]
            if self.routed >> p.port & 1 and p.length >= 14 and not p.data[0] & 1 and (
                    memcmp(p.data, self.macs[p.port], 6) != 0):
                self.drop(p, C_OTHER_HOST)
                continue
            out = an_offload(&self.table, p, self.now_ns, self.adjacencies)
            if out == AN_GENERAL:
                self.process(p)
                continue
            offloaded += 1
            if self.tx_count[out] == TX_BATCH:
                self.flush_port(out)
            self.tx[out][self.tx_count[out]] = p
            self.tx_count[out] += 1
        self.counters[C_OFFLOADED] += offloaded
        return self._exhale()

    cdef int process(self, an_packet *p) except -1:
        cdef uint32_t index
        cdef an_entry *e
        if p.reason != AN_OK:
            return self.untracked(p)
        index = an_table_find(&self.table, &p.key, p.hash)
        if index == AN_NONE:
            return self.miss(p)
        p.entry = index
        e = &self.table.entries[index]
        e.packets += 1
        e.bytes += p.length
        if not p.flags & AN_ICMP_ERROR:
            e.last_seen_ns = self.now_ns
        if e.rewrite.action != AN_SLOW and not e.state & AN_BUSY and not (
                e.state & AN_PUNT_TCP and p.tcp_flags & TCP_SYN_FIN_RST):
            self.counters[C_OFFLOADED] += 1
            return self.carry_out(e, p)
        return self._receive(<FlowBase>e.actor, p)

    cdef int _receive(self, FlowBase flow, an_packet *p) except -1:
        cdef Suspension s = flow.suspension
        cdef an_parked *item
        if s is None:
            if self.packet_async or not self.has_packet:
                return self.handle(flow, p, PHASE_PACKET)
            return self.handle_packet(flow, p)
        if s.length >= <uint32_t>MAILBOX_PACKETS_MAX:
            return self.drop(p, C_MAILBOX_FULL)
        item = self.park(p)
        item.next = NULL
        if s.tail == NULL:
            s.head = item
        else:
            s.tail.next = item
        s.tail = item
        s.length += 1
        return 0

    cdef int carry_out(self, an_entry *e, an_packet *p) except -1:
        """Do what the entry's rewrite says."""
        cdef int out = e.rewrite.out_port
        if e.rewrite.action == AN_DROP:
            return self.drop(p, C_DROPPED_BY_OFFLOAD)
        if e.rewrite.action == AN_REDIRECT:
            return self.hand_off(p, out)
        if an_rewrite_apply(p, &e.rewrite, e.addresses) != 0:
            return self.ttl_expired(p)
        if e.rewrite.adjacency:
            return self.ethernet(<FlowBase>e.actor if e.state & AN_HELD else None, p, out, e.rewrite.adjacency)
        if e.state & AN_HELD:
            return self.hold(<FlowBase>e.actor, p, out)
        return self.transmit(p, out)

    cdef int miss(self, an_packet *p) except -1:
        """The first packet of a flow, as far as this core knows."""
        cdef FlowBase flow
        cdef int home
        if p.flags & AN_ICMP_ERROR:
            return self.drop(p, C_ICMP_ERROR_UNMATCHED)
        if self.for_host(p):
            return self.answer(p)
        if self.cores > 1:
            home = an_rss_core(&p.key, self.cores)
            if home != self.index:
                if p.flags & AN_HANDED:
                    return self.drop(p, C_HANDOFF_STALE)
                return self.hand_off(p, home)
        flow = self.create(&p.key, p.hash)
        if flow is None:
            return self.drop(p, C_FLOW_TABLE_FULL)
        p.entry = flow.first
        self.table.entries[p.entry].packets = 1
        self.table.entries[p.entry].bytes = p.length
        self.counters[C_FLOWS_OPENED] += 1
        flow.incarnation = self.incarnation_next
        self.incarnation_next += 1
        flow.marks |= MARK_DIRTY
        if self.host is not None and self.routed & (<uint64_t>1 << p.port):
            self._learn(p)
        return self.handle(flow, p, PHASE_OPEN if self.has_open else PHASE_PACKET)

    cdef FlowBase create(self, const an_key *key, uint32_t hash):
        cdef FlowBase flow
        cdef an_entry *e
        cdef uint32_t index = an_table_insert(&self.table, key, hash)
        if index == AN_NONE:
            return None
        flow = self.nf.__new__(self.nf)
        for name, value in self.nf.field_defaults:
            PyObject_GenericSetAttr(flow, name, value if type(value) not in MUTABLE else value.copy())
        flow.core = self
        flow.first = index
        flow.keys = 1
        flow.idle_ns = self.idle_ns_default
        e = &self.table.entries[index]
        e.actor = <void *>flow
        e.state |= AN_PRIMARY
        e.last_seen_ns = self.now_ns
        Py_INCREF(flow)  # the table's reference, given back by end_close
        an_timer_arm(&self.table, index, self.now_ns + flow.idle_ns)
        self.counters[C_LIVE_FLOWS] += 1
        return flow

    cdef int untracked(self, an_packet *p) except -1:
        """Not a packet of a flow: the NF's `untracked` policy, but a routed port's ARP is answered."""
        cdef bint routed = (self.routed >> p.port) & 1
        cdef int counter
        if p.reason == AN_NOT_IP and routed and self.host is not None:
            if self.cores > 1 and not p.flags & AN_HANDED:
                for i in range(self.cores):  # every core has its own neighbours
                    if i != self.index:
                        self.hand_off(p, i)
            return self.answer(p)
        if p.reason == AN_MALFORMED:
            counter = C_MALFORMED
        elif p.reason == AN_TRUNCATED:
            counter = C_TRUNCATED
        elif p.reason == AN_NOT_IP:
            counter = C_NOT_IP
        elif p.reason == AN_FRAGMENT:
            counter = C_FRAGMENT
        else:
            counter = C_UNTRACKED
            if self.for_host(p):
                return self.answer(p)
        if self.untracked_forward and not routed and counter in (C_NOT_IP, C_FRAGMENT, C_UNTRACKED):
            self.counters[C_HANDLED] += 1
            return self.transmit(p, self.resolve_out(None, p.port))
        return self.drop(p, counter)

    cdef int drop(self, an_packet *p, int counter) except -1:
        self.counters[counter] += 1
        if p.flags & AN_COPIED:
            free(p)
        return 0

    # -- handlers ---------------------------------------------------------------------------------------------------

    cdef int handle_packet(self, FlowBase flow, an_packet *p) except -1:
        """`on_packet` as a plain `def`: one call into Python, and no more than the verdict asks for behind it."""
        cdef PyObject *args[2]
        cdef PyObject *result
        cdef Packet view = self.view
        self.counters[C_HANDLED] += 1
        view.p = p
        args[0] = <PyObject *>flow
        args[1] = <PyObject *>view
        result = PyObject_Vectorcall(<PyObject *>self.on_packet, args, 2, NULL)
        if result == NULL:
            return self.failed(flow, p, PHASE_PACKET)
        view.p = NULL
        verdict = <object>result
        Py_DECREF(verdict)
        if Py_REFCNT(<PyObject *>view) > 2 or flow.marks & (MARK_DIRTY | MARK_CLOSING) or self.volatile_state or (
                flow.depends > an_word_load(self.committed)):
            return self.completed(flow, p, PHASE_PACKET, verdict)
        return self.apply(flow, p, verdict)

    cdef int handle(self, FlowBase flow, an_packet *p, int phase) except -1:
        """Run the handler of `phase`. `p` is owned by the callee from here on."""
        cdef PyObject *args[2]
        cdef PyObject *result
        cdef Packet view = self.view
        cdef object handler
        cdef bint asynchronous
        if phase == PHASE_PACKET:
            handler, asynchronous = self.on_packet, self.packet_async
            self.counters[C_HANDLED] += 1
            if not self.has_packet:
                return self.completed(flow, p, phase, DROP)
        elif phase == PHASE_OPEN:
            handler, asynchronous = self.on_open, self.open_async
        elif phase == PHASE_CLOSE:
            handler, asynchronous = self.on_close, self.close_async
        else:
            handler, asynchronous = self.on_message, self.message_async
        view.p = p
        args[0] = <PyObject *>flow
        args[1] = <PyObject *>view if phase != PHASE_MESSAGE else <PyObject *>self.message
        self.driving = flow
        result = PyObject_Vectorcall(<PyObject *>handler, args, 1 if phase == PHASE_CLOSE else 2, NULL)
        if result == NULL:
            return self.failed(flow, p, phase)
        outcome = <object>result
        Py_DECREF(outcome)
        if asynchronous:
            return self.step(flow, outcome, p, phase)
        return self.completed(flow, p, phase, outcome)

    cdef int step(self, FlowBase flow, object coroutine, an_packet *p, int phase) except -1:
        """Drive a handler until it completes or waits."""
        cdef PyObject *result = NULL
        cdef PySendResult status
        self.driving = flow
        status = PyIter_Send(<PyObject *>coroutine, <PyObject *>None, &result)
        if status == PYGEN_ERROR:
            return self.failed(flow, p, phase)
        outcome = <object>result
        Py_DECREF(outcome)
        if status == PYGEN_NEXT:
            return self.suspend(flow, coroutine, outcome, p, phase)
        return self.completed(flow, p, phase, outcome)

    cdef int _retire_view(self) except -1:
        """The handler is done with the packet: a view that it kept must not see the next one."""
        self.driving = None
        self.view.p = NULL
        if Py_REFCNT(<PyObject *>self.view) > 1:
            self.view = self._new_view()
        return 0

    cdef int suspend(self, FlowBase flow, object coroutine, object waiting_on, an_packet *p, int phase) except -1:
        """The handler waits for `waiting_on`: its packet is parked, its flow's later packets go to the mailbox (G1)."""
        cdef Suspension s = flow.suspension
        self.driving = None
        if s is None:
            s = flow.suspension = Suspension.__new__(Suspension)
            s.messages = []
            self.set_state(flow, AN_BUSY, True)
        if s.view is None:  # not waiting yet: the view and the task become this handler's own
            self.suspended += 1
            self.counters[C_SUSPENDED] += 1
            s.view, self.view = self.view, self._new_view()
            s.packet = self.park(p) if p != NULL else NULL
            s.view.p = &s.packet.p if p != NULL else NULL
            if self.loop is not None:
                s.task, self.task = self.task, FlowTask(self.loop)
                s.task.suspended(_Canceller(self, flow))
                if asyncio_tasks.current_task(self.loop) is s.task:
                    asyncio_tasks._leave_task(self.loop, s.task)
                    asyncio_tasks._enter_task(self.loop, self.task)
        s.coroutine = coroutine
        s.phase = phase
        s.waiting_on = waiting_on
        s.reply = self.reply if phase == PHASE_MESSAGE else None
        s.on_loop = not isinstance(waiting_on, Ask) or (<Ask>waiting_on).done
        self.on_loop += s.on_loop
        if isinstance(waiting_on, Ask):
            if (<Ask>waiting_on).done:
                return self._resume_soon(flow)
            (<Ask>waiting_on).waited = True
            return 0
        if waiting_on is None:
            return self._resume_soon(flow)
        if getattr(waiting_on, "_asyncio_future_blocking", None):
            waiting_on._asyncio_future_blocking = False
            waiting_on.add_done_callback(_Wakeup(self, flow, waiting_on))
            return 0
        s.waiting_on = _Unawaitable(waiting_on)
        return self._resume_soon(flow)

    cdef int _resume_soon(self, FlowBase flow) except -1:
        if self.loop is None:
            raise UsageError("a handler that awaits asyncio needs a core with an event loop")
        self.loop.call_soon(_Wakeup(self, flow, None))
        return 0

    def _resumed_by_loop(self, FlowBase flow, object future) -> None:
        """asyncio calls: what the handler waited for is done."""
        cdef Suspension s = flow.suspension
        if s is None or s.view is None or (future is not None and s.waiting_on is not future):
            return
        self.resume_now(flow)

    cdef int resume_now(self, FlowBase flow) except -1:
        """Resume from within a turn or, as a turn of its own, from one of the loop's callbacks."""
        if self.loop is None or asyncio_tasks.current_task(self.loop) is not None:
            return self.resume(flow)
        if not self.virtual_time:
            self.now_ns = an_now_ns()
        asyncio_tasks._enter_task(self.loop, self.task)
        try:
            self.resume(flow)
            return self._exhale()
        finally:
            asyncio_tasks._leave_task(self.loop, self.task)

    def _cancel_wait(self, FlowBase flow) -> bool:
        """Throw CancelledError into a waiting handler (a time-out has passed)."""
        cdef Suspension s = flow.suspension
        if s is None or s.view is None:
            return False
        if isinstance(s.waiting_on, Ask):
            s.waiting_on.fail(asyncio.CancelledError())
            return True
        return s.waiting_on is not None and s.waiting_on.cancel()

    cdef int resume(self, FlowBase flow) except -1:
        """What the handler waited for has come: drive it on, then treat the flow's mailbox."""
        cdef Suspension s = flow.suspension
        cdef PyObject *result = NULL
        cdef PySendResult status
        cdef an_packet *p
        cdef an_parked *item
        cdef int phase
        if s is None or s.view is None:
            return 0
        self.on_loop -= s.on_loop
        s.on_loop = False
        coroutine, phase, task = s.coroutine, s.phase, s.task
        self.reply = s.reply
        outer = None
        if task is not None:
            outer = asyncio_tasks.current_task(self.loop)
            if outer is not None:
                asyncio_tasks._leave_task(self.loop, outer)
            asyncio_tasks._enter_task(self.loop, task)
        self.driving = flow
        if isinstance(s.waiting_on, _Unawaitable):
            coroutine.close()
            status = PYGEN_ERROR
            raised = TypeError(f"a handler awaited {s.waiting_on.what!r}: neither an owner's reply nor an asyncio awaitable")
        else:
            status = PyIter_Send(<PyObject *>coroutine, <PyObject *>None, &result)
            raised = _take_error() if status == PYGEN_ERROR else None
        self.driving = None
        if task is not None:
            asyncio_tasks._leave_task(self.loop, task)
            if outer is not None:
                asyncio_tasks._enter_task(self.loop, outer)
        if status == PYGEN_NEXT:
            outcome = <object>result
            Py_DECREF(outcome)
            return self.suspend(flow, coroutine, outcome, NULL, phase)
        self.suspended -= 1
        p = &s.packet.p if s.packet != NULL else NULL
        s.view.p = NULL
        s.packet = NULL
        s.view = s.coroutine = s.task = s.waiting_on = None
        if p != NULL:
            p.entry = an_table_find(&self.table, &p.key, p.hash)
        if status == PYGEN_ERROR:
            self._report(flow, raised, p, phase)
        else:
            outcome = <object>result
            Py_DECREF(outcome)
            self.completed(flow, p, phase, outcome)
        return self.drain_mailbox(flow)

    cdef int drain_mailbox(self, FlowBase flow) except -1:
        cdef Suspension s = flow.suspension
        cdef an_parked *item
        cdef an_entry *e
        while s.view is None and s.head != NULL:
            item = s.head
            s.head = item.next
            if s.head == NULL:
                s.tail = NULL
            s.length -= 1
            item.p.entry = an_table_find(&self.table, &item.p.key, item.p.hash)
            if flow.marks & MARK_CLOSED or item.p.entry == AN_NONE:
                self.process(&item.p)  # the flow closed: a new one may begin
                continue
            e = &self.table.entries[item.p.entry]
            if e.rewrite.action != AN_SLOW and not (
                    e.state & AN_PUNT_TCP and item.p.tcp_flags & TCP_SYN_FIN_RST):
                self.carry_out(e, &item.p)
            else:
                self.handle(flow, &item.p, PHASE_PACKET)
        while s.view is None and s.messages:
            message, reply = s.messages.pop(0)
            if flow.marks & MARK_CLOSED:
                if reply is not None:
                    reply(UsageError("the flow has closed"))
                continue
            self._tell(flow, message, reply)
        if s.view is None:
            flow.suspension = None
            self.set_state(flow, AN_BUSY, False)
        return 0

    cdef int completed(self, FlowBase flow, an_packet *p, int phase, object verdict) except -1:
        """A handler has returned `verdict`."""
        cdef an_entry *e
        self._retire_view()
        if phase == PHASE_CLOSE:
            return self.end_close(flow)
        if phase == PHASE_MESSAGE:
            self.save(flow)
            self._answer_message(verdict)
            if flow.marks & MARK_CLOSING and not flow.marks & MARK_CLOSED:
                return self.begin_close(flow, "closed by the network function")
            return 0
        if phase == PHASE_OPEN:
            e = &self.table.entries[flow.first]
            if verdict is None:
                if e.rewrite.action == AN_SLOW or (e.state & AN_PUNT_TCP and p.tcp_flags & TCP_SYN_FIN_RST):
                    return self.handle(flow, p, PHASE_PACKET)
                verdict = OFFLOADED
            elif (verdict is DROP or verdict is REJECT) and flow.keys == 1 and e.rewrite.action == AN_SLOW:
                # Refused: a flow that was never opened leaves nothing behind.
                self.counters[C_FLOWS_REFUSED] += 1
                self.counters[C_FLOWS_OPENED] -= 1
                self.apply(flow, p, verdict)
                flow.reason = "refused"
                return self.end_close(flow)
        self.save(flow)
        self.apply(flow, p, verdict)
        if flow.marks & MARK_CLOSING and not flow.marks & MARK_CLOSED:
            return self.begin_close(flow, "closed by the network function")
        return 0

    cdef int failed(self, FlowBase flow, an_packet *p, int phase) except -1:
        self._retire_view()
        return self._report(flow, _take_error(), p, phase)

    cdef int _report(self, FlowBase flow, object error, an_packet *p, int phase) except -1:
        """A handler raised: the flow fails closed, its packet is dropped, others go on."""
        if not isinstance(error, (Exception, asyncio.CancelledError)):
            raise error
        if p != NULL:
            self.drop(p, C_HANDLER_ERROR)
        else:
            self.counters[C_HANDLER_ERROR] += 1
        if self.on_error is not None:
            self.on_error(flow.flow if flow.core is not None else None, HANDLERS[phase], error)
        if phase == PHASE_MESSAGE:
            self._answer_message(error)
        if phase == PHASE_CLOSE:
            return self.end_close(flow)
        return self.begin_close(flow, "handler error")

    cdef int _answer_message(self, object value) except -1:
        reply, self.reply = self.reply, None
        if reply is not None:
            reply(value)
        return 0

    def tell(self, flow, message, reply=None) -> None:
        """Hand `message` to the flow's `on_message`, in turn with its packets (G1).

        `reply`, if given, is called once with what the handler returned, or with the exception that it raised. Raises
        UsageError if no flow holds the five-tuple.
        """
        cdef FlowBase actor = None
        cdef an_key key
        cdef uint32_t index
        key_of(flow, 0, &key)
        for port in range(self.port_count):
            key.port = port
            index = an_table_find(&self.table, &key, <uint32_t>an_hash(&key, self.seed))
            if index != AN_NONE and self.table.entries[index].actor != NULL:
                actor = <FlowBase>self.table.entries[index].actor
                break
        if actor is None:
            raise UsageError(f"there is no flow {flow}")
        if actor.suspension is not None:
            if len(actor.suspension.messages) >= MAILBOX_PACKETS_MAX:
                raise UsageError(f"flow {flow}: {MAILBOX_PACKETS_MAX} messages wait already")
            actor.suspension.messages.append((message, reply))
            return
        self._tell(actor, message, reply)
        self._exhale()

    cdef int _tell(self, FlowBase actor, object message, object reply) except -1:
        cdef bint alone = self.loop is not None and asyncio_tasks.current_task(self.loop) is None
        self.message, self.reply = message, reply
        if alone:
            asyncio_tasks._enter_task(self.loop, self.task)
        try:
            return self.handle(actor, NULL, PHASE_MESSAGE)
        finally:
            self.message = self.reply = None
            if alone:
                asyncio_tasks._leave_task(self.loop, self.task)

    # -- replicated state -------------------------------------------------------------------------------------------

    cdef int save(self, FlowBase flow) except -1:
        """Log what changed; what the flow sends from here on waits for it (G3)."""
        cdef bint saved = False
        if self.link is None:
            return 0
        if self.volatile_state and not flow.marks & MARK_DIRTY and flow.saved != flow.saved_state():
            flow.marks |= MARK_DIRTY  # a list or dict among the fields was changed in place
        if flow.marks & MARK_DIRTY:
            if self.volatile_state:
                flow.saved = flow.saved_state()
            self.submitted = True
            flow.depends = max(flow.depends, self.link.save(flow))
            flow.marks = (flow.marks & ~MARK_DIRTY) | MARK_SAVED
            saved = True
        if flow.depends > an_word_load(self.committed) and (saved or not flow.held):
            self.hold(flow, NULL, -1)
        return 0

    cdef int begin_close(self, FlowBase flow, str reason) except -1:
        if flow.marks & MARK_CLOSED:
            return 0
        flow.marks |= MARK_CLOSING
        if flow.reason is None:
            flow.reason = reason
        if flow.suspension is not None and flow.suspension.view is not None:
            return 0  # when its handler has completed
        if self.has_close:
            return self.handle(flow, NULL, PHASE_CLOSE)
        return self.end_close(flow)

    cdef int end_close(self, FlowBase flow) except -1:
        if flow.marks & MARK_CLOSED:
            return 0
        if self.link is not None and (flow.marks & MARK_SAVED or flow.asks):
            self.submitted = True
            self.link.close(flow, flow.reason or "closed")
        self._remove(flow)
        if flow.reason != "refused":
            self.counters[C_FLOWS_CLOSED] += 1
        return 0

    cdef int _remove(self, FlowBase flow) except -1:
        flow.marks |= MARK_CLOSED
        self.remove_keys(flow)
        flow.core = None
        self.counters[C_LIVE_FLOWS] -= 1
        Py_DECREF(flow)
        return 0

    cdef int remove_keys(self, FlowBase flow) except -1:
        cdef uint32_t i = flow.first, following
        cdef int n
        for n in range(flow.keys):
            following = self.table.entries[i].next_key
            free(self.table.entries[i].addresses)
            self.table.entries[i].addresses = NULL
            an_table_remove(&self.table, i)
            i = following
        flow.keys = 0
        return 0

    cdef int expire(self) except -1:
        cdef uint32_t due[64]
        cdef uint32_t n, k, i
        cdef uint64_t last
        cdef FlowBase flow
        if self.now_ns >= self.tick_ns:
            self._tick()
        n = an_timer_advance(&self.table, self.now_ns, due, 64)
        for k in range(n):
            if not self.table.entries[due[k]].state & AN_LIVE or self.table.entries[due[k]].actor == NULL:
                continue
            flow = <FlowBase>self.table.entries[due[k]].actor
            last = 0
            i = flow.first
            for _ in range(flow.keys):
                if self.table.entries[i].last_seen_ns > last:
                    last = self.table.entries[i].last_seen_ns
                i = self.table.entries[i].next_key
            if flow.suspension is not None:
                last = self.now_ns
            if last + flow.idle_ns <= self.now_ns:
                self.begin_close(flow, "idle")
            else:
                an_timer_arm(&self.table, flow.first, last + flow.idle_ns)
        return 0

    cdef int set_state(self, FlowBase flow, uint8_t bit, bint on) except -1:
        cdef uint32_t i = flow.first
        for _ in range(flow.keys):
            if on:
                self.table.entries[i].state |= bit
            else:
                self.table.entries[i].state &= ~bit
            i = self.table.entries[i].next_key
        return 0

    def close_all(self, str reason="shutdown") -> int:
        """Close every flow that is not waiting in a handler; returns how many are left."""
        cdef uint32_t i
        for i in range(self.table.entries_max):
            if self.table.used == 0:
                break
            if self.table.entries[i].state & AN_LIVE and self.table.entries[i].actor != NULL:
                self.begin_close(<FlowBase>self.table.entries[i].actor, reason)
        self._exhale()
        return self.counters[C_LIVE_FLOWS]

    # -- verdicts ---------------------------------------------------------------------------------------------------

    cdef int resolve_out(self, str to, int arriving) except -1:
        """Index of the port named `to`; None is the port opposite to `arriving`."""
        if to is None:
            if self.port_count <= 2:
                return self.port_count - 1 - arriving if self.port_count == 2 else 0
            raise UsageError(f"with {self.port_count} ports a verdict must name the one to leave by: "
                             f"{', '.join(self.port_names)}")
        try:
            return self.port_names.index(to)
        except ValueError:
            raise UsageError(f"no port is named {to!r}; there are {', '.join(self.port_names)}") from None

    cdef int apply(self, FlowBase flow, an_packet *p, object verdict) except -1:
        cdef Verdict decision
        cdef Rewrite rewrite
        cdef an_entry *e
        cdef int out, adjacency
        if not isinstance(verdict, Verdict):
            return self._report(flow, TypeError(f"{self.nf.__name__}.on_packet must return a verdict, not {verdict!r}"),
                                p, PHASE_PACKET)
        decision = <Verdict>verdict
        if decision.kind == VERDICT_DROP:
            return self.drop(p, C_DROPPED_BY_NF)
        if decision.kind == VERDICT_REJECT:
            self._refuse(p, 3, 13)
            return self.drop(p, C_REJECTED_BY_NF)
        if decision.kind == VERDICT_OFFLOADED:
            if p.entry == AN_NONE or self.table.entries[p.entry].rewrite.action == AN_SLOW:
                return self._report(flow, TypeError(f"{self.nf.__name__} returned OFFLOADED for a key without offload"),
                                    p, PHASE_PACKET)
            return self.carry_out(&self.table.entries[p.entry], p)
        try:
            if decision.kind == VERDICT_REWRITE:
                rewrite = <Rewrite>decision
                self.prepare(rewrite, p)
                out, adjacency = rewrite.rewrite.out_port, rewrite.rewrite.adjacency
            else:
                out = self.resolve_out((<Forward>decision).to, p.port)
                adjacency = self.adjacency_for(out, &p.key, NULL) if self.routed >> out & 1 else 0
        except UsageError as error:
            return self._report(flow, error, p, PHASE_PACKET)
        if adjacency < 0:
            return self.drop(p, C_NO_ROUTE)
        if decision.kind == VERDICT_REWRITE and an_rewrite_apply(p, &rewrite.rewrite, rewrite.ipv6_addresses()) != 0:
            return self.ttl_expired(p)
        if adjacency:
            return self.ethernet(flow, p, out, adjacency)
        return self.emit(flow, p, out)

    cdef int prepare(self, Rewrite verdict, an_packet *p) except -1:
        """Resolve port, next hop and checksum deltas for this packet's key, unless they are this key's already."""
        cdef int adjacency
        if verdict.prepared_by == <void *>self and memcmp(&verdict.prepared_for, &p.key, sizeof(an_key)) == 0:
            return 0
        if verdict.version and verdict.version != p.key.version:
            raise UsageError(f"rewrite: an IPv{verdict.version} address in an IPv{p.key.version} packet")
        verdict.rewrite.out_port = self.resolve_out(verdict.to, p.key.port)
        an_rewrite_prepare(&verdict.rewrite, &p.key, verdict.ipv6_addresses())
        adjacency = self.adjacency_for(verdict.rewrite.out_port, &p.key, &verdict.rewrite)
        if adjacency < 0:
            raise UsageError(f"no route to the destination out of port {self.port_names[verdict.rewrite.out_port]}")
        verdict.rewrite.adjacency = adjacency
        verdict.prepared_for = p.key
        verdict.prepared_by = <void *>self
        return 0

    cdef int install(self, FlowBase flow, uint32_t index, Verdict verdict, bint punt) except -1:
        """Make `verdict` the entry's offload."""
        cdef an_entry *e = &self.table.entries[index]
        cdef an_rewrite r
        cdef Rewrite rewrite
        cdef int adjacency = 0
        memset(&r, 0, sizeof(r))
        if verdict.kind == VERDICT_DROP:
            r.action = AN_DROP
        elif verdict.kind == VERDICT_FORWARD:
            r.action = AN_FORWARD
            r.out_port = self.resolve_out((<Forward>verdict).to, e.key.port)
        elif verdict.kind == VERDICT_REWRITE:
            rewrite = <Rewrite>verdict
            if rewrite.version and rewrite.version != e.key.version:
                raise UsageError(f"offload: an IPv{rewrite.version} address for an IPv{e.key.version} flow")
            r = rewrite.rewrite
            r.out_port = self.resolve_out(rewrite.to, e.key.port)
            an_rewrite_prepare(&r, &e.key, rewrite.ipv6_addresses())
            if rewrite.version == 6:
                if e.addresses == NULL:
                    e.addresses = <uint8_t *>malloc(32)
                    if e.addresses == NULL:
                        raise MemoryError("offload")
                memcpy(e.addresses, rewrite.addresses, 32)
        else:
            raise UsageError(f"offload: {verdict!r} is not a decision that the core can carry out")
        if r.action == AN_FORWARD:
            adjacency = self.adjacency_for(r.out_port, &e.key, &r)
            if adjacency < 0:
                raise UsageError(f"offload: no route to the destination out of port {self.port_names[r.out_port]}")
        r.adjacency = adjacency
        e.rewrite = r
        if punt:
            e.state |= AN_PUNT_TCP
        else:
            e.state &= ~AN_PUNT_TCP
        return 0

    cdef int ttl_expired(self, an_packet *p) except -1:
        self._refuse(p, 11, 0)
        return self.drop(p, C_TTL_EXPIRED)

    cdef int _refuse(self, an_packet *p, int type, int code) except -1:
        """Tell the sender by an ICMP error (by ICMP's type and code, for IPv6 too), where the node has an address to send it from."""
        if self.host is None or not self.routed >> p.port & 1:
            return 0
        answer = self.host.icmp_error(self.ports[p.port], <bytes>p.data[:min(p.length, 1500)], type, code, self.now_ns)
        if answer is not None:
            self._send(p.port, answer)
        return 0

    # -- output -----------------------------------------------------------------------------------------------------

    cdef int emit(self, FlowBase flow, an_packet *p, int out) except -1:
        if flow.held or flow.depends > an_word_load(self.committed):
            return self.hold(flow, p, out)
        return self.transmit(p, out)

    cdef int transmit(self, an_packet *p, int out) except -1:
        if self.tx_count[out] == TX_BATCH:
            self.flush_port(out)
        self.tx[out][self.tx_count[out]] = p
        self.tx_count[out] += 1
        return 0

    cdef int flush_port(self, int out) except -1:
        cdef int i, sent, count = self.tx_count[out]
        cdef uint64_t total = 0
        cdef Port port = <Port>self.port_objects[out]
        if count == 0:
            return 0
        self.tx_count[out] = 0
        for i in range(count):
            total += self.tx[out][i].length
        sent = port.tx(self.tx[out], count)
        self.counters[C_TX_PACKETS] += sent
        self.counters[C_TX_BYTES] += total
        self.counters[C_TX_FAILED] += count - sent
        for i in range(count):
            if self.tx[out][i].flags & AN_COPIED:
                free(self.tx[out][i])
        return 0

    cdef int flush(self) except -1:
        cdef int out
        for out in range(self.port_count):
            if self.tx_count[out]:
                self.flush_port(out)
        return 0

    cdef an_parked *park(self, an_packet *p) except NULL:
        """A copy of the packet that outlives the burst; one that is parked already is itself."""
        cdef an_parked *item
        if p.flags & AN_COPIED:
            return <an_parked *>p
        item = <an_parked *>malloc(sizeof(an_parked) + p.length)
        if item == NULL:
            raise MemoryError("a parked packet")
        item.p = p[0]
        item.p.data = item.frame
        item.p.flags |= AN_COPIED
        memcpy(item.frame, p.data, p.length)
        item.next = NULL
        item.flow = NULL
        return item

    cdef int hold(self, FlowBase flow, an_packet *p, int out) except -1:
        """Queue an output, or a marker (`p` NULL), behind the watermark; until it has gone the flow's later ones join."""
        cdef an_parked *item
        if p != NULL and self.held_count >= <uint32_t>HELD_PACKETS_MAX:
            return self.drop(p, C_HELD_FULL)
        if p != NULL:
            item = self.park(p)
        else:
            item = <an_parked *>malloc(sizeof(an_parked))
            if item == NULL:
                raise MemoryError("a held marker")
        if self.held_tail != NULL and self.held_tail.need > flow.depends:
            flow.depends = self.held_tail.need  # one queue: what goes later needs no less
        item.need = flow.depends
        item.out = out
        item.next = NULL
        item.flow = <void *>flow
        Py_INCREF(flow)
        if flow.held == 0:
            self.set_state(flow, AN_HELD, True)
        flow.held += 1
        if self.held_tail == NULL:
            self.held_head = item
        else:
            self.held_tail.next = item
        self.held_tail = item
        if p != NULL:
            self.held_count += 1
            self.counters[C_HELD] += 1
        return 0

    cdef int release(self) except -1:
        """Let go what the watermark has passed, in order."""
        cdef an_parked *item
        cdef uint64_t committed = an_word_load(self.committed)
        cdef FlowBase flow
        while self.held_head != NULL and self.held_head.need <= committed:
            item = self.held_head
            self.held_head = item.next
            if self.held_head == NULL:
                self.held_tail = NULL
            flow = <FlowBase>item.flow
            item.flow = NULL
            flow.held -= 1
            if flow.held == 0 and not flow.marks & MARK_CLOSED:
                self.set_state(flow, AN_HELD, False)
            Py_DECREF(flow)
            if item.out < 0:
                free(item)
            else:
                self.held_count -= 1
                self.transmit(&item.p, item.out)
        return 0

    @property
    def held(self) -> int:
        """Packets that wait for the watermark."""
        return self.held_count

    # -- Ethernet and neighbours of routed ports --------------------------------------------------------------------

    cdef int adjacency_for(self, int out, const an_key *key, const an_rewrite *rewrite) except -2:
        """Index of the next hop's addresses on `out`; 0 on a transparent port; -1 when there is no route."""
        cdef int adjacency
        if not self.routed >> out & 1:
            return 0
        if rewrite != NULL and rewrite.fields & AN_SET_DESTINATION and key.version == 4:
            destination = address_text(<const uint8_t *>&rewrite.destination, 4)
        else:
            destination = address_text(key.destination, key.version)
        next_hop = self.host.next_hop(self.ports[out], destination)
        if next_hop is None:
            return -1
        return self._adjacency(out, next_hop)

    cdef int _adjacency(self, int out, str next_hop) except -1:
        cdef int index
        known = self.adjacency_index.get((out, next_hop))
        if known is not None:
            return <int>known
        if self.adjacency_count >= ADJACENCIES_MAX:
            raise UsageError(f"more than {ADJACENCIES_MAX} neighbours")
        index = self.adjacency_count
        self.adjacency_count += 1
        self.adjacency_index[out, next_hop] = index
        self.adjacency_keys.append((out, next_hop))
        memcpy(self.adjacencies[index].source, self.macs[out], 6)
        mac = self.host.resolve(self.ports[out], next_hop)
        if mac is not None:
            self._resolved(index, <const uint8_t *><const char *>mac)
        return index

    cdef int _resolved(self, uint32_t index, const uint8_t *mac) except -1:
        """A neighbour's MAC address is known, or has changed: let go the packets that wait for it."""
        cdef an_adjacency *a = &self.adjacencies[index]
        cdef an_parked *item
        memcpy(a.destination, mac, 6)
        a.resolved = 1
        self.unresolved.discard(index)
        while a.waiting != NULL:
            item = a.waiting
            a.waiting = item.next
            a.waiting_count -= 1
            memcpy(item.p.data, mac, 6)
            if item.flow == NULL:
                self.transmit(&item.p, item.out)
            else:
                flow = <FlowBase>item.flow
                item.flow = NULL
                Py_DECREF(flow)
                self.emit(flow, &item.p, item.out)
        return 0

    cdef int ethernet(self, FlowBase flow, an_packet *p, int out, uint32_t adjacency) except -1:
        """Write the next hop's MAC addresses, then emit; ask for them first if they are unknown."""
        cdef an_adjacency *a = &self.adjacencies[adjacency]
        cdef an_parked *item
        memcpy(p.data + 6, a.source, 6)
        if a.resolved:
            memcpy(p.data, a.destination, 6)
            return self.emit(flow, p, out) if flow is not None else self.transmit(p, out)
        if a.waiting_count >= <uint32_t>NEIGHBOR_PACKETS_MAX:
            return self.drop(p, C_NEIGHBOR_FULL)
        item = self.park(p)
        item.out = out
        item.next = NULL
        item.flow = NULL
        if flow is not None:
            item.flow = <void *>flow
            Py_INCREF(flow)
        if a.waiting == NULL:
            a.waiting = item
            self._solicit(adjacency)
        else:
            a.waiting_tail.next = item
        a.waiting_tail = item
        a.waiting_count += 1
        return 0

    cdef int _solicit(self, uint32_t adjacency) except -1:
        out, address = self.adjacency_keys[adjacency]
        self.unresolved.add(adjacency)
        request = self.host.request(self.ports[out], address, self.now_ns)
        if request is not None:
            self._send(out, request)
        return 0

    cdef int _tick(self) except -1:
        """Once a second: ask again for neighbours that have not answered; give up on their packets after three times."""
        cdef an_adjacency *a
        cdef an_parked *item
        self.tick_ns = self.now_ns + NANOSECONDS
        for index in list(self.unresolved):
            a = &self.adjacencies[<uint32_t>index]
            a.attempts += 1
            if a.attempts <= 3 and a.waiting != NULL:
                self._solicit(index)
                continue
            a.attempts = 0
            self.unresolved.discard(index)
            while a.waiting != NULL:
                item = a.waiting
                a.waiting = item.next
                a.waiting_count -= 1
                Py_XDECREF(<PyObject *>item.flow)
                item.flow = NULL
                self.drop(&item.p, C_NEIGHBOR_UNRESOLVED)
        return 0

    cdef object _next_hop_form(self, int out, int adjacency):
        """Record form of an adjacency, so that a takeover needs no ARP: [address, MAC], or None."""
        cdef an_adjacency *a = &self.adjacencies[adjacency]
        if adjacency == 0 or not a.resolved:
            return None
        return [self.adjacency_keys[adjacency][1], (<const char *>a.destination)[:6]]

    cdef int _learn(self, const an_packet *p) except -1:
        """An on-link host that opens a flow has shown its MAC address: the replies need no ARP."""
        cdef str source = address_text(p.key.source, p.key.version)
        cdef uint32_t index
        known = self.adjacency_index.get((p.port, source))
        if known is None:
            if self.host.next_hop(self.ports[p.port], source) != source:
                return 0
            index = self._adjacency(p.port, source)
        else:
            index = known
        if not self.adjacencies[index].resolved:
            self._resolved(index, p.data + 6)
        return 0

    def announce(self) -> None:
        """Tell the neighbours of every routed port that its addresses are here now (gratuitous ARP, unsolicited NA)."""
        for port in self.ports:
            if self.routed >> port.index & 1:
                self._send(port.index, self.host.gratuitous(port))
        self.flush()

    cdef int answer(self, an_packet *p) except -1:
        """A frame for the node itself: ARP, neighbour discovery, ping."""
        cdef bytes frame = <bytes>p.data[:p.length]
        port = self.ports[p.port]
        self.counters[C_ANSWERED] += 1
        for to, reply in self.host.handle(port, frame, self.now_ns):
            self._send(to.index, reply)
        candidates = [(self.adjacency_keys[index], index) for index in self.unresolved]
        if len(frame) >= 32 and frame[12:14] == b"\x08\x06":
            sender = (p.port, address_text(<const uint8_t *><const char *>frame + 28, 4))
            if sender in self.adjacency_index:
                candidates.append((sender, self.adjacency_index[sender]))
        for (out, address), index in candidates:
            mac = self.host.resolve(self.ports[out], address)
            if mac is not None:
                self._resolved(index, <const uint8_t *><const char *>mac)
        if p.flags & AN_COPIED:
            free(p)
        return 0

    cdef int _send(self, int out, bytes frame) except -1:
        """Send a frame that the node itself made."""
        cdef an_packet p
        memset(&p, 0, sizeof(p))
        p.data = <uint8_t *><char *>frame
        p.length = len(frame)
        p.port = out
        p.time_ns = self.now_ns
        return self.transmit(&self.park(&p).p, out)

    cdef bint for_host(self, an_packet *p):
        """An echo request, or ICMPv6 control, to this routed port's own address."""
        if self.host is None or not self.routed >> p.port & 1:
            return False
        if p.key.protocol == 58 and p.reason == AN_UNTRACKED:
            return True
        if p.key.protocol not in (1, 58) or p.l4 == 0 or p.l4 >= p.length:
            return False
        return p.data[p.l4] in (8, 128) and (
            address_text(p.key.destination, p.key.version) == str(self.ports[p.port].interface.ip))

    # -- other cores ------------------------------------------------------------------------------------------------

    cdef int hand_off(self, an_packet *p, int core) except -1:
        """To the sibling core that holds the flow (a NIC's or the kernel's choice must not change the result)."""
        cdef Handoff sibling = self.siblings[core] if core < len(self.siblings) else None
        if sibling is None or not sibling.push(p):
            return self.drop(p, C_HANDOFF_FULL)
        self.counters[C_HANDED_OFF] += 1
        if p.flags & AN_COPIED:
            free(p)
        return 0

    def redirect(self, flow, str port, int core) -> None:
        """Packets of this key belong to a flow on core `core`: hand them over."""
        cdef an_key key
        cdef uint32_t index, hash
        key_of(flow, self.port_names.index(port), &key)
        hash = <uint32_t>an_hash(&key, self.seed)
        index = an_table_find(&self.table, &key, hash)
        if index == AN_NONE:
            index = an_table_insert(&self.table, &key, hash)
            if index == AN_NONE:
                self.counters[C_FLOW_TABLE_FULL] += 1
                return
        elif self.table.entries[index].actor != NULL:
            return  # a flow of our own holds it
        self.table.entries[index].rewrite.action = AN_REDIRECT
        self.table.entries[index].rewrite.out_port = core

    def redirect_end(self, flow, str port) -> None:
        """The flow on the other core has closed."""
        cdef an_key key
        cdef uint32_t index
        key_of(flow, self.port_names.index(port), &key)
        index = an_table_find(&self.table, &key, <uint32_t>an_hash(&key, self.seed))
        if index != AN_NONE and self.table.entries[index].actor == NULL:
            an_table_remove(&self.table, index)

    # -- flows from the log -----------------------------------------------------------------------------------------

    def restore(self, flow, str port, incarnation, asks, fields, keys, idle_ns) -> None:
        """Make a flow as its record says, offloads included; the flow that holds the key now, if any, is replaced (G6)."""
        cdef an_key key
        cdef FlowBase actor
        cdef uint32_t index, hash
        self.forget(flow, port)
        key_of(flow, self.port_names.index(port), &key)
        hash = <uint32_t>an_hash(&key, self.seed)
        index = an_table_find(&self.table, &key, hash)
        if index != AN_NONE:
            self._displace(index)
        actor = self.create(&key, hash)
        if actor is None:
            self.counters[C_FLOW_TABLE_FULL] += 1
            return
        for name, value in fields:
            PyObject_GenericSetAttr(actor, name, value)
        actor.incarnation = incarnation
        actor.asks = asks
        actor.idle_ns = idle_ns
        an_timer_arm(&self.table, actor.first, self.now_ns + actor.idle_ns)
        for number, (tuple_, at, form, punt, next_hop) in enumerate(keys):
            if number:
                key_of(tuple_, self.port_names.index(at), &key)
                index = an_table_find(&self.table, &key, <uint32_t>an_hash(&key, self.seed))
                if index != AN_NONE and self.table.entries[index].actor != <void *>actor:
                    self._displace(index)
                actor.bind(tuple_, at)
            if form is False:
                continue
            verdict = decode_verdict(form)
            if next_hop is not None:
                out = self.resolve_out(getattr(verdict, "to", None), self.port_names.index(at))
                if self.routed >> out & 1:
                    index = self._adjacency(out, next_hop[0])
                    if not self.adjacencies[index].resolved:
                        self._resolved(index, <const uint8_t *><const char *>next_hop[1])
            actor.offload(verdict, tuple_, at, punt_tcp=punt)
        actor.marks = MARK_SAVED
        self.incarnation_next = max(self.incarnation_next, incarnation + 1)
        self.counters[C_FLOWS_RESTORED] += 1

    cdef int _displace(self, uint32_t index) except -1:
        """Free a key for a flow from the log, which knows better."""
        if self.table.entries[index].actor != NULL:
            self._remove(<FlowBase>self.table.entries[index].actor)
        else:
            an_table_remove(&self.table, index)
        return 0

    def forget(self, flow, str port) -> None:
        """Remove a flow without running its `on_close`: the log says that it closed elsewhere."""
        cdef an_key key
        cdef uint32_t index
        key_of(flow, self.port_names.index(port), &key)
        index = an_table_find(&self.table, &key, <uint32_t>an_hash(&key, self.seed))
        if index != AN_NONE and self.table.entries[index].actor != NULL:
            if self.table.entries[index].state & AN_PRIMARY:
                self._remove(<FlowBase>self.table.entries[index].actor)

    def actors(self) -> list:
        """The actors of all live flows."""
        cdef uint32_t i
        found = []
        for i in range(self.table.entries_max):
            if <uint64_t>len(found) == self.counters[C_LIVE_FLOWS]:
                break
            if self.table.entries[i].state & AN_LIVE and self.table.entries[i].state & AN_PRIMARY:
                found.append(<object>self.table.entries[i].actor)
        return found

    cdef object offload_form(self, an_entry *e):
        """Record form of an entry's offload: `decode_verdict` makes the same verdict of it."""
        cdef an_rewrite *r = &e.rewrite
        cdef const uint8_t *source = <const uint8_t *>&r.source
        cdef const uint8_t *destination = <const uint8_t *>&r.destination
        if r.action == AN_DROP:
            return None
        to = self.port_names[r.out_port]
        if r.fields == 0:
            return [to]
        if e.addresses != NULL:
            source, destination = e.addresses, e.addresses + 16
        return [
            to,
            address_text(source, e.key.version) if r.fields & AN_SET_SOURCE else None,
            r.source_port if r.fields & AN_SET_SOURCE_PORT else None,
            address_text(destination, e.key.version) if r.fields & AN_SET_DESTINATION else None,
            r.destination_port if r.fields & AN_SET_DESTINATION_PORT else None,
            r.dscp if r.fields & AN_SET_DSCP else None,
            bool(r.fields & AN_DECREMENT_TTL),
        ]

    cdef uint32_t _key_of_flow(self, FlowBase flow, object key) except? 0:
        """The entry at which this flow holds the five-tuple, at whichever port; AN_NONE if it does not."""
        cdef an_key wanted
        cdef uint32_t index
        cdef int port
        key_of(key, 0, &wanted)
        for port in range(self.port_count):
            wanted.port = port
            index = an_table_find(&self.table, &wanted, <uint32_t>an_hash(&wanted, self.seed))
            if index != AN_NONE and self.table.entries[index].actor == <void *>flow:
                return index
        return AN_NONE

    # -- counters and the watermark ---------------------------------------------------------------------------------

    def share(self, ControlPage page not None, Ring replies not None) -> None:
        """Take the watermark from, and count in, the node's control page; `replies` is the owner system's ring."""
        self.page = page
        self.committed = page.committed_pointer(self.index)
        self.counters = page.counter_pointer(self.index, 0)
        memset(self.counters, 0, C_COUNT * sizeof(uint64_t))
        self.counters[<int>PID_COUNTER] = os.getpid()
        self.replies = replies

    def drop_held(self) -> None:
        """Drop what waits for the watermark: this node is no longer the primary, it must not leave (G7)."""
        cdef an_parked *item
        while self.held_head != NULL:
            item = self.held_head
            self.held_head = item.next
            (<FlowBase>item.flow).held -= 1
            Py_XDECREF(<PyObject *>item.flow)
            if item.out >= 0:
                self.counters[C_HELD_FENCED] += 1
            free(item)
        self.held_tail = NULL
        self.held_count = 0

    def commit_to(self, uint64_t sequence) -> None:
        """Outputs that need `sequence` or less may leave (embedded mode; else the owner system's word in shared memory)."""
        self.committed = &self.committed_own
        self.committed_own = sequence

    def count(self) -> dict:
        """Counter name -> value; ports' own counters as `port.name`."""
        counts = {name: self.counters[i] for i, name in enumerate(COUNTERS)}
        for port in self.ports:
            for name, value in port.counters.items():
                counts[f"{port.name}.{name}"] = value
        return counts

    @property
    def entries(self) -> int:
        """Keys in the flow table."""
        return self.table.used


cdef class _Wakeup:
    """An asyncio callback that drives a waiting handler on."""
    cdef Core core
    cdef FlowBase flow
    cdef object future

    def __init__(self, Core core, FlowBase flow, future):
        self.core, self.flow, self.future = core, flow, future

    def __call__(self, *unused):
        self.core._resumed_by_loop(self.flow, self.future)


cdef class _Canceller:
    cdef Core core
    cdef FlowBase flow

    def __init__(self, Core core, FlowBase flow):
        self.core, self.flow = core, flow

    def __call__(self) -> bool:
        return self.core._cancel_wait(self.flow)


cdef class _Unawaitable:
    """What a handler awaited and nobody can wait for."""
    cdef object what

    def __init__(self, what):
        self.what = what


cdef int _raise_pending() except -1:
    return -1  # with the exception that C code has set


cdef object _take_error():
    try:
        _raise_pending()
    except BaseException as error:
        return error
