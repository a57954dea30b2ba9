"""What primary and backup say to each other. Every message carries the sender's epoch (G7)."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from actornet.errors import LinkError
from actornet.limits import STATIONS_MAX
from actornet.replication.unsent import Told

VERSION = 1
"""Version of these messages and of the link that carries them; peers of different versions refuse each other."""

Epoch = Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)]
Lsn = Annotated[int, msgspec.Meta(ge=0)]
Chain = Annotated[int, msgspec.Meta(ge=0)]
Count = Annotated[int, msgspec.Meta(ge=0)]
Port = Annotated[int, msgspec.Meta(ge=0, le=1)]
Station = Annotated[int, msgspec.Meta(gt=0, lt=1 << 61)]


class Message(msgspec.Struct, frozen=True, array_like=True):
    """Base of all messages; `epoch` is the highest that the sender knows."""

    epoch: Epoch


class Hello(Message, frozen=True, tag=1):
    """A node introduces itself: a backup that wants to follow, or a primary that asks whether it is the only one.

    `lsn`, `chain` and `log_epoch` are those of the last record in its log (0 when the log is empty). Who has found that
    records decide otherwise here than on the primary wants a `snapshot`: those records would do so again. `history` names the
    log that this one continues or copies; empty: none yet. `node`: its name in the deployment. `tested`: the
    fingerprint of other code that wrote its log, if the sender's code has been found to decide all of it the same.
    `keys_max`: how many flow keys its cores hold.
    """

    version: Count
    deployment: str
    nf: str
    fingerprint: str
    role: Literal["primary", "backup"]
    lsn: Lsn
    chain: Chain
    log_epoch: Epoch
    snapshot: bool = False
    history: str = ""
    node: str = ""
    tested: str = ""
    keys_max: Count = 0


class Welcome(Message, frozen=True, tag=2):
    """The primary takes the backup; it catches up from its log's tail or by a snapshot. `lsn`: the primary's last.

    `history`: of the primary's log, and from now on of the backup's.
    """

    how: Literal["tail", "snapshot"]
    lsn: Lsn
    history: str = ""


class Refuse(Message, frozen=True, tag=3):
    """The primary does not take the backup, or no longer.

    A `fork_lsn` above 0 says that the backup's records after it were never committed: with that record's chain in its
    log, the backup may set its log aside and come again with an empty one.
    """

    reason: str
    fork_lsn: Lsn = 0
    fork_chain: Chain = 0


class Snapshot(Message, frozen=True, tag=4):
    """Chunk `index` of `count` of the state at `lsn`, whose record had `log_epoch` and `chain`."""

    lsn: Lsn
    log_epoch: Epoch
    chain: Chain
    index: Count
    count: Count
    data: bytes


class Records(Message, frozen=True, tag=5):
    """Encoded log records with consecutive LSNs from `first_lsn`."""

    first_lsn: Lsn
    records: list[bytes]


class Ack(Message, frozen=True, tag=6):
    """The backup holds all records up to these LSNs in memory, on its disk, in its state; and snapshot `chunks`. With
    `pause_ms` it may be silent for so much longer than else before the next Ack."""

    received: Lsn
    durable: Lsn
    applied: Lsn
    chunks: Count = 0
    pause_ms: Count = 0


class Heartbeat(Message, frozen=True, tag=7):
    """The primary lives; its last logged LSN, its clock, and how many of its ports have no link. `pause_ms` as in Ack, until
    the next Heartbeat or Records. An Ack answers it."""

    lsn: Lsn
    time_ns: int
    pause_ms: Count = 0
    links_down: Count = 0


class Sync(Message, frozen=True, tag=8):
    """From now on no output leaves before the backup has what it depends on: the backup may take over (G6).

    To one that may already: it counts in this epoch, too. `rank`: so many others come before it in a takeover.
    """

    lsn: Lsn
    rank: Count = 0


class Stop(Message, frozen=True, tag=9):
    """A clean stop. Of the primary: the backup has everything up to `lsn`, and takes over, or leaves that to the `successor`
    for a while. Of a backup: it leaves."""

    lsn: Lsn
    successor: bool = True


class Fence(Message, frozen=True, tag=10):
    """The receiver's message was of an older epoch than the sender's (G7)."""


class Yield(Message, frozen=True, tag=11):
    """The sender, a backup that counts, is to lead, and says why: the primary stops cleanly, with it as the successor."""

    why: str


class Seen(Message, frozen=True, tag=12):
    """Stations, each with the index of the port that it is behind: the switches are to be told after a takeover."""

    stations: Annotated[list[tuple[Port, Station]], msgspec.Meta(max_length=STATIONS_MAX)]


class Unsent(Message, frozen=True, tag=13):
    """What waits in cores of the primary: core, the last LSN by then, and None if the core is no more. See `unsent`."""

    unsent: list[tuple[Count, Lsn, Told | None]]


AnyMessage = (
    Hello | Welcome | Refuse | Snapshot | Records | Ack | Heartbeat | Sync | Stop | Fence | Yield | Seen | Unsent
)

encode = msgspec.msgpack.Encoder().encode
_decoder: msgspec.msgpack.Decoder[AnyMessage] = msgspec.msgpack.Decoder(AnyMessage)


def decode(payload: bytes | memoryview) -> AnyMessage:
    """The message in `payload`. LinkError: it is none of this version's."""
    try:
        return _decoder.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise LinkError(f"the peer sent a message that is none of version {VERSION}: {error}") from None
