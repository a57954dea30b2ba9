"""`actornet replay`: what it prints, for people and for programs, and its exit codes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from port_log import NF, PATH, flip, flow, write

from actornet.cli.main import main
from actornet.journal import Journal
from actornet.log.record import ControlBody
from actornet.log.store import Log
from actornet.replay import History


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A log of 4 flows: LSN 1 EPOCH, 2 OWNER, then 3 records a flow, 15 an ask that raises, 16 CONTROL."""
    write(tmp_path / "log", 4)
    return tmp_path / "log"


@pytest.fixture
def replay(capsys):
    """Run a subcommand: its exit code and what it printed, with errors on their own."""

    def run(*words: object) -> tuple[int, str, str]:
        code = main(["replay", *map(str, words)])
        out, err = capsys.readouterr()
        return code, out, err

    return run


def damage(directory: Path, lsn: int) -> None:
    with Log(directory, readonly=True) as log:
        data = log.read(lsn)
    flip(directory, data, len(data) - 1)


def test_ls_lists_one_aligned_line_a_record(replay, directory):
    code, out, err = replay("ls", directory)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].split() == ["lsn", "time", "(UTC)", "epoch", "kind", "flow"]
    assert [int(line.split()[0]) for line in lines[1:]] == list(range(1, 17))
    assert lines[1].endswith(f'edge-a begins (start): {NF}(address="203.0.113.1"), code ab12ab12ab12')
    assert lines[2].endswith(f'wan-ports = {PATH}(address="203.0.113.1", first=1001, last=1200)')
    assert lines[3].endswith("udp 10.0.0.0:4000 > 192.0.2.1:53        wan-ports.allocate(flow)")
    assert lines[15].endswith("wan-ports.release(1)") and lines[16].endswith("stop: by the test")
    column = lines[3].index("wan-ports.allocate")
    assert all(line[column - 1] == " " and line[column] != " " for line in lines[1:])
    assert "2026-02-02T02:40:00.000000Z" in lines[1]


def test_ls_selects(replay, directory):
    def lsns(*words: object) -> list[int]:
        code, out, _ = replay("ls", directory, "--json", *words)
        assert code == 0
        return [json.loads(line)["lsn"] for line in out.splitlines()]

    assert lsns() == list(range(1, 17))
    assert lsns("--from", 4, "--to", 6) == [4, 5, 6]
    assert lsns("--from", 15, "--to", 99) == [15, 16]
    assert lsns("--limit", 2, "--kind", "ask") == [3, 6]
    assert lsns("--limit", 0) == []
    assert lsns("--owner", "wan-ports", "--flow", "10.0.0.2") == [9]


def test_ls_for_programs_has_every_field(replay, directory):
    _, out, _ = replay("ls", directory, "--json", "--from", 3, "--to", 4)
    ask, saved = map(json.loads, out.splitlines())
    with History(directory) as history:
        record = history.entry(3).record
        assert record is not None
    assert ask == {
        "lsn": 3,
        "time": "2026-02-02T02:40:00.002000Z",
        "time_ns": record.time_ns,
        "epoch": 1,
        "kind": "ASK",
        "core": 0,
        "chain": f"{record.chain:016x}",
        "bytes": ask["bytes"],
        "flow": str(flow(0)),
        "port": 0,
        "incarnation": 1,
        "number": 1,
        "owner": "wan-ports",
        "message": "allocate",
        "args": [str(flow(0))],
        "packet": None,
        "reply_hash": f"{record.body.reply_hash:016x}",
    }
    assert saved["state"] == [[0, "open"], [[str(flow(0).reversed()), "wan", None, False, None]], 60_000_000_000]


def test_ls_marks_damaged_records_and_goes_on(replay, directory):
    """G8."""
    damage(directory, 7)
    code, out, _ = replay("ls", directory)
    lines = out.splitlines()
    assert code == 1 and len(lines) == 17
    assert lines[7] == "  7  DAMAGED  log record at LSN 7 is damaged: its checksum does not match: bytes were changed"
    code, out, _ = replay("ls", directory, "--json", "--kind", "control")
    assert code == 1
    first, second = map(json.loads, out.splitlines())
    assert (first["lsn"], second["lsn"]) == (7, 16) and "checksum" in first["damage"]


