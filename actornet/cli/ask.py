"""`actornet ask`: an operator's message to an owner of a running node.

    actornet ask edge.toml                                      # which owners there are, and what they take
    actornet ask edge.toml balancer weigh 10.0.0.2:80 0

The message takes its turn among those of the flows and is logged like them, so it holds on the backups, after a takeover
and at replay. It is answered once it is as safe as the deployment asks (G3).
"""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Iterator
from pathlib import Path

import msgspec

from actornet.errors import NodeError, UsageError
from actornet.owner import Message, OwnerReference, owners_of


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "ask",
        help="send a message to an owner of a running node",
        description="Send a message to an owner of the node that leads, and print its reply as JSON. "
        "Without a message: list those that the owners take.",
    )
    add = parser.add_argument
    add("file", type=Path, metavar="FILE", help="deployment file of the node")
    add("owner", nargs="?", metavar="OWNER", help="name of the owner")
    add("message", nargs="?", metavar="MESSAGE", help="name of the message")
    add("args", nargs="*", metavar="ARGUMENT", help='as text, or as JSON where it is a list or table: \'["a", "b"]\'')


def run(args: argparse.Namespace) -> int:
    """Run the subcommand; returns the exit code."""
    from actornet.node.deployment import load_deployment, nodes_of, read_key
    from actornet.node.network_function import load_nf

    nodes = [
        load_deployment(args.file, "primary" if each == "primary" else "backup", node=each)
        for each in nodes_of(args.file)
    ]
    if not nodes:
        raise UsageError(f"{args.file} describes no node: add a [primary] table")
    owners = {reference.name: reference for reference in owners_of(load_nf(nodes[0].nf, nodes[0].settings)[0]).values()}
    if args.owner is not None and args.owner not in owners:
        known = ", ".join(owners) or "none"
        raise UsageError(f"{nodes[0].nf} has no owner {args.owner!r}; its owners are: {known}")
    if args.message is None:
        for name, reference in owners.items():
            if args.owner in (None, name):
                print("\n".join(_described(reference)))
        return 0
    message = _message(owners[args.owner], args.message)
    encoded = message.encode_texts(args.args)
    reply = _ask_leader([(node.control, read_key(node.key_file)) for node in nodes], args.owner, message.name, encoded)
    print(msgspec.json.encode(message.reply_value(reply)).decode())
    return 0


def _described(reference: OwnerReference) -> Iterator[str]:
    yield f"{reference.name}  ({reference.path})"
    for message in reference.owner.messages.values():
        yield f"  {message}"
        if document := inspect.getdoc(message.function):
            yield f"      {document.partition(chr(10))[0]}"


def _message(reference: OwnerReference, name: str) -> Message:
    messages = reference.owner.messages
    if name not in messages:
        raise UsageError(f"owner {reference.name!r} has no message {name!r}; its messages are: {', '.join(messages)}")
    return messages[name]


def _ask_leader(places: list[tuple[str, bytes]], owner: str, message: str, args: bytes) -> bytes:
    """Ask the node that leads; of two that cannot see each other, that of the higher epoch."""
    from actornet.node.control import NodeClient

    leaders, others = [], []
    for control, key in places:
        try:
            with NodeClient(control, key) as node:
                epoch = node.leads()
        except NodeError as error:
            others.append(str(error))
            continue
        if epoch is None:
            others.append(f"the node at {control} does not lead")
        else:
            leaders.append((epoch, control, key))
    if not leaders:
        raise NodeError(f"no node leads: {'; '.join(others)}")
    _, control, key = max(leaders)
    with NodeClient(control, key) as node:
        return node.ask(owner, message, args)
