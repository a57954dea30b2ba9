"""A simulated network between two nodes: TCP connections whose bytes the real channel seals and checks.

What an end has sent arrives in order, later, up to where the connection breaks. A direction that is blocked keeps what is
sent (TCP tries again) until it opens, or the connection is reset.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from random import Random

from actornet.limits import HANDSHAKE_MS, LINK_QUEUE_BYTES_MAX, RECONNECT_MS_MAX, RECONNECT_MS_MIN
from actornet.node.channel import Channel, ChannelError
from actornet.node.link import Connected, Disconnected, LinkEvent, Received
from actornet.replication.messages import AnyMessage, decode, encode

MS = 1_000_000
_KEY = b"k" * 32
_COUNTERS = ("accepted", "closed", "reset", "torn", "garbage", "version", "key", "mac", "oversize", "late", "replaced")


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
        self.on_send: Callable[[str, AnyMessage], None] = lambda node, message: None
        self.on_message: Callable[[str, int, AnyMessage], None] = lambda node, epoch, message: None

    def send(self, wire: Wire, sender: str, data: bytes | None) -> None:
        inbox = wire.inbox[wire.other(sender)]
        due_ns = self.clock() + self.random.randint(*self.delay_ns)
        inbox.append((max(due_ns, inbox[-1][0]) if inbox else due_ns, data))

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


class _End:
    """What both ends have in common: see `actornet.node.link`."""

    def __init__(self, network: Network, node: str, on_flush: Callable[[str], None]) -> None:
        self.address = self.peer = f"simulated-{node}"
        self.counters = dict.fromkeys(_COUNTERS, 0)
        self._network = network
        self._node = node
        self._wire: Wire | None = None
        self._channel = Channel(_KEY, server=False)
        self._on_flush = on_flush

    @property
    def connected(self) -> bool:
        return self._wire is not None and self._channel.open

    def send(self, message: AnyMessage) -> None:
        if self._wire is not None and self._channel.open:
            self._channel.seal(encode(message))
            self._wire.epochs[self._wire.other(self._node)].append(self._network.leading(self._node))
            self._network.on_send(self._node, message)

    def flush(self) -> None:
        if self._wire is not None and self._channel.output:
            self._on_flush("before flush")
            data = bytes(self._channel.output)
            assert len(data) < LINK_QUEUE_BYTES_MAX
            self._channel.output.clear()
            self._network.send(self._wire, self._node, data)
            self._on_flush("after flush")

    def drop(self, reason: str) -> None:
        if self._wire is not None:
            self.flush()
            self._hang_up()

    def close(self) -> None:
        self.drop("closed")

    def _hang_up(self) -> None:
        """What the kernel does for a process that is gone, as well."""
        if self._wire is not None:
            self._network.send(self._wire, self._node, None)
            if self._wire in self._network.wires:
                self._network.wires.remove(self._wire)
            self._wire = None

    def _read(self, wire: Wire, channel: Channel) -> Iterator[bytes]:
        for data in self._network.arrived(wire, self._node):
            if data is None:
                raise channel.ended()
            channel.feed(data)
            yield from channel.payloads()

    def _receive(self, wire: Wire) -> Iterator[LinkEvent]:
        was_open = self._channel.open
        try:
            for payload in self._read(wire, self._channel):
                if not was_open:
                    was_open = True
                    yield Connected(self.peer)
                    if self._wire is not wire:
                        return
                message = decode(payload)
                self._network.on_message(self._node, wire.epochs[self._node].popleft(), message)
                yield Received(message)
                if self._wire is not wire:
                    return
            if not was_open and self._channel.open:
                yield Connected(self.peer)
        except ChannelError as error:
            yield self._lose(error)

    def _lose(self, error: ChannelError) -> Disconnected:
        self.counters[error.counter] = self.counters.get(error.counter, 0) + 1
        self._hang_up()
        return Disconnected(str(error))


class ServerEnd(_End):
    """As LinkServer."""

    def __init__(self, network: Network, node: str, on_flush: Callable[[str], None]) -> None:
        super().__init__(network, node, on_flush)
        self._strangers: list[tuple[Wire, Channel]] = []
        network.listeners[node] = self

    def accept(self, wire: Wire) -> None:
        self._strangers.append((wire, Channel(_KEY, server=True)))

    def events(self, now_ns: int) -> Iterator[LinkEvent]:
        if self._wire is not None:
            yield from self._receive(self._wire)
        for stranger in list(self._strangers):
            yield from self._shake_hands(*stranger)

    def close(self) -> None:
        self.vanish()

    def vanish(self) -> None:
        self._network.listeners.pop(self._node, None)
        for wire, _ in self._strangers:
            self._network.send(wire, self._node, None)
        self._strangers.clear()
        self._hang_up()

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
            lost = self._lose(ChannelError("replaced", "the peer connected anew")) if self._wire is not None else None
            channel.admit()
            self._wire, self._channel = wire, channel
            self.counters["accepted"] += 1
            if lost is not None:
                yield lost
            if self._wire is wire:
                yield Connected(self.peer)
        elif channel.output:
            self._network.send(wire, self._node, bytes(channel.output))
            channel.output.clear()


class ClientEnd(_End):
    """As LinkClient."""

    def __init__(self, network: Network, node: str, server: str, on_flush: Callable[[str], None]) -> None:
        super().__init__(network, node, on_flush)
        self._server = server
        self._pause_ms = 0
        self._due_ns: int | None = 0
        self._at_once_ns = -RECONNECT_MS_MAX * MS
        self._closed = False

    def events(self, now_ns: int) -> Iterator[LinkEvent]:
        yield from self._service(now_ns)
        if self._wire is not None or self._closed:
            return
        if self._due_ns is None:
            self._due_ns = now_ns + self._pause_ms * MS
        if now_ns >= self._due_ns:
            yield from self._connect(now_ns)

    def drop(self, reason: str) -> None:
        super().drop(reason)
        self._rest()

    def close(self) -> None:
        super().close()
        self._closed = True

    def vanish(self) -> None:
        self._hang_up()
        self._closed = True

    def _rest(self) -> None:
        self._pause_ms = min(max(2 * self._pause_ms, RECONNECT_MS_MIN), RECONNECT_MS_MAX)
        self._due_ns = None

    def _lose(self, error: ChannelError) -> Disconnected:
        lost = super()._lose(error)
        self._rest()
        return lost

    def _service(self, now_ns: int) -> Iterator[LinkEvent]:
        wire = self._wire
        if wire is None:
            return
        was_open = self._channel.open
        if not was_open and now_ns - self._since_ns > HANDSHAKE_MS * MS:
            yield self._lose(ChannelError("late", "no answer"))
            return
        for event in self._receive(wire):
            if isinstance(event, Disconnected) and was_open and now_ns - self._at_once_ns >= RECONNECT_MS_MAX * MS:
                self._at_once_ns = self._due_ns = now_ns
            yield event
        if self._wire is wire:
            self.flush()

    def _connect(self, now_ns: int) -> Iterator[LinkEvent]:
        network = self._network
        if (self._node, self._server) in network.blocked or (self._server, self._node) in network.blocked:
            server = None
        elif (server := network.listeners.get(self._server)) is None:
            yield self._lose(ChannelError("reset", "connection refused"))
            return
        self._since_ns = now_ns
        self._wire = Wire(self._node, self._server, now_ns)
        self._channel = Channel(_KEY, server=False)
        if server is not None:
            network.wires.append(self._wire)
            server.accept(self._wire)
            self.flush()
