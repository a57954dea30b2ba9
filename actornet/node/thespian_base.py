"""The node's actor system: Thespian's multiprocTCPBase, bound to one address, authenticated, and without orphans.

What it changes, each for a reason seen with the original:

- The admin and every actor listen on the control address's host only (the original: on every interface).
- Every message is sealed, see `seal.py`; unauthenticated input is counted, logged (once a second at most) and dropped.
- Every process dies with the one that started it (PR_SET_PDEATHSIG): SIGKILL of the launcher, the admin or an actor
  ends everything below it within milliseconds. The kernel ties this to the parent's *thread*, so a system must be
  opened in a thread that lives as long as the system, usually the main thread.
- A crash in compiled code ends the process: Thespian's Python handlers for SIGSEGV and its like, which the interpreter
  never gets to run, are replaced by the default action.
- No child's death is missed: neither that of one that has not reported to its parent yet, nor of one that dies while
  another's death is being handled.

Thespian looks a system base's name up among its own modules and would carry a key among its capabilities, which every
status shows. So the base is given as an instance, and the key travels to the forked processes in memory, as an
attribute of their transport's class.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import ipaddress
import logging
import multiprocessing.process
import os
import pickle
import resource
import signal
import socket
import time
from datetime import timedelta
from functools import partial
from types import SimpleNamespace
from typing import Any
from weakref import WeakKeyDictionary

from thespian.actors import Actor, ActorAddress, ActorSystem, InvalidActorAddress
from thespian.system import multiprocTCPBase
from thespian.system.messages.multiproc import EndpointConnected
from thespian.system.multiprocCommon import (
    MultiProcAdmin,
    MultiProcReplicator,
    _startLogger,
    closeFileNums,
    detach_child,
)
from thespian.system.timing import ExpirationTimer
from thespian.system.transport import ExternalInterfaceTransportInit, ReceiveEnvelope, SendStatus
from thespian.system.transport.IPBase import TCPv4ActorAddress
from thespian.system.transport.streamBuffer import ackDataErrPacket, ackPacket, isControlMessage
from thespian.system.transport.TCPTransport import TCPEndpoint, TCPIncomingPersistent, TCPTransport
from thespian.system.utilis import thesplog_control

from actornet.errors import NodeError, UsageError
from actornet.limits import CONTROL_GREETING_S, CONTROL_STRANGERS_MAX, MESSAGE_BYTES_MAX
from actornet.node.seal import Intake, Session, UnauthenticatedError

CRASH_SIGNALS = (signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGABRT)
ADDRESS_TAKEN_EXIT = 98
ADMIN_START_S = 5.0
PR_SET_PDEATHSIG = 1

_libc = ctypes.CDLL(None, use_errno=True)


class NodeSystem(ActorSystem):  # type: ignore[misc]
    """An actor system at `control` ("host:port", IPv4), for all who hold `key`.

    Starts the system, or with `join=True` talks to the one that runs there. NodeError says in one line why it cannot:
    the address is taken or not of this host, nothing runs there, or what runs there has another key.
    `die_with_launcher=False` lets the system outlive the process that starts it.
    """

    def __init__(self, control: str, key: bytes, *, join: bool = False, die_with_launcher: bool = True) -> None:
        host, port = split_address(control)
        thesplog_control(logging.WARNING, False, 0)  # else Thespian leaves its own log file in the temporary directory
        capabilities = {
            "Admin Address": host,
            "Admin Port": port,
            "Die With Launcher": die_with_launcher,
            "Process Startup Method": "fork",
        }
        log_definitions = None
        if join:
            host = _local_host_towards(host, port, key)
        else:
            _require_free(host, port)
            from actornet.node import events  # structlog takes longer to import than a client takes to answer

            log_definitions = events.log_definitions()
        try:
            system = SimpleNamespace(capabilities=capabilities)
            base = NodeSystemBase(system, log_definitions, key=key, host=host, joining=join)
        except InvalidActorAddress:
            raise NodeError(f"the node at {control} does not answer: see its log, or stop its processes") from None
        super().__init__(base, capabilities, transientUnique=True)

    def is_alive(self) -> bool:
        """Whether the admin that this process started still runs."""
        admin = self._systemBase.admin
        return admin is not None and admin.is_alive()

    def leave(self) -> None:
        """Close this process's end; the system goes on."""
        self._systemBase.transport.close()


