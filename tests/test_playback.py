"""Playing a capture of both directions to something that translates.

The capture is what the inside host saw. So whatever is done to a packet of the outside must be undone when it leaves by
`lan`: the frame there equals the captured one byte for byte, checksums included.
"""

import asyncio
import time
from socket import AF_INET, AF_INET6, inet_ntop, inet_pton

import pytest
from dpkt.ethernet import Ethernet
from dpkt.icmp import ICMP
from dpkt.icmp6 import ICMP6
from dpkt.ip import IP
from dpkt.ip6 import IP6
from dpkt.tcp import TCP
from dpkt.udp import UDP

from actornet import DROP, FORWARD, FiveTuple, FlowActor, Rewrite
from actornet.embedded import Embedded
from actornet.errors import UsageError
from actornet.ports.capture import CaptureFeed, CapturePort
from actornet.ports.playback import Playback

HOST, SERVER, ROUTER, OUTSIDE = "192.168.1.5", "198.51.100.7", "198.51.100.254", "203.0.113.1"
HOST6, SERVER6, OUTSIDE6 = "fd00::5", "2001:db8::7", "2001:db8::1"


class Translate(FlowActor):
    """A NAT of ten lines: port + 10000."""

    def on_open(self, packet):
        flow = packet.flow
        if packet.port == "wan":
            return DROP
        outside, port = OUTSIDE if packet.ip_version == 4 else OUTSIDE6, flow.source_port + 10_000
        remote_port = port if flow.protocol == 1 else flow.destination_port
        reply = FiveTuple(flow.protocol, flow.destination, remote_port, outside, port)
        self.bind(reply, "wan")
        self.offload(Rewrite("wan", source=outside, source_port=port, decrement_ttl=False))
        back = Rewrite("lan", destination=flow.source, destination_port=flow.source_port, decrement_ttl=False)
        self.offload(back, reply, "wan")
        return None


class TranslateLate(Translate):
    """The same, after waiting for something outside."""

    async def on_open(self, packet):
        await asyncio.sleep(0.003)
        return Translate.on_open(self, packet)


class Pass(FlowActor):
    untracked = FORWARD

    def on_packet(self, packet):
        return FORWARD


def packed(text):
    return inet_pton(AF_INET6 if ":" in text else AF_INET, text)


def frame(source, destination, protocol, transport):
    if ":" in source:
        ip = IP6(src=packed(source), dst=packed(destination), nxt=protocol, hlim=64, data=transport)
        ip.plen = len(bytes(transport))
        return bytes(Ethernet(src=b"\2" * 6, dst=b"\4" * 6, type=0x86DD, data=ip))
    ip = IP(src=packed(source), dst=packed(destination), p=protocol, ttl=64, data=transport)
    ip.len = 20 + len(bytes(transport))
    return bytes(Ethernet(src=b"\2" * 6, dst=b"\4" * 6, type=0x0800, data=ip))


def udp(source, source_port, destination, destination_port, payload=b"payload"):
    datagram = UDP(sport=source_port, dport=destination_port, data=payload)
    datagram.ulen = len(datagram)
    return frame(source, destination, 17, datagram)


def tcp(source, source_port, destination, destination_port, payload=b"payload"):
    return frame(source, destination, 6, TCP(sport=source_port, dport=destination_port, flags=16, data=payload))


def echo(source, destination, kind, identifier):
    return frame(source, destination, 1, ICMP(type=kind, data=ICMP.Echo(id=identifier, seq=1, data=b"ping")))


def unreachable(router, host, sent):
    """The ICMP error that a router sends about the frame `sent`."""
    inner = sent[14:]
    if ":" in host:
        return frame(router, host, 58, ICMP6(type=1, code=4, data=ICMP6.Unreach(data=inner)))
    return frame(router, host, 1, ICMP(type=3, code=3, data=ICMP.Unreach(data=inner[:28])))


def play(frames, nf=Translate, **options):
    """What leaves by lan and by wan, the feed, and the counters."""
    playback = Playback(**options)
    feed = CaptureFeed([([(n + 1, data, len(data)) for n, data in enumerate(frames)], 0)], playback)
    lan, wan = [], []
    CapturePort("lan", feed, [lan])
    CapturePort("wan", feed, [wan])
    embedded = Embedded(nf, feed.ports, virtual_time=True)
    feed.suspended = lambda: embedded.core.suspended > 0
    deadline = time.monotonic() + 5
    while not feed.exhausted:
        embedded.run_burst()
        assert time.monotonic() < deadline
    embedded.finish()
    return [data for _, data, _ in lan], [data for _, data, _ in wan], feed, embedded.counters()


