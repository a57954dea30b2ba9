"""Packets that a primary took and did not send: its backup goes on with them (G1, G3, G5)."""

from __future__ import annotations

import ipaddress
import os
import random
import socket
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest

from actornet import DROP, FORWARD, Direction, FlowActor, Owner, Packet, StreamActor, Struct, Verdict
from actornet.engine.asks import ask_reply, is_ask
from actornet.engine.core import Core
from actornet.engine.five_tuple import FiveTuple
from actornet.engine.ring import ACTIVE, ControlPage, Ring
from actornet.engine.wire import rss_hash
from actornet.errors import LinkError
from actornet.limits import (
    LINK_FRAME_BYTES_MAX,
    PACKET_KEPT_BYTES_MAX,
    RING_BYTES,
    UNSENT_PACKETS_MAX,
    UNSENT_S,
    UNSENT_TOLD_BYTES,
)
from actornet.node import exchange
from actornet.node.core_worker import RingLink
from actornet.ports.host import Host
from actornet.ports.memory import MemoryPort
from actornet.replication import messages
from actornet.replication.unsent import Leaving, Taken, Told, Unsent
from actornet.testing.pair import Name, Pair, Role
from actornet.testing.tcp_endpoint import ACK, SYN
from actornet.testing.traffic import SERVER, udp_socket
from tests import frames
from tests.dying_node import WAITS_S
from tests.processes import wait_until
from tests.protocol_bench import in_sync, sent
from tests.test_takeover import verify_log

SEED = int(os.environ.get("UNSENT_SEED", "0")) or random.SystemRandom().getrandbits(32)
SECOND = 1_000_000_000
HEAD = bytes(13)
ANSWER = msgspec.msgpack.encode((0, True))


class Count(FlowActor):
    """Its packets wait for their record, one after the other."""

    count: int = 0

    def on_packet(self, packet: Packet) -> Verdict:
        self.count += 1
        return FORWARD


class State(Struct):
    asked: int = 0


class Gate(Owner[State]):
    def opens(self) -> bool:
        return True


class Asking(FlowActor):
    """Asks an owner before anything leaves."""

    gate = Gate.named("gate")

    async def on_open(self, packet: Packet) -> None:
        await self.gate.opens()
        self.offload(FORWARD)


class Followed:
    """A core of a primary with a backup, or without; what it tells is heard by `unsent`."""

    def __init__(self, nf: type[FlowActor] = Count, followed: bool = True) -> None:
        nf.prepare()
        self.requests, self.replies = Ring.create("requests", 1 << 20), Ring.create("replies", 1 << 16)
        self.page = ControlPage.create(1)
        self.page.role, self.page.followed = ACTIVE, followed
        self.link = RingLink(self.requests, self.replies, nf)
        self.lan, self.wan = MemoryPort("lan"), MemoryPort("wan")
        self.core = Core(nf, [self.lan, self.wan], link=self.link, virtual_time=True, now_ns=SECOND)
        self.link.core = self.core
        self.core.share(self.page, self.replies)
        self.link.attach()
        self.requests.pop_many(1)
        self.replies.push(exchange.encode(exchange.Attaching(os.getpid())))
        self.replies.push(exchange.encode(exchange.Attached(os.getpid(), 1)))
        self.unsent = Unsent()
        self.told: list[Told] = []
        self.sequence = 1  # of requests
        self.asked: list[int] = []  # asks that wait for their replies

    def take(self, *arriving: bytes) -> list[bytes]:
        """What leaves."""
        self.lan.feed([(SECOND, frame) for frame in arriving])
        self.core.breathe()
        for request in self.requests.pop_many(1 << 16):
            if request.startswith(exchange.UNSENT):
                told = msgspec.msgpack.decode(request[len(exchange.UNSENT) :], type=Told)
                self.told.append(told)
                self.unsent.hear(0, 7, told, 0)
                continue
            self.sequence += 1
            if is_ask(request):
                self.asked.append(self.sequence)
        return [bytes(frame) for _, frame in self.wan.take()]

    def answer(self) -> None:
        """Every ask that waits, with True."""
        for number in self.asked:
            self.replies.push(ask_reply(number, ANSWER))
        self.asked.clear()

    def commit(self, requests: int) -> list[bytes]:
        """What leaves when so many asks and records are; to attach was a request, too."""
        self.page.set_committed(0, 1 + requests)
        return self.take()

    def left(self, lsn: int = 7) -> tuple[list[bytes], list[bytes]]:
        """Frames that a backup whose log comes to `lsn` would send, and treat."""
        leaving, taken = self.unsent.left(lsn, [], 0)
        return [one.packet[len(HEAD) :] for one in leaving], [one.packet[len(HEAD) :] for one in taken]


