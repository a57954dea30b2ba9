"""A network function between two halves of one network: hosts find each other through it, as through a wire."""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import dpkt
import pytest

from actornet import DROP, FlowActor, Packet, Verdict
from actornet.embedded import Embedded
from actornet.ports.memory import MemoryPort
from actornet.testing.netns import Lab

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
