"""Small networks made of Linux network namespaces, for tests of live ports and for the demonstration.

    client eth0 ── lan0 box wan0 ── eth0 server                 Lab.single()

                   ┌ lan0 a wan0 ┐
    client eth0 ─ lan   link0    wan ─ eth0 server              Lab.nat_pair()
                   └ lan0 b wan0 ┘

`lan` and `wan` are bridges in a namespace of their own, and `link0` joins `a` and `b` directly. The kernel has no
address on the boxes' `lan0` and `wan0` and says nothing there: these belong to network functions.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any, ParamSpec, Self, TypeVar

from actornet.errors import ActornetError

P = ParamSpec("P")
T = TypeVar("T")

NAMESPACES = Path("/run/netns")
NAME = re.compile(r"an(\d+)-\d+-[a-z]+")
"""Process that made the namespace, number of its lab, name in the lab."""

CLONE_NEWNET = 0x40000000
SIOCGIFFLAGS, IFF_RUNNING = 0x8913, 0x40
LINKS_S = 2.0
END_S = 2.0
"""How long processes have to end after SIGTERM."""


class Lab:
    """Namespaces, interfaces and processes that all go away when the `with` block ends, however it ends.

    `wires` are pairs of ends, each `namespace/interface`; `interfaces` and `addresses` are `ip` commands for a
    namespace, before and after the wires carry frames. `queues` is how many RX and TX queues each end has; by default it
    has one, and may be given as many as there are CPUs. Raises ActornetError if not root or without `ip`.
    """

    _numbers = count(1)

    def __init__(
        self,
        wires: Sequence[tuple[str, str]],
        interfaces: Mapping[str, Sequence[str]],
        addresses: Mapping[str, Sequence[str]],
        queues: int | None = None,
    ) -> None:
        number = next(self._numbers)
        self._ends = [end.split("/") for wire in wires for end in wire]
        self._interfaces = interfaces
        self._addresses = addresses
        self._queues = f" numrxqueues {queues} numtxqueues {queues}" if queues is not None else ""
        self._processes: list[subprocess.Popen[Any]] = []
        self.names = {space: f"an{os.getpid()}-{number}-{space}" for space, _ in self._ends}
        """Of the namespaces, by their name within the lab."""

    @classmethod
    def single(
        cls,
        client: str = "10.0.0.2/24",
        server: str = "203.0.113.254/24",
        gateway: str | None = "10.0.0.1",
        queues: int | None = None,
    ) -> Self:
        """`client` and `server`, each with an `eth0` that leads to `lan0` and `wan0` of `box`.

        With the addresses in one network and no `gateway`, a box that forwards frames as they are joins the two.
        """
        return cls(
            [("client/eth0", "box/lan0"), ("server/eth0", "box/wan0")],
            {"client": _up("eth0"), "server": _up("eth0"), "box": _up("lan0", "wan0", options="arp off")},
            {"client": _address("eth0", client, gateway), "server": _address("eth0", server)},
            queues,
        )

    @classmethod
    def nat_pair(cls) -> Self:
        """`client` 10.0.0.2/24 with default route 10.0.0.1, `server` 203.0.113.254/24, and two boxes between them.

        Each of `a` and `b` has `lan0`, `wan0` and `link0` (10.9.0.1/24 and 10.9.0.2/24).
        """
        return cls._nat("ab", [("a/link0", "b/link0")], [])

    @classmethod
    def nat_trio(cls) -> Self:
        """As `nat_pair`, with a third box `c` (10.9.0.3/24); a bridge `peers` joins the three."""
        links = [(f"{box}/link0", f"switch/{box}-link") for box in "abc"]
        bridge = ["link add peers type bridge stp_state 0 forward_delay 0 mcast_snooping 0", *_up("peers")]
        return cls._nat("abc", links, [*bridge, *_up("a-link", "b-link", "c-link", options="master peers")])

    @classmethod
    def _nat(cls, boxes: str, links: list[tuple[str, str]], linked: list[str]) -> Self:
        bridge = "type bridge stp_state 0 forward_delay 0 mcast_snooping 0"
        node = [*_up("lan0", "wan0", options="arp off"), *_up("link0")]
        sides = [(f"{box}/{side}0", f"switch/{box}-{side}") for box in boxes for side in ("lan", "wan")]
        return cls(
            [("client/eth0", "switch/client"), ("server/eth0", "switch/server"), *sides, *links],
            {
                "switch": [
                    f"link add lan {bridge}",
                    f"link add wan {bridge}",
                    *_up("lan", "wan"),
                    *_up("client", *(f"{box}-lan" for box in boxes), options="master lan"),
                    *_up("server", *(f"{box}-wan" for box in boxes), options="master wan"),
                    *linked,
                ],
                "client": _up("eth0"),
                "server": _up("eth0"),
                **dict.fromkeys(boxes, node),
            },
            {
                "client": _address("eth0", "10.0.0.2/24", "10.0.0.1"),
                "server": _address("eth0", "203.0.113.254/24"),
                **{box: _address("link0", f"10.9.0.{host}/24") for host, box in enumerate(boxes, 1)},
            },
        )

    def __enter__(self) -> Self:
        if os.geteuid() != 0:
            raise ActornetError("network namespaces need root; run this as root, e.g. with sudo")
        if shutil.which("ip") is None:
            raise ActornetError("network namespaces need `ip`; install iproute2")
        try:
            _ip([f"netns add {name}" for name in self.names.values()])
            # Different numbers for the ends of a wire: if they are equal the kernel takes a second to notice its link.
            ends = [
                f"{name} netns {self.names[space]} index {i}{self._queues}"
                for i, (space, name) in enumerate(self._ends, 10)
            ]
            _ip([f"link add {end} type veth peer {other}" for end, other in zip(ends[::2], ends[1::2], strict=True)])
            for space in self.names:
                self.ip(space, "link set lo up", *self._interfaces.get(space, ()))
            for space in self.names:
                self.call(space, _await_links, [name for where, name in self._ends if where == space])
            # This waits for the kernel's lock too, so that all that the links' coming up sets off is done.
            for space, commands in self._addresses.items():
                self.ip(space, *commands)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the lab's processes and remove its namespaces; idempotent."""
        _end_processes(self._processes)
        self._processes.clear()
        _remove(self.names.values())

    @classmethod
    def sweep(cls) -> list[str]:
        """Remove what labs of processes that are no more have left behind; returns the namespaces' names."""
        present = [path.name for path in NAMESPACES.iterdir()] if NAMESPACES.is_dir() else []
        left = [
            name for name in present if (match := NAME.fullmatch(name)) and not Path("/proc", match.group(1)).exists()
        ]
        _remove(left)
        return left

    # -- working in it ------------------------------------------------------------------------------------------------

    def run(
        self, space: str, argv: Sequence[str], *, timeout_s: float = 10.0, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in a namespace to its end, with its output as text.

        Raises ActornetError with what it printed if it fails (unless `check` is False) or takes too long.
        """
        process = self.popen(space, argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            output, errors = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            _end_processes([process])
            raise ActornetError(f"{' '.join(argv)} in {space}: not done after {timeout_s:g} s") from None
        finally:
            self._processes.remove(process)
        if check and process.returncode:
            raise ActornetError(f"{' '.join(argv)} in {space}: exit code {process.returncode}: {errors or output}")
        return subprocess.CompletedProcess(argv, process.returncode, output, errors)

    def popen(self, space: str, argv: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        """Start a command in a namespace, under the pid that is returned; it ends with the lab at the latest."""
        process = subprocess.Popen(["ip", "netns", "exec", self.names[space], *argv], **options)
        self._processes.append(process)
        return process

    def serve(self, space: str, port: int, argv: Sequence[str], *, timeout_s: float = 15.0) -> subprocess.Popen[Any]:
        """Start a server, which prints to nowhere, and wait until something listens at this TCP port in its namespace."""
        server = self.popen(space, argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        end = time.monotonic() + timeout_s
        while not self.call(space, _listens, port):
            if server.poll() is not None or time.monotonic() > end:
                raise ActornetError(f"{' '.join(argv)} in {space}: does not listen at port {port}")
            time.sleep(0.01)
        return server

    def call(self, space: str, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a function in a thread that is in the namespace; sockets that it opens stay there."""
        results: list[T] = []
        errors: list[BaseException] = []

        def inside() -> None:
            try:
                _enter(NAMESPACES / self.names[space])
                results.append(function(*args, **kwargs))
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=inside, name=f"lab {space}")
        thread.start()
        thread.join()
        if errors:
            raise errors[0]
        return results[0]

    def ip(self, space: str, *commands: str) -> None:
        """Carry out `ip` commands, such as `link set lan0 down`, in a namespace."""
        _ip(commands, "-n", self.names[space])


