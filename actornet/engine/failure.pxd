from actornet.engine.core cimport Core
from actornet.engine.flow_base cimport FlowBase
from actornet.engine.types cimport an_packet


cdef int report(Core core, FlowBase flow, object error, an_packet *p, int phase) except -1
cdef int fail_packet(Core core, FlowBase flow, an_packet *p, int counter) except -1
cdef int tell_unheard(Core core) except -1
cdef list close_condemned(Core core)
cdef bint is_shunned(Core core, const an_packet *p) noexcept
cdef object take_error()
