"""CPUs that are kept awake while packets come: asked of the kernel, and no longer than that."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from actornet.errors import UsageError
from actornet.node import cpu_latency
from actornet.node.cpu_latency import CpuLatency, strictest_us
from actornet.testing.pair import Name, Pair
from actornet.testing.traffic import UdpStream
from tests.processes import wait_until

HELD_US = 7
"""Nobody else asks for just so long."""


@pytest.mark.root
def test_a_request_holds_as_long_as_it_is_held() -> None:
    before = strictest_us()
    request = CpuLatency(HELD_US)
    assert strictest_us() == before
    request.hold(True)
    assert strictest_us() == min(before, HELD_US)
    request.hold(False)
    assert strictest_us() == before
    request.hold(True)
    request.close()
    assert strictest_us() == before


@pytest.mark.root
def test_a_request_ends_with_its_process() -> None:
    """kill -9 included."""
    before = strictest_us()
    code = (
        f"from actornet.node.cpu_latency import *; r = CpuLatency({HELD_US}); r.hold(True); print(flush=True); input()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        held = strictest_us()
        os.kill(holder.pid, signal.SIGKILL)
    assert (held, strictest_us()) == (min(before, HELD_US), before)


def test_a_host_that_takes_no_request_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cpu_latency, "DEVICE", tmp_path / "cpu_dma_latency")
    with pytest.raises(UsageError, match=r"`cpu_latency_us` = 5: .*cpu_dma_latency: no such file.*root"):
        CpuLatency(5)
    with pytest.raises(UsageError, match="`cpu_latency_us` = -1"):
        CpuLatency(-1)


@pytest.mark.root
def test_a_pair_keeps_cpus_awake_while_packets_come(tmp_path: Path) -> None:
    """Each node by itself: the primary dies, and the backup's request stands."""
    before = strictest_us()
    with Pair(tmp_path) as pair:
        pair.start("--cpu-latency-us", str(HELD_US))
        wait_until(lambda: strictest_us() == before)
        assert rests(pair, "a") and rests(pair, "b")
        with UdpStream(pair.lab):
            wait_until(lambda: not rests(pair, "b"))
            assert not rests(pair, "a") and strictest_us() == HELD_US
            pair.kill("a")
            pair.wait_takeover("b")
            assert not rests(pair, "b") and strictest_us() == HELD_US
        wait_until(lambda: strictest_us() == before)


def rests(pair: Pair, node: Name) -> bool:
    return bool(pair.worker(node, "owner-system")["status"]["rests"])