def udp(number: int, data: bytes = b"x", source: int = 1000) -> bytes:
    return frames.udp("10.0.0.2", source, "198.51.100.1", 53, data + bytes([number]))


def test_output_that_waits_is_told_and_settled_when_it_has_left() -> None:
    """G3: what is resent is what would have left, in order, and only where its records are."""
    node = Followed()
    assert node.take(udp(1), udp(2)) == [] and len(node.unsent) == 2
    assert node.commit(1) == [udp(1)]
    assert len(node.unsent) == 1 and node.left() == ([udp(2)], [])
    assert node.take(udp(3)) == [] and node.left(lsn=6) == ([], []), "its record is not in that log"
    assert node.commit(3) == [udp(2), udp(3)] and len(node.unsent) == 0


def test_what_a_handler_waits_with_and_what_queues_behind_is_told() -> None:
    """G1: as it came, in order; and as it is to leave, once that has been decided."""
    node = Followed(Asking)
    assert node.take(udp(1), udp(2), udp(3)) == []
    assert node.left() == ([], [udp(1), udp(2), udp(3)])
    assert node.take(udp(4)) == []
    node.answer()
    assert node.take() == [] and node.core.held == 4, "the flow's record is to be committed"
    assert node.left() == ([udp(1), udp(2), udp(3), udp(4)], [])
    assert node.commit(2) == [udp(1), udp(2), udp(3), udp(4)]
    assert {number for told in node.told for number in told.done} == {1, 2, 3, 4}
    assert node.take(udp(5)) == [udp(5)] and not node.told[-1].waits, "what does not wait is told to nobody"


class Shorten(StreamActor):
    """Edits what the server sends, and asks about what the client does."""

    inline = True
    gate = Gate.named("gate")

    async def on_data(self, direction: Direction, data: bytes) -> Any:
        if direction is Direction.REPLY:
            return data.replace(b"x", b"")
        await self.gate.opens()
        return FORWARD


def test_a_packet_of_an_edited_stream_waits_as_it_came() -> None:
    """G6: who goes on with it takes its acknowledgement to the other end's numbers, once."""
    client, server, node = ("10.0.0.2", 1000), ("198.51.100.1", 80), Followed(Shorten)
    node.commit(1000)
    node.take(frames.tcp(*client, *server, SYN, seq=99))
    node.wan.feed([(SECOND, frames.tcp(*server, *client, SYN | ACK, seq=499, ack=100))])
    node.wan.feed([(SECOND, frames.tcp(*server, *client, ACK, b"axx", seq=500, ack=100))])
    node.take(frames.tcp(*client, *server, ACK, seq=100, ack=500))
    waiting = frames.tcp(*client, *server, ACK, b"hello", seq=100, ack=501)
    assert node.take(waiting) == [] and node.left() == ([], [waiting])
    node.answer()
    (leaves,) = node.take()
    assert leaves == frames.tcp(*client, *server, ACK, b"hello", seq=100, ack=503)


