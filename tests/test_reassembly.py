"""One direction's bytes in order, and its edits, against models that are too simple to be wrong."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actornet.engine.reassembly import Half
from actornet.limits import STREAM_EDITS_MAX, STREAM_KEPT_BYTES_MAX, STREAM_QUEUE_BYTES_MAX, STREAM_QUEUE_SEGMENTS_MAX

WRAP = 1 << 32
STARTS = st.sampled_from([0, 1, WRAP - 1, WRAP - 30, WRAP // 2 - 10, WRAP // 2, 12345])


class Model:
    """A dict of positions: the byte that came first stays."""

    def __init__(self) -> None:
        self.bytes: dict[int, int] = {}
        self.at = 0
        self.fin: int | None = None

    def receive(self, position: int, data: bytes, fin: bool) -> bytes:
        if self.fin == self.at - 1 and self.fin is not None:
            return b""
        for i, byte in enumerate(data):
            if self.fin is None or position + i < self.fin:
                self.bytes.setdefault(position + i, byte)
        if fin and position + len(data) not in self.bytes and self.fin is None:
            self.fin = position + len(data)
        out = bytearray()
        while self.at in self.bytes and self.at != self.fin:
            out.append(self.bytes[self.at])
            self.at += 1
        if self.at == self.fin:
            self.at += 1
        return bytes(out)


@settings(max_examples=400, deadline=None)
@given(STARTS, st.lists(st.tuples(st.integers(0, 60), st.binary(min_size=0, max_size=20)), max_size=40), st.booleans())
def test_bytes_come_in_order_and_the_first_to_come_win(start: int, sent: list[tuple[int, bytes]], inline: bool) -> None:
    half, model = Half(inline), Model()
    half.begin(start)
    for position, data in sent:
        ready = half.receive((start + position) % WRAP, data, False, None)
        assert b"".join(segment.data for segment in ready) == model.receive(position, data, False)
        assert half.next == (start + model.at) % WRAP and not half.full
        at = (half.next - sum(len(segment.data) for segment in ready)) % WRAP
        for segment in ready:
            assert segment.seq == at
            at = (at + len(segment.data)) % WRAP
    waiting = {position for position in model.bytes if position >= model.at}
    assert half.queued_bytes == len(waiting)
    assert [(s.seq - start) % WRAP + i for s in half.flush() for i in range(len(s.data))] == sorted(waiting)


@settings(max_examples=300, deadline=None)
@given(STARTS, st.binary(min_size=1, max_size=60), st.randoms(use_true_random=False))
def test_a_fin_is_delivered_last_and_once(start: int, data: bytes, random: Any) -> None:
    half = Half()
    half.begin(start)
    cuts = sorted({0, len(data), *(random.randrange(len(data)) for _ in range(5))})
    segments = [(a, data[a:b], b == len(data)) for a, b in pairwise(cuts)]
    segments += random.sample(segments, len(segments) // 2)
    random.shuffle(segments)
    ready = [s for at, piece, fin in segments for s in half.receive((start + at) % WRAP, piece, fin, None)]
    assert b"".join(s.data for s in ready) == data and half.ended
    assert [s.fin for s in ready] == [False] * (len(ready) - 1) + [True]
    assert half.next == (start + len(data) + 1) % WRAP and half.receive(half.next, b"later", False, None) == []


def test_what_another_core_has_passed_may_be_acknowledged_late() -> None:
    """G6: the first acknowledgement after a takeover may be an old one; what a later one covers does not come again."""
    half = Half(True)
    half.load((0, 100, [(100, 5, b"tag")]))
    half.resume()
    half.begin(120)
    assert half.receive(120, b"later", False, None) == [] and half.acknowledge(100) == []
    assert half.next == 105, "behind what was edited"
    (segment,) = half.acknowledge(120)
    assert segment.data == b"later" and half.next == 125


class Edits:
    """The sender's and the receiver's bytes side by side: `pieces` are (original, what goes in its place)."""

    def __init__(self, pieces: list[tuple[bytes, bytes]]) -> None:
        self.original = b"".join(old for old, _ in pieces)
        self.passed = b"".join(new for _, new in pieces)


pieces = st.lists(
    st.tuples(st.binary(min_size=1, max_size=12), st.one_of(st.none(), st.binary(max_size=20))), min_size=1, max_size=12
)


def edited(start: int, parts: list[tuple[bytes, bytes | None]]) -> tuple[Half, Edits]:
    half = Half(True)
    half.begin(start)
    at, whole = start, []
    for old, new in parts:
        (segment,) = half.receive(at % WRAP, old, False, None)
        if new is not None:
            half.replace(segment, new)
        whole.append((old, old if new is None else new))
        at += len(old)
    return half, Edits(whole)


@settings(max_examples=500, deadline=None)
@given(STARTS, pieces, st.data())
def test_what_is_repeated_fits_what_was_passed(
    start: int, parts: list[tuple[bytes, bytes | None]], data: st.DataObject
) -> None:
    """Any repeated range gives bytes that the receiver's stream has at that place, however it is cut."""
    half, streams = edited(start, parts)
    if not half.edited:
        return
    for _ in range(6):
        a = data.draw(st.integers(0, len(streams.original) - 1))
        b = data.draw(st.integers(a + 1, len(streams.original)))
        seq, passed = half.again((start + a) % WRAP, streams.original[a:b])
        at = (seq - start) % WRAP
        assert streams.passed[at : at + len(passed)] == passed
        if a == 0 and b == len(streams.original):
            assert passed == streams.passed
    half.load(half.save())
    assert half.again(start, streams.original) == (start, streams.passed), "and after a takeover"


