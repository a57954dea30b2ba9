"""A flow's end: `on_close` first, then the flow goes from the table, and the log is told."""

from actornet.engine.core cimport Core
from actornet.engine.counters cimport C_FLOWS_CLOSED
from actornet.engine.flow_base cimport MARK_CLOSING, MARK_ENDING, MARK_LEAVING, MARK_ON_CLOSE, MARK_SAVED
from actornet.engine.handlers cimport PHASE_CLOSE
from actornet.engine.suspension cimport stop


cdef int begin_close(Core core, FlowBase flow, str reason) except -1:
    """Let `on_close` run, and then take the flow from the table.

    A next flow of its keys is behind what this one has in this core's queue, but on another core could overtake that (G1).
    So where one of the keys has its home there, the flow keeps them until its output has left, and what it has from
    owners as well: whoever takes over meanwhile has an open flow with all that belongs to it (G5).
    """
    if flow.core == NULL or flow.marks & (MARK_LEAVING | MARK_ENDING):
        return 0
    flow.marks |= MARK_CLOSING
    if flow.reason is None:
        flow.reason = reason
    if flow.suspension is not None and flow.suspension.view is not None:
        return 0  # when its handler has completed
    if flow.held and not core.flows.at_home(flow):
        flow.marks |= MARK_ENDING
        return stop(flow)
    if core.has_close:
        flow.marks |= MARK_ON_CLOSE
        return core.handle(flow, NULL, PHASE_CLOSE)
    return end_close(core, flow)


cdef int end_close(Core core, FlowBase flow) except -1:
    """`on_close`, if there is one, has completed."""
    if flow.core == NULL:
        return 0
    if core.link is not None and (flow.marks & MARK_SAVED or flow.asks):
        core.submitted = True
        core.link.close(flow, flow.reason or "closed")
    core.flows.remove(flow)
    if flow.reason != "refused":
        core.counters[<int>C_FLOWS_CLOSED] += 1
    return 0
