"""The networks that live tests and the demonstration run in."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from actornet.errors import ActornetError
from actornet.testing.netns import NAMESPACES, Lab


def test_without_root_the_error_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(ActornetError, match="need root"), Lab.single():
        pass


def left_behind(lab: Lab) -> list[str]:
    return [name for name in lab.names.values() if (NAMESPACES / name).exists()]


@pytest.mark.root
class TestLab:
    @pytest.mark.parametrize("make", [Lab.single, Lab.nat_pair])
    def test_everything_goes_away_after_an_exception(self, make: Callable[[], Lab]) -> None:
        with pytest.raises(ZeroDivisionError), make() as lab:
            assert left_behind(lab) == list(lab.names.values())
            shell = lab.popen("client", ["sh", "-c", "sleep 60 & echo $!; wait"], stdout=subprocess.PIPE, text=True)
            child = int(shell.stdout.readline())
            shell.stdout.close()
            _ = 1 / 0
        assert left_behind(lab) == []
        assert shell.returncode is not None
        assert has_ended(child)

    def test_a_lab_that_cannot_be_made_leaves_nothing(self) -> None:
        lab = Lab([("x/eth0", "y/eth0")], {"y": ["link set eth9 up"]}, {})
        with pytest.raises(ActornetError, match="eth9"), lab:
            pass
        assert left_behind(lab) == []

    def test_sweep_removes_what_a_killed_process_left(self) -> None:
        program = (
            "import os; from actornet.testing.netns import Lab; lab = Lab.single().__enter__();"
            "print(*lab.names.values(), flush=True); os._exit(1)"
        )
        result = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, cwd=Path(__file__).parents[1]
        )
        with Lab.single() as lab:
            assert set(result.stdout.split()) <= set(Lab.sweep())
            assert len(left_behind(lab)) == 3, "a living process's lab stays"
        assert not any((NAMESPACES / name).exists() for name in result.stdout.split())

    def test_the_pairs_network_carries_frames_at_once_and_the_kernel_is_silent_in_the_boxes(self) -> None:
        with Lab.nat_pair() as lab:
            client = lab.call("client", raw_socket, "eth0")
            ears = {(node, name): lab.call(node, raw_socket, name) for node in "ab" for name in ("lan0", "wan0")}
            frame = b"\xff" * 6 + bytes.fromhex("02000000000188b5") + bytes(46)
            client.send(frame)
            time.sleep(0.02)
            heard = {end: drained(ear) for end, ear in ears.items()}
        assert heard == {("a", "lan0"): [frame], ("b", "lan0"): [frame], ("a", "wan0"): [], ("b", "wan0"): []}

    def test_a_mac_that_moves_is_followed_at_once(self) -> None:
        """As when the backup takes over the primary's virtual MAC."""
        with Lab.nat_pair() as lab:
            client, a, b = (
                lab.call(space, raw_socket, name) for space, name in (("client", "eth0"), ("a", "lan0"), ("b", "lan0"))
            )
            to_virtual, virtual = bytes.fromhex("02005e005301"), bytes.fromhex("02005e005301")
            for holder, other in ((a, b), (b, a)):
                holder.send(b"\xff" * 6 + virtual + b"\x88\xb5announce")
                time.sleep(0.005)
                drained(a), drained(b)
                client.send(to_virtual + bytes.fromhex("02000000000188b5") + b"to the primary")
                time.sleep(0.005)
                assert [len(drained(holder)), len(drained(other))] == [1, 0]

    def test_nodes_reach_each_other_and_commands_report_failure(self) -> None:
        with Lab.nat_pair() as lab:
            with lab.call("a", socket.create_server, ("10.9.0.1", 7400)) as listener:
                lab.call("b", socket.create_connection, ("10.9.0.1", 7400), 1.0).close()
                assert listener.accept()[1][0] == "10.9.0.2"
            assert "10.0.0.1" in lab.run("client", ["ip", "route"]).stdout
            with pytest.raises(ActornetError, match=r"false in a: exit code 1"):
                lab.run("a", ["false"])
            with pytest.raises(ActornetError, match=r"sleep 9 in a: not done after 0\.1 s"):
                lab.run("a", ["sleep", "9"], timeout_s=0.1)
            with pytest.raises(KeyError):
                lab.call("a", {}.__getitem__, "missing")


def raw_socket(interface: str) -> socket.socket:
    raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    raw.bind((interface, 3))
    raw.setblocking(False)
    return raw


def drained(raw: socket.socket) -> list[bytes]:
    frames = []
    while True:
        try:
            frame, (_, _, kind, _, _) = raw.recvfrom(2048)
        except BlockingIOError:
            return frames
        if kind != socket.PACKET_OUTGOING:
            frames.append(frame)


def has_ended(pid: int) -> bool:
    """Gone, or waiting to be reaped by whoever adopted it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True
