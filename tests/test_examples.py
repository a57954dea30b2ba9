"""The examples run as their docstrings say, on a shipped capture, without privileges."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted(ROOT.glob("examples/*.py"))


def run(path: Path, *options: str) -> dict[str, Any]:
    command = re.search(r"actornet (run .*)", path.read_text())
    assert command, f"{path.name} does not say how to run it"
    done = subprocess.run(
        [sys.executable, "-m", "actornet.cli.main", *shlex.split(command[1]), "--json", *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    report: dict[str, Any] = json.loads(done.stdout[done.stdout.index("{\n") :])
    return report | {"said": done.stdout, "warned": done.stderr}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs_as_it_says(path: Path, tmp_path: Path) -> None:
    report = run(path, "--log", str(tmp_path / "log"))
    assert "handler_error" not in json.dumps(report["drops"]), report["warned"]
    assert report["ports"]["lan"]["packets_in"] == 2334 and report["ports"]["wan"]["packets_out"] > 1500
    verified = subprocess.run(
        [sys.executable, "-m", "actornet.cli.main", "replay", "verify", str(tmp_path / "log")],
        cwd=ROOT / "examples",
        capture_output=True,
        text=True,
        check=False,
    )
    assert verified.returncode == 0, verified.stderr


def test_counter_reports_long_flows() -> None:
    said = run(ROOT / "examples" / "counter.py")["said"]
    assert re.search(r"^tcp 192\.168\.1\.34:\d+ > [\d.]+:\d+: \d{3,} packets", said, re.MULTILINE)


def test_rate_limit_refuses_more_when_it_allows_less() -> None:
    few, many = (
        run(ROOT / "examples" / "rate_limit.py", "--set", f"per_second={rate}", "--set", "burst=1")["flows"]["refused"]
        for rate in (0.5, 100)
    )
    assert few > many


def test_asking_first_holds_packets_and_drops_multicast() -> None:
    report = run(ROOT / "examples" / "ask_first.py")
    assert "dropped_by_offload" in json.dumps(report["drops"])
