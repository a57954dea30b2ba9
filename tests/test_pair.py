"""A primary and a backup on live interfaces, under traffic: killed, stopped, promoted, replaced.

Every test ends by making sure that no process, namespace or lock of the pair is left.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from checker import Capture, translations_logged, violations
from processes import is_alive, wait_gone, wait_until

from actornet.journal import Journal
from actornet.limits import TAIL_RECORDS_MAX, TERM_EPOCHS
from actornet.log.record import ControlBody
from actornet.log.store import Log
from actornet.node.network_function import load_nf
from actornet.replay import History, Verification, verify
from actornet.testing.netns import NAMESPACES
from actornet.testing.pair import Name, Pair
from actornet.testing.traffic import SERVER, Churn, TcpTransfer, UdpStream

pytestmark = pytest.mark.root

NF = "actors.nat:SourceNAT"
OUTAGE_MS_MAX = 1000.0
"""Of a UDP stream through kill -9, on whatever else the machine has to do; `bench.failover` says what it really is."""

CHURN_S = 45.0

MakePair = Callable[..., Pair]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[MakePair]:
    """Makes a pair in its namespaces; afterwards nothing of it may be left."""
    with ExitStack() as opened:
        pairs = []

        def make_pair(**options: Any) -> Pair:
            pairs.append(opened.enter_context(Pair(tmp_path / f"pair-{len(pairs)}", **options)))
            return pairs[-1]

        yield make_pair
        for pair in pairs:
            for node, process in pair.nodes.items():
                if process.poll() is None:
                    victims = set(pair.processes(node))
                    process.terminate()
                    process.wait(15)
                    wait_gone(victims)
                assert inhabitants(pair, node) == [], f"processes are left in the namespace of node {node}"
            for node in pair.nodes:
                Log(pair.log(node)).close()  # LogLockedError if somebody still held it
    for pair in pairs:
        assert [name for name in pair.lab.names.values() if (NAMESPACES / name).exists()] == []


def inhabitants(pair: Pair, node: Name) -> list[int]:
    """Living processes in the node's namespace."""
    namespace = (NAMESPACES / pair.lab.names[node]).stat().st_ino
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and (entry / "ns/net").stat().st_ino == namespace and is_alive(int(entry.name)):
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def verified(pair: Pair, node: Name) -> Verification:
    """The node's log, re-executed as a whole (G4): every chain and every reply hash is as recorded."""
    with History(pair.log(node)) as history:
        done = verify(history)
    assert done.problem is None, f"log of node {node}: {done.problem}"
    return done


def owner(pair: Pair, node: Name) -> dict[str, Any]:
    status: dict[str, Any] = pair.worker(node, "owner-system")["status"]
    return status


def counters(pair: Pair, node: Name, core: int = 0) -> dict[str, int]:
    counts: dict[str, int] = pair.worker(node, f"core-{core}")["status"]["counters"]
    return counts


def restarts(pair: Pair, node: Name) -> dict[str, int]:
    return {worker["name"]: worker["restarts"] for worker in pair.status(node)["workers"]}


def check_takeover(taken: dict[str, Any]) -> None:
    """G6: nothing was replayed, and no flow was still on its way to the core that serves it from now on."""
    assert taken["records_replayed"] == 0
    assert taken["flows_waiting_for_cores"] == 0


@contextmanager
def long_lived(pair: Pair) -> Iterator[tuple[UdpStream, TcpTransfer]]:
    """A UDP stream and a TCP transfer; neither may break or be altered."""
    with UdpStream(pair.lab) as stream, TcpTransfer(pair.lab, pause_s=0.002) as transfer:
        yield stream, transfer
        arrived = len(stream.received)
        wait_until(lambda: len(stream.received) > arrived + 10)
    assert transfer.outcome(), "the bytes that arrived are not those that were sent"


