"""A log as history: its records, damaged or not, and the state at any LSN by re-execution (G4)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any

import msgspec
from xxhash import xxh3_64_intdigest

from actornet.engine.records import verify_chain
from actornet.errors import LogDamagedError, LogError, OwnerError, UsageError
from actornet.log.record import CHAIN_START, AskBody, Record, decode
from actornet.log.snapshot import Snapshot
from actornet.log.store import Log
from actornet.owner import Owner, import_owner
from actornet.replication.replica import AskRequest, Replica


class Entry(msgspec.Struct, frozen=True, gc=False):
    """What the log holds at an LSN: `record`, and `data`, its bytes; or `damage`, why there is no record.

    `lsn_last` is above `lsn` where several records in a row are missing.
    """

    lsn: int
    lsn_last: int
    record: Record | None = None
    data: bytes = b""
    damage: str = ""


class Reply(msgspec.Struct, frozen=True):
    """What an owner replied to an ask: `value`, or `error`; `agrees` says whether its hash is the recorded one."""

    value: Any
    error: str
    hash: int
    agrees: bool


class History:
    """A log directory, open for reading; it may be written meanwhile. `load` finds an owner class by its path.

    Raises LogError when there is no log, LogDamagedError when nothing of it can be read.
    """

    def __init__(
        self, directory: str | os.PathLike[str], load: Callable[[str], type[Owner[Any]]] = import_owner
    ) -> None:
        self.log = Log(directory, readonly=True)
        self._load_owner = load

    def close(self) -> None:
        """Close the log. Closing twice is allowed."""
        self.log.close()

    def __enter__(self) -> History:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def entries(self, first: int = 1, last: int | None = None) -> Iterator[Entry]:
        """What the log holds from `first` to `last` (default: what it has reached now), without a gap.

        Damaged and missing records are entries too. Raises LogError when the log is pruned meanwhile.
        """
        end = self.log.last_lsn
        end = end if last is None else min(last, end)
        lsn = max(first, self.log.first_lsn)
        while 0 < lsn <= end:
            try:
                for found, data in self.log.scan(lsn, end):
                    if found != lsn:
                        break
                    yield _entry(lsn, data)
                    lsn += 1
            except LogDamagedError:
                yield self.entry(lsn)  # some record of the page cannot be read: take this one alone
                lsn += 1
                continue
            if lsn <= end:
                gap_last = self._next_lsn(lsn, end) - 1
                if gap_last < self.log.first_lsn:
                    raise LogError(f"log {self.log.directory} was pruned up to LSN {gap_last} meanwhile; try again")
                yield Entry(lsn, gap_last, damage=_missing(lsn, gap_last))
                lsn = gap_last + 1

    def entry(self, lsn: int) -> Entry:
        """What the log holds at an LSN. Raises LogError when it does not reach there."""
        try:
            return _entry(lsn, self.log.read(lsn))
        except LogDamagedError as error:
            return Entry(lsn, lsn, damage=str(error))

    def continues(self, entry: Entry) -> bool | None:
        """Whether a record's chain continues what is before it; None when there is nothing before it to tell by."""
        try:
            if entry.lsn == 1:
                chain = CHAIN_START
            elif entry.lsn - 1 in self.log.snapshots():
                chain = self.log.snapshot(entry.lsn - 1).chain
            else:
                before = self.entry(entry.lsn - 1).record
                if before is None:
                    return None
                chain = before.chain
        except LogError:
            return None
        try:
            verify_chain(entry.data, chain)
        except LogDamagedError:
            return False
        return True

    def state(self, lsn: int | None = None) -> Replica:
        """The replicated state after the record at an LSN (default: the last), from the nearest snapshot before it.

        Raises LogError when the log does not reach there, LogDamagedError or DivergenceError when a record on the way
        is not sound, UsageError when an owner's class cannot be loaded.
        """
        lsn = self.log.last_lsn if lsn is None else lsn
        if not 0 <= lsn <= self.log.last_lsn:
            raise LogError(f"log {self.log.directory} has no LSN {lsn}: it has reached {self.log.last_lsn}")
        replica, chain = self.nearest(lsn)
        for _ in self.replay(replica, chain, lsn):
            pass
        return replica

    def base(self) -> tuple[Replica, int]:
        """A replica at the oldest LSN whose state the log has, and the chain there."""
        lsn = self.log.base_lsn
        if not lsn:
            return Replica(self._load), CHAIN_START
        snapshot = self.log.snapshot(lsn)
        return self.restore(snapshot), snapshot.chain

    def nearest(self, lsn: int) -> tuple[Replica, int]:
        """A replica at the newest LSN up to `lsn` whose state the log has, and the chain there."""
        base = self.log.base_lsn
        if lsn < base:
            raise LogError(f"log {self.log.directory} begins with the state at LSN {base}: that at {lsn} is gone")
        try:
            snapshot = self.log.snapshot_latest(lsn)
        except LogDamagedError:
            snapshot = None
        return self.base() if snapshot is None else (self.restore(snapshot), snapshot.chain)

    def restore(self, snapshot: Snapshot) -> Replica:
        """The replica that a snapshot was taken of."""
        return Replica.restore(snapshot.data, self._load)

    def replay(self, replica: Replica, chain: int, last: int) -> Iterator[Entry]:
        """Re-execute the records after `replica.lsn` up to `last`, checking each; yields each when it is executed.

        Raises LogDamagedError, DivergenceError or FencedError at the first that is not sound.
        """
        for entry in self.entries(replica.lsn + 1, last):
            if entry.record is None:
                raise LogDamagedError(entry.damage)
            chain = verify_chain(entry.data, chain)
            replica.apply(entry.record)
            yield entry

    def reply(self, record: Record) -> Reply:
        """The reply to an ask, by re-execution up to it. Raises as `state` does for what comes before it."""
        body = record.body
        assert isinstance(body, AskBody)
        replica = self.state(record.lsn - 1)
        asked = AskRequest(body.flow, body.port, body.incarnation, body.number, body.owner, body.message, body.args)
        _, reply = replica.execute_ask(asked.encoded(), record.time_ns)
        hash_actual = xxh3_64_intdigest(reply)
        agrees = hash_actual == body.reply_hash
        outcome = msgspec.msgpack.decode(reply)
        if outcome[0] != 0:
            return Reply(None, ": ".join(outcome[1:]), hash_actual, agrees)
        try:
            value = replica.owners[body.owner].messages[body.message].reply_value(reply)
        except OwnerError:
            value = outcome[1]  # against its type hint, which the primary did not mind either
        return Reply(value, "", hash_actual, agrees)

    def _load(self, path: str) -> type[Owner[Any]]:
        try:
            return self._load_owner(path)
        except UsageError as error:
            raise UsageError(f"{error}; run in the directory of its module, or name it in PYTHONPATH") from error

    def _next_lsn(self, lsn: int, end: int) -> int:
        """The first LSN after `lsn` that has a record; end + 1 if none has."""
        try:
            return next(self.log.scan(lsn + 1, end), (end + 1, b""))[0]
        except LogDamagedError:
            return lsn + 1


def _entry(lsn: int, data: bytes) -> Entry:
    try:
        return Entry(lsn, lsn, decode(data, lsn), data)
    except LogDamagedError as error:
        return Entry(lsn, lsn, None, data, str(error))


def _missing(first: int, last: int) -> str:
    where = f"record at LSN {first} is" if first == last else f"records from LSN {first} to {last} are"
    return f"log {where} missing; keep this log and restore from the other node"
