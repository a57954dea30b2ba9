"""When a capture began, as the nodes and cores that play it together on one machine know it: a lock on the capture.

Who plays it holds a shared lock (an open file description lock, fcntl(2)) on one byte of the file far beyond its end, whose
number says when that was. So it is known as long as one of them lives, ends with the last one, and leaves nothing behind.
"""

from __future__ import annotations

import fcntl
import os
import struct

from actornet.ports.exclusive import exclude

_FLOCK = struct.Struct("hhqqi4x")
_TIME_BITS = 41
_GROUP_BITS = 21


class SharedStart:
    """The start of the capture at `path`, shared with all that give the same `group`. In ms of CLOCK_MONOTONIC."""

    def __init__(self, path: str, group: int) -> None:
        self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._base = (group & ((1 << _GROUP_BITS) - 1)) << _TIME_BITS
        self._known: int | None = None

    def find(self) -> int | None:
        """When the others began, None if nobody has yet; from now on it is known to those who ask us."""
        if self._known is None:
            asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, self._base + 1, (1 << _TIME_BITS) - 1, 0)
            kind, _, start, _, _ = _FLOCK.unpack(fcntl.fcntl(self._file, fcntl.F_OFD_GETLK, asked))
            if kind != fcntl.F_UNLCK:
                self._hold(start - self._base)
        return self._known

    def join(self, start_ms: int) -> int:
        """When the others began; nobody has: at `start_ms`, then. Two that come at once agree."""
        alone = exclude(self._file)
        try:
            found = self.find()
            if found is None:
                self._hold(start_ms)
            return self._known or start_ms
        finally:
            if alone:
                fcntl.flock(self._file, fcntl.LOCK_UN)

    def close(self) -> None:
        """Idempotent."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _hold(self, start_ms: int) -> None:
        lock = _FLOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, self._base + start_ms, 1, 0)
        fcntl.fcntl(self._file, fcntl.F_OFD_SETLK, lock)
        self._known = start_ms
