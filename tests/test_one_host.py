"""Both nodes of a pair on one host, at the same interfaces: no address moves, the survivor opens its sockets' gates."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Self

import pytest

from actornet.testing.netns import Lab
from actornet.testing.pair import Name, Pair
from actornet.testing.traffic import TcpTransfer, UdpStream
from tests.processes import wait_echoes
from tests.test_takeover import verify_log

pytestmark = pytest.mark.root


class OneHost(Pair):
    @staticmethod
    def _lab() -> Lab:
        return Lab.single()

    def __enter__(self) -> Self:
        super().__enter__()
        self.lab.names["a"] = self.lab.names["b"] = self.lab.names["box"]
        self.lab.ip("box", "addr add 10.9.0.1/32 dev lo", "addr add 10.9.0.2/32 dev lo")
        return self


def test_the_interfaces_are_shared(tmp_path: Path) -> None:
    """G6, G7: packets come to one node at a time; it fails over, and back, with nothing to replay."""
    with OneHost(tmp_path / "pair") as pair:
        pair.start()
        with UdpStream(pair.lab) as stream, TcpTransfer(pair.lab) as transfer:
            time.sleep(0.3)
            takeovers: tuple[tuple[Name, Name], ...] = (("a", "b"), ("b", "a"))
            for old, new in takeovers:
                killed_ns = pair.kill(old)
                assert pair.wait_takeover(new)["records_replayed"] == 0
                time.sleep(0.5)
                assert stream.outage_ms(killed_ns) < 1000, f"{old} to {new}"
                assert stream.received[-1][1] > time.monotonic_ns() - 300_000_000
                if old == "a":
                    pair.begin("a", "backup")
                    pair.wait_in_sync("a")
            numbers = [number for number, _ in stream.received]
            assert len(numbers) == len(set(numbers)), "a datagram was forwarded twice"
        assert transfer.outcome()
        pair.stop("a")
    verify_log(pair, "a")
    verify_log(pair, "b")


def test_an_xdp_interface_is_one_nodes(tmp_path: Path) -> None:
    """The kernel gives a queue to one socket: the second node says so and ends, and the first goes on."""
    with OneHost(tmp_path / "pair", driver="af_xdp") as pair:
        pair.launch("a", "primary")
        with UdpStream(pair.lab) as stream:
            pair.begin("b", "backup")
            assert pair.nodes["b"].wait(15) != 0
            assert "Two nodes share an interface by af_packet only" in pair.printed("b")
            wait_echoes(stream, 100)
