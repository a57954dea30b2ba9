"""TCP connections through the simulated nodes: each has two real ends, and the network before the nodes loses packets."""

from __future__ import annotations

import struct
from collections.abc import Callable
from random import Random

from actornet.engine.five_tuple import FiveTuple
from actornet.testing.simulation.tagging import is_edited
from actornet.testing.tcp_endpoint import WRAP, Endpoint

INSIDE, OUTSIDE = "10.0.0.2", "198.51.100.1"
FIRST_PORT, SERVER_PORT = 2000, 80
QUIET_STEPS = 8
"""Steps without an acknowledgement after which an end repeats."""

_ALPHABET = b"abcdefghijklmnop#--"
_TROUBLE = 0.03  # of packets are lost, as many come twice, or change places


class Connection:
    """Two ends; `port` is the client's. `sent`: what is on its way to the nodes."""

    def __init__(self, port: int, random: Random) -> None:
        client, server = (INSIDE, port), (OUTSIDE, SERVER_PORT)
        mss = random.randint(10, 40)
        window = mss * random.randint(2, 5)
        texts = [bytes(random.choices(_ALPHABET, k=random.randint(50, 1500))) for _ in range(2)]
        isns = [random.choice((5, WRAP - 100, random.randrange(WRAP))) for _ in range(2)]
        self.port = port
        self.client = Endpoint(client, server, isns[0], texts[0], mss, window)
        self.server = Endpoint(server, client, isns[1], texts[1], mss, window)
        self.sent = [self.client.open()]
        self.quiet = 0

    @property
    def acknowledged(self) -> int:
        """How far it has come: bytes of both ends that are known to have arrived."""
        return self.client.acknowledged + self.server.acknowledged

    @property
    def done(self) -> bool:
        return self.client.done and self.server.done

    def take(self, data: bytes) -> None:
        """A frame reaches its end. Raises AssertionError."""
        before = self.acknowledged
        end = self.server if from_inside(data) else self.client
        self.sent += end.receive(data)
        assert not end.reset, "it was reset"
        if self.acknowledged > before:
            self.quiet = 0

    def check(self) -> None:
        """What has come is what was sent, as it is edited. Raises AssertionError."""
        for sender, receiver in ((self.client, self.server), (self.server, self.client)):
            came = is_edited(receiver.stream, sender.data, whole=self.done)
            assert came, (
                f"what {sender.address} has sent is not what has come, as it is edited, in {receiver.next} bytes"
            )


class Streams:
    """A few connections at a time; when one is done the next begins, with a port that none had before."""

    def __init__(self, random: Random, fail: Callable[[str], None]) -> None:
        self.random = random
        self.fail = fail
        self.finished = 0
        self._port = FIRST_PORT
        self._marks: dict[int, int] = {}
        self.connections = {each.port: each for each in (self._begin() for _ in range(random.randint(2, 4)))}

    def _begin(self) -> Connection:
        self._port += 1
        return Connection(self._port, self.random)

    def pass_time(self) -> None:
        """A step begins."""
        for each in self.connections.values():
            each.quiet += 1
            if each.quiet % QUIET_STEPS == 0:
                each.sent += each.client.again() + each.server.again()

    def arriving(self) -> list[bytes]:
        """What comes to the nodes now."""
        frames: list[bytes] = []
        for each in self.connections.values():
            frames += self._muddle(each.sent)
            each.sent = []
        return frames

    def lose(self) -> None:
        """No node takes what was sent."""
        for each in self.connections.values():
            each.sent.clear()

    def take(self, frames: list[bytes]) -> None:
        """Packets have left a node that leads; those of former connections find nobody."""
        for data in self._muddle(frames):
            each = self.connections.get(client_port(data))
            if each is None:
                continue
            try:
                each.take(data)
                if each.done:
                    each.check()
                    del self.connections[each.port]
                    self.finished += 1
                    begun = self._begin()
                    self.connections[begun.port] = begun
            except AssertionError as error:
                self.fail(f"connection {each.port}: {error}")

    def check(self) -> None:
        """As far as connections have come."""
        for each in self.connections.values():
            try:
                each.check()
            except AssertionError as error:
                self.fail(f"connection {each.port}: {error}")

    def begin_anew(self) -> None:
        """What the ends know of each other was given up: others take their places."""
        begun = [self._begin() for _ in self.connections]
        self.connections = {each.port: each for each in begun}
        self._marks.clear()

    def mark(self) -> None:
        """From here on connections have to come further."""
        self._marks = self._marks or {each.port: each.acknowledged for each in self.connections.values()}

    @property
    def moved_on(self) -> bool:
        """Whether each that there was at the mark has, or is done."""
        return all(
            port not in self.connections or self.connections[port].acknowledged > at for port, at in self._marks.items()
        )

    def _muddle(self, frames: list[bytes]) -> list[bytes]:
        out: list[bytes] = []
        for data in frames:
            if self.random.random() >= _TROUBLE:
                out += [data] * (2 if self.random.random() < _TROUBLE else 1)
        for at in range(len(out) - 1):
            if self.random.random() < _TROUBLE:
                out[at], out[at + 1] = out[at + 1], out[at]
        return out


def from_inside(data: bytes) -> bool:
    """Whether the client sent the frame."""
    return data[26:30] == b"\x0a\0\0\x02"


def client_port(data: bytes) -> int:
    port: int = struct.unpack_from(">H", data, 34 if from_inside(data) else 36)[0]
    return port


def five_tuple(data: bytes) -> FiveTuple:
    port = client_port(data)
    if from_inside(data):
        return FiveTuple(6, INSIDE, port, OUTSIDE, SERVER_PORT)
    return FiveTuple(6, OUTSIDE, SERVER_PORT, INSIDE, port)


def payload(data: bytes) -> bytes:
    """A frame's TCP payload."""
    return data[34 + (data[46] >> 4) * 4 :]
