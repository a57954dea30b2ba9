"""A network function for live tests: each datagram is answered with a number of its own, of which its flow keeps nothing."""

from __future__ import annotations

from actornet import FlowActor, Owner, Packet, Struct, Verdict


class Drawer(Struct):
    taken: int = 0


class Desk(Owner[Drawer]):
    def take(self) -> int:
        self.state.taken += 1
        return self.state.taken


class Metered(FlowActor):
    desk = Desk.named("desk")

    async def on_packet(self, packet: Packet) -> Verdict:
        return packet.answer(b"%d" % await self.desk.take())
