"""What tests need to know about processes: who descends from whom, who is still alive, free ports; and waiting for them."""

import random
import socket
import time
from collections.abc import Callable
from pathlib import Path

from actornet.testing.traffic import UdpStream


def free_port() -> int:
    """A port outside the range that the kernel takes from for listeners that let it choose, as Thespian's actors do."""
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        port = random.randrange(lowest // 2, lowest)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port


def is_alive(pid: int) -> bool:
    """Whether the process exists and is more than a zombie that waits for its parent."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def sleeps(pid: int) -> int:
    """How often the process's threads have gone to sleep."""
    texts = [status.read_text() for status in Path(f"/proc/{pid}/task").glob("*/status")]
    return sum(int(text.partition("\nvoluntary_ctxt_switches:")[2].split()[0]) for text in texts)


def descendants(pid: int) -> set[int]:
    """Living processes below `pid`, itself excluded."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
    found = {pid}
    while True:
        more = {child for child, parent in parents.items() if parent in found and child not in found}
        if not more:
            return {child for child in found - {pid} if is_alive(child)}
        found |= more


def wait_until(condition: Callable[[], object], timeout_s: float = 5.0) -> float:
    """Seconds until `condition()` was true; AssertionError when it takes longer than `timeout_s`."""
    started = time.perf_counter()
    while not condition():
        assert time.perf_counter() - started < timeout_s, "it did not happen in time"
        time.sleep(0.001)
    return time.perf_counter() - started


def wait_echoes(stream: UdpStream, more: int = 20) -> None:
    """Until so many more datagrams have come back: it goes on."""
    before = len(stream.received)
    wait_until(lambda: len(stream.received) >= before + more)


def wait_gone(pids: set[int]) -> None:
    """Until none of `pids` is alive, which must be long before Thespian's ten seconds."""
    wait_until(lambda: not any(map(is_alive, pids)))
