"""What an owner system needs of the process around it. `owner_process` gives it the real ones, a simulator its own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from actornet.errors import LogError
from actornet.log.store import Log
from actornet.node.core_line import CoreLine
from actornet.node.lease_keeper import WitnessLine
from actornet.node.link import LinkEvent
from actornet.replication.messages import AnyMessage


class Page(Protocol):
    """The owner system's side of the control page; see `actornet.engine.ring.ControlPage`."""

    watermark: int
    lsn_logged: int
    lsn_applied: int
    followed: bool
    epoch: int
    role: int
    lease_until_ns: int
    alert_until_ns: int
    owner_beat: int

    def set_committed(self, core: int, sequence: int) -> None: ...

    def core_counters(self, core: int) -> list[int]: ...


class Link(Protocol):
    """One end of the link; see `actornet.node.link`."""

    @property
    def address(self) -> str: ...

    @property
    def connected(self) -> bool: ...

    @property
    def peer(self) -> str: ...

    @property
    def counters(self) -> Mapping[str, int]: ...

    def events(self, now_ns: int) -> Iterable[LinkEvent]: ...

    def send(self, message: AnyMessage, number: int = 0) -> None: ...

    def flush(self) -> None: ...

    def drop(self, reason: str, number: int = 0) -> None: ...

    def close(self) -> None: ...


class Syncer(Protocol):
    """Brings the log to the disk in its own time; see `LogSyncer`."""

    error: LogError | None
    synced: int

    def soon(self) -> int: ...

    def close(self) -> None: ...


class Environment(Protocol):
    """Everything that an owner system does to the world, it does through this."""

    @property
    def page(self) -> Page: ...

    @property
    def lines(self) -> Sequence[CoreLine]:
        """One per core."""

    def monotonic_ns(self) -> int:
        """The clock that silence and heartbeats are measured by; it stands still while the machine sleeps."""

    def boot_ns(self) -> int:
        """The clock that leases are measured by; it goes on while the machine sleeps."""

    def time_ns(self) -> int:
        """The time of day, which may jump."""

    def links_down(self) -> int:
        """How many of the ports' interfaces are absent, down, or without a link (a cable, the other end of a veth)."""

    def rest(self, rests: bool) -> None:
        """Nothing comes any more, so the host's CPUs may sleep; or something does."""

    def still_sending(self) -> int:
        """Wait a moment for the cores of other nodes on this host to have ended; how many of them have not."""

    def random_bits(self, bits: int) -> int:
        """Seeds that nobody can guess."""

    def open_log(self, nf: str) -> Log:
        """The node's log, for writing. LogError: it cannot be continued."""

    def set_aside_log(self) -> Path:
        """Move a log that cannot be opened out of the way; see `actornet.log.store.set_aside`."""

    def open_syncer(self, log: Log) -> Syncer: ...

    def listen(self) -> Link | None:
        """Listen for a backup; None: the deployment does not. LinkError: the address is taken."""

    def open_witness(self) -> WitnessLine | None:
        """To the witness; None: the deployment has none."""

    def dial_peers(self) -> Sequence[Link]:
        """Connect to where each of the other nodes listens when it leads, as far as that is known."""

    def dial(self) -> Link:
        """Connect to the primary, wherever that is, again and again. LinkError: the deployment does not say where it is."""
