"""Handlers that do not return."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from actornet.errors import HandlerStalled
from actornet.limits import HANDLER_STALL_S
from actornet.testing.netns import Lab
from tests.live_ports import raw_socket, until
from tests.stuck_node import BREAKS, CATCHES, EXITS, LOOPS, LOOPS_IN_ASYNC, SLEEPS, Stuck
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


@pytest.mark.root
def test_a_handler_that_does_not_return_costs_its_flow_and_no_other(tmp_path: Path) -> None:
    """G9: it is interrupted, named and counted, and its packet goes as `fail` says; the core goes on with its flows. Only
    where a handler catches even that, the core is killed, and comes back with its flows."""
    deployment = DEPLOYMENT.format(cores=1, driver="af_packet", lan="lan0", wan="wan0", poll="adaptive")
    deployment = deployment.replace("actors.nat:SourceNAT", "tests.stuck_node:Stuck").replace(
        'address = "203.0.113.1"', ""
    )
    with Lab.single("10.0.0.2/24", "10.0.0.3/24", gateway=None) as lab:
        lab.run("box", ["sysctl", "-qw", "net.ipv6.conf.default.disable_ipv6=1"])
        node = launched(lab, tmp_path, deployment)
        client, server = (lab.call(space, raw_socket, "eth0") for space in ("client", "server"))

        def core() -> Any:
            argv = [sys.executable, "-m", "actornet.cli.main", "status", str(tmp_path / "one.toml"), "--json"]
            (found,) = json.loads(lab.run("box", argv).stdout)
            return next(each for each in found["workers"] if each["name"] == "core-0")

        def send(port: int, number: int) -> bytes:
            sent = frame((b"\x0a\0\0\2", 2000), (b"\x0a\0\0\3", port), None, number)
            client.send(sent)
            return sent

        for port in (EXITS, LOOPS, LOOPS_IN_ASYNC, SLEEPS):
            sent = [send(ORDINARY, 1), send(port, 2), send(ORDINARY, 3)]
            assert by_flow(collected(server, 3, seconds=4)) == by_flow(sent), port
        after = core()
        assert after["restarts"] == 0
        counts = after["status"]["counters"]
        assert counts["handler_stalled"] == 3 and counts["failed_open"] == counts["flows_closed"] == 4
        assert counts["flows_opened"] == 5 and counts["live_flows"] == 1
        events = [json.loads(line) for line in (tmp_path / "output").read_text().splitlines() if line.startswith("{")]
        told = [event for event in events if event["event"] == "handler does not return"]
        assert len(told) == 3
        for event, port in zip(told, (LOOPS, LOOPS_IN_ASYNC, SLEEPS), strict=True):
            assert event["flow"].endswith(f":{port}") and "stuck_node.py, line " in event["place"]
        failed = [event for event in events if event["event"] == "handler failed"]
        assert [event["handler"] for event in failed] == ["on_packet", "on_packet", "on_open", "on_packet"]

        send(CATCHES, 4)
        until(lambda: core()["restarts"] == 1 and core()["state"] == "running", seconds=10)
        sent = [send(ORDINARY, 5)]
        assert collected(server, 1) == sent

        begun = time.monotonic()
        send(BREAKS, 6)
        until(lambda: core()["restarts"] == 2, seconds=10)
        assert time.monotonic() - begun < HANDLER_STALL_S, "what fails in the core's own loop ends it at once"
        assert "ArithmeticError: what no handler can do wrong" in (tmp_path / "output").read_text()
        node.terminate()
        node.wait(10)
    client.close()
    server.close()
