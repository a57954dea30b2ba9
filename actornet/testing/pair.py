"""A primary and a backup on live interfaces, in the namespaces of `Lab.nat_pair`, for tests, benchmarks and the demo."""

from __future__ import annotations

import json
import os
import re
import secrets
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from actornet.errors import ActornetError
from actornet.testing.netns import Lab

Name = Literal["a", "b"]
READY_S = 20.0

_DEPLOYMENT = """\
name = "pair"
nf = "{nf}"
cores = {cores}
key_file = "pair.key"

[settings]
{settings}

[ports.lan]
interface = "lan0"
address = "10.0.0.1/24"
mac = "02:00:5e:10:00:01"

[ports.wan]
interface = "wan0"
address = "203.0.113.1/24"
gateway = "203.0.113.254"
mac = "02:00:5e:10:00:02"

[replication]
durability = "{durability}"
without_backup = "solo"

[primary]
log = "log-{primary}"
link = "10.9.0.{primary_host}:7400"
control = "127.0.0.1:740{primary_host}"

[backup]
log = "log-{backup}"
link = "10.9.0.{primary_host}:7400"
listen = "10.9.0.{backup_host}:7400"
control = "127.0.0.1:740{backup_host}"
"""


class Pair:
    """Nodes `a` (primary) and `b` (backup) between `client` and `server` of a lab.

    Files (deployment, key, logs, output of each node) are in `directory`.
    """

    def __init__(
        self,
        directory: Path,
        nf: str = "actors.nat:SourceNAT",
        settings: str = 'address = "203.0.113.1"',
        *,
        cores: int = 1,
        durability: str = "applied",
    ) -> None:
        self.directory = directory
        self.cores = cores
        self.lab = Lab.nat_pair()
        self.nodes: dict[Name, subprocess.Popen[Any]] = {}
        self.primary: Name = "a"
        directory.mkdir(parents=True, exist_ok=True)
        key = directory / "pair.key"
        key.touch(0o600)
        key.write_text(secrets.token_hex(32))
        hosts = {"a": 1, "b": 2}
        for primary, backup in (("a", "b"), ("b", "a")):
            text = _DEPLOYMENT.format(
                nf=nf,
                settings=settings,
                cores=cores,
                durability=durability,
                primary=primary,
                backup=backup,
                primary_host=hosts[primary],
                backup_host=hosts[backup],
            )
            self.file(primary).write_text(text)

    def file(self, primary: str) -> Path:
        """The deployment in which node `primary` is the primary."""
        return self.directory / f"{primary}-primary.toml"

    def __enter__(self) -> Self:
        self.lab.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.lab.close()

    def start(self) -> None:
        """Launch both and wait until the backup is in sync."""
        self.launch("a", "primary")
        self.launch("b", "backup")
        self.wait_in_sync("b")

    def launch(self, node: Name, role: Literal["primary", "backup"]) -> None:
        """Launch a node in its role and wait until it says that it is ready."""
        if role == "primary":
            self.primary = node
        output = self.output(node)
        argv = [*_ACTORNET, "launch", role, str(self.file(self.primary)), *self._cpus(node)]
        with output.open("ab") as file:
            begun = file.tell()
            self.nodes[node] = self.lab.popen(node, argv, stdout=file, stderr=file)
        self._wait_for(node, rb"^pair \w+ ready", begun)

    def _cpus(self, node: Name) -> list[str]:
        """Each node its own CPUs for its cores, as far as there are so many: else both would take the first ones."""
        cpus = sorted(os.sched_getaffinity(0), reverse=node == "b")[: self.cores]
        return ["--cpus", ",".join(map(str, sorted(cpus)))] if len(cpus) == self.cores else []

    def wait_in_sync(self, backup: Name) -> None:
        """Wait until the backup may take over."""
        self._wait_for(backup, rb'"event":"in sync"', 0)

    def output(self, node: Name) -> Path:
        """What the node has printed and logged."""
        return self.directory / f"{node}.log"

    def status(self, node: Name) -> dict[str, Any]:
        """`actornet status` of a node."""
        role = "primary" if node == self.primary else "backup"
        done = self.lab.run(
            node, [*_ACTORNET, "status", str(self.file(self.primary)), "--role", role, "--json"], check=False
        )
        if done.returncode:
            raise ActornetError(f"status of node {node}: {done.stderr.strip()}")
        status: dict[str, Any] = json.loads(done.stdout)[0]
        return status

    def worker(self, node: Name, name: str) -> dict[str, Any]:
        """One worker's entry in the status, with its own `status` inside."""
        return next(worker for worker in self.status(node)["workers"] if worker["name"] == name)

    def processes(self, node: Name) -> list[int]:
        """All processes of a node: launcher, supervisor, workers."""
        found = [self.nodes[node].pid]
        for pid in found:
            for task in Path(f"/proc/{pid}/task").glob("*/children"):
                found += map(int, task.read_text().split())
        return found

    def kill(self, node: Name) -> int:
        """kill -9 of every process of a node; returns the monotonic time (ns) just before."""
        victims = self.processes(node)
        # All at once: otherwise those that die first take the CPUs from who is about to kill the others.
        os.sched_setscheduler(0, os.SCHED_RR | os.SCHED_RESET_ON_FORK, os.sched_param(2))
        began_ns = time.monotonic_ns()
        for pid in victims:
            with suppress(ProcessLookupError):  # with its parent
                os.kill(pid, signal.SIGKILL)
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
        self.nodes[node].wait()
        return began_ns

    def stop(self, node: Name) -> None:
        """Stop a node cleanly, as an operator would."""
        role = "primary" if node == self.primary else "backup"
        self.lab.run(node, [*_ACTORNET, "stop", str(self.file(self.primary)), "--role", role])
        self.nodes[node].wait(10)

    def wait_takeover(self, node: Name) -> dict[str, Any]:
        """Wait until the node has taken over; returns what it logged of that."""
        line = self._wait_for(node, rb'.*"event":"took over".*', 0)
        taken: dict[str, Any] = json.loads(line)
        return taken

    def _wait_for(self, node: Name, pattern: bytes, offset: int) -> bytes:
        deadline = time.monotonic() + READY_S
        while time.monotonic() < deadline:
            found = re.search(pattern, self.output(node).read_bytes()[offset:], re.MULTILINE)
            if found:
                return found[0]
            if self.nodes[node].poll() is not None:
                break
            time.sleep(0.005)
        tail = self.output(node).read_text()[-2000:]
        raise ActornetError(f"node {node} did not get to {pattern.decode()!r}:\n{tail}")


_ACTORNET = [sys.executable, "-m", "actornet.cli.main"]
