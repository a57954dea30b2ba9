"""Messages to owners as bytes: written as msgspec writes them, read with bounds."""

from __future__ import annotations

from socket import AF_INET6, inet_pton
from typing import Any

import dpkt
import msgspec
import pytest
from frames import ethernet, udp
from hypothesis import given
from hypothesis import strategies as st

from actornet import DROP, FlowActor, Owner, Packet, Struct, Verdict
from actornet.engine.asks import OwnerLink, ask_body, ask_reply, ask_request, is_ask, push_reply, read_ask
from actornet.engine.core import Core
from actornet.engine.five_tuple import FiveTuple, flow_key
from actornet.engine.flow_state import flow_body
from actornet.engine.ring import ControlPage, Ring
from actornet.errors import RingError
from actornet.log.record import AskBody, FlowBody
from actornet.ports.memory import MemoryPort
from actornet.replication.replica import AskRequest

FLOW = FiveTuple(17, "10.0.0.1", 5000, "198.51.100.7", 53)
ARGS = msgspec.msgpack.encode((1, "two"))

flows = st.one_of(
    st.none(),
    st.builds(
        FiveTuple,
        st.integers(0, 255),
        st.ip_addresses().map(str),
        st.integers(0, 65_535),
        st.ip_addresses().map(str),
        st.integers(0, 65_535),
    ),
)
unsigned = st.one_of(st.integers(0, 300), st.integers(0, (1 << 64) - 1))
requests = st.builds(
    AskRequest,
    flows,
    st.integers(0, 255),
    unsigned,
    unsigned,
    st.text(max_size=300),
    st.text(),
    st.binary(max_size=70_000),
    st.none() | st.binary(max_size=3_000),
)


class Sums(Struct):
    total: int = 0


class Adder(Owner[Sums]):
    def add(self, n: int) -> int:
        self.state.total += n
        return self.state.total


class Asks(FlowActor):
    """Asks twice at its first packet, and keeps what came."""

    adder = Adder.named("adder")
    _seen: list[Any] = []

    async def on_packet(self, packet: Packet) -> Verdict:
        first, second = self.adder.add(1), self.adder.add(n=2)
        self._seen = [self, await second, await first]
        return DROP


@given(requests)
def test_what_is_read_is_what_was_written(asked: AskRequest) -> None:
    """G2, G5: key and target are the bytes by which flows and handlers are looked up."""
    request = asked.encoded()
    assert is_ask(request)
    key, incarnation, number, target, args, packet = read_ask(request)
    assert key == (flow_key(asked.flow, asked.port) if asked.flow else b"")
    assert (incarnation, number, args) == (asked.incarnation, asked.number, asked.args)
    assert packet == (asked.packet or b"")
    assert target == msgspec.msgpack.encode((asked.owner, asked.message))[1:]


@given(requests, unsigned)
def test_a_records_body_is_the_request_and_the_replys_hash(asked: AskRequest, reply_hash: int) -> None:
    body = msgspec.msgpack.decode(ask_body(asked.encoded(), reply_hash), type=AskBody)
    assert body == AskBody(*msgspec.structs.astuple(asked), reply_hash)


@given(requests, st.data())
def test_other_bytes_are_refused(asked: AskRequest, data: st.DataObject) -> None:
    """G9, between processes: what is cut, prolonged or changed is read within its bounds, or refused."""
    request = bytearray(asked.encoded())
    request[data.draw(st.integers(0, len(request) - 1))] = data.draw(st.integers(0, 255))
    changed = bytes(request[: data.draw(st.integers(0, len(request)))]) + data.draw(st.binary(max_size=3))
    try:
        key, _, _, target, args, packet = read_ask(changed)
    except RingError:
        return
    assert all(part in changed for part in (key, target, args, packet))


@given(st.binary(max_size=200))
def test_noise_is_refused(noise: bytes) -> None:
    with pytest.raises(RingError):
        read_ask(noise)


