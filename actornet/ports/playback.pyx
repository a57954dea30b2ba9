"""One capture of both directions, played to a network function that stands between inside and outside.

A packet from inside arrives at `lan`, any other at `wan`. That is not enough for a function that translates: the capture
was taken where nothing translated, so its replies are addressed to the inside host, while the real network would answer
the tuple that the function had put on the wire. So the outside is played back:

- A packet from `lan` that leaves by `wan` tells which tuple its connection has outside.
- A later packet of the capture in the other direction is the answer to it. It arrives at `wan`, and if the tuple was
  translated, it is addressed to the translation, checksums updated. An ICMP error is, if the packet that it speaks of was
  translated, and so is the packet inside it, as the router that dropped the translated packet would have written.
- An answer may come from an inside prefix too: a server beside the client is then outside as far as the function goes.
- A burst ends before a packet that may answer one whose output has not been seen yet.

Nothing here knows what the function does: only what went in and what came out. Fragments carry no ports and are
delivered as they are.
"""

from ipaddress import ip_network

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdlib cimport calloc, free
from libc.string cimport memcmp, memcpy, memset

from actornet.engine.types cimport *
from actornet.engine.wire cimport key_of

from actornet.engine.five_tuple import FiveTuple
from actornet.errors import UsageError
from actornet.limits import PLAYBACK_FLOWS_MAX

cdef extern from "rewrite.h" nogil:
    void an_parse(an_packet *p)
    void an_rewrite_prepare(an_rewrite *r, const an_key *from_key, const uint8_t *addresses)
    int an_rewrite_apply(an_packet *p, const an_rewrite *r, const uint8_t *addresses)

INSIDE_DEFAULT = ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7", "fe80::/10")
"""Private addresses: RFC 1918, RFC 6598, RFC 4193, RFC 4291."""

cdef Py_ssize_t FLOWS = PLAYBACK_FLOWS_MAX


cdef inline bytes identity(const an_key *key):
    """The tuple alone, whatever port it was seen at: all but the last two bytes of a key."""
    return PyBytes_FromStringAndSize(<const char *>key, sizeof(an_key) - 2)


cdef inline an_key opposite(const an_key *key) noexcept:
    cdef an_key reply = key[0]
    memcpy(reply.source, key.destination, 16)
    memcpy(reply.destination, key.source, 16)
    reply.source_port = key.destination_port
    reply.destination_port = key.source_port
    return reply


cdef class Readdressing:
    """How answers to one tuple are addressed: to what was `emitted` for it."""


