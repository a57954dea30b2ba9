cdef class Suspension  # before the import: a flow names its suspension

from actornet.engine.flow_base cimport FlowBase
from actornet.engine.packet cimport Packet
from actornet.engine.parked cimport an_parked, an_queue
from actornet.engine.types cimport an_packet


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
    cdef an_queue mailbox
    cdef list messages           # (message, reply) that came meanwhile

    cdef int begin(self, object coroutine, object waiting_on, an_packet *p, int phase) except -1
    cdef int receive(self, an_packet *p) except -1
    cdef int wake(self, object waited) except -1
    cdef int abandon(self) except -1

    cdef int _wait(self, object waiting_on) except -1
    cdef int _resume(self) except -1
