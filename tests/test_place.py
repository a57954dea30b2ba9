"""What a handler's error is about, in the user's own code."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from actornet import FORWARD, OFFLOADED, Chain, FlowActor, Owner, Packet, Rewrite, Struct
from actornet.embedded import Embedded
from actornet.place import place_of
from actornet.ports.memory import MemoryPort
from tests.test_core import packet


class Seen(Struct):
    count: int = 0


class Counter(Owner[Seen]):
    def add(self, n: int) -> int:
        return self.state.missing  # type: ignore[no-any-return, attr-defined]

    def leave(self) -> None:
        raise SystemExit(3)

    def close(self) -> None:
        raise GeneratorExit


class Wrong(FlowActor):
    """Does wrong what the packet's first byte says; each line says in its comment which one."""

    counter = Counter.named("counter")
    count: int = 0

    async def on_packet(self, packet: Packet) -> Any:  # 1 2
        match packet.payload[0]:
            case 1:
                return None
            case 2:
                self.count = 0.5  # type: ignore[assignment]
            case 3:
                self.text = "x"  # 3
            case 4:
                await self.counter.subtract(1)  # 4
            case 5:
                await self.counter.add("x")  # 5
            case 6:
                return Rewrite(source="1.2.3.4.5")  # 6
            case 7:
                self.offload(OFFLOADED)  # 7
            case 8:
                async with asyncio.timeout(0):  # 8
                    await asyncio.sleep(9)
            case 9:
                await self.counter.leave()  # 9
            case 10:
                await self.counter.close()  # 10
            case 11:
                [await ask for ask in [self.counter.add(1)]]  # 11
        return FORWARD


class After(FlowActor):
    def on_packet(self, packet: Packet) -> Any:
        return FORWARD


def errors_of(nf: type[FlowActor], *numbers: int) -> list[tuple[str, str, int]]:
    """Handler, error and place's line of each error that packets with these first bytes lead to, and the counter."""
    lan, wan = MemoryPort("lan"), MemoryPort("wan")
    told: list[tuple[str, str, int]] = []

    def tell(flow: Any, handler: str, error: BaseException) -> None:
        file, _, line = place_of(nf, handler, error).partition(", line ")
        assert file == __file__
        told.append((handler, str(error), int(line.partition(":")[0])))

    embedded = Embedded(nf, [lan, wan], on_error=tell)
    lan.feed([(1, packet(number)) for number in numbers])
    embedded.run_burst()
    embedded.finish()
    assert embedded.counters()["handler_error"] == len(told)
    return told


def line_of(mark: str) -> int:
    with open(__file__, encoding="utf-8") as file:
        return next(number for number, line in enumerate(file, 1) if mark in line.partition("#")[2].split())


@pytest.mark.parametrize("number", range(1, 12))
def test_an_error_is_placed_in_the_users_code(number: int) -> None:
    ((handler, _, line),) = errors_of(Wrong, number)
    assert (handler, line) == ("on_packet", line_of(str(number)))


def test_of_a_chain_the_member_is_named() -> None:
    ((_, said, line),) = errors_of(Chain(After, Wrong), 1)
    assert said.startswith("Wrong.on_packet") and line == line_of("1")


class Deaf(FlowActor):
    counter = Counter.named("counter")

    def on_packet(self, packet: Packet) -> Any:
        self.counter.add(packet.payload[0])
        return FORWARD

    def on_close(self) -> None:
        self.counter.leave()


class Late(FlowActor):
    counter = Counter.named("counter")

    async def on_packet(self, packet: Packet) -> Any:
        asked = self.counter.add(1)
        await asyncio.sleep(0.001)
        try:
            await asked
        except Exception:
            return FORWARD


def test_an_ask_that_nobody_awaits_does_not_fail_in_silence() -> None:
    """By the owner's handler, as no line of the flow's has waited; also one of a flow that closes."""
    told = errors_of(Deaf, 1)
    assert [(handler, error.partition(":")[0]) for handler, error, _ in told] == [
        ("ask counter.add", "Counter.add"),
        ("ask counter.leave", "Counter.leave"),
    ]
    assert [line for _, _, line in told] == [
        function.__code__.co_firstlineno for function in (Counter.add, Counter.leave)
    ]


def test_an_ask_that_is_awaited_later_is_heard() -> None:
    assert errors_of(Late, 1) == []
