"""Supervision with real processes: who is restarted, who stops the node, and that nothing is left behind."""

import contextlib
import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from processes import descendants, free_port, is_alive, wait_gone, wait_until

from actornet.cli import node as node_commands
from actornet.cli.main import main
from actornet.errors import NodeError, UsageError
from actornet.limits import CORE_ENDED_FIRST
from actornet.node import events, supervisor
from actornet.node.control import NodeClient, Start
from actornet.node.launcher import launch

KEY = b"a deployment's key, 32 bytes long"
FORK = multiprocessing.get_context("fork")


class LaunchedNode:
    """A launcher in a process of its own, and what became of it."""

    def __init__(self, argument: dict[str, Any], log: Path) -> None:
        self.control = f"127.0.0.1:{free_port()}"
        self.log = log
        self._outcome, outcome = FORK.Pipe(duplex=False)
        self.process = FORK.Process(target=self._launch, args=(argument, outcome))
        self.process.start()
        outcome.close()

    def _launch(self, argument, outcome):
        sys.stderr = self.open_log()
        events.configure()
        start = Start("edge", "primary", "trivial_node:plan", argument)
        try:
            launch(self.control, KEY, start, lambda ready: outcome.send(("ready", ready.workers)))
        except NodeError as error:
            outcome.send((str(error), error.exit_code))
        else:
            outcome.send(("stopped", 0))

    def open_log(self):
        return self.log.open("a")

    def outcome(self, timeout_s: float = 5.0) -> tuple[str, int]:
        """("ready", workers), and at the end ("stopped", 0) or (error, exit code)."""
        assert self._outcome.poll(timeout_s), "the launcher said nothing in time"
        return self._outcome.recv()

    def client(self) -> NodeClient:
        return NodeClient(self.control, KEY)

    def processes(self) -> set[int]:
        return descendants(self.process.pid)

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]

    def close(self) -> None:
        below = self.processes()
        self.process.kill()
        self.process.join()
        wait_gone(below)


@pytest.fixture
def launched(tmp_path: Path) -> Iterator[Callable[..., LaunchedNode]]:
    nodes = []

    def start(**argument):
        nodes.append(LaunchedNode({"directory": str(tmp_path), **argument}, tmp_path / "events"))
        return nodes[-1]

    yield start
    for node in nodes:
        node.close()


@pytest.fixture
def node(launched) -> LaunchedNode:
    node = launched(cores=2, stall_s=0.3)
    assert node.outcome() == ("ready", 3)
    return node


def worker(status: dict[str, Any], name: str) -> dict[str, Any]:
    return next(each for each in status["workers"] if each["name"] == name)


def restarted(client: NodeClient, name: str, before: int) -> Callable[[], bool]:
    def look():
        now = worker(client.status(), name)
        return now["state"] == "running" and now["pid"] != before

    return look


def test_status_shows_every_worker(node):
    with node.client() as client:
        status = client.status()
    assert (status["name"], status["role"], status["state"]) == ("edge", "primary", "running")
    assert [each["name"] for each in status["workers"]] == ["core-0", "core-1", "owners", "monitor"]
    assert {each["pid"] for each in status["workers"]} | {status["pid"]} < node.processes()
    for each in status["workers"]:
        assert each["state"] == "running" and each["restarts"] == 0
        assert Path(f"/proc/{each['pid']}/comm").read_text().strip() == each["name"]
    core = worker(status, "core-0")
    assert os.sched_getaffinity(core["pid"]) == set(core["cpus"])
    assert core["status"]["key_bytes"] == len(KEY)  # reached it through memory
    for pid in node.processes():
        assert KEY not in Path(f"/proc/{pid}/cmdline").read_bytes() + Path(f"/proc/{pid}/environ").read_bytes()


@pytest.mark.parametrize("how", ["SIGKILL", "SIGSEGV", "SIGTERM"])
def test_a_core_that_ends_is_restarted_with_the_same_memory(node, how):
    with node.client() as client:
        before = client.status()
        pid = worker(before, "core-1")["pid"]
        os.kill(pid, getattr(signal, how))
        took_s = wait_until(restarted(client, "core-1", pid))
        after = client.status()
        wait_until(lambda: worker(client.status(), "monitor")["status"]["rest_s"]["core-1"] < 0.25)  # its beat moves
    assert took_s < 5
    assert worker(after, "core-1")["restarts"] == 1
    for name in ("core-0", "owners", "monitor"):
        assert worker(after, name)["pid"] == worker(before, name)["pid"]
    if how != "SIGTERM":
        ended = next(event for event in node.events() if event["event"] == "worker ended")
        assert ended["how"].startswith(f"killed by {how}")


def test_a_monitor_that_ends_is_restarted(node):
    with node.client() as client:
        pid = worker(client.status(), "monitor")["pid"]
        os.kill(pid, signal.SIGKILL)
        wait_until(restarted(client, "monitor", pid))
        assert client.status()["state"] == "running"


