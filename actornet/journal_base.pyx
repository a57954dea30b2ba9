"""What a journal does for every ask and every flow that is saved; `journal.py` has all else."""

from libc.stdint cimport uint8_t, uint16_t, uint64_t

from actornet.engine.records cimport sealed
from actornet.replication.replica_base cimport ReplicaBase

from actornet.log.record import Kind

cdef uint8_t ASK = Kind.ASK, FLOW = Kind.FLOW


cdef class JournalBase:
    """A replica and the records that it made and that are not written yet; see `Journal`."""

    cpdef bytes ask(self, uint16_t core, bytes request, uint64_t time_ns):
        """Run an owner's handler, or find its recorded reply (G5); returns the reply. `request`: see `AskRequest`."""
        cdef bytes body, reply
        body, reply = self.replica.execute_ask(request, time_ns)
        if body is not None and self.log is not None:
            self._enqueue_sealed(ASK, core, body)
        return reply

    cpdef int save(self, uint16_t core, bytes body, uint64_t time_ns) except -1:
        """Log that a flow is saved; `body` is an encoded `FlowBody`. RingError if it is none."""
        self.replica.execute_save(body, time_ns)
        return self._enqueue_sealed(FLOW, core, body) if self.log is not None else 0

    cdef int _enqueue_sealed(self, uint8_t kind, uint16_t core, bytes body) except -1:
        cdef ReplicaBase replica = self.replica
        cdef bytes record = sealed(kind, core, replica.epoch, replica.lsn, replica.time_ns, body, &self.chain)
        self._queue.append((replica.lsn, record))
        return 0
