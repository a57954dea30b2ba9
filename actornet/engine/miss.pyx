"""Packets that no flow of this core has: of a new flow, of another core, for the node itself, or of no flow at all."""

from actornet.engine.core cimport FRAGMENTS_FORWARD, FRAGMENTS_REASSEMBLE
from actornet.engine.counters cimport (
    C_FLOW_TABLE_FULL, C_FRAGMENT, C_HANDLED, C_HANDOFF_STALE, C_HELD_FULL, C_ICMP_ERROR_UNMATCHED, C_MALFORMED, C_NO_ROUTE,
    C_SHUNNED,
)
from actornet.engine.failure cimport fail_packet, is_shunned
from actornet.engine.flow_base cimport MARK_DIRTY, FlowBase
from actornet.engine.handlers cimport PHASE_OPEN, PHASE_PACKET
from actornet.engine.types cimport AN_FRAGMENT, AN_HANDED, AN_ICMP_ERROR, AN_MALFORMED, AN_NOT_IP, AN_UNTRACKED
from actornet.engine.wire cimport an_is_discovery


cdef int miss(Core core, an_packet *p) except -1:
    """The first packet of a flow, as far as this core knows."""
    cdef FlowBase flow
    cdef int home
    if p.flags & AN_ICMP_ERROR:  # its outer addresses brought it to this core, not those of the flow
        home = core.siblings.home(&p.key) if core.cores > 1 else core.index
        if home != core.index and not p.flags & AN_HANDED:
            return core.siblings.hand_off(p, home)
        return core.drop(p, C_ICMP_ERROR_UNMATCHED)
    if core.neighbors.is_for_host(p):
        return core.neighbors.answer(p)
    if core.routed >> p.port & 1 and not core.neighbors.may_forward(p):
        return core.drop(p, C_NO_ROUTE)
    if core.cores > 1:
        home = core.siblings.home(&p.key)
        if home != core.index:
            return core.drop(p, C_HANDOFF_STALE) if p.flags & AN_HANDED else core.siblings.hand_off(p, home)
    if core.box.shunned_count and is_shunned(core, p):
        return fail_packet(core, None, p, C_SHUNNED)
    if core.output.full():  # no new flow's packet could leave: its handlers are not to decide, and log, in vain
        return core.drop(p, C_HELD_FULL)
    if core.evicts:
        core.flows.make_room()
    flow = core.flows.begin(&p.key)
    if flow is None:
        return core.drop(p, C_FLOW_TABLE_FULL)
    p.entry = flow.first
    core.flows.table.entries[p.entry].packets = 1
    core.flows.table.entries[p.entry].bytes = p.length
    flow.marks |= MARK_DIRTY
    if core.host is not None and core.routed >> p.port & 1:
        core.neighbors.learn(p)
    core.sightings.look(p)
    return core.handle(flow, p, PHASE_OPEN if core.has_open else PHASE_PACKET)


cdef int untracked(Core core, an_packet *p) except -1:
    """Not a packet of a flow: the NF's `untracked` policy, but what a routed port itself is asked is answered."""
    cdef bint routed = core.routed >> p.port & 1
    cdef int i
    if p.reason == AN_NOT_IP and routed and core.host is not None:
        if core.cores > 1 and not p.flags & AN_HANDED:
            for i in range(core.cores):  # every core has its own neighbours
                if i != core.index:
                    core.siblings.push(p, i)
        return core.neighbors.answer(p)
    if p.reason == AN_UNTRACKED and core.neighbors.is_for_host(p):
        return core.neighbors.answer(p)
    if p.reason == AN_FRAGMENT:
        return _fragment(core, p)
    if not routed and (
            core.untracked_forward and p.reason in (AN_NOT_IP, AN_UNTRACKED)
            or core.discovery_forward and an_is_discovery(p)):
        core.counters[<int>C_HANDLED] += 1
        core.sightings.look(p)
        return core.transmit(p, core.resolve_out(None, p.port))
    return core.drop(p, C_MALFORMED + p.reason - AN_MALFORMED)  # the counters are in the order of the reasons


cdef int _fragment(Core core, an_packet *p) except -1:
    """The NF's `fragments` policy. All of a datagram meet on the core that their addresses hash to."""
    cdef int home
    if core.fragment_policy == FRAGMENTS_REASSEMBLE and not p.tunnel:
        if core.cores > 1 and not p.flags & AN_HANDED:
            home = core.siblings.home(&p.key)
            if home != core.index:
                return core.siblings.hand_off(p, home)
        return core.fragments.receive(p)
    if core.fragment_policy == FRAGMENTS_FORWARD and not core.routed >> p.port & 1:
        core.counters[<int>C_HANDLED] += 1
        return core.transmit(p, core.resolve_out(None, p.port))
    return core.drop(p, C_FRAGMENT)