class NodeSystemBase(multiprocTCPBase.ActorSystemBase):  # type: ignore[misc]
    """The launching or joining process's side of the system."""

    def __init__(self, system: Any, logDefs: Any = None, *, key: bytes, host: str, joining: bool = False) -> None:
        self.admin: multiprocessing.process.BaseProcess | None = None
        self.transportType = type("NodeTransport", (Transport,), {"key": key, "host": host, "joining": joining})
        super().__init__(system, logDefs)

    def _startAdmin(self, adminAddr: Any, addrOfStarter: Any, capabilities: dict[str, Any], logDefs: Any) -> None:
        endpoint = self.transport.prepEndpoint(adminAddr, capabilities)
        self.admin = self.mpcontext.Process(
            target=_run_admin,
            args=(endpoint, type(self.transport), adminAddr, addrOfStarter, capabilities, logDefs, self.mpcontext),
            kwargs={"inherited": list(self.transport.childResetFileNumList())},
            name="actornet admin",
        )
        self.admin.start()
        detach_child(self.admin)  # ended by shutdown() or by the kernel, not by multiprocessing at exit
        deadline = time.monotonic() + ADMIN_START_S
        while time.monotonic() < deadline:
            response = self.transport.run(None, timedelta(milliseconds=50))
            if isinstance(response, ReceiveEnvelope) and isinstance(response.message, EndpointConnected):
                return
            if not self.admin.is_alive():
                break
        host, port = adminAddr.addressDetails.sockname
        if self.admin.exitcode == ADDRESS_TAKEN_EXIT:
            raise NodeError(f"control address {host}:{port} was taken meanwhile: choose another")
        self.admin.kill()
        raise NodeError(f"the admin process at {host}:{port} did not start within {ADMIN_START_S:g} s: see the log")

    def shutdown(self) -> None:
        """Stop every actor in order; kill what has not stopped within Thespian's ten seconds."""
        super().shutdown()
        if self.admin is not None:
            self.admin.join(1.0)
            if self.admin.is_alive():
                self.admin.kill()
            self.admin.join(1.0)


def _run_admin(
    endpoint: Endpoint,
    transport_class: type[Transport],
    admin_address: Any,
    starter: Any,
    capabilities: dict[str, Any],
    log_definitions: Any,
    context: Any,
    inherited: list[int],
) -> None:
    """The admin's process: as Thespian's startAdmin, but a child of the launcher rather than a daemon of its own."""
    os.setsid()  # the terminal's Ctrl-C is for the launcher, which stops the others in order
    closeFileNums(inherited)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core file would hold the key
    try:
        transport = transport_class(endpoint)
    except OSError:
        os._exit(ADDRESS_TAKEN_EXIT)
    admin = MultiProcAdmin(transport, admin_address, capabilities, log_definitions, context)
    admin.addrOfStarter = starter
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGCHLD, admin.signalChildDied)
    _startLogger(transport_class, transport, admin, capabilities, log_definitions, context)
    transport.enableRXPauseFlowControl(False)
    admin.run()


class Endpoint(TCPEndpoint):  # type: ignore[misc]
    """What a parent prepares for a child's transport, and the child enters in its own process."""

    def __init__(self, *args: Any, parent_pid: int | None) -> None:
        super().__init__(*args)
        self.parent_pid = parent_pid

    def enter(self) -> None:
        """Have the kernel kill this process when the one that prepared the endpoint dies."""
        if self.parent_pid is None:
            return
        if _libc.prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
        if os.getppid() != self.parent_pid:  # it died before the kernel knew
            os.kill(os.getpid(), signal.SIGKILL)


