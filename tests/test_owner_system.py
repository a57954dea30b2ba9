"""The owner system and a core's link to it, over real rings, logs and connections, without privileges or processes.

A node here is an owner system in a thread; its cores are driven by the test: real ones on memory ports, or just the ends of
their rings.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import msgspec
import pytest
from processes import free_port, wait_until

from actornet import FiveTuple
from actornet.engine.core import Core
from actornet.engine.ring import ACTIVE, PASSIVE
from actornet.errors import ActornetError, LinkError, LogFullError, NodeError, RingError
from actornet.limits import REQUESTS_PER_TURN, TERM_EPOCHS
from actornet.log.record import FlowBody
from actornet.log.store import Log
from actornet.node import exchange, owner_system
from actornet.node.core_worker import RingLink
from actornet.node.exchange import (
    AskReply,
    AskRequest,
    Attach,
    Attached,
    CloseRequest,
    Detach,
    Forget,
    Redirect,
    Restore,
    SaveRequest,
)
from actornet.node.fabric import Fabric
from actornet.node.network_function import load_nf
from actornet.node.owner_system import OwnerSpec, OwnerSystem
from actornet.ports.memory import MemoryPort
from actornet.replay import History, verify
from actors.nat import Endpoint
from tests import frames

KEY = b"a deployment's key, 32 bytes long"
NF = "actors.nat:SourceNAT"
SERVER = "198.51.100.7"
OUTSIDE = "203.0.113.1"


class Node:
    """An owner system at work in a thread, and what became of it."""

    def __init__(self, directory: Path, role: str = "primary", *, cores: int = 1, **changes: Any) -> None:
        self.directory = directory
        self.fabric = Fabric.create(cores)
        self.page = self.fabric.page
        spec = OwnerSpec(
            name="pair",
            role=role,
            nf=NF,
            settings={"address": OUTSIDE},
            ports=["lan", "wan"],
            log=str(directory),
            link=None,
            listen=None,
            durability="solo",
            without_backup="solo",
            fabric=self.fabric.spec,
        )
        self.stop = threading.Event()
        self.error: BaseException | None = None
        self.system = OwnerSystem(msgspec.structs.replace(spec, **changes), KEY, self.stop)
        self.ready = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        assert self.ready.wait(5) or self.error is not None

    def _run(self) -> None:
        try:
            self.system.run(self.ready.set)
        except BaseException as error:
            self.error = error
            self.ready.set()

    @property
    def state(self) -> str:
        return str(self.system.status()["state"])

    @property
    def lsn(self) -> int:
        return self.system.journal.lsn

    def crash(self) -> None:
        """End it without any order, as a kill would; its connection closes."""

        def die() -> None:
            raise ZeroDivisionError("the test killed it")

        self.system._step = die  # type: ignore[method-assign]
        self._thread.join(5)
        assert isinstance(self.error, ZeroDivisionError)

    def end(self) -> None:
        """Stop it in order; raises what it ended with."""
        self.stop.set()
        self.join()
        if self.error is not None:
            raise self.error

    def join(self) -> None:
        self._thread.join(10)
        assert not self._thread.is_alive()

    def finish(self) -> None:
        self.stop.set()
        self._thread.join(10)


class RingEnd:
    """A core as the owner system sees it: the ends of its rings."""

    def __init__(self, node: Node, index: int = 0) -> None:
        self.requests, self.replies = node.fabric.requests[index], node.fabric.replies[index]
        self.node, self.index = node, index
        self.heard: list[exchange.Answer] = []

    def send(self, *requests: exchange.Request) -> None:
        for request in requests:
            while not self.requests.push(exchange.encode(request)):
                self.requests.wake()
        self.requests.wake()

    def hear(self, kind: type | None = None, count: int = 1) -> list[Any]:
        """Wait for `count` answers of a kind (of any, if None); everything heard stays in `heard`."""
        found: list[exchange.Answer] = []

        def enough() -> bool:
            self.heard += map(exchange.decode_answer, self.replies.pop_many(1000))
            found[:] = [answer for answer in self.heard if kind is None or isinstance(answer, kind)]
            return len(found) >= count

        wait_until(enough)
        return found

    def attach(self) -> list[Any]:
        self.replies.clear()
        self.send(Attach(1))
        self.hear(Attached)
        return self.heard

    def wait_committed(self, sequence: int) -> None:
        wait_until(lambda: self.node.page.committed(self.index) == sequence)


class LiveCore:
    """A real core with its RingLink, between two memory ports; the test turns it."""

    def __init__(self, node: Node, index: int = 0) -> None:
        nf, _ = load_nf(NF, {"address": OUTSIDE})
        self.node = node
        self.lan, self.wan = MemoryPort("lan"), MemoryPort("wan")
        self.link = RingLink(nf, node.fabric, index)
        cores = len(node.fabric.requests)
        self.core = Core(nf, [self.lan, self.wan], index=index, cores=cores, link=self.link)
        self.core.siblings = node.fabric.siblings(index)
        self.core.share(node.page, node.fabric.replies[index])
        self.link.core = self.core
        self.link.attach()
        self.others: list[LiveCore] = []
        self.until(lambda: self.link.attached)

    def until(self, condition: Callable[[], object]) -> None:
        """Turn it, and those beside it, until something is so."""

        def turned() -> object:
            for core in (self, *self.others):
                core.core.breathe()
            return condition()

        wait_until(turned)

    def sends(self, port: int, number: int = 0) -> tuple[str, int]:
        """A client's datagram; where it comes from as the server sees it."""
        self.lan.feed([(time.time_ns(), frames.udp("10.0.0.2", port, SERVER, 53, bytes((number,))))])
        found: list[bytes] = []

        def out() -> bool:
            for core in (self, *self.others):
                found.extend(frame for _, frame in core.wan.take())
            return bool(found)

        self.until(out)
        (frame,) = found
        return str(ip_address(frame[26:30])), int.from_bytes(frame[34:36], "big")

    def hears(self, outside: tuple[str, int]) -> int:
        """A datagram of the server to an external endpoint; the inside port that it comes to."""
        self.wan.feed([(time.time_ns(), frames.udp(SERVER, 53, *outside))])
        found: list[bytes] = []

        def out() -> bool:
            for core in (self, *self.others):
                found.extend(frame for _, frame in core.lan.take())
            return bool(found)

        self.until(out)
        return int.from_bytes(found[0][36:38], "big")


