"""The log on disk: what is appended is there, in order and whole, whatever happens to writer, disk or file."""

import faulthandler
import os
import random
import resource
import shutil
import signal
import tempfile
import time
from collections import Counter
from pathlib import Path

import pytest
from port_log import exit_code, flip, in_child, table

from actornet.engine.records import verify_chain
from actornet.errors import FencedError, LogDamagedError, LogError, LogFullError, LogLockedError
from actornet.journal import Journal
from actornet.limits import LOG_CHUNK_BYTES, LOG_PAGE_RECORDS, LOG_PRUNE_RECORDS
from actornet.log import store
from actornet.log.record import ControlBody, Kind, Record, decode, encode
from actornet.log.store import Log


def records(first: int, count: int, chain: int = 0, size: int = 100) -> tuple[list[tuple[int, bytes]], int]:
    """A batch and the chain at its end."""
    batch = []
    for lsn in range(first, first + count):
        data, chain = encode(Record(lsn, 1, lsn, Kind.CONTROL, 0, ControlBody("test", "x" * size)), chain)
        batch.append((lsn, data))
    return batch, chain


def fill(log: Log, count: int) -> None:
    batch, _ = records(log.last_lsn + 1, count, log.last_chain)
    log.append(batch)


def assert_whole(directory: Path, last: int, first: int = 1) -> None:
    """The file's structure is sound, and the records are these, decode, and continue each other."""
    with Log(directory, readonly=True) as log:
        assert log.problems() == []
        assert (log.first_lsn, log.last_lsn) == (first, last)
        lsn, chain = first - 1, 0
        for lsn, data in log.scan():
            record = decode(data, lsn)
            if lsn > first or first == 1:
                verify_chain(data, chain)
            chain = record.chain
        assert lsn == last


def test_records_come_back_in_order_over_pages_and_after_reopening(tmp_path):
    count = 2 * LOG_PAGE_RECORDS + 7
    batch, chain = records(1, count)
    with Log(tmp_path) as log:
        assert (log.first_lsn, log.last_lsn, log.last_chain, list(log.scan())) == (0, 0, 0, [])
        log.append([])
        for at in range(0, count, 100):
            log.append(batch[at : at + 100])
        assert list(log.scan()) == batch
    with Log(tmp_path) as log:
        assert (log.first_lsn, log.last_lsn, log.last_chain, log.base_lsn) == (1, count, chain, 0)
        assert log.read(1) == batch[0][1] and log.read(count) == batch[-1][1]
        assert list(log.scan(LOG_PAGE_RECORDS, LOG_PAGE_RECORDS + 1)) == batch[LOG_PAGE_RECORDS - 1 :][:2]
        more, _ = records(count + 1, 1, chain)
        log.append(more)
    assert_whole(tmp_path, count + 1)


@pytest.mark.parametrize("lsn", [-1, 0, 4, 1 << 63])
def test_reading_beyond_the_log_says_what_it_holds(tmp_path, lsn):
    with Log(tmp_path) as log:
        fill(log, 3)
        with pytest.raises(LogError, match=rf"no record at LSN {lsn}: it holds LSN 1 to 3"):
            log.read(lsn)


def test_a_batch_that_does_not_continue_the_log_is_refused_whole(tmp_path):
    """G8: a gap, a repetition or another order never gets into the log."""
    batch, _ = records(1, 9)
    with Log(tmp_path) as log:
        log.append(batch[:3])
        for wrong in (batch[2:5], batch[4:6], [*batch[3:5], batch[6]], [batch[3], batch[5], batch[4], batch[6]]):
            with pytest.raises(LogError, match=r"do not continue|not in order"):
                log.append(wrong)
            assert log.last_lsn == 3
        log.append(batch[3:])
    assert_whole(tmp_path, 9)


def test_a_full_map_leaves_the_log_whole_and_a_larger_one_continues_it(tmp_path):
    """G8: what was appended before stays, what did not fit is not there in part."""
    with Log(tmp_path, map_bytes=1 << 18) as log:
        with pytest.raises(LogFullError, match=r"is full: it may have 0\.25 MiB"):
            while True:
                fill(log, 50)
        last = log.last_lsn
        assert last > 500 and last % 50 == 0
        with pytest.raises(LogFullError):
            log.snapshot_save(last, bytes(1 << 19), log.last_chain)
        assert log.snapshots() == [] and sum(1 for _ in log.scan()) == last
    assert_whole(tmp_path, last)
    with Log(tmp_path) as log:
        fill(log, 50)
    assert_whole(tmp_path, last + 50)


