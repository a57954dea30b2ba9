"""The pair under kill -9, live: real processes, real peers, in namespaces of its own."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from actornet.replay import History, verify
from actornet.testing.checker import judge
from actornet.testing.pair import Name, Pair
from actornet.testing.traffic import SERVER, Churn, TcpTransfer, UdpStream
from actornet.testing.wiretap import Wiretap
from tests.guard_node import DECIDE_PORT
from tests.processes import is_alive, wait_until

pytestmark = pytest.mark.root

SEED = int(os.environ.get("KILL_SEED", "0")) or random.SystemRandom().getrandbits(32)
FILE_BYTES = 40_000_000


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    with Pair(tmp_path / "pair") as made:
        yield made
        pids = [pid for node in made.nodes for pid in made.processes(node) if made.nodes[node].poll() is None]
    assert not any(map(is_alive, pids)), "a process of the pair is left"


def verify_log(pair: Pair, node: Name) -> None:
    """G4, G8: the log is whole, and re-executing it decides the same."""
    with History(str(pair.directory / f"log-{node}")) as history:
        found = verify(history)
    assert found.problem is None, found.problem


def churn(pair: Pair, flows: int, rng: random.Random) -> None:
    """Short UDP flows from the client, answered or not."""

    def send() -> None:
        for _ in range(flows):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.bind(("10.0.0.2", 0))
                sock.sendto(b"x", (SERVER, rng.randint(20_000, 30_000)))

    pair.lab.call("client", send)


def burst(flows: int) -> None:
    """So many flows at once, of one inside endpoint."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("10.0.0.2", 0))
        for port in range(flows):
            sock.sendto(b"x", (SERVER, 10_000 + port))


def test_a_download_and_iperf3_survive_the_primary(pair: Pair, tmp_path: Path) -> None:
    """G6: nothing is reset, no byte is wrong, and there is nothing to replay."""
    site = tmp_path / "site"
    site.mkdir()
    content = os.urandom(FILE_BYTES)
    (site / "file").write_bytes(content)
    pair.start()
    pair.lab.serve("server", 8000, [sys.executable, "-m", "http.server", "8000", "--directory", str(site)])
    pair.lab.serve("server", 5201, ["iperf3", "-s"])
    curl = pair.lab.popen(
        "client", ["curl", "-sS", "--limit-rate", "16M", "-o", str(tmp_path / "got"), f"http://{SERVER}:8000/file"]
    )
    iperf = pair.lab.popen("client", ["iperf3", "-c", SERVER, "-t", "3"], stdout=subprocess.DEVNULL)
    time.sleep(1.0)
    pair.kill("a")
    taken = pair.wait_takeover("b")
    assert curl.wait(20) == 0 and iperf.wait(20) == 0
    assert hashlib.sha256((tmp_path / "got").read_bytes()).digest() == hashlib.sha256(content).digest()
    assert taken["records_replayed"] == 0 and taken["flows_waiting_for_cores"] == 0 and taken["flows"] >= 2
    pair.stop("b")
    verify_log(pair, "a")
    verify_log(pair, "b")


@pytest.mark.parametrize("witness", [False, True])
def test_an_operator_promotes_the_backup(tmp_path: Path, witness: bool) -> None:
    """G6, G7: the primary hands over, lease and all, and ends in order; `promote` alone means the node that does not lead."""
    place = f"file:{tmp_path}/witness" if witness else "none"
    with Pair(tmp_path / "pair", witness=place) as pair:
        pair.start()
        with UdpStream(pair.lab) as stream, TcpTransfer(pair.lab) as transfer:
            time.sleep(0.3)
            began_ns = time.monotonic_ns()
            assert "reason=handover" in pair.command("promote", "b")
            assert pair.nodes["a"].wait(15) == 0 and "an operator wants" in pair.printed("a")
            pair.wait_takeover("b")
            assert pair.status("b")["role"] == "primary" and pair.status("b")["launched_as"] == "backup"
            pair.begin("a", "backup")
            pair.wait_in_sync("a")
            argv = [sys.executable, "-m", "actornet.cli.main", "promote", str(pair.file("b"))]
            assert "reason=handover" in pair.lab.run("a", argv).stdout
            assert pair.nodes["b"].wait(15) == 0
            time.sleep(0.3)
        assert transfer.outcome()
        assert stream.outage_ms(began_ns) < 1000 and stream.received[-1][0] > stream.sent - 50
        pair.stop("a")
    verify_log(pair, "a")
    verify_log(pair, "b")


@pytest.mark.parametrize("durability", ["received", "durable"])
def test_what_other_modes_promise_outlives_the_primary(tmp_path: Path, durability: str) -> None:
    """G3, G6: whatever an acknowledgement means, each translation that was seen outside is in the survivor's state."""
    chance = random.Random(f"{SEED} {durability}")
    with Pair(tmp_path / "pair", durability=durability) as pair:
        pair.start()
        with Wiretap(pair.lab) as tap, TcpTransfer(pair.lab) as transfer:
            churn(pair, 100, chance)
            (backup,) = pair.worker("a", "owner-system")["status"]["backups"]
            assert backup[f"{durability}_lsn"] > 100 and (backup["durable_lsn"] > 0) == (durability == "durable")
            pair.lab.call("client", burst, 200)
            pair.kill("a")
            assert pair.wait_takeover("b")["records_replayed"] == 0
            churn(pair, 100, chance)
        assert transfer.outcome()
        pair.stop("b")
    verify_log(pair, "b")
    assert judge(tap.take(), pair.log("b"), takeovers=1) == [], f"seed {SEED}"


