"""Flows of a hot core move to a cold one while their packets come."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from actornet.engine.five_tuple import FiveTuple
from actornet.testing.pair import Pair
from actornet.testing.traffic import SERVER, UdpStream

STREAMS = 6
PATIENCE_S = 15.0


@pytest.mark.root
def test_a_hot_core_gives_flows_to_a_cold_one(tmp_path: Path) -> None:
    """G1, G6: nothing is lost or overtaken, and a takeover finds the flows that have moved."""
    with Pair(tmp_path / "pair", nf="tests.heavy_node:Heavy", settings="", cores=2) as pair, ExitStack() as stack:
        pair.lab.ip("server", "route replace 10.0.0.0/24 via 203.0.113.1")
        pair.start()
        hot = [
            port for port in range(9000, 9100) if FiveTuple(17, "10.0.0.2", 11_000 + port, SERVER, port).core(2) == 0
        ]
        streams = [UdpStream(pair.lab, port, 0.002, 11_000 + port) for port in hot[:STREAMS]]
        for stream in streams:
            stack.enter_context(stream)
        deadline = time.monotonic() + PATIENCE_S
        while not sum(count["flows_moved"] for count in counters(pair)) and time.monotonic() < deadline:
            time.sleep(0.2)
        assert sum(count["flows_moved"] for count in counters(pair)) >= 1
        time.sleep(1.0)
        for stream in streams:
            assert stream.jumps == [] and len(stream.received) > 500
        assert all(count["handled"] > 500 for count in counters(pair))
        killed_ns = pair.kill("a")
        pair.wait_takeover("b")
        time.sleep(1.0)
        for stream in streams:
            assert stream.outage_ms(killed_ns) < 500 and stream.received[-1][1] > killed_ns
            assert all(after > before for before, after in stream.jumps), stream.jumps


def counters(pair: Pair) -> list[dict[str, int]]:
    """Of node `a`'s cores."""
    return [pair.worker("a", f"core-{core}")["status"]["counters"] for core in range(2)]
