"""A primary whose ports have lost their links hands over to a backup whose ports have theirs."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from actornet.limits import HEARTBEAT_MS, LINKS_DOWN_MS, SILENCE_MS_DEFAULT
from actornet.replication.backup import Backup
from actornet.replication.messages import Heartbeat, Yield
from actornet.replication.protocol import Leave, State
from actornet.testing.pair import Pair
from actornet.testing.traffic import TcpTransfer, UdpStream
from tests.protocol_bench import MS, TERM, T, following, in_sync, only, sent, synced
from tests.test_takeover import verify_log


def told(machine: Backup, down: int, after_ms: int) -> list[Yield]:
    """What a backup says to heartbeats of a primary with so many dead ports, for so long."""
    said = []
    for ms in range(0, after_ms, HEARTBEAT_MS):
        now_ns = T + ms * MS
        machine.receive(Heartbeat(TERM, 3, now_ns, links_down=down), now_ns)
        said += [message for message in sent(machine.tick(now_ns)) if isinstance(message, Yield)]
    return said


def test_a_backup_with_more_links_asks_to_lead() -> None:
    """G6, G7: after a while, and as an operator does: the primary stops in order."""
    machine = synced()
    assert told(machine, 1, LINKS_DOWN_MS) == []
    (said,) = told(machine, 1, 2 * LINKS_DOWN_MS)
    assert said.why == "ports without a link: 1 of the primary's, 0 of the backup's" and machine.state is State.IN_SYNC
    leading = in_sync()
    assert only(leading.receive(said, T), Leave).reason == said.why


def test_a_backup_that_is_often_kept_from_its_ticks_asks_to_lead() -> None:
    """G6: what it compares is fresh whenever it looks, so it goes on counting for how long its ports are better."""
    machine, said = synced(), []
    for ms in range(0, 2 * LINKS_DOWN_MS, SILENCE_MS_DEFAULT + 10):
        now_ns = T + ms * MS
        machine.receive(Heartbeat(TERM, 3, now_ns, links_down=1), now_ns)
        said += [message for message in sent(machine.tick(now_ns)) if isinstance(message, Yield)]
    assert len(said) == 1 and machine.state is State.IN_SYNC


@pytest.mark.parametrize(("theirs", "ours"), [(0, 0), (1, 1), (1, 2), (0, 1)])
def test_one_with_no_more_does_not(theirs: int, ours: int) -> None:
    machine = synced()
    assert machine.links(ours, T) == []
    assert told(machine, theirs, 10 * LINKS_DOWN_MS) == []


def test_a_link_that_flaps_moves_nobody() -> None:
    machine = synced()
    for _ in range(5):
        assert told(machine, 1, LINKS_DOWN_MS) == told(machine, 0, LINKS_DOWN_MS) == []


def test_nor_does_a_backup_that_is_not_in_sync() -> None:
    """G6: it has no right to."""
    assert told(following(), 2, 10 * LINKS_DOWN_MS) == []


def test_a_primary_tells_its_links_at_once() -> None:
    """Also while records take the place of heartbeats."""
    machine = in_sync()
    machine.logged([b"r"], T)
    assert sent(machine.links(2, T)) == [Heartbeat(TERM, machine.logged_lsn, T, links_down=2)]
    assert only(sent(machine.tick(T + 10 * HEARTBEAT_MS * MS)), Heartbeat).links_down == 2
    machine.fenced(2 * TERM)
    assert machine.links(1, T) == []


@pytest.mark.root
def test_a_pulled_cable(tmp_path: Path) -> None:
    """G6: connections outlive it; the node comes back as backup once it has its link again."""
    with Pair(tmp_path / "pair") as pair:
        pair.start()
        with UdpStream(pair.lab) as stream, TcpTransfer(pair.lab) as transfer:
            time.sleep(0.3)
            began_ns = time.monotonic_ns()
            pair.lab.ip("switch", "link set a-lan down")
            assert pair.nodes["a"].wait(15) == 0
            assert "ports without a link: 1 of the primary's, 0 of backup's" in pair.printed("a")
            pair.wait_takeover("b")
            pair.begin("a", "backup")
            pair.wait_in_sync("a")
            time.sleep(3 * LINKS_DOWN_MS / 1e3)
            assert pair.worker("a", "owner-system")["status"]["ports_without_link"] == 1
            pair.lab.ip("switch", "link set a-lan up")
            time.sleep(2 * LINKS_DOWN_MS / 1e3)
            assert pair.status("b")["role"] == "primary"
        assert transfer.outcome()
        assert stream.outage_ms(began_ns) < 2000 and stream.received[-1][0] > stream.sent - 50
        pair.stop("a")
        pair.stop("b")
    verify_log(pair, "a")
    verify_log(pair, "b")
