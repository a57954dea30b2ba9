"""A simulated node: the real owner system and cores, each in a process that can crash, on a disk and a network."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from actornet.engine.core import Core
from actornet.engine.five_tuple import FiveTuple
from actornet.engine.handoff import Handoff
from actornet.engine.replies import REPEATED
from actornet.engine.ring import ACTIVE, FENCED, NO_LEASE, PASSIVE, ControlPage, Ring
from actornet.errors import ActornetError, LogError
from actornet.flow import FlowActor
from actornet.journal import path_of
from actornet.limits import LOG_KEEP_RECORDS_DEFAULT, SILENCE_MS_DEFAULT
from actornet.log.store import Log
from actornet.node.core_line import RingLine
from actornet.node.core_worker import RingLink
from actornet.node.environment import Link
from actornet.node.fabric import FabricSpec
from actornet.node.owner_system import OwnerSpec, OwnerSystem
from actornet.node.upkeep import Upkeep
from actornet.ports.memory import MemoryPort
from actornet.replication.primary import Primary
from actornet.replication.protocol import Durability, WithoutBackup
from actornet.testing.simulation.disk import Disk, SimulatedLog
from actornet.testing.simulation.network import ClientEnd, Network, ServerEnd
from actornet.testing.simulation.streams import from_inside
from actornet.testing.simulation.ticketing import Ticketing
from actornet.testing.simulation.witness import Register, RegisterLine

RING_BYTES = 1 << 20
TICK = bytes(12) + b"\x88\xb5"
"""A frame of no flow, which does nothing but to tell the time."""
LEASE_MS = 20
KEEP_RECORDS = 10
SETTLE_NS = 4_000_000
"""In place of SETTLE_MS: a simulation is short."""

CRASH_POINTS = (
    *("before append", "after append", "before flush", "after flush", "before sync", "after sync", "epoch raise"),
    *("before truncate", "after truncate", "before install", "after install", "set aside", "answer", "committed"),
)
"""Where in the middle of a step an owner system can be killed."""


class Killed(BaseException):
    """kill -9 of the owner system, at a named point."""


class Fabric:
    """A node's shared memory; the same for all its lives, as a simulation has many."""

    def __init__(self, cores: int) -> None:
        self.pages = [ControlPage.create(cores)]
        self.requests = [Ring.create(f"requests-{core}", RING_BYTES) for core in range(cores)]
        self.replies = [Ring.create(f"replies-{core}", RING_BYTES) for core in range(cores)]
        self.handoffs = {
            (a, b): Ring.create(f"handoff-{a}-{b}", RING_BYTES) for a in range(cores) for b in range(cores) if a != b
        }


class Line(RingLine):
    """A core's line with a crash point; it tells what is replied again, once owners have revoked offloads (`REPEATED`)."""

    on_send: Callable[[str], None]
    on_repeat: Callable[[int], None]

    def reply(self, reply: bytes) -> None:
        kind, *values = msgspec.msgpack.decode(reply)
        if kind == REPEATED and isinstance(values[0], int):
            self.on_repeat(values[0])
        super().reply(reply)

    def flush(self) -> None:
        self.on_send("answer")
        super().flush()


class Page:
    """The control page with a crash point: forwards to the real one, which cores read."""

    def __init__(self, node: Node) -> None:
        object.__setattr__(self, "_node", node)
        object.__setattr__(self, "_page", node.page)
        object.__setattr__(self, "_at", node.at)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._page, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "lease_until_ns":
            self._node.lease_until_ns = value  # of the node's clock, not of this machine's
        else:
            setattr(self._page, name, value)

    def set_committed(self, core: int, sequence: int) -> None:
        self._page.set_committed(core, sequence)
        self._at("committed")


