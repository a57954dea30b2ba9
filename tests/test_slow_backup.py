"""A backup that is slow, by freezes below and above the silence limit and by a slow link: live, under traffic (G3)."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from pathlib import Path
from statistics import median

import pytest

from actornet.limits import SILENCE_MS_DEFAULT
from actornet.node.thread import run_first
from actornet.testing.checker import judge
from actornet.testing.fault_proxy import Fault
from actornet.testing.pair import PATIENT_MS, Pair
from actornet.testing.traffic import SERVER, TcpTransfer, UdpStream, udp_socket
from actornet.testing.wiretap import Wiretap
from tests.processes import wait_echoes, wait_until
from tests.test_takeover import verify_log

pytestmark = pytest.mark.root

SEED = int(os.environ.get("FAULT_SEED", "0")) or random.SystemRandom().getrandbits(32)
DELAY_MS = 5.0
FIRST_PORT = 10_000  # below those that the kernel gives
PATIENCE_S = 8 * PATIENT_MS / 1000
"""For how long an echo is waited for: what waits for a backup may wait as long as the backup may be silent."""


class Opens:
    """New flows, one after the other: how long the echo of each one's first datagram took. `stream` is who echoes."""

    def __init__(self, pair: Pair) -> None:
        self._pair = pair
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.taken: list[tuple[int, float]] = []
        """When each was sent (monotonic ns), and after how many milliseconds the echo came; infinite: it did not."""

    def __enter__(self) -> Opens:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(5)

    def during(self, since_ns: int, until_ns: int) -> list[tuple[int, float]]:
        """Those that were sent within this time."""
        return [(at, took) for at, took in self.taken if since_ns <= at < until_ns]

    def _run(self) -> None:
        run_first()
        port = FIRST_PORT
        while not self._ended.is_set():
            port += 1  # of a port that was used before, the NAT knows the flow
            with self._pair.lab.call("client", udp_socket, "10.0.0.2", port) as sock:
                sock.settimeout(PATIENCE_S)
                sent_ns = time.monotonic_ns()
                sock.sendto(b"", (SERVER, 9000))
                try:
                    sock.recv(64)
                    self.taken.append((sent_ns, (time.monotonic_ns() - sent_ns) / 1e6))
                except TimeoutError:
                    self.taken.append((sent_ns, float("inf")))


def freeze(pid: int, span_s: float) -> tuple[int, int]:
    """Stop a process for so long; returns from when to when it was (monotonic ns)."""
    span: list[int] = []
    tasks = list(Path(f"/proc/{pid}/task").iterdir())

    def run() -> None:
        run_first()
        os.kill(pid, signal.SIGSTOP)
        while not all(task.joinpath("stat").read_text().rpartition(") ")[2][0] == "T" for task in tasks):
            pass  # what runs on another CPU is stopped a moment later
        span.append(time.monotonic_ns())
        time.sleep(span_s)
        span.append(time.monotonic_ns())
        os.kill(pid, signal.SIGCONT)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return span[0], span[1]


def take_over(pair: Pair, stream: UdpStream) -> None:
    """The primary is killed, and the backup goes on; a busy machine may have lost it for a moment before."""
    wait_until(lambda: pair.worker("a", "owner-system")["status"]["state"] == "in sync")
    pair.kill("a")
    assert pair.wait_takeover("b")["records_replayed"] == 0
    wait_echoes(stream)


def judged(pair: Pair, tap: Wiretap) -> list[str]:
    """What was wrong: all that was ever seen outside must be in the log of the node that has taken over."""
    pair.stop("b")
    verify_log(pair, "a")
    verify_log(pair, "b")
    return judge(tap.take(), pair.log("b"), takeovers=1)


