"""`actornet demo`: what actornet does, shown: a NAT over a real capture, then `kill -9` of a primary under traffic."""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from types import FrameType

import msgspec

from actornet.cli.main import INTERRUPTED, main
from actornet.errors import ActornetError, UsageError
from actornet.limits import SILENCE_MS_DEFAULT
from actornet.log.record import AskBody
from actornet.replay import History, verify
from actornet.testing.netns import Lab
from actornet.testing.pair import Pair
from actornet.testing.traffic import TcpTransfer, UdpStream
from actors.nat import Endpoint

NF = "actors.nat:SourceNAT"
OWNER = "wan-ports"
CAPTURE = Path(__file__).parents[2] / "examples/captures/skype.pcap"
MARK = ".actornet-demo"
"""In a directory that the demonstration made, and may remove to make it anew."""

BEFORE_KILL_S = 1.5
AFTER_KILL_S = 1.0
SILENCE_NS = 200_000_000
"""So long before the takeover the outage had not begun yet."""

CAPABILITIES = {"CAP_NET_ADMIN": 12, "CAP_NET_RAW": 13, "CAP_SYS_ADMIN": 21}

NETWORK = """\
             .-- node a (primary) --.
    client --+                      +-- server
             '-- node b (backup) ---'
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the `demo` subcommand."""
    parser = subparsers.add_parser(
        "demo",
        help="show a NAT over a real capture and, as root, a takeover",
        description="Show a NAT over a real capture and, as root, kill -9 of a primary under traffic.",
    )
    add = parser.add_argument
    add("--read", metavar="FILE", default=_short(CAPTURE), help="capture to translate (%(default)s)")
    add("--output", metavar="DIR", default="demo-output", help="where to put what is made (%(default)s)")


def run(args: argparse.Namespace) -> int:
    """Show it; the exit code says whether everything held that was claimed."""
    if args.read == _short(CAPTURE) and not CAPTURE.exists():
        raise UsageError("the demonstration's capture is in the source tree only; name one of your own by --read FILE")
    output = _made_anew(Path(args.output))
    with _ended_once():
        _title("1. A source NAT over a real capture")
        lsn = _translate(args.read, output)
        _title("2. kill -9 of the primary, under traffic")
        reason = missing()
        held = True
        if reason is None:
            held = _fail_over(output / "failover")
        else:
            print(f"Left out: {reason}")
    _title("Try next")
    _suggest(output / "log", lsn)
    return 0 if held else 1


def _made_anew(output: Path) -> Path:
    """An empty directory; what an earlier demonstration left there is removed."""
    try:
        if (output / MARK).exists():
            shutil.rmtree(output)
        elif output.exists() and (not output.is_dir() or any(output.iterdir())):
            raise UsageError(f"{output} was not made by the demonstration; name another directory by --output")
        output.mkdir(parents=True, exist_ok=True)
        (output / MARK).touch()
    except OSError as error:
        raise ActornetError(f"{output} cannot be made: {error.strerror}; name another directory by --output") from None
    return output


def missing() -> str | None:
    """Why a takeover cannot be shown here, and what to do about it; None if it can."""
    if os.geteuid() != 0:
        return f"its network namespaces need root.\nTo see it: sudo make demo, or sudo {_command()} demo"
    if shutil.which("ip") is None:
        return "its network namespaces need `ip`.\nTo see it: apt-get install iproute2"
    effective = int(Path("/proc/self/status").read_text().partition("CapEff:")[2].split()[0], 16)
    lacking = [name for name, bit in CAPABILITIES.items() if not effective >> bit & 1]
    if lacking:
        return f"its network namespaces need {', '.join(lacking)}.\nTo see it: run it outside of this container"
    return None


# ---------------------------------------------------------------------------------------------- over a capture


def _translate(capture: str, output: Path) -> int:
    """Run the NAT and verify its log; returns the LSN at which most translations were in use."""
    log = output / "log"
    _do("run", NF, "--read", capture, "--write", str(output / "nat.pcap"), "--log", str(log))
    mapped, lsn = _translations(log)
    kept = sum(inside.port == outside.port for inside, outside in mapped)
    hosts = len({inside.address for inside, _ in mapped})
    externals = ", ".join(sorted({outside.address for _, outside in mapped})) or "nothing"
    print(f"  translated {len(mapped)} endpoints of {hosts} hosts to {externals}, {kept} with their own port\n")
    _do("replay", "verify", str(log))
    return lsn


