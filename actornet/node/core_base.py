"""Thespian's actors inside one process: a system base for a core, driven by the core's own loop.

    base = CoreSystemBase(engine)
    system = ActorSystem(systemBase=base, transientUnique=True)
    system.ask(base.address_of_owner("wan-ports"), OwnerMessage("allocate", (flow,)), timeout=1)

Ordinary Thespian actors behave as on simpleSystemBase, which is the oracle of the tests: everything runs in the thread
that calls tell, ask, listen or run_pending; messages are delivered one at a time in the order in which they were sent,
without copying; a message whose handling raises is tried three times, then its sender gets it back as a PoisonMessage.
Unlike there, sends and wakeups cost the same however many are pending, `ask` keeps its time-out while actors talk, and
an ActorExitRequest to a dead actor is a dead letter without further consequences.

Owners and flow actors have addresses too. What is sent there goes to the engine; what an owner answers comes back as an
ordinary message, and its error as a PoisonMessage. Code is not loaded at run time: actors come from installed modules.
"""

from __future__ import annotations

import heapq
import logging
import queue
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from itertools import count
from typing import Any, Protocol

import msgspec
from thespian.actors import (
    Actor,
    ActorAddress,
    ActorExitRequest,
    ActorSystemException,
    ActorSystemMessage,
    ChildActorExited,
    DeadEnvelope,
    InvalidActorSourceHash,
    PoisonMessage,
    Thespian_ActorStatus,
    Thespian_StatusReq,
    ThespianGeneration,
    WakeupMessage,
)
from thespian.system import isInternalActorSystemMessage
from thespian.system.timing import ExpirationTimer, timePeriodSeconds
from thespian.system.utilis import actualActorClass, withPossibleInitArgs

from actornet.engine.five_tuple import FiveTuple

TRIES_MAX = 3
POISON_TRIES_MAX = 2
DEADLINE_CHECK_MESSAGES = 256
"""While actors keep each other busy, an external ask looks at the clock this often."""

REPLY_POLL_S = 0.001
"""How often an external ask looks for an owner's reply when nothing else tells it that time has passed."""

log = logging.getLogger("actornet.actors")


@dataclass(frozen=True)
class OwnerMessage:
    """What an owner takes: the name of its message and the arguments. Its sender gets the reply as a message."""

    message: str
    args: tuple[Any, ...] = ()


class Engine(Protocol):
    """What stands behind the addresses of owners and flow actors."""

    def ask_owner(self, name: str, message: str, args: tuple[Any, ...], reply: Callable[[Any], None]) -> None:
        """Ask the owner; call `reply` once, now or later in this thread, with its answer or with an exception."""

    def tell_flow(self, flow: FiveTuple, message: Any, reply: Callable[[Any], None]) -> None:
        """Hand the message to the flow's actor; call `reply` once with its answer, None for no answer, or an exception.

        Raises if there is no such flow."""


class OwnerDetails(msgspec.Struct, frozen=True):
    """Address details of an owner."""

    name: str

    def __str__(self) -> str:
        return f"/owner/{self.name}"


class FlowDetails(msgspec.Struct, frozen=True):
    """Address details of a flow's actor."""

    flow: FiveTuple

    def __str__(self) -> str:
        return f"/flow/{self.flow}"


class Retry:
    """A message whose handling has raised, on its way to be tried again."""

    __slots__ = ("details", "message", "tries")

    def __init__(self, message: Any, tries: int, details: str) -> None:
        self.message = message
        self.tries = tries
        self.details = details


class Sink(Actor):  # type: ignore[misc]
    """Takes what nobody else wants."""

    def receiveMessage(self, message: Any, sender: Any) -> None:
        pass


class Inbox(Actor):  # type: ignore[misc]
    """Stands for a requester outside the system; keeps what is sent to it until it asks or listens."""

    def __init__(self) -> None:
        self.messages: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def receiveMessage(self, message: Any, sender: Any) -> None:
        if not isInternalActorSystemMessage(message):
            self.messages.put(message)


_SPECIAL = (ActorSystemMessage, Retry)
_INTERNAL = (Sink, Inbox)


