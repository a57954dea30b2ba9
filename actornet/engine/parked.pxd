from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t

from actornet.engine.types cimport an_packet


cdef extern from "parked.h" nogil:
    struct an_parked:
        an_packet p
        an_parked *next
        void *flow
        uint64_t need
        uint64_t since_ns
        uint64_t number
        int32_t out
        uint8_t told

    struct an_queue:
        an_parked *head
        an_parked *tail
        uint32_t length

    an_parked *an_park(an_packet *p)
    void an_queue_push(an_queue *queue, an_parked *item)
    an_parked *an_queue_pop(an_queue *queue)
