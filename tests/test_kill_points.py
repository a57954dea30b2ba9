"""kill -9 of real nodes at named points of their work: the other one goes on, both logs are sound, and nothing is lost."""

from __future__ import annotations

import json
import os
import random
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from actornet.testing.checker import judge
from actornet.testing.fault_proxy import Fault
from actornet.testing.pair import Name, Pair, Role
from actornet.testing.traffic import SERVER, TcpTransfer, UdpStream
from actornet.testing.wiretap import Wiretap
from tests.processes import wait_echoes, wait_until
from tests.test_fault_proxy import STATES
from tests.test_takeover import churn, verify_log

pytestmark = pytest.mark.root

SEED = int(os.environ.get("KILL_SEED", "0")) or random.SystemRandom().getrandbits(32)
OTHER: dict[Name, Name] = {"a": "b", "b": "a"}


class Course:
    """A pair of `tests.dying_node` under traffic, to the end of which `finish` looks."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        # With a witness no machine is so busy that a node takes over from one that lives.
        witness = f"file:{directory}/witness"
        links: dict[Name, str] = {"a": "10.9.0.1:7399", "b": "10.9.0.2:7399"}
        self.pair = Pair(directory / "pair", "tests.dying_node:SourceNAT", witness=witness, lease_ms=150, links=links)
        self.chance = random.Random(SEED)
        self.takeovers = 0

    def point(self, node: Name) -> Path:
        return self.directory / f"point-{node}"

    def begin(self, node: Name, role: Role) -> None:
        self.pair.begin(node, role, environment={"ACTORNET_TEST_POINT": str(self.point(node))})

    def start(self) -> None:
        self.begin("a", "primary")
        self.pair.wait_for("a", "^pair primary ready")
        self.begin("b", "backup")
        self.settle()

    def settle(self) -> None:
        """Wait until both nodes say that the backup counts: a busy machine may have parted them again."""
        leader = self.pair.primary
        wait_until(lambda: self._last(leader) == "backup in sync" and self._last(OTHER[leader]) == "in sync", 10)

    def _last(self, node: Name) -> str:
        found: list[str] = STATES.findall(self.pair.printed(node))
        return found[-1] if found else ""

    def arm(self, node: Name, point: str) -> None:
        self.point(node).write_text(point)

    def wait_death(self, node: Name) -> None:
        """It dies where it was told to, if that takes new flows."""
        deadline = time.monotonic() + 10
        while self.point(node).exists():
            assert time.monotonic() < deadline, f"node {node} did not come to {self.point(node).read_text()!r}"
            churn(self.pair, 5, self.chance)
            time.sleep(0.01)
        self.pair.nodes[node].wait(10)

    def leader_dies(self, point: str) -> None:
        """At this point; the other takes over, and the dead one comes back."""
        old = self.pair.primary
        self.arm(old, point)
        self.wait_death(old)
        self.take_over(old)

    def take_over(self, old: Name) -> None:
        """The other node does, and the old leader comes back as its backup."""
        assert self.pair.wait_takeover(OTHER[old])["records_replayed"] == 0
        self.takeovers += 1
        churn(self.pair, 20, self.chance)
        self.begin(old, "backup")
        self.settle()

    def backup_dies(self, point: str) -> None:
        """The leader goes on; the backup comes back."""
        leader = self.pair.primary
        self.arm(OTHER[leader], point)
        self.wait_death(OTHER[leader])
        churn(self.pair, 20, self.chance)
        self.begin(OTHER[leader], "backup")
        self.settle()

    def stop_dies(self) -> None:
        """The leader is told to stop, and dies when it has logged that."""
        old = self.pair.primary
        self.arm(old, "clean stop")

        self.pair.nodes[old].terminate()
        self.pair.nodes[old].wait(10)
        assert not self.point(old).exists()
        self.take_over(old)

    def promotion_dies(self, point: str) -> None:
        """The leader is killed, and the other while it takes over. Then an operator has that one lead."""
        old, new = self.pair.primary, OTHER[self.pair.primary]
        self.arm(new, point)
        self.pair.kill(old)
        self.pair.nodes[new].wait(10)
        assert not self.point(new).exists()
        self.begin(new, "primary")
        self.pair.wait_for(new, "^pair primary ready")
        self.takeovers += 1
        churn(self.pair, 20, self.chance)
        self.begin(old, "backup")
        self.settle()


@pytest.fixture
def course(tmp_path: Path) -> Iterator[Course]:
    course = Course(tmp_path)
    pair = course.pair
    with pair, pair.fault_proxy("a", SEED) as to_b, pair.fault_proxy("b", SEED) as to_a, Wiretap(pair.lab) as tap:
        to_a.fault = to_b.fault = Fault("down", delay_ms=(3, 4))  # what was sent last dies with its sender
        course.start()
        with UdpStream(pair.lab, spacing_s=0.002) as stream, TcpTransfer(pair.lab, pause_s=0.01) as transfer:
            churn(pair, 50, course.chance)
            yield course
            old = pair.primary
            pair.kill(old)
            assert pair.wait_takeover(OTHER[old])["records_replayed"] == 0
            wait_echoes(stream)
        assert transfer.outcome(), f"seed {SEED}"
        survivor = pair.primary
        pair.stop(survivor)
        verify_log(pair, "a")
        verify_log(pair, "b")
        assert judge(tap.take(), pair.log(survivor), takeovers=course.takeovers + 1) == [], f"seed {SEED}"


def test_a_leader_dies_between_log_and_output(course: Course) -> None:
    """G3, G5, G6: before a record is sent, before it has come, and after it was acknowledged, but before cores know."""
    points = ["after append", "sent", "before the watermark"]
    course.chance.shuffle(points)
    for point in points:
        course.leader_dies(point)


def test_a_backup_dies_before_it_acknowledges(course: Course) -> None:
    """G3: its log has what the primary does not know it has; then a leader dies after the record of its clean stop."""
    course.backup_dies("after append")
    course.stop_dies()


def test_a_backup_dies_while_it_takes_over(course: Course) -> None:
    """G6, G7: with the new epoch in its log's metadata, or in its log; what it leads then has all that was seen outside."""
    for point in course.chance.sample(["epoch in metadata", "epoch logged"], 2):
        course.promotion_dies(point)