class Ref:
    """An actor and its place in the system; the actor knows it as `_myRef`."""

    __slots__ = ("_append", "address", "base", "children", "children_ever", "globalName", "instance", "parent")

    def __init__(self, base: CoreSystemBase, parent: Any, address: Any, instance: Actor | None) -> None:
        self.base = base
        self.parent = parent
        self.address = address
        self.instance = instance
        self.children: list[Any] = []
        self.children_ever = 0
        self.globalName: str | None = None
        self._append = base._pending.append
        if instance is not None:
            instance._myRef = self

    def createActor(self, actorClass: Any, requirements: Any, globalName: str | None, sourceHash: Any = None) -> Any:
        return self.base._new_child(self, actorClass, requirements, globalName, sourceHash)

    def actor_send(self, target: Any, message: Any) -> None:
        self._append((target, message, self.address))

    def wakeupAfter(self, period: timedelta | float | None, payload: Any = None) -> None:
        self.base._wakeup_after(self.address, period, payload)

    def handleDeadLetters(self, address: Any, enable: bool) -> None:
        self.base._handleDeadLetters(address, enable)

    def updateCapability(self, name: str, value: Any = None) -> None:
        self.base.updateCapability(name, value)

    def loadActorSource(self, name: str) -> None:
        self.base.loadActorSource(name)

    def unloadActorSource(self, sourceHash: str) -> None:
        self.base.unloadActorSource(sourceHash)

    def actorSystemShutdown(self) -> None:
        self.base.shutdown()

    def registerSourceAuthority(self, address: Any) -> None:
        """There is no source to authorise."""

    def notifyOnSourceAvailability(self, address: Any, enable: bool) -> None:
        """No source will become available."""

    def notifyOnSystemRegistrationChanges(self, address: Any, enable: bool) -> None:
        """No other system will register."""


