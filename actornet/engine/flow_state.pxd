from actornet.engine.flow_base cimport FlowBase

cpdef bytes flow_body(FlowBase flow)
