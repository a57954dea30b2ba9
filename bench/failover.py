"""How long is traffic interrupted when the primary is killed or stopped, and what does output commit cost before that?

    python -m bench.failover [--times 30] [--rounds 5] [--cpu-latency-us US]

Each time: a fresh pair in network namespaces; a UDP stream with a datagram per millisecond and a TCP transfer run through
the NAT when every process of the primary gets SIGKILL or, by turns, its launcher SIGTERM. An outage is the longest silence of
the quarter of a second that follows; beside it that of the quarter before, which is the machine's. Then, on a pair at
rest: round trips of the first packet of new flows, whose translation must be at the backup before it may leave, beside
those of packets of an established flow, and the same on a node without replication. And what of that is the machine's: a
bare TCP exchange of as many bytes between the nodes' places, each end on a CPU of its own as owner systems are. With
`--cpu-latency-us` all deployments have that key, and CPUs are kept awake for the bare exchange, too.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from actornet.limits import SILENCE_MS_DEFAULT
from actornet.testing.netns import Lab
from actornet.testing.pair import Pair
from actornet.testing.traffic import SERVER, TcpTransfer, UdpEcho, UdpStream, udp_socket
from bench.report import Row, table, write_json

PATIENCE_S = 2.0
WINDOW_S = 0.25
GAP_S = 0.002
"""Between packets of a round: everybody sleeps meanwhile, caches grow cold."""

ECHO_PORT, RECORDS_BYTES, ACK_BYTES = 7500, 290, 34
ECHO = f"""
import socket
connection, _ = socket.create_server(("10.9.0.2", {ECHO_PORT})).accept()
connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
while connection.recv({RECORDS_BYTES}):
    connection.sendall(bytes({ACK_BYTES}))
"""


def takeover(directory: Path, end: str, flags: Sequence[str]) -> Row:
    """One kill -9 under traffic, or one stop."""
    with Pair(directory, silence_ms=SILENCE_MS_DEFAULT) as pair:
        pair.start(*flags)
        with UdpStream(pair.lab) as stream, TcpTransfer(pair.lab) as transfer:
            time.sleep(0.7)
            if end == "stopped":
                killed_ns = time.monotonic_ns()
                pair.nodes["a"].terminate()
            else:
                killed_ns = pair.kill("a")
            taken = pair.wait_takeover("b")
            time.sleep(1.0)
        survived = transfer.outcome()
        window_ns = int(WINDOW_S * 1e9)
        return {
            "quiet_ms": stream.outage_ms(killed_ns - window_ns, killed_ns),
            "udp_ms": stream.outage_ms(killed_ns, killed_ns + window_ns),
            "udp_lost": stream.sent - len(stream.received),
            "tcp_ms": transfer.outage_ms(killed_ns, killed_ns + window_ns),
            "tcp_survived": float(survived),
            "records_replayed": taken["records_replayed"],
            "promotion_us": taken["took_us"],
        }


def round_trips(lab: Lab, count: int, *, fresh: bool) -> list[float]:
    """Microseconds from sending a datagram to its echo; `fresh`: each from a new socket, so a new flow."""
    echo = UdpEcho(lab, 9100)
    found: list[float] = []
    clients = [lab.call("client", udp_socket, "10.0.0.2") for _ in range(count if fresh else 1)]
    for client in clients:
        client.settimeout(PATIENCE_S)
    for number in range(count + 3):
        client = clients[number % len(clients)]
        begun = time.perf_counter_ns()
        client.sendto(b"x" * 18, (SERVER, 9100))
        client.recv(64)
        if number >= 3 and (not fresh or number < count):
            found.append((time.perf_counter_ns() - begun) / 1e3)
        time.sleep(GAP_S)
    echo.close()
    for sock in clients:
        sock.close()
    return found


def bare_exchange_us(lab: Lab, count: int) -> float:
    """Microseconds, at the median, of one flow's records and their acknowledgement as bytes that nobody looks at."""
    echo = lab.serve("b", ECHO_PORT, [sys.executable, "-c", ECHO])
    cpus, found = sorted(os.sched_getaffinity(0)), []
    os.sched_setaffinity(echo.pid, cpus[:1])
    os.sched_setaffinity(0, cpus[-1:])
    try:
        with lab.call("a", socket.create_connection, ("10.9.0.2", ECHO_PORT)) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for _ in range(count):
                begun = time.perf_counter_ns()
                connection.sendall(bytes(RECORDS_BYTES))
                connection.recv(ACK_BYTES)
                found.append((time.perf_counter_ns() - begun) / 1e3)
                time.sleep(GAP_S)
    finally:
        os.sched_setaffinity(0, cpus)
    return statistics.median(found)


