"""Exactly once (G5), live: what becomes of asks of which a flow keeps nothing when another node takes over."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest

from actornet.log.record import FlowBody, decode
from actornet.log.store import Log
from actornet.testing.pair import Pair
from actornet.testing.traffic import SERVER, udp_socket
from tests.processes import wait_until
from tests.test_takeover import verify_log


def saved(pair: Pair) -> list[int]:
    """How often each flow had asked, by its last record in the backup's log."""
    with Log(pair.log("b"), readonly=True) as log:
        bodies = [decode(data, lsn).body for lsn, data in log.scan()]
    return list({body.flow: body.asks for body in bodies if isinstance(body, FlowBody)}.values())


@pytest.mark.root
@pytest.mark.parametrize("end", ["kill", "terminate"])
def test_no_packet_is_given_an_earlier_ones_number(tmp_path: Path, end: str) -> None:
    """G5: that its handler had ended is in the log by then: a moment later, or as the node is stopped."""
    with Pair(tmp_path / "pair", "tests.metered_node:Metered", settings="") as pair, ExitStack() as stack:
        pair.start()
        clients = [stack.enter_context(pair.lab.call("client", udp_socket, "10.0.0.2")) for _ in range(5)]
        numbers = []

        def ask() -> None:
            for client in clients:
                client.settimeout(5)
                client.sendto(b"which?", (SERVER, 9000))
                numbers.append(int(client.recv(64)))

        for _ in range(3):
            ask()
        if end == "kill":
            wait_until(lambda: saved(pair) == [3] * 5)
            pair.kill("a")
        else:
            pair.nodes["a"].terminate()
        pair.wait_takeover("b")
        for _ in range(2):
            ask()
        assert numbers == list(range(1, 26))
        pair.stop("b")
        verify_log(pair, "b")
