cimport cython
from cpython.object cimport PyObject
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from actornet.engine.black_box cimport BlackBox, an_black_box
from actornet.engine.flow_base cimport FlowBase
from actornet.engine.fragments cimport Fragments
from actornet.engine.flows cimport Flows
from actornet.engine.held cimport Held
from actornet.engine.keeps cimport Keeps
from actornet.engine.moves cimport Moves
from actornet.engine.neighbors cimport Neighbors, an_adjacency
from actornet.engine.packet cimport Packet
from actornet.engine.parked cimport an_parked
from actornet.engine.ring cimport AN_CORE_COUNTERS, ControlPage, Ring
from actornet.engine.saving cimport Settling
from actornet.engine.siblings cimport Siblings
from actornet.engine.sightings cimport Sightings
from actornet.engine.types cimport an_entry, an_link, an_packet
from actornet.engine.unsent cimport Unsent
from actornet.engine.verdict cimport Emit, Rewrite
from actornet.engine.wire cimport an_table

cdef extern from "offload.h" nogil:
    enum:
        AN_GENERAL, AN_WHOLE, AN_ACTOR

    uint64_t an_now_ns()
    uint64_t an_steady_ns()
    bint an_offloaded(const an_table *table, const an_entry *e, const an_packet *p)
    struct an_glance:
        pass
    bint an_glance_at "an_glance"(const an_packet *p, an_glance *g)
    uint32_t an_glance_hash(const an_glance *g, uint64_t seed)
    int an_offload(an_table *table, an_packet *p, uint32_t probed, uint64_t now_ns, const an_adjacency *adjacencies)
    int an_offload_glanced(an_table *table, an_packet *p, const an_glance *g, uint32_t probed, uint64_t now_ns,
                           const an_adjacency *adjacencies)
    int an_prefetch_beyond(const an_table *table, uint32_t index, unsigned size)
    void an_prefetch_verdict(const an_table *table, uint32_t index)
    void an_prefetch_fields(const an_table *table, uint32_t index, unsigned start, unsigned end)

cdef extern from "Python.h":
    ctypedef enum PySendResult:
        PYGEN_RETURN = 0
        PYGEN_ERROR = -1
        PYGEN_NEXT = 1
    PySendResult PyIter_Send(PyObject *iterator, PyObject *argument, PyObject **result)

cdef enum:
    BURST = 64     # limits.BURST_PACKETS
    PORTS = 16     # limits.PORTS_MAX
    TX_BATCH = 64
    FETCHED = 1024 # keys; with fewer flows, all that handlers touch is in the caches

cdef enum:  # in the order of flow.FRAGMENT_POLICIES
    FRAGMENTS_DROP
    FRAGMENTS_FORWARD
    FRAGMENTS_REASSEMBLE


