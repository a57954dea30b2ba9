"""`actornet replay`: shows what `actornet.replay` finds in a log, and never writes.

Owners are re-executed by their code, which must be importable; `ls` needs none.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import msgspec

from actornet.cli.summary import warn_of_misfit
from actornet.engine.asks import is_packet
from actornet.errors import ActornetError, LogDamagedError, UsageError
from actornet.load import load_nf
from actornet.log.record import OPERATOR, AskBody, CloseBody, ControlBody, EpochBody, FlowBody, OwnerBody, Record
from actornet.owner import path_of
from actornet.replay.history import Entry, History, Reply
from actornet.replay.query import Query
from actornet.replay.text import Lines, count, describe, flow_state, instant, named, plain, summary, tree, unpack
from actornet.replay.verification import Verification, verify
from actornet.replication.replica import Replica

PROGRESS_S = 0.2
ERROR_BYTES_MAX = 4096


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `replay` and its subcommands to the command line."""
    replay = subparsers.add_parser(
        "replay", help="inspect, verify and re-execute a log", description="Inspect a log; it is never modified."
    )
    commands = replay.add_subparsers(dest="replay_command", metavar="COMMAND", required=True)

    listing = _command(commands, "ls", _list, "list records, one a line")
    listing.add_argument("--owner", help="only records about this owner")
    listing.add_argument("--flow", metavar="TEXT", help="only flows with these words: '10.0.0.1', 'udp :53'")
    listing.add_argument("--kind", help="only records of this kind: epoch, owner, ask, flow, close, control, hash")
    listing.add_argument("--from", dest="first", type=_lsn, default=1, metavar="LSN", help="begin here")
    listing.add_argument("--to", dest="last", type=_lsn, metavar="LSN", help="end here, inclusive")
    listing.add_argument("--limit", type=_lsn, metavar="N", help="at most this many records")

    show = _command(commands, "show", _show, "show everything about one record; an ask's reply by re-execution")
    show.add_argument("lsn", type=_lsn, metavar="LSN")

    state = _command(commands, "state", _state, "show the state of an owner, of all, or of the flows, at an LSN")
    state.add_argument("owner", nargs="?", metavar="OWNER", help="name of the owner; default: which owners there are")
    state.add_argument("--flows", action="store_true", help="the saved flows instead")
    state.add_argument("--at", type=_lsn, metavar="LSN", help="after the record at this LSN (default: the last)")

    _command(commands, "verify", _verify, "re-execute the whole log and check everything in it")


def run(args: argparse.Namespace) -> int:
    """Run a subcommand; raises ActornetError."""
    command: Callable[[History, argparse.Namespace], int] = args.replay_run
    with History(args.directory) as history:
        problem = history.log.problem_at_a_glance() if command is not _verify else ""
        if not problem:
            return command(history, args)
    said = _run_apart(command, args)
    raise LogDamagedError(
        f"{said and said + '; '}log {args.directory}: its file is damaged: {problem}; "
        "what could be read was shown. Restore from the other node"
    )


def _run_apart(command: Callable[[History, argparse.Namespace], int], args: argparse.Namespace) -> str:
    """Run it in a process of its own: LMDB ends the one that comes upon a damaged page. Returns the command's own error."""
    sys.stdout.flush()
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # LMDB's last words
            sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
            with History(args.directory) as history:
                command(history, args)
        except ActornetError as error:
            if not isinstance(error, LogDamagedError):  # which is known already
                os.write(write_end, str(error).encode()[:ERROR_BYTES_MAX])
        finally:
            os._exit(0)
    os.close(write_end)
    with open(read_end, "rb") as pipe:
        said = pipe.read().decode(errors="replace")
    os.waitpid(pid, 0)
    return said


def _command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    command: Callable[[History, argparse.Namespace], int],
    purpose: str,
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=purpose, description=f"{purpose[0].upper()}{purpose[1:]}.")
    parser.add_argument("directory", metavar="DIR", help="the log's directory")
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.set_defaults(replay_run=command)
    return parser


def _lsn(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) >= 1 << 63:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 0 on")
    return int(text)


# ---------------------------------------------------------------------------------------------- ls


def _list(history: History, args: argparse.Namespace) -> int:
    query = Query(args.owner, args.flow, args.kind)
    lines = Lines(history.log.last_lsn)
    damaged = 0
    if not args.json:
        print(lines.heading())
    for entry in islice(_wanted(history, query, args.first, args.last), args.limit):
        damaged += entry.record is None
        print(_json(describe(entry)) if args.json else lines.line(entry))
    return 1 if damaged else 0


