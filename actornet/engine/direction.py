"""The two directions of a connection, in the words of connection tracking."""

from enum import IntEnum


class Direction(IntEnum):
    """ORIGINAL: as the packet that opened the flow; REPLY: the other way."""

    ORIGINAL = 0
    REPLY = 1

    def reversed(self) -> "Direction":
        """The other one."""
        return Direction(1 - self)
