"""The link: authenticated TCP connections between the owner systems of a primary (server) and its backups (clients).

Nothing here blocks and no clock is read: `events(now_ns)` does what can be done now. It is to be called when the link's
file descriptor is readable, and every few milliseconds besides. Strangers cost little: there are at most HANDSHAKES_MAX
at a time, for HANDSHAKE_MS each, with a hundred bytes of memory and a counter. `channel` has the protocol.
"""

from __future__ import annotations

import errno
import os
import select
import socket
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import msgspec

from actornet.errors import LinkError, UsageError
from actornet.limits import (
    BACKUPS_MAX,
    HANDSHAKE_MS,
    HANDSHAKES_MAX,
    LINK_QUEUE_BYTES_MAX,
    LINK_WINDOW_BYTES,
    RECONNECT_MS_MAX,
    RECONNECT_MS_MIN,
)
from actornet.node.channel import STRANGER_BYTES, Channel, ChannelError
from actornet.replication.messages import AnyMessage, decode, encode

KEY_BYTES_MIN = 32
LINK_CONNECTIONS_MAX = 2 * BACKUPS_MAX
"""Of a server: a backup may come again before its former connection is known to be dead."""
_READ_BYTES = 1 << 16
_USER_TIMEOUT_MS = 5_000
_MS = 1_000_000
_ENDED = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR


class Connected(msgspec.Struct, frozen=True):
    """Both ends have shown the key. `number` is the connection's from here on, the lowest that is free."""

    peer: str
    number: int = 0
    kind: Literal["connected"] = "connected"


class Disconnected(msgspec.Struct, frozen=True):
    """The connection broke, or could not be set up."""

    reason: str
    number: int = 0
    kind: Literal["disconnected"] = "disconnected"


class Received(msgspec.Struct, frozen=True):
    """The peer sent a message."""

    message: AnyMessage
    number: int = 0
    kind: Literal["received"] = "received"


LinkEvent = Connected | Disconnected | Received


