"""A primary with two backups, live: real processes in namespaces of their own, and a witness."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from actornet.limits import SILENCE_MS_DEFAULT
from actornet.replay import History, verify
from actornet.testing.pair import Name
from actornet.testing.traffic import TcpTransfer, UdpStream
from actornet.testing.trio import Trio
from actornet.testing.wiretap import Wiretap
from tests.processes import is_alive, wait_until

pytestmark = pytest.mark.root

LEASE_MS = 150


@pytest.fixture
def trio(tmp_path: Path) -> Iterator[Trio]:
    with Trio(
        tmp_path / "trio", witness=f"file:{tmp_path}/witness", lease_ms=LEASE_MS, silence_ms=SILENCE_MS_DEFAULT
    ) as made:
        yield made
        pids = [pid for node in made.nodes for pid in made.processes(node) if made.nodes[node].poll() is None]
    assert not any(map(is_alive, pids)), "a process is left"


def owner_status(trio: Trio, node: Name) -> dict[str, object]:
    status: dict[str, object] = trio.worker(node, "owner-system")["status"]
    return status


def successor(trio: Trio, *candidates: Name) -> tuple[Name, Name]:
    """Who has taken over, and who has not."""

    def taken() -> list[Name]:
        return [node for node in candidates if re.search(r'"event":"took over"', trio.printed(node))]

    wait_until(taken, 15)
    (first,) = taken()
    trio.primary = first
    (other,) = (node for node in candidates if node != first)
    return first, other


def test_one_of_two_takes_over_and_the_other_follows_it_and_takes_over_in_turn(trio: Trio) -> None:
    """G3, G6, G7: kill -9, and once more: one connection goes on through both, and there is one emitter at a time."""
    trio.start()
    backups = owner_status(trio, "a")["backups"]
    assert isinstance(backups, list)
    assert {each["node"]: each["state"] for each in backups} == {"b": "in sync", "c": "in sync"}
    with Wiretap(trio.lab) as tap, TcpTransfer(trio.lab) as transfer:
        time.sleep(0.3)
        trio.kill("a")
        first, other = successor(trio, "b", "c")
        wait_until(lambda: owner_status(trio, other)["state"] == "in sync", 15)
        assert owner_status(trio, first)["state"] == "in sync"
        time.sleep(0.3)
        killed_ns = time.time_ns()
        trio.kill(first)
        taken = trio.wait_takeover(other)
        assert taken["records_replayed"] == 0
        time.sleep(0.5)
        ended_ns = time.time_ns()
        transfer.end()
        assert transfer.outcome()
    times = {node: tap.times(node) for node in ("a", first, other)}
    assert max(times["a"]) < min(times[first]) and max(times[first]) < min(times[other])
    assert [at for at in times[other] if killed_ns < at < ended_ns]
    trio.stop(other)
    with History(str(trio.log(other))) as history:
        assert verify(history).problem is None


def test_a_backup_that_is_lost_does_not_stop_the_others(trio: Trio) -> None:
    """G3, G7: a new epoch without the lost one, then traffic goes on, and the one that remains takes over from it."""
    trio.start()
    with UdpStream(trio.lab) as stream:
        time.sleep(0.3)
        before = owner_status(trio, "a")["epoch"]
        killed_ns = time.monotonic_ns()
        trio.kill("b")
        wait_until(lambda: owner_status(trio, "c")["sync_epoch"] != before, 5)
        time.sleep(0.3)
        assert stream.outage_ms(killed_ns) < 1000
        status, follower = owner_status(trio, "a"), owner_status(trio, "c")
        assert (status["state"], status["commits_alone"]) == ("in sync", False)
        assert status["epoch"] == follower["sync_epoch"] == status["witness"]["epoch"]  # type: ignore[index]
        trio.launch("b", "backup")
        trio.wait_in_sync("b")
        trio.kill("b")
        trio.kill("a")
        assert trio.wait_takeover("c")["epoch"] >= 200_000
        taken_ns = time.monotonic_ns()
        time.sleep(0.3)
        assert stream.received[-1][1] > taken_ns


def test_a_frozen_primary_comes_back_as_a_third(trio: Trio) -> None:
    """G7, G8: two go on; the old primary is fenced, joins them with its log cut, and is in sync."""
    trio.start()
    with UdpStream(trio.lab):
        time.sleep(0.2)
        trio.signal("a", signal.SIGSTOP)
        first, other = successor(trio, "b", "c")
        trio.signal("a", signal.SIGCONT)
        trio.nodes["a"].wait(10)
        wait_until(lambda: owner_status(trio, other)["state"] == "in sync", 15)
        trio.launch("a", "backup")
        trio.wait_in_sync("a")
        backups = owner_status(trio, first)["backups"]
        assert isinstance(backups, list) and {each["node"] for each in backups} == {"primary", other}


def test_a_clean_stop_hands_over_to_one(trio: Trio) -> None:
    """G6: without waiting for the lease to end; the other follows the one that was named."""
    trio.start()
    with UdpStream(trio.lab) as stream:
        time.sleep(0.3)
        began_ns = time.monotonic_ns()
        trio.stop("a")
        first, other = successor(trio, "b", "c")
        wait_until(lambda: owner_status(trio, other)["state"] == "in sync", 15)
        assert re.search(r'"event":"took over"', trio.printed(first)) and "handover" in trio.printed(first)
        time.sleep(0.2)
        assert stream.received[-1][1] > began_ns
