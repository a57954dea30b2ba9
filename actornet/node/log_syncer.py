"""Brings the log to the disk, off the owner system's loop."""

from __future__ import annotations

import threading

from actornet.errors import LogError
from actornet.limits import LOG_SYNC_S
from actornet.log.store import Log
from actornet.node.thread import leave_sockets


class LogSyncer:
    """A thread that syncs the log now and then, and `soon` when asked; `error` is why it has ended.

    What was in the log when `soon` returned a number is on the disk once `synced` has reached that.
    """

    def __init__(self, log: Log) -> None:
        self._log = log
        self._due = threading.Event()
        self._ended = False
        self._asked = 0
        self.synced = 0
        self.error: LogError | None = None
        self._thread = threading.Thread(target=self._run, name="log-sync", daemon=True)
        self._thread.start()

    def soon(self) -> int:
        self._asked += 1
        self._due.set()
        return self._asked

    def close(self) -> None:
        self._ended = True
        self._due.set()
        self._thread.join()

    def _run(self) -> None:
        leave_sockets()  # the kernel does not end a thread that waits for the disk
        while not self._ended and self.error is None:
            self._due.wait(LOG_SYNC_S)
            self._due.clear()
            asked = self._asked
            try:
                self._log.sync()
                self.synced = asked
            except LogError as error:
                self.error = error  # never tried again: after a failed sync the kernel may have dropped the pages
