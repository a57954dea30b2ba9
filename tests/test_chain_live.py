"""A chain on live interfaces, under curl, and its takeover in the middle of a transfer."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from actornet.testing.pair import Pair
from actornet.testing.traffic import SERVER

pytestmark = pytest.mark.root

FILE_BYTES = 6_000_000


def test_curl_through_firewall_and_nat_survives_kill(tmp_path: Path) -> None:
    """G3, G6: both members' state and the composed offload are the backup's already."""
    site = tmp_path / "site"
    site.mkdir()
    content = os.urandom(FILE_BYTES)
    (site / "file").write_bytes(content)
    nf = "actors.firewall:Firewall+actors.nat:SourceNAT"
    settings = 'address = "203.0.113.1"\n[settings.Firewall]\nrules = ["allow tcp on lan"]'
    with Pair(tmp_path / "pair", nf=nf, settings=settings) as pair:
        pair.start()
        pair.lab.serve("server", 8000, [sys.executable, "-m", "http.server", "8000", "--directory", str(site)])
        got = tmp_path / "got"
        curl = pair.lab.popen(
            "client", ["curl", "-sS", "--limit-rate", "2M", "-o", str(got), f"http://{SERVER}:8000/file"]
        )
        time.sleep(1.0)
        pair.kill("a")
        pair.wait_takeover("b")
        assert curl.wait(40) == 0
        assert got.read_bytes() == content
