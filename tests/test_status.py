"""The page that `actornet status` prints: what a person looks for is on it, and what is nought is not."""

from __future__ import annotations

import re
import socket
from pathlib import Path
from typing import Any

import pytest

from actornet.cli.status import in_line, text
from actornet.engine.counters import COUNTERS
from actornet.node.core_worker import Rate
from actornet.testing.pair import Pair
from actornet.testing.traffic import SERVER
from tests.processes import wait_until

OWNER: dict[str, Any] = {
    "role": "primary",
    "state": "in sync",
    "launching": False,
    "epoch": 200_001,
    "flows": 12_345,
    "owners": ["judge", "wan-ports"],
    "logged_lsn": 1_000_010,
    "watermark": 1_000_000,
    "durability": "applied",
    "without_backup": "wait",
    "commits_alone": False,
    "lag_records": 10,
    "lag_ms": 0.5,
    "received_lsn": 1_000_005,
    "applied_lsn": 1_000_000,
    "resyncs": 1,
    "backups": [
        {
            "node": name,
            "state": "in sync",
            "lag_records": lag,
            "sent_lsn": 1_000_010,
            "received_lsn": 1_000_005,
            "durable_lsn": 0,
            "applied_lsn": 1_000_000,
        }
        for name, lag in (("backup", 10), ("c", None))
    ],
    "ports_without_link": 1,
    "upkeep": {"audited_lsn": 999_000, "snapshot_lsn": None, "pruned_records": 7, "too_large": True, "misfit": None},
    "link": {"address": "10.9.0.1:7400", "peer": "10.9.0.2:5000", "accepted": 2},
    "witness": {"at": "file:/w", "holds_epoch": 200_001, "problem": None},
    "takeover": {
        "reason": "silent",
        "epoch": 200_000,
        "lsn": 500,
        "flows": 3,
        "records_replayed": 0,
        "packets": {"resent": 2, "resumed": 1},
        "took_us": 1500,
    },
}


def core(number: int, counters: dict[str, int], port: dict[str, Any], **gauges: Any) -> dict[str, Any]:
    status = {"counters": dict.fromkeys(COUNTERS, 0) | counters, "ports": {"lan": port}, "waiting": 0, "held": 0}
    status["rate"] = {"seconds": 2.0, "rx_packets_per_s": 0, "tx_packets_per_s": 0}
    status["hold"] = {"oldest_ms": 0.0, "mean_ms": 0.0, "max_ms": 0.0}
    return worker(f"core-{number}", status | gauges)


def worker(name: str, status: dict[str, Any] | None) -> dict[str, Any]:
    return {
        "name": name,
        "state": "running",
        "pid": 7,
        "cpus": [],
        "memory_bytes": 52_400_000,
        "restarts": 0,
        "status": status,
    }


def page(*workers: dict[str, Any], load: dict[str, Any] | None = None) -> str:
    status = {
        "name": "edge",
        "role": "backup",
        "state": "running",
        "up_s": 61.0,
        "pid": 1,
        "control": "c",
        "refused": 2,
    }
    return text(status | {"workers": list(workers), "load": load})


def test_a_primary_and_its_backups() -> None:
    said = page(worker("owner-system", OWNER))
    assert said.startswith("edge backup: running")
    for line in (
        r"epoch +200001: leads",
        r"state +12 345 flows; owners: judge, wan-ports",
        r"log +LSN 1 000 010; audited at LSN 999 000, snapshot at -, 7 records pruned; too_large",
        r"committed +LSN 1 000 000 \(applied; without a backup: wait\)",
        r"backup +in sync, 10 records behind; sent 1 000 010, received 1 000 005, durable 0, applied 1 000 000",
        r"backup c +in sync, - records behind",
        r"link +listens at 10.9.0.1:7400, with 10.9.0.2:5000; accepted=2",
        r"no link +1 of the ports' interfaces absent, down, or without a link$",
        r"witness +at=file:/w holds_epoch=200001 problem=",
        r"took over +silent: epoch 200000 from LSN 500 on, 3 flows, 0 records replayed, 3 packets gone on with, in 1.5 ms",
    ):
        assert re.search(f"^  {line}", said, re.M), (line, said)


