"""A progress line on a terminal."""

from __future__ import annotations

import sys
import time
from typing import TextIO

UPDATE_S = 0.2
WIDTH = 24


class Progress:
    """Shows how far the reading of `total_bytes` is, five times a second; silent if `stream` is no terminal.

    Without a total (None: a pipe) it shows only what has been done.
    """

    def __init__(self, total_bytes: int | None, stream: TextIO = sys.stderr, wanted: bool = True) -> None:
        self.total_bytes = total_bytes
        self.stream = stream
        self.shown = False
        self.begun = time.monotonic()
        self.due = self.begun + UPDATE_S if wanted and stream.isatty() else float("inf")

    def update(self, position_bytes: int, packets: int) -> None:
        """Show the line if one is due."""
        now = time.monotonic()
        if now < self.due:
            return
        self.due = now + UPDATE_S
        self.shown = True
        elapsed_s = now - self.begun
        parts = [f"{packets:,} packets".replace(",", " "), f"{packets / elapsed_s / 1e3:,.0f} kpps"]
        if self.total_bytes:
            share = min(position_bytes / self.total_bytes, 1.0)
            filled = int(share * WIDTH)
            parts.insert(0, f"{share:4.0%} [{'#' * filled}{'.' * (WIDTH - filled)}]")
            if share > 0:
                left_s = round(elapsed_s * (1 - share) / share)
                parts.append(f"{left_s // 60}:{left_s % 60:02} left")
        self.stream.write("\r\x1b[K" + "  ".join(parts))
        self.stream.flush()

    def clear(self) -> None:
        """Take the line away."""
        if self.shown:
            self.stream.write("\r\x1b[K")
            self.stream.flush()
            self.shown = False
