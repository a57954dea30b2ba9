"""A member's place in its chain's flow, and the products of what members have decided."""

from libc.stdint cimport uint64_t

from actornet.engine.core cimport Core
from actornet.engine.flow_base cimport FlowBase
from actornet.engine.types cimport AN_DECREMENT_TTL
from actornet.engine.verdict cimport VERDICT_REWRITE, Forward, Rewrite, Verdict

from actornet.engine.five_tuple import FiveTuple
from actornet.engine.verdict import DROP, FORWARD, encode_verdict

cdef int ICMP = 1
cdef int ICMPV6 = 58


cdef class Offload:
    """A member's decision about a key: for good, or until a time (Unix ns, 0: none), while owners have revoked so often."""
    cdef readonly Verdict verdict
    cdef readonly bint punt_tcp
    cdef readonly uint64_t until_ns
    cdef readonly uint64_t revocations

    def __init__(self, Verdict verdict not None, bint punt_tcp, uint64_t until_ns, uint64_t revocations):
        self.verdict, self.punt_tcp, self.until_ns, self.revocations = verdict, punt_tcp, until_ns, revocations


cdef class Seat:
    """What a member has in its chain's flow: its keys, of which the first is what it was opened with, and its time-out."""
    cdef readonly FlowBase chain
    cdef public object idle_s
    cdef public dict keys  # (five-tuple, port's name) -> Offload or None

    def __init__(self, FlowBase chain not None, idle_s):
        self.chain, self.idle_s, self.keys = chain, idle_s, {}

    @property
    def first(self):
        for key in self.keys:
            return key
        raise StopIteration

    def standing(self, tuple key not None):
        """The key's offload, if it has one that holds."""
        return self._holding(key, False)

    def deciding(self, tuple key not None):
        """The key's offload, if it says what becomes of the packet whose handler runs: where that decides upon what is outdated,
        the offload is good for this packet alone (see `Flows.decides`)."""
        return self._holding(key, True)

    cdef object _holding(self, tuple key, bint outdated):
        cdef object found = self.keys.get(key)
        cdef Offload offload
        cdef Core core
        if found is None:
            return None
        if self.chain.core == NULL:
            raise RuntimeError("this flow is closed")
        offload, core = found, <Core>self.chain.core
        if offload.revocations != core.flows.revocations and not (
                outdated and core.flows.outdated and offload.revocations + 1 == core.flows.revocations):
            return None
        return offload if not offload.until_ns or core.now_ns < offload.until_ns else None

    def saved_keys(self) -> list:
        """`KeyState` of each key."""
        cdef list keys = []
        cdef Offload offload
        for (flow, port), found in self.keys.items():
            if found is None:
                keys.append((flow, port, False, True, 0, 0))
            else:
                offload = found
                keys.append((
                    flow, port, encode_verdict(offload.verdict), offload.punt_tcp, offload.until_ns, offload.revocations
                ))
        return keys


def composed(list seats not None, flow, str port not None, str opposite not None) -> Offload | None:
    """The product of all members' offloads for packets of a key, `seats` in their order; None if one has none."""
    cdef list rewrites = []
    cdef bint punt_tcp = False
    cdef object at = flow, found
    cdef uint64_t until_ns = 0
    cdef Offload offload
    for seat in seats:
        found = (<Seat>seat).standing((at, port))
        if found is None:
            return None
        offload = found
        punt_tcp |= offload.punt_tcp
        if offload.until_ns and (not until_ns or offload.until_ns < until_ns):
            until_ns = offload.until_ns
        if not isinstance(offload.verdict, Forward):
            return Offload(DROP, punt_tcp, until_ns, 0)
        if (<Forward>offload.verdict).to is not None and (<Forward>offload.verdict).to != opposite:
            return None
        if offload.verdict.kind == VERDICT_REWRITE:
            rewrites.append(offload.verdict)
            at = after(at, <Rewrite>offload.verdict)
    return Offload(product(flow, at, rewrites), punt_tcp, until_ns, 0)


cdef object after(flow, Rewrite rewrite):
    """The five-tuple that a packet of `flow` has when it was rewritten."""
    cdef object source = rewrite.source, destination = rewrite.destination
    cdef object source_port = rewrite.source_port, destination_port = rewrite.destination_port
    cdef int protocol = flow.protocol
    if protocol == ICMP or protocol == ICMPV6:  # both are the identifier
        source_port = destination_port = source_port if source_port is not None else destination_port
    return FiveTuple(
        protocol,
        source if source is not None else flow.source,
        source_port if source_port is not None else flow.source_port,
        destination if destination is not None else flow.destination,
        destination_port if destination_port is not None else flow.destination_port,
    )


def product(first, last, list rewrites not None) -> Verdict:
    """One verdict for all rewrites, which make `last` of `first`. Only what differs is set: in an ICMP error about the flow
    an outer source that stays is the router's own."""
    cdef Rewrite rewrite
    cdef bint decrement_ttl = False
    cdef object dscp = None, source_mac = None, destination_mac = None, vlan = None
    if not rewrites:
        return FORWARD
    for rewrite in rewrites:
        decrement_ttl |= rewrite.rewrite.fields & AN_DECREMENT_TTL != 0
        dscp = _later(dscp, rewrite.dscp)
        source_mac = _later(source_mac, rewrite.source_mac)
        destination_mac = _later(destination_mac, rewrite.destination_mac)
        vlan = _later(vlan, rewrite.vlan)
    return Rewrite(
        source=last.source if last.source != first.source else None,
        source_port=last.source_port if last.source_port != first.source_port else None,
        destination=last.destination if last.destination != first.destination else None,
        destination_port=last.destination_port if last.destination_port != first.destination_port else None,
        dscp=dscp,
        decrement_ttl=decrement_ttl,
        source_mac=source_mac,
        destination_mac=destination_mac,
        vlan=vlan,
    )


cdef object _later(object before, object value):
    return value if value is not None else before
