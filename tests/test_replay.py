"""Replay: the state at any LSN is what the primary had, and whatever is wrong with a log is named."""

import os
import random
import signal
import time
from pathlib import Path

import msgspec
import pytest
from port_log import (
    PATH,
    LastPortPool,
    PortPool,
    Ports,
    Primary,
    executed,
    exit_code,
    flip,
    flow,
    in_child,
    table,
    write,
)

from actornet.engine.five_tuple import FiveTuple
from actornet.errors import DivergenceError, LogDamagedError, LogError, UsageError
from actornet.log.record import ControlBody, Kind, chain_of, decode, encode
from actornet.log.store import Log
from actornet.replay import History, Query, verify
from actornet.replay.text import brief, instant, plain, tree, unpack
from actornet.replication.replica import AskRequest, Replica


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A log of 10 flows: LSN 1 EPOCH, 2 OWNER, then 3 records a flow, 33 an ask of no flow, 34 CONTROL."""
    write(tmp_path / "log", 10)
    return tmp_path / "log"


def record_at(directory: Path, lsn: int) -> bytes:
    with Log(directory, readonly=True) as log:
        return log.read(lsn)


def expect_problem(directory: Path, lsn: int, text: str) -> None:
    """Verification names the problem, and says that all up to this LSN is sound."""
    with History(directory) as history:
        result = verify(history)
    assert text in str(result.problem)
    assert result.lsn == lsn


@pytest.mark.parametrize("snapshot_at", [-1, 3])
def test_the_state_at_every_lsn_is_what_the_primary_had(tmp_path, snapshot_at):
    """G4: from the first record or from a snapshot."""
    hashes = write(tmp_path, 6, snapshot_at)
    with History(tmp_path) as history:
        assert history.log.last_lsn == max(hashes)
        for lsn, expected in hashes.items():
            assert history.state(lsn).state_hash() == expected
        assert history.state().lsn == max(hashes)
        with pytest.raises(LogError, match=f"has no LSN {max(hashes) + 1}: it has reached"):
            history.state(max(hashes) + 1)


def test_a_sound_log_is_verified_whole_and_left_alone(tmp_path):
    """G4, G8."""
    hashes = write(tmp_path, 10, snapshot_at=4)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir() if file.name != "lock.mdb"}
    told = []
    with History(tmp_path) as history:
        result = verify(history, lambda lsn, last: told.append((lsn, last)))
    assert result.problem is None
    assert (result.records, result.lsn, result.base_lsn, result.snapshots) == (34, 34, 0, 1)
    assert result.kinds == {"EPOCH": 1, "OWNER": 1, "ASK": 11, "FLOW": 10, "CLOSE": 7, "CONTROL": 1, "HASH": 3}
    assert result.owners == {"wan-ports": PATH}
    assert (result.flows, result.epoch) == (3, 1)
    assert result.chain == chain_of(record_at(tmp_path, max(hashes)))
    assert told == [(lsn, 34) for lsn in range(1, 35)]
    assert before == {file.name: file.read_bytes() for file in tmp_path.iterdir() if file.name != "lock.mdb"}


def test_a_pruned_log_is_verified_from_its_snapshot(tmp_path):
    """G4: and it cannot tell what was before."""
    hashes = write(tmp_path, 10, snapshot_at=4)
    with Log(tmp_path) as log:
        assert log.prune(1000) == 17
    with History(tmp_path) as history:
        result = verify(history)
        assert result.problem is None
        assert (result.base_lsn, result.records, result.lsn) == (17, 17, 34)
        assert [entry.lsn for entry in history.entries()] == list(range(18, 35))
        assert history.state(17).state_hash() == hashes[17]
        with pytest.raises(LogError, match="begins with the state at LSN 17: that at 16 is gone"):
            history.state(16)
        assert history.continues(history.entry(18)) is True


def test_an_empty_log_is_sound(tmp_path):
    Log(tmp_path).close()
    with History(tmp_path) as history:
        result = verify(history)
        assert (result.problem, result.records, result.lsn) == (None, 0, 0)
        assert list(history.entries()) == [] and history.state().owners == {}


@pytest.mark.parametrize("lsn", [1, 2, 3, 4, 5, 8, 33, 34])
def test_a_flipped_bit_in_any_record_is_named_and_the_rest_can_be_read(directory, lsn):
    """G8: every kind of record, in every part of it."""
    sound = record_at(directory, lsn)
    for at in range(0, len(sound), 7):
        flip(directory, sound, at)
        expect_problem(directory, lsn - 1, f"at LSN {lsn} is damaged")
        with History(directory) as history:
            entries = list(history.entries())
        assert [entry.lsn for entry in entries] == list(range(1, 35))
        assert [entry.lsn for entry in entries if entry.record is None] == [lsn]
        damaged = bytearray(sound)
        damaged[at] ^= 0x10
        flip(directory, bytes(damaged), at)
    with History(directory) as history:
        assert verify(history).problem is None


def test_a_record_that_was_replaced_breaks_the_chain(directory):
    """G8: though its own checksum is right."""
    with table(directory, "records") as txn:
        record = decode(txn.get((34).to_bytes(8)))
        record.body = ControlBody("stop", "by somebody else")
        txn.put((34).to_bytes(8), encode(record, 12345)[0])
    expect_problem(directory, 33, "at LSN 34 is damaged: it does not continue the records before it")
    with History(directory) as history:
        assert history.continues(history.entry(34)) is False
        assert history.continues(history.entry(33)) is True
        assert history.continues(history.entry(1)) is True


def test_missing_records_are_named_as_one_gap(directory):
    """G8."""
    with table(directory, "records") as txn:
        for lsn in (7, 20, 21, 22):
            assert txn.delete(lsn.to_bytes(8))
    expect_problem(directory, 6, "record at LSN 7 is missing")
    with History(directory) as history:
        gaps = [(entry.lsn, entry.lsn_last, entry.damage) for entry in history.entries() if entry.record is None]
    assert [gap[:2] for gap in gaps] == [(7, 7), (20, 22)]
    assert "records from LSN 20 to 22 are missing" in gaps[1][2]


def test_a_misplaced_record_is_named_and_the_rest_can_be_read(directory):
    """G8: a key of the table that was flipped hides one record, not those after it."""
    flip(directory, (9).to_bytes(8) + record_at(directory, 9), 0)
    with History(directory) as history:
        damaged = [entry.lsn for entry in history.entries() if entry.record is None]
        assert damaged == [9]
        assert verify(history).problem is not None


def test_changed_code_diverges_at_the_first_record_that_it_decides_otherwise(directory):
    """G4: named by LSN, owner, message, expected and actual."""
    with History(directory, load=lambda path: LastPortPool) as history:
        result = verify(history)
        assert isinstance(result.problem, DivergenceError)
        assert result.lsn == 2
        for part in ("LSN 3", "wan-ports.allocate", "expected reply hash", "actual", "1200"):
            assert part in str(result.problem)
        reply = history.reply(history.entry(3).record)
        assert (reply.value, reply.agrees) == (1200, False)
        with pytest.raises(DivergenceError, match="LSN 3"):
            history.state()


def test_a_snapshot_of_another_state_diverges(tmp_path):
    """G4, G8: a snapshot is checked against the records that lead to it."""
    write(tmp_path, 6, snapshot_at=2)
    with History(tmp_path) as history:
        wrong = history.state(11)
        wrong.owners["wan-ports"].state.free.pop()
    with Log(tmp_path) as log:
        log.snapshot_save(11, wrong.snapshot(), chain_of(log.read(11)))
    expect_problem(tmp_path, 10, "divergence at the snapshot at LSN 11: state hash: expected")
    with Log(tmp_path) as log:
        log.snapshot_save(11, wrong.snapshot(), 1)
    expect_problem(tmp_path, 10, "the snapshot at LSN 11 continues chain 0000000000000001, the record there has")


def test_a_damaged_snapshot_is_passed_over_but_verify_names_it(tmp_path):
    """G8."""
    hashes = write(tmp_path, 10, snapshot_at=4)
    with Log(tmp_path, readonly=True) as log:
        data = log.snapshot(17).data[:1000]
    flip(tmp_path, data, 500)
    expect_problem(tmp_path, 16, "the snapshot at LSN 17 is damaged")
    with History(tmp_path) as history:
        assert history.state(20).state_hash() == hashes[20]
    with Log(tmp_path) as log:
        with pytest.raises(LogDamagedError, match="LSN 17"):
            log.prune(18)


def test_replies_are_found_by_re_execution(directory):
    """G4: values, typed by the message's hint, and errors."""
    with History(directory) as history:
        state = history.state()
        for lsn in (3, 6, 33):
            record = history.entry(lsn).record
            assert record is not None and record.kind is Kind.ASK
            reply = history.reply(record)
            assert reply.agrees and reply.hash == record.body.reply_hash
            if lsn == 33:
                assert (reply.value, reply.error) == (None, "KeyError: 1")
            else:
                assert state.owners["wan-ports"].state.used[reply.value] == record.body.flow