class TestKilled:
    """kill -9 of processes of the primary."""

    def test_downloads_and_streams_survive_the_primary(self, make: MakePair, tmp_path: Path) -> None:
        """G6: every process of the primary dies; a download and iperf3's streams go on, and nothing is replayed."""
        for program in ("curl", "iperf3"):
            if shutil.which(program) is None:
                pytest.skip(f"needs {program}")
        pair = make()
        pair.start()
        content = random.Random(1).randbytes(12 << 20)
        (tmp_path / "file").write_bytes(content)
        web = [sys.executable, "-m", "http.server", "--bind", SERVER, "--directory", str(tmp_path), "8000"]
        pair.lab.popen("server", web, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for port in ("5201", "5202"):
            pair.lab.popen("server", ["iperf3", "-s", "-1", "-p", port], stdout=subprocess.DEVNULL)
        time.sleep(0.5)

        def client(*argv: str) -> subprocess.Popen[bytes]:
            return pair.lab.popen("client", argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

        begun = time.monotonic()
        curl = client("curl", "-sS", "--limit-rate", "4M", "-o", str(tmp_path / "copy"), f"http://{SERVER}:8000/file")
        tcp = client("iperf3", "-c", SERVER, "-p", "5201", "-t", "4", "-b", "40M", "-i", "0.25", "-J")
        udp = client("iperf3", "-c", SERVER, "-p", "5202", "-t", "4", "-b", "2M", "-l", "200", "-u", "-J")
        with UdpStream(pair.lab) as stream:
            time.sleep(1.2)
            flows = owner(pair, "a")["flows"]
            wait_until(lambda: counters(pair, "b")["live_flows"] == flows)  # warm, before anything has happened
            assert owner(pair, "b")["lag_records"] == 0
            killed_ns = pair.kill("a")
            taken = pair.wait_takeover("b")
            time.sleep(0.5)
        check_takeover(taken)
        assert taken["flows"] == flows and taken["epoch"] == 2 * TERM_EPOCHS
        assert stream.outage_ms(killed_ns) < OUTAGE_MS_MAX
        for process in (curl, tcp, udp):
            output, errors = process.communicate(timeout=20)
            assert process.returncode == 0, (errors or output).decode()[-800:]
            if process is curl:
                assert time.monotonic() - begun > 2, "the download was over before the kill"
            else:
                report = json.loads(output)
                assert "error" not in report
                assert all(interval["sum"]["bytes"] for interval in report["intervals"][-4:]), "it did not go on"
        assert hashlib.sha256((tmp_path / "copy").read_bytes()).digest() == hashlib.sha256(content).digest()
        assert counters(pair, "b")["handler_error"] == 0
        for node in pair.nodes:
            verified(pair, node)

    def test_core_and_monitor_come_back(self, make: MakePair) -> None:
        """G6: a killed core gets its flows back from the log, and connections survive it; no takeover happens."""
        pair = make()
        pair.start()
        with long_lived(pair) as (stream, _):
            time.sleep(0.3)
            flows = owner(pair, "a")["flows"]
            for name in ("core-0", "monitor"):
                victim = pair.process("a", name)
                killed_ns = time.monotonic_ns()
                os.kill(victim, signal.SIGKILL)
                wait_until(lambda name=name: restarts(pair, "a")[name] == 1 and pair.status("a")["state"] == "running")
                wait_until(lambda: stream.received and stream.received[-1][1] > killed_ns + 10**9, 10)
            assert pair.process("a", "core-0") != victim
            counts = counters(pair, "a")
            assert counts["flows_restored"] == counts["live_flows"] == flows
            assert owner(pair, "a")["state"] == owner(pair, "b")["state"] == "in sync"
            assert restarts(pair, "a") == {"owner-system": 0, "core-0": 1, "monitor": 1}
        assert "took over" not in pair.printed("b")

    def test_whichever_process_the_node_cannot_do_without(self, make: MakePair) -> None:
        """G6: owner system, supervisor, admin, launcher: each time the node ends as a whole and the backup takes over;

        then what died comes back as the backup of the other. One connection lives through all of it.
        """
        pair = make()
        pair.start()
        primary: Name
        primary, backup = "a", "b"
        with long_lived(pair) as (stream, _):
            for turn, victim in enumerate(("owner-system", "node", "admin", "launcher"), 2):
                time.sleep(0.2)
                everything = set(pair.processes(primary))
                launcher = pair.nodes[primary]
                if victim == "launcher":
                    pid = launcher.pid
                elif victim == "admin":
                    pid = int(Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()[0])
                else:
                    pid = pair.process(primary, victim)
                killed_ns = time.monotonic_ns()
                os.kill(pid, signal.SIGKILL)
                taken = pair.wait_takeover(backup)
                check_takeover(taken)
                assert taken["epoch"] == turn * TERM_EPOCHS
                assert launcher.wait(15) != 0
                wait_gone(everything)
                assert inhabitants(pair, primary) == []
                wait_until(lambda: stream.received[-1][1] > killed_ns + 10**9)
                if victim == "owner-system":
                    assert "the owner system owner-system ended (killed by SIGKILL)" in pair.printed(primary)
                    assert "Traceback" not in pair.printed(primary)
                assert stream.outage_ms(killed_ns) < OUTAGE_MS_MAX
                pair.launch(primary, "backup")
                pair.wait_in_sync(primary)
                primary, backup = backup, primary
        for node in pair.nodes:
            assert verified(pair, node).epoch == 5 * TERM_EPOCHS

    def test_random_kills_under_churn(self, make: MakePair) -> None:
        """G3, G4, G5: whatever dies when, no translation was ever seen outside that the survivor's log does not have,

        none was given twice, and every log replays.
        """
        seed = random.SystemRandom().randrange(1 << 32)
        print(f"seed {seed}")
        chance = random.Random(seed)
        inside = [f"10.0.0.{host}" for host in (2, 3, 4)]
        pair = make(settings='address = "203.0.113.1"\nfirst_port = 20000\nlast_port = 21999')
        pair.lab.ip("client", *(f"addr add {address}/24 dev eth0" for address in inside[1:]))
        pair.start()
        primary: Name
        primary, backup = "a", "b"
        rounds = 0
        with Capture(pair.lab, "client") as client, Capture(pair.lab, "server") as server:
            with long_lived(pair), Churn(pair.lab, inside, range(20000, 20600), seed) as churn:
                until = time.monotonic() + CHURN_S
                while time.monotonic() < until:
                    time.sleep(chance.uniform(0.05, 1.0))
                    victim = chance.choice(("primary", "primary", "owner-system", "core-0", "backup"))
                    rounds += 1
                    print(f"{rounds}: {victim}, node {primary} is primary", flush=True)
                    if victim == "core-0":
                        before = pair.process(primary, victim)
                        os.kill(before, signal.SIGKILL)
                        wait_until(lambda: pair.process(primary, "core-0") != before)
                        continue
                    dead = backup if victim == "backup" else primary
                    if victim == "owner-system":
                        os.kill(pair.process(primary, victim), signal.SIGKILL)
                        assert pair.nodes[primary].wait(15) != 0
                    else:
                        pair.kill(dead)
                    if victim != "backup":
                        check_takeover(pair.wait_takeover(backup))
                        primary, backup = backup, primary
                    verified(pair, dead)
                    pair.launch(dead, "backup")
                    pair.wait_in_sync(dead)
                time.sleep(0.5)
        assert rounds >= 5
        for process in pair.nodes.values():
            process.terminate()
            assert process.wait(15) == 0
        print(f"{rounds} rounds, {churn.exchanged} exchanged, {churn.unanswered} datagrams unanswered")
        assert churn.failures == []
        assert min(churn.exchanged.values()) > 50
        assert client.dropped == server.dropped == 0
        logged = {node: translations_logged(pair.log(node)) for node in pair.nodes}
        assert violations(client, server, logged[primary]) == []
        assert len({frame.inside for frame in server.frames}) > 100
        for node in pair.nodes:
            verified(pair, node)


class TestOperated:
    """What an operator does with a pair."""

    def test_stop_hands_over_and_promote_takes(self, make: MakePair) -> None:
        """G6, G7: a clean stop is a handover; a promoted backup fences its primary. `status` tells of it all."""
        pair = make()
        pair.start()
        with long_lived(pair) as (stream, _):
            time.sleep(0.3)
            primary, backup = owner(pair, "a"), owner(pair, "b")
            assert (primary["role"], primary["state"], primary["lag_records"]) == ("primary", "in sync", 0)
            assert (backup["role"], backup["state"], backup["lag_records"]) == ("backup", "in sync", 0)
            assert primary["epoch"] == backup["epoch"] == TERM_EPOCHS
            assert primary["lsn"] == primary["logged_lsn"] == primary["watermark"] == backup["lsn"] > 2
            assert primary["flows"] == backup["flows"] == 2
            assert primary["link"]["peer"].startswith("10.9.0.2:")
            assert counters(pair, "a")["offloaded"] > 100 and counters(pair, "b")["rx_packets"] == 0
            text = pair.command("status", "a")
            assert "in sync" in text and "core-0" in text and "refused" in text

            before_ns = time.monotonic_ns()
            everything = set(pair.processes("a"))
            pair.stop("a")
            taken = pair.wait_takeover("b")
            assert taken["reason"] == "handover"
            check_takeover(taken)
            assert pair.nodes["a"].returncode == 0
            wait_gone(everything)
            wait_until(lambda: stream.received[-1][1] > time.monotonic_ns() - 5_000_000)
            assert stream.outage_ms(before_ns) < OUTAGE_MS_MAX / 4
            records = verified(pair, "a").lsn
            assert verified(pair, "b").lsn > records, "the handed-over log is a part of the new primary's"

            pair.launch("a", "backup")
            pair.wait_in_sync("a")
            before_ns = time.monotonic_ns()
            printed = pair.command("promote", "a")
            assert f"epoch={3 * TERM_EPOCHS}" in printed and "reason=operator" in printed
            assert pair.wait_takeover("a")["reason"] == "operator"
            assert pair.nodes["b"].wait(15) == 1
            assert f"epoch {3 * TERM_EPOCHS} exists: this node is no longer the primary" in pair.printed("b")
            wait_until(lambda: stream.received[-1][1] > time.monotonic_ns() - 5_000_000)
            assert stream.outage_ms(before_ns) < OUTAGE_MS_MAX / 4
            assert owner(pair, "a")["takeover"]["records_replayed"] == 0

    def test_backup_joins_under_traffic(self, make: MakePair) -> None:
        """G6: by the log's tail and by a snapshot, with records of new flows coming in meanwhile."""
        pair = make()
        nf, settings = load_nf(NF, {})
        with Log(pair.log("a"), name="pair", nf=NF) as log:  # so long a log that only a snapshot leads through it
            journal = Journal(log)
            journal.begin_epoch(TERM_EPOCHS, "pair/primary", nf, settings, "made by a test", time.time_ns())
            for _ in range(100):
                for _ in range(TAIL_RECORDS_MAX // 100):
                    journal.execute(ControlBody("padding", ""), 0, time.time_ns())
                journal.commit()
        pair.launch("a", "primary")
        with long_lived(pair), Churn(pair.lab, ["10.0.0.2"], range(30000, 40000), 1) as churn:
            time.sleep(0.3)
            pair.launch("b", "backup")
            pair.wait_in_sync("b")
            assert "by snapshot" in pair.printed("b")
            check_takeover_of(pair, "a", "b")
            pair.launch("a", "backup")
            pair.wait_in_sync("a")
            assert "by tail" in pair.printed("a")
            check_takeover_of(pair, "b", "a")
        assert churn.failures == []
        assert verified(pair, "a").epoch == verified(pair, "b").epoch + TERM_EPOCHS

    def test_old_primary_comes_back_with_records_of_its_own(self, make: MakePair) -> None:
        """G8: what only the dead primary logged was never committed, and is cut; a log that went its own way is kept."""
        pair = make()
        pair.start()
        with long_lived(pair):
            time.sleep(0.2)
            pair.kill("a")
            pair.wait_takeover("b")
            with Log(pair.log("a")) as log:  # as if it had died between its own log and the backup's
                journal = Journal(log)
                end = journal.lsn
                for _ in range(3):
                    journal.execute(ControlBody("never committed", ""), 0, time.time_ns())
                journal.commit()
            pair.launch("a", "backup")
            pair.wait_in_sync("a")
            assert '"records":3' in pair.printed("a") and f'"after_lsn":{end}' in pair.printed("a")
            check_takeover_of(pair, "b", "a")
        assert verified(pair, "a").problem is None

        with Log(pair.log("b")) as log:  # it goes on as primary of its own: a fork that only a person can judge
            nf, settings = load_nf(NF, {})
            journal = Journal(log)
            journal.begin_epoch(journal.epoch + 1, "pair/backup", nf, settings, "alone", time.time_ns())
            for _ in range(50):
                journal.execute(ControlBody("another history", ""), 0, time.time_ns())
            journal.commit()
            lsn = log.last_lsn
        process = pair.begin("b", "backup")
        assert process.wait(15) == 1
        assert "refuses this backup" in pair.printed("b").splitlines()[-1]
        with Log(pair.log("b"), readonly=True) as log:
            assert log.last_lsn == lsn


def check_takeover_of(pair: Pair, dead: Name, survivor: Name) -> None:
    """Kill a primary in sync; flows of the survivor's core are those of its owner system."""
    pair.kill(dead)
    check_takeover(pair.wait_takeover(survivor))
    counts = counters(pair, survivor)
    assert counts["handler_error"] == 0
    assert counts["flows_restored"] > 0


class TestTwoCores:
    """Flows on two cores, whose packets come to either."""

    def test_same_results_as_one_core_and_failover(self, make: MakePair) -> None:
        """G1, G6: return traffic reaches the flow's core; two cores translate as one does; a takeover serves both."""
        found = {}
        for cores in (1, 2):
            pair = make(cores=cores)
            pair.start()
            with ExitStack() as opened:
                endpoints = [opened.enter_context(Echoing(pair, 41000 + number)) for number in range(24)]
                assert all(endpoint.asks() for endpoint in endpoints)
                found[cores] = [endpoint.seen_as for endpoint in endpoints]
                if cores == 2:
                    with long_lived(pair) as (stream, _):
                        self._flows_on_both(pair)
                        time.sleep(0.2)
                        killed_ns = pair.kill("a")
                        taken = pair.wait_takeover("b")
                        check_takeover(taken)
                        wait_until(lambda: stream.received[-1][1] > killed_ns + 10**9)
                        assert stream.outage_ms(killed_ns) < OUTAGE_MS_MAX
                        before = found[cores]
                        assert all(endpoint.asks() for endpoint in endpoints)
                        assert [endpoint.seen_as for endpoint in endpoints] == before
                        live = [counters(pair, "b", core)["live_flows"] for core in (0, 1)]
                        assert sum(live) == taken["flows"] and min(live) > 0
                        self._restart_from_the_log(pair, endpoints)
                else:
                    for node in ("b", "a"):
                        pair.nodes[node].terminate()
                        pair.nodes[node].wait(15)
        assert found[1] == found[2]
        assert verified(pair, "b").flows >= 24

    @staticmethod
    def _flows_on_both(pair: Pair) -> None:
        counts = [counters(pair, "a", core) for core in (0, 1)]
        assert min(count["flows_opened"] for count in counts) > 4
        assert sum(count["handed_off"] for count in counts) > 0
        assert sum(count["handoff_full"] + count["handoff_stale"] for count in counts) == 0

    @staticmethod
    def _restart_from_the_log(pair: Pair, endpoints: list[Echoing]) -> None:
        """A node that starts from its log knows which core's flows the return traffic belongs to, too."""
        before = [endpoint.seen_as for endpoint in endpoints]
        pair.kill("b")
        pair.launch("b", "primary")
        assert all(endpoint.hears() for endpoint in endpoints), "the server speaks first"
        assert all(endpoint.asks() for endpoint in endpoints)
        assert [endpoint.seen_as for endpoint in endpoints] == before


class Echoing:
    """A client's UDP socket and what the server sees of it."""

    def __init__(self, pair: Pair, port: int) -> None:
        from actornet.testing.traffic import _udp

        self._client = pair.lab.call("client", _udp, "10.0.0.2", port)
        self._server = pair.lab.call("server", _udp, SERVER, port)
        self._port = port
        self.seen_as: tuple[str, int] = ("", 0)

    def __enter__(self) -> Echoing:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()
        self._server.close()

    def asks(self) -> bool:
        """Whether a datagram gets to the server and its answer back."""
        for _ in range(3):
            self._client.sendto(b"ask", (SERVER, self._port))
            try:
                _, self.seen_as = self._server.recvfrom(64)
                return self.hears()
            except TimeoutError:
                continue
        return False

    def hears(self) -> bool:
        """Whether a datagram of the server gets to the client."""
        for _ in range(3):
            self._server.sendto(b"told", self.seen_as)
            try:
                return self._client.recv(64) == b"told"
            except TimeoutError:
                continue
        return False
