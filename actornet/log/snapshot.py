"""A snapshot: the replicated state at one LSN as bytes, cut into chunks that each carry their own checksum.

A chunk is a header of 20 bytes and a piece of the data::

    offset  0      4      8      16   20
            index  count  chain  crc  data...

All integers are little-endian. `crc` is CRC-32 over the LSN, the header with the crc field 0, and the piece: a chunk
that was flipped, or that belongs to another snapshot, is found (G8).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from struct import Struct as Layout
from zlib import crc32

import msgspec

from actornet.errors import LogDamagedError
from actornet.limits import LOG_CHUNK_BYTES

_HEADER = Layout("<IIQI")
_LSN = Layout("<Q")
_PIECE_BYTES = LOG_CHUNK_BYTES - _HEADER.size


class Snapshot(msgspec.Struct, frozen=True, gc=False):
    """The state after the record at `lsn`, whose chain is `chain`; `data` is the replica's own encoding."""

    lsn: int
    chain: int
    data: bytes


def cut(snapshot: Snapshot) -> list[bytes]:
    """The snapshot's chunks, at least one, none above LOG_CHUNK_BYTES."""
    return list(cut_pieces(snapshot.lsn, snapshot.chain, [snapshot.data]))


def cut_pieces(lsn: int, chain: int, pieces: Sequence[bytes]) -> Iterator[bytes]:
    """The chunks of the snapshot whose data comes in these pieces, one after the other."""
    count = max(1, -(-sum(map(len, pieces)) // _PIECE_BYTES))
    waiting, rest = filter(None, pieces), memoryview(b"")
    for index in range(count):
        piece = bytearray()
        while len(piece) < _PIECE_BYTES:
            if not rest and not (rest := memoryview(next(waiting, b""))):
                break
            room = _PIECE_BYTES - len(piece)
            piece += rest[:room]
            rest = rest[room:]
        yield _HEADER.pack(index, count, chain, _crc(lsn, index, count, chain, memoryview(piece))) + piece


def join(lsn: int, chunks: Sequence[bytes]) -> Snapshot:
    """The snapshot that was cut into these chunks and stored under `lsn`.

    Raises LogDamagedError when a chunk is missing, flipped or of another snapshot.
    """
    pieces = []
    chain_first = None
    for at, chunk in enumerate(chunks):
        if len(chunk) < _HEADER.size:
            raise _damaged(lsn, f"chunk {at} has {len(chunk)} bytes, too few for its header")
        index, count, chain, crc = _HEADER.unpack_from(chunk)
        piece = memoryview(chunk)[_HEADER.size :]
        if crc != _crc(lsn, index, count, chain, piece):
            raise _damaged(lsn, f"the checksum of chunk {at} does not match: bytes were changed")
        chain_first = chain if chain_first is None else chain_first
        if (index, count, chain) != (at, len(chunks), chain_first):
            raise _damaged(lsn, f"chunk {at} of {len(chunks)} says that it is chunk {index} of {count}")
        pieces.append(piece)
    if chain_first is None:
        raise _damaged(lsn, "it has no chunks")
    return Snapshot(lsn, chain_first, b"".join(pieces))


def _crc(lsn: int, index: int, count: int, chain: int, piece: memoryview) -> int:
    return crc32(piece, crc32(_HEADER.pack(index, count, chain, 0), crc32(_LSN.pack(lsn))))


def _damaged(lsn: int, what: str) -> LogDamagedError:
    return LogDamagedError(f"the snapshot at LSN {lsn} is damaged: {what}; use an older one or the other node's log")
