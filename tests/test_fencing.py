"""One emitter at a time, live: processes that are frozen and thawed, a link that is cut, with a witness (G7)."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from actornet.limits import SILENCE_MS_DEFAULT
from actornet.testing.etcd_pair import EtcdPair
from actornet.testing.pair import Pair
from actornet.testing.traffic import UdpStream
from actornet.testing.wiretap import Wiretap
from tests.processes import wait_until

pytestmark = pytest.mark.root

LEASE_MS = 150


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    with Pair(
        tmp_path / "pair", witness=f"file:{tmp_path}/witness", lease_ms=LEASE_MS, silence_ms=SILENCE_MS_DEFAULT
    ) as made:
        yield made


def test_a_frozen_node_emits_nothing_when_it_wakes(pair: Pair) -> None:
    """G7: all of the primary is stopped, the backup takes over, and the primary goes on in mid-stream."""
    pair.start()
    with Wiretap(pair.lab) as tap, UdpStream(pair.lab):
        time.sleep(0.3)
        frozen_ns = time.time_ns()
        pair.signal("a", signal.SIGSTOP)
        taken = pair.wait_takeover("b")
        time.sleep(0.2)
        pair.signal("a", signal.SIGCONT)
        thawed_ns = time.time_ns()
        pair.nodes["a"].wait(10)
        time.sleep(0.1)
    a, b = tap.times("a"), tap.times("b")
    assert max(a) < min(b), (
        f"the old primary still sent {(max(a) - min(b)) / 1e6:.1f} ms after the new one's first packet"
    )
    assert not [at for at in a if at > thawed_ns]
    assert min(b) - frozen_ns < 3 * LEASE_MS * 1_000_000 and len(b) > 100
    assert taken["records_replayed"] == 0
    assert "epoch" in pair.printed("a").splitlines()[-1], "it says that it was fenced"


def test_cores_stop_by_themselves(pair: Pair) -> None:
    """G7: only the owner system is frozen; its cores go on, offloads included, until the lease ends and no longer."""
    pair.start()
    with Wiretap(pair.lab) as tap, UdpStream(pair.lab):
        time.sleep(0.3)
        frozen_ns = time.time_ns()
        os.kill(pair.worker("a", "owner-system")["pid"], signal.SIGSTOP)
        pair.wait_takeover("b")
        time.sleep(0.3)
        counters = pair.worker("a", "core-0")["status"]["counters"]
    a, b = tap.times("a"), tap.times("b")
    assert max(a) > frozen_ns + 20_000_000, "packets of flows that are offloaded need no owner system"
    assert max(a) < min(b)
    assert counters["lease_over"] > 0


def test_a_cut_link_leaves_one_primary(pair: Pair) -> None:
    """G7: both live and see the witness: the primary goes on alone, and the backup may not take over any more."""
    pair.start()
    with Wiretap(pair.lab) as tap, UdpStream(pair.lab) as stream:
        time.sleep(0.3)
        cut_ns = time.monotonic_ns()
        pair.lab.ip("a", "link set link0 down")
        pair.wait_for("b", r'"event":"takeover denied"')
        time.sleep(2 * LEASE_MS / 1000)
        assert stream.outage_ms(cut_ns) < 1000
    assert not tap.times("b"), "the backup sent packets"
    assert pair.worker("a", "owner-system")["status"]["epoch"] == 100_001
    pair.lab.ip("a", "link set link0 up")
    wait_until(lambda: pair.worker("b", "owner-system")["status"]["state"] == "in sync", 15)
    pair.kill("a")
    assert pair.wait_takeover("b")["epoch"] == 200_000


def test_a_clean_stop_gives_the_lease_back(pair: Pair) -> None:
    """G6, G7: a handover does not wait for the lease to end."""
    pair.start()
    with UdpStream(pair.lab) as stream:
        time.sleep(0.3)
        began_ns = time.monotonic_ns()
        pair.stop("a")
        assert pair.wait_takeover("b")["reason"] == "handover"
        time.sleep(0.3)
    assert stream.received[-1][1] > began_ns
    assert pair.worker("b", "owner-system")["status"]["witness"]["holds_epoch"] == 200_000


def test_a_primary_that_is_cut_off_from_backup_and_witness_falls_silent(tmp_path: Path) -> None:
    """G7, with a real etcd: its network to both is gone, that to hosts is not. It emits nothing by the time its lease could
    be another's, the backup takes over, and the old one, once it is back, is fenced."""
    if shutil.which("etcd") is None:
        pytest.skip("etcd is not installed (Debian: etcd-server)")
    with EtcdPair(tmp_path / "pair", lease_ms=LEASE_MS, silence_ms=SILENCE_MS_DEFAULT) as pair:
        pair.start()
        with Wiretap(pair.lab) as tap, UdpStream(pair.lab) as stream:
            time.sleep(0.3)
            cut_ns = time.monotonic_ns()
            pair.lab.ip("a", "link set link0 down")
            assert pair.wait_takeover("b")["records_replayed"] == 0
            time.sleep(0.3)
            assert stream.outage_ms(cut_ns) < 1000
            pair.lab.ip("a", "link set link0 up")
            pair.nodes["a"].wait(15)
            time.sleep(0.1)
        a, b = tap.times("a"), tap.times("b")
        assert max(a) < min(b) and len(b) > 100
        assert "epoch" in pair.printed("a").splitlines()[-1], "it says that it was fenced"
        assert pair.worker("b", "owner-system")["status"]["witness"]["holds_epoch"] == 200_000