def _do(*words: str) -> None:
    """Carry out a command as the user could; what it says is for the user, too."""
    print(f"$ {_command()} {shlex.join(words)}", flush=True)
    code = main(words)
    if code == INTERRUPTED:
        raise KeyboardInterrupt
    if code:
        raise ActornetError(f"{words[0]} ended with exit code {code}: the demonstration ends here")


def _translations(log: Path) -> tuple[set[tuple[Endpoint, Endpoint]], int]:
    """Every inside endpoint and its external one that the NAT's log tells of, and the LSN of the most at once."""
    found: set[tuple[Endpoint, Endpoint]] = set()
    most = most_lsn = 0
    with History(log) as history:
        replica, chain = history.base()
        for entry in history.replay(replica, chain, history.log.last_lsn):
            assert entry.record is not None
            body = entry.record.body
            if not isinstance(body, AskBody) or body.message != "acquire":
                continue
            mappings = replica.owners[OWNER].state.by_inside
            (inside,) = msgspec.msgpack.decode(body.args, type=tuple[Endpoint])
            if inside in mappings:
                found.add((inside, mappings[inside].outside))
            if len(mappings) > most:
                most, most_lsn = len(mappings), entry.lsn
    return found, most_lsn


# ---------------------------------------------------------------------------------------------- a takeover


class Outcome(msgspec.Struct, frozen=True):
    """What became of the traffic and the logs. `udp_ms` and `tcp_ms` are outages; infinite: nothing came any more."""

    udp_ms: float
    udp_lost: int
    tcp_ms: float
    tcp_bytes: int
    tcp_error: str
    """Empty if every byte arrived as it was sent."""
    left_alive: int
    """Processes of the primary that outlived it."""
    replayed: int
    forked: bool
    """The new primary's log does not continue the old one's."""
    log_errors: list[str]

    def broken(self) -> list[str]:
        """The claims that did not hold."""
        claims = {
            "the UDP stream never came back": self.udp_ms == float("inf"),
            f"the TCP transfer broke: {self.tcp_error}": self.tcp_error != "",
            f"{self.left_alive} processes of the primary outlived it": self.left_alive > 0,
            f"{self.replayed} records had to be replayed": self.replayed > 0,
            "node b's log does not continue node a's": self.forked,
        }
        return [text for text, fails in claims.items() if fails] + self.log_errors


def _fail_over(directory: Path) -> bool:
    """Show a takeover; returns whether all held that this claims."""
    Lab.sweep()
    print(NETWORK)
    clock = _Clock()
    with Pair(directory, silence_ms=SILENCE_MS_DEFAULT) as pair:
        clock.say("five network namespaces are made")
        with _interrupts_kept():  # from the nodes: they end when told, after the traffic
            pair.launch("a", "primary")
            clock.say("node a is the primary, alone")
            pair.launch("b", "backup")
        pair.wait_in_sync("b")
        clock.say("node b is its backup, in sync: nothing leaves a that depends on what b does not have")
        with UdpStream(pair.lab) as stream, TcpTransfer(pair.lab) as transfer:
            clock.say(
                "client to server, through the NAT: a TCP transfer, and a UDP datagram every millisecond and back"
            )
            _watch(clock, stream, transfer, BEFORE_KILL_S)
            victims = pair.processes("a")
            killed_ns = pair.kill("a")
            clock.say(f"kill -9 of node a: {len(victims)} processes", killed_ns)
            taken = pair.wait_takeover("b")
            ago_ns = time.time_ns() - int(datetime.fromisoformat(taken["timestamp"]).timestamp() * 1e9)
            taken_ns = time.monotonic_ns() - ago_ns
            clock.say(f"node b has taken over; the promotion took {taken['took_us'] / 1e3:.1f} ms", taken_ns)
            if taken_ns < killed_ns:
                clock.say(
                    "that was before the kill: this machine left node a without a CPU for 30 ms, so it looked dead"
                )
            _watch(clock, stream, transfer, AFTER_KILL_S)
        clock.say("the traffic has ended")
        left_alive = sum(Path(f"/proc/{pid}/exe").exists() for pid in victims)
        with _interrupts_kept():
            pair.stop("b")
        clock.say("node b is stopped, and the namespaces are removed")
    since_ns = killed_ns if killed_ns <= taken_ns else taken_ns - SILENCE_NS
    outcome = Outcome(
        udp_ms=stream.outage_ms(since_ns),
        udp_lost=stream.sent - len(stream.received),
        tcp_ms=transfer.outage_ms(since_ns),
        tcp_bytes=transfer.sent,
        tcp_error=_tcp_error(transfer),
        left_alive=left_alive,
        replayed=int(taken["records_replayed"]),
        forked=not _continues(directory / "log-b", directory / "log-a"),
        log_errors=[error for error in map(_log_error, (directory / "log-a", directory / "log-b")) if error],
    )
    _report(outcome, directory)
    return not outcome.broken()