def test_who_goes_on_is_told_where_the_flow_is_at_home() -> None:
    """G1: by its first key, whichever core had it: there it begins after a takeover."""
    node = Followed(Asking)
    node.take(udp(1, source=1000), udp(2, source=1001), udp(3, source=1000))
    homes = [rss_hash(FiveTuple(17, "10.0.0.2", source, "198.51.100.1", 53)) % 128 for source in (1000, 1001, 1000)]
    assert homes[0] != homes[1]
    leaving, taken = node.unsent.left(7, [], 0)
    assert not leaving and [one.entry for one in taken] == homes


class AskingEach(FlowActor):
    gate = Gate.named("gate")

    async def on_packet(self, packet: Packet) -> Verdict:
        await self.gate.opens()
        return FORWARD


def test_the_order_of_arrival_counts_where_a_backup_joins_among_packets_that_wait() -> None:
    """G1: it hears first of the last one, which came when it had joined, and of the one before that when its turn comes."""
    node = Followed(AskingEach, followed=False)
    node.take(udp(1), udp(2))
    node.page.followed = True
    node.take(udp(3))
    node.answer()
    node.take()
    assert [told.waits[0][0] for told in node.told if told.waits] == [3, 1]
    assert node.left() == ([udp(1)], [udp(2), udp(3)])


def test_nobody_is_told_where_no_backup_counts() -> None:
    node = Followed(followed=False)
    assert node.take(udp(1)) == [] and not node.told
    node.page.followed = True
    assert node.commit(1) == [udp(1)] and not node.told


def test_what_is_dropped_is_settled_unless_by_a_fenced_node() -> None:
    """G7: what a fenced node did not send its successor may."""
    node = Followed(Refusing)
    assert node.take(udp(1), udp(2)) == [] and len(node.unsent) == 2
    for _ in range(2):  # the second opens the flow anew
        node.answer()
        assert node.take() == []
    assert len(node.unsent) == 0
    node = Followed()
    node.take(udp(1))
    node.core.drop_held()
    assert node.take() == [] and node.left() == ([udp(1)], [])


class Refusing(Asking):
    async def on_open(self, packet: Packet) -> Verdict:  # type: ignore[override]
        await self.gate.opens()
        return DROP


def test_frames_that_are_too_large_are_not_told() -> None:
    node = Followed()
    large = udp(1, bytes(PACKET_KEPT_BYTES_MAX))
    assert node.take(large, udp(2)) == [] and node.left() == ([udp(2)], [])
    assert node.commit(2) == [large, udp(2)]


def test_all_that_a_core_was_told_of_is_settled_in_the_end() -> None:
    """G8: whatever way packets go, nothing is left that a backup would send again."""
    rng = random.Random(SEED)
    for nf in (Count, Asking, Refusing):
        node, committed = Followed(nf), 0
        for _ in range(200):
            arriving = [udp(rng.randrange(256), source=rng.randint(1000, 1020)) for _ in range(rng.randint(0, 9))]
            node.take(*arriving)
            node.answer()
            committed = rng.randint(committed, node.link.sequence - 1)
            node.commit(committed)
        for _ in range(100):  # those that were refused open flows anew, one by one
            node.answer()
            node.commit(node.link.sequence - 1)
        assert node.core.held == node.core.suspended == 0 and node.told
        assert len(node.unsent) == 0, f"seed {SEED}, {nf.__name__}"


def test_a_core_resends_as_its_own() -> None:
    """Frames of a routed port carry its MAC address, not the old node's; a checksum that is to be finished stays so."""
    node = Followed()
    node.core.unsent.resend(1, HEAD + udp(1))
    node.core.unsent.resume(0, HEAD + udp(2, source=2000))
    assert node.take() == [udp(1)] and node.core.held == 1
    assert node.core.count()["resent"] == node.core.count()["resumed"] == 1
    lan, wan = MemoryPort("lan"), MemoryPort("wan")
    wan.interface, wan.mac = ipaddress.ip_interface("203.0.113.1/24"), b"\2\0\0\0\0\x77"
    core = Core(Count, [lan, wan], host=Host([lan, wan]))
    core.unsent.resend(1, HEAD + udp(1))
    ((_, frame),) = wan.take()
    assert bytes(frame) == udp(1)[:6] + wan.mac + udp(1)[12:]


