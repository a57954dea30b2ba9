"""A simulated network between the nodes: TCP connections whose bytes the real channel seals and checks.

What an end has sent arrives in order, later, up to where the connection breaks. A direction that is blocked keeps what is
sent (TCP tries again) until it opens, or the connection is reset.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from random import Random

from actornet.limits import HANDSHAKE_MS, LINK_QUEUE_BYTES_MAX, RECONNECT_MS_MAX, RECONNECT_MS_MIN
from actornet.node.channel import Channel, ChannelError
from actornet.node.link import Connected, Disconnected, LinkEvent, Received
from actornet.replication.messages import AnyMessage, decode, encode

MS = 1_000_000
_KEY = b"k" * 32
_COUNTERS = ("accepted", "closed", "reset", "torn", "garbage", "version", "key", "mac", "oversize", "late")


class Wire:
    """One TCP connection. `inbox[n]`: (due, bytes) for the end at node n; None is the end of the stream.

    `epochs[n]`: for each message that the end at node n is yet to receive, the epoch that its sender led then.
    """

    def __init__(self, client: str, server: str, now_ns: int) -> None:
        self.ends = (client, server)
        self.since_ns = now_ns
        self.inbox: dict[str, deque[tuple[int, bytes | None]]] = {client: deque(), server: deque()}
        self.epochs: dict[str, deque[int]] = {client: deque(), server: deque()}

    def other(self, node: str) -> str:
        return self.ends[self.ends[0] == node]


class Network:
    """The connections between the nodes, and who listens. `blocked`: (from, to) pairs that nothing passes."""

    def __init__(self, clock: Callable[[], int]) -> None:
        self.random = Random(0)
        self.clock = clock
        self.blocked: set[tuple[str, str]] = set()
        self.delay_ns = (MS // 20, MS // 2)
        self.listeners: dict[str, ServerEnd] = {}
        self.wires: list[Wire] = []
        self.leading: Callable[[str], int] = lambda node: 0
        self.time_at: Callable[[str], int] = lambda node: clock()
        """How late it is for a node, which may be busy until then."""
        self.on_send: Callable[[str, AnyMessage], None] = lambda node, message: None
        self.on_message: Callable[[str, int, AnyMessage], None] = lambda node, epoch, message: None

    def send(self, wire: Wire, sender: str, data: bytes | None) -> None:
        inbox = wire.inbox[wire.other(sender)]
        due_ns = self.time_at(sender) + self.random.randint(*self.delay_ns)
        inbox.append((max(due_ns, inbox[-1][0]) if inbox else due_ns, data))

    def has_come(self, wire: Wire, node: str) -> bool:
        """Whether something has come by now."""
        inbox = wire.inbox[node]
        return bool(inbox) and inbox[0][0] <= self.clock() and (wire.other(node), node) not in self.blocked

    def arrived(self, wire: Wire, node: str) -> Iterator[bytes | None]:
        """What has come by now."""
        if (wire.other(node), node) in self.blocked:
            return
        inbox = wire.inbox[node]
        while inbox and inbox[0][0] <= self.clock():
            yield inbox.popleft()[1]

    def reset(self) -> None:
        """All connections break; part of what was under way is lost."""
        for wire in self.wires:
            for inbox in wire.inbox.values():
                while inbox and self.random.random() < 0.5:
                    inbox.pop()
                inbox.append((self.clock(), None))
        self.wires.clear()

    def disturb(self, how: str) -> None:
        """Bytes under way are changed, repeated or swapped: nothing that TCP does, but the MAC's affair."""
        inboxes = [inbox for wire in self.wires for inbox in wire.inbox.values() if inbox and inbox[0][1]]
        if not inboxes:
            return
        inbox = self.random.choice(inboxes)
        index = self.random.randrange(len(inbox))
        due_ns, data = inbox[index]
        if data is None:
            return
        if how == "flip":
            changed = bytearray(data)
            changed[self.random.randrange(len(changed))] ^= 1 << self.random.randrange(8)
            inbox[index] = (due_ns, bytes(changed))
        elif how == "repeat":
            inbox.insert(index, (due_ns, data))
        else:
            inbox[index], inbox[0] = (due_ns, inbox[0][1]), (inbox[0][0], data)


