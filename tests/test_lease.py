"""The lease, on its own: two nodes, one register, and clocks that agree on nothing but their speed."""

from __future__ import annotations

import os
import random

from actornet.limits import LEASE_GUARD, LEASE_LOOKS
from actornet.replication.lease import Denied, Entry, Granted, Lease, Look, Swap

MS = 1_000_000
LEASE_MS = 100
TERM = 100_000


class Register:
    """A witness in memory."""

    def __init__(self) -> None:
        self.entry = Entry()

    def answer(self, request: Look | Swap) -> Entry | bool:
        if isinstance(request, Look):
            return self.entry
        if self.entry != request.old:
            return False
        self.entry = request.new
        return True


def turn(lease: Lease, register: Register, now_ns: int) -> list[Granted | Denied]:
    """One request, answered at once."""
    request = lease.request(now_ns)
    if request is None:
        return []
    found = register.answer(request)
    return lease.looked(found, now_ns) if isinstance(found, Entry) else lease.swapped(found, now_ns)


def turns(lease: Lease, register: Register, begin_ns: int, end_ns: int) -> list[Granted | Denied]:
    events = []
    for now_ns in range(begin_ns, end_ns, MS):
        events += turn(lease, register, now_ns)
    return events


def held(register: Register, epoch: int = TERM) -> Lease:
    lease = Lease("a", "a1", LEASE_MS)
    lease.claim(epoch)
    assert turns(lease, register, 0, 2 * LEASE_MS * MS) == [Granted(epoch)]
    return lease


def test_an_empty_register_is_taken_after_the_leases_time() -> None:
    """Its content may have been lost."""
    register, lease = Register(), Lease("a", "a1", LEASE_MS)
    lease.claim(TERM)
    assert turns(lease, register, 0, LEASE_MS * MS) == [] and lease.until_ns == 0
    assert turns(lease, register, LEASE_MS * MS, (LEASE_MS + 20) * MS) == [Granted(TERM)]
    assert register.entry == Entry(1, TERM, "a", "a1", LEASE_MS)


def test_a_live_holder_keeps_it() -> None:
    """G7."""
    register = Register()
    a, b = held(register), Lease("b", "b1", LEASE_MS)
    b.claim(2 * TERM, after=range(TERM, TERM + 1))
    for now_ns in range(200 * MS, 1000 * MS, MS):
        assert turn(a, register, now_ns) == turn(b, register, now_ns) == []
        assert now_ns < a.until_ns


def test_a_silent_holder_loses_it_after_it_has_stopped() -> None:
    """G7: between the last packet of the one and the first of the other there is the guard's time."""
    register = Register()
    a, b = held(register), Lease("b", "b1", LEASE_MS)
    turns(b, register, 200 * MS, 201 * MS)
    b.claim(2 * TERM, after=range(TERM, TERM + 1))
    now_ns = 201 * MS
    while not (events := turn(b, register, now_ns)):
        now_ns += MS
    assert events == [Granted(2 * TERM)]
    assert now_ns - a.until_ns >= LEASE_GUARD * LEASE_MS * MS
    assert turns(a, register, now_ns, now_ns + LEASE_MS * MS) == [Denied(register.entry)]
    assert (a.epoch, a.until_ns) == (0, 0)


def test_a_primary_that_went_on_alone_is_not_followed() -> None:
    """G7, G8: what it has committed since, this backup lacks."""
    register = Register()
    a, b = held(register), Lease("b", "b1", LEASE_MS)
    a.claim(TERM + 1)
    assert turn(a, register, 200 * MS) == [Granted(TERM + 1)]
    b.claim(2 * TERM, after=range(TERM, TERM + 1))
    assert turns(b, register, 200 * MS, 1000 * MS) == [Denied(register.entry)]
    assert not b.claims and register.entry.holder == "a"


def test_a_lease_that_is_given_back_is_free_at_once() -> None:
    register = Register()
    a, b = held(register), Lease("b", "b1", LEASE_MS)
    turns(b, register, 200 * MS, 210 * MS)
    back = a.giving_back()
    assert back is not None and a.until_ns == 0 and register.answer(back)
    b.claim(2 * TERM, after=range(TERM, TERM + 1))
    assert turns(b, register, 210 * MS, 215 * MS) == [Granted(2 * TERM)]


