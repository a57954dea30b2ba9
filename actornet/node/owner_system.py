"""The owner system: it hosts the owners, gives every message its LSN, writes the log, talks to the peer.

One step does everything in turn: requests of the cores are executed and answered, what they logged is committed in one
transaction and sent to the backup, acknowledgements move the watermark, and the cores are told how far it has come (G3).
On a backup the same step applies the primary's records instead, and hands each flow to the core that would serve it, so
that at a takeover nothing is left to do but to begin a new epoch (G6).

Nothing here waits, opens a file or reads a clock: that is the `environment`, which `owner_process` makes of the machine
and the simulator of a seed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import msgspec
import structlog

from actornet.engine.ring import ACTIVE, FENCED, PASSIVE
from actornet.errors import (
    DivergenceError,
    FencedError,
    LinkError,
    LogDamagedError,
    StateError,
)
from actornet.journal import Journal, fingerprint, path_of
from actornet.limits import (
    ALERT_US,
    HANDOVER_S,
    HEARTBEAT_MS,
    LEASE_MS_DEFAULT,
    LINKS_LOOK_MS,
    LOG_KEEP_RECORDS_DEFAULT,
    OWNER_CALM_MS,
    OWNER_IDLE_MS,
    REQUESTS_PER_TURN,
    SILENCE_MS_DEFAULT,
)
from actornet.log.record import ControlBody, EpochBody, decode
from actornet.log.store import Log
from actornet.node.calm import Calm
from actornet.node.catch_up import CatchUp
from actornet.node.cores import Cores
from actornet.node.environment import Environment, Link
from actornet.node.fabric import FabricSpec
from actornet.node.following import Following
from actornet.node.leadership import Leadership
from actornet.node.network_function import load_nf
from actornet.node.operators import Operators
from actornet.node.owner_status import owner_status
from actornet.node.upkeep import Upkeep
from actornet.node.witness import OPEN, EtcdAccess
from actornet.replication.backup import Backup
from actornet.replication.messages import Fence
from actornet.replication.primary import Primary
from actornet.replication.protocol import (
    Adopt,
    Apply,
    Claim,
    Close,
    Compare,
    Durability,
    Fenced,
    Identity,
    InstallSnapshot,
    Keep,
    Learn,
    Leave,
    NewEpoch,
    Note,
    Position,
    Promote,
    Read,
    Refused,
    Remember,
    Rewind,
    Send,
    State,
    StopNode,
    TakeSnapshot,
    Unclaim,
    WithoutBackup,
    match,
)
from actornet.replication.unsent import Unsent

_log = structlog.get_logger()


_NOT_LOGGED = 1 << 62
"""More than the syncer will ever have done."""


class OwnerSpec(msgspec.Struct, frozen=True):
    """What the owner system needs to know. A backup connects to one of `links`; whoever is primary listens at `listen`.

    `node` says which of the deployment's this is, `peers` where the others listen when they lead. `witness`, `etcd` and
    `keep_records` as in the deployment file. `spins`: there are CPUs on which it takes nothing from a core when it looks for
    what is about to come. `keys_max`: how many flow keys its cores hold (0: not known). `interfaces`: those of the ports.
    `wire`: see `CoreSpec`. `cpu_latency_us`: for how long CPUs may take to wake while packets come; None: as they like.
    """

    name: str
    role: str
    node: str
    nf: str
    settings: dict[str, Any]
    ports: list[str]
    log: str
    links: list[str]
    listen: str | None
    durability: Durability
    without_backup: WithoutBackup
    fabric: FabricSpec
    peers: list[str] = []
    witness: str | None = None
    etcd: EtcdAccess = OPEN
    silence_ms: int = SILENCE_MS_DEFAULT
    lease_ms: int = LEASE_MS_DEFAULT
    keep_records: int = LOG_KEEP_RECORDS_DEFAULT
    spins: bool = True
    keys_max: int = 0
    interfaces: list[str] = []
    wire: int = 0
    cpu_latency_us: int | None = None


class OwnerSystem:
    """One node's owner system, in either role: `start`, then `step` again and again until `ending`, then `close`."""

    def __init__(self, spec: OwnerSpec, environment: Environment) -> None:
        self.spec = spec
        self.environment = environment
        self.events = _log.bind()  # a logger that is bound for each event takes longer than what it is to tell of
        self.page = environment.page
        self.nf, self.settings = load_nf(spec.nf, spec.settings)
        self.log, self.journal = self._open_log()
        self.cores = Cores(environment, self.nf, spec.ports, self.journal)
        self.upkeep = self._upkeep()
        self.syncer = environment.open_syncer(self.log)
        self.leadership = Leadership(self)
        self.following = Following(self)
        self.catch_up = CatchUp(self)
        self.operators = Operators(self)
        self.unsent = Unsent()
        self.identity = Identity(
            spec.name,
            path_of(self.nf),
            fingerprint(self.nf),
            self.log.history,
            tested=self.journal.tested,
            keys_max=spec.keys_max,
        )
        self.link: Link | None = None
        self.machine: Primary | Backup
        self.takeover: dict[str, Any] | None = None
        self.ending: str | None = None
        """Why the node stops, once it does; `failure` if that is an error, `left` if it was told to."""
        self.failure: Exception | None = None
        self.left = False
        self.wants_to_leave = ""
        """Why the node is to be stopped in order, cores first; its supervisor does that."""
        self._left_until_ns = 0
        self._links_due_ns = self._links_down = 0
        self._calm = Calm()
        self.rests = True
        """Nothing has come for a while: a primary's cores and log, as far as a backup knows its primary's."""
        self._served = False
        self._broken = False  # the link: its other end was closed, as a process' end does
        self.lingers = False
        """Flows just got their answers, and their records are about to come: the next step, due in LINGER_US at most, logs
        and sends both at once."""
        self.drained = False  # nothing of the cores is served any more
        self._begun = 0  # an epoch of which the peer has not been told: the syncer's number for it

    # -- life -------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Take up the role; on return the cores may attach."""
        if self.spec.role == "primary":
            self.page.role = PASSIVE
            self.following.begin()
            self.leadership.seek()
        else:
            self.page.role = PASSIVE
            self.page.epoch = self.journal.epoch
            self.following.begin()
            self.link = self.environment.dial()

    def step(self) -> None:
        """Everything that waits, once; again when something arrives, or at `due_ns`.

        Raises what ends the node in error.
        """
        self.page.owner_beat += 1
        self._served = False
        if not self.drained:
            asked = others = 0
            for core, line in enumerate(self.cores.lines):
                if not line.waiting and (messages := line.requests(REQUESTS_PER_TURN)):
                    asks, rest = self.cores.serve(core, messages)
                    asked, others = asked + asks, others + rest
                    self._served = True
                line.flush()
            self.lingers = bool(asked) and not others and not self.lingers
            if self.lingers:
                return
            self._send_ahead()
            self.commit()
        self._turn_cores()
        self._hear_peer()
        self.leadership.turn()
        self._look_at_links()
        self._look_for_calm()
        self.act(self.machine.tick(self.now_ns()))
        if isinstance(self.machine, Primary):
            self.act(self.machine.tell(self.cores.stations, self.now_ns()))
        if self.left:
            self._go_on_leaving()
        self._publish()
        for line in self.cores.lines:
            line.flush()
        self.catch_up.turn()
        self._keep_up()
        if self.link is not None:
            self.link.flush()
        if self.syncer.error is not None:
            raise self.syncer.error

    @property
    def expects(self) -> bool:
        """Whether something is due within microseconds: the backup's word that it has what was logged, or the record of
        a flow that has just got its answer."""
        waits = isinstance(self.machine, Primary) and self.machine.watermark < self.log.last_lsn
        return self._served or (waits and self.machine.state is State.IN_SYNC)

    @property
    def hastens(self) -> bool:
        """Whether the next step is due at once: a backup is to get more from log or state, or the node is about to leave."""
        return self.catch_up.busy or (self.left and not self.drained)

    @property
    def due_ns(self) -> int:
        """When the next step is due if nothing arrives."""
        now_ns = self.now_ns()
        soon_ns = now_ns + HEARTBEAT_MS * 1_000_000
        if self.left or self.leadership.busy or self.upkeep.busy or self.cores.busy:
            return soon_ns
        rest_ms = OWNER_CALM_MS if not isinstance(self.machine, Primary) or self.machine.calm else OWNER_IDLE_MS
        due_ns = now_ns + rest_ms * 1_000_000
        if (tick_ns := self.machine.due_ns(now_ns)) is not None:
            due_ns = min(due_ns, tick_ns)
        keeper = self.leadership.keeper
        if keeper is not None and (rest_ns := keeper.rest_ns(self.environment.boot_ns())) is not None:
            due_ns = min(due_ns, max(soon_ns, now_ns + rest_ns))
        return due_ns

    @property
    def hurries(self) -> bool:
        """Whether anybody waits for it: the cores of a primary, or the primary of a backup that has its state."""
        return self.machine.state not in (State.ABSENT, State.GREETING, State.SNAPSHOT) or isinstance(
            self.machine, Primary
        )

    def leave(self) -> None:
        """Log everything that cores still sent, within HANDOVER_S; then a backup in sync takes over (handover)."""
        if not self.left:
            self.left = True
            self._left_until_ns = self.now_ns() + int(HANDOVER_S * 1e9)

    def _go_on_leaving(self) -> None:
        late = self.now_ns() >= self._left_until_ns
        if not self.drained and (late or not any(line.requested for line in self.cores.lines)):
            self.drained = True
            if isinstance(self.machine, Primary) and self.page.role == ACTIVE:
                self.journal.execute(ControlBody("clean stop", ""), 0, self.environment.time_ns())
                self.commit()
            if isinstance(self.machine, Primary):
                self.act(self.machine.stop(self.now_ns()))
            else:
                self.act(self.machine.stop())
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
        self.leadership.close()
        if self.ending is not None and self.failure is None:
            try:
                self.journal.save_snapshot()
            except StateError as error:
                _log.error(
                    "no snapshot at the stop", detail=f"{error}; the next start reads the log from the last one on"
                )
        self.syncer.close()
        self.log.close()

    def _open_log(self) -> tuple[Log, Journal]:
        """The log and the state that it ends in. A backup's that proves wrong is set aside, to be filled anew (G8)."""
        opened = None
        try:
            opened = self.environment.open_log(path_of(self.nf))
            return opened, self.journal_of(opened)
        except (LogDamagedError, DivergenceError) as error:
            if opened is not None:
                opened.close()
            if self.spec.role == "primary":
                raise type(error)(
                    f"{error}. Nothing can be led from this log. If the other node has a good one, let that lead and "
                    "launch this node as its backup: the log is then set aside and filled anew"
                ) from error
            aside = self.environment.set_aside_log()
            _log.error("damaged log set aside", detail=str(error), directory=str(aside))
            opened = self.environment.open_log(path_of(self.nf))
            return opened, self.journal_of(opened)

    def journal_of(self, log: Log) -> Journal:
        code = fingerprint(self.nf)
        journal = Journal(log, self.environment.random_bits, code)
        if journal.tested:
            _log.warning("other code wrote the log, and this decides the same", was=journal.tested, code=code)
        return journal

    def now_ns(self) -> int:
        return self.environment.monotonic_ns()

    @contextmanager
    def unwatched(self) -> Iterator[None]:
        """For what takes as long as the state is large: the monitor takes no rest of a beat of 0 for a stall."""
        beat, self.page.owner_beat = self.page.owner_beat, 0
        try:
            yield
        finally:
            self.page.owner_beat = beat + 1

    def _look_at_links(self) -> None:
        now_ns = self.now_ns()
        if now_ns < self._links_due_ns or not self.cores.hold_flows:
            return  # cores that are not there say themselves what is wrong with a port
        self._links_due_ns = now_ns + LINKS_LOOK_MS * 1_000_000
        down = self.environment.links_down()
        if down != self._links_down:
            (_log.warning if down > self._links_down else _log.info)("ports without a link", count=down)
            self._links_down = down
        if down != self.machine.links_down:
            self.act(self.machine.links(down, now_ns))

    def _look_for_calm(self) -> None:
        now_ns = self.now_ns()
        if isinstance(self.machine, Primary) and self._calm.is_due(now_ns):
            self.machine.calm = self._calm.turn((self.log.last_lsn, self.cores.counters()), now_ns)
        if self.machine.calm != self.rests:
            self.rests = self.machine.calm
            self.environment.rest(self.rests)

    def _turn_cores(self) -> None:
        held = self.cores.hold_flows
        self.cores.turn()
        if self.cores.hold_flows and not held:
            self.following.cores_hold_flows()

    # -- log, watermark ---------------------------------------------------------------------------------------------

    def commit(self) -> None:
        batch = self.journal.commit()
        if batch and isinstance(self.machine, Primary):
            self.act(self.machine.logged([data for _, data in batch], self.now_ns()))

    def _send_ahead(self) -> None:
        """To the backups, while it is logged here: what was executed, and then of packets that wait, or have left since.

        Not where the epoch is to be on the disk before anybody hears of it.
        """
        machine, records = self.machine, self.journal.queued
        unsent, self.cores.unsent = self.cores.unsent, []
        if not isinstance(machine, Primary):
            return
        if records and not self._begun:
            self.act(machine.stream(records, self.now_ns()))
        if unsent:
            self.act(machine.unsent([(core, lsn, msgspec.Raw(told)) for core, lsn, told in unsent]))
        if self.link is not None:
            self.link.flush()

    def _publish(self) -> None:
        """Tell the cores how far the watermark has come."""
        page = self.page
        page.lsn_logged = self.log.last_lsn
        page.lsn_applied = self.journal.lsn
        if not isinstance(self.machine, Primary) or page.role != ACTIVE:
            page.followed = False
            return
        page.followed = self.machine.is_followed
        page.watermark = watermark = self.machine.watermark
        self.cores.publish(watermark)

    def _keep_up(self) -> None:
        leads = isinstance(self.machine, Primary) and self.page.role == ACTIVE and not self.drained
        needed_lsn = self.machine.needed_lsn if isinstance(self.machine, Primary) else self.journal.lsn
        try:
            if self.upkeep.turn(leads=leads, needed_lsn=needed_lsn):
                self.commit()
        except DivergenceError as error:
            self.following.resync(error)
        if leads:
            self.cores.balance()

    def state_replaced(self) -> None:
        """The journal's state is another one."""
        self.upkeep = self._upkeep()
        self.cores.restore_flows(self.journal)

    def _upkeep(self) -> Upkeep:
        lease_ms = self.spec.lease_ms if self.spec.witness is not None else 0
        return Upkeep(self.journal, self.environment, self.spec.keep_records, self._tell_pause, lease_ms)

    def _tell_pause(self, pause_ns: int) -> None:
        """The state is about to be held still for so long."""
        self.act(self.machine.pausing(pause_ns, self.now_ns()))
        if self.link is not None:
            self.link.flush()

    # -- roles ------------------------------------------------------------------------------------------------------

    @property
    def known_epoch(self) -> int:
        """The highest of which this node has heard."""
        return max(self.journal.epoch, self.log.epoch)

    def launched(self, epoch: int) -> None:
        """Lead after all, as the node was launched to."""
        self.lead(epoch, "started", takeover=False)
        self.link = self.environment.listen()

    def lead(self, epoch: int, reason: str, *, takeover: bool, complete: bool = False) -> dict[str, int]:
        """Become the primary of `epoch`; returns with how many of the old one's packets it goes on."""
        lsn = self.journal.lsn
        if not self.identity.history:
            self._adopt(self.log.identity)
        self.machine = Primary(
            self.identity,
            self.spec.durability,
            self.spec.without_backup,
            epoch=epoch,
            first_lsn=max(1, self.log.first_lsn or self.log.last_lsn + 1),
            logged_lsn=self.log.last_lsn,
            takeover=takeover,
            now_ns=self.now_ns(),
            silence_ms=self.spec.silence_ms,
            needs_lease=self.leadership.keeper is not None,
        )
        self._begin_epoch(epoch, reason, complete=complete)
        self.page.lsn_applied = self.journal.lsn
        if takeover:
            self.cores.announce()
        went_on = self.cores.go_on(self.unsent, lsn)
        for line in self.cores.lines:
            line.flush()
        if takeover and self._broken and (left := self.environment.still_sending()):
            _log.warning("cores of another node here are still active", cores=left)
        self.page.role = ACTIVE
        self._publish()
        for line in self.cores.lines:
            line.wake()
        for name, began_with in self.journal.owners_kept(self.nf, self.settings).items():
            _log.warning("owner keeps the state that it began with other settings", owner=name, began_with=began_with)
        return went_on

    def _adopt(self, history: str) -> None:
        self.log.adopt(history)
        self.identity = msgspec.structs.replace(self.identity, history=history)

    def _begin_epoch(self, epoch: int, reason: str, *, complete: bool = False) -> None:
        self.log.lead(epoch)
        node, now_ns = f"{self.spec.name}/{self.spec.node}", self.environment.time_ns()
        self.journal.begin_epoch(epoch, node, self.nf, self.settings, reason, now_ns, complete=complete)
        self.page.epoch = epoch
        self._begun = _NOT_LOGGED
        self.commit()
        if self._begun:
            self._begun = self.syncer.soon()

    def _promote(self, action: Promote) -> None:
        """Take over: the flows are in the cores' tables and the owners' states are current (G6)."""
        began_ns = self.now_ns()
        waiting = sum(line.waiting for line in self.cores.lines)
        went_on = self.lead(action.epoch, action.reason, takeover=True, complete=action.complete)
        self.takeover = {
            "reason": action.reason,
            "epoch": action.epoch,
            "lsn": self.journal.lsn,
            "flows": len(self.journal.replica.flows),
            "records_replayed": 0,
            "packets": went_on,
            "flows_waiting_for_cores": waiting,
            "took_us": (self.now_ns() - began_ns) // 1000,
        }
        self.events.warning("took over", **self.takeover)
        if self.link is not None:
            self.link.close()
            self.link = None
        try:
            self.link = self.environment.listen()
        except LinkError as error:
            _log.warning("no new backup can join here", error=str(error))
        self.leadership.ask_others(action.epoch)

    # -- the peer ---------------------------------------------------------------------------------------------------

    def _hear_peer(self) -> None:
        if self.link is None or (self.machine.state is State.ABSENT and not self.cores.hold_flows):
            return
        link = self.link
        for event in link.events(self.now_ns()):
            now_ns = self.now_ns()
            self._broken = event.kind == "disconnected"
            if event.kind == "connected":
                self.unsent.forget()
                self.act(
                    self.machine.connected(now_ns, event.number)
                    if isinstance(self.machine, Primary)
                    else self.machine.connected(self._end(), now_ns)
                )
            elif event.kind == "disconnected":
                self._alert_cores(now_ns)
                self.act(
                    self.machine.disconnected(event.reason, now_ns, event.number)
                    if isinstance(self.machine, Primary)
                    else self.machine.disconnected(event.reason, now_ns)
                )
                self.following.disconnected(link, event.reason)
            else:
                self.act(
                    self.machine.receive(event.message, now_ns, event.number)
                    if isinstance(self.machine, Primary)
                    else self.machine.receive(event.message, now_ns)
                )
            if self.link is not link:
                return  # the role changed

    def _alert_cores(self, now_ns: int) -> None:
        """Where a takeover may follow at once, have the cores await it: to be woken takes them longer."""
        if self.machine.state is State.IN_SYNC and isinstance(self.machine, Backup) and self.leadership.keeper is None:
            self.page.alert_until_ns = now_ns + ALERT_US * 1000
            for line in self.cores.lines:
                line.wake()

    def _end(self) -> Position:
        lsn = self.log.last_lsn
        return Position(lsn, self.log.last_chain, self.journal.epoch) if lsn else Position()

    def position(self, lsn: int) -> Position:
        record = decode(self.log.read(lsn), lsn)
        complete = isinstance(record.body, EpochBody) and record.body.complete
        return Position(lsn, record.chain, record.epoch, complete)

    def act(self, actions: Iterable[Any]) -> None:
        """Carry out what the protocol decided, in its order."""
        for action in actions:
            self._carry_out(action)

    def _carry_out(self, action: Any) -> None:
        machine = self.machine
        match action:
            case Send():
                if self._begun and isinstance(machine, Primary) and not isinstance(action.message, Fence):
                    if self.syncer.synced < self._begun:
                        self.log.sync()  # else a machine that goes down could begin the same epoch twice (G7)
                    self._begun = 0
                if self.link is not None:
                    self.link.send(action.message, action.peer)
            case Close():
                if self.link is not None:
                    self.link.drop(action.reason, action.peer)
                self.catch_up.drop(action.peer)
            case Note():
                self.following.noted(action)
                (self.events.warning if action.alarm else self.events.info)(action.event, detail=action.detail)
            case Apply():
                self.following.apply(action)
            case Compare() if isinstance(machine, Primary):
                try:
                    first_lsn = max(1, self.log.first_lsn)
                    found = match(action.end, first_lsn, self.log.last_lsn, self.position)
                except LogDamagedError as error:
                    self.act(machine.incomparable(action.end, str(error), action.peer))
                else:
                    self.act(machine.compared(found, action.end, action.peer))
            case TakeSnapshot() if isinstance(machine, Primary):
                self.commit()
                self.catch_up.snapshot(action.peer)
            case Read():
                self.catch_up.read(action)
            case NewEpoch():
                alone = "alone" if action.alone else "with the backups that remain"
                _log.warning("going on without a backup", epoch=action.epoch, reason=action.reason, alone=action.alone)
                self._begin_epoch(action.epoch, f"going on {alone}: {action.reason}")
            case Claim():
                self.leadership.claim(action)
            case Unclaim():
                self.leadership.unclaim()
            case InstallSnapshot():
                self.following.install(action)
            case Remember():
                self.log.epoch_raise(action.epoch)
            case Adopt():
                self._adopt(action.history)
            case Promote():
                self._promote(action)
            case Keep():
                for core, lsn, told in action.unsent:
                    self.unsent.hear(core, lsn, told, self.now_ns())
            case Learn():
                for port, station in reversed(action.stations):
                    self.cores.stations.learn(port, station, self.now_ns())
            case Fenced():
                self.page.role = FENCED
                self.page.lease_until_ns = 0  # at once, not at the cores' next turn
                for line in self.cores.lines:
                    line.wake()
                with suppress(FencedError):
                    self.log.epoch_raise(action.epoch)
                self.fail(FencedError(f"epoch {action.epoch} exists: this node is no longer the primary"))
            case Refused():
                self.following.refused(action)
            case Rewind():
                self.following.rewind(action)
            case Leave():
                _log.warning("asked to hand over", reason=action.reason)
                self.wants_to_leave = action.reason
            case StopNode():
                if self.page.role == ACTIVE:
                    self.page.role = PASSIVE
                self.ending = self.ending or action.reason
                _log.info("stopping", reason=action.reason)

    def status(self) -> dict[str, Any]:
        """Called from the control thread."""
        return owner_status(self)