def test_a_core_that_stalls_is_killed_and_restarted(node):
    """G9: a core that hangs is not left to hang."""
    with node.client() as client:
        pid = worker(client.status(), "core-0")["pid"]
        os.kill(pid, signal.SIGSTOP)
        took_s = wait_until(restarted(client, "core-0", pid))
        status = client.status()
    assert 0.2 < took_s < 10
    assert worker(status, "monitor")["status"]["stalls"] == 1
    assert not is_alive(pid)


def test_a_core_that_takes_much_memory_is_told_of(launched):
    """What no flow can be blamed for is for a person to look at; the kernel ends a core before its owner system."""
    node = launched(cores=1, core_bytes_max=1 << 20)
    assert node.outcome() == ("ready", 2)
    with node.client() as client:
        wait_until(lambda: any(event["event"] == "a core takes much memory" for event in node.events()))
        status = client.status()
    (event,) = [event for event in node.events() if event["event"] == "a core takes much memory"]
    assert (event["name"], event["core_memory_mb"]) == ("core-0", 1) and event["memory_mb"] > 1
    assert all(each["memory_bytes"] > 1 << 20 for each in status["workers"])
    scores = {each["name"]: Path(f"/proc/{each['pid']}/oom_score_adj").read_text() for each in status["workers"]}
    assert int(scores["core-0"]) == CORE_ENDED_FIRST > int(scores["owners"])


def test_a_core_that_cannot_stay_up_stops_the_node(launched):
    node = launched(core="fail_at_once")
    outcome = node.outcome()
    if outcome[0] == "ready":
        outcome = node.outcome()
    error, code = outcome
    assert error.startswith("core-0 ended 6 times within 10 s, at last so: exit code 1: ValueError: every time")
    assert code == 1
    node.process.join(2)
    assert not node.processes()
    failures = [event for event in node.events() if event["event"] == "worker failed"]
    assert len(failures) == 6
    assert "trivial_node.py" in failures[0]["exception"] and failures[0]["worker"] == "core-0"
    assert (node.log.parent / "stopped").read_text().startswith("owners core-0 ended 6 times")  # in order


@pytest.mark.parametrize("how", ["killed", "raises", "crashes", "stalls"])
def test_an_owner_system_that_ends_stops_the_node(node, how):
    """G7: cores do not outlive the owner system that decides for them; the peer takes over."""
    with node.client() as client:
        status = client.status()
        owners = worker(status, "owners")["pid"]
        if how == "killed":
            os.kill(owners, signal.SIGKILL)
        else:
            with contextlib.suppress(NodeError):  # it may end before it has answered
                client.call({"raises": "raise", "crashes": "crash", "stalls": "stall"}[how])
    wait_gone({worker(status, "core-0")["pid"], worker(status, "core-1")["pid"], owners})
    error, code = node.outcome()
    how_it_ended = {"raises": "exit code 1: ValueError: a bug in the data plane", "crashes": "killed by SIGSEGV"}
    assert error == f"the owner system owners ended ({how_it_ended.get(how, 'killed by SIGKILL')})"
    assert code == 1
    node.process.join(2)
    assert not node.processes()
    assert not (node.log.parent / "stopped").exists()  # cores were not asked, they were killed


@pytest.mark.parametrize("by", ["client", "SIGTERM", "SIGINT"])
def test_stop_is_orderly_and_leaves_nothing(node, by):
    everyone = node.processes()
    if by == "client":
        with node.client() as client:
            client.stop()
    else:
        os.kill(node.process.pid, getattr(signal, by))
    assert node.outcome() == ("stopped", 0)
    node.process.join(2)
    assert not any(map(is_alive, everyone))
    trace = (node.log.parent / "stopped").read_text().splitlines()
    assert sorted(trace[:2]) == ["core-0 asked to", "core-1 asked to"] and trace[2] == "owners asked to"
    with pytest.raises(NodeError, match="no node runs at"):
        node.client()


def test_who_does_not_stop_is_killed(launched, monkeypatch):
    monkeypatch.setattr(supervisor, "WORKER_STOP_S", 0.2)
    node = launched(core="ignore_stop")
    assert node.outcome() == ("ready", 2)
    with node.client() as client, pytest.raises(NodeError, match=r"core-0 did not stop within 0\.2 s and was killed"):
        client.stop()
    assert node.outcome() == ("core-0 did not stop within 0.2 s and was killed", 1)
    assert (node.log.parent / "stopped").read_text().startswith("owners")


@pytest.mark.parametrize("victim", ["launcher", "supervisor"])
def test_sigkill_above_leaves_nothing_below(node, victim):
    everyone = node.processes()
    with node.client() as client:
        status = client.status()
    pid = node.process.pid if victim == "launcher" else status["pid"]
    os.kill(pid, signal.SIGKILL)
    below = {each["pid"] for each in status["workers"]}
    wait_gone(below)
    if victim == "supervisor":
        error, code = node.outcome()
        assert error.startswith("the node's supervisor died, so everything of it was killed") and code == 1
    wait_gone(everyone)


