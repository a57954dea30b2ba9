"""A replica's content at one LSN, held still while the replica goes on, to be encoded or hashed a slice at a time.

`snapshot` and `state_hash` hold it when they are called, by copies: of owners' states as `copying` makes them, of the flows'
encoded records, a list (5 ns each). `pause_ns` estimates how long that takes. Each step after that is a slice of SLICE_ITEMS
entries, or FREED_ITEMS that are let go again; it is larger only where one entry is that is neither dict nor list.

What is hashed and encoded is decoded, too: a value that would not come back by its type is a StateError here, so that
there is neither a snapshot that nobody can read nor a hash that only one of two replicas could give.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any, get_args, get_origin, get_type_hints

import msgspec
from xxhash import xxh3_64, xxh3_64_intdigest

from actornet.errors import StateError
from actornet.misfit import decoder, field_hints, misfit, through
from actornet.replication.canonical import canonical, canonical_each
from actornet.replication.copying import CODED_NS, GUESS_NS, SHARED_NS, NotCopiedError, copier, copy_ns

if TYPE_CHECKING:
    from actornet.log.record import OwnerBody
    from actornet.replication.replica import Replica
    from actornet.replication.replica_base import Recorded

    _Asks = tuple[bytes, int, bytes, list[Recorded]]
    _State = tuple[OwnerBody, type[msgspec.Struct], Any]

SNAPSHOT_VERSION = 3
DIGEST_BYTES = 8
SLICE_ITEMS = 256
FREED_ITEMS = 2048

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


def pause_ns(replica: Replica, guess_ns: int = GUESS_NS) -> int:
    """About how long it takes to hold the replica's content still, from the sizes of its tables and owners' containers.

    `guess_ns` is what to take for a value that has to be copied as a whole and is too large to be looked through: how long
    the last pause was.
    """
    states = sum(_copy_ns(owner.state_type, owner.state, guess_ns) for owner in replica.owners.values())
    return states + SHARED_NS * len(replica.flows) + 300 * len(replica.asks)


def check(replica: Replica) -> None:
    """Raise StateError if an owner's state would not come back from a snapshot; takes about as long as one."""
    for created, kind, state in _live(replica):
        for _ in _packed_state(created, kind, state):
            pass


def finish(work: Generator[None, None, int]) -> int:
    """All slices at once."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            result: int = end.value
            return result


def _copy_ns(kind: Any, state: Any, guess_ns: int) -> int:
    try:
        return copy_ns(kind, state, guess_ns)
    except (TypeError, AttributeError):  # it does not fit, and will not be copied
        return CODED_NS


def _live(replica: Replica) -> list[_State]:
    return [
        (created, replica.owners[name].state_type, replica.owners[name].state)
        for name, created in replica.created.items()
    ]


def _states(replica: Replica) -> list[_State]:
    """Copies; in place of one that cannot be made, as its state does not fit its type, a StateError."""
    states: list[_State] = []
    for created, kind, state in _live(replica):
        copied = copier(kind)
        try:
            states.append((created, kind, state if copied is None else copied(state)))
        except NotCopiedError as error:
            place = _place(created, error.field)
            found = misfit(field_hints(kind)[error.field], getattr(state, error.field), place)
            states.append((created, kind, StateError(found or f"{place}: cannot be copied: {error.__cause__}")))
    return states


def _place(created: OwnerBody, field: str) -> str:
    return f"owner {created.name} ({created.path}): state.{field}"


def _records(replica: Replica) -> tuple[list[bytes], list[_Asks]]:
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
    states: list[_State],
    flows: list[bytes],
    asks: list[_Asks],
    revocations: int,
) -> Iterator[bytes]:
    yield _FIELDS + b"".join(map(_encode, head))
    yield _ARRAY + len(states).to_bytes(4, "big")
    for created, state_type, state in states:
        pieces = []
        for piece in _packed_state(created, state_type, state):
            pieces.append(piece)
            yield b""
        for _ in _let_go(state_type, state):
            yield b""
        yield b"\x92" + _encode(created) + _BIN + sum(map(len, pieces)).to_bytes(4, "big")
        yield from pieces
    yield _ARRAY + len(flows).to_bytes(4, "big")
    for bodies in _slices(flows):
        yield b"".join(bodies)
    yield _ARRAY + len(asks).to_bytes(4, "big")
    for some in _slices(asks):
        yield b"".join(map(_encode, some))
    yield _encode(revocations)


def _packed_state(created: OwnerBody, kind: type[msgspec.Struct], state: Any) -> Iterator[bytes]:
    """The msgpack that msgspec gives, or its equal, in pieces; the order of dicts is kept. Raises StateError."""
    if isinstance(state, StateError):
        raise state
    config, hints = kind.__struct_config__, field_hints(kind)
    if hasattr(kind, "__post_init__"):
        _checked(kind, state, f"owner {created.name} ({created.path}): state")
    if config.tag is not None or config.omit_defaults:
        yield _checked(kind, state, f"owner {created.name} ({created.path}): state")
        return
    values = msgspec.structs.astuple(state)
    yield (_ARRAY if config.array_like else _MAP) + len(values).to_bytes(4, "big")
    for key, name, value in zip(kind.__struct_encode_fields__, kind.__struct_fields__, values, strict=True):
        if not config.array_like:
            yield _encode(key)
        yield from _packed_value(hints[name], value, _place(created, name))


def _packed_value(hint: Any, value: Any, place: str) -> Iterator[bytes]:
    kind = get_origin(hint)
    if kind not in (dict, list) or not isinstance(value, kind) or len(value) <= SLICE_ITEMS:
        yield _checked(hint, value, place)
    elif kind is list:
        yield _ARRAY + len(value).to_bytes(4, "big")
        for at, some in enumerate(_slices(value)):
            yield _checked(hint, some, place, at * SLICE_ITEMS)[_head_bytes(some) :]
    else:
        yield _MAP + len(value).to_bytes(4, "big")
        inner = get_args(hint)[1]
        for some in _slices(value.items()):
            if any(isinstance(entry, dict | list) for _, entry in some):
                for key, entry in some:
                    yield _checked(get_args(hint)[0], key, f"{place} key")
                    yield from _packed_value(inner, entry, f"{place}[{key!r:.80}]")
            else:
                yield _checked(hint, dict(some), place)[_head_bytes(some) :]


def _head_bytes(some: list[Any]) -> int:
    """Of an encoded list or dict with so many entries."""
    return 1 if len(some) < 16 else 3


def _checked(hint: Any, value: Any, place: str, first: int = 0) -> bytes:
    """The value, encoded. Raises StateError if it would not come back; `first` is a list's first index."""
    try:
        data = _encode(value)
        decoder(hint)(data)
        return data
    except MemoryError:
        raise
    except Exception as error:
        raise _unfit(hint, value, place, first, error) from None


