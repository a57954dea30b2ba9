"""The core's loop: order, offload, waiting handlers, held output, time-outs, failures."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from ipaddress import ip_interface
from types import GetSetDescriptorType
from typing import Any, ClassVar

import pytest

from actornet import DROP, FORWARD, OFFLOADED, REJECT, FiveTuple, FlowActor, Packet, Rewrite
from actornet.engine.core import Core
from actornet.engine.wire import checksums_right, parse
from actornet.errors import UsageError
from actornet.ports.host import Host
from actornet.ports.memory import MemoryPort
from tests import frames
from tests.test_wire import ethernet, ip, transport

SECOND = 1_000_000_000


class Bench:
    """A core between two memory ports, on virtual time."""

    def __init__(self, nf: type[FlowActor], link: Any = None, flows_max: int = 1024) -> None:
        nf.prepare()
        self.loop = asyncio.new_event_loop()
        self.lan, self.wan = MemoryPort("lan"), MemoryPort("wan")
        self.now_ns = SECOND
        self.errors: list[tuple[FiveTuple | None, str, BaseException]] = []
        self.core = Core(nf, [self.lan, self.wan], flows_max=flows_max, loop=self.loop, link=link, virtual_time=True)
        self.core.on_error = lambda *what: self.errors.append(what)

    def lan_in(self, *packets: bytes, after_s: float = 0.0) -> None:
        self.now_ns += int(after_s * SECOND)
        self.lan.feed([(self.now_ns, packet) for packet in packets])
        self.turn()

    def wan_in(self, *packets: bytes) -> None:
        self.wan.feed([(self.now_ns, packet) for packet in packets])
        self.turn()

    def turn(self) -> None:
        asyncio._set_running_loop(self.loop)
        try:
            self.core.breathe()
        finally:
            asyncio._set_running_loop(None)

    def wait(self, seconds: float = 0.0) -> None:
        """So long; and for what comes of timers that fire late, together with this one."""
        for delay in (seconds, 0, 0, 0) if seconds else (0,):
            self.loop.call_later(delay, self.loop.stop)
            self.loop.run_forever()

    def out(self) -> list[bytes]:
        return [bytes(frame) for _, frame in self.wan.take()]

    def count(self, name: str) -> int:
        counts: dict[str, int] = self.core.count()
        return counts[name]


@pytest.fixture
def bench() -> Iterator[Any]:
    made: list[Bench] = []

    def make(*arguments: Any, **keywords: Any) -> Bench:
        made.append(Bench(*arguments, **keywords))
        return made[-1]

    yield make
    for one in made:
        one.loop.close()


def packet(number: int, port: int = 1000) -> bytes:
    return frames.udp("10.0.0.2", port, "198.51.100.1", 53, bytes((number,)))


def payloads(out: list[bytes]) -> list[int]:
    return [frame[42] for frame in out]


class Pass(FlowActor):
    def on_packet(self, packet: Packet) -> Any:
        return FORWARD


class Translate(FlowActor):
    def on_open(self, packet: Packet) -> None:
        reply = FiveTuple(17, packet.destination, packet.destination_port, "203.0.113.1", 5000)
        self.bind(reply)
        self.offload(Rewrite(source="203.0.113.1", source_port=5000))
        self.offload(Rewrite(destination=packet.source, destination_port=packet.source_port), reply)


class Wait(FlowActor):
    """Waits for a future that the test resolves, per packet."""

    gates: ClassVar[list[asyncio.Future[Any]]] = []

    async def on_packet(self, packet: Packet) -> Any:
        number = packet.payload[0]
        if number % 2 == 0:
            gate = asyncio.get_running_loop().create_future()
            Wait.gates.append(gate)
            await gate
        assert packet.payload[0] == number
        return FORWARD


def test_forwards_unchanged(bench: Any) -> None:
    node = bench(Pass)
    node.lan_in(packet(1), packet(2))
    assert node.out() == [packet(1), packet(2)]
    assert node.count("flows_opened") == 1 and node.count("handled") == 2


def test_offload_translates_both_directions_with_right_checksums(bench: Any) -> None:
    node = bench(Translate)
    node.lan_in(packet(1), packet(2))
    out = node.out()
    assert payloads(out) == [1, 2] and all(map(checksums_right, out))
    assert str(parse(out[1])["flow"]) == "udp 203.0.113.1:5000 > 198.51.100.1:53"
    assert out[0][22] == 63, "a router takes one off the TTL"
    node.wan_in(frames.udp("198.51.100.1", 53, "203.0.113.1", 5000, b"r"))
    back = [bytes(frame) for _, frame in node.lan.take()]
    assert str(parse(back[0])["flow"]) == "udp 198.51.100.1:53 > 10.0.0.2:1000" and checksums_right(back[0])
    assert node.count("handled") == 0


def test_ip_options_are_seen_and_pass_unchanged_through_an_offload(bench: Any) -> None:
    """G9: nothing behind them is misread."""

    class Look(Translate):
        seen: ClassVar[list[bool]] = []

        def on_open(self, packet: Packet) -> Any:
            self.seen.append(packet.has_options)
            return super().on_open(packet)

    flow = FiveTuple(17, "10.0.0.2", 1000, "198.51.100.1", 53)
    first, third = (
        ethernet(ip(flow.source, flow.destination, 17, transport(flow, bytes((number,))), options=b"\1\1\1\0"))
        for number in (1, 3)
    )
    node = bench(Look)
    node.lan_in(first, packet(2), third)
    assert Look.seen == [True] and node.count("ip_options") == 2
    first, second, third = node.out()
    for frame, number in ((first, 1), (third, 3)):
        assert frame[34:38] == b"\1\1\1\0" and frame[-1] == number and checksums_right(frame)
        assert str(parse(frame)["flow"]) == str(parse(second)["flow"]) == "udp 203.0.113.1:5000 > 198.51.100.1:53"


def test_ttl_that_runs_out_is_dropped_and_counted(bench: Any) -> None:
    node = bench(Translate)
    node.lan_in(packet(1), frames.udp("10.0.0.2", 1000, "198.51.100.1", 53, b"x", ttl=1))
    assert payloads(node.out()) == [1] and node.count("ttl_expired") == 1


def test_icmp_error_about_an_offloaded_flow_is_translated_inside(bench: Any) -> None:
    node = bench(Translate)
    node.lan_in(packet(1))
    node.wan_in(frames.icmp_error("192.0.2.9", node.out()[0]))
    (error,) = [bytes(frame) for _, frame in node.lan.take()]
    assert checksums_right(error)
    assert error[14 + 28 :][12:16] == bytes((10, 0, 0, 2)) and error[14 + 48 :][:2] == (1000).to_bytes(2, "big")
    node.wan_in(frames.icmp_error("192.0.2.9", frames.udp("203.0.113.1", 9, "198.51.100.1", 53)))
    assert node.count("icmp_error_unmatched") == 1


def test_an_actor_sees_the_icmp_errors_that_speak_of_its_flow(bench: Any) -> None:
    """Of IPv6 too; with `sees_icmp_errors`, while the flow is offloaded as well."""
    seen: list[tuple[bool, int | None, int | None, str]] = []

    class Watch(FlowActor):
        sees_icmp_errors = True

        def on_open(self, packet: Packet) -> None:
            self.bind(packet.flow.reversed())
            self.offload(FORWARD)
            self.offload(FORWARD, packet.flow.reversed())

        def on_packet(self, packet: Packet) -> Any:
            seen.append((packet.is_icmp_error, packet.icmp_type, packet.icmp_code, str(packet.flow)))
            return OFFLOADED

    class Plain(Watch):
        sees_icmp_errors = False

    class Slow(Plain):
        def on_open(self, packet: Packet) -> None:
            self.bind(packet.flow.reversed())

        def on_packet(self, packet: Packet) -> Any:
            super().on_packet(packet)
            return FORWARD

    sent = frames.ethernet(
        b"\x60\0\0\0\0\x08\x11\x40" + bytes(15) + b"\1" + bytes(15) + b"\2" + b"\x03\xe8\0\x35\0\x08\0\0", 0x86DD
    )
    quoted = bytes((1, 4, 0, 0, 0, 0, 0, 0)) + sent[14:]
    header = b"\x60\0\0\0" + len(quoted).to_bytes(2, "big") + b"\x3a\x40" + bytes(15) + b"\x09" + bytes(15) + b"\1"
    error6 = frames.ethernet(header + quoted, 0x86DD)
    for nf, expected in ((Watch, 1), (Plain, 0), (Slow, 1)):
        for packet_, error, text in (
            (packet(1), frames.icmp_error("192.0.2.9", packet(1)), "udp 198.51.100.1:53 > 10.0.0.2:1000"),
            (sent, error6, "udp [::2]:53 > [::1]:1000"),
        ):
            node = bench(nf)
            node.lan_in(packet_)
            seen.clear()
            node.wan_in(error)
            assert seen == [(True, 1 if error is error6 else 3, 4 if error is error6 else 3, text)] * expected
            assert [bytes(frame) for _, frame in node.lan.take()] == [error]


def test_order_within_a_flow_across_waits_and_no_waiting_between_flows(bench: Any) -> None:
    """G1: a flow's packets leave in order of arrival although its handler waits; other flows go on."""
    node = bench(Wait)
    Wait.gates.clear()
    node.lan_in(packet(2), packet(3), packet(4), packet(5), packet(7, port=2000))
    assert payloads(node.out()) == [7] and node.core.suspended == 1
    Wait.gates[0].set_result(None)
    node.wait()
    assert payloads(node.out()) == [2, 3]
    Wait.gates[1].set_result(None)
    node.wait()
    assert payloads(node.out()) == [4, 5] and node.core.suspended == 0


