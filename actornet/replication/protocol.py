"""The primary/backup protocol: two state machines without I/O, clock, thread or random.

Theory of operation
-------------------
The owner system of each node drives one machine (`primary.Primary` or `backup.Backup`): it feeds in what happened (a
message, a logged batch, a lost link, the time) and carries out the actions that come back, in their order. Time is
always the argument `now_ns`, of a monotonic clock. `tick` wants to be called at `due_ns`, at the latest, after what waits
in the socket has been read.

*Log first, then send.* The primary sends only what is in its own log. So its log is also its send buffer (what does not
fit into the window is read from it later), and no backup has a record that a restarted primary lacks.

*Watermark* (G3). Output that depends on LSN n leaves once the watermark has reached n: in durability mode `solo`, what
is logged; in `received`, `durable`, `applied`, what is logged here and acknowledged so by every backup that counts. Once
none does the policy `without_backup` decides: `wait` (the watermark stands still), `solo` (a new epoch
begins, and from its record on the log suffices), `stop`. Before a first backup has counted, `stop` waits too. After a
takeover the new primary goes on alone, whatever the policy: that is what it was promoted for.

*Joining.* A backup says where its log ends, and gets what it lacks, from the log's tail or by snapshot. Once it has applied
what was there when it came, which may take long, and everything else is sent, the watermark passes nothing that was logged
after, until the backup has acknowledged what was logged by then: its lag is 0, and nothing that ever left is unknown to it.
From there on it counts, and only then is it told so (Sync). Hence a backup that believes to be in sync has all that was ever
committed, and may promote itself without replaying anything (G6).

*Several backups* need a witness. Those that count are what Kafka calls in-sync replicas; the witness is to them what the
configuration manager is in PacificA (MSR-TR-2008-25). One that counts and is lost may take over, so nothing is committed
without it until a new epoch has begun without it: that is logged, those that remain are told (Sync) and say that they have
heard, then the witness is asked, and after its grant output goes on. Who remains may take over from either epoch: whether
the primary dies before or after the grant, its claim stands. Of several claims the witness grants one, mostly of who is
first by rank (Sync); who is denied follows the winner, and cuts what it has and the winner lacks, which was never
committed. The last one that counts is left out only as the policy says, or when another has joined. At a clean stop one is
named the successor, and the others wait. An operator who promotes a backup in sync has the primary do just that (Yield).

*Takeover.* A backup in sync whose primary is silent for `silence_ms` promotes itself. When the link breaks it asks once
more first: a dead process refuses the connection at once, a live primary welcomes the backup again. A backup that is
not in sync never promotes itself; an operator may force it.

*Lease* (G7). With a witness (`lease` has its theory) nobody commits or emits in an epoch that the witness has not granted.
A primary logs a new epoch's record, then asks for it; a backup asks before it is promoted, for a claim that holds only
while the witness is of an epoch in which the backup was told Sync. None joins in an epoch that is not granted yet. While
it claims, a backup comes back to a primary that answers. A grant always promotes: the primary has committed nothing
without this backup, and can no more.

*Epochs* (G7). A primary that goes on (restarted, or without a backup) takes the next epoch; a takeover begins the next
term, that is the next multiple of TERM_EPOCHS. So both sides of a broken link may begin an epoch, yet never the same one,
and the takeover's is the higher. A primary that hears of a higher epoch is fenced: it neither commits nor emits. A message
of an older epoch is refused and answered with Fence.

*A node that comes back* may have records that nobody else got. They were never committed if they are of the very epoch that
the takeover ended, or of its term and the witness agreed to the takeover; then it is told where to cut its log, and sets it
aside whole if that begins later. Any other divergence is refused and left to a person (G8).

*A process that was itself stopped* for longer than `silence_ms` accuses nobody: it counts silence anew. One that is about to be
busy, since it holds its state still, says so before (`pausing`), and is given so much longer, until it says otherwise.

*Signs of life.* The primary sends a heartbeat every HEARTBEAT_MS, unless records go, and the backup answers each. A primary
that is `calm` does so every CALM_HEARTBEAT_MS, and tells the difference as it tells of a pause: a pair at rest is woken seldom.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Literal

import msgspec

from actornet.errors import FencedError, LogDamagedError
from actornet.limits import CALM_HEARTBEAT_MS, HEARTBEAT_MS, PAUSE_MARGIN, PAUSE_MS_MAX, PAUSE_TOLD_MS, TERM_EPOCHS
from actornet.replication.messages import AnyMessage
from actornet.replication.unsent import Told

Role = Literal["primary", "backup"]

CALM_PAUSE_MS = CALM_HEARTBEAT_MS - HEARTBEAT_MS
"""By how much a heartbeat of a calm primary comes later than others."""


class State(Enum):
    """States of both machines."""

    # Primary
    ALONE = "alone"  # no backup is connected
    GREETING = "greeting"  # connected; its Hello is awaited (primary), or the answer to it (backup)
    MATCHING = "matching"  # the backup's last record is looked up in the own log
    SNAPSHOT = "snapshot"  # chunks are on their way, until the backup has restored them
    TAIL = "tail"  # the backup gets what is in the log, and applies what was there when it came
    JOINING = "joining"  # everything is sent; the watermark is frozen until it is acknowledged
    IN_SYNC = "in sync"  # primary: the backup counts; backup: it may take over
    HANDOVER = "handover"  # a stop was asked for; waits for the last acknowledgement
    STOPPED = "stopped"
    FENCED = "fenced"  # a higher epoch exists
    # Backup, besides GREETING, SNAPSHOT, IN_SYNC and STOPPED
    ABSENT = "absent"  # no link, and not in sync
    FOLLOWING = "following"  # applies records, but does not count yet
    CLAIMING = "claiming"  # would take over, once the witness grants it the lease
    DOUBT = "doubt"  # was in sync when the link broke; asks the primary once more
    REFUSED = "refused"  # the primary did not want it
    PROMOTED = "promoted"


class Event(Enum):
    """What moves a machine from state to state."""

    CONNECTED = "connected"
    HELLO = "hello"
    REFUSED = "refused"
    NEEDS_TAIL = "needs tail"
    NEEDS_SNAPSHOT = "needs snapshot"
    RESTORED = "snapshot restored"
    ALL_SENT = "all sent"
    LAG_0 = "lag 0"
    LOST = "link lost"
    SILENT = "silent"
    STOP = "stop"
    HANDED_OVER = "handed over"
    FENCE = "higher epoch"
    OPERATOR = "operator"
    CLAIM = "claim"
    GRANTED = "granted"
    DENIED = "denied"


S, E = State, Event

_ends = {E.STOP: S.STOPPED, E.FENCE: S.FENCED}
_peer = {E.LOST: S.ALONE, **_ends}
_told = {E.STOP: S.STOPPED, E.OPERATOR: S.PROMOTED, E.CLAIM: S.CLAIMING, E.GRANTED: S.PROMOTED}
_left = {E.LOST: S.ABSENT, E.REFUSED: S.REFUSED, **_told}

TRANSITIONS: Mapping[Role, Mapping[State, Mapping[Event, State]]] = {
    "primary": {
        S.ALONE: {E.CONNECTED: S.GREETING, **_ends},
        S.GREETING: {E.HELLO: S.MATCHING, E.REFUSED: S.ALONE, **_peer},
        S.MATCHING: {E.NEEDS_TAIL: S.TAIL, E.NEEDS_SNAPSHOT: S.SNAPSHOT, E.REFUSED: S.ALONE, **_peer},
        S.SNAPSHOT: {E.RESTORED: S.TAIL, **_peer},
        S.TAIL: {E.ALL_SENT: S.JOINING, **_peer},
        S.JOINING: {E.LAG_0: S.IN_SYNC, **_peer},
        S.IN_SYNC: {**_peer, E.STOP: S.HANDOVER},
        S.HANDOVER: {E.HANDED_OVER: S.STOPPED, E.LOST: S.STOPPED, E.FENCE: S.FENCED},
        S.STOPPED: {E.FENCE: S.FENCED},
        S.FENCED: {},
    },
    "backup": {
        S.ABSENT: {E.CONNECTED: S.GREETING, **_told},
        S.GREETING: {E.NEEDS_TAIL: S.FOLLOWING, E.NEEDS_SNAPSHOT: S.SNAPSHOT, **_left},
        S.SNAPSHOT: {E.RESTORED: S.FOLLOWING, **_left},
        S.FOLLOWING: {E.LAG_0: S.IN_SYNC, **_left},
        S.IN_SYNC: {**_left, E.LOST: S.DOUBT, E.SILENT: S.PROMOTED, E.HANDED_OVER: S.PROMOTED},
        S.DOUBT: {
            **_left,
            E.NEEDS_TAIL: S.FOLLOWING,
            E.NEEDS_SNAPSHOT: S.SNAPSHOT,
            E.LOST: S.PROMOTED,
            E.SILENT: S.PROMOTED,
        },
        S.CLAIMING: {
            E.STOP: S.STOPPED,
            E.OPERATOR: S.PROMOTED,
            E.GRANTED: S.PROMOTED,
            E.NEEDS_TAIL: S.FOLLOWING,
            E.NEEDS_SNAPSHOT: S.SNAPSHOT,
            E.REFUSED: S.REFUSED,
            E.DENIED: S.ABSENT,
        },
        S.REFUSED: {E.CONNECTED: S.GREETING, **_told},
        S.PROMOTED: {},
        S.STOPPED: {},
    },
}


def diagram(role: Role) -> str:
    """The table of one machine as a Mermaid state diagram."""
    table = TRANSITIONS[role]
    lines = ["stateDiagram-v2", f"    [*] --> {next(iter(table)).name}"]
    lines += [f"    {state.name} : {state.value}" for state in table]
    for state, moves in table.items():
        arrows: dict[State, list[str]] = {}
        for event, target in moves.items():
            if target is not state:
                arrows.setdefault(target, []).append(event.value)
        lines += [f"    {state.name} --> {target.name} : {', '.join(events)}" for target, events in arrows.items()]
        if not moves:
            lines.append(f"    {state.name} --> [*]")
    return "\n".join(lines) + "\n"


Durability = Literal["solo", "received", "durable", "applied"]
WithoutBackup = Literal["wait", "solo", "stop"]


def epoch_of_launch(epoch: int, led_epoch: int) -> int:
    """The epoch of a node that is launched as primary.

    `epoch` is the highest that it knows of (0: a new log), `led_epoch` the last that it was itself the primary of (0:
    none). Only that one can be gone on from; for any other this is a takeover, by the operator. FencedError as below.
    """
    return epoch_going_on(epoch) if epoch in (0, led_epoch) else epoch_of_takeover(epoch)


def epoch_going_on(epoch: int) -> int:
    """The epoch in which the primary of `epoch` goes on, restarted or alone. FencedError: the term has none left."""
    following = epoch + 1 if epoch else TERM_EPOCHS
    if epoch and following % TERM_EPOCHS == 0:
        raise FencedError(f"epoch {epoch} is the last of its term: promote the backup to begin the next term")
    return following


def epoch_of_takeover(epoch: int) -> int:
    """The epoch of a backup that takes over from the primary of `epoch`: the first of the next term."""
    return (epoch // TERM_EPOCHS + 1) * TERM_EPOCHS


def told_ms(pause_ns: int) -> int:
    """What a peer is told of a pause of about so long: 0 if it is too short to matter."""
    return min(PAUSE_MARGIN * pause_ns // 1_000_000, PAUSE_MS_MAX) if pause_ns >= PAUSE_TOLD_MS * 1_000_000 else 0


class Identity(msgspec.Struct, frozen=True):
    """What primary and backup must have in common: deployment, network function, the fingerprint of its code, and the
    history that their logs tell (empty: none yet). Epochs of different histories cannot be compared. `tested`: the
    fingerprint of other code that wrote the log, whose decisions this code was found to repeat (empty: none).
    `keys_max`: how many flow keys the node's cores hold, which on a backup must be as many (0: not known)."""

    deployment: str
    nf: str
    fingerprint: str
    history: str = ""
    tested: str = ""
    keys_max: int = 0


