"""The lease: who may emit packets, kept by a witness that both nodes can reach; a state machine without I/O or clock.

Theory of operation
-------------------
The witness is one register that can be read, and swapped if it still holds what was read (`node/witness.py` has the
stores). Its entry names the holder, its epoch, and for how long the holder may emit, counted from when it *began* to
write the entry. The holder writes anew every quarter of that time, with a serial number that grows.

*No clock is shared.* Who wants the lease waits until it has seen the same entry for the lease's whole time, counted from
when it *had read* it, which is later than when the holder began to write it. The holder stops a GUARD of the time sooner,
for clocks that run at different speeds and for what a packet takes from the check to the wire (G7).

*Going on without a backup is a matter for the witness, too.* A backup in sync has all that was committed in the epochs of
its Sync. Its claim holds for those alone: a primary that wants to commit without it must first bring the witness to a
higher one. So either the backup can have the lease, or the primary can commit alone, never both.

*Silence of the witness* changes nothing until the lease is over: then the holder emits nothing, and remains the holder
if nobody else has come when the witness speaks again.
"""

from __future__ import annotations

import msgspec

from actornet.limits import LEASE_CLAIM_LOOKS, LEASE_GUARD, LEASE_LOOKS, LEASE_RENEWALS

_MS = 1_000_000


class Entry(msgspec.Struct, frozen=True):
    """What the witness holds. `serial` 0: nothing yet. `lease_ms` 0: the holder has given the lease back.

    `holder` is a node and its log; `process` tells one process of it from the next.
    """

    serial: int = 0
    epoch: int = 0
    holder: str = ""
    process: str = ""
    lease_ms: int = 0


class Look(msgspec.Struct, frozen=True):
    """Read the register; answer by `looked`."""


class Swap(msgspec.Struct, frozen=True):
    """Replace `old` by `new` if it is still there; answer by `swapped`. A new epoch is to survive the witness's machine."""

    old: Entry
    new: Entry


class Granted(msgspec.Struct, frozen=True):
    """The lease is held in `epoch`."""

    epoch: int


class Denied(msgspec.Struct, frozen=True):
    """The lease is not to be had, or is lost: `entry` is what stands against it."""

    entry: Entry


LeaseEvent = Granted | Denied


class Lease:
    """One node's view of the lease.

    `entry` is the register as last seen (None: never), unchanged since `since_ns`. `epoch` is that in which the lease is
    held, 0 if it is not. Packets may leave before `until_ns`.
    """

    def __init__(self, holder: str, process: str, lease_ms: int) -> None:
        self.holder = holder
        self.process = process
        self.lease_ms = lease_ms
        self.entry: Entry | None = None
        self.since_ns = 0
        self.epoch = 0
        self.until_ns = 0
        self.reached_ns = 0  # when the witness last answered
        self.contested = False
        """Another has written the register since the claim was made: it lives."""
        self._claimed = 0  # epoch that is wanted
        self._rank = 0
        self._after: range | None = None  # the claim holds only while the register is of one of these epochs
        self._asked_ns = 0  # when the last request was made
        self._trying: Swap | None = None
        self._trying_ns = 0
        self._look_next = True

    @property
    def claims(self) -> bool:
        return self._claimed != 0

    def claim(self, epoch: int, after: range | None = None, rank: int = 0) -> None:
        """Take the lease in `epoch` as soon as it is free, or bring a lease that is held to that epoch.

        The claim is denied when the register's epoch is none of `after`. By `rank` others are given time to be first: for each
        the time between two looks, by which nodes may differ in what they have last seen.
        """
        assert epoch > self.epoch
        self._claimed, self._after, self._rank, self.contested = epoch, after, rank, False

    def unclaim(self) -> None:
        """Want the lease no more; a swap that is on its way may still be granted."""
        self._claimed = 0

    def is_free(self, now_ns: int) -> bool:
        """Whether nobody may emit under the entry as it was seen."""
        entry = self.entry
        if entry is None:
            return False
        # An empty register may have lost its content, and with it a live holder's.
        rest_ms = 0 if entry.serial and not entry.lease_ms else entry.lease_ms or self.lease_ms
        return now_ns - self.since_ns >= (rest_ms + self._rank * self.lease_ms // LEASE_LOOKS) * _MS

    def is_due(self, now_ns: int) -> bool:
        """Whether `request` has one."""
        if self.claims and not self._look_next and (self.epoch or self.is_free(now_ns)):
            return True
        return now_ns >= self.due_ns

    @property
    def due_ns(self) -> int:
        """When the next `request` is due, unless a claim makes it sooner."""
        renews = self.epoch and not self._look_next
        times = LEASE_RENEWALS if renews else LEASE_CLAIM_LOOKS if self.claims else LEASE_LOOKS
        return self._asked_ns + self.lease_ms * _MS // times

    def request(self, now_ns: int) -> Look | Swap | None:
        """What to ask the witness now, if anything; one at a time, each is answered by `looked`, `swapped` or `failed`."""
        if not self.is_due(now_ns):
            return None
        self._asked_ns = now_ns
        if self._look_next or self.entry is None:
            return Look()
        epoch = self._claimed or self.epoch
        if not epoch or not (self.epoch or self.is_free(now_ns)):
            return Look()
        self._trying = Swap(self.entry, Entry(self.entry.serial + 1, epoch, self.holder, self.process, self.lease_ms))
        self._trying_ns = now_ns
        return self._trying

    def giving_back(self) -> Swap | None:
        """The last request of a holder that stops; nothing may leave from now on."""
        held, self.epoch, self.until_ns, self._claimed = self.epoch, 0, 0, 0
        if not held or self.entry is None:
            return None
        return Swap(self.entry, msgspec.structs.replace(self.entry, serial=self.entry.serial + 1, lease_ms=0))

    def failed(self) -> None:
        """The witness could not be asked, or it is unknown whether it has done what it was asked for."""
        self._look_next = True

    def swapped(self, done: bool, now_ns: int) -> list[LeaseEvent]:
        """The answer to a Swap."""
        assert self._trying is not None
        self.reached_ns = now_ns
        if not done:
            self._look_next = True
            return []
        return self._took(now_ns)

    def looked(self, entry: Entry, now_ns: int) -> list[LeaseEvent]:
        """The answer to a Look."""
        self.reached_ns = now_ns
        self._look_next = False
        if self._trying is not None and entry == self._trying.new:  # it had come through after all
            return self._took(now_ns)
        self._trying = None
        if entry != self.entry:
            self.contested |= entry.lease_ms > 0 and entry.process != self.process
            self.entry, self.since_ns = entry, now_ns
        if self.epoch and entry.serial and (entry.process != self.process or entry.holder != self.holder):
            self.epoch = self.until_ns = self._claimed = 0
            return [Denied(entry)]
        if self.claims and not self.epoch and entry.serial and not self._may_follow(entry.epoch):
            self._claimed = 0
            return [Denied(entry)]
        return []

    def _may_follow(self, epoch: int) -> bool:
        return epoch < self._claimed and (self._after is None or epoch in self._after)

    def _took(self, now_ns: int) -> list[LeaseEvent]:
        assert self._trying is not None
        new, self._trying = self._trying.new, None
        self._look_next = False
        self.entry, self.since_ns = new, now_ns
        self.until_ns = self._trying_ns + int(new.lease_ms * _MS * (1 - LEASE_GUARD))
        if new.epoch == self.epoch:
            return []
        self.epoch = new.epoch
        if self._claimed == new.epoch:
            self._claimed = 0
        return [Granted(new.epoch)]
