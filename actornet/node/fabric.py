"""What the processes of one node share: rings between cores and owner system, between cores, the
control page, and the cores' black boxes.

Made by the node's supervisor before it forks, so a restarted worker finds the same memory. Descriptors travel as numbers.
"""

from __future__ import annotations

import msgspec

from actornet.engine.black_box import BlackBox
from actornet.engine.handoff import Handoff
from actornet.engine.ring import ControlPage, Ring

RingFds = tuple[int, int]
"""A ring's memory and its eventfd."""


class FabricSpec(msgspec.Struct, frozen=True):
    """Descriptors of everything shared; `handoffs[a][b]` carries packets from core a to core b."""

    page: int
    boxes: int
    requests: list[RingFds]
    replies: list[RingFds]
    handoffs: list[list[RingFds | None]]


class Fabric:
    """The shared memory of a node with `cores` cores, created or attached."""

    def __init__(
        self,
        page: ControlPage,
        boxes: BlackBox,
        requests: list[Ring],
        replies: list[Ring],
        handoffs: list[list[Ring | None]],
    ) -> None:
        self.page = page
        self.boxes = boxes
        self.requests = requests
        self.replies = replies
        self._handoffs = handoffs

    @classmethod
    def create(cls, cores: int) -> Fabric:
        """New memory; the creator keeps the Fabric as long as the node lives."""
        return cls(
            ControlPage.create(cores),
            BlackBox.create(cores),
            [Ring.create(f"requests-{core}") for core in range(cores)],
            [Ring.create(f"replies-{core}") for core in range(cores)],
            [[Ring.create(f"handoff-{a}-{b}") if a != b else None for b in range(cores)] for a in range(cores)],
        )

    @classmethod
    def attach(cls, spec: FabricSpec) -> Fabric:
        """The same memory in another process."""
        return cls(
            ControlPage(spec.page, len(spec.requests)),
            BlackBox(spec.boxes, len(spec.requests)),
            [Ring(*fds) for fds in spec.requests],
            [Ring(*fds) for fds in spec.replies],
            [[Ring(*fds) if fds else None for fds in row] for row in spec.handoffs],
        )

    @property
    def spec(self) -> FabricSpec:
        return FabricSpec(
            self.page.fd,
            self.boxes.fd,
            [(ring.fd, ring.wake_fd) for ring in self.requests],
            [(ring.fd, ring.wake_fd) for ring in self.replies],
            [[(ring.fd, ring.wake_fd) if ring is not None else None for ring in row] for row in self._handoffs],
        )

    def siblings(self, core: int) -> list[Handoff | None]:
        """Both directions between `core` and each other core."""
        found: list[Handoff | None] = []
        for other in range(len(self.requests)):
            outgoing, incoming = self._handoffs[core][other], self._handoffs[other][core]
            found.append(Handoff(outgoing, incoming) if outgoing is not None and incoming is not None else None)
        return found
