"""The node's actor system: what a stranger can do to it (nothing) and what outlives it (nothing)."""

import multiprocessing
import os
import pickle
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import descendants, free_port, is_alive, wait_gone, wait_until
from thespian.actors import Actor, ActorAddress, ActorSystemMessage, ChildActorExited, Thespian_StatusReq
from thespian.system.transport.IPBase import TCPv4ActorAddress

from actornet.errors import NodeError, UsageError
from actornet.limits import CONTROL_STRANGERS_MAX, MESSAGE_BYTES_MAX
from actornet.node.seal import Intake, Session, UnauthenticatedError
from actornet.node.thespian_base import NodeSystem, process_of, split_address

KEY = b"a deployment's key, 32 bytes long"


class Echo(Actor):
    """Answers, creates children, and reports how its last child ended."""

    child = process = asker = None

    def receiveMessage(self, message, sender):
        match message:
            case "pid":
                self.send(sender, os.getpid())
            case "create" | "create a stillborn":
                self.child = self.createActor(Echo if message == "create" else Stillborn)
                self.process = process_of(self, self.child)
                self.asker = sender
                self.send(sender, self.process.pid)
            case "child":
                self.send(sender, self.child)
            case ("send to", address):
                self.send(address, "hello")
            case ChildActorExited():
                self.process.join(1)
                self.send(self.asker, ("exited", message.childAddress == self.child, self.process.exitcode))
            case ActorSystemMessage():
                pass
            case _:
                self.send(sender, ("echo", message))


class Twins(Actor):
    """Creates two children, and kills the second while it handles the death of the first."""

    def receiveMessage(self, message, sender):
        if message == "create":
            self.asker = sender
            self.processes = [process_of(self, self.createActor(Echo)) for _ in range(2)]
            self.send(sender, self.processes[0].pid)
        elif isinstance(message, ChildActorExited):
            self.processes[1].kill()
            self.processes[1].join(1)
            self.send(self.asker, "exited")


class Stillborn(Actor):
    def __init__(self):
        os._exit(3)


