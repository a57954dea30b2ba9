"""Offloads: what the compiled core does alone, until when, how fast, and what the flow's actor sees of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import dpkt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actornet import DROP, FORWARD, FiveTuple, FlowActor, Meter, Mirror, Owner, Packet, Rewrite, Struct, Verdict
from actornet.embedded import Embedded
from actornet.engine.wire import checksums_right, parse
from actornet.errors import UsageError
from actornet.ports.memory import MemoryPort
from tests import frames
from tests.test_core import SECOND, Bench, packet, payloads

SOURCE_MAC, OTHER_MAC = "02:00:00:00:00:aa", "02:00:00:00:00:bb"


class Saves:
    """A link that keeps what flows save."""

    def __init__(self) -> None:
        self.states: list[bytes] = []

    def save(self, actor: FlowActor) -> int:
        self.states.append(actor.saved_state())
        return 0

    def close(self, actor: FlowActor, reason: str) -> int:
        return 0

    def flush(self) -> None: ...
    def poll(self) -> None: ...


class Offloads(FlowActor):
    """Offloads its first key as the test says, and notes what comes to Python."""

    verdict: ClassVar[Verdict] = FORWARD
    terms: ClassVar[dict[str, Any]] = {}
    seen: ClassVar[list[tuple[str, int]]] = []
    then: ClassVar[Any] = None
    opened: int = 0

    def on_open(self, packet: Packet) -> Any:
        self.opened += 1
        self.offload(self.verdict, **self.terms)

    def on_packet(self, packet: Packet) -> Any:
        self.seen.append(("packet", packet.payload[0]))
        return FORWARD

    def on_mirror(self, packet: Packet) -> Any:
        self.seen.append(("mirror", packet.payload[0]))
        if self.then is not None:
            self.then(self)


def node_of(verdict: Verdict, then: Any = None, link: Any = None, **terms: Any) -> Bench:
    then = staticmethod(then) if then is not None else None
    return Bench(type("Offloads", (Offloads,), {"verdict": verdict, "terms": terms, "seen": [], "then": then}), link)


def seen(node: Bench) -> list[tuple[str, int]]:
    assert not node.errors, node.errors
    found: list[tuple[str, int]] = node.core.nf.seen
    return found


def twin_of(node: Bench) -> Bench:
    """Another core, with the flow as the log has it."""
    twin = Bench(node.core.nf)
    (actor,) = node.core.actors()
    fields, keys, idle_ns, generation = node.core.nf.restore_arguments(actor.saved_state())
    twin.core.revoke(node.core.revocations)
    twin.core.restore(actor.flow, "lan", actor.incarnation, 0, fields, keys, idle_ns, generation)
    twin.now_ns = node.now_ns
    return twin


# -- time-outs ------------------------------------------------------------------------------------------------------


def test_a_hard_time_out_ends_the_offload_and_not_the_flow() -> None:
    """G6: a flow from the log has the same deadline."""
    node = node_of(FORWARD, hard_s=10.0, idle_s=100.0)
    node.lan_in(packet(1))
    node.lan_in(packet(2), after_s=9.5)
    twin = twin_of(node)
    for one, in_time in ((node, 2), (twin, 0)):
        one.lan_in(packet(3), after_s=0.4)
        one.lan_in(packet(4), after_s=0.2)
        one.lan_in(packet(5), after_s=50.0)
        assert len(one.out()) == 3 + in_time
        assert one.count("offloads_expired") == 1 and one.count("live_flows") == 1
    assert seen(node) == [("packet", 4), ("packet", 5)] * 2


@pytest.mark.parametrize("hard_s", [0, -1, float("nan"), 1e10])
def test_a_time_out_must_be_one(hard_s: float) -> None:
    node = node_of(FORWARD, hard_s=hard_s)
    node.lan_in(packet(1))
    ((_, handler, error),) = node.errors
    assert handler == "on_open" and isinstance(error, UsageError) and "hard_s" in str(error)


# -- meter ----------------------------------------------------------------------------------------------------------


def test_a_meter_of_packets_passes_a_burst_then_the_rate() -> None:
    node = node_of(FORWARD, meter=Meter(packets_per_s=10, burst=5), idle_s=1e6)
    node.lan_in(*[packet(n) for n in range(20)])
    assert payloads(node.out()) == [0, 1, 2, 3, 4] and node.count("dropped_by_meter") == 15
    node.lan_in(*[packet(n) for n in range(20)], after_s=0.25)
    assert len(node.out()) == 2
    node.lan_in(*[packet(n) for n in range(20)], after_s=0.05)  # and half a token was left
    assert len(node.out()) == 1
    node.lan_in(*[packet(n) for n in range(20)], after_s=100_000.0)
    assert len(node.out()) == 5, "the bucket holds no more than its burst"


def test_a_meter_of_bytes_counts_frames() -> None:
    """G6: after a takeover the bucket is full."""
    length = len(packet(0))
    node = node_of(FORWARD, meter=Meter(bytes_per_s=length * 2, burst=length * 3))
    node.lan_in(*[packet(n) for n in range(5)])
    assert len(node.out()) == 3
    node.lan_in(packet(0), packet(1), after_s=0.5)
    assert len(node.out()) == 1
    twin = twin_of(node)
    twin.lan_in(*[packet(n) for n in range(5)])
    assert len(twin.out()) == 3


class _Model:
    """The bucket in exact arithmetic, in billionths."""

    def __init__(self, rate: int, burst: int) -> None:
        self.rate, self.full = rate, burst * 10**9
        self.tokens, self.filled_ns = self.full, 0

    def conform(self, now_ns: int, cost: int) -> bool:
        self.tokens = min(self.full, self.tokens + max(0, now_ns - self.filled_ns) * self.rate)
        self.filled_ns = now_ns
        if self.tokens < cost * 10**9:
            return False
        self.tokens -= cost * 10**9
        return True


@settings(max_examples=60, deadline=None)
@given(
    st.one_of(st.integers(1, 100), st.integers(1, 1 << 40)),
    st.one_of(st.integers(1, 2000), st.integers(1, 1 << 33)),
    st.lists(st.one_of(st.integers(0, 10**9), st.integers(0, 10**17)), min_size=1, max_size=30),
)
def test_a_meter_is_exact(rate: int, burst: int, pauses: list[int]) -> None:
    """Whatever its numbers: nothing overflows."""
    node = node_of(FORWARD, meter=Meter(bytes_per_s=rate, burst=burst), idle_s=9e8)
    model = _Model(rate, burst)
    model.filled_ns = node.now_ns
    expected = 0
    for pause in [0, *pauses]:
        node.now_ns += pause
        node.lan_in(packet(1))
        expected += model.conform(node.now_ns, len(packet(1)))
        if not node.core.actors():
            return  # idle for longer than a flow may be
    assert len(node.out()) == expected


@pytest.mark.parametrize(
    "wrong",
    [
        {"burst": 1},
        {"burst": 1, "packets_per_s": 1, "bytes_per_s": 1},
        {"burst": 0, "packets_per_s": 1},
        {"burst": (1 << 33) + 1, "packets_per_s": 1},
        {"burst": 1, "packets_per_s": 0.5},
        {"burst": 1, "bytes_per_s": -1},
    ],
)
def test_a_meter_must_be_possible(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="meter: "):
        Meter(**wrong)


# -- mirror ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mirror", "expected"),
    [
        (Mirror(every=3), [3, 6, 9]),
        (Mirror(packets=2), [1, 2]),
        (Mirror(bytes=3 * len(packet(0))), [1, 2, 3]),
        (Mirror(bytes=1, every=5), [1, 5, 10]),
    ],
)
def test_a_mirror_shows_what_it_says_and_everything_leaves_in_order(mirror: Mirror, expected: list[int]) -> None:
    """G1."""
    node = node_of(FORWARD, mirror=mirror)
    node.lan_in(packet(0))
    node.out()
    node.lan_in(*[packet(n) for n in range(1, 11)])
    # the packet that opened the flow was carried out as its handler's verdict, and not counted
    assert payloads(node.out()) == list(range(1, 11))
    assert seen(node) == [("mirror", n) for n in expected]
    assert node.count("mirrored") == len(expected) and node.count("offloaded") == 10


def test_on_mirror_sees_the_packet_as_received() -> None:
    class Looks(Offloads):
        verdict = Rewrite(source="203.0.113.9")
        terms: ClassVar[dict[str, Any]] = {"mirror": Mirror(every=1)}
        frames: ClassVar[list[bytes]] = []

        def on_mirror(self, packet: Packet) -> Any:
            self.frames.append(packet.frame)

    node = Bench(Looks)
    node.lan_in(packet(1), packet(2))
    assert Looks.frames == [packet(2)]
    assert all(checksums_right(frame) and parse(frame)["flow"].source == "203.0.113.9" for frame in node.out())


def test_on_mirror_may_withdraw_and_the_packet_is_the_actors() -> None:
    node = node_of(FORWARD, then=lambda actor: actor.withdraw(), mirror=Mirror(every=3))
    node.lan_in(*[packet(n) for n in range(6)])
    assert seen(node) == [("mirror", 3), ("packet", 3), ("packet", 4), ("packet", 5)]
    assert payloads(node.out()) == list(range(6))


def test_on_mirror_may_drop_from_here_on() -> None:
    node = node_of(FORWARD, then=lambda actor: actor.offload(DROP), mirror=Mirror(every=3))
    node.lan_in(*[packet(n) for n in range(6)])
    assert payloads(node.out()) == [0, 1, 2] and node.count("dropped_by_offload") == 3


def test_on_mirror_may_close_or_fail() -> None:
    """G9: the flow fails closed, the next packet begins a new one."""
    node = node_of(FORWARD, then=lambda actor: actor.close(), mirror=Mirror(every=1))
    node.lan_in(packet(0), packet(1), packet(2))
    assert node.count("flows_opened") == 2 and payloads(node.out()) == [0, 1, 2]
    node = node_of(FORWARD, then=lambda actor: 1 // 0, mirror=Mirror(every=1))
    node.lan_in(packet(0), packet(1), packet(2))
    assert payloads(node.out()) == [0, 2] and node.count("handler_error") == 1
    assert [handler for _, handler, _ in node.errors] == ["on_mirror"]


def test_a_mirror_needs_a_plain_handler() -> None:
    class Deaf(FlowActor):
        def on_open(self, packet: Packet) -> Any:
            self.offload(FORWARD, mirror=Mirror(every=1))

    node = Bench(Deaf)
    node.lan_in(packet(1))
    assert "Deaf.on_mirror" in str(node.errors[0][2])
    with pytest.raises(UsageError, match="on_mirror must be a plain"):

        class Waits(FlowActor):
            async def on_mirror(self, packet: Packet) -> Any: ...

    for wrong in ({}, {"every": -1}, {"packets": 1 << 32}, {"bytes": 1.5}):
        with pytest.raises(UsageError, match="mirror: "):
            Mirror(**wrong)  # type: ignore[arg-type]


# -- counters -------------------------------------------------------------------------------------------------------


def test_keys_are_counted_one_by_one() -> None:
    class Both(FlowActor):
        def on_open(self, packet: Packet) -> Any:
            self.bind(packet.flow.reversed())
            self.offload(FORWARD)
            self.offload(FORWARD, packet.flow.reversed())

    node = Bench(Both)
    node.lan_in(packet(1), packet(2), packet(3))
    node.wan_in(frames.udp("198.51.100.1", 53, "10.0.0.2", 1000, b"answer"))
    (actor,) = node.core.actors()
    length = len(packet(1))
    assert actor.counted() == (3, 3 * length)
    assert actor.counted(actor.flow.reversed()) == actor.counted(actor.flow.reversed(), "wan") == (1, 48)
    assert (actor.packets, actor.bytes) == (4, 3 * length + 48)
    with pytest.raises(UsageError, match=r"counted: .* is not bound"):
        actor.counted(actor.flow, "wan")


# -- Ethernet header ------------------------------------------------------------------------------------------------


def tagged(frame: bytes, *tags: int, kind: int = 0x8100) -> bytes:
    for tag in reversed(tags):
        frame = frame[:12] + kind.to_bytes(2, "big") + tag.to_bytes(2, "big") + frame[12:]
    return frame


@pytest.mark.parametrize("offload", [True, False])
@pytest.mark.parametrize(
    ("vlan", "before", "after"),
    [
        (7, (), (7,)),
        (7, (0xA005,), (0xA007,)),  # priority 5 stays
        (7, (5, 6), (7, 6)),
        (0, (0xA005,), ()),
        (0, (5, 6), (6,)),
        (0, (), ()),
    ],
)
def test_vlan_tags(vlan: int, before: tuple[int, ...], after: tuple[int, ...], offload: bool) -> None:
    verdict = Rewrite(source="203.0.113.9", vlan=vlan)

    class Tags(FlowActor):
        def on_open(self, packet: Packet) -> Any:
            if offload:
                self.offload(verdict)

        def on_packet(self, packet: Packet) -> Any:
            return verdict

    node = Bench(Tags)
    node.lan_in(*[tagged(packet(n), *before) for n in range(70)])
    out = node.out()
    assert not node.errors and [frame[42 + 4 * len(after)] for frame in out] == list(range(70))
    for n, frame in enumerate(out):
        bare = frame[:12] + frame[12 + 4 * len(after) :]
        assert frame == tagged(bare, *after) and checksums_right(bare)
        assert bare[-1] == n and parse(frame)["flow"].source == "203.0.113.9"


def test_a_datagram_of_fragments_leaves_with_a_tag() -> None:
    """What was put together has room for the tag, and is cut again behind it."""
    node = node_of(Rewrite(source="203.0.113.9", vlan=7))
    whole = frames.udp("10.0.0.2", 1000, "198.51.100.1", 53, bytes(3000))
    node.lan_in(*frames.fragments(whole, 1500), *frames.fragments(whole, 1500, identification=8))
    out = node.out()
    assert not node.errors and len(out) == 6 and all(frame[12:16] == b"\x81\x00\x00\x07" for frame in out)
    again = frames.joined(out[:3], tags=4)
    assert again[18:] != whole[14:] and checksums_right(again) and parse(again)["flow"].source == "203.0.113.9"


def test_mac_addresses_and_their_record() -> None:
    """G6: the record carries them."""
    verdict = Rewrite(source_mac=SOURCE_MAC, destination_mac=OTHER_MAC, vlan=9, dscp=46)
    assert repr(verdict) == f"Rewrite(dscp=46, source_mac={SOURCE_MAC!r}, destination_mac={OTHER_MAC!r}, vlan=9)"
    node = node_of(verdict, mirror=Mirror(every=2), meter=Meter(packets_per_s=5, burst=100), hard_s=5.0)
    node.lan_in(packet(1), packet(2))
    twin = twin_of(node)
    twin.lan_in(packet(1), packet(2))
    out = node.out()
    assert twin.out() == out and len(out) == 2
    for frame in out:
        ethernet = dpkt.ethernet.Ethernet(frame)
        assert ethernet.src.hex(":") == SOURCE_MAC and ethernet.dst.hex(":") == OTHER_MAC
        assert ethernet.vlan_tags[0].id == 9 and ethernet.data.tos >> 2 == 46 and ethernet.data.ttl == 63
    assert [actor.saved_state() for actor in twin.core.actors()] == [
        actor.saved_state() for actor in node.core.actors()
    ]


@pytest.mark.parametrize(
    "wrong",
    [{"vlan": 4095}, {"vlan": -1}, {"vlan": "1"}, {"source_mac": "02:00"}, {"destination_mac": 5}, {"source_mac": "x"}],
)
def test_what_no_header_can_carry(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="rewrite: "):
        Rewrite(**wrong)


# -- revocation -----------------------------------------------------------------------------------------------------


def test_revoked_offloads_come_to_their_actors_again() -> None:
    """G3, G6: however many flows there are; one that decides anew is not asked again, and a record from before is void."""
    node = node_of(FORWARD)
    node.lan_in(*[packet(1, port) for port in range(1000, 1010)])
    before = twin_of_first(node)
    node.core.revoke(1)
    node.lan_in(*[packet(2, port) for port in range(1000, 1010)])
    assert seen(node) == [("packet", 2)] * 10 and node.count("offloads_revoked") == 10
    seen(node).clear()
    for actor in node.core.actors():
        actor.offload(FORWARD)
    node.lan_in(*[packet(3, port) for port in range(1000, 1010)])
    assert seen(node) == [] and len(node.out()) == 30
    before.core.revoke(1)
    before.lan_in(packet(4))
    assert seen(before) == [("packet", 4)]
    late = Bench(node.core.nf)
    late.core.revoke(2)
    state, flow = next(
        (actor.saved_state(), actor.flow) for actor in node.core.actors() if actor.flow.source_port == 1000
    )
    fields, keys, idle_ns, generation = node.core.nf.restore_arguments(state)
    assert generation == 1
    late.core.restore(flow, "lan", 1, 0, fields, keys, idle_ns, generation)
    late.lan_in(packet(5))
    assert seen(late)[-1] == ("packet", 5)


def twin_of_first(node: Bench) -> Bench:
    twin = Bench(node.core.nf)
    actor = next(actor for actor in node.core.actors() if actor.flow.source_port == 1000)
    fields, keys, idle_ns, generation = node.core.nf.restore_arguments(actor.saved_state())
    twin.core.restore(actor.flow, "lan", actor.incarnation, 0, fields, keys, idle_ns, generation)
    return twin


def test_an_offload_stays_void_after_sixteen_bits_of_revocations() -> None:
    node = node_of(FORWARD)
    node.lan_in(packet(1))
    node.core.revoke(1 << 16)  # entries know the low bits only
    node.lan_in(packet(2))
    assert seen(node) == [("packet", 2)]


class Rules(Struct):
    allowed: bool = True


class Policy(Owner[Rules]):
    def allows(self, flow: FiveTuple) -> bool:
        return self.state.allowed

    def decide(self, allowed: bool) -> None:
        self.state.allowed = allowed
        self.revoke_offloads()


class Guard(FlowActor):
    policy = Policy.named("policy")

    async def on_packet(self, packet: Packet) -> Verdict:
        verdict = FORWARD if await self.policy.allows(packet.flow) else DROP
        self.offload(verdict)
        return verdict


def test_an_owners_decision_concerns_every_flow_and_outlives_the_process(tmp_path: Path) -> None:
    """G4, G6: the same after a restart from the log, whether the flow has decided since or not."""
    now_ns = 0

    def run(decisions: list[bool | None], ports: int) -> tuple[list[int], dict[str, int]]:
        """Send a packet per flow after each decision (None: none); how many left, and the counters."""
        nonlocal now_ns
        lan, wan, left = MemoryPort("lan"), MemoryPort("wan"), []
        node = Embedded(Guard, [lan, wan], log_directory=str(tmp_path / "log"), virtual_time=True)
        for decision in decisions:
            if decision is not None:
                node.ask("policy", "decide", (decision,))
            now_ns += SECOND
            lan.feed([(now_ns, packet(1, 1000 + n)) for n in range(ports)])
            while node.run_burst():
                pass
            left.append(len(list(wan.take())))
        counts = node.counters()
        node.link.flush()
        node.journal.log.close()  # as if it had been killed
        return left, counts

    left, counts = run([None, None, False, None, True, None], 50)
    assert left == [50, 50, 0, 0, 50, 50] and counts["offloads_revoked"] == 100 and counts["asks"] == 150
    left, counts = run([None, False], 50)
    assert left == [50, 0] and counts["flows_restored"] == 50 and counts["handled"] == 50
    left, counts = run([None, True], 25)
    assert left == [0, 25] and counts["handled"] == 25
    left, counts = run([None], 50)
    assert left == [50] and counts["handled"] == 25, "half of them have not decided since"
