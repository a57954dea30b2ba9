"""A primary and two backups on live interfaces, in the namespaces of `Lab.nat_trio`, with a witness."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from actornet.limits import LEASE_MS_DEFAULT
from actornet.testing.netns import Lab
from actornet.testing.pair import Name, Pair

_TABLES: Mapping[Name, str] = {"a": "primary", "b": "b", "c": "c"}

_NODES = """\
[primary]
log = "log-a"
link = "10.9.0.1:7400"
control = "127.0.0.1:7401"

[backups.b]
log = "log-b"
listen = "10.9.0.2:7400"
control = "127.0.0.1:7402"

[backups.c]
log = "log-c"
listen = "10.9.0.3:7400"
control = "127.0.0.1:7403"
"""


class Trio(Pair):
    """Nodes `a` (primary), `b` and `c` (backups), of one deployment file; else as a Pair."""

    def __init__(self, directory: Path, *, witness: str, lease_ms: int = LEASE_MS_DEFAULT, **options: Any) -> None:
        super().__init__(directory, witness=witness, lease_ms=lease_ms, **options)
        head, _, _ = self.file("a").read_text().partition("[primary]")
        for primary in _TABLES:
            self.file(primary).write_text(head + _NODES)

    @staticmethod
    def _lab() -> Lab:
        return Lab.nat_trio()

    def start(self, *flags: str) -> None:
        """Launch all three and wait until both backups are in sync."""
        self.launch("a", "primary", *flags)
        backups: tuple[Name, ...] = ("b", "c")
        for node in backups:
            self.launch(node, "backup", *flags)
        for node in backups:
            self.wait_in_sync(node)

    def _table(self, node: Name) -> list[str]:
        return ["--node", _TABLES[node]]

    def _role(self, node: Name) -> str:
        return _TABLES[node]
