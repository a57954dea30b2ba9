"""The names of the counters are those of the compiled core."""

from __future__ import annotations

from pathlib import Path

import actornet.engine.counters
from actornet.engine.counters import COUNTERS


def test_names_and_indices_are_in_the_same_order() -> None:
    declared = Path(actornet.engine.counters.__file__).with_suffix(".pxd").read_text().split()
    assert [f"C_{name.upper()}" for name in COUNTERS] == [word for word in declared if word.startswith("C_")][:-1]
