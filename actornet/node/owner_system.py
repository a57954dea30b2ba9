"""The owner system: it hosts the owners, gives every message its LSN, writes the log, talks to the peer.

One step does everything in turn: requests of the cores are executed and answered, what they logged is committed in one
transaction and sent to the backup, acknowledgements move the watermark, and the cores are told how far it has come (G3).
On a backup the same step applies the primary's records instead, and hands each flow to the core that would serve it, so
that at a takeover nothing is left to do but to begin a new epoch (G6).

Nothing here waits, opens a file or reads a clock: that is the `environment`, which `owner_process` makes of the machine
and the simulator of a seed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

import msgspec
import structlog

from actornet.engine.asks import is_ask
from actornet.engine.five_tuple import flow_key
from actornet.engine.ring import ACTIVE, FENCED, PASSIVE
from actornet.errors import FencedError, LinkError, NodeError
from actornet.journal import Journal, fingerprint, path_of
from actornet.limits import HANDOVER_S, REQUESTS_PER_TURN
from actornet.log.record import CloseBody, ControlBody, FlowBody, decode
from actornet.log.store import Log
from actornet.node import exchange
from actornet.node.core_line import CoreLine
from actornet.node.environment import Environment, Link
from actornet.node.exchange import Attach, Attached, CloseRequest, Detach, Request, Resume, Revoked, SaveRequest
from actornet.node.fabric import FabricSpec
from actornet.node.network_function import load_nf
from actornet.node.placement import Placement
from actornet.replication.backup import Backup
from actornet.replication.primary import Primary
from actornet.replication.protocol import (
    Apply,
    Close,
    Compare,
    Durability,
    Fenced,
    Identity,
    InstallSnapshot,
    NewEpoch,
    Note,
    Position,
    Promote,
    Read,
    Refused,
    Remember,
    Rewind,
    Send,
    StopNode,
    TakeSnapshot,
    WithoutBackup,
    epoch_going_on,
    match,
)

_log = structlog.get_logger()

NO_PRIMARY = ("key", "version", "garbage")
"""Counters of a link that say: what answers there is not this deployment's primary."""


class OwnerSpec(msgspec.Struct, frozen=True):
    """What the owner system needs to know. A backup connects to `link`; whoever is primary listens at `listen`."""

    name: str
    role: str
    nf: str
    settings: dict[str, Any]
    ports: list[str]
    log: str
    link: str | None
    listen: str | None
    durability: Durability
    without_backup: WithoutBackup
    fabric: FabricSpec