def test_mailbox_is_bounded_and_counts(bench: Any) -> None:
    node = bench(Wait)
    Wait.gates.clear()
    node.lan_in(packet(2))
    for _ in range(3):
        node.lan_in(*[packet(1)] * 32)
    assert node.count("mailbox_full") == 96 - 64


def test_timeout_of_asyncio_works_in_a_handler(bench: Any) -> None:
    class Impatient(FlowActor):
        async def on_packet(self, packet: Packet) -> Any:
            try:
                async with asyncio.timeout(0.01):
                    await asyncio.sleep(10)
            except TimeoutError:
                return FORWARD
            return DROP

    node = bench(Impatient)
    node.lan_in(packet(1))
    node.wait(0.05)
    assert payloads(node.out()) == [1]


def test_gather_and_wait_for_work_in_a_handler(bench: Any) -> None:
    class Parallel(FlowActor):
        async def on_packet(self, packet: Packet) -> Any:
            async def answer(value: int) -> int:
                await asyncio.sleep(0.001)
                return value

            found = await asyncio.wait_for(asyncio.gather(answer(1), answer(2)), 1)
            return FORWARD if found == [1, 2] else DROP

    node = bench(Parallel)
    node.lan_in(packet(1), packet(2))
    for _ in range(4):
        node.wait(0.01)
    assert payloads(node.out()) == [1, 2]


