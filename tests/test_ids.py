"""The IDS on a real attack, and against ways to hide one; what it should find is found by dpkt and a plain search."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote_plus

import pytest

from actornet.cli.main import main
from actornet.embedded import Embedded
from actornet.ports.memory import MemoryPort
from actornet.replay.history import History
from actornet.replay.verification import verify
from actornet.testing.tcp_endpoint import ACK, FIN, PSH, RST, SYN
from actors.ids import IDS, Incidents
from tests import frames
from tests.test_stream import CLIENT, SERVER, header, reassembled

CAPTURE = Path(__file__).parent / "captures" / "WebattackSQLinj.pcap"
ATTACK = re.compile(r"union select|' (?:and|or) \d+=\d+", re.IGNORECASE)


def watch(tmp_path: Path, *settings: str) -> tuple[Incidents, dict[tuple[Any, ...], bytes]]:
    """Runs the IDS over the capture; what its owner knows then, by the log, and the streams that passed."""
    log, out = tmp_path / "log", tmp_path / "out.pcap"
    more = [part for text in settings for part in ("--set", text)]
    command = ["run", "actors.ids:IDS", "--read", str(CAPTURE), "--inside", "172.16.0.0/16", "--as-is", "--quiet"]
    assert main([*command, "--log", str(log), "--write", str(out), *more]) == 0
    with History(log) as history:
        assert verify(history).problem is None
        return history.state().owners["sentinel"].state, reassembled(out)


def attacks() -> dict[tuple[Any, ...], int]:
    """Connections with an attack in them, and how many lines hold one."""
    found = {}
    for key, data in reassembled(CAPTURE).items():
        if key[3] == 80:
            lines = data.decode("latin-1").split("\r\n")  # the Referer of a harmless request may hold one, too
            count = sum(1 for line in lines if ATTACK.search(unquote_plus(line)))
            if count:
                found[key] = count
    return found


def test_every_attack_is_noted_and_nothing_else_touched(tmp_path: Path) -> None:
    incidents, passed = watch(tmp_path, "block=false")
    assert passed == reassembled(CAPTURE)
    found = attacks()
    assert len(found) > 2
    assert {alert.flow.source_port for alert in incidents.alerts} == {key[1] for key in found}
    assert {alert.rule for alert in incidents.alerts} == {"sql-injection"} and not incidents.blocked
    assert all(ATTACK.search(alert.excerpt) for alert in incidents.alerts)


def test_an_attacker_is_shut_out(tmp_path: Path) -> None:
    incidents, passed = watch(tmp_path)
    assert list(incidents.blocked) == ["172.16.0.1"] and len(incidents.alerts) == 1
    for key, data in passed.items():
        if key[3] == 80:
            assert not ATTACK.search(unquote_plus(data.decode("latin-1")))


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
def test_an_attack_in_pieces_is_found_before_it_is_whole(order: tuple[int, ...]) -> None:
    lan, wan = MemoryPort("lan"), MemoryPort("wan")
    node = Embedded(IDS, [lan, wan], {}, virtual_time=True)

    def send(*packets: bytes) -> list[bytes]:
        lan.feed([(10**18, packet) for packet in packets])
        node.run_burst()
        return [bytes(frame) for _, frame in wan.take()]

    send(frames.tcp(*CLIENT, *SERVER, SYN, seq=99))
    pieces = [(b"GET /?q=%3Csc", 100), (b"rip", 113), (b"t%3E HTTP/1.1", 116)]
    out = [frame for i in order for frame in send(frames.tcp(*CLIENT, *SERVER, ACK, pieces[i][0], seq=pieces[i][1]))]
    assert b"t%3E" not in b"".join(frame[54:] for frame in out) and header(out[-1])[3] & RST
    assert send(frames.tcp(*CLIENT, *SERVER, ACK, b"more", seq=129)) == []
    assert send(frames.tcp("10.0.0.2", 7777, *SERVER, SYN, seq=5)) == [], "and the client is shut out"
    node.finish()


def stream_node() -> tuple[Any, Any]:
    """The IDS between two ports, and a function that sends packets of (port, frame) at a second."""
    lan, wan = MemoryPort("lan"), MemoryPort("wan")
    node = Embedded(IDS, [lan, wan], {}, virtual_time=True)

    def send(at_s: float, *packets: bytes, to: MemoryPort = lan) -> list[bytes]:
        to.feed([(10**18 + int(at_s * 10**9), packet) for packet in packets])
        node.run_burst()
        lan.take()
        return [bytes(frame) for _, frame in wan.take()]

    return node, lambda at_s, *packets, back=False: send(at_s, *packets, to=wan if back else lan)


BETWEEN = {
    "nothing": [],
    "an RST beyond the window": [frames.tcp(*CLIENT, *SERVER, RST, seq=500_112)],
    "an RST below the window": [frames.tcp(*CLIENT, *SERVER, RST | ACK, seq=50, ack=500)],
    "an RST one byte off": [frames.tcp(*CLIENT, *SERVER, RST, seq=113)],
    "a SYN with other bytes": [frames.tcp(*CLIENT, *SERVER, SYN, b"xxxxxxxxxxxxxx", seq=111)],
    "a SYN far away": [frames.tcp(*CLIENT, *SERVER, SYN, seq=7_000_000)],
    "a FIN beyond the window": [frames.tcp(*CLIENT, *SERVER, FIN | ACK, seq=114, ack=500)],
}


@pytest.mark.parametrize("pause_s", [0.1, 90, 7000])
@pytest.mark.parametrize("between", BETWEEN)
def test_what_the_server_ignores_hides_nothing(between: str, pause_s: float) -> None:
    """RFC 5961 sections 3.2 and 4.2: an RST or SYN that is not where the server waits does not end its connection."""
    node, send = stream_node()
    send(0, frames.tcp(*CLIENT, *SERVER, SYN, seq=99))
    send(0, frames.tcp(*SERVER, *CLIENT, SYN | ACK, seq=499, ack=100), back=True)
    send(0, frames.tcp(*CLIENT, *SERVER, ACK, seq=100, ack=500))
    assert len(send(0, frames.tcp(*CLIENT, *SERVER, ACK | PSH, b"GET /?q=<scr", seq=100, ack=500))) == 1
    send(0, frames.tcp(*SERVER, *CLIENT, ACK, seq=500, ack=112), back=True)
    for packet in BETWEEN[between]:
        send(1, packet)
    # Somebody else's packets let the clock go on meanwhile.
    send(1 + pause_s / 2, frames.udp("10.0.0.9", 7, "198.51.100.1", 53))
    out = send(1 + pause_s, frames.tcp(*CLIENT, *SERVER, ACK | PSH, b"ipt>alert(1) HTTP/1.0", seq=112, ack=500))
    assert [header(frame)[3] & RST for frame in out] == [RST] and b"alert" not in b"".join(out)
    node.finish()


@pytest.mark.parametrize("pause_s", [0.1, 30])
def test_a_port_that_is_used_again_is_searched_again(pause_s: float) -> None:
    """What was said about a connection of which enough was seen does not hold for the next one of the same ports."""
    lan, wan = MemoryPort("lan"), MemoryPort("wan")
    node = Embedded(IDS, [lan, wan], {"depth_bytes": 10}, virtual_time=True)

    def send(at_s: float, *packets: bytes) -> list[bytes]:
        lan.feed([(10**18 + int(at_s * 10**9), packet) for packet in packets])
        node.run_burst()
        return [bytes(frame) for _, frame in wan.take()]

    words = b"nothing but <scr"
    send(0, *[frames.tcp(*CLIENT, *SERVER, flags, data, seq=seq, ack=500) for flags, data, seq in (
        (SYN, b"", 99), (ACK, words, 100), (ACK, b"<script", 116), (ACK | FIN, b"", 123))])  # fmt: skip
    assert node.counters()["offloaded"] == 1
    first = send(
        pause_s, frames.tcp(*CLIENT, *SERVER, SYN, seq=7_000), frames.tcp(*CLIENT, *SERVER, ACK, b"ipt>", seq=7_001)
    )
    assert len(first) == 2, "what the old connection ended with is not part of the new one"
    (end,) = send(pause_s, frames.tcp(*CLIENT, *SERVER, ACK, b"<script>", seq=7_005))
    assert header(end)[3] & RST
    node.finish()


@pytest.mark.parametrize("acknowledged", [112, 100])
def test_an_rst_that_the_server_takes_ends_the_connection(acknowledged: int) -> None:
    """RFC 5961 section 3.2: exactly the next number. Unless all was acknowledged it waits for some minutes."""
    node, send = stream_node()
    send(0, frames.tcp(*CLIENT, *SERVER, SYN, seq=99))
    send(0, frames.tcp(*SERVER, *CLIENT, SYN | ACK, seq=499, ack=100), back=True)
    send(0, frames.tcp(*CLIENT, *SERVER, ACK | PSH, b"GET /?q=<scr", seq=100, ack=500))
    send(0, frames.tcp(*SERVER, *CLIENT, ACK, seq=500, ack=acknowledged), back=True)
    send(1, frames.tcp(*CLIENT, *SERVER, RST, seq=112))
    assert node.counters()["live_flows"] == (acknowledged != 112)
    send(243, frames.udp("10.0.0.9", 7, "198.51.100.1", 53))
    assert node.counters()["live_flows"] == 1, "the other one"
    node.finish()


@pytest.mark.parametrize(("rules", "problem"), [("a=(", "unterminated"), ("nothing", "write name=pattern")])
def test_rules_are_checked_at_the_start(rules: str, problem: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "actors.ids:IDS", "--read", str(CAPTURE), "--set", f"rules={rules}"]) != 0
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "setting 'rules'" in told and problem in told
