"""Drivers `pcap` and `memory`: what a core is given of a capture, and when."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from actornet.engine.five_tuple import FiveTuple
from actornet.engine.wire import parse, rss_core
from actornet.errors import CaptureError
from actornet.ports import recorded
from actornet.ports.drivers import open_ports
from actornet.ports.live import LivePort
from actornet.ports.pcap import CaptureWriter, read_capture
from actornet.ports.playback import Playback
from actornet.ports.recorded import LoadPort, PcapPort, Recording, Share
from actornet.ports.table import PortTable
from tests.live_ports import send, take, udp_frame

ARP = b"\xff" * 6 + bytes(6) + b"\x08\x06" + bytes(28)


def captured(path: Path, frames: list[tuple[int, bytes]]) -> str:
    """The frames, each with its time in ns."""
    with CaptureWriter(path) as writer:
        for time_ns, frame in frames:
            writer.write(time_ns, frame)
    return str(path)


def flows(count: int) -> list[bytes]:
    return [udp_frame(number, source_port=1000 + number) for number in range(count)]


def core_of(frame: bytes, cores: int) -> int:
    flow = parse(frame)["flow"]
    return rss_core(flow, cores) if flow is not None else 0


@pytest.mark.parametrize("driver", ["pcap", "memory"])
@pytest.mark.parametrize("cores", [1, 2, 3])
def test_each_core_is_given_what_it_is_the_home_of(tmp_path: Path, driver: str, cores: int) -> None:
    """G1: a flow's packets come to one core; every packet comes to one."""
    frames = [*flows(40), ARP]
    tables = {"lan": PortTable(driver=driver, read=captured(tmp_path / "in.pcap", [(0, each) for each in frames]))}  # type: ignore[arg-type]
    for core in range(cores):
        (port,) = open_ports(tables, cores=cores, core=core)
        assert (port.state, take(port, 1, seconds=0.01)) == ("passive", [])
        port.activate()
        mine = [each for each in frames if core_of(each, cores) == core]
        assert len(mine) > 5
        rounds = 2 if driver == "memory" else 1
        assert take(port, rounds * len(mine), seconds=5.0)[: rounds * len(mine)] == mine * rounds
        port.deactivate()
        assert take(port, 1, seconds=0.01) == []
        port.close()
        assert port.state == "closed"


def test_what_goes_by_is_passed_over_by_who_takes_over(tmp_path: Path) -> None:
    """A capture is a wire: a backup goes on where it is, and another deployment begins at its start."""
    early, late = udp_frame(1), udp_frame(2)
    path = captured(tmp_path / "in.pcap", [(5, early), (1000 * 10**9, late)])
    table = {"lan": PortTable(driver="pcap", read=path, speed=10_000)}
    (primary,) = open_ports(table, wire=1)
    (backup,) = open_ports(table, wire=1, follows=True)
    (stranger,) = open_ports(table, wire=2, follows=True)
    primary.activate()
    assert take(primary, 1) == [early]
    assert take(backup, 1, seconds=0.01) == []
    primary.close()
    backup.activate()
    assert take(backup, 1) == [late]
    stranger.activate()
    assert take(stranger, 2) == [early, late]
    for port in (backup, stranger):
        port.close()


def test_a_core_that_comes_late_misses_nothing(tmp_path: Path) -> None:
    """The cores of a node that is launched do not become active in one instant."""
    frames = flows(20)
    table = {"lan": PortTable(driver="pcap", read=captured(tmp_path / "in.pcap", [(0, each) for each in frames]))}
    ports = [open_ports(table, cores=2, core=core, wire=1)[0] for core in range(2)]
    ports[0].activate()
    time.sleep(0.05)
    ports[1].activate()
    given = [frame for port in ports for frame in take(port, len(frames), seconds=0.1)]
    assert sorted(given) == sorted(frames)
    for port in ports:
        port.close()


def test_a_port_says_once_that_its_capture_has_ended(tmp_path: Path) -> None:
    path = captured(tmp_path / "in.pcap", [(0, each) for each in flows(3)])
    with open(path, "ab") as file:
        file.write(b"torn")
    (port,) = open_ports({"lan": PortTable(driver="pcap", read=path, speed=0)})
    told: list[str] = []

    def tell(port: LivePort, what: str) -> None:
        told.append(f"{port.noun} {port.device} {what}")

    port.on_link = tell
    port.activate()
    assert take(port, 4, seconds=0.05) == flows(3)
    assert len(told) == 1
    assert told[0].startswith(f"capture {path} has ended: the file ends inside a packet header (at byte ")
    assert port.state == "up"
    port.close()


