"""The traffic that failovers are measured with tells dead from alive, on a wire that is cut."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from actornet.errors import ActornetError
from actornet.testing.netns import Lab
from actornet.testing.torture import Connections
from actornet.testing.traffic import SECOND, Opens, TcpTransfer, UdpStream
from bench.failover_peers import outcome
from tests.processes import wait_echoes

pytestmark = pytest.mark.root


@pytest.fixture
def wire() -> Iterator[Lab]:
    """Client and server with nothing between them."""
    up = ["link set eth0 up"]
    addresses = {
        "client": ["addr add 10.0.0.2/32 dev eth0", "route add default dev eth0"],
        "server": ["addr add 203.0.113.254/32 dev eth0", "route add default dev eth0"],
    }
    with Lab([("client/eth0", "server/eth0")], {"client": up, "server": up}, addresses) as lab:
        yield lab


def test_a_stream_that_does_not_come_back_is_an_outage_to_the_end(wire: Lab) -> None:
    with UdpStream(wire) as stream:
        wait_echoes(stream)
        wire.ip("server", "link set eth0 down")
        cut_ns = time.monotonic_ns()
        time.sleep(0.3)
    last_ns = stream.received[-1][1]
    until_ns = cut_ns + SECOND // 4
    assert stream.outage_ms(cut_ns, until_ns) == (until_ns - last_ns) / 1e6 - 1 > 200, "from the last echo on"


def test_a_stream_tells_where_echoes_are_missing_or_late(wire: Lab) -> None:
    with UdpStream(wire) as stream:
        wait_echoes(stream)
    assert stream.jumps == []
    stream.received = [(number, 0) for number in (1, 2, 5, 4)]
    assert stream.jumps == [(-1, 1), (2, 5), (5, 4)]


def test_a_transfer_that_stands_still_is_an_outage_to_the_end(wire: Lab) -> None:
    with TcpTransfer(wire) as transfer:
        time.sleep(0.2)
        wire.ip("server", "link set eth0 down")
        cut_ns = time.monotonic_ns()
        time.sleep(0.3)
        until_ns = time.monotonic_ns()
        wire.ip("server", "link set eth0 up", "route add default dev eth0")
    assert transfer.outcome()
    assert 200 < transfer.outage_ms(cut_ns, until_ns) <= (until_ns - cut_ns) / 1e6


def test_connections_that_return_nothing_are_lost(wire: Lab) -> None:
    with Opens(wire) as opens:
        time.sleep(0.3)
        opens.end()
        assert opens.lost() == 0
        assert len(opens.opened) > 10
        wire.ip("server", "link set eth0 down")
        assert opens.lost(patience_s=0.3) == len(opens.opened)


def test_without_traffic_a_failover_is_no_success(wire: Lab) -> None:
    with Connections(wire, 5, seed=1) as held, UdpStream(wire) as stream, TcpTransfer(wire) as transfer:
        time.sleep(1.2)
        passed = held.exchanges, time.monotonic_ns()
        wire.ip("server", "link set eth0 down")
        time.sleep(0.3)
        silent_ns = time.monotonic_ns()
        wire.ip("server", "link set eth0 up", "route add default dev eth0")
    assert outcome(stream, transfer, held, *passed, silent_ns)["for good"]
    with pytest.raises(ActornetError, match="traffic did not pass before the failure"):
        outcome(stream, transfer, held, passed[0], silent_ns, silent_ns + SECOND)
    with pytest.raises(ActornetError, match="0 messages on 5 connections"):
        outcome(stream, transfer, held, 0, passed[1], silent_ns)
