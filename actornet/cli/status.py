"""A node's status as a page for people."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from actornet.cli.summary import count, drops, duration, line
from actornet.engine.counters import COUNTERS, DROPS

Part = dict[str, Any]

ALWAYS = ("rx_packets", "tx_packets")
ELSEWHERE = {"live_flows", "busy_ns", "handed_off", *DROPS}
"""What the page says in another place than under `counted`, or not at all."""


def text(status: Part) -> str:
    """The page; `status` as `NodeClient.status` gives it, with the cores' `load`."""
    said = {worker["name"]: worker["status"] or {} for worker in status["workers"]}
    owner = next((part for part in said.values() if "durability" in part), None)
    cores = {name: part for name, part in said.items() if "counters" in part}
    place = f"pid {status['pid']}, control {status['control']} ({status['refused']} unauthenticated refused)"
    lines = [f"{status['name']} {status['role']}: {status['state']}, up {duration(status['up_s'])}, {place}"]
    if owner:
        lines += [line(name, value) for name, value in _replication(owner)]
    lines += ["", *_table(_processes(status, said))]
    if status["load"] is not None and status["load"]["skew"]:
        lines.append(f"  skew: {status['load']['skew']}")
    if cores:
        lines += ["", *_counted(list(cores.values())), *_ports(cores)]
    return "\n".join(lines)


def in_line(value: Any) -> str:
    """A command's answer, or a part of the status that has no place of its own."""
    if isinstance(value, dict):
        return " ".join(f"{key}={in_line(each)}" for key, each in value.items())
    if isinstance(value, list):
        return ",".join(map(in_line, value))
    return "" if value is None else str(value)


def _replication(owner: Part) -> Iterator[tuple[str, str]]:
    leads = owner["role"] == "primary"
    state = "about to lead" if owner["launching"] else "leads" if leads else owner["state"]
    yield "epoch", f"{owner['epoch']}: {state}"
    yield "state", f"{count(owner['flows'])} flows; owners: {', '.join(owner['owners']) or 'none'}"
    upkeep = owner["upkeep"]
    audited = f"audited at {_lsn(upkeep['audited_lsn'])}, snapshot at {_lsn(upkeep['snapshot_lsn'])}"
    large = "; too_large to be either while traffic runs" if upkeep["too_large"] else ""
    if upkeep["misfit"]:
        yield "misfit", f"{upkeep['misfit']}: no audits, no snapshots"
    yield "log", f"LSN {count(owner['logged_lsn'])}; {audited}, {count(upkeep['pruned_records'])} records pruned{large}"
    if leads:
        alone = ", alone" if owner["commits_alone"] else ""
        yield (
            "committed",
            f"LSN {count(owner['watermark'])} ({owner['durability']}{alone}; without a backup: {owner['without_backup']})",
        )
        for backup in owner["backups"]:
            lag = "-" if backup["lag_records"] is None else count(backup["lag_records"])
            lsns = ", ".join(
                f"{name} {count(backup[f'{name}_lsn'])}" for name in ("sent", "received", "durable", "applied")
            )
            yield (
                "backup" if backup["node"] == "backup" else f"backup {backup['node']}",
                f"{backup['state']}, {lag} records behind; {lsns}",
            )
    else:
        lag = (
            "not known"
            if owner["lag_records"] is None
            else f"{count(owner['lag_records'])} records, {owner['lag_ms']} ms"
        )
        received, applied = count(owner["received_lsn"]), count(owner["applied_lsn"])
        yield "behind", f"{lag}; received {received}, applied {applied}; {owner['resyncs']} resyncs"
    if (link := owner["link"]) is not None:
        counts = {name: number for name, number in link.items() if name not in ("address", "peer")}
        peer = f", with {link['peer']}" if link["peer"] else ""
        yield (
            "link",
            f"{'listens at' if leads else 'to'} {link['address']}{peer}{'; ' if counts else ''}{in_line(counts)}",
        )
    if missing := owner["ports_without_link"]:
        yield "no link", f"{count(missing)} of the ports' interfaces absent, down, or without a link"
    yield "witness", in_line(owner["witness"]) or "none"
    if (takeover := owner["takeover"]) is not None:
        became = f"{takeover['reason']}: epoch {takeover['epoch']} from LSN {count(takeover['lsn'])} on"
        replayed, packets = takeover["records_replayed"], count(sum(takeover["packets"].values()))
        had = f"{count(takeover['flows'])} flows, {replayed} records replayed, {packets} packets gone on with"
        yield "took over", f"{became}, {had}, in {takeover['took_us'] / 1e3:.1f} ms"


