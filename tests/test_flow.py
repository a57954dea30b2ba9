"""A flow's fields and their types: at the class, where they are saved, and where they come back."""

from __future__ import annotations

import socket
import time
from pathlib import Path
from typing import Any

import pytest
from msgspec.msgpack import encode

from actornet import FORWARD, FiveTuple, FlowActor, Owner, Packet, StreamActor, Struct, setting
from actornet.embedded import Embedded
from actornet.engine.core import Core
from actornet.engine.ring import ControlPage, Ring
from actornet.errors import StateError, UsageError
from actornet.flow import FlowMeta
from actornet.limits import FIELDS_CHECKED_EVERY, FIELDS_CHECKED_FIRST, MESSAGE_BYTES_MAX
from actornet.log.record import FlowBody
from actornet.node import exchange
from actornet.node.core_worker import RingLink
from actornet.ports.memory import MemoryPort
from actornet.testing.pair import Pair
from tests.misfit_node import Mean, Sloppy
from tests.processes import wait_until
from tests.test_core import Bench, SlowLink, packet

FLOW = FiveTuple(17, "10.0.0.2", 1000, "198.51.100.1", 53)


@pytest.mark.parametrize(
    ("annotation", "default", "said"),
    [
        (int, "five", r"Wrong\.field: expected int, got str; a field's default"),
        (int, None, r"Wrong\.field: expected int, got NoneType"),
        (list[int], ["x"], r"Wrong\.field\[0\]: expected int, got str"),
        (socket.socket, None, r"Wrong\.field: socket is no Struct and no plain data"),
    ],
)
def test_a_default_of_another_type_is_refused_with_the_class(annotation: Any, default: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        FlowMeta("Wrong", (FlowActor,), {"__annotations__": {"field": annotation}, "field": default})


def nothing(*_: Any) -> Any:
    """A method."""


@pytest.mark.parametrize(
    ("base", "names", "said"),
    [
        (
            FlowActor,
            {"on_packt": nothing},
            r"Wrong\.on_packt is no handler, and nothing calls it: did you mean on_packet\?",
        ),
        (FlowActor, {"on_data": nothing}, r"Wrong\.on_data is no handler, .*: only a StreamActor has it"),
        (StreamActor, {"on_dta": nothing}, r"did you mean on_data\?"),
        (FlowActor, {"__init__": nothing}, r"Wrong\.__init__ is never called: .* on_open"),
        (FlowActor, {"idle_s": "5"}, r"Wrong\.idle_s must be positive seconds, not '5'"),
        (FlowActor, {"idle_s": 0}, r"Wrong\.idle_s must be positive seconds, not 0"),
        (FlowActor, {"idle_s": setting(5.0, "s")}, r"Wrong\.idle_s cannot be a setting"),
        (FlowActor, {"deadline_s": "5"}, r"Wrong\.deadline_s must be positive seconds, not '5'"),
        (FlowActor, {"connection": "yes"}, r"Wrong\.connection must be True or False, not 'yes'"),
        (FlowActor, {"inner": 5}, r"Wrong\.inner must be a tuple"),
        (FlowActor, {"fragments": ["drop"]}, r"Wrong\.fragments must be one of"),
        (StreamActor, {"inline": 1}, r"Wrong\.inline must be True or False"),
        (
            FlowActor,
            {"mean": Mean},
            r"Wrong\.mean is a class of owners, not an owner: refer to one by Mean\.named\(",
        ),
    ],
)
def test_what_a_class_cannot_mean_is_refused_with_it(base: type, names: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        FlowMeta("Wrong", (base,), names)


def test_a_hook_that_a_handler_calls_is_nobodys_mistake() -> None:
    class Watch(FlowActor):
        def on_packet(self, packet: Packet) -> Any:
            self.on_alert()
            return FORWARD

        def on_alert(self) -> None: ...

    class Loud(Watch):
        def on_alert(self) -> None: ...

    Loud.prepare()


@pytest.mark.parametrize(("base", "wants"), [(FlowActor, "on_packet"), (StreamActor, "on_data")])
def test_a_function_without_any_handler_is_refused_when_it_is_used(base: type, wants: str) -> None:
    with pytest.raises(UsageError, match=f"Wrong has no handler, .*: it needs {wants}"):
        FlowMeta("Wrong", (base,), {}).prepare()  # type: ignore[attr-defined]


def test_what_stays_in_the_process_may_be_anything() -> None:
    FlowMeta("Local", (FlowActor,), {"__annotations__": {"_field": socket.socket}, "_field": None})


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (2, "Sloppy.count: expected int, got float"),
        (4, "Sloppy.count: expected int of 64 bits at most, got one of 71 bits"),
        (3, f"Sloppy.table: {2 * MESSAGE_BYTES_MAX + 5} bytes, of "),
    ],
)
def test_a_field_that_would_not_come_back_is_the_handlers_error(number: int, said: str) -> None:
    """G4, G6: named by class and field; nothing of it is logged, and the flow begins anew."""
    link = SlowLink()
    node = Bench(Sloppy, link=link)
    node.lan_in(packet(1), packet(number), packet(1))
    (error,) = [error for _, _, error in node.errors]
    assert isinstance(error, StateError) and str(error).startswith(said)
    assert node.count("handler_error") == 1 and node.count("flows_opened") == 2
    assert [dict(Sloppy.restore_arguments(state)[0])["count"] for state in link.saved] == [1, 1]