def test_of_several_claims_the_first_by_rank_is_granted() -> None:
    """Though the other has seen the holder's last renewal sooner, by what lies between two looks; and it waits no longer."""
    register = Register()
    holder = held(register)
    b, c, late = (Lease(name, f"{name}1", LEASE_MS) for name in "bcd")
    turns(b, register, 200 * MS, 204 * MS)
    turn(holder, register, 204 * MS)
    entry = register.entry
    for lease, rank, seen_ns in ((b, 0, 208 * MS), (c, 1, 204 * MS), (late, 1, 204 * MS)):
        lease.looked(entry, seen_ns)
        lease.claim(2 * TERM, after=range(TERM, TERM + 1), rank=rank)
    rest_ms, look_ms = LEASE_MS, LEASE_MS // LEASE_LOOKS
    free = [next(ms for ms in range(204, 400) if lease.is_free(ms * MS)) for lease in (b, c)]
    assert free == [208 + rest_ms, 204 + rest_ms + look_ms]
    granted = []
    for now_ns in range(210 * MS, 350 * MS, MS):
        granted += [(lease.holder, event) for lease in (c, b) for event in turn(lease, register, now_ns)]
    assert [(who, type(event)) for who, event in granted] == [("b", Granted), ("c", Denied)]
    alone = Register()
    alone.entry = entry
    assert turns(late, alone, 250 * MS, (204 + rest_ms + 2 * look_ms) * MS) == [Granted(2 * TERM)]


def test_an_unknown_outcome_is_looked_up() -> None:
    """A swap whose answer got lost counts from when it was begun."""
    register, lease = Register(), Lease("a", "a1", LEASE_MS)
    lease.claim(TERM)
    now_ns = 0
    while not isinstance(request := lease.request(now_ns), Swap):
        if request is not None:
            lease.looked(register.entry, now_ns)
        now_ns += MS
    register.answer(request)
    lease.failed()
    later_ns = now_ns + MS
    while not (events := turn(lease, register, later_ns)):
        later_ns += MS
    assert events == [Granted(TERM)] and later_ns < now_ns + 10 * MS
    assert lease.until_ns == now_ns + int(LEASE_MS * MS * (1 - LEASE_GUARD))


def test_a_silent_witness_ends_emission_and_nothing_else() -> None:
    register = Register()
    lease = held(register)
    until_ns = lease.until_ns
    for now_ns in range(200 * MS, 900 * MS, MS):
        if lease.request(now_ns) is not None:
            lease.failed()
    assert lease.until_ns <= until_ns + LEASE_MS * MS < 900 * MS and lease.epoch == TERM
    assert turns(lease, register, 900 * MS, 1000 * MS) == [] and lease.until_ns > 1000 * MS


def test_a_restarted_process_is_another_holder() -> None:
    register = Register()
    held(register)
    again = Lease("a", "a2", LEASE_MS)
    again.claim(TERM + 1)
    assert turns(again, register, 200 * MS, 290 * MS) == []
    assert turns(again, register, 290 * MS, 400 * MS) == [Granted(TERM + 1)]


def test_never_two_at_a_time() -> None:
    """G7, whatever is lost, late or frozen: 300 random runs in which three nodes want the lease over and over."""
    seed = int(os.environ.get("LEASE_SEED", "0")) or random.SystemRandom().getrandbits(32)
    for run in range(300):
        rng = random.Random(seed + run)
        register = Register()
        nodes = [Lease(name, name, LEASE_MS) for name in "abc"]
        answers: dict[int, tuple[int, Look | Swap, Entry | bool | None]] = {}
        frozen = [0, 0, 0]
        epoch = TERM
        for now_ns in range(0, 3000 * MS, MS):
            for index, lease in enumerate(nodes):
                if now_ns < frozen[index]:
                    continue
                if rng.random() < 0.003:
                    frozen[index] = now_ns + rng.randint(1, 300) * MS
                if index in answers and now_ns >= answers[index][0]:
                    _, _, found = answers.pop(index)
                    if found is None:
                        lease.failed()
                    elif isinstance(found, Entry):
                        lease.looked(found, now_ns)
                    else:
                        lease.swapped(found, now_ns)
                elif index not in answers:
                    if not lease.epoch and not lease.claims and rng.random() < 0.1:
                        epoch += 1
                        lease.claim(max(epoch, (lease.entry.epoch if lease.entry else 0) + 1))
                    if (request := lease.request(now_ns)) is not None:
                        lost = rng.random() < 0.1
                        done = None if lost and rng.random() < 0.5 else register.answer(request)
                        answers[index] = (now_ns + rng.randint(0, 30) * MS, request, None if lost else done)
            # A frozen node's lease word stands where it stood; its cores go on reading it.
            assert sum(now_ns < lease.until_ns for lease in nodes) <= 1, f"LEASE_SEED={seed + run}"
