"""A replica's content at one LSN, held still while the replica goes on, to be encoded or hashed a slice at a time.

`snapshot` and `state_hash` hold it when they are called, by copies: of owners' states as `copying` makes them, of the flows'
records, which are never changed in place, a list (5 ns each). `pause_ns` estimates how long that takes. Each step after that is
a slice of SLICE_ITEMS entries; it is larger only where one entry is that is neither dict nor list.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from functools import cache
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, get_args, get_origin, get_type_hints

import msgspec
from xxhash import xxh3_64, xxh3_64_intdigest

from actornet.replication.canonical import canonical
from actornet.replication.copying import SHARED_NS, copier, copy_ns

if TYPE_CHECKING:
    from actornet.log.record import FlowBody, OwnerBody
    from actornet.replication.replica import Replica
    from actornet.replication.replica_base import Recorded

    _Asks = tuple[bytes, int, bytes, list[Recorded]]

SNAPSHOT_VERSION = 3
DIGEST_BYTES = 8
SLICE_ITEMS = 256

_WORD = (1 << 64) - 1
_FIELDS, _ARRAY, _MAP, _BIN = b"\x99", b"\xdd", b"\xdf", b"\xc6"  # msgpack: an array of 9; 32-bit lengths follow

_encode = msgspec.msgpack.Encoder().encode


def snapshot(replica: Replica) -> Iterator[bytes]:
    """What `Replica.restore` takes, in pieces; the last 8 bytes are the hash (XXH3-64) of those before."""
    head = (SNAPSHOT_VERSION, replica.lsn, replica.epoch, replica.time_ns, replica.term)
    return _with_hash(_packed(head, _states(replica), *_records(replica), replica.revocations))


def state_hash(replica: Replica) -> Generator[None, None, int]:
    """Hash (XXH3-64) of all replicated state, the same for equal states however they came about; it is returned."""
    ids = (replica.lsn, replica.epoch, replica.revocations)
    return _hashed(ids, _states(replica), *_records(replica))


def pause_ns(replica: Replica) -> int:
    """About how long it takes to hold the replica's content still, from the sizes of its tables and owners' containers."""
    states = sum(copy_ns(owner.state_type, owner.state) for owner in replica.owners.values())
    return states + SHARED_NS * len(replica.flows) + 300 * len(replica.asks)


def finish(work: Generator[None, None, int]) -> int:
    """All slices at once."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            result: int = end.value
            return result


def _states(replica: Replica) -> list[tuple[OwnerBody, type[msgspec.Struct], Any]]:
    states = []
    for name, created in replica.created.items():
        owner = replica.owners[name]
        kind: Any = owner.state_type
        copied = copier(kind)
        states.append((created, kind, owner.state if copied is None else copied(owner.state)))
    return states


def _records(replica: Replica) -> tuple[list[FlowBody], list[_Asks]]:
    asks = [(key, asks.newest, asks.packet, list(asks)) for key, asks in replica.asks.items()]
    return list(replica.flows.values()), asks


def _with_hash(pieces: Iterator[bytes]) -> Iterator[bytes]:
    digest = xxh3_64()
    for piece in pieces:
        digest.update(piece)
        yield piece
    yield digest.intdigest().to_bytes(DIGEST_BYTES, "little")


def _packed(
    head: tuple[Any, ...],
    states: list[tuple[OwnerBody, type[msgspec.Struct], Any]],
    flows: list[FlowBody],
    asks: list[_Asks],
    revocations: int,
) -> Iterator[bytes]:
    yield _FIELDS + b"".join(map(_encode, head))
    yield _ARRAY + len(states).to_bytes(4, "big")
    for created, state_type, state in states:
        pieces = []
        for piece in _packed_struct(state_type, state):
            pieces.append(piece)
            yield b""
        yield b"\x92" + _encode(created) + _BIN + sum(map(len, pieces)).to_bytes(4, "big")
        yield from pieces
    for entries in (flows, asks):
        yield _ARRAY + len(entries).to_bytes(4, "big")
        for some in _slices(entries):
            yield b"".join(map(_encode, some))
    yield _encode(revocations)


