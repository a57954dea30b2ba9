from actornet.engine.types cimport an_packet


cdef class Packet:
    cdef an_packet *p            # NULL once the handler is done with it
    cdef list port_names

    cdef an_packet *live(self) except NULL
