from actornet.engine.types cimport an_packet


cdef class Port:
    cdef readonly str name
    cdef public int index
    cdef public bytes mac
    cdef public object interface     # ipaddress.IPv4Interface/IPv6Interface, or None: a transparent port
    cdef public object gateway       # ipaddress address, or None
    cdef public dict counters        # name of the drop or error -> count

    cdef int rx(self, an_packet *packets, int limit) except -1
    cdef int tx(self, an_packet **packets, int count) except -1
