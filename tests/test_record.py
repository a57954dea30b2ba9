"""Records: what is encoded is decoded, and no changed byte goes unnoticed."""

import zlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actornet.engine.five_tuple import FiveTuple
from actornet.engine.records import checked, seal, verify_chain
from actornet.errors import LogDamagedError
from actornet.log.record import (
    CHAIN_START,
    AskBody,
    CloseBody,
    ControlBody,
    EpochBody,
    FlowBody,
    HashBody,
    Kind,
    OwnerBody,
    Record,
    chain_of,
    decode,
    encode,
    lsn_of,
)

FLOW = FiveTuple(6, "2001:db8::1", 40000, "198.51.100.7", 443)
SAMPLES = [
    (Kind.EPOCH, EpochBody("a", "actors.nat:SourceNAT", {"address": "203.0.113.1"}, "f00d", (1 << 64) - 1, "start")),
    (Kind.OWNER, OwnerBody("wan-ports", "actors.nat:PortPool", {"first": 1024, "names": ["x", "y"]})),
    (Kind.ASK, AskBody(FLOW, 1, 7, 3, "wan-ports", "allocate", b"\x91\x01", None, (1 << 64) - 1)),
    (Kind.ASK, AskBody(None, 0, 0, 0, "wan-ports", "count", b"\x90", b"packet", 0)),
    (Kind.FLOW, FlowBody(FLOW, 1, 7, 3, b"state")),
    (Kind.CLOSE, CloseBody(FLOW, 1, 7, "idle")),
    (Kind.CONTROL, ControlBody("stop", "by the operator")),
    (Kind.HASH, HashBody((1 << 64) - 1)),
]
RECORDS = [
    Record(41 + number, 2, 1_700_000_000_000_000_000 + number, kind, number, body)
    for number, (kind, body) in enumerate(SAMPLES)
]

word = st.integers(0, (1 << 64) - 1)
text = st.text(max_size=20)
flow = st.builds(FiveTuple, st.integers(0, 255), text, st.integers(0, 65535), text, st.integers(0, 65535))
plain = st.one_of(st.booleans(), word, st.floats(allow_nan=False), text, st.lists(text, max_size=3))
settings = st.dictionaries(text, plain, max_size=4)
bodies = {
    Kind.EPOCH: st.builds(EpochBody, text, text, settings, text, word, text),
    Kind.OWNER: st.builds(OwnerBody, text, text, settings),
    Kind.ASK: st.builds(
        AskBody, st.none() | flow, word, word, word, text, text, st.binary(max_size=300), st.none() | st.binary(), word
    ),
    Kind.FLOW: st.builds(FlowBody, flow, word, word, word, st.binary(max_size=300)),
    Kind.CLOSE: st.builds(CloseBody, flow, word, word, text),
    Kind.CONTROL: st.builds(ControlBody, text, text),
    Kind.HASH: st.builds(HashBody, word),
}
records = st.sampled_from(Kind).flatmap(
    lambda kind: st.builds(
        Record, word, st.integers(0, (1 << 32) - 1), word, st.just(kind), st.integers(0, 65535), bodies[kind]
    )
)


def encoded_log() -> list[bytes]:
    log, chain = [], CHAIN_START
    for record in RECORDS:
        data, chain = encode(record, chain)
        log.append(data)
    return log


@given(records, word)
def test_what_is_encoded_is_decoded(record: Record, chain_previous: int) -> None:
    data, chain = encode(record, chain_previous)
    assert decode(data) == record == decode(memoryview(data), record.lsn)
    assert (lsn_of(data), chain_of(data)) == (record.lsn, chain) == (record.lsn, record.chain)
    assert verify_chain(data, chain_previous) == chain


@pytest.mark.parametrize("data", encoded_log(), ids=[record.kind.name for record in RECORDS])
def test_every_flipped_bit_is_found(data: bytes) -> None:
    """G8: a flipped bit anywhere in a record is detected, and the LSN it is stored under is named."""
    lsn = lsn_of(data)
    for at in range(len(data)):
        for bit in range(8):
            flipped = bytearray(data)
            flipped[at] ^= 1 << bit
            with pytest.raises(LogDamagedError, match=f"LSN {lsn} is damaged"):
                decode(bytes(flipped), lsn)
            with pytest.raises(LogDamagedError, match=r"LSN [0-9]+ is damaged"):
                decode(bytes(flipped))


@pytest.mark.parametrize("data", encoded_log(), ids=[record.kind.name for record in RECORDS])
def test_every_torn_record_is_found(data: bytes) -> None:
    """G8: a record cut short, or with bytes behind it, is detected."""
    for length in range(len(data)):
        with pytest.raises(LogDamagedError):
            decode(data[:length])
    with pytest.raises(LogDamagedError, match=f"LSN {lsn_of(data)} .*its header says"):
        decode(data + b"\0")


def test_a_record_at_another_place_is_found() -> None:
    """G8: a whole record under another's LSN is detected."""
    with pytest.raises(LogDamagedError, match="at LSN 42 is damaged: the record stored here says that it is LSN 41"):
        decode(encoded_log()[0], 42)


def test_the_chain_finds_what_single_records_do_not_show() -> None:
    """G8: a record left out, exchanged or put in breaks the chain at the next one, which is named."""
    log = encoded_log()
    chain = CHAIN_START
    for data in log:
        chain = verify_chain(data, chain)
    with pytest.raises(LogDamagedError, match=r"LSN 43 .*does not continue"):
        verify_chain(log[2], chain_of(log[0]))
    other = Record(42, 2, 5, Kind.CONTROL, 0, ControlBody("another", "history"))
    data, chain = encode(other, chain_of(log[0]))
    assert verify_chain(data, chain_of(log[0])) == chain
    with pytest.raises(LogDamagedError, match="LSN 43 "):
        verify_chain(log[2], chain)


@pytest.mark.parametrize("field", ["lsn", "epoch", "time_ns", "core"])
def test_the_chain_covers_the_header(field: str) -> None:
    """G8: a record whose header was rewritten, checksum and all, breaks the chain."""
    _, chain = encode(RECORDS[0], CHAIN_START)
    changed = msgspec.structs.replace(RECORDS[0], **{field: getattr(RECORDS[0], field) + 1})
    assert encode(changed, CHAIN_START)[1] != chain


def test_a_record_of_another_version_is_named() -> None:
    data = bytearray(encoded_log()[0])
    data[0] += 1
    with pytest.raises(LogDamagedError, match=r"LSN 41 .*its format is 0xa2; this version reads 0xa1"):
        decode(bytes(data))


def test_bytes_too_few_for_an_lsn() -> None:
    with pytest.raises(LogDamagedError, match="of unknown LSN is damaged: 3 bytes are too few"):
        decode(b"\xa1\x01\x00")
    with pytest.raises(LogDamagedError, match="at LSN 9 is damaged"):
        decode(b"", 9)


@given(body=st.binary(max_size=3000), flip=st.integers(0, 8 * 3040 - 1))
def test_the_checksum_is_crc_32(body: bytes, flip: int) -> None:
    """G8: zlib's, whose word it is that it finds each single bit."""
    data, _ = seal(Kind.CONTROL, 0, 1, 7, 0, body, CHAIN_START)
    assert int.from_bytes(data[32:36], "little") == zlib.crc32(data[:32] + bytes(4) + data[36:])
    assert checked(data)[3] == 7
    changed = bytearray(data)
    changed[flip // 8 % len(data)] ^= 1 << flip % 8
    with pytest.raises(LogDamagedError):
        checked(bytes(changed))
