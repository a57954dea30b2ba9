"""How benchmarks report: a table to read, a JSON file to keep."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Sequence
from pathlib import Path

Row = dict[str, float]

RESULTS = Path(__file__).with_name("results")


def table(rows: list[Row], subjects: Sequence[str] = ()) -> str:
    """Rows of figures as Markdown; three significant digits. `subjects`: what each row is about, as its first column."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [names, ["---:"] * len(names), *([_figure(row.get(name)) for name in names] for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(names))]
    lines = [
        "| " + " | ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in cells
    ]
    if subjects:
        heads = ["| subject ", "|:--", *(f"| {subject} " for subject in subjects)]
        width = max(map(len, heads))
        lines = [head.ljust(width) + line for head, line in zip(heads, lines, strict=True)]
    return "\n".join(lines)


def write_json(name: str, rows: list[Row], subjects: Sequence[str] = ()) -> Path:
    """Keep the rows in bench/results/NAME.json, with what they were measured on and what each is about."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    about = {"python": platform.python_version(), "machine": platform.machine(), "kernel": platform.release()}
    kept = {"bench": name, "time": time.time(), **about, "rows": rows, "subjects": list(subjects)}
    path.write_text(json.dumps(kept, indent=2) + "\n")
    return path


def resident_bytes() -> int:
    """Memory of this process that is in RAM."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


def _figure(value: float | None) -> str:
    if value is None:
        return ""
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"