class Position(msgspec.Struct, frozen=True):
    """A record of the log; all 0: before the first."""

    lsn: int = 0
    chain: int = 0
    epoch: int = 0
    complete: bool = False  # it begins a term in a log that had all that was ever committed before


class Match(msgspec.Struct, frozen=True):
    """What the primary's log says about the end of the backup's: see `match`."""

    chain: int | None
    fork: Position
    next_epoch: int
    complete: bool = False


def match(end: Position, first_lsn: int, last_lsn: int, read: Callable[[int], Position]) -> Match:
    """Look up the `end` of the backup's log in the own one, first_lsn..last_lsn; `read` gives the position at an LSN.

    `chain` is the own chain at that LSN (None: not in the log); `fork` the own last record of an epoch up to the
    backup's; `next_epoch` that of the record after it (0: none) and `complete` what that one says, all looked for when the
    chains differ. Reads O(log n) records. LogDamagedError: the own record at that LSN is damaged.
    """
    if end.lsn == 0:
        chain = end.chain if first_lsn <= 1 else None
    else:
        chain = read(end.lsn).chain if first_lsn <= end.lsn <= last_lsn else None
    if chain == end.chain:
        return Match(chain, Position(), 0)
    try:
        after = first_lsn + bisect_right(range(first_lsn, last_lsn + 1), end.epoch, key=lambda lsn: read(lsn).epoch)
        fork = read(after - 1) if after > first_lsn else Position()
        following = read(after) if after <= last_lsn else Position()
        return Match(chain, fork, following.epoch, following.complete)
    except LogDamagedError:  # they differ; where they part cannot be told
        return Match(chain, Position(), 0)


