"""Traffic through a live pair, made by plain sockets in the lab's namespaces, and what became of it.

Its threads run before ordinary ones, so that what they measure is the pair and not the death of a node's processes.
"""

from __future__ import annotations

import errno
import hashlib
import os
import random
import resource
import selectors
import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import pairwise
from typing import Self

from actornet.node.thread import run_first
from actornet.testing.netns import Lab

SERVER = "203.0.113.254"
SECOND = 1_000_000_000
TCP_PATIENCE_S = 15.0


class Traffic:
    """Something that runs in threads for as long as a block lasts."""

    _threads: Sequence[threading.Thread]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self


class UdpEcho:
    """Sends each datagram that comes to the server's port back to its sender, until it is closed."""

    def __init__(self, lab: Lab, port: int) -> None:
        self._socket = lab.call("server", udp_socket, SERVER, port)
        self._ended = threading.Event()
        self._thread = _thread(self._run)
        self._thread.start()

    def close(self) -> None:
        self._ended.set()
        self._thread.join(2)
        self._socket.close()

    def _run(self) -> None:
        while not self._ended.is_set():
            with suppress(OSError):  # none came in time, or there is no way back to its sender: it is lost
                self._socket.sendto(*self._socket.recvfrom(64))


class UdpStream(Traffic):
    """Numbered datagrams from client to server at a fixed spacing, each echoed back.

    `sent_ns` has when each was sent, `received` (number, arrival) of the echoes, in order of arrival. Monotonic ns.
    """

    def __init__(self, lab: Lab, port: int = 9000, spacing_s: float = 0.001, source_port: int = 0) -> None:
        self._client = lab.call("client", udp_socket, "10.0.0.2", source_port)
        self._echo = UdpEcho(lab, port)
        self._to = (SERVER, port)
        self._spacing_ns = int(spacing_s * SECOND)
        self._ended = threading.Event()
        self.sent_ns: list[int] = []
        self.received: list[tuple[int, int]] = []
        self._threads = [_thread(run) for run in (self._send, self._receive)]

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join(2)
        self._client.close()
        self._echo.close()

    @property
    def sent(self) -> int:
        """How many were sent."""
        return len(self.sent_ns)

    def took_ms(self, since_ns: int) -> list[float]:
        """How long each datagram that was sent since then was under way, there and back, if its echo came."""
        return [(at - self.sent_ns[n]) / 1e6 for n, at in self.received if self.sent_ns[n] >= since_ns]

    def lost(self, since_ns: int) -> list[int]:
        """The numbers of those sent since then that had no echo before the last one's that came."""
        came = {number for number, _ in self.received}
        return [n for n in range(max(came, default=0)) if n not in came and self.sent_ns[n] >= since_ns]

    @property
    def jumps(self) -> list[tuple[int, int]]:
        """Where echoes did not come one after the other: of each such place the number before it (-1: none) and after it."""
        numbers = [-1, *(number for number, _ in self.received)]
        return [(before, after) for before, after in pairwise(numbers) if after != before + 1]

    def outage_ms(self, since_ns: int, until_ns: int | None = None) -> float:
        """The longest time without an echo, less the spacing: from the last echo before `since_ns` (monotonic) on.

        To the last echo; or to `until_ns`, so that a stream that never came back counts all that time.
        """
        echoes = [at for _, at in self.received]
        since_ns = max((at for at in echoes if at <= since_ns), default=since_ns)
        times = _between(echoes, since_ns, until_ns)
        gaps = [later - earlier for earlier, later in pairwise(times)]
        return max(0, max(gaps) - self._spacing_ns) / 1e6 if gaps else float("inf")

    def _send(self) -> None:
        due = time.monotonic_ns()
        while not self._ended.is_set():
            number = self.sent
            self.sent_ns.append(time.monotonic_ns())
            with suppress(TimeoutError):  # nobody takes it, so it is lost
                self._client.sendto(number.to_bytes(8, "big"), self._to)
            due += self._spacing_ns
            time.sleep(max(0, due - time.monotonic_ns()) / SECOND)

    def _receive(self) -> None:
        while not self._ended.is_set():
            try:
                data = self._client.recv(64)
            except TimeoutError:
                continue
            self.received.append((int.from_bytes(data, "big"), time.monotonic_ns()))