def test_later_saves_are_checked_now_and_then() -> None:
    link = SlowLink()
    node = Bench(Sloppy, link=link)
    for _ in range(FIELDS_CHECKED_FIRST):
        node.lan_in(packet(1))
    for _ in range(FIELDS_CHECKED_EVERY - FIELDS_CHECKED_FIRST - 1):
        node.lan_in(packet(2))
    assert node.errors == []
    node.lan_in(packet(2))
    assert [str(error) for _, _, error in node.errors] == ["Sloppy.count: expected int, got float"]


def test_a_record_too_large_for_the_link_is_never_made() -> None:
    """Whether or not it is checked otherwise."""
    link = SlowLink()
    node = Bench(Sloppy, link=link)
    for _ in range(FIELDS_CHECKED_FIRST + 1):
        node.lan_in(packet(1))
    node.lan_in(packet(3))
    assert node.count("handler_error") == 1 and max(map(len, link.saved)) < 1000


def test_a_field_that_does_not_fit_comes_back_as_what_it_is() -> None:
    """G6: the other fields, and the flow, are there."""
    told: list[str] = []
    state = encode(([0.5, b"x"], [], 1, 0))
    assert Sloppy.restore_arguments(state, told.append)[0] == [("count", 0.5), ("table", b"x")]
    assert told == ["Sloppy.count: expected int, got float"]
    with pytest.raises(UsageError, match="does not fit Sloppy"):
        Sloppy.restore_arguments(encode(([1], [], 1, 0)))


def test_a_flow_of_the_log_that_cannot_be_restored_ends_no_core() -> None:
    """G6, G8: it is left out, counted and named; those that differ in a field's type alone are there."""
    Sloppy.prepare()
    requests, replies = Ring.create("requests", 1 << 16), Ring.create("replies", 1 << 20)
    link = RingLink(requests, replies, Sloppy)
    core = Core(Sloppy, [MemoryPort("lan"), MemoryPort("wan")], flows_max=64, link=link, virtual_time=True)
    link.core = core
    core.share(ControlPage.create(1), replies)
    assert replies.push(exchange.encode(exchange.Attaching(link.pid)))
    for port, fields, at in ((1, (1, b""), "lan"), (2, (0.5, b""), "lan"), (3, (1,), "lan"), (4, (1, b""), "dmz")):
        flow = FiveTuple(17, "10.0.0.2", port, "198.51.100.1", 2)
        state = encode((fields, [[flow, at, False, True]], int(1e15), 0))
        assert replies.push(exchange.encode(exchange.Restore(FlowBody(flow, 0, port, 1, state))))
    core.breathe()
    counts = core.count()
    assert counts["flows_restored"] == 2 and counts["flows_left_out"] == 2 and counts["live_flows"] == 2
    assert sorted(actor.count for actor in core.actors()) == [0.5, 1]


class Nothing(Struct):
    asked: int = 0


class Sink(Owner[Nothing]):
    def take(self, data: bytes) -> int:
        self.state.asked += 1
        return len(data)


class Asks(FlowActor):
    sink = Sink.named("sink")

    async def on_packet(self, packet: Packet) -> Any:
        size = MESSAGE_BYTES_MAX * packet.payload[0]
        await self.sink.take(bytes(size - 16))
        return FORWARD


@pytest.mark.parametrize("log", [True, False])
def test_arguments_too_large_for_the_link_are_the_handlers_error(tmp_path: Path, log: bool) -> None:
    lan, wan = MemoryPort("lan"), MemoryPort("wan")
    errors: list[str] = []
    embedded = Embedded(
        Asks,
        [lan, wan],
        log_directory=str(tmp_path / "log") if log else None,
        on_error=lambda flow, handler, error: errors.append(str(error)),
    )
    lan.feed([(1, packet(number)) for number in (1, 2, 1)])
    embedded.run_burst()
    assert embedded.journal.replica.owners["sink"].state.asked == 2
    assert errors == [
        f"sink.take: the arguments have {2 * MESSAGE_BYTES_MAX - 10} bytes; {MESSAGE_BYTES_MAX} is the most"
    ]
    embedded.finish()


@pytest.mark.root
def test_wrong_and_large_fields_end_no_node(tmp_path: Path) -> None:
    """G6, G8: neither the primary, whose handler is told, nor the backup's core, nor the takeover."""
    with Pair(tmp_path / "pair", "tests.misfit_node:Sloppy", "") as pair:
        pair.start()

        def counter(node: str, name: str) -> int:
            count: int = pair.worker(node, "core-0")["status"]["counters"][name]
            return count

        pair.lab.call("client", _send, 5000, [1] * (FIELDS_CHECKED_FIRST + 6) + [2])
        pair.lab.call("client", _send, 5001, [1, 3, 1])
        wait_until(lambda: counter("a", "handler_error") == 1, 10)
        wait_until(lambda: counter("b", "live_flows") == 2, 10)
        assert "Sloppy.table: 2097157 bytes" in pair.printed("a")
        assert "Sloppy.count: expected int, got float" in pair.wait_for("b", r".*a flow's record does not fit.*")
        pair.kill("a")
        pair.wait_takeover("b")
        pair.lab.call("client", _send, 5000, [9] * 3)
        wait_until(lambda: counter("b", "handled") == 3, 10)
        assert pair.worker("b", "core-0")["restarts"] == 0 and counter("b", "flows_opened") == 0
        assert counter("b", "handler_error") == 0


def _send(port: int, numbers: list[int]) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("10.0.0.2", port))
        for number in numbers:
            sock.sendto(bytes((number,)), ("203.0.113.254", 7))
            time.sleep(0.001)
