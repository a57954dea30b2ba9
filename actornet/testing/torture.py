"""Failover and failback, again and again, under many open connections (needs root: it makes namespaces of its own).

    python -m actornet.testing.torture [--rounds 100] [--connections 1000] [--seed N]

Each round ends the primary by `kill -9` of all its processes or of one that it cannot live without, waits until the
backup has taken over, and launches the killed node again, with the log that it left, as the backup of the other. All the
while every connection sends a numbered message now and then and compares the echo, a transfer compares its bytes at the
end, iperf3 (where it is installed) sends at its rate, and a datagram per millisecond measures the outage. In the end both logs
are executed again.

The exit code is 1 if a connection was reset, closed or got a wrong byte, if iperf3 gave up, or if anything was to be replayed.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import re
import shutil
import signal
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

from actornet.replay import History, verify
from actornet.testing.netns import Lab
from actornet.testing.pair import Name, Pair
from actornet.testing.traffic import SERVER, TcpTransfer, UdpStream, allow_files

PORT = 9200
MESSAGE_BYTES = 16
PATIENCE_S = 20.0
PAUSE_S = (0.5, 2.0)
"""Between two messages of a connection."""

VICTIMS = ("all", "all", "owner-system", "node", "launcher")
"""Processes of a node; `node` is the supervisor. Any of them takes the whole node with it."""


class Connections:
    """TCP connections from client to server that stay open: each sends a number, awaits its echo, pauses, and so on.

    `failures` has what befell those that broke, by kind; `exchanges` counts the messages that came back right.
    """

    def __init__(self, lab: Lab, count: int, seed: int) -> None:
        allow_files(2 * count)
        self.count = count
        self.exchanges = 0
        self.failures: Counter[str] = Counter()
        self._chance = random.Random(seed)
        self._ended = False
        self._listener = lab.call("server", socket.create_server, (SERVER, PORT), backlog=count)
        self._sockets: list[socket.socket] = []
        self._served = threading.Thread(target=lambda: asyncio.run(self._serve()), name="echo", daemon=True)
        self._used = threading.Thread(target=lambda: asyncio.run(self._use()), name="connections", daemon=True)
        self._served.start()
        lab.call("client", self._connect)

    def __enter__(self) -> Self:
        self._used.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Every connection exchanges a last message."""
        self._ended = True
        self._used.join(2 * PATIENCE_S)
        self._served.join(PATIENCE_S)

    def _connect(self) -> None:
        for _ in range(self.count):
            self._sockets.append(socket.create_connection((SERVER, PORT), PATIENCE_S))

    async def _serve(self) -> None:
        async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                while data := await reader.read(4096):
                    writer.write(data)
                    await writer.drain()
            except (OSError, asyncio.CancelledError):  # the client counts it; or all is over
                pass
            finally:
                writer.close()

        async with await asyncio.start_server(echo, sock=self._listener):
            while self._used.is_alive() or not self._ended:
                await asyncio.sleep(0.2)

    async def _use(self) -> None:
        await asyncio.gather(*map(self._exchange, self._sockets))

    async def _exchange(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        reader, writer = await asyncio.open_connection(sock=sock)
        number, last = 0, False
        try:
            while not last:
                await self._pause()
                last = self._ended
                message = number.to_bytes(MESSAGE_BYTES, "big")
                writer.write(message)
                async with asyncio.timeout(PATIENCE_S):
                    echoed = await reader.readexactly(MESSAGE_BYTES)
                if echoed != message:
                    self.failures["wrong bytes"] += 1
                    return
                number += 1
                self.exchanges += 1
        except (OSError, EOFError) as error:  # TimeoutError is an OSError
            self.failures[type(error).__name__] += 1
        finally:
            writer.close()

    async def _pause(self) -> None:
        until = time.monotonic() + self._chance.uniform(*PAUSE_S)
        while time.monotonic() < until and not self._ended:
            await asyncio.sleep(0.1)


class Iperf:
    """iperf3 from client to server for as long as the block lasts. `alive`: it still gets something across."""

    PORT = 5201
    _SECOND = re.compile(r"sec +([0-9.]+) .?Bytes")

    def __init__(self, lab: Lab, output: Path, mbits: float) -> None:
        self._server = lab.serve("server", self.PORT, ["iperf3", "-s", "-p", str(self.PORT)])
        self._output = output
        argv = [
            "iperf3",
            "-c",
            SERVER,
            "-p",
            str(self.PORT),
            "-b",
            f"{mbits}M",
            "-t",
            "86400",
            "-i",
            "1",
            "--forceflush",
        ]
        with output.open("wb") as file:
            self._client = lab.popen("client", argv, stdout=file, stderr=file)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in (self._client, self._server):
            process.terminate()
            process.wait(PATIENCE_S)

    def alive(self) -> bool:
        """Whether bytes pass in one of the next seconds."""
        told = len(self._seconds())
        deadline = time.monotonic() + PATIENCE_S
        while self._client.poll() is None and time.monotonic() < deadline:
            if any(bytes_ > 0 for bytes_ in self._seconds()[told + 1 :]):  # the one after the second that had begun
                return True
            time.sleep(0.1)
        return False

    def _seconds(self) -> list[float]:
        return [float(bytes_) for bytes_ in self._SECOND.findall(self._output.read_text())]


class Round(msgspec.Struct):
    """One takeover: who was ended how, for how long no datagram passed, until when the backup counted again."""

    primary: Name
    victim: str
    outage_ms: float
    records_replayed: int
    protected_s: float


class Result(msgspec.Struct):
    rounds: list[Round]
    connections: int
    exchanges: int
    failures: dict[str, int]
    transfer_whole: bool
    iperf_alive: bool | None
    """In the end; None: it is not installed."""
    problems: list[str]
    """What executing a log again found wrong (G4, G8)."""

    @property
    def good(self) -> bool:
        replayed = sum(one.records_replayed for one in self.rounds)
        whole = self.transfer_whole and self.iperf_alive is not False
        return not self.failures and whole and not self.problems and not replayed


def torture(
    directory: Path,
    rounds: int,
    connections: int,
    seed: int,
    tell: Callable[[Round], Any] = lambda done: None,
    mbits: float = 10,
) -> Result:
    """Run so many rounds on a pair of its own, whose files are in `directory`."""
    chance = random.Random(seed)
    done: list[Round] = []
    with Pair(directory) as pair:
        pair.start()
        with (
            Connections(pair.lab, connections, seed) as held,
            TcpTransfer(pair.lab) as transfer,
            UdpStream(pair.lab) as stream,
            _iperf(pair.lab, directory / "iperf3", mbits) as iperf,
        ):
            for _ in range(rounds):
                time.sleep(chance.uniform(0.1, 0.6))
                done.append(_round(pair, stream, chance.choice(VICTIMS)))
                tell(done[-1])
            iperf_alive = iperf.alive() if iperf is not None else None
        whole = transfer.outcome()
        leader = pair.primary
        pair.stop(leader)
        other: Name = "b" if leader == "a" else "a"
        pair.wait_takeover(other)
        pair.stop(other)
        problems = [found for node in ("a", "b") if (found := _problem(pair.log(node))) is not None]
    return Result(done, connections, held.exchanges, dict(held.failures), whole, iperf_alive, problems)


def _iperf(lab: Lab, output: Path, mbits: float) -> AbstractContextManager[Iperf | None]:
    return Iperf(lab, output, mbits) if shutil.which("iperf3") else nullcontext()


def _round(pair: Pair, stream: UdpStream, victim: str) -> Round:
    old: Name = pair.primary
    new: Name = "b" if old == "a" else "a"
    if victim == "all":
        killed_ns = pair.kill(old)
    else:
        pid = pair.nodes[old].pid if victim == "launcher" else pair.process(old, victim)
        killed_ns = time.monotonic_ns()
        os.kill(pid, signal.SIGKILL)
        pair.nodes[old].wait(PATIENCE_S)
    taken = pair.wait_takeover(new)
    pair.begin(old, "backup")
    pair.wait_in_sync(old)
    protected_s = (time.monotonic_ns() - killed_ns) / 1e9
    return Round(old, victim, stream.outage_ms(killed_ns), taken["records_replayed"], protected_s)


def _problem(log: Path) -> str | None:
    with History(str(log)) as history:
        found = verify(history).problem
    return f"{log.name}: {found}" if found is not None else None


_IPERF = {True: "goes on", False: "GAVE UP", None: "not installed"}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m actornet.testing.torture",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--connections", type=int, default=1000)
    parser.add_argument("--mbits", type=float, default=10, help="of iperf3, 0: as fast as it can")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().getrandbits(32))
    options = parser.parse_args(arguments)
    print(f"seed {options.seed}: {options.rounds} rounds, {options.connections} connections")
    numbers = iter(range(1, options.rounds + 1))

    def tell(one: Round) -> None:
        print(
            f"{next(numbers):4} {one.primary} {one.victim:12} outage {one.outage_ms:7.2f} ms, "
            f"protected again after {one.protected_s:.2f} s",
            flush=True,
        )

    with tempfile.TemporaryDirectory() as directory:
        result = torture(
            Path(directory) / "pair", options.rounds, options.connections, options.seed, tell, options.mbits
        )
    outages = [one.outage_ms for one in result.rounds]
    print(
        f"outage {statistics.median(outages):.2f} ms median, {max(outages):.2f} worst; "
        f"{result.connections} connections, {result.exchanges} messages, failures: {result.failures or 'none'}; "
        f"transfer {'whole' if result.transfer_whole else 'BROKEN'}; iperf3: {_IPERF[result.iperf_alive]}; "
        f"logs: {result.problems or 'sound'}"
    )
    return 0 if result.good else 1


if __name__ == "__main__":
    sys.exit(main())
