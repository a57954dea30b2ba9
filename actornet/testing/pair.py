"""A primary and a backup on live interfaces, in the namespaces of `Lab.nat_pair`, for tests, benchmarks and the demo."""

from __future__ import annotations

import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import msgspec

from actornet.errors import ActornetError
from actornet.limits import LEASE_MS_DEFAULT
from actornet.node.control import NodeClient
from actornet.node.deployment import Deployment, load_deployment, read_key
from actornet.node.process import has_ended
from actornet.testing.fault_proxy import FaultProxy
from actornet.testing.netns import Lab

Name = Literal["a", "b", "c"]
Role = Literal["primary", "backup"]
PATIENT_MS = 250
"""Machines that tests run on take CPUs away for 100 ms at a time: who does not test that silence counts as death waits so long
for it."""
STORY_LINES = 40
"""So many of the last lines that its nodes have logged are told with an error."""
READY_S = 20.0
COMMAND_S = 15.0

_DEPLOYMENT = """\
name = "pair"
nf = "{nf}"
cores = {cores}
poll = "{poll}"
key_file = "pair.key"

[settings]
{settings}

[ports.lan]
interface = "lan0"
driver = "{driver}"
address = "10.0.0.1/24"
mac = "02:00:5e:10:00:01"

[ports.wan]
interface = "wan0"
driver = "{driver}"
address = "203.0.113.1/24"
gateway = "203.0.113.254"
mac = "02:00:5e:10:00:02"

[replication]
durability = "{durability}"
without_backup = "{without_backup}"
witness = "{witness}"
silence_ms = {silence_ms}
lease_ms = {lease_ms}

[primary]
log = "log-{primary}"
link = "10.9.0.{primary_host}:7400"
control = "127.0.0.1:740{primary_host}"

[backup]
log = "log-{backup}"
link = "{link}"
listen = "10.9.0.{backup_host}:7400"
control = "127.0.0.1:740{backup_host}"
"""


class _Event(msgspec.Struct):
    """What every event of a node says."""

    timestamp: str
    worker: str
    event: str


_TOLD = {*_Event.__struct_fields__, "node", "role", "level"}


