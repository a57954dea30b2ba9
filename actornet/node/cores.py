"""The cores of an owner system: executes their requests, gives them their flows, tells them how far the watermark is."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator

import structlog

from actornet.engine.asks import is_ask
from actornet.engine.counters import COUNTERS
from actornet.engine.five_tuple import flow_key, key_parts
from actornet.engine.ring import ACTIVE, PASSIVE
from actornet.errors import NodeError
from actornet.flow import FlowActor
from actornet.journal import Journal
from actornet.limits import FLOWS_PER_FEED
from actornet.log.record import CloseBody, FlowBody
from actornet.node import exchange
from actornet.node.balance import Balance
from actornet.node.core_line import CoreLine
from actornet.node.environment import Environment
from actornet.node.exchange import (
    Announce,
    Attach,
    Attached,
    Attaching,
    CloseAnew,
    CloseRequest,
    Detach,
    Forget,
    GiveAway,
    Leaving,
    Request,
    Resend,
    Resume,
    Revoked,
    Seen,
)
from actornet.node.placement import Placement
from actornet.replication.replica_base import Asked
from actornet.replication.stations import Stations
from actornet.replication.unsent import VOID, Unsent

_log = structlog.get_logger()

ALL_CORES = -1
STATIONS_PER_MESSAGE = 256
_BUSY_NS = COUNTERS.index("busy_ns")


class Cores:
    """All cores of a node. What they ask for is executed on `journal`, whose flows they are to have."""

    def __init__(self, environment: Environment, nf: type[FlowActor], ports: list[str], journal: Journal) -> None:
        self.lines = environment.lines
        self.journal = journal
        self.placement = Placement(self.lines, ports, nf.rss_keys())
        self.hold_flows = False
        """They have taken all flows that the state began with."""
        self.stations = Stations()
        self.unsent: list[tuple[int, int, bytes]] = []
        """What the cores have told of packets that wait in them: core, last LSN by then, encoded `Told`."""
        self._page = environment.page
        self._environment = environment
        self._balance = Balance(environment.monotonic_ns()) if len(self.lines) > 1 and nf.moves() else None
        self._revocations = journal.replica.revocations
        self._attached: set[int] = set()
        self._feeds: dict[int, Iterator[None]] = {}
        for body in journal.replica.flows.values() if len(self.lines) > 1 else ():
            self.placement.redirect(FlowBody.decode(body))

    # -- requests ---------------------------------------------------------------------------------------------------

    def serve(self, core: int, messages: list[bytes]) -> tuple[int, int]:
        """Execute a core's requests; how many were asks, and how many neither that nor word of what waits.

        NodeError: it wants something logged on a node that stands by, whose records are the primary's (G4).
        """
        line, ask, now_ns = self.lines[core], self.journal.ask, self._environment.time_ns()
        asks, words, lsn = 0, 0, self.journal.lsn
        for message in messages:
            if is_ask(message):
                line.reply(ask(core, message, now_ns))
                asks += 1
            elif message.startswith(exchange.SAVE):
                body = message[len(exchange.SAVE) :]
                self.journal.save(core, body, now_ns)
                if len(self.lines) > 1:
                    self.placement.redirect(FlowBody.decode(body))
                line.sequence += 1
            elif message.startswith(exchange.UNSENT):
                self.unsent.append((core, self.journal.lsn, message[len(exchange.UNSENT) :]))
                words += 1
            else:
                self._request(core, line, exchange.decode_request(message), now_ns)
        if self._page.role == PASSIVE and self.journal.lsn != lsn:
            raise NodeError(f"core {core} stands by, and has had LSN {lsn + 1} executed: this node's state is void")
        if core not in self._feeds:
            line.pending.append((self.journal.lsn, line.sequence))
        self.tell_revocations()
        return asks, len(messages) - asks - words

    def _request(self, core: int, line: CoreLine, request: Request, now_ns: int) -> None:
        match request:
            case CloseRequest():
                self.placement.redirect_end(request.flow, request.port)
                self.journal.execute(
                    CloseBody(request.flow, request.port, request.incarnation, request.reason), core, now_ns
                )
                line.sequence += 1
            case Attach():
                self._attach(core, line, request.pid)
            case Detach():
                line.detached = True
            case Leaving():
                self._move(line, request)
            case Seen():
                self.stations.learn(request.port, request.station, self._environment.monotonic_ns())

    def publish(self, watermark: int) -> None:
        """Tell the cores which of their requests are committed."""
        for core, line in enumerate(self.lines):
            pending, committed = line.pending, 0
            while pending and pending[0][0] <= watermark:
                committed = pending.popleft()[1]
            if committed:
                self._page.set_committed(core, committed)
                line.wake()

    def tell_revocations(self) -> None:
        """Tell the cores if an owner has revoked the offloads."""
        count = self.journal.replica.revocations
        if count != self._revocations:
            self._revocations = count
            for line in self.lines:
                line.send(Revoked(count))
                line.flush()

    def announce(self) -> None:
        """Have the first core, which is about to become active, tell the switches of all stations."""
        stations = self.stations.since(0, self._environment.monotonic_ns())
        for first in range(0, len(stations), STATIONS_PER_MESSAGE):
            self.lines[0].send(Announce(stations[first : first + STATIONS_PER_MESSAGE]))

    def go_on(self, unsent: Unsent, lsn: int) -> dict[str, int]:
        """Have the cores go on with what those of the old primary, whose log came to `lsn`, had taken and not sent.

        Returns how many packets that is. First of each flow goes what was decided upon, then what was not, and at the flow's
        home, where it begins here, so that nothing that arrives overtakes it (G1).
        """
        orphans = [(port, packet) for _, port, packet in self.journal.replica.orphans()]
        leaving, taken = unsent.left(lsn, orphans, self._environment.monotonic_ns())
        for made in leaving:
            self.lines[self.placement.home_of(made.entry)].send(Resend(made.out, made.packet))
        for core in range(len(self.lines)):
            self.resume(core)
        for packet in taken:
            self.lines[self.placement.home_of(packet.entry)].send(Resume(packet.port, packet.packet))
        return {"resent": len(leaving), "resumed": len(taken) + len(orphans)}

    def resume(self, core: int) -> None:
        """Have this core's flows that asked and were not saved begin anew, and close those that were about to."""
        for flow, port, packet in self.journal.replica.orphans():
            if self.placement.core_of(flow, port) == core:
                self.lines[core].send(Resume(port, packet))
        for flow, port in self.journal.replica.closing():
            if self.placement.core_of(flow, port) == core:
                self.lines[core].send(CloseAnew(flow, port))

    # -- flows ------------------------------------------------------------------------------------------------------

    def applied(self, bodies: Iterable[object]) -> None:
        """These records have been applied: hand over what they say of flows, as far as nothing newer is known of them."""
        self.tell_revocations()
        flows = self.journal.replica.flows
        for body in bodies:
            match body:
                case bytes():
                    saved = FlowBody.decode(body)
                    if flows.get(flow_key(saved.flow, saved.port)) == body:
                        self.placement.restore(saved)
                case Asked(key, before) if key in flows:
                    flow, port = key_parts(key)
                    self.lines[self.placement.core_of(flow, port)].send(exchange.Asked(flow, port, before))
                case CloseBody() if flow_key(body.flow, body.port) not in flows:
                    self.placement.forget(body.flow, body.port)

    def forget_flows(self) -> None:
        """The state that the cores have flows of is no more."""
        for body in map(FlowBody.decode, self.journal.replica.flows.values()):
            self.placement.forget(body.flow, body.port)

    def restore_flows(self, journal: Journal) -> None:
        """Begin anew with the state of this journal."""
        self.journal = journal
        for line in self.lines:  # what a core was sent depends on no record that is no more: nobody will ever commit it
            line.pending = deque((min(lsn, journal.lsn), sequence) for lsn, sequence in line.pending)
        self.tell_revocations()
        self.hold_flows = False
        self._feeds[ALL_CORES] = self._restoring()
        self._feed()

    @property
    def busy(self) -> bool:
        """Whether something waits for room in a ring, or for a core to take what is there."""
        return not self.hold_flows or bool(self._feeds) or any(line.waiting for line in self.lines)

    def counters(self) -> list[list[int]]:
        """Each core's counters, by index."""
        return [self._page.core_counters(core) for core in range(len(self.lines))]

    def turn(self) -> None:
        """Once a step: flows go on their way to cores that begin, and to those that they move to."""
        self.placement.settle()
        if self._feeds:
            self._feed()
        if not self.hold_flows and not self._feeds:
            self.hold_flows = all(core in self._attached and line.heard for core, line in enumerate(self.lines))

    def _attach(self, core: int, line: CoreLine, pid: int) -> None:
        """A core has (re)started: send its flows."""
        line.restart()
        line.sequence = 1
        self.unsent.append((core, self.journal.lsn, VOID))
        self._page.set_committed(core, 0)
        line.send(Attaching(pid))
        line.send(Revoked(self.journal.replica.revocations))
        self.placement.begin_attach()
        self._attached.add(core)
        self._feeds[core] = self._attaching(core, line, pid)
        self._feed()

    def _attaching(self, core: int, line: CoreLine, pid: int) -> Iterator[None]:
        count = 0
        for body in self._flows_by_and_by():
            if body is None:
                yield
            else:
                count += self.placement.attach(core, body)
        line.pending.append((self.journal.lsn if count else 0, 1))  # the flows depend on all that is logged now (G3)
        line.send(Attached(pid, exchange.first_incarnation(self.journal.lsn)))
        if self._page.role == ACTIVE:
            self.resume(core)
        line.flush()
        _log.info("core attached", core=core, pid=pid, flows=count)

    def _restoring(self) -> Iterator[None]:
        """Put all flows onto their cores."""
        for body in self._flows_by_and_by():
            if body is None:
                yield
            else:
                self.placement.restore(body)

    def _flows_by_and_by(self) -> Iterator[FlowBody | None]:
        """All flows as they are by then; a None now and then, when it is time for something else."""
        for number, key in enumerate(list(self.journal.replica.flows), 1):
            body = self.journal.replica.flow(key)
            if body is not None:
                yield body
            if number % FLOWS_PER_FEED == 0:
                yield None

    def _feed(self) -> None:
        """Send more flows to the cores that begin, as their rings have room."""
        for core, feed in list(self._feeds.items()):
            lines = self.lines if core == ALL_CORES else [self.lines[core]]
            if not any(line.waiting for line in lines) and next(feed, self) is self:
                del self._feeds[core]

    # -- moving flows -----------------------------------------------------------------------------------------------

    def balance(self) -> None:
        """Have a hot core give flows to a cold one, if it is time for that."""
        now_ns = self._environment.monotonic_ns()
        if self._balance is None or not self._balance.due(now_ns):
            return
        busy_ns = [counters[_BUSY_NS] for counters in self.counters()]
        shift = self._balance.turn(now_ns, busy_ns)
        if shift is not None:
            _log.info("moving flows", core=shift.hot, to=shift.cold, share=round(shift.share, 3))
            self.lines[shift.hot].send(GiveAway(shift.share, shift.cold))
            self.lines[shift.hot].flush()

    def _move(self, line: CoreLine, leaving: Leaving) -> None:
        """A flow of the core is ready to live on another."""
        body = self.journal.replica.flow(flow_key(leaving.flow, leaving.port))
        if body is None:  # never, unless the log has closed it without the core
            line.send(Forget(leaving.flow, leaving.port))
        else:
            self.placement.move(body, leaving.to)
