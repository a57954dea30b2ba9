"""Tap ports: the kernel's end is an ordinary interface of a host."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator

import pytest

from actornet.errors import PortError
from actornet.ports.live import forward
from actornet.ports.tap import TapPort
from actornet.testing.netns import Lab
from tests.live_ports import CLIENT, new_lab, raw_socket, received, send, take, udp_frame, until

pytestmark = pytest.mark.root


@pytest.fixture
def lab() -> Iterator[Lab]:
    """The box's tap0, as far as it exists, says nothing of its own."""
    with new_lab() as lab:
        lab.run("box", ["sysctl", "-qw", "net.ipv6.conf.default.disable_ipv6=1"])
        yield lab


def names(lab: Lab) -> set[str]:
    return {link["ifname"] for link in json.loads(lab.run("box", ["ip", "-j", "link"]).stdout)}


def test_an_interface_is_created_and_goes_with_its_port(lab: Lab) -> None:
    port = lab.call("box", TapPort, "host", "tap0")
    assert "tap0" in names(lab) and port.state == "passive"
    (link,) = json.loads(lab.run("box", ["ip", "-j", "link", "show", "tap0"]).stdout)
    assert port.mac is not None and not port.mac[0] & 1 and port.mac.hex(":") != link["address"]
    port.close()
    assert "tap0" not in names(lab) and port.state == "closed"


def test_frames_pass_in_and_out_byte_for_byte(lab: Lab) -> None:
    port = lab.call("box", TapPort, "host", "tap0")
    port.activate()
    host = lab.call("box", raw_socket, "tap0")
    frames = [udp_frame(i, payload_bytes=i * 14) for i in range(100)]
    for frame in frames:
        host.send(frame)
    assert take(port, len(frames)) == frames
    assert send(port, frames) == len(frames)
    assert received(host, len(frames)) == frames
    assert not any(port.counters.values())
    port.close()


def test_a_passive_port_forgets_what_comes(lab: Lab) -> None:
    """G7, G6: it begins with the packets that come after its promotion."""
    port = lab.call("box", TapPort, "host", "tap0")
    host = lab.call("box", raw_socket, "tap0")
    for turn in range(3):
        host.send(udp_frame(turn))
        assert take(port, 1, seconds=0.02) == []
        host.send(udp_frame(30 + turn))  # waits
        port.activate()
        assert take(port, 1, seconds=0.02) == []
        host.send(udp_frame(10 + turn))
        assert take(port, 1) == [udp_frame(10 + turn)]
        port.deactivate()
    port.close()


def test_an_interface_made_before_is_taken_and_stays(lab: Lab) -> None:
    lab.ip("box", "tuntap add dev tap7 mode tap")
    with pytest.raises(PortError, match="port host on tap7: the interface is down; `ip link set tap7 up`"):
        lab.call("box", TapPort, "host", "tap7")
    lab.ip("box", "link set tap7 up")
    with pytest.raises(PortError, match=r"no tap device that 2 cores can use; .* mode tap multi_queue"):
        lab.call("box", TapPort, "host", "tap7", cores=2)
    port = lab.call("box", TapPort, "host", "tap7")
    port.activate()
    with pytest.raises(PortError, match="another process has this tap device"):
        lab.call("box", TapPort, "host", "tap7")
    host = lab.call("box", raw_socket, "tap7")

    def passes() -> bool:
        host.send(udp_frame(1))
        return take(port, 1, seconds=0.02) == [udp_frame(1)]

    until(passes)  # the kernel notices a little later that its end of the wire is connected
    port.close()
    assert "tap7" in names(lab)


def test_an_interface_that_is_no_tap_is_refused(lab: Lab) -> None:
    with pytest.raises(PortError, match="there is an interface of that name that is no tap device"):
        lab.call("box", TapPort, "lan", "lan0")