def test_a_short_freeze_is_waited_for(tmp_path: Path) -> None:
    """G3: below the silence limit new flows' packets wait for the backup's word, none is lost, and it goes on counting."""
    waited = 0
    with Pair(tmp_path / "pair", silence_ms=PATIENT_MS) as pair, Wiretap(pair.lab) as tap:
        pair.start()
        victim = pair.process("b", "owner-system")
        with UdpStream(pair.lab) as stream, TcpTransfer(pair.lab) as transfer, Opens(pair) as opens:
            time.sleep(0.3)
            for _ in range(10):
                begun_ns, ended_ns = freeze(victim, 0.4 * PATIENT_MS / 1000)
                time.sleep(0.1)
                if ended_ns - begun_ns < 0.8 * PATIENT_MS * 1e6:  # else this machine was too busy to do it
                    sent = opens.during(begun_ns, ended_ns)
                    assert all(at + took * 1e6 >= ended_ns for at, took in sent), "an output did not wait"
                    waited += len(sent)
            assert waited >= 3
            assert '"event":"backup lost"' not in pair.printed("a")
            assert all(took < float("inf") for _, took in opens.taken), "one was lost"
            take_over(pair, stream)
        assert transfer.outcome()
        assert judged(pair, tap) == []


def test_a_long_freeze_is_gone_on_without(tmp_path: Path) -> None:
    """G3, G6: above the limit the primary goes on alone; the backup does not take over, and catches up."""
    with Pair(tmp_path / "pair", silence_ms=SILENCE_MS_DEFAULT) as pair, Wiretap(pair.lab) as tap:
        pair.start()
        with UdpStream(pair.lab) as stream, TcpTransfer(pair.lab) as transfer, Opens(pair) as opens:
            time.sleep(0.3)
            begun_ns = time.monotonic_ns()
            pair.signal("b", signal.SIGSTOP)
            pair.wait_for("a", r'"event":"going on without a backup"')
            status = pair.worker("a", "owner-system")["status"]
            assert (status["state"], status["commits_alone"], status["lag_records"]) == ("alone", True, None)
            wait_until(lambda: opens.during(begun_ns, time.monotonic_ns())[20:])
            during = opens.during(begun_ns, time.monotonic_ns())
            assert max(took for _, took in during) < 10 * SILENCE_MS_DEFAULT, "new flows were not served"
            pair.signal("b", signal.SIGCONT)
            wait_until(lambda: pair.printed("a").count('"event":"backup in sync"') == 2, 10)
            assert '"event":"took over"' not in pair.printed("b")
            time.sleep(0.1)
            take_over(pair, stream)
        assert transfer.outcome()
        assert judged(pair, tap) == []


def test_a_slow_link_is_waited_for(tmp_path: Path) -> None:
    """G3: what depends on a record waits a round trip, offloads do not; `status` shows the lag; a kill then loses nothing."""
    witness = f"file:{tmp_path}/witness"  # if this machine is so busy that the link is silent, nobody takes over
    with Pair(tmp_path / "pair", links={"b": "10.9.0.2:7399"}, witness=witness, lease_ms=150) as pair:
        with pair.fault_proxy("b", SEED) as proxy, Wiretap(pair.lab) as tap:
            pair.start()
            with UdpStream(pair.lab) as stream, TcpTransfer(pair.lab) as transfer, Opens(pair) as opens:
                time.sleep(0.3)
                proxy.fault = Fault(delay_ms=(DELAY_MS, DELAY_MS + 1))
                time.sleep(0.1)
                begun_ns = time.monotonic_ns()
                lags = []
                while not lags or not (lags[-1][0] == "in sync" and lags[-1][1] > 0 and lags[-1][2] > 0):
                    assert len(lags) < 8, f"seed {SEED}: {lags}"
                    status = pair.worker("a", "owner-system")["status"]
                    lags.append((status["state"], status["lag_records"], status["lag_ms"]))
                if '"event":"backup lost"' not in pair.printed("a"):
                    wait_until(lambda: opens.during(begun_ns, time.monotonic_ns())[20:])
                    slowed = opens.during(begun_ns, time.monotonic_ns())
                    assert min(took for _, took in slowed) >= 2 * DELAY_MS, f"seed {SEED}"
                assert not stream.lost(begun_ns), f"seed {SEED}"
                assert median(stream.took_ms(begun_ns)) < 2 * DELAY_MS, "offloaded packets wait for nobody"
                take_over(pair, stream)
            assert transfer.outcome(), f"seed {SEED}"
            assert judged(pair, tap) == [], f"seed {SEED}"
