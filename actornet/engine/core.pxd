from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from actornet.engine.packet cimport Packet
from actornet.engine.port cimport Port
from actornet.engine.ring cimport ControlPage, Ring
from actornet.engine.types cimport an_entry, an_key, an_packet, an_rewrite
from actornet.engine.verdict cimport Rewrite, Verdict
from actornet.engine.wire cimport an_table

cdef extern from "offload.h" nogil:
    enum:
        AN_GENERAL

    struct an_parked:
        an_packet p
        an_parked *next
        void *flow
        uint64_t need
        int out
        uint8_t frame[1]
    struct an_adjacency:
        uint8_t destination[6]
        uint8_t source[6]
        uint8_t resolved
        uint8_t attempts
        uint32_t waiting_count
        an_parked *waiting
        an_parked *waiting_tail

    uint64_t an_now_ns()
    int an_offload(an_table *table, an_packet *p, uint64_t now_ns, const an_adjacency *adjacencies)
    void an_prefetch_actor(const an_table *table, uint32_t index)


cdef class Ask:
    cdef FlowBase flow
    cdef readonly str owner
    cdef readonly str message
    cdef bint done
    cdef bint waited
    cdef object value
    cdef object error
    cdef object future


cdef class Suspension:
    """What a flow needs only while a handler of it waits."""
    cdef object coroutine
    cdef object task
    cdef object waiting_on
    cdef Packet view
    cdef an_parked *packet       # the one whose handler waits; NULL for on_close
    cdef an_parked *head         # the mailbox
    cdef an_parked *tail
    cdef uint32_t length
    cdef list messages           # (message, reply) that came meanwhile
    cdef object reply            # of the on_message that waits
    cdef int phase
    cdef bint on_loop


cdef class FlowBase:
    cdef Core core               # None before open and after close
    cdef Suspension suspension
    cdef uint64_t depends        # outputs wait until this sequence number is committed (G3)
    cdef uint64_t idle_ns
    cdef uint64_t incarnation
    cdef uint32_t first          # entry of the key that the flow was opened with
    cdef uint32_t held           # its items in the core's held queue
    cdef uint32_t asks
    cdef str reason              # why it closes
    cdef bytes saved             # last saved state, kept only where fields may change in place
    cdef uint8_t keys
    cdef uint8_t marks


