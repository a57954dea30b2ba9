"""A core's process: the packet engine on live ports, with owners in another process.

While nothing is to do it sleeps in epoll on its ports and rings; but right after a packet that waits for the owner system
it looks for the answer for a moment (SPIN_US), for to be woken takes as long; for a longer one if it has rested. While a
handler waits for asyncio, asyncio's own loop does that sleeping; otherwise a plain epoll does, which wakes sooner.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
import select
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import msgspec
import structlog

from actornet.engine.ahead import MemoryAhead
from actornet.engine.asks import OwnerLink
from actornet.engine.core import Core
from actornet.engine.counters import COUNTERS
from actornet.engine.five_tuple import FiveTuple
from actornet.engine.flow_state import flow_body
from actornet.engine.heap import use_huge_pages
from actornet.engine.ring import ACTIVE, FENCED, PASSIVE, Ring
from actornet.errors import ActornetError, HandlerStalled
from actornet.flow import FlowActor
from actornet.journal import restore_flow
from actornet.limits import (
    FLOWS_MAX_DEFAULT,
    HANDLER_ERRORS_LOGGED_PER_S,
    HANDLER_SURE_S,
    MISFITS_TOLD_MAX,
    RESTED_US,
    SETTLE_MS,
    SPIN_RESTED_US,
    SPIN_US,
    STANDBY_BUSY_MS,
    STATIONS_PER_TURN,
)
from actornet.log.record import FlowBody
from actornet.node import exchange
from actornet.node.deployment import Poll
from actornet.node.exchange import (
    Announce,
    Asked,
    Attach,
    Attached,
    Attaching,
    CloseAnew,
    CloseRequest,
    Detach,
    Forget,
    GiveAway,
    Leaving,
    Redirect,
    Resend,
    Restore,
    Resume,
    Revoked,
    Seen,
)
from actornet.node.fabric import Fabric, FabricSpec
from actornet.node.network_function import load_nf
from actornet.node.senders import Senders
from actornet.node.thread import run_early, run_first
from actornet.place import place_in, place_of
from actornet.ports.announcement import announcement
from actornet.ports.drivers import open_ports
from actornet.ports.host import Host
from actornet.ports.live import LivePort
from actornet.ports.recorded import PcapPort, RecordedPort, Recording
from actornet.ports.table import PortTable

_log = structlog.get_logger()

IDLE_SLEEP_S = 0.1
"""Longest sleep: timers of flows and the monitor's beat need a turn now and then."""

ASYNCIO_SLICE_NS = 1_000_000
"""Under load, asyncio's loop gets a turn this often."""

TAKEOVER_NS = 50_000_000
"""A core runs before all that is not real-time while it stands by, and so much longer: a dying node takes CPUs, too."""

ANNOUNCE_AT_S = (0.0, 0.005, 0.015, 0.03, 0.06, 0.12, 0.25, 0.5, 1.0, 2.0)
ANNOUNCE_SLEEP_S = 0.005
"""After a core became active, it announces its addresses again and again: a switch may have learned them from the old
primary's last frames since, and would go on sending there."""

READY_SLEEP_S = 0.005
READY_NS = 50_000_000
"""A core is ready once it is active: what comes from then on is treated. One that has nothing to lead is after so long."""

RATE_S = 1.0

STOP_TOGETHER_S, TOGETHER_SLEEP_S = 0.1, 0.0002
"""For how long a core that is told to stop goes on until all others are, and how it waits for that."""

HANDLERS_END_S = 0.02
HELD_END_S = 0.5
"""A core that stops waits so long for handlers that wait, then for the watermark to let out what it holds."""


class CoreSpec(msgspec.Struct, frozen=True):
    """What a core worker needs to know. `port_group` is the first of one per port, the same for all cores; `wire` is the same
    for all nodes of the deployment; `follows`: the node is launched as a backup."""

    index: int
    nf: str
    settings: dict[str, Any]
    ports: dict[str, PortTable]
    port_group: int
    fabric: FabricSpec
    poll: Poll = "adaptive"
    flows_max: int = FLOWS_MAX_DEFAULT
    wire: int = 0
    follows: bool = False