def told(*waits: tuple[int, int, int, bytes], entry: int = 0, done: tuple[int, ...] = ()) -> Told:
    return Told([(number, out, port, HEAD + data, entry) for number, out, port, data in waits], list(done))


def test_the_ring_at_the_backup() -> None:
    """G1, G3: sent in the order of decisions, treated in that of arrivals; what a lost record decided is treated anew."""
    unsent = Unsent()
    unsent.hear(0, 5, told((1, -1, 0, b"a"), (2, -1, 0, b"b"), (3, -1, 1, b"c")), 0)
    unsent.hear(0, 6, told((2, 1, 0, b"B")), 0)
    unsent.hear(1, 7, told((1, 1, 0, b"other core"), (2, -1, 0, b"asked"), entry=127), 0)
    unsent.hear(0, 8, told((3, 0, 1, b"C"), (1, 1, 0, b"A"), done=(9,)), 0)
    assert len(unsent) == 5
    leaving, taken = unsent.left(7, [(0, HEAD + b"asked")], 0)
    assert leaving == [Leaving(0, 1, HEAD + b"B"), Leaving(127, 1, HEAD + b"other core")]
    assert taken == [Taken(0, 0, HEAD + b"a"), Taken(0, 1, HEAD + b"c")]
    assert len(unsent) == 0


def test_what_is_done_old_or_of_a_core_that_is_no_more_is_forgotten() -> None:
    unsent = Unsent()
    unsent.hear(0, 5, told((1, -1, 0, b"a"), (2, -1, 0, b"b")), 0)
    unsent.hear(1, 5, told((1, -1, 0, b"c"), done=(1,)), SECOND)
    unsent.hear(1, 5, told((2, -1, 0, b"d")), SECOND)
    unsent.hear(0, 5, None, SECOND)
    unsent.hear(0, 5, told((1, -1, 0, b"e")), SECOND)
    assert [one.packet for one in unsent.left(5, [], SECOND * (1 + UNSENT_S))[1]] == [HEAD + b"e", HEAD + b"d"]
    unsent.hear(0, 5, told((1, -1, 0, b"f")), SECOND)
    assert unsent.left(5, [], SECOND * (1 + UNSENT_S) + 1) == ([], [])


def test_the_ring_is_bounded() -> None:
    """G8: the oldest go, and are counted."""
    unsent = Unsent()
    for number in range(UNSENT_PACKETS_MAX + 10):
        unsent.hear(0, 5, told((number, -1, 0, b"%d" % number)), 0)
    assert len(unsent) == UNSENT_PACKETS_MAX and unsent.evicted == 10
    assert unsent.left(5, [], 0)[1][0].packet == HEAD + b"10"


@pytest.mark.parametrize(
    "waits",
    [
        (-1, -1, 0, HEAD, 0),
        (1, 16, 0, HEAD, 0),
        (1, -2, 0, HEAD, 0),
        (1, -1, 16, HEAD, 0),
        (1, -1, 0, b"short", 0),
        (1, -1, 0, HEAD, 128),
        (1, -1, 0, HEAD),
    ],
)
def test_a_message_that_is_none_is_refused(waits: Any) -> None:
    """G9: a peer of the deployment is believed, but not to the point that a core fails."""
    data = messages.encode(messages.Unsent(1, [(0, 1, msgspec.Raw(msgspec.msgpack.encode(([waits], []))))]))  # type: ignore[arg-type]
    with pytest.raises(LinkError):
        messages.decode(data)