def test_packet_kept_beyond_its_handler_refuses_to_be_read(bench: Any) -> None:
    kept: list[Packet] = []

    class Keep(FlowActor):
        def on_packet(self, packet: Packet) -> Any:
            kept.append(packet)
            return FORWARD

    node = bench(Keep)
    node.lan_in(packet(1), packet(2))
    assert payloads(node.out()) == [1, 2] and kept[0] is not kept[1]
    for name in ("source", "port", "flow", "destination_port", "tcp_flags", "payload"):
        with pytest.raises(RuntimeError, match="after its handler"):
            getattr(kept[0], name)


def test_fields_that_are_read_by_name_alone_are_the_properties(bench: Any) -> None:
    found: dict[str, tuple[Any, Any]] = {}

    class Reader(FlowActor):
        def on_packet(self, packet: Packet) -> Any:
            for name, field in vars(type(packet)).items():
                if isinstance(field, GetSetDescriptorType):
                    found[name] = (getattr(packet, name), field.__get__(packet))
            with pytest.raises(AttributeError, match="no_such_field"):
                _ = packet.no_such_field
            return packet.to("wan")

    node = bench(Reader)
    node.lan_in(frames.tcp("10.0.0.2", 1000, "198.51.100.1", 80, flags=0x12))
    assert len(node.out()) == 1 and not node.errors and len(found) > 15
    assert all(by_name == by_type for by_name, by_type in found.values())
    assert found["destination_port"][0] == 80 and found["tcp_flags"][0] == 0x12 and found["port"][0] == "lan"


