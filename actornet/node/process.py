"""What the kernel says of another process."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

_PAGE_BYTES = os.sysconf("SC_PAGESIZE")


def is_stopped(pid: int) -> bool:
    """Whether someone has stopped it (SIGSTOP, a debugger)."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "tT"
    return False


def has_ended(pid: int) -> bool:
    """Whether the process is gone, or only waits for its parent to hear of that, all its threads with it."""
    with suppress(OSError):
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        return state in "ZX" and len(os.listdir(f"/proc/{pid}/task")) == 1
    return True


def resident_bytes(pid: int) -> int:
    """Its memory, what it shares with others included; 0 if it has ended."""
    with suppress(OSError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_BYTES
    return 0


def be_ended_first(score: int) -> None:
    """Where memory runs out, have the kernel end this process before others (0 to 1000)."""
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(score))


def host_bytes() -> int:
    """The host's memory."""
    return os.sysconf("SC_PHYS_PAGES") * _PAGE_BYTES
