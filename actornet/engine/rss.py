"""Keys for receive-side scaling that keep what an NF's flows share on one core, or the reason why there is none.

The Toeplitz hash is linear over GF(2): it is the sum of a 32-bit window of the key for each input bit that is set. So

- packets that agree in some fields hash alike, whatever else they hold, if and only if the windows of all other bits are 0;
- a packet's field x and its answer's field y act alike if and only if their windows are equal, bit by bit;

and as only the low bits of the hash choose a core, only those of each window count. Each such condition says that a key bit
is 0, or equal to another: merging bits into classes solves the system exactly, and every assignment to the classes is a key.
Of those we take one that spreads well: the hash must depend on as many bits as it has, above all on the last ones of
addresses and ports, in which real hosts differ. The idea of a key solved from an NF's state is Maestro's (Pereira and
others, NSDI 2024), which asks an SMT solver.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from functools import cache

import msgspec

from actornet.errors import UsageError

FIELDS = ("source", "destination", "source_port", "destination_port")
REVERSED = {
    "source": "destination",
    "destination": "source",
    "source_port": "destination_port",
    "destination_port": "source_port",
}

KEY_BITS = 320
TABLE_BITS = 7
"""Network cards choose the core by so many low bits of the hash: an indirection table of 128 entries, if not more."""

_TRIES = 64
_NEAR_BITS = 4
_TOP_BITS = 3
"""The last bits of an address or port, in which neighbours differ, and the hash's bits that tell a few cores apart."""

_LAYOUT = {
    4: {"source": (0, 32), "destination": (32, 32), "source_port": (64, 16), "destination_port": (80, 16)},
    6: {"source": (0, 128), "destination": (128, 128), "source_port": (256, 16), "destination_port": (272, 16)},
}
"""IP version -> field -> its first bit and width in the hash's input (Microsoft, "RSS hashing types")."""

Shards = tuple[str, ...] | Mapping[str, tuple[str, ...]]
"""By which fields state that flows share is divided, as packets at the first port name them; by name if there are several."""

Bit = tuple[int, int]
"""A bit of the key of the first (0) or the other ports (1)."""

_ZERO: Bit = (-1, 0)


class RssConflict(UsageError):
    """No key keeps the declared state on one core."""


class RssKeys(msgspec.Struct, frozen=True):
    """`first` is the key of the first port, `other` that of the others, where packets answer those of the first.

    `fields` are those that the hash depends on, at the first port; `free_bits`: there are 2 to that many such pairs of keys;
    `spread_bits`: the hash takes 2 to that many values.
    """

    fields: tuple[str, ...]
    versions: tuple[int, ...]
    first: bytes
    other: bytes
    free_bits: int
    spread_bits: int

    def key(self, port: int) -> bytes:
        """The key of the port with this index."""
        return self.other if port else self.first


def declared(shards: Shards) -> dict[str, tuple[str, ...]]:
    """The declaration by name, checked. Raises UsageError for what is no field of a flow."""
    named = dict(shards) if isinstance(shards, Mapping) else {"its state": tuple(shards)} if shards else {}
    for name, fields in named.items():
        if isinstance(fields, str) or not fields or set(fields) - set(FIELDS) or len(set(fields)) != len(fields):
            raise UsageError(f"shards_by: {name} must be divided by one or more of {', '.join(FIELDS)}, not {fields!r}")
    return named


def solve(shards: Shards, versions: Sequence[int] = (4, 6), table_bits: int = TABLE_BITS) -> RssKeys:
    """The keys for ports of which the first opens the flows and the others answer; the same for the same arguments.

    Without shards, packets of both directions of a connection meet, and no others need to. Raises RssConflict with the
    reason when only a hash that sends everything to one core would do.
    """
    named = declared(shards) or {"each connection": FIELDS}
    fields = tuple(field for field in FIELDS if all(field in wanted for wanted in named.values()))
    if not fields:
        raise RssConflict(_disjoint(named))
    for some in (tuple(versions), *((version,) for version in versions if len(versions) > 1)):
        keys = _solve(fields, some, table_bits)
        if keys is not None and some == tuple(versions):
            return keys
        if keys is not None:
            raise RssConflict(
                f"IPv4 and IPv6 have {_words(fields)} at different places of the hash's input, and no key of "
                f"{KEY_BITS // 8} bytes depends on them in both and on nothing else in either; there is one for IPv{some[0]} "
                "alone"
            )
    raise RssConflict(
        f"a hash that depends on {_words(fields)} alone is the same for all packets: the key's windows of neighbouring bits "
        f"overlap; try fewer than {table_bits} bits"
    )


