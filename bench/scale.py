"""What does a large state cost a pair: a new backup's way to being in sync, and a takeover?

    python -m bench.scale [--flows 10000 100000 1000000] [--timeout-s 120]

For each size (root): a primary, alone, translates that many UDP flows of some 60,000 inside endpoints. Then a backup joins.
Measured are the seconds until it may take over, and the longest time in which a new flow waited meanwhile (a new one begins
every 2 ms); then the primary is killed, and the outage is that of an established UDP stream. Flows that the backup's
cores hold are counted before.
"""

from __future__ import annotations

import argparse
import socket
import struct
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import dpkt

from actornet.testing.netns import Lab
from actornet.testing.pair import Pair
from actornet.testing.traffic import SERVER, UdpStream
from bench.report import Row, table, write_json

ENDPOINTS = 60_000
HOSTS = 240
SEND_PER_S = 40_000
CHUNK = 64
MAC = bytes.fromhex("02005e100001")


def frames(flows: int) -> Iterator[bytes]:
    """A frame per flow: ENDPOINTS inside ends, each of which talks to one remote host after the other."""
    udp = dpkt.udp.UDP(sport=1, dport=53, data=b"x" * 18, ulen=26)
    ip = dpkt.ip.IP(src=bytes((10, 0, 0, 1)), dst=bytes((198, 51, 100, 1)), p=17, ttl=64, len=46, data=udp)
    head = bytes(dpkt.ethernet.Ethernet(src=b"\2\0\0\0\0\7", dst=MAC, data=ip))
    start = 14 + 12
    for number in range(flows):
        endpoint, remote = number % ENDPOINTS, number // ENDPOINTS
        data = bytearray(head)
        struct.pack_into(
            "!4B4BH",
            data,
            start,
            *(10, 0, 0, 10 + endpoint % HOSTS),
            *(198, 51, 100, 1 + remote),
            1024 + endpoint // HOSTS,
        )
        data[24:26] = b"\0\0"
        struct.pack_into("!H", data, 24, dpkt.in_cksum(bytes(data[14:34])))
        data[40:42] = b"\0\0"  # no UDP checksum
        yield bytes(data)


def fill(pair: Pair, flows: int) -> float:
    """Open the flows on node `a`; returns how many seconds it took. What is lost on the way is sent again."""
    begun = time.monotonic()
    sock = pair.lab.call("client", _raw, "eth0")
    while True:
        due = time.monotonic()
        for number, data in enumerate(frames(flows)):
            sock.send(data)
            if number % CHUNK == 0:
                due += CHUNK / SEND_PER_S
                time.sleep(max(0.0, due - time.monotonic()))
        time.sleep(0.5)
        if live_flows(pair, "a") >= flows:
            sock.close()
            return time.monotonic() - begun


def live_flows(pair: Pair, node: str) -> int:
    return sum(
        worker["status"]["counters"]["live_flows"]
        for worker in pair.status(node)["workers"]  # type: ignore[arg-type]
        if worker["name"].startswith("core-")
    )


class NewFlows:
    """Begins a flow every 2 ms, from an inside end of its own; `longest_ms` is what one waited for its first echo."""

    def __init__(self, lab: Lab) -> None:
        self.longest_ms = 0.0
        self.lost = 0
        self._lab = lab
        self._ended = threading.Event()
        self._server = lab.call("server", _udp, SERVER, 9200)
        self._threads = [threading.Thread(target=run, daemon=True) for run in (self._echo, self._begin)]

    def __enter__(self) -> NewFlows:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join(5)
        self._server.close()

    def _echo(self) -> None:
        while not self._ended.is_set():
            try:
                data, sender = self._server.recvfrom(64)
                self._server.sendto(data, sender)
            except TimeoutError:
                continue

    def _begin(self) -> None:
        while not self._ended.is_set():
            with self._lab.call("client", _udp, "10.0.0.2", 0) as sock:
                begun = time.perf_counter()
                sock.sendto(b"x", (SERVER, 9200))
                try:
                    sock.recv(64)
                    self.longest_ms = max(self.longest_ms, (time.perf_counter() - begun) * 1e3)
                except TimeoutError:
                    self.lost += 1
            time.sleep(0.002)


def measure(directory: Path, flows: int, timeout_s: float) -> Row:
    with Pair(directory) as pair:
        pair.launch("a", "primary")
        fill_s = fill(pair, flows)
        with NewFlows(pair.lab) as alone:
            time.sleep(1.0)
        with NewFlows(pair.lab) as joining:
            begun = time.monotonic()
            pair.begin("b", "backup")
            pair.wait_for("b", r'"event":"in sync"', timeout_s)
            sync_s = time.monotonic() - begun
        held = live_flows(pair, "b")
        with UdpStream(pair.lab) as stream:
            time.sleep(0.7)
            killed_ns = pair.kill("a")
            taken = pair.wait_takeover("b")
            time.sleep(1.0)
        return {
            "flows": flows,
            "opens/s live": flows / fill_s,
            "in sync after s": sync_s,
            "first packet max ms, alone": alone.longest_ms,
            "first packet max ms, joining": joining.longest_ms,
            "first packets lost": alone.lost + joining.lost,
            "flows held by backup": held,
            "outage ms": stream.outage_ms(killed_ns),
            "records replayed": taken["records_replayed"],
            "log MB": sum(file.stat().st_size for file in pair.log("a").rglob("*") if file.is_file()) / 1e6,
        }


def _raw(interface: str) -> socket.socket:
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    sock.bind((interface, 0))
    return sock


def _udp(address: str, port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((address, port))
    sock.settimeout(2)
    return sock


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--timeout-s", type=float, default=120.0)
    arguments = parser.parse_args()
    rows = []
    for flows in arguments.flows:
        with tempfile.TemporaryDirectory() as directory:
            rows.append(measure(Path(directory), flows, arguments.timeout_s))
            print(table(rows[-1:]), file=sys.stderr)
    print(table(rows))
    print(write_json("scale", rows))


if __name__ == "__main__":
    main()