# Actions: what the owner system has to do, in the order given.


class Send(msgspec.Struct, frozen=True):
    """Send `message` to the peer."""

    message: AnyMessage
    peer: int = 0


class Close(msgspec.Struct, frozen=True):
    """Close the connection after what was sent before; no `disconnected` follows."""

    reason: str
    peer: int = 0


class Note(msgspec.Struct, frozen=True):
    """Something that an operator wants to know; `alarm` when replication does not do now what was asked for."""

    event: str
    detail: str
    alarm: bool = False


class StopNode(msgspec.Struct, frozen=True):
    """Let out what the watermark allows, then stop this node."""

    reason: str


class Leave(msgspec.Struct, frozen=True):
    """An operator wants a backup to lead: stop this node in order, as at any clean stop; see `stop`."""

    reason: str


class Compare(msgspec.Struct, frozen=True):
    """Answer by `compared(match(end, ...), end)`, or by `incomparable` when the own record there is damaged."""

    end: Position
    peer: int = 0


class TakeSnapshot(msgspec.Struct, frozen=True):
    """Answer by `snapshot` with the present state."""

    peer: int = 0


class Read(msgspec.Struct, frozen=True):
    """Read records first_lsn..last_lsn, or later ones as well, the first and more up to `bytes_max`, and check them; answer by
    `tail`, or by `damaged` when the first is not what was logged, now or later."""

    first_lsn: int
    last_lsn: int
    bytes_max: int
    peer: int = 0