def test_code_that_cannot_be_loaded_is_a_usage_error_but_records_can_be_listed(tmp_path):
    with Log(tmp_path) as log:
        primary = Primary(log)
        gone = "gone.module:Pool"
        primary.replica._load = lambda path: PortPool
        primary.take(primary.replica.create_owner("other", gone, {"address": "x", "first": 1, "last": 2}, 1))
        primary.flush()
    with History(tmp_path) as history:
        assert [entry.record.kind.name for entry in history.entries()] == ["EPOCH", "OWNER", "OWNER"]
        with pytest.raises(UsageError, match=r"gone\.module:Pool cannot be loaded.*PYTHONPATH"):
            verify(history)


def test_a_log_that_is_being_written_is_verified_up_to_a_consistent_prefix(tmp_path):
    """G4, G8: replay does not wait for, or disturb, the writer."""
    write(tmp_path, 1)

    def go_on() -> None:
        with History(tmp_path) as history:
            replica = history.state()
        with Log(tmp_path) as log:
            primary = Primary(log, replica)
            for number in range(1, 400):
                primary.open_flow(number)
                if number % 100 == 0:
                    primary.snapshot()

    pid = in_child(go_on)
    reached = []
    while not reached or reached[-1] < 6 + 399 * 3:
        with History(tmp_path) as history:
            result = verify(history)
        assert result.problem is None
        assert not reached or result.lsn >= reached[-1]
        reached.append(result.lsn)
    assert exit_code(pid) == 0 and len(set(reached)) > 1


