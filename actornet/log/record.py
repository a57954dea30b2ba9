"""One record of the log: what happened, at which LSN, in which epoch; its bytes, checksum and hash chain.

A record is a header of 40 bytes and a msgpack body::

    offset  0        1     2     4      8    16       24     32   36      40
            version  kind  core  epoch  lsn  time_ns  chain  crc  length  body...

All integers are little-endian; the version, 0xA1, tells a record from other bytes as well. `chain` is XXH3-64 over the
first 24 bytes and the body, seeded with the chain of the record before: a log whose last chain agrees with another's holds
the same records. `crc` is CRC-32 over the whole record with the crc field 0: it finds torn and flipped bytes in one record
alone (G8). `engine/records.pyx` writes the header.
"""

from __future__ import annotations

from enum import IntEnum
from struct import Struct as Layout
from typing import Annotated, Any

import msgspec

from actornet.engine.five_tuple import FiveTuple
from actornet.engine.records import HEADER_BYTES, checked, damaged, seal

CHAIN_START = 0
"""The chain before the first record of a log."""

OPERATOR = 0xFFFF
"""The core of an ask that an operator sent, by way of no core."""


class Kind(IntEnum):
    """What a record tells; each kind has one body."""

    EPOCH = 1
    OWNER = 2
    ASK = 3
    FLOW = 4
    CLOSE = 5
    CONTROL = 6
    HASH = 7


Count = Annotated[int, msgspec.Meta(ge=0)]
"""In 64 bits without a sign: what msgpack has no negative number for is not a number that anybody logged."""


class EpochBody(msgspec.Struct, array_like=True, gc=False):
    """A primary's term begins: who, running which NF and code, with which settings and random seed (64 bits).

    `complete`: it took over with a witness's grant, so that all that was ever committed is in the log before this record.
    """

    node: str
    nf: str
    settings: dict[str, Any]
    fingerprint: str
    seed: int
    reason: str
    complete: bool = False


class OwnerBody(msgspec.Struct, array_like=True, gc=False):
    """An owner is created: its name, its class as `module:Class`, its settings."""

    name: str
    path: str
    settings: dict[str, Any]


class AskBody(msgspec.Struct, array_like=True, gc=False):
    """One message to an owner.

    `flow` is None when the sender is no flow. `port`, `incarnation` and `number` (from 1) identify the message together
    with the flow (G5). `args` is a msgpack list; `reply_hash` is XXH3-64 of the reply's bytes (G4). `packet` is what the
    flow treated when it asked, in its first ask only, or what its handler notes in that place: see `actornet.engine.asks`.
    """

    flow: FiveTuple | None
    port: Count
    incarnation: Count
    number: Count
    owner: str
    message: str
    args: bytes
    packet: bytes | None
    reply_hash: Count


class FlowBody(msgspec.Struct, array_like=True, gc=False):
    """A flow is saved: `state` (opaque here) covers the flow's asks 1 to `asks`."""

    flow: FiveTuple
    port: Count
    incarnation: Count
    asks: Count
    state: bytes

    @classmethod
    def decode(cls, data: bytes) -> FlowBody:
        """From a body's bytes, as a replica keeps them. Raises msgspec.MsgspecError if they are none."""
        return _decode_flow(data)


class CloseBody(msgspec.Struct, array_like=True, gc=False):
    """A flow is closed."""

    flow: FiveTuple
    port: Count
    incarnation: Count
    reason: str


class ControlBody(msgspec.Struct, array_like=True, gc=False):
    """Something an operator wants to find in the log: a clean stop, a lost backup."""

    event: str
    detail: str


class HashBody(msgspec.Struct, array_like=True, gc=False):
    """The canonical hash of the replicated state at `at_lsn`; 0: just before this record.

    With `at_lsn` this record's own, nothing is known yet: from here on everybody works out the hash of this very state.
    """

    state_hash: int
    at_lsn: int = 0


Body = EpochBody | OwnerBody | AskBody | FlowBody | CloseBody | ControlBody | HashBody


class Record(msgspec.Struct, gc=False):
    """One entry of the log. `time_ns` is Unix time; `chain` is set by `encode` and `decode`."""

    lsn: int
    epoch: int
    time_ns: int
    kind: Kind
    core: int
    body: Body
    chain: int = 0


_WORD = Layout("<Q")
_LSN_AT = 8
_CHAIN_AT = 24

_encode_body = msgspec.msgpack.Encoder().encode
_decode_flow = msgspec.msgpack.Decoder(FlowBody).decode
_KINDS: dict[int, tuple[Kind, msgspec.msgpack.Decoder[Any]]] = {
    kind.value: (kind, msgspec.msgpack.Decoder(body))
    for kind, body in (
        (Kind.EPOCH, EpochBody),
        (Kind.OWNER, OwnerBody),
        (Kind.ASK, AskBody),
        (Kind.FLOW, FlowBody),
        (Kind.CLOSE, CloseBody),
        (Kind.CONTROL, ControlBody),
        (Kind.HASH, HashBody),
    )
}


def encode(record: Record, chain_previous: int) -> tuple[bytes, int]:
    """The record's bytes, and its chain, which is also set on the record."""
    body = _encode_body(record.body)
    data, record.chain = seal(record.kind, record.core, record.epoch, record.lsn, record.time_ns, body, chain_previous)
    return data, record.chain


def decode(data: bytes | memoryview, lsn: int | None = None) -> Record:
    """The record in these bytes; `lsn` is the LSN that it was stored under, if known.

    Raises LogDamagedError that names the LSN and what is wrong.
    """
    data = bytes(data)
    kind, core, epoch, lsn_here, time_ns, chain = checked(data, lsn)
    if kind not in _KINDS:
        raise damaged(data, lsn, f"its kind is {kind}, which this version does not know")
    kind_here, decoder = _KINDS[kind]
    try:
        body = decoder.decode(memoryview(data)[HEADER_BYTES:])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise damaged(data, lsn, f"its {kind_here.name} body cannot be read: {error}") from error
    return Record(lsn_here, epoch, time_ns, kind_here, core, body, chain)


def lsn_of(data: bytes | memoryview) -> int:
    """The LSN in a record's header, unchecked. Needs the whole header."""
    lsn: int = _WORD.unpack_from(data, _LSN_AT)[0]
    return lsn


def chain_of(data: bytes | memoryview) -> int:
    """The chain in a record's header, unchecked. Needs the whole header."""
    chain: int = _WORD.unpack_from(data, _CHAIN_AT)[0]
    return chain
