"""What a handler offloads is no newer than what it decides upon: of that, only the packet that it treats is left by it."""

from __future__ import annotations

import msgspec
import pytest

from actornet import FORWARD, OFFLOADED, FlowActor, Packet, Verdict
from actornet.engine.asks import ask_reply
from actornet.engine.replies import REPEATED, VALUE
from actornet.node import exchange
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


@pytest.mark.parametrize("outdated", ["revoked while it waited", "given again"])
def test_an_offload_on_an_outdated_reply_is_good_for_one_packet(outdated: str) -> None:
    """G5: the flow asked in an old node's time, or a while ago, and what owners have revoked since does not come back by it."""
    node = Followed(Deciding, followed=False)
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
