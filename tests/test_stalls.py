"""Handlers that do not return."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from actornet.errors import HandlerStalled
from actornet.node.deployment import load_deployment
from actornet.testing.netns import Lab
from actornet.testing.pair import ask_worker
from tests.live_ports import raw_socket, until
from tests.stuck_node import (
    BREAKS,
    CATCHES,
    CRASHES,
    EXITS,
    EXITS_AT_ONCE,
    HANGS,
    HANGS_AT_ONCE,
    LOOPS,
    LOOPS_IN_ASYNC,
    MATCHES,
    SLEEP_S,
    SLEEPS,
    Stuck,
)
from tests.test_core import Bench, packet, payloads
from tests.test_drivers import DEPLOYMENT, by_flow, collected, frame, launched

ORDINARY = 53


def test_a_handler_that_is_interrupted_fails_as_any_other() -> None:
    class Interrupted(Stuck):
        def on_packet(self, packet: Any) -> Any:
            assert node.core.running is self
            raise HandlerStalled

    node = Bench(Interrupted)
    node.lan_in(packet(1))
    assert node.core.running is None
    assert payloads(node.out()) == [1], "its policy is fail-open"
    assert node.count("handler_stalled") == node.count("failed_open") == node.count("flows_closed") == 1
    (_, handler, error) = node.errors[0]
    assert handler == "on_packet" and "did not return" in str(error)


class Live:
    """A node of one core between two hosts."""

    def __init__(self, lab: Lab, directory: Path, nf: str) -> None:
        deployment = DEPLOYMENT.format(cores=1, driver="af_packet", lan="lan0", wan="wan0", poll="adaptive")
        deployment = deployment.replace("actors.nat:SourceNAT", f"tests.stuck_node:{nf}")
        lab.run("box", ["sysctl", "-qw", "net.ipv6.conf.default.disable_ipv6=1"])
        self.lab, self.directory = lab, directory
        self.node: subprocess.Popen[Any] = launched(lab, directory, deployment.replace('address = "203.0.113.1"', ""))
        self.client: socket.socket = lab.call("client", raw_socket, "eth0")
        self.server: socket.socket = lab.call("server", raw_socket, "eth0")

    def send(self, port: int, number: int) -> bytes:
        sent = frame((b"\x0a\0\0\2", 2000), (b"\x0a\0\0\3", port), None, number)
        self.client.send(sent)
        return sent

    def core(self) -> Any:
        return ask_worker(self.lab, "box", load_deployment(self.directory / "one.toml", "primary"), "core-0")

    def restarted(self, times: int) -> dict[str, int]:
        """The core's counters, once it runs after so many restarts."""
        found: dict[str, Any] = {}

        def runs() -> bool:
            found.update(self.core())
            return bool(found["restarts"] == times and found["state"] == "running" and found["status"])

        until(runs, seconds=15)
        counters: dict[str, int] = found["status"]["counters"]
        return counters

    def told(self, event: str) -> list[Any]:
        lines = (self.directory / "output").read_text().splitlines()
        events = [json.loads(line) for line in lines if line.startswith("{")]
        return [each for each in events if each["event"] == event]


@contextmanager
def live(directory: Path, nf: str) -> Iterator[Live]:
    with Lab.single("10.0.0.2/24", "10.0.0.3/24", gateway=None) as lab:
        node = Live(lab, directory, nf)
        try:
            yield node
        finally:
            node.node.terminate()
            node.node.wait(10)
            node.client.close()
            node.server.close()


