"""The log on disk: an LMDB environment in a directory of its own, with one writer and any number of readers.

Tables, and what holds between them:

- `records`: LSN -> encoded record. Without gaps; begins at LSN 1, or no later than right after a snapshot.
- `snapshots`: (LSN, chunk number) -> chunk. Chunk 0 is written last: without it there is no snapshot.
- `meta`: format, identity, history, deployment name, NF, highest epoch seen, last epoch led, the boot in which the log was
  written.

Keys are big-endian, so LMDB's order is the LSNs' order. What a transaction wrote survives the death of the process;
`sync` makes it survive the machine. No read transaction outlives a call: a pinned one would make the file grow.
"""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import secrets
import struct
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType

import lmdb
import lmdb.verify

from actornet.engine.records import keyed
from actornet.errors import FencedError, LogDamagedError, LogError, LogFullError, LogLockedError
from actornet.limits import LOG_MAP_BYTES, LOG_PAGE_RECORDS, LOG_PRUNE_RECORDS, LOG_VERIFY_BYTES
from actornet.log.record import CHAIN_START, chain_of, decode, lsn_of
from actornet.log.snapshot import Snapshot, cut, cut_pieces, join

FORMAT = 1
"""Version of the tables' layout; a record carries the version of its own layout."""

_LSN = struct.Struct(">Q")
_CHUNK = struct.Struct(">QI")
_key = _LSN.pack
_LOCK_TRIES = 5
_LOCK_PAUSE_S = 0.002
_DISK_FULL = {errno.ENOSPC, errno.EFBIG, errno.EDQUOT}
_FILE_DAMAGED = (
    *(lmdb.CorruptedError, lmdb.PageNotFoundError, lmdb.InvalidError, lmdb.PanicError, lmdb.BadTxnError),
    *(lmdb.CursorFullError, lmdb.BadDbiError, lmdb.IncompatibleError, lmdb.VersionMismatchError, lmdb.PageFullError),
)
_OPENING = "opening"
"""File of a log whose writer has not got as far as `proved`: a damaged page can kill the process that reads it."""


