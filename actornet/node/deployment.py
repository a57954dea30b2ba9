"""The deployment file: one TOML file for all nodes of a deployment, resolved here for the role that a node takes.

Everything is checked when it is read; a UsageError names the file and the key in one line. Paths in the file are
relative to it.
"""

from __future__ import annotations

import copy
import difflib
import ipaddress
import re
import stat
import tomllib
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

import msgspec

from actornet.errors import UsageError
from actornet.limits import (
    BACKUPS_MAX,
    CORES_MAX,
    FLOWS_MAX,
    FLOWS_MAX_DEFAULT,
    LEASE_MS_DEFAULT,
    LEASE_MS_MAX,
    LEASE_MS_MIN,
    LOG_KEEP_RECORDS_DEFAULT,
    PORTS_MAX,
    SILENCE_MS_DEFAULT,
    SILENCE_MS_MAX,
    SILENCE_MS_MIN,
)
from actornet.node import cpu_latency
from actornet.node.thespian_base import split_address
from actornet.node.witness import OPEN, EtcdAccess, witness_at
from actornet.ports.table import PortTable, problem_of

Role = Literal["primary", "backup"]
Poll = Literal["adaptive", "busy"]
"""What a core does when no packet waits: sleep in the kernel until one comes, or look again at once."""

ROLES: tuple[Role, Role] = ("primary", "backup")
KEY_BYTES_MIN = 32


class ReplicationTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The `[replication]` table: what the commit watermark waits for, with a backup and without; the witness (G7).

    A peer that is silent for `silence_ms` counts as dead. `witness` is "none", "file:DIRECTORY" or "etcd:HOST:PORT". A
    primary that has not renewed its lease with it for `lease_ms` emits nothing; after that time the backup may take over.
    `keep_records` stay in the log for replay.
    """

    durability: Literal["solo", "received", "durable", "applied"] = "applied"
    without_backup: Literal["wait", "solo", "stop"] = "solo"
    witness: str = "none"
    silence_ms: int = SILENCE_MS_DEFAULT
    lease_ms: int = LEASE_MS_DEFAULT
    keep_records: int = LOG_KEEP_RECORDS_DEFAULT


class RoleTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A `[primary]`, `[backup]` or `[backups.NAME]` table; at `link` the primary listens for backups, which connect there.

    `listen` is where this node listens instead once it is the primary, so that backups can join it.
    """

    log: str
    link: str | None = None
    listen: str | None = None
    control: str | None = None


class DeploymentFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole file."""

    nf: str
    key_file: str
    ports: dict[str, PortTable]
    name: str | None = None
    cores: int = 1
    cpus: list[int] | None = None
    poll: Poll = "adaptive"
    cpu_latency_us: int | None = None
    flows_max: int = FLOWS_MAX_DEFAULT
    core_memory_mb: int = 0
    settings: dict[str, Any] = {}
    replication: ReplicationTable = ReplicationTable()
    etcd: EtcdAccess = OPEN
    primary: RoleTable | None = None
    backup: RoleTable | None = None
    backups: dict[str, RoleTable] = {}

    def nodes(self) -> dict[str, RoleTable]:
        """The table of each node, in the order of the file's kinds."""
        own = {"primary": self.primary, "backup": self.backup}
        return {name: table for name, table in own.items() if table is not None} | self.backups


CONTROL_DEFAULT: dict[str, str] = {"primary": "127.0.0.1:7401", "backup": "127.0.0.1:7402"}


class Deployment(msgspec.Struct, frozen=True):
    """A deployment as one node of it needs it: paths absolute, defaults filled in, everything checked.

    `flows_max` is how many keys a core's flow table may have. The node warns of a core's process that takes more than
    `core_memory_mb`; 0: than its part of half of the host's memory. `cpu_latency_us` is what the kernel is asked to keep to
    on all CPUs while packets come (`actornet.node.cpu_latency`). `cpus` has one CPU per core, or is None for the
    supervisor's choice. `listen` is None, and `links` empty, only when nothing is replicated. `node` is the table that is
    this node's; at one of `links` it finds the primary as a backup; `peers` are where the others listen when they lead, if
    elsewhere.
    """

    name: str
    role: Role
    node: str
    nf: str
    cores: int
    cpus: list[int] | None
    poll: Poll
    cpu_latency_us: int | None
    flows_max: int
    core_memory_mb: int
    key_file: Path
    settings: dict[str, Any]
    ports: dict[str, PortTable]
    durability: Literal["solo", "received", "durable", "applied"]
    without_backup: Literal["wait", "solo", "stop"]
    log: Path
    links: list[str]
    listen: str | None
    peers: list[str]
    witness: str | None
    etcd: EtcdAccess
    silence_ms: int
    lease_ms: int
    keep_records: int
    control: str

    @property
    def wire(self) -> int:
        """A number that all nodes of the deployment have on one host, and no other deployment should."""
        return zlib.crc32(f"{self.key_file}/{self.name}".encode())


