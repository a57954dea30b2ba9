"""The in-process system base against Thespian's simpleSystemBase: the same actors give the same answers on both."""

import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from thespian.actors import (
    Actor,
    ActorAddress,
    ActorExitRequest,
    ActorSystem,
    ActorSystemException,
    ActorTypeDispatcher,
    ChildActorExited,
    DeadEnvelope,
    InvalidActorSpecification,
    PoisonMessage,
    Thespian_ActorStatus,
    Thespian_StatusReq,
    WakeupMessage,
    requireCapability,
)

from actornet.engine.five_tuple import FiveTuple
from actornet.errors import OwnerError
from actornet.node.core_base import CoreSystemBase, OwnerMessage

FLOW = FiveTuple(17, "10.0.0.1", 1000, "8.8.8.8", 53)


def open_system(kind: str) -> ActorSystem:
    if kind == "ours":
        return ActorSystem(CoreSystemBase(), transientUnique=True)
    return ActorSystem("simpleSystemBase", logDefs={"version": 1}, transientUnique=True)


class Script(Actor):
    """Does what messages say and writes down everything that it is told.

    A message is ("do", [operation, ...]) or anything else, which is only written down. Operations name actors by their
    number in the order of creation.
    """

    transcript: list[Any] = []
    actors: list[Any] = []

    def receiveMessage(self, message, sender):
        self.transcript.append((str(self.myAddress), describe(message), str(sender)))
        if not (isinstance(message, tuple) and message[0] == "do"):
            return
        for name, *arguments in message[1]:
            getattr(self, f"do_{name}")(sender, *arguments)

    def do_create(self, _sender):
        self.actors.append(self.createActor(Script))

    def do_create_named(self, _sender, name):
        self.actors.append(self.createActor(Script, globalName=name))

    def do_create_broken(self, _sender):
        self.actors.append(self.createActor(Broken))

    def do_send(self, _sender, number, message):
        self.send(self.actors[number % len(self.actors)], message)

    def do_reply(self, sender, message):
        self.send(sender, message)

    def do_exit(self, _sender, number):
        self.send(self.actors[number % len(self.actors)], ActorExitRequest())

    def do_raise(self, _sender):
        raise ValueError("as told")

    def do_wakeup(self, _sender, seconds, payload):
        self.wakeupAfter(timedelta(seconds=seconds), payload)

    def do_dead_letters(self, _sender, wanted):
        self.handleDeadLetters(wanted)


class Broken(Actor):
    def __init__(self):
        raise RuntimeError("cannot be made")


@requireCapability("unobtainable")
class Demanding(Actor):
    pass


def describe(message: Any) -> Any:
    """What can be compared of a message on two systems."""
    if isinstance(message, PoisonMessage):
        return ("poison", describe(message.poisonMessage), (message.details or "").strip().splitlines()[-1:])
    if isinstance(message, DeadEnvelope):
        return ("dead", str(message.deadAddress), describe(message.deadMessage))
    if isinstance(message, ChildActorExited):
        return ("exited", str(message.childAddress))
    if isinstance(message, WakeupMessage):
        return ("wakeup", message.delayPeriod, message.payload)
    if isinstance(message, ActorExitRequest):
        return "exit"
    return message


def transcript_of(kind: str, scenario: Callable[[ActorSystem], Any]) -> list[Any]:
    system = open_system(kind)
    Script.transcript, Script.actors = [], []
    Script.actors.append(system.createActor(Script))
    answer = scenario(system)
    return [*Script.transcript, ("answer", describe(answer))]


def on_both(scenario: Callable[[ActorSystem], Any]) -> list[Any]:
    """The transcript, after making sure that both systems give the same one."""
    expected = transcript_of("simple", scenario)
    assert transcript_of("ours", scenario) == expected
    return expected


def do(*operations: Any) -> tuple[str, list[Any]]:
    return "do", list(operations)


def test_order_of_messages():
    """G1's sibling: one sender's messages to one receiver arrive in order, receivers take turns."""

    def scenario(system):
        first = Script.actors[0]
        system.tell(first, do(("create",), ("create",)))
        system.tell(first, do(*[("send", number, f"to {number}, {turn}") for turn in range(3) for number in (1, 2)]))
        system.tell(first, do(("send", 1, do(("send", 2, "a"))), ("send", 2, do(("send", 1, "b"))), ("send", 0, "c")))

    assert len(on_both(scenario)) == 3 + 6 + 5 + 1


