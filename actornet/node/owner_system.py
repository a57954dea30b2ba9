"""The owner system's process: it hosts the owners, gives every message its LSN, writes the log, talks to the peer.

One loop does everything in turn: requests of the cores are executed and answered, what they logged is committed in one
transaction and sent to the backup, acknowledgements move the watermark, and the cores are told how far it has come (G3).
On a backup the same loop applies the primary's records instead, and hands each flow to the core that would serve it, so
that at a takeover nothing is left to do but to begin a new epoch (G6).
"""

from __future__ import annotations

import gc
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

import msgspec
import structlog

from actornet.engine.asks import ask_reply, is_ask, push_reply
from actornet.engine.five_tuple import FiveTuple, flow_key
from actornet.engine.ring import ACTIVE, FENCED, PASSIVE, Ring
from actornet.engine.wire import rss_core
from actornet.errors import ActornetError, FencedError, LinkError, LogError, NodeError
from actornet.flow import FlowActor
from actornet.journal import Journal, fingerprint, path_of
from actornet.limits import (
    HANDOVER_S,
    HEARTBEAT_MS,
    LOG_SYNC_S,
    OWNER_BUSY_MS,
    OWNER_REST_US,
    REPLY_BACKLOG_MAX,
    REQUESTS_PER_TURN,
    WORKER_STOP_S,
)
from actornet.log.record import CloseBody, ControlBody, FlowBody, decode
from actornet.log.store import Log
from actornet.node import exchange
from actornet.node.exchange import (
    Answer,
    Attach,
    Attached,
    CloseRequest,
    Detach,
    Forget,
    Redirect,
    Request,
    Restore,
    Resume,
    SaveRequest,
)
from actornet.node.fabric import Fabric, FabricSpec
from actornet.node.link import LinkClient, LinkServer
from actornet.node.network_function import load_nf
from actornet.node.thread import leave_sockets, own_descriptors, run_first
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

OWNER_PID_COUNTER = 31
"""The last word of the owner system's counter block: its process."""

NO_PRIMARY = ("key", "version", "garbage")
"""Counters of a link that say: what answers there is not this deployment's primary."""

NEVER = 1 << 30

FlowKey = tuple[FiveTuple, int]


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


class CoreLine:
    """The owner system's end of one core's rings.

    `pending` has (LSN, sequence number) of the core's requests above the watermark, in order, an entry per turn. What is
    sent is announced by `flush`: to wake a core costs more than to send it a message.
    """

    def __init__(self, requests: Ring, replies: Ring) -> None:
        self.requests = requests
        self.replies = replies
        self.sequence = 0
        self.pending: deque[tuple[int, int]] = deque()
        self.backlog: deque[bytes] = deque()
        self.detached = False
        self._unannounced = False

    def send(self, answer: Answer) -> None:
        """Into the reply ring, or, while that is full, behind it."""
        self._send(exchange.encode(answer))

    def reply(self, reply: bytes) -> None:
        """The reply to the core's next request, which is an ask."""
        self.sequence += 1
        self._unannounced = True
        if self.backlog or not push_reply(self.replies, self.sequence, reply):
            self._send(ask_reply(self.sequence, reply))

    def _send(self, data: bytes) -> None:
        self._unannounced = True
        if self.backlog or not self.replies.push(data):
            self.backlog.append(data)
            if len(self.backlog) > REPLY_BACKLOG_MAX:
                raise NodeError(
                    f"ring {self.replies.name}: {REPLY_BACKLOG_MAX} messages wait for the core; it does not keep up"
                )

    def flush(self) -> None:
        """Wake the core if something was sent since the last time."""
        if self._unannounced:
            while self.backlog and self.replies.push(self.backlog[0]):
                self.backlog.popleft()
            self._unannounced = bool(self.backlog)
            self.replies.wake()


