"""Audits, snapshots and pruning while records come in, a slice at a time."""

from __future__ import annotations

import re
import socket
import time
from pathlib import Path

import msgspec
import pytest
from structlog.testing import capture_logs

from actornet.errors import DivergenceError, StateError
from actornet.journal import Journal
from actornet.limits import PAUSE_TOLD_MS, SILENCE_MS_DEFAULT, UPKEEP_MS
from actornet.log.record import EpochBody, FlowBody, Kind, decode
from actornet.log.store import Log
from actornet.node import upkeep as module
from actornet.node.upkeep import Upkeep
from actornet.replay import History, verify
from actornet.replication import frozen
from actornet.replication.copying import GUESS_NS
from actornet.replication.replica import AskRequest
from actornet.testing.pair import Pair
from tests.diverging_node import FAULT_AT
from tests.port_log import PATH, TIME_NS, flow
from tests.processes import wait_until

MS = 1_000_000


class Clock:
    """Moves by UPKEEP_MS at each turn."""

    def __init__(self) -> None:
        self.now_ns = 0

    def monotonic_ns(self) -> int:
        return self.now_ns

    def time_ns(self) -> int:
        return TIME_NS + self.now_ns


class Node:
    """A journal with its log and upkeep, as one node has them; a backup gets what a primary has committed."""

    def __init__(self, log: Log, *, leads: bool, keep_records: int = 100) -> None:
        self.log = log
        self.leads = leads
        self.clock = Clock()
        self.journal = Journal(log)
        if leads:
            body = EpochBody("edge-a", "port_log:X", {}, "ab" * 8, 77, "start")
            self.journal._enqueue(self.journal.replica.begin_epoch(1, body, TIME_NS))
            settings = {"address": "203.0.113.1", "first": 1, "last": 20_000}
            self.journal._enqueue(self.journal.replica.create_owner("wan-ports", PATH, settings, TIME_NS))
        self.sent = self.journal.commit()
        self.upkeep = Upkeep(self.journal, self.clock, keep_records)
        self.turns_us: list[float] = []

    def open_flows(self, first: int, count: int) -> None:
        for number in range(first, first + count):
            sender = flow(number)
            args = msgspec.msgpack.encode((sender,))
            self.journal.ask(
                0, AskRequest(sender, 0, 1, 1, "wan-ports", "allocate", args).encoded(), self.clock.time_ns()
            )
            state = msgspec.msgpack.encode(
                [[number, "open"], [[sender.reversed(), "wan", None, False, None]], 60 * 10**9]
            )
            self.journal.execute(FlowBody(sender, 0, 1, 1, state), 0, self.clock.time_ns())
        self.sent += self.journal.commit()

    def turn(self, backup: Node | None = None) -> None:
        self.clock.now_ns += UPKEEP_MS * MS
        began_ns = time.perf_counter_ns()
        if self.upkeep.turn(leads=self.leads, needed_lsn=self.log.last_lsn):
            self.sent += self.journal.commit()
        self.turns_us.append((time.perf_counter_ns() - began_ns) / 1000)
        if backup is not None:
            backup.follow(self)

    def turns(self, backup: Node, count: int) -> None:
        for _ in range(count):
            self.turn(backup)

    def follow(self, primary: Node) -> None:
        sent, primary.sent = primary.sent, []
        self.journal.apply(data for _, data in sent)
        self.journal.commit()
        self.turn()


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything is due after a few records."""
    monkeypatch.setattr(module, "AUDIT_RECORDS", 200)
    monkeypatch.setattr(module, "AUDIT_S_MIN", 0.0)
    monkeypatch.setattr(module, "SNAPSHOT_RECORDS", 500)
    monkeypatch.setattr(module, "SNAPSHOT_S_MIN", 0.0)


def test_the_log_stays_bounded_while_records_come_in(tmp_path: Path) -> None:
    """G4, G8: what is left leads to the same state, and is sound."""
    with Log(tmp_path / "log", name="edge", nf="port_log:X") as log:
        node = Node(log, leads=True)
        for step in range(300):
            node.open_flows(step * 10, 10)
            node.turn()
        for _ in range(200):
            node.turn()
        assert node.upkeep.snapshot_lsn > 4000 and node.upkeep.pruned > 3000
        assert log.last_lsn - log.first_lsn < 2000
        assert node.journal.replica.audited_lsn > 4000
        assert Journal(log).replica.state_hash() == node.journal.replica.state_hash()
    with History(str(tmp_path / "log")) as history:
        assert verify(history).problem is None


def test_a_snapshot_that_is_not_finished_is_none(tmp_path: Path) -> None:
    """G8: the process dies between two chunks; the next one knows nothing of them, and stores over them."""
    with Log(tmp_path / "log", name="edge") as log:
        node = Node(log, leads=True)
        node.open_flows(0, 3000)
        pieces = list(node.journal.replica.snapshotting())
        storing = log.snapshot_store(node.journal.lsn, node.journal.chain, pieces)
        next(storing)
        storing.close()
        lsn, expected = node.journal.lsn, node.journal.replica.state_hash()
    with Log(tmp_path / "log") as log:
        assert log.snapshots() == [] and log.snapshot_latest() is None
        journal = Journal(log)
        for _ in log.snapshot_store(lsn, journal.chain, list(journal.replica.snapshotting())):
            pass
        assert log.snapshots() == [lsn] and log.prune(lsn) == lsn - 1
        assert Journal(log).replica.state_hash() == expected


def test_states_are_compared_while_both_go_on(tmp_path: Path) -> None:
    """G4: equal states agree, mark after mark; a silent difference is found, with the LSN of the last agreement."""
    with Log(tmp_path / "a", name="edge") as first, Log(tmp_path / "b", name="edge") as second:
        primary, backup = Node(first, leads=True), Node(second, leads=False)
        for step in range(100):
            primary.open_flows(step * 10, 10)
            primary.turns(backup, 8)
        agreed = backup.journal.replica.audited_lsn
        assert agreed == primary.journal.replica.audited_lsn > 1000
        backup.journal.replica.owners["wan-ports"].state.free[0] += 1
        changed = backup.journal.lsn
        with pytest.raises(DivergenceError) as raised:
            for step in range(100, 200):
                primary.open_flows(step * 10, 10)
                primary.turns(backup, 8)
        named = re.search(r"divergence at LSN (\d+): .* the states agreed at LSN (\d+)", str(raised.value))
        assert named is not None and agreed <= int(named[2]) <= changed < int(named[1])


def test_a_pause_that_could_only_be_guessed_is_told_by_what_the_last_one_took(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """G7: a state of one large tree. One long pause may be the CPU's; after two, audits rest for the sake of the lease."""
    for where in (module, frozen):
        monkeypatch.setattr(where, "pause_ns", lambda replica, guess_ns: guess_ns)
    with Log(tmp_path / "log", name="edge") as log:
        node, told = Node(log, leads=True), list[int]()
        upkeep = Upkeep(node.journal, node.clock, 100, told.append, 250)

        def hold(took_ms: int) -> None:
            def state_hash(replica: object) -> None:
                node.clock.now_ns += took_ms * MS

            monkeypatch.setattr(frozen, "state_hash", state_hash)
            node.journal.replica.hashing()

        hold(80)
        assert told == [GUESS_NS] and upkeep.freeze_us_max == 80_000 and not upkeep._is_too_large()
        hold(20)
        assert told.pop() == 80 * MS and not upkeep._is_too_large()
        hold(20)
        hold(75)
        assert told.pop() == 20 * MS and not upkeep._is_too_large()
        hold(70)
        assert told.pop() == 75 * MS and upkeep._is_too_large()