def load_deployment(
    file: Path | None, role: Role, overrides: Mapping[str, Any] | None = None, node: str | None = None
) -> Deployment:
    """Read `file`, replace what `overrides` names ("ports.lan.interface": "veth1"), and resolve it for `role`.

    `node` names the table of the node that takes this role, if it is not the role's own: `backup` for `primary` where the
    nodes have changed roles. Without a file everything comes from `overrides`. UsageError says what is wrong, in which
    file, at which key.
    """
    where = str(file) if file else "the flags"
    content = _read(file) if file else {}
    directory = file.resolve().parent if file else Path.cwd()
    for key, value in (overrides or {}).items():
        _put(content, key, value, where)
    _place_witness(content, directory)
    whole = _convert(content, where)
    nodes = whole.nodes()
    if node is None and role == "backup" and whole.backup is None and len(whole.backups) == 1:
        (node,) = whole.backups
    if node is None and role == "backup" and whole.backup is None and whole.backups:
        raise UsageError(f"{where}: say which backup this node is: --node {' or '.join(whole.backups)}")
    node = node or role
    table = nodes.get(node)
    if table is None:
        title = node if node in ROLES else f"backups.{node}"
        raise UsageError(f"{where}: there is no [{title}] table: add one with its log, link and control")
    problem = _problem(whole, node, table)
    if problem:
        raise UsageError(f"{where}: {problem}")
    listen = table.listen or table.link
    others = {name: each.listen or each.link for name, each in nodes.items() if name != node}
    peers = [address for address in dict.fromkeys(others.values()) if address is not None and address != listen]
    links = list(others.values())
    if node != "primary" and role == "backup" and table.link is not None:  # which is where it finds that one
        links = [table.link, *(address for name, address in others.items() if name != "primary")]
    if role == "primary" and node == "primary":
        links = [table.link]
    links = [address for address in dict.fromkeys(links) if address is not None]
    if role == "backup" and not links:
        raise UsageError(f"{where}: [{node}] cannot be a backup: the other node's table says no `listen` and no `link`")
    etcd = whole.etcd.within(directory)
    try:
        etcd.check()
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from None
    control = table.control or CONTROL_DEFAULT.get(node) or _no_control(where, node)
    try:
        split_address(control)
    except UsageError as error:
        raise UsageError(f"{where}: `{node}.control`: {error}") from None
    return Deployment(
        name=whole.name or (file.stem if file else "node"),
        role=role,
        node=node,
        nf=whole.nf,
        cores=whole.cores,
        cpus=whole.cpus,
        poll=whole.poll,
        cpu_latency_us=whole.cpu_latency_us,
        flows_max=whole.flows_max,
        core_memory_mb=whole.core_memory_mb,
        key_file=directory / whole.key_file,
        settings=_flat(whole.settings),
        ports={name: port.within(directory) for name, port in whole.ports.items()},
        durability=whole.replication.durability,
        without_backup=whole.replication.without_backup,
        log=directory / table.log,
        links=[address for address in links if address is not None],
        listen=listen,
        peers=peers,
        witness=whole.replication.witness if whole.replication.witness != "none" else None,
        etcd=etcd,
        silence_ms=whole.replication.silence_ms,
        lease_ms=whole.replication.lease_ms,
        keep_records=whole.replication.keep_records,
        control=control,
    )


def nodes_of(file: Path) -> list[str]:
    """The nodes that the file has tables for."""
    content = _read(file)
    backups = content.get("backups", {})
    return [role for role in ROLES if role in content] + list(backups if isinstance(backups, dict) else {})