def latency(directory: Path, rounds: int, flags: Sequence[str]) -> list[Row]:
    """Round trips through the NAT at rest, replicated and not, in turns: a machine that others share is not twice the same."""
    rows: list[Row] = []
    for number in range(rounds):
        for name, durability in (("replicated", "applied"), ("solo", "solo")):
            with Pair(directory / f"{name}-{number}", durability=durability, silence_ms=SILENCE_MS_DEFAULT) as pair:
                pair.launch("a", "primary", *flags)
                if durability != "solo":
                    pair.launch("b", "backup", *flags)
                    pair.wait_in_sync("b")
                round_trips(pair.lab, 50, fresh=False)
                for fresh in (False, True):
                    times = sorted(round_trips(pair.lab, 200, fresh=fresh))
                    rows.append(
                        {
                            "round": number,
                            "replicated": float(durability != "solo"),
                            "new flow": float(fresh),
                            "p50_us": statistics.median(times),
                            "p99_us": times[int(len(times) * 0.99)],
                        }
                    )
                if durability == "solo":
                    rows[-1]["bare exchange us"] = bare_exchange_us(pair.lab, 200)
    return rows


def added_us(delays: list[Row]) -> list[float]:
    """What output commit adds to the first packet of a flow, over a node without replication, by round."""
    p50 = {(row["round"], row["replicated"], row["new flow"]): row["p50_us"] for row in delays}
    return [
        p50[number, 1.0, 1.0] - p50[number, 1.0, 0.0] - (p50[number, 0.0, 1.0] - p50[number, 0.0, 0.0])
        for number in sorted({row["round"] for row in delays})
    ]


def summary(rows: list[Row]) -> Row:
    """What became of takeovers of one kind."""
    udp, tcp, quiet, lost = ([row[name] for row in rows] for name in ("udp_ms", "tcp_ms", "quiet_ms", "udp_lost"))
    return {
        "takeovers": len(rows),
        "udp median ms": statistics.median(udp),
        "udp worst ms": max(udp),
        "lost (median)": statistics.median(lost),
        "tcp median ms": statistics.median(tcp),
        "tcp worst ms": max(tcp),
        "before: median ms": statistics.median(quiet),
        "worst ms": max(quiet),
        "connections lost": sum(1 - row["tcp_survived"] for row in rows),
        "records replayed": sum(row["records_replayed"] for row in rows),
        "promotion median us": statistics.median(row["promotion_us"] for row in rows),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=5, help="of latency, replicated and not in turns")
    parser.add_argument("--cpu-latency-us", type=int)
    args = parser.parse_args()
    times, rounds = args.times, args.rounds
    flags = ["--cpu-latency-us", str(args.cpu_latency_us)] if args.cpu_latency_us is not None else []
    with tempfile.TemporaryDirectory() as directory:
        taken: dict[str, list[Row]] = {"killed": [], "stopped": []}
        for number in range(times):
            for end, rows in taken.items():
                rows.append(takeover(Path(directory) / f"{end}-{number}", end, flags))
        delays = latency(Path(directory), rounds, flags)
    summaries = [summary(rows) for rows in taken.values()]
    if args.cpu_latency_us is not None:
        summaries = [{**row, "cpu_latency_us": args.cpu_latency_us} for row in summaries]
    print(table(summaries, list(taken)))
    print(table(delays))
    added = added_us(delays)
    print(
        f"output commit adds {statistics.median(added):.0f} us to a first packet over a node without replication, "
        f"{min(added):.0f} to {max(added):.0f} by round"
    )
    bare = [row["bare exchange us"] for row in delays if "bare exchange us" in row]
    print(
        f"a bare TCP exchange between the nodes takes {statistics.median(bare):.0f} us, "
        f"{min(bare):.0f} to {max(bare):.0f} by round"
    )
    killed, stopped = taken.values()
    print(write_json("failover", [*summaries, *killed, *stopped, *delays]))


if __name__ == "__main__":
    main()