def test_actors_may_go_within_a_burst_that_looks_ahead_to_them(bench: Any) -> None:
    class Once(FlowActor):
        remembered: str = ""
        verdict: Any = None

        def on_open(self, packet: Packet) -> None:
            self.remembered, self.verdict = "x" * packet.source_port, Rewrite(destination_port=packet.source_port)

        def on_packet(self, packet: Packet) -> Any:
            if packet.payload == b"\x07":
                self.close()
            return self.verdict

    node = bench(Once, flows_max=4096)
    ports = range(1000, 3000)
    last = [packet(number, port) for port in ports for number in (7, 8)]
    random.Random(3).shuffle(last)
    sent = [packet(1, port) for port in ports] + last
    left = 0
    for at in range(0, len(sent), 1000):
        node.lan_in(*sent[at : at + 1000])
        left += len(node.out())
    assert left == len(sent) and not node.errors
    assert node.count("flows_opened") == node.count("live_flows") + node.count("flows_closed") > 2000


@pytest.mark.parametrize("kind", [ValueError, SystemExit, GeneratorExit, asyncio.CancelledError])
def test_failing_handler_closes_its_flow_only(bench: Any, kind: type[BaseException]) -> None:
    class Fragile(FlowActor):
        def on_packet(self, packet: Packet) -> Any:
            if packet.payload == b"\x09":
                raise kind("nine")
            return FORWARD

    node = bench(Fragile)
    node.lan_in(packet(1), packet(9), packet(2, port=2000), packet(3))
    assert payloads(node.out()) == [1, 2, 3]
    assert node.count("handler_error") == 1 and node.count("flows_opened") == 3
    assert isinstance(node.errors[0][2], kind) and node.errors[0][1] == "on_packet"


@pytest.mark.parametrize("verdict", [None, 1, "drop", OFFLOADED, Rewrite("nowhere"), Rewrite(source="2001:db8::1")])
def test_wrong_verdict_is_an_error_of_the_handler(bench: Any, verdict: Any) -> None:
    class Wrong(FlowActor):
        def on_packet(self, packet: Packet) -> Any:
            return verdict

    node = bench(Wrong)
    node.lan_in(packet(1))
    assert node.out() == [] and node.count("handler_error") == 1


def test_refused_flow_leaves_nothing(bench: Any) -> None:
    class Refuse(FlowActor):
        def on_open(self, packet: Packet) -> Any:
            return DROP

    node = bench(Refuse)
    node.lan_in(*[packet(1, port) for port in range(20)])
    assert node.count("flows_refused") == 20 and node.core.entries == 0 and node.count("dropped_by_nf") == 20


