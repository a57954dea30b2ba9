"""A NAT for live tests whose owner system ends its node, as kill -9 would, at a point that a test names meanwhile.

The points are named as the simulator's are. Nothing of this is in the product: the module is loaded as a network function
into the owner system's process, and there puts itself around what it wants to interrupt.
"""

from __future__ import annotations

import asyncio
import functools
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import actors.nat
from actornet import Packet, Verdict
from actornet.log.store import Log
from actornet.node.owner_system import OwnerSystem
from actornet.replication import backup, feed
from actornet.replication.backup import Backup
from actornet.replication.feed import Feed
from actornet.replication.primary import Primary

FILE = os.environ.get("ACTORNET_TEST_POINT", "")
"""Where a test writes the name of the point; it is gone once the node has died there."""


HESITATES_S = 0.8
WAITS_S = 0.4


class SourceNAT(actors.nat.SourceNAT):
    """The same."""


class HesitatingNAT(actors.nat.SourceNAT):
    """What a flow was given is logged long before the flow is saved."""

    async def on_open(self, packet: Packet) -> Verdict | None:
        verdict = await super().on_open(packet)
        await asyncio.sleep(HESITATES_S)
        return verdict


class WaitingNAT(actors.nat.SourceNAT):
    """What it decides it decides late."""

    async def on_open(self, packet: Packet) -> Verdict | None:
        await asyncio.sleep(WAITS_S)
        return await super().on_open(packet)


def here(point: str) -> None:
    """Die here, if this is the point."""
    file = Path(FILE)
    try:
        if file.read_text() != point:
            return
    except FileNotFoundError:
        return
    file.unlink()
    time.sleep(0.002)  # the cores let out what they may
    supervisor, me = os.getppid(), os.getpid()
    siblings = " ".join(file.read_text() for file in Path(f"/proc/{supervisor}/task").glob("*/children")).split()
    for pid in (*(int(pid) for pid in siblings if int(pid) != me), supervisor, me):  # all at once, cores first
        os.kill(pid, signal.SIGKILL)


def around(
    owner: type[Any],
    name: str,
    *,
    before: str = "",
    after: str = "",
    when: Callable[[Any], bool] = lambda self: True,
) -> None:
    """Put points before and after a method, for an object of which `when` is true."""
    original = getattr(owner, name)

    @functools.wraps(original)
    def method(self: Any, *arguments: Any, **named: Any) -> Any:
        if before and when(self):
            here(before)
        result = original(self, *arguments, **named)
        if after and when(self):
            here(after)
        return result

    setattr(owner, name, method)


def leads(system: OwnerSystem) -> bool:
    return isinstance(system.machine, Primary)


if FILE:
    # A backup that is new gets a snapshot, and that in many chunks.
    for module in (feed, backup):
        module.SNAPSHOT_CHUNK_BYTES = 1024  # type: ignore[attr-defined]
    feed.TAIL_RECORDS_MAX = 10  # type: ignore[attr-defined]

    around(Log, "append", before="before append", after="after append")
    around(
        OwnerSystem,
        "_publish",
        before="before the watermark",
        when=lambda self: leads(self) and self.machine.watermark > self.page.watermark,
    )
    around(OwnerSystem, "_publish", after="sent", when=lambda self: leads(self) and self._served)
    around(Primary, "stop", before="clean stop")
    around(Log, "lead", before="before epoch", after="epoch in metadata")
    around(OwnerSystem, "_begin_epoch", after="epoch logged")
    around(OwnerSystem, "_promote", after="promoted")
    around(Feed, "_feed_chunks", before="sending chunks", when=lambda self: self.ack.chunks == 3)
    around(Backup, "_chunk", before="taking chunks", when=lambda self: len(self._chunks) == 3)
    around(Log, "snapshot_install", before="before install", after="after install")
    around(Log, "truncate", before="before truncate", after="after truncate")