@pytest.mark.parametrize(
    ("argument", "error"),
    [
        ({"core": "cannot_start"}, "interface wan0 is absent: create it, or name another"),
        ({"core": "return_early"}, "core-0 returned before it was told to stop"),
        ({"core": "no_such_function"}, "there is no function 'trivial_node:no_such_function'"),
        ({"beats": "no_such_function"}, "there is no function 'trivial_node:no_such_function'"),
        ({"error": "the log is locked"}, "the log is locked"),
        ({"bug": True}, "trivial_node:plan failed: ZeroDivisionError: in the factory"),
    ],
)
def test_a_node_that_cannot_start_says_why(launched, argument, error):
    node = launched(**argument)
    told, code = node.outcome()
    assert told.startswith(error)
    assert code == (UsageError.exit_code if "no function" in error else 1)
    node.process.join(2)
    assert not node.processes()
    told = [event["event"] for event in node.events() if event["level"] != "info"]
    assert told == (
        ["the node's plan failed", "node stops"] if "bug" in argument else []
    )  # the launcher's line is enough


def test_commands_go_to_the_owner_system_and_errors_come_back(node):
    with node.client() as client:
        assert client.promote() == {"did": "promote"}
        assert client.call("move", where="here") == {"did": "move", "where": "here"}
        with pytest.raises(NodeError, match="refuses to refuse: not now"):
            client.call("refuse")
        with pytest.raises(NodeError, match="refuses to bug: KeyError: 'bug'"):
            client.call("bug")
        assert worker(client.status(), "owners")["status"]["commands"] == ["promote", "move"]


def test_status_does_not_wait_for_a_worker_that_hangs(node):
    with node.client() as client:
        pid = worker(client.status(), "core-0")["pid"]
        os.kill(pid, signal.SIGSTOP)
        started = time.perf_counter()
        status = client.status()
    assert time.perf_counter() - started < 1.0
    assert worker(status, "core-1")["status"] is not None


def test_nobody_dies_because_nobody_reads_the_log(launched, monkeypatch):
    def open_broken_pipe(_self):
        read_end, write_end = os.pipe()
        os.close(read_end)
        return open(write_end, "w")

    monkeypatch.setattr(LaunchedNode, "open_log", open_broken_pipe)
    node = launched(cores=1)
    assert node.outcome() == ("ready", 2)
    with node.client() as client:
        pid = worker(client.status(), "core-0")["pid"]
        os.kill(pid, signal.SIGKILL)
        wait_until(restarted(client, "core-0", pid))
        client.stop()
    assert node.outcome() == ("stopped", 0)


DEPLOYMENT = """
name = "edge"
nf = "actors.nat:SourceNAT"
key_file = "edge.key"
[ports.lan]
interface = "lan0"
[primary]
log = "log-a"
link = "127.0.0.1:1"
control = "{control}"
"""


def test_the_command_line_runs_a_node(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(node_commands, "FACTORY", "trivial_node:plan_of_deployment")
    file, key_file = tmp_path / "edge.toml", tmp_path / "edge.key"
    file.write_text(DEPLOYMENT.format(control=f"127.0.0.1:{free_port()}"))
    key_file.write_bytes(KEY)
    key_file.chmod(0o600)
    assert main(["status", str(file)]) == 1
    assert "no node runs at 127.0.0.1:" in capfd.readouterr().err
    launcher = FORK.Process(target=lambda: os._exit(main(["launch", "primary", str(file), "--cores", "2"])))
    launcher.start()
    try:
        wait_until(lambda: "edge primary ready: 2 cores, control 127.0.0.1:" in capfd.readouterr().out)
        assert main(["launch", "primary", str(file)]) == 1
        assert "is in use, by a node or another program" in capfd.readouterr().err
        assert main(["status", str(file), "--json"]) == 0
        (status,) = json.loads(capfd.readouterr().out)
        assert len(status["workers"]) == 4 and status["refused"] == 0
        assert main(["status", str(file)]) == 0
        lines = capfd.readouterr().out.splitlines()
        assert lines[0].startswith("edge primary: running, up ") and any(
            line.split()[:2] == ["core-0", "running"] for line in lines
        )
        assert main(["promote", str(file), "--role", "primary"]) == 0
        assert "did=promote" in capfd.readouterr().out
        assert main(["promote", str(file), "--role", "primary", "--force"]) == 0
        assert "did=promote force=True" in capfd.readouterr().out
        key_file.write_bytes(KEY[::-1])
        assert main(["status", str(file)]) == 1
        error = capfd.readouterr().err
        assert "has another key: use the key_file of its deployment" in error
        key_file.write_bytes(KEY)
        below = descendants(launcher.pid)
        assert main(["stop", str(file)]) == 0
        launcher.join(3)
        assert launcher.exitcode == 0
        assert not any(map(is_alive, below))
    finally:
        launcher.kill()
        launcher.join()