class RingLink(OwnerLink):
    """How a core reaches the owner system: requests into one ring, replies out of another."""

    def __init__(self, requests: Ring, replies: Ring, nf: type[FlowActor]) -> None:
        self.nf = nf
        self.core: Core | None = None
        self.resumed: list[Resume | Resend | CloseAnew] = []
        """Packets to be treated, or sent, as soon as the core is active."""
        self.pid = os.getpid()
        self.announces: list[tuple[int, int]] = []
        """Stations, each with the port that it is behind, of which the switches are to be told."""
        self.recording: Recording | None = None
        self._replies = replies
        self._told: set[str] = set()
        self._begun = False  # what comes is for this process

    def attach(self) -> None:
        self._replies.clear()
        self.push(exchange.encode(Attach(self.pid)))
        self.flush()

    def take_up(self, lsn: int) -> None:
        """This core is active from `lsn` on: what was sent to it before is here, and its flows are newer than any before.

        That they are counts for one that had asked in another node's time and was not saved: an older one is refused (G5).
        """
        self.poll()
        assert self.core is not None
        self.core.incarnation_next = max(self.core.incarnation_next, exchange.first_incarnation(lsn))

    def go_on(self) -> None:
        """This core is active: with packets and closing flows of cores that are no more, before any that arrive (G1)."""
        resumed, self.resumed = self.resumed, []
        assert self.core is not None
        for message in resumed:
            match message:
                case Resend():
                    self.core.unsent.resend(message.out, message.packet)
                case Resume():
                    self.core.unsent.resume(message.port, message.packet)
                case CloseAnew():
                    self.core.close_anew(message.flow, message.port)

    def detach(self) -> None:
        self.push(exchange.encode(Detach()), counted=False)
        self.flush()

    def save(self, actor: FlowActor) -> int:
        return self.push(exchange.SAVE + flow_body(actor))

    def close(self, actor: FlowActor, reason: str) -> int:
        return self.push(exchange.encode(CloseRequest(actor.flow, actor.port_index, actor.incarnation, reason)))

    def unsent(self, waits: list[tuple[int, int, int, bytes, int]], done: list[int]) -> None:
        """What waits in this core, and what no longer does; see `Told`."""
        self.push(exchange.UNSENT + exchange.encode((waits, done)), counted=False)

    def leaving(self, actor: FlowActor, to: int) -> None:
        """A flow is ready to live on core `to`."""
        self.push(exchange.encode(Leaving(actor.flow, actor.port_index, to)), counted=False)

    def seen(self, port: int, station: int) -> None:
        """A station is behind this port."""
        self.push(exchange.encode(Seen(port, station)), counted=False)

    def unheard(self, ask: Any) -> None:
        assert self.core is not None
        self.core.note_unheard(ask)

    def heard(self, data: bytes) -> None:
        core = self.core
        assert core is not None
        message = exchange.decode_answer(data)
        if not self._begun:
            self._begun = isinstance(message, Attaching) and message.pid == self.pid
            return
        match message:
            case Restore():
                self._restore(core, message.body)
            case Asked():
                core.asked(message.flow, core.ports[message.port].name, message.asks)
            case Redirect():
                self._redirect(core, message)
            case Revoked():
                core.revoke(message.count)
            case Forget():
                core.forget(message.flow, core.ports[message.port].name)
            case GiveAway() if self.attached:
                core.give_away(message.share, message.to)
            case Resume() | Resend() | CloseAnew() if self.attached:
                self.resumed.append(message)
            case Announce():
                self.announces += message.stations
            case Attached():
                core.incarnation_next = message.incarnation_first
                self.attached = True

    def _restore(self, core: Core, body: FlowBody) -> None:
        """A record that does not fit this code ends no core: the primary treats the flow, and it is to be treated on."""
        try:
            restore_flow(core, self.nf, body, self._tell_misfit)
            if self.recording is not None:
                self.recording.restored(body.flow, body.port, FlowActor.bound_keys(body.state))
        except (ActornetError, TypeError, ValueError) as error:
            core.leave_out()
            self._tell_misfit(f"{body.flow} is left out: {error}", kind=type(error).__name__)

    def _tell_misfit(self, text: str, kind: str | None = None) -> None:
        """Once for each kind: a log that was written with one wrong type has it in every flow."""
        kind = kind or text
        if kind not in self._told and len(self._told) < MISFITS_TOLD_MAX:
            self._told.add(kind)
            _log.error("a flow's record does not fit", nf=self.nf.__name__, detail=text)

    def _redirect(self, core: Core, message: Redirect) -> None:
        port = core.ports[message.port].name
        if message.core >= 0:
            core.redirect(message.flow, port, message.core)
        else:
            core.redirect_end(message.flow, port)