MakeNode = Callable[..., Node]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[MakeNode]:
    made: list[Node] = []

    def make_node(name: str = "a", role: str = "primary", **options: Any) -> Node:
        made.append(Node(tmp_path / name, role, **options))
        return made[-1]

    yield make_node
    for node in made:
        node.finish()


@pytest.fixture
def make_pair(make: MakeNode) -> Callable[..., tuple[Node, Node]]:
    """Makes a primary and its backup, in sync."""

    def make_both(**options: Any) -> tuple[Node, Node]:
        address = f"127.0.0.1:{free_port()}"
        options = {"durability": "applied", "link": address, "listen": address, **options}
        primary = make("a", "primary", **options)
        backup = make("b", "backup", **options)
        wait_until(lambda: primary.state == backup.state == "in sync")
        return primary, backup

    return make_both


def flow(port: int, server_port: int = 53) -> FiveTuple:
    return FiveTuple(17, "10.0.0.2", port, SERVER, server_port)


def acquire(port: int, incarnation: int, number: int = 1) -> AskRequest:
    args = msgspec.msgpack.encode([Endpoint(17, "10.0.0.2", port)])
    return AskRequest(flow(port), 0, incarnation, number, "wan-ports", "acquire", args)


def save(key: FiveTuple, incarnation: int = 1, *bound: tuple[FiveTuple, str]) -> SaveRequest:
    """A flow's record with the keys that it has besides the first."""
    keys = [[key, "lan", False, True, None], *([other, port, False, True, None] for other, port in bound)]
    state = msgspec.msgpack.encode(((None, None, 0, 0), keys, 10**11))
    return SaveRequest(FlowBody(key, 0, incarnation, 0, state))


def sound(directory: Path) -> None:
    with History(directory) as history:
        assert verify(history).problem is None


