"""The link: its channel byte by byte, and both ends over loopback. G10: whoever lacks the key gets nowhere."""

from __future__ import annotations

import os
import random
import select
import signal
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import pytest

from actornet.errors import LinkError, UsageError
from actornet.limits import (
    HANDSHAKE_MS,
    HANDSHAKES_MAX,
    LINK_FRAME_BYTES_MAX,
    LINK_QUEUE_BYTES_MAX,
    RECONNECT_MS_MAX,
    RECONNECT_MS_MIN,
)
from actornet.node import channel as channel_module
from actornet.node.channel import Channel, ChannelError
from actornet.node.link import (
    LINK_CONNECTIONS_MAX,
    Connected,
    Disconnected,
    LinkClient,
    LinkEvent,
    LinkServer,
    Received,
)
from actornet.replication.messages import Ack, Fence, Heartbeat, Records, Refuse, encode

KEY, OTHER_KEY = b"k" * 32, b"o" * 32
MS = 1_000_000


def take(channel: Channel) -> bytes:
    """What the channel wants to send."""
    data = bytes(channel.output)
    channel.output.clear()
    return data


def give(channel: Channel, data: bytes) -> list[bytes]:
    channel.feed(data)
    return list(channel.payloads())


def pair() -> tuple[Channel, Channel]:
    """A client and a server after the handshake."""
    client, server = Channel(KEY, server=False), Channel(KEY, server=True)
    give(server, take(client))
    give(client, take(server))
    give(server, take(client))
    assert server.proven and not server.open
    server.admit()
    give(client, take(server))
    assert client.open and server.open
    return client, server


def test_frames_byte_by_byte() -> None:
    """Handshake and frames may arrive in any pieces."""
    client, server = Channel(KEY, server=False), Channel(KEY, server=True)
    received = []
    payloads = [b"", b"x", os.urandom(70_000)]
    for _ in range(4):
        for end, other in ((client, server), (server, client)):
            for byte in take(end):
                received += give(other, bytes([byte]))
        if server.proven and not server.open:
            server.admit()
        elif client.open and not received:
            for payload in payloads:
                client.seal(payload)
    assert received == payloads


@pytest.mark.parametrize("key", ["MAC", "length"])
def test_flipped_frames(key: str) -> None:
    """G8, G10: no bit of a frame can change unnoticed; a longer length only makes the next bytes fail instead."""
    for position in range(20 + 9):
        client, server = pair()
        client.seal(b"a message")
        client.seal(bytes(LINK_FRAME_BYTES_MAX))
        data = bytearray(take(client))
        data[position] ^= 1 << (position % 8)
        with pytest.raises(LinkError, match=r"MAC is wrong|is the most"):
            give(server, bytes(data))


@pytest.mark.parametrize(
    ("attack", "got"),
    [
        (lambda first, second, third: first + first, 1),
        (lambda first, second, third: second + first, 0),
        (lambda first, second, third: first + third, 1),
        (lambda first, second, third: b"", 0),
    ],
    ids=["replay", "reorder", "cut", "reflect"],
)
def test_moved_frames(attack: Callable[[bytes, bytes, bytes], bytes], got: int) -> None:
    """G10: a frame is good once, at its place; what came before it is still received."""
    client, server = pair()
    frames = []
    for payload in (b"first", b"second", b"third"):
        client.seal(payload)
        frames.append(take(client))
    data, victim = attack(*frames), server
    if not data:  # back to where it came from
        data, victim = frames[0], client
    victim.feed(data)
    received = []
    with pytest.raises(ChannelError, match="altered, replayed or reordered") as caught:
        received.extend(victim.payloads())
    assert len(received) == got and caught.value.counter == "mac"


def test_frames_of_another_connection() -> None:
    """G10: nonces make every connection's keys its own."""
    client, _ = pair()
    _, server = pair()
    client.seal(b"a message")
    with pytest.raises(LinkError, match="MAC is wrong"):
        give(server, take(client))


def test_recorded_handshake() -> None:
    """G10: to replay a client's side of a handshake opens nothing."""
    client, server = Channel(KEY, server=False), Channel(KEY, server=True)
    greeting = take(client)
    give(server, greeting)
    give(client, take(server))
    proof = take(client)
    later = Channel(KEY, server=True)
    give(later, greeting)
    with pytest.raises(ChannelError, match="another key"):
        give(later, proof)


