"""A network function between two halves of one network: hosts find each other through it, as through a wire."""

from __future__ import annotations

import re
import socket
import sys
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import dpkt
import pytest

from actornet import DROP, FlowActor, Packet, Verdict
from actornet.embedded import Embedded
from actornet.ports.memory import MemoryPort
from actornet.testing.netns import Lab
from actornet.testing.pair import Name, Pair
from tests.live_ports import ping

SECOND = 1_000_000_000
HOST, PEER = b"\2\0\0\0\0\1", b"\2\0\0\0\0\2"
ARP = bytes(
    dpkt.ethernet.Ethernet(dst=b"\xff" * 6, src=HOST, type=0x0806, data=dpkt.arp.ARP(sha=HOST, spa=b"\x0a\0\0\1"))
)
TAGGED = ARP[:12] + b"\x81\0\0\7" + ARP[12:]


def icmp6(kind: int, hop_limit: int = 255) -> bytes:
    ip = dpkt.ip6.IP6(nxt=58, hlim=hop_limit, src=b"\xfe\x80" + bytes(13) + b"\1", dst=b"\xff\2" + bytes(13) + b"\1")
    ip.data = bytes([kind, 0, 0, 0]) + bytes(20)
    ip.plen = 24
    return bytes(dpkt.ethernet.Ethernet(dst=b"\x33\x33\0\0\0\1", src=HOST, type=0x86DD, data=ip))


class Nothing(FlowActor):
    def on_packet(self, packet: Packet) -> Verdict:
        return DROP


class Deaf(Nothing):
    discovery = DROP


def passed(nf: type[FlowActor], frame: bytes, ports: int = 2) -> tuple[bool, dict[str, int]]:
    attached = [MemoryPort(f"p{number}") for number in range(ports)]
    node = Embedded(nf, attached, virtual_time=True, flows_max=64)
    attached[0].feed([(SECOND, frame)])
    node.run_burst()
    return [bytes(data) for _, data in attached[1].take()] == [frame], node.counters()


@pytest.mark.parametrize("frame", [ARP, TAGGED, *(icmp6(kind) for kind in (133, 134, 135, 136))])
def test_what_finds_neighbours_passes(frame: bytes) -> None:
    assert passed(Nothing, frame)[0]
    went, counts = passed(Deaf, frame)
    assert not went and counts["not_ip"] + counts["untracked"] == 1


@pytest.mark.parametrize(
    ("frame", "counter"),
    [
        (icmp6(137), "untracked"),  # a redirect
        (icmp6(135, hop_limit=254), "untracked"),  # from beyond the link (RFC 4861, section 7.1.1)
        (ARP[:12] + b"\x88\xcc" + ARP[14:], "not_ip"),
        (ARP[:12], "truncated"),
        (ARP[:12] + b"\x81\0\0", "truncated"),
    ],
)
def test_other_frames_of_no_flow_do_not(frame: bytes, counter: str) -> None:
    """G9."""
    went, counts = passed(Nothing, frame)
    assert not went and counts[counter] == 1


def test_with_three_ports_there_is_no_other_side() -> None:
    went, counts = passed(Nothing, ARP, ports=3)
    assert not went and counts["not_ip"] == 1


@pytest.fixture
def joined() -> Iterator[Lab]:
    """Client and server with addresses of one network, and a box between them."""
    with Lab.single("172.16.0.1/24", "172.16.0.2/24", None) as lab:
        lab.ip("client", "addr add fd00::1/64 dev eth0 nodad")
        lab.ip("server", "addr add fd00::2/64 dev eth0 nodad")
        yield lab


@pytest.mark.root
@pytest.mark.parametrize("driver", ["af_packet", "af_xdp"])
def test_a_firewall_joins_two_halves_of_a_network(joined: Lab, driver: str, tmp_path: Path) -> None:
    """Nobody has told the hosts each other's MAC addresses; what the rules deny does not pass."""
    argv = [sys.executable, "-m", "actornet.cli.main", "run", "actors.firewall:Firewall"]
    argv += ["-i", f"lan=lan0:{driver}", "-i", f"wan=wan0:{driver}"]
    with (tmp_path / "output").open("wb") as output:
        firewall = joined.popen("box", argv, stdout=output, stderr=output)
    try:
        deadline = time.monotonic() + 15
        while not connects(joined, "client", "server", "172.16.0.2"):
            assert firewall.poll() is None and time.monotonic() < deadline, (tmp_path / "output").read_text()
        assert connects(joined, "client", "server", "fd00::2")
        assert not connects(joined, "server", "client", "172.16.0.1")
        assert not connects(joined, "server", "client", "fd00::1")
    finally:
        firewall.terminate()
        firewall.wait(15)


