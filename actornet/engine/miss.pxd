from actornet.engine.core cimport Core
from actornet.engine.types cimport an_packet


cdef int miss(Core core, an_packet *p) except -1
cdef int untracked(Core core, an_packet *p) except -1
