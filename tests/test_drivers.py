"""The same packets come out, whatever the driver and however many the cores: a NAT, live, against one core in memory."""

from __future__ import annotations

import json
import secrets
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dpkt
import pytest

from actornet.cli.main import main
from actornet.embedded import Embedded
from actornet.limits import HEARTBEAT_MS
from actornet.node.deployment import load_deployment
from actornet.ports.memory import MemoryPort
from actornet.testing.netns import Lab
from actornet.testing.pair import ask_worker
from actors.nat import SourceNAT
from tests.live_ports import raw_socket, until
from tests.processes import sleeps

EXTERNAL = "203.0.113.1"
FLOWS = 60
INSIDE_MAC, OUTSIDE_MAC = b"\x02\0\0\0\0\x01", b"\x02\0\0\0\0\x02"

Frames = list[bytes]

DEPLOYMENT = """\
nf = "actors.nat:SourceNAT"
cores = {cores}
poll = "{poll}"
key_file = "key"
[settings]
address = "203.0.113.1"
[ports.lan]
interface = "{lan}"
driver = "{driver}"
[ports.wan]
interface = "{wan}"
driver = "{driver}"
[replication]
durability = "solo"
[primary]
log = "log"
control = "127.0.0.1:7401"
"""


def frame(source: tuple[bytes, int], destination: tuple[bytes, int], tcp_flags: int | None, number: int) -> bytes:
    """Of TCP with these flags, or of UDP; its payload tells its number."""
    data = number.to_bytes(2, "big") * 9
    if tcp_flags is None:
        segment = dpkt.udp.UDP(sport=source[1], dport=destination[1], data=data, ulen=8 + len(data))
    else:
        segment = dpkt.tcp.TCP(
            sport=source[1], dport=destination[1], flags=tcp_flags, seq=number, data=b"" if tcp_flags & 2 else data
        )
    packet = dpkt.ip.IP(
        src=source[0], dst=destination[0], p=17 if tcp_flags is None else 6, id=number & 0xFFFF, ttl=64, data=segment
    )
    packet.len = len(packet)
    macs = (OUTSIDE_MAC, INSIDE_MAC) if source[0][0] == 10 else (INSIDE_MAC, OUTSIDE_MAC)
    return macs[0] + macs[1] + b"\x08\0" + bytes(packet)


def rounds() -> Iterator[tuple[str, Frames]]:
    """(port that they arrive at, frames): every flow begins, is answered, goes on, is answered again."""
    external = socket.inet_aton(EXTERNAL)
    for round_ in range(4):
        frames = []
        for packet in range(1 if round_ == 0 else 3):
            for flow in range(FLOWS):
                number = round_ * 1000 + packet * 100 + flow
                inside = bytes((10, 0, 0, 2 + flow % 7)), 2000 + flow
                outside = bytes((198, 51, 100, 1 + flow % 5)), 53 + flow % 3
                tcp = None if flow % 2 else (0x02, 0x12, 0x10, 0x18)[round_]
                if round_ % 2 == 0:
                    frames.append(frame(inside, outside, tcp, number))
                else:
                    frames.append(frame(outside, (external, inside[1]), tcp, number))
        yield ("wan" if round_ % 2 else "lan"), frames


def by_flow(frames: Frames) -> dict[tuple[bytes, bytes], Frames]:
    """Frames of each flow in order; a key is addresses and ports as they left."""
    found = defaultdict(list)
    for each in frames:
        found[each[26:34], each[34:38]].append(each)
    return dict(found)


@pytest.fixture(scope="module")
def expected() -> list[dict[tuple[bytes, bytes], Frames]]:
    """What leaves in each round, by one core in memory."""
    ports = {name: MemoryPort(name) for name in ("lan", "wan")}
    node = Embedded(SourceNAT, [*ports.values()], {"address": EXTERNAL})
    results = []
    for port, frames in rounds():
        ports[port].feed([(0, each) for each in frames])
        while len(ports[port]):
            node.run_burst()
        left = [each for _, each in ports["lan" if port == "wan" else "wan"].take()]
        assert len(left) == len(frames)
        results.append(by_flow(left))
    node.finish()
    return results


