"""A node's life as a backup: it applies the primary's records, and begins anew where its log or state is not the primary's."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import structlog

from actornet.errors import DivergenceError, LinkError, LogDamagedError, LogError, OtherCodeError
from actornet.journal import path_of
from actornet.limits import RESYNCS_MAX, RESYNCS_S
from actornet.node.environment import Link
from actornet.replication.backup import Backup
from actornet.replication.protocol import Apply, InstallSnapshot, Note, Refused, Rewind

if TYPE_CHECKING:
    from actornet.node.owner_system import OwnerSystem

_log = structlog.get_logger()

NO_PRIMARY = ("key", "version", "garbage")
"""Counters of a link that say: what answers there is not this deployment's primary."""


class Following:
    """What a backup does beyond the protocol. `resyncs` has when it last put itself out of service (monotonic ns)."""

    def __init__(self, system: OwnerSystem) -> None:
        self._system = system
        self.resyncs: deque[int] = deque()
        self._was_welcome = False
        self._disconnected = ""

    def begin(self, *, wants_snapshot: bool = False) -> None:
        """Follow, from what the log has now."""
        system = self._system
        system.machine = Backup(
            system.identity,
            system.spec.durability,
            epoch=system.known_epoch,
            durable_lsn=0,
            now_ns=system.now_ns(),
            silence_ms=system.spec.silence_ms,
            needs_lease=system.leadership.keeper is not None,
            wants_snapshot=wants_snapshot,
            node=system.spec.node,
        )
        self._secure(system.machine)  # what a former life left may not be on the disk, and no record may follow it

    # -- records ----------------------------------------------------------------------------------------------------

    def apply(self, action: Apply) -> None:
        system, machine = self._system, self._system.machine
        assert isinstance(machine, Backup)
        try:
            bodies = system.journal.apply(action.records)
        except (DivergenceError, LogDamagedError) as error:
            self.resync(error)
            return
        system.cores.applied(bodies)
        system.journal.commit()
        self._secure(machine)
        system.page.epoch = system.journal.epoch
        self._tell_applied(machine)
        if system.link is not None:
            system.link.flush()

    def cores_hold_flows(self) -> None:
        """All that the state began with, from now on."""
        machine = self._system.machine
        if isinstance(machine, Backup) and machine.lag is not None:
            self._tell_applied(machine)

    def _tell_applied(self, backup: Backup) -> None:
        """To the primary, which counts on this node from then on: not before the cores hold the flows (G6)."""
        system = self._system
        if system.cores.hold_flows:
            system.act(backup.applied(system.journal.lsn, system.now_ns()))

    def _secure(self, backup: Backup) -> None:
        """In the mode `durable`, bring the log to the disk before it is acknowledged."""
        system = self._system
        if system.spec.durability == "durable":
            system.log.sync()
            system.act(backup.durable(system.journal.lsn, system.now_ns()))

    # -- beginning anew ---------------------------------------------------------------------------------------------

    def install(self, action: InstallSnapshot) -> None:
        """The primary's whole state in place of our own, which is older: that log is set aside, not overwritten (G8)."""
        system, machine = self._system, self._system.machine
        assert isinstance(machine, Backup)
        with system.unwatched():
            system.cores.forget_flows()
            if system.log.last_lsn:
                self._set_log_aside()
            system.journal.install(action.end.lsn, action.end.chain, action.data)
            system.state_replaced()
            self._secure(machine)
        self._tell_applied(machine)

    def resync(self, error: LogError) -> None:
        """This backup's state or log is not the primary's: out of service with it, and begin anew (G4, G8)."""
        system = self._system
        if not isinstance(system.machine, Backup):
            raise error
        now_ns = system.now_ns()
        self.resyncs.append(now_ns)
        _log.error("backup out of service", detail=str(error), resyncs=len(self.resyncs))
        if len(self.resyncs) > RESYNCS_MAX and now_ns - self.resyncs.popleft() < RESYNCS_S * 1e9:
            raise error
        term = system.journal.replica.term
        if isinstance(error, DivergenceError) and term is not None and term.fingerprint != system.identity.fingerprint:
            raise OtherCodeError(f"this code is not the primary's, and decides otherwise: {error}") from error
        if system.link is not None:
            system.link.drop(str(error))
        system.cores.forget_flows()
        self._set_log_aside()
        self._begin_anew(wants_snapshot=True)

    def rewind(self, action: Rewind) -> None:
        """Drop what this node logged as primary and nobody else got; it was never committed.

        Where the state at the fork cannot be had from this log any more, the log is set aside whole.
        """
        system, log, fork_lsn = self._system, self._system.log, action.fork_lsn
        pruned = 0 < fork_lsn < log.first_lsn
        if log.last_lsn < fork_lsn or (not pruned and system.position(fork_lsn).chain != action.fork_chain):
            system.fail(LinkError(f"the primary{self._primary_at()} refuses this backup: {action.reason}"))
            return
        system.cores.forget_flows()
        if fork_lsn < log.base_lsn:
            _log.warning(
                "uncommitted records set aside", after_lsn=fork_lsn, detail=f"state from LSN {log.base_lsn} on"
            )
            self._set_log_aside()
        else:
            removed = log.truncate(fork_lsn)
            _log.warning("uncommitted records dropped", records=removed, after_lsn=fork_lsn)
        self._begin_anew()

    def _begin_anew(self, *, wants_snapshot: bool = False) -> None:
        """With what the log holds now."""
        system = self._system
        system.journal = system.journal_of(system.log)
        system.state_replaced()
        self.begin(wants_snapshot=wants_snapshot)

    def _set_log_aside(self) -> None:
        system = self._system
        epoch = system.log.epoch
        system.syncer.close()
        aside = system.log.set_aside()
        _log.warning("older log set aside", directory=str(aside))
        system.log = system.environment.open_log(path_of(system.nf))
        system.log.epoch_raise(epoch)
        system.log.adopt(system.identity.history)
        system.journal.log = system.log
        system.leadership.renamed()
        system.syncer = system.environment.open_syncer(system.log)

    # -- what an operator is told -----------------------------------------------------------------------------------

    def noted(self, note: Note) -> None:
        """The protocol has told of this."""
        self._was_welcome |= note.event == "catching up"
        if note.event == "in sync":
            self._compare_settings()

    def refused(self, action: Refused) -> None:
        """By the primary: what waiting cannot mend ends the node."""
        _log.error("the primary refuses this backup", reason=action.reason)
        if not self._was_welcome:
            self._system.fail(LinkError(f"the primary{self._primary_at()} refuses this backup: {action.reason}"))

    def disconnected(self, link: Link, reason: str) -> None:
        """A backup that waits for its primary says why, once; what waiting cannot mend ends it."""
        if not isinstance(self._system.machine, Backup) or self._was_welcome:
            return
        if any(link.counters[counter] for counter in NO_PRIMARY):
            self._system.fail(LinkError(f"the primary at {link.address} cannot be followed: {reason}"))
        elif reason != self._disconnected:
            self._disconnected = reason
            _log.info("waiting for the primary", at=link.address, reason=reason)

    def _compare_settings(self) -> None:
        """They may differ while they are changed, one node after the other; whoever does not mean that is to know."""
        term, settings = self._system.journal.replica.term, self._system.settings
        theirs = term.settings if term is not None else {}
        differing = {name: theirs.get(name) for name, value in settings.items() if theirs.get(name) != value}
        if differing:
            ours = {name: settings[name] for name in differing}
            _log.warning("settings differ from the primary's", primary=differing, here=ours)

    def _primary_at(self) -> str:
        link = self._system.link
        return f" at {link.address}" if link is not None else ""
