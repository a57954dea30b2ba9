"""A service of real web servers behind the load balancer: one dies and comes back, one falls silent, connections stay."""

from __future__ import annotations

import http.client
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from subprocess import Popen
from typing import Any

import pytest

from actornet.testing.netns import Lab

SERVICE, PORT = "172.16.0.10", 8080
BACKENDS = ["172.16.0.11", "172.16.0.12", "172.16.0.13"]
EJECTED_S = 1.0
SERVER = """
import http.server, sys
class Who(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        body = sys.argv[1].encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *args):
        pass
http.server.ThreadingHTTPServer.address_family = 2
http.server.ThreadingHTTPServer((sys.argv[1], int(sys.argv[2])), Who).serve_forever()
"""

pytestmark = pytest.mark.root


class Site:
    """The backends' host, each with an address there, and a client behind the balancer."""

    def __init__(self, lab: Lab, directory: Path) -> None:
        self.lab, self.output = lab, (directory / "output").open("wb")
        self.servers: dict[str, Popen[Any]] = {}
        lab.ip("server", *(f"addr add {address}/24 dev eth0" for address in [SERVICE, *BACKENDS]))
        argv = [sys.executable, "-m", "actornet.cli.main", "run", "actors.load_balancer:LoadBalancer"]
        argv += ["-i", "lan=wan0", "-i", "wan=lan0"]  # backends are on the inside
        argv += ["--set", f"service={SERVICE}:{PORT}", "--set", f"ejected_s={EJECTED_S}"]
        argv += ["--set", "backends=" + ",".join(f"{address}:{PORT}" for address in BACKENDS)]
        for address in BACKENDS:
            self.start(address)
        self.balancer = lab.popen("box", argv, stdout=self.output, stderr=self.output)

    def start(self, address: str) -> None:
        argv = [sys.executable, "-c", SERVER, address, str(PORT)]
        self.servers[address] = self.lab.popen("server", argv, stdout=self.output, stderr=self.output)
        self.until(lambda: self.asks(address, "server") == address)

    def kill(self, address: str) -> None:
        self.servers[address].kill()
        self.servers.pop(address).wait(10)

    def asks(self, address: str = SERVICE, space: str = "client", timeout_s: float = 5.0) -> str | None:
        """Who answers a request on a connection of its own; None: nobody."""
        try:
            return said(self.connects(address, space, timeout_s))
        except OSError:
            return None

    def connects(
        self, address: str = SERVICE, space: str = "client", timeout_s: float = 5.0
    ) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection(address, PORT, timeout=timeout_s)
        self.lab.call(space, connection.connect)
        return connection

    def until(self, holds: Any) -> None:
        deadline = time.monotonic() + 15
        while not holds():
            assert time.monotonic() < deadline, Path(self.output.name).read_text()
            time.sleep(0.05)


def said(connection: http.client.HTTPConnection) -> str:
    connection.request("GET", "/")
    return connection.getresponse().read().decode()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with Lab.single("172.16.0.2/24", "172.16.0.3/24", None) as lab:
        site = Site(lab, tmp_path)
        try:
            site.until(lambda: site.asks(timeout_s=1.0))
            yield site
        finally:
            site.balancer.terminate()
            site.balancer.wait(15)
            site.output.close()


def test_a_backend_that_dies_and_comes_back(site: Site) -> None:
    """Few clients notice: as many as `failures_max`. Connections to the others go on as if nothing had been."""
    kept: list[http.client.HTTPConnection] = []
    homes: list[str] = []
    while set(homes) != set(BACKENDS):
        assert len(homes) < 100, f"of {BACKENDS} only {set(homes)} are given any"
        kept.append(site.connects())
        homes.append(said(kept[-1]))
    dead = homes[0]
    site.kill(dead)
    answers = Counter(site.asks() for _ in range(60))
    assert dead not in answers and 1 <= answers[None] <= 3, answers
    for connection, home in zip(kept, homes, strict=True):
        if home != dead:
            assert said(connection) == home, "a connection moved"
    site.start(dead)
    site.until(lambda: site.asks() == dead)
    answers = Counter(site.asks() for _ in range(60))
    assert set(answers) == set(BACKENDS), "it takes its share again, and nobody is refused"
    for connection, home in zip(kept, homes, strict=True):
        if home != dead:
            assert said(connection) == home, "a connection moved"
        connection.close()


def test_a_backend_that_falls_silent_costs_a_client_a_second(site: Site) -> None:
    """Its host drops what comes for it: the SYN that the client repeats goes to another backend."""
    silent = BACKENDS[1]
    site.lab.ip("server", f"addr del {silent}/24 dev eth0")
    waited, answers = 0.0, Counter[str | None]()
    for _ in range(20):
        begin = time.monotonic()
        answers[site.asks(timeout_s=10.0)] += 1
        waited = max(waited, time.monotonic() - begin)
    assert set(answers) == {BACKENDS[0], BACKENDS[2]}, "every client is served"
    assert 0.9 < waited < 5.0, "one at least had to repeat its SYN"