@pytest.mark.root
def test_a_long_pause_is_no_death(tmp_path: Path) -> None:
    """G6, G7: to copy this state takes both nodes about SILENCE_MS_DEFAULT; they say so before, and no takeover comes of it."""
    with Pair(tmp_path / "pair", "tests.large_node:Watch", "", silence_ms=SILENCE_MS_DEFAULT) as pair:
        pair.start()

        def audited() -> bool:
            pair.lab.call("client", _datagrams, 100, 30)
            status = [pair.worker(node, "owner-system")["status"]["upkeep"] for node in pair.nodes]
            assert not any(of_node["too_large"] for of_node in status)
            return all(of_node["audited_lsn"] for of_node in status)

        wait_until(audited, 30)
        paused_us = pair.worker("a", "owner-system")["status"]["upkeep"]["freeze_us_max"]
        assert paused_us > PAUSE_TOLD_MS * 1000, "long enough to be told of"
        assert '"took over"' not in pair.printed("b") and '"backup lost"' not in pair.printed("a")


@pytest.mark.root
def test_a_backup_that_diverges_begins_anew(tmp_path: Path) -> None:
    """G4: out of service at the first LSN that differs, its log kept aside, and back in sync by snapshot."""
    with Pair(tmp_path / "pair", "tests.diverging_node:Guard", "") as pair:
        pair.launch("a", "primary")
        pair.launch("b", "backup", environment={"ACTORNET_TEST_FAULTY": "1"})
        pair.wait_in_sync("b")
        pair.lab.call("client", _datagrams, 5)
        said = pair.wait_for("b", r".*backup out of service.*")
        named = re.search(r"divergence at LSN (\d+): policy.allows", said)
        assert named is not None, said
        with Log(pair.log("a"), readonly=True) as log:
            kinds = [decode(data).kind for _, data in log.scan(1, int(named[1]))]
        assert kinds[-1] is Kind.ASK and kinds.count(Kind.ASK) == FAULT_AT
        wait_until(lambda: pair.worker("b", "owner-system")["status"]["state"] == "in sync", 15)
        status = pair.worker("b", "owner-system")["status"]
        assert status["resyncs"] == 1 and (pair.log("b") / "aside-1" / "data.mdb").exists()
        pair.kill("a")
        assert pair.wait_takeover("b")["records_replayed"] == 0