class _Connection:
    """A socket and its channel."""

    def __init__(self, sock: socket.socket, channel: Channel, peer: str, epoll: select.epoll, now_ns: int) -> None:
        self.channel = channel
        self.peer = peer
        self.number = 0
        self.overflowed = False
        self.fd = sock.fileno()
        self.since_ns = now_ns
        self._socket = sock
        self._epoll = epoll
        self._mask = select.EPOLLIN | select.EPOLLRDHUP
        self._failure: ChannelError | None = None
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _USER_TIMEOUT_MS)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1)
        epoll.register(self.fd, self._mask)

    def receive(self, ready: int, buffer: memoryview) -> Iterator[bytes]:
        """What arrived: up to `buffer`, or all of it if the peer has ended. LinkError: why no more will come."""
        while True:
            try:
                size = self._socket.recv_into(buffer)
            except BlockingIOError:
                return
            except OSError as error:
                raise ChannelError("reset", _describe(error)) from None
            if size == 0:
                raise self._failure or self.channel.ended()
            self.channel.feed(buffer[:size])
            yield from self.channel.payloads()
            if not ready & _ENDED:
                return

    def flush(self) -> None:
        """Send what the socket takes. A failure shows in `receive`, after what has arrived."""
        output = self.channel.output
        try:
            while output:
                del output[: self._socket.send(output)]
        except BlockingIOError:
            pass
        except OSError as error:
            self._failure = ChannelError("reset", _describe(error))
            output.clear()
        mask = select.EPOLLIN | select.EPOLLRDHUP | (select.EPOLLOUT if output else 0)
        if mask != self._mask:
            self._mask = mask
            self._epoll.modify(self.fd, mask)

    def close(self, buffer: memoryview) -> None:
        """Send what the socket takes, then close. What is unread is read first: else the kernel sends a reset."""
        self.flush()
        try:
            for _ in range(LINK_WINDOW_BYTES // len(buffer)):
                if self._socket.recv_into(buffer) == 0:
                    break
        except OSError:
            pass
        self._epoll.unregister(self.fd)
        self._socket.close()


_COUNTERS = (
    *("accepted", "closed", "reset", "torn", "garbage", "version", "key", "mac", "oversize", "message", "refused"),
    *("late", "queue_full", "busy", "handshakes_full"),
)


class _Link:
    """What server and client have in common: connections, by number, each to a peer that has shown the key.

    `counters` tell how connections ended: by the peer (`closed`, `reset`, `torn` in mid-frame), for what the peer sent
    (`garbage`, `version`, `key`, `mac`, `oversize`, `message`, `refused`), did not send (`late`) or did not read
    (`queue_full`), or for another connection: there are LINK_CONNECTIONS_MAX (`busy`), or HANDSHAKES_MAX strangers
    (`handshakes_full`).
    """

    def __init__(self, address: str, key: bytes, epoll: select.epoll | None) -> None:
        if len(key) < KEY_BYTES_MIN:
            raise UsageError(f"the deployment's key has {len(key)} bytes; it needs {KEY_BYTES_MIN} or more")
        self.address = address
        self.closed_reason = "not connected yet"
        self.counters = dict.fromkeys(_COUNTERS, 0)
        self._key = key
        self._family, self._address = _resolve(address)
        self._connections: dict[int, _Connection] = {}
        self._lost: list[_Connection] = []  # to be closed when there is time: first is done what follows from the loss
        self._buffer = memoryview(bytearray(_READ_BYTES))
        self._epoll = select.epoll()
        self._outer_epoll = epoll
        if epoll is not None:
            epoll.register(self._epoll.fileno(), select.EPOLLIN)

    def fileno(self) -> int:
        """Readable when `events` has something to do; the same for the link's whole life."""
        return self._epoll.fileno()

    @property
    def connected(self) -> bool:
        """A peer has shown the key, and the connection stands."""
        return any(connection.channel.open for connection in list(self._connections.values()))

    @property
    def peer(self) -> str:
        """The addresses of the connected peers."""
        return ", ".join(connection.peer for connection in list(self._connections.values()))

    @property
    def queued_bytes(self) -> int:
        """What waits for the sockets."""
        return sum(len(connection.channel.output) for connection in self._connections.values())

    def send(self, message: AnyMessage, number: int = 0) -> None:
        """Queue a message for the next `flush`. Without a connection it is dropped, as it is when one breaks."""
        connection = self._connections.get(number)
        if connection is None or not connection.channel.open or connection.overflowed:
            return
        if len(connection.channel.output) > LINK_QUEUE_BYTES_MAX:
            connection.overflowed = True
            return
        connection.channel.seal(encode(message))

    def flush(self) -> None:
        """Send what is queued, as far as the sockets take it; `events` sends the rest."""
        for connection in self._connections.values():
            if connection.channel.output:
                connection.flush()

    def drop(self, reason: str, number: int = 0) -> None:
        """Close the connection, after what was sent; no Disconnected follows."""
        connection = self._connections.pop(number, None)
        if connection is not None:
            connection.close(self._buffer)
            self.closed_reason = reason

    def close(self) -> None:
        """End the link."""
        self._close_lost()
        for number in list(self._connections):
            self.drop("closed", number)
        if self._outer_epoll is not None and not self._epoll.closed:
            self._outer_epoll.unregister(self._epoll.fileno())
        self._epoll.close()

    def _receive(self, connection: _Connection, ready: int) -> Iterator[LinkEvent]:
        """What came on an open connection, until that is dropped."""
        try:
            if connection.overflowed:
                raise ChannelError("queue_full", f"the peer left more than {LINK_QUEUE_BYTES_MAX} bytes unread")
            for payload in connection.receive(ready, self._buffer):
                yield Received(_decode(payload), connection.number)
                if self._connections.get(connection.number) is not connection:
                    return
            connection.flush()
        except ChannelError as error:
            yield self._lose(error, connection.number)

    def _connected(self, connection: _Connection) -> Connected:
        self.counters["accepted"] += 1
        return Connected(connection.peer, connection.number)

    def _lose(self, error: ChannelError, number: int = 0) -> Disconnected:
        reason = str(error)
        self.counters[error.counter] += 1
        if number in self._connections:
            self._lost.append(self._connections.pop(number))
        self.drop(reason, number)
        self.closed_reason = reason
        return Disconnected(reason, number)

    def _close_lost(self) -> None:
        while self._lost:
            self._lost.pop().close(self._buffer)


class LinkServer(_Link):
    """Listens at `address` ("host:port"; port 0: any, see `address` then) for LINK_CONNECTIONS_MAX connections.

    `epoll`, if given, learns of the link's file descriptor. LinkError: the address cannot be listened at.
    """

    def __init__(self, address: str, key: bytes, epoll: select.epoll | None = None) -> None:
        super().__init__(address, key, epoll)
        self._strangers: dict[int, _Connection] = {}  # have not shown the key yet; oldest first
        self._listener = socket.socket(self._family, socket.SOCK_STREAM)
        try:
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._listener.setblocking(False)
            self._listener.bind(self._address)
            self._listener.listen()
        except OSError as error:
            self._listener.close()
            super().close()
            raise LinkError(f"cannot listen at {address}: {_describe(error)}") from None
        self.address = _name(self._listener.getsockname())
        self._epoll.register(self._listener.fileno(), select.EPOLLIN)

    def events(self, now_ns: int) -> Iterator[LinkEvent]:
        """What happens, as it is asked for: exhaust it, then call again. A call reads a bounded amount."""
        self._close_lost()
        ready = dict(self._epoll.poll(0))
        for connection in list(self._connections.values()):
            if connection.fd not in ready and not connection.overflowed:
                continue
            mask = ready.pop(connection.fd, 0)
            if self._connections.get(connection.number) is connection:
                yield from self._receive(connection, mask)
        for fd, mask in ready.items():
            if fd == self._listener.fileno():
                self._accept(now_ns)
            elif fd in self._strangers:
                yield from self._shake_hands(self._strangers[fd], mask)
        for stranger in list(self._strangers.values()):
            if now_ns - stranger.since_ns > HANDSHAKE_MS * _MS:
                self._turn_away(stranger, "late")

    def close(self) -> None:
        """Stop listening, and end the connection."""
        for stranger in self._strangers.values():
            stranger.close(self._buffer)
        self._strangers.clear()
        self._listener.close()
        super().close()

    def _accept(self, now_ns: int) -> None:
        for _ in range(HANDSHAKES_MAX):
            try:
                sock, address = self._listener.accept()
            except OSError:  # no more, or gone again
                return
            sock.setblocking(False)
            if len(self._strangers) == HANDSHAKES_MAX:
                self._turn_away(next(iter(self._strangers.values())), "handshakes_full")
            stranger = _Connection(sock, Channel(self._key, server=True), _name(address), self._epoll, now_ns)
            self._strangers[stranger.fd] = stranger

    def _shake_hands(self, stranger: _Connection, ready: int) -> Iterator[LinkEvent]:
        try:
            for _ in stranger.receive(ready, self._buffer[:STRANGER_BYTES]):
                raise AssertionError("no frames before the end of the handshake")
            stranger.flush()
        except ChannelError as error:
            self._turn_away(stranger, error.counter)
            return
        if not stranger.channel.proven:
            return
        number = next((n for n in range(LINK_CONNECTIONS_MAX) if n not in self._connections), None)
        if number is None:
            stranger.channel.admit(refusal=f"{self.peer} are connected already")
            self._turn_away(stranger, "busy")
            return
        stranger.channel.admit()
        stranger.flush()
        del self._strangers[stranger.fd]
        stranger.number = number
        self._connections[number] = stranger
        yield self._connected(stranger)

    def _turn_away(self, stranger: _Connection, counter: str) -> None:
        self.counters[counter] += 1
        del self._strangers[stranger.fd]
        stranger.close(self._buffer)


class LinkClient(_Link):
    """Connects to `address` ("host:port"), again and again until closed. Of several it tries one after the other.

    After a break it tries the same at once, then with pauses of RECONNECT_MS_MIN to RECONNECT_MS_MAX. `epoll` as for
    LinkServer.
    """

    def __init__(self, address: str | Sequence[str], key: bytes, epoll: select.epoll | None = None) -> None:
        self._addresses = [address] if isinstance(address, str) else list(address)
        super().__init__(self._addresses[0], key, epoll)
        self._resolved = {each: _resolve(each) for each in self._addresses}
        self._again = True
        """The next attempt is at the same address."""
        self._pause_ms = 0
        self._due_ns: int | None = 0  # of the next attempt; None: as soon as a pause from now is over
        self._at_once_ns = -RECONNECT_MS_MAX * _MS  # last attempt right after a break

    def events(self, now_ns: int) -> Iterator[LinkEvent]:
        """What happens, as it is asked for: exhaust it, then call again. A call reads a bounded amount."""
        self._close_lost()
        yield from self._service(now_ns)
        if self._connections or self._epoll.closed:
            return
        if self._due_ns is None:
            self._due_ns = now_ns + self._pause_ms * _MS
        if now_ns >= self._due_ns:
            yield from self._connect(now_ns)

    def drop(self, reason: str, number: int = 0) -> None:
        """Close the connection, after what was sent; no Disconnected follows. A pause does."""
        super().drop(reason)
        if self.address == self._addresses[-1]:
            self._pause_ms = min(max(2 * self._pause_ms, RECONNECT_MS_MIN), RECONNECT_MS_MAX)
        self._due_ns = None

    def _service(self, now_ns: int) -> Iterator[LinkEvent]:
        connection = self._connections.get(0)
        if connection is None:
            return
        ready = dict(self._epoll.poll(0)).get(connection.fd)
        was_open, age_ns = connection.channel.open, now_ns - connection.since_ns
        if not was_open and age_ns > HANDSHAKE_MS * _MS:
            yield self._lose(ChannelError("late", f"no answer from {self.address} within {HANDSHAKE_MS} ms"))
            return
        if self._pause_ms and was_open and age_ns > RECONNECT_MS_MAX * _MS:
            self._pause_ms = 0
        if ready is None and not connection.overflowed:
            return
        for event in self._receive(connection, ready or 0):
            if not was_open and connection.channel.open:
                was_open = True
                yield self._connected(connection)
                if self._connections.get(0) is not connection and not isinstance(event, Disconnected):
                    return
            if isinstance(event, Disconnected) and was_open and now_ns - self._at_once_ns >= RECONNECT_MS_MAX * _MS:
                # Whether the peer has died shows soonest by asking. But not again and again.
                self._at_once_ns = self._due_ns = now_ns
                self._again = True
            yield event
        if not was_open and connection.channel.open:
            yield self._connected(connection)

    def _connect(self, now_ns: int) -> Iterator[LinkEvent]:
        if not self._again:  # nor was there a break: the next one may lead now
            at = self._addresses.index(self.address)
            self.address = self._addresses[(at + 1) % len(self._addresses)]
            self._family, self._address = self._resolved[self.address]
        self._again = False
        sock = socket.socket(self._family, socket.SOCK_STREAM)
        sock.setblocking(False)
        failure = sock.connect_ex(self._address)
        if failure == errno.EINPROGRESS:
            failure = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)  # on one host a refusal is there already
        if failure:
            sock.close()
            yield self._lose(ChannelError("reset", _describe(OSError(failure, os.strerror(failure)))))
            return
        channel = Channel(self._key, server=False)
        connection = self._connections[0] = _Connection(sock, channel, self.address, self._epoll, now_ns)
        connection.flush()


def _decode(payload: bytes) -> AnyMessage:
    try:
        return decode(payload)
    except LinkError as error:
        raise ChannelError("message", str(error)) from None


def _resolve(address: str) -> tuple[socket.AddressFamily, tuple[Any, ...]]:
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdecimal() or int(port) > 65_535:
        raise UsageError(f"link address {address!r} is not of the form host:port")
    try:
        family, _, _, _, resolved = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise LinkError(f"link address {address!r}: {_describe(error)}") from None
    return family, resolved


def _name(address: tuple[str, int] | tuple[str, int, int, int]) -> str:
    return f"[{address[0]}]:{address[1]}" if ":" in address[0] else f"{address[0]}:{address[1]}"


def _describe(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