class Transport(TCPTransport):  # type: ignore[misc]
    """TCPTransport on one host, sealed.

    The overridden methods are steps of TCPTransport's state machine for one transmission (`_next_XMIT_n`) and of its
    receiving side. The seal is put on when a connection is known and taken off before anything else looks at the data.
    """

    key: bytes
    host: str
    joining: bool

    def __init__(self, init: Any, *args: Any) -> None:
        self.refused = 0
        self._refused_logged_at = 0.0
        self._sessions: WeakKeyDictionary[socket.socket, Session] = WeakKeyDictionary()
        self._is_child = isinstance(init, Endpoint)
        instance = assigned = parent = None
        if isinstance(init, Endpoint):
            init.enter()
            instance, assigned, parent, admin = init.args[:4]
        elif isinstance(init, ExternalInterfaceTransportInit):
            admin = self.getAdminAddr(args[0])
        else:  # a copy for another thread or request of an external process
            admin = args[0]
        super().__init__(TCPEndpoint(instance, assigned or _actor_address(self.host, 0), parent, admin, False, False))

    @staticmethod
    def getAdminAddr(capabilities: dict[str, Any]) -> Any:
        return _actor_address(capabilities["Admin Address"], capabilities["Admin Port"])

    def probeAdmin(self, address: Any) -> bool:
        """Whether to look for a running admin rather than to start one; whoever calls has checked that it is so."""
        return self.joining

    def external_transport_clone(self) -> Transport:
        return type(self)(None, self._adminAddr)

    def prepEndpoint(self, assignedLocalAddr: Any, capabilities: dict[str, Any]) -> Endpoint:
        is_admin = assignedLocalAddr == self._adminAddr
        tied = not is_admin or capabilities["Die With Launcher"]
        endpoint = super().prepEndpoint(assignedLocalAddr, capabilities)
        return Endpoint(*endpoint.args, parent_pid=os.getpid() if tied else None)

    def run(self, incomingHandler: Any, maximumDuration: Any = None) -> Any:
        if self._is_child:  # Thespian has set up the rest of the process after it made this transport
            self._is_child = False
            for crash in CRASH_SIGNALS:
                signal.signal(crash, signal.SIG_DFL)
            manager = getattr(incomingHandler, "__self__", None)
            if isinstance(manager, MultiProcReplicator):
                manager._childExited = partial(_forget_child, manager)
        return super().run(incomingHandler, maximumDuration)

    def _updateStatusResponse(self, resp: Any) -> None:
        super()._updateStatusResponse(resp)
        resp.addKeyVal("control.refused", self.refused)

    # Sending

    def serializer(self, intent: Any) -> bytes:
        if intent.targetAddr == self.myAddress:  # goes straight to the own queue, as it is
            return b"own"
        intent.payload = pickle.dumps((self.myAddress, intent.message))
        if len(intent.payload) > MESSAGE_BYTES_MAX:
            raise ValueError(f"a control message of {len(intent.payload)} bytes, at most {MESSAGE_BYTES_MAX}")
        return bytes(intent.payload)

    def _next_XMIT_1(self, intent: Any) -> Any:
        intent.serMsg = b""  # sealed for the connection that this attempt gets
        return super()._next_XMIT_1(intent)

    def _next_XMIT_2(self, intent: Any) -> Any:
        if hasattr(intent, "socket") and not intent.serMsg:
            session = self._sessions.get(intent.socket)
            if session is None:
                return self._await_greeting(intent)
            intent.serMsg = session.seal(intent.payload)
        return super()._next_XMIT_2(intent)

    def _await_greeting(self, intent: Any) -> Any:
        error = intent.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error == errno.ECONNREFUSED:
            return self._finishIntent(intent, SendStatus.DeadTarget)
        try:
            session = Session(self.key, intent.socket.getpeername(), accepted=False)
        except OSError:  # not connected, for another reason or not yet
            intent.stage = self._XMITStepRetry if error else intent.stage
            intent.backoffPause(True)
            return self._nextTransmitStep(intent) if error else True
        self._sessions[intent.socket] = session
        intent.ackbuf = Intake(session)
        intent.stage = self._XMITStepWaitForAck
        return True

    def _next_XMIT_3(self, intent: Any) -> Any:
        intent.ackbuf = Intake(self._sessions[intent.socket])
        intent.stage = self._XMITStepWaitForAck
        return True

    def _check_XMIT_4_done(self, intent: Any, rcv: bytes) -> Any:
        intake: Intake = intent.ackbuf
        greeted = intake.session.met
        intake.addMore(rcv)
        if not greeted and intake.session.met:
            intent.stage = self._XMITStepSendData
            return self._nextTransmitStep(intent)
        if not intake.isDone():
            return True
        try:
            answer, _ = intake.completed()
        except UnauthenticatedError as refusal:
            self._refuse(intent.socket, refusal)
            intent.backoffPause(True)
            intent.stage = self._XMITStepRetry
            return self._nextTransmitStep(intent)
        if isControlMessage(answer):
            intent.result = SendStatus.Sent if answer == ackPacket else SendStatus.BadPacket
            intent.stage = self._XMITStepFinishCleanup
            return self._nextTransmitStep(intent)
        # The other end's own message crossed ours: take it, and go on waiting.
        self._addedDataToIncoming(TCPIncomingPersistent(intent.targetAddr, intent.socket, intake), skipFinish=True)
        intent.ackbuf = Intake(intake.session)
        return True

    # Receiving

    def _acceptNewIncoming(self) -> None:
        before = dict(self._incomingSockets)
        super()._acceptNewIncoming()
        for number, incoming in self._incomingSockets.items():
            if before.get(number) is not incoming:
                self._greet(incoming)
                break
        strangers = [
            number
            for number, incoming in self._incomingSockets.items()
            if not self._sessions[incoming.socket].authenticated
        ]
        if len(strangers) > CONTROL_STRANGERS_MAX:
            oldest = self._incomingSockets.pop(strangers[0])
            self._refuse(oldest.socket, UnauthenticatedError("too many connections that do not authenticate"))
            oldest.close()

    def _greet(self, incoming: Any) -> None:
        session = Session(self.key, incoming.socket.getsockname(), accepted=True)
        self._sessions[incoming.socket] = session
        incoming._rData = Intake(session)
        incoming._expires = ExpirationTimer(timedelta(seconds=CONTROL_GREETING_S))
        with contextlib.suppress(OSError):  # gone already: Thespian wakes its own loop by connecting and closing
            incoming.socket.send(session.greeting)

    def _handleReadableIncoming(self, inc: Any, has_exclusive_flag: bool = False) -> Any:
        if not isinstance(inc._rData, Intake):  # an idle connection, so one that has a session, becomes readable
            inc._rData = Intake(self._sessions[inc.socket])
        return super()._handleReadableIncoming(inc, has_exclusive_flag=has_exclusive_flag)

    def _addedDataToIncoming(self, inc: Any, skipFinish: bool = False, has_exclusive_flag: bool = False) -> Any:
        if not inc.receivedAllData():
            return inc
        session = self._sessions[inc.socket]
        try:
            content, _ = inc.data
        except UnauthenticatedError as refusal:
            self._refuse(inc.socket, refusal)
            inc.close()
            return None
        except Exception as error:  # sealed by a friend, but of a class that this process cannot import
            _log().error("control message cannot be read", error=f"{type(error).__name__}: {error}")
            self._acknowledge(inc.socket, session, ackDataErrPacket)
            inc.close()
            return None
        self._acknowledge(inc.socket, session, ackPacket)
        if content is None:  # only asks whether both have the same key
            inc.close()
            return None
        sender, message = content
        inc.fromAddress = sender
        self._processReceivedEnvelope(ReceiveEnvelope(sender, message), has_exclusive_flag=has_exclusive_flag)
        if not skipFinish:
            self._finishIncoming(inc, sender)
        return None

    @staticmethod
    def _acknowledge(connection: socket.socket, session: Session, answer: str) -> None:
        with contextlib.suppress(ConnectionError):  # the sender is gone; its message still counts
            connection.send(session.seal(pickle.dumps(answer)))

    def _refuse(self, connection: socket.socket, refusal: UnauthenticatedError) -> None:
        self.refused += 1
        now = time.monotonic()
        if now - self._refused_logged_at < 1.0:
            return
        self._refused_logged_at = now
        try:
            host, port = connection.getpeername()
        except OSError:
            host, port = "gone", 0
        _log().warning(
            "unauthenticated control input refused", peer=f"{host}:{port}", reason=str(refusal), refused=self.refused
        )


