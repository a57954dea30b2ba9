"""The rings and the control page: between processes, through kills, and with damaged memory."""

from __future__ import annotations

import mmap
import os
import random
import select
import signal
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from actornet.engine.ring import ACTIVE, CORE_COUNTERS, FENCED, OWNER_COUNTERS, PASSIVE, ControlPage, Ring
from actornet.errors import RingError

PAGE_BYTES = mmap.PAGESIZE
WAIT_MS = 5_000
"""Nothing here takes this long: a wait that does is a lost wake-up."""


@contextmanager
def process(work: Callable[[], None]) -> Iterator[int]:
    """A forked process that does `work`; killed at the end if it still runs, and its failure is the test's."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    killed = False
    try:
        yield pid
    except BaseException:
        killed = True
        raise
    finally:
        deadline_s = time.monotonic() + WAIT_MS / 1000
        while not (ended := os.waitpid(pid, os.WNOHANG))[0]:
            if killed or time.monotonic() > deadline_s:
                os.kill(pid, signal.SIGKILL)
            time.sleep(0.001)
    assert ended[1] in (0, signal.SIGKILL)


def readable(ring: Ring, timeout_ms: int) -> bool:
    poll = select.poll()
    poll.register(ring.fileno(), select.POLLIN)
    return bool(poll.poll(timeout_ms))


def pop_waiting(ring: Ring, limit: int = 1024) -> list[bytes]:
    """At least one message, asleep until it comes."""
    while not (messages := ring.pop_many(limit)):
        if ring.sleep_begin():
            assert readable(ring, WAIT_MS), "the wake-up was lost"
            ring.sleep_end()
    return messages


def push_waiting(ring: Ring, message: bytes) -> None:
    while not ring.push(message):
        ring.wake()
        os.sched_yield()


def wait_until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + WAIT_MS / 1000
    while not condition():
        assert time.monotonic() < deadline_s
        os.sched_yield()


def span(message: bytes) -> int:
    return 8 + (len(message) + 7) // 8 * 8


@pytest.mark.parametrize("seed", range(8))
def test_behaves_as_a_bounded_queue(seed: int) -> None:
    """Against a deque: random sizes, many laps, often full or empty; nothing is lost silently (G8)."""
    chance = random.Random(seed)
    ring = Ring.create(f"model-{seed}", PAGE_BYTES)
    model: deque[bytes] = deque()
    used = full = 0
    size_max = chance.choice([16, 200, 1500, PAGE_BYTES - 8])
    for step in range(4_000):
        filling = step // 400 % 2 == 0
        act = chance.random()
        if act < (0.93 if filling else 0.3):
            message = chance.randbytes(chance.randint(0, size_max))
            cut = chance.randint(0, len(message))
            fits = used + span(message) <= ring.capacity
            parts = (message,) if chance.random() < 0.5 else (memoryview(message)[:cut], bytearray(message[cut:]))
            assert ring.push(*parts) is fits
            if fits:
                model.append(message)
                used += span(message)
            full += not fits
        elif act < 0.96:
            popped = ring.pop()
            assert popped == (model.popleft() if model else None)
            used -= 0 if popped is None else span(popped)
        elif act < 0.995:
            limit = chance.randint(0, 12)
            messages = ring.pop_many(limit)
            assert messages == [model.popleft() for _ in range(min(limit, len(model)))]
            used -= sum(map(span, messages))
        else:
            ring.clear()
            model.clear()
            used = 0
        assert len(ring) == used
    assert ring.full == full > 0


def test_attached_handles_and_older_ones_agree() -> None:
    """Any handle of either side goes on where another one stopped, as after a fork."""
    made = Ring.create("edge-0 requests", PAGE_BYTES)
    attached = Ring(made.fd, made.wake_fd)
    assert (attached.name, attached.capacity) == ("edge-0 requests", PAGE_BYTES)
    number = popped = 0
    chance = random.Random(3)
    for _ in range(5_000):
        if chance.random() < 0.5:
            number += chance.choice([made, attached]).push(b"%0200d" % number)
        elif (message := chance.choice([made, attached]).pop()) is not None:
            assert int(message) == popped
            popped += 1
    assert number >= popped > 1_000


def test_survives_its_maker() -> None:
    """A handle holds the memory and the descriptors itself: a child may drop the object that it inherited."""
    made = Ring.create("heir", PAGE_BYTES)
    assert made.push(b"will")
    heir = Ring(made.fd, made.wake_fd)
    del made
    assert heir.pop() == b"will"
    assert heir.sleep_begin() and heir.push(b"wake") and heir.wake() and readable(heir, 0)


def test_refuses_what_can_never_fit() -> None:
    ring = Ring.create("small", PAGE_BYTES)
    assert ring.push(bytes(PAGE_BYTES - 8))
    assert not ring.push(b"")
    for parts in ((bytes(PAGE_BYTES - 7),), (bytes(PAGE_BYTES), bytes(PAGE_BYTES)), (b"", bytes(PAGE_BYTES * 9))):
        with pytest.raises(RingError, match=r"ring small: a message of \d+ bytes does not fit"):
            ring.push(*parts)
    with pytest.raises(TypeError):
        ring.push("text")  # type: ignore[arg-type]
    assert ring.pop() == bytes(PAGE_BYTES - 8)


def test_attaches_only_to_rings() -> None:
    ring = Ring.create("ring", PAGE_BYTES)
    page = ControlPage.create(1)
    other = os.memfd_create("other")
    try:
        for size_bytes in (0, PAGE_BYTES, 2 * PAGE_BYTES, 4 * PAGE_BYTES, 1 << 40):
            os.ftruncate(other, size_bytes)
            with pytest.raises(RingError, match="not a ring"):
                Ring(other, ring.wake_fd)
        with pytest.raises(RingError, match="not a ring"):
            Ring(page.fd, ring.wake_fd)
    finally:
        os.close(other)
    with pytest.raises(OSError):
        Ring(-1, ring.wake_fd)
    with pytest.raises(AssertionError):
        Ring.create("odd", 3 * PAGE_BYTES)


def test_file_cannot_shrink_under_its_readers() -> None:
    for fd in ((ring := Ring.create("sealed", PAGE_BYTES)).fd, (page := ControlPage.create(2)).fd):
        with pytest.raises(PermissionError):
            os.ftruncate(fd, 0)
    del ring, page


def test_wakes_once_and_only_a_sleeper() -> None:
    ring = Ring.create("sleep", PAGE_BYTES)
    ring.push(b"early")
    assert not ring.wake(), "nobody sleeps"
    assert not ring.sleep_begin(), "a message waits"
    assert not ring.wake()
    assert ring.pop() == b"early"
    assert ring.sleep_begin()
    for _ in range(10):
        ring.push(b"burst")
    assert not readable(ring, 0)
    assert ring.wake() and not ring.wake(), "one system call for all who wake the same sleep"
    assert readable(ring, 0)
    ring.sleep_end()
    assert not readable(ring, 0)
    assert len(ring.pop_many(100)) == 10
    assert ring.sleep_begin()
    ring.sleep_end()  # woken by something else
    assert not ring.wake()
    assert ring.sleep_begin() and ring.sleep_begin(), "a consumer that died asleep has a successor"
    assert ring.wake()


def test_two_processes_exchange_in_order_and_sleep() -> None:
    """200,000 messages, in order, through sleeps on one side and a full ring on the other (G1, G8)."""
    count = 200_000
    ring = Ring.create("exchange", 1 << 16)

    def produce() -> None:
        chance = random.Random(1)
        mine = Ring(ring.fd, ring.wake_fd)
        pushed = 0
        while pushed < count:
            burst = range(pushed, min(pushed + chance.choice([1, 4, 32, 400]), count))
            for number in burst:
                push_waiting(mine, b"%d %s" % (number, b"x" * (number * 7919 % 251)))
            mine.wake()
            pushed = burst.stop
            if chance.random() < 0.05:
                wait_until(lambda: not len(mine))
                time.sleep(0.0001)  # time to fall asleep

    expected = sleeps = 0
    with process(produce):
        wait_until(lambda: ring.full > 0)
        while expected < count:
            if not (messages := ring.pop_many(1024)):
                sleeps += 1
                messages = pop_waiting(ring)
            for message in messages:
                number, body = message.split()[0], message.partition(b" ")[2]
                assert (int(number), len(body)) == (expected, expected * 7919 % 251)
                expected += 1
    assert ring.pop() is None
    assert sleeps > 0


def test_no_wake_up_is_lost() -> None:
    """A ball that two processes throw to each other; each looks for it a random while and then sleeps, so that it often
    falls asleep just when the ball comes."""
    rounds = 20_000
    there, back = Ring.create("there", PAGE_BYTES), Ring.create("back", PAGE_BYTES)

    def play(incoming: Ring, outgoing: Ring, serve: bool) -> None:
        if serve:
            outgoing.push(b"0")
            outgoing.wake()
        chance = random.Random(serve)
        for _ in range(rounds):
            for _ in range(chance.randrange(30)):
                if len(incoming):
                    break
            (ball,) = pop_waiting(incoming)
            outgoing.push(b"%d" % (int(ball) + 1))
            outgoing.wake()

    with process(lambda: play(there, back, False)):
        play(back, there, True)
    assert there.pop() == b"%d" % (2 * rounds)


def checked(generation: int, number: int) -> bytes:
    """A message of 0.1 to 20 KB that says what it is, and proves that it is whole."""
    text = b"%d %d " % (generation, number)
    body = (text * 1000)[: 100 + (number * 7919 + generation) % 20_000]
    return zlib.crc32(body).to_bytes(4, "little") + body


def check(message: bytes) -> tuple[int, int]:
    assert int.from_bytes(message[:4], "little") == zlib.crc32(message[4:]), "a message is torn"
    generation, number = message[4:].split(b" ", 2)[:2]
    return int(generation), int(number)


def test_killed_producer_leaves_whole_messages_only() -> None:
    """Producers are killed at random times, mostly in the middle of a push; each successor goes on (G8)."""
    chance = random.Random(7)
    ring = Ring.create("killed", 1 << 18)
    generations = 60
    last = (-1, 0)
    numbers = 0

    def produce(generation: int) -> None:
        mine = Ring(ring.fd, ring.wake_fd)
        number = 0
        while True:
            push_waiting(mine, checked(generation, number))
            mine.wake()
            number += 1

    def take(messages: list[bytes]) -> None:
        nonlocal last, numbers
        for message in messages:
            generation, number = check(message)
            assert (generation, number) == (last[0], last[1] + 1) or (generation > last[0] and number == 0)
            last = generation, number
            numbers += 1

    for generation in range(generations):
        with process(lambda generation=generation: produce(generation)) as pid:  # type: ignore[misc]
            while last[0] < generation:  # what is left of the one before comes first
                take(pop_waiting(ring, 64))
            end_s = time.monotonic() + chance.uniform(0, 0.01)
            while time.monotonic() < end_s:
                take(ring.pop_many(chance.choice([1, 16])))
            os.kill(pid, signal.SIGKILL)
        if chance.random() < 0.5:
            take(ring.pop_many(1_000))  # otherwise the successor pushes behind what is left
    take(ring.pop_many(1_000))
    assert last[0] == generations - 1 and len(ring) == 0
    assert numbers > generations


def test_killed_consumer_has_a_successor() -> None:
    """The next consumer continues without a gap; `clear` starts afresh (G8)."""
    ring = Ring.create("consumer", 1 << 16)
    told, tell = os.pipe()

    def consume() -> None:
        mine = Ring(ring.fd, ring.wake_fd)
        while True:
            for message in pop_waiting(mine, 3):
                os.write(tell, message)

    with process(consume) as pid:
        for number in range(2_000):
            push_waiting(ring, b"%08d" % number)
            ring.wake()
        seen = os.read(told, 1 << 16)
        os.kill(pid, signal.SIGKILL)
        for number in range(2_000, 2_500):
            push_waiting(ring, b"%08d" % number)
    os.close(tell)
    with os.fdopen(told, "rb") as pipe:
        seen += pipe.read()
    known = len(seen) // 8
    assert seen == b"".join(b"%08d" % number for number in range(known)) and known > 0
    rest = [int(message) for message in ring.pop_many(10_000)]
    assert rest == list(range(rest[0], 2_500))
    assert known <= rest[0] <= known + 3, "what it had taken and not yet told is at most one call's"
    ring.push(b"old")
    Ring(ring.fd, ring.wake_fd).clear()
    assert len(ring) == 0
    assert ring.push(b"new") and ring.pop() == b"new"


def test_successor_wakes_the_sleeper_of_a_dead_producer() -> None:
    """A producer that dies between its push and its wake-up: any process wakes the consumer in its place (G8)."""
    ring = Ring.create("silent", PAGE_BYTES)
    assert ring.sleep_begin()

    def produce() -> None:
        assert ring.push(b"last words")

    with process(produce):
        pass
    assert not readable(ring, 0)
    assert Ring(ring.fd, ring.wake_fd).wake()
    assert readable(ring, 0)
    ring.sleep_end()
    assert ring.pop() == b"last words"


@pytest.mark.parametrize("header", [0, 1, 2**63, 2**64 - 1, 4_000, 0xFFFFFFFF, 0x52494E47_00000008])
def test_damaged_header_is_found(header: int) -> None:
    """A length that the producer did not write is an error, never a read elsewhere (G8)."""
    ring = Ring.create("damaged", PAGE_BYTES)
    for message in (b"before", b"struck", b"after"):
        ring.push(message)
    os.pwrite(ring.fd, header.to_bytes(8, "little"), PAGE_BYTES + span(b"before"))
    assert ring.pop_many(10) == [b"before"], "what is whole is given first"
    for take in (ring.pop, lambda: ring.pop_many(10)):
        with pytest.raises(RingError, match="ring damaged: damaged between byte 16 and 48"):
            take()
    ring.clear()
    assert ring.push(b"again") and ring.pop() == b"again"


def test_well_formed_header_that_reaches_too_far_is_found() -> None:
    """Even a header that fits its position does not reach behind what was pushed, or behind the ring."""
    for length in (24, PAGE_BYTES, 2**32 - 1):
        ring, forged = Ring.create("honest", PAGE_BYTES), Ring.create("forged", 1 << 13)
        ring.push(bytes(16))
        forged.push(bytes(24))
        header = int.from_bytes(os.pread(forged.fd, 8, PAGE_BYTES), "little")
        guard = (header >> 32) ^ 24 ^ length
        os.pwrite(ring.fd, (guard << 32 | length).to_bytes(8, "little"), PAGE_BYTES)
        with pytest.raises(RingError):
            ring.pop()


@pytest.mark.parametrize("index", [4, 17, 2 * PAGE_BYTES, 2**63, 2**64 - 8])
@pytest.mark.parametrize("side", ["tail", "head"])
def test_damaged_index_is_found(side: str, index: int) -> None:
    """An index that cannot be true is an error, though the messages may be whole (G8)."""
    ring = Ring.create("index", PAGE_BYTES)
    ring.push(b"whole")
    os.pwrite(ring.fd, index.to_bytes(8, "little"), 128 if side == "tail" else 256)
    with pytest.raises(RingError):
        ring.pop()
    if side == "tail":
        with pytest.raises(RingError):
            ring.push(b"more")
    elif 16 < index < 2**64 - PAGE_BYTES:  # not between 0 and a ring behind the tail; read only for want of room
        with pytest.raises(RingError):
            ring.push(bytes(PAGE_BYTES - 8))


def test_right_length_with_wrong_guard_is_found() -> None:
    """A header that was right one lap ago does not pass for a message of this lap."""
    ring = Ring.create("lap", PAGE_BYTES)
    ring.push(bytes(PAGE_BYTES - 8))
    old = os.pread(ring.fd, 8, PAGE_BYTES)
    ring.pop()
    ring.push(bytes(PAGE_BYTES - 8))
    os.pwrite(ring.fd, old, PAGE_BYTES)
    with pytest.raises(RingError):
        ring.pop()


def test_random_damage_never_leaves_the_ring() -> None:
    """Random bytes struck over indices, headers and messages: messages or RingError, and never a crash (G8)."""
    chance = random.Random(11)
    errors = 0
    for _ in range(300):
        ring = Ring.create("fuzz", PAGE_BYTES)
        with mmap.mmap(ring.fd, 2 * PAGE_BYTES) as memory:
            for _ in range(30):
                if chance.random() < 0.3:
                    at = chance.choice([chance.randrange(64, 520), PAGE_BYTES + chance.randrange(PAGE_BYTES)])
                    memory[at] = chance.randrange(256)
                try:
                    ring.push(chance.randbytes(chance.randrange(600)))
                    if chance.random() < 0.5:
                        assert all(len(message) < PAGE_BYTES for message in ring.pop_many(3))
                    assert 0 <= len(ring) <= ring.capacity
                    if chance.random() < 0.05:
                        ring.clear()
                except RingError:
                    errors += 1
    assert errors > 100


def test_control_page_words_are_apart_and_keep_full_64_bits() -> None:
    """Each word has its own place, and no two writers share a cache line."""
    cores = 3
    page = ControlPage.create(cores)
    assert page.role == PASSIVE
    owner: list[Callable[[int], None]] = [
        lambda value, name=name: setattr(page, name, value)  # type: ignore[misc]
        for name in ("watermark", "lsn_logged", "lsn_applied", "epoch", "owner_beat")
    ]
    owner += [lambda value, i=i: page.owner_count(i, value) for i in range(OWNER_COUNTERS)]  # type: ignore[misc]
    owner += [lambda value, c=c: page.set_committed(c, value) for c in range(cores)]  # type: ignore[misc]
    writers = [owner]
    for core in range(cores):
        writers.append([lambda value, core=core: page.set_core_beat(core, value)])  # type: ignore[misc]
        for i in range(CORE_COUNTERS):
            writers[-1].append(lambda value, core=core, i=i: page.core_count(core, i, value))  # type: ignore[misc]
    size_bytes = os.fstat(page.fd).st_size
    lines_of_writers: list[set[int]] = []
    words: set[int] = set()
    value = 2**64 - 1
    for sets in writers:
        lines = set()
        for set_word in sets:
            before = os.pread(page.fd, size_bytes, 0)
            set_word(value)
            after = os.pread(page.fd, size_bytes, 0)
            changed = [at for at in range(0, size_bytes, 8) if before[at : at + 8] != after[at : at + 8]]
            assert len(changed) == 1 and after[changed[0] : changed[0] + 8] == value.to_bytes(8, "little")
            words.update(changed)
            lines.add(changed[0] // 128)
            value -= 1
        lines_of_writers.append(lines)
    assert len(words) == sum(map(len, writers))
    assert sum(map(len, lines_of_writers)) == len(set().union(*lines_of_writers))


def test_control_page_is_seen_by_other_processes() -> None:
    page = ControlPage.create(2)

    def work() -> None:
        mine = ControlPage(page.fd, 2)
        mine.set_committed(1, 7)
        mine.set_core_beat(0, 3)
        mine.core_count(1, CORE_COUNTERS - 1, 5)
        mine.core_count(1, CORE_COUNTERS - 1)
        mine.owner_count(31)
        mine.watermark, mine.lsn_logged, mine.lsn_applied = 10, 12, 11
        mine.epoch, mine.role, mine.owner_beat = 4, FENCED, 99

    with process(work):
        pass
    assert [page.committed(core) for core in (0, 1)] == [0, 7]
    assert [page.core_beat(core) for core in (0, 1)] == [3, 0]
    assert page.core_counters(0) == [0] * CORE_COUNTERS
    assert page.core_counters(1) == [0] * (CORE_COUNTERS - 1) + [6]
    assert page.owner_counters() == [0] * (OWNER_COUNTERS - 1) + [1]
    assert (page.watermark, page.lsn_logged, page.lsn_applied) == (10, 12, 11)
    assert (page.epoch, page.role, page.owner_beat) == (4, FENCED, 99)
    page.role = ACTIVE
    assert page.role == ACTIVE


def test_control_page_bounds() -> None:
    page = ControlPage.create(2)
    for core in (-1, 2):
        with pytest.raises(IndexError, match=f"core {core} of 2"):
            page.committed(core)
        with pytest.raises(IndexError):
            page.set_core_beat(core, 1)
    for index in (-1, CORE_COUNTERS):
        with pytest.raises(IndexError, match=f"counter {index}"):
            page.core_count(0, index)
    for index in (-1, OWNER_COUNTERS):
        with pytest.raises(IndexError, match=f"counter {index}"):
            page.owner_count(index)
    with pytest.raises(OverflowError):
        page.watermark = -1
    with pytest.raises(AssertionError):
        page.role = FENCED + 1
    with pytest.raises(AssertionError):
        ControlPage.create(0)
    for cores in (-1, 0, 1, 3, 2**30):
        with pytest.raises(RingError, match="not a control page"):
            ControlPage(page.fd, cores)
    ring = Ring.create("ring", PAGE_BYTES)
    with pytest.raises(RingError, match="not a control page"):
        ControlPage(ring.fd, 2)
