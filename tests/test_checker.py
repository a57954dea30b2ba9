"""The checker finds what is planted: in frames made here, and in the frames and the log of a live takeover."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

import dpkt
import msgspec
import pytest

from actornet.replay import History
from actornet.testing.checker import AGAIN_NS, LATE_NS, UDP, Checker, Endpoint, Mapped, mappings, overlaps
from actornet.testing.pair import Pair
from actornet.testing.traffic import SERVER, Churn, TcpTransfer, UdpStream
from actornet.testing.wiretap import Frame, Wiretap
from tests.test_takeover import churn

EXTERNAL = "203.0.113.1"
INSIDE, OUTSIDE, REMOTE = Endpoint(UDP, "10.0.0.2", 4000), Endpoint(UDP, EXTERNAL, 6000), Endpoint(UDP, SERVER, 53)
OTHER = Endpoint(UDP, "10.0.0.3", 4000)


def frame(time_ns: int, sender: str, side: str, source: Endpoint, target: Endpoint, data: bytes = b"x") -> Frame:
    udp = dpkt.udp.UDP(sport=source.port, dport=target.port, data=data)
    udp.ulen = len(udp)
    addresses = (bytes(map(int, end.address.split("."))) for end in (source, target))
    ip = dpkt.ip.IP(p=UDP, src=next(addresses), dst=next(addresses), data=udp, id=7)
    ip.len = len(ip)
    return Frame(time_ns, sender, side, bytes(dpkt.ethernet.Ethernet(data=ip)))


OUT = frame(10, "client", "lan", INSIDE, REMOTE), frame(20, "a", "wan", OUTSIDE, REMOTE)
BACK = frame(30, "server", "wan", REMOTE, OUTSIDE), frame(40, "a", "lan", REMOTE, INSIDE)
LOG = [Mapped(OUTSIDE, INSIDE, 15)]


def problems(frames: list[Frame], log: list[Mapped] = LOG, takeovers: int = 0) -> list[str]:
    checker = Checker(EXTERNAL)
    checker.feed(frames)
    return checker.check(log, takeovers)


def test_what_is_right_is_right() -> None:
    assert problems([*OUT, *BACK]) == []
    checker = Checker(EXTERNAL)
    checker.feed([*OUT, *BACK])
    assert [(seen.outside, seen.inside, seen.first_ns, seen.last_ns) for seen in checker.translations] == [
        (OUTSIDE, {INSIDE}, 20, 40)
    ]


@pytest.mark.parametrize(
    ("frames", "log", "said"),
    [
        ([*OUT], [], "nothing of it"),
        ([*OUT], [Mapped(OUTSIDE, OTHER, 0)], "10.0.0.3:4000"),
        ([*OUT], [Mapped(OUTSIDE, INSIDE, 21)], "from 0.000000 on"),
        ([*OUT, OUT[1]], LOG, "it was sent once"),
        ([OUT[1]], LOG, "nobody sent that"),
        ([OUT[0], frame(20, "a", "wan", OUTSIDE, REMOTE, b"y")], LOG, "nobody sent that"),
        ([OUT[0], frame(20, "a", "wan", INSIDE, REMOTE)], LOG, "leaves with the address"),
        ([*OUT, BACK[0], frame(40, "a", "lan", REMOTE, OTHER)], LOG, "10.0.0.3"),
        (
            [*OUT, frame(30, "client", "lan", OTHER, REMOTE, b"z"), frame(40, "a", "wan", OUTSIDE, REMOTE, b"z")],
            LOG,
            "3",
        ),
        ([*OUT], [*LOG, Mapped(OUTSIDE, OTHER, 30)], "at once"),
        ([*OUT, BACK[0], frame(40, "b", "lan", REMOTE, INSIDE)], LOG, "by turns"),
    ],
)
def test_each_fault_is_found(frames: list[Frame], log: list[Mapped], said: str) -> None:
    found = problems(frames, log)
    assert len(found) == 1 and said in found[0]


@pytest.mark.parametrize(("at", "said"), [(14 + 8, "IP header"), (14 + 20 + 6, "checksum"), (14 + 28, "nobody sent")])
def test_a_flipped_bit_is_found(at: int, said: str) -> None:
    data = bytearray(OUT[1].data)
    data[at] ^= 1
    found = problems([OUT[0], Frame(20, "a", "wan", bytes(data))])
    assert any(said in line for line in found)


SECOND_OUT = frame(12, "client", "lan", INSIDE, REMOTE, b"y"), frame(45, "a", "wan", OUTSIDE, REMOTE, b"y")


def test_what_was_sent_before_a_takeover_may_be_seen_a_little_later() -> None:
    """G7: it is of a packet that had come before the other node sent anything; everything else is a second emitter's."""
    taken_over = [*OUT, BACK[0], frame(40, "b", "lan", REMOTE, INSIDE)]
    sent, late = SECOND_OUT
    assert problems([taken_over[0], sent, *taken_over[1:], late], takeovers=1) == []
    after = msgspec.structs.replace(sent, time_ns=42)
    assert "by turns" in problems([*taken_over, after, late], takeovers=1)[0]
    too_late = msgspec.structs.replace(late, time_ns=40 + LATE_NS + 1)
    assert "by turns" in problems([taken_over[0], sent, *taken_over[1:], too_late], takeovers=1)[0]


