"""Verdicts: what a handler decides for a packet, or offloads for a flow."""

from libc.string cimport memcpy, memset

from actornet.engine.types cimport (
    AN_DECREMENT_TTL, AN_FORWARD, AN_LINK_DESTINATION, AN_LINK_SOURCE, AN_LINK_VLAN, AN_SET_DESTINATION,
    AN_SET_DESTINATION_PORT, AN_SET_DSCP, AN_SET_LINK, AN_SET_SOURCE, AN_SET_SOURCE_PORT,
)
from actornet.engine.wire cimport address_of, address_text, number_of

from actornet.errors import UsageError


cdef class Verdict:
    """A decision; `DROP`, `REJECT` and `OFFLOADED` are those without parameters."""

    def __repr__(self) -> str:
        return self.name


cdef class Forward(Verdict):
    """Send the packet out of port `to` (None: the other port of a two-port node), addresses unchanged."""

    def __cinit__(self, *args, **kwargs):
        self.kind = VERDICT_FORWARD
        self.name = "FORWARD"

    def __init__(self, str to=None):
        self.to = to

    def __repr__(self) -> str:
        return "FORWARD" if self.to is None else f"Forward(to={self.to!r})"


cdef class Rewrite(Forward):
    """Change header fields, then send out of port `to`; checksums follow incrementally (RFC 1624).

    Addresses are text; ports 0..65535 (for ICMP echo: the identifier); `dscp` 0..63. A router decrements the TTL
    (`decrement_ttl`, on by default): a packet whose TTL runs out is dropped as `ttl_expired` and, on a routed port,
    answered by ICMP time exceeded. An ICMP error of the flow is translated inside as well (RFC 5508).
    `vlan` is the identifier, 1..4094, of the tag that the packet leaves with: it is put on or changed; 0 takes it off.
    MAC addresses are text, for transparent ports: a routed port writes its own and its next hop's over them.
    `payload` takes the place of a UDP datagram's; for this packet only: it cannot be offloaded. A datagram that outgrows
    both the one received and 1280 bytes leaves in fragments.
    Raises UsageError for a value that no packet can carry.
    """

    def __init__(self, str to=None, *, source=None, source_port=None, destination=None, destination_port=None,
                 dscp=None, bint decrement_ttl=True, source_mac=None, destination_mac=None, vlan=None, payload=None):
        self.to = to
        self.payload = payload if payload is None else _payload(payload)
        self.kind = VERDICT_REWRITE
        self.name = "Rewrite"
        memset(&self.rewrite, 0, sizeof(self.rewrite))
        memset(&self.link, 0, sizeof(self.link))
        memset(&self.prepared_for, 0, sizeof(self.prepared_for))
        self.rewrite.action = AN_FORWARD
        if source is not None:
            self._set_address(source, AN_SET_SOURCE)
        if destination is not None:
            self._set_address(destination, AN_SET_DESTINATION)
        if source_port is not None:
            self.rewrite.source_port = number_of(source_port, "rewrite: source_port", 65535)
            self.rewrite.fields |= AN_SET_SOURCE_PORT
        if destination_port is not None:
            self.rewrite.destination_port = number_of(destination_port, "rewrite: destination_port", 65535)
            self.rewrite.fields |= AN_SET_DESTINATION_PORT
        if dscp is not None:
            self.rewrite.dscp = number_of(dscp, "rewrite: dscp", 63)
            self.rewrite.fields |= AN_SET_DSCP
        if decrement_ttl:
            self.rewrite.fields |= AN_DECREMENT_TTL
        if source_mac is not None:
            self._set_mac(source_mac, self.link.source, AN_LINK_SOURCE)
        if destination_mac is not None:
            self._set_mac(destination_mac, self.link.destination, AN_LINK_DESTINATION)
        if vlan is not None:
            self.link.vlan = number_of(vlan, "rewrite: vlan", 4094)
            self.link.fields |= AN_LINK_VLAN
        if self.link.fields:
            self.rewrite.fields |= AN_SET_LINK

    cdef int _set_mac(self, text, uint8_t *mac, int field) except -1:
        try:
            packed = bytes.fromhex(text.replace(":", "")) if len(text.split(":")) == 6 else b""
        except (AttributeError, ValueError):
            packed = b""
        if len(packed) != 6:
            raise UsageError(f"rewrite: {text!r} is not a MAC address: write it like '02:00:5e:10:00:01'")
        memcpy(mac, <const char *>packed, 6)
        self.link.fields |= field
        return 0

    def _set_address(self, str text, int field):
        cdef int offset = 0 if field == AN_SET_SOURCE else 16
        cdef int version = address_of(text, self.addresses + offset)
        if self.version != 0 and self.version != version:
            raise UsageError("rewrite: source and destination must be of one IP version")
        self.version = version
        if version == 4:
            if field == AN_SET_SOURCE:
                memcpy(&self.rewrite.source, self.addresses, 4)
            else:
                memcpy(&self.rewrite.destination, self.addresses + 16, 4)
        self.rewrite.fields |= field

    cdef const uint8_t *ipv6_addresses(self) noexcept:
        return self.addresses if self.version == 6 else NULL

    @property
    def source(self):
        return address_text(self.addresses, self.version) if self.rewrite.fields & AN_SET_SOURCE else None

    @property
    def destination(self):
        return address_text(self.addresses + 16, self.version) if self.rewrite.fields & AN_SET_DESTINATION else None

    @property
    def source_mac(self):
        return mac_text(self.link.source) if self.link.fields & AN_LINK_SOURCE else None

    @property
    def destination_mac(self):
        return mac_text(self.link.destination) if self.link.fields & AN_LINK_DESTINATION else None

    @property
    def vlan(self):
        return self.link.vlan if self.link.fields & AN_LINK_VLAN else None

    @property
    def source_port(self):
        return self.rewrite.source_port if self.rewrite.fields & AN_SET_SOURCE_PORT else None

    @property
    def destination_port(self):
        return self.rewrite.destination_port if self.rewrite.fields & AN_SET_DESTINATION_PORT else None

    @property
    def dscp(self):
        return self.rewrite.dscp if self.rewrite.fields & AN_SET_DSCP else None

    @property
    def decrement_ttl(self) -> bool:
        return bool(self.rewrite.fields & AN_DECREMENT_TTL)

    def __repr__(self) -> str:
        parts = [f"{name}={getattr(self, name)!r}" for name in
                 ("to", "source", "source_port", "destination", "destination_port", "dscp", "source_mac",
                              "destination_mac", "vlan", "payload")
                 if getattr(self, name) is not None]
        return f"Rewrite({', '.join(parts)})"


