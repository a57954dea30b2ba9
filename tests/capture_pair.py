"""A primary and a backup on captures, over loopback, without privileges."""

from __future__ import annotations

import os
import subprocess
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from processes import free_port

from actornet.ports.pcap import CaptureWriter, read_capture
from actornet.testing.pair import Pair
from tests.live_ports import until

Flows = dict[bytes, list[bytes]]

_DEPLOYMENT = """\
name = "pair"
nf = "actors.nat:SourceNAT"
cores = {cores}
key_file = "pair.key"
[settings]
address = "203.0.113.1"
[ports.lan]
{lan}
[ports.wan]
{wan}
[replication]
witness = "file:witness"
lease_ms = 3000
[primary]
log = "log-a"
link = "127.0.0.1:{link}"
control = "127.0.0.1:{control_a}"
[backup]
log = "log-b"
link = "127.0.0.1:{link}"
listen = "127.0.0.1:{listen}"
control = "127.0.0.1:{control_b}"
"""

NO_PRIVILEGES = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if os.geteuid() == 0 else []


class Here:
    """No namespaces: all nodes are on this host, and have no capability."""

    names: dict[str, str] = {}

    def __enter__(self) -> Here:
        return self

    def close(self) -> None:
        pass

    def call(self, _place: str, function: Callable[[], Any]) -> Any:
        return function()

    def popen(self, _place: str, argv: list[str], **options: Any) -> subprocess.Popen[Any]:
        return subprocess.Popen([*NO_PRIVILEGES, *argv], **options)

    def run(self, _place: str, argv: list[str], timeout_s: float = 10.0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run([*NO_PRIVILEGES, *argv], capture_output=True, text=True, timeout=timeout_s)
        assert done.returncode == 0, done.stderr
        return done


class CapturePair(Pair):
    """Nodes `a` and `b`; `lan` and `wan` are the ports' tables but for their names. Both end with it."""

    def __init__(self, directory: Path, lan: str, wan: str, cores: int = 1) -> None:
        super().__init__(directory, cores=cores)
        ports = {name: free_port() for name in ("link", "listen", "control_a", "control_b")}
        text = _DEPLOYMENT.format(lan=lan, wan=wan, cores=cores, **ports)
        self.file("a").write_text(text)

    @staticmethod
    def _lab() -> Any:
        return Here()

    def __exit__(self, *raised: Any) -> None:
        for node, process in self.nodes.items():
            if process.poll() is None:
                self.kill(node)

    def file(self, primary: str) -> Path:
        return self.directory / "pair.toml"

    def _role(self, node: str) -> str:
        return "primary" if node == "a" else "backup"

    def frames(self, *names: str) -> list[bytes]:
        """The IPv4 frames in these captures of the directory, as far as they are there."""
        found = []
        for path in (self.directory / name for name in names):
            if path.exists() and path.stat().st_size:
                with read_capture(path) as capture:
                    found += [frame for _, frame, _ in capture if frame[12:14] == b"\x08\0"]
        return found

    def wait_for_frames(self, count: int, *names: str) -> None:
        until(lambda: len(self.frames(*names)) >= count, seconds=30)


def write_capture(path: Path, frames: list[bytes], interval_ns: int) -> None:
    with CaptureWriter(path) as writer:
        for number, frame in enumerate(frames):
            writer.write(10**18 + number * interval_ns, frame)


def by_flow(frames: list[bytes]) -> Flows:
    """Frames of each flow in order; a key is addresses and ports as they left."""
    found = defaultdict(list)
    for each in frames:
        found[each[26:38]].append(each)
    return dict(found)


def surplus(frames: list[bytes], wanted: list[bytes]) -> list[bytes]:
    """What is there oftener than wanted."""
    return list((Counter(frames) - Counter(wanted)).elements())
