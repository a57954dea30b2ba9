"""`actornet run`: a network function in this process, over capture files (without privileges) or on live interfaces."""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from operator import itemgetter
from types import FrameType
from typing import Any

from actornet.cli import summary
from actornet.cli.progress import Progress
from actornet.embedded import Embedded
from actornet.engine.counters import DROPS
from actornet.engine.five_tuple import FiveTuple
from actornet.engine.heap import use_huge_pages
from actornet.errors import UsageError
from actornet.flow import FlowActor
from actornet.limits import FLOWS_MAX, FLOWS_MAX_DEFAULT, HANDLER_STALL_S
from actornet.load import load_nf
from actornet.place import place_of
from actornet.ports.capture import CaptureFeed, CapturePort
from actornet.ports.pcap import Capture, CaptureWriter, read_capture
from actornet.ports.playback import INSIDE_DEFAULT, Playback

LAN, WAN = "lan", "wan"
INTERRUPTED = 130
HANDLERS_RAISED = 3
PAUSE_S = 0.0002
HANDLER_ERRORS_TOLD_MAX = 5
_PORT_FILE = re.compile(r"(?:([A-Za-z_][\w-]*)=)?(.+)", re.DOTALL)

PortFile = tuple[str | None, str]
"""A port's name, if given, and a path."""