cdef class Core:
    cdef an_table table
    cdef an_packet burst[64]
    cdef an_packet *tx[16][64]
    cdef int tx_count[16]
    cdef void *port_objects[16]
    cdef int port_count
    cdef uint64_t routed          # bit per port
    cdef uint8_t macs[16][6]
    cdef readonly uint64_t now_ns
    cdef uint64_t seed
    cdef uint64_t *committed
    cdef uint64_t committed_own
    cdef uint64_t *counters
    cdef uint64_t counters_own[64]
    cdef an_parked *held_head
    cdef an_parked *held_tail
    cdef uint32_t held_count
    cdef public uint64_t incarnation_next
    cdef an_adjacency *adjacencies
    cdef uint32_t adjacency_count
    cdef dict adjacency_index
    cdef list adjacency_keys
    cdef set unresolved
    cdef uint64_t tick_ns
    cdef bint open_async, packet_async, close_async, message_async, has_open, has_packet, has_close
    cdef object on_open, on_packet, on_close, on_message
    cdef object message          # what on_message is about to get
    cdef object reply            # who waits for its answer
    cdef list port_names
    cdef readonly list ports
    cdef readonly object nf
    cdef readonly int index
    cdef readonly int cores
    cdef public object link
    cdef public object host
    cdef public object on_error
    cdef public list siblings
    cdef public bint virtual_time
    cdef public Ring replies     # what the owner system sends; None in embedded mode
    cdef bint submitted          # since the last flush
    cdef bint volatile_state
    cdef readonly uint64_t suspended
    cdef readonly uint64_t on_loop    # suspended handlers that wait for asyncio, not for an owner
    cdef ControlPage page
    cdef object loop
    cdef object task
    cdef Packet view
    cdef FlowBase driving
    cdef bint untracked_forward
    cdef uint64_t idle_ns_default

    cdef int process(self, an_packet *p) except -1
    cdef int carry_out(self, an_entry *e, an_packet *p) except -1
    cdef int miss(self, an_packet *p) except -1
    cdef int untracked(self, an_packet *p) except -1
    cdef FlowBase create(self, const an_key *key, uint32_t hash)
    cdef int handle_packet(self, FlowBase flow, an_packet *p) except -1
    cdef int handle(self, FlowBase flow, an_packet *p, int phase) except -1
    cdef int step(self, FlowBase flow, object coroutine, an_packet *p, int phase) except -1
    cdef int suspend(self, FlowBase flow, object coroutine, object waiting_on, an_packet *p, int phase) except -1
    cdef int resume(self, FlowBase flow) except -1
    cdef int resume_now(self, FlowBase flow) except -1
    cdef int completed(self, FlowBase flow, an_packet *p, int phase, object verdict) except -1
    cdef int failed(self, FlowBase flow, an_packet *p, int phase) except -1
    cdef int drain_mailbox(self, FlowBase flow) except -1
    cdef int _answer_message(self, object value) except -1
    cdef int _tell(self, FlowBase actor, object message, object reply) except -1
    cdef int save(self, FlowBase flow) except -1
    cdef int apply(self, FlowBase flow, an_packet *p, object verdict) except -1
    cdef int emit(self, FlowBase flow, an_packet *p, int out) except -1
    cdef int transmit(self, an_packet *p, int out) except -1
    cdef int flush_port(self, int out) except -1
    cdef int flush(self) except -1
    cdef int release(self) except -1
    cdef int hold(self, FlowBase flow, an_packet *p, int out) except -1
    cdef an_parked *park(self, an_packet *p) except NULL
    cdef int drop(self, an_packet *p, int counter) except -1
    cdef int begin_close(self, FlowBase flow, str reason) except -1
    cdef int end_close(self, FlowBase flow) except -1
    cdef int remove_keys(self, FlowBase flow) except -1
    cdef int expire(self) except -1
    cdef int resolve_out(self, str to, int arriving) except -1
    cdef int prepare(self, Rewrite verdict, an_packet *p) except -1
    cdef int adjacency_for(self, int out, const an_key *key, const an_rewrite *rewrite) except -2
    cdef int ethernet(self, FlowBase flow, an_packet *p, int out, uint32_t adjacency) except -1
    cdef object _next_hop_form(self, int out, int adjacency)
    cdef uint32_t _key_of_flow(self, FlowBase flow, object key) except? 0
    cdef int _adjacency(self, int out, str next_hop) except -1
    cdef int _resolved(self, uint32_t index, const uint8_t *mac) except -1
    cdef int _solicit(self, uint32_t adjacency) except -1
    cdef int _tick(self) except -1
    cdef int _learn(self, const an_packet *p) except -1
    cdef int _send(self, int out, bytes frame) except -1
    cdef bint for_host(self, an_packet *p)
    cdef int _turn(self) except -1
    cdef int _turns(self) except -1
    cdef int _hear(self) except -1
    cdef int _exhale(self) except -1
    cdef int _burst(self, int n) except -1
    cdef int _receive(self, FlowBase flow, an_packet *p) except -1
    cdef int _retire_view(self) except -1
    cdef int _resume_soon(self, FlowBase flow) except -1
    cdef int _report(self, FlowBase flow, object error, an_packet *p, int phase) except -1
    cdef int _remove(self, FlowBase flow) except -1
    cdef int _displace(self, uint32_t index) except -1
    cdef Packet _new_view(self)

    cdef int hand_off(self, an_packet *p, int core) except -1
    cdef int answer(self, an_packet *p) except -1
    cdef int _refuse(self, an_packet *p, int type, int code) except -1
    cdef int ttl_expired(self, an_packet *p) except -1
    cdef int set_state(self, FlowBase flow, uint8_t bit, bint on) except -1
    cdef int install(self, FlowBase flow, uint32_t index, Verdict verdict, bint punt) except -1
    cdef object offload_form(self, an_entry *e)
