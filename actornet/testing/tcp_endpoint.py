"""A TCP endpoint that is small enough to trust: sends, repeats, acknowledges with SACK, closes. Frames in and out."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

import dpkt

from actornet.engine.wire import checksums_right

FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16
WRAP = 1 << 32

_ETHERNET = b"\x02\0\0\0\0\x02\x02\0\0\0\0\x01\x08\0"


@dataclass
class Endpoint:
    """One end. Positions are offsets in its own stream, from the SYN at -1; `isn` is the SYN's number."""

    address: tuple[str, int]
    peer: tuple[str, int]
    isn: int
    data: bytes
    mss: int = 100
    window: int = 1500
    sent: int = 0
    acknowledged: int = -1
    received: dict[int, int] = field(default_factory=dict)
    peer_isn: int | None = None
    peer_fin: int | None = None
    reset: bool = False
    in_order: int = 0
    highest: int = 0

    @property
    def next(self) -> int:
        """How much of the peer's stream is here without a gap."""
        while self.in_order in self.received:
            self.in_order += 1
        return self.in_order

    @property
    def stream(self) -> bytes:
        return bytes(self.received[at] for at in range(self.next))

    @property
    def done(self) -> bool:
        """All of its bytes and its FIN are acknowledged, and the peer's FIN has come."""
        return self.acknowledged == len(self.data) + 1 and self.peer_fin is not None and self.next >= self.peer_fin

    def _frame(self, flags: int, position: int, data: bytes = b"") -> bytes:
        ack, options = 0, b""
        if self.peer_isn is not None:
            flags |= ACK
            closed = self.peer_fin is not None and self.next >= self.peer_fin
            ack = (self.peer_isn + 1 + self.next + closed) % WRAP
            first, here = max(self.received, default=-1), self.next
            if first > here:
                while first - 1 in self.received:
                    first -= 1
                last = first
                while last in self.received:
                    last += 1
                edges = [(self.peer_isn + 1 + at) % WRAP for at in (first, last)]
                options = b"\x01\x01\x05\x0a" + struct.pack(">2I", *edges)
        segment = dpkt.tcp.TCP(
            sport=self.address[1],
            dport=self.peer[1],
            seq=(self.isn + 1 + position) % WRAP,
            ack=ack,
            flags=flags,
            opts=options,
            off=5 + len(options) // 4,
            data=data,
        )
        ip = dpkt.ip.IP(
            src=bytes(map(int, self.address[0].split("."))),
            dst=bytes(map(int, self.peer[0].split("."))),
            p=6,
            len=20 + len(bytes(segment)),
            data=segment,
        )
        return _ETHERNET + bytes(ip)

    def open(self) -> bytes:
        return self._frame(SYN, -1)

    def send(self, again: bool = False) -> list[bytes]:
        """What the window allows; `again`: from the first byte that is not acknowledged, as after a time-out."""
        if self.acknowledged < 0:
            return [self._frame(SYN, -1)] if again and self.peer_isn is None else []
        if again:
            self.sent = min(self.sent, self.acknowledged)
        out = []
        while self.sent <= len(self.data) and self.sent - self.acknowledged < self.window:
            piece = self.data[self.sent : self.sent + self.mss]
            last = self.sent + len(piece) == len(self.data)
            out.append(self._frame(PSH | (FIN if last else 0), self.sent, piece))
            self.sent += len(piece) + last
            self.highest = max(self.highest, self.sent)
        return out

    def again(self) -> list[bytes]:
        """What an end repeats that has heard nothing for too long."""
        synchronized = self.acknowledged >= 0 or self.peer_isn is None
        return self.send(again=True) if synchronized else [self._frame(SYN, -1)]

    def receive(self, frame: bytes) -> list[bytes]:
        """Takes a frame for this end; returns what it answers at once. AssertionError: no peer could have sent it so."""
        assert checksums_right(frame), "every packet that leaves the core is whole"
        ip = dpkt.ethernet.Ethernet(frame).data
        tcp = ip.data
        data = bytes(tcp.data)
        if tcp.flags & RST:
            self.reset = True
            return []
        if tcp.flags & SYN:
            self.peer_isn = tcp.seq
            if tcp.flags & ACK:
                self.acknowledged = max(self.acknowledged, 0)
                return [self._frame(ACK, self.highest), *self.send()]
            return [self._frame(SYN, -1)]
        if self.peer_isn is None:
            return []
        at = (tcp.seq - self.peer_isn - 1 + WRAP // 2) % WRAP - WRAP // 2
        for i, byte in enumerate(data):
            if at + i >= 0:
                known = self.received.setdefault(at + i, byte)
                assert known == byte, f"byte {at + i} came as {known} and as {byte}"
        if tcp.flags & FIN:
            fin = at + len(data)
            if fin >= self.next or self.peer_fin is not None:
                assert self.peer_fin in (None, fin) or fin < self.next
                self.peer_fin = fin if self.peer_fin is None else self.peer_fin
        out = []
        if tcp.flags & ACK:
            ack = (tcp.ack - self.isn - 1 + WRAP // 2) % WRAP - WRAP // 2
            assert ack <= self.highest, f"acknowledged {ack} of {self.highest} bytes that were sent"
            if ack > self.acknowledged:
                self.acknowledged = ack
                self.sent = max(self.sent, ack)
                out += self.send()
            opts = dpkt.tcp.parse_opts(tcp.opts) if tcp.opts else []
            for kind, value in opts:
                if kind == 5:
                    for edge in struct.unpack(f">{len(value) // 4}I", value):
                        there = (edge - self.isn - 1 + WRAP // 2) % WRAP - WRAP // 2
                        assert 0 <= there <= len(self.data) + 1, "SACK in this end's own numbering"
        if data or tcp.flags & FIN or at < self.next:
            out.append(self._frame(ACK, self.highest))
        return out
