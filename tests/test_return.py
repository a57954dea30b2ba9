"""A node comes back with another log than it left: older, longer, empty, damaged, foreign. Live, under traffic (G8)."""

from __future__ import annotations

import json
import os
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import lmdb
import pytest

from actornet.journal import Journal
from actornet.log.record import ControlBody
from actornet.log.store import Log
from actornet.node.network_function import load_nf
from actornet.testing.checker import judge
from actornet.testing.fault_proxy import NONE, Fault, FaultProxy
from actornet.testing.pair import Name, Pair
from actornet.testing.traffic import TcpTransfer, UdpStream
from actornet.testing.wiretap import Wiretap
from tests.processes import wait_echoes, wait_until
from tests.test_failback import launch
from tests.test_takeover import burst, churn, verify_log

pytestmark = pytest.mark.root

SEED = int(os.environ.get("FAULT_SEED", "0")) or random.SystemRandom().getrandbits(32)
PAGE_BYTES = 4096
OTHER: dict[Name, Name] = {"a": "b", "b": "a"}


class Return:
    """The leader of a pair is killed, its log becomes another one, and it comes back with that as the backup."""

    def __init__(self, pair: Pair, proxies: dict[Name, FaultProxy], chance: random.Random) -> None:
        self.pair = pair
        self.proxies = proxies
        self.chance = chance
        self.old: Name = pair.primary
        self.new: Name = OTHER[self.old]
        self.log = pair.log(self.old)
        self.file = self.log / "data.mdb"

    def kill(self, flows: int = 50) -> None:
        """End the leader, with so many flows that it logged before."""
        churn(self.pair, flows, self.chance)
        self.pair.kill(self.old)
        assert self.pair.wait_takeover(self.new)["records_replayed"] == 0
        churn(self.pair, 20, self.chance)

    def come_back(self) -> str:
        """Launch it; returns how the new leader says that it catches up."""
        self.pair.begin(self.old, "backup")
        self.pair.wait_in_sync(self.old)
        return self.pair.wait_for(self.new, r'.*"event":"backup catches up".*')

    def older(self) -> None:
        copy = self.pair.directory / f"copy-{self.old}"
        copy.mkdir()
        with lmdb.open(str(self.log), readonly=True, max_dbs=3) as env:
            env.copy(str(copy))
        last_lsn = end_of(copy)
        self.kill()
        assert 0 < last_lsn < end_of(self.log)
        shutil.move(copy / "data.mdb", self.file)
        assert f"by LSN {last_lsn + 1} to " in self.come_back()

    def longer(self) -> None:
        """Nobody got its last records: they were under way."""
        proxy = self.proxies[self.new]
        proxy.fault = Fault("down", stall=True)
        known = end_of(self.log)
        self.pair.lab.call("client", burst, 400)
        wait_until(lambda: end_of(self.log) > known + 100)
        self.kill(0)
        proxy.fault = NONE
        ended = end_of(self.log)
        self.come_back()
        said = json.loads(self.pair.wait_for(self.old, r'.*"event":"uncommitted records dropped".*'))
        assert said["records"] > 100 and said["records"] + said["after_lsn"] == ended

    def empty(self) -> None:
        self.kill()
        shutil.rmtree(self.log)
        assert "by LSN 1 to " in self.come_back()

    def damaged_records(self) -> None:
        self._damaged(flip_records)

    def damaged_pages(self) -> None:
        self._damaged(flip_pages)

    def _damaged(self, flip: Callable[[bytearray, random.Random], int]) -> None:
        self.kill()
        data = bytearray(self.file.read_bytes())
        assert flip(data, self.chance)
        self.file.write_bytes(data)
        self.come_back()
        self.pair.wait_for(self.old, r'"event":"damaged log set aside"')
        newest = max(self.log.glob("aside-*"), key=lambda path: int(path.name.partition("-")[2]))
        kept = (newest / "data.mdb").read_bytes()
        pages = range(0, len(data), PAGE_BYTES)
        written = sum(kept[at : at + PAGE_BYTES] != data[at : at + PAGE_BYTES] for at in pages)
        assert written <= 8, "what was damaged is kept, but for notes of who opened it"


def end_of(log: Path) -> int:
    """The last LSN of a log."""
    with Log(log, readonly=True) as reader:
        return reader.last_lsn


def flip_records(data: bytearray, chance: random.Random) -> int:
    """Flip a bit in every record of the NAT's owner; returns how many."""
    at, flips = 2 * PAGE_BYTES, 0
    while (at := data.find(b"wan-ports", at)) >= 0:
        data[at + chance.randrange(9)] ^= 1 << chance.randrange(8)
        at += 9
        flips += 1
    return flips


def flip_pages(data: bytearray, chance: random.Random) -> int:
    """Flip a bit in the header (number, kind, bounds) of every page but LMDB's two first ones; returns how many."""
    pages = range(2 * PAGE_BYTES, len(data), PAGE_BYTES)
    for page in pages:
        data[page + chance.randrange(16)] ^= 1 << chance.randrange(8)
    return len(pages)