def _through(hint: Any, value: Any, place: str, first: int = 0) -> Any:
    """The value as it comes back. Raises StateError if it does not."""
    try:
        return through(hint, value)
    except MemoryError:
        raise
    except Exception as error:
        raise _unfit(hint, value, place, first, error) from None


def _unfit(hint: Any, value: Any, place: str, first: int, error: Exception) -> StateError:
    return StateError(misfit(hint, value, place, first) or f"{place}: {error}")


def _hashed(
    ids: tuple[int, int, int],
    states: list[_State],
    flows: list[bytes],
    asks: list[_Asks],
) -> Generator[None, None, int]:
    lsn, epoch, revocations = ids
    owners = []
    for created, state_type, state in sorted(states, key=lambda state: state[0].name):
        if isinstance(state, StateError):
            raise state
        hints, digest = get_type_hints(state_type), xxh3_64()
        for name, value in zip(state_type.__struct_fields__, msgspec.structs.astuple(state), strict=True):
            part = yield from _digest(hints[name], value, _place(created, name))
            digest.update(_encode((len(value) if isinstance(value, dict | list) else 0, part)))
        yield from _let_go(state_type, state)
        owners.append((created.name, created.path, canonical(created.settings), digest.intdigest()))
    flow_sum = yield from _sum(_slices(flows))
    ask_sum = yield from _sum(map(_encode, some) for some in _slices(asks))
    return xxh3_64_intdigest(_encode((lsn, epoch, owners, flow_sum, ask_sum, revocations)))


def _let_go(kind: type[msgspec.Struct], state: Any) -> Generator[None, None, None]:
    """A copied state is done with. To free its entries takes up to a third of copying them, and nobody is told of that."""
    hints = get_type_hints(kind)
    for name in kind.__struct_fields__:
        yield from _let_go_value(hints[name], getattr(state, name))


def _let_go_value(hint: Any, value: Any) -> Generator[None, None, None]:
    if copier(hint) is None or not isinstance(value, dict | list):
        return  # what cannot change is not copied
    while len(value) > FREED_ITEMS:
        if isinstance(value, list):
            del value[-FREED_ITEMS:]
        else:
            for _ in range(FREED_ITEMS):
                value.popitem()
        yield
    inner = get_args(hint)[-1] if get_origin(hint) in (dict, list) else None
    for entry in list(value.values() if isinstance(value, dict) else value) if inner is not None else ():
        yield from _let_go_value(inner, entry)


def _digest(hint: Any, value: Any, place: str) -> Generator[None, None, int]:
    """A hash of what `canonical` would say of the value. It goes through the codec: an int in a field of floats is a float, as
    it is on a replica that was restored."""
    kind = get_origin(hint)
    if kind is list and isinstance(value, list):
        digest = xxh3_64()
        for at, some in enumerate(_slices(value)):
            digest.update(canonical(_through(hint, some, place, at * SLICE_ITEMS)))
            yield
        return digest.intdigest()
    if kind is not dict or not isinstance(value, dict):
        return xxh3_64_intdigest(canonical(_through(hint, value, place)))
    total, inner = 0, get_args(hint)[1]
    for some in _slices(value.items()):
        if get_origin(inner) in (dict, list):
            large = [isinstance(entry, dict | list) and len(entry) > SLICE_ITEMS for _, entry in some]
            for (key, entry), is_large in zip(some, large, strict=True):
                if is_large:
                    part = yield from _digest(inner, entry, f"{place}[{key!r:.80}]")
                    total += xxh3_64_intdigest(_encode((_checked(get_args(hint)[0], key, place), len(entry), part)))
            some = [entry for entry, is_large in zip(some, large, strict=True) if not is_large]
        entries = _through(hint, dict(some), place)
        pairs = zip(canonical_each(entries), canonical_each(entries.values()), strict=True)
        total += sum(map(xxh3_64_intdigest, map(_encode, pairs)))
        yield
    return total & _WORD


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
