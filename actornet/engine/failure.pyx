"""What becomes of a handler's failure: its packet goes as `fail` says, its flow closes, and others go on.

Theory of operation. A handler fails that raises, keeps too much (keeps.pyx), or does not return in time; and so has one whose
ask failed when nobody can await that any more. `Core.on_error` is told. A handler that was the end of a process is known by
the core's black box (black_box.h): the process that comes after closes its flow, and shuns the flow's keys.
"""

from cpython.object cimport PyObject
from libc.stdint cimport uint32_t, uint64_t

from actornet.engine.black_box cimport an_shunned, shun, shunned
from actornet.engine.closing cimport begin_close, end_close
from actornet.engine.counters cimport C_FAILED_OPEN, C_FLOW_TOO_LARGE, C_HANDLER_ERROR, C_HANDLER_STALLED
from actornet.engine.flow_base cimport MARK_SAVED, Ask
from actornet.engine.handlers cimport PHASE_CLOSE, PHASE_MESSAGE
from actornet.engine.types cimport AN_NONE, an_key
from actornet.engine.wire cimport an_entry_key, five_tuple

from actornet.engine.handlers import HANDLERS
from actornet.errors import FlowTooLargeError, HandlerStalled, NoRouteError, UsageError
from actornet.limits import UNHEARD_MAX

cdef extern from "Python.h":
    Py_ssize_t Py_REFCNT(PyObject *o)


cdef int report(Core core, FlowBase flow, object error, an_packet *p, int phase) except -1:
    """A handler raised: its packet goes as `fail` says, the flow closes, others go on."""
    if isinstance(error, HandlerStalled):
        core.counters[<int>C_HANDLER_STALLED] += 1
    elif isinstance(error, FlowTooLargeError):
        core.counters[<int>C_FLOW_TOO_LARGE] += 1
    elif isinstance(error, KeyboardInterrupt):  # the user's, not the handler's
        if p != NULL:
            core.drop(p, C_HANDLER_ERROR)
        raise error
    if p != NULL and isinstance(error, NoRouteError):  # that of a stranger's packet is no mistake in the handler
        core.no_route(p)
        return begin_close(core, flow, "no route")
    if p != NULL:
        fail_packet(core, flow, p, C_HANDLER_ERROR)
    else:
        core.counters[<int>C_HANDLER_ERROR] += 1
    if core.on_error is not None:
        core.on_error(flow.flow, HANDLERS[phase], error)
    if phase == PHASE_MESSAGE:
        core.answer_message(error)
    if phase == PHASE_CLOSE:
        return end_close(core, flow)
    return begin_close(core, flow, "handler error")


cdef int fail_packet(Core core, FlowBase flow, an_packet *p, int counter) except -1:
    """The packet whose handler failed: fail-closed, or fail-open where there is a way out without the actor."""
    cdef int out, adjacency
    if not core.fail_open or flow is not None and flow.core == NULL:
        return core.drop(p, counter)
    try:
        out = core.resolve_out(None, p.port)
        adjacency = core.neighbors.adjacency(out, &p.key, NULL, NULL)
    except UsageError:
        return core.drop(p, counter)
    if adjacency < 0:
        return core.no_route(p)
    core.counters[<int>C_FAILED_OPEN] += 1
    if adjacency:
        return core.neighbors.ethernet(flow, p, out, adjacency)
    return core.transmit(p, out) if flow is None else core.emit(flow, p, out)


cdef int tell_unheard(Core core) except -1:
    """Of asks that failed and that nobody can await any more: without this, such an error would leave no trace."""
    cdef list noted = core.unheard
    cdef list kept = []
    cdef Ask ask
    core.unheard = None
    for ask in noted:
        if ask.heard:
            continue
        if Py_REFCNT(<PyObject *>ask) > 2 and len(kept) < UNHEARD_MAX:  # more than the list and this name
            kept.append(ask)
            continue
        core.counters[<int>C_HANDLER_ERROR] += 1
        if core.on_error is not None:
            flow = ask.flow.flow if ask.flow.core != NULL else None
            core.on_error(flow, f"ask {ask.owner}.{ask.message.name}", ask.error)
    if kept:
        core.unheard = kept
    return 0


cdef list close_condemned(Core core):
    """Close the flows whose handler was the end of a process, and shun their keys. (handler, five-tuple) of each."""
    cdef uint64_t i
    cdef an_shunned *each
    closed = []
    for i in range(core.box.shunned_count):
        each = &core.box.shunned[i]
        if each.due:
            phase, each.due = each.due - 1, 0
            closed.append((HANDLERS[phase], five_tuple(&each.key)))
            _close_condemned(core, &each.key, phase)
    core.exhale()
    return closed


cdef int _close_condemned(Core core, const an_key *shunned_key, int phase) except -1:
    cdef an_key key = shunned_key[0]  # the slots may be given to other keys
    cdef uint32_t index = core.flows.find(&key)
    cdef FlowBase flow
    cdef bint entered
    if index != AN_NONE and core.flows.table.entries[index].actor != NULL:
        flow = <FlowBase>core.flows.table.entries[index].actor
    else:
        phase = PHASE_CLOSE
        flow = core.flows.begin(&key)
        if flow is None:
            return 0
        flow.marks |= MARK_SAVED
    index = flow.first
    for _ in range(flow.keys):
        key = an_entry_key(&core.flows.table.entries[index])
        shun(core.box, &key, core.now_ns, 0)
        index = core.flows.table.entries[index].next_key
    flow.reason = "its handler was the end of a core's process"
    if phase == PHASE_CLOSE:
        return end_close(core, flow)
    entered = core.enter_task()
    try:
        return begin_close(core, flow, flow.reason)
    finally:
        core.leave_task(entered)


cdef bint is_shunned(Core core, const an_packet *p) noexcept:
    cdef an_shunned *found
    if core.box.shunned_count == 0:
        return False
    found = shunned(core.box, &p.key, core.now_ns)
    if found != NULL:
        found.seen_ns = core.now_ns
    return found != NULL


cdef int _raise_pending() except -1:
    return -1  # with the exception that C code has set


cdef object take_error():
    """The exception that C code has set."""
    try:
        _raise_pending()
    except BaseException as error:
        return error