def _address(interface: str, address: str, gateway: str | None = None) -> list[str]:
    commands = [f"addr add {address} dev {interface}"]
    return [*commands, f"route add default via {gateway}"] if gateway else commands


def _up(*interfaces: str, options: str = "") -> list[str]:
    """Without IPv6 link-local addresses, so without router solicitation and duplicate address detection."""
    return [
        command
        for interface in interfaces
        for command in (f"link set {interface} {options} addrgenmode none", f"link set {interface} up")
    ]


def _await_links(interfaces: Iterable[str]) -> None:
    """Wait until these interfaces of the thread's namespace carry frames: until then what they send is lost."""
    deadline = time.monotonic() + LINKS_S
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        for interface in interfaces:
            while True:
                request = fcntl.ioctl(any_socket, SIOCGIFFLAGS, struct.pack("16s24x", interface.encode()))
                if struct.unpack("16xH22x", request)[0] & IFF_RUNNING:
                    break
                if time.monotonic() > deadline:
                    raise ActornetError(f"interface {interface} has no link after {LINKS_S:g} s")
                time.sleep(0.001)


def _ip(commands: Iterable[str], *options: str) -> None:
    """Many `ip` commands by one process. Raises ActornetError with its message."""
    try:
        subprocess.run(
            ["ip", *options, "-batch", "-"], input="\n".join(commands), text=True, check=True, capture_output=True
        )
    except subprocess.CalledProcessError as error:
        raise ActornetError(f"ip: {error.stderr.strip()}") from None


