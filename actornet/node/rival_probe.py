"""Asks at the other node's address whether anybody there leads: before a launch as primary, and after a takeover (G7)."""

from __future__ import annotations

from typing import Literal

from actornet.node.environment import Link
from actornet.replication.messages import Fence, Hello, Refuse

Outcome = Literal["", "leads", "obeys", "gone"]


class RivalProbe:
    """Goes on until there is an outcome: the other leads in a higher epoch (`epoch`) or this very one, it obeys ours, or
    nothing listens there. A host that does not answer at all may come back, and is asked again.
    """

    def __init__(self, link: Link, hello: Hello) -> None:
        self.outcome: Outcome = ""
        self.epoch = 0
        self._link = link
        self._hello = hello

    @property
    def address(self) -> str:
        return self._link.address

    def turn(self, now_ns: int) -> Outcome:
        """Hear and ask; the outcome, once there is one."""
        for event in self._link.events(now_ns):
            if event.kind == "connected":
                self._link.send(self._hello)
            elif event.kind == "disconnected":
                self._end("gone" if "connection refused" in event.reason else "", 0)
            elif isinstance(event.message, Fence | Refuse):
                obeys = isinstance(event.message, Fence) and event.message.epoch <= self._hello.epoch
                self._end("obeys" if obeys else "leads", event.message.epoch)
            if self.outcome:
                break
        self._link.flush()
        return self.outcome

    def close(self) -> None:
        self._link.close()

    def _end(self, outcome: Outcome, epoch: int) -> None:
        self.outcome, self.epoch = outcome, epoch