CONVERSATIONS = {
    "udp": (udp(HOST, 5000, SERVER, 53), udp(SERVER, 53, HOST, 5000, b"odd")),
    "tcp": (tcp(HOST, 5000, SERVER, 80), tcp(SERVER, 80, HOST, 5000, b"odd")),
    "echo": (echo(HOST, SERVER, 8, 77), echo(SERVER, HOST, 0, 77)),
    "udp6": (udp(HOST6, 5000, SERVER6, 53), udp(SERVER6, 53, HOST6, 5000)),
    "tcp6": (tcp(HOST6, 5000, SERVER6, 80), tcp(SERVER6, 80, HOST6, 5000)),
    "error": (udp(HOST, 5000, SERVER, 9), unreachable(ROUTER, HOST, udp(HOST, 5000, SERVER, 9))),
    "error about echo": (echo(HOST, SERVER, 8, 77), unreachable(ROUTER, HOST, echo(HOST, SERVER, 8, 77))),
    "error6": (udp(HOST6, 5000, SERVER6, 9), unreachable("2001:db8::99", HOST6, udp(HOST6, 5000, SERVER6, 9))),
}


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_answers_take_the_way_back(name):
    sent, answer = CONVERSATIONS[name]
    lan, wan, feed, counters = play([sent, answer])
    assert lan == [answer]
    assert len(wan) == 1
    assert sent[14:] != wan[0][14:]
    assert [port.packets_in for port in feed.ports] == [1, 1]
    assert feed.playback.readdressed == 1
    assert counters["flows_opened"] == 1


def test_answer_is_addressed_to_the_translation_with_right_checksums():
    sent, answer = CONVERSATIONS["udp"]
    _, wan, _, _ = play([sent, answer], nf=Translate)
    passed = IP(wan[0][14:])
    assert (inet_ntop(AF_INET, passed.src), passed.data.sport) == (OUTSIDE, 15_000)
    for data in wan:
        again = IP(data[14:])
        sums = again.sum, again.data.sum
        again.sum = again.data.sum = 0
        assert (IP(bytes(again)).sum, IP(bytes(again)).data.sum) == sums


@pytest.mark.parametrize("nf", [Translate, TranslateLate])
def test_no_answer_overtakes_what_it_answers(nf):
    """All conversations at once, so that answers stand in the same burst as what they answer; also when the translation
    is known only after waiting."""
    frames, answers = [], []
    for n in range(100):
        frames.append(udp(HOST, 2000 + n, SERVER, 53))
        if n % 3:
            answers.append(udp(SERVER, 53, HOST, 2000 + n, b"%d" % n))
            frames.append(answers[-1])
        frames.append(udp(HOST, 2000 + n, SERVER, 53, b"again"))
    lan, wan, _, counters = play(frames, nf)
    assert sorted(lan) == sorted(answers)
    assert lan == answers or nf is TranslateLate
    assert len(wan) == 200
    assert counters["flows_opened"] == 100


def test_as_is_delivers_answers_as_captured():
    sent, answer = CONVERSATIONS["udp"]
    lan, wan, feed, counters = play([sent, answer], as_is=True)
    assert (lan, len(wan)) == ([], 1)
    assert [port.packets_in for port in feed.ports] == [1, 1]
    assert counters["dropped_by_nf"] == 1


def test_what_translates_nothing_sees_the_capture_as_it_is():
    frames = [data for name, pair in CONVERSATIONS.items() if "error" not in name for data in pair]
    lan, wan, feed, _ = play(frames, Pass)
    assert (lan, wan) == (frames[1::2], frames[::2])
    assert feed.playback.readdressed == 0


def test_an_answer_from_inside_comes_from_outside():
    """A server beside the client: its packets take the port by which the client's left."""
    server = "192.168.1.1"
    sent, answer = udp(HOST, 5000, server, 53), udp(server, 53, HOST, 5000)
    lan, _, feed, _ = play([sent, answer])
    assert lan == [answer]
    assert [port.packets_in for port in feed.ports] == [1, 1]


def test_inside_is_what_the_user_says():
    frames = [udp(SERVER, 53, "192.0.2.1", 53), udp(HOST, 53, "192.0.2.1", 53), udp(SERVER6, 1, HOST6, 1)]
    _, _, feed, _ = play(frames, Pass, inside=["198.51.100.0/25", "2001:db8::/32"])
    assert [port.packets_in for port in feed.ports] == [2, 1]
    with pytest.raises(UsageError, match=r"'192\.168/33' is no network prefix"):
        Playback(["192.168/33"])


def test_frames_without_ports_go_by_their_source():
    arp = bytes(12) + b"\x08\x06" + bytes(28)
    fragment = bytearray(udp(SERVER, 53, HOST, 5000))
    fragment[20] = 0x20  # more fragments
    igmp = frame(HOST, "224.0.0.22", 2, b"\x22\0\0\0\0\0\0\0")
    _, _, feed, _ = play([arp, bytes(fragment), igmp, b"short", bytes(14)], Pass)
    assert [port.packets_in for port in feed.ports] == [4, 1]


def test_captures_of_several_ports_are_merged_by_time():
    packets = [(n, udp(HOST if n % 3 else SERVER, 1000 + n, SERVER if n % 3 else HOST, 53), 49) for n in range(200)]
    feed = CaptureFeed([([p for p in packets if p[0] % 3], 0), ([p for p in packets if not p[0] % 3], 1)])
    sent = []
    for name in ("lan", "wan"):
        CapturePort(name, feed, [sent])
    embedded = Embedded(Pass, feed.ports, virtual_time=True)
    times = []
    while not feed.exhausted:
        embedded.run_burst()
        times += sorted(time_ns for time_ns, _, _ in sent)
        sent.clear()
    embedded.finish()
    assert times == list(range(200))
    assert (feed.first_ns, feed.last_ns, feed.packets) == (0, 199, 200)
    assert [port.packets_in for port in feed.ports] == [133, 67]
