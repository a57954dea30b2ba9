"""AF_XDP ports on veth interfaces, by the driver's hook and by the kernel's generic one."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import statistics
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import dpkt
import pytest

from actornet.errors import PortError
from actornet.ports.af_packet import AfPacketPort
from actornet.ports.af_xdp import AfXdpPort
from actornet.ports.live import forward
from actornet.testing.netns import Lab
from tests.live_ports import (
    CLIENT,
    SERVER,
    gso_frame,
    new_lab,
    raw_socket,
    received,
    reversed_frame,
    send,
    set_queues,
    take,
    tcp_checksum_is_right,
    udp_frame,
    until,
)

pytestmark = pytest.mark.root


@pytest.fixture
def lab() -> Iterator[Lab]:
    with new_lab() as lab:
        yield lab


@pytest.fixture(params=["native", "generic"])
def native(request: pytest.FixtureRequest) -> bool:
    return bool(request.param == "native")


def xdp_of(lab: Lab, interface: str = "lan0") -> str:
    """What `ip` says about XDP on the interface; the empty string if nothing is there."""
    link = json.loads(lab.run("box", ["ip", "-d", "-j", "link", "show", interface]).stdout)[0]
    return json.dumps(link["xdp"]) if "xdp" in link else ""


@contextmanager
def opened(lab: Lab, interface: str = "lan0", **options: Any) -> Iterator[AfXdpPort]:
    port = lab.call("box", AfXdpPort, interface, interface, **options)
    try:
        yield port
    finally:
        port.close()


# -- frames -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "tags", [b"", b"\x81\0\0\x07", b"\x88\xa8\0\x09\x81\0\0\x07"], ids=["untagged", "vlan", "q-in-q"]
)
def test_frames_pass_in_and_out_byte_for_byte(lab: Lab, native: bool, tags: bytes) -> None:
    client = lab.call("client", raw_socket, "eth0")
    with opened(lab, native=native) as port:
        assert port.mode == ("native" if native else "generic")
        port.activate()
        frames = [udp_frame(i, tags=tags, payload_bytes=i * 14) for i in range(100)]
        for frame in frames:
            client.send(frame)
        assert take(port, len(frames)) == frames
        assert send(port, frames) == len(frames)
        assert received(client, len(frames)) == [frame[:12] + frame[16:] if tags else frame for frame in frames]
        assert not any(port.counters.values())


def test_rings_go_round_many_times(lab: Lab, native: bool) -> None:
    """No chunk is lost: far more frames than the rings have slots, in and out."""
    client = lab.call("client", raw_socket, "eth0")
    with opened(lab, native=native) as port:
        port.activate()
        for burst in range(200):
            frames = [udp_frame(burst * 50 + i) for i in range(50)]
            for frame in frames:
                client.send(frame)
            assert take(port, 50) == frames
            assert send(port, frames) == 50
            assert received(client, 50) == frames


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("tags", [b"", b"\x81\0\0\x07"], ids=["untagged", "vlan"])
def test_what_packet_sockets_leave_to_the_interface_is_done_in_software(lab: Lab, version: int, tags: bytes) -> None:
    """From af_packet, with a virtio header, to af_xdp: segments of the MTU that add up, each checksum right."""
    client = lab.call("client", raw_socket, "eth0", vnet=True)
    server = lab.call("server", raw_socket, "eth0")
    lan = lab.call("box", AfPacketPort, "lan", "lan0")
    mss, payload = 1400, Random(7).randbytes(60_000)
    frame, vnet = gso_frame(version, tags, payload, mss)
    with opened(lab, "wan0") as wan:
        lan.activate()
        client.send(vnet + frame)
        assert forward(lan, wan, packets=1, seconds=1.0) == 1, (lan.counters, wan.counters)
        segments = received(server, -(-len(payload) // mss))
    network_at = 14  # a tag is in the auxiliary data
    packets = [{4: dpkt.ip.IP, 6: dpkt.ip6.IP6}[version](segment[network_at:]) for segment in segments]
    assert b"".join(packet.data.data for packet in packets) == payload
    assert [packet.data.seq for packet in packets] == [1 + at for at in range(0, len(payload), mss)]
    for packet in packets:
        assert tcp_checksum_is_right(packet, version)
        if version == 4:
            assert dpkt.in_cksum(bytes(packet)[: packet.hl * 4]) == 0


def test_a_checksum_that_the_sender_left_to_the_interface_is_completed(lab: Lab, native: bool) -> None:
    """An ordinary UDP socket behind a veth sends the pseudo-header's sum alone; both ends of the box are AF_XDP."""
    data = Random(3).randbytes(501)
    server = lab.call("server", raw_socket, "eth0")
    with opened(lab, "lan0", native=native) as lan, opened(lab, "wan0", native=native) as wan:
        lan.activate()
        lab.ip("client", f"neigh add 10.0.0.2 lladdr {SERVER.hex(':')} dev eth0")
        with lab.call("client", socket.socket, socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.sendto(data, ("10.0.0.2", 4000))
        assert forward(lan, wan, packets=1, seconds=1.0) == 1
        (frame,) = received(server, 1)
    packet = dpkt.ip.IP(frame[14:])
    udp = bytes(packet.data)
    assert udp[8:] == data
    assert dpkt.in_cksum(packet.src + packet.dst + b"\0\x11" + len(udp).to_bytes(2, "big") + udp) == 0


def test_frames_beyond_the_mtu_are_counted_and_a_new_mtu_holds(lab: Lab) -> None:
    client = lab.call("client", raw_socket, "eth0")
    with opened(lab) as port:
        port.activate()
        small, jumbo = udp_frame(1), udp_frame(2, payload_bytes=8000)
        assert send(port, [small, jumbo, b"short", small]) == 2
        assert (port.counters["tx_oversized"], port.counters["tx_refused"]) == (1, 1)
        lab.ip("box", "link set lan0 mtu 9000")
        lab.ip("client", "link set eth0 mtu 9000")
        until(lambda: take(port, 1, seconds=0.02) == [] and send(port, [jumbo]) == 1)
        assert received(client, 3) == [small, small, jumbo]
        client.send(jumbo)  # more than a chunk holds
        assert take(port, 1) == [jumbo]


def test_frames_lost_in_the_kernel_are_counted(lab: Lab) -> None:
    client = lab.call("client", raw_socket, "eth0")
    with opened(lab) as port:
        port.activate()
        for number in range(3000):
            client.send(udp_frame(number))
        taken = take(port, 3000, seconds=0.3)
        port.deactivate()
        assert 0 < len(taken) < 3000
        assert len(taken) + port.counters["rx_kernel_dropped"] == 3000


def test_tcp_is_right_without_anybody_touching_ethtool(lab: Lab, native: bool) -> None:
    """iperf3 through veths as the kernel makes them, checksum and segmentation offload on: 200 MB arrive."""
    if shutil.which("iperf3") is None:
        pytest.skip("needs iperf3")
    with opened(lab, "lan0", native=native) as lan, opened(lab, "wan0", native=native) as wan:
        lan.activate()
        wan.activate()
        done = threading.Event()

        def box() -> None:
            while not done.is_set():
                forward(lan, wan, seconds=0.02)

        thread = threading.Thread(target=box)
        thread.start()
        try:
            lab.serve("server", 5201, ["iperf3", "-s", "-1"])
            result = json.loads(lab.run("client", ["iperf3", "-c", "10.0.0.2", "-n", "200M", "--json"]).stdout)
        finally:
            done.set()
            thread.join()
    assert result["end"]["sum_received"]["bytes"] >= 190e6
    assert not any(port.counters["tx_oversized"] for port in (lan, wan))


# -- passive and active -----------------------------------------------------------------------------------------------


def test_a_passive_port_takes_nothing_from_the_kernel(lab: Lab, native: bool) -> None:
    """G7, G6: while it is passive the kernel gets every packet; once active, the port does, from an empty queue on."""
    client, beside = lab.call("client", raw_socket, "eth0"), lab.call("box", raw_socket, "lan0")
    beside.settimeout(0.05)
    with opened(lab, native=native) as port:
        for turn in range(3):
            assert port.state == "passive"
            client.send(udp_frame(turn))
            assert received(beside, 1) == [udp_frame(turn)]
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
        with pytest.raises(TimeoutError):
            beside.recv(2000)


def test_activation_takes_far_less_than_a_millisecond(lab: Lab) -> None:
    """G6"""
    with opened(lab) as port:
        durations_us = []
        for _ in range(20):
            begin = time.perf_counter()
            port.activate()
            durations_us.append((time.perf_counter() - begin) * 1e6)
            port.deactivate()
    assert statistics.median(durations_us) < 500


# -- the program ------------------------------------------------------------------------------------------------------


def test_closing_detaches_the_program(lab: Lab, native: bool) -> None:
    with opened(lab, native=native):
        assert xdp_of(lab)
    assert not xdp_of(lab)


def test_kill_9_detaches_the_program_and_frees_the_queue(lab: Lab, native: bool) -> None:
    program = (
        "import time\n"
        "from actornet.ports.af_xdp import AfXdpPort\n"
        f"port = AfXdpPort('lan', 'lan0', native={native})\n"
        "port.activate()\n"
        "print('ready', flush=True)\n"
        "time.sleep(60)\n"
    )
    process = lab.popen("box", [sys.executable, "-c", program], stdout=-1, text=True, cwd=Path(__file__).parents[1])
    with process.stdout:
        assert process.stdout.readline() == "ready\n"
    assert xdp_of(lab)
    process.send_signal(signal.SIGKILL)
    with opened(lab, native=native, group=7) as port:  # at once: another node, that waits for the first to be gone
        port.activate()
        client = lab.call("client", raw_socket, "eth0")
        client.send(udp_frame(1))
        assert take(port, 1) == [udp_frame(1)]
    process.wait()
    assert not xdp_of(lab)


def test_a_queue_or_a_program_of_somebody_else_is_named(lab: Lab) -> None:
    with opened(lab, group=1):
        with pytest.raises(PortError, match="port lan on lan0: another XDP program is attached; `ip link set dev lan0"):
            lab.call("box", AfXdpPort, "lan", "lan0", group=2)
        with pytest.raises(PortError, match="queue 0 belongs to another AF_XDP socket"):
            lab.call("box", AfXdpPort, "lan", "lan0", group=1)


def test_an_absent_interface_and_one_that_is_down_are_named(lab: Lab) -> None:
    with pytest.raises(PortError, match=r"port wan on wan9: there is no interface 'wan9' here"):
        lab.call("box", AfXdpPort, "wan", "wan9")
    lab.ip("box", "link set wan0 down")
    with pytest.raises(PortError, match="interface is down; `ip link set wan0 up`"):
        lab.call("box", AfXdpPort, "wan", "wan0")


def test_more_cores_than_queues_are_refused_with_the_remedy(lab: Lab) -> None:
    with pytest.raises(
        PortError, match=r"512 cores need as many RX queues, there are \d+: `ethtool -L lan0 combined 512`"
    ):
        lab.call("box", AfXdpPort, "lan", "lan0", cores=512)


# -- cores and queues -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cores", [1, 2])
def test_every_queue_is_served_once_however_many_cores(lab: Lab, cores: int) -> None:
    """G1: nothing comes twice and nothing is missed; an interface with fewer queues than cores is given as many."""
    client = lab.call("client", raw_socket, "eth0")
    ports = [lab.call("box", AfXdpPort, "lan", "lan0", cores=cores, core=core) for core in range(cores)]
    try:
        assert {port.queues for port in ports} == {cores} or cores == 1
        for port in ports:
            port.activate()
        frames = [udp_frame(i, source_port=1000 + i % 40) for i in range(200)]
        for frame in frames:
            client.send(frame)
            client.send(reversed_frame(frame))
        taken = [frame for port in ports for frame in take(port, 400, seconds=0.1)]
        assert sorted(taken) == sorted([*frames, *map(reversed_frame, frames)])
        for port in ports:  # and each core sends
            assert send(port, frames[:40]) == 40
        assert sorted(received(client, 40 * cores)) == sorted(frames[:40] * cores)
        ports[0].close()
        assert xdp_of(lab) if cores > 1 else not xdp_of(lab)  # the other core still has the program
    finally:
        for port in ports:
            port.close()
    assert not xdp_of(lab)


def test_a_new_number_of_queues_is_noticed_and_served(lab: Lab) -> None:
    client = lab.call("client", raw_socket, "eth0")

    def changed() -> None:  # in the namespace throughout, as a core is
        port = AfXdpPort("lan", "lan0")
        port.activate()
        before = port.queues
        set_queues("lan0", before + 1)
        until(lambda: take(port, 1, seconds=0.005) == [] and port.queues == before + 1 and port.state == "up")
        assert port.counters["queues_changed"] == 1
        client.send(udp_frame(1))
        assert take(port, 1) == [udp_frame(1)]
        assert send(port, [udp_frame(2)]) == 1
        assert received(client, 1) == [udp_frame(2)]
        port.close()

    lab.call("box", changed)


# -- the link ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("active", [True, False])
def test_a_port_survives_that_its_link_goes_down_and_comes_back(lab: Lab, native: bool, active: bool) -> None:
    client = lab.call("client", raw_socket, "eth0")
    with opened(lab, native=native) as port:
        if active:
            port.activate()
        lab.ip("box", "link set lan0 down")
        until(lambda: take(port, 1, seconds=0.02) == [] and port.state == "down")
        assert send(port, [udp_frame(1)]) == 0
        assert port.counters["tx_down"] == 1
        assert port.counters["link_lost"] == 1
        lab.ip("box", "link set lan0 up")
        until(lambda: take(port, 1, seconds=0.01) == [] and port.state != "down")
        port.activate()
        assert port.state == "up"
        assert send(port, [udp_frame(2)]) == 1
        assert received(client, 1) == [udp_frame(2)], "and nothing that was refused before"
        client.send(udp_frame(3))
        assert take(port, 1) == [udp_frame(3)]


def test_sending_notices_that_the_link_is_down_and_takes_back_what_is_queued(lab: Lab) -> None:
    client = lab.call("client", raw_socket, "eth0")
    with opened(lab) as port:
        lab.ip("box", "link set lan0 down")
        assert send(port, [udp_frame(i) for i in range(20)]) == 0
        assert (port.state, port.counters["tx_down"]) == ("down", 20)
        lab.ip("box", "link set lan0 up")
        until(lambda: send(port, [udp_frame(99)]) == 1)
        assert received(client, 1) == [udp_frame(99)]


@pytest.mark.parametrize("active", [True, False])
def test_a_port_attaches_to_the_interface_that_replaces_its_own(lab: Lab, native: bool, active: bool) -> None:
    def replaced() -> None:  # in the namespace throughout, as a core is
        port = AfXdpPort("lan", "lan0", native=native)
        if active:
            port.activate()
        descriptor, before = port.fileno(), port.ifindex
        lab.ip("box", "link del lan0")
        until(lambda: take(port, 1, seconds=0.02) == [] and port.state == "down")
        lab.ip("client", f"link add eth0 type veth peer name lan0 netns {lab.names['box']}")
        for space, interface in (("client", "eth0"), ("box", "lan0")):
            lab.ip(space, f"link set {interface} addrgenmode none", f"link set {interface} up")
        client = lab.call("client", raw_socket, "eth0")
        port.activate()
        until(lambda: take(port, 1, seconds=0.005) == [] and port.state == "up")
        assert (port.fileno(), port.ifindex != before) == (descriptor, True)
        client.send(udp_frame(1))
        assert take(port, 1) == [udp_frame(1)]
        assert send(port, [udp_frame(2)]) == 1
        port.close()

    lab.call("box", replaced)


def test_a_waiting_frame_wakes_who_polls_the_port(lab: Lab, native: bool) -> None:
    client = lab.call("client", raw_socket, "eth0")
    with opened(lab, native=native) as port:
        port.activate()
        threading.Timer(0.05, client.send, [udp_frame(1)]).start()
        begin = time.monotonic()
        assert take(port, 1, seconds=5.0) == [udp_frame(1)]
        assert time.monotonic() - begin < 2.0


def test_mac_is_the_interfaces_own_unless_given(lab: Lab) -> None:
    lab.ip("box", "link set lan0 address 02:00:5e:00:53:07")
    with opened(lab) as port:
        assert port.mac == bytes.fromhex("02005e005307")
    with opened(lab, mac=CLIENT) as port:
        assert port.mac == CLIENT