def test_a_full_disk_leaves_the_log_whole(tmp_path):
    """G8: as with a full map."""

    def write_until_full() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 19, 1 << 19))
        with Log(tmp_path) as log:
            with pytest.raises(LogFullError, match="is full: its disk"):
                while True:
                    fill(log, 50)
            assert sum(1 for _ in log.scan()) == log.last_lsn > 1000

    assert exit_code(in_child(write_until_full)) == 0
    with Log(tmp_path, readonly=True) as log:
        last = log.last_lsn
    assert_whole(tmp_path, last)
    with Log(tmp_path) as log:
        fill(log, 50)
    assert_whole(tmp_path, last + 50)


def test_a_second_writer_is_told_who_has_the_log_until_that_one_is_gone(tmp_path):
    ready, opened = os.pipe()

    def hold() -> None:
        with Log(tmp_path) as log:
            fill(log, 5)
            os.write(opened, b"!")
            time.sleep(60)

    pid = in_child(hold)
    os.read(ready, 1)
    with pytest.raises(LogLockedError, match=rf"is being written by process {pid}; stop it"):
        Log(tmp_path)
    os.kill(pid, signal.SIGKILL)
    assert exit_code(pid) == -signal.SIGKILL
    with Log(tmp_path) as log:
        assert log.last_lsn == 5 and not log.suspect
        with pytest.raises(LogLockedError, match=f"process {os.getpid()}"):
            Log(tmp_path)


def test_a_reader_follows_a_log_that_is_being_written(tmp_path):
    """Each scan is a gapless prefix; the reader pins no pages, so the file does not grow for it."""
    with Log(tmp_path) as log:
        fill(log, 1)

    def write() -> None:
        with Log(tmp_path) as log:
            while log.last_lsn < 20_000:
                fill(log, 20)

    pid = in_child(write)
    last = scans = 0
    with Log(tmp_path, readonly=True) as reader:
        while last < 20_000:
            lsn = chain = 0
            for expected, (lsn, data) in enumerate(reader.scan(), 1):
                assert lsn == expected
                chain = verify_chain(data, chain)
            assert lsn >= last
            last, scans = lsn, scans + 1
        assert (reader.last_lsn, reader.last_chain) == (last, chain)
    assert exit_code(pid) == 0 and scans > 1
    assert (tmp_path / "data.mdb").stat().st_size < 2 * 20_000 * 200


def test_a_reader_leaves_the_directory_as_it_is(tmp_path):
    with Log(tmp_path / "log") as log:
        fill(log, 100)
    copy = tmp_path / "copy"
    copy.mkdir()
    shutil.copy(tmp_path / "log" / "data.mdb", copy)
    before = (copy / "data.mdb").stat().st_mtime_ns
    with Log(copy, readonly=True) as log:
        assert log.last_lsn == sum(1 for _ in log.scan()) == 100
    assert [file.name for file in copy.iterdir()] == ["data.mdb"]
    assert (copy / "data.mdb").stat().st_mtime_ns == before


def test_a_log_without_write_permission_can_be_read_unless_it_is_being_written():
    directory = Path(tempfile.mkdtemp())  # not below tmp_path, which other users may not enter
    try:
        log = Log(directory)
        fill(log, 10)
        os.chmod(directory / "data.mdb", 0o444)
        os.chmod(directory / "lock.mdb", 0o444)
        os.chmod(directory, 0o555)

        def read(expect_written: bool) -> None:
            if os.geteuid() == 0:
                os.setresuid(65534, 65534, 65534)
            if expect_written:
                with pytest.raises(LogError, match="read it as the writer's user"):
                    Log(directory, readonly=True)
            else:
                with Log(directory, readonly=True) as reader:
                    assert sum(1 for _ in reader.scan()) == 10

        assert exit_code(in_child(lambda: read(True))) == 0
        log.close()
        assert exit_code(in_child(lambda: read(False))) == 0
    finally:
        os.chmod(directory, 0o755)
        shutil.rmtree(directory)


def test_a_directory_that_holds_no_log_is_refused_in_one_line(tmp_path):
    with pytest.raises(LogError, match="there is no log in"):
        Log(tmp_path / "absent", readonly=True)
    assert not (tmp_path / "absent").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(LogError, match="cannot be opened for writing: File exists; name a directory"):
        Log(tmp_path / "file")
    for junk in (b"", b"no database" * 1000):
        other = tmp_path / f"junk{len(junk)}"
        other.mkdir()
        (other / "data.mdb").write_bytes(junk)
        with pytest.raises(LogError, match=str(other)):
            Log(other, readonly=True)