class CrashingLog(SimulatedLog):
    """The log with crash points."""

    at: Callable[[str], None] = staticmethod(lambda point: None)
    on_cut: Callable[[dict[bytes, bytes]], None] = staticmethod(lambda records: None)

    def append(self, batch: Sequence[tuple[int, bytes]]) -> None:
        self.at("before append")
        super().append(batch)
        self.at("after append")

    def sync(self) -> None:
        self.at("before sync")
        super().sync()
        self.at("after sync")

    def epoch_raise(self, epoch: int) -> None:
        super().epoch_raise(epoch)
        self.at("epoch raise")

    def truncate(self, after_lsn: int) -> int:
        self.at("before truncate")
        before = dict(self.disk.tables[b"records"].values)
        removed = super().truncate(after_lsn)
        after = self.disk.tables[b"records"].values
        self.on_cut({key: data for key, data in before.items() if key not in after})
        self.at("after truncate")
        return removed

    def snapshot_install(self, lsn: int, data: bytes, chain: int) -> None:
        self.at("before install")
        super().snapshot_install(lsn, data, chain)
        self.at("after install")

    def set_aside(self) -> Path:
        aside = super().set_aside()
        self.at("set aside")
        return aside


class Syncer:
    """Syncs when the world says so."""

    error: LogError | None = None

    def __init__(self, log: Log) -> None:
        self.log = log
        self.due = False
        self.asked = self.synced = 0

    def soon(self) -> int:
        self.due = True
        self.asked += 1
        return self.asked

    def close(self) -> None: ...


class SimulatedCore:
    """A core's process: the real engine on memory ports; what `CoreWorker` does around it, without its sockets."""

    def __init__(self, node: Node, index: int, pid: int) -> None:
        fabric = node.fabric
        self.node = node
        self.index = index
        self.lan, self.wan = MemoryPort("lan"), MemoryPort("wan")
        self.link = RingLink(fabric.requests[index], fabric.replies[index], node.nf)
        self.link.pid = pid
        cores = len(fabric.requests)
        self.core = Core(
            node.nf,
            [self.lan, self.wan],
            index=index,
            cores=cores,
            flows_max=256,
            link=self.link,
            virtual_time=True,
            now_ns=node.network.clock(),
        )
        self._siblings = [
            Handoff(fabric.handoffs[index, other], fabric.handoffs[other, index]) if other != index else None
            for other in range(cores)
        ]
        self.core.on_error = self._failed
        self.core.share(node.page, fabric.replies[index])
        self.core.settling.wait_ns = SETTLE_NS
        self.core.look_for_stations()
        self.core.stand_by()
        self.link.core = self.core
        self._role = PASSIVE
        self.link.attach()

    def turn(self, frames: list[bytes]) -> list[bytes]:
        """Take frames, and what else has come; returns the frames that left."""
        page = self.node.page
        page.lease_until_ns = NO_LEASE if self.node.holds_lease else 0
        role = page.role
        if role == ACTIVE and self._role == PASSIVE and not page.committed(self.index):
            role = PASSIVE
        if role != self._role and self.link.attached:
            if role == ACTIVE:
                self.link.take_up(page.lsn_applied)
                self.core.siblings.handoffs = self._siblings
                self.core.go_active()
            elif role == FENCED or self._role == ACTIVE:
                self.core.stand_by()
                self.core.drop_held()
            self._role = role
        if self.link.resumed and self._role == ACTIVE:
            self.link.go_on()
        if self.node.ticks:
            self.lan.feed([(self.node.network.clock(), TICK)])
        if frames and self._role == ACTIVE:
            for frame in frames:
                port = self.lan if from_inside(frame) else self.wan
                port.feed([(self.node.network.clock(), frame)])
        self.core.breathe()
        return [bytes(frame) for port in (self.wan, self.lan) for _, frame in port.take()]

    def _failed(self, flow: FiveTuple | None, handler: str, error: BaseException) -> None:
        self.node.flow_errors.append(f"{handler}: {error}")


