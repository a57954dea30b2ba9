from libc.stdint cimport uint32_t, uint64_t

from actornet.engine.flow_base cimport Ask, FlowBase
from actornet.engine.parked cimport an_parked, an_queue
from actornet.engine.types cimport an_packet


cdef class Held:
    cdef void *core              # borrowed: the Core whose output this is
    cdef an_queue queue
    cdef uint32_t packets        # in the queue, besides markers
    cdef list ended              # flows that wait for that to close, and whose last item has just gone
    cdef object waits            # (sequence number, Ask) of handlers that wait for the watermark, in order
    cdef uint64_t released       # packets so far, how long all of them waited, and the longest
    cdef uint64_t waited_ns, waited_ns_max

    cdef int hold(self, FlowBase flow, an_packet *p, int out) except -1
    cdef int release(self) except -1
    cdef int drop(self) except -1
    cdef int end_flows(self) except -1
    cdef bint full(self) noexcept
    cdef Ask wait(self, FlowBase flow)
    cdef bint due(self) except -1
    cdef int tell(self) except -1
    cdef dict times(self, uint64_t now_ns)

    cdef void _count(self, uint64_t waited_ns) noexcept
    cdef int _let_go(self, an_parked *item) except -1
