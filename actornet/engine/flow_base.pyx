"""What a flow is to its core: its keys, its marks, its owner messages."""

import asyncio

from msgspec import ValidationError

from cpython.object cimport PyObject, PyObject_GenericSetAttr
from cpython.ref cimport Py_INCREF

from actornet.engine.core cimport PYGEN_ERROR, PYGEN_NEXT, PYGEN_RETURN, Core, PySendResult
from actornet.engine.counters cimport C_ASKS, C_FLOW_TABLE_FULL, C_STREAM_GAPS
from actornet.engine.types cimport AN_NONE, an_entry, an_key, an_terms
from actornet.engine.flows cimport make_terms
from actornet.engine.verdict cimport Verdict
from actornet.engine.wire cimport an_entry_has, an_entry_key, an_timer_arm, five_tuple, key_of

from actornet.engine.replies import REPEATED as GIVEN_AGAIN
from actornet.engine.terms import Meter, Mirror
from actornet.errors import OwnerError, UsageError
from actornet.limits import ASKS_OPEN_PER_FLOW_MAX, KEYS_PER_FLOW_MAX

cdef extern from "Python.h":
    ctypedef PySendResult (*sendfunc)(PyObject *self, PyObject *value, PyObject **result) except PYGEN_ERROR
    ctypedef struct PyAsyncMethods:
        sendfunc am_send
    ctypedef struct PyTypeObject:
        PyAsyncMethods *tp_as_async

cdef int REPEATED = GIVEN_AGAIN
cdef int keys_max = KEYS_PER_FLOW_MAX
cdef uint32_t asks_per_save = ASKS_OPEN_PER_FLOW_MAX // 2


cdef class Ask:
    """An owner message on its way; await it for the reply, or don't, if none is needed: an error is then told as a handler's is.

    Raises OwnerError, the same text on primary, backup and replay, when the owner's handler raised.
    """

    def __await__(self):
        return self

    def __iter__(self):
        return self

    def __next__(self):
        waited = self._next()
        if self.done:
            raise StopIteration(waited)
        return waited

    cdef object _next(self):
        """The reply's value if it is there, else what to wait for. Raises what the owner's handler raised."""
        if self.done:
            if self.error is not None:
                self.heard = True
                raise self.error
            return self.value
        if self.flow.core != NULL and (<Core>self.flow.core).driving is self.flow:
            return self
        # Awaited inside a real asyncio task (gather, wait_for): be a future there.
        self.future = asyncio.get_running_loop().create_future()
        self.future._asyncio_future_blocking = True
        return self.future

    cpdef int answer(self, bytes reply) except -1:
        """The owner's reply has come."""
        cdef int kind
        try:
            kind, value = <tuple>self.message.decode_reply(reply)
            if kind == REPEATED:
                self._outdate()
        except ValidationError:  # an error, or no value of the hinted type
            try:
                value = self.message.reply_value(reply)
            except OwnerError as error:
                return self._finish(None, error)
        return self._finish(value, None)

    cdef int _outdate(self) except -1:
        """The handler decides upon what may be older than owners' last word."""
        cdef Core core
        if self.flow.suspension is not None:
            self.flow.suspension.repeated = True
        if self.flow.core != NULL:
            core = <Core>self.flow.core
            core.flows.outdated = core.flows.outdated or core.driving is self.flow  # the owner runs in this process
        return 0

    def fail(self, error: BaseException) -> None:
        """There will be no reply: the waiting handler gets `error`."""
        self._finish(None, error)

    cdef int _finish(self, object value, object error) except -1:
        if self.done:
            return 0
        self.done = True
        self.value = value
        self.error = error
        if self.future is not None:
            if not self.future.done():
                self.future.set_result(None)
        elif self.waited and self.flow.suspension is not None:
            self.flow.suspension.wake(self)
        return 0


cdef PySendResult send_to_ask(PyObject *self, PyObject *value, PyObject **result) except PYGEN_ERROR:
    """`__next__` without a StopIteration around the value, which takes 0.2 us to make and to catch (PEP 380, PyIter_Send)."""
    cdef Ask ask = <Ask>self
    result[0] = NULL
    waited = ask._next()
    Py_INCREF(waited)
    result[0] = <PyObject *>waited
    return PYGEN_RETURN if ask.done else PYGEN_NEXT


(<PyTypeObject *>Ask).tp_as_async.am_send = send_to_ask