class TestOneNode:
    def test_output_leaves_when_the_log_has_it(self, make: MakeNode) -> None:
        """G3: with `solo`, what a packet depends on is in the log when it leaves."""
        node = make()
        core = LiveCore(node)
        outside = core.sends(4000)
        assert outside == (OUTSIDE, 4000)
        assert node.page.lsn_logged == node.page.watermark == node.lsn == 4  # epoch, owner, ask, flow
        assert core.hears(outside) == 4000
        assert core.core.count()["held"] == 1 and core.core.held == 0

    def test_output_waits_without_a_backup(self, make: MakeNode) -> None:
        """G3: with `applied` and `wait`, nothing leaves that no backup has; when one has joined, it does."""
        address = f"127.0.0.1:{free_port()}"
        options = {"durability": "applied", "without_backup": "wait", "link": address, "listen": address}
        core = LiveCore(make("a", **options))
        core.lan.feed([(0, frames.udp("10.0.0.2", 4000, SERVER, 53))])
        core.until(lambda: core.core.held == 1)
        wait_until(lambda: core.node.page.lsn_logged == 4)
        for _ in range(50):
            core.core.breathe()
            time.sleep(0.001)
        assert core.core.held == 1 and not core.wan.take() and core.node.page.watermark == 0
        make("b", "backup", **options)
        core.until(lambda: core.wan.take())
        assert core.node.state == "in sync"

    def test_a_core_begins_again_with_its_flows(self, make: MakeNode) -> None:
        """G6: a core that attaches anew gets every flow, and answers to nothing of its predecessor's."""
        node = make()
        first = LiveCore(node)
        outsides = {port: first.sends(port) for port in range(4000, 4020)}
        first.lan.feed([(0, frames.udp("10.0.0.2", 5000, SERVER, 53))])
        first.core.breathe()  # its ask is on its way when the core dies
        second = LiveCore(node)
        assert second.core.count()["flows_restored"] == 20
        for port, outside in outsides.items():
            assert second.hears(outside) == port
            assert second.sends(port) == outside
        assert second.sends(5000) == (OUTSIDE, 5000)
        node.end()
        sound(node.directory)

    def test_a_node_begins_again_from_its_log(self, make: MakeNode) -> None:
        """G6, G7: in order or not, the next start has the flows, and an epoch of its own."""
        outside = (OUTSIDE, 4000)
        for turn in range(3):
            node = make()
            core = LiveCore(node)
            assert node.page.epoch == TERM_EPOCHS + turn
            assert core.core.count()["flows_restored"] == min(turn, 1)
            assert core.sends(4000) == outside and core.hears(outside) == 4000
            if turn % 2:
                node.end()
            else:
                node.crash()
        sound(node.directory)

    def test_everything_sent_is_logged_at_the_end(self, make: MakeNode) -> None:
        """G8: a stop loses nothing of what the cores have sent, however much that is."""
        node = make()
        core = RingEnd(node)
        core.attach()
        count = 5 * REQUESTS_PER_TURN
        before = node.lsn
        core.send(*(save(flow(1024 + number)) for number in range(count)), Detach())
        node.end()
        with History(node.directory) as history:
            assert history.log.last_lsn == before + count + 1  # and the clean stop
            assert len(history.state().flows) == count
        sound(node.directory)

    def test_a_core_that_does_not_read_gets_it_all_later(self, make: MakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
        """G8: a full reply ring holds the rest back in order; beyond a bound the node stops."""
        node = make()
        core = RingEnd(node)
        core.attach()
        flows = [flow(1024 + number % 60000, 53 + number // 60000) for number in range(60_000)]
        core.send(*map(save, flows))
        core.wait_committed(len(flows))
        core.replies.clear()
        core.heard.clear()
        core.send(Attach(2))
        wait_until(lambda: node.system.lines[0].backlog)
        core.hear(Attached)
        assert [answer.body.flow for answer in core.hear(Restore)] == flows
        monkeypatch.setattr(owner_system, "REPLY_BACKLOG_MAX", 10)
        core.send(Attach(3))
        node.join()
        assert isinstance(node.error, NodeError) and "does not keep up" in str(node.error)

    def test_a_full_log_ends_the_node(self, make: MakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
        """G3, G8: what could not be logged is never committed; the log stays whole, and can be opened again."""
        monkeypatch.setattr(owner_system, "Log", partial(Log, map_bytes=1 << 20))
        node = make()
        core = RingEnd(node)
        core.attach()
        sent = 0
        while node.error is None and sent < 100_000:
            core.send(*(save(flow(1024 + number)) for number in range(100)))
            sent += 100
            time.sleep(0.001)
        node.join()
        assert isinstance(node.error, LogFullError)
        logged = node.page.lsn_logged
        assert node.page.watermark <= logged < node.lsn
        assert node.page.committed(0) <= logged - 2
        with History(node.directory) as history:
            assert history.log.last_lsn == logged
        sound(node.directory)

    def test_an_error_of_the_disk_ends_the_node(self, make: MakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
        """G8: a failed sync is not tried again: the kernel may have dropped the pages."""
        node = make()

        def fail() -> None:
            raise LogFullError("the test's disk is full")

        monkeypatch.setattr(node.system.log, "sync", fail)
        node.system.syncer.soon()
        node.join()
        assert isinstance(node.error, LogFullError)

    def test_garbage_in_a_ring_ends_the_node(self, make: MakeNode) -> None:
        """G8: a core that speaks otherwise is no core of this node."""
        node = make()
        node.fabric.requests[0].push(b"\xc1garbage")
        node.fabric.requests[0].wake()
        node.join()
        assert isinstance(node.error, RingError) and "differ in version" in str(node.error)

    def test_messages_are_executed_once(self, make: MakeNode) -> None:
        """G5: the same ask of the same flow gets the recorded reply, also under a new incarnation; a stale one an error."""
        core = RingEnd(make())
        core.attach()
        core.send(acquire(4000, 7))
        (first,) = core.hear(AskReply)
        lsn = core.node.lsn
        core.send(acquire(4000, 8))
        assert core.hear(AskReply, 2)[1].reply == first.reply
        assert core.node.lsn == lsn, "nothing was executed"
        core.send(acquire(4000, 8, 2), acquire(4000, 7, 3))
        assert b"incarnation of the flow that is gone" in core.hear(AskReply, 4)[3].reply
        core.wait_committed(4)

    def test_commands(self, make: MakeNode) -> None:
        node = make()
        with pytest.raises(NodeError, match="is the primary already"):
            node.system.command("promote", {})
        with pytest.raises(NodeError, match="knows no command 'dance'"):
            node.system.command("dance", {})
        backup = make("b", "backup", link="127.0.0.1:1", listen=None)
        with pytest.raises(NodeError, match="not in sync: it may lack committed records; force it"):
            backup.system.command("promote", {})
        assert backup.page.role == PASSIVE
        taken = backup.system.command("promote", {"force": True})
        assert taken["reason"].startswith("operator, forced") and backup.page.role == ACTIVE


class TestPair:
    def test_backup_is_warm_and_takes_over(self, make_pair: Callable[..., tuple[Node, Node]]) -> None:
        """G6: each flow is in the backup's core before its primary dies; then nothing is left to do."""
        primary, backup = make_pair()
        core, standby = LiveCore(primary), LiveCore(backup)
        outsides = {port: core.sends(port) for port in range(4000, 4050)}
        standby.until(lambda: standby.core.count()["live_flows"] == 50)
        assert backup.lsn == primary.lsn == primary.page.watermark
        assert backup.page.role == PASSIVE
        primary.crash()
        wait_until(lambda: backup.page.role == ACTIVE)
        taken = backup.system.status()["takeover"]
        assert (taken["records_replayed"], taken["flows_waiting_for_cores"], taken["flows"]) == (0, 0, 50)
        assert backup.page.epoch == 2 * TERM_EPOCHS
        for port, outside in outsides.items():
            assert standby.hears(outside) == port and standby.sends(port) == outside
        assert standby.sends(6000) == (OUTSIDE, 6000)
        backup.end()
        sound(primary.directory)
        sound(backup.directory)

    def test_a_flow_that_runs_again_gets_its_reply(self, make_pair: Callable[..., tuple[Node, Node]]) -> None:
        """G5: the primary dies between a flow's ask and its save: the same ask to the new primary executes nothing."""
        primary, backup = make_pair()
        core, standby = RingEnd(primary), RingEnd(backup)
        core.attach()
        core.send(acquire(4000, 1))
        (first,) = core.hear(AskReply)
        core.wait_committed(1)
        primary.crash()
        wait_until(lambda: backup.page.role == ACTIVE)
        attached = standby.attach()[-1]
        lsn = backup.lsn
        standby.send(acquire(4000, attached.incarnation_first))
        assert standby.hear(AskReply)[0].reply == first.reply
        assert backup.lsn == lsn

    def test_backup_follows_what_the_log_means(self, make_pair: Callable[..., tuple[Node, Node]]) -> None:
        """G4: a close of an older incarnation changes nothing; one of the newest does; the core hears the last word."""
        primary, backup = make_pair()
        core, standby = RingEnd(primary), RingEnd(backup)
        core.attach()
        standby.attach()
        core.send(save(flow(4000), 5), CloseRequest(flow(4000), 0, 3, "late"), save(flow(4001), 5))
        core.wait_committed(3)
        assert [answer.body.flow for answer in standby.hear(Restore, 2)] == [flow(4000), flow(4001)]
        assert not [answer for answer in standby.heard if isinstance(answer, Forget)]
        core.send(CloseRequest(flow(4000), 0, 5, "idle"), CloseRequest(flow(4001), 0, 5, "idle"), save(flow(4001), 6))
        core.wait_committed(6)
        standby.hear(Forget)
        assert isinstance(standby.hear()[-1], Restore) and standby.heard[-1].body.flow == flow(4001)
        assert list(backup.system.journal.replica.flows) == [(flow(4001), 0)]

    def test_what_happens_without_the_backup(self, make_pair: Callable[..., tuple[Node, Node]]) -> None:
        """G3, G7: `solo` goes on in a new epoch, once that is logged."""
        primary, backup = make_pair()
        core = LiveCore(primary)
        core.sends(4000)
        backup.end()
        assert core.sends(4001) == (OUTSIDE, 4001)
        assert primary.page.epoch == TERM_EPOCHS + 1 and primary.state == "alone"

    def test_wait_holds_the_output_when_the_backup_is_lost(self, make_pair: Any, make: MakeNode) -> None:
        """G3: `wait` holds everything until a backup is back."""
        primary, backup = make_pair(without_backup="wait")
        core = LiveCore(primary)
        core.sends(4000)
        backup.crash()
        wait_until(lambda: primary.state == "alone")
        core.lan.feed([(0, frames.udp("10.0.0.2", 4001, SERVER, 53))])
        core.until(lambda: core.core.held == 1)
        time.sleep(0.05)
        core.core.breathe()
        assert not core.wan.take()
        spec = backup.system.spec
        make("b", "backup", durability="applied", without_backup="wait", link=spec.link, listen=spec.listen)
        core.until(lambda: core.wan.take())

    def test_stop_ends_the_node_when_the_backup_is_lost(self, make_pair: Callable[..., tuple[Node, Node]]) -> None:
        """G7: `stop` says why it ended."""
        primary, backup = make_pair(without_backup="stop")
        backup.crash()
        primary.join()
        assert isinstance(primary.error, NodeError) and "backup lost" in str(primary.error)
        assert primary.page.role == PASSIVE

    def test_handover(self, make_pair: Callable[..., tuple[Node, Node]]) -> None:
        """G6: when its last core has stopped, the primary hands over at once, before it is told to stop."""
        primary, backup = make_pair(cores=2)
        cores = [RingEnd(primary, index) for index in (0, 1)]
        for core in cores:
            core.attach()
        cores[0].send(save(flow(4000)), Detach())
        time.sleep(0.05)
        assert primary.page.role == ACTIVE
        cores[1].send(save(flow(4001)), Detach())
        wait_until(lambda: backup.page.role == ACTIVE)
        assert primary.page.role == PASSIVE and primary.error is None
        assert backup.system.status()["takeover"]["reason"] == "handover"
        assert len(backup.system.journal.replica.flows) == 2
        assert [core.node.page.committed(core.index) for core in cores] == [1, 1], "what was held could leave"
        primary.end()
        sound(primary.directory)

    def test_a_backup_that_was_stopped_for_a_while_comes_back(
        self, make_pair: Callable[..., tuple[Node, Node]]
    ) -> None:
        """G6: a primary that parts from a silent backup is no reason to end, nor for a takeover."""
        primary, backup = make_pair()
        step = backup.system._step

        def sleep_once() -> None:
            backup.system._step = step  # type: ignore[method-assign]
            time.sleep(0.1)
            step()

        backup.system._step = sleep_once  # type: ignore[method-assign]
        wait_until(lambda: primary.state == "alone")
        wait_until(lambda: primary.state == backup.state == "in sync")
        assert primary.page.epoch == backup.page.epoch == TERM_EPOCHS + 1
        assert backup.error is None and backup.page.role == PASSIVE

    def test_an_operator_promotes(self, make_pair: Callable[..., tuple[Node, Node]]) -> None:
        """G7: the old primary hears of the higher epoch, drops what it holds and ends."""
        primary, backup = make_pair()
        taken = backup.system.command("promote", {})
        assert taken["reason"] == "operator" and taken["epoch"] == 2 * TERM_EPOCHS
        primary.join()
        assert "no longer the primary" in str(primary.error)
        assert primary.page.role not in (ACTIVE, PASSIVE)
        assert primary.system.log.directory.exists()
        with Log(primary.directory) as log:
            assert log.epoch == 2 * TERM_EPOCHS, "it knows after a restart, too"

    def test_a_promoted_node_takes_a_new_backup(
        self, make_pair: Callable[..., tuple[Node, Node]], make: MakeNode
    ) -> None:
        """G6: re-protection: the next backup joins where the promoted node listens."""
        listen = f"127.0.0.1:{free_port()}"
        primary, backup = make_pair()
        backup.system.spec = msgspec.structs.replace(backup.system.spec, listen=listen)
        core = LiveCore(primary)
        outside = core.sends(4000)
        primary.crash()
        wait_until(lambda: backup.page.role == ACTIVE)
        third = make("a", "backup", durability="applied", link=listen, listen=listen)
        wait_until(lambda: third.state == "in sync")
        standby = LiveCore(third)
        backup.crash()
        wait_until(lambda: third.page.role == ACTIVE)
        assert standby.hears(outside) == 4000
        assert third.page.epoch == 3 * TERM_EPOCHS

    @pytest.mark.parametrize("change", [{"name": "other"}, {"nf": "actors.nat:PortPool"}])
    def test_a_refused_backup_ends(self, make: MakeNode, change: dict[str, str]) -> None:
        """G4, G8: a backup that can never follow does not wait for it."""
        address = f"127.0.0.1:{free_port()}"
        make("a", link=address, listen=address, durability="applied")
        if "nf" in change:
            with pytest.raises(ActornetError):
                make("b", "backup", link=address, **change)
            return
        backup = make("b", "backup", link=address, durability="applied", **change)
        backup.join()
        assert isinstance(backup.error, LinkError) and "refuses this backup" in str(backup.error)


class TestCores:
    """Two cores: who is told of which keys."""

    def test_bound_keys_are_redirected(self, make: MakeNode) -> None:
        """G1: where a bound key's packets come to another core than their flow's, that core is told, until the flow ends."""
        node = make(cores=2)
        cores = [RingEnd(node, index) for index in (0, 1)]
        for core in cores:
            core.attach()
        home = node.system._home
        key = next(flow(port) for port in range(4000, 5000) if home(flow(port)) == 0)
        replies = (FiveTuple(17, SERVER, 53, OUTSIDE, port) for port in range(4000, 5000))
        bound = next(reply for reply in replies if home(reply) == 1)
        cores[0].send(save(key, 1, (bound, "wan")))
        (redirect,) = cores[1].hear(Redirect)
        assert redirect == Redirect(bound, 1, 0)
        again = cores[1].attach()
        assert again.count(redirect) == 2 and isinstance(again[-1], Attached)
        node.crash()

        node = make(cores=2)  # from the log
        cores = [RingEnd(node, index) for index in (0, 1)]
        assert [type(answer) for answer in cores[0].attach()] == [Restore, Attached]
        assert cores[1].attach()[:-1] == [redirect]
        cores[0].send(save(key, 2))
        assert cores[1].hear(Redirect, 2)[1] == Redirect(bound, 1, -1), "the flow came anew, without that key"

    def test_two_cores_translate_as_one(self, make: MakeNode) -> None:
        """G1: packets that come to the wrong core get to the right one, and the results are those of one core."""
        outsides = []
        for cores in (1, 2):
            node = make(f"{cores}", cores=cores)
            live = [LiveCore(node, index) for index in range(cores)]
            live[0].others = live[1:]
            outsides.append([live[0].sends(port) for port in range(4000, 4040)])
            for port, outside in zip(range(4000, 4040), outsides[-1], strict=True):
                assert live[0].hears(outside) == port
            if cores == 2:
                counts = [core.core.count() for core in live]
                assert min(count["flows_opened"] for count in counts) > 5
                assert counts[0]["handed_off"] > 5 and sum(count["handoff_stale"] for count in counts) == 0
        assert outsides[0] == outsides[1]