EPILOG = f"""\
Without a port name, captures hold both directions: packets whose source is inside arrive at port {LAN}, others at
{WAN}. Inside is what --inside says; by default private addresses
({", ".join(INSIDE_DEFAULT)}).
What the function translates is played back: an answer in the capture is addressed to what the function emitted for the
packet that it answers, as the real network would have done. --as-is turns that off.

With a port name for each, captures are merged by time and delivered unchanged.

A file whose name holds "=" is written with its directory: ./a=b.pcap

Exit code: 0; {HANDLERS_RAISED} if handlers of the function raised (all else is done, and written, all the same); 1 if it
could not be run, 2 if what was asked for is wrong, {INTERRUPTED} if captures were not read to their end.
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the `run` subcommand."""
    parser = subparsers.add_parser(
        "run",
        help="run a network function over capture files, in this process",
        description="Run a network function over capture files (pcap, pcapng, .gz), in this process, unprivileged.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("nf", metavar="NF", help="module:Class or path/file.py:Class")
    add("--read", action="append", default=[], metavar="[PORT=]FILE", help="capture to read; - is standard input")
    add(
        "-i",
        "--interface",
        action="append",
        default=[],
        metavar="NAME=INTERFACE[:DRIVER]",
        help="a live port, by af_packet (default), af_xdp or tap, until Ctrl-C; or one in real time from captures: "
        "NAME=CAPTURE:pcap[,write=CAPTURE][,speed=X], NAME=CAPTURE:memory[,packets_per_s=N]",
    )
    add("--write", action="append", default=[], metavar="[PORT=]FILE", help="write what leaves (by PORT); - is stdout")
    add("--inside", action="append", metavar="PREFIX", help="addresses inside; may be repeated")
    add("--as-is", action="store_true", help="deliver answers as they were captured")
    add("--log", metavar="DIR", help="directory of the log, for `actornet replay`")
    add("--set", action="append", default=[], metavar="NAME=VALUE", help="set a setting of the function")
    add("--flows-max", type=int, default=FLOWS_MAX_DEFAULT, metavar="N", help="keys in the flow table (%(default)s)")
    add(
        "--poll",
        choices=("adaptive", "busy"),
        metavar="HOW",
        help="with -i: without packets sleep (adaptive, the default), or look again at once (busy)",
    )
    add(
        "--cpu-latency-us",
        type=int,
        metavar="US",
        help="with -i: CPUs wake within so long while packets come; 0: none sleeps",
    )
    add("--json", action="store_true", help="print the summary as one JSON object")
    add("--quiet", action="store_true", help="print neither progress nor summary")


def run(args: argparse.Namespace) -> int:
    """Run it; returns the exit code."""
    use_huge_pages()
    if args.interface:
        return _run_live(args)
    reads, writes = [_port_file(text) for text in args.read], [_port_file(text) for text in args.write]
    _check(args, reads, writes)
    settings = dict(_setting(text) for text in args.set)
    names = _port_names(reads, writes)
    nf = load_nf(args.nf)
    with ExitStack() as stack:
        captures = [stack.enter_context(read_capture(path)) for _, path in reads]
        outlets: dict[str, Outlet] = {}
        for _, path in writes:
            if path not in outlets:
                outlets[path] = Outlet(path)
                stack.enter_context(outlets[path].writer)
        feed = _feed(args, [(port, capture) for (port, _), capture in zip(reads, captures, strict=True)], names)
        for name in names:
            CapturePort(name, feed, [outlets[path].frames for port, path in writes if port in (None, name)])
        progress = Progress(_total_bytes(captures), wanted=not args.quiet)
        errors = HandlerErrors(nf, progress)
        embedded = Embedded(
            nf,
            feed.ports,
            settings,
            args.log,
            flows_max=args.flows_max,
            virtual_time=True,
            on_error=errors,
        )
        stack.callback(embedded.finish)
        summary.warn_of_settings(embedded.owners_kept)
        summary.warn_of_restored(embedded.restored_misfits)
        feed.suspended = lambda: embedded.core.suspended > 0
        begun = time.perf_counter()
        interrupted = _play(embedded, feed, captures, list(outlets.values()), progress)
        at_end = embedded.counters()
        embedded.finish()
        summary.warn_of_misfit(embedded.misfit)
        for outlet in outlets.values():
            outlet.close()
        elapsed_s = time.perf_counter() - begun
    for capture in captures:
        _warn(capture)
    if not args.quiet:
        report = {"nf": args.nf, "interrupted": interrupted} | _report(embedded.counters(), at_end, feed, elapsed_s)
        report["outputs"] = [{"file": path, "packets": outlet.writer.packets} for path, outlet in outlets.items()]
        report["log"] = {"directory": args.log, "lsn": embedded.journal.lsn} if args.log else None
        report["handlers_raised"] = errors.count
        stream = sys.stderr if "-" in outlets else sys.stdout
        print(json.dumps(report, indent=2) if args.json else summary.text(report), file=stream)
    return INTERRUPTED if interrupted else errors.exit_code


def _run_live(args: argparse.Namespace) -> int:
    from actornet.cli import live

    if args.read or args.write or args.inside or args.as_is:
        raise UsageError("-i is for live interfaces: leave out --read, --write, --inside and --as-is")
    if args.json and args.quiet:
        raise UsageError("--json and --quiet exclude each other")
    settings = dict(_setting(text) for text in args.set)
    nf = load_nf(args.nf)
    with _stop_asked() as stop:
        return live.run(args, nf, settings, stop, HandlerErrors(nf, Progress(None, wanted=False)))


class Outlet:
    """What leaves by one or more ports, on its way to a file."""

    def __init__(self, path: str) -> None:
        self.writer = CaptureWriter(path)
        self.frames: list[tuple[int, bytes, int]] = []

    def flush(self) -> None:
        """Write what has left since the last call, in order of arrival: the core empties one port behind the other."""
        self.frames.sort(key=itemgetter(0))
        self.writer.write_burst(self.frames)
        self.frames.clear()

    def close(self) -> None:
        """Write the rest and complete the file."""
        self.flush()
        self.writer.close()


class HandlerErrors:
    """Tells of each kind of exception in a handler once, on standard error; `count` is how many there were."""

    def __init__(self, nf: type[FlowActor], progress: Progress) -> None:
        self.count = 0
        self._nf = nf
        self._progress = progress
        self._told: set[tuple[str, str]] = set()

    def __call__(self, flow: FiveTuple | None, handler: str, error: BaseException) -> None:
        self.count += 1
        where = place_of(self._nf, handler, error)
        text = " ".join(f"{type(error).__name__}: {error}".split())
        if len(self._told) < HANDLER_ERRORS_TOLD_MAX and (where, type(error).__name__) not in self._told:
            self._told.add((where, type(error).__name__))
            self._progress.clear()
            of = f"{handler} of flow {flow}" if flow is not None else handler
            print(f"actornet: warning: {of} raised {text} ({where})", file=sys.stderr)

    @property
    def exit_code(self) -> int:
        """Of a run to its end."""
        return HANDLERS_RAISED if self.count else 0


def _port_file(text: str) -> PortFile:
    match = _PORT_FILE.fullmatch(text)
    if match is None:
        raise UsageError(f"{text!r} names no file; write FILE or PORT=FILE")
    return match[1], match[2]


def _setting(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise UsageError(f"--set {text!r}: write NAME=VALUE")
    return name, value


def _check(args: argparse.Namespace, reads: list[PortFile], writes: list[PortFile]) -> None:
    if not reads:
        raise UsageError("nothing to run on: name captures by --read FILE, or interfaces by -i NAME=INTERFACE")
    named = [port is not None for port, _ in reads]
    if any(named) and not all(named):
        raise UsageError("--read: name the port of every capture (lan=a.pcap) or of none")
    if all(named) and (args.inside or args.as_is):
        raise UsageError("--inside and --as-is are for captures without a port name; leave them out")
    if [path for _, path in reads].count("-") > 1:
        raise UsageError("--read: standard input can be read once")
    if not 1 <= args.flows_max <= FLOWS_MAX:
        raise UsageError(f"--flows-max {args.flows_max}: a flow table has 1..{FLOWS_MAX} keys")
    if args.json and args.quiet:
        raise UsageError("--json and --quiet exclude each other")
    for path in {path for _, path in writes if os.path.exists(path)}:
        if any(os.path.exists(other) and os.path.samefile(path, other) for _, other in reads):
            raise UsageError(f"--write {path}: it is read as well, and would be replaced; write to another file")
    for flag, value in (("--poll", args.poll), ("--cpu-latency-us", args.cpu_latency_us)):
        if value is not None:
            raise UsageError(f"{flag} is for live interfaces: name them by -i NAME=INTERFACE")
    if args.json and any(path == "-" for _, path in writes):
        raise UsageError("--json and --write - both want standard output; write to a file")


def _port_names(reads: list[PortFile], writes: list[PortFile]) -> list[str]:
    """lan and wan, unless the user has other names."""
    names = list(dict.fromkeys(port for port, _ in reads + writes if port is not None))
    if set(names) <= {LAN, WAN}:
        return [LAN, WAN]
    if reads[0][0] is None:
        raise UsageError(f"--write: the ports are {LAN} and {WAN}; name others by --read PORT=FILE")
    return names


def _feed(args: argparse.Namespace, captures: list[tuple[str | None, Capture]], names: list[str]) -> CaptureFeed:
    """Captures without a port name are played back, the others delivered as they are."""
    playback = None
    if captures[0][0] is None:
        playback = Playback(args.inside or INSIDE_DEFAULT, names.index(LAN), names.index(WAN), args.as_is)
    return CaptureFeed([(capture, names.index(port or LAN)) for port, capture in captures], playback)


def _play(
    embedded: Embedded, feed: CaptureFeed, captures: list[Capture], outlets: list[Outlet], progress: Progress
) -> bool:
    """Feed everything to the function; True if the user stopped it."""
    still_since: float | None = None
    with _stop_asked() as stop:
        while not feed.exhausted and not stop:
            taken = embedded.run_burst()
            for outlet in outlets:
                outlet.flush()
            if taken:
                still_since = None
                progress.update(sum(capture.position_bytes for capture in captures), feed.packets)
            elif not feed.exhausted:
                # The next packet answers one whose handler still waits; but not for ever.
                time.sleep(PAUSE_S)
                still_since = still_since or time.monotonic()
                if time.monotonic() - still_since > HANDLER_STALL_S:
                    feed.suspended = None
    progress.clear()
    return bool(stop)


@contextmanager
def _stop_asked() -> Iterator[list[int]]:
    """A list that Ctrl-C, SIGTERM or a lost terminal puts something into, so that no handler is cut off in its middle; a
    second one interrupts."""
    asked: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _report(counts: dict[str, int], at_end: dict[str, int], feed: CaptureFeed, elapsed_s: float) -> dict[str, Any]:
    """What was done, as --json prints it; `at_end`: the counts at the capture's end, before flows are closed."""
    ports = {
        port.name: {
            "packets_in": port.packets_in,
            "bytes_in": port.bytes_in,
            "packets_out": port.packets_out,
            "bytes_out": port.bytes_out,
        }
        for port in feed.ports
    }
    span_s = (feed.last_ns - feed.first_ns) / 1e9 if feed.first_ns is not None and feed.last_ns is not None else 0.0
    return {
        "packets": feed.packets,
        "bytes": feed.total_bytes,
        "ports": ports,
        "flows": {
            "opened": counts["flows_opened"],
            "closed": at_end["flows_closed"],
            "live": at_end["live_flows"],
            "refused": counts["flows_refused"],
        },
        "offloaded": counts["offloaded"],
        "answered": counts["answered_by_nf"],
        "readdressed": feed.playback.readdressed if feed.playback is not None else 0,
        "drops": {name: counts[name] for name in DROPS if counts[name]},
        "capture": {"first_ns": feed.first_ns, "last_ns": feed.last_ns, "span_s": span_s},
        "elapsed_s": elapsed_s,
        "packets_per_s": feed.packets / elapsed_s,
        "bits_per_s": feed.total_bytes * 8 / elapsed_s,
    }


def _total_bytes(captures: list[Capture]) -> int | None:
    sizes = [capture.total_bytes for capture in captures]
    return None if None in sizes else sum(size for size in sizes if size is not None)


def _warn(capture: Capture) -> None:
    """Say what was wrong with a capture that could be read all the same."""
    found = []
    if capture.damage:
        found.append(f"{capture.damage}; what stands before it was read")
    if capture.oversized:
        found.append(f"{capture.oversized} packets are larger than any frame and were passed over")
    if capture.snapped:
        found.append(f"{capture.snapped} packets were cut when captured; capture with a larger snap length (-s 0)")
    for text in found:
        print(f"actornet: warning: {capture.name}: {text}", file=sys.stderr)
