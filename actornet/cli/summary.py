"""What a run says at its end: one page for people, or one JSON object."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from typing import Any

DROPS = {
    "malformed": "contradictory headers; of inline streams also wrong TCP checksums (left to a card? verify_checksums)",
    "truncated": "the frame ends before its headers say; captured with a short snap length?",
    "not_ip": "ARP, LLDP and other frames that are not IP",
    "fragment": "IP fragments: they carry no ports",
    "fragment_overlap": "fragments that overlap, or contradict each other",
    "fragment_expired": "fragments whose datagram did not become complete in time",
    "fragment_evicted": "fragments that gave way to newer ones: too many waited",
    "untracked": "IP protocols without ports that are no ICMP echo or error",
    "other_host": "addressed to another host's MAC address",
    "icmp_error_unmatched": "ICMP errors about a packet of no known flow",
    "dropped_by_nf": "a handler of the network function decided so",
    "rejected_by_nf": "refused by the network function; on a routed port the sender is told",
    "dropped_by_offload": "an offloaded decision of the network function",
    "dropped_by_meter": "above the rate that the network function allows it",
    "ttl_expired": "TTL or hop limit reached 0",
    "flow_table_full": "new flows beyond --flows-max",
    "mailbox_full": "too many packets behind a handler that waits",
    "stream_full": "too much of a TCP stream waited for what was missing",
    "stream_discarded": "waited for a gap in a TCP stream until its flow ended, or repeated what waits already",
    "held_full": "too many packets waited for the log",
    "held_fenced": "waited for the log of a node that is no longer the primary",
    "lease_over": "the node's lease with the witness had run out: it may no longer send",
    "handler_error": "a handler raised an exception",
    "shunned": "of a flow whose handler was the end of a core's process",
    "no_route": "no port or next hop to leave by; on routed ports also broadcasts and addresses that are no single host's",
    "neighbor_full": "too many packets waited for a next hop's MAC address",
    "neighbor_unresolved": "a next hop did not answer with its MAC address",
    "handoff_full": "another core did not keep up",
    "handoff_stale": "handed to another core that does not want them",
    "tx_failed": "the port could not send",
}
"""Counter of dropped packets -> why."""

Report = dict[str, Any]


def text(report: Report) -> str:
    """The report for people; its shape is that of `--json`."""
    lines = [f"{report['nf']}{'  (interrupted)' if report['interrupted'] else ''}", ""]
    lines += _ports(report["ports"])
    flows = report["flows"]
    parts = [f"{count(flows['opened'])} opened", f"{count(flows['closed'])} closed", f"{count(flows['live'])} live"]
    if flows["refused"]:
        parts.append(f"{count(flows['refused'])} refused")
    lines += ["", line("flows", ", ".join(parts))]
    packets = report["packets"]
    if report["answered"]:
        lines.append(line("answered", f"{count(report['answered'])} packets by the network function"))
    lines.append(line("offloaded", f"{_percent(report['offloaded'], packets)} of {count(packets)} packets"))
    lines += drops(report["drops"])
    if report["handlers_raised"]:
        lines.append(raised(report["handlers_raised"]))
    lines.append("")
    capture = report["capture"]
    if capture["first_ns"] is not None:
        lines.append(line("capture", f"{duration(capture['span_s'])} from {_instant(capture['first_ns'])}"))
    if report["readdressed"]:
        lines.append(line("answers", f"{count(report['readdressed'])} packets addressed as the outside would have"))
    if packets:
        rate = f"{count(round(report['packets_per_s'] / 1e3))} kpps, {report['bits_per_s'] / 1e9:.2f} Gbit/s"
        lines.append(line("rate", f"{rate} ({duration(report['elapsed_s'])})"))
    lines += [line("written", f"{count(out['packets'])} packets to {out['file']}") for out in report["outputs"]]
    if report["log"]:
        lines.append(line("log", f"LSN {report['log']['lsn']} in {report['log']['directory']}"))
    return "\n".join(lines)


def raised(times: int) -> str:
    """That handlers failed: the run has, too."""
    return line("FAILED", f"handlers raised {count(times)} times: see the warnings")


def _instant(time_ns: int) -> str:
    return datetime.fromtimestamp(time_ns // 10**9, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def line(name: str, value: str) -> str:
    """One of a page's lines."""
    return f"  {name:<12} {value}"


def _ports(ports: dict[str, dict[str, int]]) -> list[str]:
    rows = [("port", "packets in", "bytes in", "packets out", "bytes out")]
    rows += [
        (name, count(p["packets_in"]), _bytes(p["bytes_in"]), count(p["packets_out"]), _bytes(p["bytes_out"]))
        for name, p in ports.items()
    ]
    width = max(12, *(len(row[0]) for row in rows))
    return ["  " + row[0].ljust(width) + "".join(cell.rjust(13) for cell in row[1:]) for row in rows]


def drops(dropped: dict[str, int]) -> list[str]:
    """What was dropped, by counter, the most first, with what that means."""
    if not dropped:
        return [line("dropped", "none")]
    names = max(len(name) for name in dropped)
    counts = max(len(count(number)) for number in dropped.values())
    lines = [line("dropped", f"{count(sum(dropped.values()))} packets")]
    for name, number in sorted(dropped.items(), key=lambda drop: -drop[1]):
        lines.append(f"{'':15}{count(number):>{counts}}  {name:<{names}}  {DROPS.get(name, '')}".rstrip())
    return lines


def count(number: int) -> str:
    """A number in groups of three digits."""
    return f"{number:,}".replace(",", " ")


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "0 %"


def _bytes(number: int) -> str:
    size = float(number)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def duration(seconds: float) -> str:
    """A time in units that suit it."""
    if seconds < 1:
        return f"{seconds * 1e3:.1f} ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"


def warn_of_restored(misfits: list[str]) -> None:
    """Say which fields of the log's flows are not of their types."""
    for misfit in misfits:
        print(f"actornet: warning: a flow from the log: {misfit}: it is taken as it is", file=sys.stderr)


def warn_of_misfit(misfit: str | None) -> None:
    """Say which value in an owner's state does not fit its type."""
    if misfit is not None:
        print(
            f"actornet: warning: {misfit}: a snapshot could not bring this back, so none was taken; mend the handler",
            file=sys.stderr,
        )


def warn_of_settings(owners: list[str]) -> None:
    """Say which owners go on with what they have in the log, whatever the settings are now."""
    for name in owners:
        text = f"owner {name!r} goes on from the log; its settings were others when it began"
        print(f"actornet: warning: {text}", file=sys.stderr)
