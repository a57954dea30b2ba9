"""What cores and the owner system say to each other through their rings; each message is one msgpack array.

Asks, tagged 1, and their replies, 11, are written and read by `actornet.engine.asks`; all others are here.

A core's requests are counted; Attach is number 1. The count is the sequence number that replies and the commit word of the
control page speak of: at 1, what the core was restored from is committed.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from actornet.engine.five_tuple import FiveTuple
from actornet.errors import RingError
from actornet.log.record import FlowBody


class Attach(msgspec.Struct, array_like=True, tag=0):
    """A core has (re)started: it wants its flows, and answers to nothing that was sent before."""

    pid: int


SAVE = b"\x92\x02"
"""A flow's state to log: the encoded `FlowBody` follows, as `flow_body` writes it. So this is `[2, FlowBody]`."""


UNSENT = b"\x92\x07"
"""What waits in the core (`actornet.replication.unsent`): an encoded `Told` follows. So this is `[7, Told]`."""


class CloseRequest(msgspec.Struct, array_like=True, tag=3, gc=False):
    """A flow has closed."""

    flow: FiveTuple
    port: int
    incarnation: int
    reason: str


class Detach(msgspec.Struct, array_like=True, tag=4):
    """A core stops: it takes no more packets, and this is its last request."""


class Leaving(msgspec.Struct, array_like=True, tag=5, gc=False):
    """A flow of the core is to live on core `to`; its packets wait until a Redirect says that it is there."""

    flow: FiveTuple
    port: int
    to: int


class Seen(msgspec.Struct, array_like=True, tag=6, gc=False):
    """A station's frame came in at this port; see `actornet.engine.sightings`."""

    port: int
    station: int


class Attaching(msgspec.Struct, array_like=True, tag=11):
    """From here on messages are for this process; those before were for the one before it."""

    pid: int


class Attached(msgspec.Struct, array_like=True, tag=10):
    """All flows have been sent; new ones take incarnations from `incarnation_first` on."""

    pid: int
    incarnation_first: int


def first_incarnation(lsn: int) -> int:
    """Of flows that are opened from this LSN on: above those of all flows before, which left a record each."""
    return (lsn << 20) + 1


class Restore(msgspec.Struct, array_like=True, tag=12, gc=False):
    """A flow of this core, as the log has it."""

    body: FlowBody


class Resume(msgspec.Struct, array_like=True, tag=15, gc=False):
    """A packet to be treated that a core took which is no more: the first of a flow that asked and was not saved (see `asks`),
    or one that waited there (see `unsent`)."""

    port: int
    packet: bytes


class Asked(msgspec.Struct, array_like=True, tag=21, gc=False):
    """How often a flow, sent before, has asked by now: more often than its record says."""

    flow: FiveTuple
    port: int
    asks: int


class CloseAnew(msgspec.Struct, array_like=True, tag=20, gc=False):
    """A flow, sent before, to be closed: its `on_close` has asked owners for something at a core that is no more."""

    flow: FiveTuple
    port: int


class Resend(msgspec.Struct, array_like=True, tag=19, gc=False):
    """A packet that the old primary had decided upon, to be sent out of the port with this index."""

    out: int
    packet: bytes


class Forget(msgspec.Struct, array_like=True, tag=13, gc=False):
    """The log says that this flow has closed."""

    flow: FiveTuple
    port: int


class Redirect(msgspec.Struct, array_like=True, tag=14, gc=False):
    """Packets of this key belong to a flow on core `core`; -1: no longer."""

    flow: FiveTuple
    port: int
    core: int


class Revoked(msgspec.Struct, array_like=True, tag=16, gc=False):
    """Owners have revoked all offloads so many times; sent to every core before the flows that know of it."""

    count: int


class GiveAway(msgspec.Struct, array_like=True, tag=17):
    """Flows with about this share of the core's packets are to live on core `to`."""

    share: float
    to: int


class Announce(msgspec.Struct, array_like=True, tag=18):
    """This node has taken over: switches are to learn that these stations, each behind one port, are reached by the other."""

    stations: list[tuple[int, int]]


Request = Attach | CloseRequest | Detach | Leaving | Seen
Answer = (
    Attaching
    | Attached
    | Restore
    | Asked
    | Resume
    | Resend
    | CloseAnew
    | Forget
    | Redirect
    | Revoked
    | GiveAway
    | Announce
)

encode = msgspec.msgpack.Encoder().encode
_decode_request: Callable[[bytes], Request] = msgspec.msgpack.Decoder(Request).decode
_decode_answer: Callable[[bytes], Answer] = msgspec.msgpack.Decoder(Answer).decode


def decode_request(data: bytes) -> Request:
    """Raises RingError for bytes that are none."""
    try:
        return _decode_request(data)
    except msgspec.DecodeError as error:
        raise RingError(
            f"request ring: a message cannot be read ({error}); the node's processes differ in version"
        ) from None


def decode_answer(data: bytes) -> Answer:
    """Raises RingError for bytes that are none."""
    try:
        return _decode_answer(data)
    except msgspec.DecodeError as error:
        raise RingError(
            f"reply ring: a message cannot be read ({error}); the node's processes differ in version"
        ) from None