@pytest.mark.root
@pytest.mark.parametrize("driver", ["af_packet", "af_xdp", "tap"])
@pytest.mark.parametrize("cores", [1, 2, 4])
def test_every_driver_and_number_of_cores_gives_the_same_packets(
    tmp_path: Path, expected: list[dict[tuple[bytes, bytes], Frames]], driver: str, cores: int
) -> None:
    """G1: per flow, the same frames in the same order, byte for byte."""
    tap = driver == "tap"
    lan, wan = ("tap0", "tap1") if tap else ("lan0", "wan0")
    with Lab.single("10.0.0.2/24", "10.0.0.3/24", gateway=None, queues=4) as lab:
        lab.run("box", ["sysctl", "-qw", "net.ipv6.conf.default.disable_ipv6=1"])
        node = launched(lab, tmp_path, DEPLOYMENT.format(cores=cores, driver=driver, lan=lan, wan=wan, poll="adaptive"))
        ends = (
            {"lan": ("box", lan), "wan": ("box", wan)}
            if tap
            else {"lan": ("client", "eth0"), "wan": ("server", "eth0")}
        )
        sockets = {name: lab.call(space, raw_socket, interface) for name, (space, interface) in ends.items()}
        for (port, frames), wanted in zip(rounds(), expected, strict=True):
            for each in frames:
                sockets[port].send(each)
            assert by_flow(collected(sockets["lan" if port == "wan" else "wan"], len(frames))) == wanted
        node.terminate()
        node.wait(10)
    for sock in sockets.values():
        sock.close()


def launched(lab: Lab, directory: Path, deployment: str) -> subprocess.Popen[Any]:
    """A node in the box, ready."""
    (directory / "key").touch(0o600)
    (directory / "key").write_text(secrets.token_hex(32))
    file, output = directory / "one.toml", directory / "output"
    file.write_text(deployment)
    argv = [sys.executable, "-m", "actornet.cli.main", "launch", "primary", str(file)]
    with output.open("wb") as sink:
        node = lab.popen("box", argv, stdout=sink, stderr=sink)
    until(lambda: b"primary ready" in output.read_bytes() or node.poll() is not None, seconds=15)
    assert node.poll() is None, output.read_text()
    return node


@pytest.mark.root
@pytest.mark.parametrize("tags", [b"", b"\x81\0\0\x07"], ids=["untagged", "vlan"])
def test_packet_sockets_hand_nothing_over(tmp_path: Path, tags: bytes) -> None:
    """Both directions of a NAT's connections come to the core that has their flow, on either interface: the kernel spreads
    frames by the cores' own hash, and the NAT's ports are such that answers hash alike."""
    deployment = DEPLOYMENT.format(cores=2, driver="af_packet", lan="lan0", wan="wan0", poll="adaptive")
    with Lab.single("10.0.0.2/24", "10.0.0.3/24", gateway=None) as lab:
        lab.run("box", ["sysctl", "-qw", "net.ipv6.conf.default.disable_ipv6=1"])
        node = launched(lab, tmp_path, deployment.replace("[settings]", "[settings]\ncores = 2"))
        client, server = (lab.call(space, raw_socket, "eth0") for space in ("client", "server"))
        for flow in range(40):
            asked = frame((b"\x0a\0\0\2", 2000 + flow), (b"\xc6\x33\x64\1", 53 + flow), None, flow)
            client.send(asked[:12] + tags + asked[12:])
        translated = collected(server, 40)
        assert len(translated) == 40
        for each in translated:  # as the receiving veth shows them: it has taken the tag out
            port = int.from_bytes(each[34:36], "big")
            answer = frame((each[30:34], int.from_bytes(each[36:38], "big")), (each[26:30], port), None, 1)
            server.send(answer[:12] + tags + answer[12:])
        assert len(collected(client, 40)) == 40
        argv = [sys.executable, "-m", "actornet.cli.main", "status", str(tmp_path / "one.toml"), "--json"]
        status = json.loads(lab.run("box", argv).stdout)[0]
        node.terminate()
        node.wait(10)
    client.close()
    server.close()
    counts = [each["status"]["counters"] for each in status["workers"] if each["name"].startswith("core-")]
    assert [count["handed_off"] for count in counts] == [0, 0]
    assert all(count["rx_packets"] > 20 for count in counts), "both cores took part"
    assert sum(count["flows_opened"] for count in counts) == 40


