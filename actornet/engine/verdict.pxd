from actornet.engine.types cimport an_key, an_link, an_rewrite
from libc.stdint cimport uint8_t, uint16_t, uint32_t


cdef class Verdict:
    cdef readonly str name
    cdef uint8_t kind


cdef class Forward(Verdict):
    cdef readonly str to


cdef class Rewrite(Forward):
    # What every packet reads comes first, in 80 bytes: memory is slow where flows are many.
    cdef readonly bytes payload      # in place of the datagram's, or None
    cdef an_rewrite rewrite          # fields and values; deltas are right for prepared_for only
    cdef an_key prepared_for
    cdef void *prepared_by           # the core that resolved `to` and the adjacency
    cdef an_link link
    cdef uint8_t addresses[32]       # IPv6: source, destination
    cdef uint8_t version             # 0 while no address is set

    cdef int _set_mac(self, text, uint8_t *mac, int field) except -1
    cdef const uint8_t *ipv6_addresses(self) noexcept


cdef class Made:
    cdef bytes frame
    cdef uint8_t flags
    cdef readonly uint8_t port
    cdef uint8_t vnet[12]
    cdef object time_ns
    cdef uint16_t fragment_bytes              # AN_REASSEMBLED, as in an_packet
    cdef uint32_t fragment_id


cdef class Answer(Verdict):
    cdef readonly bytes payload


cdef class Emit(Verdict):
    cdef readonly list frames
    cdef readonly int counter                 # of the packet that these replace; -1: none


cdef enum:
    VERDICT_DROP = 1
    VERDICT_REJECT
    VERDICT_OFFLOADED
    VERDICT_FORWARD
    VERDICT_REWRITE
    VERDICT_EMIT
    VERDICT_ANSWER


cdef str mac_text(const uint8_t *mac)
