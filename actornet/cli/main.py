"""The `actornet` command: finds the subcommand's module, runs it, and turns errors into one line and an exit code."""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from actornet import __version__
from actornet.errors import ActornetError

COMMANDS = {
    "run": ("actornet.cli.run", "run a network function over capture files, in this process"),
    "launch": ("actornet.cli.node", "start a node on network interfaces, as primary or backup"),
    "status": ("actornet.cli.node", "show a node's role, replication and counters"),
    "promote": ("actornet.cli.node", "make a backup the primary"),
    "ask": ("actornet.cli.ask", "send a message to an owner of a running node"),
    "stop": ("actornet.cli.node", "stop a node cleanly"),
    "rss": ("actornet.cli.rss", "the RSS keys that keep what a function's flows share on one core"),
    "replay": ("actornet.cli.replay", "inspect, verify and re-execute a log"),
    "demo": ("actornet.cli.demo", "show a NAT over a real capture and, as root, a takeover"),
}
"""Subcommand -> module that serves it, and what it does. The module defines `add_parser(subparsers)`, which adds all
its subcommands, and `run(args) -> exit code or None`; only the one that is asked for is imported."""

INTERRUPTED = 130
BROKEN_PIPE = 141
"""128 + SIGINT and SIGPIPE, as shells report programs that these signals end."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # `mynf.py:MyNF` and `mymodule:MyNF` are looked for where the user is
    try:
        code = _dispatch(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
        return code
    except ActornetError as error:
        print(f"actornet: {' '.join(str(error).split())}", file=sys.stderr)
        return error.exit_code
    except MemoryError as error:
        print(f"actornet: out of memory: {error or 'use a smaller --flows-max'}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        _drop_output()  # the reader (head, less) has gone
        return BROKEN_PIPE
    except OSError as error:
        if error.errno != errno.ENOSPC or error.filename is not None:
            raise
        _drop_output()
        print("actornet: the output cannot be written: no space left on its device", file=sys.stderr)
        return 1


def _drop_output() -> None:
    """What is still buffered must not fail once more at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _dispatch(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="actornet", description="Asynchronous network functions in Python: run, launch, inspect."
    )
    parser.add_argument("--version", action="version", version=f"actornet {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    wanted = COMMANDS.get(next((word for word in argv if not word.startswith("-")), ""))
    module = import_module(wanted[0]) if wanted else None
    for name, (path, purpose) in COMMANDS.items():
        if module is None or path != module.__name__:
            subparsers.add_parser(name, help=purpose)
        elif name not in subparsers.choices:
            module.add_parser(subparsers)
    args = parser.parse_args(argv)
    if args.command is None or module is None:
        parser.print_help(sys.stderr)
        return 2
    return int(module.run(args) or 0)


if __name__ == "__main__":
    sys.exit(main())