class TcpTransfer(Traffic):
    """Random bytes from client to server over one connection for as long as the block lasts, compared by hash.

    `progress` has (bytes received so far, monotonic ns). `outcome()` raises OSError when the connection broke.
    """

    def __init__(self, lab: Lab, port: int = 9001, pause_s: float = 0.0005) -> None:
        self._listener = lab.call("server", _listen, SERVER, port)
        self._client = lab.call("client", socket.create_connection, (SERVER, port), 10)
        self._peer, self.peer_address = self._listener.accept()
        self._pause_s = pause_s
        self._ended = threading.Event()
        self._errors: list[OSError] = []
        self._digests: dict[str, str] = {}
        self.sent = 0
        self.progress: list[tuple[int, int]] = []
        self._threads = [_thread(self._guard, run) for run in (self._send, self._receive)]

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        """Stop sending, and wait until everything sent has arrived."""
        self._ended.set()
        for thread in self._threads:
            thread.join(20)
        for sock in (self._client, self._peer, self._listener):
            sock.close()

    def outcome(self) -> bool:
        """Whether every byte arrived as it was sent."""
        if self._errors:
            raise self._errors[0]
        return self._digests.get("sent") == self._digests.get("received") is not None

    def outage_ms(self, since_ns: int, until_ns: int | None = None) -> float:
        """The longest time without progress at the receiver after `since_ns` (monotonic), to `until_ns` if that is given."""
        times = _between([at for _, at in self.progress], since_ns, until_ns)
        return max((later - earlier for earlier, later in pairwise(times)), default=10**12) / 1e6

    def _guard(self, run: Callable[[], None]) -> None:
        try:
            run()
        except OSError as error:
            self._errors.append(error)

    def _send(self) -> None:
        digest = hashlib.sha256()
        self._client.settimeout(TCP_PATIENCE_S)
        while not self._ended.is_set():
            data = os.urandom(4096)
            self._client.sendall(data)
            digest.update(data)
            self.sent += len(data)
            time.sleep(self._pause_s)
        self._client.shutdown(socket.SHUT_WR)
        self._digests["sent"] = digest.hexdigest()

    def _receive(self) -> None:
        digest = hashlib.sha256()
        self._peer.settimeout(TCP_PATIENCE_S)
        total = 0
        while data := self._peer.recv(65536):
            digest.update(data)
            total += len(data)
            self.progress.append((total, time.monotonic_ns()))
        self._digests["received"] = digest.hexdigest()


class Opens(Traffic):
    """TCP connections from client to server, opened one after another; each exchanges a byte and stays open.

    `opened` has (socket, monotonic ns of the byte's return) of each until the `end`, in order.
    """

    COUNT_MAX = 5000

    def __init__(self, lab: Lab, port: int = 9003, spacing_s: float = 0.001) -> None:
        allow_files(2 * self.COUNT_MAX)
        self._listener = lab.call("server", socket.create_server, (SERVER, port), backlog=128)
        self._to = (SERVER, port)
        self._spacing_s = spacing_s
        self._ended = threading.Event()
        self._closed = threading.Event()
        self.opened: list[tuple[socket.socket, int]] = []
        self._threads = [_thread(self._echo), _thread(lab.call, "client", self._open)]

    def __exit__(self, *_: object) -> None:
        self.end()
        self._threads[1].join(TCP_PATIENCE_S)
        self._closed.set()
        self._threads[0].join(2)
        for sock, _at in self.opened:
            sock.close()
        self._listener.close()

    def end(self) -> None:
        """Open no more, from now on."""
        self._ended.set()

    def lost(self, patience_s: float = 5.0) -> int:
        """How many of those opened return no byte now."""
        self._threads[1].join(TCP_PATIENCE_S)
        waiting = {sock for sock, _at in self.opened}
        with selectors.DefaultSelector() as selector:
            for sock in tuple(waiting):
                with suppress(OSError):  # it was reset: lost
                    sock.sendall(b"?")
                    selector.register(sock, selectors.EVENT_READ)
            end = time.monotonic() + patience_s
            while selector.get_map() and (left_s := end - time.monotonic()) > 0:
                for key, _events in selector.select(left_s):
                    selector.unregister(key.fileobj)
                    with suppress(OSError):
                        if key.fileobj in waiting and os.read(key.fd, 2) == b"?":
                            waiting.discard(key.fileobj)
        return len(waiting)

    def _open(self) -> None:
        while not self._ended.is_set() and len(self.opened) < self.COUNT_MAX:
            with suppress(OSError):  # not opened, so nothing to lose
                sock = socket.create_connection(self._to, TCP_PATIENCE_S)
                sock.sendall(b"!")
                if sock.recv(1) and not self._ended.is_set():
                    self.opened.append((sock, time.monotonic_ns()))
            time.sleep(self._spacing_s)

    def _echo(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._listener, selectors.EVENT_READ)
            while not self._closed.is_set():
                for key, _events in selector.select(0.2):
                    if key.fileobj is self._listener:
                        selector.register(self._listener.accept()[0], selectors.EVENT_READ)
                        continue
                    sock = key.fileobj
                    assert isinstance(sock, socket.socket)
                    with suppress(OSError):
                        if data := sock.recv(64):
                            sock.sendall(data)
                            continue
                    selector.unregister(sock)
                    sock.close()
            for key in tuple(selector.get_map().values()):
                if isinstance(key.fileobj, socket.socket) and key.fileobj is not self._listener:
                    key.fileobj.close()


