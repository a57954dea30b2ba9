"""A proxy for TCP connections that does to their bytes what a bad network, or somebody in the middle, would.

It stands between a backup and its primary, so that tests can say what the link goes through. What it does is `fault`,
which may be changed at any time; by chance, from a seed. A chunk is what one read from a socket gives, for the link mostly
a frame or some.
"""

from __future__ import annotations

import random
import select
import socket
import struct
import threading
import time
from collections import Counter, deque
from contextlib import suppress
from typing import Literal, Self

import msgspec

from actornet.node.thread import run_first

CHUNK_BYTES = 4096
QUEUE_BYTES_MAX = 1 << 20
"""Bytes that wait in the proxy, per direction of a connection; beyond it, it reads no more, and the sender feels that."""
TURN_S = 0.001
BURST_S = 0.01
CONNECT_S = 1.0


class Fault(msgspec.Struct, frozen=True):
    """What happens to connections. `direction`: "up" is from who connected (the backup) on, "down" is back.

    `delay_ms`: between so much and so much, in order. `corrupt`, `drop`, `duplicate`: the share of chunks that one bit is
    flipped in, that vanish, that come twice. `swallow`: everything vanishes; `stall`: everything waits for a better fault.
    `bytes_per_s`: trickles. `life_s`: a connection is closed after about so long, and `reset`: in the middle of a chunk, by
    RST. `refuse`: no new connections.
    """

    direction: Literal["up", "down", "both"] = "both"
    delay_ms: tuple[float, float] = (0.0, 0.0)
    corrupt: float = 0.0
    drop: float = 0.0
    duplicate: float = 0.0
    swallow: bool = False
    stall: bool = False
    bytes_per_s: float = 0.0
    life_s: float = 0.0
    reset: bool = False
    refuse: bool = False


NONE = Fault()


class _Pipe:
    """One direction of a connection."""

    def __init__(self, direction: str, source: socket.socket, target: socket.socket) -> None:
        self.direction = direction
        self.source = source
        self.target = target
        self.queue: deque[tuple[float, bytes]] = deque()
        self.queued = 0
        self.credit = 0.0
        self.ended = False
        """The source sends no more."""

    def put(self, due_s: float, chunk: bytes) -> None:
        self.queue.append((max(due_s, self.queue[-1][0] if self.queue else 0.0), chunk))
        self.queued += len(chunk)


class _Connection:
    def __init__(self, client: socket.socket, server: socket.socket, since_s: float, luck: float) -> None:
        self.pipes = (_Pipe("up", client, server), _Pipe("down", server, client))
        self.since_s = since_s
        self.luck = luck
        """How long it lives, as a share of what is usual."""

    def close(self, *, reset: bool) -> None:
        for pipe in self.pipes:
            if reset:
                pipe.source.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            pipe.source.close()