def _no_control(where: str, node: str) -> str:
    raise UsageError(
        f'{where}: `backups.{node}.control` is missing: write where it takes questions, say "127.0.0.1:7403"'
    )


def read_key(key_file: Path) -> bytes:
    """The deployment's key: the file without white space around it. UsageError unless it is secret and long enough."""
    advice = f"make one with `head -c 32 /dev/urandom | base64 > {key_file}; chmod 600 {key_file}`"
    try:
        mode = key_file.stat().st_mode
        key = key_file.read_bytes().strip()
    except FileNotFoundError:
        raise UsageError(f"key file {key_file} does not exist: {advice}") from None
    except OSError as error:
        raise UsageError(f"key file {key_file} cannot be read: {error.strerror}") from None
    if mode & (stat.S_IROTH | stat.S_IWOTH):
        raise UsageError(f"key file {key_file} is open to every user: chmod 600 {key_file}, and change the key")
    if len(key) < KEY_BYTES_MIN:
        raise UsageError(f"key file {key_file} has {len(key)} bytes, at least {KEY_BYTES_MIN} are needed: {advice}")
    return key


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text())
    except FileNotFoundError:
        raise UsageError(f"{file} does not exist: name a deployment file") from None
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{file} is not TOML: {error}") from None


def _put(content: dict[str, Any], key: str, value: Any, where: str) -> None:
    *tables, name = key.split(".")
    for table in tables:
        content = content.setdefault(table, {})
        if not isinstance(content, dict):
            raise UsageError(f"{where}: `{table}` is not a table, so `{key}` cannot be set in it")
    content[name] = copy.deepcopy(value)


def _place_witness(content: dict[str, Any], directory: Path) -> None:
    """A witness's directory is relative to the file, too."""
    table = content.get("replication")
    place = table.get("witness") if isinstance(table, dict) else None
    if isinstance(table, dict) and isinstance(place, str) and place.startswith("file:") and place != "file:":
        table["witness"] = f"file:{directory / place.removeprefix('file:')}"


def _convert(content: dict[str, Any], where: str) -> DeploymentFile:
    """The file, each of its tables checked by itself, so that what is wrong is named by its whole place."""
    structs: dict[str, type[msgspec.Struct]] = {
        "replication": ReplicationTable,
        "etcd": EtcdAccess,
        "primary": RoleTable,
        "backup": RoleTable,
        "backups": RoleTable,
        "ports": PortTable,
    }
    for name, struct in structs.items():
        found = content.get(name)
        if name in ("backups", "ports"):
            for inner, table in found.items() if isinstance(found, dict) else ():
                _check(table, struct, f"{name}.{inner}.", where)
        elif found is not None:
            _check(found, struct, f"{name}.", where)
    _check(content, DeploymentFile, "", where)
    return msgspec.convert(content, DeploymentFile)


def _check(table: Any, struct: type[msgspec.Struct], prefix: str, where: str) -> None:
    """Raise UsageError unless the table is one of `struct`."""
    known = struct.__struct_fields__
    for key in table if isinstance(table, dict) else ():
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            advice = f"did you mean `{prefix}{close[0]}`?" if close else f"known are {', '.join(known)}"
            raise UsageError(f"{where}: unknown key `{prefix}{key}`: {advice}")
    try:
        msgspec.convert(table, struct)
    except msgspec.ValidationError as error:
        message, _, path = str(error).partition(" - at `$")
        key = path.strip("`.").replace("[...]", "")
        if missing := re.search(r"missing required field `(\w+)`", message):
            name = f"{prefix}{key and key + '.'}{missing[1]}"
            raise UsageError(
                f"{where}: `{name}` is missing: write it in the deployment file, or give it by a flag"
            ) from None
        if message.startswith("Invalid enum value"):
            choices = ", ".join(get_args(get_type_hints(struct)[key]))
            raise UsageError(f"{where}: `{prefix}{key}` = {table[key]!r}: choose one of {choices}") from None
        raise UsageError(f"{where}: `{(prefix + key).rstrip('.')}`: {message}") from None


