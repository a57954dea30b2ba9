"""`actornet run`, as a user runs it: real network functions over capture files, and one line for every mistake."""

import io
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from actornet.cli.main import COMMANDS, main
from actornet.cli.progress import Progress
from actornet.cli.run import HANDLERS_RAISED
from actornet.cli.summary import DROPS as MEANINGS
from actornet.engine.counters import DROPS
from actornet.ports.pcap import CaptureWriter, read_capture

ROOT = Path(__file__).parent.parent
SIP = str(ROOT / "tests" / "captures" / "sip.pcap")
NAT = "actors.nat:SourceNAT"

PASS = """
from actornet import FORWARD, FlowActor, setting

class Pass(FlowActor):
    untracked = FORWARD
    color = setting("red", "what it is painted")
    size = setting(3, "how big it is")
    def on_packet(self, packet):
        return FORWARD

class Plain:
    pass
"""

USB = bytes.fromhex(
    "0a0d0d0a1c0000004d3c2b1a01000000ffffffffffffffff1c000000"  # section
    "0100000014000000bd0000000000000014000000"  # interface of link type 189
    "0300000014000000040000000000000014000000"  # a packet of it
)
"""A pcapng file whose link type comes to light only at its first packet."""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A user's directory with a network function of their own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "mynf.py").write_text(PASS)
    sys.modules.pop("mynf", None)
    yield tmp_path
    for name, module in list(sys.modules.items()):
        if str(tmp_path) in (getattr(module, "__file__", None) or ""):
            del sys.modules[name]


def frames(path):
    with read_capture(path) as capture:
        return list(capture)


def refused(capsys, *argv):
    """The one line on standard error of a command that fails; its exit code."""
    code = main(argv)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("actornet: ") and err.count("\n") == 1
    return code, err.removeprefix("actornet: ").strip()


def process(*argv, **options):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, "-m", "actornet.cli.main", *argv], env=environment, text=True, **options)


def test_nat_over_a_real_capture(here, capsys):
    write = ["--write", "wan=out.pcap", "--log", "log"]
    assert main(["run", NAT, "--read", SIP, *write, "--set", "address=198.51.100.9"]) == 0
    shown = capsys.readouterr().out
    for word in (NAT, "lan", "wan", "flows", "offloaded", "dropped", "capture", "kpps", "written", "LSN"):
        assert f"{word} " in shown or f"{word}," in shown or shown.startswith(word)
    written = frames("out.pcap")
    assert len(written) == 78
    assert {frame[26:30] for _, frame, _ in written} == {bytes([198, 51, 100, 9])}
    assert [time_ns for time_ns, _, _ in written] == sorted(time_ns for time_ns, _, _ in written)
    assert sorted(os.listdir()) == ["log", "mynf.py", "out.pcap"]


