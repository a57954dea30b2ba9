"""Each example runs, by the command that its docstring shows, and does what it says."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections import Counter
from ipaddress import ip_network
from pathlib import Path
from urllib.parse import unquote_plus

import dpkt
import pytest

from actornet.log.record import FlowBody
from actornet.ports.pcap import read_capture
from actornet.replay.history import History
from actornet.replay.verification import verify
from tests.nat_model import Packet, dissect

ROOT = Path(__file__).parent.parent
CAPTURE = ROOT / "examples" / "captures" / "skype.pcap"


def run(example: str, *more: str) -> str:
    """The command in the example's docstring, with more arguments; returns what it prints."""
    shown = re.search(r"^    actornet (run .*)$", (ROOT / "examples" / f"{example}.py").read_text(), re.MULTILINE)
    assert shown
    command = [sys.executable, "-m", "actornet.cli.main", *shlex.split(shown[1]), *more]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def packets(capture: Path) -> list[Packet]:
    dissected = (dissect(frame) for _, frame, _ in read_capture(str(capture)))
    return [packet for packet in dissected if isinstance(packet, Packet)]


def sound(log: Path, monkeypatch: pytest.MonkeyPatch) -> History:
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    history = History(log)
    assert verify(history).problem is None
    return history


@pytest.mark.parametrize("example", sorted(path.stem for path in ROOT.glob("examples/*.py")))
def test_example_leaves_a_sound_log(example: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """G4: also an example without an owner has one, of its flows."""
    run(example, "--log", str(tmp_path / "log"))
    with sound(tmp_path / "log", monkeypatch) as history:
        assert history.state().flows == {} and history.log.last_lsn > (30 if example == "web_watch" else 500)


def test_counter() -> None:
    """Its totals for each pair of endpoints are those of the capture."""
    line = re.compile(r"(?:tcp|udp) (\S+) > (\S+)  (\d+) packets, (\d+) bytes there, (\d+) back")
    counted: Counter[tuple[frozenset[str], str]] = Counter()
    for text in run("counter").splitlines():
        found = line.fullmatch(text)
        assert found, text
        pair = frozenset((found[1], found[2]))
        counted[pair, "packets"] += int(found[3])
        counted[pair, "bytes"] += int(found[4]) + int(found[5])
    expected: Counter[tuple[frozenset[str], str]] = Counter()
    for p in packets(CAPTURE):
        pair = frozenset(f"{end.address}:{end.port}" for end in (p.flow.source, p.flow.destination))
        header = (p.frame[p.transport + 12] >> 4) * 4 if p.flow.protocol == 6 and not p.inner else 8
        expected[pair, "packets"] += 1
        expected[pair, "bytes"] += p.end - p.transport - header
    assert +expected == +Counter({key: count for key, count in counted.items() if "[" not in str(key)})


def test_rate_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No network opens more than its burst and what each second adds; those below it open all."""
    report = json.loads(run("rate_limit", "--json", "--log", str(tmp_path / "log")))
    flows, span_s = report["flows"], report["capture"]["span_s"]
    assert flows["refused"] > 100 and report["drops"]["dropped_by_nf"] == flows["refused"]
    opened: Counter[str] = Counter()
    with sound(tmp_path / "log", monkeypatch) as history:
        for entry in history.entries():
            if entry.record is not None and isinstance(entry.record.body, FlowBody):
                source = entry.record.body.flow.source
                opened[str(ip_network(f"{source}/{48 if ':' in source else 24}", strict=False))] += 1
        buckets = history.state().owners["allowance"].state.by_network
    assert opened.total() == flows["opened"] and set(opened) <= set(buckets)
    assert max(opened.values()) == opened["192.168.1.0/24"] <= 20 + 0.5 * span_s
    assert opened["192.168.1.0/24"] > 20, "some were opened later"
    generous = json.loads(run("rate_limit", "--json", "--set", "burst=1e6"))["flows"]
    assert generous["refused"] == 0 and generous["opened"] > flows["opened"]


def names(capture: Path) -> Counter[str]:
    """The names that its queries ask for."""
    asked: Counter[str] = Counter()
    for p in packets(capture):
        if p.flow.protocol == 17 and p.flow.destination.port == 53 and not p.inner:
            asked[dpkt.dns.DNS(p.frame[p.transport + 8 : p.end]).qd[0].name.lower()] += 1
    return asked


def test_ask_first(tmp_path: Path) -> None:
    output = tmp_path / "out.pcap"
    report = json.loads(run("ask_first", "--json", "--write", str(output)))
    several = {p.flow.destination.address for p in packets(CAPTURE) if 224 <= int(p.destination.split(".")[0]) < 240}
    assert several and report["drops"]["dropped_by_offload"] > 0
    assert not several & {p.flow.destination.address for p in packets(output)}
    assert {p.destination for p in packets(CAPTURE)} - several == {p.destination for p in packets(output)}


def test_dns_guard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output, log = tmp_path / "out.pcap", tmp_path / "log"
    report = json.loads(run("dns_guard", "--json", "--write", str(output), "--log", str(log)))
    asked, passed = names(CAPTURE), names(output)
    bad = {name for name in asked if name.endswith("config.skype.com")}
    assert bad and passed == Counter({name: count for name, count in asked.items() if name not in bad})
    assert report["answered"] == sum(asked[name] for name in bad) and "dropped_by_nf" not in report["drops"]
    answers = [dpkt.dns.DNS(p.frame[p.transport + 8 : p.end]) for p in packets(output) if p.flow.source.port == 53]
    denied = Counter(answer.qd[0].name.lower() for answer in answers if answer.rcode == dpkt.dns.DNS_RCODE_NXDOMAIN)
    assert denied == Counter({name: asked[name] for name in bad})
    with sound(log, monkeypatch) as history:
        state = history.state().owners["names"].state
    assert state.good == {name: name not in bad for name in asked}
    assert state.denied == {name: asked[name] for name in bad}


def test_dns_guard_does_not_wait_for_ever(tmp_path: Path) -> None:
    output = tmp_path / "out.pcap"
    run("dns_guard", "--quiet", "--write", str(output), "--set", "patience_s=0.0001")
    assert names(output) == names(CAPTURE)


def test_edge(tmp_path: Path) -> None:
    """What the firewall forbids does not leave; all else that leaves has the external address."""
    output = tmp_path / "out.pcap"
    report = json.loads(run("edge", "--json", "--write", str(output)))
    assert names(CAPTURE) and not names(output)
    sources = {
        p.flow.source.address for p in packets(output) if not p.flow.destination.address.startswith("192.168.1.")
    }
    assert sources == {"203.0.113.1"} and report["offloaded"] > 1000


def test_web_watch() -> None:
    """Each connection with an attack in it is named, and no other."""
    attacked: dict[int, bool] = {}
    for p in packets(ROOT / "examples" / "captures" / "web_attack.pcap"):
        if p.flow.destination.port == 80:
            text = unquote_plus(p.frame[p.transport :].decode("latin-1"))
            found = re.search(r"union select|' (and|or) \d+=\d+", text, re.IGNORECASE) is not None
            attacked[p.flow.source.port] = attacked.get(p.flow.source.port, False) or found
    told = {int(port) for port in re.findall(r"sql-injection in tcp 172\.16\.0\.1:(\d+) >", run("web_watch"))}
    assert told == {port for port, found in attacked.items() if found} and 0 < len(told) < len(attacked)