cdef class Playback:
    """Decides for every packet of a capture where it arrives, and addresses answers to what the function emitted.

    `inside` are the prefixes whose packets arrive at port index `lan`. Raises UsageError if one is no network. With `as_is`
    that is all: answers are neither recognised nor addressed anew. PLAYBACK_FLOWS_MAX tuples are remembered; the oldest beyond it are `forgotten`.
    """

    def __cinit__(self, inside=INSIDE_DEFAULT, int lan=0, int wan=1, bint as_is=False):
        cdef int i
        cdef bytes address, mask
        cdef prefix *at
        networks = []
        for text in inside:
            try:
                networks.append(ip_network(text, strict=False))
            except ValueError:
                raise UsageError(f"{text!r} is no network prefix; write it like 192.168.0.0/16 or fc00::/7") from None
        self.lan, self.wan, self.as_is = lan, wan, as_is
        self.replies = {}
        self.outstanding = set()
        self.prefix_count = len(networks)
        self.prefixes = <prefix *>calloc(max(1, len(networks)), sizeof(prefix))
        if self.prefixes == NULL:
            raise MemoryError("inside prefixes")
        for i, network in enumerate(networks):
            at = &self.prefixes[i]
            address, mask = network.network_address.packed, network.netmask.packed
            at.version = network.version
            memcpy(at.address, <const char *>address, len(address))
            memcpy(at.mask, <const char *>mask, len(mask))

    def __dealloc__(self):
        free(self.prefixes)

    def settle(self) -> None:
        """Everything that was delivered has been answered for: nothing that it could still send is waited for."""
        self.outstanding.clear()

    cdef bint is_inside(self, const an_packet *p) noexcept:
        """Is the sender of an IP packet inside? Of an ICMP error that is whoever sent the error."""
        cdef const uint8_t *source = p.data + p.l3 + (12 if p.key.version == 4 else 8)
        cdef int i, n, bytes = 4 if p.key.version == 4 else 16
        cdef const prefix *at
        for i in range(self.prefix_count):
            at = &self.prefixes[i]
            if at.version != p.key.version:
                continue
            n = 0
            while n < bytes and source[n] & at.mask[n] == at.address[n]:
                n += 1
            if n == bytes:
                return True
        return False

    cdef int arrive(self, an_packet *p) except -1:
        """Set the packet's port, and its addresses if it answers. Returns 0 if it must wait for an output, else 1."""
        cdef Readdressing answer
        cdef an_key reply
        p.port = self.lan
        an_parse(p)
        if p.key.version == 0:  # not IP, or too damaged to tell
            return 1
        if p.reason != AN_OK or self.as_is:
            if not self.is_inside(p):
                p.port = self.wan
            return 1
        tuple = identity(&p.key)
        if tuple in self.outstanding:
            return 0
        answer = self.replies.get(tuple)
        if answer is not None:
            p.port = self.wan
            if not answer.identical:
                an_rewrite_apply(p, &answer.rewrite, answer.addresses)
                self.readdressed += 1
        elif not self.is_inside(p):
            p.port = self.wan
        else:
            reply = opposite(&p.key)
            self.outstanding.add(identity(&reply))
        return 1

    cdef int depart(self, const an_packet *p) except -1:
        """A packet leaves by `wan`: its key is still the one that it arrived with, its frame shows the tuple outside."""
        cdef an_packet emitted
        if self.as_is or p.port == self.wan or p.reason != AN_OK or p.flags & AN_ICMP_ERROR:
            return 0
        emitted = p[0]
        an_parse(&emitted)
        if emitted.reason != AN_OK or emitted.flags & AN_ICMP_ERROR or emitted.key.version != p.key.version \
                or emitted.key.protocol != p.key.protocol:
            return 0
        return self.learn(&p.key, &emitted.key)

    def remember(self, flow: FiveTuple, answer: FiveTuple) -> None:
        """Answers to `flow`, a tuple inside, are to arrive as `answer`: another node has seen how it left."""
        cdef an_key asked, reply, emitted
        key_of(flow, self.lan, &asked)
        key_of(answer, self.wan, &reply)
        emitted = opposite(&reply)
        self.learn(&asked, &emitted)

    cdef int learn(self, const an_key *asked, const an_key *emitted) except -1:
        """What came in as `asked` has left as `emitted`."""
        cdef an_key reply = opposite(asked)
        cdef Readdressing answer
        cdef an_rewrite *r
        tuple = identity(&reply)
        self.outstanding.discard(tuple)
        answer = self.replies.get(tuple)
        if answer is not None and memcmp(&answer.emitted, emitted, sizeof(an_key)) == 0:
            return 0
        answer = Readdressing.__new__(Readdressing)
        answer.emitted = emitted[0]
        r = &answer.rewrite
        memset(r, 0, sizeof(an_rewrite))
        memcpy(answer.addresses, emitted.destination, 16)
        memcpy(answer.addresses + 16, emitted.source, 16)
        memcpy(&r.source, emitted.destination, 4)
        memcpy(&r.destination, emitted.source, 4)
        r.source_port = emitted.destination_port
        r.destination_port = emitted.source_port
        if memcmp(emitted.destination, asked.destination, 16) != 0:
            r.fields |= AN_SET_SOURCE
        if memcmp(emitted.source, asked.source, 16) != 0:
            r.fields |= AN_SET_DESTINATION
        if r.source_port != asked.destination_port:
            r.fields |= AN_SET_SOURCE_PORT
        if r.destination_port != asked.source_port:
            r.fields |= AN_SET_DESTINATION_PORT
        answer.identical = r.fields == 0
        an_rewrite_prepare(r, &reply, answer.addresses)
        if len(self.replies) >= FLOWS and tuple not in self.replies:
            del self.replies[next(iter(self.replies))]
            self.forgotten += 1
        self.replies[tuple] = answer
        return 0
