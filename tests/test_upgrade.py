"""Other code of a network function, one node after the other, while traffic runs; live."""

from __future__ import annotations

from pathlib import Path

import pytest

from actornet.testing.pair import Pair
from actornet.testing.traffic import UdpStream
from tests.test_return import records_of
from tests.test_takeover import burst

pytestmark = pytest.mark.root

SOURCE = """
from actornet import DROP, FORWARD, FiveTuple, FlowActor, Owner, Packet, Struct, Verdict

class Seen(Struct):
    flows: int = 0

class Counter(Owner[Seen]):
    def count(self) -> int:
        self.state.flows += 1
        return self.state.flows

class Counted(FlowActor):
    counter = Counter.named("counter")
    number: int = 0

    async def on_open(self, packet: Packet) -> None:
        self.number = await self.counter.count()

    def on_packet(self, packet: Packet) -> Verdict:
        return FORWARD if self.number else DROP
"""
VERSIONS = {
    "old": SOURCE,
    "clearer": SOURCE.replace("self.state.flows += 1", "self.state.flows = self.state.flows + 1"),
    "later": SOURCE.replace("return self.state.flows", "return self.state.flows if self.state.flows < 150 else 0"),
    "other": SOURCE.replace("return self.state.flows", "return 2 * self.state.flows"),
}


@pytest.fixture
def code(tmp_path: Path) -> dict[str, dict[str, str]]:
    """An environment for each version of the code."""
    for name, source in VERSIONS.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "counted.py").write_text(source)
    return {name: {"PYTHONPATH": str(tmp_path / name)} for name in VERSIONS}


def test_a_rolling_upgrade(tmp_path: Path, code: dict[str, dict[str, str]]) -> None:
    """G4, G6: what repeats the log's decisions may follow the old code, and then lead; what does not, may not."""
    with Pair(tmp_path / "pair", "counted:Counted", "") as pair:
        pair.launch("a", "primary", environment=code["old"])
        pair.launch("b", "backup", environment=code["old"])
        pair.wait_in_sync("b")
        pair.lab.ip("server", "route add 10.0.0.0/24 via 203.0.113.1")
        with UdpStream(pair.lab) as stream:
            pair.lab.call("client", burst, 100)
            pair.stop("b")

            before = records_of(pair.log("b"))
            pair.begin("b", "backup", environment=code["other"])
            pair.wait_for(
                "b", r"this code, \w+, decides otherwise: divergence at LSN \d+: counter.count: expected reply"
            )
            assert pair.nodes["b"].wait(20) != 0
            assert records_of(pair.log("b")) == before

            pair.launch("b", "backup", environment=code["clearer"])
            pair.wait_in_sync("b")
            assert "other code wrote the log, and this decides the same" in pair.printed("b")
            pair.lab.call("client", burst, 100)
            pair.stop("a")
            assert pair.wait_takeover("b")["reason"] == "handover"
            pair.begin("a", "backup", environment=code["clearer"])
            pair.wait_in_sync("a")
            pair.lab.call("client", burst, 100)
        assert stream.received[-1][0] > stream.sent - 50, "the stream went on"
        pair.stop("b")
        pair.wait_takeover("a")
        pair.stop("a")


def test_other_code_that_decides_otherwise_later_ends(tmp_path: Path, code: dict[str, dict[str, str]]) -> None:
    """G4: that it repeated what was in its log was no promise; the first reply that differs is named."""
    with Pair(tmp_path / "pair", "counted:Counted", "") as pair:
        pair.launch("a", "primary", environment=code["old"])
        pair.launch("b", "backup", environment=code["old"])
        pair.wait_in_sync("b")
        pair.stop("b")
        pair.launch("b", "backup", environment=code["later"])
        pair.wait_in_sync("b")
        pair.lab.call("client", burst, 200)
        pair.wait_for(
            "b", r"this code is not the primary's, and decides otherwise: divergence at LSN \d+: counter.count"
        )
        assert pair.nodes["b"].wait(20) != 0
        assert pair.worker("a", "owner-system")["status"]["role"] == "primary"
        pair.stop("a")


def test_other_parameters(tmp_path: Path) -> None:
    """G6: too small a flow table is refused; another setting is one to be told of."""
    with Pair(tmp_path / "pair") as pair:
        pair.launch("a", "primary")
        pair.begin("b", "backup", "--flows-max", "16")
        pair.wait_for("b", r"refuses this backup: its cores hold 16 flow keys, this primary's 1048576")
        assert pair.nodes["b"].wait(20) != 0
        pair.launch("b", "backup", "--set", "udp_idle_s=20")
        said = pair.wait_for("b", r".*settings differ from the primary's.*")
        assert '"primary":{"udp_idle_s":300.0},"here":{"udp_idle_s":20.0}' in said
        pair.wait_in_sync("b")
        pair.stop("a")


def test_other_code_without_a_log_is_refused(tmp_path: Path, code: dict[str, dict[str, str]]) -> None:
    """G4: an empty log says nothing of a code; the primary refuses it, in a line that names both."""
    with Pair(tmp_path / "pair", "counted:Counted", "") as pair:
        pair.launch("a", "primary", environment=code["old"])
        pair.begin("b", "backup", environment=code["clearer"])
        pair.wait_for(
            "b", r"refuses this backup: it runs counted:Counted \(\w+\), this primary counted:Counted \(\w+\)"
        )
        assert pair.nodes["b"].wait(20) != 0
        pair.stop("a")
