"""`CoreSystem`: a core, its flows and its owners as a Thespian actor system.

    core = CoreSystem(Embedded(SourceNAT, ports))
    system = ActorSystem(systemBase=core, transientUnique=True)
    system.ask(core.address_of_owner("wan-ports"), OwnerMessage("acquire", (endpoint,)), timeout=1)
    system.tell(core.address_of_flow(five_tuple), "close")          # the flow actor's on_message

Ordinary Thespian actors live beside the flows, in the core's thread; packets never ride on their messages.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from actornet.embedded import Embedded
from actornet.engine.five_tuple import FiveTuple
from actornet.node.core_base import CoreSystemBase, OwnerMessage

__all__ = ["CoreSystem", "OwnerMessage"]


class CoreSystem(CoreSystemBase):
    """A Thespian system base on an embedded core.

    Wakeups and time-outs are by the core's clock, which in virtual time is the packets'. `run_burst` turns core and
    actors once; an external `ask` turns them until the answer has come.
    """

    def __init__(self, embedded: Embedded) -> None:
        self.embedded = embedded
        super().__init__(_Engine(embedded), clock=time.monotonic, drive=self._pass)

    def run_burst(self) -> int:
        """One turn of the core, then of the actors; returns the packets taken."""
        taken = self.embedded.run_burst()
        self.run_pending()
        return taken

    def _pass(self, timeout_s: float) -> None:
        if not self.embedded.run_burst():
            time.sleep(min(timeout_s, 0.001))


class _Engine:
    """What stands behind the addresses of owners and flows."""

    def __init__(self, embedded: Embedded) -> None:
        self._embedded = embedded

    def ask_owner(self, name: str, message: str, args: tuple[Any, ...], reply: Callable[[Any], None]) -> None:
        reply(self._embedded.ask(name, message, args))

    def tell_flow(self, flow: FiveTuple, message: Any, reply: Callable[[Any], None]) -> None:
        self._embedded.tell(flow, message, reply)
