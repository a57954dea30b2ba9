"""The proxy does what its faults say; and a pair whose link goes through all of them stays right."""

from __future__ import annotations

import os
import random
import re
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from actornet.limits import SILENCE_MS_DEFAULT
from actornet.testing.checker import judge
from actornet.testing.fault_proxy import NONE, Fault, FaultProxy
from actornet.testing.pair import Pair
from actornet.testing.traffic import Churn, TcpTransfer, UdpStream
from actornet.testing.wiretap import Wiretap
from tests.processes import wait_until
from tests.test_takeover import verify_log

SEED = int(os.environ.get("FAULT_SEED", "0")) or random.SystemRandom().getrandbits(32)


@pytest.fixture
def echo() -> Iterator[tuple[str, int]]:
    """A server that sends everything back."""

    def serve(sock: socket.socket) -> None:
        with sock:
            try:
                while data := sock.recv(65536):
                    sock.sendall(data)
            except OSError:
                return

    def accept() -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(sock,), daemon=True).start()

    listener = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=accept, daemon=True).start()
    yield listener.getsockname()
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()


@pytest.fixture
def proxy(echo: tuple[str, int]) -> Iterator[FaultProxy]:
    with FaultProxy(socket.create_server(("127.0.0.1", 0)), echo, 1).start() as made:
        yield made


@pytest.fixture
def client(proxy: FaultProxy) -> Iterator[socket.socket]:
    with socket.create_connection(proxy._listener.getsockname(), 2) as sock:
        sock.settimeout(2)
        yield sock


def exchange(client: socket.socket, data: bytes) -> bytes:
    """What comes back within 0.2 s of silence."""
    client.sendall(data)
    client.settimeout(0.2)
    got = bytearray()
    try:
        while more := client.recv(65536):
            got += more
    except TimeoutError:
        pass
    return bytes(got)


def test_without_fault_all_passes(proxy: FaultProxy, client: socket.socket) -> None:
    data = os.urandom(3_000_000)
    threading.Thread(target=client.sendall, args=(data,)).start()
    got = b""
    while len(got) < len(data):
        got += client.recv(1 << 20)
    assert got == data
    client.shutdown(socket.SHUT_WR)
    assert client.recv(1) == b""
    wait_until(lambda: proxy.counts["closed"] == 1)


def test_delay(proxy: FaultProxy, client: socket.socket) -> None:
    proxy.fault = Fault(delay_ms=(50, 60))
    begun = time.monotonic()
    client.sendall(b"x")
    assert client.recv(1) == b"x"
    assert time.monotonic() - begun >= 0.1


def test_corrupt(proxy: FaultProxy, client: socket.socket) -> None:
    proxy.fault = Fault("up", corrupt=1.0)
    got = exchange(client, bytes(100))
    assert len(got) == 100 and sum(byte.bit_count() for byte in got) == 1


@pytest.mark.parametrize(
    ("fault", "count"),
    [(Fault("up", drop=1.0), 0), (Fault("down", duplicate=1.0), 2), (Fault("down", swallow=True), 0)],
)
def test_drop_duplicate_swallow(proxy: FaultProxy, client: socket.socket, fault: Fault, count: int) -> None:
    proxy.fault = fault
    assert exchange(client, b"once") == b"once" * count


def test_a_stall_keeps_everything_for_later(proxy: FaultProxy, client: socket.socket) -> None:
    proxy.fault = Fault("down", stall=True)
    assert exchange(client, b"abc") == b""
    proxy.fault = NONE
    assert exchange(client, b"def") == b"abcdef"


def test_a_trickle(proxy: FaultProxy, client: socket.socket) -> None:
    proxy.fault = Fault("up", bytes_per_s=1000)
    begun, left = time.monotonic(), 300
    client.sendall(bytes(left))
    while left:
        left -= len(client.recv(left))
    assert 0.25 < time.monotonic() - begun < 1


