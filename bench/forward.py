"""How many packets and bits per second does a live NAT pass between two interfaces, and how long does one take?

    python -m bench.forward [--seconds 2] [--flows 1000] [--subjects "NAME;..."]

On veth pairs between network namespaces (root), side by side in one run: actornet's source NAT with drivers af_packet and
af_xdp; loops in C on the same drivers that pass frames as they are (bench/c_traffic.c); the kernel's IP forwarding; and
nftables' masquerade. Three figures each: 60-byte UDP at full load in Mpps as the server's interface counts them; TCP by
iperf3 in Gbit/s; the round trip of single pings at idle in microseconds. Generator and subject share the machine's CPUs, the
same for all, so compare within the table.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import dpkt

from actornet.testing.netns import Lab
from bench.report import Row, table, write_json

SERVER, BRIDGED = "203.0.113.254", "172.16.0.2"
PINGS = 400
READY_S = 20.0

DEPLOYMENT = """\
nf = "actors.nat:SourceNAT"
key_file = "key"
poll = "{poll}"
cpus = [0]
[settings]
address = "203.0.113.1"
[ports.lan]
interface = "lan0"
driver = "{driver}"
address = "10.0.0.1/24"
[ports.wan]
interface = "wan0"
driver = "{driver}"
address = "203.0.113.1/24"
[replication]
durability = "solo"
[primary]
log = "log"
control = "127.0.0.1:7401"
"""


class Subject:
    """What stands between client and server: `start` makes it pass packets in a lab."""

    def __init__(self, start: Callable[[Lab, Path], None], server: str = SERVER) -> None:
        self.start = start
        self.server = server


def actornet(driver: str, poll: str = "adaptive") -> Subject:
    def start(lab: Lab, directory: Path) -> None:
        (directory / "key").touch(0o600)
        (directory / "key").write_text(secrets.token_hex(32))
        (directory / "one.toml").write_text(DEPLOYMENT.format(driver=driver, poll=poll))
        argv = [sys.executable, "-m", "actornet.cli.main", "launch", "primary", str(directory / "one.toml")]
        _await(lab, argv, directory, "primary ready")

    return Subject(start)


def c_loop(driver: str) -> Subject:
    def start(lab: Lab, directory: Path) -> None:
        _await(lab, ["taskset", "-c", "0", str(directory / "c_traffic"), driver, "lan0", "wan0"], directory, "ready")

    return Subject(start, BRIDGED)


def kernel(masquerade: bool) -> Subject:
    def start(lab: Lab, directory: Path) -> None:
        lab.ip("box", "link set lan0 arp on", "link set wan0 arp on")
        lab.ip("box", "addr add 10.0.0.1/24 dev lan0", "addr add 203.0.113.1/24 dev wan0")
        lab.run("box", ["sysctl", "-qw", "net.ipv4.ip_forward=1"])
        if masquerade:
            rules = "table ip nat { chain out { type nat hook postrouting priority 100; oifname wan0 masquerade; }; }"
            lab.run("box", ["nft", rules])
        else:
            lab.ip("server", "route add default via 203.0.113.1")

    return Subject(start)


SUBJECTS = {
    "C loop, af_packet": c_loop("af_packet"),
    "actornet NAT, af_packet": actornet("af_packet"),
    "C loop, af_xdp": c_loop("af_xdp"),
    "actornet NAT, af_xdp": actornet("af_xdp"),
    "actornet NAT, af_xdp, busy": actornet("af_xdp", "busy"),
    "kernel forwarding": kernel(False),
    "nftables masquerade": kernel(True),
}


def measure(subject: Subject, directory: Path, seconds: float, flows: int) -> Row:
    with Lab.single() as lab:
        lab.ip("client", "addr add 172.16.0.1/24 dev eth0")
        lab.ip("server", f"addr add {BRIDGED}/24 dev eth0")
        subject.start(lab, directory)
        round_trips_us = lab.call("client", ping, subject.server, PINGS)
        busy = idle_share(lab)
        gbps = tcp(lab, subject.server, seconds)
        mpps = udp(lab, directory, subject, seconds, flows)
    return {
        "UDP Mpps": mpps,
        "TCP Gbit/s": gbps,
        "ping p50 us": statistics.median(round_trips_us),
        "ping p99 us": statistics.quantiles(round_trips_us, n=100)[98],
        "idle CPU %": busy,
    }


def udp(lab: Lab, directory: Path, subject: Subject, seconds: float, flows: int) -> float:
    """Frames per second that reach the server's interface, where they are dropped before the kernel looks at them."""
    rules = "table netdev t { chain c { type filter hook ingress device eth0 priority 0; meta l4proto udp drop; }; }"
    lab.run("server", ["nft", rules])
    via = "box", "lan0"
    if subject.server == BRIDGED:
        via = "server", "eth0"
    macs = _mac(lab, "client", "eth0"), _mac(lab, *via)
    argv = ["taskset", "-c", str(max(os.sched_getaffinity(0))), str(directory / "c_traffic")]
    argv += ["generate", "eth0", str(seconds + 1), str(flows), *macs]
    generator = lab.popen("client", argv, stdout=subprocess.DEVNULL)
    time.sleep(0.5)
    before, begin = received(lab), time.perf_counter()
    time.sleep(seconds)
    passed, elapsed_s = received(lab) - before, time.perf_counter() - begin
    generator.wait()
    return passed / elapsed_s / 1e6


