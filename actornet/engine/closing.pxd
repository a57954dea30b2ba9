from actornet.engine.core cimport Core
from actornet.engine.flow_base cimport FlowBase


cdef int begin_close(Core core, FlowBase flow, str reason) except -1
cdef int end_close(Core core, FlowBase flow) except -1
