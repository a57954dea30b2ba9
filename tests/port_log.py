"""A log as a primary would write it, of a small port pool, for tests of the store and of replay."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import lmdb
import msgspec

from actornet.engine.five_tuple import FiveTuple
from actornet.engine.records import seal
from actornet.log.record import CloseBody, ControlBody, EpochBody, FlowBody, Kind, Record, decode, encode
from actornet.log.store import Log
from actornet.owner import Owner, Struct
from actornet.replication.replica import AskRequest, Replica

NF = "actors.nat:SourceNAT"
TIME_NS = 1_770_000_000_000_000_000
PATH = "port_log:PortPool"


class Ports(Struct):
    address: str
    free: list[int]
    used: dict[int, FiveTuple] = {}


class PortPool(Owner[Ports]):
    def start(self, address: str, first: int, last: int) -> Ports:
        return Ports(address, list(range(first, last + 1)))

    def allocate(self, flow: FiveTuple) -> int | None:
        if not self.state.free:
            return None
        port = self.state.free.pop(self.random.randrange(len(self.state.free)))
        self.state.used[port] = flow
        return port

    def release(self, port: int) -> None:
        del self.state.used[port]
        self.state.free.append(port)


class LastPortPool(PortPool):
    """The same pool after somebody changed its code: it hands out ports from the end."""

    def allocate(self, flow: FiveTuple) -> int | None:
        port = self.state.free.pop()
        self.state.used[port] = flow
        return port


def flow(number: int) -> FiveTuple:
    return FiveTuple(17, f"10.0.{number >> 8 & 255}.{number & 255}", 4000, "192.0.2.1", 53)


def executed(replica: Replica, asked: AskRequest, time_ns: int) -> tuple[Record | None, bytes]:
    """What an ask's record says, if there is one, and its reply."""
    body, reply = replica.execute_ask(asked.encoded(), time_ns)
    if body is None:
        return None, reply
    data, _ = seal(Kind.ASK, 0, replica.epoch, replica.lsn, replica.time_ns, body, 0)
    return decode(data, replica.lsn), reply


class Primary:
    """Executes, encodes, and appends one batch at a time; goes on where a log ends when given its replica."""

    def __init__(self, log: Log, replica: Replica | None = None) -> None:
        self.log = log
        self.replica = replica or Replica()
        self.chain = log.last_chain
        self.batch: list[tuple[int, bytes]] = []
        self.hashes = {self.replica.lsn: self.replica.state_hash()}
        """LSN -> hash of the state there."""
        if replica is None:
            term = EpochBody("edge-a", NF, {"address": "203.0.113.1"}, "ab12" * 8, 77, "start")
            self.take(self.replica.begin_epoch(1, term, TIME_NS))
            settings = {"address": "203.0.113.1", "first": 1001, "last": 1200}
            self.take(self.replica.create_owner("wan-ports", PATH, settings, TIME_NS))
            self.flush()

    @property
    def time_ns(self) -> int:
        return TIME_NS + self.replica.lsn * 1_000_000

    def take(self, record: Record | None) -> None:
        assert record is not None
        data, self.chain = encode(record, self.chain)
        self.batch.append((record.lsn, data))
        self.hashes[record.lsn] = self.replica.state_hash()

    def flush(self) -> None:
        self.log.append(self.batch)
        self.batch = []

    def ask(self, sender: FiveTuple | None, number: int, message: str, *args: object) -> bytes:
        encoded = msgspec.msgpack.encode(args)
        asked = AskRequest(sender, 0, 1, number, "wan-ports", message, encoded)
        record, reply = executed(self.replica, asked, self.time_ns)
        self.take(record)
        return reply

    def open_flow(self, number: int) -> None:
        """Three records: the flow asks for a port and is saved, and the state's hash, or the flow's end."""
        sender = flow(number)
        self.ask(sender, 1, "allocate", sender)
        state = msgspec.msgpack.encode([[number, "open"], [[sender.reversed(), "wan", None, False, None]], 60 * 10**9])
        self.take(self.replica.execute(FlowBody(sender, 0, 1, 1, state), 0, self.time_ns))
        if number % 4 == 0:
            self.take(self.replica.hash_state(self.time_ns))
        else:
            self.take(self.replica.execute(CloseBody(sender, 0, 1, "idle"), 0, self.time_ns))
        self.flush()

    def snapshot(self) -> None:
        self.log.snapshot_save(self.replica.lsn, self.replica.snapshot(), self.chain)

    def stop(self) -> None:
        self.take(self.replica.execute(ControlBody("stop", "by the test"), 0, self.time_ns))
        self.flush()


def write(directory: Path, flows: int, snapshot_at: int = -1) -> dict[int, int]:
    """Write a whole log, with a snapshot after flow number `snapshot_at`; returns the state's hash at each LSN."""
    with Log(directory, name="edge", nf=NF) as log:
        primary = Primary(log)
        for number in range(flows):
            primary.open_flow(number)
            if number == snapshot_at:
                primary.snapshot()
        primary.ask(None, 1, "release", 1)  # no such port: the reply is an error
        primary.stop()
        return primary.hashes


def flip(directory: Path, wanted: bytes, at: int) -> None:
    """Flip one bit of these bytes, wherever the file has them."""
    file = directory / "data.mdb"
    content = bytearray(file.read_bytes())
    assert wanted in content
    changed = bytearray(wanted)
    changed[at] ^= 0x10
    file.write_bytes(content.replace(wanted, changed))


@contextmanager
def table(directory: Path, name: str) -> Iterator[lmdb.Transaction[bytes]]:
    """Write a table behind the log's back."""
    with lmdb.open(str(directory), max_dbs=3, map_size=1 << 30) as environment:
        database = environment.open_db(name.encode(), create=False)
        with environment.begin(write=True, db=database) as txn:
            yield txn


def in_child(work: Callable[[], object]) -> int:
    """Run this in a forked process, which ends with it; returns its PID. An exception gives exit code 1."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        work()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def exit_code(pid: int) -> int:
    """Wait for a child; its exit code, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
