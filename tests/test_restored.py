"""Records that are read into the flow table as they are, and all others: both ways end in the same table (G6)."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest

from actornet import DROP, FORWARD, FiveTuple, FlowActor, Meter, Packet, Rewrite
from actornet.embedded import Embedded
from actornet.engine.restored import restore_plain
from actornet.engine.verdict import encode_verdict
from actornet.errors import ActornetError
from actornet.flow import FlowState, KeyState
from actornet.journal import restore_flow
from actornet.limits import KEYS_PER_FLOW_MAX
from actornet.log.record import FlowBody
from actornet.ports.memory import MemoryPort
from tests.frames import udp
from tests.test_neighbors import Pass, routed

encode = msgspec.msgpack.encode
PORTS = ("lan", "wan", "é" * 20)


class Kept(FlowActor):
    fragments = "drop"
    text: str = ""
    numbers: tuple[int, ...] = ()
    table: dict[str, int] = {}

    def on_packet(self, packet: Packet) -> Any:
        return DROP


def node() -> tuple[Embedded, list[MemoryPort]]:
    ports = [MemoryPort(name) for name in PORTS]
    return Embedded(Kept, ports), ports


def address(rng: random.Random, v6: bool = False) -> str:
    last = rng.choice((0, 1, 9, 10, 99, 100, 255))
    return f"2001:db8::{last:x}" if v6 else f"{rng.choice((1, 10, 198, 223))}.{rng.randrange(256)}.0.{last}"


def drawn_verdict(rng: random.Random) -> Any:
    maybe = lambda value: value if rng.random() < 0.5 else None  # noqa: E731
    kind = rng.random()
    if kind < 0.2:
        return False
    if kind < 0.3:
        return None
    if kind < 0.5:
        return [rng.choice(PORTS)]
    link = {"vlan": rng.randrange(4095), "source_mac": "02:00:00:00:00:01"} if kind > 0.95 else {}
    return encode_verdict(
        Rewrite(
            rng.choice(PORTS),
            source=maybe(address(rng)),
            source_port=maybe(rng.choice((0, 127, 128, 255, 256, 65535))),
            destination=maybe(address(rng)),
            destination_port=maybe(rng.choice((0, 127, 128, 255, 256, 65535))),
            dscp=maybe(rng.choice((0, 63))),
            decrement_ttl=rng.random() < 0.5,
            **link,
        )
    )


def drawn_state(rng: random.Random) -> tuple[FiveTuple, bytes, bool]:
    """A flow, its record's state, and whether it is one of those that are read as they are."""
    protocol = rng.choice((6, 17, 17, 1))
    port = rng.choice((1, 1000, 65535))
    first = FiveTuple(protocol, address(rng), port, address(rng), port if protocol == 1 else 53)
    keys, plain = [], True
    for number in range(rng.choice((0, 1, 2, 2, 3, KEYS_PER_FLOW_MAX))):
        flow = first if number == 0 else FiveTuple(17, address(rng), 2000 + number, address(rng), rng.randrange(65536))
        key = KeyState(flow, "lan" if number == 0 else rng.choice(PORTS), drawn_verdict(rng), rng.random() < 0.5)
        strange = rng.random()
        if strange < 0.02:
            key.terms = {"meter": {"burst": 1000, "bytes_per_s": 10**6}}
        elif strange < 0.04:
            key.flow = FiveTuple(17, address(rng, True), 1, address(rng, True), 2)
        elif strange < 0.05:
            key.offload = [None]
        elif strange < 0.06:
            key.port = "dmz"
        elif strange < 0.2 and key.offload:
            key.next_hop = ("10.0.0.254", b"\2\0\0\0\0\1")
        long = isinstance(key.offload, list) and len(key.offload) == 10
        plain &= not (long or strange < 0.06)
        keys.append(key)
    if len({(key.flow, key.port) for key in keys}) < len(keys):
        return drawn_state(rng)
    fields = encode(("é" * rng.choice((0, 20, 300)), tuple(range(rng.choice((0, 20)))), {"a": 1, "b": -(1 << 40)}))
    state = FlowState(msgspec.Raw(fields), keys, rng.choice((60 * 10**9, 1 << 60)), rng.choice((0, 0, 0, 1, 1 << 40)))
    return first, encode(state), plain


def restore_generally(core: Any, flow: FiveTuple, state: bytes) -> None:
    fields, keys, idle_ns, generation = Kept.restore_arguments(state)
    core.restore(flow, "lan", 7, 3, fields, keys, idle_ns, generation)


def what_leaves(of: tuple[Embedded, list[MemoryPort]], flows: list[tuple[FiveTuple, str]]) -> list[Any]:
    """A packet of each key: what becomes of it, and the counters."""
    instance, ports = of
    for flow, port in flows:
        if flow.protocol == 17 and ":" not in flow.source:
            data = udp(flow.source, flow.source_port, flow.destination, flow.destination_port)
            ports[PORTS.index(port)].feed([(1, data)])
    instance.run_burst()
    return [[port.take() for port in ports], instance.counters()]


