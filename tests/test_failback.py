"""The old primary comes back, live: refused as primary, taken as backup, and able to take over again (G8)."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from actornet.testing.checker import judge
from actornet.testing.pair import Pair
from actornet.testing.traffic import UdpStream
from actornet.testing.wiretap import Wiretap
from tests.processes import wait_until
from tests.test_takeover import churn, verify_log

pytestmark = pytest.mark.root


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    with Pair(tmp_path / "pair") as made:
        yield made


def launch(pair: Pair, node: str, *arguments: str) -> str:
    """What a launch that must fail says last."""
    argv = [sys.executable, "-m", "actornet.cli.main", "launch", *arguments]
    done = pair.lab.run(node, argv, check=False, timeout_s=15)
    assert done.returncode != 0 and "Traceback" not in done.stderr, done.stderr
    return done.stderr.strip().splitlines()[-1]


def test_the_old_primary_fails_back(pair: Pair) -> None:
    """G7, G8: it never pre-empts; what it logged alone is cut; after that it is as good a backup as any."""
    pair.start()
    file = str(pair.file("a"))
    with Wiretap(pair.lab) as tap, UdpStream(pair.lab) as stream:
        churn(pair, 200, random.Random(1))
        pair.kill("a")
        pair.wait_takeover("b")
        churn(pair, 100, random.Random(2))
        said = launch(pair, "a", "primary", file)
        assert "10.9.0.2:7400 leads in epoch 200000" in said and "backup" in said
        # The same file, with the roles changed: node "primary" of the file is the backup now.
        pair.primary = "a"
        pair.begin("a", "backup", "--node", "primary")
        pair.primary = "b"
        pair.wait_in_sync("a")
        time.sleep(0.2)
        killed_ns = pair.kill("b")
        assert pair.wait_takeover("a")["epoch"] == 300_000
        time.sleep(0.3)
        assert stream.outage_ms(killed_ns) < 1000
    pair.stop("a")
    verify_log(pair, "a")
    verify_log(pair, "b")
    assert judge(tap.take(), pair.log("a"), takeovers=2) == []


def test_a_damaged_log(pair: Pair) -> None:
    """G8: a backup sets it aside and begins anew; a primary says what to do, and leaves the log alone."""
    pair.start()
    churn(pair, 100, random.Random(1))
    pair.kill("b")
    damage(pair.log("b") / "data.mdb")
    pair.begin("b", "backup")
    pair.wait_for("b", r'"event":"damaged log set aside"')
    pair.wait_in_sync("b")
    assert (pair.log("b") / "aside-1" / "data.mdb").exists()
    wait_until(lambda: pair.worker("b", "owner-system")["status"]["lag_records"] == 0, 10)
    pair.kill("a")
    pair.wait_takeover("b")
    damage(pair.log("a") / "data.mdb")
    said = launch(pair, "a", "primary", str(pair.file("a")))
    assert "damaged" in said and "launch this node as its backup" in said
    assert not (pair.log("a") / "aside-1").exists()


def damage(file: Path) -> None:
    """Flip a byte in the middle of every record that names the NAT's owner."""
    data = bytearray(file.read_bytes())
    at, flips = 8192, 0
    while (at := data.find(b"wan-ports", at)) >= 0:
        data[at + 2] ^= 1
        at += 1
        flips += 1
    assert flips
    file.write_bytes(data)