def _wanted(history: History, query: Query, first: int, last: int | None) -> Iterator[Entry]:
    """The entries that are asked for; damaged ones always: nobody knows what they were."""
    for entry in history.entries(first, last):
        if entry.record is None or query.matches(entry.record):
            yield entry


# ---------------------------------------------------------------------------------------------- show


def _show(history: History, args: argparse.Namespace) -> int:
    entry = history.entry(args.lsn)
    record = entry.record
    if record is None:
        if not args.json:
            raise LogDamagedError(entry.damage)
        print(_json(describe(entry)))
        return 1
    reply, problem = _reply(history, record)
    continues = history.continues(entry)
    if args.json:
        shown = describe(entry) | {"chain_ok": continues}
        if reply is not None:
            shown["reply"] = {
                "value": plain(reply.value),
                "error": reply.error,
                "hash": f"{reply.hash:016x}",
                "agrees": reply.agrees,
            }
        if problem is not None:
            shown["reply_unknown"] = str(problem)
        print(_json(shown))
    else:
        chain = {True: "ok", False: "BROKEN: it does not continue the record before it", None: "cannot be checked"}
        print(f"LSN {record.lsn}  {record.kind.name}  {summary(record)}")
        for name, lines in [
            *_fields(record, _names_of_fields(history) if isinstance(record.body, FlowBody) else ()),
            *_reply_fields(reply, problem),
            ("chain", [f"{record.chain:016x}  {chain[continues]}"]),
            ("size", [f"{len(entry.data)} bytes"]),
        ]:
            _print_field(name, lines)
    if problem is not None:
        return problem.exit_code
    return 1 if continues is False or (reply is not None and not reply.agrees) else 0


def _reply(history: History, record: Record) -> tuple[Reply | None, ActornetError | None]:
    """The reply to an ask, or why it cannot be told: all else about the record can be shown nevertheless."""
    if not isinstance(record.body, AskBody):
        return None, None
    try:
        return history.reply(record), None
    except ActornetError as problem:
        return None, problem


def _names_of_fields(history: History) -> tuple[str, ...]:
    """Of the log's flows; none where their code is not at hand."""
    try:
        return load_nf(history.log.nf).replicated_fields()
    except ActornetError:
        return ()


def _fields(record: Record, names: tuple[str, ...]) -> list[tuple[str, list[str]]]:
    core = str(record.core) if record.core != OPERATOR else "none: an operator asked"
    fields = [("time", [instant(record.time_ns)]), ("epoch", [str(record.epoch)]), ("core", [core])]
    body = record.body
    if isinstance(body, AskBody | FlowBody | CloseBody) and body.flow is not None:
        fields.append(("flow", [f"{body.flow}, arriving on port {body.port}, incarnation {body.incarnation}"]))
    if isinstance(body, AskBody):
        args = unpack(body.args)
        fields += [("ask", [str(body.number)]), ("owner", [body.owner]), ("message", [body.message])]
        fields.append(("arguments", tree(args) if args else ["none"]))
        if body.packet and is_packet(body.packet):
            fields.append(("packet", [f"the flow's first, {len(body.packet)} bytes"]))
    elif isinstance(body, FlowBody):
        fields += [("covers", [f"asks up to {body.asks}"]), ("state", tree(flow_state(body.state, names)))]
    elif isinstance(body, EpochBody | OwnerBody | ControlBody):
        for name in body.__struct_fields__:
            value = getattr(body, name)
            fields.append((name, [named(value) if isinstance(value, dict) else str(value)]))
    return fields


def _reply_fields(reply: Reply | None, problem: ActornetError | None) -> list[tuple[str, list[str]]]:
    if problem is not None:
        return [("reply", [f"not known: {problem}"])]
    if reply is None:
        return []
    verdict = "as recorded" if reply.agrees else "DIVERGES from the record"
    value = [f"raised {reply.error}"] if reply.error else tree(reply.value)
    return [("reply", value), ("hash", [f"{reply.hash:016x}  {verdict}"])]


# ---------------------------------------------------------------------------------------------- state


def _state(history: History, args: argparse.Namespace) -> int:
    if args.flows and args.owner:
        raise UsageError("state: name an owner or say --flows, not both")
    replica = history.state(args.at)
    if args.flows:
        shown, lines = _flows(replica, _names_of_fields(history))
    elif args.owner:
        shown, lines = _owner(replica, args.owner)
    else:
        shown, lines = _owners(replica)
    print(*([_json({"lsn": replica.lsn, **shown})] if args.json else lines), sep="\n")
    return 0