@pytest.mark.root
def test_a_wrong_type_in_an_owners_state_ends_no_node(tmp_path: Path) -> None:
    """G4, G6, G8: past an audit both nodes are there and in sync; a clean stop, a takeover and a return go as ever."""
    with Pair(tmp_path / "pair", "tests.misfit_node:Half", "") as pair:
        pair.start()

        def said(node: str) -> str | None:
            misfit: str | None = pair.worker(node, "owner-system")["status"]["upkeep"]["misfit"]
            return misfit

        def both_say_so() -> bool:
            pair.lab.call("client", _datagrams, 100, 30)
            return all(said(node) for node in pair.nodes)

        wait_until(both_say_so, 40)
        for node in pair.nodes:
            assert re.search(
                r"owner mean \(tests.misfit_node:Mean\): state.mean: expected int, got float", said(node) or ""
            )
            assert pair.printed(node).count('"upkeep rests"') == 1
        assert pair.worker("b", "owner-system")["status"]["state"] == "in sync"
        pair.stop("a")
        assert pair.wait_takeover("b")["records_replayed"] == 0
        assert '"no snapshot at the stop"' in pair.wait_for("a", r".*no snapshot at the stop.*")
        with Log(pair.log("a"), readonly=True) as log:
            assert not log.snapshots()
        pair.launch("a", "backup")
        pair.wait_in_sync("a")


def _datagrams(count: int, rounds: int = 1) -> None:
    for number in range(count):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind(("10.0.0.2", 5000 + number))
            for _ in range(rounds):
                sock.sendto(b"x", ("203.0.113.254", 7))


def test_a_state_with_a_long_pause_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It could outlast a lease; the status says so."""
    with Log(tmp_path / "log", name="edge") as log:
        node = Node(log, leads=True)
        node.open_flows(0, 1000)
        monkeypatch.setattr(module, "UPKEEP_PAUSE_MS_MAX", 0.01)
        for _ in range(100):
            node.turn()
        status = node.upkeep.status()
        assert status["too_large"] and status["snapshot_lsn"] is None and status["audited_lsn"] is None


def test_a_state_that_does_not_fit_its_type_ends_nothing(tmp_path: Path) -> None:
    """G4, G8: both nodes leave it alone, say so once, go on, and take it up again once it fits."""
    with Log(tmp_path / "a", name="edge") as first, Log(tmp_path / "b", name="edge") as second:
        primary, backup = Node(first, leads=True), Node(second, leads=False)
        nodes = (primary, backup)

        def go_on(rounds: range) -> None:
            for step in rounds:
                primary.open_flows(step * 10, 10)
                primary.turns(backup, 8)

        go_on(range(60))
        agreed = [node.journal.replica.audited_lsn for node in nodes]
        stored = [node.log.snapshots() for node in nodes]
        assert agreed[0] == agreed[1] and all(stored)
        for node in nodes:
            node.journal.replica.owners["wan-ports"].state.free[-1] = 0.5
        wrong_at = primary.journal.lsn
        with capture_logs() as said:
            go_on(range(60, 160))
        named = [line["detail"] for line in said if line["event"] == "upkeep rests"]
        assert len(named) == 2 and all(
            "owner wan-ports" in line and "expected int, got float" in line for line in named
        )
        assert all(int(re.findall(r"at or before LSN (\d+)", line)[0]) > wrong_at for line in named)
        for node, lsn, snapshots in zip(nodes, agreed, stored, strict=True):
            status = node.upkeep.status()
            assert "expected int, got float" in status["misfit"]
            assert status["audited_lsn"] <= wrong_at and status["audited_lsn"] >= lsn
            assert max(node.log.snapshots()) <= wrong_at and min(snapshots) > 0
            with pytest.raises(StateError, match="expected int, got float"):
                node.journal.save_snapshot()
            recovered = Journal(node.log)  # from the last good snapshot and the log behind it
            assert recovered.lsn == node.journal.lsn
        for node in nodes:
            node.journal.replica.owners["wan-ports"].state.free[-1] = 20_000
        fits_at = primary.journal.lsn
        with capture_logs() as said:
            go_on(range(160, 260))
        assert [line["event"] for line in said].count("upkeep goes on") == 2
        for node in nodes:
            assert node.upkeep.status()["misfit"] is None
            assert node.journal.replica.audited_lsn > fits_at and max(node.log.snapshots()) > fits_at


def test_a_state_that_fits_on_one_node_alone_is_a_divergence(tmp_path: Path) -> None:
    """G4: the log has a hash, and this state has none."""
    with Log(tmp_path / "a", name="edge") as first, Log(tmp_path / "b", name="edge") as second:
        primary, backup = Node(first, leads=True), Node(second, leads=False)
        backup.journal.apply(data for _, data in primary.sent)
        primary.sent = []
        backup.journal.replica.owners["wan-ports"].state.free[-1] = 0.5
        with pytest.raises(DivergenceError, match=r"here there is none: owner wan-ports .*expected int, got float"):
            for step in range(60):
                primary.open_flows(step * 10, 10)
                primary.turns(backup, 8)
