"""A simulated disk: LMDB's interface, as far as `Log` uses it, over tables in memory.

What a transaction wrote survives the process; what `sync` came after survives the machine. The Log above is the real one.
"""

from __future__ import annotations

import os
from bisect import bisect_left, insort
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import lmdb

from actornet.limits import LOG_MAP_BYTES
from actornet.log.store import Log


class Table:
    """Keys in order, and their values."""

    def __init__(self, values: dict[bytes, bytes] | None = None) -> None:
        self.values = dict(values or {})
        self.keys = sorted(self.values)

    def put(self, key: bytes, value: bytes) -> None:
        if key not in self.values:
            insort(self.keys, key)
        self.values[key] = value

    def delete(self, key: bytes) -> None:
        del self.values[key]
        del self.keys[bisect_left(self.keys, key)]


class Disk:
    """The disk of the node with this name. `full`: no transaction can be committed."""

    def __init__(self, name: str = "") -> None:
        self.name = name
        self.logs = 0  # begun on it
        self.tables: dict[bytes, Table] = {}
        self.synced: dict[bytes, dict[bytes, bytes]] = {}
        self.aside: list[dict[bytes, Table]] = []
        self.full = False

    def sync(self) -> None:
        self.synced = {name: dict(table.values) for name, table in self.tables.items()}

    def lose_unsynced(self) -> bool:
        """The machine goes down. Whether records were lost."""
        before = len(self.tables[b"records"].values) if b"records" in self.tables else 0
        self.tables = {name: Table(values) for name, values in self.synced.items()}
        return before != (len(self.tables[b"records"].values) if b"records" in self.tables else 0)

    def wipe(self) -> None:
        """An empty directory in its place."""
        self.tables, self.synced = {}, {}

    def set_aside(self) -> Path:
        """The log moves out of the way."""
        self.aside.append(self.tables)
        self.wipe()
        return Path(f"aside-{len(self.aside)}")

    def damage(self, how: str, where: int) -> None:
        """A record is changed, or two change places."""
        table = self.tables.get(b"records", Table())
        if len(table.keys) < 2:
            return
        key, other = (table.keys[(where + offset) % len(table.keys)] for offset in (0, 1))
        if how == "flip":
            changed = bytearray(table.values[key])
            changed[where % len(changed)] ^= 1 << where % 8
            table.values[key] = bytes(changed)
        else:
            table.values[key], table.values[other] = table.values[other], table.values[key]

    def holds(self, log: SimulatedLog, lsn: int, *, durable: bool) -> bool:
        """Whether this disk has the record that the other node's log has at `lsn`, or a snapshot from after it."""
        key = lsn.to_bytes(8, "big")
        records = self.tables.get(b"records")
        if records is None:
            return False
        mine = self.synced.get(b"records", {}).get(key) if durable else records.values.get(key)
        theirs = log.disk.tables[b"records"].values.get(key)
        if mine is not None:
            return mine == theirs or theirs is None
        return self._snapshot_from(key)

    def epoch_of(self, lsn: int) -> int | None:
        """Of the record at `lsn`, if it is there."""
        records = self.tables.get(b"records")
        data = records.values.get(lsn.to_bytes(8, "big")) if records is not None else None
        return int.from_bytes(data[4:8], "little") if data is not None else None

    def has(self, lsn: int, data: bytes) -> bool:
        """Whether this disk has the record, or a snapshot from after it."""
        key = lsn.to_bytes(8, "big")
        mine = self.tables[b"records"].values.get(key) if b"records" in self.tables else None
        return mine == data if mine is not None else self._snapshot_from(key)

    def _snapshot_from(self, key: bytes) -> bool:
        """Whether there is a snapshot of the state after the record with this key, or later."""
        snapshots = self.tables.get(b"snapshots")
        return snapshots is not None and bool(snapshots.keys) and snapshots.keys[-1][:8] >= key

    def end(self) -> tuple[int, int]:
        """Epoch and LSN of the last record."""
        records = self.tables.get(b"records")
        if records is None or not records.keys:
            return 0, 0
        return int.from_bytes(records.values[records.keys[-1]][4:8], "little"), int.from_bytes(records.keys[-1], "big")


