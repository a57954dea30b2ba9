"""Flows whose handlers have asked owners and left nothing to save: what they asked is settled by their record all the same.

Theory of operation. As long as a flow's record does not cover an ask, the flow's next handler is given its reply after a takeover, as
the one that asked might not have ended (G5). Where a handler changes no field, nothing would ever say that it has. So
the flow is saved a moment later: no output waits for that, and a flow that asks with each packet is saved once in a while.
"""

from libc.stdint cimport uint64_t

from actornet.engine.core cimport Core
from actornet.engine.flow_base cimport MARK_ASKED, MARK_SETTLING

from actornet.limits import SETTLE_FLOWS_PER_TURN, SETTLE_MS

cdef int flows_per_turn = SETTLE_FLOWS_PER_TURN


cdef class Settling:
    """A flow waits for `wait_ns` at most twice, in the core's time, and for the core to wake."""

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
                core.save_anew(flow)
                most -= 1
        return 0
