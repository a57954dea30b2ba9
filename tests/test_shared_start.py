"""When a capture began, for all that play it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from actornet.ports.shared_start import SharedStart


def test_all_agree_until_the_last_one_ends(tmp_path: Path) -> None:
    capture = tmp_path / "in.pcap"
    capture.touch(0o444)
    first, second, other = (SharedStart(str(capture), group) for group in (7, 7, 8))
    assert first.find() is None
    assert first.join(1000) == 1000
    assert other.find() is None and other.join(3000) == 3000
    assert second.find() == 1000
    first.close()
    third = SharedStart(str(capture), 7)
    assert third.join(2000) == 1000
    for each in (second, third, other):
        each.close()
    late = SharedStart(str(capture), 7)
    assert late.find() is None
    late.close()


def test_those_who_come_at_once_agree(tmp_path: Path) -> None:
    capture = tmp_path / "in.pcap"
    capture.touch()
    with ThreadPoolExecutor(4) as pool:
        for _ in range(20):
            starts = [SharedStart(str(capture), 1) for _ in range(4)]
            found = list(pool.map(SharedStart.join, starts, range(5000, 4996, -1)))
            for each in starts:
                each.close()
            assert len(set(found)) == 1
