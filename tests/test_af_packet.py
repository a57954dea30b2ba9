"""Live ports on veth interfaces in namespaces of their own."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import shlex
import statistics
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

import dpkt
import pytest

from actornet.errors import PortError
from actornet.ports.af_packet import AfPacketPort, forward
from actornet.testing.netns import Lab
from tests.live_ports import (
    CLIENT,
    SERVER,
    VNET,
    gso_frame,
    new_lab,
    ping,
    raw_socket,
    received,
    reversed_frame,
    send,
    set_offloads,
    take,
    tcp_checksum_is_right,
    tun,
    udp_frame,
    until,
)

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def common_lab() -> Iterator[Lab]:
    with new_lab() as lab:
        yield lab


@pytest.fixture
def lab(common_lab: Lab) -> Lab:
    """For tests that leave the interfaces as they were."""
    return common_lab


@pytest.fixture
def own_lab() -> Iterator[Lab]:
    """For tests that change interfaces."""
    with new_lab() as lab:
        yield lab


@contextmanager
def bridge(lab: Lab) -> Iterator[None]:
    """lan0 and wan0 of the box, with all frames forwarded between them by another process."""
    program = (
        "from actornet.ports.af_packet import AfPacketPort, forward\n"
        "ports = [AfPacketPort('lan', 'lan0'), AfPacketPort('wan', 'wan0')]\n"
        "for port in ports: port.activate()\n"
        "print('ready', flush=True)\n"
        "forward(*ports)\n"
    )
    process = lab.popen("box", [sys.executable, "-c", program], stdout=-1, text=True, cwd=Path(__file__).parents[1])
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline() == "ready\n"
        yield
    process.terminate()


# -- opening ----------------------------------------------------------------------------------------------------------


def test_an_absent_interface_is_named(lab: Lab) -> None:
    with pytest.raises(PortError, match=r"port wan on wan9: there is no interface 'wan9' here"):
        lab.call("box", AfPacketPort, "wan", "wan9")


def test_an_interface_that_is_down_is_named_with_the_remedy(own_lab: Lab) -> None:
    own_lab.ip("box", "link set wan0 down")
    with pytest.raises(PortError, match="interface is down; `ip link set wan0 up`"):
        own_lab.call("box", AfPacketPort, "wan", "wan0")


def test_an_interface_without_ethernet_is_refused(own_lab: Lab) -> None:
    own_lab.call("box", tun, b"tun0", 0x0001)
    own_lab.ip("box", "link set tun0 up")
    with pytest.raises(PortError, match="does not carry Ethernet frames"):
        own_lab.call("box", AfPacketPort, "wan", "tun0")


def test_without_privileges_the_error_says_what_is_needed(lab: Lab) -> None:
    def without_capabilities() -> None:
        header, none = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
        assert ctypes.CDLL(None).capset(header, none) == 0  # of this thread only
        AfPacketPort("lan", "lan0")

    with pytest.raises(PortError, match="need root or CAP_NET_RAW"):
        lab.call("box", without_capabilities)


@pytest.mark.parametrize("mac", [b"\x01\0\x5e\0\0\x01", b"\x02\0"])
def test_a_mac_that_no_host_can_have_is_refused(mac: bytes) -> None:
    with pytest.raises(PortError, match="no unicast MAC address"):
        AfPacketPort("lan", "lan0", mac=mac)


def test_mac_is_the_interfaces_own_unless_given(own_lab: Lab) -> None:
    own_lab.ip("box", "link set lan0 address 02:00:5e:00:53:07")
    assert own_lab.call("box", AfPacketPort, "lan", "lan0").mac == bytes.fromhex("02005e005307")
    assert own_lab.call("box", AfPacketPort, "lan", "lan0", mac=CLIENT).mac == CLIENT


# -- frames -----------------------------------------------------------------------------------------------------------

TAGS = {
    "untagged": b"",
    "vlan": b"\x81\0\0\x07",
    "priority": b"\x81\0\xe0\0",
    "802.1ad": b"\x88\xa8\x30\x09",
    "two tags": b"\x88\xa8\0\x09\x81\0\0\x07",
    "three tags": b"\x88\xa8\0\x09\x81\0\0\x07\x81\0\0\x08",
}


@pytest.mark.parametrize("tags", TAGS.values(), ids=TAGS)
def test_frames_pass_in_and_out_byte_for_byte(lab: Lab, tags: bytes) -> None:
    """The kernel takes the outer VLAN tag out of a frame; the port puts it back."""
    client, port = lab.call("client", raw_socket, "eth0"), lab.call("box", AfPacketPort, "lan", "lan0")
    port.activate()
    frames = [udp_frame(i, tags=tags, payload_bytes=i * 14) for i in range(100)]
    frames.append(SERVER + CLIENT + tags + b"\x88\xb5\0\1")  # less than an IP header
    for frame in frames:
        client.send(frame)
    assert take(port, len(frames)) == frames
    # What leaves is seen by the neighbour with its outer tag in the auxiliary data.
    assert send(port, frames) == len(frames)
    stripped = [frame[:12] + frame[16:] if tags else frame for frame in frames]
    assert received(client, len(frames)) == stripped
    assert not any(port.counters.values())


@pytest.mark.parametrize("tags", TAGS.values(), ids=TAGS)
@pytest.mark.parametrize("version", [4, 6])
def test_what_is_left_to_the_interface_is_right_on_the_wire(lab: Lab, tags: bytes, version: int) -> None:
    """A large TCP frame with a partial checksum comes out of an interface without offloads as segments that add up."""
    client = lab.call("client", raw_socket, "eth0", vnet=True)
    server = lab.call("server", raw_socket, "eth0")
    lan, wan = (lab.call("box", AfPacketPort, name, name) for name in ("lan0", "wan0"))
    lan.activate()
    mss, payload = 1400, Random(7).randbytes(60_000)
    frame, vnet = gso_frame(version, tags, payload, mss)
    lab.call("box", set_offloads, "wan0", False)
    try:
        client.send(vnet + frame)
        assert forward(lan, wan, packets=1, seconds=1.0) == 1, (lan.counters, wan.counters)
    finally:
        lab.call("box", set_offloads, "wan0", True)
    segments = received(server, -(-len(payload) // mss))
    network_at = 14 + max(0, len(tags) - 4)  # the outer tag is in the auxiliary data
    packets = [{4: dpkt.ip.IP, 6: dpkt.ip6.IP6}[version](segment[network_at:]) for segment in segments]
    assert b"".join(packet.data.data for packet in packets) == payload
    assert {segment[12:network_at] for segment in segments} == {(tags[4:] + {4: b"\x08\0", 6: b"\x86\xdd"}[version])}
    for packet in packets:
        assert tcp_checksum_is_right(packet, version)


def test_own_frames_do_not_come_back(lab: Lab) -> None:
    port = lab.call("box", AfPacketPort, "lan", "lan0")
    port.activate()
    assert send(port, [udp_frame(1)]) == 1
    assert take(port, 1, seconds=0.02) == []


def test_frames_beyond_the_mtu_are_counted_and_a_new_mtu_holds_at_once(own_lab: Lab) -> None:
    client, port = own_lab.call("client", raw_socket, "eth0"), own_lab.call("box", AfPacketPort, "lan", "lan0")
    port.activate()
    small, jumbo = udp_frame(1), udp_frame(2, payload_bytes=8000)
    assert send(port, [small, jumbo, small]) == 2
    assert port.counters["tx_oversized"] == 1
    own_lab.ip("box", "link set lan0 mtu 9000")
    own_lab.ip("client", "link set eth0 mtu 9000")
    assert send(port, [jumbo]) == 1
    assert received(client, 3) == [small, small, jumbo]
    client.send(jumbo)
    assert take(port, 1) == [jumbo]


def test_frames_that_the_kernel_refuses_are_counted_and_the_others_leave(lab: Lab) -> None:
    client, port = lab.call("client", raw_socket, "eth0"), lab.call("box", AfPacketPort, "lan", "lan0")
    good = udp_frame(1)
    assert send(port, [b"", good, b"short", good]) == 2
    assert port.counters["tx_refused"] == 2
    assert received(client, 2) == [good, good]


def test_a_full_interface_queue_is_counted(own_lab: Lab) -> None:
    own_lab.run("box", shlex.split("tc qdisc add dev lan0 root tbf rate 1mbit burst 2kb limit 4kb"))
    port = own_lab.call("box", AfPacketPort, "lan", "lan0")
    sent = send(port, [udp_frame(i, payload_bytes=900) for i in range(64)])
    assert 2 <= sent < 20
    assert port.counters["tx_full"] == 64 - sent


def test_frames_lost_in_the_kernel_are_counted(lab: Lab) -> None:
    client, port = lab.call("client", raw_socket, "eth0"), lab.call("box", AfPacketPort, "lan", "lan0")
    port.activate()
    frame = udp_frame(1, payload_bytes=1400)
    for _ in range(16_000):  # of some 2 KiB each in the kernel's account
        client.send(frame)
    taken = take(port, 16_000, seconds=0.3)
    port.deactivate()
    assert 0 < len(taken) < 16_000
    assert len(taken) + port.counters["rx_kernel_dropped"] == 16_000


def test_a_frame_that_the_vnet_header_cannot_express_does_not_wedge_the_port(own_lab: Lab) -> None:
    """A virtual machine may ask for UDP fragmentation offload, which packet sockets cannot hand on."""
    guest = own_lab.call("box", tun, b"tap0", 0x0002 | 0x4000)
    own_lab.ip("box", "link set tap0 addrgenmode none", "link set tap0 up")
    port = own_lab.call("box", AfPacketPort, "guest", "tap0")
    port.activate()
    plain = udp_frame(1)
    os.write(guest, VNET.pack(1, 3, 42, 500, 34, 6) + udp_frame(2, payload_bytes=3000))
    os.write(guest, VNET.pack(0, 0, 0, 0, 0, 0) + plain)
    assert take(port, 1) == [plain]
    assert port.counters["rx_refused"] == 1
    os.close(guest)


# -- passive and active -----------------------------------------------------------------------------------------------


def test_a_passive_port_receives_nothing_and_activation_begins_with_an_empty_queue(lab: Lab) -> None:
    """G7: a backup neither sees nor answers packets; G6: it begins with the packets that come after its promotion."""
    client, port = lab.call("client", raw_socket, "eth0"), lab.call("box", AfPacketPort, "lan", "lan0")
    for turn in range(3):
        assert port.state == "passive"
        client.send(udp_frame(turn))
        assert take(port, 1, seconds=0.01) == []
        port.activate()
        port.activate()
        assert port.state == "up"
        client.send(udp_frame(10 + turn))
        assert take(port, 1) == [udp_frame(10 + turn)]
        client.send(udp_frame(20 + turn))  # waits in the socket
        port.deactivate()
        port.activate()
        assert take(port, 1, seconds=0.01) == []
        port.deactivate()
    port.close()
    port.close()
    assert port.state == "closed"


def test_activation_takes_far_less_than_a_millisecond(lab: Lab) -> None:
    """G6"""
    port = lab.call("box", AfPacketPort, "lan", "lan0")
    durations_us = []
    for _ in range(20):
        begin = time.perf_counter()
        port.activate()
        durations_us.append((time.perf_counter() - begin) * 1e6)
        port.deactivate()
    assert statistics.median(durations_us) < 200


# -- the link ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("active", [True, False])
def test_a_port_survives_that_its_link_goes_down_and_comes_back(own_lab: Lab, active: bool) -> None:
    client, port = own_lab.call("client", raw_socket, "eth0"), own_lab.call("box", AfPacketPort, "lan", "lan0")
    if active:
        port.activate()
    own_lab.ip("box", "link set lan0 down")
    assert take(port, 1, seconds=0.02) == []
    assert port.state == "down"
    assert send(port, [udp_frame(1)]) == 0
    assert port.counters["link_lost"] == 1
    assert port.counters["tx_down"] == 1
    own_lab.ip("box", "link set lan0 up")
    until(lambda: take(port, 1, seconds=0.01) == [] and port.state != "down")
    port.activate()
    assert port.state == "up"
    assert send(port, [udp_frame(2)]) == 1
    assert received(client, 1) == [udp_frame(2)]
    client.send(udp_frame(3))
    assert take(port, 1) == [udp_frame(3)]


def test_a_link_that_was_down_only_between_two_bursts_costs_nothing(own_lab: Lab) -> None:
    client, port = own_lab.call("client", raw_socket, "eth0"), own_lab.call("box", AfPacketPort, "lan", "lan0")
    port.activate()
    own_lab.ip("box", "link set lan0 down", "link set lan0 up")
    assert send(port, [udp_frame(1)]) == 1
    client.send(udp_frame(2))
    assert take(port, 1) == [udp_frame(2)]
    assert port.counters["tx_down"] == 0


@pytest.mark.parametrize("active", [True, False])
def test_a_port_attaches_to_the_interface_that_replaces_its_own(own_lab: Lab, active: bool) -> None:
    def replaced() -> None:  # in the namespace throughout, as a core is
        port = AfPacketPort("lan", "lan0")
        if active:
            port.activate()
        descriptor, before = port.fileno(), port.ifindex
        own_lab.ip("box", "link del lan0")
        if active:
            assert take(port, 1, seconds=0.02) == []
            assert port.state == "down"
        own_lab.ip("client", f"link add eth0 type veth peer name lan0 netns {own_lab.names['box']}")
        for space, interface in (("client", "eth0"), ("box", "lan0")):
            own_lab.ip(space, f"link set {interface} addrgenmode none", f"link set {interface} up")
        client = own_lab.call("client", raw_socket, "eth0")
        port.activate()
        until(lambda: take(port, 1, seconds=0.005) == [] and port.state == "up")
        assert (port.fileno(), port.ifindex != before) == (descriptor, True)
        client.send(udp_frame(1))
        assert take(port, 1) == [udp_frame(1)]
        assert send(port, [udp_frame(2)]) == 1

    own_lab.call("box", replaced)


# -- cores ------------------------------------------------------------------------------------------------------------


def test_the_ports_of_several_cores_share_the_flows(lab: Lab) -> None:
    """G1: all packets of a connection, of both directions, come to one core; none comes twice."""
    client = lab.call("client", raw_socket, "eth0")
    ports = [lab.call("box", AfPacketPort, "lan", "lan0", cores=2, core=core) for core in range(2)]
    for port in ports:
        port.activate()
    frames = [udp_frame(i, source_port=1000 + i % 40) for i in range(200)]
    for frame in frames:
        client.send(frame)
        client.send(reversed_frame(frame))
    taken = [take(port, 400, seconds=0.1) for port in ports]
    assert sorted(taken[0] + taken[1]) == sorted([*frames, *map(reversed_frame, frames)])
    homes = [{frozenset((frame[34:36], frame[36:38])) for frame in some} for some in taken]
    assert homes[0] and homes[1] and not homes[0] & homes[1]


# -- connections through two ports ------------------------------------------------------------------------------------


def test_a_download_passes_through_two_ports(lab: Lab, tmp_path: Path) -> None:
    content = Random(1).randbytes(20_000_000)
    (tmp_path / "file").write_bytes(content)
    with bridge(lab):
        lab.serve("server", 80, [sys.executable, "-m", "http.server", "-d", str(tmp_path), "80"])
        copy = tmp_path / "copy"
        curl = shlex.split("env -u LD_PRELOAD curl -sf")  # it hangs under a preloaded address sanitizer
        lab.run("client", [*curl, "-o", str(copy), "http://10.0.0.2/file"])
    assert hashlib.sha256(copy.read_bytes()).digest() == hashlib.sha256(content).digest()


def test_tcp_passes_in_frames_of_64_kib_without_a_retransmission_storm(lab: Lab) -> None:
    """iperf3 through veths as the kernel makes them, with all offloads."""
    lan, wan = (lab.call("box", AfPacketPort, name, name) for name in ("lan0", "wan0"))
    lan.activate()
    wan.activate()
    done, frames = threading.Event(), []

    def box() -> None:
        while not done.is_set():
            frames.append(forward(lan, wan, seconds=0.02))

    thread = threading.Thread(target=box)
    thread.start()
    try:
        lab.serve("server", 5201, ["iperf3", "-s", "-1"])
        result = json.loads(lab.run("client", ["iperf3", "-c", "10.0.0.2", "-n", "200M", "--json"]).stdout)
    finally:
        done.set()
        thread.join()
    assert result["end"]["sum_received"]["bytes"] >= 190e6
    assert 200e6 / sum(frames) > 5 * 1500, "frames were cut before the port"
    assert not any(value for port in (lan, wan) for value in port.counters.values())


def test_ping_passes_through_two_ports_in_microseconds(lab: Lab) -> None:
    with bridge(lab):
        round_trips_us = lab.call("client", ping, "10.0.0.2", 200)
    assert statistics.median(round_trips_us) < 1000