def test_a_snapshot_is_cut_short(course: Course) -> None:
    """G6, G8: by the death of either side; the next attempt begins anew, and half a snapshot is none."""
    pair = course.pair
    leader, other = pair.primary, OTHER[pair.primary]
    for point in ("taking chunks", "after install"):
        if pair.nodes[other].poll() is None:
            pair.kill(other)
            shutil.rmtree(pair.log(other))
        course.arm(other, point)
        course.begin(other, "backup")
        pair.nodes[other].wait(10)
        assert not course.point(other).exists()
    shutil.rmtree(pair.log(other))
    course.arm(leader, "sending chunks")
    course.begin(other, "backup")
    pair.nodes[leader].wait(10)
    assert not course.point(leader).exists()
    assert '"event":"took over"' not in pair.printed(other), "it has nothing"
    course.begin(leader, "primary")
    pair.wait_for(leader, "^pair primary ready")
    course.settle()


def test_what_nobody_uses_any_more_comes_back(tmp_path: Path) -> None:
    """G5: clients vanish in the middle of their opens, and so does the primary: each port is given back in the end."""
    settings = 'address = "203.0.113.1"\nudp_idle_s = 1.0\ntcp_idle_s = 1.0\ntcp_transitory_idle_s = 1.0'
    count = 40
    with Pair(tmp_path / "pair", "tests.dying_node:HesitatingNAT", settings) as pair:
        pair.start()
        pair.lab.call("client", open_and_vanish, count)
        wait_until(lambda: pair.worker("b", "owner-system")["status"]["applied_lsn"] >= count, 5)
        pair.lab.ip("client", "link set eth0 down")
        pair.kill("a")
        taken = pair.wait_takeover("b")
        assert taken["flows"] == 0, "what the flows were given is logged, and nothing else of them"
        at = ["--at", str(taken["lsn"])]
        assert len(mapped(pair, *at)) == count
        wait_until(lambda: not mapped(pair), 10)
        assert pair.worker("b", "core-0")["status"]["counters"]["resumed"] == count
        pair.stop("b")
        verify_log(pair, "b")


def mapped(pair: Pair, *flags: str) -> list[object]:
    """The mappings that the survivor's log says there are, by `actornet replay state`."""
    argv = [sys.executable, "-m", "actornet.cli.main", "replay", "state", str(pair.log("b")), "wan-ports", "--json"]
    state = json.loads(subprocess.run([*argv, *flags], capture_output=True, text=True, check=True, timeout=10).stdout)
    found: list[object] = state["state"]["by_inside"]
    return found


def open_and_vanish(count: int) -> None:
    """So many new flows, half of them by TCP, whose clients are heard of only once."""
    for number in range(count // 2):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp, socket.socket() as tcp:
            for sock in (udp, tcp):
                sock.bind(("10.0.0.2", 10_000 + number))
            udp.sendto(b"x", (SERVER, 9))
            tcp.setblocking(False)
            tcp.connect_ex((SERVER, 9))
