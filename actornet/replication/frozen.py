"""A replica's content at one LSN, held still while the replica goes on, to be encoded and hashed a slice at a time.

To freeze takes 20 ns per flow and what it takes to encode the owners' states, about 80 ns per item. Flow records are never
changed in place, so the copy has only references to them; what encodes or hashes them yields after SLICE_ITEMS of them. A
state is hashed from its encoded form: its dicts and lists are split in one step, about 180 ns per item, and decoded entry by
entry. A slice is larger only where one entry is. `longest_step_ns` estimates the longest pause.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sized
from functools import cache
from itertools import islice
from typing import TYPE_CHECKING, Any, get_args, get_origin, get_type_hints

import msgspec
from xxhash import xxh3_64, xxh3_64_intdigest

from actornet.owner import encode_state
from actornet.replication.canonical import canonical

if TYPE_CHECKING:
    from actornet.replication.replica import Replica

SNAPSHOT_VERSION = 3
DIGEST_BYTES = 8
SLICE_ITEMS = 256

_WORD = (1 << 64) - 1
_FIELDS = b"\x99"  # msgpack: an array of 9

_encode = msgspec.msgpack.Encoder().encode


class Frozen:
    """The content of `replica` as it is now."""

    def __init__(self, replica: Replica) -> None:
        self.lsn = replica.lsn
        self.epoch = replica.epoch
        self._time_ns = replica.time_ns
        self._revocations = replica.revocations
        self._term = replica.term
        self._owners = [
            (created, type(replica.owners[name]), encode_state(replica.owners[name]))
            for name, created in replica.created.items()
        ]
        self._flows = list(replica.flows.values())
        self._asks = [(key, asks.newest, asks.packet, list(asks)) for key, asks in replica.asks.items()]

    def snapshot(self) -> Iterator[bytes]:
        """What `Replica.restore` takes, in pieces; the last 8 bytes are the hash (XXH3-64) of those before."""
        digest = xxh3_64()
        for piece in self._snapshot():
            digest.update(piece)
            yield piece
        yield digest.intdigest().to_bytes(DIGEST_BYTES, "little")

    def _snapshot(self) -> Iterator[bytes]:
        head = (SNAPSHOT_VERSION, self.lsn, self.epoch, self._time_ns, self._term)
        yield _FIELDS + b"".join(map(_encode, head))
        for entries in ([(created, state) for created, _, state in self._owners], self._flows, self._asks):
            yield b"\xdd" + len(entries).to_bytes(4, "big")
            for some in _slices(entries):
                yield b"".join(map(_encode, some))
        yield _encode(self._revocations)

    def state_hash(self) -> Generator[None, None, int]:
        """Hash (XXH3-64) of all replicated state, the same for equal states however they came about; it is returned."""
        owners = []
        for created, kind, state in sorted(self._owners, key=lambda owner: owner[0].name):
            digest = yield from _digest_state(kind.state_type, state)
            owners.append((created.name, created.path, canonical(created.settings), digest))
        flows = yield from _sum(map(_encode, self._flows))
        asks = yield from _sum(map(_encode, self._asks))
        return xxh3_64_intdigest(_encode((self.lsn, self.epoch, owners, flows, asks, self._revocations)))


def finish(work: Generator[None, None, int]) -> int:
    """All slices at once."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            result: int = end.value
            return result


def longest_step_ns(replica: Replica) -> int:
    """About how long the longest step takes, from the sizes of the replica's tables and of its owners' containers."""
    items = len(replica.flows) // 8 + len(replica.asks)
    for owner in replica.owners.values():
        items += sum(len(value) for value in msgspec.structs.astuple(owner.state) if isinstance(value, Sized))
    return 180 * items


def _digest_state(state_type: type[msgspec.Struct], data: bytes) -> Generator[None, None, int]:
    """A hash of what `canonical` would say of the state. It goes through the codec: an int in a field of floats is a float."""
    split, decoders = _split(state_type)
    digest = xxh3_64()
    for value, decode in zip(msgspec.structs.astuple(msgspec.msgpack.decode(data, type=split)), decoders, strict=True):
        if decode is None:
            part = xxh3_64_intdigest(canonical(value))
        elif isinstance(value, dict):
            part = yield from _sum(_encode((canonical(key), canonical(decode(raw)))) for key, raw in value.items())
        else:
            part = yield from _sequence(map(decode, value))
        digest.update(_encode((0 if decode is None else len(value), part)))
    return digest.intdigest()


@cache
def _split(state_type: type[msgspec.Struct]) -> tuple[type[msgspec.Struct], list[Callable[[Any], Any] | None]]:
    """The state's type with the entries of its dicts and lists left encoded, and what decodes the entries of each field."""
    hints = get_type_hints(state_type)
    fields: list[tuple[str, Any]] = []
    decoders: list[Callable[[Any], Any] | None] = []
    for name in state_type.__struct_fields__:
        hint = hints[name]
        arguments, decoder = get_args(hint), None
        if get_origin(hint) is dict:
            decoder, hint = msgspec.msgpack.Decoder(arguments[1]).decode, dict[arguments[0], msgspec.Raw]  # type: ignore[valid-type]
        elif get_origin(hint) is list:
            decoder, hint = msgspec.msgpack.Decoder(arguments[0]).decode, list[msgspec.Raw]
        fields.append((name, hint))
        decoders.append(decoder)
    layout = bool(state_type.__struct_config__.array_like)
    return msgspec.defstruct(f"Split{state_type.__name__}", fields, array_like=layout), decoders


def _sequence(entries: Iterable[Any]) -> Generator[None, None, int]:
    digest = xxh3_64()
    for some in _slices(entries):
        digest.update(canonical(list(some)))
        yield
    return digest.intdigest()


def _sum(entries: Iterable[bytes]) -> Generator[None, None, int]:
    """Of the entries' hashes: it does not depend on their order."""
    total = 0
    for some in _slices(entries):
        total += sum(map(xxh3_64_intdigest, some))
        yield
    return total & _WORD


def _slices(entries: Iterable[Any]) -> Iterator[Iterable[Any]]:
    entries = iter(entries)
    while some := list(islice(entries, SLICE_ITEMS)):
        yield some
