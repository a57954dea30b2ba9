"""The tree's rules: imports go down the layers only, actors use the public surface alone, the public names are pinned."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import actornet

ROOT = Path(actornet.__file__).parent

LAYERS = [
    ["errors", "limits"],
    ["engine"],
    ["setting", "determinism", "misfit"],
    ["owner", "flow", "stream", "chain"],
    ["load", "place"],
    ["ports"],
    ["log"],
    ["replication"],
    ["journal", "journal_base"],
    ["embedded", "local_link"],
    ["node"],
    ["core_system"],
    ["replay"],
    ["testing"],
    ["cli"],
]
"""Bottom to top; modules of one layer may import each other."""

LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


def modules() -> list[Path]:
    return sorted(
        path for suffix in ("py", "pyx", "pxd") for path in ROOT.rglob(f"*.{suffix}") if path.stem != "__init__"
    )


def imported(path: Path) -> set[str]:
    """The parts of actornet that a module imports; compiled modules are read line by line."""
    if path.suffix == ".py":
        names = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                names.add(node.module)
            elif isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
    else:
        words = [line.split() for line in path.read_text().splitlines()]
        names = {line[1] for line in words if len(line) > 2 and line[0] == "from" and line[2] in ("import", "cimport")}
    return {name.split(".")[1] for name in names if name.startswith("actornet.")}


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down_the_layers(path: Path) -> None:
    own = path.relative_to(ROOT).with_suffix("").parts[0]
    upwards = {name for name in imported(path) if LEVEL[name] > LEVEL[own]}
    assert not upwards, f"{path.relative_to(ROOT)} imports {', '.join(sorted(upwards))}, which is above it"


def test_every_part_has_its_layer() -> None:
    parts = {path.relative_to(ROOT).with_suffix("").parts[0] for path in modules()}
    assert parts == set(LEVEL)


def test_actors_and_examples_use_the_public_surface_alone() -> None:
    for path in [*ROOT.parent.glob("actors/*.py"), *ROOT.parent.glob("examples/*.py")]:
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("actornet"):
                assert node.module == "actornet", f"{path.name} imports {node.module}"


def test_public_names_are_pinned() -> None:
    assert actornet.__all__ == [
        "DROP",
        "FORWARD",
        "OFFLOADED",
        "REJECT",
        "Chain",
        "Direction",
        "FiveTuple",
        "FlowActor",
        "Forward",
        "Meter",
        "Mirror",
        "Owner",
        "Packet",
        "Rewrite",
        "StreamActor",
        "Struct",
        "Verdict",
        "setting",
    ]
