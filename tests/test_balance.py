"""When a core gives flows away, and how many."""

from __future__ import annotations

import pytest

from actornet.node.balance import Balance, Shift

SECOND = 1_000_000_000


def shifts(*turns: tuple[float, ...]) -> list[Shift | None]:
    """What follows from these busy shares of each core, second by second; the first second tells nothing."""
    balance, total = Balance(0), [0] * len(turns[0])
    balance.turn(SECOND, total)
    found = []
    for number, shares in enumerate(turns, 2):
        total = [before + int(share * SECOND) for before, share in zip(total, shares, strict=True)]
        found.append(balance.turn(number * SECOND, total))
    return found


def test_a_gap_that_lasts_moves_half_of_it() -> None:
    assert shifts((0.9, 0.1), (0.9, 0.1)) == [None, Shift(0, 1, pytest.approx(0.4 / 0.9))]
    assert shifts((0.2, 0.5, 0.8), (0.2, 0.5, 0.8))[1] == Shift(2, 0, pytest.approx(0.3 / 0.8))


@pytest.mark.parametrize(
    "turns",
    [
        ((0.9, 0.1), (0.3, 0.3), (0.9, 0.1)),  # it was gone in between
        ((0.5, 0.0), (0.5, 0.0)),  # nobody is in need
        ((0.9, 0.7), (0.9, 0.7)),  # nobody has much more time
    ],
)
def test_nothing_moves_without_need(turns: tuple[tuple[float, ...], ...]) -> None:
    assert not any(shifts(*turns))


def test_a_core_that_restarted_counts_anew() -> None:
    balance = Balance(0)
    balance.turn(SECOND, [0, 0])
    assert balance.turn(2 * SECOND, [SECOND, 0]) is None
    assert balance.turn(3 * SECOND, [0, 0]) is None
    assert balance.turn(4 * SECOND, [SECOND, 0]) is None, "the gap is seen for the first time again"
    assert balance.turn(5 * SECOND, [2 * SECOND, 0]) == Shift(0, 1, 0.5)


def test_it_is_due_once_a_second() -> None:
    balance = Balance(0)
    assert not balance.due(SECOND - 1) and balance.due(SECOND)
    balance.turn(SECOND, [0])
    assert not balance.due(2 * SECOND - 1)
