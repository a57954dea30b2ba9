"""What passes through the switch of `Lab.nat_pair`, frame by frame: who sent it, when, and all of its bytes."""

from __future__ import annotations

import select
import socket
import struct
import threading
from typing import Self

import msgspec

from actornet.errors import ActornetError
from actornet.node.thread import run_first
from actornet.testing.netns import Lab

ETH_P_ALL = 3
SOL_PACKET, PACKET_STATISTICS, PACKET_AUXDATA, PACKET_IGNORE_OUTGOING = 263, 6, 8, 23
SO_TIMESTAMPNS, SO_RCVBUFFORCE = 35, 33
TP_STATUS_CSUMNOTREADY = 1 << 3
QUEUE_BYTES = 1 << 26
FRAME_BYTES_MAX = 1 << 16
SECOND = 1_000_000_000
SETTLED_NS = SECOND // 2
"""A frame is out of the kernel's queue, and those before it are too, after so long."""


class Frame(msgspec.Struct, frozen=True, order=True, gc=False):
    """A frame that entered the switch from `sender` ("client", "server", or node "a" or "b") on its `side`.

    `time_ns` is Unix time. `partial`: the sender left the transport's checksum to be finished, from the pseudo-header's
    sum that is in its place.
    """

    time_ns: int
    sender: str
    side: str
    data: bytes
    partial: bool = False


class Wiretap:
    """Records every frame that client, server and nodes send, from its making on."""

    def __init__(self, lab: Lab) -> None:
        self._frames: list[Frame] = []
        ends = {"client": ("client", "lan"), "server": ("server", "wan")}
        ends |= {f"{node}-{side}": (node, side) for node in "abc" if node in lab.names for side in ("lan", "wan")}
        self._sockets = {lab.call("switch", _sniffer, end): where for end, where in ends.items()}
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="wiretap", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(10)
        lost = sum(_lost(sock) for sock in self._sockets)
        for sock in self._sockets:
            sock.close()
        if lost:
            raise ActornetError(f"the wiretap lost {lost} frames: nothing can be said of the others")

    def take(self) -> list[Frame]:
        """The frames since the last call, in order of time; while recording, without those of the last half second."""
        with self._lock:
            frames = sorted(self._frames)
            settled = len(frames)
            if frames and not self._ended.is_set():
                newest = frames[-1].time_ns
                settled = next(i for i, frame in enumerate(frames) if frame.time_ns > newest - SETTLED_NS)
            self._frames = frames[settled:]
        return frames[:settled]

    def times(self, sender: str) -> list[int]:
        """When this one sent a frame, of those that nobody has taken."""
        with self._lock:
            return sorted(frame.time_ns for frame in self._frames if frame.sender == sender)

    def _run(self) -> None:
        run_first()
        idle = False
        while not (idle and self._ended.is_set()):
            ready, _, _ = select.select(list(self._sockets), [], [], 0.05)
            idle = not ready
            for sock in ready:
                data, extra, _, _ = sock.recvmsg(FRAME_BYTES_MAX, 128)
                time_ns, status = 0, 0
                for level, kind, value in extra:
                    if level == SOL_PACKET and kind == PACKET_AUXDATA:
                        status = struct.unpack_from("I", value)[0]
                    elif level == socket.SOL_SOCKET:
                        seconds, nanoseconds = struct.unpack("qq", value)
                        time_ns = seconds * SECOND + nanoseconds
                frame = Frame(time_ns, *self._sockets[sock], data, bool(status & TP_STATUS_CSUMNOTREADY))
                with self._lock:
                    self._frames.append(frame)


def _sniffer(interface: str) -> socket.socket:
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
    sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, QUEUE_BYTES)
    sock.setsockopt(SOL_PACKET, PACKET_AUXDATA, 1)
    sock.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
    sock.bind((interface, ETH_P_ALL))
    return sock


def _lost(sock: socket.socket) -> int:
    lost: int = struct.unpack("II", sock.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))[1]
    return lost
