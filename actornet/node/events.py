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
import time
from collections.abc import MutableMapping
from datetime import UTC, datetime
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
    """Within `with later:` this thread's events are kept, and told at the end: what is urgent goes first.

    They tell the time at which they happened. To make one takes 80 us where its code is in no cache, as at a takeover.
    """

    def __init__(self) -> None:
        self.kept: list[tuple[float, Any, str, Any, dict[str, Any]]] | None = None

    def __enter__(self) -> None:
        self.kept = []

    def __exit__(self, *_: object) -> None:
        kept, self.kept = self.kept, None
        for at, tell, method, event, values in kept or ():
            tell(method, event, timestamp=datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"), **values)


later = Later()


class _Logger(structlog.make_filtering_bound_logger(logging.INFO)):  # type: ignore[misc]
    """Tells what happens now, or later."""

    def _proxy_to_logger(self, method_name: str, event: str | None = None, *args: Any, **values: Any) -> Any:
        if later.kept is None:
            return super()._proxy_to_logger(method_name, event, *args, **values)
        if values.get("exc_info") is True:
            values["exc_info"] = sys.exc_info()
        later.kept.append((time.time(), super()._proxy_to_logger, method_name, event, values))
        return None


def configure(**fields: Any) -> None:
    """Set up structlog for this process and those forked from it; `fields` are added to every event."""

    def add_fields(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        for name, value in fields.items():
            event.setdefault(name, value)
        return event

    human = sys.stderr.isatty()
    structlog.configure(
        processors=[add_fields, *_processors(), _renderer(human)],
        wrapper_class=_Logger,
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
        structlog.processors.MaybeTimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]


def _renderer(human: bool) -> Any:
    if human:
        return structlog.dev.ConsoleRenderer()
    return structlog.processors.JSONRenderer(serializer=lambda event, **_: msgspec.json.encode(event, enc_hook=repr))
