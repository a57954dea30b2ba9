"""The primary's side of the protocol: what is one for all its backups. `feed` has what is of each.

`protocol` has the theory of operation and the table of states.
"""

from __future__ import annotations

from typing import Any

from actornet.errors import FencedError
from actornet.limits import BACKUPS_MAX, SILENCE_MS_DEFAULT
from actornet.replication.feed import Feed, batches
from actornet.replication.messages import VERSION, Ack, AnyMessage, Fence, Hello, Seen, Stop, Sync, Unsent, Yield
from actornet.replication.protocol import (
    CALM_PAUSE_MS,
    Claim,
    Close,
    Compare,
    Durability,
    Event,
    Fenced,
    Identity,
    Leave,
    Match,
    NewEpoch,
    Note,
    Position,
    PrimaryAction,
    Send,
    State,
    StopNode,
    WithoutBackup,
    epoch_going_on,
    told_ms,
)
from actornet.replication.stations import Stations

_MS = 1_000_000
_OVER = (State.STOPPED, State.FENCED)
_PROGRESS = list(State)


class Primary:
    """The primary of a deployment, for as long as its process is that.

    `logged_lsn` is the log's last LSN; the EPOCH record of `epoch` must be the next one. `epoch` comes from
    `epoch_of_launch` or, with `takeover`, from a Promote action. `watermark` never falls. A backup that is silent for
    `silence_ms` no longer counts. With `needs_lease` a witness has granted `epoch`, and has to grant every further one. Who
    drives it says whether it is `calm`.
    `peer`, in all methods, is the backup's connection. `state` and `leading` may be read by other threads.
    """

    def __init__(
        self,
        identity: Identity,
        durability: Durability,
        without_backup: WithoutBackup,
        *,
        epoch: int,
        first_lsn: int,
        logged_lsn: int,
        takeover: bool,
        now_ns: int,
        silence_ms: int = SILENCE_MS_DEFAULT,
        needs_lease: bool = False,
    ) -> None:
        self.identity = identity
        self.durability = durability
        self.without_backup = without_backup
        self.silence_ms = silence_ms
        self.epoch = epoch
        self.feeds: dict[int, Feed] = {}
        self.first_lsn = first_lsn  # the owner system raises it when it prunes the log, never above `needed_lsn`
        self.logged_lsn = logged_lsn
        self.watermark = 0
        self.links_down = 0  # of its ports
        self.calm = False
        self.commits_alone = takeover or without_backup == "solo"  # while no backup counts
        self.needs_lease = needs_lease
        self.granted_epoch = epoch  # by the witness; with no lease needed, whatever epoch it is
        self.damaged_lsn = 0  # the last record of the own log that proved damaged: nothing up to it is sent (G8)
        self._refusals: dict[str, str] = {}  # why, by node: who comes again is told so, an operator was
        self._sync_set: set[str] = set()  # nodes that may take over from this epoch, connected or not
        self._holding: list[Feed] = []
        self._stands = not self.commits_alone
        self._over: State | None = None
        self._stopping = False
        self._heir = 0  # the peer that is to lead
        self._untold = False  # those that count do not know of this epoch yet
        self._asked_epoch = epoch  # of the witness
        self._highest_epoch = epoch  # heard of
        self._epoch_lsn = logged_lsn + 1  # nothing is committed in this epoch before its record is logged
        self._ticked_ns = now_ns
        self._rests_ms = 0  # by so much more than else ticks may have been apart

    @property
    def pause_ms(self) -> int:
        """By how much heartbeats come later than else."""
        return CALM_PAUSE_MS if self.calm else 0

    def due_ns(self, now_ns: int) -> int | None:
        """When `tick` will have something to do; None: not before something else has happened."""
        return min((feed.due_ns(now_ns) for feed in self.feeds.values()), default=None)

    @property
    def state(self) -> State:
        """How this primary ended, or else how far the backup has come that has come furthest."""
        if self._over is not None:
            return self._over
        return max((feed.state for feed in list(self.feeds.values())), key=_PROGRESS.index, default=State.ALONE)

    @property
    def leading(self) -> Feed | None:
        """The feed of the backup that counts and lacks most; of one that catches up, if none counts."""
        welcomed = [feed for feed in list(self.feeds.values()) if feed.welcome]
        return max(welcomed, key=lambda feed: (feed.counts, feed.lag), default=None)

    @property
    def needed_lsn(self) -> int:
        """Records from this LSN on must stay in the log: a backup is about to get them. The last one always does."""
        needed = (feed.needed_lsn for feed in self.feeds.values() if feed.welcome)
        return min(needed, default=self.logged_lsn)

    def connected(self, now_ns: int, peer: int = 0) -> list[PrimaryAction]:
        """A peer has shown the key; its Hello comes next."""
        if self._over is not None:
            return [Send(Fence(self._highest_epoch), peer), Close(f"this primary is {self._over.value}", peer)]
        assert peer not in self.feeds, "a connection is made once"
        feed = self.feeds[peer] = Feed(self, peer, now_ns)
        feed.move(Event.CONNECTED)
        return []

    def disconnected(self, reason: str, now_ns: int, peer: int = 0) -> list[PrimaryAction]:
        """The link broke."""
        feed = self.feeds.get(peer)
        return [] if feed is None or self._over is not None else self.lost(feed, reason)

    def receive(self, message: AnyMessage, now_ns: int, peer: int = 0) -> list[PrimaryAction]:
        """A message came from the connected peer."""
        feed = self.feeds.get(peer)
        if feed is None or self._over is not None:
            return []
        feed.heard_ns = now_ns
        match message:
            case Hello() if feed.state is State.GREETING:
                return self._hello(feed, message)
            case _ if message.epoch > self.epoch:
                return self._fence(message.epoch)
            case _ if message.epoch < self.epoch:
                return [Send(Fence(self.epoch), peer)]
        feed.heard_epoch = message.epoch
        match message:
            case Ack() if feed.welcome:
                return [*self._ask_witness(), *feed.acknowledged(message, now_ns)]
            case Stop():
                reason = "the backup was stopped"
                return [Close(reason, peer), *self.lost(feed, reason)]
            case Yield() if feed.counts and not self._stopping:
                self._heir = peer
                return [Leave(message.why)]
            case Fence() | Yield():
                return []
            case _:
                return feed.drop(f"unexpected {type(message).__name__} while {feed.state.value}")

    def compared(self, found: Match, end: Position, peer: int = 0) -> list[PrimaryAction]:
        """The answer to Compare(end)."""
        feed = self.feeds.get(peer)
        return feed.compared(found, end) if feed is not None and feed.state is State.MATCHING else []

    def incomparable(self, end: Position, detail: str, peer: int = 0) -> list[PrimaryAction]:
        """The answer to Compare(end) when the own record there is damaged."""
        feed = self.feeds.get(peer)
        if feed is None or feed.state is not State.MATCHING:
            return []
        return [_alarm(detail), *feed.feed_snapshot(f"ends at LSN {end.lsn}, which is damaged here")]

    def damaged(self, detail: str, peer: int = 0) -> list[PrimaryAction]:
        """The answer to Read when the next record is damaged. The backup comes again, and gets a snapshot."""
        feed = self.feeds.get(peer)
        if feed is None:
            return []
        self.damaged_lsn = max(self.damaged_lsn, feed.sent_lsn + 1)
        actions = feed.damaged()
        return [_alarm(detail), *actions] if actions is not None else []

    def snapshot(self, end: Position, data: bytes | bytearray, now_ns: int, peer: int = 0) -> list[PrimaryAction]:
        """The answer to TakeSnapshot: the state at `end`, a record of this log."""
        feed = self.feeds.get(peer)
        return feed.snapshot(end, data) if feed is not None else []

    def no_snapshot(self, detail: str, peer: int = 0) -> list[PrimaryAction]:
        """The answer to TakeSnapshot when an owner's state would not come back from one."""
        feed = self.feeds.get(peer)
        if feed is None or feed.state is not State.SNAPSHOT:
            return []
        reason = f"it needs a snapshot, and none can be made: {detail}"
        return [*self.note_refusal(feed.node, reason), *feed.drop(reason)]

    def tail(self, records: list[bytes], now_ns: int, peer: int = 0) -> list[PrimaryAction]:
        """The answer to Read: encoded records from its `first_lsn` on."""
        feed = self.feeds.get(peer)
        return feed.tail(records, now_ns) if feed is not None else []

    def stream(self, records: list[bytes], now_ns: int) -> list[PrimaryAction]:
        """Send encoded records that are about to be logged to backups that have all before them. FencedError: see `logged`.

        They travel meanwhile; output waits for `logged` as well. Who has more than a primary that dies now takes over with it.
        """
        self._check_logs()
        if self._untold:
            return []
        live = [feed for feed in self.feeds.values() if feed.is_at_tail]
        return [action for feed in live for action in feed.stream(records, now_ns)]

    def logged(self, records: list[bytes], now_ns: int) -> list[PrimaryAction]:
        """These encoded records are in the log, after `logged_lsn`. FencedError: they should not be (G7)."""
        self._check_logs()
        feeds = list(self.feeds.values())
        live = [feed for feed in feeds if feed.is_at_tail]
        self.logged_lsn += len(records)
        self.raise_watermark()
        actions = self._tell_epoch()
        for feed in live:
            actions += feed.stream(records, now_ns)
        for feed in feeds:  # who joins now may make this epoch the last one: nothing is sent after that
            actions += feed.pump(now_ns)
        return actions

    def _check_logs(self) -> None:
        if self._over is not None:
            raise FencedError(f"epoch {self.epoch} is over ({self._over.value}): nothing may be logged in it any more")
        assert not self._stopping, "logging ends before a handover"

    def tick(self, now_ns: int) -> list[PrimaryAction]:
        """Time passes."""
        rests_ms, self._rests_ms = min(self._rests_ms, self.pause_ms), self.pause_ms
        slept, self._ticked_ns = now_ns - self._ticked_ns > (self.silence_ms + rests_ms) * _MS, now_ns
        if self._over is not None:
            return []
        actions: list[PrimaryAction] = []
        for feed in list(self.feeds.values()):
            actions += feed.tick(now_ns, slept=slept)
            if self._untold or self._over is not None:
                break  # the new epoch is logged and told first
        return actions

    def pausing(self, pause_ns: int, now_ns: int) -> list[PrimaryAction]:
        """This node will do nothing else for about so long."""
        if self._over is not None or not told_ms(pause_ns):
            return []
        return [action for feed in self.feeds.values() for action in feed.beat(now_ns, told_ms(pause_ns))]

    def links(self, down: int, now_ns: int) -> list[PrimaryAction]:
        """So many of this node's ports have no link now. A backup with more of them may ask to lead."""
        self.links_down = down
        if self._over is not None:
            return []
        return [action for feed in self.feeds.values() for action in feed.beat(now_ns)]

    def tell(self, stations: Stations, now_ns: int) -> list[PrimaryAction]:
        """What the backups have not been told yet of who is behind which port."""
        if self._over is not None:
            return []
        actions: list[PrimaryAction] = []
        for feed in self.feeds.values():
            if feed.welcome and feed.stations_told < stations.number:
                actions.append(Send(Seen(self.epoch, stations.since(feed.stations_told, now_ns)), feed.peer))
                feed.stations_told = stations.number
        return actions

    @property
    def is_followed(self) -> bool:
        """Whether a backup may take over."""
        return any(feed.counts for feed in self.feeds.values())

    def unsent(self, unsent: list[tuple[int, int, Any]]) -> list[PrimaryAction]:
        """For those that may take over: what waits in which core (an encoded Told, as Raw), and the last LSN by then."""
        told = [Unsent(self.epoch, some) for some, _ in batches(unsent, lambda each: len(each[2]))]
        return [Send(message, feed.peer) for feed in self.feeds.values() if feed.counts for message in told]

    def stop(self, now_ns: int) -> list[PrimaryAction]:
        """Stop cleanly; nothing is logged any more. A backup in sync takes over once it has everything (handover)."""
        if self._over is not None or self._stopping:
            return []
        actions: list[PrimaryAction] = []
        for feed in list(self.feeds.values()):
            if feed.counts:
                feed.move(Event.STOP)
                feed.progress_ns = now_ns
            else:
                self.forget(feed, Event.STOP)
                actions.append(Close("the primary stops", feed.peer))
        if self.feeds:
            self._stopping = True
            return [*actions, *self.hand_over(now_ns)]
        self._over = State.STOPPED
        return [*actions, StopNode("stopped; no backup was in sync")]

    def go_on_alone(self) -> list[PrimaryAction]:
        """The operator ends the waiting for a backup."""
        waits = self._over is None and not self.commits_alone and not any(feed.counts for feed in self.feeds.values())
        return self._begin_epoch("operator") if waits else []

    def granted(self, epoch: int, now_ns: int) -> list[PrimaryAction]:
        """The witness has granted this epoch: what waited for that is committed, and who waited for it joins."""
        self.granted_epoch = epoch
        self.raise_watermark()
        actions: list[PrimaryAction] = []
        for feed in list(self.feeds.values()):
            if feed.has_joined:
                actions += self.count(feed, now_ns)
        return actions

    def fenced(self, epoch: int) -> list[PrimaryAction]:
        """The witness says that the lease is another's, in that epoch."""
        return [] if self._over is State.FENCED else self._fence(epoch)

    def probe(self) -> Hello:
        """What to say to a node that may believe to be the primary, too; its answer goes to `rival`."""
        me = self.identity
        return Hello(
            self.epoch,
            VERSION,
            me.deployment,
            me.nf,
            me.fingerprint,
            "primary",
            self.logged_lsn,
            0,
            self.epoch,
            history=me.history,
        )

    def rival(self, answer: AnyMessage) -> list[PrimaryAction]:
        """A node answered to `probe`: it is the primary (Fenced), or has stood down (Note)."""
        if not isinstance(answer, Fence) or answer.epoch < self.epoch or self._over is State.FENCED:
            return []
        if answer.epoch > self.epoch:
            return self._fence(answer.epoch)
        return [Note("rival fenced", f"it obeys epoch {answer.epoch}")]

    # What a feed asks for.

    def count(self, feed: Feed, now_ns: int) -> list[PrimaryAction]:
        """The backup has all that was ever committed: from now on nothing is committed without it."""
        if self.needs_lease and self.granted_epoch != self.epoch:
            return []  # no claim of its own would be good before that
        feed.move(Event.LAG_0)
        self.commits_alone = False
        if self.durability != "solo":
            self._sync_set.add(feed.node)
        self.recount()
        self.raise_watermark()
        self._refusals.pop(feed.node, None)
        name = f"{feed.node} " if feed.node else ""
        note = Note("backup in sync", f"{name}at LSN {feed.join_lsn}, epoch {self.epoch}")
        rank = sum(other.counts for other in self.feeds.values()) - 1
        actions: list[PrimaryAction] = [Send(Sync(self.epoch, feed.join_lsn, rank), feed.peer), note]
        if (
            self.durability != "solo" and not self._all_here()
        ):  # who is lost is left out, now that another can take over
            actions += self._begin_epoch(f"without the backup that was lost, with {feed.node}")
        return [*actions, *feed.pump(now_ns)]

    def lost(self, feed: Feed, reason: str) -> list[PrimaryAction]:
        """The backup is no longer there."""
        counted = feed.state is State.IN_SYNC and self.durability != "solo"
        actions: list[PrimaryAction] = [Note("backup lost", reason, alarm=True)] if feed.welcome else []
        self.forget(feed, Event.LOST)
        if self._stopping:
            return [*actions, *self.hand_over(feed.heard_ns)]
        if not counted:
            self.raise_watermark()  # which may have waited for it
            return actions
        if any(other.counts for other in self.feeds.values()):
            return [*actions, *self._begin_epoch(reason)]
        if self.without_backup == "solo":
            return [*actions, *self._begin_epoch(reason)]
        if self.without_backup == "stop":
            self._over = State.STOPPED
            return [*actions, StopNode(f"backup lost: {reason}")]
        return actions

    def note_refusal(self, node: str, reason: str) -> list[PrimaryAction]:
        """An alarm, unless this node was refused for that when it came last: it comes every second."""
        if self._refusals.get(node) == reason:
            return []
        if len(self._refusals) > 2 * BACKUPS_MAX:
            self._refusals.clear()
        self._refusals[node] = reason
        return [Note("backup refused", reason, alarm=True)]

    def forget(self, feed: Feed, event: Event) -> None:
        """The connection ends."""
        feed.move(event)
        del self.feeds[feed.peer]
        self.recount()

    def hand_over(self, now_ns: int) -> list[PrimaryAction]:
        """Once all that count have everything: the first of them takes over, or whom an operator named."""
        feeds = list(self.feeds.values())
        if not feeds:
            self._over = State.STOPPED
            return [StopNode("stopped; the backup was lost before it had everything")]
        if not all(feed.has_all for feed in feeds):
            return [action for feed in feeds for action in feed.pump(now_ns)]
        self._over = State.STOPPED
        heir = self.feeds.get(self._heir, feeds[0])
        stops: list[PrimaryAction] = [
            Send(Stop(self.epoch, self.logged_lsn, feed is heir), feed.peer) for feed in feeds
        ]
        return [*stops, StopNode(f"handed over to {heir.node or 'the backup'}")]

    def raise_watermark(self) -> None:
        """As far as the mode, the witness and all backups that count allow (G3)."""
        if self.needs_lease and self.granted_epoch != self.epoch:
            return
        lsn = self.logged_lsn
        if self.durability != "solo":
            if self._stands:
                return
            for feed in self._holding:
                lsn = min(lsn, feed.acked_lsn if feed.counts else feed.join_lsn)
        if lsn >= self._epoch_lsn:
            self.watermark = max(self.watermark, lsn)

    def recount(self) -> None:
        """After each change: whom the watermark waits for, and whether it stands still until somebody comes or goes."""
        self._holding = [feed for feed in self.feeds.values() if feed.counts or feed.state is State.JOINING]
        self._stands = not self._all_here() or not (self._sync_set or self.commits_alone)

    # -- the epoch

    def _all_here(self) -> bool:
        """Whether every node that may take over is connected, and counts."""
        return sum(feed.counts for feed in self.feeds.values()) >= len(self._sync_set) and all(
            feed.node in self._sync_set for feed in self.feeds.values() if feed.counts
        )

    def _begin_epoch(self, reason: str) -> list[PrimaryAction]:
        """Go on without those that counted and are lost: from the next epoch on they can take over no more."""
        try:
            self.epoch = epoch_going_on(self.epoch)
        except FencedError as error:
            self._over = State.STOPPED
            return [StopNode(str(error))]
        self._sync_set = {feed.node for feed in self.feeds.values() if feed.counts}
        self._highest_epoch = self.epoch
        self._epoch_lsn = self.logged_lsn + 1
        self._untold = True
        self.commits_alone = not self._sync_set
        self.recount()
        return [NewEpoch(self.epoch, reason, self.commits_alone)]

    def _tell_epoch(self) -> list[PrimaryAction]:
        """The epoch's record is logged: those that remain hear of it before the witness does."""
        if not self._untold:
            return []
        self._untold = False
        counting = [feed for feed in self.feeds.values() if feed.counts]
        told = (Send(Sync(self.epoch, self._epoch_lsn, rank), feed.peer) for rank, feed in enumerate(counting))
        return [*told, *self._ask_witness()]

    def _ask_witness(self) -> list[PrimaryAction]:
        """Once all that count know of the epoch, so that the claim of any of them is good before and after the grant."""
        if not self.needs_lease or self._asked_epoch == self.epoch or self._untold:
            return []
        if any(feed.counts and feed.heard_epoch < self.epoch for feed in self.feeds.values()):
            return []
        self._asked_epoch = self.epoch
        return [Claim(self.epoch, None)]

    def _hello(self, feed: Feed, hello: Hello) -> list[PrimaryAction]:
        me = self.identity
        feed.node = hello.node
        if (hello.deployment, hello.version) != (me.deployment, VERSION):
            return feed.refuse(
                f"it is of deployment {hello.deployment!r}, version {hello.version}; "
                f"this primary is of {me.deployment!r}, version {VERSION}"
            )
        if hello.history and me.history and hello.history != me.history:
            return feed.refuse(
                f"its log ({hello.lsn} records, epoch {hello.epoch}) diverges from the primary's from the first record on: "
                "keep the log that you want, and give the other node an empty log directory"
            )
        if hello.epoch > self.epoch:
            return self._fence(hello.epoch)
        if hello.role == "primary" and hello.epoch == self.epoch:
            return feed.refuse(f"it is the primary of epoch {hello.epoch}, as this node is: stop one of the two")
        if hello.role == "primary":
            self.forget(feed, Event.REFUSED)
            reason = f"it is the primary of the older epoch {hello.epoch}"
            return [Send(Fence(self.epoch), feed.peer), Close(reason, feed.peer)]
        if hello.nf != me.nf or me.fingerprint not in (hello.fingerprint, hello.tested):
            return feed.refuse(
                f"it runs {hello.nf} ({hello.fingerprint}), this primary {me.nf} ({me.fingerprint}): "
                "replay needs the same code on both, or one that has repeated what is in its log"
            )
        if 0 < hello.keys_max < me.keys_max:
            return feed.refuse(
                f"its cores hold {hello.keys_max} flow keys, this primary's {me.keys_max}, so it could not have every flow: "
                "launch it with the same flows_max and cores"
            )
        actions: list[PrimaryAction] = []
        others = [other for other in self.feeds.values() if other is not feed and other.state is not State.GREETING]
        for other in others:
            if other.node == hello.node:  # whether that shows on this side already or not
                reason = "the node connected anew"
                actions += [Close(reason, other.peer), *self.lost(other, reason)]
        if self._over is not None:
            return actions
        if self._stopping:
            self.forget(feed, Event.REFUSED)
            return [*actions, Close("the primary stops", feed.peer)]
        if sum(other.state is not State.GREETING for other in self.feeds.values()) == BACKUPS_MAX:
            return [*actions, *feed.refuse(f"there are {BACKUPS_MAX} backups already, the most")]
        feed.wants_snapshot = hello.snapshot
        feed.move(Event.HELLO)
        return [*actions, Compare(Position(hello.lsn, hello.chain, hello.log_epoch), feed.peer)]

    def _fence(self, epoch: int) -> list[PrimaryAction]:
        self._over = State.FENCED
        self._highest_epoch = epoch
        actions: list[PrimaryAction] = [Fenced(epoch)]
        for feed in self.feeds.values():
            actions += [Send(Fence(epoch), feed.peer), Close(f"fenced by epoch {epoch}", feed.peer)]
        self.feeds.clear()
        return actions


def _alarm(detail: str) -> Note:
    return Note("log damaged", f"{detail}. This node goes on; the backup gets its state by snapshot", alarm=True)
