"""`actornet status`: packets, flows and hand-overs per core, and when it says that they are badly spread."""

from __future__ import annotations

import socket
import time
from pathlib import Path
from typing import Any

import pytest

from actornet.cli.load import load_of
from actornet.testing.pair import Pair
from actornet.testing.traffic import SERVER


def status(*cores: tuple[int, int, int]) -> dict[str, Any]:
    """Of cores with so many packets received, flows, and packets handed over."""
    workers: list[dict[str, Any]] = [
        {
            "name": f"core-{number}",
            "status": {"counters": {"rx_packets": received, "live_flows": flows, "handed_off": handed}},
        }
        for number, (received, flows, handed) in enumerate(cores)
    ]
    return {"workers": [*workers, {"name": "owners", "status": {}}]}


def test_packets_count_where_they_are_treated() -> None:
    """What a core hands over is received twice."""
    load = load_of(status((6000, 5, 1000), (5000, 6, 0)))
    assert load is not None
    first, second = load["cores"]
    assert (first["packets"], first["share"], first["flows"], first["handed_over"]) == (5000, 0.5, 5, 1000)
    assert (second["packets"], second["share"]) == (5000, 0.5)
    assert load["skew"] is None


@pytest.mark.parametrize(
    ("cores", "said"),
    [
        ([(75_000, 50, 0), (25_000, 50, 0)], None),
        ([(75_100, 50, 0), (24_900, 50, 0)], "few flows are heavy"),
        ([(80_000, 90, 0), (20_000, 10, 0)], "have shards_by name more fields"),
        ([(80_000, 50, 0), (20_000, 10, 0)], "few flows are heavy"),
        ([(9_000, 1, 0), (900, 1, 0)], None),
        ([(0, 0, 0), (0, 0, 0)], None),
        ([(62_500, 5, 12_500), (50_000, 5, 0)], None),
        ([(76_000, 5, 26_000), (50_000, 5, 0)], "26% of the packets came to another core"),
        ([(40_000, 9, 0), (20_000, 9, 0), (20_000, 9, 0), (20_000, 9, 0)], "core-0 treats 40% of the packets"),
    ],
)
def test_a_skew_is_named_beyond_its_threshold(cores: list[tuple[int, int, int]], said: str | None) -> None:
    load = load_of(status(*cores))
    assert load is not None
    if said is None:
        assert load["skew"] is None
    else:
        assert said in load["skew"]


def test_nothing_is_said_of_one_core_or_of_one_that_does_not_answer() -> None:
    assert load_of(status((100_000, 1, 0))) is None
    silent = status((100_000, 1, 0), (0, 0, 0))
    silent["workers"][1]["status"] = None
    assert load_of(silent) is None


@pytest.mark.root
def test_status_names_the_core_that_one_heavy_flow_keeps_busy(tmp_path: Path) -> None:
    with Pair(tmp_path / "pair", cores=2) as pair:
        pair.launch("a", "primary")
        with pair.lab.call("client", lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as client:
            client.bind(("10.0.0.2", 7000))
            client.connect((SERVER, 5353))
            deadline = time.monotonic() + 20
            while time.monotonic() < deadline:
                for _ in range(1000):
                    try:
                        client.send(b"heavy")
                    except ConnectionRefusedError:
                        continue  # nobody listens there
                load = pair.status("a")["load"]
                if load["skew"]:
                    break
        assert "few flows are heavy" in load["skew"]
        assert "  skew: core-" in pair.command("status", "a")
        assert max(core["share"] for core in load["cores"]) > 0.75 and sum(core["flows"] for core in load["cores"]) >= 1