@settings(max_examples=500, deadline=None)
@given(STARTS, pieces)
def test_acknowledgements_never_promise_what_the_receiver_lacks(
    start: int, parts: list[tuple[bytes, bytes | None]]
) -> None:
    """Whatever the receiver acknowledges, what the sender still holds makes the rest of the receiver's stream."""
    half, streams = edited(start, parts)
    previous = 0
    for acknowledged in range(len(streams.passed) + 1):
        at = (half.back((start + acknowledged) % WRAP) - start) % WRAP
        assert previous <= at <= len(streams.original), "monotonic, and within what was sent"
        previous = at
        if at < len(streams.original):
            seq, rest = half.again((start + at) % WRAP, streams.original[at:])
            begin = (seq - start) % WRAP
            assert begin <= acknowledged and streams.passed[begin:] == rest
        else:
            assert acknowledged == len(streams.passed)
    assert previous == len(streams.original)


@settings(max_examples=300, deadline=None)
@given(STARTS, pieces, pieces)
def test_acknowledged_edits_are_forgotten_and_what_follows_still_fits(
    start: int, first: list[tuple[bytes, bytes | None]], more: list[tuple[bytes, bytes | None]]
) -> None:
    half, streams = edited(start, first)
    end = (start + len(streams.original)) % WRAP
    passed_end = half.out(end)
    assert (passed_end - start) % WRAP == len(streams.passed)
    half.acknowledge(half.back(passed_end))
    _, _, left = half.save()
    assert left == [] and half.out(end) == passed_end and half.back(passed_end) == end
    if half.edited:  # bytes that the receiver has are not repeated in a wrong place, but make it acknowledge again
        assert half.again(start, streams.original) == (passed_end, b"")
    at, passed = end, bytearray()
    for old, new in more:
        (segment,) = half.receive(at, old, False, None)
        if new is not None:
            half.replace(segment, new)
        passed += old if new is None else new
        at = (at + len(old)) % WRAP
    assert (half.out(at) - passed_end) % WRAP == len(passed)


def test_a_retransmission_that_differs_gets_the_bytes_that_came_first() -> None:
    half = Half(True)
    half.begin(100)
    half.receive(100, b"GET /good", False, None)
    assert half.again(104, b"/evil") == (104, b"/good") and half.conflicts == 1
    half.acknowledge(105)
    assert half.again(100, b"XXX /evil") == (100, b"XXX /good"), "what the receiver has is its own affair"


def test_bounds() -> None:
    inline, passive = Half(True), Half(False)
    for half in (inline, passive):
        half.begin(0)
        for number in range(STREAM_QUEUE_SEGMENTS_MAX):
            assert half.receive(10 + 2 * number, b"x", False, None) == [] and not half.full
    assert inline.receive(5000, b"y", False, None) == [] and inline.full, "its sender will repeat it"
    ready = passive.receive(5000, b"y", False, None)
    assert (ready[0].missing, ready[0].data) == (10, b"x") and not passive.full
    assert [s.data for s in inline.receive(0, b"0123456789", False, None)] == [b"0123456789", b"x"], "the gap is filled"
    half = Half(True)
    half.begin(0)
    half.receive(1, bytes(STREAM_QUEUE_BYTES_MAX), False, None)
    assert not half.full
    half.receive(STREAM_QUEUE_BYTES_MAX + 9, b"z", False, None)
    assert half.full and half.queued_bytes == STREAM_QUEUE_BYTES_MAX
    half = Half(True)
    half.begin(0)
    for number in range(3):
        half.receive(number * STREAM_KEPT_BYTES_MAX, bytes(STREAM_KEPT_BYTES_MAX), False, None)
    assert half.again(0, b"forgotten") == (0, b"forgotten")
    half = Half(True)
    half.begin(0)
    for number in range(STREAM_EDITS_MAX):
        (segment,) = half.receive(number, b"a", False, None)
        half.replace(segment, b"b")
    assert half.receive(half.next, b"a", False, None) == [] and half.full
    half.acknowledge(1)
    assert len(half.receive(half.next, b"a", False, None)) == 1


def test_bytes_that_the_receiver_has_and_we_never_saw_are_given_up_unless_inline() -> None:
    passive, inline = Half(), Half(True)
    for half in (passive, inline):
        half.begin(0)
        half.receive(10, b"later", False, None)
    assert inline.acknowledge(15) == [] and inline.next == 0, "nothing passes unseen: the number is a lie"
    (segment,) = passive.acknowledge(15)
    assert (segment.missing, segment.data, passive.next) == (10, b"later", 15)


@pytest.mark.parametrize("far", [1 << 30, 1 << 31, WRAP - 1])
def test_segments_far_away_are_not_taken(far: int) -> None:
    half = Half(True)
    half.begin(0)
    assert half.receive((5 + far) % WRAP, b"x", False, None) == [] and half.queued_bytes <= 1


@pytest.mark.parametrize("inline", [False, True])
def test_of_two_fins_out_of_order_the_one_with_no_bytes_behind_it_counts(inline: bool) -> None:
    half = Half(inline)
    half.begin(100)
    assert half.receive(5000, b"", True, None) == [] and half.receive(104, b"end", True, None) == []
    ready = half.receive(100, b"the ", False, None)
    assert b"".join(segment.data for segment in ready) == b"the end" and half.ended and half.next == 108
