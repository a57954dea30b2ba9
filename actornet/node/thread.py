"""What a data plane's thread asks of the kernel: to run when it has something to do, and to be seen dead when it is.

A process that is killed closes its descriptors last of all: after its memory was freed (2 to 3 ms), and not before a
thread that waits for the disk comes back (10 ms and more). Its peer would hear of it that late. One thread that shares
its descriptors with no other closes them when it ends itself, a fifth of a millisecond after the kill.
"""

from __future__ import annotations

import ctypes
import os
import stat
import sys
import threading
from contextlib import suppress

CLONE_FILES = 0x400
NICE = -10

_SWITCH_INTERVAL_S = 0.0005

_libc = ctypes.CDLL(None, use_errno=True)


def own_descriptors() -> None:
    """Give this thread a table of descriptors of its own: those open now are in both, later ones only in this thread's.

    So other threads must not use, close or drop the last reference to what this one opens. A thread started by this one
    shares its table. Where the kernel does not allow it everything stays shared.
    """
    _libc.unshare(CLONE_FILES)


def leave_sockets() -> None:
    """As `own_descriptors`, and let go of all sockets: that this thread still runs keeps no connection open."""
    if _libc.unshare(CLONE_FILES) != 0:
        return
    for name in os.listdir("/proc/thread-self/fd"):
        with suppress(OSError):  # the listing's own descriptor is closed by now
            if stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                os.close(int(name))


def run_first(priority: int = 1, thread: int = 0) -> None:
    """Let a thread of this process (0: this one) run before all that is not real-time, as far as it may; threads that it
    starts do not.

    Of two real-time threads on one CPU, that of the higher priority runs; one of the same would wait up to 100 ms.
    A thread that runs so must sleep 5 % of the time: beyond that the kernel stops it for 50 ms.
    """
    sys.setswitchinterval(_SWITCH_INTERVAL_S)  # how long another thread may keep the interpreter
    try:
        os.sched_setscheduler(thread, os.SCHED_RR | os.SCHED_RESET_ON_FORK, os.sched_param(priority))
    except OSError:
        run_early(thread=thread)


def push_ahead(pid: int, priority: int = 3) -> None:
    """Let the main thread of another process run before its real-time ones, as far as this process may."""
    with suppress(OSError):
        os.sched_setscheduler(pid, os.SCHED_RR | os.SCHED_RESET_ON_FORK, os.sched_param(priority))


def run_early(nice: int = NICE, thread: int = 0) -> None:
    """Let a thread of this process (0: this one) run before ordinary ones, as far as it may; as one of them with `nice` 0."""
    with suppress(OSError):
        os.sched_setscheduler(thread, os.SCHED_OTHER, os.sched_param(0))
        os.setpriority(os.PRIO_PROCESS, thread or threading.get_native_id(), nice)