class Churn(Traffic):
    """Short UDP and TCP exchanges from random ports of the `inside` addresses, a few at a time, echoed by the server.

    What is sent begins with MARK and the endpoint that it comes from. `exchanged` counts the complete exchanges,
    `unanswered` datagrams without an echo, `failures` says what else went wrong: an echo that differs, a reset.
    """

    MARK = b"actornet"

    def __init__(
        self, lab: Lab, inside: Sequence[str], ports: range, seed: int, *, port: int = 9002, threads: int = 3
    ) -> None:
        self._lab = lab
        self._inside = inside
        self._ports = ports
        self._to = (SERVER, port)
        self._ended = threading.Event()
        self._echo = UdpEcho(lab, port)
        self._listener = lab.call("server", _listen, SERVER, port)
        self._listener.settimeout(0.2)
        self.exchanged = {"udp": 0, "tcp": 0}
        self.unanswered = 0
        self.failures: list[str] = []
        self._accepting = True
        exchanges = [threading.Thread(target=self._run, args=(random.Random(seed + n),)) for n in range(threads)]
        self._threads = [*exchanges, _thread(self._accept)]

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads[:-1]:  # each ends with its exchange, which may yet have to be accepted
            thread.join(20)
        self._accepting = False
        self._threads[-1].join(20)
        self._echo.close()
        self._listener.close()

    @classmethod
    def mark(cls, endpoint: tuple[str, int]) -> bytes:
        return cls.MARK + socket.inet_aton(endpoint[0]) + endpoint[1].to_bytes(2, "big")

    def _run(self, chance: random.Random) -> None:
        while not self._ended.is_set():
            endpoint = chance.choice(self._inside), chance.choice(self._ports)
            exchange, kind = chance.choice(((self._exchange_udp, "udp"), (self._exchange_tcp, "tcp")))
            try:
                if exchange(endpoint):
                    self.exchanged[kind] += 1
            except OSError as error:
                if error.errno not in (errno.EADDRINUSE, errno.EADDRNOTAVAIL):  # the port is in use, or rests
                    self.failures.append(f"{kind} from {endpoint}: {error}")
            time.sleep(chance.random() * 0.01)

    def _exchange_udp(self, endpoint: tuple[str, int]) -> bool:
        with self._lab.call("client", udp_socket, *endpoint) as sock:
            for number in range(2):
                data = self.mark(endpoint) + bytes((number,))
                sock.sendto(data, self._to)
                try:
                    if sock.recv(64) != data:
                        self.failures.append(f"udp from {endpoint}: another's datagram came")
                except TimeoutError:
                    self.unanswered += 1
                    return False
        return True

    def _exchange_tcp(self, endpoint: tuple[str, int]) -> bool:
        with self._lab.call("client", _tcp, *endpoint) as sock:
            sock.connect(self._to)
            data = self.mark(endpoint) + os.urandom(3000)
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
            echoed = b""
            while more := sock.recv(4096):
                echoed += more
            if echoed != data:
                self.failures.append(f"tcp from {endpoint}: {len(echoed)} bytes came back for {len(data)}")
        return echoed == data

    def _accept(self) -> None:
        while self._accepting:
            with suppress(TimeoutError):
                sock, _ = self._listener.accept()
                threading.Thread(target=self._echo_tcp, args=(sock,), daemon=True).start()

    @staticmethod
    def _echo_tcp(sock: socket.socket) -> None:
        sock.settimeout(TCP_PATIENCE_S)
        with sock, suppress(OSError):  # the client sees it, too
            while data := sock.recv(4096):
                sock.sendall(data)


def allow_files(count: int) -> None:
    """Let this process have so many more files open than it usually has, as far as it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, count + 1000)), hard))


def _between(times: Sequence[int], since_ns: int, until_ns: int | None) -> list[int]:
    """The times in that interval, and its ends."""
    if until_ns is None:
        return [since_ns, *(at for at in times if at > since_ns)]
    return [since_ns, *(at for at in times if since_ns < at < until_ns), until_ns]


def _thread(run: Callable[..., None], *args: object) -> threading.Thread:
    def undisturbed() -> None:
        run_first()
        run(*args)

    return threading.Thread(target=undisturbed, daemon=True)


def udp_socket(address: str, port: int = 0) -> socket.socket:
    """A socket whose calls take 0.2 s at most."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        sock.bind((address, port))
    except OSError:
        sock.close()
        raise
    sock.settimeout(0.2)
    return sock


def _tcp(address: str, port: int) -> socket.socket:
    sock = socket.socket()
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((address, port))
        sock.settimeout(TCP_PATIENCE_S)
    except OSError:
        sock.close()
        raise
    return sock


def _listen(address: str, port: int) -> socket.socket:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((address, port))
    sock.listen(64)
    sock.settimeout(10)
    return sock
