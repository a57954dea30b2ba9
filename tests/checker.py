"""An independent witness of a NAT under failures: what was on the wires, against what the survivor's log knows.

It parses frames by itself. Every packet of `Churn` begins with the inside endpoint that it comes from, so a frame on the
server's side shows a translation: that endpoint and the external one. A translation that no log knows has left too early
(G3); an external endpoint of two inside ones, or the other way round, was given twice (G5).
"""

from __future__ import annotations

import socket
import struct
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import msgspec
from msgspec.structs import astuple

from actornet.log.record import AskBody
from actornet.replay import History
from actornet.testing.netns import Lab
from actornet.testing.traffic import Churn
from actors import nat

ETH_P_ALL = 3
SOL_PACKET, PACKET_STATISTICS = 263, 6
QUEUE_BYTES = 1 << 26
SO_RCVBUFFORCE = 33
PACKET_OUTGOING = 4

Endpoint = tuple[int, str, int]
"""Protocol, address, port."""


@dataclass
class Seen:
    """A frame that carries a mark: `inside` is what the mark says, source and destination what its headers say."""

    outgoing: bool
    inside: Endpoint
    source: Endpoint
    destination: Endpoint


@dataclass
class Capture:
    """The marked frames at `eth0` of a namespace, while the block lasts."""

    lab: Lab
    space: str
    frames: list[Seen] = field(default_factory=list)
    dropped: int = 0

    def __enter__(self) -> Self:
        self._socket = self.lab.call(self.space, _packet_socket, "eth0")
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._read)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        _, self.dropped = struct.unpack("II", self._socket.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))
        self._socket.close()

    def _read(self) -> None:
        while True:
            try:
                frame, (_, _, kind, _, _) = self._socket.recvfrom(128)
            except TimeoutError:
                if self._ended.is_set():  # and nothing is left to read
                    return
                continue
            seen = parse(frame, outgoing=kind == PACKET_OUTGOING)
            if seen is not None:
                self.frames.append(seen)


def parse(frame: bytes, *, outgoing: bool) -> Seen | None:
    """The endpoints and the mark of an IPv4 frame with TCP or UDP; None without a mark."""
    if len(frame) < 42 or frame[12:14] != b"\x08\x00" or frame[14] >> 4 != 4 or frame[23] not in (6, 17):
        return None
    protocol, transport = frame[23], 14 + 4 * (frame[14] & 15)
    payload = transport + (8 if protocol == 17 else 4 * (frame[transport + 12] >> 4))
    data = frame[payload : payload + len(Churn.MARK) + 6]
    if len(data) < len(Churn.MARK) + 6 or not data.startswith(Churn.MARK):
        return None
    source_port, destination_port = struct.unpack_from(">HH", frame, transport)
    address, port = struct.unpack_from(">4sH", data, len(Churn.MARK))
    return Seen(
        outgoing,
        (protocol, socket.inet_ntoa(address), port),
        (protocol, socket.inet_ntoa(frame[26:30]), source_port),
        (protocol, socket.inet_ntoa(frame[30:34]), destination_port),
    )


def translations_logged(log: Path) -> dict[Endpoint, set[Endpoint]]:
    """Inside endpoint -> the external ones that it ever had, as the log of a SourceNAT tells when it is re-executed."""
    found: dict[Endpoint, set[Endpoint]] = {}

    def add(inside: nat.Endpoint, mapping: nat.Mapping | None) -> None:
        if mapping is not None:
            found.setdefault(astuple(inside), set()).add(astuple(mapping.outside))

    with History(log) as history:
        replica, chain = history.base()
        for owner in replica.owners.values():
            for inside, mapping in owner.state.by_inside.items():
                add(inside, mapping)
        for entry in history.replay(replica, chain, history.log.last_lsn):
            body = entry.record.body if entry.record is not None else None
            if isinstance(body, AskBody) and body.message == "acquire":
                (inside,) = msgspec.msgpack.decode(body.args, type=tuple[nat.Endpoint])
                add(inside, replica.owners[body.owner].state.by_inside.get(inside))
    return found


def violations(client: Capture, server: Capture, logged: dict[Endpoint, set[Endpoint]]) -> list[str]:
    """What was on the wires and must not have been. Valid while no mapping ends: for less than its time-out."""
    problems: list[str] = []
    outside_of: dict[Endpoint, set[Endpoint]] = {}
    inside_of: dict[Endpoint, set[Endpoint]] = {}
    for frame in server.frames:
        if not frame.outgoing:
            outside_of.setdefault(frame.inside, set()).add(frame.source)
            inside_of.setdefault(frame.source, set()).add(frame.inside)
    for inside, outsides in outside_of.items():
        unknown = outsides - logged.get(inside, set())
        if unknown:
            problems.append(f"G3: {inside} left as {sorted(unknown)}, of which the survivor's log knows nothing")
        if len(outsides) > 1:
            problems.append(f"G5: {inside} left as each of {sorted(outsides)}")
    for outside, insides in inside_of.items():
        if len(insides) > 1:
            problems.append(f"G5: {outside} was the external endpoint of each of {sorted(insides)}")
    for frame in client.frames:
        if frame.outgoing and frame.source != frame.inside:
            problems.append(f"{frame.inside} was sent by {frame.source}: the test's own fault")
        if not frame.outgoing and frame.destination != frame.inside:
            problems.append(f"what {frame.inside} sent came back to {frame.destination}")
    return problems


def _packet_socket(interface: str) -> socket.socket:
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
    sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, QUEUE_BYTES)
    sock.bind((interface, ETH_P_ALL))
    sock.settimeout(0.1)
    return sock
