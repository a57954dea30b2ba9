"""Routed ports: the neighbours' MAC addresses, the packets that wait for them, and what the node answers for itself."""

from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF, Py_XDECREF
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from actornet.engine.core cimport Core
from actornet.engine.counters cimport C_ANSWERED, C_NEIGHBOR_FULL, C_NEIGHBOR_UNRESOLVED
from actornet.engine.parked cimport an_parked, an_queue_pop, an_queue_push
from actornet.engine.routes cimport is_host, is_link_local
from actornet.engine.saving cimport save_anew
from actornet.engine.types cimport AN_NONE, AN_REASSEMBLED, AN_SET_DESTINATION, AN_UNTRACKED, an_entry
from actornet.engine.wire cimport address_of, address_text

import msgspec

from actornet.errors import NoRouteError
from actornet.limits import ADJACENCIES_MAX, NEIGHBOR_PACKETS_MAX

DEF SOLICITATIONS_MAX = 3
DEF SECOND_NS = 1_000_000_000
DEF RESTORED_KNOWN_MAX = 4096

cdef uint32_t adjacencies_max = ADJACENCIES_MAX
cdef uint32_t waiting_max = NEIGHBOR_PACKETS_MAX

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.decode

FORM_NONE = _encode(None)


cdef bint is_forwarded(const uint8_t *address, int version) noexcept:
    """Whether a router forwards what is from or to this address."""
    return is_host(address, version) and not is_link_local(address, version)


cdef bytes key_of_hop(int out, const uint8_t *address, int version):
    """What `indices` has the next hop under."""
    cdef uint8_t key[18]
    memset(key, 0, sizeof(key))
    key[0], key[1] = <uint8_t>out, <uint8_t>version
    memcpy(key + 2, address, 4 if version == 4 else 16)
    return (<const char *>key)[:sizeof(key)]