@pytest.mark.parametrize("cases", [("older", "longer", "empty"), ("damaged_records", "damaged_pages")])
def test_a_node_comes_back_with_another_log(tmp_path: Path, cases: tuple[str, ...]) -> None:
    """G3, G5, G6, G8: it gets in sync, its log is never taken for the good one; then it takes over, and all go on."""
    chance = random.Random(f"{SEED} {cases}")
    order = chance.sample(cases, len(cases))
    links: dict[Name, str] = {"a": "10.9.0.1:7399", "b": "10.9.0.2:7399"}
    with Pair(tmp_path / "pair", links=links) as pair:
        with pair.fault_proxy("a", SEED) as a, pair.fault_proxy("b", SEED) as b, Wiretap(pair.lab) as tap:
            pair.start()
            with UdpStream(pair.lab, spacing_s=0.002) as stream, TcpTransfer(pair.lab, pause_s=0.01) as transfer:
                begun_ns = time.monotonic_ns()
                for case in order:
                    churn(pair, 50, chance)
                    getattr(Return(pair, {"a": a, "b": b}, chance), case)()
                last = Return(pair, {"a": a, "b": b}, chance)
                last.kill()
                wait_echoes(stream)
            where = f"seed {SEED}, {order}"
            assert transfer.outcome(), where
            assert stream.outage_ms(begun_ns) < 1000, where
        survivor = pair.primary
        pair.stop(survivor)
        verify_log(pair, "a")
        verify_log(pair, "b")
        assert judge(tap.take(), pair.log(survivor), takeovers=len(cases) + 1) == [], where


def foreign_log(directory: Path, epoch: int, records: int = 40) -> None:
    """The log of another deployment of the same name, whose primary was in this epoch."""
    with Log(directory, name="pair", nf="actors.nat:SourceNAT") as log:
        log.lead(epoch)
        log.adopt(log.identity)
        journal = Journal(log)
        nf, settings = load_nf(log.nf, {"address": "203.0.113.1"})
        journal.begin_epoch(epoch, "pair/primary", nf, settings, "started", 1)
        for number in range(records):
            journal.execute(ControlBody("note", str(number)), 0, number + 2)
        journal.commit()


def records_of(log: Path) -> list[bytes]:
    """All records of a log that somebody may write."""
    with Log(log, readonly=True) as reader:
        return [data for _, data in reader.scan()]


def test_a_leading_node_is_disturbed_by_no_launch(tmp_path: Path) -> None:
    """G6, G7, G8: primaries with an older or empty log, and foreign logs, are told in a line why not; all logs stay."""
    chance = random.Random(f"{SEED} launches")
    with Pair(tmp_path / "pair") as pair, Wiretap(pair.lab) as tap:
        pair.start()
        home, older = pair.log("a"), tmp_path / "older"
        with UdpStream(pair.lab, spacing_s=0.002) as stream, TcpTransfer(pair.lab, pause_s=0.01) as transfer:
            churn(pair, 20, chance)
            older.mkdir()
            with lmdb.open(str(home), readonly=True, max_dbs=3) as env:
                env.copy(str(older))
            churn(pair, 20, chance)
            pair.kill("a")
            pair.wait_takeover("b")
            wait_echoes(stream)
            begun_ns, good = time.monotonic_ns(), records_of(pair.log("b"))
            shutil.rmtree(home)

            def refused(role: str, expected: str) -> None:
                """It is, and has changed nothing."""
                before = records_of(home) if home.exists() else []
                flags = ["--node", "primary"] if role == "backup" else []
                said = launch(pair, "a", role, str(pair.file("a")), *flags)
                assert expected in said, said
                assert records_of(home) == before
                assert pair.worker("b", "owner-system")["status"]["role"] == "primary"
                shutil.rmtree(home)

            leads = "10.9.0.2:7400 leads in epoch 200000"
            shutil.copytree(older, home)
            refused("primary", leads)
            refused("primary", leads)  # with no log at all
            foreign_log(home, 900_000)
            refused("backup", "diverges")
            assert len(stream.took_ms(begun_ns)) > 100 and not stream.lost(begun_ns), f"seed {SEED}"
            assert records_of(pair.log("b"))[: len(good)] == good
        assert transfer.outcome()
        pair.stop("b")
    verify_log(pair, "b")
    assert judge(tap.take(), pair.log("b"), takeovers=1) == [], f"seed {SEED}"


def test_what_was_committed_alone_is_not_cut(tmp_path: Path) -> None:
    """G7, G8: a primary that had gone on alone is not told to forget that, whatever an operator has led since."""
    chance = random.Random(f"{SEED} alone")
    with Pair(tmp_path / "pair", witness=f"file:{tmp_path}/witness", lease_ms=150) as pair:
        pair.start()
        pair.lab.ip("a", "link set link0 down")
        pair.wait_for("b", r'"event":"takeover denied"')
        churn(pair, 50, chance)
        status = pair.worker("a", "owner-system")["status"]
        assert status["epoch"] == 100_001 and status["watermark"] == status["lsn"], "it commits alone"
        pair.kill("a")
        alone = records_of(pair.log("a"))
        pair.lab.ip("a", "link set link0 up")
        pair.command("promote", "b", "--force")
        assert pair.wait_takeover("b")["epoch"] == 200_000
        churn(pair, 50, chance)
        said = launch(pair, "a", "backup", str(pair.file("a")), "--node", "primary")
        assert "its log diverges" in said and "keep the log that you want" in said, said
        assert records_of(pair.log("a")) == alone


def test_a_good_backup_does_not_follow_an_empty_primary(tmp_path: Path) -> None:
    """G8: both were down, and the primary's directory is a new one. The good log is not touched."""
    chance = random.Random(f"{SEED} empty")
    with Pair(tmp_path / "pair") as pair:
        pair.start()
        churn(pair, 50, chance)
        pair.kill("b")
        pair.kill("a")
        good = records_of(pair.log("b"))
        shutil.rmtree(pair.log("a"))
        pair.launch("a", "primary")
        said = launch(pair, "b", "backup", str(pair.file("a")))
        assert "diverges" in said and "keep the log that you want" in said, said
        assert records_of(pair.log("b")) == good