def test_a_killed_core_comes_back_with_its_flows(pair: Pair) -> None:
    """G6 for a core: its flows come from the log; the connection goes on, and nobody takes over."""
    pair.start()
    with UdpStream(pair.lab) as stream, TcpTransfer(pair.lab) as transfer:
        time.sleep(0.3)
        os.kill(pair.worker("a", "core-0")["pid"], signal.SIGKILL)
        wait_until(lambda: pair.worker("a", "core-0")["restarts"] == 1, 10)
        killed_ns = time.monotonic_ns()
        time.sleep(0.7)
    assert transfer.outcome()
    assert stream.received[-1][1] > killed_ns, "the stream went on"
    assert pair.worker("a", "core-0")["status"]["counters"]["flows_restored"] >= 2
    assert pair.worker("b", "owner-system")["status"]["role"] == "backup"


def test_revoked_offloads_are_revoked_on_every_node(tmp_path: Path) -> None:
    """G4, G6: an owner's decision reaches the primary's and the backup's cores; a core that restarts gets it from the log."""
    with Pair(tmp_path / "pair", "tests.guard_node:Guard", "") as pair:
        pair.start()

        def send(port: int, count: int) -> None:
            def datagrams() -> None:
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                    sock.bind(("10.0.0.2", 4000 + port % 1000))
                    for _ in range(count):
                        sock.sendto(b"x", (SERVER, port))

            pair.lab.call("client", datagrams)

        def counters(node: Name) -> dict[str, int]:
            counted: dict[str, int] = pair.worker(node, "core-0")["status"]["counters"]
            return counted

        send(5001, 1)
        wait_until(lambda: counters("a")["flows_opened"] == 1, 10)
        send(5001, 10)
        wait_until(lambda: counters("a")["offloaded"] == 10, 10)
        send(DECIDE_PORT, 1)
        wait_until(lambda: counters("a")["flows_opened"] == 2, 10)
        time.sleep(0.2)
        send(5001, 5)
        wait_until(lambda: counters("a")["offloads_revoked"] == 1, 10)
        time.sleep(0.2)
        send(DECIDE_PORT, 1)
        wait_until(lambda: counters("a")["handled"] == 4, 10)
        os.kill(pair.worker("a", "core-0")["pid"], signal.SIGKILL)
        wait_until(lambda: pair.worker("a", "core-0")["restarts"] == 1, 10)
        time.sleep(0.5)
        pair.kill("a")
        pair.wait_takeover("b")
        send(5001, 5)
        wait_until(lambda: counters("b")["rx_packets"] >= 5, 10)
        time.sleep(0.2)
        found = counters("b")
        assert found["handled"] >= 1 and found["flows_opened"] == 0, "its flow was there, and its offload void"
        pair.stop("b")
        verify_log(pair, "b")


def test_an_owner_system_is_real_time_once_somebody_counts_on_it(pair: Pair) -> None:
    """G6: not while it waits for its primary or restores a snapshot, when cores on its CPU have better use for that."""
    pair.launch("b", "backup")
    wait_until(lambda: _priorities(pair, "b") == [0, 0], 5)
    pair.launch("a", "primary")
    pair.wait_in_sync("b")
    for node in pair.nodes:
        wait_until(lambda node=node: _priorities(pair, node) == [1, 2], 5)


def _priorities(pair: Pair, node: Name) -> list[int]:
    """The two highest real-time priorities of its threads: that which brings the log to the disk, and its loop."""
    tasks = [int(task.name) for task in Path(f"/proc/{pair.worker(node, 'owner-system')['pid']}/task").iterdir()]
    return sorted(os.sched_getparam(task).sched_priority for task in tasks)[-2:]


def test_a_clean_stop_hands_over(pair: Pair) -> None:
    """The backup takes over at once, for the reason `handover`."""
    pair.start()
    with UdpStream(pair.lab) as stream:
        time.sleep(0.3)
        began_ns = time.monotonic_ns()
        pair.stop("a")
        taken = pair.wait_takeover("b")
        time.sleep(0.5)
    assert taken["reason"] == "handover" and taken["records_replayed"] == 0
    assert stream.outage_ms(began_ns) < 1000 and stream.received[-1][0] > stream.sent - 50
    verify_log(pair, "a")


