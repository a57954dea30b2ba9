"""Which records of a log somebody wants to see."""

from __future__ import annotations

import re

from actornet.engine.five_tuple import FiveTuple
from actornet.errors import UsageError
from actornet.log.record import AskBody, Kind, OwnerBody, Record


class Query:
    """Selects records by owner, flow and kind; what is not given selects all.

    `flow` is words of a flow's text, all of which must be in it, whole, and in any order: `10.0.0.1`, `udp :53`,
    `10.0.0.1:4000 192.0.2.1`. Raises UsageError for a kind that there is not.
    """

    def __init__(self, owner: str | None = None, flow: str | None = None, kind: str | None = None) -> None:
        self.owner = owner
        self.words = [_whole(word) for word in (flow or "").split()]
        try:
            self.kind = Kind[kind.upper()] if kind else None
        except KeyError:
            kinds = ", ".join(name.lower() for name in Kind.__members__)
            raise UsageError(f"there is no kind {kind!r} of records; the kinds are: {kinds}") from None

    def matches(self, record: Record) -> bool:
        """Whether the record is wanted."""
        if self.kind is not None and record.kind != self.kind:
            return False
        if self.owner is not None and owner_of(record) != self.owner:
            return False
        if self.words:
            flow = flow_of(record)
            text = str(flow)
            return flow is not None and all(word.search(text) for word in self.words)
        return True


def _whole(word: str) -> re.Pattern[str]:
    """Finds the word where it is no part of a longer address, port or name."""
    before = r"(?<![\w.])" if word[0].isalnum() else ""
    after = r"(?![\w.])" if word[-1].isalnum() else ""
    return re.compile(before + re.escape(word) + after)


def owner_of(record: Record) -> str | None:
    """The name of the owner that the record is about, if any."""
    match record.body:
        case OwnerBody(name=name) | AskBody(owner=name):
            return name
    return None


def flow_of(record: Record) -> FiveTuple | None:
    """The flow that the record is about, if any."""
    flow: FiveTuple | None = getattr(record.body, "flow", None)
    return flow