cdef class FlowBase:
    """The compiled base of `FlowActor`: one connection's place in its core."""

    def __setattr__(self, name, value):
        PyObject_GenericSetAttr(self, name, value)
        if (<str>name)[0] != u"_":
            self.marks |= MARK_DIRTY

    @property
    def flow(self):
        """FiveTuple that the flow was opened with."""
        cdef Core core = core_of(self)
        cdef an_key key = an_entry_key(&core.flows.table.entries[self.first])
        return five_tuple(&key)

    @property
    def port(self) -> str:
        """Name of the port at which the flow was opened."""
        cdef Core core = core_of(self)
        return core.port_names[core.flows.table.entries[self.first].port]

    @property
    def port_index(self) -> int:
        cdef Core core = core_of(self)
        return core.flows.table.entries[self.first].port

    @property
    def idle_s(self) -> float:
        """Seconds without a packet on any key after which the flow closes."""
        return self.idle_ns / 1e9

    @idle_s.setter
    def idle_s(self, value):
        cdef Core core
        if not 0 < value < 1e9:
            raise UsageError(f"idle_s must be positive seconds, not {value!r}")
        self.idle_ns = <uint64_t>(value * 1e9)
        if self.core != NULL:
            core = <Core>self.core
            an_timer_arm(&core.flows.table, self.first, core.now_ns + self.idle_ns)

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

    def held_packets(self) -> int:
        """Packets that the actor keeps back, of a class that `holds` some: they are counted as discarded when the flow ends."""
        return 0

    def parts(self) -> list:
        """The actors that share this flow; a chain's are its members."""
        return [self]

    def _total(self, bint packets):
        cdef uint64_t total = 0
        cdef uint32_t i = self.first
        cdef an_entry *e
        for _ in range(self.keys):
            e = &(<Core>self.core).flows.table.entries[i]
            total += e.packets if packets else e.bytes
            i = e.next_key
        return total

    def bind(self, flow, str port=None) -> None:
        """Let packets of `flow` that arrive at `port` come here; None is the port opposite to this flow's first one.

        Raises UsageError if another flow holds the key, if this one holds KEYS_PER_FLOW_MAX, or the table is full.
        """
        cdef Core core = core_of(self)
        cdef an_key key
        cdef uint32_t index
        key_of(flow, core.resolve_out(port, core.flows.table.entries[self.first].port), &key)
        index = core.flows.find(&key)
        if index != AN_NONE and core.flows.table.entries[index].actor != NULL:
            if core.flows.table.entries[index].actor != <void *>self:
                raise UsageError(f"bind: {flow} at {core.port_names[key.port]} belongs to another flow")
            return
        if self.keys >= keys_max:
            raise UsageError(f"bind: {self.flow} holds {self.keys} keys, the most a flow may have")
        if not core.flows.add_key(self, &key, index):
            core.counters[<int>C_FLOW_TABLE_FULL] += 1
            raise UsageError("bind: the flow table is full; raise flows_max")
        self.marks |= MARK_DIRTY

    def offload(
        self, Verdict verdict not None, flow=None, str port=None, *,
        idle_s=None, hard_s=None, meter=None, mirror=None, bint punt_tcp=True,
    ) -> None:
        """Let the core carry out `verdict` for this key's packets without the actor, from the watermark on (G3).

        `flow` and `port` name a bound key; without them it is the key that the flow was opened with. The flow closes
        when none of its keys has had a packet for `idle_s`; the offload alone ends `hard_s` seconds from now. What
        exceeds the `Meter` is dropped; what the `Mirror` says, `on_mirror` sees before it leaves. TCP packets with SYN,
        FIN or RST still come to `on_packet` unless `punt_tcp` is False. Raises UsageError for an unbound key, and for
        what the core cannot carry out.
        """
        cdef Core core = core_of(self)
        cdef an_terms terms
        cdef bint asked = hard_s is not None or meter is not None or mirror is not None
        cdef uint32_t index = self._index_of(core, flow, port, "offload")
        if asked:
            if hard_s is not None and not 0 < hard_s < 1e9:
                raise UsageError(f"offload: hard_s must be positive seconds, not {hard_s!r}")
            if mirror is not None and not core.has_mirror:
                raise UsageError(f"offload: a mirror needs {core.nf.__name__}.on_mirror")
            if meter is not None and not isinstance(meter, Meter) or mirror is not None and not isinstance(mirror, Mirror):
                raise UsageError("offload: meter is a Meter, mirror a Mirror")
            make_terms(&terms, core.now_ns + <uint64_t>(hard_s * 1e9) if hard_s is not None else 0, meter, mirror)
        core.flows.install(index, verdict, punt_tcp, &terms if asked else NULL)
        if idle_s is not None:
            self.idle_s = idle_s
        self.marks |= MARK_DIRTY

    def offloaded(self, flow=None, str port=None) -> bool:
        """Whether the key that `flow` and `port` name (see `counted`) is offloaded: False before `offload`, and once it was
        withdrawn, its `hard_s` have passed, or an owner has revoked all offloads. UsageError if unbound."""
        cdef Core core = core_of(self)
        return core.flows.stands(&core.flows.table.entries[self._index_of(core, flow, port, "offloaded")])

    def withdraw(self) -> None:
        """Cancel the offload of all keys: packets come to the actor again."""
        cdef Core core = core_of(self)
        cdef uint32_t i = self.first
        for _ in range(self.keys):
            core.flows.withdraw(&core.flows.table.entries[i])
            i = core.flows.table.entries[i].next_key
        self.marks |= MARK_DIRTY

    def counted(self, flow=None, str port=None):
        """Packets and bytes of one key so far, offloaded ones included: of the key that the flow was opened with, or of
        the bound one that `flow` and `port` name. They count from when this core got the flow. UsageError if unbound."""
        cdef Core core = core_of(self)
        cdef an_entry *e = &core.flows.table.entries[self._index_of(core, flow, port, "counted")]
        return e.packets, e.bytes

    cdef uint32_t _index_of(self, Core core, flow, str port, str what) except? 0xffffffff:
        cdef an_key key
        cdef uint32_t index = self.first
        if flow is None:
            return index
        key_of(flow, core.resolve_out(port, 0) if port is not None else 0, &key)
        for _ in range(self.keys):
            if port is None:
                key.port = core.flows.table.entries[index].port
            if an_entry_has(&core.flows.table.entries[index], &key):
                return index
            index = core.flows.table.entries[index].next_key
        raise UsageError(f"{what}: {flow} is not bound to this flow; call bind first")

    def close(self) -> None:
        """Close the flow once the running handler has completed; `on_close` runs."""
        self.marks |= MARK_CLOSING

    def _revocations(self) -> int:
        cdef Core core = core_of(self)
        return core.flows.revocations - core.flows.outdated

    def _port_names(self) -> list:
        return core_of(self).port_names

    def _now_ns(self) -> int:
        return core_of(self).now_ns

    def _ask(self, reference, message, tuple args):
        """Send an owner message; called by the proxies that `Owner.named` makes."""
        cdef Core core = core_of(self)
        cdef Ask ask = Ask.__new__(Ask)
        if core.link is None:
            raise UsageError(f"owner {reference.name!r} is not running: this core has no owner system")
        ask.flow = self
        ask.owner = reference.name
        ask.message = message
        self.asks += 1
        if self.asks % asks_per_save == 0:
            self.marks |= MARK_DIRTY  # a saved flow covers its asks: their recorded replies are bounded
        core.counters[<int>C_ASKS] += 1
        core.submitted = True
        self.depends = max(self.depends, core.link.ask(self, ask, args))
        self.marks |= MARK_ASKED
        return ask

    def committed(self):
        """Await this before you call the outside world with what owners have told: a packet waits for that by itself, a call
        does not. The handler goes on when what this flow has asked for is as safe as the deployment wants it (G3); when that
        takes longer than `deadline_s`, with a TimeoutError. A flow that runs again after a takeover calls again."""
        cdef Core core = core_of(self)
        if core.submitted:
            core.submitted = False
            core.link.flush()
        return core.output.wait(self)

    def _note_gap(self) -> None:
        """Count bytes of a stream that were given up."""
        cdef Core core = core_of(self)
        core.counters[<int>C_STREAM_GAPS] += 1

    def _opposite_port(self, int port) -> int:
        cdef Core core = core_of(self)
        return core.resolve_out(None, port)

    def _is_dirty(self) -> bool:
        return self.marks & MARK_DIRTY != 0

    def _set_dirty(self, bint dirty) -> None:
        self.marks = self.marks | MARK_DIRTY if dirty else self.marks & ~MARK_DIRTY

    def _opposite(self, str port) -> str:
        """Name of the port opposite to the one of this name."""
        cdef Core core = core_of(self)
        return core.port_names[core.resolve_out(None, core.port_index(port))]

    def _bound(self) -> list:
        """The keys, each with its port's name."""
        cdef Core core = core_of(self)
        cdef uint32_t i = self.first
        cdef an_entry *e
        cdef an_key key
        bound = []
        for _ in range(self.keys):
            e = &core.flows.table.entries[i]
            key = an_entry_key(e)
            bound.append((five_tuple(&key), core.port_names[e.port]))
            i = e.next_key
        return bound


cdef Core core_of(FlowBase flow):
    if flow.core == NULL:
        raise RuntimeError("this flow is closed")
    return <Core>flow.core
