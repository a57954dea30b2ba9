"""`actornet launch`, `status`, `promote` and `stop`: a node on live interfaces, and questions to it.

What a node consists of is imported only when it is needed: Thespian and structlog take longer than a question.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from actornet.cli import status as page
from actornet.cli.load import load_of
from actornet.errors import NodeError, UsageError
from actornet.ports.table import table_values

FACTORY = "actornet.node.assembly:assemble"
"""Makes a NodePlan of a Deployment, in the node's supervisor."""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommands of a node."""
    launch = subparsers.add_parser(
        "launch",
        help="start a node on network interfaces, as primary or backup",
        description="Start a node in the foreground, from a deployment file; flags replace what the file says.",
    )
    add = launch.add_argument
    add("role", choices=("primary", "backup"), help="what the node starts as")
    add("file", nargs="?", type=Path, metavar="FILE", help="deployment file (TOML); without it, flags say everything")
    add("--node", metavar="NAME", help="the file's table that is this node's, if not the role's own")
    add("--name", help="name of the deployment")
    add("--nf", metavar="NF", help="module:Class of the network function")
    add("--cores", type=int, metavar="N", help="cores, one process each")
    add("--cpus", metavar="A,B", help="CPUs to pin the cores to")
    add("--flows-max", type=int, metavar="N", help="keys in each core's flow table; a translated flow has two")
    add(
        "--poll", metavar="HOW", help="cores without packets sleep (adaptive, the default) or look again at once (busy)"
    )
    add("--cpu-latency-us", type=int, metavar="US", help="CPUs wake within so long while packets come; 0: none sleeps")
    add(
        "--port",
        action="append",
        default=[],
        metavar="NAME=INTERFACE[,address=A/LEN][,gateway=A][,mac=M][,driver=D]",
        help="a port; drivers are af_packet (default), af_xdp, tap, and without an interface: NAME=CAPTURE,driver=pcap"
        "[,write=CAPTURE][,speed=X], NAME=CAPTURE,driver=memory[,packets_per_s=N]",
    )
    add("--set", action="append", default=[], metavar="NAME=VALUE", help="set a setting of the function")
    add("--durability", metavar="MODE", help="what output waits for: solo, received, durable or applied")
    add("--without-backup", metavar="POLICY", help="while no backup is connected: wait, solo or stop")
    add("--witness", metavar="PLACE", help="who says which node may emit: none, file:DIRECTORY or etcd:HOST:PORT")
    add("--etcd-ca", metavar="FILE", help="who has signed etcd's certificate: asks it by TLS")
    add("--etcd-cert", metavar="FILE", help="this node's certificate for etcd")
    add("--etcd-key", metavar="FILE", help="and its key")
    add("--etcd-user", metavar="NAME", help="one of etcd's users")
    add("--etcd-password-file", metavar="FILE", help="file with that user's password")
    add("--silence-ms", type=int, metavar="MS", help="a node that says nothing for so long counts as dead")
    add("--lease-ms", type=int, metavar="MS", help="a primary that has not renewed its lease for so long emits nothing")
    add("--keep-records", type=int, metavar="N", help="records that stay in the log for replay")
    add("--key-file", metavar="FILE", help="file with the deployment's key")
    add("--log", metavar="DIR", help="directory of this node's log")
    add("--link", metavar="ADDRESS:PORT", help="where the primary listens for the backup")
    add("--listen", metavar="ADDRESS:PORT", help="where this node listens once it leads, if elsewhere")
    add("--control", metavar="ADDRESS:PORT", help="where this node takes questions")
    for name, purpose in (
        ("status", "show a node's role, replication and counters"),
        ("promote", "make a backup the primary"),
        ("stop", "stop a node cleanly"),
    ):
        parser = subparsers.add_parser(name, help=purpose, description=f"{purpose.capitalize()}.")
        parser.add_argument("file", nargs="?", type=Path, metavar="FILE", help="deployment file of the node")
        parser.add_argument(
            "--role", "--node", metavar="NAME", help="which of the file's nodes: primary, backup, or a name"
        )
        parser.add_argument(
            "--control", metavar="ADDRESS:PORT", help="a node anywhere, with --key-file instead of FILE"
        )
        parser.add_argument("--key-file", type=Path, metavar="FILE", help="file with the deployment's key")
        if name == "promote":
            meaning = "even a backup that is not in sync: what the primary committed without it is given up"
            parser.add_argument("--force", action="store_true", help=meaning)
        if name == "status":
            parser.add_argument("--json", action="store_true", help="print a JSON list with one object per node")


def run(args: argparse.Namespace) -> int:
    """Run the subcommand; returns the exit code."""
    if args.command == "launch":
        return _launch(args)
    return {"status": _status, "promote": _promote, "stop": _stop}[args.command](args)


def _launch(args: argparse.Namespace) -> int:
    from actornet.node import events
    from actornet.node.control import NodeReady, Start
    from actornet.node.deployment import load_deployment, read_key
    from actornet.node.launcher import launch

    deployment = load_deployment(args.file, args.role, _overrides(args), args.node)
    key = read_key(deployment.key_file)
    events.configure(node=deployment.name, role=deployment.role)

    def tell_ready(_ready: NodeReady) -> None:
        cores = f"{deployment.cores} core{'s' if deployment.cores > 1 else ''}"
        print(f"{deployment.name} {deployment.role} ready: {cores}, control {deployment.control}", flush=True)

    launch(deployment.control, key, Start(deployment.name, deployment.role, FACTORY, deployment), tell_ready)
    return 0