class _Connection:
    """One end of a wire."""

    def __init__(self, wire: Wire, channel: Channel, number: int = 0) -> None:
        self.wire = wire
        self.channel = channel
        self.number = number


class _End:
    """What both ends have in common: see `actornet.node.link`."""

    def __init__(self, network: Network, node: str, on_flush: Callable[[str], None]) -> None:
        self.address = self.peer = f"simulated-{node}"
        self.counters = dict.fromkeys(_COUNTERS, 0)
        self._network = network
        self._node = node
        self._connections: dict[int, _Connection] = {}
        self._on_flush = on_flush

    @property
    def connected(self) -> bool:
        return any(connection.channel.open for connection in self._connections.values())

    @property
    def has_come(self) -> bool:
        """Whether `events` has something to read."""
        return any(self._network.has_come(connection.wire, self._node) for connection in self._connections.values())

    def send(self, message: AnyMessage, number: int = 0) -> None:
        connection = self._connections.get(number)
        if connection is not None and connection.channel.open:
            connection.channel.seal(encode(message))
            wire = connection.wire
            wire.epochs[wire.other(self._node)].append(self._network.leading(self._node))
            self._network.on_send(self._node, message)

    def flush(self) -> None:
        for connection in list(self._connections.values()):
            self._flush(connection)

    def drop(self, reason: str, number: int = 0) -> None:
        connection = self._connections.get(number)
        if connection is not None:
            self._flush(connection)
            self._hang_up(number)

    def close(self) -> None:
        for number in list(self._connections):
            self.drop("closed", number)

    def _flush(self, connection: _Connection) -> None:
        output = connection.channel.output
        if output:
            self._on_flush("before flush")
            data = bytes(output)
            assert len(data) < LINK_QUEUE_BYTES_MAX
            output.clear()
            self._network.send(connection.wire, self._node, data)
            self._on_flush("after flush")

    def _hang_up(self, number: int = 0) -> None:
        """What the kernel does for a process that is gone, as well."""
        connection = self._connections.pop(number, None)
        if connection is not None:
            self._network.send(connection.wire, self._node, None)
            if connection.wire in self._network.wires:
                self._network.wires.remove(connection.wire)

    def _read(self, wire: Wire, channel: Channel) -> Iterator[bytes]:
        for data in self._network.arrived(wire, self._node):
            if data is None:
                raise channel.ended()
            channel.feed(data)
            yield from channel.payloads()

    def _receive(self, connection: _Connection) -> Iterator[LinkEvent]:
        wire, channel, number = connection.wire, connection.channel, connection.number
        was_open = channel.open
        try:
            for payload in self._read(wire, channel):
                if not was_open:
                    was_open = True
                    yield Connected(self.peer, number)
                    if self._connections.get(number) is not connection:
                        return
                message = decode(payload)
                self._network.on_message(self._node, wire.epochs[self._node].popleft(), message)
                yield Received(message, number)
                if self._connections.get(number) is not connection:
                    return
            if not was_open and channel.open:
                yield Connected(self.peer, number)
        except ChannelError as error:
            yield self._lose(error, number)

    def _lose(self, error: ChannelError, number: int = 0) -> Disconnected:
        self.counters[error.counter] = self.counters.get(error.counter, 0) + 1
        self._hang_up(number)
        return Disconnected(str(error), number)


