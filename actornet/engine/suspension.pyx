"""A flow whose handler waits, for an owner's reply or for asyncio; what arrives meanwhile stays in order (G1)."""

import asyncio
from asyncio import tasks as asyncio_tasks

from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport uint32_t
from libc.stdlib cimport free

from actornet.engine.black_box cimport an_black_box_leave
from actornet.engine.core cimport (
    PYGEN_ERROR, PYGEN_NEXT, PYGEN_RETURN, Core, PyIter_Send, PySendResult, an_now_ns, an_offloaded, an_steady_ns,
)
from actornet.engine.counters cimport C_DEADLINE_PASSED, C_HELD_FENCED, C_MAILBOX_FULL, C_SUSPENDED
from actornet.engine.failure cimport report, take_error
from actornet.engine.flow_base cimport MARK_ENDING, Ask
from actornet.engine.handlers cimport PHASE_MESSAGE, PHASE_PACKET
from actornet.engine.parked cimport an_queue_pop, an_queue_push
from actornet.engine.types cimport AN_BUSY, AN_NONE, an_entry

from actornet.engine.task import FlowTask, current_task
from actornet.errors import UsageError
from actornet.limits import MAILBOX_PACKETS_MAX

cdef uint32_t mailbox_max = MAILBOX_PACKETS_MAX