def test_show_gives_the_reply_by_re_execution(replay, directory):
    code, out, _ = replay("show", directory, 3)
    assert code == 0
    fields = dict(line.strip().split(maxsplit=1) for line in out.splitlines()[1:])
    assert out.startswith("LSN 3  ASK  wan-ports.allocate(flow)\n")
    with History(directory) as history:
        port = next(iter(history.state(3).owners["wan-ports"].state.used))
    assert fields["reply"] == str(port)
    assert fields["hash"].endswith("as recorded") and fields["chain"].endswith("ok")
    assert fields["flow"] == "udp 10.0.0.0:4000 > 192.0.2.1:53, arriving on port 0, incarnation 1"
    code, out, _ = replay("show", directory, 3, "--json")
    shown = json.loads(out)
    assert (shown["reply"]["value"], shown["reply"]["agrees"], shown["chain_ok"]) == (port, True, True)


def test_show_every_kind(replay, directory):
    expected = {
        1: "fingerprint ab12",
        2: PATH,
        4: "asks up to 1",
        5: "state ",
        8: "idle",
        15: "raised KeyError: 1",
        16: "stop",
    }
    for lsn, text in expected.items():
        code, out, _ = replay("show", directory, lsn)
        assert code == 0 and text in out and "  ok\n" in out


def test_show_of_what_is_not_there_or_damaged(replay, directory):
    damage(directory, 4)
    assert replay("show", directory, 17) == (
        1,
        "",
        f"actornet: log {directory} has no record at LSN 17: it holds LSN 1 to 16\n",
    )
    code, out, err = replay("show", directory, 4)
    assert (code, out) == (1, "") and "log record at LSN 4 is damaged" in err
    code, out, _ = replay("show", directory, 4, "--json")
    assert code == 1 and json.loads(out)["lsn"] == 4
    code, out, _ = replay("show", directory, 5)
    assert code == 0 and "BROKEN" not in out and "cannot be checked" in out
    code, out, _ = replay("show", directory, 9)
    assert code == 1 and "reply       not known: log record at LSN 4 is damaged" in out


def test_state_of_an_owner_at_an_lsn(replay, directory):
    code, out, _ = replay("state", directory, "wan-ports", "--at", 2)
    assert (code, out) == (
        0,
        f'wan-ports  {PATH}  at LSN 2\n  address  "203.0.113.1"\n  free     [1001..1200]\n  used     {{}}\n',
    )
    code, out, _ = replay("state", directory, "wan-ports", "--json")
    shown = json.loads(out)
    assert (code, shown["lsn"], shown["owner"], shown["class"]) == (0, 16, "wan-ports", PATH)
    assert len(shown["state"]["free"]) == 196
    assert sorted(shown["state"]["used"].values()) == [str(flow(number)) for number in range(4)]


def test_state_without_an_owner_and_of_flows(replay, directory):
    assert replay("state", directory) == (0, f"1 owner and 1 flow at LSN 16\n  wan-ports  {PATH}\n", "")
    _, out, _ = replay("state", directory, "--json", "--at", 0)
    assert json.loads(out) == {"lsn": 0, "owners": {}, "flows": 0}
    code, out, _ = replay("state", directory, "--flows")
    lines = out.splitlines()
    assert (code, lines[0]) == (0, "1 flow at LSN 16")
    assert lines[1] == "udp 10.0.0.0:4000 > 192.0.2.1:53, arriving on port 0, incarnation 1, asks up to 1"
    _, out, _ = replay("state", directory, "--flows", "--json", "--at", 7)
    assert [flow["flow"] for flow in json.loads(out)["flows"]] == [str(flow(0)), str(flow(1))]


def test_a_flow_is_told_by_the_names_of_its_parts(replay, tmp_path):
    capture, log = Path(__file__).parents[1] / "examples/captures/skype.pcap", tmp_path / "log"
    assert main(["run", NF, "--read", str(capture), "--log", str(log), "--quiet"]) == 0
    replay("ls", log)
    for words in (["show", log, 4], ["state", log, "--flows", "--at", 4]):
        code, out, _ = replay(*words)
        told = [" ".join(line.split()) for line in out.splitlines()]
        assert code == 0
        for part in (
            "outbound True",
            "fin 0",
            "offload Rewrite(to='wan', source='203.0.113.1')",
            "idle_ns 300000000000",
        ):
            assert part in told


def test_verify_prints_a_summary(replay, directory):
    """G4, G8."""
    code, out, err = replay("verify", directory)
    assert (code, err) == (0, "")
    assert out.startswith(f"log {directory} is sound: every record, reply and state agrees\n")
    assert "  records     16, from the first record to LSN 16\n" in out
    assert "  kinds       1 EPOCH, 1 OWNER, 5 ASK, 4 FLOW, 3 CLOSE, 1 CONTROL, 1 HASH\n" in out
    code, out, _ = replay("verify", directory, "--json")
    shown = json.loads(out)
    assert (code, shown["sound"], shown["lsn"], shown["problem"], shown["name"], shown["nf"]) == (
        0,
        True,
        16,
        None,
        "edge",
        NF,
    )