def test_what_waits_fits_the_links_frames_however_much_it_is() -> None:
    """G6: a core tells of all of it when a backup joins, and the owner system has read a ring full of that at one step."""
    told = msgspec.msgpack.encode(([[1, -1, 0, bytes(UNSENT_TOLD_BYTES), 0]], []))
    unsent = [(core, 3, msgspec.Raw(told)) for core in range(RING_BYTES // UNSENT_TOLD_BYTES)]
    said: list[Any] = sent(in_sync().unsent(unsent))
    assert [core for message in said for core, _, _ in message.unsent] == list(range(len(unsent)))
    assert max(len(messages.encode(message)) for message in said) <= LINK_FRAME_BYTES_MAX


class Sink:
    """What comes to a port of the server."""

    def __init__(self, pair: Pair, port: int) -> None:
        self._socket = pair.lab.call("server", udp_socket, SERVER, port)
        self.came: Counter[bytes] = Counter()

    def look(self) -> Counter[bytes]:
        self._socket.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                self.came[self._socket.recv(64)] += 1
        return self.came


def send(pair: Pair, *datagrams: bytes) -> None:
    """Each of a new flow, once."""

    def run() -> None:
        for datagram in datagrams:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.bind(("10.0.0.2", 0))
                sock.sendto(datagram, (SERVER, 9000))

    pair.lab.call("client", run)


@pytest.mark.root
@pytest.mark.parametrize("end", ["kill", "terminate"])
def test_packets_whose_handlers_wait_outlive_the_primary(tmp_path: Path, end: str) -> None:
    """G1, G6: they were taken, and nobody sends them again but the backup."""
    with Pair(tmp_path / "pair", "tests.dying_node:WaitingNAT") as pair:
        pair.start()
        sink = Sink(pair, 9000)
        datagrams = [b"%d" % number for number in range(30)]
        send(pair, *datagrams)
        time.sleep(WAITS_S / 2)
        assert not sink.look()
        pair.kill("a") if end == "kill" else pair.nodes["a"].terminate()
        taken = pair.wait_takeover("b")
        assert taken["packets"] == {"resent": 0, "resumed": 30}
        wait_until(lambda: len(sink.look()) == 30)
        assert sink.came == Counter(datagrams)
        assert pair.worker("b", "core-0")["status"]["counters"]["resumed"] == 30
        pair.stop("b")
        verify_log(pair, "b")


@pytest.mark.root
def test_a_flow_in_its_first_packet_outlives_the_primary(tmp_path: Path) -> None:
    """G3, G5, G6: wherever its owner system dies, a flow's only packet arrives, and no port is taken twice for it."""
    points = ["after append", "sent", "before the watermark"]
    random.Random(SEED).shuffle(points)
    witness = f"file:{tmp_path}/witness"
    with Pair(tmp_path / "pair", "tests.dying_node:SourceNAT", witness=witness, lease_ms=150) as pair:

        def begin(node: Name, role: Role) -> None:
            pair.begin(node, role, environment={"ACTORNET_TEST_POINT": str(tmp_path / f"point-{node}")})

        begin("a", "primary")
        pair.wait_for("a", "^pair primary ready")
        begin("b", "backup")
        pair.wait_in_sync("b")
        sink = Sink(pair, 9000)
        for point in points:
            old: Name = pair.primary
            new: Name = "b" if old == "a" else "a"
            (tmp_path / f"point-{old}").write_text(point)
            send(pair, point.encode())
            pair.nodes[old].wait(10)
            taken = pair.wait_takeover(new)
            wait_until(lambda point=point: sink.look()[point.encode()] == 1)  # type: ignore[misc]
            assert sum(taken["packets"].values()) == 1, (point, taken)
            begin(old, "backup")
            wait_until(lambda old=old: '"event":"in sync"' in pair.printed(old), 10)  # type: ignore[misc]
        time.sleep(0.1)
        assert sink.look() == Counter(point.encode() for point in points), f"seed {SEED}"
        pair.stop(pair.primary)
        for node in ("a", "b"):
            verify_log(pair, node)