class Node:
    """One node, and the environment of its owner system."""

    def __init__(
        self,
        name: str,
        peer_names: Sequence[str],
        network: Network,
        fabric: Fabric,
        durability: Durability,
        without_backup: WithoutBackup,
        on_step: Callable[[Node], None],
        on_emit: Callable[[Node, list[bytes]], None],
        on_cut: Callable[[Node, dict[bytes, bytes]], None],
        on_repeat: Callable[[Node, int], None],
    ) -> None:
        self.name = name
        self.peer_names = peer_names
        self.network = network
        self.fabric = fabric
        self.durability = durability
        self.without_backup = without_backup
        self.disk = Disk(name)
        self.system: OwnerSystem | None = None
        self.cores: list[SimulatedCore | None] = [None] * len(fabric.requests)
        self.end = ""  # why the last life ended
        self.rate = 1.0  # of its clock
        self.silence_ms = SILENCE_MS_DEFAULT
        self.paced, self.upkeep, self.pause_ms = False, False, 0  # see `Schedule`
        self.busy_until_ns = 0  # with what its owner system does; for that it is as late already
        self.wall_offset_ns = 1_700_000_000_000_000_000
        self.paused_until_ns = 0
        self.crash_point: str | None = None
        self.flow_errors: list[str] = []
        self.syncs = True
        self.register: Register | None = None
        self.lease_until_ns = NO_LEASE
        self.frozen_until_ns = {"owner": 0, "cores": 0}
        self.links_down = 0
        self.nf: type[FlowActor] = Ticketing
        self.ticks = False  # cores' clocks go on without packets, too
        self._on_step = on_step
        self._on_emit = on_emit
        self._on_cut = on_cut
        self._on_repeat = on_repeat
        self.cores_begun = 0
        self._links: list[ServerEnd | ClientEnd] = []
        self._log: CrashingLog | None = None
        self._witness: RegisterLine | None = None
        self._due_ns = 0  # when the owner system is to wake, by its own clock
        self._syncer: Syncer | None = None

    # -- environment

    @property
    def page(self) -> ControlPage:
        return self.fabric.pages[0]

    @property
    def time_here_ns(self) -> int:
        """The world's time, or when the owner system's step will have ended."""
        return max(self.network.clock(), self.busy_until_ns)

    def monotonic_ns(self) -> int:
        return int(self.time_here_ns * self.rate)

    def time_ns(self) -> int:
        return self.wall_offset_ns + self.time_here_ns

    def pause(self, tell: Callable[[int], None], estimate_ns: int) -> None:
        """The owner system holds its state still, which takes it a while, of which it tells before."""
        pause_ns = int(self.network.random.uniform(0.3, 1) * self.pause_ms * 1_000_000)
        tell(max(estimate_ns, pause_ns // 2))
        self.busy_until_ns = self.time_here_ns + pause_ns

    def random_bits(self, bits: int) -> int:
        return self.network.random.getrandbits(bits)

    def open_log(self, nf: str) -> Log:
        self._log = CrashingLog(self.disk, name="simulated", nf=nf)
        self._log.at = self.at
        self._log.on_cut = lambda records: self._on_cut(self, records)
        return self._log

    def open_witness(self) -> RegisterLine | None:
        self._witness = (
            RegisterLine(self.register, self.name, lambda: self.time_here_ns) if self.register is not None else None
        )
        return self._witness

    @property
    def holds_lease(self) -> bool:
        """Whether a core that looks at this very instant lets packets leave."""
        return self.lease_until_ns == NO_LEASE or self.network.clock() * self.rate < self.lease_until_ns

    def open_syncer(self, log: Log) -> Syncer:
        self._syncer = Syncer(log)
        return self._syncer

    def listen(self) -> Link:
        self._links.append(ServerEnd(self.network, self.name, self.at))
        return self._links[-1]

    def dial(self) -> Link:
        self._links.append(ClientEnd(self.network, self.name, self.peer_names, self.at))
        return self._links[-1]

    def dial_peers(self) -> Sequence[Link]:
        links = [ClientEnd(self.network, self.name, [peer], self.at) for peer in self.peer_names]
        self._links += links
        return links

    def at(self, point: str) -> None:
        """The owner system passes a point where it may be killed."""
        if self.crash_point == point:
            self.crash_point = None
            raise Killed(point)

    # -- life

    def launch(self, role: str) -> None:
        """Start the node; if it cannot run, `end` says why."""
        page = self.page
        page.watermark = page.lsn_logged = page.lsn_applied = page.epoch = 0
        page.role = PASSIVE
        page.followed = False
        self.lease_until_ns = NO_LEASE
        for ring in (*self.fabric.requests, *self.fabric.replies, *self.fabric.handoffs.values()):
            ring.clear()
        for core in range(len(self.cores)):
            page.set_committed(core, 0)
        self.lines = [Line(*rings) for rings in zip(self.fabric.requests, self.fabric.replies, strict=True)]
        for line in self.lines:
            line.on_send = self.at
            line.on_repeat = lambda number: self._on_repeat(self, number)
        spec = OwnerSpec(
            name="simulated",
            role=role,
            node=self.name,
            nf=path_of(self.nf),
            settings={},
            ports=["lan", "wan"],
            log="simulated",
            links=["peers"],
            listen="self",
            peers=list(self.peer_names),
            durability=self.durability,
            without_backup=self.without_backup,
            silence_ms=self.silence_ms,
            keep_records=KEEP_RECORDS if self.upkeep else LOG_KEEP_RECORDS_DEFAULT,
            fabric=FabricSpec(-1, -1, [], [], []),
            witness="simulated" if self.register is not None else None,
            lease_ms=LEASE_MS,
        )
        self.end, self._due_ns, self.busy_until_ns = "", 0, 0
        environment = _Environment(self)
        try:
            self.system = SimulatedOwnerSystem(spec, environment)
            self.system.start()
        except ActornetError as error:
            self.kill(f"{type(error).__name__}: {error}")
            return
        except Killed as point:
            self.kill(f"killed at: {point}")
            return
        self.cores = [self._start_core(core) for core in range(len(self.cores))]
        self._on_step(self)

    def _start_core(self, index: int) -> SimulatedCore:
        self.cores_begun += 1
        return SimulatedCore(self, index, self.cores_begun)

    def kill(self, why: str) -> None:
        """The owner system's process dies, and with it the node."""
        self.system = None
        self.end = why
        self.crash_point = None
        self.cores = [None] * len(self.cores)
        for link in self._links:
            link.vanish()
        self._links.clear()
        if self._log is not None:
            self._log.abandon()
            self._log = None

    def kill_core(self, index: int) -> None:
        """A core's process dies, with what it held; the supervisor starts it again."""
        if self.system is not None:
            for (_, to), ring in self.fabric.handoffs.items():
                if to == index:
                    ring.clear()
            self.cores[index] = self._start_core(index)

    @property
    def awake(self) -> bool:
        return self.system is not None and self.network.clock() >= self.paused_until_ns

    @property
    def leads(self) -> bool:
        return self.system is not None and isinstance(self.system.machine, Primary) and self.page.role == ACTIVE

    @property
    def at_work(self) -> bool:
        """Whether cores wait for the owner system, or it is busy."""
        return self.network.clock() < self.busy_until_ns or any(line.requested for line in self.lines)

    def turn(self, frames: list[list[bytes]]) -> None:
        """One turn of every process. `frames`: what arrives for each core."""
        try:
            now_ns = self.network.clock()
            self._turn_cores(frames)
            if now_ns >= max(self.frozen_until_ns["owner"], self.busy_until_ns) and self._wakes():
                self._step()
            self._turn_cores([[] for _ in self.cores])
        except Killed as point:
            self.kill(f"killed at: {point}")
        except ActornetError as error:
            if self.system is not None:
                self.system.fail(error)
                self._close()

    def _turn_cores(self, frames: list[list[bytes]]) -> None:
        if self.network.clock() < self.frozen_until_ns["cores"]:
            return
        for core, arriving in zip(self.cores, frames, strict=True):
            if core is not None:
                self._on_emit(self, core.turn(arriving))

    def _wakes(self) -> bool:
        """Whether the owner system has something to do, or to hear."""
        system, line = self.system, self._witness
        assert system is not None
        return (
            not self.paced
            or system.hastens
            or self.monotonic_ns() >= self._due_ns
            or any(line.requested for line in self.lines)
            or any(link.has_come for link in self._links)
            or (line is not None and line.asked and not line.busy)
        )

    def _step(self) -> None:
        system = self.system
        assert system is not None
        if self._syncer is not None and self._syncer.due and self.syncs:
            self._syncer.due = False
            self.sync()
            if self.system is None:
                return
        system.step()
        if system.lingers:  # the next step comes sooner than the simulator's next turn
            self._turn_cores([[] for _ in self.cores])
            system.step()
        self._due_ns = system.due_ns
        self._on_step(self)
        if system.wants_to_leave and not system.left:
            system.leave()
        if system.ending is not None:
            self._close()

    def _close(self) -> None:
        """The loop has ended, one way or the other."""
        system = self.system
        assert system is not None
        try:
            system.close()
            self._log = None
        except (Killed, ActornetError):
            pass
        self.kill(f"ended: {system.failure or system.ending}")

    def sync(self) -> None:
        """What the syncer's thread does now and then."""
        if self._syncer is not None and self.system is not None:
            try:
                self._syncer.log.sync()
                self._syncer.synced = self._syncer.asked
            except LogError as error:
                self._syncer.error = error
            except Killed as point:
                self.kill(f"killed at: {point}")

    def command(self, command: str, arguments: dict[str, Any]) -> str:
        """An operator's command; returns the error, if any."""
        if self.system is None:
            return "not running"
        self._due_ns = 0
        try:
            self.system.operators.command(command, arguments)
        except ActornetError as error:
            return str(error)
        except Killed as point:
            self.kill(f"killed at: {point}")
        return ""


class SimulatedOwnerSystem(OwnerSystem):
    """An owner system to whose node a pause is one."""

    environment: Any

    def _upkeep(self) -> Upkeep:
        upkeep, replica = super()._upkeep(), self.journal.replica
        tell = replica.before_pause
        replica.before_pause = lambda estimate_ns: self.environment.pause(tell, estimate_ns)
        return upkeep


class _Environment:
    """The node as its owner system sees it."""

    def __init__(self, node: Node) -> None:
        self.page: Any = Page(node)
        self.lines: Sequence[Any] = node.lines
        self.monotonic_ns = node.monotonic_ns
        self.time_ns = node.time_ns
        self.random_bits = node.random_bits
        self.open_log = node.open_log
        self.open_syncer = node.open_syncer
        self.listen = node.listen
        self.dial = node.dial
        self.dial_peers = node.dial_peers
        self.set_aside_log = node.disk.set_aside
        self.boot_ns = node.monotonic_ns
        self.pause = node.pause
        self.open_witness: Callable[[], Any] = node.open_witness
        self._node = node

    def links_down(self) -> int:
        return self._node.links_down

    def rest(self, rests: bool) -> None:
        pass

    def still_sending(self) -> int:
        return 0


_PAYLOAD = struct.Struct(">8sHI")


def frame(flow: int, kind: int, sequence: int, *, close: bool = False) -> bytes:
    """A packet of flow number `flow` (its UDP source port), which leaves with a number in place of that."""
    payload = _PAYLOAD.pack(b"close" if close else b"data", flow, sequence)
    udp = struct.pack(">HHHH", flow, kind, 8 + len(payload), 0) + payload
    header = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0, b"\x0a\0\0\x02", b"\xc6\x33\x64\x01")
    total = sum(struct.unpack(">10H", header))
    total = (total & 0xFFFF) + (total >> 16)
    total = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
    data: bytes = b"\x02\0\0\0\0\x02\x02\0\0\0\0\x01\x08\0" + header[:10] + total.to_bytes(2, "big") + header[12:] + udp
    return data


def read_frame(data: bytes) -> tuple[int, int, int, int]:
    """Flow, kind, sequence number, and the number that it left with."""
    number, kind = struct.unpack_from(">HH", data, 34)
    _, flow, sequence = _PAYLOAD.unpack_from(data, 42)
    return flow, kind, sequence, number


def five_tuple(flow: int, kind: int) -> FiveTuple:
    return FiveTuple(17, "10.0.0.2", flow, "198.51.100.1", kind)