class _Cursor:
    def __init__(self, transaction: _Transaction, table: Table) -> None:
        self._transaction = transaction
        self._table = table
        self._at = -1

    def _found(self) -> bool:
        return 0 <= self._at < len(self._table.keys)

    def first(self) -> bool:
        self._at = 0
        return self._found()

    def last(self) -> bool:
        self._at = len(self._table.keys) - 1
        return self._found()

    def next(self) -> bool:
        self._at += 1
        return self._found()

    def set_range(self, key: bytes) -> bool:
        self._at = bisect_left(self._table.keys, key)
        return self._found()

    def key(self) -> bytes:
        return self._table.keys[self._at] if self._found() else b""

    def value(self) -> bytes:
        return self._table.values[self.key()] if self._found() else b""

    def item(self) -> tuple[bytes, bytes]:
        return self.key(), self.value()

    def delete(self) -> bool:
        self._transaction.delete_key(self._table, self.key())
        return True  # what follows has moved here

    def iternext(self, *, values: bool) -> Iterator[bytes]:
        assert not values
        return iter(list(self._table.keys))

    def putmulti(self, items: list[tuple[bytes, bytes]], *, append: bool) -> tuple[int, int]:
        done = 0
        for key, value in items:
            if append and self._table.keys and key <= self._table.keys[-1]:
                break
            self._transaction.put_key(self._table, key, value)
            done += 1
        return done, done


class _Transaction:
    def __init__(self, disk: Disk, *, write: bool) -> None:
        self._disk = disk
        self._write = write
        self._undo: list[tuple[Table, bytes, bytes | None]] = []

    def __enter__(self) -> _Transaction:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._undo and (kind is not None or self._disk.full):
            for table, key, value in reversed(self._undo):
                if value is None:
                    table.delete(key)
                else:
                    table.put(key, value)
            if kind is None:
                raise lmdb.MapFullError("simulated")

    def cursor(self, table: Table) -> _Cursor:
        return _Cursor(self, table)

    def get(self, key: bytes, default: bytes | None = None, *, db: Table) -> bytes | None:
        return db.values.get(key, default)

    def put(self, key: bytes, value: bytes, *, db: Table) -> bool:
        self.put_key(db, key, value)
        return True

    def delete(self, key: bytes, *, db: Table) -> bool:
        if key not in db.values:
            return False
        self.delete_key(db, key)
        return True

    def stat(self, table: Table) -> dict[str, int]:
        return {"entries": len(table.keys)}

    def put_key(self, table: Table, key: bytes, value: bytes) -> None:
        assert self._write
        self._undo.append((table, key, table.values.get(key)))
        table.put(key, bytes(value))

    def delete_key(self, table: Table, key: bytes) -> None:
        assert self._write
        self._undo.append((table, key, table.values[key]))
        table.delete(key)


class _Environment:
    def __init__(self, disk: Disk) -> None:
        self._disk = disk

    def __enter__(self) -> _Environment:
        return self

    def __exit__(self, *_: object) -> None: ...

    def begin(self, *, write: bool = False) -> _Transaction:
        return _Transaction(self._disk, write=write)

    def open_db(self, name: bytes, *, create: bool) -> Table:
        return self._disk.tables.setdefault(name, Table())

    def sync(self, force: bool) -> None:
        assert force
        self._disk.sync()

    def reader_check(self) -> int:
        return 0


class SimulatedLog(Log):
    """The log, on a simulated disk."""

    def __init__(self, disk: Disk, *, name: str, nf: str) -> None:
        self.disk = disk
        self._closed = False
        super().__init__("simulated", name=name, nf=nf, map_bytes=LOG_MAP_BYTES)

    def _lock(self) -> int:
        return os.open(os.devnull, os.O_RDONLY)

    def _open(self) -> Any:
        return _Environment(self.disk)

    def _check_structure(self) -> None: ...

    def _check_length(self) -> None: ...

    def proved(self) -> None: ...

    def _new_identity(self) -> str:
        self.disk.logs += 1
        return f"{self.disk.name}-{self.disk.logs}"

    def holds_epoch(self, epoch: int) -> bool:
        """Whether the log has a record of the epoch, or a later one (its first records may be pruned)."""
        lsns = (int.from_bytes(key, "big") for key in self.disk.tables[b"records"].values)
        return any(self.disk.epoch_of(lsn) == epoch for lsn in lsns)

    def abandon(self) -> None:
        """The process is gone, without a last word to the disk, unless it had closed the log before."""
        if not self._closed:
            self._opened.pop_all()
            os.close(self._lock_fd)

    def close(self) -> None:
        self._closed = True
        super().close()

    def set_aside(self) -> Path:
        self.close()
        return self.disk.set_aside()
