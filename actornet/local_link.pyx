"""How a core reaches owners in its own process: by call. What `OwnerLink` is to the rings of a live node."""

from libc.stdint cimport uint64_t

from actornet.engine.asks cimport ask_request, encoded_args
from actornet.engine.core cimport Core
from actornet.engine.flow_base cimport Ask, FlowBase
from actornet.engine.flow_state cimport flow_body
from actornet.journal_base cimport JournalBase

from actornet.log.record import CloseBody

cdef class LocalLink:
    """`ask`, `save` and `close` return the LSN that outputs must wait for; without a log that is 0, and nothing is saved."""

    cdef readonly JournalBase journal
    cdef public Core core
    cdef object now_ns
    cdef bint saves
    cdef uint64_t revocations    # that the core has heard of

    def __init__(self, JournalBase journal not None, now_ns):
        self.journal, self.now_ns = journal, now_ns
        self.saves = journal.log is not None

    def ask(self, FlowBase actor not None, Ask ask not None, tuple args not None):
        cdef FlowBase sender = actor if self.saves else None  # without a log nobody runs again: replies need not be recorded
        cdef bytes request = ask_request(sender, ask.owner, ask.message.name, encoded_args(ask, args))
        cdef bytes reply = self.journal.ask(0, request, self.now_ns())
        self._hear_revocations()
        ask.answer(reply)
        if ask.error is not None:
            self.core.note_unheard(ask)
        return self.journal.replica.lsn if self.saves else 0

    def ask_from_outside(self, str owner not None, str message not None, bytes args not None) -> bytes:
        """The reply to a message that no flow sends, committed (G3)."""
        cdef bytes reply = self.journal.ask(0, ask_request(None, owner, message, args), self.now_ns())
        self._hear_revocations()
        self.flush()
        return reply

    cdef int _hear_revocations(self) except -1:
        cdef uint64_t count = self.journal.replica.moment.revocations
        if count != self.revocations and self.core is not None:
            self.revocations = count
            self.core.revoke(count)
        return 0

    def save(self, FlowBase actor not None):
        if not self.saves:
            return 0
        self.journal.save(0, flow_body(actor), self.now_ns())
        return self.journal.replica.lsn

    def close(self, actor, str reason not None):
        if not self.saves:
            return 0
        self.journal.execute(CloseBody(actor.flow, actor.port_index, actor.incarnation, reason), 0, self.now_ns())
        return self.journal.replica.lsn

    def poll(self, bint all=True):
        """Replies came with the calls."""

    def flush(self):
        if self.journal.commit() and self.saves and self.core is not None:
            self.core.commit_to(self.journal.replica.lsn)