def test_the_queues_of_several_cores_share_the_frames(lab: Lab) -> None:
    """G1: nothing comes twice, a flow's frames come to one core, and a core that is gone costs nothing."""
    ports = [lab.call("box", TapPort, "host", "tap0", cores=2, core=core) for core in range(2)]
    host = lab.call("box", raw_socket, "tap0")
    for port in ports:
        port.activate()
    frames = [udp_frame(i, source_port=1000 + i % 40) for i in range(200)]
    for frame in frames:
        host.send(frame)
    taken = [take(port, 200, seconds=0.1) for port in ports]
    assert sorted(taken[0] + taken[1]) == sorted(frames)
    homes = [{frame[34:38] for frame in some} for some in taken]
    assert not homes[0] & homes[1]
    assert [send(port, frames[:10]) for port in ports] == [10, 10]
    assert received(host, 20) == frames[:10] * 2
    ports[0].close()
    for frame in frames:
        host.send(frame)
    assert take(ports[1], 200) == frames
    ports[1].close()
    assert "tap0" not in names(lab)


def test_a_port_survives_that_its_link_goes_down_and_comes_back(lab: Lab) -> None:
    port = lab.call("box", TapPort, "host", "tap0")
    port.activate()
    lab.ip("box", "link set tap0 down")
    until(lambda: take(port, 1, seconds=0.02) == [] and port.state == "down")
    assert send(port, [udp_frame(1)]) == 0
    assert (port.counters["tx_down"], port.counters["link_lost"]) == (1, 1)
    lab.ip("box", "link set tap0 up")
    until(lambda: take(port, 1, seconds=0.02) == [] and port.state == "up")
    host = lab.call("box", raw_socket, "tap0")
    host.send(udp_frame(3))
    assert take(port, 1) == [udp_frame(3)]
    assert send(port, [udp_frame(2)]) == 1
    assert received(host, 1) == [udp_frame(2)]
    port.close()


def test_a_new_mtu_holds_at_once(lab: Lab) -> None:
    port = lab.call("box", TapPort, "host", "tap0")
    port.activate()
    host = lab.call("box", raw_socket, "tap0")
    large = udp_frame(1, payload_bytes=8000)
    with pytest.raises(OSError):
        host.send(large)
    lab.ip("box", "link set tap0 mtu 9000")
    host.send(large)
    assert take(port, 1) == [large]
    assert send(port, [large]) == 1 and received(host, 1) == [large]
    assert port.counters["link_lost"] == 0
    port.close()


def test_a_device_of_its_own_that_somebody_removes_is_made_again(lab: Lab) -> None:
    def removed() -> None:  # in the namespace throughout, as a core is
        port = TapPort("host", "tap0")
        port.activate()
        before = port.ifindex
        lab.ip("box", "link del tap0")
        until(lambda: take(port, 1, seconds=0.005) == [] and port.state == "up" and port.ifindex != before)
        assert port.counters["link_lost"] == 1
        host = raw_socket("tap0")
        host.send(udp_frame(1))
        assert take(port, 1) == [udp_frame(1)]
        host.close()
        port.close()

    lab.call("box", removed)


def test_tcp_passes_with_all_offloads(lab: Lab) -> None:
    """Two hosts, each behind a tap of its own, with frames of up to 64 KiB, none cut."""
    if shutil.which("iperf3") is None:
        pytest.skip("needs iperf3")
    first, second = lab.call("client", TapPort, "first", "tap0"), lab.call("server", TapPort, "second", "tap0")
    lab.ip("client", "addr add 10.7.0.1/24 dev tap0")
    lab.ip("server", "addr add 10.7.0.2/24 dev tap0")
    first.activate()
    second.activate()
    done, frames = threading.Event(), []

    def box() -> None:
        while not done.is_set():
            frames.append(forward(first, second, seconds=0.02))

    thread = threading.Thread(target=box)
    thread.start()
    try:
        lab.serve("server", 5201, ["iperf3", "-s", "-1"])
        result = json.loads(lab.run("client", ["iperf3", "-c", "10.7.0.2", "-n", "200M", "--json"]).stdout)
    finally:
        done.set()
        thread.join()
    assert result["end"]["sum_received"]["bytes"] >= 190e6
    assert 200e6 / sum(frames) > 5 * 1500, "frames were cut"
    first.close()
    second.close()


def test_a_mac_is_used_as_given(lab: Lab) -> None:
    port = lab.call("box", TapPort, "host", "tap0", mac=CLIENT)
    assert port.mac == CLIENT
    port.close()
