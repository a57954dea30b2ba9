"""What a handler offloads is no newer than what it decides upon: of that, only the packet that it treats is left by it."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from actornet import FORWARD, OFFLOADED, Chain, FlowActor, Packet, Verdict
from actornet.embedded import Embedded
from actornet.engine.asks import ask_reply
from actornet.engine.replies import REPEATED, VALUE
from actornet.node import exchange
from actornet.ports.memory import MemoryPort
from tests.test_unsent import Followed, Gate, udp


class Deciding(FlowActor):
    """Asks whenever nothing is offloaded."""

    gate = Gate.named("gate")

    async def on_packet(self, packet: Packet) -> Verdict:
        if not self.offloaded(self.flow):
            await self.gate.opens()
            self.offload(FORWARD)
        return OFFLOADED


def answer(node: Followed, kind: int = VALUE) -> None:
    for sequence in node.asked:
        node.replies.push(ask_reply(sequence, msgspec.msgpack.encode((kind, True))))
    node.asked.clear()


@pytest.mark.parametrize("nf", [Deciding, Chain(Deciding)], ids=["alone", "in a chain"])
@pytest.mark.parametrize("outdated", ["revoked while it waited", "given again"])
def test_an_offload_on_an_outdated_reply_is_good_for_one_packet(outdated: str, nf: type[FlowActor]) -> None:
    """G5: the flow asked in an old node's time, or a while ago, and what owners have revoked since does not come back by it."""
    node = Followed(nf, followed=False)
    if outdated == "given again":
        node.replies.push(exchange.encode(exchange.Revoked(1)))
        assert node.take(udp(1)) == [] and len(node.asked) == 1
    else:
        assert node.take(udp(1)) == [] and len(node.asked) == 1
        node.replies.push(exchange.encode(exchange.Revoked(1)))
    answer(node, REPEATED if outdated == "given again" else VALUE)
    node.take()
    assert node.commit(node.sequence) == [udp(1)]
    assert node.take(udp(2)) == [] and len(node.asked) == 1, "it comes to the actor, which asks"
    answer(node)
    node.take()
    assert node.commit(node.sequence) == [udp(2)]
    assert node.take(udp(3)) == [udp(3)] and not node.asked, "now it is offloaded"
    assert node.core.count()["handler_error"] == 0


def test_an_offload_that_does_not_hold_is_still_an_error_to_refer_to() -> None:
    """OFFLOADED without an offload of this handler's is a mistake in the network function."""

    class Mistaken(Deciding):
        async def on_packet(self, packet: Packet) -> Verdict:
            if not self.offloaded(self.flow):
                await self.gate.opens()
            return OFFLOADED

    node = Followed(Mistaken, followed=False)
    assert node.take(udp(1)) == []
    node.replies.push(exchange.encode(exchange.Revoked(1)))
    answer(node)
    node.take()
    assert node.core.count()["handler_error"] == 1


class Rules(Gate):
    def change(self) -> None:
        self.revoke_offloads()


class Sleeping(FlowActor):
    """Falls asleep between its question and what it makes of the answer."""

    gate = Rules.named("gate")
    sleeps = True

    async def on_packet(self, packet: Packet) -> Verdict:
        if not self.offloaded(self.flow):
            await self.gate.opens()
            if type(self).sleeps:
                await asyncio.sleep(3600)
            self.offload(FORWARD)
        return OFFLOADED


def test_an_outdated_reply_that_comes_at_once_is_good_for_one_packet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """G5: the same in one process, whose owners answer while the handler runs."""
    lan, wan = MemoryPort("lan"), MemoryPort("wan")

    def embedded() -> Embedded:
        return Embedded(
            Sleeping, [lan, wan], log_directory=str(tmp_path / "log"), on_error=lambda *error: errors.append(error)
        )

    def take(*packets: bytes) -> list[bytes]:
        lan.feed([(time.time_ns(), packet) for packet in packets])
        node.run_burst()
        return [bytes(frame) for _, frame in wan.take()]

    errors: list[Any] = []
    node = embedded()
    assert take(udp(1)) == [] and node.core.suspended == 1
    node.ask("gate", "change")
    node.journal.log.close()  # as if the process were killed
    monkeypatch.setattr(Sleeping, "sleeps", False)
    node = embedded()
    lsn = node.journal.lsn
    assert take() == [udp(1)] and node.journal.lsn == lsn, "it goes on from what was logged, with the node's start"
    assert take(udp(2)) == [udp(2)] and node.journal.lsn == lsn + 2, "it asks"
    assert take(udp(3)) == [udp(3)] and node.journal.lsn == lsn + 2, "now it is offloaded"
    node.finish()
    assert not errors