def test_mirrored_handshake() -> None:
    """G10: proofs are bound to a role, so a server cannot be made to prove itself to itself."""
    server, mirror = Channel(KEY, server=True), Channel(KEY, server=True)
    client = Channel(KEY, server=False)
    greeting = take(client)
    give(server, greeting)
    give(mirror, greeting)
    with pytest.raises(ChannelError, match="another key"):
        give(server, take(mirror)[-32:])


def test_oversize() -> None:
    """A length beyond the bound is refused before any of it is kept."""
    client, server = pair()
    with pytest.raises(ChannelError, match="is the most") as caught:
        give(server, struct.pack(">I16s", LINK_FRAME_BYTES_MAX + 1, b""))
    assert caught.value.counter == "oversize"
    with pytest.raises(AssertionError):
        client.seal(bytes(LINK_FRAME_BYTES_MAX + 1))


def test_fuzz() -> None:
    """G10: garbage, and handshakes and frames with bytes changed, dropped or added, raise LinkError at most."""
    random_ = random.Random(3)
    refused = 0
    for turn in range(1_500):
        client, server = Channel(KEY, server=False), Channel(KEY, server=True)
        victims = [(client, server), (server, client)]
        try:
            for step in range(6):
                source, target = victims[step % 2]
                if step == 3:
                    server.admit()
                if client.open:
                    source.seal(encode(Ack(1, 2, 3, 4)))
                data = bytearray(take(source))
                if turn % 6 == step:
                    for _ in range(random_.randint(1, 3)):
                        at = random_.randrange(len(data) + 1)
                        data[at : at + random_.randint(0, 3)] = random_.randbytes(random_.randint(0, 3))
                give(target, bytes(data))
        except ChannelError:
            refused += 1
        except AssertionError:  # `admit` before the proof, which is short of bytes
            assert not server.proven
    assert refused > 800
    for _ in range(500):
        with pytest.raises(ChannelError):
            give(Channel(KEY, server=random_.random() < 0.5), random_.randbytes(200))


# Over loopback. Time is given, so that no test sleeps through a time-out.


class Loopback:
    """A server and a client on this host, and their clock."""

    def __init__(self, *, key: bytes = KEY) -> None:
        self.now_ns = time.monotonic_ns()
        self.epoll = select.epoll()
        self.server = LinkServer("127.0.0.1:0", KEY, self.epoll)
        self.client = LinkClient(self.server.address, key, self.epoll)
        self.seen: dict[Any, list[LinkEvent]] = {self.server: [], self.client: []}

    def turn(self, *links: LinkServer | LinkClient) -> None:
        self.epoll.poll(0.001)
        for link in links or (self.server, self.client):
            self.seen[link] += link.events(self.now_ns)

    def until(self, condition: Callable[[], Any], *links: LinkServer | LinkClient) -> None:
        for _ in range(2_000):
            if condition():
                return
            self.turn(*links)
        raise AssertionError(f"it never came to pass; {self.server.counters} {self.client.counters}")

    def connect(self) -> None:
        self.until(lambda: self.server.connected and self.client.connected)
        assert self.seen == {self.server: [Connected(self.server.peer)], self.client: [Connected(self.client.peer)]}
        for events in self.seen.values():
            events.clear()

    def close(self) -> None:
        self.server.close()
        self.client.close()
        self.epoll.close()


@contextmanager
def loopback(**changes: Any) -> Iterator[Loopback]:
    here = Loopback(**changes)
    try:
        yield here
    finally:
        here.close()


def stranger(here: Loopback, data: bytes = b"") -> socket.socket:
    """Someone else connects, and says something."""
    sock = socket.create_connection(("127.0.0.1", int(here.server.address.rpartition(":")[2])))
    sock.setblocking(False)
    sock.sendall(data)
    return sock


def received(events: list[LinkEvent]) -> list[Any]:
    return [event.message for event in events if event.kind == "received"]


def test_messages_both_ways() -> None:
    """In order, whole, and none before `flush`."""
    with loopback() as here:
        here.connect()
        batches = [Records(7, lsn, [os.urandom(1000)] * 100) for lsn in range(40)]
        for batch in batches:
            here.client.send(batch)
            here.server.send(batch)
        here.turn()
        assert here.seen == {here.server: [], here.client: []} and here.client.queued_bytes > 4_000_000
        here.client.flush()
        here.server.flush()
        here.until(lambda: all(len(events) == 40 for events in here.seen.values()))
        for events in here.seen.values():
            assert received(events) == batches
        assert here.client.queued_bytes == here.server.queued_bytes == 0


