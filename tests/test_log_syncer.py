"""What brings the log to the disk: in its own time, or soon when asked; and never again after that has failed once."""

from __future__ import annotations

import threading
from typing import Any, cast

from actornet.errors import LogError
from actornet.log.store import Log
from actornet.node.log_syncer import LogSyncer
from tests.processes import wait_until


class Disk:
    """Syncs, unless it `fails`."""

    def __init__(self) -> None:
        self.fails = False
        self.syncs = 0
        self.threads: set[int] = set()

    def sync(self) -> None:
        self.syncs += 1
        self.threads.add(threading.get_ident())
        if self.fails:
            raise LogError("log: Input/output error")


def test_what_was_asked_for_is_synced_by_another_thread() -> None:
    disk = Disk()
    syncer = LogSyncer(cast(Log, disk))
    number = syncer.soon()
    wait_until(lambda: syncer.synced >= number)
    syncer.close()
    assert disk.syncs >= 1 and syncer.error is None and threading.get_ident() not in disk.threads


def test_a_failed_sync_is_not_tried_again() -> None:
    """G8: the kernel may have dropped the pages, and a second sync would succeed without them."""
    disk: Any = Disk()
    disk.fails = True
    syncer = LogSyncer(cast(Log, disk))
    number = syncer.soon()
    wait_until(lambda: syncer.error is not None)
    disk.fails = False
    for _ in range(3):
        syncer.soon()
    syncer.close()
    assert disk.syncs == 1 and syncer.synced < number and "Input/output" in str(syncer.error)