def _forget_child(manager: MultiProcReplicator, address: Any) -> None:
    """Forget one child that has ended; Thespian's own forgets with it those whose deaths it has not reported yet."""
    manager._child_procs = [
        info
        for info in getattr(manager, "_child_procs", [])
        if getattr(info, "childRealAddr", info.childAddr) != address or manager._checkChildLiveness(info)
    ]


def process_of(parent: Actor, child: Any) -> multiprocessing.process.BaseProcess:
    """The process of an actor that `parent` has just created: its pid, its exit code, and a `kill()` without races."""
    for info in reversed(parent._myRef._child_procs):
        if info.childAddr is child:
            return info.childProc  # type: ignore[no-any-return]
    raise AssertionError("not a child whose process this actor started")


def split_address(text: str) -> tuple[str, int]:
    """("127.0.0.1", 7401) of "127.0.0.1:7401"; UsageError for anything but one IPv4 address and a port."""
    host, _, port = text.rpartition(":")
    try:
        address = ipaddress.IPv4Address(host)
        number = int(port)
    except ValueError:
        address, number = ipaddress.IPv4Address(0), 0
    if address.is_unspecified or not 0 < number < 65536:
        raise UsageError(f"control address {text!r} is not an IPv4 address and a port: write, say, 127.0.0.1:7401")
    return host, number


