"""Who may lead: what the deployment's other nodes and the witness say of it (G7).

Before a launch as primary both are asked; while a node leads, the lease is kept, and nodes that led before are looked for.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import structlog

from actornet.errors import FencedError
from actornet.limits import LAUNCH_PROBE_MS
from actornet.node.lease_keeper import LeaseKeeper
from actornet.node.rival_probe import RivalProbe
from actornet.replication.lease import Denied, Entry, Lease
from actornet.replication.messages import VERSION, Hello
from actornet.replication.primary import Primary
from actornet.replication.protocol import Claim, epoch_of_launch

if TYPE_CHECKING:
    from actornet.node.owner_system import OwnerSystem

_log = structlog.get_logger()


class Leadership:
    """An owner system's dealings with its rivals: `seek` to be the primary, then `turn` with every step, `close` at the end."""

    def __init__(self, system: OwnerSystem) -> None:
        self._system = system
        self.seeking = False
        """Is to be the primary, and asks the other nodes and the witness before."""
        self.keeper = self._open_lease()
        self._probes: list[RivalProbe] = []
        self._until_ns = 0

    @property
    def busy(self) -> bool:
        """Whether anybody's answer is waited for."""
        return self.seeking or bool(self._probes)

    def seek(self) -> None:
        """Lead as soon as the other nodes and the witness have nothing against it."""
        system = self._system
        # With the highest epoch known, not the one to come: a primary that lives is not to be fenced by a launch.
        self.ask_others(system.known_epoch)
        if not self._probes and self.keeper is None:
            self._lead(epoch_of_launch(system.known_epoch, system.log.led_epoch))
            return
        self.seeking = True
        self._until_ns = system.now_ns() + LAUNCH_PROBE_MS * 1_000_000

    def turn(self) -> None:
        """Hear what they say."""
        if self.keeper is not None:
            self._heed(self.keeper)
        self._hear_rivals()
        if self.seeking and self._system.ending is None:
            self._go_on_seeking()

    def ask_others(self, epoch: int) -> None:
        """Whether any of the other nodes leads: at all, or in an epoch above this."""
        system = self._system
        me, lsn = system.identity, system.log.last_lsn
        hello = Hello(
            epoch, VERSION, me.deployment, me.nf, me.fingerprint, "primary", lsn, 0, epoch, history=me.history
        )
        self._probes = [RivalProbe(link, hello) for link in system.environment.dial_peers()]

    def claim(self, action: Claim) -> None:
        """Ask the witness for the lease; without one there is nothing to ask."""
        if self.keeper is not None:
            self.keeper.lease.claim(action.epoch, action.after, action.rank)

    def unclaim(self) -> None:
        if self.keeper is not None:
            self.keeper.lease.unclaim()

    def renamed(self) -> None:
        """The node's log is another one: so is whoever holds the lease."""
        if self.keeper is not None:
            self.keeper.lease.holder = self._holder

    def close(self) -> None:
        """Give the lease back."""
        if self.keeper is not None:
            self.keeper.close()
        self._end_probes()

    @property
    def _holder(self) -> str:
        return f"{self._system.spec.node}/{self._system.log.identity}"

    def _open_lease(self) -> LeaseKeeper | None:
        system = self._system
        line = system.environment.open_witness()
        if line is None or system.spec.witness is None:
            return None
        process = f"{system.environment.random_bits(64):016x}"
        return LeaseKeeper(system.spec.witness, Lease(self._holder, process, system.spec.lease_ms), line, system.page)

    def _lead(self, epoch: int) -> None:
        self.seeking = False
        self._system.launched(epoch)

    def _go_on_seeking(self) -> None:
        system = self._system
        if self._probes and system.now_ns() < self._until_ns:
            return
        self._end_probes()
        known = system.known_epoch
        if self.keeper is None:
            self._lead(epoch_of_launch(known, system.log.led_epoch))
            return
        lease = self.keeper.lease
        if lease.claims or lease.entry is None:
            return
        entry = lease.entry
        if entry.epoch > known and entry.holder != lease.holder:
            system.fail(
                FencedError(
                    f"the witness at {self.keeper.place} knows of epoch {entry.epoch}, led by {entry.holder}; this log "
                    f"knows of {known} at most: launch that node as primary and this one as its backup"
                )
            )
            return
        led = entry.epoch if entry.holder == lease.holder else system.log.led_epoch
        lease.claim(epoch_of_launch(max(known, entry.epoch), led))

    def _heed(self, keeper: LeaseKeeper) -> None:
        system = self._system
        for event in keeper.turn(system.environment.boot_ns()):
            if isinstance(event, Denied):
                self._denied(event.entry)
            elif self.seeking:
                self._lead(event.epoch)
            else:
                system.act(system.machine.granted(event.epoch, system.now_ns()))
        if self.seeking and keeper.lease.claims and keeper.lease.contested:
            self._denied(keeper.lease.entry or Entry())

    def _denied(self, entry: Entry) -> None:
        system = self._system
        why = f"{entry.holder} holds the lease in epoch {entry.epoch}"
        if self.seeking:
            system.fail(FencedError(f"{why}: launch this node as its backup"))
        elif isinstance(system.machine, Primary):
            system.act(system.machine.fenced(entry.epoch))
        else:
            system.act(system.machine.denied(entry.epoch, why))

    def _hear_rivals(self) -> None:
        system = self._system
        for probe in list(self._probes):
            if not (outcome := probe.turn(system.now_ns())):
                continue
            probe.close()
            self._probes.remove(probe)
            if outcome == "leads" and self.seeking:
                with suppress(FencedError):
                    system.log.epoch_raise(probe.epoch)
                system.fail(
                    FencedError(
                        f"the node at {probe.address} leads in epoch {probe.epoch}: launch this one as its backup "
                        f"(actornet launch backup ... --node {system.spec.node})"
                    )
                )
            elif isinstance(system.machine, Primary):
                _log.info("old primary asked", at=probe.address, outcome=outcome)
                if outcome == "leads" and probe.epoch > system.machine.epoch:
                    system.act(system.machine.fenced(probe.epoch))
        if isinstance(system.machine, Primary) and len(system.machine.feeds) >= max(1, len(system.spec.peers)):
            self._end_probes()  # all have come back as backups

    def _end_probes(self) -> None:
        for probe in self._probes:
            probe.close()
        self._probes.clear()
