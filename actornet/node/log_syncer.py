"""Brings the log to the disk, off the owner system's loop."""

from __future__ import annotations

import threading

from actornet.errors import LogError
from actornet.limits import LOG_SYNC_S
from actornet.log.store import Log
from actornet.node.thread import leave_sockets


class LogSyncer:
    """A thread that syncs the log now and then, and `soon` when asked; `error` is why it has ended."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._due = threading.Event()
        self._ended = False
        self.error: LogError | None = None
        self._thread = threading.Thread(target=self._run, name="log-sync", daemon=True)
        self._thread.start()

    def soon(self) -> None:
        self._due.set()

    def close(self) -> None:
        self._ended = True
        self._due.set()
        self._thread.join()

    def _run(self) -> None:
        leave_sockets()  # the kernel does not end a thread that waits for the disk
        while not self._ended and self.error is None:
            self._due.wait(LOG_SYNC_S)
            self._due.clear()
            try:
                self._log.sync()
            except LogError as error:
                self.error = error  # never tried again: after a failed sync the kernel may have dropped the pages
