"""Stream actors: bytes out of packets, edits back into packets, between two ends over a network that loses and reorders."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path
from typing import Any, ClassVar

import dpkt
import pytest

from actornet import DROP, FORWARD, REJECT, Direction, Packet, StreamActor
from actornet.cli.main import main
from actornet.cli.run import _report
from actornet.engine.counters import DROPS
from actornet.engine.wire import checksums_right
from actornet.errors import UsageError
from actornet.ports.pcap import read_capture
from actornet.testing.tcp_endpoint import ACK, FIN, PSH, RST, SYN, Endpoint
from tests import frames
from tests.test_core import Bench, SlowLink

CLIENT, SERVER = ("10.0.0.2", 1000), ("198.51.100.1", 80)
WRAP = 1 << 32


class Wire:
    """Two ends and a core between them; each of the four ways loses, repeats and reorders."""

    def __init__(self, node: Bench, client: Endpoint, server: Endpoint, rng: random.Random, trouble: float) -> None:
        self.node, self.client, self.server, self.rng, self.trouble = node, client, server, rng, trouble
        self.to_lan: list[bytes] = [client.open()]
        self.to_wan: list[bytes] = []

    def muddle(self, packets: list[bytes]) -> list[bytes]:
        out = []
        for packet in packets:
            if self.rng.random() >= self.trouble:
                out += [packet] * (2 if self.rng.random() < self.trouble else 1)
        for i in range(len(out) - 1):
            if self.rng.random() < self.trouble:
                out[i], out[i + 1] = out[i + 1], out[i]
        return out

    def step(self) -> bool:
        """One exchange; False when nothing was on its way."""
        lan, self.to_lan = self.muddle(self.to_lan), []
        wan, self.to_wan = self.muddle(self.to_wan), []
        self.node.lan_in(*lan)
        self.node.wan_in(*wan)
        for _ in range(3):
            self.node.wait()
        for frame in self.muddle(self.node.out()):
            self.to_wan += self.server.receive(frame)
        for frame in self.muddle([bytes(frame) for _, frame in self.node.lan.take()]):
            self.to_lan += self.client.receive(frame)
        return bool(lan or wan)

    def run(self, between: Callable[[], None] = lambda: None) -> None:
        for _ in range(3000):
            between()
            if self.client.done and self.server.done:
                return
            if not self.step():
                self.to_lan += self.client.again()
                self.to_wan += self.server.again()
        raise AssertionError(
            f"stuck: client {self.client.acknowledged}/{len(self.client.data)}, "
            f"server {self.server.acknowledged}/{len(self.server.data)}"
        )


def ends(rng: random.Random, length: int = 1500) -> tuple[Endpoint, Endpoint]:
    isns = [rng.choice([5, WRAP - 1, WRAP - 700, rng.randrange(WRAP)]) for _ in range(2)]
    texts = [bytes(rng.choice(b"abcdefgh <>") for _ in range(rng.randrange(1, length))) for _ in range(2)]
    return Endpoint(CLIENT, SERVER, isns[0], texts[0]), Endpoint(SERVER, CLIENT, isns[1], texts[1])


class Watch(StreamActor):
    seen: ClassVar[dict[Direction, bytearray]] = {}

    def on_data(self, direction: Direction, data: bytes) -> Any:
        Watch.seen[direction] += data


class WatchInline(Watch):
    inline = True


class WatchAsync(Watch):
    inline = True

    async def on_data(self, direction: Direction, data: bytes) -> Any:
        await asyncio.sleep(0)
        Watch.seen[direction] += data


@pytest.fixture(autouse=True)
def fresh() -> None:
    Watch.seen = {Direction.ORIGINAL: bytearray(), Direction.REPLY: bytearray()}
    Grow.seen = {Direction.ORIGINAL: bytearray(), Direction.REPLY: bytearray()}


@pytest.mark.parametrize("nf", [Watch, WatchInline, WatchAsync])
@pytest.mark.parametrize("seed", range(8))
def test_an_actor_sees_what_the_ends_exchange(nf: type[StreamActor], seed: int) -> None:
    """G1: in order and once, whatever the network does; the ends get it unchanged."""
    rng = random.Random(seed)
    node = Bench(nf)
    client, server = ends(rng)
    Wire(node, client, server, rng, 0.12 if seed else 0.0).run()
    assert server.stream == client.data and client.stream == server.data
    assert bytes(Watch.seen[Direction.ORIGINAL]) == client.data and bytes(Watch.seen[Direction.REPLY]) == server.data
    assert node.errors == [] and node.count("handler_error") == 0


def swell(data: bytes) -> bytes:
    """Per byte, so that it does not depend on how the stream was cut: grows, shrinks, and changes in place."""
    return data.replace(b"<", b"&lt;").replace(b"a", b"").replace(b"b", b"B").replace(b">", b"[" + b"long" * 40 + b"]")


class Grow(StreamActor):
    inline = True
    seen: ClassVar[dict[Direction, bytearray]] = {}

    def on_data(self, direction: Direction, data: bytes) -> Any:
        Grow.seen[direction] += data
        return swell(data)


class GrowAsync(Grow):
    async def on_data(self, direction: Direction, data: bytes) -> Any:
        await asyncio.sleep(0)
        Grow.seen[direction] += data
        return swell(data)


@pytest.mark.parametrize("nf", [Grow, GrowAsync])
@pytest.mark.parametrize("seed", range(25))
def test_edits_in_flight_keep_the_connection_whole(nf: type[StreamActor], seed: int) -> None:
    """Sequence numbers, acknowledgements, SACK, checksums and retransmissions fit on both sides, wrap-around included."""
    rng = random.Random(seed)
    node = Bench(nf)
    client, server = ends(rng)
    Wire(node, client, server, rng, 0.12 if seed else 0.0).run()
    assert server.stream == swell(client.data) and client.stream == swell(server.data)
    assert bytes(Grow.seen[Direction.ORIGINAL]) == client.data, "every byte was decided on once"
    assert node.errors == [] and node.count("handler_error") == 0


@pytest.mark.parametrize("seed", range(12))
def test_edited_connections_survive_takeovers(seed: int) -> None:
    """G3, G6: at any moment another core goes on from the flow record alone; both ends notice nothing."""
    rng = random.Random(seed)
    node = Bench(Grow, link=SlowLink())
    client, server = ends(rng, 1200)
    wire, nodes = Wire(node, client, server, rng, 0.05), [node]

    def take_over() -> None:
        actors = wire.node.core.actors()
        if rng.random() < 0.6 and actors:
            (actor,) = actors
            arguments = Grow.restore_arguments(actor.saved_state())
            after = Bench(Grow, link=SlowLink())
            after.core.restore(actor.flow, actor.port, 7, 0, *arguments)
            nodes.append(after)
            wire.node = after

    wire.run(take_over)
    assert (server.stream, client.stream) == (swell(client.data), swell(server.data))
    assert len(nodes) > 1 and not any(one.errors for one in nodes)


class Stop(StreamActor):
    inline = True
    outcome: ClassVar[Any] = REJECT

    def on_data(self, direction: Direction, data: bytes) -> Any:
        return self.outcome if b"attack" in data else FORWARD


class StopPassive(Stop):
    inline = False


class StopSilently(Stop):
    outcome = DROP


def talk(node: Bench, *, data: bytes = b"an attack") -> tuple[list[bytes], list[bytes]]:
    """Handshake, one good segment, one with `data`; returns what left by wan and lan for the latter."""
    node.lan_in(frames.tcp(*CLIENT, *SERVER, SYN, seq=99))
    node.wan_in(frames.tcp(*SERVER, *CLIENT, SYN | ACK, seq=499, ack=100))
    node.lan_in(frames.tcp(*CLIENT, *SERVER, ACK | PSH, b"good ", seq=100, ack=500))
    assert len(node.out()) == 2 and len(node.lan.take()) == 1
    node.lan_in(frames.tcp(*CLIENT, *SERVER, ACK | PSH, data, seq=105, ack=500))
    return node.out(), [bytes(frame) for _, frame in node.lan.take()]


def header(frame: bytes) -> tuple[int, int, int, int]:
    """Source port, sequence number, acknowledgement, flags."""
    tcp = frame[34:]
    return int.from_bytes(tcp[:2], "big"), int.from_bytes(tcp[4:8], "big"), int.from_bytes(tcp[8:12], "big"), tcp[13]


@pytest.mark.parametrize("nf", [Stop, StopPassive])
def test_reject_resets_both_ends_and_nothing_more_passes(nf: type[StreamActor]) -> None:
    node = Bench(nf)
    wan, lan = talk(node)
    assert [header(frame) for frame in wan] == [(1000, 105, 500, RST | ACK)], "exactly what the server waits for"
    assert [header(frame)[:2] + header(frame)[3:] for frame in lan] == [(80, 500, RST | ACK)]
    for frame in wan + lan:
        assert Endpoint(CLIENT, SERVER, 0, b"").receive(frame) == [] and b"attack" not in frame
    node.lan_in(frames.tcp(*CLIENT, *SERVER, ACK, b"more", seq=114, ack=500))
    assert node.out() == [] and node.count("dropped_by_offload") == 1


def test_drop_is_silent_and_lasts() -> None:
    node = Bench(StopSilently)
    assert talk(node) == ([], [])
    node.wan_in(frames.tcp(*SERVER, *CLIENT, ACK, b"answer", seq=500, ack=114))
    assert node.lan.take() == [] and node.count("dropped_by_nf") == 1 and node.count("dropped_by_offload") == 1


def test_inline_holds_what_comes_before_its_turn() -> None:
    """Nothing passes before on_data has decided, and an attack cut into pieces that come backwards is seen whole."""
    node = Bench(WatchInline)
    node.lan_in(frames.tcp(*CLIENT, *SERVER, SYN, seq=99))
    node.out()
    node.lan_in(frames.tcp(*CLIENT, *SERVER, ACK, b"tack", seq=104, ack=500))
    assert node.out() == [] and node.count("stream_held") == 1
    node.lan_in(frames.tcp(*CLIENT, *SERVER, ACK, b"some", seq=100, ack=500))
    assert [frame[54:] for frame in node.out()] == [b"some", b"tack"]
    assert Watch.seen[Direction.ORIGINAL] == b"sometack"


def test_inline_a_retransmission_with_other_bytes_does_not_get_past() -> None:
    node = Bench(WatchInline)
    node.lan_in(frames.tcp(*CLIENT, *SERVER, SYN, seq=99))
    node.lan_in(frames.tcp(*CLIENT, *SERVER, ACK, b"harmless", seq=100, ack=500))
    node.lan_in(frames.tcp(*CLIENT, *SERVER, ACK, b"an attack!", seq=100, ack=500))
    assert [frame[54:] for frame in node.out()[1:]] == [b"harmless", b"harmless", b"k!"]
    assert Watch.seen[Direction.ORIGINAL] == b"harmlessk!", "the first bytes count"


def test_wrong_checksums_bring_no_bytes() -> None:
    for nf, passed in ((Watch, 2), (WatchInline, 1)):
        Watch.seen[Direction.ORIGINAL].clear()
        node = Bench(nf)
        bad = bytearray(frames.tcp(*CLIENT, *SERVER, ACK, b"bad", seq=100, ack=1))
        bad[50] ^= 1
        node.lan_in(bytes(bad), frames.tcp(*CLIENT, *SERVER, ACK, b"good", seq=100, ack=1))
        assert Watch.seen[Direction.ORIGINAL] == b"good" and len(node.out()) == passed
        assert node.count("malformed") == 2 - passed


class Enough(StreamActor):
    inline = True

    def on_data(self, direction: Direction, data: bytes) -> Any:
        if data.startswith(b"end"):
            self.release()
        return b"edited" if data == b"edit" else None


def test_release_hands_the_rest_to_the_core() -> None:
    node = Bench(Enough)
    node.lan_in(frames.tcp(*CLIENT, *SERVER, ACK, b"x", seq=1, ack=1))
    node.lan_in(frames.tcp(*CLIENT, *SERVER, ACK, b"late", seq=9, ack=1))
    assert len(node.out()) == 1, "one is held"
    node.lan_in(frames.tcp(*CLIENT, *SERVER, ACK, b"end", seq=2, ack=1))
    assert [frame[54:] for frame in node.out()] == [b"end", b"late"], "what was held goes on"
    handled = node.count("handled")
    node.lan_in(frames.tcp(*CLIENT, *SERVER, ACK | FIN, b"more", seq=13, ack=1))
    node.wan_in(frames.tcp(*SERVER, *CLIENT, ACK, b"back", seq=1, ack=13))
    assert len(node.out()) == 1 and len(node.lan.take()) == 1 and node.count("handled") == handled + 1
    assert node.count("offloaded") == 1, "the actor hears of a connection's end"


def test_release_after_an_edit_goes_on_fixing_numbers() -> None:
    node = Bench(Enough)
    node.lan_in(frames.tcp(*CLIENT, *SERVER, ACK, b"edit", seq=1, ack=1))
    node.lan_in(frames.tcp(*CLIENT, *SERVER, ACK, b"end", seq=5, ack=1))
    node.lan_in(frames.tcp(*CLIENT, *SERVER, ACK, b"edit", seq=8, ack=1))
    assert [(header(f)[1], f[54:]) for f in node.out()] == [(1, b"edited"), (7, b"end"), (10, b"edit")]
    node.wan_in(frames.tcp(*SERVER, *CLIENT, ACK, b"", seq=1, ack=14))
    assert header(bytes(node.lan.take()[0][1]))[2] == 12
    node.lan_in(frames.tcp(*CLIENT, *SERVER, ACK, b"after", seq=12, ack=1))
    assert [(header(f)[1], f[54:]) for f in node.out()] == [(14, b"after")]


def test_keep_alives_and_zero_length_probes_pass() -> None:
    node = Bench(Grow)
    node.lan_in(frames.tcp(*CLIENT, *SERVER, ACK, b"<", seq=1, ack=1))
    node.wan_in(frames.tcp(*SERVER, *CLIENT, ACK, b"", seq=1, ack=5))
    node.out(), node.lan.take()
    node.lan_in(frames.tcp(*CLIENT, *SERVER, ACK, b"", seq=1, ack=1))
    node.lan_in(frames.tcp(*CLIENT, *SERVER, ACK, b"\0", seq=1, ack=1))
    assert [(header(f)[1], f[54:]) for f in node.out()] == [(4, b""), (4, b"")], (
        "below the window: will be acknowledged"
    )


def test_the_same_five_tuple_may_connect_again() -> None:
    node = Bench(Grow)
    for isn in (100, 50):
        node.lan_in(frames.tcp(*CLIENT, *SERVER, SYN, seq=isn))
        node.wan_in(frames.tcp(*SERVER, *CLIENT, SYN | ACK, seq=700 + isn, ack=isn + 1))
        node.lan_in(frames.tcp(*CLIENT, *SERVER, ACK | FIN, b"<<", seq=isn + 1, ack=701 + isn))
        node.wan_in(frames.tcp(*SERVER, *CLIENT, ACK | FIN, b"", seq=701 + isn, ack=isn + 10))
        sent = [(header(f)[1], f[54:]) for f in node.out()]
        assert sent == [(isn, b""), (isn + 1, b"&lt;&lt;")]
        assert [header(bytes(f))[2] for _, f in node.lan.take()] == [isn + 1, isn + 4]
    assert node.count("flows_opened") == 1


def test_what_is_no_tcp_is_offloaded() -> None:
    node = Bench(Watch)
    node.lan_in(frames.udp("10.0.0.2", 5, "198.51.100.1", 53), frames.udp("10.0.0.2", 5, "198.51.100.1", 53))
    node.wan_in(frames.udp("198.51.100.1", 53, "10.0.0.2", 5))
    assert len(node.out()) == 2 and len(node.lan.take()) == 1 and node.count("handled") == 0


def test_misuse_is_named() -> None:
    with pytest.raises(UsageError, match="on_data in its place"):
        type("A", (StreamActor,), {"on_packet": lambda self, packet: FORWARD})

    class Passive(StreamActor):
        def on_data(self, direction: Direction, data: bytes) -> Any:
            return b"other"

    class Wrong(StreamActor):
        def on_data(self, direction: Direction, data: bytes) -> Any:
            return 5

    for nf, text in ((Passive, "inline = True"), (Wrong, "not 5")):
        node = Bench(nf)
        node.lan_in(frames.tcp(*CLIENT, *SERVER, ACK, b"x", seq=1, ack=1))
        assert text in str(node.errors[0][2]) and node.count("handler_error") == 1


CAPTURES = Path(__file__).parent / "captures"


def reassembled(capture: Path) -> dict[tuple[Any, ...], bytes]:
    """Each direction's bytes by endpoints, by dpkt and a dict of positions; up to the first gap, and the first SYN's."""
    isn: dict[tuple[Any, ...], int] = {}
    received: dict[tuple[Any, ...], dict[int, int]] = {}
    for _, frame, _ in read_capture(str(capture)):
        if len(frame) < 15 or not checksums_right(bytes(frame)):
            continue
        ip = dpkt.ethernet.Ethernet(bytes(frame)).data
        if not isinstance(ip, dpkt.ip.IP | dpkt.ip6.IP6) or not isinstance(ip.data, dpkt.tcp.TCP):
            continue
        tcp = ip.data
        key = (bytes(ip.src), tcp.sport, bytes(ip.dst), tcp.dport)
        if tcp.flags & SYN:
            isn.setdefault(key, tcp.seq)
            received.setdefault(key, {})
        elif key in isn:
            at = (tcp.seq - isn[key] - 1) % WRAP
            for i, byte in enumerate(bytes(tcp.data)):
                received[key].setdefault(at + i, byte)
    streams = {}
    for key, found in received.items():
        out = bytearray()
        while len(out) in found:
            out.append(found[len(out)])
        streams[key] = bytes(out)
    return streams


class Collect(StreamActor):
    idle_s = 1e6
    found: ClassVar[dict[tuple[Any, ...], bytearray]] = {}

    def on_data(self, direction: Direction, data: bytes) -> Any:
        flow = self.flow if direction is Direction.ORIGINAL else self.flow.reversed()
        source, destination = (ip_address(text).packed for text in (flow.source, flow.destination))
        key = (source, flow.source_port, destination, flow.destination_port)
        Collect.found.setdefault(key, bytearray()).extend(data)


class CollectInline(Collect):
    inline = True


@pytest.mark.parametrize("nf", [Collect, CollectInline])
@pytest.mark.parametrize(
    "name", ["chrome.pcap", "http_ipv6.pcap", "WebattackSQLinj.pcap", "skype.pcap", "ftp.pcap", "http-manipulated.pcap"]
)
def test_real_connections_give_the_bytes_that_dpkt_finds(nf: type[StreamActor], name: str, tmp_path: Path) -> None:
    Collect.found.clear()
    command = [f"{__name__}:{nf.__name__}", "--read", str(CAPTURES / name), "--as-is", "--quiet"]
    assert main(["run", *command, "--write", str(tmp_path / "out.pcap")]) == 0
    expected = reassembled(CAPTURES / name)
    assert sum(map(len, expected.values())) > 1000
    for key, data in expected.items():
        assert bytes(Collect.found.get(key, b""))[: len(data)] == data
    if nf is CollectInline:
        assert reassembled(tmp_path / "out.pcap") == expected, "what passed is whole, too"


def handshake(node: Bench, client_isn: int = 99, server_isn: int = 499) -> None:
    node.lan_in(frames.tcp(*CLIENT, *SERVER, SYN, seq=client_isn))
    node.wan_in(frames.tcp(*SERVER, *CLIENT, SYN | ACK, seq=server_isn, ack=client_isn + 1))
    node.lan_in(frames.tcp(*CLIENT, *SERVER, ACK, seq=client_isn + 1, ack=server_isn + 1))
    node.out(), node.lan.take()


def later(node: Bench, seconds: float) -> None:
    """The clock goes on by a packet of somebody else."""
    node.lan_in(frames.udp("10.0.0.9", 5, "198.51.100.1", 53), after_s=seconds)
    node.out()


class OwnTime(Grow):
    idle_s = 60.0


def live(node: Bench) -> int:
    return sum(actor.flow.protocol == 6 for actor in node.core.actors())


def test_a_connection_lives_as_long_as_tcp_may_be_silent() -> None:
    """RFC 5382, REQ-5: established 2 hours 4 minutes, others less."""
    node = Bench(Grow)
    handshake(node)
    later(node, 7400.0)
    assert live(node) == 1
    later(node, 50.0)
    assert live(node) == 0, "2 hours 4 minutes of silence"
    node.lan_in(frames.tcp(*CLIENT, *SERVER, SYN, seq=99))
    later(node, 61.0)
    assert live(node) == 0, "a SYN alone is cheap to forget"
    handshake(node)
    node.lan_in(frames.tcp(*CLIENT, *SERVER, ACK | FIN, seq=100, ack=500))
    node.wan_in(frames.tcp(*SERVER, *CLIENT, ACK | FIN, seq=500, ack=101))
    later(node, 230.0)
    assert live(node) == 1
    later(node, 20.0)
    assert live(node) == 0
    own = Bench(OwnTime)
    handshake(own)
    later(own, 61.0)
    assert live(own) == 0, "a network function's own time stands"


def test_an_edited_connection_goes_on_after_an_hour_of_silence() -> None:
    node = Bench(Grow)
    handshake(node)
    node.lan_in(frames.tcp(*CLIENT, *SERVER, ACK | PSH, b"<", seq=100, ack=500))
    node.wan_in(frames.tcp(*SERVER, *CLIENT, ACK, seq=500, ack=104))
    node.out(), node.lan.take()
    later(node, 3600.0)
    node.lan_in(frames.tcp(*CLIENT, *SERVER, ACK | PSH, b"second", seq=101, ack=500))
    assert [header(frame)[1] for frame in node.out()] == [104]


@pytest.mark.parametrize("nf", [Watch, Grow])
def test_a_connection_that_one_end_has_lost_begins_anew(nf: type[StreamActor]) -> None:
    """RFC 5961 section 4.2: a SYN in mid-stream counts once the other end, which has lost the connection too, answers it."""
    node = Bench(nf)
    handshake(node)
    node.lan_in(frames.tcp(*CLIENT, *SERVER, ACK | PSH, b"<<<", seq=100, ack=500))
    node.wan_in(frames.tcp(*SERVER, *CLIENT, ACK, seq=500, ack=112 if nf is Grow else 103))
    handshake(node, 70_000, 80_000)
    node.lan_in(frames.tcp(*CLIENT, *SERVER, ACK | PSH, b"again", seq=70_001, ack=80_001))
    assert [(header(frame)[1], frame[54:]) for frame in node.out()] == [
        (70_001, swell(b"again") if nf is Grow else b"again")
    ]
    assert nf.seen[Direction.ORIGINAL] == b"<<<again"  # type: ignore[attr-defined]


@pytest.mark.parametrize("again", [False, True])
def test_ends_may_both_ask_at_once(again: bool) -> None:
    """RFC 9293 section 3.5: what comes before the first bytes waits for them; unless the other end's SYN was of a connection
    before, and it answers with another."""
    node = Bench(Grow)
    begin = 70_000 if again else 100
    node.lan_in(frames.tcp(*CLIENT, *SERVER, SYN, seq=100))
    node.wan_in(frames.tcp(*SERVER, *CLIENT, SYN, seq=500))
    if again:  # else that is lost
        node.lan_in(frames.tcp(*CLIENT, *SERVER, SYN | ACK, seq=begin, ack=501))
    node.wan_in(frames.tcp(*SERVER, *CLIENT, SYN | ACK, seq=500, ack=begin + 1))
    node.out(), node.lan.take()
    node.lan_in(frames.tcp(*CLIENT, *SERVER, ACK | PSH, b"<b", seq=begin + 3, ack=501))
    assert [frame for frame in node.out() if frame[54:]] == []
    node.lan_in(frames.tcp(*CLIENT, *SERVER, ACK | PSH, b"<a", seq=begin + 1, ack=501))
    sent = [(header(frame)[1], frame[54:]) for frame in node.out()]
    assert sent == [(begin + 1, swell(b"<a")), (begin + 1 + len(swell(b"<a")), swell(b"<b"))]
    assert Grow.seen[Direction.ORIGINAL] == b"<a<b"


@pytest.mark.parametrize("nf", [Watch, WatchInline])
def test_a_fin_with_bytes_behind_it_is_none(nf: type[StreamActor]) -> None:
    node = Bench(nf)
    handshake(node)
    node.lan_in(frames.tcp(*CLIENT, *SERVER, ACK | FIN, seq=105, ack=500))
    node.lan_in(frames.tcp(*CLIENT, *SERVER, ACK, b"some words", seq=100, ack=500))
    node.lan_in(frames.tcp(*CLIENT, *SERVER, ACK, b" more", seq=110, ack=500))
    assert Watch.seen[Direction.ORIGINAL] == b"some words more"


class Strict(Grow):
    """Refuses what cannot be placed."""

    def on_open(self, packet: Packet) -> Any:
        return None if packet.tcp_flags & SYN else DROP


def test_a_connection_whose_edits_are_lost_may_be_refused() -> None:
    """The flow has ended, here by `close()`: what comes then has numbers that only it could have changed."""
    for nf, passed in ((Grow, [101]), (Strict, [])):
        node = Bench(nf)
        handshake(node)
        node.lan_in(frames.tcp(*CLIENT, *SERVER, ACK | PSH, b"<", seq=100, ack=500))
        node.out()
        node.core.close_all("lost")
        node.lan_in(frames.tcp(*CLIENT, *SERVER, ACK | PSH, b"second", seq=101, ack=500))
        assert [header(frame)[1] for frame in node.out()] == passed
        assert node.count("flows_refused") == (nf is Strict)


@pytest.mark.parametrize("goes_on", [False, True])
def test_an_rst_in_doubt_is_forgotten_when_its_receiver_goes_on(goes_on: bool) -> None:
    node = Bench(Watch)
    handshake(node)
    node.lan_in(frames.tcp(*CLIENT, *SERVER, ACK | PSH, b"some", seq=100, ack=500))
    node.lan_in(frames.tcp(*CLIENT, *SERVER, RST, seq=104))
    if goes_on:  # a challenge (RFC 5961 section 3.2): what was sent had not come
        node.wan_in(frames.tcp(*SERVER, *CLIENT, ACK, seq=500, ack=100))
        node.lan_in(frames.tcp(*CLIENT, *SERVER, ACK | PSH, b"some", seq=100, ack=500))
    later(node, 250.0)
    assert live(node) == goes_on


class Halt(StreamActor):
    """Ends connections in every way that leaves something behind."""

    inline = True
    seen: int = 0

    def on_data(self, direction: Direction, data: bytes) -> Any:
        self.seen += 1
        if self.seen % 7 == 3:
            return [DROP, REJECT, data[::-1], b""][self.flow.source_port % 4]
        if self.seen % 11 == 10:
            raise ValueError("no")
        return None


class HaltAsync(Halt):
    async def on_data(self, direction: Direction, data: bytes) -> Any:
        await asyncio.sleep(0)
        return Halt.on_data(self, direction, data)


@pytest.mark.parametrize("nf", ["WatchInline", "WatchAsync", "Watch", "Grow", "Halt", "HaltAsync"])
@pytest.mark.parametrize("name", sorted(path.name for path in CAPTURES.glob("*.pcap*")))
def test_every_packet_of_a_capture_is_accounted_for(
    nf: str, name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """G9: what came in, and was made, has left, was dropped by a named counter, or has left within what was made; nothing waits
    when all flows have ended."""
    counts: dict[str, int] = {}
    monkeypatch.setattr("actornet.cli.run._report", lambda after, *rest: counts.update(after) or _report(after, *rest))
    code = main(["run", f"{__name__}:{nf}", "--read", str(CAPTURES / name), "--as-is", "--json"])
    report = json.loads(capsys.readouterr().out)
    assert code == (3 if report["handlers_raised"] else 0)
    arrived = sum(port["packets_in"] for port in report["ports"].values())
    left = sum(port["packets_out"] for port in report["ports"].values())
    dropped = sum(counts[counter] for counter in DROPS)
    assert dropped == sum(report["drops"].values())
    waits = counts["fragments_joined"] - counts["fragments_made"] - counts["reassembled"] + counts["refragmented"]
    kept = counts["stream_replaced"] + counts["stream_held"]
    assert kept <= counts["stream_made"], "each of these has left in one frame at least"
    assert arrived + counts["stream_made"] - kept == left + dropped + waits
