"""When a flow's record is logged: as its handler ends, if that has changed something, or a moment later.

Theory of operation. As long as a flow's record does not cover an ask, the flow's next handler is given its reply after a takeover, as
the one that asked might not have ended (G5). Where a handler changes no field, nothing would ever say that it has. So
the flow is saved a moment later (`Settling`): no output waits for that, and a flow that asks with each packet is saved once
in a while.
"""

from libc.stdint cimport uint64_t

from actornet.engine.core cimport Core
from actornet.engine.flow_base cimport (
    MARK_ASKED, MARK_CLOSING, MARK_DIRTY, MARK_ENDING, MARK_LEAVING, MARK_SAVED, MARK_SETTLING,
)
from actornet.engine.ring cimport an_word_load

from actornet.errors import StateError
from actornet.limits import FIELDS_CHECKED_EVERY, FIELDS_CHECKED_FIRST, SETTLE_FLOWS_PER_TURN, SETTLE_MS

cdef uint64_t fields_checked_first = FIELDS_CHECKED_FIRST, fields_checked_every = FIELDS_CHECKED_EVERY
cdef int flows_per_turn = SETTLE_FLOWS_PER_TURN


cdef int save(Core core, FlowBase flow) except -1:
    """Log what changed; what the flow sends from here on waits for it (G3)."""
    cdef bint behind = False
    if core.link is None:
        return 0
    if core.volatile_state and not flow.marks & MARK_DIRTY and flow.saved != flow.saved_state():
        flow.marks |= MARK_DIRTY  # a list or dict among the fields was changed in place
    if flow.marks & MARK_DIRTY:
        flow.depends = max(flow.depends, _log(core, flow))
        # An earlier flow of the same key may have left packets in the queue: stay behind them (G1).
        behind = core.output.queue.head != NULL
    if not flow.held and (behind or flow.depends > an_word_load(core.committed)):
        core.output.hold(flow, NULL, -1)
    return 0


cdef int save_anew(Core core, FlowBase flow, bint waits=True) except -1:
    """Log a flow of which the core knows more than its record says; not one whose handler waits, and will have it logged.

    Unless `waits`, output does not wait for that, if it is sure that no field has changed.
    """
    cdef int marks = flow.marks & (MARK_SAVED | MARK_CLOSING | MARK_LEAVING | MARK_ENDING | MARK_DIRTY)
    if flow.core == NULL or flow.suspension is not None or marks != MARK_SAVED:
        return 0
    try:
        if waits or core.volatile_state:
            flow.marks |= MARK_DIRTY
            return save(core, flow)
        _log(core, flow)
    except (TypeError, ValueError, OverflowError, RecursionError, StateError):
        flow.marks &= ~MARK_DIRTY  # a field is not of its type: that is for its handler to hear, when that next changes one
    return 0


cdef uint64_t _log(Core core, FlowBase flow) except? 0:
    """Log the flow as it is; returns the sequence number that the commit word must reach before that is committed."""
    cdef uint64_t sequence
    core.saves += 1
    if core.saves <= fields_checked_first or core.saves % fields_checked_every == 0:
        flow.check_fields()
    if core.volatile_state:
        flow.saved = flow.saved_state()
    core.submitted = True
    sequence = core.link.save(flow)
    flow.marks = (flow.marks & ~(MARK_DIRTY | MARK_ASKED)) | MARK_SAVED
    return sequence


cdef class Settling:
    """A flow waits for `wait_ns` at most, in the core's time, and then until the core wakes. Each is there once."""

    def __cinit__(self):
        self.asked, self.due = [], []
        self.wait_ns = SETTLE_MS * 1_000_000

    cdef int note(self, FlowBase flow) except -1:
        """A handler of the flow that has asked is done, and the flow was not saved."""
        if not flow.marks & MARK_SETTLING:
            flow.marks |= MARK_SETTLING
            if not self.asked:
                self.since_ns = (<Core>self.core).now_ns
            self.asked.append(flow)
        return 0

    cdef int turn(self) except -1:
        """Save those that are due; of many a few, so that packets do not wait for them."""
        if not self.due:
            if (<Core>self.core).now_ns - self.since_ns < self.wait_ns:
                return 0
            self.due, self.asked = self.asked, self.due
        return self._save(flows_per_turn)

    cpdef int end(self) except -1:
        """Save all: no handler will run."""
        self._save(-1)
        self.due, self.asked = self.asked, self.due
        return self._save(-1)

    cdef int _save(self, int most) except -1:
        cdef Core core = <Core>self.core
        cdef FlowBase flow
        while self.due and most != 0:
            flow = <FlowBase>self.due.pop()
            flow.marks &= ~MARK_SETTLING
            if flow.core == NULL or not flow.marks & MARK_ASKED:
                continue
            if flow.suspension is not None:
                self.note(flow)  # a handler waits that need not have asked
            else:
                save_anew(core, flow, waits=False)
                most -= 1
        return 0