class Pair:
    """Nodes `a` (primary) and `b` (backup) between `client` and `server` of a lab.

    Files (deployment, key, logs, output of each node) are in `directory`. `links` says where a node connects to as backup,
    if not to the primary itself: see `fault_proxy`.
    """

    def __init__(
        self,
        directory: Path,
        nf: str = "actors.nat:SourceNAT",
        settings: str = 'address = "203.0.113.1"',
        *,
        cores: int = 1,
        durability: str = "applied",
        without_backup: str = "solo",
        witness: str = "none",
        silence_ms: int = PATIENT_MS,
        lease_ms: int = LEASE_MS_DEFAULT,
        driver: str = "af_packet",
        poll: str = "adaptive",
        links: Mapping[Name, str] | None = None,
    ) -> None:
        self.directory = directory
        self.cores = cores
        self.lab = self._lab()
        self.nodes: dict[Name, subprocess.Popen[Any]] = {}
        self.primary: Name = "a"
        self._begun: dict[Name, int] = {}
        directory.mkdir(parents=True, exist_ok=True)
        key = directory / "pair.key"
        key.touch(0o600)
        key.write_text(secrets.token_hex(32))
        hosts: dict[Name, int] = {"a": 1, "b": 2}
        orders: tuple[tuple[Name, Name], ...] = (("a", "b"), ("b", "a"))
        for primary, backup in orders:
            text = _DEPLOYMENT.format(
                nf=nf,
                settings=settings,
                cores=cores,
                durability=durability,
                without_backup=without_backup,
                witness=witness,
                silence_ms=silence_ms,
                lease_ms=lease_ms,
                driver=driver,
                poll=poll,
                primary=primary,
                backup=backup,
                link=(links or {}).get(backup, f"10.9.0.{hosts[primary]}:7400"),
                primary_host=hosts[primary],
                backup_host=hosts[backup],
            )
            self.file(primary).write_text(text)

    @staticmethod
    def _lab() -> Lab:
        return Lab.nat_pair()

    def fault_proxy(self, backup: Name, seed: int) -> FaultProxy:
        """A proxy for the link of a backup whose `links` entry is 10.9.0.N:7399, N being 1 for `a` and 2 for `b`."""
        here, there = ("10.9.0.2", "10.9.0.1") if backup == "b" else ("10.9.0.1", "10.9.0.2")
        proxy = FaultProxy(self.lab.call(backup, socket.create_server, (here, 7399)), (there, 7400), seed)
        return self.lab.call(backup, proxy.start)

    def file(self, primary: str) -> Path:
        """The deployment in which node `primary` is the primary."""
        return self.directory / f"{primary}-primary.toml"

    def __enter__(self) -> Self:
        self.lab.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            error.add_note("\n".join(["What the nodes said last:", *self.story()[-STORY_LINES:]]))
        self.lab.close()

    def start(self, *flags: str) -> None:
        """Launch both and wait until the backup is in sync."""
        self.launch("a", "primary", *flags)
        self.launch("b", "backup", *flags)
        self.wait_in_sync("b")

    def launch(
        self, node: Name, role: Role, *flags: str, environment: Mapping[str, str] | None = None
    ) -> subprocess.Popen[Any]:
        """Launch a node in its role and wait until it says that it is ready."""
        process = self.begin(node, role, *flags, environment=environment)
        self.wait_for(node, rf"^pair {role} ready")
        return process

    def begin(
        self, node: Name, role: Role, *flags: str, environment: Mapping[str, str] | None = None
    ) -> subprocess.Popen[Any]:
        """Launch a node in its role; `flags` as for `actornet launch`, `environment` besides this process's."""
        if role == "primary":
            self.primary = node
        argv = [*_ACTORNET, "launch", role, str(self.file(self.primary)), *self._table(node), *self._cpus(node), *flags]
        with self.output(node).open("ab") as file:
            self._begun[node] = file.tell()
            self.nodes[node] = self.lab.popen(
                node, argv, stdout=file, stderr=file, env={**os.environ, **(environment or {})}
            )
        return self.nodes[node]

    def wait_in_sync(self, backup: Name) -> None:
        """Wait until the backup may take over."""
        self.wait_for(backup, r'"event":"in sync"')

    def wait_takeover(self, node: Name) -> dict[str, Any]:
        """Wait until the node has taken over; returns what it logged of that."""
        line = self.wait_for(node, r'.*"event":"took over".*')
        self.primary = node
        taken: dict[str, Any] = json.loads(line)
        return taken

    def wait_for(self, node: Name, pattern: str, timeout_s: float = READY_S) -> str:
        """Wait for a line in what the node printed since it was launched; returns what matched."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            ended = self.nodes[node].poll() is not None
            found = re.search(pattern, self.printed(node), re.MULTILINE)
            if found:
                return found[0]
            if ended:
                break
            time.sleep(0.005)
        raise ActornetError(f"node {node} did not get to {pattern!r}:\n{self.printed(node)[-2000:]}")

    def output(self, node: Name) -> Path:
        """What the node has printed and logged, over all its launches."""
        return self.directory / f"{node}.log"

    def printed(self, node: Name) -> str:
        """What the node has printed and logged since it was launched last."""
        return self.output(node).read_bytes()[self._begun[node] :].decode()

    def story(self) -> list[str]:
        """What all nodes have printed and logged, in order of time: "a 07:50:01.521536 owner-system took over epoch=8"."""
        told: list[tuple[str, str]] = []
        for node in self.nodes:
            at = ""
            for line in self.output(node).read_text(errors="replace").splitlines():
                with suppress(msgspec.DecodeError):  # it is not an event
                    event = msgspec.json.decode(line, type=_Event)
                    fields: dict[str, Any] = json.loads(line)
                    at = event.timestamp.partition("T")[2].rstrip("Z")
                    said = [f"{key}={value}" for key, value in fields.items() if key not in _TOLD]
                    line = " ".join([event.worker, event.event, *said])
                told.append((at, f"{node} {at} {line}"))
        return [line for _, line in sorted(told, key=lambda each: each[0])]

    def log(self, node: Name) -> Path:
        """The node's log directory."""
        return self.directory / f"log-{node}"

    def command(self, command: str, node: Name, *flags: str) -> str:
        """Ask a node by `actornet status`, `promote` or `stop`; returns what that printed."""
        argv = [*_ACTORNET, command, str(self.file(self.primary)), "--role", self._role(node), *flags]
        return self.lab.run(node, argv, timeout_s=COMMAND_S).stdout

    def status(self, node: Name) -> dict[str, Any]:
        """`actornet status` of a node."""
        status: dict[str, Any] = json.loads(self.command("status", node, "--json"))[0]
        return status

    def worker(self, node: Name, name: str) -> dict[str, Any]:
        """One worker's entry in the status, with its own `status` inside; asked anew if that did not come in time."""
        role = self._role(node)
        deployment = load_deployment(self.file(self.primary), "primary" if role == "primary" else "backup", node=role)
        deadline = time.monotonic() + COMMAND_S
        while True:
            found = ask_worker(self.lab, node, deployment, name)
            if found["status"] is not None or time.monotonic() > deadline:
                return found

    def processes(self, node: Name) -> list[int]:
        """All processes of a node: launcher, supervisor, workers."""
        found = [self.nodes[node].pid]
        for pid in found:
            for task in Path(f"/proc/{pid}/task").glob("*/children"):
                with suppress(OSError):  # it ended meanwhile
                    found += map(int, task.read_text().split())
        return found

    def process(self, node: Name, name: str) -> int:
        """The process of a node that goes by this name: "node" (the supervisor), "owner-system", "core-0", "monitor"."""
        for pid in self.processes(node):
            with suppress(OSError):
                if Path(f"/proc/{pid}/comm").read_text().strip() == name:
                    return pid
        raise ActornetError(f"node {node} has no process {name!r}")

    def kill(self, node: Name) -> int:
        """kill -9 of every process of a node, to the end of the last; returns the monotonic time (ns) just before."""
        victims = self.processes(node)
        # All at once: otherwise those that die first take the CPUs from who is about to kill the others. And ahead of all to
        # the end: else they take this thread's CPU while it holds the interpreter, for which this process' traffic then waits.
        with suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_RR | os.SCHED_RESET_ON_FORK, os.sched_param(3))
        began_ns = time.monotonic_ns()
        for pid in victims:
            with suppress(ProcessLookupError):  # with its parent
                os.kill(pid, signal.SIGKILL)
        self.nodes[node].wait()
        while not all(map(has_ended, victims)):
            time.sleep(0.001)
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
        return began_ns

    def signal(self, node: Name, number: int) -> None:
        """Send a signal to every process of a node, say SIGSTOP or SIGCONT."""
        for pid in self.processes(node):
            os.kill(pid, number)

    def stop(self, node: Name) -> None:
        """Stop a node cleanly, as an operator would."""
        self.command("stop", node)
        self.nodes[node].wait(COMMAND_S)

    def _table(self, node: Name) -> list[str]:
        """Flags that say which of the file's nodes this is."""
        return []

    def _role(self, node: Name) -> str:
        """What the file calls it."""
        return "primary" if node == self.primary else "backup"

    def _cpus(self, node: Name) -> list[str]:
        """Each node its own CPUs for its cores, as far as there are so many: else both would take the first ones."""
        cpus = sorted(os.sched_getaffinity(0), reverse=node == "b")[: self.cores]
        return ["--cpus", ",".join(map(str, sorted(cpus)))] if len(cpus) == self.cores else []


def ask_worker(lab: Lab, space: str, deployment: Deployment, name: str) -> dict[str, Any]:
    """One worker's entry in the status of the deployment's node that runs in this namespace."""

    def ask() -> dict[str, Any]:
        with NodeClient(deployment.control, read_key(deployment.key_file)) as client:
            found: dict[str, Any] = next(one for one in client.status()["workers"] if one["name"] == name)
            return found

    return lab.call(space, ask)


_ACTORNET = [sys.executable, "-m", "actornet.cli.main"]