def _packed_struct(kind: type[msgspec.Struct], value: Any) -> Iterator[bytes]:
    """The msgpack that msgspec gives, or its equal, in pieces; the order of dicts is kept."""
    config = kind.__struct_config__
    if config.tag is not None or config.omit_defaults:
        yield _encode(value)
        return
    values = msgspec.structs.astuple(value)
    yield (_ARRAY if config.array_like else _MAP) + len(values).to_bytes(4, "big")
    for name, field in zip(kind.__struct_encode_fields__, values, strict=True):
        if not config.array_like:
            yield _encode(name)
        yield from _packed_value(field)


def _packed_value(value: Any) -> Iterator[bytes]:
    if not isinstance(value, dict | list) or len(value) <= SLICE_ITEMS:
        yield _encode(value)
    elif isinstance(value, list):
        yield _ARRAY + len(value).to_bytes(4, "big")
        for some in _slices(value):
            yield b"".join(map(_encode, some))
    else:
        yield _MAP + len(value).to_bytes(4, "big")
        for some in _slices(value.items()):
            if any(isinstance(entry, dict | list) for _, entry in some):
                for key, entry in some:
                    yield _encode(key)
                    yield from _packed_value(entry)
            else:
                yield b"".join(map(_encode, chain.from_iterable(some)))


def _hashed(
    ids: tuple[int, int, int],
    states: list[tuple[OwnerBody, type[msgspec.Struct], Any]],
    flows: list[FlowBody],
    asks: list[_Asks],
) -> Generator[None, None, int]:
    lsn, epoch, revocations = ids
    owners = []
    for created, state_type, state in sorted(states, key=lambda state: state[0].name):
        hints, digest = get_type_hints(state_type), xxh3_64()
        for name, value in zip(state_type.__struct_fields__, msgspec.structs.astuple(state), strict=True):
            part = yield from _digest(hints[name], value)
            digest.update(_encode((len(value) if isinstance(value, dict | list) else 0, part)))
        owners.append((created.name, created.path, canonical(created.settings), digest.intdigest()))
    flow_sum = yield from _sum(map(_encode, some) for some in _slices(flows))
    ask_sum = yield from _sum(map(_encode, some) for some in _slices(asks))
    return xxh3_64_intdigest(_encode((lsn, epoch, owners, flow_sum, ask_sum, revocations)))


def _digest(hint: Any, value: Any) -> Generator[None, None, int]:
    """A hash of what `canonical` would say of the value. It goes through the codec: an int in a field of floats is a float, as
    it is on a replica that was restored."""
    kind = get_origin(hint)
    if kind is list and isinstance(value, list):
        digest = xxh3_64()
        for some in _slices(value):
            digest.update(canonical(_decoder(hint)(_encode(some))))
            yield
        return digest.intdigest()
    if kind is not dict or not isinstance(value, dict):
        return xxh3_64_intdigest(canonical(_decoder(hint)(_encode(value))))
    total, decode, inner = 0, _decoder(hint), get_args(hint)[1]
    for some in _slices(value.items()):
        if get_origin(inner) in (dict, list):
            for key, entry in some:
                if len(entry) > SLICE_ITEMS:
                    part = yield from _digest(inner, entry)
                    total += xxh3_64_intdigest(_encode((_encode(key), len(entry), part)))
            some = [entry for entry in some if len(entry[1]) <= SLICE_ITEMS]
        entries = decode(_encode(dict(some))).items()
        total += sum(xxh3_64_intdigest(_encode((canonical(key), canonical(entry)))) for key, entry in entries)
        yield
    return total & _WORD


@cache
def _decoder(hint: Any) -> Callable[[bytes], Any]:
    return msgspec.msgpack.Decoder(hint).decode


def _sum(slices: Iterable[Iterable[bytes]]) -> Generator[None, None, int]:
    """Of the entries' hashes: it does not depend on their order."""
    total = 0
    for entries in slices:
        total += sum(map(xxh3_64_intdigest, entries))
        yield
    return total & _WORD


def _slices(entries: Iterable[Any]) -> Iterator[list[Any]]:
    entries = iter(entries)
    while some := list(islice(entries, SLICE_ITEMS)):
        yield some
