"""Embedded mode: one process, one core, the owners in it; no privileges, no peer.

The same network function as on live interfaces, on ports of any driver. With a log, each burst's records are committed
before its packets leave (G3), and a later run on the same directory goes on from there.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec

from actornet.engine.core import Core
from actornet.engine.five_tuple import FiveTuple
from actornet.engine.port import Port
from actornet.errors import StateError, UsageError
from actornet.flow import FlowActor
from actornet.journal import Journal, fingerprint, restore_flow
from actornet.limits import FLOWS_MAX_DEFAULT, MISFITS_TOLD_MAX
from actornet.local_link import LocalLink
from actornet.log.record import ControlBody
from actornet.log.store import Log
from actornet.owner import owners_of
from actornet.setting import assign, resolve

_encode = msgspec.msgpack.Encoder().encode

ErrorHandler = Callable[[FiveTuple | None, str, BaseException], None]


class Embedded:
    """A network function on ports, in this process.

    `ports` are in index order; `settings` override the class's. With `virtual_time` the clock is the packets' own (for
    captures). Errors of handlers go to `on_error` (flow, handler, exception).
    """

    def __init__(
        self,
        nf: type[FlowActor],
        ports: Sequence[Port],
        settings: Mapping[str, object] | None = None,
        log_directory: str | None = None,
        *,
        flows_max: int = FLOWS_MAX_DEFAULT,
        virtual_time: bool = False,
        on_error: ErrorHandler | None = None,
        name: str = "embedded",
    ) -> None:
        values = resolve(nf, settings or {})
        assign(nf, values)
        nf.prepare()
        self.nf = nf
        self._messages = {
            (reference.name, name): message
            for reference in owners_of(nf).values()
            for name, message in reference.owner.messages.items()
        }
        self._now_ns = self._packets_now_ns if virtual_time else time.time_ns
        self._loop = asyncio.new_event_loop()
        self._log = Log(log_directory, name=name, nf=f"{nf.__module__}:{nf.__qualname__}") if log_directory else None
        self.journal = Journal(self._log, code=fingerprint(nf))
        self.link = LocalLink(self.journal, self._now_ns)
        self.core = Core(
            nf,
            list(ports),
            flows_max=flows_max,
            loop=self._loop,
            link=self.link,
            virtual_time=virtual_time,
            now_ns=self.journal.replica.time_ns,  # restored flows were last seen then, as far as anybody knows
            incarnation_first=(self.journal.lsn << 20) + 1,
        )
        self.core.on_error = on_error
        self.link.core = self.core
        if self._log is not None:
            self.core.commit_to(0)
        self.journal.begin_epoch(self.journal.epoch + 1, name, nf, values, "embedded run", self._now_ns())
        self.owners_kept = list(self.journal.owners_kept(nf, values))
        """Owners that the log has, and that began with other settings."""
        self.restored_misfits: list[str] = []
        """Fields in the log's flows that are not of their types."""
        self.misfit: str | None = None
        """Once finished: the value in an owner's state that does not fit its type, so that no snapshot was saved."""
        self.link.flush()
        self.core.revoke(self.journal.replica.revocations)
        for key in self.journal.replica.flows:
            if (body := self.journal.replica.flow(key)) is not None:
                restore_flow(self.core, nf, body, self._note_misfit)
        with self._running():
            for _, port, packet in list(self.journal.replica.orphans()):
                self.core.unsent.resume(port, packet)
            for flow, port in list(self.journal.replica.closing()):
                self.core.close_anew(flow, port)

    def _note_misfit(self, text: str) -> None:
        if text not in self.restored_misfits and len(self.restored_misfits) < MISFITS_TOLD_MAX:
            self.restored_misfits.append(text)

    def run_burst(self) -> int:
        """One turn of the core; returns the packets it took. Handlers that await asyncio are driven too."""
        with self._running():
            taken: int = self.core.breathe()
        if self.core.suspended:
            self._turn_loop()
        return taken

    def ask(self, owner: str, message: str, args: tuple[Any, ...] = ()) -> Any:
        """Send a message to an owner from outside any flow; returns the reply, committed (G3), or raises OwnerError."""
        known = self._messages.get((owner, message))
        if known is None:
            names = ", ".join(sorted(".".join(pair) for pair in self._messages)) or "none"
            raise UsageError(f"there is no owner message {owner}.{message}; there are: {names}")
        return known.reply_value(self.link.ask_from_outside(owner, message, _encode(args)))

    def tell(self, flow: FiveTuple, message: Any, reply: Callable[[Any], None] | None = None) -> None:
        """Hand a message to a flow's `on_message`; see `Core.tell`."""
        with self._running():
            self.core.tell(flow, message, reply)

    def finish(self, patience_s: float = 30.0) -> None:
        """Let waiting handlers complete, close the flows, end the log cleanly. Idempotent."""
        if self._loop.is_closed():
            return
        deadline = time.monotonic() + patience_s
        while self.core.suspended and time.monotonic() < deadline:
            self._turn_loop(0.001)
            self.run_burst()
        with self._running():
            self.core.close_all("shutdown")
        while self.core.suspended and time.monotonic() < deadline:
            self._turn_loop(0.001)
        self.journal.execute(ControlBody("clean stop", ""), 0, self._now_ns())
        self.link.flush()
        try:
            self.journal.replica.check_states()
            self.journal.save_snapshot()
        except StateError as error:
            self.misfit = str(error)
        if self._log is not None:
            self._log.sync()
            self._log.close()
        self._loop.close()

    def counters(self) -> dict[str, int]:
        """Counter name -> value; see `actornet.engine.counters`."""
        counts: dict[str, int] = self.core.count()
        return counts

    @contextmanager
    def _running(self) -> Iterator[None]:
        """Handlers called meanwhile find our loop running, as in the live core."""
        asyncio._set_running_loop(self._loop)
        try:
            yield
        finally:
            asyncio._set_running_loop(None)

    def _turn_loop(self, wait_s: float = 0.0) -> None:
        self._loop.call_later(wait_s, self._loop.stop)
        self._loop.run_forever()

    def _packets_now_ns(self) -> int:
        return self.core.now_ns if hasattr(self, "core") else 0
