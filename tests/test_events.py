"""Operational events."""

import sys
from pathlib import Path

import pytest

from actornet.node.events import Outlet


def test_an_event_is_written_to_no_other_file_that_got_the_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """G8: a log of records once got a line of text in its first page."""
    with (tmp_path / "stderr").open("w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        number = stream.fileno()
        outlet = Outlet()
    with (tmp_path / "data").open("w") as data:
        assert data.fileno() == number
        outlet.write("an event\n")
    assert (tmp_path / "data").read_text() == ""
    assert (tmp_path / "stderr").read_text() == "an event\n"
