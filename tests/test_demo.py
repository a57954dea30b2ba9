"""`actornet demo`: what it claims is so, also when looked at from outside, and it leaves nothing behind."""

import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import dpkt
import msgspec
import pytest
from processes import is_alive

from actornet.cli.demo import CAPTURE, MARK, Outcome
from actornet.cli.main import main
from actornet.replay import History, verify

DEMO = [sys.executable, "-m", "actornet.cli.main", "demo"]
ROOT = Path(__file__).parents[1]


def start(directory: Path, *prefix: str) -> subprocess.Popen[str]:
    """The demonstration in `directory`, in a session of its own, as a terminal would run it."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        [*prefix, *DEMO],
        cwd=directory,
        env=environment,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def left_behind(demo: subprocess.Popen[str], directory: Path) -> tuple[list[str], list[int]]:
    """Namespaces that the demonstration made, and living processes of its session or in its directory."""
    namespaces = Path("/run/netns")
    names = [path.name for path in namespaces.glob(f"an{demo.pid}-*")] if namespaces.exists() else []
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and is_alive(int(entry.name)):
            with suppress(OSError):
                if os.getsid(int(entry.name)) == demo.pid or (entry / "cwd").readlink() == directory:
                    found.append(int(entry.name))
    return names, found


def endpoints(capture: Path) -> set[tuple[int, bytes, int]]:
    """Protocol, source address and port of every TCP and UDP packet over IPv4."""
    found = set()
    with capture.open("rb") as file:
        for _, frame in dpkt.pcap.Reader(file):
            ip = dpkt.ethernet.Ethernet(frame).data
            if isinstance(ip, dpkt.ip.IP) and isinstance(ip.data, dpkt.tcp.TCP | dpkt.udp.UDP):
                found.add((ip.p, ip.src, ip.data.sport))
    return found


def check_translation(text: str, output: Path) -> None:
    """What the first part says, against the files that it wrote."""
    said = re.search(r"translated (\d+) endpoints of (\d+) hosts to 203\.0\.113\.1, (\d+) with their own port", text)
    assert said, text
    translated, hosts, kept = map(int, said.groups())
    written = endpoints(output / "nat.pcap")
    outside = {(protocol, port) for protocol, source, port in written if source == bytes((203, 0, 113, 1))}
    inside = {source for source in endpoints(CAPTURE) if source[1][:2] == bytes((192, 168))}
    assert 100 < len(outside) <= translated <= len(inside)
    assert hosts == 3
    assert kept >= len(outside & {(protocol, port) for protocol, _, port in inside}) > 100
    with (output / "nat.pcap").open("rb") as file:
        frames = sum(1 for _ in dpkt.pcap.Reader(file))
    assert f"{frames:,} packets to demo-output/nat.pcap".replace(",", " ") in text
    assert "log demo-output/log is sound" in text
    with History(output / "log") as history:
        assert verify(history).problem is None
        at = re.search(r"replay state demo-output/log wan-ports --at (\d+)", text)
        assert at
        assert len(history.state(int(at[1])).owners["wan-ports"].state.by_inside) == translated


def test_without_root_it_translates_and_says_how_to_see_the_rest(tmp_path: Path) -> None:
    unprivileged = ["setpriv", "--bounding-set=-sys_admin"] if os.geteuid() == 0 else []
    demo = start(tmp_path, *unprivileged)
    out, err = demo.communicate(timeout=30)
    assert (demo.returncode, err) == (0, "")
    check_translation(out, tmp_path / "demo-output")
    assert re.search(r"Left out: its network namespaces need (root|CAP_SYS_ADMIN)\.\nTo see it: ", out)
    assert "\x1b" not in out
    assert not (tmp_path / "demo-output" / "failover").exists()


@pytest.mark.root
def test_a_connection_survives_the_primary(tmp_path: Path) -> None:
    """G3, G6: with every process of the primary killed, the traffic goes on, and the logs agree."""
    output = tmp_path / "demo-output"
    (output / "failover").mkdir(parents=True)
    (output / "failover" / "old").touch()
    (output / MARK).touch()
    demo = start(tmp_path)
    out, err = demo.communicate(timeout=60)
    assert (demo.returncode, err) == (0, ""), out
    assert left_behind(demo, tmp_path) == ([], [])
    check_translation(out, output)
    assert "\x1b" not in out
    assert not (output / "failover" / "old").exists()  # made anew
    assert re.search(r"kill -9 of node a: \d+ processes", out)
    assert re.search(r"outage      UDP \d+\.\d ms \(\d+ datagrams lost\), TCP \d+\.\d ms", out)
    assert re.search(r"connection  survived: [\d ]+ bytes arrived as sent", out)
    assert "0 records to replay; node b's log continues node a's" in out
    with History(output / "failover" / "log-a") as a, History(output / "failover" / "log-b") as b:
        assert verify(a).problem is None and verify(b).problem is None
        assert verify(a).epoch < verify(b).epoch
        assert verify(a).flows == verify(b).flows == 2  # the stream and the transfer


@pytest.mark.root
def test_ctrl_c_leaves_nothing_behind(tmp_path: Path) -> None:
    demo = start(tmp_path)
    assert demo.stdout
    for line in demo.stdout:
        if "came back" in line:
            break
    os.killpg(demo.pid, signal.SIGINT)
    _, err = demo.communicate(timeout=15)
    assert (demo.returncode, err) == (130, "")
    assert left_behind(demo, tmp_path) == ([], [])


def test_a_directory_of_someone_elses_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine").mkdir()
    Path("mine/log").touch()
    assert main(["demo", "--output", "mine"]) == 2
    assert "mine was not made by the demonstration" in capsys.readouterr().err
    assert Path("mine/log").exists()


def test_a_run_that_fails_ends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["demo", "--read", "absent.pcap"]) == 1
    out, err = capsys.readouterr()
    assert "absent.pcap" in err and "kill -9 of the primary" not in out


def test_every_claim_that_fails_is_told() -> None:
    held = Outcome(
        udp_ms=10.0,
        udp_lost=9,
        tcp_ms=12.0,
        tcp_bytes=1000,
        tcp_error="",
        left_alive=0,
        replayed=0,
        forked=False,
        log_errors=[],
    )
    assert held.broken() == []
    for change, text in [
        ({"udp_ms": float("inf")}, "the UDP stream never came back"),
        ({"tcp_error": "connection reset"}, "the TCP transfer broke: connection reset"),
        ({"left_alive": 2}, "2 processes of the primary outlived it"),
        ({"replayed": 3}, "3 records had to be replayed"),
        ({"forked": True}, "node b's log does not continue node a's"),
        ({"log_errors": ["log-a: divergence"]}, "log-a: divergence"),
    ]:
        assert [text] == msgspec.structs.replace(held, **change).broken()
