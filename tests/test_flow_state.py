"""What the core writes of a flow is what msgspec would write of the same values, whatever is in it."""

from __future__ import annotations

from typing import Any

import dpkt
import msgspec
import pytest

from actornet import DROP, FORWARD, FiveTuple, FlowActor, Meter, Mirror, Packet, Rewrite
from actornet.embedded import Embedded
from actornet.engine.core import Core
from actornet.engine.flow_state import flow_body
from actornet.errors import UsageError
from actornet.flow import FlowState
from actornet.limits import KEYS_PER_FLOW_MAX, PORT_NAME_BYTES_MAX
from actornet.log.record import FlowBody
from actornet.ports.memory import MemoryPort
from tests.frames import ethernet, udp

LONG = "w" * PORT_NAME_BYTES_MAX


def opened(decide: Any, *, v6: bool = False) -> tuple[Any, Embedded]:
    """The actor of a flow whose `on_open` is `decide`, and its node."""

    class Decided(FlowActor):
        text: str = "é" * 40
        numbers: tuple[int, ...] = (1, 2)

        def on_open(self, packet: Packet) -> Any:
            return decide(self, packet)

        def on_mirror(self, packet: Packet) -> None: ...

    lan, wan = MemoryPort("lan"), MemoryPort(LONG)
    errors: list[Any] = []
    node = Embedded(Decided, [lan, wan], on_error=lambda *error: errors.append(error))
    datagram = dpkt.udp.UDP(sport=1000, dport=53, ulen=9, data=b"x")
    packet = dpkt.ip6.IP6(src=b" \1" + bytes(14), dst=b" \2" + bytes(14), nxt=17, hlim=64, plen=9, data=datagram)
    lan.feed([(0, ethernet(bytes(packet), 0x86DD) if v6 else udp("10.0.0.1", 1000, "198.18.0.1", 53))])
    node.run_burst()
    assert errors == []
    (actor,) = node.core.actors()
    return actor, node


def encoded_body(actor: Any, state: bytes) -> bytes:
    body = FlowBody(actor.flow, actor.port_index, actor.incarnation, actor.asks, state)
    return msgspec.msgpack.encode(body)


def nothing(actor: Any, packet: Packet) -> None: ...


def drops(actor: Any, packet: Packet) -> None:
    actor.offload(DROP, idle_s=7)


def forwards_both(actor: Any, packet: Packet) -> None:
    actor.bind(packet.flow.reversed())
    actor.offload(FORWARD, punt_tcp=False)
    actor.offload(FORWARD, packet.flow.reversed())


def rewrites_all(actor: Any, packet: Packet) -> None:
    v6 = packet.ip_version == 6
    actor.offload(
        Rewrite(
            source="2001:db8:1234:5678:9abc:def0:1234:5678" if v6 else "203.0.113.255",
            destination="2001:db8:1234:5678:9abc:def0:1234:5679" if v6 else "203.0.113.254",
            source_port=65535,
            destination_port=65534,
            dscp=63,
            decrement_ttl=False,
            source_mac="02:00:5e:10:00:01",
            destination_mac="02:00:5e:10:00:02",
            vlan=4094,
        ),
        hard_s=1e8,
        meter=Meter(bytes_per_s=1 << 40, burst=1 << 33),
        mirror=Mirror(every=(1 << 32) - 1, packets=(1 << 32) - 1, bytes=(1 << 32) - 1),
    )


def holds_all_keys(actor: Any, packet: Packet) -> None:
    here, there = (
        ("2001:db8:ffff:ffff::1", "2001:db8::ffff") if packet.ip_version == 6 else ("198.18.255.255", "203.0.113.255")
    )
    for number in range(1, KEYS_PER_FLOW_MAX):
        actor.bind(FiveTuple(17, here, 60_000 + number, there, 65_000), LONG)
    for flow, port in actor._bound():
        actor.offload(Rewrite(source=there, vlan=0), flow, port, hard_s=9.0, mirror=Mirror(every=3))


@pytest.mark.parametrize("v6", [False, True])
@pytest.mark.parametrize("decide", [nothing, drops, forwards_both, rewrites_all, holds_all_keys])
def test_a_state_is_what_msgspec_would_make_of_it(decide: Any, v6: bool) -> None:
    actor, node = opened(decide, v6=v6)
    state = actor.saved_state()
    assert msgspec.msgpack.encode(msgspec.msgpack.decode(state, type=FlowState)).startswith(state[:40])
    assert msgspec.msgpack.encode(msgspec.msgpack.decode(state)) == state
    fields, keys, idle_ns, generation = type(actor).restore_arguments(state)
    assert dict(fields) == {"text": "é" * 40, "numbers": (1, 2)}
    assert [(key.flow, key.port) for key in keys] == actor._bound() and generation == 0
    assert idle_ns == (7 if decide is drops else 60) * 10**9
    assert flow_body(actor) == encoded_body(actor, state)
    # Another core that is given it has the same to say.
    twin = Core(type(actor), [MemoryPort("lan"), MemoryPort(LONG)], now_ns=node.core.now_ns)
    twin.restore(actor.flow, "lan", 1, 0, fields, keys, idle_ns)
    (again,) = twin.actors()
    assert len(again._bound()) == len(keys)
    if decide is not rewrites_all:  # its meter and mirror begin anew, and so does the text of their terms' order
        assert sorted(map(str, msgspec.msgpack.decode(again.saved_state())[1])) == sorted(
            map(str, msgspec.msgpack.decode(state)[1])
        )


@pytest.mark.parametrize("length", [0, 300, 70_000])
def test_a_body_has_room_for_a_state_of_any_size(length: int) -> None:
    actor, _ = opened(nothing)
    actor.text = "x" * length
    state = actor.saved_state()
    assert len(state) > length and flow_body(actor) == encoded_body(actor, state)


def test_a_port_name_that_records_have_no_room_for_is_refused() -> None:
    class Passes(FlowActor):
        def on_packet(self, packet: Packet) -> Any:
            return FORWARD

    with pytest.raises(UsageError, match="choose a shorter one"):
        Embedded(Passes, [MemoryPort("lan"), MemoryPort("w" * (PORT_NAME_BYTES_MAX + 1))])