def _watch(clock: _Clock, stream: UdpStream, transfer: TcpTransfer, duration_s: float) -> None:
    """Say every half second how the traffic does."""
    for _ in range(round(duration_s / 0.5)):
        time.sleep(0.5)
        arrived = transfer.progress[-1][0] if transfer.progress else 0
        clock.say(f"  TCP {arrived / 1e6:5.1f} MB    UDP {len(stream.received):5} of {stream.sent} came back")


def _tcp_error(transfer: TcpTransfer) -> str:
    try:
        return "" if transfer.outcome() else "the bytes that arrived are not those that were sent"
    except OSError as error:
        return str(error) or type(error).__name__


def _continues(later: Path, earlier: Path) -> bool:
    """Whether the later primary's log has all that the earlier one's had when it ended, or when its term did."""
    with History(later) as new, History(earlier) as old:
        old_last = old.entry(old.log.last_lsn).record
        assert old_last is not None
        epochs = (entry.lsn for entry in new.entries() if entry.record and entry.record.epoch > old_last.epoch)
        common = next(epochs, 1) - 1
        if not 0 < common <= old_last.lsn:
            return False
        ours, theirs = new.entry(common).record, old.entry(common).record
        return ours is not None and theirs is not None and ours.chain == theirs.chain


def _log_error(directory: Path) -> str:
    with History(directory) as history:
        problem = verify(history).problem
    return "" if problem is None else f"{directory}: {problem}"


def _report(outcome: Outcome, directory: Path) -> None:
    """Print the outcome, and on standard error what did not hold."""
    broken = outcome.broken()
    print(
        f"\n  outage      UDP {outcome.udp_ms:.1f} ms ({outcome.udp_lost} datagrams lost), TCP {outcome.tcp_ms:.1f} ms"
    )
    if not outcome.tcp_error:
        print(f"  connection  survived: {outcome.tcp_bytes:,} bytes arrived as sent (SHA-256)".replace(",", " "))
    if not outcome.forked:
        print(f"  takeover    {outcome.replayed} records to replay; node b's log continues node a's")
    if not outcome.log_errors:
        print("  logs        both sound: every record, reply and state agrees")
    print(f"  files       logs, deployment and output of both nodes in {directory}")
    for text in broken:
        print(f"actornet: demo: this did not hold: {text}", file=sys.stderr)


# ---------------------------------------------------------------------------------------------- inside


class _Clock:
    """Says what happens, with the seconds since it was made."""

    def __init__(self) -> None:
        self._begun_ns = time.monotonic_ns()

    def say(self, text: str, at_ns: int | None = None) -> None:
        """`at_ns`: when it happened (monotonic), if not now."""
        elapsed_s = ((at_ns or time.monotonic_ns()) - self._begun_ns) / 1e9
        print(f"  {elapsed_s:6.3f} s  {text}", flush=True)


def _title(text: str) -> None:
    print(f"\n{text}\n{'-' * len(text)}\n", flush=True)


def _suggest(log: Path, lsn: int) -> None:
    replay = f"{_command()} replay"
    rows = [
        ("every owner message and flow, in the order that a backup follows", f"{replay} ls {log}"),
        ("one record, with the owner's reply by re-execution", f"{replay} show {log} 3"),
        ("the translations at that moment", f"{replay} state {log} {OWNER} --at {lsn}"),
        ("a capture of your own", f"{_command()} run {NF} --read YOURS.pcap --write out.pcap"),
    ]
    for purpose, command in rows:
        print(f"  {purpose}:\n      {command}")


def _command() -> str:
    """How the user calls actornet."""
    if shutil.which("actornet"):
        return "actornet"
    called = Path(sys.argv[0])
    return _short(called) if called.name == "actornet" else "python -m actornet.cli.main"


def _short(path: Path) -> str:
    """Relative to where the user is, if that is shorter."""
    return min(str(path), os.path.relpath(path), key=len)


@contextmanager
def _ended_once() -> Iterator[None]:
    """Ctrl-C or SIGTERM ends the demonstration; another must not cut the clearing up short."""

    def end(number: int, frame: FrameType | None) -> None:
        for each in before:
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _interrupts_kept() -> Iterator[None]:
    """Processes that begin here never see Ctrl-C; ours is noted and comes behind."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