def udp6(source: str, sport: int, destination: str, dport: int) -> bytes:
    datagram = dpkt.udp.UDP(sport=sport, dport=dport, data=b"x", ulen=9)
    addresses = {"src": inet_pton(AF_INET6, source), "dst": inet_pton(AF_INET6, destination)}
    return ethernet(bytes(dpkt.ip6.IP6(**addresses, nxt=17, hlim=64, plen=9, data=datagram)), 0x86DD)


class Ends:
    """A core whose owner system is this test."""

    def __init__(self) -> None:
        self.requests, self.replies = Ring.create("requests", 1 << 12), Ring.create("replies", 1 << 12)
        self.link = Link(self.requests, self.replies)
        self.lan = MemoryPort("lan")
        Asks.prepare()
        self.core = Core(Asks, [self.lan, MemoryPort("wan")], link=self.link)
        self.core.share(ControlPage.create(1), self.replies)
        self.link.attached = True

    def take(self, frame: bytes) -> list[bytes]:
        self.lan.feed([(0, frame)])
        self.core.breathe()
        return list(self.requests.pop_many(10))


class Link(OwnerLink):
    def __init__(self, requests: Ring, replies: Ring) -> None:
        self.other: list[bytes] = []

    def save(self, actor: FlowActor) -> int:
        return self.sequence

    def heard(self, data: bytes) -> None:
        self.other.append(data)


@pytest.mark.parametrize(
    ("frame", "flow"),
    [
        (udp("10.0.0.1", 5000, "198.51.100.7", 53), FLOW),
        (
            udp6("2001:db8::1", 1, "::ffff:1.2.3.4", 65_535),
            FiveTuple(17, "2001:db8::1", 1, "::ffff:1.2.3.4", 65_535),
        ),
    ],
)
def test_a_core_writes_what_msgspec_would(frame: bytes, flow: FiveTuple) -> None:
    """G5: so that what is recorded under one incarnation is found when the next asks."""
    ends = Ends()
    sent = ends.take(frame)
    args = [msgspec.msgpack.encode((n,)) for n in (1, 2)]
    kept = [bytes(13) + frame, None]
    assert sent == [AskRequest(flow, 0, 1, n + 1, "adder", "add", args[n], kept[n]).encoded() for n in range(2)]
    (actor,) = ends.core.actors()
    assert flow_body(actor) == msgspec.msgpack.encode(FlowBody(flow, 0, 1, 2, actor.saved_state()))
    assert ask_request(None, "adder", "add", ARGS) == AskRequest(None, 0, 0, 0, "adder", "add", ARGS).encoded()


def test_replies_find_their_asks() -> None:
    ends = Ends()
    ends.take(udp("10.0.0.1", 5000, "198.51.100.7", 53))
    assert ends.core.suspended == 1
    for sequence, value in ((1, 10), (2, 20)):
        assert push_reply(ends.replies, sequence, msgspec.msgpack.encode((0, value)))
    ends.replies.push(b"\x91\x63")
    ends.core.breathe()
    assert ends.core.suspended == 0 and ends.link.other == [b"\x91\x63"]
    assert ends.core.count()["handler_error"] == 0


def test_replies_to_an_earlier_process_are_dropped() -> None:
    ends = Ends()
    ends.link.attached = False
    push_reply(ends.replies, 7, b"\x92\x00\x01")
    ends.core.breathe()
    ends.link.attached = True
    push_reply(ends.replies, 7, b"\x92\x00\x01")
    with pytest.raises(KeyError):
        ends.core.breathe()


def test_a_reply_that_does_not_fit_waits() -> None:
    ring = Ring.create("replies", 1 << 12)
    count = 0
    while push_reply(ring, count, b"x" * 100):
        count += 1
    assert count > 20 and len(list(ring.pop_many(100))) == count
    ring.push(ask_reply(1 << 40, b"x" * 100))
    assert msgspec.msgpack.decode(ring.pop() or b"") == [11, 1 << 40, b"x" * 100]


def test_a_cut_reply_is_refused() -> None:
    ends = Ends()
    ends.replies.push(ask_reply(1, b"reply")[:-1])
    with pytest.raises(RingError, match="cannot be read"):
        ends.core.breathe()
