"""The models of nodes and their witness (`model/pair.pml`, `model/trio.pml`), every order of events tried by spin."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

MODELS = Path(__file__).parent / "model"
PLANTED = {
    "pair": [
        "COMMITS_WITHOUT_GRANT",
        "LEASE_IGNORED=true",
        "WATERMARK_NOT_FROZEN",
        "GOES_ON_IN_THE_SAME_EPOCH",
        "OUTPUT_BEFORE_ACKNOWLEDGEMENT",
        "TAKES_OVER_OUT_OF_SYNC",
        "TAKES_OVER_WITHOUT_GRANT",
        "LEASE_TAKEN_WITHOUT_WAITING",
        "CLAIM_OF_ANY_EPOCH",
    ],
    "trio": [
        "ASKS_BEFORE_ALL_HAVE_HEARD",
        "CLAIM_OF_ANY_EPOCH",
        "CLAIM_AFTER_A_DEAD_WINNER",
        "COMMITS_BEFORE_THE_GRANT",
        "LEFT_OUT_IN_THE_SAME_EPOCH",
        "LOST_ONE_IS_FORGOTTEN",
        "ONE_ACKNOWLEDGEMENT_IS_ENOUGH",
    ],
}
BOUNDS = {"pair": ("-DRECORDS=4", "-DDEATHS=1", "-DBREAKS=1"), "trio": ("-DRECORDS=5", "-DDEATHS=2", "-DBREAKS=2")}
STATES = {"pair": 1_000_000, "trio": 500_000}

pytestmark = pytest.mark.skipif(shutil.which("spin") is None, reason="needs `spin`")


def explore(model: str, directory: Path, *macros: str, optimize: str = "-O1") -> str:
    """What spin's verifier says of the model with these macros: assertions only, as nodes may come to rest anywhere."""
    for argv in (
        ["spin", *BOUNDS[model], *(f"-D{macro}" for macro in macros), "-a", str(MODELS / f"{model}.pml")],
        ["gcc", "-w", optimize, "-DSAFETY", "-DCOLLAPSE", "-DMEMLIM=4000", "-o", "pan", "pan.c"],
    ):
        subprocess.run(argv, cwd=directory, check=True, capture_output=True, timeout=120)
    done = subprocess.run(["./pan", "-E", "-m100000"], cwd=directory, capture_output=True, text=True, timeout=300)
    return done.stdout


@pytest.mark.parametrize("model", list(PLANTED))
def test_no_order_of_events_breaks_a_guarantee(model: str, tmp_path: Path) -> None:
    """G3, G4, G6, G7, G8."""
    said = explore(model, tmp_path)
    assert "errors: 0" in said and "max search depth too small" not in said and "Search not completed" not in said, said
    (states,) = re.findall(r"(\d+) states, stored", said)
    assert int(states) > STATES[model]
    unreached = re.findall(r"\.pml:(\d+), state \d+, \"(.*?)\"", said)
    # A connection that breaks is emptied at several places, at some of which one of its queues always is empty.
    assert [step for step in unreached if step[1] != "-end-" and "?_" not in step[1]] == [], (
        "the model never comes there"
    )


@pytest.mark.parametrize(("model", "bug"), [(model, bug) for model, bugs in PLANTED.items() for bug in bugs])
def test_a_planted_bug_is_found(model: str, bug: str, tmp_path: Path) -> None:
    assert "assertion violated" in explore(
        model, tmp_path, bug, optimize="-O0"
    )  # found so soon that gcc would take longer