@pytest.mark.root
def test_a_handler_that_does_not_return_costs_its_flow_and_no_other(tmp_path: Path) -> None:
    """G9: it is interrupted, named and counted, and its packet goes as `fail` says; the core goes on with its flows. Only
    where a handler catches even that, the core is killed, and comes back with its flows."""
    with live(tmp_path, "Stuck") as node:
        for port in (EXITS, LOOPS, LOOPS_IN_ASYNC, SLEEPS):
            sent = [node.send(ORDINARY, 1), node.send(port, 2), node.send(ORDINARY, 3)]
            assert by_flow(collected(node.server, 3, seconds=4)) == by_flow(sent), port
        after = node.core()
        assert after["restarts"] == 0
        counts = after["status"]["counters"]
        assert counts["handler_stalled"] == 3 and counts["failed_open"] == counts["flows_closed"] == 4
        assert counts["flows_opened"] == 5 and counts["live_flows"] == 1
        told = node.told("handler does not return")
        assert len(told) == 3
        for event, port in zip(told, (LOOPS, LOOPS_IN_ASYNC, SLEEPS), strict=True):
            assert event["flow"].endswith(f":{port}") and "stuck_node.py, line " in event["place"]
        failed = node.told("handler failed")
        assert [event["handler"] for event in failed] == ["on_packet", "on_packet", "on_open", "on_packet"]

        node.send(CATCHES, 4)
        node.restarted(1)
        sent = [node.send(ORDINARY, 5)]
        assert collected(node.server, 1) == sent

        node.send(BREAKS, 6)
        until(lambda: node.core()["restarts"] == 2, seconds=10)
        assert len(node.told("worker stalled: killed")) == 1, "what fails in the core's own loop ends it at once"
        assert "ArithmeticError: what no handler can do wrong" in (tmp_path / "output").read_text()
        assert len(node.told("a handler was the end of a core")) == 1, "of the one that caught what interrupted it"


@pytest.mark.root
@pytest.mark.parametrize("nf", ["Pattern", "PatternOpen"])
def test_a_handler_that_hangs_or_crashes_in_compiled_code_costs_the_core_once(tmp_path: Path, nf: str) -> None:
    """G9: nothing but a kill ends it; the black box tells whose handler it was. The next process has all flows from the log but
    that one, whose packets go as `fail` says and reach no handler."""
    fails_open = nf == "PatternOpen"
    hung, new, crashed, ended = 1001, 1002, 1003, 1004
    with live(tmp_path, nf) as node:
        sent = [node.send(port, MATCHES) for port in (ORDINARY, hung, crashed)]
        assert by_flow(collected(node.server, 3)) == by_flow(sent)
        guilty = [(hung, HANGS), (new, HANGS_AT_ONCE), (crashed, CRASHES), (ended, EXITS_AT_ONCE)]
        for restarts, (port, number) in enumerate(guilty, 1):
            node.send(port, number)
            counts = node.restarted(restarts)
            assert counts["handler_fatal"] == restarts
            assert counts["live_flows"] == (2 if restarts < 3 else 1), "of those in the log, the guilty one has gone"
            (event,) = node.told("a handler was the end of a core")[restarts - 1 :]
            assert event["flow"].endswith(f":{port}") and event["handler"] == "on_packet" and event["port"] == "lan"
            assert event["nf"] == f"tests.stuck_node:{nf}" and ("return" if restarts < 3 else "crash") in event["why"]
            (closed,) = node.told("flow closed and shunned")[restarts - 1 :]
            assert closed["flow"] == event["flow"]

            ordinary = [node.send(ORDINARY, MATCHES)]
            shunned = [node.send(other, what) for other, what in guilty[:restarts]]
            expected = ordinary + (shunned if fails_open else [])
            assert by_flow(collected(node.server, len(expected))) == by_flow(expected)
            after = node.core()
            assert after["restarts"] == restarts
            now = after["status"]["counters"]
            assert now["failed_open" if fails_open else "shunned"] == restarts
            assert now["handled"] == 1 and now["shunned" if fails_open else "failed_open"] == 0


@pytest.mark.root
def test_a_core_that_was_stopped_in_a_handler_blames_nobody(tmp_path: Path) -> None:
    """Whose handler it happens to be in is chance; its flows come back, all of them."""
    with live(tmp_path, "Stuck") as node:
        pid = node.core()["pid"]
        node.send(ORDINARY, 1)
        assert len(collected(node.server, 1)) == 1
        node.send(SLEEPS, 2)
        time.sleep(SLEEP_S / 4)
        os.kill(pid, signal.SIGSTOP)
        assert node.restarted(1)["handler_fatal"] == 0
        assert len(node.told("worker stalled: killed")) == 1 and not node.told("a handler was the end of a core")
        sent = [node.send(ORDINARY, 3), node.send(SLEEPS, 4)]
        assert by_flow(collected(node.server, 2, seconds=4)) == by_flow(sent), "none is shunned"
