"""The handler that a core was at when it died, and the flows that its next process shuns."""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec
import pytest

from actornet import FORWARD, FiveTuple, FlowActor, Packet, Verdict
from actornet.engine.black_box import BlackBox
from actornet.engine.handlers import HANDLERS
from actornet.errors import RingError
from actornet.limits import SHUNNED_MAX, SHUNNED_S
from tests import frames
from tests.test_core import Bench, packet, payloads

VNET_BYTES = 12
FLOW = FiveTuple(17, "10.0.0.2", 1000, "198.51.100.1", 53)


class Fatal(FlowActor):
    """Some handlers are as if the process ended in them: that they ran then is what the box knows."""

    box: ClassVar[BlackBox]
    seen: ClassVar[list[Any]] = []
    closed: ClassVar[list[str]] = []
    opened: int = 0

    @classmethod
    def die(cls) -> None:
        cls.seen.append(cls.box.last(0))
        cls.box.condemn(0, 10**9)

    def on_packet(self, packet: Packet) -> Verdict:
        if packet.payload == b"\x09":
            self.die()
        return FORWARD

    def on_message(self, message: Any) -> None:
        self.die()

    def on_close(self) -> None:
        self.closed.append(str(self.flow))
        if self.opened:
            self.die()


class FatalOpen(Fatal):
    fail = FORWARD


class FatalBothWays(Fatal):
    connection = True


def next_process(nf: type[Fatal], box: BlackBox) -> Bench:
    node = Bench(nf)
    node.core.record_in(box)
    nf.box = box
    nf.seen.clear()
    nf.closed.clear()
    return node


def has(node: Bench, flow: FiveTuple, **fields: Any) -> None:
    """The flow is there, from the log."""
    node.core.restore(flow, "lan", 1, 0, list(fields.items()), [], 60 * 10**9)


def test_the_box_tells_which_handler_runs() -> None:
    box = BlackBox.create(1)
    node = next_process(Fatal, box)
    node.lan_in(packet(1), packet(9))
    assert Fatal.seen == [(HANDLERS.index("on_packet"), FLOW, 0)] and box.last(0) is None
    node.core.tell(FLOW, "message")
    assert Fatal.seen[1:] == [(HANDLERS.index("on_message"), FLOW, 0)] and box.last(0) is None


@pytest.mark.parametrize("nf", [Fatal, FatalOpen])
def test_the_next_process_closes_the_flow_and_shuns_it(nf: type[Fatal]) -> None:
    """G9: its packets go as `fail` says, and reach no handler, until none has come for a while; other flows go on."""
    box = BlackBox.create(1)
    next_process(nf, box).lan_in(packet(9))
    node = next_process(nf, box)
    assert node.count("handler_fatal") == 1
    has(node, FLOW)
    has(node, msgspec.structs.replace(FLOW, source_port=2000))
    assert node.core.close_condemned() == [("on_packet", FLOW)] and node.core.close_condemned() == []
    assert nf.closed == [str(FLOW)] and node.count("live_flows") == 1

    for _ in range(3):
        node.lan_in(packet(9), packet(1, port=2000), after_s=SHUNNED_S - 2)
        assert payloads(node.out()) == ([9, 1] if nf is FatalOpen else [1])
    assert nf.seen == [] and node.count("failed_open" if nf is FatalOpen else "shunned") == 3
    node.lan_in(packet(9), after_s=SHUNNED_S + 1)
    assert len(nf.seen) == 1, "it has been silent for so long that it may be another one"


def test_a_flow_that_has_never_been_saved_is_closed_in_the_log() -> None:
    """Else its first packet, which its ask has kept, would be treated again at each restart (G5)."""
    box = BlackBox.create(1)
    next_process(Fatal, box).lan_in(packet(9))
    node = next_process(Fatal, box)
    assert node.core.close_condemned() == [("on_packet", FLOW)]
    assert Fatal.closed == [] and node.count("flows_opened") == node.count("flows_closed") == 1
    node.core.unsent.resume(0, bytes(1 + VNET_BYTES) + packet(9))
    assert node.count("shunned") == 1 and Fatal.seen == []


def test_an_answer_is_shunned_as_its_flow_is() -> None:
    box = BlackBox.create(1)
    next_process(FatalBothWays, box).lan_in(packet(9))
    node = next_process(FatalBothWays, box)
    node.core.close_condemned()
    node.wan_in(frames.udp("198.51.100.1", 53, "10.0.0.2", 1000, b"\x09"))
    assert node.count("shunned") == 1 and node.count("live_flows") == 0


def test_a_flow_whose_on_close_was_the_end_is_closed_without() -> None:
    box = BlackBox.create(1)
    node = next_process(Fatal, box)
    has(node, FLOW, opened=1)
    node.core.close_all()
    assert Fatal.seen == [(HANDLERS.index("on_close"), FLOW, 0)]
    node = next_process(Fatal, box)
    has(node, FLOW, opened=1)
    assert node.core.close_condemned() == [("on_close", FLOW)]
    assert Fatal.closed == [] and node.count("live_flows") == 0


def test_of_too_many_the_one_that_was_silent_for_the_longest_time_gives_way() -> None:
    box = BlackBox.create(1)
    node = next_process(Fatal, box)
    node.lan_in(*(packet(9, port=1000 + number) for number in range(SHUNNED_MAX)))
    node = next_process(Fatal, box)
    node.core.close_condemned()
    node.lan_in(*(packet(9, port=1000 + number) for number in range(1, SHUNNED_MAX)), after_s=1)
    assert node.count("shunned") == SHUNNED_MAX - 1
    node.lan_in(packet(9, port=999))
    assert len(Fatal.seen) == 1
    node = next_process(Fatal, box)
    node.core.close_condemned()
    node.lan_in(packet(9, port=999), packet(9, port=1001), packet(1, port=1000), after_s=2)
    assert node.count("shunned") == 2 and payloads(node.out()) == [1]


def test_a_descriptor_that_has_no_box_is_refused() -> None:
    box = BlackBox.create(2)
    with pytest.raises(RingError, match="has no black boxes of 1 cores"):
        BlackBox(box.fd, 1)
    with pytest.raises(IndexError):
        box.last(2)
