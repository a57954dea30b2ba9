"""Network functions for live tests: some handlers do not return, in ways that their packets name by port or number."""

from __future__ import annotations

import ctypes
import re
import sys
import time

from actornet import FORWARD, FlowActor, Packet, Verdict
from actornet.node import core_worker

LOOPS, LOOPS_IN_ASYNC, SLEEPS, CATCHES, EXITS, BREAKS = 7, 8, 9, 10, 11, 12
SLEEP_S = 1.4
MATCHES, HANGS, HANGS_AT_ONCE, CRASHES, EXITS_AT_ONCE = 1, 2, 3, 4, 5
PATTERN = re.compile(rb"(x+x+)+y")


def broken(worker: core_worker.CoreWorker) -> int:
    raise ArithmeticError("what no handler can do wrong")


class Stuck(FlowActor):
    fail = FORWARD

    async def on_open(self, packet: Packet) -> None:
        while packet.destination_port == LOOPS_IN_ASYNC:
            pass

    def on_packet(self, packet: Packet) -> Verdict:
        while packet.destination_port == LOOPS:
            pass
        if packet.destination_port == EXITS:
            sys.exit("a handler")
        if packet.destination_port == BREAKS:
            core_worker.CoreWorker._turn = broken  # type: ignore[method-assign]
        if packet.destination_port == SLEEPS:
            time.sleep(SLEEP_S)
        while packet.destination_port == CATCHES:
            try:
                time.sleep(0.001)
            except BaseException:
                continue
        return FORWARD


class Pattern(FlowActor):
    """Matches, in compiled code that no exception gets into, a pattern that takes ages for some input."""

    matched: int = 0

    def on_packet(self, packet: Packet) -> Verdict:
        number = int.from_bytes(packet.payload[:2], "big")
        long = b"x" * (40 if number in (HANGS, HANGS_AT_ONCE) else 4)
        self.matched += PATTERN.match(long + packet.payload) is not None
        if number == CRASHES:
            ctypes.string_at(0)
        if number == EXITS_AT_ONCE:
            ctypes.CDLL(None)._exit(3)
        return FORWARD


class PatternOpen(Pattern):
    fail = FORWARD