def test_both_ways_make_the_same_flow() -> None:
    """G6: offloads, checksums, keys, fields, times and marks; and what is read as it is are all that can be."""
    rng, read, left = random.Random(4), 0, 0
    for _ in range(400):
        flow, state, plain = drawn_state(rng)
        quick, general = node(), node()
        try:
            restore_generally(general[0].core, flow, state)
        except ActornetError:
            assert not plain and not restore_plain(quick[0].core, flow, 0, 7, 3, state, None)
            continue
        done = restore_plain(quick[0].core, flow, 0, 7, 3, state, None)
        assert done == plain
        read, left = read + done, left + (not done)
        if not done:
            assert quick[0].core.entries == 0 and quick[0].counters()["live_flows"] == 0
            restore_flow(quick[0].core, Kept, FlowBody(flow, 0, 7, 3, state))
        (one,), (other,) = quick[0].core.actors(), general[0].core.actors()
        assert one.saved_state() == other.saved_state()
        assert (one.flow, one.asks, one.incarnation, one.idle_s) == (flow, 3, 7, other.idle_s)
        assert (one.text, one.numbers, one.table) == (other.text, other.numbers, other.table)
        keys = one._bound()
        assert keys == other._bound() and what_leaves(quick, keys) == what_leaves(general, keys)
    assert read > 200 and left > 30


def test_no_part_of_a_record_is_read_beyond_its_end() -> None:
    """G8, G9: records cut or changed anywhere are read, left to the general way, or refused; none leaves half a flow."""
    rng = random.Random(5)
    instance, _ = node()
    for _ in range(4000):
        flow, state, _ = drawn_state(rng)
        data = bytearray(state)
        for _ in range(rng.choice((1, 1, 2, 4))):
            data[rng.randrange(len(data))] = rng.choice((0, 0x7F, 0x80, 0xC1, 0xDD, 0xDF, 0xFF, rng.randrange(256)))
        changed = bytes(data[: rng.randrange(len(data) + 1)]) if rng.random() < 0.3 else bytes(data)
        try:
            done = restore_plain(instance.core, flow, 0, 7, 3, changed, None)
        except ActornetError:
            done = False
        live = instance.counters()["live_flows"]
        assert live == len(instance.core.actors()) == done, changed
        instance.core.close_all()
        assert instance.core.entries == 0, changed


def test_a_full_table_has_no_half_a_flow() -> None:
    """G6: it is counted, and leaves nothing."""
    reverse = FiveTuple(17, "198.51.100.1", 53, "10.0.0.2", 1000)
    keys = [KeyState(reverse.reversed(), "lan", ["wan"], True), KeyState(reverse, "wan", ["lan"], True)]
    state = encode(FlowState(msgspec.Raw(encode(("", (), {}))), keys, 10**9))
    instance = Embedded(Kept, [MemoryPort("lan"), MemoryPort("wan")], flows_max=1)
    assert restore_plain(instance.core, reverse.reversed(), 0, 7, 0, state, None)
    assert instance.core.entries == 0 and instance.counters()["flow_table_full"] == 1
    assert instance.counters()["flows_restored"] == instance.counters()["live_flows"] == 0


@pytest.mark.parametrize("verdict", [FORWARD, Rewrite(destination="198.51.100.9")])
def test_a_next_hop_is_known_from_the_record(verdict: Any) -> None:
    """G6: the first packet after a takeover needs no ARP."""
    core, lan, wan = routed(Pass, "192.0.2.1/24", "192.0.2.254")
    flow = FiveTuple(17, "10.0.0.2", 1000, "198.51.100.1", 53)
    form = encode_verdict(verdict)
    assert form is not None
    keys = [KeyState(flow, "lan", ["wan", *form[1:]], True, ("192.0.2.254", b"\2\7\7\7\7\7"))]
    names = Pass.replicated_fields()
    values = tuple(dict(Pass.field_defaults)[name] for name in names)
    assert restore_plain(core, flow, 0, 7, 0, encode(FlowState(msgspec.Raw(encode(values)), keys, 10**9)), None)
    lan.feed([(1, udp(flow.source, 1000, flow.destination, 53))])
    core.breathe()
    ((_, frame),) = wan.take()
    assert frame[:6] == b"\2\7\7\7\7\7"


def test_terms_are_for_the_general_way() -> None:
    """As all that is not in most records: a meter begins anew there."""

    class Metered(FlowActor):
        def on_open(self, packet: Packet) -> Any:
            self.offload(FORWARD, meter=Meter(packets_per_s=1, burst=1))

    instance = Embedded(Metered, [MemoryPort("lan"), MemoryPort("wan")])
    lan = instance.core.ports[0]
    lan.feed([(1, udp("10.0.0.2", 1000, "198.51.100.1", 53))])
    instance.run_burst()
    (actor,) = instance.core.actors()
    twin = Embedded(Metered, [MemoryPort("lan"), MemoryPort("wan")])
    assert not restore_plain(twin.core, actor.flow, 0, 1, 0, actor.saved_state(), None)