def test_ten_kills_at_random_times_lose_nothing_that_was_acknowledged(tmp_path):
    """G8: the log verifies after each kill -9, and the next writer goes on from its state."""
    write(tmp_path, 1)
    acknowledged = 6

    def write_and_acknowledge(channel: int) -> None:
        with History(tmp_path) as history:
            replica = history.state()
        number = replica.lsn
        with Log(tmp_path) as log:
            primary = Primary(log, replica)
            while True:
                number += 1
                primary.open_flow(number)
                os.write(channel, log.last_lsn.to_bytes(8))
                if number % 50 == 0:
                    primary.snapshot()

    chance = random.Random(8)
    for _ in range(10):
        answers, channel = os.pipe()
        pid = in_child(lambda channel=channel: write_and_acknowledge(channel))
        os.close(channel)
        first = os.read(answers, 8)  # it runs
        time.sleep(chance.uniform(0, 0.04))
        os.kill(pid, signal.SIGKILL)
        assert exit_code(pid) == -signal.SIGKILL
        said = first
        while more := os.read(answers, 1 << 16):
            said += more
        os.close(answers)
        assert int.from_bytes(said[-8:]) >= acknowledged + 3
        acknowledged = int.from_bytes(said[-8:])
        with History(tmp_path) as history:
            result = verify(history)
        assert result.problem is None
        assert result.lsn >= acknowledged