def test_idle_flow_closes_and_its_key_is_free(bench: Any) -> None:
    closed: list[str] = []

    class Brief(FlowActor):
        idle_s = 5.0

        def on_packet(self, packet: Packet) -> Any:
            return FORWARD

        def on_close(self) -> None:
            closed.append(str(self.flow))

    node = bench(Brief)
    node.lan_in(packet(1))
    node.lan_in(packet(2), after_s=4.0)
    node.lan_in(packet(3, port=2000), after_s=3.0)
    assert closed == [], "a packet came 3 seconds ago"
    node.lan_in(packet(4, port=2000), after_s=3.0)
    assert closed == ["udp 10.0.0.2:1000 > 198.51.100.1:53"] and node.core.entries == 1


def test_full_flow_table_drops_by_name(bench: Any) -> None:
    node = bench(Pass, flows_max=16)
    node.lan_in(*[packet(1, port) for port in range(1, 25)])
    assert node.count("flow_table_full") == 8 and len(node.out()) == 16


def test_bind_refuses_a_key_of_another_flow(bench: Any) -> None:
    node = bench(Translate)
    node.lan_in(packet(1), packet(2, port=2000))
    assert node.count("handler_error") == 1 and "belongs to another flow" in str(node.errors[0][2])


@pytest.mark.parametrize(
    ("frame", "counter"),
    [
        (b"\xff" * 6 + b"\x02" * 6 + b"\x88\xcc" + bytes(28), "not_ip"),
        (packet(1)[:20], "truncated"),
        (packet(1)[:14] + b"\x4f" + packet(1)[15:], "truncated"),
        (b"", "truncated"),
        (frames.ethernet(frames.ipv4("10.0.0.1", "10.0.0.2", 47, bytes(20))), "untracked"),
    ],
)
def test_what_is_no_packet_of_a_flow_is_counted(bench: Any, frame: bytes, counter: str) -> None:
    """G9."""
    node = bench(Pass)
    node.lan_in(frame)
    assert node.out() == [] and sum(node.count(name) for name in (counter, "malformed")) == 1


class SlowLink:
    """A link whose commits the test releases."""

    def __init__(self) -> None:
        self.sequence = 0
        self.saved: list[bytes] = []

    def save(self, actor: FlowActor) -> int:
        self.saved.append(actor.saved_state())
        self.sequence += 1
        return self.sequence

    def close(self, actor: FlowActor, reason: str) -> int:
        self.sequence += 1
        return self.sequence

    def flush(self) -> None: ...

    def poll(self) -> None: ...


def test_nothing_leaves_below_the_watermark(bench: Any) -> None:
    """G3: neither the packet that depends on a record, nor later ones of its flow by the offload; G1: in order."""
    link = SlowLink()
    node = bench(Translate, link=link)
    node.core.commit_to(0)
    node.lan_in(packet(1))
    node.lan_in(packet(2), packet(3))
    assert node.out() == [] and node.core.held == 3 and link.sequence == 1
    node.core.commit_to(1)
    node.lan_in(packet(4))
    assert payloads(node.out()) == [1, 2, 3, 4] and node.core.held == 0
    node.lan_in(packet(5))
    assert payloads(node.out()) == [5] and node.count("held") == 4


def test_held_packets_of_a_fenced_node_never_leave(bench: Any) -> None:
    """G7."""
    node = bench(Translate, link=SlowLink())
    node.core.commit_to(0)
    node.lan_in(packet(1), packet(2))
    node.core.drop_held()
    node.core.commit_to(9)
    node.turn()
    assert node.out() == [] and node.count("held_fenced") == 2


class Remember(FlowActor):
    count: int = 0
    seen: list[int] = []
    _local: int = 0

    def on_open(self, packet: Packet) -> None:
        self.bind(packet.flow.reversed())
        self.offload(FORWARD, packet.flow.reversed())

    def on_packet(self, packet: Packet) -> Any:
        if packet.payload[0] == 1:
            self.count += 1
        if packet.payload[0] == 2:
            self.seen.append(2)
        self._local += 1
        return FORWARD


