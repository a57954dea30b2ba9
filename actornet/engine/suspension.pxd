cdef class Suspension  # before the import: a flow names its suspension

from actornet.engine.flow_base cimport FlowBase
from actornet.engine.packet cimport Packet
from actornet.engine.parked cimport an_parked, an_queue
from actornet.engine.types cimport an_packet
from libc.stdint cimport uint64_t

from actornet.engine.core cimport Core


cdef class Suspension:
    cdef FlowBase flow
    cdef object coroutine
    cdef object task
    cdef object waiting_on
    cdef bint unawaitable        # what it waits for is nothing that can be waited for
    cdef bint on_loop            # it waits for asyncio, not for an owner
    cdef Packet view             # None: the handler has completed
    cdef an_parked *packet       # the one whose handler waits; NULL for on_close and on_message
    cdef object reply            # of the on_message that waits
    cdef int phase
    cdef uint64_t revocations    # when the handler began to wait: what it decides on is no newer
    cdef bint repeated           # it was given a reply again that is older than the last revocation, perhaps
    cdef uint64_t deadline_ns    # steady clock; of what it waits for
    cdef void *waits_before      # borrowed: its place among the core's waits, by deadline
    cdef void *waits_behind
    cdef object late             # what to throw into the handler in place of an answer
    cdef an_queue mailbox
    cdef list messages           # (message, reply) that came meanwhile

    cdef int begin(self, object coroutine, object waiting_on, an_packet *p, int phase) except -1
    cdef int receive(self, an_packet *p) except -1
    cdef int wake(self, object waited) except -1
    cdef int abandon(self) except -1
    cdef int end_wait(self) except -1
    cdef int _queue(self, Core core) noexcept
    cdef int _unqueue(self, Core core) noexcept

    cdef int _wait(self, object waiting_on) except -1
    cdef int _resume(self) except -1


cdef int end_waits(Core core) except -1
cdef int drain(Suspension s, Core core) except -1
cdef int stop(FlowBase flow) except -1
cdef int refuse(object reply, str why=*) except -1
