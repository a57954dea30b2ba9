"""Who sends on this host: known until its thread has ended, however it ends."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

import pytest

from actornet.node.senders import Senders, path_of

MS = 1_000_000


@pytest.fixture
def wire() -> Iterator[int]:
    number = os.getpid()
    yield number
    Path(path_of(number)).unlink(missing_ok=True)


@contextmanager
def process(begin: Callable[[], object]) -> Iterator[int]:
    """Another process, in which `begin` has returned when the block begins, and which then does nothing but calculate."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            begin()
            os.write(writing, b"+")
            _calculate()
        finally:
            os._exit(1)
    os.close(writing)
    try:
        assert os.read(reading, 1) == b"+"
        yield pid
    finally:
        os.close(reading)
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _calculate() -> NoReturn:
    while True:
        pass


def test_a_place_is_of_one_thread(wire: int) -> None:
    here = Senders(wire)
    assert here.wait(0) == 0
    with process(lambda: Senders(wire).take(3)):
        assert not here.take(3)
        assert here.take(2) and here.wait(0) == 2
        here.leave(2)
        assert here.wait(MS) == 1
    assert here.wait(0) == 0 and here.take(3)
    here.leave(3)
    assert here.wait(0) == 0


def test_who_was_killed_has_ended_when_the_wait_ends(wire: int) -> None:
    """G7: its thread sends no more, whatever it was at."""
    here = Senders(wire)
    for _ in range(20):
        with process(lambda: Senders(wire).take(0)) as pid:
            os.kill(pid, signal.SIGKILL)
            assert here.wait(2000 * MS) == 0
            assert (
                Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] in "RXZ"
            )  # no longer what it was: it ends


def test_the_wait_has_its_limit(wire: int) -> None:
    """One that is frozen does not end."""
    here = Senders(wire)
    with process(lambda: Senders(wire).take(0)) as pid:
        os.kill(pid, signal.SIGSTOP)
        begun = time.monotonic()
        assert here.wait(20 * MS) == 1
        assert 0.02 <= time.monotonic() - begun < 2


@pytest.mark.root
def test_who_waits_lends_its_priority(wire: int) -> None:
    """G7: a killed core that real-time threads keep from its CPU ends all the same."""
    cpus = os.sched_getaffinity(0)

    def take() -> None:
        os.sched_setaffinity(0, {min(cpus)})
        Senders(wire).take(0)

    def press() -> None:
        os.sched_setaffinity(0, {min(cpus)})
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))

    here = Senders(wire)
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(2))
        with process(take) as pid, process(press):
            os.kill(pid, signal.SIGKILL)
            time.sleep(0.1)
            assert not Senders(wire).take(0)  # it cannot end
            assert here.wait(100 * MS) == 0
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def test_the_last_one_removes_it(wire: int) -> None:
    one, other = Senders(wire), Senders(wire)
    one.close()
    assert Path(path_of(wire)).exists()
    assert other.take(0)
    other.leave(0)
    other.close()
    assert not Path(path_of(wire)).exists()
    again = Senders(wire)
    with process(lambda: Senders(wire).take(0)):
        assert again.wait(0) == 1
    again.close()
    assert not Path(path_of(wire)).exists()


def test_what_cannot_be_mapped_is_closed(wire: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a file that is open for reading only: whoever is the last one then removes it all the same."""
    here, opened = Senders(wire), os.open
    monkeypatch.setattr(os, "open", lambda path, flags: opened(path, flags & ~os.O_ACCMODE))
    nowhere = Senders(wire)
    assert not nowhere.take(0) and nowhere.wait(MS) == 0
    here.close()
    assert not Path(path_of(wire)).exists()
    nowhere.close()


def test_what_is_not_ours_is_left_alone(wire: int, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_bytes(b"kept")
    Path(path_of(wire)).symlink_to(other)
    nowhere = Senders(wire)
    assert not nowhere.take(0) and nowhere.wait(MS) == 0
    nowhere.close()
    assert other.read_bytes() == b"kept"
