"""What brings the log to the disk: in its own time, or soon when asked; and never again after that has failed once."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import pytest

from actornet.errors import LogError
from actornet.log.store import Log
from actornet.node.log_syncer import LogSyncer
from tests.processes import wait_until


class Elsewhere(Log):
    """A log that has its data in this file when it comes to syncing."""

    elsewhere: Path | None = None

    @property
    def file(self) -> Path:
        return self.elsewhere or super().file


def test_what_was_asked_for_is_synced(tmp_path: Path) -> None:
    with Log(tmp_path) as log:
        syncer = LogSyncer(log)
        assert syncer.synced == 0
        for _ in range(3):
            number = syncer.soon()
            wait_until(lambda number=number: syncer.synced >= number)
        syncer.close()
        assert syncer.syncs >= 3 and syncer.error is None


def test_it_needs_no_interpreter(tmp_path: Path) -> None:
    """G6: were it taken from the CPU with the interpreter in its hands, no heartbeat would leave meanwhile."""
    with Log(tmp_path) as log:
        syncer = LogSyncer(log)
        number = syncer.soon()
        wait_until(lambda: syncer.synced >= number)
        number = syncer.soon()
        ctypes.PyDLL(None).usleep(500_000)  # with the interpreter in our hands
        assert syncer.synced >= number
        syncer.close()


def test_a_failed_sync_is_not_tried_again(tmp_path: Path) -> None:
    """G8: the kernel may have dropped the pages, and a second sync would succeed without them."""
    reading, writing = os.pipe()  # which cannot be synced
    with Elsewhere(tmp_path) as log:
        log.elsewhere = Path(f"/proc/self/fd/{writing}")
        syncer = LogSyncer(log)
        number = syncer.soon()
        wait_until(lambda: syncer.error is not None)
        for _ in range(3):
            syncer.soon()
        syncer.close()
        assert syncer.syncs == 1 and syncer.synced < number and "Invalid argument" in str(syncer.error)
    os.close(reading)
    os.close(writing)


def test_a_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with Elsewhere(tmp_path) as log:
        log.elsewhere = tmp_path / "gone"
        with pytest.raises(LogError, match="No such file"):
            LogSyncer(log)