def _overrides(args: argparse.Namespace) -> dict[str, Any]:
    """What the flags say, as keys of the deployment file."""
    node = args.node or args.role
    if node not in ("primary", "backup"):
        node = f"backups.{node}"
    given = {
        "name": args.name,
        "nf": args.nf,
        "cores": args.cores,
        "cpus": _cpus(args.cpus) if args.cpus else None,
        "poll": args.poll,
        "cpu_latency_us": args.cpu_latency_us,
        "flows_max": args.flows_max,
        "key_file": _absolute(args.key_file),
        "replication.durability": args.durability,
        "replication.without_backup": args.without_backup,
        "replication.witness": _witness(args.witness),
        "etcd.ca": _absolute(args.etcd_ca),
        "etcd.cert": _absolute(args.etcd_cert),
        "etcd.key": _absolute(args.etcd_key),
        "etcd.user": args.etcd_user,
        "etcd.password_file": _absolute(args.etcd_password_file),
        "replication.silence_ms": args.silence_ms,
        "replication.lease_ms": args.lease_ms,
        "replication.keep_records": args.keep_records,
        f"{node}.log": _absolute(args.log),
        f"{node}.link": args.link,
        f"{node}.listen": args.listen,
        f"{node}.control": args.control,
    }
    for text in args.set:
        name, value = _assignment("--set", text, dots=1)  # MEMBER.NAME of a chain
        given[f"settings.{name}"] = value
    for text in args.port:
        name, value = _assignment("--port", text)
        try:
            values = table_values(value)
        except UsageError as error:
            raise UsageError(f"--port {text!r}: {error}") from None
        for key, setting in values.items():
            given[f"ports.{name}.{key}"] = str(Path(setting).resolve()) if key in ("read", "write") else setting
    return {key: value for key, value in given.items() if value is not None}


def _witness(place: str | None) -> str | None:
    """A directory is relative to where we are, not to the file."""
    kind, _, where = (place or "").partition(":")
    return f"file:{Path(where).resolve()}" if kind == "file" and where else place


def _absolute(path: str | None) -> str | None:
    return str(Path(path).resolve()) if path else None


def _assignment(flag: str, text: str, dots: int = 0) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals or name.count(".") > dots:
        raise UsageError(f"{flag} {text!r}: write NAME=VALUE")
    return name, value


def _cpus(text: str) -> list[int]:
    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        raise UsageError(f"--cpus {text!r}: write numbers of CPUs, say 1,2") from None


def _places(args: argparse.Namespace) -> Iterator[tuple[str, bytes]]:
    """(control address, key) of each node that the arguments name."""
    from actornet.node.deployment import load_deployment, nodes_of, read_key

    if args.control and args.key_file:
        yield args.control, read_key(args.key_file)
        return
    if args.file is None:
        raise UsageError("name a deployment file, or --control and --key-file")
    for each in [args.role] if args.role else nodes_of(args.file):
        deployment = load_deployment(args.file, "primary" if each == "primary" else "backup", node=each)
        yield args.control or deployment.control, read_key(args.key_file or deployment.key_file)


def _status(args: argparse.Namespace) -> int:
    statuses, errors = [], []
    for place in _places(args):
        try:
            statuses.append(_ask_status(*place))
        except NodeError as error:
            errors.append(str(error))
    if not statuses:
        raise NodeError("; ".join(errors) or f"{args.file} describes no node: add a [primary] table")
    if args.json:
        print(json.dumps(statuses, indent=2, default=str))
    else:
        print("\n".join([page.text(status) for status in statuses] + errors))
    return 0


def _promote(args: argparse.Namespace) -> int:
    """A backup becomes the primary; where none runs, the primary is told to wait for none."""
    from actornet.node.control import NodeClient

    control, key = _to_promote(args)
    with NodeClient(control, key) as node:
        print(f"{control}: {page.in_line(node.promote(force=args.force)) or 'promoted'}")
    return 0


def _to_promote(args: argparse.Namespace) -> tuple[str, bytes]:
    """The node that is named, or the only one that is meant."""
    from actornet.node.control import NodeClient

    places = list(_places(args))
    if len(places) == 1:
        return places[0]
    backups: list[tuple[str, bytes]] = []
    leaders: list[tuple[str, bytes]] = []
    errors = []
    for place in places:
        try:
            with NodeClient(*place) as node:
                (backups if node.leads() is None else leaders).append(place)
        except NodeError as error:
            errors.append(str(error))
    if len(backups) > 1:
        raise UsageError(f"{len(backups)} nodes of {args.file} do not lead: say by --node which is to")
    if not backups and not leaders:
        raise NodeError("; ".join(errors) or f"{args.file} describes no node: add a [backup] table")
    return (backups or leaders)[0]


def _ask_status(control: str, key: bytes) -> dict[str, Any]:
    from actornet.node.control import NodeClient

    with NodeClient(control, key) as node:
        status = node.status()
    now = next(
        (said["role"] for worker in status["workers"] if "role" in (said := worker["status"] or {})), status["role"]
    )
    return status | {"control": control, "launched_as": status["role"], "role": now, "load": load_of(status)}


def _stop(args: argparse.Namespace) -> int:
    from actornet.node.control import NodeClient

    nodes, errors = [], []
    for control, key in _places(args):
        try:
            nodes.append(NodeClient(control, key))
        except NodeError as error:
            errors.append(str(error))
    try:
        if not nodes:
            raise NodeError("; ".join(errors))
        if len(nodes) > 1:
            raise UsageError(f"both nodes of {args.file} run: say which to stop by --role primary or --role backup")
        nodes[0].stop()
        print(f"{nodes[0].control}: stopped")
    finally:
        for node in nodes:
            node.close()
    return 0