def test_ask_and_listen():
    def scenario(system):
        first = Script.actors[0]
        answers = [
            system.ask(first, do(("reply", "one"), ("reply", "two")), 1),
            system.listen(0.1),
            system.listen(0.01),
            system.ask(first, "nothing to answer", 0.01),
            system.ask(first, do(("reply", "in time")), timedelta(seconds=1)),
            system.ask(first, do(("reply", "without time-out")), None),
            system.ask(first, do(("reply", "too late")), 0),
            system.listen(1),
        ]
        system.tell(first, do(("reply", "left"), ("reply", "over")))
        Script.transcript.append("asked while answers wait")
        answers += [system.ask(first, do(("reply", "new")), 1)]
        Script.transcript.append("asked")
        return [*answers, system.listen(1), system.listen(1), system.listen(0.01)]

    answers = on_both(scenario)[-1][1]
    assert answers == [
        "one",
        "two",
        None,
        None,
        "in time",
        "without time-out",
        None,
        "too late",
        "left",
        "over",
        "new",
        None,
    ]


def test_wakeups():
    def scenario(system):
        first = Script.actors[0]
        system.tell(first, do(("create",), ("wakeup", 0.03, "c"), ("wakeup", 0.01, "a"), ("wakeup", 0, "now")))
        system.tell(first, do(("send", 1, do(("wakeup", 0.02, "b")))))
        answers = [system.listen(None), system.listen(0.005), system.listen(0.1)]
        system.tell(first, do(("wakeup", 0.01, "between")))
        time.sleep(0.02)
        system.tell(first, "after")
        system.tell(first, do(("wakeup", 0.2, "beyond")))
        started = time.perf_counter()
        answers.append(system.ask(first, "no answer", 0.1))
        return [*answers, time.perf_counter() - started < 0.05]

    transcript = on_both(scenario)
    woken = [entry[1][2] for entry in transcript if isinstance(entry[1], tuple) and entry[1][0] == "wakeup"]
    assert woken == ["now", "a", "b", "c", "between"]


def test_exit_takes_the_family_along():
    def scenario(system):
        first = Script.actors[0]
        system.tell(first, do(("create",)))
        system.tell(Script.actors[1], do(("create",), ("create",)))
        system.tell(Script.actors[2], do(("create",)))
        system.tell(first, do(("exit", 1)))
        for number in range(5):
            system.tell(Script.actors[number], f"are you there, {number}")
        system.tell(first, do(("exit", 0)))
        return system.ask(first, "gone", 0.01)

    transcript = on_both(scenario)
    assert [entry[1] for entry in transcript if str(entry[1]).startswith("are you")] == ["are you there, 0"]


def test_dead_letters():
    def scenario(system):
        first = Script.actors[0]
        system.tell(first, do(("dead_letters", True), ("create",)))
        system.tell(Script.actors[1], ActorExitRequest())
        system.tell(Script.actors[1], "too late")
        system.tell(ActorAddress("/A~never"), "never there")
        system.tell(first, do(("send", 1, "from a friend"), ("dead_letters", False)))
        system.tell(Script.actors[1], "nobody cares")

    transcript = on_both(scenario)
    dead = [entry[1][2] for entry in transcript if isinstance(entry[1], tuple) and entry[1][0] == "dead"]
    assert dead == ["too late", "never there"]


def test_a_failing_handler_is_tried_three_times_then_poisons():
    def scenario(system):
        first = Script.actors[0]
        system.tell(first, do(("create",)))
        system.tell(first, do(("send", 1, do(("raise",))), ("send", 1, "meanwhile")))
        return system.ask(first, do(("raise",)), 1)

    transcript = on_both(scenario)
    assert transcript[-1][1] == ("poison", do(("raise",)), ["ValueError: as told"])
    tries = [entry for entry in transcript if entry[:2] == ("ActorAddr-/A~a~a", do(("raise",)))]
    assert len(tries) == 3