def test_unconnected_sends_nothing() -> None:
    """A message for nobody is dropped; so is one on a connection that broke."""
    with loopback() as here:
        here.client.send(Fence(1))
        here.client.flush()
        here.connect()
        here.turn()
        assert here.seen[here.server] == []
        assert here.client.closed_reason == here.server.closed_reason == "not connected yet"


def test_close_is_noticed_after_the_last_message() -> None:
    """G6: what the peer said before it left is received, then its leaving, in one go."""
    with loopback() as here:
        here.connect()
        here.client.send(Fence(9))
        here.server.send(Heartbeat(1, 2, 3))  # unread by the client, as after a crash: the kernel may answer by a reset
        here.server.flush()
        here.client.close()
        here.until(lambda: not here.server.connected, here.server)
        assert here.seen[here.server] == [Received(Fence(9)), Disconnected("closed by the peer")]
        assert here.server.closed_reason == "closed by the peer" and here.server.counters["closed"] == 1
        descriptors = len(os.listdir("/proc/self/fd"))
        here.turn(here.server)
        assert len(os.listdir("/proc/self/fd")) == descriptors - 1, "what is lost is closed when there is time"


def test_reset_after_the_last_message() -> None:
    """G7: also when the peer's death makes the kernel reset the connection, what came before is received."""
    with loopback() as here:
        here.connect()
        here.client.send(Fence(9))
        here.client.flush()
        sock = here.client._connections[0]._socket
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        here.client.close()
        here.server.send(Heartbeat(1, 2, 3))
        here.server.flush()
        here.until(lambda: not here.server.connected, here.server)
        assert here.seen[here.server] == [Received(Fence(9)), Disconnected("connection reset by peer")]
        assert here.server.counters["reset"] == 1


def test_reset_in_mid_frame() -> None:
    """G8: half a message is no message, and it is said that there was one."""
    with loopback() as here:
        here.connect()
        channel = here.client._connections[0].channel
        channel.seal(encode(Fence(9)))
        del channel.output[-1:]
        here.client.close()
        here.until(lambda: not here.server.connected, here.server)
        assert here.seen[here.server] == [Disconnected("closed by the peer in mid-frame")]
        assert here.server.counters["torn"] == 1


def test_damage_in_flight() -> None:
    """G8: the good messages before it are received; the connection ends with the reason."""
    with loopback() as here:
        here.connect()
        here.client.send(Fence(1))
        here.client.send(Fence(2))
        here.client._connections[0].channel.output[-1] ^= 1
        here.client.flush()
        here.until(lambda: not here.server.connected, here.server)
        message, ended = here.seen[here.server]
        assert message == Received(Fence(1)) and "altered" in ended.reason  # type: ignore[union-attr]
        assert here.server.counters["mac"] == 1


def test_message_of_another_kind() -> None:
    """G10: the right key and the wrong message."""
    with loopback() as here:
        here.connect()
        here.client._connections[0].channel.seal(b"\xc1 no message")
        here.client.flush()
        here.until(lambda: here.server.counters["message"], here.server)
        assert not here.server.connected and "none of version" in here.server.closed_reason


def test_wrong_key() -> None:
    """G10: both ends refuse, and the reason says what to do."""
    with loopback(key=OTHER_KEY) as here:
        here.until(lambda: here.client.counters["key"] and here.server.counters["torn"])
        assert not here.server.connected and not here.seen[here.server]
        assert "key file" in here.client.closed_reason
        assert here.seen[here.client] == [Disconnected(here.client.closed_reason)]
    with pytest.raises(UsageError, match="needs 32"):
        LinkServer("127.0.0.1:0", b"short")


def test_wrong_proof() -> None:
    """G10: a client that does not care who it talks to is refused by the server."""
    with loopback() as here:
        with stranger(here, bytes(Channel(OTHER_KEY, server=False).output) + bytes(32)) as sock:
            here.until(lambda: here.server.counters["key"], here.server)
            assert len(sock.recv(1000)) == channel_module.STRANGER_BYTES and sock.recv(1000) == b""
        assert here.seen[here.server] == []