class LogSyncer:
    """Brings the log to the disk now and then, off the owner system's loop; an I/O error there ends the node."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._due = threading.Event()
        self._ended = False
        self.error: LogError | None = None
        self._thread = threading.Thread(target=self._run, name="log-sync", daemon=True)
        self._thread.start()

    def soon(self) -> None:
        self._due.set()

    def close(self) -> None:
        self._ended = True
        self._due.set()
        self._thread.join()

    def _run(self) -> None:
        leave_sockets()  # the kernel does not end a thread that waits for the disk
        while not self._ended and self.error is None:
            self._due.wait(LOG_SYNC_S)
            self._due.clear()
            try:
                self._log.sync()
            except LogError as error:
                self.error = error  # never tried again: after a failed sync the kernel may have dropped the pages


class OwnerSystem:
    """One node's owner system, in either role."""

    def __init__(self, spec: OwnerSpec, key: bytes, stop: threading.Event) -> None:
        self.spec = spec
        self.stop = stop
        self.key = key
        self.nf, self.settings = load_nf(spec.nf, spec.settings)
        self.fabric = Fabric.attach(spec.fabric)
        self.page = self.fabric.page
        self.page.owner_count(OWNER_PID_COUNTER, os.getpid())
        self.lines = [
            CoreLine(requests, replies)
            for requests, replies in zip(self.fabric.requests, self.fabric.replies, strict=True)
        ]
        self.log = Log(spec.log, name=spec.name, nf=path_of(self.nf))
        self.journal = Journal(self.log)
        self.syncer = LogSyncer(self.log)
        self.identity = Identity(spec.name, path_of(self.nf), fingerprint(self.nf))
        self.link: LinkServer | LinkClient | None = None
        self.machine: Primary | Backup
        self.takeover: dict[str, Any] | None = None
        self._ending: str | None = None
        self._leaving = False
        self._failure: Exception | None = None
        self._was_welcome = False
        self._disconnected = ""
        self._rested_ns = time.monotonic_ns()
        self._redirects: dict[FlowKey, list[tuple[FiveTuple, int, int]]] = {}
        self._commands: deque[tuple[str, dict[str, Any], Future[Any]]] = deque()
        self._epoll = select.epoll()
        for line in self.lines:
            self._epoll.register(line.requests.fileno(), select.EPOLLIN)

    # -- life -------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Take up the role; on return the cores may attach."""
        for body in self.journal.replica.flows.values():
            self._redirect(body)
        if self.spec.role == "primary":
            self._lead(epoch_going_on(max(self.journal.epoch, self.log.epoch)), "started", takeover=False)
            self._listen()
        else:
            self.page.role = PASSIVE
            self.page.epoch = self.journal.epoch
            self._follow()
            if self.spec.link is None:
                raise LinkError("[backup] has no `link`: name the address at which the primary listens")
            self.link = LinkClient(self.spec.link, self.key, self._epoll)

    def run(self, ready: Callable[[], None]) -> None:
        """The loop, until the node stops. Raises what ends the node in error."""
        try:
            self.start()
            ready()
            while self._ending is None:
                self._turn()
                if self.stop.is_set() or all(line.detached for line in self.lines):
                    self._leave()
        except ActornetError as error:
            self._fail(error)
        finally:
            self._close()
        if self._failure is not None:
            raise self._failure
        if not self._leaving:
            raise NodeError(f"the node stops: {self._ending}")
        self.stop.wait(WORKER_STOP_S)

    def _turn(self) -> None:
        """Wait until there is something to do, for a heartbeat's time at most, and do it."""
        begun_ns = time.monotonic_ns()
        if begun_ns - self._rested_ns > OWNER_BUSY_MS * 1_000_000:
            time.sleep(OWNER_REST_US / 1e6)
            self._rested_ns = time.monotonic_ns()
        elif all(line.requests.sleep_begin() for line in self.lines):
            self._epoll.poll(HEARTBEAT_MS / 1000)
            now_ns = time.monotonic_ns()
            if now_ns - begun_ns > OWNER_REST_US * 1000:
                self._rested_ns = now_ns
        for line in self.lines:
            line.requests.sleep_end()
        self._step()

    def _step(self) -> None:
        """Everything that waits, once."""
        self.page.owner_beat += 1
        for core, line in enumerate(self.lines):
            if not line.backlog and (messages := line.requests.pop_many(REQUESTS_PER_TURN)):
                self._serve(core, line, messages)
            line.flush()
        self._commit()
        self._hear_peer()
        self._obey()
        self._act(self.machine.tick(time.monotonic_ns()))
        if self.link is not None:
            self.link.flush()
        self._publish()
        for line in self.lines:
            line.flush()
        if self.syncer.error is not None:
            raise self.syncer.error

    # -- requests of the cores --------------------------------------------------------------------------------------

    def _serve(self, core: int, line: CoreLine, messages: list[bytes]) -> None:
        ask, now_ns = self.journal.ask, time.time_ns()
        for message in messages:
            if is_ask(message):
                line.reply(ask(core, message, now_ns))
            else:
                self._request(core, line, exchange.decode_request(message), now_ns)
        line.pending.append((self.journal.lsn, line.sequence))

    def _request(self, core: int, line: CoreLine, request: Request, now_ns: int) -> None:
        match request:
            case SaveRequest():
                self.journal.execute(request.body, core, now_ns)
                line.sequence += 1
                self._redirect(request.body)
            case CloseRequest():
                self._redirect_end((request.flow, request.port))
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
        line.sequence = 0
        line.detached = False
        line.pending.clear()
        line.backlog.clear()
        self.page.set_committed(core, 0)
        flows = 0
        for body in self.journal.replica.flows.values():
            if self._home(body.flow) == core:
                line.send(Restore(body))
                flows += 1
            for key, port, home in self._redirects.get((body.flow, body.port), ()):
                if home == core:
                    line.send(Redirect(key, port, self._home(body.flow)))
        line.send(Attached(pid, (self.journal.lsn << 20) + 1))
        if self.page.role == ACTIVE:
            self._resume(core)
        line.flush()
        _log.info("core attached", core=core, pid=pid, flows=flows)

    # -- flows and the cores that serve them ------------------------------------------------------------------------

    def _home(self, flow: FiveTuple) -> int:
        return rss_core(flow, len(self.lines)) if len(self.lines) > 1 else 0

    def _resume(self, core: int) -> None:
        """Have this core's flows that asked and were not saved begin anew."""
        for flow, port, packet in self.journal.replica.orphans():
            if self._home(flow) == core:
                self.lines[core].send(Resume(port, packet))

    def _redirect(self, body: FlowBody) -> None:
        """Where a bound key's packets come to another core than their flow's, tell that core, before they can come."""
        if len(self.lines) == 1:
            return
        flow_core = self._home(body.flow)
        keys = [(key, self.spec.ports.index(port), self._home(key)) for key, port in FlowActor.bound_keys(body.state)]
        keys = [entry for entry in keys if entry[2] != flow_core]
        known = self._redirects.pop((body.flow, body.port), [])
        for key, port, home in known:
            if (key, port, home) not in keys:
                self.lines[home].send(Redirect(key, port, -1))
        for key, port, home in keys:
            if (key, port, home) not in known:
                self.lines[home].send(Redirect(key, port, flow_core))
        if keys:
            self._redirects[body.flow, body.port] = keys

    def _redirect_end(self, flow: FlowKey) -> None:
        for key, port, home in self._redirects.pop(flow, ()):
            self.lines[home].send(Redirect(key, port, -1))

    # -- log, watermark ---------------------------------------------------------------------------------------------

    def _commit(self) -> None:
        batch = self.journal.commit()
        if batch and isinstance(self.machine, Primary):
            self._act(self.machine.logged([data for _, data in batch], time.monotonic_ns()))
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
                line.replies.wake()

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
            now_ns=time.monotonic_ns(),
        )
        self._begin_epoch(epoch, reason)
        self.page.role = ACTIVE
        for core, line in enumerate(self.lines):
            self._resume(core)
            line.flush()
            line.replies.wake()
        self._publish()

    def _begin_epoch(self, epoch: int, reason: str) -> None:
        self.journal.begin_epoch(
            epoch, f"{self.spec.name}/{self.spec.role}", self.nf, self.settings, reason, time.time_ns()
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
            now_ns=time.monotonic_ns(),
        )

    def _listen(self) -> None:
        if self.spec.listen is None:
            return
        try:
            self.link = LinkServer(self.spec.listen, self.key, self._epoll)
        except LinkError as error:
            raise LinkError(f"{error}: set `link`, or `listen`, to a free address of this host") from None

    def _promote(self, action: Promote) -> None:
        """Take over: the flows are in the cores' tables and the owners' states are current (G6)."""
        began_ns = time.monotonic_ns()
        waiting = sum(len(line.backlog) for line in self.lines)
        self._lead(action.epoch, action.reason, takeover=True)
        self.takeover = {
            "reason": action.reason,
            "epoch": action.epoch,
            "lsn": self.journal.lsn,
            "flows": len(self.journal.replica.flows),
            "records_replayed": 0,
            "flows_waiting_for_cores": waiting,
            "took_us": (time.monotonic_ns() - began_ns) // 1000,
        }
        _log.warning("took over", **self.takeover)
        if self.link is not None:
            self.link.close()
            self.link = None
        try:
            self._listen()
        except LinkError as error:
            _log.warning("no new backup can join here", error=str(error))

    # -- the peer ---------------------------------------------------------------------------------------------------

    def _hear_peer(self) -> None:
        if self.link is None:
            return
        link = self.link
        for event in link.events(time.monotonic_ns()):
            now_ns = time.monotonic_ns()
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

    def _note_disconnected(self, link: LinkServer | LinkClient, reason: str) -> None:
        """A backup that waits for its primary says why, once; what waiting cannot mend ends it."""
        if not isinstance(self.machine, Backup) or self._was_welcome:
            return
        if any(link.counters[counter] for counter in NO_PRIMARY):
            self._fail(LinkError(f"the primary at {self.spec.link} cannot be followed: {reason}"))
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
        now_ns = time.monotonic_ns()
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
                    line.replies.wake()
                with suppress(FencedError):
                    self.log.epoch_raise(action.epoch)
                self._fail(FencedError(f"epoch {action.epoch} exists: this node is no longer the primary"))
            case Refused():
                _log.error("the primary refuses this backup", reason=action.reason)
                if not self._was_welcome:
                    self._fail(LinkError(f"the primary at {self.spec.link} refuses this backup: {action.reason}"))
            case Rewind():
                self._rewind(action)
            case StopNode():
                if self.page.role == ACTIVE:
                    self.page.role = PASSIVE
                self._ending = self._ending or action.reason
                _log.info("stopping", reason=action.reason)

    def _fail(self, error: Exception) -> None:
        self._failure = self._failure or error
        self._ending = self._ending or str(error)

    # -- following --------------------------------------------------------------------------------------------------

    def _apply(self, action: Apply) -> None:
        machine = self.machine
        assert isinstance(machine, Backup)
        flows = self.journal.replica.flows
        for body in self.journal.apply(action.records):
            match body:
                case FlowBody() if flows.get(flow_key(body.flow, body.port)) is body:
                    self.lines[self._home(body.flow)].send(Restore(body))
                    self._redirect(body)
                case CloseBody() if flow_key(body.flow, body.port) not in flows:
                    self._redirect_end((body.flow, body.port))
                    self.lines[self._home(body.flow)].send(Forget(body.flow, body.port))
        self.journal.commit()
        if self.spec.durability == "durable":
            self.log.sync()
            self._act(machine.durable(self.journal.lsn, time.monotonic_ns()))
        self.page.epoch = self.journal.epoch
        self._act(machine.applied(self.journal.lsn, time.monotonic_ns()))
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
            self._fail(LinkError(f"the primary at {self.spec.link} refuses this backup: {action.reason}"))
            return
        removed = self.log.truncate(action.fork_lsn)
        _log.warning("uncommitted records dropped", records=removed, after_lsn=action.fork_lsn)
        self._forget_flows()
        self.journal = Journal(self.log)
        self._restore_flows()
        self._follow()

    def _forget_flows(self) -> None:
        for body in self.journal.replica.flows.values():
            self._redirect_end((body.flow, body.port))
            self.lines[self._home(body.flow)].send(Forget(body.flow, body.port))

    def _restore_flows(self) -> None:
        for body in self.journal.replica.flows.values():
            self.lines[self._home(body.flow)].send(Restore(body))
            self._redirect(body)

    def _set_log_aside(self) -> None:
        epoch, name = self.log.epoch, self.log.name
        self.syncer.close()
        aside = self.log.set_aside()
        _log.warning("older log set aside", directory=str(aside))
        self.log = Log(self.spec.log, name=name, nf=path_of(self.nf))
        self.log.epoch_raise(epoch)
        self.journal.log = self.log
        self.syncer = LogSyncer(self.log)

    # -- operators --------------------------------------------------------------------------------------------------

    def command(self, command: str, arguments: dict[str, Any]) -> Any:
        """Called from the control thread: have the loop carry out a command, within a heartbeat, and answer."""
        answer: Future[Any] = Future()
        self._commands.append((command, arguments, answer))
        return answer.result(timeout=5)

    def _obey(self) -> None:
        while self._commands:
            command, arguments, answer = self._commands.popleft()
            try:
                answer.set_result(self._command(command, arguments))
            except Exception as error:
                answer.set_exception(error)

    def _command(self, command: str, arguments: dict[str, Any]) -> Any:
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

    # -- the end ----------------------------------------------------------------------------------------------------

    def _leave(self) -> None:
        """Log everything that cores still sent; then a backup in sync takes over (handover)."""
        self._leaving = True
        deadline = time.monotonic() + HANDOVER_S
        while any(len(line.requests) for line in self.lines) and time.monotonic() < deadline:
            self._step()
        if isinstance(self.machine, Primary) and self.page.role == ACTIVE:
            self.journal.execute(ControlBody("clean stop", ""), 0, time.time_ns())
            self._commit()
        if isinstance(self.machine, Primary):
            self._act(self.machine.stop(time.monotonic_ns()))
            while self._ending is None and time.monotonic() < deadline:
                self._publish()
                self._epoll.poll(HEARTBEAT_MS / 1000)
                self._hear_peer()
                self._act(self.machine.tick(time.monotonic_ns()))
                if self.link is not None:
                    self.link.flush()
        else:
            self._act(self.machine.stop())
        if self.page.role == ACTIVE:
            self.page.role = PASSIVE
        self._ending = self._ending or "stopped"

    def _close(self) -> None:
        if self.link is not None:
            self.link.flush()
            self.link.close()
        if self._ending is not None and self._failure is None:
            self.journal.save_snapshot()
        self.syncer.close()
        self.log.close()


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


def run(spec: OwnerSpec, stop: threading.Event, report: Any) -> None:
    """The owner system's data plane; see `actornet.node.plan.WorkerPlan`."""
    own_descriptors()
    run_first()
    system = OwnerSystem(spec, report.key, stop)
    report.on_status(system.status)
    report.on_command(system.command)
    # A full collection takes 0.2 us per flow, without any heartbeat; what lives long here is no garbage in cycles.
    gc.freeze()
    gc.set_threshold(*gc.get_threshold()[:2], NEVER)
    system.run(report.ready)
