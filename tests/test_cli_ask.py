"""`actornet ask`: what a person types becomes an owner's message, which holds wherever the log does."""

from __future__ import annotations

import socket
import struct
import sys
import time
from pathlib import Path

import pytest

from actornet.cli.main import main
from actornet.errors import UsageError
from actornet.testing.pair import Name, Pair
from actornet.testing.traffic import SERVER, udp_socket
from tests.marked_node import Policy
from tests.test_takeover import verify_log

PORT = 5300
FILE = """\
nf = "tests.marked_node:Marked"
key_file = "edge.key"
[ports.lan]
interface = "lan0"
[primary]
log = "log"
link = "127.0.0.1:7479"
control = "127.0.0.1:7478"
"""


@pytest.mark.parametrize(
    ("texts", "args"),
    [
        (["46"], [46, None]),
        (["46", "null"], [46, None]),
        (["46", "[]"], [46, []]),
        (["46", '["10.0.0.2", "10.0.0.3"]'], [46, ["10.0.0.2", "10.0.0.3"]]),
    ],
)
def test_texts_become_arguments(texts: list[str], args: list[object]) -> None:
    message = Policy.messages["change"]
    assert list(message.decode(message.encode_texts(texts))) == args


def test_text_stays_text() -> None:
    assert Policy.messages["dscp"].decode(Policy.messages["dscp"].encode_texts(["10"])) == ("10",)


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        ([], "missing a required argument: 'dscp'"),
        (["1", "[]", "2"], "too many positional arguments"),
        (["high"], "dscp='high' is no such value"),
        (["1", '"10.0.0.2"'], "write lists and tables as JSON"),
        (["1", "[1]"], "hosts='[1]' is no such value"),
    ],
)
def test_texts_that_do_not_fit(texts: list[str], said: str) -> None:
    with pytest.raises(UsageError, match=r"change.dscp: int, hosts: list.str. . None = None. -> list.str.") as caught:
        Policy.messages["change"].encode_texts(texts)
    assert said in str(caught.value)


@pytest.fixture
def file(tmp_path: Path) -> str:
    (tmp_path / "edge.key").write_text("0" * 64)
    (tmp_path / "edge.key").chmod(0o600)
    (tmp_path / "edge.toml").write_text(FILE)
    return str(tmp_path / "edge.toml")


def test_lists_what_owners_take(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ask", file]) == 0
    said = capsys.readouterr().out
    assert said.startswith("policy  (tests.marked_node:Policy)\n")
    assert "  change(dscp: int, hosts: list[str] | None = None) -> list[str]\n      Another DSCP, for all" in said
    assert main(["ask", file, "policy"]) == 0
    assert capsys.readouterr().out == said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["marks"], "has no owner 'marks'; its owners are: policy"),
        (["policy", "alter"], "owner 'policy' has no message 'alter'; its messages are: change, dscp"),
        (["policy", "change", "x"], "dscp='x' is no such value"),
        (["policy", "change", "1"], "no node leads: no node runs at 127.0.0.1:7478"),
    ],
)
def test_refusals_are_one_line(file: str, words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ask", file, *words]) != 0
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


class Marks:
    """A stream of datagrams through the pair, of one flow that is offloaded, and how they arrive."""

    def __init__(self, pair: Pair) -> None:
        self.source = pair.lab.call("client", lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        self.source.connect((SERVER, PORT))
        self.sink = pair.lab.call("server", udp_socket, SERVER, PORT)
        self.sink.setsockopt(socket.IPPROTO_IP, socket.IP_RECVTOS, 1)
        self.sink.settimeout(0.05)
        self.number = 0

    def dscp(self) -> int:
        """Of a datagram that is sent now."""
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            self.number += 1
            self.source.send(struct.pack("!I", self.number))
            try:
                while True:
                    data, control, _, _ = self.sink.recvmsg(64, 64)
                    if struct.unpack("!I", data)[0] == self.number:
                        return control[0][2][0] >> 2
            except TimeoutError:
                pass  # the pair is taking over
        raise AssertionError("nothing arrives any more")

    def close(self) -> None:
        self.source.close()
        self.sink.close()


def ask(pair: Pair, node: Name, *words: str) -> str:
    """What it prints, be it the reply or an error."""
    argv = [sys.executable, "-m", "actornet.cli.main", "ask", str(pair.file(pair.primary)), *words]
    done = pair.lab.run(node, argv, check=False)
    assert bool(done.returncode) == bool(done.stderr), done
    return done.stdout + done.stderr


@pytest.mark.root
def test_an_operator_changes_a_live_policy(tmp_path: Path) -> None:
    """G2, G3, G4: what was answered holds for flows that were offloaded before, after kill -9, and at replay."""
    with Pair(tmp_path / "pair", "tests.marked_node:Marked", "") as pair:
        pair.start()
        marks = Marks(pair)
        assert {marks.dscp() for _ in range(3)} == {10}
        assert "does not lead" in ask(pair, "b", "policy", "change", "46")
        assert "ValueError: no DSCP is 64" in ask(pair, "a", "policy", "change", "64")
        assert ask(pair, "a", "policy", "change", "46", '["10.0.0.9"]') == '["10.0.0.9"]\n'
        assert marks.dscp() == 10
        assert ask(pair, "a", "policy", "change", "46") == '["10.0.0.9"]\n'
        assert marks.dscp() == 46, "an offload of the old policy is still there"
        pair.kill("a")
        pair.wait_takeover("b")
        assert marks.dscp() == 46
        assert ask(pair, "b", "policy", "change", "12") == '["10.0.0.9"]\n'
        assert marks.dscp() == 12
        marks.close()
        pair.stop("b")
        listed = pair.lab.run("b", [sys.executable, "-m", "actornet.cli.main", "replay", "ls", str(pair.log("b"))])
        assert listed.stdout.count("operator") == 4
        verify_log(pair, "b")


@pytest.mark.root
def test_no_answer_before_it_is_safe(tmp_path: Path) -> None:
    """G3: without a backup and with the policy `wait` an operator hears no more than that it may be logged."""
    with Pair(tmp_path / "pair", "tests.marked_node:Marked", "", without_backup="wait") as pair:
        pair.start()
        pair.kill("b")
        said = ask(pair, "a", "policy", "change", "46")
        assert "may be logged all the same, and wait for a backup" in said
        pair.begin("b", "backup")
        pair.wait_in_sync("b")
        assert ask(pair, "a", "policy", "dscp", "10.0.0.2") == "46\n"
