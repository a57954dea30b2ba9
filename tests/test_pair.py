"""What a pair tells of its nodes when a test fails."""

from __future__ import annotations

from pathlib import Path

import pytest

from actornet.testing.pair import STORY_LINES, Pair

_A = """\
{"pid":7,"event":"worker ready","node":"pair","role":"primary","worker":"node","timestamp":"2026-11-27T07:50:01.521536Z"}
pair primary ready: 1 core
Traceback (most recent call last):
3
{"event":"of somebody else"}
{"event":"stopping","node":"pair","role":"primary","worker":"node","timestamp":"2026-11-27T07:50:03.000001Z"}
"""
_B = """\
{"reason":"silent","event":"took over","role":"backup","worker":"owner-system","timestamp":"2026-11-27T07:50:02.1Z"}
"""


def test_the_story_of_both_nodes_is_in_order_of_time(tmp_path: Path) -> None:
    """Lines that are no events are told as they are: to fail on one would hide the error that the story is told with."""
    pair = Pair(tmp_path)
    pair.nodes = dict.fromkeys(("a", "b"))  # type: ignore[arg-type]  # whose processes do not matter here
    pair.output("a").write_text(_A)
    pair.output("b").write_text(_B)
    assert pair.story() == [
        "a 07:50:01.521536 node worker ready pid=7",
        "a 07:50:01.521536 pair primary ready: 1 core",
        "a 07:50:01.521536 Traceback (most recent call last):",
        "a 07:50:01.521536 3",
        'a 07:50:01.521536 {"event":"of somebody else"}',
        "b 07:50:02.1 owner-system took over reason=silent",
        "a 07:50:03.000001 node stopping",
    ]


@pytest.mark.root
def test_an_error_has_the_end_of_the_story(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="wrong") as raised, Pair(tmp_path) as pair:
        pair.nodes = dict.fromkeys("a")  # type: ignore[arg-type]
        pair.output("a").write_text("before\n" + "said\n" * STORY_LINES)
        raise ValueError("wrong")
    assert raised.value.__notes__ == ["What the nodes said last:" + "\na  said" * STORY_LINES]