def tcp(lab: Lab, server: str, seconds: float) -> float:
    sink = lab.serve("server", 5201, ["iperf3", "-s", "-1"])
    argv = ["iperf3", "-c", server, "-t", str(seconds), "--json"]
    result = json.loads(lab.run("client", argv, timeout_s=seconds + 15).stdout)
    sink.wait()
    return float(result["end"]["sum_received"]["bits_per_second"]) / 1e9


def ping(host: str, count: int) -> list[float]:
    """Round trips in microseconds, 1 ms apart."""
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as icmp:
        icmp.settimeout(1.0)
        round_trips = []
        for number in range(-10, count):  # the first ones resolve addresses
            echo = dpkt.icmp.ICMP(type=8, data=dpkt.icmp.ICMP.Echo(id=77, seq=number & 0xFFFF, data=bytes(32)))
            begin = time.perf_counter()
            icmp.sendto(bytes(echo), (host, 0))
            try:
                while (answer := icmp.recv(1500))[20:21] != b"\0" or answer[26:28] != struct.pack(
                    "!H", number & 0xFFFF
                ):
                    pass
            except TimeoutError:
                if number >= 0:
                    raise
            if number >= 0:
                round_trips.append((time.perf_counter() - begin) * 1e6)
            time.sleep(0.001)
    return round_trips


def idle_share(lab: Lab) -> float:
    """CPU time of the box's processes during two seconds without traffic, in percent of one CPU."""
    inode = Path("/run/netns", lab.names["box"]).stat().st_ino

    def used() -> int:
        ticks = 0
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if (process / "ns/net").stat().st_ino == inode:
                    ticks += sum(map(int, (process / "stat").read_text().rpartition(")")[2].split()[11:13]))
        return ticks

    time.sleep(0.2)
    before, begin = used(), time.perf_counter()
    time.sleep(2.0)
    return (used() - before) / os.sysconf("SC_CLK_TCK") / (time.perf_counter() - begin) * 100


def build_traffic(directory: Path) -> Path:
    """The compiled bench/c_traffic.c."""
    root = Path(__file__).parents[1]
    source, binary = root / "bench/c_traffic.c", directory / "c_traffic"
    includes = [f"-I{root / 'actornet' / part}" for part in ("engine", "ports")]
    subprocess.run(["cc", "-O3", "-std=gnu11", "-D_GNU_SOURCE", *includes, "-o", binary, source], check=True)
    return binary


def _await(lab: Lab, argv: list[str], directory: Path, text: str) -> None:
    output = directory / "output"
    with output.open("wb") as sink:
        process = lab.popen("box", argv, stdout=sink, stderr=sink)
    deadline = time.monotonic() + READY_S
    while text not in output.read_text():
        if process.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"{' '.join(argv)}: {output.read_text()}")
        time.sleep(0.01)


def _link(lab: Lab, space: str, interface: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(lab.run(space, ["ip", "-s", "-j", "link", "show", interface]).stdout)[0]
    return found


def _mac(lab: Lab, space: str, interface: str) -> str:
    return str(_link(lab, space, interface)["address"])


def received(lab: Lab) -> int:
    """Frames that have reached the server's interface."""
    return int(_link(lab, "server", "eth0")["stats64"]["rx"]["packets"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--flows", type=int, default=1000)
    parser.add_argument("--subjects", default=None, help="separated by semicolons; all by default")
    arguments = parser.parse_args()
    names = arguments.subjects.split(";") if arguments.subjects else list(SUBJECTS)
    if unknown := set(names) - set(SUBJECTS):
        parser.error(f"--subjects: {'; '.join(sorted(unknown))}: there are {'; '.join(SUBJECTS)}")
    rows: dict[str, Row] = {}
    with tempfile.TemporaryDirectory() as directory:
        binary = build_traffic(Path(directory))
        for name in names:
            place = Path(directory) / str(len(rows))
            place.mkdir()
            (place / "c_traffic").symlink_to(binary)
            rows[name] = measure(SUBJECTS[name], place, arguments.seconds, arguments.flows)
            print(f"{name}: {', '.join(f'{key} {value:.3g}' for key, value in rows[name].items())}", flush=True)
    for driver in ("af_packet", "af_xdp"):
        ours, floor = rows.get(f"actornet NAT, {driver}"), rows.get(f"C loop, {driver}")
        if ours and floor:
            ours["Mpps / C loop"] = ours["UDP Mpps"] / floor["UDP Mpps"]
        if ours and "nftables masquerade" in rows:
            ours["Mpps / nftables"] = ours["UDP Mpps"] / rows["nftables masquerade"]["UDP Mpps"]
    print(table(list(rows.values()), list(rows)))
    print(write_json("forward", list(rows.values()), list(rows)))


if __name__ == "__main__":
    main()
