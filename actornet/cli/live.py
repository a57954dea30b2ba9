"""`actornet run NF -i lan=eth1 -i wan=eth2`: a network function on live interfaces in this one process, until Ctrl-C.

Ports are transparent: frames pass as they are, but for what the function rewrites. Addresses of its own, more cores and a
backup are what `actornet launch` is for.
"""

from __future__ import annotations

import argparse
import json
import select
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any

from actornet.cli import summary
from actornet.embedded import Embedded
from actornet.engine.ahead import MemoryAhead
from actornet.errors import UsageError
from actornet.flow import FlowActor
from actornet.node.calm import Calm
from actornet.node.cpu_latency import CpuLatency
from actornet.ports.drivers import open_ports
from actornet.ports.live import LivePort
from actornet.ports.recorded import RecordedPort
from actornet.ports.table import DRIVERS, RECORDED, PortTable, problem_of, table_values

if TYPE_CHECKING:
    from actornet.cli.run import HandlerErrors

IDLE_S = 0.1
"""Longest sleep: timers of flows need a turn now and then."""

HANDLERS_WAIT_S = 0.0002
"""Pause between turns while a handler waits for asyncio."""


def run(
    args: argparse.Namespace,
    nf: type[FlowActor],
    settings: dict[str, Any],
    stop: Sequence[int],
    errors: HandlerErrors,
) -> int:
    """Forward until `stop` holds something; returns the exit code. Raises UsageError and PortError before it begins."""
    tables = {}
    for text in args.interface:
        name, table = _table(text)
        if name in tables:
            raise UsageError(f"-i {text!r}: there is a port {name!r} already")
        tables[name] = table
    problem = problem_of(tables)
    if problem:
        raise UsageError(f"-i: `{problem}")
    with ExitStack() as stack:
        ports = open_ports(tables)
        for port in ports:
            stack.callback(port.close)
            port.on_link = _tell
        epoll = stack.enter_context(select.epoll())
        latency = CpuLatency(args.cpu_latency_us) if args.cpu_latency_us is not None else None
        if latency is not None:
            stack.callback(latency.close)
        embedded = Embedded(nf, ports, settings, args.log, flows_max=args.flows_max, on_error=errors)
        stack.callback(embedded.finish)
        stack.callback(MemoryAhead(embedded.core).close)
        for port in ports:
            if isinstance(port, RecordedPort):
                port.wait_for(lambda: embedded.core.suspended)
        summary.warn_of_settings(embedded.owners_kept)
        summary.warn_of_restored(embedded.restored_misfits)
        for port in ports:
            port.activate()
        begun = time.perf_counter()
        attached: list[int | None] = [None] * len(ports)
        calm, bursts = Calm(), 0
        while not stop:
            if embedded.run_burst():
                bursts += 1
                continue
            if latency is not None:
                latency.hold(not calm.turn(bursts, time.monotonic_ns()))
            for number, port in enumerate(ports):
                if port.ifindex != attached[number]:  # a port that has attached anew may have another socket
                    attached[number] = port.ifindex
                    with suppress(FileExistsError):
                        epoll.register(port.fileno(), select.EPOLLIN)
            if args.poll != "busy":
                epoll.poll(HANDLERS_WAIT_S if embedded.core.suspended else IDLE_S)
        for port in ports:
            port.deactivate()
        embedded.finish()
        summary.warn_of_misfit(embedded.misfit)
        counters = embedded.counters()
        elapsed_s = time.perf_counter() - begun
    if not args.quiet:
        found = {name: count for name, count in counters.items() if count}
        report = {"nf": args.nf, "elapsed_s": elapsed_s, "counters": found, "handlers_raised": errors.count}
        if args.json:
            print(json.dumps(report, indent=2))
        else:
            print(f"{args.nf}, {elapsed_s:.1f} s")
            if errors.count:
                print(summary.raised(errors.count))
            print("\n".join(f"  {name:<24} {count:>16,}" for name, count in found.items()))
    return errors.exit_code


def _tell(port: LivePort, what: str) -> None:
    print(f"actornet: warning: port {port.name}: {port.noun} {port.device} {what}", file=sys.stderr, flush=True)


def _table(text: str) -> tuple[str, PortTable]:
    """NAME=INTERFACE[:DRIVER][,KEY=VALUE...]; no interface's name has a colon but those of old aliases, which are none."""
    name, equals, rest = text.partition("=")
    place, comma, options = rest.partition(",")
    place, _, driver = place.rpartition(":") if ":" in place else (place, "", "")
    driver = driver or "af_packet"
    if not name or not equals or not (place or driver in RECORDED):
        raise UsageError(f"-i {text!r}: write NAME=INTERFACE or NAME=INTERFACE:DRIVER, say lan=eth1:af_xdp")
    if driver not in DRIVERS:
        raise UsageError(f"-i {text!r}: there is no driver {driver!r}; there are {', '.join(DRIVERS)}")
    try:
        return name, PortTable(**table_values(f"{place}{comma}{options}", driver))
    except UsageError as error:
        raise UsageError(f"-i {text!r}: {error}") from None
