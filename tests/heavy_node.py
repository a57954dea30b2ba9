"""A network function for live tests: each packet takes its core a while."""

from __future__ import annotations

import time

from actornet import FORWARD, FlowActor, Packet, Verdict

HANDLER_NS = 150_000


class Heavy(FlowActor):
    connection = True

    def on_packet(self, packet: Packet) -> Verdict:
        end = time.monotonic_ns() + HANDLER_NS
        while time.monotonic_ns() < end:
            pass
        return FORWARD
