"""What somebody without privileges and interfaces can see of a pair: `driver = "pcap"` and `"memory"`, live, over loopback."""

from __future__ import annotations

import re
from pathlib import Path

from actornet.cli.main import main
from actornet.replay import History, verify
from tests.capture_pair import CapturePair, by_flow, surplus, write_capture
from tests.live_ports import until
from tests.test_drivers import frame

FLOWS, ROUNDS, INTERVAL_NS = 40, 150, 2_500_000
"""30 s of a packet and its answer per flow every 200 ms."""

PCAP = 'driver = "pcap"\nread = "in.pcap"\nwrite = "{}.pcap"'


def conversations() -> list[bytes]:
    """Each flow's packets, answered, as they are where nothing translates."""
    frames = []
    for number in range(ROUNDS):
        for flow in range(FLOWS):
            inside, outside = (bytes((10, 0, 0, 2 + flow % 7)), 2000 + flow), (b"\xc6\x33\x64\1", 53 + flow % 3)
            tcp = None if flow % 2 else (0x02, 0x10)[number > 0]
            answer = None if flow % 2 else (0x12, 0x10)[number > 0]
            frames += [frame(inside, outside, tcp, 2 * number), frame(outside, inside, answer, 2 * number + 1)]
    return frames


def test_the_primary_is_killed_and_the_traffic_goes_on(tmp_path: Path) -> None:
    """G3, G4, G6: the backup goes on in the capture where the primary was, with its translations, and nothing to replay."""
    write_capture(tmp_path / "in.pcap", conversations(), INTERVAL_NS)
    with CapturePair(tmp_path, PCAP.format("lan"), PCAP.format("wan")) as pair:
        pair.start()
        pair.wait_for_frames(200, "wan.pcap")
        assert "passive" in pair.command("status", "b")
        pair.kill("a")
        taken = pair.wait_takeover("b")
        before = pair.frames("lan.pcap", "wan.pcap")
        pair.wait_for_frames(len(before) + 6 * FLOWS, "lan.pcap", "wan.pcap")
        status = pair.command("status", "b")
        pair.stop("b")
        frames = pair.frames("lan.pcap", "wan.pcap")
    assert (taken["records_replayed"], taken["flows"]) == (0, FLOWS)
    assert f"flows_opened {FLOWS}" not in status and re.search(r"port lan +up", status)
    assert by_flow(before).keys() == by_flow(surplus(frames, before)).keys(), "all flows have gone on"
    run = ["run", "actors.nat:SourceNAT", "--read", str(tmp_path / "in.pcap"), "--write", str(tmp_path / "run.pcap")]
    assert main([*run, "--set", "address=203.0.113.1", "--quiet"]) == 0
    assert not surplus(frames, pair.frames("run.pcap")), "each packet once, and translated as ever"
    for log in ("log-a", "log-b"):
        with History(tmp_path / log) as history:
            assert verify(history).problem is None


def test_memory_ports_put_load_on_every_core(tmp_path: Path) -> None:
    """A load generator within the node, without privileges; what it offers is forwarded, and a backup follows."""
    write_capture(tmp_path / "in.pcap", conversations()[: 2 * FLOWS], 0)
    lan = 'driver = "memory"\nread = "in.pcap"\npackets_per_s = 4000'
    with CapturePair(tmp_path, lan, 'driver = "memory"\nread = "in.pcap"', cores=2) as pair:
        pair.start()

        def sent() -> list[int]:
            cores = [pair.worker("a", f"core-{core}")["status"]["counters"] for core in range(2)]
            return [core["tx_packets"] for core in cores]

        until(lambda: min(sent()) > 10 * FLOWS, seconds=20)
        assert pair.worker("b", "owner-system")["status"]["flows"] == FLOWS


def test_a_capture_that_is_none_is_named_in_one_line(tmp_path: Path) -> None:
    """Before any process of the node has begun."""
    (tmp_path / "in.pcap").write_bytes(b"no capture at all")
    with CapturePair(tmp_path, PCAP.format("lan"), 'driver = "memory"') as pair:
        process = pair.begin("a", "primary")
        assert process.wait(20) == 1
        printed = pair.printed("a")
    assert printed == (
        f"actornet: {tmp_path}/in.pcap: not a capture file (it begins with bytes 6e 6f 20 63); "
        "give a pcap or pcapng file\n"
    )


def test_captures_give_what_run_gives_on_any_number_of_cores(tmp_path: Path) -> None:
    """G1: per flow, the frames that `actornet run --read` writes, in the same order, byte for byte."""
    frames = conversations()[: 2 * FLOWS * 6]
    run = ["run", "actors.nat:SourceNAT", "--read", str(tmp_path / "in.pcap"), "--write", str(tmp_path / "run.pcap")]
    write_capture(tmp_path / "in.pcap", frames, 1_000_000)
    assert main([*run, "--set", "address=203.0.113.1", "--quiet"]) == 0
    for cores in (1, 2, 4):
        directory = tmp_path / str(cores)
        directory.mkdir()
        both = 'driver = "pcap"\nread = "../in.pcap"\nwrite = "out.pcap"'
        with CapturePair(directory, both, both, cores=cores) as node:
            node.launch("a", "primary")
            node.wait_for_frames(len(frames), "out.pcap")
            node.stop("a")
            assert by_flow(node.frames("out.pcap")) == by_flow(node.frames("../run.pcap"))