class ServerEnd(_End):
    """As LinkServer."""

    def __init__(self, network: Network, node: str, on_flush: Callable[[str], None]) -> None:
        super().__init__(network, node, on_flush)
        self._strangers: list[tuple[Wire, Channel]] = []
        network.listeners[node] = self

    @property
    def has_come(self) -> bool:
        strangers = any(self._network.has_come(wire, self._node) for wire, _ in self._strangers)
        return strangers or super().has_come

    def accept(self, wire: Wire) -> None:
        self._strangers.append((wire, Channel(_KEY, server=True)))

    def events(self, now_ns: int) -> Iterator[LinkEvent]:
        for connection in list(self._connections.values()):
            if self._connections.get(connection.number) is connection:
                yield from self._receive(connection)
        for stranger in list(self._strangers):
            yield from self._shake_hands(*stranger)

    def close(self) -> None:
        self.vanish()

    def vanish(self) -> None:
        self._network.listeners.pop(self._node, None)
        for wire, _ in self._strangers:
            self._network.send(wire, self._node, None)
        self._strangers.clear()
        for number in list(self._connections):
            self._hang_up(number)

    def _shake_hands(self, wire: Wire, channel: Channel) -> Iterator[LinkEvent]:
        try:
            for _ in self._read(wire, channel):
                raise AssertionError("no frames before the end of the handshake")
        except ChannelError as error:
            self.counters[error.counter] += 1
            self._strangers.remove((wire, channel))
            self._network.send(wire, self._node, None)
            return
        if channel.proven:
            self._strangers.remove((wire, channel))
            channel.admit()
            number = next(n for n in range(1 << 10) if n not in self._connections)
            self._connections[number] = _Connection(wire, channel, number)
            self.counters["accepted"] += 1
            yield Connected(self.peer, number)
        elif channel.output:
            self._network.send(wire, self._node, bytes(channel.output))
            channel.output.clear()


class ClientEnd(_End):
    """As LinkClient."""

    def __init__(self, network: Network, node: str, servers: Sequence[str], on_flush: Callable[[str], None]) -> None:
        super().__init__(network, node, on_flush)
        self._servers = servers
        self._server = servers[0]
        self._again = True
        self._pause_ms = 0
        self._due_ns: int | None = 0
        self._at_once_ns = -RECONNECT_MS_MAX * MS
        self._closed = False

    def events(self, now_ns: int) -> Iterator[LinkEvent]:
        yield from self._service(now_ns)
        if self._connections or self._closed:
            return
        if self._due_ns is None:
            self._due_ns = now_ns + self._pause_ms * MS
        if now_ns >= self._due_ns:
            yield from self._connect(now_ns)

    def drop(self, reason: str, number: int = 0) -> None:
        super().drop(reason)
        self._rest()

    def close(self) -> None:
        super().close()
        self._closed = True

    def vanish(self) -> None:
        self._hang_up()
        self._closed = True

    def _rest(self) -> None:
        if self._server == self._servers[-1]:
            self._pause_ms = min(max(2 * self._pause_ms, RECONNECT_MS_MIN), RECONNECT_MS_MAX)
        self._due_ns = None

    def _lose(self, error: ChannelError, number: int = 0) -> Disconnected:
        lost = super()._lose(error)
        self._rest()
        return lost

    def _service(self, now_ns: int) -> Iterator[LinkEvent]:
        connection = self._connections.get(0)
        if connection is None:
            return
        was_open = connection.channel.open
        if not was_open and now_ns - self._since_ns > HANDSHAKE_MS * MS:
            yield self._lose(ChannelError("late", "no answer"))
            return
        for event in self._receive(connection):
            if isinstance(event, Disconnected) and was_open and now_ns - self._at_once_ns >= RECONNECT_MS_MAX * MS:
                self._at_once_ns = self._due_ns = now_ns
                self._again = True
            yield event
        if self._connections.get(0) is connection:
            self.flush()

    def _connect(self, now_ns: int) -> Iterator[LinkEvent]:
        network = self._network
        if not self._again:
            self._server = self._servers[(self._servers.index(self._server) + 1) % len(self._servers)]
        self._again = False
        if (self._node, self._server) in network.blocked or (self._server, self._node) in network.blocked:
            server = None
        elif (server := network.listeners.get(self._server)) is None:
            yield self._lose(ChannelError("reset", "connection refused"))
            return
        self._since_ns = now_ns
        wire = Wire(self._node, self._server, now_ns)
        self._connections[0] = _Connection(wire, Channel(_KEY, server=False))
        if server is not None:
            network.wires.append(wire)
            server.accept(wire)
            self.flush()