def test_verify_names_the_first_problem(replay, directory):
    """G8."""
    damage(directory, 7)
    damage(directory, 12)
    code, out, err = replay("verify", directory)
    assert (code, out) == (1, "6 records up to LSN 6 are sound, then:\n")
    assert err.startswith("actornet: log record at LSN 7 is damaged: ") and err.count("\n") == 1
    code, out, err = replay("verify", directory, "--json")
    shown = json.loads(out)
    assert (code, err) == (1, "")
    assert (shown["sound"], shown["lsn"], shown["error"]) == (False, 6, "LogDamagedError")


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (("ls", "{log}/absent"), 1, "there is no log in"),
        (("ls", "{log}", "--kind", "mail"), 2, "there is no kind 'mail' of records"),
        (("state", "{log}", "lan-ports"), 2, "there is no owner 'lan-ports' at LSN 16; there are: wan-ports"),
        (("state", "{log}", "wan-ports", "--flows"), 2, "name an owner or say --flows, not both"),
        (("state", "{log}", "--at", "17"), 1, "has no LSN 17: it has reached 16"),
    ],
)
def test_what_the_user_gets_wrong_is_one_line(replay, directory, words, code, text):
    actual, out, err = replay(*(word.format(log=directory) for word in words))
    assert (actual, out) == (code, "")
    assert text in err and err.count("\n") == 1


@pytest.mark.parametrize("words", [["ls", "x", "--from", "-1"], ["show", "x", "one"], ["show", "x"], []])
def test_a_wrong_command_line_is_a_usage_error(replay, words):
    with pytest.raises(SystemExit) as stopped:
        replay(*words)
    assert stopped.value.code == 2


def test_a_machine_without_the_code_and_one_with_other_code(tmp_path):
    """G4: `ls` needs no code; `verify` says what is missing, or where other code decides otherwise."""
    write(tmp_path / "log", 2)
    code = (Path(__file__).parent / "port_log.py").read_text()

    def run(*words: str, path: Path | None) -> subprocess.CompletedProcess[str]:
        root = Path(__file__).parents[1]
        places = [str(root), *([str(path)] if path else [])]
        command = [sys.executable, "-m", "actornet.cli.main", "replay", *words]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(places)}
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=20)

    assert run("ls", "log", path=None).stdout.count("\n") == 11
    lost = run("verify", "log", path=None)
    assert lost.returncode == 2
    assert lost.stderr.startswith(f"actornet: owner class {PATH} cannot be loaded: No module named 'port_log'")
    shown = run("show", "log", "3", path=None)
    assert shown.returncode == 2 and "not known: owner class" in shown.stdout and "as recorded" not in shown.stdout

    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "port_log.py").write_text(code.replace("self.random.randrange(len(self.state.free))", "0"))
    other = run("verify", "log", path=tmp_path / "new")
    assert other.returncode == 1
    for part in ("divergence at LSN 3", "wan-ports.allocate", "expected reply hash", "actual", "[1001]"):
        assert part in other.stderr


def test_a_damaged_page_ends_no_command(tmp_path):
    """G8: LMDB ends the process that reads it; each command says what is wrong instead, after what it could read."""
    with Log(tmp_path / "log") as log:
        journal = Journal(log)
        for number in range(3000):
            journal.execute(ControlBody("note", f"{number:060}"), 0, number)
        journal.commit()
    file = tmp_path / "log" / "data.mdb"
    data = bytearray(file.read_bytes())
    for page in range(20 * 4096, len(data), 4096):
        data[page : page + 64] = bytes(64)
    file.write_bytes(data)
    for words in (["ls"], ["ls", "--json"], ["show", "2000"], ["state"]):
        argv = [sys.executable, "-m", "actornet.cli.main", "replay", words[0], str(tmp_path / "log"), *words[1:]]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=30)
        assert done.returncode == 1 and "its file is damaged: " in done.stderr, (words, done)
        assert done.stderr.count("\n") == 1 and "Traceback" not in done.stderr
    for words, own in ((["state", "x", "--flows"], "not both"), (["ls", "--kind", "frob"], "no kind 'frob'")):
        argv = [sys.executable, "-m", "actornet.cli.main", "replay", words[0], str(tmp_path / "log"), *words[1:]]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=30)
        assert done.returncode == 1 and own in done.stderr and "its file is damaged: " in done.stderr, (
            words,
            done,
        )
        assert done.stderr.count("\n") == 1