def _flows(replica: Replica, names: tuple[str, ...]) -> tuple[dict[str, Any], list[str]]:
    flows = []
    lines = [f"{_amount(len(replica.flows), 'flow')} at LSN {replica.lsn}"]
    for body in map(FlowBody.decode, replica.flows.values()):
        flows.append(
            {"flow": str(body.flow), "port": body.port, "incarnation": body.incarnation, "asks": body.asks}
            | {"state": plain(unpack(body.state))}
        )
        lines += [
            f"{body.flow}, arriving on port {body.port}, incarnation {body.incarnation}, asks up to {body.asks}",
            *tree(flow_state(body.state, names), "  "),
        ]
    return {"flows": flows}, lines


def _owner(replica: Replica, name: str) -> tuple[dict[str, Any], list[str]]:
    owner = replica.owners.get(name)
    if owner is None:
        known = ", ".join(replica.owners) or "none"
        raise UsageError(f"there is no owner {name!r} at LSN {replica.lsn}; there are: {known}")
    path = path_of(type(owner))
    lines = [f"{name}  {path}  at LSN {replica.lsn}", *tree(owner.state, "  ")]
    return {"owner": name, "class": path, "state": plain(owner.state)}, lines


def _owners(replica: Replica) -> tuple[dict[str, Any], list[str]]:
    owners = {name: path_of(type(owner)) for name, owner in replica.owners.items()}
    width = max(map(len, owners), default=0)
    flows = _amount(len(replica.flows), "flow")
    lines = [f"{_amount(len(owners), 'owner')} and {flows} at LSN {replica.lsn}"]
    lines += [f"  {name:<{width}}  {path}" for name, path in owners.items()]
    return {"owners": owners, "flows": len(replica.flows)}, lines


# ---------------------------------------------------------------------------------------------- verify


def _verify(history: History, args: argparse.Namespace) -> int:
    result = verify(history, None if args.json or not sys.stderr.isatty() else _Progress())
    if args.json:
        print(_json(_verification(history, result)))
        return result.problem.exit_code if result.problem is not None else 0
    warn_of_misfit(result.misfit)
    if result.problem is not None:
        if result.records:
            print(f"{_amount(result.records, 'record')} up to LSN {result.lsn} are sound, then:", flush=True)
        raise result.problem
    print(f"log {history.log.directory} is sound: every record, reply and state agrees")
    begin = "the first record" if not result.base_lsn else f"the snapshot at LSN {result.base_lsn}"
    kinds = ", ".join(f"{count(number)} {kind}" for kind, number in result.kinds.items())
    for name, text in [
        ("records", f"{count(result.records)}, from {begin} to LSN {result.lsn}"),
        ("kinds", kinds or "none"),
        ("owners", ", ".join(f"{name} ({path})" for name, path in result.owners.items()) or "none"),
        ("flows", f"{count(result.flows)} saved at the end"),
        ("snapshots", f"{count(result.snapshots)} checked"),
        ("epoch", str(result.epoch)),
        ("chain", f"{result.chain:016x}"),
        ("rate", f"{count(round(result.records / result.elapsed_s))} records/s ({result.elapsed_s:.2f} s)"),
    ]:
        _print_field(name, [text])
    return 0


def _verification(history: History, result: Verification) -> dict[str, Any]:
    problem = result.problem
    return {
        "sound": problem is None,
        "log": str(history.log.directory),
        "name": history.log.name,
        "nf": history.log.nf,
        "base_lsn": result.base_lsn,
        "lsn": result.lsn,
        "records": result.records,
        "kinds": result.kinds,
        "owners": result.owners,
        "flows": result.flows,
        "snapshots": result.snapshots,
        "epoch": result.epoch,
        "chain": f"{result.chain:016x}",
        "elapsed_s": result.elapsed_s,
        "error": None if problem is None else type(problem).__name__,
        "problem": None if problem is None else str(problem),
        "misfit": result.misfit,
    }


class _Progress:
    """A line on the terminal that says how far the verification is."""

    def __init__(self) -> None:
        self._due = time.monotonic() + PROGRESS_S
        self._shown = False

    def __call__(self, lsn: int, last: int) -> None:
        if lsn == last and self._shown:
            sys.stderr.write("\r\x1b[K")
        elif lsn % 256 == 0 and time.monotonic() >= self._due:
            self._shown = True
            self._due = time.monotonic() + PROGRESS_S
            sys.stderr.write(f"\r\x1b[KLSN {count(lsn)} of {count(last)}")
            sys.stderr.flush()


# ---------------------------------------------------------------------------------------------- inside


def _print_field(name: str, lines: list[str]) -> None:
    for number, line in enumerate(lines):
        print(f"  {name if number == 0 else '':<11} {line}")


def _amount(number: int, noun: str) -> str:
    return f"{count(number)} {noun}{'' if number == 1 else 's'}"


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()