cdef class Suspension:
    """What a flow needs only while a handler of it waits, until its mailbox is empty again.

    As an asyncio callback, it goes on if what is done is what its handler waits for.
    """

    def __cinit__(self):
        self.messages = []

    def __dealloc__(self):
        cdef an_parked *item = self.packet
        while item != NULL:
            free(item)
            item = an_queue_pop(&self.mailbox)

    def __call__(self, waited) -> None:
        self.wake(waited)

    cdef int begin(self, object coroutine, object waiting_on, an_packet *p, int phase) except -1:
        """A handler waits: its packet is parked, and the core's view of it and its asyncio task become its own."""
        cdef Core core = <Core>self.flow.core
        core.suspended += 1
        core.counters[<int>C_SUSPENDED] += 1
        self.coroutine, self.phase = coroutine, phase
        self.revocations, self.repeated = core.flows.revocations, core.flows.outdated
        core.flows.outdated = False
        self.view, core.view = core.view, core.new_view()
        self.packet = core.park(p) if p != NULL else NULL
        self.view.p = &self.packet.p if p != NULL else NULL
        if p != NULL:
            core.unsent.tell(self.flow, self.packet, -1)
        self.reply = core.reply if phase == PHASE_MESSAGE else None
        if core.loop is not None:
            self.task, core.task = core.task, FlowTask(core.loop)
            self.task.suspended(self.cancel)
            if current_task(core.loop) is self.task:
                asyncio_tasks._leave_task(core.loop, self.task)
                asyncio_tasks._enter_task(core.loop, core.task)
        return self._wait(waiting_on)

    cdef int _wait(self, object waiting_on) except -1:
        cdef Core core = <Core>self.flow.core
        self.waiting_on = waiting_on
        self._queue(core)
        if isinstance(waiting_on, Ask) and not (<Ask>waiting_on).done:
            (<Ask>waiting_on).waited = True
            return 0
        self.on_loop = True
        core.on_loop += 1
        if getattr(waiting_on, "_asyncio_future_blocking", None):
            waiting_on._asyncio_future_blocking = False
            waiting_on.add_done_callback(self)
            return 0
        # a bare yield, as asyncio.sleep(0) makes, or a reply that has come meanwhile
        self.unawaitable = waiting_on is not None and not isinstance(waiting_on, Ask)
        if core.loop is None:
            raise UsageError("a handler that awaits asyncio needs a core with an event loop")
        core.loop.call_soon(self, waiting_on)
        return 0

    cdef int _queue(self, Core core) noexcept:
        """Behind the others: all have the same time to wait, so deadlines come in the order in which waits began."""
        self.deadline_ns = an_steady_ns() + core.deadline_ns
        self.waits_before, self.waits_behind = core.waits_last, NULL
        if core.waits_last != NULL:
            (<Suspension>core.waits_last).waits_behind = <void *>self
        else:
            core.waits_first = <void *>self
        core.waits_last = <void *>self
        return 0

    cdef int _unqueue(self, Core core) noexcept:
        if self.waits_before != NULL:
            (<Suspension>self.waits_before).waits_behind = self.waits_behind
        else:
            core.waits_first = self.waits_behind
        if self.waits_behind != NULL:
            (<Suspension>self.waits_behind).waits_before = self.waits_before
        else:
            core.waits_last = self.waits_before
        self.waits_before = self.waits_behind = NULL
        return 0

    cdef int end_wait(self) except -1:
        """The deadline has passed: the handler gets a TimeoutError where it waits."""
        cdef object waited = self.waiting_on
        self.late = TimeoutError(f"no answer within deadline_s = {(<Core>self.flow.core).nf.deadline_s} s")
        if isinstance(waited, Ask):
            (<Ask>waited).done = True  # an answer that comes later finds nobody
        elif hasattr(waited, "remove_done_callback"):
            waited.remove_done_callback(self)
            waited.cancel()
        return self.wake(waited)

    cdef int receive(self, an_packet *p) except -1:
        """A packet for the mailbox."""
        cdef Core core = <Core>self.flow.core
        cdef an_parked *item
        if self.mailbox.length >= mailbox_max:
            return core.drop(p, C_MAILBOX_FULL)
        item = core.park(p)
        an_queue_push(&self.mailbox, item)
        return core.unsent.tell(self.flow, item, -1)

    def cancel(self) -> bool:
        """Throw CancelledError into the handler (a time-out has passed)."""
        if self.view is None or self.waiting_on is None:
            return False
        if isinstance(self.waiting_on, Ask):
            self.waiting_on.fail(asyncio.CancelledError())
            return True
        return self.waiting_on.cancel()

    cdef int wake(self, object waited) except -1:
        """`waited` has come. Drive the handler on within the running turn or, from asyncio, as a turn of its own."""
        cdef Core core
        if self.view is None or self.waiting_on is not waited or self.flow.core == NULL:
            return 0
        core = <Core>self.flow.core
        if core.loop is None or current_task(core.loop) is not None:
            return self._resume()
        if not core.virtual_time:
            core.now_ns = an_now_ns()
        asyncio_tasks._enter_task(core.loop, core.task)
        try:
            self._resume()
            return core.exhale()
        finally:
            asyncio_tasks._leave_task(core.loop, core.task)

    cdef int _resume(self) except -1:
        """Drive the handler on; when it has completed, treat the mailbox."""
        cdef Core core = <Core>self.flow.core
        cdef PyObject *result = NULL
        cdef PySendResult status
        cdef an_packet *p = NULL
        cdef int phase = self.phase
        cdef bint outdated = self.repeated or self.revocations != core.flows.revocations
        core.on_loop -= self.on_loop
        self.on_loop = False
        self._unqueue(core)
        task, outer = self.task, None
        if task is not None:
            outer = current_task(core.loop)
            if outer is not None:
                asyncio_tasks._leave_task(core.loop, outer)
            asyncio_tasks._enter_task(core.loop, task)
        core.driving = self.flow
        core.flows.outdated = outdated
        core.enter(self.flow, &self.packet.p if self.packet != NULL else NULL, phase)
        if self.unawaitable:
            self.coroutine.close()
            status = PYGEN_ERROR
            raised = TypeError(
                f"a handler awaited {self.waiting_on!r}: neither an owner's reply nor an asyncio awaitable")
        elif self.late is not None:
            late, self.late = self.late, None
            raised = None
            try:
                yielded = self.coroutine.throw(late)
                result, status = <PyObject *>yielded, PYGEN_NEXT
                Py_INCREF(yielded)
            except StopIteration as returned:
                yielded = returned.value
                result, status = <PyObject *>yielded, PYGEN_RETURN
                Py_INCREF(yielded)
            except BaseException as error:
                raised, status = error, PYGEN_ERROR
        else:
            status = PyIter_Send(<PyObject *>self.coroutine, <PyObject *>None, &result)
            raised = take_error() if status == PYGEN_ERROR else None
        core.driving = None
        outdated, core.flows.outdated = core.flows.outdated, False
        an_black_box_leave(core.box)
        if task is not None:
            asyncio_tasks._leave_task(core.loop, task)
            if outer is not None:
                asyncio_tasks._enter_task(core.loop, outer)
        outcome = None
        if result != NULL:
            outcome = <object>result
            Py_DECREF(outcome)
        if status == PYGEN_NEXT:
            return self._wait(outcome)
        core.suspended -= 1
        core.reply, self.reply = self.reply, None
        self.view.p = NULL
        self.view = self.coroutine = self.task = self.waiting_on = None
        if self.packet != NULL:
            p = &self.packet.p
            p.entry = core.flows.find(&p.key)
            self.packet = NULL
        if status == PYGEN_ERROR:
            report(core, self.flow, raised, p, phase)
        else:
            core.flows.outdated = outdated
            core.completed(self.flow, p, phase, outcome)
        return drain(self, core)

    cdef int abandon(self) except -1:
        """The flow goes while its packets wait, because the log knows better (G6): nothing of it may leave."""
        cdef Core core = <Core>self.flow.core
        cdef Suspension alive = self  # the flow's reference, which goes below, may be the last
        if self.view is not None:
            core.suspended -= 1
            core.on_loop -= self.on_loop
            self.on_loop = False
            self._unqueue(core)
            self.view.p = NULL
            self.view = self.coroutine = self.task = self.waiting_on = None
        self.flow.suspension = None
        if self.packet != NULL:
            core.drop(&self.packet.p, C_HELD_FENCED)
            self.packet = NULL
        while self.mailbox.head != NULL:
            core.drop(&an_queue_pop(&self.mailbox).p, C_HELD_FENCED)
        for reply in [self.reply] + [reply for _, reply in self.messages]:
            refuse(reply)
        self.reply, self.messages = None, []
        return 0


