"""An editing stream actor on live interfaces, under curl, and its takeover in the middle of a transfer."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from actornet.testing.pair import Pair
from actornet.testing.traffic import SERVER
from tests.stream_node import GROWS, SHRINKS, edited

pytestmark = pytest.mark.root

FILE_BYTES = 6_000_000
RUN = 100_000


@pytest.mark.parametrize("kill", [False, True])
def test_curl_through_an_editing_actor(kill: bool, tmp_path: Path) -> None:
    """G3, G6: segments that grow are cut, numbers fit, checksums offloaded to the interface are right; and none of it is
    lost with the primary."""
    site = tmp_path / "site"
    site.mkdir()
    filler = os.urandom(FILE_BYTES).replace(GROWS, b"x").replace(SHRINKS, b"y")
    lines = [filler[at : at + RUN] + GROWS + SHRINKS * 2 for at in range(0, FILE_BYTES, RUN)]
    content = b"".join(lines)
    assert len(edited(content)) == len(content) and edited(content) != content
    (site / "file").write_bytes(content)
    with Pair(tmp_path / "pair", nf="tests.stream_node:Edit", settings="") as pair:
        pair.lab.ip("server", "route replace 10.0.0.0/24 via 203.0.113.1")
        pair.start()
        pair.lab.serve("server", 8000, [sys.executable, "-m", "http.server", "8000", "--directory", str(site)])
        rate = ["--limit-rate", "2M"] if kill else []
        got = tmp_path / "got"
        curl = pair.lab.popen("client", ["curl", "-sS", *rate, "-o", str(got), f"http://{SERVER}:8000/file"])
        if kill:
            time.sleep(1.0)
            pair.kill("a")
            pair.wait_takeover("b")
        assert curl.wait(40) == 0
        assert got.read_bytes() == edited(content)