def test_other_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ends name both versions."""
    with loopback() as here:
        monkeypatch.setattr(channel_module, "_PREFIX", b"actornet\x00\x09")
        here.turn(here.client)
        monkeypatch.undo()
        here.until(lambda: here.server.counters["version"], here.server)
        monkeypatch.setattr(channel_module, "_PREFIX", b"actornet\x00\x09")
        monkeypatch.setattr(channel_module, "VERSION", 9)
        here.until(lambda: here.client.counters["version"], here.client)
        assert here.client.closed_reason == "the other end speaks version 1 of the link, this one 9"


def test_garbage_and_slow_strangers() -> None:
    """G9, G10: counted, cut off, and no hindrance to the true peer."""
    with loopback() as here:
        with stranger(here, b"GET / HTTP/1.1\r\n\r\n"), stranger(here, b"act"), stranger(here):
            here.until(lambda: here.server.counters["garbage"], here.server)
            here.connect()
            assert here.server.counters["late"] == 0
            here.now_ns += (HANDSHAKE_MS + 1) * MS
            here.turn(here.server)
            assert here.server.counters["late"] == 2 and here.server.connected


def test_crowd_of_strangers() -> None:
    """G9: the oldest goes, so there is always room for the peer."""
    with loopback() as here:
        crowd = []
        for _ in range(HANDSHAKES_MAX + 5):
            crowd.append(stranger(here))
            here.turn(here.server)
        here.until(lambda: here.server.counters["handshakes_full"] == 5, here.server)
        here.connect()
        assert here.server.counters["handshakes_full"] == 6
        for sock in crowd:
            sock.close()


def test_peer_does_not_read() -> None:
    """Bounded memory: the link ends instead of growing."""
    with loopback() as here:
        here.connect()
        batch = Records(1, 1, [bytes(1 << 20)])
        for _ in range(LINK_QUEUE_BYTES_MAX // (1 << 20) + 20):
            here.server.send(batch)
            here.server.flush()
        assert here.server.queued_bytes <= LINK_QUEUE_BYTES_MAX + (2 << 20)
        here.turn(here.server)
        (ended,) = here.seen[here.server]
        assert ended.kind == "disconnected" and "unread" in ended.reason and not here.server.connected
        assert here.server.counters["queue_full"] == 1


def test_several_connect() -> None:
    """Each peer has a number, and what is sent to one does not reach another; a number is free again after the end."""
    with loopback() as here:
        here.connect()
        other = LinkClient(here.server.address, KEY)
        here.seen[other] = []
        here.until(lambda: len(here.seen[here.server]) == 1 and other.connected, here.server, other)
        (connected,) = here.seen[here.server]
        assert isinstance(connected, Connected) and connected.number == 1
        here.server.send(Fence(7), 1)
        here.server.flush()
        here.until(lambda: len(here.seen[other]) == 2, other)
        assert here.seen[other][1] == Received(Fence(7)) and here.seen[here.client] == []
        other.send(Fence(8))
        other.flush()
        here.until(lambda: len(here.seen[here.server]) == 2, here.server)
        assert here.seen[here.server][1] == Received(Fence(8), 1)
        other.close()
        here.until(lambda: len(here.seen[here.server]) == 3, here.server)
        assert here.seen[here.server][2] == Disconnected("closed by the peer", 1) and here.server.connected
        again = LinkClient(here.server.address, KEY)
        here.seen[again] = []
        here.until(lambda: len(here.seen[here.server]) == 4 and again.connected, here.server, again)
        assert here.seen[here.server][3] == Connected(here.seen[here.server][3].peer, 1)  # type: ignore[union-attr]
        again.close()


def test_one_too_many_is_refused() -> None:
    """Connections are bounded; those that stand go on."""
    with loopback() as here:
        here.connect()
        others = [LinkClient(here.server.address, KEY) for _ in range(LINK_CONNECTIONS_MAX)]
        for other in others:
            here.seen[other] = []
        here.until(lambda: here.server.counters["busy"], here.server, *others)
        here.until(lambda: any(other.counters["refused"] for other in others), here.server, *others)
        assert any("are connected already" in other.closed_reason for other in others)
        assert here.server.connected and here.seen[here.client] == []
        for other in others:
            other.close()


def test_a_client_tries_each_address() -> None:
    """Who leads is not known: an address where nobody listens is left for the next one at once."""
    with loopback() as here, listening("127.0.0.1:0") as away:
        nobody = away.address
        away.close()
        client = LinkClient([nobody, here.server.address], KEY)
        here.seen[client] = []
        here.until(lambda: client.connected, here.server, client)
        assert client.address == here.server.address
        client.close()


def test_reconnects_with_pauses() -> None:
    """At once after a break, which shows a dead process in the same call; then with doubling pauses."""
    with loopback() as here:
        here.connect()
        here.server.close()
        here.until(lambda: here.seen[here.client], here.client)
        assert here.seen[here.client] == [Disconnected("closed by the peer"), Disconnected("connection refused")]
        attempts, pauses_ms = 0, []
        for _ in range(3 * RECONNECT_MS_MAX):
            here.now_ns += MS
            attempts += 1
            if list(here.client.events(here.now_ns)) == [Disconnected("connection refused")]:
                pauses_ms.append(attempts)
                attempts = 0
        assert pauses_ms[0] <= 4 * RECONNECT_MS_MIN and pauses_ms[-1] in (RECONNECT_MS_MAX, RECONNECT_MS_MAX + 1)
        assert all(1.8 < later / sooner < 2.2 for sooner, later in pairwise(pauses_ms[:-1]))
        here.server = LinkServer(here.server.address, KEY, here.epoll)
        here.seen = {here.server: [], here.client: []}
        here.now_ns += RECONNECT_MS_MAX * MS
        here.connect()


def test_drop_pauses() -> None:
    """A side that ends the connection itself says its last word first, and the client does not storm back."""
    with loopback() as here:
        here.connect()
        here.server.send(Refuse(1, "no"))
        here.server.drop("refused")
        here.until(lambda: received(here.seen[here.client]), here.client)
        assert here.server.closed_reason == "refused" and here.seen[here.server] == []
        here.client.drop("refused")
        here.turn(here.client)
        here.turn(here.client)
        assert not here.client.connected and not here.server.connected
        here.now_ns += 4 * RECONNECT_MS_MIN * MS
        here.until(lambda: here.server.connected and here.client.connected)


def test_no_answer() -> None:
    """A port where nobody takes the connection, as with a stopped process: given up after HANDSHAKE_MS."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        client = LinkClient(f"127.0.0.1:{silent.getsockname()[1]}", KEY)
        assert [*client.events(0), *client.events(HANDSHAKE_MS * MS)] == []
        (ended,) = client.events((HANDSHAKE_MS + 1) * MS)
        assert "no answer from" in ended.reason  # type: ignore[union-attr]
        client.close()