def _listens(port: int) -> bool:
    """Whether a TCP socket of this thread's namespace listens at the port."""
    lines = Path("/proc/thread-self/net/tcp").read_text() + Path("/proc/thread-self/net/tcp6").read_text()
    return any(f":{port:04X} " in line and " 0A " in line for line in lines.splitlines())


def _enter(namespace: Path) -> None:
    """Move this thread into the namespace."""
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = os.open(namespace, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if libc.setns(descriptor, CLONE_NEWNET) != 0:
            number = ctypes.get_errno()
            raise ActornetError(f"cannot enter {namespace.name}: {os.strerror(number)}")
    finally:
        os.close(descriptor)


def _end_processes(processes: Sequence[subprocess.Popen[Any]]) -> None:
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + END_S
    for process in processes:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _inhabitants(names: set[str]) -> Iterator[int]:
    """Processes in the namespaces, such as children of a command that was ended."""
    inodes = set()
    for name in names:
        with suppress(FileNotFoundError):
            inodes.add((NAMESPACES / name).stat().st_ino)
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and int(process.name) != os.getpid():
            with suppress(OSError):
                if (process / "ns/net").stat().st_ino in inodes:
                    yield int(process.name)


def _remove(names: Iterable[str]) -> None:
    present = {name for name in names if (NAMESPACES / name).exists()}
    if not present:
        return
    for pid in _inhabitants(present):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    _ip([f"netns del {name}" for name in present])
