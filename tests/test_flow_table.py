"""The flow table and its timer wheel, against a dict and a sorted list."""

import random
from ipaddress import IPv6Address

import pytest

from actornet.engine.five_tuple import FiveTuple
from actornet.engine.wire import Table
from actornet.errors import UsageError

S = 1_000_000_000
TICK_NS = 1 << 24
HORIZON_NS = TICK_NS << 14
COLLISIONS = {"none": 0xFFFFFFFF, "buckets": 0xFFFF0003, "tags": 0x0000FFFF, "both": 0}


def flow(number: int) -> FiveTuple:
    if number % 5 == 0:
        return FiveTuple(17, str(IPv6Address(0x20010DB8 << 96 | number << 64 | 1)), number % 7, "2001:db8::", 53)
    return FiveTuple(6, f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}", number % 7, "192.0.2.1", 80)


@pytest.mark.parametrize("hash_mask", COLLISIONS.values(), ids=COLLISIONS.keys())
@pytest.mark.parametrize("entries_max", [1, 7, 60, 400])
def test_behaves_like_a_dict_of_bounded_size(hash_mask, entries_max):
    """`hash_mask` drives keys into few buckets or gives them all one tag, so that buckets spill into each other."""
    rng = random.Random(entries_max)
    table = Table(entries_max, seed=rng.getrandbits(64), hash_mask=hash_mask)
    model: dict[tuple[FiveTuple, int], int] = {}
    for _ in range(3000):
        key = flow(rng.randrange(2 * entries_max)), rng.randrange(2)
        index = table.find(*key)
        assert index == model.get(key)
        if index is None and rng.random() < 0.6:
            index = table.insert(*key)
            assert (index is None) == (len(model) == entries_max)
            if index is not None:
                assert index not in model.values()
                assert table.flow(index) == key[0]
                model[key] = index
        elif index is not None and rng.random() < 0.5:
            table.remove(index)
            del model[key]
        assert len(table) == len(model)
    for key, index in model.items():
        assert table.find(*key) == index
        table.remove(index)
    assert len(table) == 0
    assert table.spilled == 0  # or searches would go on for nothing
    assert all(table.find(*key) is None for key in model)


def test_fills_to_the_last_entry_and_again():
    table = Table(50_000, seed=1)
    indices = [table.insert(flow(number)) for number in range(50_000)]
    assert sorted(indices) == list(range(50_000))
    assert table.insert(flow(50_000)) is None
    for index in indices:
        table.remove(index)
    assert sorted(table.insert(flow(number)) for number in range(50_000, 100_000)) == list(range(50_000))


def test_a_guess_that_has_died_or_changed_hands_is_not_believed():
    """Between the stages of a burst an entry may go and its index be given to another flow."""
    table = Table(4)
    index = table.insert(flow(1))
    assert table.find(flow(1), probed=index) == index
    table.remove(index)
    assert table.find(flow(1), probed=index) is None
    assert table.insert(flow(2)) == index
    assert table.find(flow(1), probed=index) is None
    other = table.insert(flow(1))
    assert table.find(flow(1), probed=index) == other


def test_dead_indices_and_doubles_are_refused():
    table = Table(4)
    index = table.insert(flow(1))
    with pytest.raises(UsageError, match="in the table already"):
        table.insert(flow(1))
    table.remove(index)
    for dead in (index, 3, 4, -1):
        with pytest.raises(UsageError, match="no live entry"):
            table.remove(dead)
    for entries_max in (0, 1 << 29):
        with pytest.raises(UsageError, match="errno 22"):
            Table(entries_max)


class WheelModel:
    """Deadlines by index. A deadline comes due within two ticks of its time, and never before it unless it was armed
    beyond the horizon."""

    def __init__(self) -> None:
        self.armed: dict[int, tuple[int, bool]] = {}

    def arm(self, index: int, deadline_ns: int, now_ns: int) -> None:
        self.armed[index] = deadline_ns, deadline_ns - now_ns > HORIZON_NS - 2 * TICK_NS

    def check(self, due: list[int], now_ns: int) -> None:
        for index in due:
            deadline_ns, far = self.armed.pop(index)
            assert far or deadline_ns < now_ns
        assert all(deadline_ns > now_ns - 2 * TICK_NS for deadline_ns, far in self.armed.values() if not far)