class CoreSystemBase:
    """A system base for one thread.

    `clock` gives the time in seconds for wakeups and time-outs. `drive(timeout_s)` passes the time while an external
    ask waits, and may return early: a core lets it run its own loop, so that owners' replies and virtual time go on.
    """

    def __init__(
        self,
        engine: Engine | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        drive: Callable[[float], None] = time.sleep,
    ) -> None:
        self.capabilities: dict[str, Any] = {
            "Thespian ActorSystem Name": "actornet core",
            "Thespian ActorSystem Version": 2,
            "Thespian Generation": ThespianGeneration,
            "Thespian Watch Supported": False,
            "AllowRemoteActorSources": "No",
        }
        self._engine = engine
        self._clock = clock
        self._drive = drive
        self._thread = threading.get_ident()
        self._pending: deque[tuple[Any, Any, Any]] = deque()  # target, message, sender
        self._wakeups: list[tuple[float, int, Any, Any, Any]] = []  # due, number, target, period, payload
        self._wakeup_numbers = count()
        self._replies_due = 0
        self._global_names: dict[str, Any] = {}
        self._dead_letters: Ref | None = None
        self._primaries_ever = self._clones_ever = 0
        self._refs: dict[Any, Ref] = {}
        self._system = self._new_internal("/ActorSys", Sink())
        self._bad_actor = self._new_internal("System:BadActor", Sink())
        self._inbox = Inbox()
        self._external = self._new_internal("System:ExternalRequester", self._inbox)

    # What a core calls

    def run_pending(self, now: float | None = None, messages_max: int | None = None) -> float | None:
        """Deliver what is due at `now` (the clock's time by default), at most `messages_max` messages.

        Returns when to call again if nothing is sent meanwhile: the time of the next wakeup, `now` if messages are
        left, None if there is neither.
        """
        at = self._clock() if now is None else now
        self._realize_wakeups(at)
        self._run(messages_max, None)
        if self._pending:
            return at
        return self._wakeups[0][0] if self._wakeups else None

    def address_of_owner(self, name: str) -> Any:
        """Where to send an OwnerMessage to the owner of that name."""
        return ActorAddress(OwnerDetails(name))

    def address_of_flow(self, flow: FiveTuple) -> Any:
        """Where to send a message to the actor of that flow."""
        return ActorAddress(FlowDetails(flow))

    # What ActorSystem calls

    def newPrimaryActor(
        self, actorClass: Any, requirements: Any, globalName: str | None, sourceHash: Any = None
    ) -> Any:
        if globalName and globalName in self._global_names:
            return self._global_names[globalName]
        address = ActorAddress(f"/A~{_letters(self._primaries_ever)}")
        self._primaries_ever += 1
        instance = self._new_instance(actorClass, requirements, sourceHash, raising=True)
        if instance is None:
            return self._bad_actor.address
        self._register(Ref(self, self._system.address, address, instance), globalName)
        return address

    def tell(self, target: Any, message: Any) -> None:
        if self._wakeups:
            self._realize_wakeups(None)
        self._pending.append((target, message, self._external.address))
        self._run(None, None)

    def ask(self, target: Any, message: Any, timeout: timedelta | float | None) -> Any:
        return self._ask(self._external, target, message, timeout)

    def listen(self, timeout: timedelta | float | None) -> Any:
        return self._listen(self._inbox, timeout)

    def external_clone(self) -> Clone:
        self._clones_ever += 1
        return Clone(self, self._new_internal(f"System:ExternalRequester:{self._clones_ever}", Inbox()))

    def shutdown(self) -> None:
        """Forget every actor, message and wakeup."""
        for address, ref in list(self._refs.items()):
            if not isinstance(ref.instance, _INTERNAL):
                ref.instance = None
                del self._refs[address]
        self._pending.clear()
        self._wakeups.clear()
        self._global_names.clear()

    def updateCapability(self, name: str, value: Any = None) -> None:
        if value is None:
            self.capabilities.pop(name, None)
        else:
            self.capabilities[name] = value

    def loadActorSource(self, name: Any) -> None:
        raise ActorSystemException(f"{name}: a core takes actors from installed modules only")

    def unloadActorSource(self, sourceHash: str) -> None:
        """Nothing was loaded."""

    def _handleDeadLetters(self, address: Any, enable: bool) -> None:
        self._realize_wakeups(None)
        ref = self._refs.get(address.addressDetails)
        if enable:
            self._dead_letters = ref
        elif ref is self._dead_letters:
            self._dead_letters = None

    # Actors

    def _new_internal(self, name: str, instance: Actor) -> Ref:
        ref = self._refs[name] = Ref(self, ActorAddress("/ActorSys"), ActorAddress(name), instance)
        return ref

    def _new_instance(self, actorClass: Any, requirements: Any, sourceHash: Any, *, raising: bool) -> Actor | None:
        """The actor, or None if it cannot be made here; a primary actor's creator is told why, a parent only that."""
        try:
            if sourceHash:
                raise InvalidActorSourceHash(sourceHash)
            loaded = actualActorClass(actorClass)
            check = getattr(loaded, "actorSystemCapabilityCheck", None)
            if check is not None and not check(self.capabilities, requirements or {}):
                return None
            return withPossibleInitArgs(capabilities=self.capabilities, requirements=requirements).create(loaded)
        except ImportError:
            raise
        except Exception:
            if raising:
                raise
            log.warning("actor %s cannot be created", actorClass, exc_info=True)
            return None

    def _new_child(
        self, parent: Ref, actorClass: Any, requirements: Any, globalName: str | None, sourceHash: Any
    ) -> Any:
        if globalName and globalName in self._global_names:
            return self._global_names[globalName]
        address = ActorAddress(f"{parent.address.addressDetails}~{_letters(parent.children_ever)}")
        parent.children.append(address)
        parent.children_ever += 1
        instance = self._new_instance(actorClass, requirements, sourceHash, raising=False)
        self._register(Ref(self, parent.address, address, instance), globalName if instance else None)
        if instance is None:
            self._pending.append((parent.address, ChildActorExited(address), self._system.address))
        return address

    def _register(self, ref: Ref, globalName: str | None) -> None:
        self._refs[ref.address.addressDetails] = ref
        if globalName:
            ref.globalName = globalName
            self._global_names[globalName] = ref.address

    def _kill(self, ref: Ref) -> None:
        ref.instance = None
        if ref.globalName:
            del self._global_names[ref.globalName]
        self._pending.append((ref.parent, ChildActorExited(ref.address), self._system.address))

    # Messages

    def _run(self, messages_max: int | None, inbox: Inbox | None) -> None:
        """Deliver messages until none is left, `messages_max` are delivered, or `inbox` has one."""
        pending, refs, wakeups = self._pending, self._refs, self._wakeups
        left = -1 if messages_max is None else messages_max
        while pending and left:
            left -= 1
            if wakeups:
                self._realize_wakeups(None)
            target, message, sender = pending.popleft()
            ref = refs.get(target._aaddr)
            if ref is None or ref.instance is None or isinstance(message, _SPECIAL):
                self._deliver(target, message, sender)
            else:
                try:
                    ref.instance.receiveMessage(message, sender)
                except Exception:
                    self._retry(target, message, sender, 1)
            if inbox is not None and not inbox.messages.empty():
                return

    def _deliver(self, target: Any, message: Any, sender: Any) -> None:
        """Every message that is not an ordinary one to a living actor."""
        tries, details = 0, None
        if type(message) is Retry:
            message, tries, details = message.message, message.tries, message.details
        receiver, source, content = target, sender, message
        if tries >= TRIES_MAX:
            if isinstance(message, PoisonMessage) or tries >= TRIES_MAX + POISON_TRIES_MAX:
                return
            receiver, source, content = sender, target, PoisonMessage(message, details)
        ref = self._refs.get(receiver.addressDetails)
        if ref is None and isinstance(receiver.addressDetails, OwnerDetails | FlowDetails) and self._engine:
            self._hand_to_engine(self._engine, receiver, content, source)
            return
        if ref is None:
            ref = self._dead_letters
            content = DeadEnvelope(receiver.actorAddressString, content)
        if ref is not None and ref.instance is not None:
            self._call(ref, target, message, sender, content, source, tries)
        if isinstance(message, ChildActorExited):
            self._bury(message.childAddress)

    def _call(self, ref: Ref, target: Any, message: Any, sender: Any, content: Any, source: Any, tries: int) -> None:
        if isinstance(content, Thespian_StatusReq):
            self._pending.append((source, self._status(ref), ref.address))
            return
        assert ref.instance is not None
        exited = isinstance(message, ChildActorExited)
        try:
            if not exited or content is message:  # a dead child need not hear that its parent failed over its death
                ref.instance.receiveMessage(content, source)
        except Exception:
            self._retry(target, message, sender, tries + 1)
        else:
            if exited and message.childAddress in ref.children:
                ref.children.remove(message.childAddress)
        if isinstance(content, ActorExitRequest) and not isinstance(ref.instance, _INTERNAL):
            self._kill(ref)

    def _retry(self, target: Any, message: Any, sender: Any, tries: int) -> None:
        log.warning("actor %s failed over a message (try %d)", target, tries, exc_info=True)
        self._pending.append((target, Retry(message, tries, traceback.format_exc()), sender))

    def _bury(self, address: Any) -> None:
        """After its parent has been told, a dead actor's children follow it, and its address is free of it."""
        dead = self._refs.get(address.addressDetails)
        if dead is not None and dead.instance is None:
            for child in dead.children:
                self._pending.append((child, ActorExitRequest(), self._system.address))
            del self._refs[address.addressDetails]

    def _status(self, ref: Ref) -> Thespian_ActorStatus:
        status = Thespian_ActorStatus(ref.address, type(ref.instance).__name__, self._system.address, ref.parent)
        for child in ref.children:
            status.addChild(child)
        now = self._clock()
        status.addWakeups([(target, ExpirationTimer(due - now)) for due, _, target, _, _ in self._wakeups])
        for target, message, sender in self._pending:
            status.addPendingMessage(sender, target, message)
        return status

    def _hand_to_engine(self, engine: Engine, target: Any, message: Any, sender: Any) -> None:
        self._replies_due += 1

        def reply(value: Any) -> None:
            self._replies_due -= 1
            if isinstance(value, BaseException):
                value = PoisonMessage(message, f"{type(value).__name__}: {value}")
            if value is not None or isinstance(target.addressDetails, OwnerDetails):
                self._pending.append((sender, value, target))

        try:
            if isinstance(target.addressDetails, FlowDetails):
                engine.tell_flow(target.addressDetails.flow, message, reply)
            elif isinstance(message, OwnerMessage):
                engine.ask_owner(target.addressDetails.name, message.message, message.args, reply)
            else:
                raise TypeError(f"an owner takes an OwnerMessage, not {type(message).__name__}")
        except Exception as error:
            reply(error)

    # Time

    def _wakeup_after(self, target: Any, period: timedelta | float | None, payload: Any) -> None:
        if period is None:
            return  # Thespian's word for never
        due = self._clock() + timePeriodSeconds(period)
        heapq.heappush(self._wakeups, (due, next(self._wakeup_numbers), target, period, payload))
        self._realize_wakeups(None)

    def _realize_wakeups(self, now: float | None) -> None:
        """Make messages of the wakeups that are due."""
        wakeups = self._wakeups
        if not wakeups:
            return
        at = self._clock() if now is None else now
        while wakeups and wakeups[0][0] <= at:
            _, _, target, period, payload = heapq.heappop(wakeups)
            self._pending.append((target, WakeupMessage(period, payload), target))

    def _ask(self, asker: Ref, target: Any, message: Any, timeout: timedelta | float | None) -> Any:
        self._realize_wakeups(None)
        self._pending.append((target, message, asker.address))
        assert isinstance(asker.instance, Inbox)
        return self._listen(asker.instance, timeout)

    def _listen(self, inbox: Inbox, timeout: timedelta | float | None) -> Any:
        """The next message in `inbox`; None at the time-out, or earlier if nothing can come any more."""
        deadline = None if timeout is None else self._clock() + timePeriodSeconds(timeout)
        while deadline is None or self._clock() < deadline:
            self._run(None if deadline is None else DEADLINE_CHECK_MESSAGES, inbox)
            if not inbox.messages.empty() or not (self._pending or self._pass_time(deadline)):
                break
        return None if inbox.messages.empty() else inbox.messages.get()

    def _pass_time(self, deadline: float | None) -> bool:
        """Wait for the next wakeup or an owner's reply; False if neither comes before the deadline."""
        due = self._wakeups[0][0] if self._wakeups else None
        if deadline is None or not (self._replies_due or (due is not None and due <= deadline)):
            return False
        now = self._clock()
        until = deadline if due is None else min(due, deadline)
        self._drive(max(0.0, min(until - now, REPLY_POLL_S) if self._replies_due else until - now))
        self._realize_wakeups(None)
        return True