class OwnerSystem:
    """One node's owner system, in either role: `start`, then `step` again and again until `ending`, then `close`."""

    def __init__(self, spec: OwnerSpec, environment: Environment) -> None:
        self.spec = spec
        self.environment = environment
        self.page = environment.page
        self.lines = environment.lines
        self.placement = Placement(self.lines, spec.ports)
        self.nf, self.settings = load_nf(spec.nf, spec.settings)
        self.log = environment.open_log(path_of(self.nf))
        self.journal = Journal(self.log, environment.random_bits)
        self._revocations = self.journal.replica.revocations
        self.syncer = environment.open_syncer(self.log)
        self.identity = Identity(spec.name, path_of(self.nf), fingerprint(self.nf))
        self.link: Link | None = None
        self.machine: Primary | Backup
        self.takeover: dict[str, Any] | None = None
        self.ending: str | None = None
        """Why the node stops, once it does; `failure` if that is an error, `left` if it was told to."""
        self.failure: Exception | None = None
        self.left = False
        self._left_until_ns = 0
        self._drained = False  # nothing of the cores is served any more
        self._was_welcome = False
        self._disconnected = ""

    # -- life -------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Take up the role; on return the cores may attach."""
        for body in self.journal.replica.flows.values():
            self.placement.redirect(body)
        if self.spec.role == "primary":
            self._lead(epoch_going_on(max(self.journal.epoch, self.log.epoch)), "started", takeover=False)
            self.link = self.environment.listen()
        else:
            self.page.role = PASSIVE
            self.page.epoch = self.journal.epoch
            self._follow()
            self.link = self.environment.dial()

    def step(self) -> None:
        """Everything that waits, once; at least every HEARTBEAT_MS. Raises what ends the node in error."""
        self.page.owner_beat += 1
        if not self._drained:
            for core, line in enumerate(self.lines):
                if not line.waiting and (messages := line.requests(REQUESTS_PER_TURN)):
                    self._serve(core, line, messages)
                line.flush()
            self._commit()
        self._hear_peer()
        self._act(self.machine.tick(self._now_ns()))
        if self.left:
            self._go_on_leaving()
        if self.link is not None:
            self.link.flush()
        self._publish()
        for line in self.lines:
            line.flush()
        if self.syncer.error is not None:
            raise self.syncer.error

    def leave(self) -> None:
        """Log everything that cores still sent, within HANDOVER_S; then a backup in sync takes over (handover)."""
        if not self.left:
            self.left = True
            self._left_until_ns = self._now_ns() + int(HANDOVER_S * 1e9)

    def _go_on_leaving(self) -> None:
        late = self._now_ns() >= self._left_until_ns
        if not self._drained and (late or not any(line.requested for line in self.lines)):
            self._drained = True
            if isinstance(self.machine, Primary) and self.page.role == ACTIVE:
                self.journal.execute(ControlBody("clean stop", ""), 0, self.environment.time_ns())
                self._commit()
            if isinstance(self.machine, Primary):
                self._act(self.machine.stop(self._now_ns()))
            else:
                self._act(self.machine.stop())
                self.ending = self.ending or "stopped"
        if late:
            self.ending = self.ending or "stopped"

    def fail(self, error: Exception) -> None:
        """This ends the node, unless something else has already."""
        self.failure = self.failure or error
        self.ending = self.ending or str(error)

    def close(self) -> None:
        """Let go of everything. Where all went well the next start begins with a snapshot of now."""
        if self.left and self.page.role == ACTIVE:
            self.page.role = PASSIVE
        if self.link is not None:
            self.link.flush()
            self.link.close()
        if self.ending is not None and self.failure is None:
            self.journal.save_snapshot()
        self.syncer.close()
        self.log.close()

    def _now_ns(self) -> int:
        return self.environment.monotonic_ns()

    # -- requests of the cores --------------------------------------------------------------------------------------

    def _serve(self, core: int, line: CoreLine, messages: list[bytes]) -> None:
        ask, now_ns = self.journal.ask, self.environment.time_ns()
        for message in messages:
            if is_ask(message):
                line.reply(ask(core, message, now_ns))
            else:
                self._request(core, line, exchange.decode_request(message), now_ns)
        line.pending.append((self.journal.lsn, line.sequence))
        self._tell_revocations()

    def _tell_revocations(self) -> None:
        """Tell the cores if an owner has revoked the offloads."""
        count = self.journal.replica.revocations
        if count != self._revocations:
            self._revocations = count
            for line in self.lines:
                line.send(Revoked(count))
                line.flush()

    def _request(self, core: int, line: CoreLine, request: Request, now_ns: int) -> None:
        match request:
            case SaveRequest():
                self.journal.execute(request.body, core, now_ns)
                line.sequence += 1
                self.placement.redirect(request.body)
            case CloseRequest():
                self.placement.redirect_end(request.flow, request.port)
                self.journal.execute(
                    CloseBody(request.flow, request.port, request.incarnation, request.reason), core, now_ns
                )
                line.sequence += 1
            case Attach():
                self._attach(core, line, request.pid)
            case Detach():
                line.detached = True

    def _attach(self, core: int, line: CoreLine, pid: int) -> None:
        """A core has (re)started: send its flows."""
        line.restart()
        self.page.set_committed(core, 0)
        line.send(Revoked(self.journal.replica.revocations))
        flows = self.placement.attach(core, self.journal.replica.flows.values())
        line.send(Attached(pid, (self.journal.lsn << 20) + 1))
        if self.page.role == ACTIVE:
            self._resume(core)
        line.flush()
        _log.info("core attached", core=core, pid=pid, flows=flows)

    def _resume(self, core: int) -> None:
        """Have this core's flows that asked and were not saved begin anew."""
        for flow, port, packet in self.journal.replica.orphans():
            if self.placement.home(flow) == core:
                self.lines[core].send(Resume(port, packet))

    # -- log, watermark ---------------------------------------------------------------------------------------------

    def _commit(self) -> None:
        batch = self.journal.commit()
        if batch and isinstance(self.machine, Primary):
            self._act(self.machine.logged([data for _, data in batch], self._now_ns()))
            if self.link is not None:
                self.link.flush()

    def _publish(self) -> None:
        """Tell the cores how far the watermark has come."""
        page = self.page
        page.lsn_logged = self.log.last_lsn
        page.lsn_applied = self.journal.lsn
        if not isinstance(self.machine, Primary) or page.role != ACTIVE:
            return
        page.watermark = watermark = self.machine.watermark
        for core, line in enumerate(self.lines):
            pending, committed = line.pending, 0
            while pending and pending[0][0] <= watermark:
                committed = pending.popleft()[1]
            if committed:
                page.set_committed(core, committed)
                line.wake()

    # -- roles ------------------------------------------------------------------------------------------------------

    def _lead(self, epoch: int, reason: str, *, takeover: bool) -> None:
        """Become the primary of `epoch`."""
        self.machine = Primary(
            self.identity,
            self.spec.durability,
            self.spec.without_backup,
            epoch=epoch,
            first_lsn=max(1, self.log.first_lsn or self.log.last_lsn + 1),
            logged_lsn=self.log.last_lsn,
            takeover=takeover,
            now_ns=self._now_ns(),
        )
        self._begin_epoch(epoch, reason)
        self.page.role = ACTIVE
        for core, line in enumerate(self.lines):
            self._resume(core)
            line.flush()
            line.wake()
        self._publish()

    def _begin_epoch(self, epoch: int, reason: str) -> None:
        self.journal.begin_epoch(
            epoch, f"{self.spec.name}/{self.spec.role}", self.nf, self.settings, reason, self.environment.time_ns()
        )
        self.page.epoch = epoch
        self._commit()
        self.syncer.soon()

    def _follow(self) -> None:
        self.machine = Backup(
            self.identity,
            self.spec.durability,
            epoch=max(self.journal.epoch, self.log.epoch),
            durable_lsn=0,
            now_ns=self._now_ns(),
        )

    def _promote(self, action: Promote) -> None:
        """Take over: the flows are in the cores' tables and the owners' states are current (G6)."""
        began_ns = self._now_ns()
        waiting = sum(line.waiting for line in self.lines)
        self._lead(action.epoch, action.reason, takeover=True)
        self.takeover = {
            "reason": action.reason,
            "epoch": action.epoch,
            "lsn": self.journal.lsn,
            "flows": len(self.journal.replica.flows),
            "records_replayed": 0,
            "flows_waiting_for_cores": waiting,
            "took_us": (self._now_ns() - began_ns) // 1000,
        }
        _log.warning("took over", **self.takeover)
        if self.link is not None:
            self.link.close()
            self.link = None
        try:
            self.link = self.environment.listen()
        except LinkError as error:
            _log.warning("no new backup can join here", error=str(error))

    # -- the peer ---------------------------------------------------------------------------------------------------

    def _hear_peer(self) -> None:
        if self.link is None:
            return
        link = self.link
        for event in link.events(self._now_ns()):
            now_ns = self._now_ns()
            if event.kind == "connected":
                self._act(
                    self.machine.connected(now_ns)
                    if isinstance(self.machine, Primary)
                    else self.machine.connected(self._end(), now_ns)
                )
            elif event.kind == "disconnected":
                self._act(self.machine.disconnected(event.reason, now_ns))
                self._note_disconnected(link, event.reason)
            else:
                self._act(self.machine.receive(event.message, now_ns))
            if self.link is not link:
                return  # the role changed

    def _note_disconnected(self, link: Link, reason: str) -> None:
        """A backup that waits for its primary says why, once; what waiting cannot mend ends it."""
        if not isinstance(self.machine, Backup) or self._was_welcome:
            return
        if any(link.counters[counter] for counter in NO_PRIMARY):
            self.fail(LinkError(f"the primary at {self.spec.link} cannot be followed: {reason}"))
        elif reason != self._disconnected:
            self._disconnected = reason
            _log.info("waiting for the primary", at=self.spec.link, reason=reason)

    def _end(self) -> Position:
        lsn = self.log.last_lsn
        return Position(lsn, self.log.last_chain, self.journal.epoch) if lsn else Position()

    def _position(self, lsn: int) -> Position:
        record = decode(self.log.read(lsn), lsn)
        return Position(lsn, record.chain, record.epoch)

    def _act(self, actions: Iterable[Any]) -> None:
        """Carry out what the protocol decided, in its order."""
        for action in actions:
            self._carry_out(action)

    def _carry_out(self, action: Any) -> None:
        now_ns = self._now_ns()
        machine = self.machine
        match action:
            case Send():
                if self.link is not None:
                    self.link.send(action.message)
            case Close():
                if self.link is not None:
                    self.link.drop(action.reason)
            case Note():
                self._was_welcome |= action.event == "catching up"
                (_log.warning if action.alarm else _log.info)(action.event, detail=action.detail)
            case Apply():
                self._apply(action)
            case Compare() if isinstance(machine, Primary):
                found = match_log(action.end, self.log, self._position)
                self._act(machine.compared(found, action.end))
            case TakeSnapshot() if isinstance(machine, Primary):
                self._commit()
                lsn, chain, data = self.journal.snapshot()
                self._act(machine.snapshot(Position(lsn, chain, self.journal.epoch), data, now_ns))
            case Read() if isinstance(machine, Primary):
                self._act(machine.tail(read_batch(self.log, action), now_ns))
            case NewEpoch():
                self._begin_epoch(action.epoch, f"going on alone: {action.reason}")
                _log.warning("going on without a backup", epoch=action.epoch, reason=action.reason)
            case InstallSnapshot() if isinstance(machine, Backup):
                self._install(action)
                self._act(machine.applied(self.journal.lsn, now_ns))
            case Remember():
                self.log.epoch_raise(action.epoch)
            case Promote():
                self._promote(action)
            case Fenced():
                self.page.role = FENCED
                for line in self.lines:
                    line.wake()
                with suppress(FencedError):
                    self.log.epoch_raise(action.epoch)
                self.fail(FencedError(f"epoch {action.epoch} exists: this node is no longer the primary"))
            case Refused():
                _log.error("the primary refuses this backup", reason=action.reason)
                if not self._was_welcome:
                    self.fail(LinkError(f"the primary at {self.spec.link} refuses this backup: {action.reason}"))
            case Rewind():
                self._rewind(action)
            case StopNode():
                if self.page.role == ACTIVE:
                    self.page.role = PASSIVE
                self.ending = self.ending or action.reason
                _log.info("stopping", reason=action.reason)

    # -- following --------------------------------------------------------------------------------------------------

    def _apply(self, action: Apply) -> None:
        machine = self.machine
        assert isinstance(machine, Backup)
        flows = self.journal.replica.flows
        bodies = self.journal.apply(action.records)
        self._tell_revocations()
        for body in bodies:
            match body:
                case FlowBody() if flows.get(flow_key(body.flow, body.port)) is body:
                    self.placement.restore(body)
                case CloseBody() if flow_key(body.flow, body.port) not in flows:
                    self.placement.forget(body.flow, body.port)
        self.journal.commit()
        if self.spec.durability == "durable":
            self.log.sync()
            self._act(machine.durable(self.journal.lsn, self._now_ns()))
        self.page.epoch = self.journal.epoch
        self._act(machine.applied(self.journal.lsn, self._now_ns()))
        if self.link is not None:
            self.link.flush()

    def _install(self, action: InstallSnapshot) -> None:
        """The primary's whole state in place of our own, which is older: that log is set aside, not overwritten (G8)."""
        self._forget_flows()
        if self.log.last_lsn:
            self._set_log_aside()
        self.journal.install(action.end.lsn, action.end.chain, action.data)
        self._restore_flows()

    def _rewind(self, action: Rewind) -> None:
        """Drop what this node logged as primary and nobody else got; it was never committed."""
        if self.log.last_lsn < action.fork_lsn or self._position(action.fork_lsn).chain != action.fork_chain:
            self.fail(LinkError(f"the primary at {self.spec.link} refuses this backup: {action.reason}"))
            return
        removed = self.log.truncate(action.fork_lsn)
        _log.warning("uncommitted records dropped", records=removed, after_lsn=action.fork_lsn)
        self._forget_flows()
        self.journal = Journal(self.log, self.environment.random_bits)
        self._restore_flows()
        self._follow()

    def _forget_flows(self) -> None:
        for body in self.journal.replica.flows.values():
            self.placement.forget(body.flow, body.port)

    def _restore_flows(self) -> None:
        self._tell_revocations()
        for body in self.journal.replica.flows.values():
            self.placement.restore(body)

    def _set_log_aside(self) -> None:
        epoch = self.log.epoch
        self.syncer.close()
        aside = self.log.set_aside()
        _log.warning("older log set aside", directory=str(aside))
        self.log = self.environment.open_log(path_of(self.nf))
        self.log.epoch_raise(epoch)
        self.journal.log = self.log
        self.syncer = self.environment.open_syncer(self.log)

    # -- operators --------------------------------------------------------------------------------------------------

    def command(self, command: str, arguments: dict[str, Any]) -> Any:
        """Carry out an operator's command, between two steps. NodeError: it is not known, or not possible now."""
        if command != "promote":
            raise NodeError(f"the owner system knows no command {command!r}")
        if isinstance(self.machine, Primary):
            raise NodeError("this node is the primary already")
        actions = self.machine.promote(force=bool(arguments.get("force")))
        for action in actions:
            if isinstance(action, Refused):
                raise NodeError(action.reason)
        self._act(actions)
        return self.takeover

    def status(self) -> dict[str, Any]:
        """Called from the control thread."""
        machine, page = self.machine, self.page
        primary = isinstance(machine, Primary)
        return {
            "role": "primary" if primary else "backup",
            "state": machine.state.value,
            "epoch": page.epoch,
            "lsn": self.journal.lsn,
            "logged_lsn": page.lsn_logged,
            "watermark": page.watermark if primary else None,
            "lag_records": machine.lag,
            "durability": self.spec.durability,
            "without_backup": self.spec.without_backup,
            "flows": len(self.journal.replica.flows),
            "owners": sorted(self.journal.replica.owners),
            "takeover": self.takeover,
            "link": self._link_status(),
        }

    def _link_status(self) -> dict[str, Any] | None:
        link = self.link
        if link is None:
            return None
        counts = {name: count for name, count in link.counters.items() if count}
        return {"address": link.address, "peer": link.peer if link.connected else None, **counts}


def match_log(end: Position, log: Log, position: Callable[[int], Position]) -> Any:
    """Where a backup's log stands towards this one."""
    return match(end, max(1, log.first_lsn), log.last_lsn, position)


def read_batch(log: Log, action: Read) -> list[bytes]:
    """The records that the protocol wants to send next, no more than fit into a batch."""
    records: list[bytes] = []
    size = 0
    for _, data in log.scan(action.first_lsn, action.last_lsn):
        if records and size + len(data) > action.bytes_max:
            break
        records.append(data)
        size += len(data)
    return records