@cache
def keys_for(shards: tuple[tuple[str, tuple[str, ...]], ...]) -> tuple[RssKeys, RssKeys]:
    """`solve` of a declaration's items, once a process: for IPv4 and for IPv6, the same if one serves both."""
    try:
        both = solve(dict(shards))
        return both, both
    except RssConflict:
        return solve(dict(shards), versions=(4,)), solve(dict(shards), versions=(6,))


def _solve(fields: tuple[str, ...], versions: tuple[int, ...], table_bits: int) -> RssKeys | None:
    classes = _Classes()
    inputs: list[list[int]] = []
    near: list[Sequence[int]] = []
    for version in versions:
        layout = _LAYOUT[version]
        for field, (start, width) in layout.items():
            for bit in range(start, start + width):
                for row in _window(bit, table_bits):
                    if field not in fields:
                        classes.join((0, row), _ZERO)
                        classes.join((1, _row_of(layout, REVERSED[field], bit - start, row - bit)), _ZERO)
                    else:
                        classes.join((0, row), (1, _row_of(layout, REVERSED[field], bit - start, row - bit)))
        inputs.append([bit for field in fields for bit in _bits(layout[field])])
        near += [_bits(layout[field])[-_NEAR_BITS:] for field in fields]
    names = sorted({classes.find((port, bit)) for port in (0, 1) for bit in range(KEY_BITS)} - {classes.find(_ZERO)})
    best: tuple[tuple[int, ...], bytes, bytes] | None = None
    for attempt in range(_TRIES):
        chance = random.Random(attempt)
        value = {name: chance.getrandbits(1) for name in names}
        first, other = ([value.get(classes.find((port, bit)), 0) for bit in range(KEY_BITS)] for port in (0, 1))
        spread = min(_rank(first, bits, table_bits) for bits in inputs)
        score = (
            spread,
            *(_rank(first, bits, table_bits, _TOP_BITS) for bits in near),
            *(_rank(first, bits, table_bits) for bits in near),
        )
        if best is None or score > best[0]:
            best = (score, _bytes(first), _bytes(other))
    assert best is not None
    if best[0][0] == 0:
        return None
    return RssKeys(fields, versions, best[1], best[2], len(names), best[0][0])


class _Classes:
    """Key bits that must be equal; those in the class of _ZERO are 0."""

    def __init__(self) -> None:
        self._parent: dict[Bit, Bit] = {}

    def find(self, bit: Bit) -> Bit:
        root = bit
        while (parent := self._parent.get(root, root)) != root:
            root = parent
        while (parent := self._parent.get(bit, bit)) != root:
            self._parent[bit], bit = root, parent
        return root

    def join(self, one: Bit, two: Bit) -> None:
        self._parent[self.find(one)] = self.find(two)


def _window(bit: int, table_bits: int) -> range:
    """The key bits that make the low bits of an input bit's window."""
    return range(bit + 32 - table_bits, bit + 32)


def _row_of(layout: Mapping[str, tuple[int, int]], field: str, offset: int, row: int) -> int:
    return layout[field][0] + offset + row


def _bits(place: tuple[int, int]) -> range:
    return range(place[0], place[0] + place[1])


def _rank(key: Sequence[int], bits: Iterable[int], table_bits: int, top_bits: int = 32) -> int:
    """How many independent values the windows of these input bits have: the hash, or its top bits, take 2 to that many."""
    basis: list[int] = []
    for bit in bits:
        word = int("".join(str(key[row]) for row in _window(bit, table_bits)[:top_bits]), 2)
        for other in basis:
            word = min(word, word ^ other)
        if word:
            basis.append(word)
    return len(basis)


def _bytes(key: Sequence[int]) -> bytes:
    return int("".join(map(str, key)), 2).to_bytes(KEY_BITS // 8, "big")


def _words(fields: Sequence[str]) -> str:
    return " and ".join(field.replace("_", " ") for field in fields)


def _disjoint(named: Mapping[str, tuple[str, ...]]) -> str:
    """Why no field is left: the fewest declarations that have none in common."""
    items = list(named.items())
    for one, (name, fields) in enumerate(items):
        for other, others in items[one + 1 :]:
            if not set(fields) & set(others):
                return (
                    f"{name} is divided by {_words(fields)}, {other} by {_words(others)}: any two flows are joined by a third "
                    "that shares a part of each with them, so all would have to be on one core"
                )
    parts = ", ".join(f"{name} by {_words(fields)}" for name, fields in items)
    return f"state is divided in ways that have no field in common ({parts}), so all flows would have to be on one core"