def test_json_is_one_object(here, capsys):
    assert main(["run", NAT, "--read", SIP, "--write", "out.pcap.gz", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["packets"] == 112
    assert report["ports"]["lan"]["packets_in"] + report["ports"]["wan"]["packets_in"] == 112
    assert report["ports"]["lan"]["packets_out"] + report["ports"]["wan"]["packets_out"] == len(frames("out.pcap.gz"))
    assert report["flows"]["opened"] == report["flows"]["closed"] + report["flows"]["live"]
    assert report["readdressed"] == report["ports"]["wan"]["packets_in"]
    assert report["outputs"] == [{"file": "out.pcap.gz", "packets": 112}]
    assert (report["log"], report["drops"], report["interrupted"]) == (None, {}, False)
    assert report["capture"]["span_s"] == pytest.approx(1522.5, abs=1)


@pytest.mark.parametrize("spec", ["mynf:Pass", "mynf.py:Pass", "./mynf.py:Pass"])
def test_a_function_of_ones_own(here, capsys, spec):
    assert main(["run", spec, "--read", SIP, "--write", "out.pcap", "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")
    assert frames("out.pcap") == frames(SIP)


def test_a_function_in_a_package_and_in_another_directory(here):
    package = here / "deep" / "parts"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "inner.py").write_text("from parts.other import Pass\n")
    (package / "other.py").write_text(PASS)
    assert main(["run", "deep/parts/inner.py:Pass", "--read", SIP, "--quiet"]) == 0
    assert "parts.inner" in sys.modules


def test_captures_with_port_names_are_merged_and_not_played_back(here, capsys):
    both = frames(SIP)
    for name, part in (("a.pcap", both[::2]), ("b.pcap", both[1::2])):
        with CaptureWriter(name) as writer:
            writer.write_burst(part)
    read = ["--read", "left=a.pcap", "--read", "right=b.pcap"]
    assert main(["run", "mynf:Pass", *read, "--write", "left=c.pcap", "--write", "all.pcap", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["ports"]["left"]["packets_in"] == report["ports"]["right"]["packets_out"] == 56
    assert frames("all.pcap") == both
    assert frames("c.pcap") == both[1::2]


def test_log_goes_on_where_it_ended(here, capsys):
    lsns = []
    for _ in range(2):
        assert main(["run", NAT, "--read", SIP, "--log", "log", "--json"]) == 0
        lsns.append(json.loads(capsys.readouterr().out)["log"]["lsn"])
    assert 0 < lsns[0] < lsns[1]


def test_settings_that_the_log_overrules(here, capsys):
    """An owner goes on with what it has in the log; a person who has just changed a setting wants to know."""
    for address, warned in (("203.0.113.1", False), ("203.0.113.1", False), ("203.0.113.9", True)):
        assert main(["run", NAT, "--read", SIP, "--log", "log", "--set", f"address={address}"]) == 0
        error = capsys.readouterr().err
        assert ("warning: owner 'wan-ports' goes on from the log" in error) == warned, error


QUOTA = """
from actornet import DROP, FORWARD, FlowActor, Owner, Struct

class Seen(Struct):
    flows: int = 0

class Counter(Owner[Seen]):
    def allowed(self) -> bool:
        self.state.flows += 1
        return self.state.flows % 3 > 0

class Quota(FlowActor):
    counter = Counter.named("counter")
    async def on_open(self, packet):
        self.open = await self.counter.allowed()
    open: bool = False
    def on_packet(self, packet):
        return FORWARD if self.open else DROP
"""


def test_a_log_goes_on_with_other_code_only_if_that_decides_the_same(here, capsys):
    """G4: what the log holds is executed anew by the changed code; what it would have decided otherwise is named."""

    def run(source):
        Path("quota.py").write_text(source)
        command = [
            sys.executable,
            "-m",
            "actornet.cli.main",
            "run",
            "quota:Quota",
            "--read",
            SIP,
            "--log",
            "log",
            "--json",
        ]
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
        return done.returncode, json.loads(done.stdout)["log"]["lsn"] if done.stdout else 0, done.stderr

    code, first_lsn, _ = run(QUOTA)
    assert code == 0 and first_lsn > 10
    code, second_lsn, error = run(QUOTA + "# clearer now\n")
    assert code == 0 and second_lsn > first_lsn, error
    code, _, error = run(QUOTA.replace("% 3", "% 4"))
    assert code == 1 and error.count("\n") == 1, error
    assert "log log was written by code" in error and "divergence at LSN" in error and "expected reply hash" in error
    code, lsn, error = run(QUOTA)
    assert code == 0 and lsn > second_lsn, error


def test_a_full_disk_for_output_is_one_line(here):
    command = [sys.executable, "-m", "actornet.cli.main", "run", NAT, "--read", SIP]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1 and done.stderr.endswith("no space left on its device\n"), done.stderr
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr


def test_one_interface_is_no_two_ports(here, capsys):
    code, line = refused(capsys, "run", "mynf:Pass", "-i", "a=lo", "-i", "b=lo:tap")
    assert code == 2 and "`a.interface` = 'lo': two ports cannot share an interface, what left" in line


def test_pipes(here):
    data = Path(SIP).read_bytes()
    command = [sys.executable, "-m", "actornet.cli.main", "run", "mynf:Pass", "--read", "-", "--write", "-"]
    done = subprocess.run(command, input=data, capture_output=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0
    Path("out.pcap").write_bytes(done.stdout)
    assert frames("out.pcap") == frames(SIP)
    assert b"112 packets" in done.stderr


def test_damaged_capture_is_run_as_far_as_it_goes(here, capsys):
    Path("cut.pcap").write_bytes(Path(SIP).read_bytes()[:20_000])
    assert main(["run", "mynf:Pass", "--read", "cut.pcap", "--json"]) == 0
    out, err = capsys.readouterr()
    assert 0 < json.loads(out)["packets"] < 112
    assert err.startswith("actornet: warning: cut.pcap: the file ends inside a packet (at byte ")


def test_a_handler_that_raises_is_told_of_once(here, capsys):
    Path("bad.py").write_text(
        "from actornet import FlowActor\n"
        "class Bad(FlowActor):\n"
        "    def on_packet(self, packet):\n"
        "        return 1 // 0\n"
    )
    assert main(["run", "bad.py:Bad", "--read", SIP, "--json"]) == HANDLERS_RAISED == 3
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert report["handlers_raised"] == report["drops"]["handler_error"] > 1
    assert err.count("ZeroDivisionError") == err.count("\n") == 1
    assert "bad.py, line 4" in err
    assert main(["run", "bad.py:Bad", "--read", SIP, "--write", "out.pcap", "--log", "log"]) == HANDLERS_RAISED
    assert re.search(r"FAILED +handlers raised \d+ times", capsys.readouterr().out)
    assert Path("out.pcap").exists(), "what could be done is done"


def test_a_run_on_ports_says_so_too(here):
    """A capture is played in real time until it ends; the ports stay, until the user has enough."""
    Path("bad.py").write_text(
        "from actornet import FORWARD, FlowActor\n"
        "class Bad(FlowActor):\n"
        "    def on_packet(self, packet):\n"
        "        return FORWARD if len(packet.payload) % 2 else 1 // 0\n"
    )
    ports = ["-i", f"lan={SIP}:pcap,speed=0", "-i", "wan=:pcap,write=out.pcap"]
    process = subprocess.Popen(
        [sys.executable, "-m", "actornet.cli.main", "run", "bad.py:Bad", *ports],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    told = [process.stderr.readline()]
    while "has ended" not in told[-1] and told[-1]:
        told.append(process.stderr.readline())
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=20)
    assert process.returncode == HANDLERS_RAISED
    assert told[-1] == f"actornet: warning: port lan: capture {SIP} has ended\n"
    assert re.search(r"FAILED +handlers raised \d+ times", out)
    with read_capture("out.pcap") as written:
        assert sum(1 for _ in written) > 10


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        (["mynf:Pass", "--read", "missing.pcap"], 1, "missing.pcap: no such file; check the path"),
        (["mynf:Pass", "--read", "mynf.py"], 1, "mynf.py: not a capture file"),
        (["mynf:Pass", "--read", SIP, "--write", "no/out.pcap"], 1, "no/out.pcap: cannot be written: No such file"),
        (["mynf:Pass", "--read", SIP, "--write", "/dev/full"], 1, "/dev/full: cannot be written: No space left"),
        (["nomodule:Pass", "--read", SIP], 2, "no module 'nomodule' (of network function nomodule)"),
        (["mynff:Pass", "--read", SIP], 2, "did you mean mynf?"),
        (["actors.nta:SourceNAT", "--read", SIP], 2, "did you mean actors.nat?"),
        (["mynf:Pas", "--read", SIP], 2, "mynf has no class 'Pas'; did you mean mynf:Pass?"),
        (["mynf", "--read", SIP], 2, "mynf is a module; name the class in it: mynf:Pass"),
        (["mynf:Plain", "--read", SIP], 2, "mynf:Plain is not a network function: it does not subclass FlowActor"),
        (["mynf:3", "--read", SIP], 2, "'mynf:3' names no network function"),
        (["no.py:Pass", "--read", SIP], 2, "no.py: no such file"),
        (["json.py:Pass", "--read", SIP], 2, "is already imported as 'json'; rename the file"),
        (["my-nf.py:Pass", "--read", SIP], 2, "my-nf.py: the file's name must be a Python identifier"),
        (["broken.py:Pass", "--read", SIP], 2, "broken.py does not import: '(' was never closed ("),
        (["raising.py:Pass", "--read", SIP], 2, "raising.py does not import: RuntimeError: on import ("),
        (["needy.py:Pass", "--read", SIP], 2, "does not import: ModuleNotFoundError: No module named 'needed'"),
        (["mynf:Pass", "--read", SIP, "--set", "colour=blue"], 2, "Pass has no setting 'colour'; its settings are"),
        (["mynf:Pass", "--read", SIP, "--set", "size=big"], 2, "setting 'size' must be int, not 'big'"),
        (["mynf:Pass", "--read", SIP, "--set", "size"], 2, "--set 'size': write NAME=VALUE"),
        (["mynf:Pass", "--read", SIP, "--inside", "ten"], 2, "'ten' is no network prefix"),
        (["mynf:Pass", "--read", "lan=" + SIP, "--inside", "10.0.0.0/8"], 2, "--inside and --as-is are for captures"),
        (["mynf:Pass", "--read", "lan=" + SIP, "--read", SIP], 2, "name the port of every capture"),
        (["mynf:Pass", "--read", "-", "--read", "-"], 2, "standard input can be read once"),
        (["mynf:Pass", "--read", SIP, "--write", "left=a.pcap"], 2, "the ports are lan and wan"),
        (["mynf:Pass", "--read", "usb.pcapng", "--write", "out.pcap"], 1, "link type 189 (Linux USB)"),
        (["mynf:Pass", "--read", ""], 2, "names no file"),
        (["mynf:Pass", "--read", SIP, "--flows-max", "0"], 2, "--flows-max 0: a flow table has 1..268435456 keys"),
        (["mynf:Pass", "--read", SIP, "--write", "-", "--json"], 2, "both want standard output"),
        (["mynf:Pass", "--read", SIP, "--quiet", "--json"], 2, "exclude each other"),
        (
            ["mynf:Pass", "--read", "usb.pcapng", "--write", "./usb.pcapng"],
            2,
            "--write ./usb.pcapng: it is read as well",
        ),
        (
            [NAT, "--read", SIP, "--set", "udp_idle_s=-1"],
            2,
            "setting 'udp_idle_s' must be 0.001 to 1000000000, not '-1'",
        ),
        ([NAT, "--read", SIP, "--set", "address=1.2.3"], 2, "setting 'address': '1.2.3' is no IPv4 address"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_mistakes_are_told_in_one_line(here, capsys, argv, code, message):
    Path("usb.pcapng").write_bytes(USB)
    Path("json.py").write_text(PASS)
    Path("my-nf.py").write_text(PASS)
    Path("broken.py").write_text("print(\n")
    Path("raising.py").write_text("raise RuntimeError('on\\nimport')\n")
    Path("needy.py").write_text("import needed\n")
    before = sorted(os.listdir())
    found_code, line = refused(capsys, "run", *argv)
    assert message in line
    assert found_code == code
    assert [name for name in sorted(os.listdir()) if name != "__pycache__"] == before


def test_locked_log_is_told_in_one_line(here, capsys):
    from actornet.log.store import Log

    Log("log", name="embedded", nf="mynf:Pass")
    code, line = refused(capsys, "run", "mynf:Pass", "--read", SIP, "--log", "log")
    assert code == 1
    assert "log" in line


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_interrupt_completes_the_output_and_exits_130(here, number):
    Path("slow.py").write_text(
        "import sys, time\n"
        "from actornet import FORWARD, FlowActor\n"
        "class Slow(FlowActor):\n"
        "    def on_packet(self, packet):\n"
        "        print('begun', file=sys.stderr, flush=True)\n"
        "        time.sleep(0.02)\n"
        "        return FORWARD\n"
    )
    argv = ["run", "slow.py:Slow", "--read", SIP, "--write", "out.pcap", "--json"]
    with process(*argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        running.stderr.readline()
        running.send_signal(number)
        out, err = running.communicate(timeout=10)
    assert running.returncode == 130
    assert "Traceback" not in err
    report = json.loads(out)
    assert report["interrupted"] is True
    assert 0 < len(frames("out.pcap")) == report["packets"] < 112


def test_closed_pipe_is_quiet(here):
    reader, writer = os.pipe()
    os.close(reader)
    with process("run", "mynf:Pass", "--read", SIP, "--json", stdout=writer, stderr=subprocess.PIPE) as running:
        os.close(writer)
        assert running.stderr.read() == ""
    assert running.returncode == 141


def test_version_help_and_no_command(capsys):
    shows = {("--version",): ["actornet 0."], ("--help",): list(COMMANDS), ("run", "--help"): ["--inside", "NF"]}
    for argv, words in shows.items():
        with pytest.raises(SystemExit) as done:
            main(argv)
        assert done.value.code == 0
        shown = capsys.readouterr().out
        assert all(word in shown for word in words)
    assert main([]) == 2
    assert "COMMAND" in capsys.readouterr().err
    with pytest.raises(SystemExit) as done:
        main(["rum"])
    assert done.value.code == 2


def test_every_drop_has_a_meaning():
    assert set(MEANINGS) == set(DROPS)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_shows_share_rate_and_time_left(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    stream = Terminal()
    progress = Progress(1000, stream)
    progress.update(10, 10)
    assert stream.getvalue() == ""
    now[0] += 2
    progress.update(250, 50_000)
    progress.update(260, 51_000)
    assert stream.getvalue() == "\r\x1b[K 25% [######..................]  50 000 packets  25 kpps  0:06 left"
    progress.clear()
    progress.clear()
    assert stream.getvalue().endswith("left\r\x1b[K")


def test_progress_is_silent_where_nobody_looks(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    streams = [(io.StringIO(), True), (Terminal(), False)]
    for stream, wanted in streams:
        progress = Progress(None, stream, wanted)
        now[0] += 2
        progress.update(250, 50_000)
        progress.clear()
        assert stream.getvalue() == ""


MISFIT = """
from actornet import FORWARD, FlowActor, Owner, Struct

class Totals(Struct):
    mean: int = 0

class Mean(Owner[Totals]):
    def add(self, size: int) -> None:
        self.state.mean = (self.state.mean + size) / 2 if size % 2 else 2**70

class Half(FlowActor):
    mean = Mean.named("mean")
    async def on_packet(self, packet):
        await self.mean.add(packet.length)
        return FORWARD
"""


@pytest.mark.parametrize("log", [[], ["--log", "log"]], ids=["no log", "log"])
def test_a_value_that_does_not_fit_its_owners_state_is_told_at_the_end(here, capsys, log):
    (here / "half.py").write_text(MISFIT)
    for _ in range(2):  # the second run begins from the log's records: there is no snapshot
        assert main(["run", "half.py:Half", "--read", SIP, "--quiet", *log]) == 0
        said = capsys.readouterr().err
        assert (
            said.startswith("actornet: warning: owner mean (half:Mean): state.mean: expected int")
            and said.count("\n") == 1
        )
    if log:
        assert main(["replay", "verify", "log", "--json"]) == 0
        out, err = capsys.readouterr()
        assert err == "" and "state.mean: expected int" in json.loads(out)["misfit"]
        assert main(["replay", "verify", "log"]) == 0
        out, err = capsys.readouterr()
        assert "is sound" in out and err.startswith(
            "actornet: warning: owner mean (half:Mean): state.mean: expected int"
        )