def test_addresses() -> None:
    """A port in use and an address that is none: one line that says which."""
    with loopback() as here:
        with pytest.raises(LinkError, match=r"cannot listen at 127\.0\.0\.1:\d+: address already in use"):
            LinkServer(here.server.address, KEY)
    for address in ("10.9.0.1", "10.9.0.1:http", "10.9.0.1:70000", ""):
        with pytest.raises(UsageError, match="host:port"):
            LinkClient(address, KEY)
    with listening("[::1]:0") as server:
        assert server.address.startswith("[::1]:")


@contextmanager
def listening(address: str) -> Iterator[LinkServer]:
    server = LinkServer(address, KEY)
    yield server
    server.close()


def test_random_bytes_over_tcp() -> None:
    """G9, G10: whatever strangers send, the server stays up, and counts every one of them."""
    random_ = random.Random(11)
    with loopback() as here:
        for _ in range(100):
            prefix = bytes(Channel(KEY, server=False).output)[: random_.choice([0, 5, 10, 42])]
            with stranger(here, prefix + random_.randbytes(random_.randint(0, 200))):
                here.turn(here.server)
            here.turn(here.server)
        here.now_ns += 2 * HANDSHAKE_MS * MS
        counters = here.server.counters
        here.until(lambda: sum(counters.values()) == 100, here.server)
        assert counters["garbage"] and counters["key"] and counters["torn"] and not counters["accepted"]
        here.connect()


def serve_echo(address_pipe: int) -> None:
    """In a process of its own: acknowledge every batch."""
    epoll = select.epoll()
    server = LinkServer("127.0.0.1:0", KEY, epoll)
    os.write(address_pipe, server.address.encode())
    while True:
        epoll.poll(0.05)
        for event in server.events(time.monotonic_ns()):
            if event.kind == "received" and isinstance(event.message, Records):
                last_lsn = event.message.first_lsn + len(event.message.records) - 1
                server.send(Ack(1, last_lsn, 0, last_lsn))
            elif event.kind == "disconnected":
                os._exit(0)
        server.flush()