def connects(lab: Lab, source: str, target: str, address: str) -> bool:
    """Whether TCP from one to the other comes about within a second."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET

    def listen() -> socket.socket:
        return socket.create_server((address, 0), family=family)

    with lab.call(target, listen) as server:
        try:
            lab.call(source, socket.create_connection, (address, server.getsockname()[1]), 1.0).close()
        except OSError:
            return False
    return True


CLIENT, SERVER = "172.16.0.1", "172.16.0.2"
PORT = 9000


class Bridge(Pair):
    """A pair that joins two halves of one network, each with a learning switch."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, "actors.firewall:Firewall", "")
        for file in (self.file("a"), self.file("b")):
            file.write_text(re.sub(r"(?m)^(address|mac|gateway) = .*\n", "", file.read_text()))

    def __enter__(self) -> Bridge:
        super().__enter__()
        for space, address in (("client", CLIENT), ("server", SERVER)):
            self.lab.ip(space, "addr flush dev eth0", f"addr add {address}/24 dev eth0")
        return self


class OneWay:
    """Datagrams from client to server, one per millisecond; the server says nothing. `arrived` has when they came (ns)."""

    def __init__(self, pair: Pair) -> None:
        self._from = pair.lab.call("client", socket.socket, socket.AF_INET, socket.SOCK_DGRAM)
        self._to = pair.lab.call("server", socket.socket, socket.AF_INET, socket.SOCK_DGRAM)
        self._to.bind((SERVER, PORT))
        self._to.settimeout(0.1)
        self.arrived: list[int] = []
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=run) for run in (self._send, self._receive)]

    def __enter__(self) -> OneWay:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()
        self._from.close()
        self._to.close()

    def _send(self) -> None:
        while not self._ended.wait(0.001):
            self._from.sendto(b"x", (SERVER, PORT))

    def _receive(self) -> None:
        while not self._ended.is_set():
            try:
                self._to.recv(64)
            except TimeoutError:
                continue
            self.arrived.append(time.monotonic_ns())


@pytest.fixture
def bridge(tmp_path: Path) -> Iterator[Bridge]:
    with Bridge(tmp_path / "pair") as made:
        yield made


@pytest.mark.root
def test_switches_find_a_silent_host_behind_the_node_that_took_over(bridge: Bridge) -> None:
    """G6: the switch at the client's side has learned the server's address at the dead primary's port. A backup that joined
    after that knows of it, too, and the next takeover is no worse."""
    bridge.launch("a", "primary")
    bridge.lab.call("client", ping, SERVER, 1)
    for space, other, address in (("client", "server", SERVER), ("server", "client", CLIENT)):
        mac = bridge.lab.run(other, ["cat", "/sys/class/net/eth0/address"]).stdout.strip()
        bridge.lab.ip(space, f"neigh replace {address} lladdr {mac} dev eth0 nud permanent")
    bridge.launch("b", "backup")
    bridge.wait_in_sync("b")
    with OneWay(bridge) as stream:
        takeovers: tuple[tuple[Name, Name], ...] = (("a", "b"), ("b", "a"))
        for dead, survivor in takeovers:
            time.sleep(0.3)
            began_ns = bridge.kill(dead)
            bridge.wait_takeover(survivor)
            time.sleep(0.5)
            after = [at for at in stream.arrived if at > began_ns - 5_000_000]
            outage_ms = max(later - earlier for earlier, later in pairwise(after)) / 1e6 if len(after) > 100 else None
            assert outage_ms is not None and outage_ms < 250, f"{survivor}: {len(after)} arrived, outage {outage_ms} ms"
            if dead == "a":
                bridge.launch("a", "backup")
                bridge.wait_in_sync("a")
