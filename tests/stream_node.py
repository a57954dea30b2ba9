"""A network function for live tests: a stream that grows in some places and shrinks in others."""

from __future__ import annotations

from typing import Any

from actornet import Direction, StreamActor

GROWS, SHRINKS = b"\x01", b"\x06"


def edited(data: bytes) -> bytes:
    """Byte by byte, so that it does not matter how the stream is cut."""
    return data.replace(GROWS, GROWS + b"!!").replace(SHRINKS, b"")


class Edit(StreamActor):
    """Edits what the server sends."""

    inline = True

    def on_data(self, direction: Direction, data: bytes) -> Any:
        return edited(data) if direction is Direction.REPLY else None