def test_a_log_belongs_to_one_deployment_and_one_format(tmp_path):
    with Log(tmp_path, name="edge", nf="actors.nat:SourceNAT") as log:
        assert (log.name, log.nf) == ("edge", "actors.nat:SourceNAT")
    with pytest.raises(LogError, match="belongs to deployment 'edge', not 'core'"):
        Log(tmp_path, name="core")
    with Log(tmp_path, nf="mine:NAT") as log:
        assert (log.name, log.nf) == ("edge", "mine:NAT")
    with table(tmp_path, "meta") as txn:
        txn.put(b"format", b"2")
    for readonly in (False, True):
        with pytest.raises(LogError, match="has format 2, this version of actornet reads 1: upgrade"):
            Log(tmp_path, readonly=readonly)


def test_the_highest_epoch_is_remembered(tmp_path):
    """G7: a node that has heard of an epoch does not go back behind it, even after a restart."""
    with Log(tmp_path) as log:
        assert log.epoch == 0
        log.epoch_raise(5)
        log.epoch_raise(5)
    with Log(tmp_path) as log:
        assert log.epoch == 5
        with pytest.raises(FencedError, match="knows of epoch 5: epoch 4 is over"):
            log.epoch_raise(4)


def test_a_log_that_the_machine_went_down_with_is_suspect(tmp_path):
    """G8: only a clean close, or the same boot, gives a log that needs no check."""

    def die() -> None:
        fill(Log(tmp_path), 3)
        os.kill(os.getpid(), signal.SIGKILL)

    exit_code(in_child(die))
    with table(tmp_path, "meta") as txn:
        assert txn.get(b"boot")
        txn.put(b"boot", b"another boot")
    with Log(tmp_path) as log:
        assert log.suspect
    with Log(tmp_path) as log:
        assert not log.suspect


@pytest.mark.parametrize("size", [0, 1, LOG_CHUNK_BYTES - 20, LOG_CHUNK_BYTES, 3 * LOG_CHUNK_BYTES + 5])
def test_a_snapshot_comes_back(tmp_path, size):
    data = random.Random(size).randbytes(size)
    with Log(tmp_path) as log:
        fill(log, 9)
        assert log.snapshot_latest() is None
        log.snapshot_save(4, b"four", 44)
        log.snapshot_save(7, b"longer" * LOG_CHUNK_BYTES, 1)
        log.snapshot_save(7, data, 77)
    with Log(tmp_path, readonly=True) as log:
        assert log.snapshots() == [4, 7]
        found = log.snapshot_latest()
        assert found is not None and (found.lsn, found.chain, found.data) == (7, 77, data)
        older = log.snapshot_latest(6)
        assert older is not None and older.data == b"four"
        assert log.snapshot_latest(3) is None


def test_only_an_empty_log_begins_with_a_peers_snapshot(tmp_path):
    """G8: a snapshot never takes the place of records that are here."""
    with Log(tmp_path / "old") as log:
        fill(log, 3)
        with pytest.raises(LogError, match="ends at LSN 3: it can take no snapshot at LSN 4"):
            log.snapshot_save(4, b"", 0)
        with pytest.raises(LogError, match="has reached LSN 3: set it aside"):
            log.snapshot_install(4, b"", 0)
    with Log(tmp_path / "new") as log:
        log.snapshot_install(100, b"state", 42)
        assert (log.first_lsn, log.last_lsn, log.last_chain, log.base_lsn) == (0, 100, 42, 100)
    with Log(tmp_path / "new") as log:
        assert (log.last_lsn, log.last_chain, log.base_lsn) == (100, 42, 100)
        fill(log, 3)
        assert (log.first_lsn, log.last_lsn, log.base_lsn) == (101, 103, 100)


