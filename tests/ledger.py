"""An owner that does all that owners do, in a replica that keeps its log, and what may happen to it."""

from typing import Any

import msgspec
from hypothesis import strategies as st
from port_log import executed

from actornet.engine.five_tuple import FiveTuple
from actornet.engine.records import checked
from actornet.limits import MESSAGE_BYTES_MAX
from actornet.log.record import (
    CHAIN_START,
    AskBody,
    CloseBody,
    ControlBody,
    EpochBody,
    FlowBody,
    OwnerBody,
    Record,
    decode,
    encode,
)
from actornet.owner import Owner, Struct, path_of
from actornet.replication.replica import AskRequest, Replica
from actornet.replication.replica_base import Asked

SECOND = 1_000_000_000
FLOWS = [FiveTuple(17, "10.0.0.1", 5000 + number, "198.51.100.7", 53) for number in range(3)]
FLOW = FLOWS[0]


class Book(Struct):
    free: list[int] = []
    used: dict[int, FiveTuple] = {}
    holders: dict[FiveTuple, int] = {}
    tags: set[str] = set()
    tokens: float = 0
    asked: int = 0


class Ledger(Owner[Book]):
    """Does all that owners do: gives, takes back, fails half-way, reads time and chance."""

    def start(self, first: int = 1, last: int = 5, burst: int = 10) -> Book:
        return Book(list(range(first, last + 1)), tokens=burst)

    def allocate(self, flow: FiveTuple) -> int | None:
        self.state.asked += 1
        if not self.state.free:
            return None
        port = self.state.free.pop(self.random.randrange(len(self.state.free)))
        self.state.used[port] = flow
        self.state.holders[flow] = port
        return port

    def release(self, port: int) -> None:
        self.state.asked += 1
        flow = self.state.used.pop(port)
        del self.state.holders[flow]
        self.state.free.append(port)

    def oldest(self) -> FiveTuple | None:
        return next(iter(self.state.used.values()), None)

    def tag(self, name: str) -> list[str]:
        self.state.tags |= {name, name + "'"}
        return sorted(self.state.tags)

    def spend(self, tokens: int) -> float:
        self.state.tokens = max(0, self.state.tokens - tokens)
        return self.state.tokens

    def roll(self) -> int:
        return self.random.randrange(1 << 30)

    def untag(self, name: str) -> list[str]:
        self.state.tags -= {name}
        return sorted(self.state.tags)

    def time(self) -> float:
        return self.now

    def revoke(self) -> None:
        self.revoke_offloads()

    def fail(self) -> None:
        self.state.asked += 1
        raise ValueError(f"no good: {object()}")

    def strange(self) -> int:
        return object()  # type: ignore[return-value]

    def much(self) -> bytes:
        return bytes(MESSAGE_BYTES_MAX)


PATH = path_of(Ledger)


def load(path: str) -> type[Owner[Any]]:
    assert path in (PATH, "other:Ledger")
    return Ledger


def pack(*args: object) -> bytes:
    return msgspec.msgpack.encode(args)


def outcome(reply: bytes) -> list[Any]:
    found: list[Any] = msgspec.msgpack.decode(reply)
    return found


def epoch_body(seed: int = 7) -> EpochBody:
    return EpochBody("a", "test", {}, "f00d", seed, "start")


def outside(message: str, args: bytes) -> AskRequest:
    """A message to the book from no flow."""
    return AskRequest(None, 0, 0, 0, "book", message, args)


class Primary:
    """A replica, and the encoded log that it made."""

    def __init__(self) -> None:
        self.replica = Replica(load)
        self.log: list[bytes] = []
        self.hashes = [self.replica.state_hash()]
        self.keep(self.replica.begin_epoch(1, epoch_body(), SECOND))
        self.keep(self.replica.create_owner("book", PATH, {"last": 4}, SECOND))

    def keep(self, record: Record | None) -> None:
        if record is not None:
            data, _ = encode(record, decode(self.log[-1]).chain if self.log else CHAIN_START)
            self.log.append(data)
            self.hashes.append(self.replica.state_hash())

    def ask(
        self,
        message: str,
        *args: object,
        flow: FiveTuple | None = None,
        incarnation: int = 1,
        number: int = 1,
        owner: str = "book",
        packet: bytes | None = None,
    ) -> list[Any]:
        time_ns = self.replica.time_ns + SECOND // 7
        asked = AskRequest(flow, 1, incarnation, number, owner, message, pack(*args), packet)
        record, reply = executed(self.replica, asked, time_ns)
        self.keep(record)
        return outcome(reply)

    def do(self, body: FlowBody | CloseBody | ControlBody | OwnerBody) -> None:
        self.keep(self.replica.execute(body, 0, self.replica.time_ns))

    def save(self, flow: FiveTuple, asks: int, incarnation: int = 1) -> None:
        self.do(FlowBody(flow, 1, incarnation, asks, b"state %d" % asks))

    def close(self, flow: FiveTuple, incarnation: int = 1) -> None:
        self.do(CloseBody(flow, 1, incarnation, "idle"))


def apply_decoded(replica: Replica, data: bytes) -> None:
    replica.apply(decode(data))


def apply_encoded(replica: Replica, data: bytes) -> None:
    """As a backup does, for which an ask stays bytes."""
    body = replica.apply_record(checked(data), data)
    expected = decode(data).body
    if isinstance(expected, FlowBody):
        assert FlowBody.decode(body) == expected
    elif isinstance(expected, AskBody):
        assert body is None or isinstance(body, Asked)
    else:
        assert body == expected


WAYS = [apply_decoded, apply_encoded]


def backup_of(primary: Primary) -> Replica:
    replica = Replica(load)
    for data in primary.log:
        replica.apply(decode(data))
    assert replica.state_hash() == primary.replica.state_hash()
    return replica


EVENTS = [
    "revoke",
    "allocate",
    "release",
    "oldest",
    "tag",
    "spend",
    "time",
    "fail",
    "strange",
    "absent",
    "misfit",
    "save",
    "close",
    "epoch",
    "owner",
    "control",
    "hash",
]
# One step of a history: what happens, to which flow, under which incarnation, with which number.
steps = st.lists(
    st.tuples(
        st.sampled_from(EVENTS),
        st.sampled_from([*FLOWS, None]),
        st.integers(1, 3),
        st.integers(1, 4),
    ),
    max_size=40,
)


def happen(primary: Primary, step: tuple[str, FiveTuple | None, int, int]) -> None:
    what, flow, incarnation, number = step
    replica = primary.replica
    sender: dict[str, Any] = {"flow": flow, "incarnation": incarnation, "number": number}
    match what:
        case "allocate":
            primary.ask(what, flow or FLOW, **sender)
        case "release" | "spend":
            primary.ask(what, number, **sender)
        case "tag":
            primary.ask(what, f"tag {number}", **sender)
        case "absent":
            primary.ask("allocate", FLOW, owner="nobody", **sender)
            primary.ask("absent", **sender)
        case "misfit":
            primary.ask("allocate", "no flow", **sender)
        case "save":
            primary.save(flow or FLOW, number, incarnation)
        case "close":
            primary.close(flow or FLOW, incarnation)
        case "epoch":
            primary.keep(replica.begin_epoch(replica.epoch + number, epoch_body(number), replica.time_ns))
        case "owner":
            primary.keep(replica.create_owner(f"book {number}", PATH, {"last": number}, replica.time_ns))
        case "control":
            primary.do(ControlBody("note", f"number {number}"))
        case "hash":
            primary.keep(replica.hash_state(replica.time_ns))
        case _:
            primary.ask(what, **sender)