def test_flapping_and_resets(proxy: FaultProxy, client: socket.socket) -> None:
    proxy.fault = Fault(life_s=0.05)
    assert client.recv(1) == b""
    with socket.create_connection(proxy._listener.getsockname(), 2) as second:
        proxy.fault = Fault(life_s=0.05, reset=True)
        with pytest.raises(ConnectionResetError):
            second.recv(1)
    proxy.fault = Fault(refuse=True)
    with socket.create_connection(proxy._listener.getsockname(), 2) as third:
        assert third.recv(1) == b""
    assert proxy.counts["cut"] == proxy.counts["reset"] == proxy.counts["refused"] == 1


FAULTS = {
    "delayed": Fault(delay_ms=(2, 8)),
    "late": Fault(delay_ms=(30, 70)),
    "corrupt up": Fault("up", corrupt=0.05),
    "corrupt down": Fault("down", corrupt=0.05),
    "lossy": Fault(drop=0.05),
    "repeating": Fault(duplicate=0.05),
    "deaf primary": Fault("up", swallow=True),
    "deaf backup": Fault("down", swallow=True),
    "stalled down": Fault("down", stall=True),
    "stalled": Fault(stall=True),
    "flapping": Fault(life_s=0.06),
    "reset in mid-record": Fault(life_s=0.06, reset=True),
    "trickling": Fault(bytes_per_s=2000),
}


# Who receives what these alter, and the names under which it counts that.
RECEIVERS = {"corrupt up": "a", "corrupt down": "b"}
ALTERED = ("garbage", "version", "key", "mac", "oversize")

STATES = re.compile(
    r'"event":"(backup in sync|backup lost|in sync|link lost|claiming the lease|takeover denied|primary lost)"'
)


def in_sync(pair: Pair) -> bool:
    """Whether both nodes said so after everything else that they said of each other."""
    return [STATES.findall(pair.printed(node))[-1] for node in ("a", "b")] == ["backup in sync", "in sync"]


def altered(pair: Pair, node: str) -> int:
    """How many connections a node's link has ended for what was altered on its way."""
    link = pair.worker(node, "owner-system")["status"]["link"]
    return sum(link.get(counter, 0) for counter in ALTERED)


@pytest.mark.root
def test_a_pair_whose_link_goes_through_everything(tmp_path: Path) -> None:
    """G3, G6, G7, G8, G10: one node sends, traffic goes on (policy `solo`), and the link comes back after each fault.

    What was altered on its way is refused and counted. In the end the backup takes over with all that was ever seen outside.
    """
    names = list(FAULTS)
    random.Random(SEED).shuffle(names)
    links, witness = {"b": "10.9.0.2:7399"}, f"file:{tmp_path}/witness"
    with Pair(tmp_path / "pair", links=links, witness=witness, lease_ms=150, silence_ms=SILENCE_MS_DEFAULT) as pair:
        with pair.fault_proxy("b", SEED) as proxy, Wiretap(pair.lab) as tap:
            pair.start()
            with UdpStream(pair.lab, spacing_s=0.005) as stream, TcpTransfer(pair.lab, pause_s=0.02) as transfer:
                with Churn(pair.lab, ["10.0.0.2"], range(2000, 2400), SEED, threads=1) as exchanges:
                    for name in names:
                        where = f"seed {SEED}, {name}"
                        exchanged, begun_ns = sum(exchanges.exchanged.values()), time.monotonic_ns()
                        proxy.fault = FAULTS[name]
                        time.sleep(0.4)
                        if receiver := RECEIVERS.get(name):  # which of its bits are hit is chance
                            wait_until(lambda receiver=receiver: altered(pair, receiver) > 0, 8)
                        proxy.fault = NONE
                        wait_until(lambda: in_sync(pair), 8)
                        assert sum(exchanges.exchanged.values()) > exchanged, f"{where}: no new flow was served"
                        assert stream.outage_ms(begun_ns) < 500, where
                pair.kill("a")
                taken = pair.wait_takeover("b")
                time.sleep(0.5)
            assert transfer.outcome() and not exchanges.failures, exchanges.failures
        assert taken["records_replayed"] == 0
        pair.stop("b")
        verify_log(pair, "b")
        assert judge(tap.take(), pair.log("b"), takeovers=1) == [], f"seed {SEED}"
        assert proxy.counts["corrupted"] and proxy.counts["duplicated"] and proxy.counts["dropped"]
