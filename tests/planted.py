"""Planted bugs: each takes away one thing that a guarantee rests on, by way of `patch`, as `monkeypatch.setattr`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from actornet import Packet, StreamActor, Verdict, journal
from actornet.chain import ChainActor
from actornet.engine.replies import VALUE
from actornet.engine.ring import NO_LEASE
from actornet.engine.stream import Stream
from actornet.log.record import FlowBody, chain_of
from actornet.log.store import Log
from actornet.node import leadership
from actornet.node.cores import Cores
from actornet.node.following import Following
from actornet.node.lease_keeper import LeaseKeeper
from actornet.node.owner_system import OwnerSystem
from actornet.node.placement import Placement
from actornet.replication import backup, feed, primary
from actornet.replication.backup import Backup
from actornet.replication.feed import Feed
from actornet.replication.lease import Lease
from actornet.replication.primary import Primary
from actornet.replication.protocol import Fenced, Match, Position, State
from actornet.replication.replica import Replica
from actornet.replication.replica_base import Asked
from actornet.replication.unsent import Unsent
from actornet.testing.simulation import node as simulated
from actornet.testing.simulation.ticketing import Office
from actornet.testing.simulation.world import World

Patch = Callable[[Any, str, Any], None]


def output_released_early(patch: Patch) -> None:
    def raise_watermark(self: Primary) -> None:
        self.watermark = max(self.watermark, self.logged_lsn)

    patch(Primary, "raise_watermark", raise_watermark)


def watermark_not_frozen_while_joining(patch: Patch) -> None:
    def pump(self: Feed, now_ns: int) -> Any:
        actions = original(self, now_ns)
        if self.state is State.JOINING:
            self.move(primary.Event.LAG_0)
            actions += [primary.Send(primary.Sync(self.primary.epoch, self.join_lsn))]
        return actions

    original = Feed.pump
    patch(Feed, "pump", pump)
    patch(Backup, "_accept", _in_sync_when_told)


def _in_sync_when_told(self: Backup, message: Any, now_ns: int) -> Any:
    if isinstance(message, backup.Sync) and self.state is State.FOLLOWING:
        self._move(backup.Event.LAG_0)
        return []
    return _accept(self, message, now_ns)


_accept = Backup._accept


def acknowledged_before_applied(patch: Patch) -> None:
    def records(self: Backup, message: Any, now_ns: int) -> Any:
        actions = original(self, message, now_ns)
        applied, self.applied_lsn = self.applied_lsn, self.received_lsn
        early = self._ack(now_ns)
        self.applied_lsn = applied
        return [early, *actions]

    def apply(self: Following, action: Any) -> None:
        if self._system.link is not None:
            self._system.link.flush()
        carry_out(self, action)

    original, carry_out = Backup._records, Following.apply
    patch(Backup, "_records", records)
    patch(Following, "apply", apply)


def acknowledged_as_durable_before_synced(patch: Patch) -> None:
    def apply(self: Following, action: Any) -> None:
        log = self._system.log
        sync, log.sync = log.sync, lambda: None  # type: ignore[method-assign]
        original(self, action)
        log.sync = sync  # type: ignore[method-assign]

    original = Following.apply
    patch(Following, "apply", apply)


def takes_over_without_being_in_sync(patch: Patch) -> None:
    def lost(self: Backup, reason: str) -> Any:
        return self._promote(backup.Event.OPERATOR, reason) if self.state is State.FOLLOWING else original(self, reason)

    original = Backup._lost
    patch(Backup, "_lost", lost)


def takeover_in_the_same_term(patch: Patch) -> None:
    patch(backup, "epoch_of_takeover", lambda epoch: epoch + 1)


def follower_launched_as_if_it_had_led(patch: Patch) -> None:
    patch(leadership, "epoch_of_launch", lambda epoch, led: epoch + 1 if epoch else 100_000)


def higher_epoch_ignored(patch: Patch) -> None:
    patch(Primary, "_fence", lambda self, epoch: [])


def fenced_goes_on_emitting(patch: Patch) -> None:
    def carry_out(self: OwnerSystem, action: Any) -> None:
        if not isinstance(action, Fenced):
            original(self, action)

    original = OwnerSystem._carry_out
    patch(OwnerSystem, "_carry_out", carry_out)


def asks_not_deduplicated(patch: Patch) -> None:
    patch(Replica, "_known_reply", lambda self, *arguments: None)


def snapshot_without_recorded_replies(patch: Patch) -> None:
    def snapshot(self: Replica) -> bytes:
        asks, self.asks = self.asks, {}
        data = original(self)
        self.asks = asks
        return data

    original = Replica.snapshot
    patch(Replica, "snapshot", snapshot)


def log_cut_below_the_fork(patch: Patch) -> None:
    original = Log.truncate
    patch(Log, "truncate", lambda self, after_lsn: original(self, max(after_lsn - 2, 1)))


def diverged_log_followed(patch: Patch) -> None:
    def compared(self: Feed, found: Match, end: Position) -> Any:
        return original(self, Match(end.chain, found.fork, found.next_epoch) if found.chain else found, end)

    original = Feed.compared
    patch(Feed, "compared", compared)
    patch(journal, "check_chain", lambda data, chain: chain_of(data))  # by which the backup would see it, too


def flows_not_restored_on_the_backup(patch: Patch) -> None:
    patch(Placement, "restore", lambda self, body: None)


def restored_core_does_not_wait(patch: Patch) -> None:
    def attaching(self: Cores, core: int, line: Any, pid: int) -> Iterator[None]:
        yield from original(self, core, line, pid)
        line.pending[-1] = (0, 1)

    original = Cores._attaching
    patch(Cores, "_attaching", attaching)


def goes_on_alone_in_the_same_epoch(patch: Patch) -> None:
    def begin(self: Primary, reason: str) -> Any:
        self.commits_alone = True
        self._sync_set = {each.node for each in self.feeds.values() if each.counts}
        self.recount()
        return []

    patch(Primary, "_begin_epoch", begin)


def refusal_tells_no_epoch(patch: Patch) -> None:
    def refuse(self: Feed, reason: str, fork: Position | None = None) -> Any:
        actions = original(self, reason, fork)
        return [
            feed.Send(msgspec.structs.replace(action.message, epoch=0), action.peer)
            if isinstance(action, feed.Send) and isinstance(action.message, feed.Refuse)
            else action
            for action in actions
        ]

    original = Feed.refuse
    patch(Feed, "refuse", refuse)


def epoch_told_before_it_is_synced(patch: Patch) -> None:
    def carry_out(self: OwnerSystem, action: Any) -> None:
        self._begun = False
        original(self, action)

    original = OwnerSystem._carry_out
    patch(OwnerSystem, "_carry_out", carry_out)


def lease_ignored(patch: Patch) -> None:
    def turn(self: LeaseKeeper, now_ns: int) -> Any:
        events = original(self, now_ns)
        if self.lease.epoch:
            self._page.lease_until_ns = NO_LEASE
        return events

    original = LeaseKeeper.turn
    patch(LeaseKeeper, "turn", turn)


def lease_counted_from_the_answer(patch: Patch) -> None:
    def took(self: Lease, now_ns: int) -> Any:
        self._trying_ns = now_ns
        return original(self, now_ns)

    original = Lease._took
    patch(Lease, "_took", took)


def lease_taken_without_waiting(patch: Patch) -> None:
    patch(Lease, "is_free", lambda self, now_ns: self.entry is not None)


def claim_of_any_epoch(patch: Patch) -> None:
    patch(Lease, "_may_follow", lambda self, epoch: epoch < self._claimed)


def denied_epoch_forgotten(patch: Patch) -> None:
    original = Backup.denied
    patch(Backup, "denied", lambda self, epoch, why: original(self, 0, why))


def commits_alone_without_a_grant(patch: Patch) -> None:
    def raise_watermark(self: Primary) -> None:
        self.granted_epoch = self.epoch
        original(self)

    original = Primary.raise_watermark
    patch(Primary, "raise_watermark", raise_watermark)


def clocks_drift_beyond_the_guard(patch: Patch) -> None:
    def rate(self: World, name: str, peers: list[str]) -> Any:
        node = original(self, name, peers)
        node.rate = 1.3 if name == "b" else 0.7
        return node

    original = World._node
    patch(World, "_node", rate)


def one_acknowledgement_is_enough(patch: Patch) -> None:
    def raise_watermark(self: Primary) -> None:
        counting = [each for each in self.feeds.values() if each.counts]
        if self.durability != "solo" and counting and self.granted_epoch == self.epoch:
            lsn = max(each.acked_lsn for each in counting)
            self.watermark = max(self.watermark, lsn if lsn >= self._epoch_lsn else 0)
        else:
            original(self)

    original = Primary.raise_watermark
    patch(Primary, "raise_watermark", raise_watermark)


def lost_backup_left_out_in_the_same_epoch(patch: Patch) -> None:
    def begin(self: Primary, reason: str) -> Any:
        counting = {each.node for each in self.feeds.values() if each.counts}
        if not counting:
            return original(self, reason)
        self._sync_set = counting
        self.recount()
        return []

    original = Primary._begin_epoch
    patch(Primary, "_begin_epoch", begin)


def lost_backup_not_left_out_when_another_joins(patch: Patch) -> None:
    patch(Primary, "_all_here", lambda self: True)


def witness_asked_before_the_others_know(patch: Patch) -> None:
    def ask(self: Primary) -> Any:
        for each in self.feeds.values():
            each.heard_epoch = self.epoch
        return original(self)

    original = Primary._ask_witness
    patch(Primary, "_ask_witness", ask)


def claim_of_the_old_epoch_alone(patch: Patch) -> None:
    def accept(self: Backup, message: Any, now_ns: int) -> Any:
        before = self.sync_epochs
        actions = _accept(self, message, now_ns)
        if before and isinstance(message, backup.Sync) and self.state is State.IN_SYNC:
            self.sync_epochs = before
        return actions

    patch(Backup, "_accept", accept)


def resent_before_its_records_are_here(patch: Patch) -> None:
    original = Unsent.left
    patch(Unsent, "left", lambda self, lsn, asked, now_ns: original(self, 1 << 62, asked, now_ns))


def resent_in_another_order(patch: Patch) -> None:
    def left(self: Unsent, lsn: int, asked: Any, now_ns: int) -> Any:
        made, taken = original(self, lsn, asked, now_ns)
        return list(reversed(made)), taken

    original = Unsent.left
    patch(Unsent, "left", left)


def resumed_in_another_order(patch: Patch) -> None:
    def left(self: Unsent, lsn: int, asked: Any, now_ns: int) -> Any:
        made, taken = original(self, lsn, asked, now_ns)
        return made, list(reversed(taken))

    original = Unsent.left
    patch(Unsent, "left", left)


def revocations_not_told(patch: Patch) -> None:
    patch(Cores, "tell_revocations", lambda self: None)


def repeated_reply_taken_for_a_new_one(patch: Patch) -> None:
    for message in Office.messages.values():
        patch(message, "decode_reply", lambda reply, decode=message.decode_reply: (VALUE, decode(reply)[1]))


def a_way_for_traffic_not_missed(patch: Patch) -> None:
    """The liveness of links: who leads has in the end as many ports with a link as any other."""
    patch(Backup, "_compare_links", lambda self, now_ns: [])


def links_of_the_primary_not_told(patch: Patch) -> None:
    def beat(self: Feed, now_ns: int, pause_ms: int = 0) -> Any:
        down, self.primary.links_down = self.primary.links_down, 0
        actions = original(self, now_ns, pause_ms)
        self.primary.links_down = down
        return actions

    original = Feed.beat
    patch(Feed, "beat", beat)


def asks_of_handlers_that_ended_not_counted(patch: Patch) -> None:
    def flow(self: Replica, key: bytes) -> FlowBody | None:
        saved = self.flows.get(key)
        return FlowBody.decode(saved) if saved is not None else None

    original = Cores.applied
    patch(Replica, "flow", flow)
    patch(
        Cores, "applied", lambda self, bodies: original(self, [body for body in bodies if not isinstance(body, Asked)])
    )


def flows_that_have_asked_not_saved(patch: Patch) -> None:
    patch(simulated, "SETTLE_NS", 1 << 62)


def flows_that_were_closing_live_on(patch: Patch) -> None:
    patch(Replica, "closing", lambda self: iter(()))


def edits_not_restored(patch: Patch) -> None:
    def join(self: StreamActor) -> Stream:
        stream = self._stream = Stream(self.inline, self.verify_checksums)
        if self.stream_joined:
            stream.resume()
        self.stream_joined = True
        return stream

    patch(StreamActor, "_join", join)


def edits_not_logged(patch: Patch) -> None:
    def pass_on(self: StreamActor, packet: Packet) -> Verdict:
        dirty = self._is_dirty()
        verdict = original(self, packet)
        self._set_dirty(dirty)  # what leaves waits for the asks alone
        return verdict

    original = StreamActor._pass_on
    patch(StreamActor, "_pass_on", pass_on)


def reassembly_goes_on_blindly(patch: Patch) -> None:
    def join(self: StreamActor) -> Stream:
        self.stream_joined = False
        return original(self)

    original = StreamActor._join
    patch(StreamActor, "_join", join)


def members_not_restored(patch: Patch) -> None:
    original = ChainActor._member
    patch(ChainActor, "_member", lambda self, part, state: original(self, part, None))


THREE = [
    one_acknowledgement_is_enough,
    lost_backup_left_out_in_the_same_epoch,
    lost_backup_not_left_out_when_another_joins,
    witness_asked_before_the_others_know,
    claim_of_the_old_epoch_alone,
]
"""Found where a primary has two backups."""

WITNESSED = [
    lease_ignored,
    lease_counted_from_the_answer,
    lease_taken_without_waiting,
    claim_of_any_epoch,
    denied_epoch_forgotten,
    commits_alone_without_a_grant,
    clocks_drift_beyond_the_guard,
]
"""Found where there is a witness, which they take the sense from."""

STREAMED = [edits_not_restored, edits_not_logged, reassembly_goes_on_blindly]
"""Found where streams are simulated."""

CHAINED = [members_not_restored]
"""Found where a chain is simulated."""

RUSHED = [
    resent_before_its_records_are_here,
    resumed_in_another_order,
    revocations_not_told,
    repeated_reply_taken_for_a_new_one,
]
"""Found where traffic comes in rushes, a little at a time, or offloads are revoked."""

LINKED = [a_way_for_traffic_not_missed, links_of_the_primary_not_told]
"""Found where ports lose their links."""

MUTATIONS = [
    *THREE,
    *LINKED,
    *WITNESSED,
    epoch_told_before_it_is_synced,
    output_released_early,
    watermark_not_frozen_while_joining,
    acknowledged_before_applied,
    acknowledged_as_durable_before_synced,
    takes_over_without_being_in_sync,
    takeover_in_the_same_term,
    follower_launched_as_if_it_had_led,
    higher_epoch_ignored,
    fenced_goes_on_emitting,
    asks_not_deduplicated,
    asks_of_handlers_that_ended_not_counted,
    flows_that_have_asked_not_saved,
    flows_that_were_closing_live_on,
    snapshot_without_recorded_replies,
    log_cut_below_the_fork,
    diverged_log_followed,
    flows_not_restored_on_the_backup,
    restored_core_does_not_wait,
    goes_on_alone_in_the_same_epoch,
    refusal_tells_no_epoch,
    resent_in_another_order,
    *RUSHED,
    *STREAMED,
    *CHAINED,
]


FOUND_LAST = {
    a_way_for_traffic_not_missed: 199,
    links_of_the_primary_not_told: 199,
    lost_backup_not_left_out_when_another_joins: 94,
    lost_backup_left_out_in_the_same_epoch: 144,
    witness_asked_before_the_others_know: 127,
    denied_epoch_forgotten: 142,
    epoch_told_before_it_is_synced: 180,
    follower_launched_as_if_it_had_led: 63,
    goes_on_alone_in_the_same_epoch: 446,
    resent_before_its_records_are_here: 110,
    asks_of_handlers_that_ended_not_counted: 490,
    flows_that_were_closing_live_on: 54,
    repeated_reply_taken_for_a_new_one: 142,
}
"""Bugs that few seeds show, and one that does: it is tried first. Elsewhere, once courses have changed."""
