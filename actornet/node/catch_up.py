"""What backups that begin or catch up are to get: a part of the state or of the log with every step, so that nobody waits for
all of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from actornet.errors import LogDamagedError, StateError
from actornet.limits import LINK_BATCH_RECORDS, SNAPSHOT_SLICES
from actornet.log.batch import read_batch
from actornet.replication.primary import Primary
from actornet.replication.protocol import Position, Read

if TYPE_CHECKING:
    from actornet.node.owner_system import OwnerSystem


class CatchUp:
    """A primary's work for backups that are not in sync yet, by the number of their connection."""

    def __init__(self, system: OwnerSystem) -> None:
        self._system = system
        self._snapshots: dict[int, Iterator[None]] = {}
        self._reads: dict[int, Read] = {}

    @property
    def busy(self) -> bool:
        """Whether the next `turn` has something to do, and is due at once."""
        return bool(self._reads or self._snapshots)

    def snapshot(self, peer: int) -> None:
        """This backup gets the state as it is now."""
        self._snapshots[peer] = self._taking_snapshot(peer)

    def read(self, action: Read) -> None:
        """This backup gets records of the log next."""
        self._reads[action.peer] = action

    def drop(self, peer: int) -> None:
        """Its connection is over."""
        self._reads.pop(peer, None)
        self._snapshots.pop(peer, None)

    def turn(self) -> None:
        """One part more for each."""
        system = self._system
        for peer, snapshot in list(self._snapshots.items()):
            if next(snapshot, self) is self and self._snapshots.get(peer) is snapshot:
                del self._snapshots[peer]
        reads, self._reads = self._reads, {}
        for peer, action in reads.items():
            if not isinstance(system.machine, Primary):
                return
            # With what was logged since: where every step logs something, a backup would else never have all.
            last_lsn = max(action.last_lsn, min(system.machine.logged_lsn, action.first_lsn + LINK_BATCH_RECORDS - 1))
            try:
                records = read_batch(system.log, action.first_lsn, last_lsn, action.bytes_max)
            except LogDamagedError as error:
                system.act(system.machine.damaged(str(error), peer))
            else:
                system.act(system.machine.tail(records, system.now_ns(), peer))

    def _taking_snapshot(self, peer: int) -> Iterator[None]:
        system = self._system
        machine, journal = system.machine, system.journal
        assert isinstance(machine, Primary)
        end = Position(journal.lsn, journal.chain, journal.epoch)
        data = bytearray()
        try:
            for number, piece in enumerate(journal.replica.snapshotting(), 1):
                data += piece
                if number % SNAPSHOT_SLICES == 0:
                    yield
        except StateError as error:
            system.act(machine.no_snapshot(str(error), peer))
            return
        system.act(machine.snapshot(end, data, system.now_ns(), peer))