@contextmanager
def echo() -> Iterator[tuple[LinkClient, select.epoll, int]]:
    """A client connected to a server in another process, whose pid comes along."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.alarm(20)
        serve_echo(writing)
    epoll = select.epoll()
    client = LinkClient(os.read(reading, 100).decode(), KEY, epoll)
    try:
        while not client.connected:
            list(client.events(time.monotonic_ns()))
        yield client, epoll, pid
    finally:
        client.close()
        epoll.close()
        os.close(reading)
        os.close(writing)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_round_trip(record_property: Callable[[str, object], None]) -> None:
    """One record of 120 bytes there, its acknowledgement back, between two processes. Printed with -s."""
    with echo() as (client, epoll, _):
        took_us = []
        for lsn in range(1, 1_501):
            began_ns = time.perf_counter_ns()
            client.send(Records(1, lsn, [bytes(120)]))
            client.flush()
            acknowledged = 0
            while acknowledged < lsn:
                epoll.poll(0.1)
                for message in received(list(client.events(time.monotonic_ns()))):
                    acknowledged = message.applied
            took_us.append((time.perf_counter_ns() - began_ns) / 1000)
    took_us.sort()
    p50_us, p99_us = took_us[len(took_us) // 2], took_us[len(took_us) * 99 // 100]
    record_property("round_trip_us_p50", p50_us)
    print(f"\nlink round trip: p50 {p50_us:.0f} us, p99 {p99_us:.0f} us")
    assert p50_us < 5_000


def test_throughput(record_property: Callable[[str, object], None]) -> None:
    """Batches of 100 records of 120 bytes, 20 under way, between two processes. Printed with -s."""
    with echo() as (client, epoll, _):
        batch, batches, acknowledged, next_batch = [bytes(120)] * 100, 5_000, 0, 0
        began_s = time.perf_counter()
        while acknowledged < batches * 100:
            while next_batch < batches and next_batch * 100 - acknowledged < 2_000:
                client.send(Records(1, next_batch * 100 + 1, batch))
                next_batch += 1
            client.flush()
            epoll.poll(0.1)
            for message in received(list(client.events(time.monotonic_ns()))):
                acknowledged = message.applied
        per_s = batches * 100 / (time.perf_counter() - began_s)
    record_property("records_per_s", per_s)
    print(f"\nlink throughput: {per_s:,.0f} records/s")
    assert per_s > 50_000


def test_killed_peer_is_noticed(record_property: Callable[[str, object], None]) -> None:
    """G6: kill -9 shows as the end of the connection and as a refused one, within milliseconds and one call."""
    with echo() as (client, epoll, pid):
        began_ns = time.perf_counter_ns()
        os.kill(pid, signal.SIGKILL)
        seen: list[LinkEvent] = []
        while len(seen) < 2:
            epoll.poll(1)
            seen += client.events(time.monotonic_ns())
        took_us = (time.perf_counter_ns() - began_ns) / 1000
    record_property("noticed_us", took_us)
    print(f"\nkill -9 noticed, and confirmed by a refused connection, after {took_us:.0f} us")
    assert [event.kind for event in seen] == ["disconnected"] * 2
    # The dying process may still have taken the second connection into its queue.
    assert seen[1] in (Disconnected("connection refused"), Disconnected("connection reset by peer"))


def test_a_connection_that_breaks_with_the_handshake_is_told_as_both() -> None:
    """G8: what completes the handshake and what ends the connection may come at once: who hears of one hears of both."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = LinkClient(f"127.0.0.1:{listener.getsockname()[1]}", KEY)
        events: list[LinkEvent] = list(client.events(0))
        sock, _ = listener.accept()
        server = Channel(KEY, server=True)
        sock.settimeout(5)
        while not server.proven:
            sock.sendall(take(server))
            events += client.events(0)
            client.flush()
            give(server, sock.recv(4096))
        server.admit()
        server.seal(b"a message")
        data = bytearray(take(server))
        data[-1] ^= 1
        sock.sendall(data)
        deadline = time.monotonic() + 5
        while not any(isinstance(event, Disconnected) for event in events) and time.monotonic() < deadline:
            events += client.events(0)
        assert [type(event) for event in events] == [Connected, Disconnected]
        client.close()
        sock.close()