def test_a_flip_anywhere_in_the_file_is_named_or_harmless(tmp_path):
    """G8: also in LMDB's own pages. What verifies as sound has the primary's state."""
    hashes = write(tmp_path, 40, snapshot_at=20)
    content = (tmp_path / "data.mdb").read_bytes()
    chance = random.Random(4)

    def try_all() -> None:
        named = 0
        for number in range(150):
            at = chance.randrange(len(content))
            if number % 2:
                at = at // 4096 * 4096 + chance.randrange(64)  # headers of pages
            damaged = bytearray(content)
            damaged[at] ^= 1 << chance.randrange(8)
            (tmp_path / "data.mdb").write_bytes(damaged)
            try:
                with History(tmp_path) as history:
                    result = verify(history)
                    if result.problem is None:
                        assert history.state().state_hash() == hashes[result.lsn]
                    else:
                        named += 1
            except LogError:
                named += 1
        assert named > 25

    assert exit_code(in_child(try_all)) == 0


@pytest.mark.parametrize(
    ("query", "lsns"),
    [
        (Query(), list(range(1, 35))),
        (Query(owner="wan-ports", kind="owner"), [2]),
        (Query(owner="wan-ports"), [2, *range(3, 33, 3), 33]),
        (Query(owner="lan-ports"), []),
        (Query(kind="HASH"), [5, 17, 29]),
        (Query(flow="10.0.0.1"), [6, 7, 8]),
        (Query(flow="10.0.0"), []),
        (Query(flow="udp 10.0.0.2:4000"), [9, 10, 11]),
        (Query(flow=":53 10.0.0.2"), [9, 10, 11]),
        (Query(flow="tcp"), []),
        (Query(flow="10.0.0.1", kind="close"), [8]),
    ],
)
def test_queries_select_records(directory, query, lsns):
    with History(directory) as history:
        assert [entry.lsn for entry in history.entries() if entry.record and query.matches(entry.record)] == lsns


def test_an_unknown_kind_is_a_usage_error():
    with pytest.raises(UsageError, match="no kind 'mail' of records; the kinds are: epoch, owner, ask"):
        Query(kind="mail")


def test_ipv6_flows_are_found_by_address():
    record = decode(encode(_ask(FiveTuple(6, "2001:db8::1", 4000, "2001:db8::2", 443)), 0)[0])
    assert Query(flow="2001:db8::1").matches(record)
    assert Query(flow="[2001:db8::2]:443 tcp").matches(record)
    assert not Query(flow="2001:db8::3").matches(record)


def _ask(sender: FiveTuple):
    replica = Replica()
    record, _ = executed(replica, AskRequest(sender, 0, 1, 1, "nobody", "x", b"\x90"), 1)
    assert record is not None
    return record


def test_values_as_text():
    state = Ports("203.0.113.1", [1, 2, 3, 4, 9], {7: flow(1)})
    assert brief(state) == ('Ports(address="203.0.113.1", free=[1..4, 9], used={7: udp 10.0.0.1:4000 > 192.0.2.1:53})')
    assert tree(state) == [
        'address  "203.0.113.1"',
        "free     [1..4, 9]",
        "used  (1)",
        "  7  udp 10.0.0.1:4000 > 192.0.2.1:53",
    ]
    assert plain(state) == {
        "address": "203.0.113.1",
        "free": [1, 2, 3, 4, 9],
        "used": {"7": "udp 10.0.0.1:4000 > 192.0.2.1:53"},
    }
    assert brief([1, 2, 3, True, None, 1.5, b"\x01", "a\nb", [], {}, {2, 1}]) == (
        '[1, 2, 3, True, None, 1.5, 0x01, "a\\nb", [], {}, {1, 2}]'
    )
    long = tree([{"name": "x" * 80, "ports": list(range(0, 400, 2))}])
    assert all(len(line) <= 100 for line in long) and long[0] == "[0]  (2)"
    assert unpack(msgspec.msgpack.encode({"flow": flow(1), "n": 1})) == {"flow": flow(1), "n": 1}
    assert unpack(msgspec.msgpack.encode([17, "a", 1, "b", 2])) == [17, "a", 1, "b", 2]
    assert unpack(b"\xc1") == b"\xc1"
    assert instant(1_770_000_000_123_456_789) == "2026-02-02T02:40:00.123456Z"