@pytest.mark.parametrize("victim", ["everything", "owner-system", "launcher"])
def test_random_kills_lose_no_translation(tmp_path: Path, victim: str) -> None:
    """G3, G5, G7, G8: whatever dies and when, what has left is in the survivor's log, and both logs are sound.

    Cores outlive their owner system by some milliseconds, in which only a lease tells them to be silent.
    """
    rng = random.Random(f"{SEED} {victim}")
    witness = "none" if victim == "everything" else f"file:{tmp_path}/witness"
    with Pair(tmp_path / "pair", witness=witness, lease_ms=150) as pair:
        with Wiretap(pair.lab) as tap:
            pair.start()
            exchanges = Churn(pair.lab, ["10.0.0.2"], range(2000, 2100), SEED, threads=1)
            with UdpStream(pair.lab) as stream, exchanges:
                churn(pair, rng.randint(50, 300), rng)
                time.sleep(rng.random() * 0.2)
                if victim == "everything":
                    pair.kill("a")
                else:
                    pid = pair.nodes["a"].pid if victim == "launcher" else pair.worker("a", victim)["pid"]
                    os.kill(pid, signal.SIGKILL)
                taken = pair.wait_takeover("b")
                taken_ns = time.monotonic_ns()
                churn(pair, 50, rng)
                time.sleep(0.4)
        assert taken["records_replayed"] == 0, f"seed {SEED}, {victim}"
        assert stream.received[-1][1] > taken_ns, f"seed {SEED}, {victim}: the stream went on"
        assert exchanges.failures == [], f"seed {SEED}, {victim}"
        pair.stop("b")
        verify_log(pair, "b")
        verify_log(pair, "a")
        assert judge(tap.take(), pair.log("b"), takeovers=1) == [], f"seed {SEED}, {victim}"


def test_two_cores_translate_as_one(tmp_path: Path) -> None:
    """Packets that come to the wrong core are handed to the right one; a takeover keeps both cores' flows."""
    with Pair(tmp_path / "pair", cores=2) as pair:
        pair.start()
        with UdpStream(pair.lab) as stream, TcpTransfer(pair.lab) as transfer:
            churn(pair, 40, random.Random(1))
            time.sleep(0.5)
            cores = [pair.worker("a", f"core-{core}")["status"]["counters"] for core in range(2)]
            killed_ns = pair.kill("a")
            pair.wait_takeover("b")
            time.sleep(0.8)
        assert transfer.outcome() and stream.outage_ms(killed_ns) < 1000
        assert all(counters["flows_opened"] for counters in cores), "both cores have flows"
        assert sum(counters["handler_error"] for counters in cores) == 0


@pytest.mark.parametrize(("cores", "poll"), [(1, "adaptive"), (2, "busy")])
def test_a_pair_on_af_xdp(tmp_path: Path, cores: int, poll: str) -> None:
    """G6: as on packet sockets; an ordinary transfer behind veths, with nobody touching ethtool; kill -9 leaves nothing."""
    with Pair(tmp_path / "pair", driver="af_xdp", cores=cores, poll=poll) as pair:
        pair.start()
        with UdpStream(pair.lab) as stream, TcpTransfer(pair.lab) as transfer:
            time.sleep(0.5)
            killed_ns = pair.kill("a")
            assert '"prog"' not in pair.lab.run("a", ["ip", "-d", "-j", "link"]).stdout
            pair.wait_takeover("b")
            time.sleep(0.8)
        assert transfer.outcome() and stream.outage_ms(killed_ns) < 1000
        assert '"prog"' in pair.lab.run("b", ["ip", "-d", "-j", "link"]).stdout
        pair.stop("b")
        verify_log(pair, "b")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (('interface = "lan0"', 'interface = "nowhere0"'), "nowhere0"),
        (("SourceNAT", "SourceMAT"), "SourceNAT"),
        (('address = "203.0.113.1"', 'addres = "203.0.113.1"'), "addres"),
        (("127.0.0.1:7401", "127.0.0.1:7409\nx = 1"), "pair"),
    ],
)
def test_a_wrong_deployment_is_one_line(pair: Pair, change: tuple[str, str], message: str) -> None:
    file = pair.file("a")
    file.write_text(file.read_text().replace(*change, 1))
    done = pair.lab.run("a", [sys.executable, "-m", "actornet.cli.main", "launch", "primary", str(file)], check=False)
    (said,) = [line for line in done.stderr.splitlines() if '"level":"info"' not in line]
    assert done.returncode != 0 and said.startswith("actornet: ") and message in said, done.stderr


def test_a_backup_with_another_key_is_refused(pair: Pair) -> None:
    """G10."""
    pair.launch("a", "primary")
    other = pair.directory / "other"
    other.mkdir()
    (other / "pair.key").touch(0o600)
    (other / "pair.key").write_text("f" * 64)
    (other / "a.toml").write_text(pair.file("a").read_text())
    done = pair.lab.run(
        "b",
        [sys.executable, "-m", "actornet.cli.main", "launch", "backup", str(other / "a.toml")],
        check=False,
        timeout_s=15,
    )
    *_, event, said = done.stderr.splitlines()
    assert done.returncode != 0 and said.startswith("actornet: the primary at 10.9.0.1:7400 cannot be followed: "), (
        done.stderr
    )
    assert "both nodes need the deployment's key file" in said and '"event":"node stopped"' in event
    assert done.stderr.count("has another key") == 2, "one line, and one event for who keeps the log"
    assert pair.worker("a", "owner-system")["status"]["state"] == "alone"
