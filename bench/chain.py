"""What do a firewall, a load balancer, a NAT and a chain of two cost, offloaded, on one core in memory?

    python -m bench.chain [--flows 100000] [--seconds 2]

64-byte UDP, a flow per packet of the template, after every flow has been opened. `opens/s` has each member's owner decide.
"""

from __future__ import annotations

import argparse
import random

import dpkt

from actornet import Chain, FlowActor
from actors.firewall import Firewall
from actors.load_balancer import LoadBalancer
from actors.nat import SourceNAT
from bench.nat import measure, templates
from bench.report import Row, table, write_json


def clients(flows: int) -> bytes:
    """One 64-byte frame per flow to the load balancer's service, in random order."""
    frames = []
    for number in range(flows):
        udp = dpkt.udp.UDP(sport=1024 + number % 50_000, dport=80, data=b"\0" * 22, ulen=30)
        ip = dpkt.ip.IP(
            src=bytes((198, 18, number // 50_000, 1)), dst=b"\xcb\0\x71\x0a", p=17, ttl=64, len=50, data=udp
        )
        frames.append(bytes(dpkt.ethernet.Ethernet(src=b"\2" * 6, dst=b"\4" * 6, data=ip)))
    random.Random(1).shuffle(frames)
    return b"".join(frames)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flows", type=int, default=100_000)
    parser.add_argument("--seconds", type=float, default=2.0)
    arguments = parser.parse_args()
    frames = templates(arguments.flows)
    functions: list[tuple[type[FlowActor], bytes]] = [
        (SourceNAT, frames),
        (Firewall, frames),
        (LoadBalancer, clients(arguments.flows)),
        (Chain(Firewall, SourceNAT), frames),
    ]
    row: Row = {"flows": arguments.flows}
    for function, sent in functions:
        result = measure(function, sent, arguments.flows, arguments.seconds)  # type: ignore[arg-type]
        name = function.__name__
        row[f"{name} Mpps"] = result["mpps"]
        row[f"{name} / NAT"] = result["mpps"] / float(row["SourceNAT Mpps"] or 1)
        row[f"{name} opens/s"] = result["opens_per_s"]
    rows = [row]
    print(table(rows))
    print(write_json("chain", rows))


if __name__ == "__main__":
    main()