def test_a_damaged_snapshot_is_named_and_an_older_one_is_used(tmp_path):
    """G8."""
    with Log(tmp_path) as log:
        fill(log, 9)
        log.snapshot_save(4, b"four" * 100, 44)
        log.snapshot_save(7, b"seven" * 100, 77)
    flip(tmp_path, b"seven" * 100, 250)
    with Log(tmp_path) as log:
        with pytest.raises(LogDamagedError, match="snapshot at LSN 7 is damaged: the checksum of chunk 0"):
            log.snapshot(7)
        found = log.snapshot_latest()
        assert found is not None and found.lsn == 4
        with pytest.raises(LogDamagedError, match="LSN 7"):
            log.prune(5)
        assert log.first_lsn == 1
    flip(tmp_path, b"four" * 100, 5)
    with Log(tmp_path) as log, pytest.raises(LogDamagedError, match="LSN 4"):
        log.snapshot_latest()


def test_a_torn_snapshot_is_never_seen(tmp_path):
    """G8: a writer that is killed while it saves snapshots leaves only whole ones."""
    data = random.Random(1).randbytes(5 * LOG_CHUNK_BYTES)
    with Log(tmp_path) as log:
        fill(log, 1000)

    def save() -> None:
        with Log(tmp_path) as log:
            for lsn in range((log.snapshots() or [0])[-1] + 1, 1000):
                log.snapshot_save(lsn, data, lsn)

    seen = 0
    for delay_s in (0.02, 0.05, 0.08):
        pid = in_child(save)
        time.sleep(delay_s)
        os.kill(pid, signal.SIGKILL)
        exit_code(pid)
        with Log(tmp_path, readonly=True) as log:
            for lsn in log.snapshots():
                assert log.snapshot(lsn).data == data
                seen += 1
    assert seen


def test_prune_keeps_what_the_newest_snapshot_needs(tmp_path):
    count = LOG_PRUNE_RECORDS + 500
    with Log(tmp_path) as log:
        fill(log, count)
        assert log.prune(count) == 0, "without a snapshot everything is needed"
        for lsn in (50, 300, count - 100):
            log.snapshot_save(lsn, b"state", lsn)
        assert log.prune(200) == 199
        assert (log.first_lsn, log.snapshots(), log.base_lsn) == (200, [300, count - 100], 300)
        assert log.prune(count + 1) == LOG_PRUNE_RECORDS, "one call is bounded"
        assert log.prune(count + 1) == count - 100 - 199 - LOG_PRUNE_RECORDS
        assert log.prune(count + 1) == 0
        assert (log.first_lsn, log.snapshots(), log.base_lsn) == (count - 99, [count - 100], count - 100)
    with Log(tmp_path) as log:
        fill(log, 1)
        log.snapshot_save(log.last_lsn, b"state", log.last_chain)
        while log.prune(log.last_lsn + 1):
            pass
        assert (log.first_lsn, log.last_lsn) == (0, count + 1)
    with Log(tmp_path) as log:
        fill(log, 1)
    assert_whole(tmp_path, count + 2, first=count + 2)


def test_truncate_drops_the_end_and_its_snapshots(tmp_path):
    count = LOG_PRUNE_RECORDS + 500
    batch, _ = records(1, count)
    with Log(tmp_path) as log:
        log.append(batch)
        for lsn in (50, 100, 300):
            log.snapshot_save(lsn, b"state", decode(batch[lsn - 1][1]).chain)
        assert log.truncate(count) == 0
        assert log.truncate(200) == count - 200
        assert (log.last_lsn, log.snapshots()) == (200, [50, 100])
        assert log.last_chain == decode(batch[199][1]).chain
        log.prune(80)
        with pytest.raises(LogError, match="begins at LSN 100: it cannot be cut after LSN 90"):
            log.truncate(90)
        fill(log, 10)
        assert log.truncate(100) == 110
        assert (log.last_lsn, log.last_chain) == (100, decode(batch[99][1]).chain)
    with Log(tmp_path) as log:
        assert (log.last_lsn, log.base_lsn) == (100, 100)


def test_a_log_is_set_aside_not_deleted(tmp_path):
    """G8: an empty log takes its place, and the old one can still be read."""
    log = Log(tmp_path, name="edge")
    fill(log, 10)
    aside = log.set_aside()
    with Log(tmp_path, name="core") as log:
        assert log.last_lsn == 0
        fill(log, 3)
        again = log.set_aside()
    assert (aside.name, again.name) == ("aside-1", "aside-2")
    assert_whole(aside, 10)
    assert_whole(again, 3)


