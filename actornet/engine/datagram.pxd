from actornet.engine.core cimport Core
from actornet.engine.flow_base cimport FlowBase
from actornet.engine.parked cimport an_parked
from actornet.engine.types cimport an_packet


cdef extern from "datagram.h" nogil:
    bint an_datagram_fits(const an_packet *p, bint back, unsigned int bytes)
    an_parked *an_datagram_make(const an_packet *p, bint back, const unsigned char *payload, unsigned int bytes)
    void an_datagram_cut(an_packet *q, unsigned int bytes, unsigned int id)


cdef an_parked *datagram(const an_packet *p, bytes payload, bint back) except NULL
cdef an_packet *replaced(Core core, an_packet *p, bytes payload) except NULL
cdef int answer(Core core, FlowBase flow, an_packet *p, bytes payload) except -1
