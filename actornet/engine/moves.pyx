"""Flows that leave for a core that has more time for them: without loss, in order (G1), with what they are (G6).

Theory of operation. The owner system says how much of its packets a core is to give away, and to which core. The core looks
at the packets that come, chooses flows by that, and for each, as soon as it is at rest (no handler waits, all it has logged
is committed, nothing of it is held), sends a Leaving; from then on the flow's packets wait in its mailbox. The owner system puts
the flow, as the log has it, onto the other core, and then tells this one to pass its keys on (`Flows.redirect`): the flow
goes from the table, the mailbox and all later packets go through the hand-off's ring. As the other core hears the owner
system before it takes packets from that ring, the flow is there before them.

Only a flow goes whose keys all have their home here. So its packets take one way, and no second one could overtake them;
which is why a flow moves once.
"""

from collections import Counter

from libc.stdint cimport uint32_t
from libc.stdlib cimport free, malloc

from actornet.engine.core cimport Core
from actornet.engine.counters cimport C_FLOWS_MOVED
from actornet.engine.flow_base cimport MARK_ASKED, MARK_CLOSING, MARK_DIRTY, MARK_LEAVING, MARK_SAVED
from actornet.engine.parked cimport an_queue_pop
from actornet.engine.ring cimport an_word_load
from actornet.engine.saving cimport save
from actornet.engine.suspension cimport Suspension, refuse, stop
from actornet.engine.types cimport AN_NONE, an_entry, an_key
from actornet.engine.wire cimport an_entry_key

from actornet.errors import StateError
from actornet.limits import MOVE_FLOWS_MAX, MOVE_TURNS_MAX

cdef int flows_max = MOVE_FLOWS_MAX
cdef int turns_max = MOVE_TURNS_MAX


cdef class Moves:
    """Counts whose packets come, and lets flows go."""

    def __cinit__(self):
        self.sample, self.chosen = [], []

    cdef int look(self, int n, const uint32_t *probed) except -1:
        """Whose are the packets of this burst? By the first guess, which is seldom wrong; it matters little."""
        cdef Core core = <Core>self.core
        cdef an_entry *e
        cdef int i
        for i in range(n):
            if probed[i] != AN_NONE and len(self.sample) < self.packets:
                e = &core.flows.table.entries[probed[i]]
                if e.actor != NULL:
                    self.sample.append(<object>e.actor)
        return 0

    cdef int turn(self) except -1:
        """The bursts of a turn have been treated."""
        if self.packets and not self.chosen and len(self.sample) >= self.packets:
            self._choose()
        if self.chosen:
            self._let_go()
        return 0

    cdef int _choose(self) except -1:
        """The heaviest flows that together have no more than the wanted share."""
        left = self.share * self.packets
        for flow, packets in Counter(self.sample).most_common():
            if packets < 2 or len(self.chosen) == flows_max:
                break
            if packets <= left and self._may_go(flow):
                self.chosen.append(flow)
                left -= packets
        self.sample.clear()
        self.packets = self.turns = 0
        self.due = len(self.chosen) > 0
        return 0

    cdef int _let_go(self) except -1:
        """Of those that are chosen, those that are at rest."""
        cdef Core core = <Core>self.core
        cdef FlowBase flow
        staying = []
        for flow in self.chosen:
            if not self._may_go(flow):
                continue
            if self._rests(flow):
                stop(flow)
                flow.marks |= MARK_LEAVING
                core.link.leaving(flow, self.to)
                core.submitted = True
            else:
                staying.append(flow)
        self.turns += 1
        self.chosen = staying if self.turns < turns_max else []
        self.due = len(self.chosen) > 0
        return 0

    cdef bint _may_go(self, FlowBase flow) except -1:
        """Whether the flow is open and all of its packets come to this core."""
        return flow.core != NULL and not flow.marks & (MARK_CLOSING | MARK_LEAVING) and (<Core>self.core).flows.at_home(flow)

    cdef bint _rests(self, FlowBase flow) except -1:
        """Whether no handler of the flow waits, and all that it has logged and sent is out."""
        cdef Core core = <Core>self.core
        if flow.suspension is not None:
            return False
        if flow.marks & MARK_ASKED:
            flow.marks |= MARK_DIRTY  # it goes on by its record, which is to say how often it has asked
        try:
            save(core, flow)
        except (TypeError, ValueError, OverflowError, RecursionError, StateError):  # a field holds what its type does not allow: a handler's affair
            return False
        return flow.marks & MARK_SAVED and not flow.held and flow.depends <= an_word_load(core.committed)

    cdef int depart(self, FlowBase flow, int to) except -1:
        """Core `to` has the flow: what waits and what comes from now on goes there."""
        cdef Core core = <Core>self.core
        cdef Suspension waiting = flow.suspension
        cdef int count = flow.keys, n
        cdef uint32_t i = flow.first
        cdef an_key *keys = <an_key *>malloc(count * sizeof(an_key))
        if keys == NULL:
            raise MemoryError("a flow's keys")
        try:
            for n in range(count):
                keys[n] = an_entry_key(&core.flows.table.entries[i])
                i = core.flows.table.entries[i].next_key
            flow.suspension = None
            core.flows.remove(flow)
            for n in range(count):
                core.flows.pass_on(&keys[n], to)
        finally:
            free(keys)
        core.counters[<int>C_FLOWS_MOVED] += 1
        while waiting.mailbox.head != NULL:
            core.siblings.hand_off(&an_queue_pop(&waiting.mailbox).p, to)
        for _, reply in waiting.messages:
            refuse(reply, f"the flow has moved to core {to}")
        waiting.flow = None
        return 0
