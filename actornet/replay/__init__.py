"""Replay: queries over a log, read-only. A `History` is the log; everything else asks it."""

from actornet.replay.history import Entry, History, Reply
from actornet.replay.query import Query
from actornet.replay.verification import Verification, verify

__all__ = ["Entry", "History", "Query", "Reply", "Verification", "verify"]