cdef int end_waits(Core core) except -1:
    """Handlers that have waited for `deadline_s` get a TimeoutError where they wait."""
    cdef Suspension waiting
    cdef uint64_t now = an_steady_ns()
    while core.waits_first != NULL:
        waiting = <Suspension>core.waits_first
        if waiting.deadline_ns > now:
            break
        core.counters[<int>C_DEADLINE_PASSED] += 1
        waiting.end_wait()
    return 0


cdef int drain(Suspension s, Core core) except -1:
    """Treat what came meanwhile, until a handler waits again; nothing while the flow's own end waits for its output."""
    cdef FlowBase flow = s.flow
    cdef an_parked *item
    cdef an_entry *e
    while not _waits(s) and s.mailbox.head != NULL:
        item = an_queue_pop(&s.mailbox)
        item.p.entry = core.flows.find(&item.p.key)
        if flow.core == NULL or item.p.entry == AN_NONE:
            core.process(&item.p)  # the flow closed: a new one may begin
            continue
        e = &core.flows.table.entries[item.p.entry]
        if an_offloaded(&core.flows.table, e, &item.p):
            core.offloaded(e, &item.p)
        else:
            core.handle(flow, &item.p, PHASE_PACKET)
    while not _waits(s) and s.messages:
        message, reply = s.messages.pop(0)
        if flow.core == NULL:
            refuse(reply)
        else:
            core.deliver(flow, message, reply)
    if not _waits(s):
        flow.suspension = None
        core.flows.set_state(flow, AN_BUSY, False)
    return 0


cdef bint _waits(Suspension s) noexcept:
    return s.view is not None or (s.flow.core != NULL and s.flow.marks & MARK_ENDING)


cdef int stop(FlowBase flow) except -1:
    """What arrives from now on waits in the flow's mailbox, though no handler does."""
    if flow.suspension is None:
        flow.suspension = Suspension.__new__(Suspension)
        flow.suspension.flow = flow
        (<Core>flow.core).flows.set_state(flow, AN_BUSY, True)
    return 0


cdef int refuse(object reply, str why="the flow has closed") except -1:
    """Tell who waits for a message's answer that there is nobody to give it."""
    if reply is not None:
        reply(UsageError(why))
    return 0
