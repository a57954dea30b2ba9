"""How long does a failover interrupt traffic, beside what Linux users have: keepalived with conntrackd?

    python -m bench.failover_peers [--rounds 10] [--connections 200] [--subjects NAME,...]

The same namespaces and traffic for all (root): a UDP stream of a datagram per millisecond, a TCP transfer and TCP connections
that send now and then, through a source NAT that is a pair. Each round on a fresh pair, the primary

- *dies*: actornet by kill -9 of all its processes. For the kernel's pair that alone would change nothing, as the dead
  programs' kernel goes on forwarding: there keepalived and conntrackd get kill -9, and the host's interfaces go down;
- is *cut off*: the host's interfaces all go down in one instant, for both;
- is *stopped*, as for an upgrade: `actornet stop`, or SIGTERM for keepalived, which tells its peer.

`keepalived 1 s` has VRRP's default advertisement interval, `keepalived 0.01 s` the smallest there is, with a backup that
keeps its kernel's table warm (bench/kernel_pair.py has the configuration); neither has a witness. `actornet with etcd` has
one, on a third host, and the default lease, during which nobody takes over from a dead primary. An outage is
the longest time without an echo, or without a byte of the transfer, from the failure to the end of the round. `opened`
counts connections that were opened one after another, a millisecond between them, up to the failure, and `lost` those of them
that no byte came back on afterwards; `early` takeovers before there was any failure, and `for good` the rounds after which the
stream or the transfer stood still.
"""

from __future__ import annotations

import argparse
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from actornet.errors import ActornetError
from actornet.limits import SILENCE_MS_DEFAULT
from actornet.testing.etcd_pair import EtcdPair
from actornet.testing.netns import Lab
from actornet.testing.pair import Pair
from actornet.testing.torture import Connections
from actornet.testing.traffic import SECOND, Opens, TcpTransfer, UdpStream
from bench.kernel_pair import KernelPair
from bench.report import Row, table, write_json

CONNECTIONS_S = 1.0
RECOVERY_S = 20.0
STILL_NS = SECOND // 10
"""Traffic of which nothing has arrived for so long stands still."""

PUBLISHED = """\
As published in the papers' abstracts, on other machines and by other measures:
  FTMB (Sherry et al., SIGCOMM 2015): reconstructs lost state in 40 to 275 ms; adds 30 us to the median latency
  StatelessNF (Kablan et al., NSDI 2017): failover "does not disrupt ongoing traffic"; adds 100 to 500 us
  REINFORCE (Kulkarni et al., CoNEXT 2018): failover of chains across servers within 10 ms; adds 400 us on average"""

Subject = Callable[[Path], Pair | KernelPair]
SUBJECTS: dict[str, Subject] = {
    "actornet": lambda directory: Pair(directory, silence_ms=SILENCE_MS_DEFAULT),
    "actornet with etcd": lambda directory: EtcdPair(directory, silence_ms=SILENCE_MS_DEFAULT),
    "keepalived 1 s": lambda directory: KernelPair(directory, advert_s=1, warm=False),
    "keepalived 0.01 s": lambda directory: KernelPair(directory, advert_s=0.01, warm=True),
}


class Cut:
    """Takes a node's interfaces down in one instant: all that takes time, a process above all, is prepared."""

    def __init__(self, lab: Lab, node: str) -> None:
        lab.ip(node, *(f"link set {interface} group 1" for interface in ("lan0", "wan0", "link0")))
        self._ip = lab.popen(node, ["ip", "-batch", "-"], stdin=subprocess.PIPE)

    def __call__(self) -> None:
        self._ip.communicate(b"link set group 1 down\n")
        if self._ip.returncode:
            raise ActornetError(f"the interfaces did not go down: ip ended with {self._ip.returncode}")


def die(pair: Pair | KernelPair, cut: Cut) -> None:
    pair.kill("a")
    if isinstance(pair, KernelPair):
        cut()


def cut_off(_pair: Pair | KernelPair, cut: Cut) -> None:
    cut()


def stop(pair: Pair | KernelPair, _cut: Cut) -> None:
    pair.stop("a")
    pair.wait_takeover("b")


Failure = Callable[[Pair | KernelPair, Cut], None]
FAILURES: dict[str, Failure] = {"dies": die, "cut off": cut_off, "stopped": stop}


def round_(pair: Pair | KernelPair, fail: Failure, connections: int, seed: int) -> Row:
    """One failure under traffic."""
    pair.start()
    cut = Cut(pair.lab, "a")
    with Connections(pair.lab, connections, seed) as held:
        with UdpStream(pair.lab) as stream, TcpTransfer(pair.lab) as transfer, Opens(pair.lab) as opens:
            time.sleep(CONNECTIONS_S + random.Random(seed).random())  # at any time between two advertisements
            early = leads(pair)
            messages = held.exchanges
            opens.end()
            failed_ns = time.monotonic_ns()
            fail(pair, cut)
            time.sleep(2 * STILL_NS / SECOND)
            while not moving(stream, transfer, time.monotonic_ns()) and not passed(failed_ns, RECOVERY_S):
                time.sleep(0.05)
            time.sleep(CONNECTIONS_S)
            until_ns = time.monotonic_ns()
            fresh: Row = {"opened": len(opens.opened), "lost": opens.lost()}
    return outcome(stream, transfer, held, messages, failed_ns, until_ns) | fresh | {"early": float(early)}