@pytest.mark.parametrize("seed", range(4))
def test_timers_come_due_in_their_time(seed):
    rng = random.Random(seed)
    now_ns = rng.randrange(2 * 10**9) * S
    table, model = Table(300, now_ns=now_ns), WheelModel()
    live = [table.insert(flow(number)) for number in range(200)]
    for _ in range(1500):
        action, index = rng.random(), rng.choice(live)
        if action < 0.5:
            deadline_ns = now_ns + rng.choice([0, 1, TICK_NS, S, 30 * S, 200 * S, 3600 * S]) + rng.randrange(-5, S)
            table.arm(index, deadline_ns)
            model.arm(index, deadline_ns, now_ns)
        elif action < 0.6:
            table.disarm(index)
            model.armed.pop(index, None)
        elif action < 0.65:
            live.remove(index)
            table.remove(index)
            model.armed.pop(index, None)
            live.append(table.insert(flow(rng.randrange(1000, 1 << 20))))
        else:
            now_ns += rng.choice([0, 1, TICK_NS, S // 3, 10 * S, 400 * S if rng.random() < 0.1 else S])
            limit = rng.choice([1, 3, 4096])
            due = table.advance(now_ns, limit)
            while len(due) % limit == 0 and (more := table.advance(now_ns, limit)):
                due += more
            assert len(due) == len(set(due))
            model.check(due, now_ns)
        assert table.armed == len(model.armed)


def test_a_deadline_far_away_comes_early_and_can_be_armed_again():
    table = Table(4)
    index = table.insert(flow(1))
    deadline_ns, now_ns, early = 7200 * S, 0, 0
    table.arm(index, deadline_ns)
    while True:
        now_ns += S
        if table.advance(now_ns):
            if now_ns > deadline_ns:
                break
            early += 1
            table.arm(index, deadline_ns)
    assert deadline_ns < now_ns <= deadline_ns + 2 * S
    assert early <= 7200 * S // HORIZON_NS + 1


@pytest.mark.parametrize("jump_ns", [HORIZON_NS, 3600 * S, 10**9 * S])
def test_a_clock_that_leaps_forward_makes_all_due_once(jump_ns):
    table = Table(100, now_ns=5 * S)
    indices = [table.insert(flow(number)) for number in range(100)]
    for index in indices:
        table.arm(index, 5 * S + index * S)
    assert sorted(table.advance(5 * S + jump_ns)) == indices
    assert table.advance(5 * S + jump_ns) == []
    table.arm(0, 6 * S + jump_ns)
    assert table.advance(5 * S + jump_ns + S // 2) == []
    assert table.advance(6 * S + jump_ns + 2 * TICK_NS) == [0]


def test_a_clock_that_is_set_back_keeps_the_time_that_remains():
    table = Table(4, now_ns=10_000 * S)
    old, new = table.insert(flow(1)), table.insert(flow(2))
    table.arm(old, 10_030 * S)
    assert table.advance(10_010 * S) == []
    assert table.advance(10 * S) == []  # 10,000 s back; 20 s remain
    table.arm(new, 25 * S)
    assert table.advance(24 * S) == []
    assert table.advance(26 * S) == [new]
    assert table.advance(29 * S) == []
    assert table.advance(31 * S) == [old]


def test_stamps_out_of_order_by_less_than_a_second_do_not_drift():
    table = Table(4, now_ns=100 * S)
    index = table.insert(flow(1))
    table.arm(index, 160 * S)
    for step in range(59 * 4):
        assert table.advance(100 * S + step * S // 4) == []
        assert table.advance(100 * S + step * S // 4 - S // 2) == []
    assert table.advance(161 * S) == [index]


def test_the_last_deadline_of_all_does_not_wrap_around():
    table = Table(4, now_ns=S)
    index = table.insert(flow(1))
    table.arm(index, (1 << 64) - 1)
    assert table.advance(200 * S) == []
