"""`actornet rss`: the keys that make network cards spread packets as a network function's cores do."""

from __future__ import annotations

import argparse
import json
import random
from collections import Counter
from ipaddress import IPv4Address, IPv6Address
from typing import Any

from actornet.engine.five_tuple import FiveTuple
from actornet.engine.rss import FIELDS, RssConflict, RssKeys, declared, solve
from actornet.engine.wire import RSS_KEY_SYMMETRIC, rss_core
from actornet.errors import UsageError
from actornet.limits import CORES_MAX
from actornet.load import load_nf

FLOWS = 10_000
"""Made-up flows whose spread over the cores is told: clients of one network, services of a few."""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the `rss` subcommand."""
    parser = subparsers.add_parser(
        "rss",
        help="the RSS keys that keep what a function's flows share on one core",
        description="Solves for the RSS keys under which network cards send packets to the core where the network function "
        "has their flow, and flows that agree in what it declares by `shards_by` to one core; or says why there are none.",
    )
    parser.add_argument("nf", metavar="NF", help="module:Class or path/file.py:Class")
    parser.add_argument("--cores", type=int, default=2, metavar="N", help="cores to spread over (%(default)s)")
    parser.add_argument(
        "--ip", choices=("4", "6", "both"), default="both", help="versions that one key must serve (%(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Print the keys; exit code 1 when one card's key cannot serve what was asked for."""
    if not 1 <= args.cores <= CORES_MAX:
        raise UsageError(f"--cores {args.cores}: give 1 to {CORES_MAX}")
    nf = load_nf(args.nf)
    groups = declared(nf.shards_by) or {"each connection": FIELDS}
    versions = {"4": (4,), "6": (6,), "both": (4, 6)}[args.ip]
    solutions, conflict = [], ""
    try:
        solutions = [_symmetric(versions) if not nf.shards_by else solve(nf.shards_by, versions)]
    except RssConflict as error:
        conflict = str(error)
        for version in versions if len(versions) > 1 else ():
            try:
                solutions.append(solve(nf.shards_by, (version,)))
            except RssConflict:
                break
    found = [_facts(keys, args.cores) for keys in solutions]
    if args.json:
        print(json.dumps({"shards_by": groups, "conflict": conflict or None, "keys": found}, indent=2))
    else:
        _tell(groups, conflict, found, args.cores)
    return 1 if conflict else 0


def _symmetric(versions: tuple[int, ...]) -> RssKeys:
    return RssKeys(FIELDS, versions, RSS_KEY_SYMMETRIC, RSS_KEY_SYMMETRIC, 16, 7)


def _facts(keys: RssKeys, cores: int) -> dict[str, Any]:
    return {
        "ip": list(keys.versions),
        "hashed": list(keys.fields),
        "first_port": keys.first.hex(":"),
        "other_ports": keys.other.hex(":"),
        "spread": [count / FLOWS for _, count in sorted(spread(keys, cores).items())],
    }


def spread(keys: RssKeys, cores: int) -> Counter[int]:
    """How many of FLOWS made-up flows each core gets; AssertionError if an answer goes elsewhere than its flow."""
    chance = random.Random(0)
    counts = Counter(dict.fromkeys(range(cores), 0))
    for number in range(FLOWS):
        version = keys.versions[number % len(keys.versions)]
        network, servers = (0x0A000000, 0xC6336400) if version == 4 else (0xFD << 120, 0x20010DB8 << 96)
        address = IPv4Address if version == 4 else IPv6Address
        source, destination = address(network + chance.randrange(1 << 12)), address(servers + chance.randrange(1 << 10))
        service = chance.choice((53, 80, 443, 8080, chance.randrange(1024, 65536)))
        flow = FiveTuple(6, str(source), chance.randrange(32768, 61000), str(destination), service)
        core = rss_core(flow, cores, keys.first)
        assert core == rss_core(flow.reversed(), cores, keys.other), "an answer belongs to its flow's core"
        counts[core] += 1
    return counts


def _tell(groups: dict[str, tuple[str, ...]], conflict: str, found: list[dict[str, Any]], cores: int) -> None:
    for name, fields in groups.items():
        print(f"together on one core: {name}, by {', '.join(fields)}")
    if conflict:
        print(f"no key: {conflict}" if not found else f"no key serves both versions: {conflict}")
    for facts in found:
        same = facts["first_port"] == facts["other_ports"]
        print(f"\nIPv{' and IPv'.join(map(str, facts['ip']))}: the hash depends on {', '.join(facts['hashed'])}")
        print(f"  {'every port' if same else 'first port'}   {facts['first_port']}")
        if not same:
            print(f"  other ports  {facts['other_ports']}")
        print(
            f"  spread       {', '.join(f'{share:.1%}' for share in facts['spread'])} of {FLOWS} made-up flows on {cores} cores"
        )
    if found:
        versions = sorted({version for facts in found for version in facts["ip"]})
        print("\nfor each interface, with the key of its port:")
        print(f"  ethtool -X INTERFACE hkey KEY weight{' 1' * cores}")
        for version in versions:
            print(
                f"  ethtool -N INTERFACE rx-flow-hash tcp{version} sdfn; ethtool -N INTERFACE rx-flow-hash udp{version} sdfn"
            )