def test_the_answers_of_a_flow_that_another_node_had_are_addressed_as_that_one_emitted_it(tmp_path: Path) -> None:
    """G6: a translation goes on after a takeover, so the capture's answers go to it."""
    asked = parse(udp_frame(1).replace(b"\x0a\0\0\2", b"\xc6\x33\x64\1"))["flow"]
    assert asked is not None
    answer = udp_frame(1)
    answer = answer[:26] + b"\xc6\x33\x64\1" + answer[26:30] + answer[36:38] + answer[34:36] + answer[38:]
    path = captured(tmp_path / "in.pcap", [(0, answer)])
    playback = Playback(lan=0, wan=1)
    recording = Recording([(path, None)], Share(), playback)
    lan, wan = PcapPort("lan", 0, recording), PcapPort("wan", 1, recording)
    outside = FiveTuple(asked.protocol, asked.destination, asked.destination_port, "203.0.113.1", 999)
    recording.restored(asked, 0, [(outside, "wan")])
    lan.activate()
    wan.activate()
    (given,) = take(lan, 1)
    assert parse(given)["flow"] == outside
    assert playback.readdressed == 1
    lan.close()
    wan.close()


def test_what_leaves_is_appended_whoever_writes(tmp_path: Path) -> None:
    frames = flows(6)
    out = tmp_path / "out.pcap"
    table = {"wan": PortTable(driver="pcap", write=str(out))}
    ports = [open_ports(table)[0] for _ in range(2)]
    assert send(ports[0], frames[:2]) == 2
    assert send(ports[1], frames[2:4]) == 2
    with out.open("ab") as file:  # killed while it wrote
        file.write(bytes(8) + b"\x40\0\0\0" + b"\x40\0\0\0" + b"part of a frame")
    assert send(ports[0], frames[4:]) == 2
    with read_capture(out) as capture:
        assert [frame for _, frame, _ in capture] == frames
        assert capture.damage is None
    for port in ports:
        port.close()


@pytest.mark.parametrize(
    ("content", "name", "error"),
    [
        (b"notes", "out.pcap", "a file that is no capture of a port's is there; name another"),
        (b"", "out.pcap.gz", "what is appended to cannot be compressed; name a file without .gz"),
        (None, "absent/out.pcap", "cannot be written: No such file or directory"),
        ("damaged", "out.pcap", "damaged at byte 24; name another file"),
    ],
)
def test_nothing_is_appended_to_what_is_no_capture(
    tmp_path: Path, content: bytes | str | None, name: str, error: str
) -> None:
    out = tmp_path / name
    if content == "damaged":
        content = recorded.CaptureAppender.HEADER + bytes(8) + b"\xff" * 8
    if content is not None:
        assert isinstance(content, bytes)
        out.write_bytes(content)
    with pytest.raises(CaptureError, match=f"{name}: {error}"):
        open_ports({"wan": PortTable(driver="pcap", write=str(out))})
    assert not out.exists() or out.read_bytes() == (content or b"")


def test_a_rate_that_a_core_does_not_keep_up_with_is_counted(tmp_path: Path) -> None:
    path = captured(tmp_path / "in.pcap", [(0, each) for each in flows(5)])
    port = LoadPort("lan", 0, Share(), path, packets_per_s=1_000_000)
    port.activate()
    time.sleep(0.1)
    given = take(port, 1)
    assert 0 < len(given) <= 64
    assert port.counters["rx_missed"] > 50_000
    port.close()


def test_two_ports_share_a_capture_as_inside_and_outside(tmp_path: Path) -> None:
    inside, outside = udp_frame(1), udp_frame(2).replace(b"\x0a\0\0\1", b"\xc6\x33\x64\1")
    path = captured(tmp_path / "in.pcap", [(0, inside), (0, outside)])
    table = PortTable(driver="memory", read=path)
    lan, wan = open_ports({"lan": table, "wan": table})
    for port, frame in ((lan, inside), (wan, outside)):
        port.activate()
        assert set(take(port, 4)) == {frame}
        port.close()