def test_flow_is_saved_when_its_replicated_state_changed(bench: Any) -> None:
    link = SlowLink()
    node = bench(Remember, link=link)
    for number in (0, 0, 1, 0):
        node.lan_in(packet(number))
    fields = [Remember.restore_arguments(state)[0] for state in link.saved]
    assert dict(fields[-1]) == {"count": 1, "seen": []}


def test_flow_restored_from_its_record_is_the_same_flow(bench: Any) -> None:
    """G6: fields, keys and offloads are back, and no handler ran for it."""
    link = SlowLink()
    first = bench(Remember, link=link)
    first.lan_in(packet(1), packet(2))
    (actor,) = first.core.actors()
    fields, keys, idle_ns, _ = Remember.restore_arguments(link.saved[-1])
    second = bench(Remember)
    second.core.restore(actor.flow, "lan", 7, 0, fields, keys, idle_ns)
    (twin,) = second.core.actors()
    assert (twin.count, twin.seen, twin.incarnation) == (1, [2], 7) and twin.saved_state() == link.saved[-1]
    second.wan_in(frames.udp("198.51.100.1", 53, "10.0.0.2", 1000, b"r"))
    assert second.count("offloaded") == 1 and second.count("handled") == 0 and second.core.entries == 2
    second.core.forget(actor.flow, "lan")
    assert second.core.entries == 0 and second.count("live_flows") == 0


def test_flows_of_a_core_that_stands_by_are_not_idle(bench: Any) -> None:
    """G6: their packets are another node's; once the core is active their silence counts, from then on."""

    class Brief(FlowActor):
        idle_s = 5.0

        def on_packet(self, packet: Packet) -> Any:
            return FORWARD

    node = bench(Brief, link=SlowLink())
    node.lan_in(packet(1))
    (actor,) = node.core.actors()
    arguments = Brief.restore_arguments(actor.saved_state())
    node = bench(Brief, link=SlowLink())
    node.core.stand_by()
    node.core.restore(actor.flow, "lan", 7, 0, *arguments)
    tick = b"no packet of a flow"
    node.lan_in(tick, after_s=20.0)
    node.core.go_active()
    node.lan_in(tick, after_s=4.0)
    assert len(node.core.actors()) == 1 and node.count("flows_closed") == 0
    node.lan_in(tick, after_s=2.0)
    assert not node.core.actors() and node.count("flows_closed") == 1


class Refuse(FlowActor):
    def on_open(self, packet: Packet) -> Any:
        return REJECT if packet.ttl > 1 else Rewrite("wan")


@pytest.mark.parametrize(("hops", "told"), [(64, (1, 1)), (1, (3, 0))])
def test_ipv6_senders_are_told_in_icmpv6(hops: int, told: tuple[int, int]) -> None:
    """Administratively prohibited, and hop limit exceeded (RFC 4443 sections 3.1 and 3.3)."""
    Refuse.prepare()
    lan, wan = MemoryPort("lan"), MemoryPort("wan")
    lan.interface, lan.mac = ip_interface("2001:db8::1/64"), frames.WAN_MAC
    core = Core(Refuse, [lan, wan], flows_max=16, virtual_time=True, host=Host())
    addresses = bytes.fromhex("20010db8000000000000000000000002 20010db8000100000000000000000002")
    datagram = b"\x60\0\0\0\0\x08\x11" + bytes((hops,)) + addresses + b"\0\1\0\2\0\x08\0\0"
    lan.feed([(SECOND, frames.ethernet(datagram, kind=0x86DD))])
    core.breathe()
    ((_, error),) = lan.take()
    assert tuple(error[54:56]) == told and checksums_right(error)
    assert wan.take() == []


def test_fields_are_checked_when_the_class_is_defined() -> None:
    with pytest.raises(UsageError, match="needs a default"):
        type("Bad", (FlowActor,), {"__annotations__": {"x": "int"}, "__module__": __name__})
    with pytest.raises(UsageError, match="has this attribute"):
        type("Bad", (FlowActor,), {"__annotations__": {"port": "int"}, "port": 1, "__module__": __name__})