def test_a_backup_says_how_far_behind_it_is() -> None:
    said = page(
        worker(
            "owner-system", OWNER | {"role": "backup", "state": "following", "witness": None, "ports_without_link": 0}
        )
    )
    assert "edge backup: running" in said and "committed" not in said and "no link" not in said
    assert re.search(r"behind +10 records, 0.5 ms; received 1 000 005, applied 1 000 000; 1 resyncs", said)
    assert re.search(r"epoch +200001: following", said) and re.search(r"witness +none", said)


def test_cores_are_counted_together_and_noughts_are_left_out() -> None:
    hold = {"oldest_ms": 1.0, "mean_ms": 0.5, "max_ms": 2.0}
    first = core(0, {"rx_packets": 100, "held": 30, "no_route": 2}, {"state": "up", "tx_full": 0}, held=3, hold=hold)
    second = core(1, {"rx_packets": 200, "held": 10, "no_route": 3}, {"state": "down", "tx_full": 4})
    said = page(first, second)
    assert re.search(r"counted +held 40, rx_packets 300, tx_packets 0$", said, re.M)
    assert re.search(r"held +for 0.375 ms on average, 2.000 ms at most; now for 1.000 ms", said)
    assert re.search(r"dropped +5 packets\n +5  no_route", said)
    assert re.search(r"port lan +core-0=up core-1=down; tx_full 4$", said, re.M)
    assert "packets/s" not in said
    rate = {"seconds": 2.0, "rx_packets_per_s": 1500, "tx_packets_per_s": 10}
    said = page(core(0, {}, {"state": "up"}, rate=rate), core(1, {}, {"state": "up"}, rate=rate))
    assert re.search(r"rate +3 000 packets/s in, 20 out, over 2\.0 s$", said, re.M)


def test_a_rate_is_of_the_time_since_the_last_question() -> None:
    rate = Rate(100.0)
    assert rate.of(102.0, 400, 200) == {"seconds": 2.0, "rx_packets_per_s": 200, "tx_packets_per_s": 100}
    assert rate.of(102.5, 400, 200)["seconds"] == 2.5, "too soon: since the question before"
    assert rate.of(104.0, 1400, 200) == {"seconds": 2.0, "rx_packets_per_s": 500, "tx_packets_per_s": 0}
    assert rate.of(104.0, 1400, 200)["rx_packets_per_s"] == 500


def test_who_does_not_answer_is_named() -> None:
    said = page(worker("owner-system", None), core(0, {}, {"state": "up"}), load={"cores": [], "skew": "core-0 is hot"})
    assert re.search(r"owner-system +running .*no answer$", said, re.M)
    assert said.startswith("edge backup: ") and "\n  skew: core-0 is hot\n" in said


def test_answers_of_any_shape_fit_into_a_line() -> None:
    assert in_line({"a": [1, {"b": None}], "c": "d"}) == "a=1,b= c=d"


@pytest.mark.root
def test_how_long_packets_are_held(tmp_path: Path) -> None:
    """G3, as an operator sees it: with `wait`, and nobody to wait for, a packet is there, and for how long."""
    with Pair(tmp_path / "pair", without_backup="wait") as pair:
        pair.start()
        pair.kill("b")
        with pair.lab.call("client", lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as client:
            client.sendto(b"first", (SERVER, 5353))

        def held() -> dict[str, Any]:
            found: dict[str, Any] = pair.worker("a", "core-0")["status"]
            return found

        wait_until(lambda: held()["held"] == 1, 10)
        wait_until(lambda: held()["hold"]["oldest_ms"] > 100, 10)
        assert held()["hold"]["max_ms"] < held()["hold"]["oldest_ms"]
        pair.begin("b", "backup")
        pair.wait_in_sync("b")
        wait_until(lambda: held()["held"] == 0, 10)
        assert held()["hold"]["oldest_ms"] == 0 and held()["hold"]["max_ms"] > 100
        assert re.search(r"held +for .* ms at most; now for 0.000 ms", pair.command("status", "a"))
