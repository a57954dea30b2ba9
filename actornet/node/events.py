"""Operational events of a node's processes: lines for people on a terminal, JSON lines otherwise.

Every process writes its own to standard error, one write per event, so lines of several processes do not mix. (stdlib
logging inside Thespian's actors is a remote call to a logger process; only Thespian itself uses it, from WARNING on.)
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
from collections.abc import MutableMapping
from typing import Any, BinaryIO, TextIO, cast

import msgspec
import structlog


class Outlet:
    """Standard error, whose reader may go away: what cannot be written is lost, and nothing else happens.

    It has no buffer, so nothing is written twice by a forked process, and nothing unwritable is left for a later flush.
    Its descriptor is its own: once standard error is closed, that number may be any other file's, say the log's.
    """

    def __init__(self) -> None:
        self._fd = os.dup(sys.stderr.fileno())

    def write(self, line: str | bytes) -> None:
        rest = memoryview(line.encode() if isinstance(line, str) else line)
        with contextlib.suppress(OSError):
            while rest:
                rest = rest[os.write(self._fd, rest) :]

    def flush(self) -> None:
        """Nothing is ever held back."""


class Later(threading.local):
    """Within `with later:` this thread's events are kept, and written at the end: what is urgent goes first.

    They tell the time at which they happened.
    """

    def __init__(self) -> None:
        self._kept: list[tuple[Any, str, MutableMapping[str, Any], Any]] | None = None

    def __enter__(self) -> None:
        self._kept = []

    def __exit__(self, *_: object) -> None:
        kept, self._kept = self._kept, None
        for logger, method, event, render in kept or ():
            getattr(logger, method)(render(logger, method, event))

    def rendering(self, render: Any) -> Any:
        """The last of structlog's processors: `render`, now or later."""

        def render_or_keep(logger: Any, method: str, event: MutableMapping[str, Any]) -> Any:
            if self._kept is None:
                return render(logger, method, event)
            self._kept.append((logger, method, event, render))
            raise structlog.DropEvent

        return render_or_keep


later = Later()


def configure(**fields: Any) -> None:
    """Set up structlog for this process and those forked from it; `fields` are added to every event."""

    def add_fields(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        for name, value in fields.items():
            event.setdefault(name, value)
        return event

    human = sys.stderr.isatty()
    structlog.configure(
        processors=[add_fields, *_processors(), later.rendering(_renderer(human))],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.WriteLoggerFactory(cast(TextIO, Outlet()))
        if human
        else structlog.BytesLoggerFactory(cast(BinaryIO, Outlet())),
        cache_logger_on_first_use=False,  # a forked process adds fields of its own
    )


def log_definitions() -> dict[str, Any]:
    """Thespian's `logDefs`: its own warnings in the same form."""
    human = sys.stderr.isatty()
    renderer = _renderer(human)

    def text(logger: Any, method: str, event: MutableMapping[str, Any]) -> str:
        line = renderer(logger, method, event)
        return line.decode() if isinstance(line, bytes) else str(line)

    formatter = structlog.stdlib.ProcessorFormatter(
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *_processors(), text]
    )
    return {
        "version": 1,
        "formatters": {"events": {"()": lambda: formatter}},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "stream": Outlet(), "formatter": "events"}},
        "root": {"handlers": ["stderr"], "level": "WARNING"},
    }


def _processors() -> list[Any]:
    return [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]


def _renderer(human: bool) -> Any:
    if human:
        return structlog.dev.ConsoleRenderer()
    return structlog.processors.JSONRenderer(serializer=lambda event, **_: msgspec.json.encode(event, enc_hook=repr))