@pytest.mark.root
@pytest.mark.parametrize("driver", ["af_packet", "af_xdp"])
def test_a_core_without_packets_sleeps_unless_it_is_to_poll(tmp_path: Path, driver: str) -> None:
    """CPU time of the core's process during an idle second: below 2 %, or all that it can get. An owner system without a
    peer wakes up even less often than one that has to send heartbeats."""
    shares, wakeups = {}, 0
    for poll in ("adaptive", "busy"):
        directory = tmp_path / poll
        directory.mkdir()
        with Lab.single() as lab:
            deployment = DEPLOYMENT.format(cores=1, driver=driver, lan="lan0", wan="wan0", poll=poll)
            node = launched(lab, directory, deployment)
            core = descendant(node.pid, "core-0")
            if poll == "adaptive":
                time.sleep(2.2)  # until it has announced itself for the last time
            owner = descendant(node.pid, "owner-system")
            before, slept = cpu_s(core), sleeps(owner)
            time.sleep(1.0)
            shares[poll] = cpu_s(core) - before
            wakeups = max(wakeups, sleeps(owner) - slept)
            node.terminate()
            node.wait(10)
    assert shares["adaptive"] < 0.02, shares
    assert shares["busy"] > 5 * shares["adaptive"], shares
    assert 0 < wakeups < 500 / HEARTBEAT_MS, wakeups


def descendant(pid: int, name: str) -> int:
    """The process of this name below `pid`."""
    pids = [pid]
    for each in pids:
        if Path(f"/proc/{each}/comm").read_text().strip() == name:
            return each
        for children in Path(f"/proc/{each}/task").glob("*/children"):
            pids += map(int, children.read_text().split())
    raise AssertionError(f"no process {name}")


def cpu_s(pid: int) -> float:
    return sum(int(task.read_text().split()[0]) for task in Path(f"/proc/{pid}/task").glob("*/schedstat")) / 1e9


def collected(sock: socket.socket, count: int, seconds: float = 2.0) -> Frames:
    """The NF's frames that arrive, until there are `count` and no more come for a moment, or none for `seconds`."""
    found: Frames = []
    sock.settimeout(seconds)
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            each = sock.recv(2000)
        except TimeoutError:
            break
        if each[6:12] in (INSIDE_MAC, OUTSIDE_MAC):
            found.append(each)
        if len(found) == count:
            sock.settimeout(0.02)
    return found


@pytest.mark.root
@pytest.mark.parametrize("driver", ["af_packet", "af_xdp"])
def test_a_nodes_flows_survive_what_happens_to_its_interface(tmp_path: Path, driver: str) -> None:
    """The link flaps; the interface goes and another of its name comes. The node says so, and goes on with its flows."""
    asked = frame((b"\x0a\0\0\2", 2000), (b"\xc6\x33\x64\1", 53), None, 1)
    with Lab.single("10.0.0.2/24", "10.0.0.3/24", gateway=None) as lab:
        lab.run("box", ["sysctl", "-qw", "net.ipv6.conf.default.disable_ipv6=1"])
        deployment = DEPLOYMENT.format(cores=1, driver=driver, lan="lan0", wan="wan0", poll="adaptive")
        node = launched(lab, tmp_path, deployment)
        server = lab.call("server", raw_socket, "eth0")

        def status() -> Any:
            return ask_worker(lab, "box", load_deployment(tmp_path / "one.toml", "primary"), "core-0")["status"]

        def passes() -> bool:
            client = lab.call("client", raw_socket, "eth0")
            with client:
                client.send(asked)
                return bool(collected(server, 1, seconds=0.1))

        until(passes)
        lab.ip("box", "link set lan0 down")
        until(lambda: status()["ports"]["lan"]["state"] == "down", seconds=5)
        lab.ip("box", "link set lan0 up")
        until(passes, seconds=5)
        lab.ip("box", "link del lan0")
        until(lambda: status()["ports"]["lan"]["state"] == "down", seconds=5)
        assert status()["ports"]["wan"]["state"] == "up"
        lab.ip("client", f"link add eth0 type veth peer name lan0 netns {lab.names['box']}")
        for space, interface in (("client", "eth0"), ("box", "lan0")):
            lab.ip(space, f"link set {interface} addrgenmode none", f"link set {interface} up")
        until(passes, seconds=5)
        found = status()
        node.terminate()
        node.wait(10)
    server.close()
    assert (found["counters"]["flows_opened"], found["ports"]["lan"]["link_lost"]) == (1, 2)
    events = [json.loads(line) for line in (tmp_path / "output").read_text().splitlines() if line.startswith("{")]
    told = [event["event"] for event in events if event.get("port") == "lan"]
    assert told == ["interface is down", "interface is up"] * 2