def test_a_writer_does_not_continue_a_damaged_end_but_a_reader_opens_it(tmp_path):
    """G8."""
    with Log(tmp_path) as log:
        fill(log, 9)
        last = log.read(9)
    flip(tmp_path, last, 60)
    with pytest.raises(LogDamagedError, match="record at LSN 9 is damaged"):
        Log(tmp_path)
    with Log(tmp_path, readonly=True) as log:
        assert log.last_lsn == 9 and sum(1 for _ in log.scan()) == 9
        with pytest.raises(LogDamagedError, match="LSN 9"):
            _ = log.last_chain


def test_a_writer_does_not_continue_a_log_with_a_gap(tmp_path):
    """G8."""
    with Log(tmp_path) as log:
        fill(log, 9)
    with table(tmp_path, "records") as txn:
        txn.delete((5).to_bytes(8))
    with pytest.raises(LogDamagedError, match="holds 8 records from LSN 1 to 9"):
        Log(tmp_path)
    with Log(tmp_path, readonly=True) as log, pytest.raises(LogDamagedError, match="record at LSN 5 is missing"):
        log.read(5)
    with table(tmp_path, "records") as txn:
        for lsn in range(1, 5):
            txn.delete(lsn.to_bytes(8))
    with pytest.raises(LogDamagedError, match="begins at LSN 6 without a snapshot before it"):
        Log(tmp_path)


def test_a_file_that_was_cut_short_is_named_and_kills_nobody(tmp_path):
    """G8."""
    with Log(tmp_path) as log:
        fill(log, 2000)
    size = (tmp_path / "data.mdb").stat().st_size

    def open_cut() -> None:
        for length in (size // 2, 3 * 4096, 2 * 4096, 5000, 100):
            os.truncate(tmp_path / "data.mdb", length)
            for readonly in (True, False):
                with pytest.raises(LogError, match=str(tmp_path)):
                    Log(tmp_path, readonly=readonly)

    assert exit_code(in_child(open_cut)) == 0


def test_a_closed_log_says_so(tmp_path):
    log = Log(tmp_path)
    log.close()
    log.close()
    with pytest.raises(LogError, match="closed"):
        fill(log, 1)


def opened_in_a_child(directory: Path) -> str:
    """What becomes of a process that rebuilds the state from a log, and logs one more record."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        faulthandler.disable()
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # LMDB's last words
        try:
            with Log(directory) as log:
                journal = Journal(log)
                journal.execute(ControlBody("note", "one more"), 0, 1)
                journal.commit()
            said = "sound"
        except BaseException as error:
            said = type(error).__name__
        os.write(writer, said.encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        said = pipe.read()
    status = os.waitpid(pid, 0)[1]
    return f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else said


@pytest.mark.parametrize("file", ["small", "large"])
def test_a_flipped_bit_anywhere_is_damage_or_harmless(
    tmp_path: Path, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """G8: LMDB can die of a damaged page, or pass over what hangs on it. In a small file that is seen before; where a
    large one ends its writer, the next one sees it."""
    seed = int(os.environ.get("FAULT_SEED", "0")) or random.SystemRandom().getrandbits(32)
    chance = random.Random(f"{seed} {file}")
    if file == "large":
        monkeypatch.setattr(store, "LOG_VERIFY_BYTES", 0)
    good = tmp_path / "good"
    with Log(good) as log:
        journal = Journal(log)
        for number in range(600):
            journal.execute(ControlBody("note", f"{number:060}"), 0, number)
            journal.commit()
    data = (good / "data.mdb").read_bytes()
    outcomes = Counter[str]()
    for attempt in range(120):
        damaged = bytearray(data)
        pages = range(2 * 4096, len(data), 4096) if attempt % 2 else [chance.randrange(0, len(data), 4096)]
        for page in pages:
            damaged[page + chance.randrange(100)] ^= 1 << chance.randrange(8)
        directory = tmp_path / str(attempt)
        directory.mkdir()
        (directory / "data.mdb").write_bytes(damaged)
        outcome = opened_in_a_child(directory)
        if file == "large" and outcome.startswith("signal"):
            outcomes["died"] += 1
            outcome = opened_in_a_child(directory)
            assert outcome == "LogDamagedError", f"seed {seed}, attempt {attempt}"
        outcomes[outcome] += 1
        shutil.rmtree(directory)
    assert outcomes["sound"] + outcomes["LogDamagedError"] + outcomes["LogError"] == 120, f"seed {seed}: {outcomes}"
    assert outcomes["sound"] and outcomes["LogDamagedError"] > 60, f"seed {seed}: {outcomes}"
    assert file == "large" or not outcomes["LogError"], f"seed {seed}: {outcomes}"