@cython.final
cdef class Core:
    cdef object __weakref__
    cdef Flows flows
    cdef Neighbors neighbors
    cdef Held output             # that waits for the watermark
    cdef Moves moves
    cdef readonly Settling settling
    cdef Sightings sightings
    cdef readonly Unsent unsent  # what a backup is told of
    cdef readonly uint64_t now_ns
    cdef uint64_t *counters
    cdef an_packet burst[BURST]
    cdef an_packet *tx[PORTS][TX_BATCH]
    cdef int tx_count[PORTS]
    cdef void *port_objects[PORTS]
    cdef int port_count
    cdef uint64_t routed         # bit per port
    cdef uint8_t macs[PORTS][6]
    cdef uint64_t counters_own[AN_CORE_COUNTERS]
    cdef uint64_t *committed
    cdef uint64_t committed_own
    cdef const uint64_t *lease   # until when packets may leave
    cdef uint64_t lease_own
    cdef an_black_box *box       # which handler runs
    cdef an_black_box *box_own   # its lines are aligned, which an object's memory is not
    cdef BlackBox black_box      # holds the memory of `box`
    cdef Keeps keeps
    cdef bint submitted          # something to the owner system, in this turn
    cdef bint virtual_time
    cdef bint untracked_forward
    cdef bint discovery_forward
    cdef bint sees_icmp_errors   # though the flow is offloaded
    cdef int fragment_policy
    cdef Fragments fragments
    cdef uint8_t tunnels         # bit per enum an_tunnel
    cdef bint evicts             # a full table makes room for new flows
    cdef bint holds              # actors keep packets back
    cdef bint volatile_state     # fields may change in place
    cdef bint connection         # a flow begins with its reply's key bound
    cdef bint fail_open
    cdef uint64_t deadline_ns
    cdef void *waits_first       # suspensions that wait, by deadline
    cdef void *waits_last
    cdef bint open_async, packet_async, close_async, message_async, has_open, has_packet, has_close, has_mirror
    cdef unsigned fields_begin, fields_end  # where an actor has its first fields
    cdef object on_open, on_packet, on_close, on_message, on_mirror
    cdef object message          # what on_message is about to get
    cdef object reply            # who waits for its answer
    cdef object loop
    cdef object task             # asyncio's view of the handler that runs
    cdef object tasks            # that handlers have begun
    cdef dict tasks_open
    cdef Packet view             # and the handler's of its packet
    cdef FlowBase driving        # the flow whose `async def` handler runs
    cdef ControlPage page
    cdef Ring replies            # what the owner system sends; None in embedded mode
    cdef readonly list ports
    cdef list port_names
    cdef readonly object nf
    cdef uint64_t idle_ns_default
    cdef public uint64_t incarnation_next
    cdef uint64_t saves
    cdef list unheard            # asks that failed, and that nobody has awaited yet
    cdef readonly object link
    cdef public object host
    cdef readonly int index
    cdef readonly int cores
    cdef readonly Siblings siblings
    cdef public object on_error
    cdef public object wants_memory  # called when the flow table is about to outgrow what is backed of it
    cdef bint memory_wanted
    cdef bint needs_whole        # packets of the last burst needed more of entries than what offloaded ones do
    cdef readonly uint64_t suspended
    cdef readonly uint64_t on_loop    # suspended handlers that wait for asyncio, not for an owner

    cdef bint enter_task(self) except -1
    cdef int leave_task(self, bint entered) except -1
    cdef int exhale(self) except -1
    cdef an_packet *packet_of(self, FlowBase flow) noexcept
    cdef int parse(self, an_packet *p) except -1
    cdef int process(self, an_packet *p) except -1
    cdef int meet(self, an_packet *p) except -1
    cdef int offloaded(self, an_entry *e, an_packet *p) except -1
    cdef int enter(self, FlowBase flow, an_packet *p, int phase) except -1
    cdef int _mirrored(self, FlowBase flow, an_packet *p) except -1
    cdef int carry_out(self, an_entry *e, an_packet *p) except -1
    cdef int drop(self, an_packet *p, int counter) except -1
    cdef int discard(self, an_packet *p) except -1
    cdef int handle(self, FlowBase flow, an_packet *p, int phase) except -1
    cdef int completed(self, FlowBase flow, an_packet *p, int phase, object verdict) except -1
    cdef int _complete(self, FlowBase flow, an_packet *p, int phase, object verdict) except -1
    cdef int answer_message(self, object value) except -1
    cdef int deliver(self, FlowBase flow, object message, object reply) except -1
    cdef int emit(self, FlowBase flow, an_packet *p, int out) except -1
    cdef int transmit(self, an_packet *p, int out) except -1
    cdef int flush(self) except -1
    cdef int no_route(self, an_packet *p) except -1
    cdef an_parked *park(self, an_packet *p) except NULL
    cdef Packet new_view(self)
    cdef int resolve_out(self, str to, int arriving) except -1
    cdef int port_index(self, str name) except -1

    cdef int _turns(self) except -1
    cdef int _turn(self) except -1
    cdef int _burst(self, int n) except -1
    cdef int _hear(self, bint all) except -1
    cdef int _pass_time(self, uint64_t until_ns) except -1
    cdef an_packet *_set_link(self, an_packet *p, const an_link *link) except NULL
    cdef int _handle_packet(self, FlowBase flow, an_packet *p) except -1
    cdef int _step(self, FlowBase flow, object coroutine, an_packet *p, int phase) except -1
    cdef int _stopped(self, FlowBase flow, object coroutine, PySendResult status, PyObject *result, an_packet *p, int phase) except -1
    cdef int _retire_view(self) except -1
    cdef int _failed(self, FlowBase flow, an_packet *p, int phase) except -1
    cdef int _apply(self, FlowBase flow, an_packet *p, object verdict) except -1
    cdef int _emit_made(self, FlowBase flow, an_packet *p, Emit emit) except -1
    cdef int _rewrite(self, FlowBase flow, an_packet *p, Rewrite verdict) except -1
    cdef bint _is_prepared(self, Rewrite verdict, an_packet *p) noexcept
    cdef int _prepare(self, Rewrite verdict, an_packet *p) except -1
    cdef int _ttl_expired(self, an_packet *p) except -1
    cdef int _flush_port(self, int out) except -1
