"""The pair while its logs' disks are full, and while somebody reads a log and is killed: live, in namespaces of its own."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from actornet.testing.pair import Name, Pair
from actornet.testing.traffic import TcpTransfer, UdpStream
from tests.processes import wait_until
from tests.test_takeover import churn, verify_log

pytestmark = pytest.mark.root

DISK_BYTES = 4 << 20


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    with Pair(tmp_path / "pair") as made:
        yield made


@pytest.fixture
def small_disks(pair: Pair) -> Iterator[Pair]:
    """Each node's log is on a small disk of its own."""
    mounted: list[Path] = []
    try:
        for directory in (pair.log("a"), pair.log("b")):
            directory.mkdir()
            subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "none", directory], check=True)
            mounted.append(directory)
        yield pair
    finally:
        pair.lab.close()  # what still runs there first
        for directory in mounted:
            subprocess.run(["umount", "--lazy", directory], check=True)


def fill(pair: Pair, node: Name) -> Path:
    """Leave nothing of the disk on which the node's log is; delete the file to give it back."""
    filler = pair.log(node) / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (1 << 16, 4096):
            try:
                while file.write(bytes(size)):
                    pass
            except OSError:
                pass
    return filler


def last_words(pair: Pair, node: Name) -> str:
    """New flows, each to be logged, until the node has ended; what it said."""
    for seed in range(20):
        churn(pair, 100, random.Random(seed))
        with suppress(subprocess.TimeoutExpired):
            pair.nodes[node].wait(0.5)
            return pair.printed(node)
    raise AssertionError(f"node {node} goes on without a disk:\n{pair.printed(node)[-2000:]}")


def test_a_primary_whose_disk_is_full_gives_way(small_disks: Pair) -> None:
    """G3, G6, G8: what it cannot log it does not send; the backup takes over, and both logs are whole."""
    pair = small_disks
    pair.start()
    with UdpStream(pair.lab) as stream, TcpTransfer(pair.lab) as transfer:
        time.sleep(0.3)
        filler = fill(pair, "a")
        assert "is full: its disk" in last_words(pair, "a")
        pair.wait_takeover("b")
        before = len(stream.received)
        time.sleep(0.5)
        assert len(stream.received) > before
    assert transfer.outcome()
    filler.unlink()
    verify_log(pair, "a")
    pair.stop("b")
    verify_log(pair, "b")


def test_a_backup_whose_disk_is_full_leaves_and_comes_again(small_disks: Pair) -> None:
    """G8: the primary goes on without it; with room it catches up, and may take over."""
    pair = small_disks
    pair.start()
    with UdpStream(pair.lab) as stream, TcpTransfer(pair.lab) as transfer:
        filler = fill(pair, "b")
        assert "is full: its disk" in last_words(pair, "b")
        assert pair.nodes["a"].poll() is None
        pair.wait_for("a", r'"event":"going on without a backup"')
        filler.unlink()
        pair.launch("b", "backup")
        pair.wait_in_sync("b")
        pair.kill("a")
        pair.wait_takeover("b")
        before = len(stream.received)
        time.sleep(0.5)
        assert len(stream.received) > before
    assert transfer.outcome()
    pair.stop("b")
    verify_log(pair, "b")


@pytest.fixture
def failing_disk(pair: Pair, tmp_path: Path) -> Iterator[Path]:
    """The log of node `a` is on a disk whose blocks are in a file that has no room for all of them: once the file's own disk is
    full, the kernel cannot write what it has taken, and says so at the next sync. A file there fills it."""
    backing, log = tmp_path / "backing", pair.log("a")
    backing.mkdir()
    log.mkdir()
    mounted = []
    try:
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={3 * DISK_BYTES}", "none", backing], check=True)
        mounted.append(backing)
        image = backing / "image"
        with image.open("wb") as file:
            file.truncate(16 * DISK_BYTES)
        # Without a journal: its loss would make the whole file system read-only first.
        subprocess.run(["mkfs.ext4", "-q", "-F", "-O", "^has_journal", "-E", "lazy_itable_init=1", image], check=True)
        if subprocess.run(["mount", "-o", "loop", image, log], capture_output=True).returncode:
            pytest.skip("this kernel has no loop devices")
        mounted.append(log)
        yield backing / "filler"
    finally:
        pair.lab.close()
        for directory in reversed(mounted):
            subprocess.run(["umount", "--lazy", directory], check=True)


def test_a_primary_whose_disk_fails_gives_way(failing_disk: Path, pair: Pair) -> None:
    """G6, G8: a sync that failed is not tried again, as the kernel has dropped what it could not write: the node ends, the
    backup takes over, and nothing is lost. With another disk, or room, the node comes back as the backup."""
    pair.start()
    with UdpStream(pair.lab) as stream, TcpTransfer(pair.lab) as transfer:
        time.sleep(0.3)
        with suppress(OSError), failing_disk.open("wb", buffering=0) as file:
            while file.write(bytes(4096)):
                pass
        said = last_words(pair, "a")
        assert "is full: its disk" in said
        assert os.statvfs(pair.log("a")).f_bavail > DISK_BYTES // 4096, (
            "what was written had room: it is the sync that failed"
        )
        assert pair.wait_takeover("b")["records_replayed"] == 0
        failing_disk.unlink()
        pair.begin("a", "backup")
        pair.wait_in_sync("a")
        before = len(stream.received)
        time.sleep(0.5)
        assert len(stream.received) > before
    assert transfer.outcome()
    pair.stop("b")
    pair.wait_takeover("a")
    pair.stop("a")
    verify_log(pair, "a")
    verify_log(pair, "b")


READER = """
import sys, time
from actornet.log.store import Log
with Log(sys.argv[1], readonly=True) as log, log._env.begin():
    print("in the middle of a read", flush=True)
    time.sleep(60)
"""


def test_who_reads_a_log_and_is_killed_leaves_no_trace(pair: Pair) -> None:
    """G8: a reader that pinned pages for ever would let the log grow for ever."""
    pair.start()
    log = pair.log("a")
    churn(pair, 200, random.Random(3))
    for _ in range(3):
        reader = subprocess.Popen([sys.executable, "-c", READER, str(log)], stdout=subprocess.PIPE)
        assert reader.stdout is not None and reader.stdout.readline()
        assert reader.pid in readers(log)
        reader.kill()
        reader.communicate()
    owner = pair.process("a", "owner-system")
    wait_until(lambda: readers(log) <= {owner}, 10)  # its upkeep looks for those that are gone
    pair.stop("a")
    pair.wait_takeover("b")
    pair.stop("b")
    verify_log(pair, "a")
    verify_log(pair, "b")


def readers(log: Path) -> set[int]:
    """The processes in the log's table of readers."""
    argv = [sys.executable, "-m", "lmdb", "readers", "-e", str(log)]
    shown = subprocess.run(argv, capture_output=True, text=True, timeout=10, check=True).stdout
    return {int(line.split()[0]) for line in shown.splitlines()[1:] if line.strip()}
