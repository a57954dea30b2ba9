"""Trees are compared by turns, and what cannot be compared is refused by name."""

import json
import os
from pathlib import Path

import pytest

from bench import duel, report

ROOT = Path(__file__).parents[1]


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr("sys.argv", ["duel", *arguments, "--flows=100", "--turns=3", "--packets=640"])
    duel.main()


@pytest.mark.parametrize("kind", duel.KINDS)
def test_a_row_for_each_tree(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    trees = [str(ROOT), f"{ROOT},PYTHONMALLOC=malloc,PYTHONHASHSEED=1"]
    affinity = os.sched_getaffinity(0)
    run(monkeypatch, kind, *trees)
    assert os.sched_getaffinity(0) == affinity
    kept = json.loads((tmp_path / f"duel_{kind}.json").read_text())
    assert kept["subjects"] == trees
    for row in kept["rows"]:
        assert row["flows"] == 100
        assert 0 < row["best ns"] <= row["p10 ns"] <= row["median ns"]
        assert 0 < row["ratio p25"] <= row["ratio"] <= row["ratio p75"]
    assert [kept["rows"][0][name] for name in ("ratio p25", "ratio", "ratio p75")] == [1, 1, 1]
    printed = capsys.readouterr().out
    assert all(f"| {tree} " in printed for tree in trees)


def test_what_cannot_be_compared_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for arguments, said in (
        (("def", str(ROOT), str(tmp_path)), f"{tmp_path} is no built source tree of actornet: .*make build"),
        (("def", str(ROOT), f"{ROOT},HOME"), "'HOME' is nothing to set: write TREE,NAME=value"),
        (("defs", str(ROOT), str(ROOT)), "no KIND 'defs': name one of offloaded, def, async"),
        (("def", str(ROOT)), "two trees"),
    ):
        with pytest.raises(SystemExit, match=said):
            run(monkeypatch, *arguments)


def test_a_tree_whose_process_ends_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "actornet").mkdir()
    (tmp_path / "actornet" / "__init__.py").write_text("raise ImportError('no core here')")
    (tmp_path / "actornet" / "core.so").touch()
    with pytest.raises(SystemExit, match=f"{tmp_path}: .* ended with 1: ImportError: no core here; run `make build`"):
        run(monkeypatch, "def", str(ROOT), str(tmp_path))
