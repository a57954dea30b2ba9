from actornet.engine.types cimport an_packet
from actornet.engine.wire cimport an_table


cdef class Packet:
    cdef an_packet *p            # NULL once the handler is done with it
    cdef list port_names
    cdef an_table *table         # borrowed: the core's, for the entry that the packet has found

    cdef an_packet *live(self) except NULL
    cdef int direction_index(self) except -1