def _actor_address(host: str, port: int) -> Any:
    return ActorAddress(TCPv4ActorAddress(host, port))


def _require_free(host: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            reason = {
                errno.EADDRINUSE: "is in use, by a node or another program: stop that, or choose another",
                errno.EADDRNOTAVAIL: "is not an address of this host: choose one that is",
            }.get(error.errno or 0, f"cannot be bound: {os.strerror(error.errno or 0)}")
            raise NodeError(f"control address {host}:{port} {reason}") from None


def _local_host_towards(host: str, port: int, key: bytes) -> str:
    """This host's address on the way to a node there, after making sure that it holds the same key."""
    place = f"{host}:{port}"
    session: Session | None = None
    try:
        with socket.create_connection((host, port), timeout=CONTROL_GREETING_S) as connection:
            session = Session(key, connection.getpeername(), accepted=False)
            greeting = Intake(session)
            while not session.met:
                _read_into(greeting, connection)
            connection.sendall(session.seal(pickle.dumps(None)))
            answer = Intake(session)
            while not answer.isDone():
                _read_into(answer, connection)
            answer.completed()
            return str(connection.getsockname()[0])
    except ConnectionRefusedError:
        raise NodeError(f"no node runs at {place}: start one with `actornet launch`") from None
    except (OSError, UnauthenticatedError) as error:
        if session is None:
            raise NodeError(f"no node can be reached at {place}: {error}") from None
        if session.met:
            raise NodeError(f"the node at {place} has another key: use the key_file of its deployment") from None
        raise NodeError(f"what answers at {place} is no node of this version: check the control address") from None


def _read_into(intake: Intake, connection: socket.socket) -> None:
    data = connection.recv(intake.remainingAmount())
    if not data:
        raise ConnectionResetError("closed by the other end")
    intake.addMore(data)
    if intake.isDone() and not intake.session.met:
        intake.completed()  # raises what is wrong with the greeting


def _log() -> Any:
    import structlog

    return structlog.get_logger("actornet.control")