def test_the_node_that_takes_over_may_send_again_what_the_other_sent_last() -> None:
    again = frame(30, "b", "wan", OUTSIDE, REMOTE)
    assert problems([*OUT, again], takeovers=1) == []
    (found,) = problems([*OUT, again, again], takeovers=1)
    assert "it was sent once" in found
    (found,) = problems([*OUT, msgspec.structs.replace(again, time_ns=20 + AGAIN_NS + 1)], takeovers=1)
    assert "it was sent once" in found


def test_what_two_hosts_sent_alike_may_be_of_either() -> None:
    alike = [frame(10, "client", "lan", OTHER, REMOTE), *OUT]
    assert problems(alike) == []
    assert problems(alike, [Mapped(OUTSIDE, OTHER, 0)]) == []
    assert problems(alike, [Mapped(OUTSIDE, REMOTE, 0)]) != []
    assert list(overlaps([Mapped(OUTSIDE, INSIDE, 0, 30), Mapped(OUTSIDE, OTHER, 30)])) == []


@pytest.mark.root
def test_it_finds_what_is_planted_in_a_live_takeover(tmp_path: Path) -> None:
    """G3, G6, G7: nothing is wrong in what came from a real pair, and each doctored copy of it is."""
    inside = ["10.0.0.2", "10.0.0.3"]
    with Pair(tmp_path / "pair") as pair, Wiretap(pair.lab) as tap:
        pair.lab.ip("client", "addr add 10.0.0.3/24 dev eth0")
        pair.start()
        with UdpStream(pair.lab), TcpTransfer(pair.lab) as transfer, Churn(pair.lab, inside, range(4000, 4020), 1):
            time.sleep(0.5)
            churn(pair, 100, random.Random(1))
            pair.kill("a")
            pair.wait_takeover("b")
            time.sleep(0.5)
        assert transfer.outcome()
        pair.stop("b")
    frames = tap.take()
    with History(str(pair.log("b"))) as history:
        log = mappings(history)

    def found(frames: list[Frame], log: list[Mapped]) -> list[str]:
        return problems(frames, log, takeovers=1)

    assert found(frames, log) == []
    checker = Checker(EXTERNAL)
    checker.feed(frames)
    assert checker.frames["translated"] > 1000 and len(checker.translations) > 50
    assert [turn.node for turn in checker.senders] == ["a", "b"]

    seen = checker.translations[0]
    sent = [
        at for at, one in enumerate(frames) if one.sender == "a" and one.side == "wan" and one.data[12:14] == b"\x08\0"
    ]
    middle = sent[len(sent) // 2]

    def doctored(**changes: Any) -> list[Frame]:
        return [*frames[:middle], msgspec.structs.replace(frames[middle], **changes), *frames[middle + 1 :]]

    flipped = bytearray(frames[middle].data)
    flipped[26] ^= 1

    assert "nothing of it" in found(frames, [one for one in log if one.outside != seen.outside])[0]
    assert found(frames, [*log, Mapped(log[0].outside, OTHER, log[0].since_ns + 1)])
    assert any("checksum" in line for line in found(doctored(data=bytes(flipped)), log))
    assert "by turns" in found(doctored(sender="b"), log)[0]
    assert "sent once" in found(sorted([*frames, frames[middle]]), log)[0]