cdef class Neighbors:
    """Adjacencies: per next hop, the MAC addresses as they stand in the Ethernet header."""

    def __cinit__(self):
        self.table = <an_adjacency *>calloc(adjacencies_max + 1, sizeof(an_adjacency))
        if self.table == NULL:
            raise MemoryError("adjacency table")
        self.table[0].resolved = 1
        self.count = 1
        self.indices = {}
        self.keys = [None]
        self.forms = [FORM_NONE]
        self.restored = set()
        self.unresolved = set()

    def __init__(self, list ports not None):
        self.routes = Routes(ports)

    def __dealloc__(self):
        cdef an_parked *item
        cdef uint32_t i
        for i in range(self.count):
            while (item := an_queue_pop(&self.table[i].waiting)) != NULL:
                Py_XDECREF(<PyObject *>item.flow)
                free(item)
        free(self.table)

    cdef int adjacency(self, int out, const an_key *key, const an_rewrite *rewrite, const uint8_t *addresses) except -2:
        """Index for packets of `key` after `rewrite` (or NULL) that leave by `out`.

        0 on a transparent port; -1 when there is no route. `addresses` are an IPv6 rewrite's. Raises NoRouteError beyond
        ADJACENCIES_MAX.
        """
        cdef Core core = <Core>self.core
        cdef const uint8_t *destination = <const uint8_t *>&key.destination
        cdef const uint8_t *next_hop
        if not core.routed >> out & 1:
            return 0
        if rewrite != NULL and rewrite.fields & AN_SET_DESTINATION:
            destination = <const uint8_t *>&rewrite.destination if addresses == NULL else addresses + 16
        next_hop = self.routes.hop(out, destination, key.version)
        return -1 if next_hop == NULL else self._index(out, next_hop, key.version)

    cdef int _index(self, int out, const uint8_t *address, int version) except -1:
        cdef Core core = <Core>self.core
        cdef uint32_t index
        cdef bytes key = key_of_hop(out, address, version)
        known = self.indices.get(key)
        if known is not None:
            return <int>known
        if self.count > adjacencies_max:
            raise NoRouteError(f"more than {adjacencies_max} neighbours")
        next_hop = address_text(address, version)
        index = self.count
        self.count += 1
        self.indices[key] = index
        self.keys.append((out, next_hop))
        self.forms.append(FORM_NONE)
        memcpy(self.table[index].source, core.macs[out], 6)
        mac = core.host.resolve(core.ports[out], next_hop)
        if mac is not None:
            self._resolved(index, <const uint8_t *><const char *>mac)
        return index

    cdef int _resolved(self, uint32_t index, const uint8_t *mac) except -1:
        """A neighbour's MAC address is known, or has changed: let go the packets that wait for it."""
        cdef Core core = <Core>self.core
        cdef an_adjacency *a = &self.table[index]
        cdef an_parked *item
        cdef FlowBase flow = None
        memcpy(a.destination, mac, 6)
        a.resolved = 1
        self.forms[index] = _encode((self.keys[index][1], (<const char *>mac)[:6]))
        self.unresolved.discard(index)
        while a.waiting.head != NULL:
            item = an_queue_pop(&a.waiting)
            memcpy(item.p.data, mac, 6)
            if item.flow == NULL:
                core.transmit(&item.p, item.out)
            else:
                flow = <FlowBase>item.flow
                item.flow = NULL
                Py_DECREF(flow)
                core.emit(flow, &item.p, item.out)
        if flow is not None and self._is_offloaded_to(flow, index):  # and is in the log so, without the address
            save_anew(core, flow)
        return 0

    cdef bint _is_offloaded_to(self, FlowBase flow, uint32_t index) noexcept:
        """Whether what the core carries out alone for this flow leaves by this next hop."""
        cdef an_entry *e
        cdef uint32_t i = flow.first
        if flow.core == NULL:
            return False
        for _ in range(flow.keys):
            e = &(<Core>self.core).flows.table.entries[i]
            if (<Core>self.core).flows.stands(e) and e.rewrite.adjacency == index:
                return True
            i = e.next_key
        return False

    cdef int ethernet(self, FlowBase flow, an_packet *p, int out, uint32_t index) except -1:
        """Write the next hop's MAC addresses, then emit; ask for them first if they are unknown. Without `flow` the
        packet depends on no record."""
        cdef Core core = <Core>self.core
        cdef an_adjacency *a = &self.table[index]
        cdef an_parked *item
        memcpy(p.data + 6, a.source, 6)
        if a.resolved:
            memcpy(p.data, a.destination, 6)
            return core.emit(flow, p, out) if flow is not None else core.transmit(p, out)
        if a.waiting.length >= waiting_max:
            return core.drop(p, C_NEIGHBOR_FULL)
        if flow is None and p.entry != AN_NONE and core.flows.table.entries[p.entry].actor != NULL:
            flow = <FlowBase>core.flows.table.entries[p.entry].actor  # offloaded
        item = core.park(p)
        item.out = out
        if flow is not None:
            item.flow = <void *>flow
            Py_INCREF(flow)
        an_queue_push(&a.waiting, item)
        if a.waiting.length == 1:
            self._solicit(index)
        return 0

    cdef int _solicit(self, uint32_t index) except -1:
        cdef Core core = <Core>self.core
        out, address = self.keys[index]
        self.unresolved.add(index)
        request = core.host.request(core.ports[out], address, core.now_ns)
        if request is not None:
            self.send(out, request)
        return 0

    cdef int tick(self) except -1:
        """Once a second, ask again for neighbours that have not answered; after three times, drop what waits."""
        cdef Core core = <Core>self.core
        cdef an_adjacency *a
        cdef an_parked *item
        if core.now_ns < self.tick_ns:
            return 0
        self.tick_ns = core.now_ns + SECOND_NS
        for index in list(self.unresolved):
            a = &self.table[<uint32_t>index]
            a.attempts += 1
            if a.attempts <= SOLICITATIONS_MAX and a.waiting.head != NULL:
                self._solicit(index)
                continue
            a.attempts = 0
            self.unresolved.discard(index)
            while a.waiting.head != NULL:
                item = an_queue_pop(&a.waiting)
                Py_XDECREF(<PyObject *>item.flow)
                core.drop(&item.p, C_NEIGHBOR_UNRESOLVED)
        return 0

    cdef int learn(self, const an_packet *p) except -1:
        """An on-link host that opens a flow has shown its MAC address: the replies need no ARP."""
        cdef const uint8_t *source = p.key.source
        cdef uint32_t index
        known = self.indices.get(key_of_hop(p.port, source, p.key.version))
        if known is not None:
            index = known
        elif self.count > adjacencies_max or self.routes.hop(p.port, source, p.key.version) != source:
            return 0
        else:
            index = self._index(p.port, source, p.key.version)
        if not self.table[index].resolved:
            self._resolved(index, p.data + 6)
        return 0

    cdef bytes form(self, uint32_t index):
        """Record form of an adjacency, encoded, so that a takeover needs no ARP: [next hop, MAC], or nil."""
        return <bytes>self.forms[index]

    cdef int restore(self, int out, object form) except -1:
        """Know what `form` says of a next hop out of this port."""
        cdef uint8_t address[16]
        cdef uint32_t index
        if (<Core>self.core).routed >> out & 1:
            index = self._index(out, address, address_of(form[0], address))
            if not self.table[index].resolved:
                self._resolved(index, <const uint8_t *><const char *>form[1])
        return 0

    cdef int restore_form(self, int out, bytes form) except -1:
        """The same of an encoded one, which is read once: flows share their next hops."""
        key = (out, form)
        if key not in self.restored:
            self.restore(out, _decode(form))
            if len(self.restored) == RESTORED_KNOWN_MAX:
                self.restored.clear()
            self.restored.add(key)
        return 0

    cdef bint is_for_host(self, const an_packet *p) except -1:
        """An echo request, or ICMPv6 control, to this routed port's own address."""
        cdef Core core = <Core>self.core
        if not core.routed >> p.port & 1:
            return False
        if p.key.protocol == 58 and p.reason == AN_UNTRACKED:
            return True
        if p.key.protocol not in (1, 58) or p.l4 == 0 or p.l4 >= p.length or p.data[p.l4] not in (8, 128):
            return False
        return address_text(p.key.destination, p.key.version) == str(core.ports[p.port].interface.ip)

    cdef bint may_forward(self, const an_packet *p) noexcept:
        """Whether a router may: not what came by broadcast, nor from or to what is no single host's address (RFC 1812 sections
        5.3.4 and 5.3.7), nor, in IPv6, from or to one of the link alone (RFC 4291 section 2.5.6)."""
        return not p.data[0] & 1 and is_forwarded(p.key.source, p.key.version) and (
            is_forwarded(p.key.destination, p.key.version))

    cdef int answer(self, an_packet *p) except -1:
        """A frame for the node itself: ARP, neighbour discovery, ping. Frees the packet if it was parked."""
        cdef Core core = <Core>self.core
        cdef bytes frame = <bytes>p.data[:p.length]
        port = core.ports[p.port]
        core.counters[<int>C_ANSWERED] += 1
        for to, reply in core.host.handle(port, frame, core.now_ns):
            self.send(to.index, reply, p.fragment_bytes if p.flags & AN_REASSEMBLED else 0)
        indices = list(self.unresolved)
        if len(frame) >= 32 and frame[12:14] == b"\x08\x06":  # ARP, which may also tell that a MAC address has changed
            index = self.indices.get(key_of_hop(p.port, <const uint8_t *><const char *>frame + 28, 4))
            indices = [] if index is None else [index]
        for index in indices:
            out, address = self.keys[index]
            mac = core.host.resolve(core.ports[out], address)
            if mac is not None:
                self._resolved(index, <const uint8_t *><const char *>mac)
        return core.discard(p)

    cdef int refuse(self, an_packet *p, int type, int code) except -1:
        """Tell the sender by an ICMP error, where the node has an address to send it from.

        `type` and `code` are ICMP's, for IPv6 too.
        """
        cdef Core core = <Core>self.core
        if core.host is None or not core.routed >> p.port & 1:
            return 0
        answer = core.host.icmp_error(core.ports[p.port], <bytes>p.data[:min(p.length, 1500)], type, code, core.now_ns)
        if answer is not None:
            self.send(p.port, answer)
        return 0

    cdef int send(self, int out, bytes frame, uint16_t fragment_bytes=0) except -1:
        """Send a frame that the node itself made; in fragments if it answers to such."""
        cdef Core core = <Core>self.core
        cdef an_packet p
        memset(&p, 0, sizeof(p))
        p.data = <uint8_t *><char *>frame
        p.length = len(frame)
        p.port = out
        p.time_ns = core.now_ns
        if fragment_bytes:
            p.flags = AN_REASSEMBLED
            p.fragment_bytes = fragment_bytes
        return core.transmit(&core.park(&p).p, out)