class NewEpoch(msgspec.Struct, frozen=True):
    """Log an EPOCH record of `epoch` as the very next one, sync the log, and alarm: this primary goes on without a backup
    that counted; `alone` if no other counts. With a witness a Claim follows."""

    epoch: int
    reason: str
    alone: bool = True


class Claim(msgspec.Struct, frozen=True):
    """Ask the witness for the lease in `epoch`, while its own is one of `after` (None: whatever it is); answer by
    `granted`, or by `denied` (a backup) or `fenced` (a primary). So many others are to be first: `rank`."""

    epoch: int
    after: range | None
    rank: int = 0


class Unclaim(msgspec.Struct, frozen=True):
    """Ask the witness no more."""


class Fenced(msgspec.Struct, frozen=True):
    """Emit nothing any more, drop what is held, and keep `epoch` in the log's metadata: this is no primary (G7)."""

    epoch: int


class Apply(msgspec.Struct, frozen=True):
    """Append these encoded records, from `first_lsn`, to the log and apply them; then call `applied`."""

    first_lsn: int
    records: list[bytes]


class InstallSnapshot(msgspec.Struct, frozen=True):
    """Begin log and state anew from the snapshot at `end`, which is newer; then call `applied`."""

    end: Position
    data: bytes


class Remember(msgspec.Struct, frozen=True):
    """Keep `epoch` in the log's metadata: the highest heard of, also after a restart."""

    epoch: int


class Adopt(msgspec.Struct, frozen=True):
    """The log becomes a copy of the primary's: keep the `history` that it belongs to in its metadata."""

    history: str


class Refused(msgspec.Struct, frozen=True):
    """The primary does not take this backup, or the operator's promotion is unsafe; `reason` says what to do."""

    reason: str


class Rewind(msgspec.Struct, frozen=True):
    """The log's records after `fork_lsn` were never committed. If it has `fork_chain` there, cut it after that and
    begin anew with the state at that LSN, in a new Backup; otherwise this is as Refused."""

    fork_lsn: int
    fork_chain: int
    reason: str


class Learn(msgspec.Struct, frozen=True):
    """Stations, each with the port that it is behind; see `stations`."""

    stations: list[tuple[int, int]]


class Keep(msgspec.Struct, frozen=True):
    """What waits in cores of the primary; see `Unsent`."""

    unsent: list[tuple[int, int, Told | None]]


class Promote(msgspec.Struct, frozen=True):
    """Become the primary of `epoch`: log its EPOCH record and sync the log. Nothing is to be replayed (G6).

    `complete`: a witness has agreed, so that nothing that was ever committed is missing here.
    """

    epoch: int
    reason: str
    complete: bool = False


PrimaryAction = Send | Close | Note | StopNode | Leave | Compare | TakeSnapshot | Read | NewEpoch | Claim | Fenced
BackupAction = (
    Send
    | Close
    | Note
    | Apply
    | InstallSnapshot
    | Remember
    | Adopt
    | Refused
    | Rewind
    | Promote
    | Claim
    | Unclaim
    | Learn
    | Keep
)