cdef class Answer(Verdict):
    """Send `payload` back in place of the packet; see `Packet.answer`."""

    def __init__(self, payload):
        self.kind = VERDICT_ANSWER
        self.name = "Answer"
        self.payload = _payload(payload)

    def __repr__(self) -> str:
        return f"Answer({self.payload!r})"


cdef class Made:
    """A frame that was made here, as if it had arrived at `port`."""


cdef class Emit(Verdict):
    """Forward these frames in place of the packet."""

    def __cinit__(self, *args, **kwargs):
        self.kind = VERDICT_EMIT
        self.name = "Emit"
        self.frames = []


cdef str mac_text(const uint8_t *mac):
    return (<const char *>mac)[:6].hex(":")


def decode_verdict(form):
    """The verdict that was encoded: `None` for DROP, `[to]` for Forward, seven values for a Rewrite, or ten if it sets
    something in the Ethernet header."""
    if form is None:
        return DROP
    if len(form) == 1:
        return Forward(form[0]) if form[0] is not None else FORWARD
    to, source, source_port, destination, destination_port, dscp, decrement_ttl, *link = form
    source_mac, destination_mac, vlan = link or (None, None, None)
    return Rewrite(to, source=source, source_port=source_port, destination=destination,
                   destination_port=destination_port, dscp=dscp, decrement_ttl=decrement_ttl,
                   source_mac=source_mac, destination_mac=destination_mac, vlan=vlan)


def encode_verdict(Verdict verdict not None):
    """What `decode_verdict` makes this verdict of."""
    cdef Rewrite r
    cdef list form
    if not isinstance(verdict, Forward):
        return None
    if verdict.kind != VERDICT_REWRITE:
        return [(<Forward>verdict).to]
    r = <Rewrite>verdict
    form = [r.to, r.source, r.source_port, r.destination, r.destination_port, r.dscp, r.decrement_ttl]
    if r.link.fields:
        form += [r.source_mac, r.destination_mac, r.vlan]
    return form


cdef bytes _payload(object value):
    if not isinstance(value, bytes | bytearray | memoryview):
        raise UsageError(f"a payload is bytes, not {value!r}")
    return bytes(value)


cdef Verdict _constant(str name, int kind):
    cdef Verdict verdict = Verdict.__new__(Verdict)
    verdict.name = name
    verdict.kind = kind
    return verdict


DROP = _constant("DROP", VERDICT_DROP)
REJECT = _constant("REJECT", VERDICT_REJECT)
OFFLOADED = _constant("OFFLOADED", VERDICT_OFFLOADED)
FORWARD = Forward()
