"""Memory for a core's flows, backed before they come."""

from __future__ import annotations

import threading

from actornet.engine.core import Core


class MemoryAhead:
    """A thread that has the kernel back the huge pages that `core`'s flows will need soon, until closed: of its table, and of
    Python's own memory.

    To clear one takes 3 to 8 ms on a virtual machine: as the core's own doing that would be a pause for its packets. The
    thread sleeps until the core wants memory.
    """

    def __init__(self, core: Core) -> None:
        self.pages = 0
        """Backed so far."""
        self._core = core
        self._ended = False
        self._wanted = threading.Event()
        self._wanted.set()
        core.wants_memory = self._wanted.set
        self._thread = threading.Thread(target=self._run, name="memory ahead", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Before the core is let go of."""
        self._core.wants_memory = None
        self._ended = True
        self._wanted.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended:
            self._wanted.wait()
            self._wanted.clear()
            while not self._ended and self._core.back_memory():
                self.pages += 1
