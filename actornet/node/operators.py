"""What an operator may ask of a node's owner system: who leads, a takeover, a message to an owner."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from actornet.engine.asks import ask_request
from actornet.engine.ring import ACTIVE
from actornet.errors import LogError, NodeError
from actornet.limits import MESSAGE_BYTES_MAX
from actornet.log.record import OPERATOR
from actornet.replication.primary import Primary
from actornet.replication.protocol import Refused

if TYPE_CHECKING:
    from actornet.node.owner_system import OwnerSystem


class Answer(NamedTuple):
    """What an operator gets for a command, once it is `ready`."""

    value: Callable[[], Any]
    ready: Callable[[], bool]


class Operators:
    """Carries out operators' commands, each between two steps of the owner system."""

    def __init__(self, system: OwnerSystem) -> None:
        self._system = system

    def command(self, command: str, arguments: dict[str, Any]) -> Answer:
        """NodeError: it is not known, or not possible now.

        `leads` answers with the epoch in which this node leads, or None; `promote` (`force`) with how the node took over;
        `ask` (`owner`, `message`, and `args`, a msgpack list) with the owner's reply, encoded. Other errors end the node:
        what it was about to do is begun, and not logged.
        """
        try:
            return self._command(command, arguments)
        except LogError as error:
            self._system.fail(error)
            raise

    def _command(self, command: str, arguments: dict[str, Any]) -> Answer:
        system = self._system
        system.commit()  # of a step that lingered
        if system.leadership.seeking:
            raise NodeError("this node is about to lead: see its status for what it waits for")
        match command:
            case "leads":
                epoch = system.page.epoch if system.page.role == ACTIVE else None
                return Answer(lambda: epoch, lambda: True)
            case "promote":
                return self._promote(force=bool(arguments.get("force")))
            case "ask":
                return self._ask(**arguments)
        raise NodeError(f"the owner system knows no command {command!r}")

    def _promote(self, *, force: bool) -> Answer:
        system, machine = self._system, self._system.machine
        if isinstance(machine, Primary):
            going_on = machine.go_on_alone()
            if not going_on:
                raise NodeError("this node is the primary already, and waits for no backup")
            system.act(going_on)
            done = {"epoch": machine.epoch, "reason": "goes on without a backup"}
            return Answer(lambda: done, lambda: True)
        actions = machine.promote(force=force)
        for action in actions:
            if isinstance(action, Refused):
                raise NodeError(action.reason)
        system.act(actions)
        return Answer(lambda: system.takeover, lambda: isinstance(system.machine, Primary))

    def _ask(self, owner: str, message: str, args: bytes) -> Answer:
        """An operator's message takes its turn among those of the flows, and is logged like them."""
        system = self._system
        if system.page.role != ACTIVE or system.drained:
            raise NodeError("this node does not lead, so its owners take no messages: ask the primary")
        if len(args) > MESSAGE_BYTES_MAX // 2:
            raise NodeError(f"the arguments have {len(args)} bytes; {MESSAGE_BYTES_MAX // 2} is the most")
        request = ask_request(None, owner, message, args)
        reply = system.journal.ask(OPERATOR, request, system.environment.time_ns())
        system.cores.tell_revocations()
        system.commit()
        lsn = system.journal.lsn
        # Nobody is told what a takeover could undo (G3).
        return Answer(lambda: reply, lambda: system.page.watermark >= lsn)
