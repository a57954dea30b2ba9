"""Stream actors: network functions over the bytes of TCP connections, not their packets."""

from __future__ import annotations

from functools import cache
from typing import Any, ClassVar

import msgspec

from actornet.engine.direction import Direction
from actornet.engine.packet import Packet
from actornet.engine.reassembly import Segment
from actornet.engine.stream import Stream
from actornet.engine.verdict import DROP, FORWARD, REJECT, Verdict
from actornet.errors import UsageError
from actornet.flow import FlowActor

TCP = 6
SYN, RST, ACK = 2, 4, 16
OPENING_IDLE_S = 60.0
ESTABLISHED_IDLE_S = 7440.0
CLOSING_IDLE_S = 240.0
"""Seconds of silence after which a connection is forgotten, unless the network function has an `idle_s` of its own: 2 h 4 min
for one whose ends have both answered (RFC 5382, REQ-5); 4 min after both FINs or an RST, for what is repeated; less before,
as a flood of SYNs would fill the flow table, and nothing is lost that could have been edited."""

_encode = msgspec.msgpack.Encoder().encode
_Half = tuple[int, int | None, list[tuple[int, int, bytes]]]
_decode = msgspec.msgpack.Decoder(list[_Half]).decode


class StreamActor(FlowActor):
    """One TCP connection, whose bytes come in order, in both directions, to `on_data`.

    - `on_data(direction, data)`, `def` or `async def`, gets the bytes of one packet that are new. It returns None or
      FORWARD; DROP (this and all that follows disappears, in both directions); REJECT (both ends get an RST); or, of an
      `inline` actor, the bytes that go in place of `data`: more, fewer or none.
    - `on_gap(direction, missing)` tells that bytes were not seen (a lossy capture, another path), before `on_data` gets what
      follows them.
    - `on_restart()` tells that the same ports have begun another connection in this flow: what was before does not count.
    - `self.release()` in `on_data`: enough was seen, the rest of the connection goes without the actor, by the compiled core
      if nothing was edited.

    Passive actors (the default) only watch: packets pass at once, and a decision is about what follows. With `inline`
    nothing passes before it was decided on: what comes before its turn waits in the core, and a retransmission gets the
    bytes, and the edits, that the first transmission got.

    Where TCP leaves a choice: of bytes that overlap the first to come count; packets with wrong checksums bring no bytes
    (`verify_checksums`; inline they are dropped); urgent data is ordinary data in its place; a connection that was open
    before we saw it begins with the next packet (`self.midstream`). Everything that waits is bounded (`limits.py`).

    Edits are replicated with the flow: after a takeover sequence numbers are still right and what is repeated is edited as
    before (G3, G6). The reassembly itself is not: a passive actor's begins again at the first packet of each direction, an
    inline one's at what the receivers have acknowledged, so that nothing passes undecided but what they say, within a window of
    that moment, to have already; bytes on their way then may be decided on again. What an actor keeps of the bytes is in its
    own annotated fields.

    An RST ends a connection if it has exactly the number that its receiver waits for (RFC 5961 section 3.2), a FIN if all
    before it has come and nothing behind it; a SYN in the middle of a connection begins a new one when the other end answers
    it. Others pass, and the connection goes on, as it does for its ends.

    Without an `idle_s` of the class, the flow ends after 2 h 4 min of silence, or 1 min while the connection opens and 4 min
    once it was closed. What an edited connection sends after its flow has ended (such a silence, an eviction, an error in a
    handler, a lost log) passes with the numbers that it has: its ends will not understand each other. To refuse what cannot
    be placed, as a firewall does: `on_open` returns DROP unless `packet.tcp_flags` has the SYN.

    What is no TCP is offloaded, unless `on_open` decides otherwise.
    """

    idle_s = OPENING_IDLE_S
    connection = True
    inline: ClassVar[bool] = False
    verify_checksums: ClassVar[bool] = True

    _handlers: ClassVar[tuple[str, ...]] = (*FlowActor._handlers, "on_data", "on_gap")
    _needs: ClassVar[str] = "on_data"
    _switches: ClassVar[tuple[str, ...]] = (*FlowActor._switches, "inline", "verify_checksums")

    stream_edits: bytes = b""
    stream_released: bool = False
    stream_joined: bool = False
    _stream: Stream | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.inner:
            raise UsageError(f"{cls.__name__}.inner: streams inside of tunnels are not supported; use a FlowActor")
        if "on_packet" in vars(cls):
            raise UsageError(f"{cls.__name__}.on_packet: a stream actor has on_data in its place")
        cls.holds = cls.inline
        if cls.suspends("on_data"):
            cls.on_packet = StreamActor._on_packet_async  # type: ignore[method-assign, assignment]
        else:
            cls.on_packet = StreamActor._on_packet  # type: ignore[method-assign, assignment]

    @classmethod
    def is_complete(cls) -> bool:
        return cls.on_data is not StreamActor.on_data or cls.on_gap is not StreamActor.on_gap

    def on_open(self, packet: Packet) -> Any:
        if packet.protocol != TCP:
            self._offload_both(FORWARD)

    def on_data(self, direction: Direction, data: bytes) -> Any:
        """Bytes have come in order; see the class."""

    def on_gap(self, direction: Direction, missing: int) -> None:
        """So many bytes were not seen; see the class."""

    def on_restart(self) -> None:
        """A new connection in the same flow; see the class."""

    @property
    def midstream(self) -> bool:
        """Whether the connection, or one direction of it, was joined after its beginning."""
        return self._stream is not None and self._stream.midstream

    def release(self) -> None:
        """Look at no more bytes of this connection."""
        self.stream_released = True

    def _on_packet(self, packet: Packet) -> Any:
        for segment in self._receive(packet):
            if segment.missing:
                self._gap(segment)
            if segment.data and not self.stream_released:
                outcome = self.on_data(Direction(segment.direction), segment.data)
                if outcome is not None and outcome is not FORWARD:
                    verdict = self._decide(packet, segment, outcome)
                    if verdict is not None:
                        return verdict
        return self._pass_on(packet)

    async def _on_packet_async(self, packet: Packet) -> Any:
        for segment in self._receive(packet):
            if segment.missing:
                self._gap(segment)
            if segment.data and not self.stream_released:
                outcome = await self.on_data(Direction(segment.direction), segment.data)
                if outcome is not None and outcome is not FORWARD:
                    verdict = self._decide(packet, segment, outcome)
                    if verdict is not None:
                        return verdict
        return self._pass_on(packet)

    def _receive(self, packet: Packet) -> list[Segment]:
        stream = self._stream or self._join()
        begun = packet.tcp_flags & (SYN | RST | ACK) == SYN
        if begun and self.stream_released and not stream.edited:
            self.withdraw()
            self.stream_released = self.stream_joined = False
            stream = self._join()
            self.on_restart()
        segments = stream.receive(packet)
        if stream.renewed:
            self.on_restart()
        return segments

    def _join(self) -> Stream:
        """The stream at its first packet here: a new connection, or one that another core or node has begun."""
        stream = self._stream = Stream(self.inline, self.verify_checksums)
        if self.stream_edits:
            stream.load(_decode(self.stream_edits))
        if self.stream_joined and self.inline:
            stream.resume()
        self.stream_joined = True
        stream.released = self.stream_released
        return stream

    def _gap(self, segment: Segment) -> None:
        self._note_gap()
        if not self.stream_released:
            self.on_gap(Direction(segment.direction), segment.missing)

    def _decide(self, packet: Packet, segment: Segment, outcome: Any) -> Verdict | None:
        """What `on_data` returned, unless it was FORWARD; a verdict ends the connection."""
        stream = self._stream
        assert stream is not None
        if isinstance(outcome, bytes | bytearray):
            if not self.inline:
                raise UsageError(f"{type(self).__name__}.on_data returned bytes: set `inline = True` to edit")
            stream.replace(segment, bytes(outcome))
            return None
        if outcome is not DROP and outcome is not REJECT:
            raise UsageError(
                f"{type(self).__name__}.on_data must return None, FORWARD, DROP, REJECT or bytes, not {outcome!r}"
            )
        self._offload_both(DROP)
        if outcome is DROP:
            return DROP
        return stream.refuse(packet, segment, self._opposite_port(packet.port_index))

    def _pass_on(self, packet: Packet) -> Verdict:
        """Every segment was decided on."""
        stream = self._stream
        assert stream is not None
        releases = self.stream_released and not stream.released
        if releases:
            stream.release()
        verdict = stream.output(packet)
        if stream.changed:
            self.stream_edits = _encode(stream.save())
        if stream.gone and not stream.edited:
            self.close()
        elif releases and not stream.edited and not stream.ended:
            self._offload_both(FORWARD, punt_tcp=True)  # the next connection's SYN
            if self.idle_s == ESTABLISHED_IDLE_S:
                self.idle_s = OPENING_IDLE_S  # nobody sees its end
        elif not stream.released or stream.edited:
            self._adapt_idle(stream)
        return verdict

    def _adapt_idle(self, stream: Stream) -> None:
        """Remember a connection for as long as it may still need us."""
        if stream.ended or stream.reset:
            if self.idle_s > CLOSING_IDLE_S:
                self.idle_s = CLOSING_IDLE_S
        elif (stream.established or stream.edited) and self.idle_s in (OPENING_IDLE_S, CLOSING_IDLE_S):
            idle_s = type(self).idle_default_s if _has_idle(type(self)) else ESTABLISHED_IDLE_S
            if idle_s != self.idle_s:
                self.idle_s = idle_s
                self._set_dirty(True)  # a backup is to wait as long

    def held_packets(self) -> int:
        return self._stream.waiting if self._stream is not None else 0

    def _offload_both(self, verdict: Verdict, punt_tcp: bool = False) -> None:
        self.offload(verdict, punt_tcp=punt_tcp)
        for flow, port in self._bound()[1:]:
            self.offload(verdict, flow, port, punt_tcp=punt_tcp)


@cache
def _has_idle(nf: type[StreamActor]) -> bool:
    """Whether the network function has chosen its own `idle_s`."""
    return any("idle_default_s" in vars(base) for base in nf.__mro__[: nf.__mro__.index(StreamActor)])