@pytest.mark.root
@pytest.mark.parametrize("poll", ["adaptive", "busy"])
def test_one_process_runs_a_function_on_interfaces_until_it_is_interrupted(poll: str) -> None:
    """`actornet run -i`, with a driver of its own for each port; it says what becomes of them."""
    root = Path(__file__).parents[1]
    argv = [sys.executable, "-m", "actornet.cli.main", "run", str(root / "examples/counter.py:Counter")]
    argv += ["-i", "lan=lan0", "-i", "wan=wan0:af_xdp", "--json", "--poll", poll]
    with Lab.single("10.0.0.2/24", "10.0.0.3/24", gateway=None) as lab:
        client, server = lab.call("client", raw_socket, "eth0"), lab.call("server", raw_socket, "eth0")
        process = lab.popen("box", argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        sent = frame((b"\x0a\0\0\2", 2000), (b"\x0a\0\0\3", 53), None, 1)
        answer = frame((b"\x0a\0\0\3", 53), (b"\x0a\0\0\2", 2000), None, 2)
        server.settimeout(0.1)

        def passes() -> bool:
            client.send(sent)
            return bool(collected(server, 1)) or process.poll() is not None

        until(passes, seconds=15)
        server.send(answer)
        assert collected(client, 1) == [answer]
        before = sleeps(process.pid)
        time.sleep(1.0)
        slept = sleeps(process.pid) - before
        lab.ip("box", "link set lan0 down")
        time.sleep(0.3)
        lab.ip("box", "link set lan0 up")
        until(passes, seconds=5)
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=10)
    client.close()
    server.close()
    assert process.returncode == 0
    assert errors.splitlines() == [
        f"actornet: warning: port lan: interface lan0 is {state}" for state in ("down", "up")
    ]
    assert (slept < 4) is (poll == "busy"), slept
    counter, _, report = output.partition("\n")
    assert counter.startswith("udp 10.0.0.2:2000") and json.loads(report)["counters"]["flows_opened"] == 1


@pytest.mark.parametrize(
    ("flags", "error"),
    [
        (["-i", "lan"], "-i 'lan': write NAME=INTERFACE or NAME=INTERFACE:DRIVER, say lan=eth1:af_xdp"),
        (
            ["-i", "lan=a:dpdk"],
            "-i 'lan=a:dpdk': there is no driver 'dpdk'; there are af_packet, af_xdp, tap, pcap, memory",
        ),
        (["-i", "lan=absent.pcap:pcap"], "absent.pcap: no such file; check the path"),
        (["-i", "lan=pyproject.toml:pcap"], "pyproject.toml: not a capture file (it begins with bytes"),
        (["-i", "lan=pyproject.toml:memory"], "pyproject.toml: not a capture file (it begins with bytes"),
        (["-i", "lan=wifi.pcap:pcap"], "wifi.pcap: link type 105 (IEEE 802.11) carries no frames that actornet reads"),
        (
            ["-i", "lan=a:pcap,rate=3"],
            "-i 'lan=a:pcap,rate=3': 'rate' is not one of driver, address, gateway, mac, read,",
        ),
        (["-i", "lan=a:pcap,speed=fast"], "-i 'lan=a:pcap,speed=fast': speed = 'fast': write a number"),
        (
            ["-i", "lan=a:pcap,packets_per_s=3"],
            "`lan.packets_per_s`: driver pcap has no such key; it has read, write, speed",
        ),
        (
            ["-i", "lan=a,write=b"],
            "`lan.write`: driver af_packet has no such key; it has interface, address, gateway, mac",
        ),
        (
            ["-i", "lan=a:pcap", "-i", "wan=b:pcap,write=a"],
            "`lan.read` = 'a': it is written as well; write to another file",
        ),
        (
            ["-i", "lan=a:pcap", "-i", "wan=b:pcap,speed=2"],
            "`wan.speed`: all pcap ports play at one speed; give each the same",
        ),
        (["-i", "lan=a:pcap", "-i", "lan=b:pcap"], "-i 'lan=b:pcap': there is a port 'lan' already"),
        (["-i", "lan=:memory,packets_per_s=9"], "`lan.packets_per_s`: say of what, too: `read` = a capture"),
        (["-i", "lan=a", "--read", "x"], "-i is for live interfaces: leave out --read"),
        (["--read", "x", "--poll", "busy"], "--poll is for live interfaces: name them by -i NAME=INTERFACE"),
        ([], "nothing to run on: name captures by --read FILE, or interfaces by -i NAME=INTERFACE"),
    ],
)
def test_mistakes_on_the_command_line_are_named(
    flags: list[str],
    error: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counter = Path("examples/counter.py").resolve()
    shutil.copy("pyproject.toml", tmp_path)
    monkeypatch.chdir(tmp_path)
    Path("wifi.pcap").write_bytes(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 105))
    assert main(["run", f"{counter}:Counter", *flags]) in (1, 2)
    assert error in capsys.readouterr().err
