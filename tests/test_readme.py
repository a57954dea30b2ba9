"""The README's promises: its network function runs as printed, and its commands exist."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

README = (Path(__file__).parent.parent / "README.md").read_text()
CAPTURE = Path(__file__).parent.parent / "examples" / "captures" / "skype.pcap"


def test_the_first_network_function_runs_as_printed(tmp_path: Path) -> None:
    code = re.search(r"```python\n(.*?)```", README, re.DOTALL)
    assert code
    (tmp_path / "mynf.py").write_text(code[1])
    done = subprocess.run(
        [sys.executable, "-m", "actornet.cli.main", "run", "mynf.py:FiveConnections", "--read", str(CAPTURE), "--json"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert '"handler_error": 0' in done.stdout or "handler_error" not in done.stdout
    assert "dropped_by_nf" in done.stdout


def test_the_offloads_of_the_readme_are_carried_out(tmp_path: Path) -> None:
    code = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    (tmp_path / "marked.py").write_text(code[1])
    argv = [sys.executable, "-m", "actornet.cli.main", "run", "marked.py:Marked", "--read", str(CAPTURE), "--json"]
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, check=True)
    report = json.loads(done.stdout)
    assert report["offloaded"] > 1000 and "handler_error" not in report["drops"], done.stderr


def test_no_placeholder_is_left() -> None:
    docs = Path(__file__).parent.parent.joinpath("docs").glob("*.md")
    assert not any("@@" in text for text in [README, *(path.read_text() for path in docs)])


def test_the_protocols_diagrams_are_drawn_from_its_table() -> None:
    from actornet.replication.protocol import diagram

    text = Path(__file__).parent.parent.joinpath("docs", "architecture.md").read_text()
    assert diagram("primary") in text and diagram("backup") in text


def test_the_deployment_in_the_readme_is_valid(tmp_path: Path) -> None:
    from actornet.node.deployment import load_deployment

    text = re.search(r"```toml\n(.*?)```", README, re.DOTALL)
    assert text
    file = tmp_path / "edge.toml"
    file.write_text(text[1])
    assert load_deployment(file, "primary").links == load_deployment(file, "backup").links == ["10.9.0.1:7400"]


def test_the_pair_on_a_laptop_is_there() -> None:
    from actornet.node.deployment import load_deployment
    from actornet.ports.drivers import sharing

    file = CAPTURE.parent.parent / "pair.toml"
    assert f"actornet launch backup {file.name} &" in README
    for role in ("primary", "backup"):
        deployment = load_deployment(file, role)
        assert sharing(deployment.ports, "lan") == (0, 1)
        assert Path(deployment.ports["lan"].read or "").resolve() == CAPTURE
