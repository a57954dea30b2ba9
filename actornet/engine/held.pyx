"""Output that waits for the watermark (G3): one queue per core, ordered by the sequence number that each item needs."""

from collections import deque

from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF, Py_XDECREF
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memset

from actornet.engine.closing cimport begin_close
from actornet.engine.core cimport Core
from actornet.engine.counters cimport C_HELD, C_HELD_FENCED, C_HELD_FULL
from actornet.engine.flow_base cimport MARK_ENDING
from actornet.engine.parked cimport an_queue_pop, an_queue_push
from actornet.engine.ring cimport an_word_load
from actornet.engine.suspension cimport Suspension, drain
from actornet.engine.types cimport AN_HELD

from actornet.errors import UsageError
from actornet.limits import HELD_PACKETS_MAX

cdef uint32_t packets_max = HELD_PACKETS_MAX


cdef class Held:
    """Packets, and markers: a flow with an item here is one whose offload must join the queue. At most one marker per
    flow waits, so the flow table bounds them."""

    def __cinit__(self):
        self.ended = []
        self.waits = deque()

    def __dealloc__(self):
        cdef an_parked *item
        while (item := an_queue_pop(&self.queue)) != NULL:
            Py_XDECREF(<PyObject *>item.flow)
            free(item)

    cdef int hold(self, FlowBase flow, an_packet *p, int out) except -1:
        """Queue an output, or a marker (`p` NULL); until it has gone the flow's later outputs join."""
        cdef Core core = <Core>self.core
        cdef an_parked *item
        if p != NULL and self.full():
            return core.drop(p, C_HELD_FULL)
        item = core.park(p)
        if self.queue.tail != NULL and self.queue.tail.need > flow.depends:
            flow.depends = self.queue.tail.need  # one queue: what goes later needs no less
        item.need = flow.depends
        item.since_ns = core.now_ns
        item.out = out
        item.flow = <void *>flow
        Py_INCREF(flow)
        if flow.held == 0:
            core.flows.set_state(flow, AN_HELD, True)
        flow.held += 1
        an_queue_push(&self.queue, item)
        if p != NULL:
            self.packets += 1
            core.counters[<int>C_HELD] += 1
            core.unsent.tell(flow, item, out)
        return 0

    cdef bint full(self) noexcept:
        return self.packets >= packets_max

    cdef int release(self) except -1:
        """Let go what the watermark has passed, in order."""
        cdef Core core = <Core>self.core
        cdef an_parked *item
        cdef uint64_t committed = an_word_load(core.committed)
        while self.queue.head != NULL and self.queue.head.need <= committed:
            item = an_queue_pop(&self.queue)
            self._let_go(item)
            if item.out < 0:
                free(item)
            else:
                self.packets -= 1
                self._count(core.now_ns - item.since_ns)
                core.transmit(&item.p, item.out)
        return 0

    cdef void _count(self, uint64_t waited_ns) noexcept:
        self.released += 1
        self.waited_ns += waited_ns
        if waited_ns > self.waited_ns_max:
            self.waited_ns_max = waited_ns

    cdef dict times(self, uint64_t now_ns):
        """How long packets wait: the one in front by now, and those that have left, on average and at most."""
        cdef an_parked *item = self.queue.head
        while item != NULL and item.out < 0:
            item = item.next
        cdef bint waits = item != NULL and item.since_ns < now_ns
        return {
            "oldest_ms": (now_ns - item.since_ns) / 1e6 if waits else 0.0,
            "mean_ms": self.waited_ns / 1e6 / self.released if self.released else 0.0,
            "max_ms": self.waited_ns_max / 1e6,
        }

    cdef int _let_go(self, an_parked *item) except -1:
        """The item has left the queue: if it was its flow's last, the offload need not join any more."""
        cdef Core core = <Core>self.core
        cdef FlowBase flow = <FlowBase>item.flow
        item.flow = NULL
        Py_DECREF(flow)
        flow.held -= 1
        if flow.held or flow.core == NULL:
            return 0
        if flow.marks & MARK_ENDING:
            self.ended.append(flow)
            return 0
        if flow.depends > an_word_load(core.committed):
            return self.hold(flow, NULL, -1)  # it was saved again meanwhile
        return core.flows.set_state(flow, AN_HELD, False)

    cdef int end_flows(self) except -1:
        """All that these flows had sent has left: now they close, and their keys are free on whichever core (G1)."""
        cdef Core core = <Core>self.core
        cdef FlowBase flow
        cdef Suspension waiting
        ended, self.ended = self.ended, []
        for flow in ended:
            waiting = flow.suspension
            if flow.core != NULL:
                flow.marks &= ~MARK_ENDING
                begin_close(core, flow, None)
                drain(waiting, core)
        return 0

    cdef Ask wait(self, FlowBase flow):
        """What a handler awaits that goes on when all that its flow depends on is committed."""
        cdef Core core = <Core>self.core
        cdef Ask ask = Ask.__new__(Ask)
        cdef uint64_t need = flow.depends
        ask.flow = flow
        if need <= an_word_load(core.committed):
            ask.done = True
            return ask
        if len(self.waits) >= packets_max:
            raise UsageError(f"committed: {packets_max} handlers wait for the watermark already")
        if self.waits and self.waits[-1][0] > need:
            need = self.waits[-1][0]
        self.waits.append((need, ask))
        return ask

    cdef bint due(self) except -1:
        """Whether some of them may go on."""
        return len(self.waits) > 0 and <uint64_t>self.waits[0][0] <= an_word_load((<Core>self.core).committed)

    cdef int tell(self) except -1:
        """Let them go on."""
        while self.due():
            _, ask = self.waits.popleft()
            (<Ask>ask)._finish(None, None)
        return 0

    cdef int drop(self) except -1:
        """Drop all packets: they must not leave any more (G7)."""
        cdef Core core = <Core>self.core
        cdef an_queue dropped = self.queue
        cdef an_parked *item
        memset(&self.queue, 0, sizeof(an_queue))
        self.packets = 0
        while (item := an_queue_pop(&dropped)) != NULL:
            self._let_go(item)
            if item.out >= 0:
                core.counters[<int>C_HELD_FENCED] += 1
            free(item)
        return 0
