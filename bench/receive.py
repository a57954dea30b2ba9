"""Would TPACKET_V3 receive more than recvmmsg, and what would a single frame wait for?

    python -m bench.receive [--seconds 2]

On a veth pair (root), in one run: a C receiver by recvmmsg, as the driver af_packet does it, and one by a TPACKET_V3 ring whose
blocks are retired after 1 ms, the least that the kernel takes. Of each: how many 60-byte frames per second it takes from a
generator that shares the machine, and the round trip of single frames that it sends back.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from actornet.testing.netns import Lab
from bench.forward import _mac
from bench.report import Row, table, write_json

FRAMES = 400
ETH_P_ALL, SOL_PACKET, PACKET_IGNORE_OUTGOING = 3, 263, 23


def measure(directory: Path, way: str, seconds: float) -> Row:
    with Lab.single() as lab:
        macs = _mac(lab, "client", "eth0"), _mac(lab, "box", "lan0")
        argv = ["taskset", "-c", str(max(os.sched_getaffinity(0))), str(directory / "c_traffic")]
        argv += ["generate", "eth0", str(seconds + 1), "1000", *macs]
        generator = lab.popen("client", argv, stdout=subprocess.DEVNULL)
        time.sleep(0.5)
        receive = ["taskset", "-c", "0", str(directory / "c_receive"), way, "lan0"]
        frames, used_s = lab.run("box", [*receive, str(seconds)], timeout_s=seconds + 10).stdout.split()
        generator.wait()
        lab.popen("box", [*receive, "0"])
        time.sleep(0.5)
        round_trips_us = lab.call("client", echoes)
    return {
        "Mpps": int(frames) / seconds / 1e6,
        "CPU %": float(used_s) / seconds * 100,
        "echo p50 us": statistics.median(round_trips_us),
        "echo p99 us": statistics.quantiles(round_trips_us, n=100)[98],
    }


def echoes() -> list[float]:
    """Round trips of single frames, 2 ms apart, in microseconds."""
    found = []
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as raw:
        raw.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
        raw.bind(("eth0", ETH_P_ALL))
        raw.settimeout(1.0)
        for number in range(FRAMES):
            frame = b"\x02\0\0\0\0\x02\x02\0\0\0\0\x01\x88\xb5" + number.to_bytes(2, "big") + bytes(44)
            begun = time.perf_counter()
            raw.send(frame)
            while raw.recv(2000)[12:16] != frame[12:16]:
                pass
            found.append((time.perf_counter() - begun) * 1e6)
            time.sleep(0.002)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0)
    seconds = parser.parse_args().seconds
    root = Path(__file__).parents[1]
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        includes = [f"-I{root / 'actornet' / part}" for part in ("engine", "ports")]
        for program in ("c_receive", "c_traffic"):
            source = root / "bench" / f"{program}.c"
            argv = ["cc", "-O3", "-std=gnu11", "-D_GNU_SOURCE", *includes, "-o", str(directory / program), str(source)]
            subprocess.run(argv, check=True)
        rows += [{"TPACKET_V3": float(way == "ring"), **measure(directory, way, seconds)} for way in ("mmsg", "ring")]
    print(table(rows))
    print(write_json("receive", rows))


if __name__ == "__main__":
    main()
