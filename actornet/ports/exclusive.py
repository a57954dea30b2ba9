"""A lock on a file that nobody waits for for ever."""

from __future__ import annotations

import fcntl
import time
from contextlib import suppress

_TRIES, _PAUSE_S = 50, 0.0001


def exclude(file: int) -> bool:
    """Lock the file (flock(2), LOCK_UN ends it) as soon as nobody else has it; False: who has it may be stopped."""
    for _ in range(_TRIES):
        with suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        time.sleep(_PAUSE_S)
    return False