class Bomb:
    """Unpickling it creates a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture
def control() -> str:
    return f"127.0.0.1:{free_port()}"


@pytest.fixture
def system(control: str) -> Iterator[NodeSystem]:
    system = NodeSystem(control, KEY)
    before = descendants(os.getpid())
    yield system
    system.shutdown()
    assert not any(map(is_alive, before)), "a process outlived its system's shutdown"


def port_of(address) -> int:
    return address.addressDetails.sockname[1]


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=3)


def sealed(connection: socket.socket, key: bytes, *payloads: bytes) -> bytes:
    """What a connector that has `key` sends on a fresh connection."""
    session = Session(key, connection.getpeername(), accepted=False)
    greeting = Intake(session)
    while not session.met:
        greeting.addMore(connection.recv(greeting.remainingAmount()))
    return b"".join(map(session.seal, payloads))


def is_closed(connection: socket.socket) -> bool:
    """Whether the other end closes without a further byte."""
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


def test_actors_answer_and_listen_on_the_control_address_only(system, control):
    """G10: the control plane binds loopback by default."""
    actor = system.createActor(Echo)
    assert system.ask(actor, "hello", 3) == ("echo", "hello")
    system.ask(actor, "create", 3)
    system.ask(system.ask(actor, "child", 3), "pid", 3)
    inodes = set()
    for pid in descendants(os.getpid()):
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            inodes.add(os.readlink(entry).removeprefix("socket:[").removesuffix("]"))
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    listeners = {fields[1] for fields in lines if fields[3] == "0A" and fields[9] in inodes}
    assert len(listeners) >= 4  # admin, logger, two actors
    assert {listener.split(":")[0] for listener in listeners} == {"0100007F"}


def test_strangers_run_nothing_and_stop_nothing(system, control, tmp_path, capsys):
    """G10: what is not sealed with the key is never unpickled, in the admin as in an actor."""
    actor = system.createActor(Echo)
    bomb = pickle.dumps((None, Bomb(tmp_path / "exploded")))
    pickle.loads(bomb)
    assert (tmp_path / "exploded").exists()
    (tmp_path / "exploded").unlink()
    for port in (split_address(control)[1], port_of(actor)):
        for attack in (
            b"%d>" % len(bomb) + bomb,  # Thespian's own framing
            os.urandom(4096),
            b"\x00" * 64,
        ):
            with connect(port) as connection:
                connection.sendall(attack)
                connection.recv(1024)
                assert is_closed(connection)
        with connect(port) as connection:  # the right protocol, the wrong key
            connection.sendall(sealed(connection, b"another key" * 3, bomb))
            assert is_closed(connection)
        with connect(port) as connection:  # the right greeting, then a frame that would fill the memory
            connection.sendall(sealed(connection, KEY) + Session(KEY, ("", 0), accepted=False).greeting + b"\xff" * 64)
            assert is_closed(connection)
        connect(port).close()
    assert not (tmp_path / "exploded").exists()
    assert system.ask(actor, "still there", 3) == ("echo", "still there")
    status = system.ask(actor, Thespian_StatusReq(), 3)
    assert status.miscKeyVals["control.refused"] == 5
    with connect(port_of(actor)) as connection:  # the same frame under the right key would have gone off
        connection.sendall(sealed(connection, KEY, bomb))
        wait_until((tmp_path / "exploded").exists)


def test_an_answer_is_authenticated_too(system, tmp_path):
    """G10: whoever took over a dead actor's port cannot run code in those who still send there."""
    actor = system.createActor(Echo)
    bomb = pickle.dumps(Bomb(tmp_path / "exploded"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        for session in (None, Session(b"another key" * 3, ("127.0.0.1", port), accepted=True)):
            system.tell(actor, ("send to", ActorAddress(TCPv4ActorAddress("127.0.0.1", port))))
            connection, _ = listener.accept()
            connection.sendall(session.greeting if session else b"%d>" % len(bomb) + bomb)
            if session:
                session.meet(connection.recv(len(session.greeting)))
                connection.sendall(session.seal(bomb))
            connection.close()
            assert system.ask(actor, "still there", 3) == ("echo", "still there")
            actor = system.createActor(Echo)  # the first one waits before it sends there again
    assert not (tmp_path / "exploded").exists()


def test_wrong_key_cannot_ask_for_the_status(system, control):
    """G10: neither by the client nor by hand."""
    with pytest.raises(NodeError, match="has another key: use the key_file"):
        NodeSystem(control, b"another key" * 3, join=True)
    request = pickle.dumps((ActorAddress(TCPv4ActorAddress("127.0.0.1", 1)), Thespian_StatusReq()))
    with connect(split_address(control)[1]) as connection:
        connection.sendall(sealed(connection, b"another key" * 3, request))
        assert is_closed(connection)
    client = NodeSystem(control, KEY, join=True)
    admin = client._systemBase.adminAddr
    status = client.ask(admin, Thespian_StatusReq(), 3)
    assert status.miscKeyVals["control.refused"] == 2
    assert KEY not in pickle.dumps(status)
    client.leave()


def test_captured_messages_are_worthless(system):
    """G10: replayed to the same process or passed on to another one, they are refused."""
    first, second = system.createActor(Echo), system.createActor(Echo)
    hello = pickle.dumps(None)
    with connect(port_of(first)) as connection:
        captured = sealed(connection, KEY, hello)
        connection.sendall(captured)
        assert connection.recv(4)  # acknowledged
    for actor in (first, second):
        with connect(port_of(actor)) as connection:
            sealed(connection, KEY)  # takes the greeting
            connection.sendall(captured)
            assert is_closed(connection)
    with connect(port_of(second)) as far, socket.create_server(("127.0.0.1", 0)) as relay:
        with connect(relay.getsockname()[1]) as victim:  # who believes that it speaks to the relay's address
            near, _ = relay.accept()
            near.sendall(far.recv(1024))
            far.sendall(sealed(victim, KEY, hello))
            assert is_closed(far)
            near.close()


@pytest.mark.parametrize("tamper", ["flip", "repeat", "reflect", "drop"])
def test_a_session_takes_each_frame_once_in_its_place(tamper):
    """G10: the sessions of both ends, without sockets."""
    connector = Session(KEY, ("127.0.0.1", 1), accepted=False)
    acceptor = Session(KEY, ("127.0.0.1", 1), accepted=True)
    connector.meet(acceptor.greeting)
    acceptor.meet(connector.greeting)
    frames = [connector.seal(b"first").removeprefix(connector.greeting), connector.seal(b"second")]
    if tamper != "drop":
        assert acceptor.open(frames[0][4:]) == b"first"
    if tamper == "reflect":
        with pytest.raises(UnauthenticatedError):
            connector.open(frames[0][4:])
        return
    body = {"flip": frames[1][4:-1] + b"\0", "repeat": frames[0][4:], "drop": frames[1][4:]}[tamper]
    with pytest.raises(UnauthenticatedError):
        acceptor.open(body)


def test_an_oversized_frame_is_refused_by_its_length():
    session = Session(KEY, ("127.0.0.1", 1), accepted=True)
    session.meet(Session(KEY, ("127.0.0.1", 1), accepted=False).greeting)
    intake = Intake(session)
    intake.addMore((MESSAGE_BYTES_MAX + 33).to_bytes(4, "big"))
    assert intake.isDone()
    with pytest.raises(UnauthenticatedError, match="a frame of"):
        intake.completed()


def test_idle_strangers_are_bounded(system):
    actor = system.createActor(Echo)
    strangers = [connect(port_of(actor)) for _ in range(CONTROL_STRANGERS_MAX + 8)]
    for stranger in strangers:
        stranger.recv(1024)
    assert system.ask(actor, "still there", 3) == ("echo", "still there")
    assert is_closed(strangers[0])
    for stranger in strangers:
        stranger.close()


def test_errors_say_what_to_do(system, control):
    with pytest.raises(NodeError, match=f"{control} is in use, by a node or another program"):
        NodeSystem(control, KEY)
    with pytest.raises(NodeError, match="is not an address of this host"):
        NodeSystem(f"192.0.2.1:{free_port()}", KEY)
    with pytest.raises(NodeError, match=r"no node runs at .* start one with `actornet launch`"):
        NodeSystem(f"127.0.0.1:{free_port()}", KEY, join=True)
    with socket.create_server(("127.0.0.1", 0)) as other:
        client = multiprocessing.get_context("fork").Process(target=_greet_like_another_program, args=(other,))
        client.start()
        with pytest.raises(NodeError, match="is no node of this version"):
            NodeSystem(f"127.0.0.1:{other.getsockname()[1]}", KEY, join=True)
        client.join()
    for wrong in ("7401", "0.0.0.0:7401", "localhost:7401", "127.0.0.1:0", "127.0.0.1:x"):
        with pytest.raises(UsageError, match=r"write, say, 127\.0\.0\.1:7401"):
            NodeSystem(wrong, KEY)


def _greet_like_another_program(listener):
    connection, _ = listener.accept()
    connection.sendall(b"SSH-2.0-OpenSSH_9.2p1 Debian-2+deb12u3, or something as long\r\n")
    connection.close()


@pytest.mark.parametrize("crash", ["SIGSEGV", "SIGBUS", "SIGFPE", "SIGILL", "SIGABRT", "SIGKILL"])
def test_a_crash_ends_the_process_and_the_parent_hears_of_it(system, crash):
    actor = system.createActor(Echo)
    pid = system.ask(actor, "create", 3)
    child = system.ask(actor, "child", 3)
    assert system.ask(child, "pid", 3) == pid
    number = getattr(signal, crash)
    os.kill(pid, number)
    assert system.listen(3) == ("exited", True, -number)


def test_a_child_that_dies_before_it_reports_is_noticed(system):
    actor = system.createActor(Echo)
    system.ask(actor, "create a stillborn", 3)
    assert system.listen(3) == ("exited", True, 3)


def test_no_death_is_missed_while_another_is_handled(system):
    twins = system.createActor(Twins)
    os.kill(system.ask(twins, "create", 3), signal.SIGKILL)
    assert system.listen(3) == "exited"
    assert system.listen(3) == "exited"


def launch(control: str, die_with_launcher: bool, pids: "multiprocessing.Queue[dict[str, int]]") -> None:
    """A launcher's process with a system of three levels of actors below it."""
    system = NodeSystem(control, KEY, die_with_launcher=die_with_launcher)
    parent = system.createActor(Echo)
    family = {"admin": system._systemBase.admin.pid, "parent": system.ask(parent, "pid", 3)}
    family["child"] = system.ask(parent, "create", 3)
    family["grandchild"] = system.ask(system.ask(parent, "child", 3), "create", 3)
    pids.put(family)
    signal.pause()


@pytest.mark.parametrize("victim", ["launcher", "admin", "parent", "child"])
def test_no_process_outlives_the_one_above_it(control, victim):
    """G10: SIGKILL leaves no orphan, whomever it hits."""
    context = multiprocessing.get_context("fork")
    pids = context.Queue()
    launcher = context.Process(target=launch, args=(control, True, pids))
    launcher.start()
    try:
        family = {"launcher": launcher.pid} | pids.get(timeout=5)
        below = descendants(family[victim])
        assert {"launcher": 5, "admin": 4, "parent": 2, "child": 1}[victim] == len(below)
        os.kill(family[victim], signal.SIGKILL)
        wait_gone(below | {family[victim]})
        above = {"launcher": [], "admin": ["launcher"], "parent": ["launcher", "admin"]}.get(victim, ["parent"])
        assert all(is_alive(family[name]) for name in above)
        if victim == "launcher":  # the port is free again at once
            NodeSystem(control, KEY).shutdown()
    finally:
        below = descendants(launcher.pid)
        launcher.kill()
        launcher.join()
        wait_gone(below)


def test_a_system_may_outlive_its_launcher_when_asked(control):
    context = multiprocessing.get_context("fork")
    pids = context.Queue()
    launcher = context.Process(target=launch, args=(control, False, pids))
    launcher.start()
    family = pids.get(timeout=5)
    launcher.kill()
    launcher.join()
    client = NodeSystem(control, KEY, join=True)
    assert all(map(is_alive, family.values()))
    client.shutdown()
    wait_gone(set(family.values()))