def test_failing_over_an_exit_or_a_poison():
    class Fragile(Actor):
        def receiveMessage(self, message, sender):
            Script.transcript.append((str(self.myAddress), describe(message), str(sender)))
            if message == "create":
                self.child = self.createActor(Fragile)
            elif message == "child raises":
                self.send(self.child, "raise")
            elif message == "child exits":
                self.send(self.child, ActorExitRequest())
            else:
                raise ValueError("fragile")

    def scenario(system):
        fragile = system.createActor(Fragile)
        for message in ("create", "child raises", "child exits", "create", "child raises", ActorExitRequest(), "gone?"):
            system.tell(fragile, message)
        return system.listen(0.01)

    on_both(scenario)


def test_creation():
    def scenario(system):
        first = Script.actors[0]
        system.tell(first, do(("create_named", "one of us"), ("create_named", "one of us"), ("create_broken",)))
        named = system.createActor(Script, globalName="one of us")
        system.tell(named, "by name")
        system.tell(named, ActorExitRequest())
        again = system.createActor(Script, globalName="one of us")
        system.tell(first, do(("send", -1, "to the broken one")))
        by_text = system.createActor("thespian.actors.Actor")
        addresses = [str(each) for each in (*Script.actors, named, again, by_text, system.createActor(Demanding))]
        errors = []
        for wrong in (Broken, "no.such.module.Actor", "unqualified", "thespian.actors.Missing"):
            try:
                system.createActor(wrong)
            except Exception as error:
                errors.append(type(error))
        return addresses + errors + [str(system.createActor(Script))]

    addresses = on_both(scenario)[-1][1]
    assert addresses[1] == addresses[2] == addresses[4] != addresses[5]
    assert addresses[7] == "ActorAddr-System:BadActor"
    assert addresses[8:12] == [RuntimeError, ModuleNotFoundError, InvalidActorSpecification, AttributeError]


def test_addresses_compare_as_thespians_do():
    def scenario(system):
        first, second = Script.actors[0], system.createActor(Script)
        travelled = system.ask(system.createActor(Mirror), first, 1)
        return [first == travelled, first != travelled, first == second, first == "x", str(first), str(second)]

    assert on_both(scenario)[-1][1][:4] == [True, False, False, False]


class Mirror(Actor):
    def receiveMessage(self, message, sender):
        self.send(sender, message)


class Dispatcher(ActorTypeDispatcher):
    def receiveMsg_int(self, message, sender):
        self.send(sender, message + 1)

    def receiveMsg_str(self, message, sender):
        self.send(sender, message.upper())

    def receiveUnrecognizedMessage(self, message, sender):
        self.send(sender, None if isinstance(message, ActorExitRequest) else type(message).__name__)


def test_type_dispatch_and_init_arguments():
    class Initialised(Actor):
        def __init__(self, capabilities, requirements):
            self.told = ("Thespian Generation" in capabilities, requirements)

        def receiveMessage(self, message, sender):
            self.send(sender, self.told)

    def scenario(system):
        dispatcher = system.createActor(Dispatcher)
        initialised = system.createActor(Initialised, targetActorRequirements={"much": True})
        return [system.ask(dispatcher, message, 1) for message in (1, "text", [])] + [system.ask(initialised, "?", 1)]

    assert on_both(scenario)[-1][1] == [2, "TEXT", "list", (True, {"much": True})]


