from libc.stdint cimport uint8_t, uint32_t, uint64_t

cdef class FlowBase  # before the imports: they name it

from actornet.engine.core cimport Core
from actornet.engine.suspension cimport Suspension

# FlowBase.marks
cdef enum:
    MARK_DIRTY = 0x01     # replicated state changed since it was last saved
    MARK_CLOSING = 0x02   # close when the handler has completed
    MARK_SAVED = 0x04     # the log knows this flow
    MARK_LEAVING = 0x08   # for another core; its packets wait
    MARK_ENDING = 0x10    # closes once nothing of it is held; its packets wait
    MARK_ON_CLOSE = 0x20  # `on_close` runs
    MARK_ASKED = 0x40     # since it was last saved, or perhaps before it was restored
    MARK_SETTLING = 0x80  # to be saved, as it has asked


cdef class Ask:
    cdef FlowBase flow
    cdef readonly str owner
    cdef readonly object message # `actornet.owner.Message`
    cdef bint done
    cdef bint waited             # by a handler that the core drives
    cdef bint heard              # its error, by whoever awaited it
    cdef object value
    cdef readonly object error
    cdef object future           # of the asyncio task that waits

    cdef object _next(self)
    cpdef int answer(self, bytes reply) except -1
    cdef int _outdate(self) except -1
    cdef int _finish(self, object value, object error) except -1


cdef class FlowBase:
    cdef void *core              # borrowed: the Core whose table holds this flow; NULL before open and after close
    cdef Suspension suspension
    cdef uint64_t depends        # outputs wait until this sequence number is committed (G3)
    cdef uint64_t idle_ns
    cdef uint64_t incarnation
    cdef uint32_t first          # entry of the key that the flow was opened with
    cdef uint32_t held           # its items in the core's queue behind the watermark
    cdef uint32_t asks
    cdef uint32_t began          # how many of them when the handler that runs began
    cdef str reason              # why it closes
    cdef bytes saved             # last saved state, kept only where fields may change in place
    cdef uint8_t keys
    cdef uint8_t marks

    cdef uint32_t _index_of(self, Core core, flow, str port, str what) except? 0xffffffff


cdef Core core_of(FlowBase flow)