class FaultProxy:
    """Passes what comes to the socket `listener` on to `target` (host, port), with faults.

    `counts` has how often each thing happened: `connections`, `corrupted`, `reset` and so on.
    """

    def __init__(self, listener: socket.socket, target: tuple[str, int], seed: int) -> None:
        self.fault = NONE
        self.counts: Counter[str] = Counter()
        self._listener = listener
        self._listener.setblocking(False)
        self._target = target
        self._chance = random.Random(seed)
        self._connections: list[_Connection] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="fault proxy", daemon=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> Self:
        """Begin; called in the network namespace that the proxy is to connect from."""
        self._thread.start()
        return self

    def close(self) -> None:
        """End all connections, and stop listening."""
        self._ended.set()
        self._thread.join(5)
        for connection in self._connections:
            connection.close(reset=False)
        self._listener.close()

    def _run(self) -> None:
        run_first()
        turned_s = time.monotonic()
        while not self._ended.is_set():
            pipes = [pipe for connection in self._connections for pipe in connection.pipes]
            reading = [pipe.source for pipe in pipes if not pipe.ended and pipe.queued < QUEUE_BYTES_MAX]
            busy = any(pipe.queue for pipe in pipes) or self.fault.life_s
            ready, _, _ = select.select([self._listener, *reading], [], [], TURN_S if busy else 0.02)
            now_s = time.monotonic()
            if self._listener in ready:
                self._accept(now_s)
            for connection in list(self._connections):
                try:
                    for pipe in connection.pipes:
                        if pipe.source in ready:
                            self._read(pipe, now_s)
                        self._write(pipe, now_s, now_s - turned_s)
                except OSError:
                    self._end(connection, "broken", reset=True)
                    continue
                if all(pipe.ended and not pipe.queue for pipe in connection.pipes):
                    self._end(connection, "closed")
                elif 0 < self.fault.life_s * connection.luck < now_s - connection.since_s:
                    self._cut(connection)
            turned_s = now_s

    def _accept(self, now_s: float) -> None:
        try:
            client, _ = self._listener.accept()
        except BlockingIOError:
            return
        if self.fault.refuse:
            self.counts["refused"] += 1
            client.close()
            return
        try:
            server = socket.create_connection(self._target, CONNECT_S)
        except OSError:
            self.counts["unreachable"] += 1
            client.close()
            return
        for sock in (client, server):
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.counts["connections"] += 1
        self._connections.append(_Connection(client, server, now_s, self._chance.uniform(0.5, 1.5)))

    def _cut(self, connection: _Connection) -> None:
        if reset := self.fault.reset:
            for pipe in connection.pipes:
                if pipe.queue:
                    with suppress(OSError):  # it is being broken anyway
                        pipe.target.send(pipe.queue[0][1][: len(pipe.queue[0][1]) // 2])
        self._end(connection, "reset" if reset else "cut", reset=reset)

    def _end(self, connection: _Connection, why: str, *, reset: bool = False) -> None:
        self.counts[why] += 1
        connection.close(reset=reset)
        self._connections.remove(connection)

    def _hit(self, name: str, share: float) -> bool:
        hit = share > 0 and self._chance.random() < share
        self.counts[name] += hit
        return hit

    def _read(self, pipe: _Pipe, now_s: float) -> None:
        try:
            chunk = pipe.source.recv(CHUNK_BYTES)
        except BlockingIOError:
            return
        if not chunk:
            pipe.ended = True
            return
        fault = self.fault if self.fault.direction in ("both", pipe.direction) else NONE
        if fault.swallow:
            self.counts["swallowed"] += 1
            return
        if self._hit("dropped", fault.drop):
            return
        if self._hit("corrupted", fault.corrupt):
            at = self._chance.randrange(len(chunk))
            chunk = chunk[:at] + bytes((chunk[at] ^ 1 << self._chance.randrange(8),)) + chunk[at + 1 :]
        due_s = now_s + self._chance.uniform(*fault.delay_ms) / 1000
        pipe.put(due_s, chunk)
        if self._hit("duplicated", fault.duplicate):
            pipe.put(due_s, chunk)

    def _write(self, pipe: _Pipe, now_s: float, passed_s: float) -> None:
        fault = self.fault if self.fault.direction in ("both", pipe.direction) else NONE
        if fault.stall:
            return
        rate = fault.bytes_per_s
        pipe.credit = min(pipe.credit + rate * passed_s, 1 + rate * BURST_S) if rate else CHUNK_BYTES
        while pipe.queue and pipe.queue[0][0] <= now_s and pipe.credit >= 1:
            due_s, chunk = pipe.queue.popleft()
            try:
                sent = pipe.target.send(chunk[: int(pipe.credit)])
            except BlockingIOError:
                sent = 0
            pipe.queued -= sent
            if rate:
                pipe.credit -= sent
            if sent < len(chunk):
                pipe.queue.appendleft((due_s, chunk[sent:]))
                if sent == 0:
                    return
        if pipe.ended and not pipe.queue:
            with suppress(OSError):
                pipe.target.shutdown(socket.SHUT_WR)
