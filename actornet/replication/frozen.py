"""A replica's content at one LSN, held still while the replica goes on, to be encoded and hashed a slice at a time.

To freeze takes 10 ns per flow and what it takes to encode the owners' states (about 50 ns per item): that is all the pause.
Flow records are never changed in place, so the copy has only references to them; what encodes or hashes them yields after
SLICE_ITEMS of them. A slice is larger only where one entry of an owner's state is.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

import msgspec
from xxhash import xxh3_64, xxh3_64_intdigest

from actornet.owner import decode_state, encode_state
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
            digest = yield from _digest(decode_state(kind, state))
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


def _digest(value: Any) -> Generator[None, None, int]:
    """A hash of what `canonical` would say. Through the codec before, so that an int in a field of floats is a float."""
    if isinstance(value, msgspec.Struct):
        digest = xxh3_64(b"struct")
        for field in msgspec.structs.astuple(value):
            part = yield from _digest(field)
            digest.update(part.to_bytes(DIGEST_BYTES, "little"))
        return digest.intdigest()
    if isinstance(value, dict):
        total = yield from _sum(_encode((canonical(key), canonical(entry))) for key, entry in value.items())
        return xxh3_64_intdigest(_encode(("dict", len(value), total)))
    if isinstance(value, set | frozenset):
        total = yield from _sum(map(canonical, value))
        return xxh3_64_intdigest(_encode(("set", len(value), total)))
    if isinstance(value, list | tuple):
        digest = xxh3_64()
        for some in _slices(value):
            digest.update(canonical(list(some)))
            yield
        return xxh3_64_intdigest(_encode(("list", len(value), digest.intdigest())))
    return xxh3_64_intdigest(canonical(value))


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
