"""A network function for live tests: some handlers do not return, in ways that their packets name by port."""

from __future__ import annotations

import time

from actornet import FORWARD, FlowActor, Packet, Verdict

LOOPS, LOOPS_IN_ASYNC, SLEEPS, CATCHES = 7, 8, 9, 10
SLEEP_S = 1.4


class Stuck(FlowActor):
    fail = FORWARD

    async def on_open(self, packet: Packet) -> None:
        while packet.destination_port == LOOPS_IN_ASYNC:
            pass

    def on_packet(self, packet: Packet) -> Verdict:
        while packet.destination_port == LOOPS:
            pass
        if packet.destination_port == SLEEPS:
            time.sleep(SLEEP_S)
        while packet.destination_port == CATCHES:
            try:
                time.sleep(0.001)
            except BaseException:
                continue
        return FORWARD