class Log:
    """A log directory, open for reading and writing, or only for reading.

    A new log takes `name`, the deployment; an old one must agree with it. `nf` is noted when given. `map_bytes` bounds
    the file; a reader takes the writer's. A process opens a directory once at a time, and a Log does not pass a fork.

    Raises LogLockedError when another process writes here, LogDamagedError when the log cannot be continued (a reader
    opens whatever can be read), LogError when the directory cannot be opened or holds something else.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        readonly: bool = False,
        name: str = "",
        nf: str = "",
        map_bytes: int = LOG_MAP_BYTES,
    ) -> None:
        self.directory = Path(directory)
        self.readonly = readonly
        self.suspect = False
        """The machine went down while this log was written: verify it, or restore it from the other node."""
        self._map_bytes = map_bytes
        self._pid = os.getpid()
        self._last_lsn = self._last_chain = 0  # a writer knows them; a reader asks
        self._snapshot_whole = 0  # LSN of a snapshot that was written or checked by this object
        with ExitStack() as opened:
            if not readonly:
                self._lock_fd = self._lock()
                opened.callback(os.close, self._lock_fd)
                self._check_structure()
            with self._errors():
                self._env = opened.enter_context(self._open())
                self._check_length()
                self._records, self._snapshots, self._meta = self._tables()
                self._check_format()
                if not readonly:
                    self._check_end()
                    self._claim(name, nf)
                    opened.callback(self._finish)
            self._opened = opened.pop_all()

    def close(self) -> None:
        """Bring everything to the disk and let the next writer in. Closing twice is allowed."""
        if self._pid == os.getpid():
            self._opened.close()

    def __enter__(self) -> Log:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ---------------------------------------------------------------------------------------------- records

    @property
    def file(self) -> Path:
        """What is to be synced: LMDB's data."""
        return self.directory / "data.mdb"

    @property
    def first_lsn(self) -> int:
        """LSN of the first record, 0 if there is none."""
        with self._errors(), self._env.begin() as txn:
            cursor = txn.cursor(self._records)
            return _lsn(cursor.key()) if cursor.first() else 0

    @property
    def last_lsn(self) -> int:
        """What the log has reached: the LSN of its last record, or of a snapshot with no record after it; 0 if new."""
        return self._read_last_lsn() if self.readonly else self._last_lsn

    @property
    def last_chain(self) -> int:
        """The chain at `last_lsn`."""
        return self._read_chain(self.last_lsn) if self.readonly else self._last_chain

    @property
    def base_lsn(self) -> int:
        """The LSN from which the state can be rebuilt: 0, or that of the oldest snapshot that records continue.

        Raises LogDamagedError when there is none.
        """
        first = self.first_lsn
        if first == 1:
            return 0
        snapshots = self.snapshots()
        if not first:
            return snapshots[-1] if snapshots else 0
        for lsn in snapshots:
            if lsn + 1 >= first:
                return lsn
        raise LogDamagedError(
            f"log {self.directory} begins at LSN {first} without a snapshot before it; restore from the other node"
        )

    def append(self, batch: Sequence[tuple[int, bytes]]) -> None:
        """Append encoded records, as (LSN, bytes), in one transaction: all or none. 8 us for one, 0.9 us each in 32.

        Raises LogFullError when map or disk are full, LogError when the batch does not continue the log; either way the
        log stays as it was, and readable.
        """
        if not batch:
            return
        assert not self.readonly and self._pid == os.getpid()
        first, last = batch[0][0], batch[-1][0]
        # Keys that ascend (LMDB checks each) from the next LSN to the one `count` further leave no gap.
        if first != self._last_lsn + 1 or last != self._last_lsn + len(batch):
            raise LogError(f"log {self.directory} ends at LSN {self._last_lsn}: {first} to {last} do not continue it")
        assert lsn_of(batch[-1][1]) == last
        try:
            with self._env.begin(write=True) as txn:
                put = txn.cursor(self._records).putmulti(keyed(batch), append=True)
                if put != (len(batch), len(batch)):
                    raise LogError(f"log {self.directory}: the batch of LSN {first} to {last} is not in order")
        except lmdb.Error as error:
            raise self._failure(error, sum(len(data) for _, data in batch)) from error
        self._last_lsn, self._last_chain = last, chain_of(batch[-1][1])

    def read(self, lsn: int) -> bytes:
        """The encoded record at an LSN, unchecked.

        Raises LogError when the log does not reach there, LogDamagedError when the record is missing.
        """
        with self._errors(), self._env.begin() as txn:
            data = txn.get(_key(lsn), db=self._records) if lsn > 0 else None
        if data is not None:
            return data
        first, last = self.first_lsn, self.last_lsn
        if first and first <= lsn <= last:
            raise LogDamagedError(
                f"log {self.directory}: the record at LSN {lsn} is missing; restore from the other node"
            )
        holds = f"it holds LSN {first} to {last}" if first else "it holds no records"
        raise LogError(f"log {self.directory} has no record at LSN {lsn}: {holds}")

    def scan(self, first: int = 1, last: int | None = None) -> Iterator[tuple[int, bytes]]:
        """The records from `first` to `last` (default: what the log has reached now), as (LSN, bytes), unchecked.

        Reads a page of LOG_PAGE_RECORDS at a time, so the log may be written and pruned meanwhile. A gap is the
        caller's to see. Raises LogDamagedError where the table itself is damaged.
        """
        last = self.last_lsn if last is None else last
        while first <= last:
            with self._errors():
                page = self._page(first, last)
            yield from page
            if len(page) < LOG_PAGE_RECORDS:
                return
            first = page[-1][0] + 1

    def truncate(self, after_lsn: int) -> int:
        """Remove the records and snapshots after an LSN, as when the peer's log went another way.

        Returns how many records. Raises LogError when the state could not be rebuilt from what would be left.
        """
        assert not self.readonly
        if after_lsn >= self._last_lsn:
            return 0
        if after_lsn < self.base_lsn:
            raise LogError(
                f"log {self.directory} begins at LSN {self.base_lsn}: it cannot be cut after LSN {after_lsn}"
            )
        removed = 0
        with self._errors():
            with self._env.begin(write=True) as txn:
                for lsn in self.snapshots():
                    if lsn > after_lsn:
                        self._delete(txn, self._snapshots, _CHUNK.pack(lsn, 0), _CHUNK.pack(lsn + 1, 0))
            # From the end, so that the log is whole after each transaction.
            for top in range(self._last_lsn, after_lsn, -LOG_PRUNE_RECORDS):
                bottom = max(top - LOG_PRUNE_RECORDS, after_lsn)
                with self._env.begin(write=True) as txn:
                    removed += self._delete(txn, self._records, _key(bottom + 1), _key(top + 1))
                self._last_lsn = bottom
            self._last_chain = self._read_chain(self._last_lsn)
        return removed

    def prune(self, before_lsn: int, limit: int = LOG_PRUNE_RECORDS) -> int:
        """Remove the records below an LSN, at most `limit`, and the snapshots that then lead nowhere.

        Returns how many records: call again until 0. What is needed after the newest snapshot stays, and without a
        snapshot everything does. Raises LogDamagedError when that snapshot is not whole.
        """
        assert not self.readonly
        first, snapshots = self.first_lsn, self.snapshots()
        if not first or not snapshots:
            return 0
        newest = snapshots[-1]
        before_lsn = min(before_lsn, newest + 1, first + limit)
        if before_lsn <= first:
            return 0
        if self._snapshot_whole != newest:
            self._snapshot_whole = self.snapshot(newest).lsn
        with self._errors(), self._env.begin(write=True) as txn:
            for lsn in snapshots:
                if lsn + 1 < before_lsn:
                    self._delete(txn, self._snapshots, _CHUNK.pack(lsn, 0), _CHUNK.pack(lsn + 1, 0))
            return self._delete(txn, self._records, _key(first), _key(before_lsn))

    def proved(self) -> None:
        """The state could be rebuilt from here: the next writer need not look for damage first."""
        with suppress(OSError):
            (self.directory / _OPENING).unlink(missing_ok=True)

    def sync(self) -> None:
        """Bring what was appended to the disk: then it survives the machine."""
        with self._errors():
            self._env.sync(True)

    def release_readers(self) -> None:
        """Forget readers that were killed: each would pin the pages that it read for ever."""
        with self._errors():
            self._env.reader_check()

    def io_failure(self, code: int, detail: str, bytes_wanted: int = 0) -> LogError:
        """What to raise when an operation on `file` has failed with this errno."""
        where = f"log {self.directory}"
        if code in _DISK_FULL or (code == errno.EIO and not self._has_room(bytes_wanted)):
            return LogFullError(f"{where} is full: its disk, or what this process may use of it, is used up; free some")
        return LogError(f"{where}: {detail}")

    # ---------------------------------------------------------------------------------------------- snapshots

    def snapshots(self) -> list[int]:
        """The LSNs of the snapshots, ascending, unchecked."""
        with self._errors(), self._env.begin() as txn:
            keys = txn.cursor(self._snapshots).iternext(values=False)
            # Chunk 0 is stored last: a snapshot without it never became whole.
            return sorted(lsn for lsn, chunk in map(_CHUNK.unpack, keys) if chunk == 0)

    def snapshot(self, lsn: int) -> Snapshot:
        """The snapshot at an LSN, checked. Raises LogDamagedError when it is absent or not whole."""
        chunks = []
        with self._errors(), self._env.begin() as txn:
            cursor = txn.cursor(self._snapshots)
            found = cursor.set_range(_CHUNK.pack(lsn, 0))
            while found and cursor.key() < _CHUNK.pack(lsn + 1, 0):
                chunks.append(cursor.value())
                found = cursor.next()
        return join(lsn, chunks)

    def snapshot_latest(self, at_or_before: int | None = None) -> Snapshot | None:
        """The newest whole snapshot at or before an LSN; None if there is none.

        A damaged one is passed over for an older one; raises LogDamagedError when all there are, are damaged.
        """
        damage = None
        for lsn in reversed(self.snapshots()):
            if at_or_before is None or lsn <= at_or_before:
                try:
                    return self.snapshot(lsn)
                except LogDamagedError as error:
                    damage = error
        if damage is not None:
            raise damage
        return None

    def snapshot_save(self, lsn: int, data: bytes, chain: int) -> None:
        """Store the state after the record at `lsn`, in one transaction (3 to 13 ms per MB).

        Raises LogFullError; the log is then as before.
        """
        if not 0 < lsn <= self._last_lsn:
            raise LogError(f"log {self.directory} ends at LSN {self._last_lsn}: it can take no snapshot at LSN {lsn}")
        self._put_snapshot(Snapshot(lsn, chain, data))

    def snapshot_store(self, lsn: int, chain: int, pieces: list[bytes]) -> Iterator[None]:
        """As `snapshot_save`, of data in pieces, a chunk and transaction at each step; the last makes the snapshot valid."""
        assert not self.readonly and 0 < lsn <= self._last_lsn
        first = b""
        self._drop_partial()
        for index, chunk in enumerate(cut_pieces(lsn, chain, pieces)):
            if index == 0:
                first = chunk
                continue
            self._put_chunk(lsn, index, chunk)
            yield
        self._put_chunk(lsn, 0, first)
        self._snapshot_whole = lsn

    def snapshot_install(self, lsn: int, data: bytes, chain: int) -> None:
        """Begin an empty log with a peer's state: its first record will be LSN + 1.

        Raises LogError when the log is not empty: good records are never replaced (G8). See `set_aside`.
        """
        assert lsn > 0
        if self._last_lsn:
            raise LogError(
                f"log {self.directory} has reached LSN {self._last_lsn}: set it aside before a new beginning"
            )
        self._put_snapshot(Snapshot(lsn, chain, data))
        self._last_lsn, self._last_chain = lsn, chain

    # ---------------------------------------------------------------------------------------------- meta

    @property
    def name(self) -> str:
        """The deployment that the log belongs to."""
        return self._note("name")

    @property
    def nf(self) -> str:
        """The NF that the log was written by, as `module:Class`."""
        return self._note("nf")

    @property
    def epoch(self) -> int:
        """The highest epoch that `epoch_raise` was told of; 0 in a new log."""
        return int(self._note("epoch") or 0)

    def epoch_raise(self, epoch: int) -> None:
        """Remember, on the disk, that this epoch exists (G7). Raises FencedError when a higher one does."""
        if epoch < self.epoch:
            raise FencedError(f"log {self.directory} knows of epoch {self.epoch}: epoch {epoch} is over")
        self._set_notes(epoch=str(epoch))

    @property
    def led_epoch(self) -> int:
        """The last epoch that this log's node was itself the primary of; 0: none."""
        return int(self._note("led_epoch") or 0)

    @property
    def identity(self) -> str:
        """Random letters that tell this log, and copies of it, from all others."""
        return self._note("identity")

    @property
    def history(self) -> str:
        """The identity of the log that this one continues or copies: the deployment's first; empty before any epoch."""
        return self._note("history")

    def adopt(self, history: str) -> None:
        """Remember which history this log tells."""
        self._set_notes(history=history)

    def lead(self, epoch: int) -> None:
        """As `epoch_raise`, and remember that this node is its primary; it is `sync` that brings this to the disk."""
        if epoch < self.epoch:
            raise FencedError(f"log {self.directory} knows of epoch {self.epoch}: epoch {epoch} is over")
        self._put_notes(epoch=str(epoch), led_epoch=str(epoch))

    def set_aside(self) -> Path:
        """Close this log and move it into a directory inside its own, where it can be inspected; returns which.

        Then an empty log can be opened in its place, which has to be told the epoch again. Nothing is deleted (G8).
        """
        assert not self.readonly
        number = 1
        while (aside := self.directory / f"aside-{number}").exists():
            number += 1
        lock = os.dup(self._lock_fd)
        try:
            self.close()
            aside.mkdir()
            for file in ("data.mdb", "lock.mdb"):
                (self.directory / file).rename(aside / file)
        except OSError as error:
            raise LogError(f"log {self.directory} cannot be moved to {aside.name}: {error.strerror}") from error
        finally:
            os.close(lock)
        return aside

    def problems(self) -> list[str]:
        """What is wrong with the structure of the file; records and snapshots are not looked into.

        A reader does not look while somebody writes. Takes a second per 600,000 records.
        """
        if self.readonly and self._is_written():
            return []
        try:
            return [str(problem) for problem in lmdb.verify.verify(str(self.directory))]  # type: ignore[no-untyped-call]
        except (lmdb.verify.VerifyError, OSError) as error:
            return [str(error)]

    def problem_at_a_glance(self) -> str:
        """The first of `problems`, or "", also where looking for them would take time and nothing speaks for damage."""
        file, opening = self.file, self.directory / _OPENING
        if file.is_file() and (opening.exists() or file.stat().st_size <= LOG_VERIFY_BYTES):
            return next(iter(self.problems()), "")
        return ""

    # ---------------------------------------------------------------------------------------------- opening

    def _lock(self) -> int:
        """Take the writer's lock; its file names the holder."""
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            fd = os.open(self.directory / "writer.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise LogError(
                f"log {self.directory} cannot be opened for writing: {error.strerror}; name a directory that may be written"
            ) from error
        try:
            for _ in range(_LOCK_TRIES - 1):  # a reader that looks holds it for an instant
                with suppress(BlockingIOError):
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                time.sleep(_LOCK_PAUSE_S)
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(fd, 32, 0).decode(errors="replace").strip() or "unknown"
            os.close(fd)
            raise LogLockedError(
                f"log {self.directory} is being written by process {holder}; stop it or choose another directory"
            ) from error
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        return fd

    def _is_written(self) -> bool:
        """Whether a writer holds the lock; yes if that cannot be told."""
        try:
            fd = os.open(self.directory / "writer.lock", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        except OSError:
            return True
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
        except OSError:
            return True
        finally:
            os.close(fd)

    def _open(self) -> lmdb.Environment:
        path = str(self.directory)
        if not self.readonly:
            return lmdb.open(path, map_size=self._map_bytes, max_dbs=3, sync=False, mode=0o640)
        if not self.file.is_file():
            raise LogError(f"there is no log in {path}")
        # The writer must see its readers, in LMDB's reader table. What nobody writes is read without the table, so that
        # copies, and directories that may not be written, can be read and stay as they are.
        table = os.access(self.directory / "lock.mdb", os.W_OK)
        if not table and self._is_written():
            raise LogError(f"log {path} is being written and {path}/lock.mdb may not be: read it as the writer's user")
        # Mapped as far as a writer may grow it meanwhile; a size of 0 would be that of its last commit.
        return lmdb.open(path, map_size=self._map_bytes, max_dbs=3, readonly=True, create=False, lock=table)

    def _check_structure(self) -> None:
        """LMDB trusts what it reads, up to SIGBUS and SIGABRT: look at each page before, where that takes no time or the
        last writer died of it. A damaged one may as well hide records, and their number with them."""
        problem = self.problem_at_a_glance()
        if problem:
            raise LogDamagedError(
                f"log {self.directory}: its file is damaged ({problem}); keep it and restore from the other node"
            )
        with suppress(OSError):  # a full disk: the mark only helps
            (self.directory / _OPENING).touch()

    def _check_length(self) -> None:
        """A file that was cut short must be refused here: to touch a page that is not there kills the process."""
        bytes_used = (self._env.info()["last_pgno"] + 1) * self._env.stat()["psize"]
        size = self.file.stat().st_size
        # The last pages may be free ones that were never written, hence the second look.
        if size < bytes_used and self.problems():
            raise LogDamagedError(
                f"log {self.directory} was cut short: {bytes_used} bytes are in use, data.mdb has {size}; "
                "restore from the other node"
            )

    def _tables(self) -> list[lmdb._Database]:
        try:
            return [self._env.open_db(table, create=not self.readonly) for table in (b"records", b"snapshots", b"meta")]
        except (lmdb.NotFoundError, lmdb.ReadonlyError) as error:
            raise LogError(f"{self.directory} holds an LMDB file, but no log of actornet") from error

    def _check_format(self) -> None:
        version = int(self._note("format") or FORMAT)
        if version > FORMAT:
            raise LogError(
                f"log {self.directory} has format {version}, this version of actornet reads {FORMAT}: upgrade actornet"
            )

    def _check_end(self) -> None:
        """What a writer relies on, read back: the last record is whole and the LSNs have no gap."""
        self._last_lsn = last = self._read_last_lsn()
        self._last_chain = self._read_chain(last)
        base, first = self.base_lsn, self.first_lsn
        with self._env.begin() as txn:
            count = txn.stat(self._records)["entries"]
        if count != (last - first + 1 if first else 0):
            raise LogDamagedError(
                f"log {self.directory} holds {count} records from LSN {first} to {last}; restore from the other node"
            )
        assert base <= last

    def _claim(self, name: str, nf: str) -> None:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        self.suspect = self._note("boot") not in ("", boot)
        known = self.name
        if name and known and name != known:
            raise LogError(
                f"log {self.directory} belongs to deployment {known!r}, not {name!r}; choose another directory"
            )
        identity = self.identity or self._new_identity()
        self._set_notes(format=str(FORMAT), boot=boot, name=name or known, nf=nf or self.nf, identity=identity)

    def _new_identity(self) -> str:
        return secrets.token_hex(8)

    def _finish(self) -> None:
        # A full log keeps its mark of being written: after a crash of the machine it is then suspect, which is safe.
        with suppress(LogFullError), self._errors():
            self._env.sync(True)
            self._set_notes(boot="")
            self.proved()

    # ---------------------------------------------------------------------------------------------- inside

    def _read_last_lsn(self) -> int:
        with self._errors(), self._env.begin() as txn:
            records, snapshots = txn.cursor(self._records), txn.cursor(self._snapshots)
            if records.last():
                return _lsn(records.key())
            return _CHUNK.unpack(snapshots.key())[0] if snapshots.last() else 0

    def _read_chain(self, lsn: int) -> int:
        if lsn == 0:
            return CHAIN_START
        with self._errors(), self._env.begin() as txn:
            data = txn.get(_key(lsn), db=self._records)
        return decode(data, lsn).chain if data is not None else self.snapshot(lsn).chain

    def _page(self, first: int, last: int) -> list[tuple[int, bytes]]:
        end = _key(last)
        page: list[tuple[int, bytes]] = []
        with self._env.begin() as txn:
            cursor = txn.cursor(self._records)
            found = cursor.set_range(_key(first))
            while found and len(page) < LOG_PAGE_RECORDS:
                key, data = cursor.item()
                if key > end:
                    break
                page.append((_lsn(key), data))
                found = cursor.next()
        return page

    def _delete(self, txn: lmdb.Transaction[bytes], table: lmdb._Database, first: bytes, end: bytes) -> int:
        """Delete the keys from `first` up to, not with, `end`; returns how many."""
        count = 0
        cursor = txn.cursor(table)
        found = cursor.set_range(first)
        while found and cursor.key() < end:
            cursor.delete()
            count += 1
            found = cursor.key() != b""
        return count

    def _put_snapshot(self, snapshot: Snapshot) -> None:
        assert not self.readonly
        lsn = snapshot.lsn
        with self._errors(len(snapshot.data)), self._env.begin(write=True) as txn:
            self._delete(txn, self._snapshots, _CHUNK.pack(lsn, 0), _CHUNK.pack(lsn + 1, 0))
            for index, chunk in enumerate(cut(snapshot)):
                txn.put(_CHUNK.pack(lsn, index), chunk, db=self._snapshots)
        self._snapshot_whole = lsn

    def _put_chunk(self, lsn: int, index: int, chunk: bytes) -> None:
        with self._errors(len(chunk)), self._env.begin(write=True) as txn:
            txn.put(_CHUNK.pack(lsn, index), chunk, db=self._snapshots)

    def _drop_partial(self) -> None:
        """Chunks of snapshots that never became whole."""
        whole = set(self.snapshots())
        with self._errors(), self._env.begin(write=True) as txn:
            keys = list(txn.cursor(self._snapshots).iternext(values=False))
            for key in keys:
                if _CHUNK.unpack(key)[0] not in whole:
                    txn.delete(key, db=self._snapshots)

    def _note(self, key: str) -> str:
        with self._errors(), self._env.begin() as txn:
            return txn.get(key.encode(), b"", db=self._meta).decode()

    def _set_notes(self, **notes: str) -> None:
        self._put_notes(**notes)
        with self._errors():
            self._env.sync(True)

    def _put_notes(self, **notes: str) -> None:
        assert not self.readonly
        with self._errors(), self._env.begin(write=True) as txn:
            for key, value in notes.items():
                txn.put(key.encode(), value.encode(), db=self._meta)

    @contextmanager
    def _errors(self, bytes_wanted: int = 0) -> Iterator[None]:
        try:
            yield
        except lmdb.Error as error:
            raise self._failure(error, bytes_wanted) from error
        except struct.error as error:
            raise LogDamagedError(
                f"log {self.directory}: a key of a table is damaged; restore from the other node"
            ) from error

    def _failure(self, error: lmdb.Error, bytes_wanted: int) -> LogError:
        where = f"log {self.directory}"
        if isinstance(error, lmdb.MapFullError):
            size = f"{self._map_bytes / (1 << 20):g} MiB"
            return LogFullError(f"{where} is full: it may have {size}; prune it, or open it with a larger map")
        if isinstance(error, _FILE_DAMAGED):
            return LogDamagedError(f"{where}: its file is damaged ({error}); keep it and restore from the other node")
        return self.io_failure(error.code, str(error), bytes_wanted)

    def _has_room(self, bytes_wanted: int) -> bool:
        """A disk, or a limit on file sizes, that ends in the middle of a write shows as an I/O error."""
        wanted = bytes_wanted + (1 << 20)
        disk = os.statvfs(self.directory)
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
        fits = limit == resource.RLIM_INFINITY or self.file.stat().st_size + wanted <= limit
        return fits and disk.f_bavail * disk.f_frsize >= wanted


def _lsn(key: bytes) -> int:
    lsn: int = _LSN.unpack(key)[0]
    return lsn


def set_aside(directory: str | os.PathLike[str]) -> Path:
    """Move a log that cannot be opened, as `Log.set_aside` does one that can. LogError: it is in use, or cannot be moved."""
    home = Path(directory)
    number = 1
    while (aside := home / f"aside-{number}").exists():
        number += 1
    try:
        with (home / "writer.lock").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            aside.mkdir()
            for file in ("data.mdb", "lock.mdb"):
                with suppress(FileNotFoundError):
                    (home / file).rename(aside / file)
    except OSError as error:
        raise LogError(f"log {home} cannot be moved to {aside.name}: {error.strerror}") from error
    return aside