def _lsn(lsn: int | None) -> str:
    return "-" if lsn is None else f"LSN {count(lsn)}"


def _processes(status: Part, said: dict[str, Part]) -> Iterator[Sequence[str]]:
    shares = {core["core"]: core for core in (status["load"] or {"cores": []})["cores"]}
    yield (
        "process",
        "state",
        "pid",
        "cpu",
        "memory",
        "restarts",
        "packets",
        "share",
        "flows",
        "handed over",
        "waiting",
        "held",
    )
    for worker in status["workers"]:
        name, counters = worker["name"], said[worker["name"]].get("counters")
        cells: tuple[str, ...] = () if worker["status"] is not None else ("no answer",)
        if counters:
            handed_over = counters["handed_off"]
            share = f"{shares[name]['share']:.1%}" if name in shares else "100%"
            part = said[name]
            numbers = (counters["live_flows"], handed_over, part["waiting"], part["held"])
            cells = (count(max(0, counters["rx_packets"] - handed_over)), share, *map(count, numbers))
        cpus = ",".join(map(str, worker["cpus"])) or "any"
        memory = f"{worker['memory_bytes'] / 1e6:.0f} MB" if worker["memory_bytes"] is not None else "-"
        yield name, worker["state"], str(worker["pid"] or "-"), cpus, memory, str(worker["restarts"]), *cells


def _table(rows: Iterator[Sequence[str]]) -> list[str]:
    """Aligned lines: the first two columns to the left, numbers to the right."""
    known = list(rows)
    widths = [max((len(row[i]) for row in known if i < len(row)), default=0) for i in range(max(map(len, known)))]
    lines = []
    for row in known:
        cells = [
            cell.ljust(width) if i < 2 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=False))
        ]
        lines.append(f"  {'  '.join(cells)}".rstrip())
    return lines


def _counted(cores: list[Part]) -> Iterator[str]:
    """What all cores have counted together."""
    sums = {name: sum(core["counters"][name] for core in cores) for name in COUNTERS}
    told = [
        f"{name} {count(number)}"
        for name, number in sums.items()
        if name not in ELSEWHERE and (number or name in ALWAYS)
    ]
    yield line("counted", ", ".join(told))
    rates = [core["rate"] for core in cores]
    received, sent = (sum(rate[f"{way}_packets_per_s"] for rate in rates) for way in ("rx", "tx"))
    if received or sent:
        over = duration(max(rate["seconds"] for rate in rates))
        yield line("rate", f"{count(received)} packets/s in, {count(sent)} out, over {over}")
    if sums["held"]:
        hold = [core["hold"] for core in cores]
        mean_ms = (
            sum(each["mean_ms"] * core["counters"]["held"] for each, core in zip(hold, cores, strict=True))
            / sums["held"]
        )
        most_ms, oldest_ms = (max(each[name] for each in hold) for name in ("max_ms", "oldest_ms"))
        yield line("held", f"for {mean_ms:.3f} ms on average, {most_ms:.3f} ms at most; now for {oldest_ms:.3f} ms")
    yield from drops({name: sums[name] for name in DROPS if sums[name]})


def _ports(cores: dict[str, Part]) -> Iterator[str]:
    """Each port's state on each core where it differs, and what was counted there."""
    for name in next(iter(cores.values()))["ports"]:
        each = {core: part["ports"][name] for core, part in cores.items()}
        states = {core: part["state"] for core, part in each.items()}
        same = len(set(states.values())) == 1
        state = next(iter(states.values())) if same else in_line(states)
        sums: dict[str, int] = {}
        for part in each.values():
            for counter, number in part.items():
                if counter != "state":
                    sums[counter] = sums.get(counter, 0) + number
        told = ", ".join(f"{counter} {count(number)}" for counter, number in sums.items() if number)
        yield line(f"port {name}", f"{state}{f'; {told}' if told else ''}")