def _flat(settings: dict[str, Any]) -> dict[str, Any]:
    """A table `[settings.Member]` has the settings `Member.name` of a chain's member."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat |= {f"{name}.{inner}": each for inner, each in value.items()} if isinstance(value, dict) else {name: value}
    return flat


def _problem(whole: DeploymentFile, node: str, table: RoleTable) -> str | None:
    """What is wrong with values that each have the right type, or None."""
    if whole.name is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", whole.name):
        return f"`name` = {whole.name!r}: use letters, digits, dots, dashes and underscores, at most 64"
    if not all(re.fullmatch(r"\s*[^:]+:[A-Za-z_]\w*\s*", part) for part in whole.nf.split("+")):
        return f'`nf` = {whole.nf!r}: write "module:Class", say "actors.nat:SourceNAT"'
    if not 1 <= whole.cores <= CORES_MAX:
        return f"`cores` = {whole.cores}: choose 1 to {CORES_MAX}"
    if whole.core_memory_mb < 0:
        return f"`core_memory_mb` = {whole.core_memory_mb}: MiB that a core may take without a warning, or 0"
    if wrong := cpu_latency.problem(whole.cpu_latency_us):
        return wrong
    if not 1 <= whole.flows_max <= FLOWS_MAX:
        return f"`flows_max` = {whole.flows_max}: a core's flow table has 1 to {FLOWS_MAX} keys"
    if whole.cpus is not None and len(set(whole.cpus)) != whole.cores:
        return f"`cpus` = {whole.cpus}: name as many different CPUs as there are `cores` ({whole.cores})"
    if not 1 <= len(whole.ports) <= PORTS_MAX:
        return f"`ports` has {len(whole.ports)} tables: describe 1 to {PORTS_MAX}, say [ports.lan] and [ports.wan]"
    problem = problem_of(whole.ports)
    if problem:
        return f"`ports.{problem}"
    nodes = whole.nodes()
    for name in whole.backups:
        if name in ROLES or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}", name):
            return f"`backups.{name}`: name it otherwise, by letters, digits, dashes and underscores, at most 32"
    taken: dict[Path, str] = {}
    for name, each in nodes.items():
        if (other := taken.setdefault(Path(each.log), name)) != name:
            whose = f"the {other}'s" if other in ROLES else f"that of {other!r}"
            title = name if name in ROLES else f"backups.{name}"
            return f"`{title}.log` = {each.log!r}: it is {whose} too, each needs a directory of its own"
    if len(nodes) > BACKUPS_MAX + 1:
        return f"there are {len(nodes)} nodes: at most {BACKUPS_MAX + 1}"
    if len(nodes) > 2 and whole.replication.witness == "none":
        return (
            f'`replication.witness` = "none": of {len(nodes)} nodes two could take over at once; name a witness, '
            'say "file:/DIRECTORY" on one machine or "etcd:HOST:PORT"'
        )
    if whole.etcd != OPEN and not whole.replication.witness.startswith("etcd:"):
        return '`etcd`: that goes with `replication.witness` = "etcd:HOST:PORT"'
    problem = _replication_problem(whole.replication)
    if problem:
        return f"`replication.{problem}"
    node = node if node in ROLES else f"backups.{node}"
    found = table.link is not None or (len(nodes) > 2 and table.listen is not None)
    if not found and (node != "primary" or whole.replication.durability != "solo"):
        return f'`{node}.link` is missing: write where the primary listens for it, or choose durability = "solo"'
    for key, address in (("link", table.link), ("listen", table.listen)):
        if address is not None and not _is_endpoint(address):
            return f'`{node}.{key}` = {address!r}: write an IP address and a port, say "10.9.0.1:7400"'
    return None


def _replication_problem(table: ReplicationTable) -> str | None:
    if table.witness != "none":
        try:
            witness_at(table.witness, "deployment")
        except UsageError as error:
            return f"witness`: {error}"
    for key, value, least, most in (
        ("silence_ms", table.silence_ms, SILENCE_MS_MIN, SILENCE_MS_MAX),
        ("lease_ms", table.lease_ms, LEASE_MS_MIN, LEASE_MS_MAX),
    ):
        if not least <= value <= most:
            return f"{key}` = {value}: choose {least} to {most}"
    if table.keep_records < 0:
        return f"keep_records` = {table.keep_records}: choose 0 or more"
    return None


def _is_endpoint(text: str) -> bool:
    host, _, port = text.rpartition(":")
    try:
        ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
        return 0 < int(port) < 65536
    except ValueError:
        return False