def programs(*more: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """What an external requester does: (whether it asks, whom, message), messages being programs of actors in turn."""
    messages = st.deferred(
        lambda: st.one_of(st.integers(0, 9), st.tuples(st.just("do"), st.lists(operations, min_size=1, max_size=4)))
    )
    operations = st.one_of(
        st.just(("create",)),
        st.just(("create_broken",)),
        st.tuples(st.just("create_named"), st.sampled_from("xy")),
        st.tuples(st.just("send"), st.integers(0, 5), messages),
        st.tuples(st.just("reply"), messages),
        st.just(("raise",)),
        *more,
    )
    return st.lists(st.tuples(st.booleans(), st.integers(0, 5), messages), min_size=1, max_size=6)


# Not both in one program: simpleSystemBase has an ActorExitRequest that becomes a dead letter followed by a
# ChildActorExited to the parent of whoever handles dead letters.
EXITS = programs(st.tuples(st.just("exit"), st.integers(0, 5)))
DEAD_LETTERS = programs(st.tuples(st.just("dead_letters"), st.booleans()))


@settings(max_examples=100, deadline=None)
@given(EXITS | DEAD_LETTERS)
def test_random_programs(program):
    def scenario(system):
        answers = []
        for asks, number, message in program:
            target = Script.actors[number % len(Script.actors)]
            if asks:
                answers.append(describe(system.ask(target, message, 1)))
            else:
                system.tell(target, message)
        return answers

    on_both(scenario)


# What simpleSystemBase cannot do


class Engine:
    """Owners and flows for the tests: `later` keeps replies until `drive` is called."""

    def __init__(self):
        self.told = []
        self.later = []

    def ask_owner(self, name, message, args, reply):
        if name != "wan-ports":
            raise KeyError(name)
        if message == "later":
            self.later.append(lambda: reply(args))
        elif message == "fail":
            reply(OwnerError("ValueError: no port is left"))
        else:
            reply((name, message, args))

    def tell_flow(self, flow, message, reply):
        if flow != FLOW:
            raise LookupError(f"no actor of {flow}")
        self.told.append((flow, message))
        reply(None)

    def drive(self, timeout_s):
        for reply in self.later:
            reply()
        self.later.clear()


class Asker(Actor):
    """Passes ("to", address, message) on and answers with what comes back."""

    def receiveMessage(self, message, sender):
        if isinstance(message, tuple) and message[0] == "to":
            self.client = sender
            self.send(message[1], message[2])
        else:
            self.send(self.client, ("came back", describe(message), str(sender)))


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture
def base(engine: Engine) -> CoreSystemBase:
    return CoreSystemBase(engine, drive=engine.drive)


@pytest.fixture
def system(base: CoreSystemBase) -> ActorSystem:
    return ActorSystem(base, transientUnique=True)


def test_owners_answer_externals_and_actors(system, base):
    owner = base.address_of_owner("wan-ports")
    message = OwnerMessage("allocate", (FLOW,))
    assert system.ask(owner, message, 1) == ("wan-ports", "allocate", (FLOW,))
    asker = system.createActor(Asker)
    answer = ("came back", ("wan-ports", "allocate", (FLOW,)), "ActorAddr-/owner/wan-ports")
    assert system.ask(asker, ("to", owner, message), 1) == answer
    assert owner == base.address_of_owner("wan-ports") != base.address_of_owner("lan-ports")


def test_an_owners_later_reply_is_waited_for(system, base, engine):
    owner = base.address_of_owner("wan-ports")
    assert system.ask(owner, OwnerMessage("later", (1,)), 1) == (1,)
    system.tell(owner, OwnerMessage("later", (2,)))
    assert system.listen(None) is None  # without a time-out nothing is waited for, as on simpleSystemBase
    assert system.listen(1) == (2,)
    silent = ActorSystem(CoreSystemBase(engine, drive=time.sleep), transientUnique=True)
    started = time.perf_counter()
    assert silent.ask(owner, OwnerMessage("later"), 0.02) is None
    assert time.perf_counter() - started >= 0.02


@pytest.mark.parametrize(
    ("name", "message", "details"),
    [
        ("wan-ports", OwnerMessage("fail"), "OwnerError: ValueError: no port is left"),
        ("other", OwnerMessage("allocate"), "KeyError: 'other'"),
        ("wan-ports", "not for owners", "TypeError: an owner takes an OwnerMessage, not str"),
    ],
)
def test_an_owners_error_is_a_poison(system, base, name, message, details):
    poison = system.ask(base.address_of_owner(name), message, 1)
    assert isinstance(poison, PoisonMessage)
    assert (poison.poisonMessage, poison.details) == (message, details)


def test_flows_are_told(system, base, engine):
    system.tell(base.address_of_flow(FLOW), "hello")
    assert engine.told == [(FLOW, "hello")]
    poison = system.ask(base.address_of_flow(FLOW.reversed()), "hello", 1)
    assert poison.details == f"LookupError: no actor of {FLOW.reversed()}"


def test_without_an_engine_owners_are_dead():
    system = ActorSystem(CoreSystemBase(), transientUnique=True)
    system.tell(system.createActor(Script), do(("dead_letters", True)))
    Script.transcript = []
    system.tell(CoreSystemBase().address_of_owner("wan-ports"), OwnerMessage("allocate"))
    assert Script.transcript[0][1] == ("dead", "/owner/wan-ports", OwnerMessage("allocate"))


def test_a_core_drives_it_by_its_own_clock(engine):
    now = [100.0]
    base = CoreSystemBase(engine, clock=lambda: now[0])
    system = ActorSystem(base, transientUnique=True)
    Script.transcript, Script.actors = [], [system.createActor(Script)]
    assert base.run_pending() is None
    system.tell(Script.actors[0], do(("wakeup", 5, "first"), ("wakeup", 7, "second")))
    Script.transcript.clear()
    assert base.run_pending(104.9) == 105.0
    assert not Script.transcript
    now[0] = 106.0
    assert base.run_pending(now[0]) == 107.0
    assert [entry[1][2] for entry in Script.transcript] == ["first"]
    now[0] = 107.0
    assert base.run_pending() is None
    assert [entry[1][2] for entry in Script.transcript] == ["first", "second"]


def test_a_run_can_be_bounded():
    base = CoreSystemBase()
    system = ActorSystem(base, transientUnique=True)
    player = system.createActor(Player)
    base._pending.append((player, 100, player))
    assert base.run_pending(5.0, messages_max=10) == 5.0
    assert system.ask(player, "left", 1) == 89  # one more was due before the question
    assert base.run_pending(5.0) is None
    assert system.ask(player, "left", 1) == 0


class Player(Actor):
    """Plays with itself, for ever if told so."""

    left = None

    def receiveMessage(self, message, sender):
        if message == "left":
            self.send(sender, self.left)
        elif message == "for ever":
            self.send(self.myAddress, message)
        else:
            self.left = message - 1
            if self.left:
                self.send(self.myAddress, self.left)


def test_an_ask_keeps_its_time_out_while_actors_talk(system):
    player = system.createActor(Player)
    assert system.ask(player, "for ever", 0.05) is None


def test_status(system):
    first = system.createActor(Script)
    Script.actors = [first]
    system.tell(first, do(("create",), ("wakeup", 60, "later")))
    status = system.ask(first, Thespian_StatusReq(), 1)
    assert isinstance(status, Thespian_ActorStatus)
    assert status.childActors == [Script.actors[1]] and len(status.pendingWakeups) == 1


def test_capabilities_and_sources(system, base):
    system.updateCapability("unobtainable", True)
    assert str(system.createActor(Demanding)) != "ActorAddr-System:BadActor"
    system.updateCapability("unobtainable")
    assert "unobtainable" not in base.capabilities
    with pytest.raises(ActorSystemException, match="installed modules only"):
        system.loadActorSource("actors.zip")
    with pytest.raises(ActorSystemException):
        system.createActor("some.Actor", sourceHash="abc")


def test_other_threads_ask_while_the_core_runs(system, base):
    mirror = system.createActor(Mirror)
    answers = []

    def ask():
        with system.private() as own:
            answers.append([own.ask(mirror, number, 3) for number in range(20)])
            answers.append(own.ask(ActorAddress("/A~never"), "nobody", 0.01))

    thread = threading.Thread(target=ask)
    thread.start()
    while thread.is_alive():
        base.run_pending()
    assert answers == [list(range(20)), None]
    with system.private() as own:
        assert own.ask(mirror, "in the core's own thread", 1) == "in the core's own thread"


def test_shutdown_forgets_everything(system, base):
    first = system.createActor(Script)
    system.tell(first, do(("wakeup", 0.001, "never comes")))
    Script.transcript = []
    system.shutdown()
    time.sleep(0.002)
    assert base.run_pending() is None
    assert Script.transcript == []


def test_many_wakeups_cost_little(system):
    """simpleSystemBase looks at every pending wakeup before every message: 200 tells a second with 6000 pending."""
    first = system.createActor(Mirror)
    Script.actors = [system.createActor(Script)]
    system.tell(Script.actors[0], do(*[("wakeup", 3600, number) for number in range(6000)]))
    started = time.perf_counter()
    for number in range(20_000):
        system.tell(first, number)
    assert 20_000 / (time.perf_counter() - started) > 50_000