class Clone:
    """A second external requester, for another thread: its messages are delivered when the core's thread runs."""

    def __init__(self, base: CoreSystemBase, ref: Ref) -> None:
        self._base = base
        self._ref = ref

    def newPrimaryActor(
        self, actorClass: Any, requirements: Any, globalName: str | None, sourceHash: Any = None
    ) -> Any:
        return self._base.newPrimaryActor(actorClass, requirements, globalName, sourceHash)

    def tell(self, target: Any, message: Any) -> None:
        self._base._pending.append((target, message, self._ref.address))

    def ask(self, target: Any, message: Any, timeout: timedelta | float | None) -> Any:
        self.tell(target, message)
        return self.listen(timeout)

    def listen(self, timeout: timedelta | float | None) -> Any:
        assert isinstance(self._ref.instance, Inbox)
        inbox = self._ref.instance
        if threading.get_ident() == self._base._thread:
            return self._base._listen(inbox, timeout)
        try:
            return inbox.messages.get(timeout=None if timeout is None else max(0.0, timePeriodSeconds(timeout)))
        except queue.Empty:
            return None

    def exit_context(self) -> None:
        self._base._refs.pop(self._ref.address.addressDetails, None)


def _letters(number: int) -> str:
    """Thespian's numbering of actors: a, b, ... Z, ba, bb, ..."""
    alphabet = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
    rest, last = divmod(number, len(alphabet))
    return (_letters(rest) if rest else "") + alphabet[last]