def leads(pair: Pair | KernelPair) -> bool:
    """Whether `b` has taken over."""
    if isinstance(pair, KernelPair):
        return "primary" in pair.states("b")
    return '"event":"took over"' in pair.printed("b")


def outcome(
    stream: UdpStream, transfer: TcpTransfer, held: Connections, messages: int, failed_ns: int, until_ns: int
) -> Row:
    """What became of the traffic, of which `messages` had passed on the connections before the failure.

    Raises ActornetError if a part of it did not pass before the failure: then there was nothing to interrupt.
    """
    if not messages or not moving(stream, transfer, failed_ns):
        raise ActornetError(
            f"traffic did not pass before the failure: {len(stream.received)} echoes of {stream.sent}, "
            f"{transfer.progress[-1:]} of the transfer, {messages} messages on {held.count} connections"
        )
    try:
        whole = transfer.outcome()
    except OSError:
        whole = False
    dead = held.failures["TimeoutError"]
    return {
        "udp_ms": stream.outage_ms(failed_ns, until_ns),
        "udp_lost": float(lost(stream, until_ns)),
        "tcp_ms": transfer.outage_ms(failed_ns, until_ns),
        "for good": float(not moving(stream, transfer, until_ns)),
        "broken transfer": float(not whole),
        "connections": float(held.count),
        "reset": float(sum(held.failures.values()) - dead),
        "dead": float(dead),
    }


def lost(stream: UdpStream, until_ns: int) -> int:
    """How many datagrams never came back; if the stream goes on by then, of those before the last one that is back."""
    arrived = [number for number, at in stream.received if until_ns - STILL_NS < at <= until_ns]
    last = max(arrived, default=stream.sent)
    return last - sum(number < last for number, _ in stream.received)


def moving(stream: UdpStream, transfer: TcpTransfer, at_ns: int) -> bool:
    """Whether both the stream and the transfer have arrived just before then."""
    arrivals = [at for _, at in stream.received], [at for _, at in transfer.progress]
    return all(any(at_ns - STILL_NS < at <= at_ns for at in reversed(times)) for times in arrivals)


def passed(since_ns: int, seconds: float) -> bool:
    return time.monotonic_ns() - since_ns > seconds * SECOND


def summary(rows: list[Row]) -> Row:
    """Of one subject's rounds with one failure."""
    found: Row = {"rounds": len(rows)}
    for kind in ("udp", "tcp"):
        outages = [row[f"{kind}_ms"] for row in rows]
        found |= {f"{kind} median ms": statistics.median(outages), f"{kind} worst ms": max(outages)}
    found["udp median lost"] = statistics.median(row["udp_lost"] for row in rows)
    for name in ("for good", "broken transfer", "connections", "reset", "dead", "opened", "lost", "early"):
        found[name] = sum(row[name] for row in rows)
    return found


def measure(names: Sequence[str], rounds: int, connections: int) -> dict[str, Row]:
    """Each subject with each failure. Raises ActornetError if a subject cannot run here, before any is measured."""
    found: dict[str, Row] = {}
    with tempfile.TemporaryDirectory() as directory:
        for name in names:
            SUBJECTS[name](Path(directory) / "none")
        for name in names:
            for failure, fail in FAILURES.items():
                rows = []
                for number in range(rounds):
                    with SUBJECTS[name](Path(directory) / f"{len(found)}-{number}") as pair:
                        rows.append(round_(pair, fail, connections, number))
                    told = ", ".join(f"{key} {value:.3g}" for key, value in rows[-1].items())
                    print(f"{name}, {failure}: {told}", flush=True)
                found[f"{name}, {failure}"] = summary(rows)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--connections", type=int, default=200)
    parser.add_argument("--subjects", default=",".join(SUBJECTS), help="separated by commas; all by default")
    arguments = parser.parse_args()
    names = arguments.subjects.split(",")
    if unknown := set(names) - set(SUBJECTS):
        parser.error(f"no subject {', '.join(sorted(unknown))}; there are {', '.join(SUBJECTS)}")
    try:
        found = measure(names, arguments.rounds, arguments.connections)
    except ActornetError as error:
        sys.exit(f"failover_peers: {error}")
    print(table(list(found.values()), list(found)))
    print(PUBLISHED)
    print(write_json("failover_peers", list(found.values()), list(found)))


if __name__ == "__main__":
    main()