class Rate:
    """Packets per second, between two questions that are RATE_S apart at least; at first since the start."""

    def __init__(self, now_s: float) -> None:
        self._since = self._last = (now_s, 0, 0)

    def of(self, now_s: float, received: int, sent: int) -> dict[str, float]:
        """`seconds` until now, and packets per second in them."""
        if now_s - self._last[0] >= RATE_S:
            self._since, self._last = self._last, (now_s, received, sent)
        began_s, *before = self._since
        seconds = max(now_s - began_s, 0.001)
        received_per_s, sent_per_s = (round((n - b) / seconds) for n, b in zip((received, sent), before, strict=True))
        return {"seconds": round(seconds, 1), "rx_packets_per_s": received_per_s, "tx_packets_per_s": sent_per_s}


class CoreWorker:
    """One core's loop."""

    def __init__(
        self, spec: CoreSpec, stop: threading.Event, bell: int, ready: Callable[[], None], condemned: bool = False
    ) -> None:
        """`bell`: an eventfd that is rung when `stop` is set. `condemned`: what the black box tells of was the end of the
        process before this one."""
        self.spec = spec
        self.stop = stop
        self.fabric = Fabric.attach(spec.fabric)
        self.page = self.fabric.page
        self.loop = asyncio.new_event_loop()
        self.nf, _ = load_nf(spec.nf, spec.settings)
        self.link = RingLink(self.fabric.requests[spec.index], self.fabric.replies[spec.index], self.nf)
        self.ports = open_ports(
            spec.ports,
            group=spec.port_group,
            cores=len(self.fabric.requests),
            core=spec.index,
            rss_keys=self.nf.rss_keys(),
            wire=spec.wire,
            follows=spec.follows,
        )
        self.core = Core(
            self.nf,
            [*self.ports],
            index=spec.index,
            cores=len(self.fabric.requests),
            flows_max=spec.flows_max,
            loop=self.loop,
            link=self.link,
            host=Host(self.ports) if any(port.interface is not None for port in self.ports) else None,
        )
        for port in self.ports:
            port.on_link = _link_event
            if isinstance(port, RecordedPort):
                port.wait_for(lambda: self.core.suspended + self.core.held)
            if isinstance(port, PcapPort):
                self.link.recording = port.recording
        self._siblings = self.fabric.siblings(spec.index)
        self.core.on_error = self._handler_error
        self.core.share(self.page, self.fabric.replies[spec.index])
        if condemned:
            self.fabric.boxes.condemn(spec.index, time.time_ns())
        self.core.record_in(self.fabric.boxes)
        self.core.look_for_stations()
        self.core.stand_by()
        self.link.core = self.core
        self._role = PASSIVE
        self._senders = Senders(spec.wire)
        self._sends = False  # has its place among them
        self._announcements: deque[float] = deque()
        self._stations_due: deque[tuple[int, int]] = deque()
        self._committed = 0  # as it was when this turn began
        self._first = True  # runs before all that is not real-time
        self._first_until_ns = 0
        self._rate = Rate(time.monotonic())
        self._rested_ns = time.monotonic_ns()
        self._answer_until_ns = 0  # how long to look for the owner system's answer before sleeping
        self._spin_ns = SPIN_US * 1000
        self._turns = 0
        self._stop_by_s = 0.0  # the node stops: from then on without the other cores
        self._failure: BaseException | None = None
        self._ready: Callable[[], None] | None = ready
        self._attached_ns = 0
        self._errors_logged: dict[int, int] = {}
        self._thread = threading.get_ident()
        self._rings = [self.fabric.replies[spec.index]]
        self._rings += [sibling.incoming for sibling in self._siblings if sibling is not None]
        self._epoll = select.epoll()
        self._epoll.register(bell, select.EPOLLIN)
        for ring in self._rings:
            self._epoll.register(ring.fileno(), select.EPOLLIN)
        self._interfaces: list[int | None] = [None] * len(self.ports)
        self._watch_ports()

    def run(self) -> None:
        self.link.attach()
        gc.collect()
        gc.freeze()
        memory = MemoryAhead(self.core)
        self.loop.call_soon(self._slice)
        self.loop.run_forever()
        memory.close()
        self._senders.close()
        if self._failure is not None:
            raise self._failure
        self.loop.close()
        for port in self.ports:
            port.close()

    def status(self) -> dict[str, Any]:
        """Counters and gauges; called from the control thread."""
        counts = dict(zip(COUNTERS, self.page.core_counters(self.spec.index), strict=False))
        ports = {port.name: {"state": getattr(port, "state", ""), **port.counters} for port in self.ports}
        core = self.core
        return {
            "counters": counts,
            "ports": ports,
            "waiting": core.suspended,
            "held": core.held,
            "hold": core.hold_ms,
            "stations_untold": core.stations_untold,
            "rate": self._rate.of(time.monotonic(), counts["rx_packets"], counts["tx_packets"]),
        }

    def interrupt(self) -> None:
        """Called from the control thread when this core's beat rests: have the handler fail that does not return.

        One that waits in compiled code, or catches what is raised, goes on, and the core with it: that is killed in the end.
        """
        seen = self._running()
        time.sleep(HANDLER_SURE_S)
        if seen[0] is None or self._running() != seen:
            return  # many handlers one behind the other, or none
        frame = sys._current_frames().get(self._thread)
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self._thread), ctypes.py_object(HandlerStalled))
        _log.error("handler does not return", nf=self.nf.__name__, flow=str(seen[0].flow), place=place_in(frame))

    def _running(self) -> tuple[Any, int, list[int]]:
        """The actor whose handler runs, and what changes from one handler to the next."""
        return self.core.running, self._turns, self.page.core_counters(self.spec.index)

    def _slice(self) -> None:
        """As much of the loop as asyncio may have to wait for. What fails in it ends the worker, at once."""
        try:
            self._turns_due()
        except BaseException as error:  # asyncio would log it, and the core stand until it is killed
            self._failure = error
            self.loop.stop()

    def _turns_due(self) -> None:
        """Turns of the core until asyncio's loop is due, or has what we wait for."""
        end_ns = time.monotonic_ns() + ASYNCIO_SLICE_NS
        while True:
            taken = self._turn()
            if self.stop.is_set():
                if self._all_stop():
                    self._finish()
                    self.loop.stop()
                    return
                time.sleep(TOGETHER_SLEEP_S)
            elif taken:
                self._answer_until_ns = time.monotonic_ns() + self._spin_ns
            elif self._expects():
                os.sched_yield()
            elif self._spins():
                self._watch_ports()
                if self.core.on_loop:
                    break
            elif self.core.on_loop:
                self._sleep_in_asyncio()
                return
            else:
                self._sleep()
            if time.monotonic_ns() >= end_ns:
                break
        self.loop.call_soon(self._slice)

    def _turn(self) -> int:
        self._turns += 1
        if not self._stop_by_s:
            self.page.set_core_beat(self.spec.index, self._turns)
        self._committed = self.page.committed(self.spec.index)
        if self._first_until_ns and time.monotonic_ns() > self._first_until_ns:
            self._first, self._first_until_ns = False, 0
            run_early()
        elif (
            self._role == PASSIVE
            and self._first
            and time.monotonic_ns() - self._rested_ns > STANDBY_BUSY_MS * 1_000_000
        ):
            self._first = False
            run_early(nice=0)
        if (role := self._role_due()) != self._role and self.link.attached:
            self._change_role(role)
        if self._announcements and time.monotonic() >= self._announcements[0]:
            self._announcements.popleft()
            self.core.announce()
            self._stations_due = deque(self.link.announces)
        if self._stations_due:
            self._announce_stations()
        if self.link.resumed and self._role == ACTIVE:
            self.link.go_on()
        taken: int = self.core.breathe()
        return taken

    def _announce_stations(self) -> None:
        """The next ones, each out of the port at whose other side it now is."""
        due = self._stations_due
        some = [due.popleft() for _ in range(min(len(due), STATIONS_PER_TURN))]
        self.core.send([(1 - port, announcement(station)) for port, station in some])

    def _role_due(self) -> int:
        """The owner system's, but nothing is treated before it has said that what this core was restored from is
        committed: its flows depend on that (G3). On a backup that takes over it is."""
        role = self.page.role
        return PASSIVE if role == ACTIVE and self._role == PASSIVE and not self._committed else role

    def _change_role(self, role: int) -> None:
        if role == ACTIVE:
            self.link.take_up(self.page.lsn_applied)  # every flow that was sent is here before its packets (G6)
            self.core.siblings.handoffs = self._siblings
            self.core.go_active()
            self._close_condemned()
            self._sends = self._senders.take(self.spec.index)
            for port in self.ports:
                port.activate()
            begun = time.monotonic()
            self._announcements = deque(begun + delay_s for delay_s in ANNOUNCE_AT_S)
            self._go_first()
            self._first_until_ns = time.monotonic_ns() + TAKEOVER_NS
        elif role == FENCED or self._role == ACTIVE:
            self._announcements.clear()
            self._stations_due.clear()
            for port in self.ports:
                port.deactivate()
            self.core.stand_by()
            self.core.drop_held()
            self._send_no_more()
        self._role = role

    def _send_no_more(self) -> None:
        if self._sends:
            self._sends = False
            self._senders.leave(self.spec.index)

    def _close_condemned(self) -> None:
        for handler, flow in self.core.close_condemned():
            _log.error("flow closed and shunned", nf=self.nf.__name__, handler=handler, flow=str(flow))

    def _spins(self) -> bool:
        """Whether the core polls without ever sleeping; not while its thread is a real-time one."""
        return self.spec.poll == "busy" and self._role == ACTIVE and not self._first_until_ns and self._ready is None

    def _expects(self) -> bool:
        """Whether the owner system is about to answer, the watermark to pass, a takeover to begin, or a flow to be saved."""
        core = self.core
        if self._role == PASSIVE:
            return time.monotonic_ns() < self.page.alert_until_ns
        if core.settling.due:
            return True
        return (core.held > 0 or core.suspended > core.on_loop) and time.monotonic_ns() < self._answer_until_ns

    def _sleep(self) -> None:
        if self._ready is not None and self.link.attached:
            self._attached_ns = self._attached_ns or time.monotonic_ns()
            if self._role == ACTIVE or time.monotonic_ns() - self._attached_ns > READY_NS:
                self._ready()
                self._ready = None
        self._watch_ports()
        if self._role == PASSIVE:
            self._go_first()
        if self._may_sleep():
            begun_ns = time.monotonic_ns()
            self._epoll.poll(self._sleep_s())
            self._rested_ns = time.monotonic_ns()
            rested = self._rested_ns - begun_ns > RESTED_US * 1000
            self._spin_ns = (SPIN_RESTED_US if rested else SPIN_US) * 1000
        for ring in self._rings:
            ring.sleep_end()

    def _sleep_s(self) -> float:
        if self._stations_due:
            return 0.0
        if self._ready is not None:
            return READY_SLEEP_S
        if self._announcements:
            return ANNOUNCE_SLEEP_S
        return SETTLE_MS / 1000 if self.core.settling.asked else IDLE_SLEEP_S

    def _go_first(self) -> None:
        if not self._first:
            self._first = True
            run_first()

    def _sleep_in_asyncio(self) -> None:
        self._watch_ports()
        if not self._may_sleep():
            self._woken()
            return
        self.loop.add_reader(self._epoll.fileno(), self._wake_once)
        self._timer = self.loop.call_later(self._sleep_s(), self._wake_once)

    def _wake_once(self) -> None:
        self._timer.cancel()
        self.loop.remove_reader(self._epoll.fileno())
        self._woken()

    def _woken(self) -> None:
        for ring in self._rings:
            ring.sleep_end()
        self.loop.call_soon(self._slice)

    def _may_sleep(self) -> bool:
        """Declare sleep. False if a message waits, or if a word of the control page has changed since this turn began:
        what changes from now on comes with a wake-up."""
        rings = self._rings if self._role == ACTIVE else self._rings[:1]  # nothing is taken from other cores before
        declared = all(ring.sleep_begin() for ring in rings)
        return declared and self._role_due() == self._role and self.page.committed(self.spec.index) == self._committed

    def _watch_ports(self) -> None:
        """A port that has attached to its interface anew has another socket, at the same descriptor."""
        for number, port in enumerate(self.ports):
            if port.ifindex != self._interfaces[number]:
                self._interfaces[number] = port.ifindex
                with suppress(FileExistsError):  # unless the driver keeps one descriptor for all of them
                    self._epoll.register(port.fileno(), select.EPOLLIN)

    def _all_stop(self) -> bool:
        """Whether all cores of the node have been told to stop: of one that ends first, packets would be nobody's meanwhile.

        A core says so by a beat of 0; one that is dead, or hangs, is not waited for longer than STOP_TOGETHER_S.
        """
        now_s = time.monotonic()
        if not self._stop_by_s:
            self._stop_by_s = now_s + STOP_TOGETHER_S
            self.page.set_core_beat(self.spec.index, 0)
        return now_s >= self._stop_by_s or not any(map(self.page.core_beat, range(len(self.fabric.requests))))

    def _finish(self) -> None:
        """Orderly stop: no new packets; what was treated leaves, and the flows stay in the log for whoever goes on."""
        for port in self.ports:
            port.deactivate()
        self._breathe_while(lambda: self.core.suspended > 0, HANDLERS_END_S)
        self.core.settling.end()
        self.link.detach()
        self._breathe_while(lambda: self.core.held > 0 and self.page.role == ACTIVE, HELD_END_S)
        self._send_no_more()

    def _breathe_while(self, condition: Callable[[], bool], limit_s: float) -> None:
        deadline = time.monotonic() + limit_s
        self.core.breathe()
        while condition() and time.monotonic() < deadline:
            time.sleep(0.0002)
            self.core.breathe()

    def _handler_error(self, flow: FiveTuple | None, handler: str, error: BaseException) -> None:
        second = int(time.monotonic())
        logged = self._errors_logged.get(second, 0)
        self._errors_logged = {second: logged + 1}
        if logged < HANDLER_ERRORS_LOGGED_PER_S:
            place = place_of(self.nf, handler, error)
            _log.error(
                "handler failed", nf=self.nf.__name__, handler=handler, flow=str(flow), place=place, exc_info=error
            )


def _link_event(port: LivePort, what: str) -> None:
    _log.warning(f"{port.noun} {what}", port=port.name, **{port.noun: port.device})


def run(spec: CoreSpec, stop: threading.Event, report: Any) -> None:
    """The core worker's data plane; see `actornet.node.plan.WorkerPlan`."""
    run_first()
    use_huge_pages()
    worker = CoreWorker(spec, stop, report.bell, report.ready, report.condemned)
    report.on_status(worker.status)
    report.on_interrupt(worker.interrupt)
    worker.run()
