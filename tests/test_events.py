"""Operational events."""

import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from actornet.node.events import Outlet, configure, later


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """What has been written so far."""
    path = tmp_path / "stderr"
    with path.open("w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        configure(node="a")
    yield lambda: [json.loads(line) for line in path.read_text().splitlines()]
    structlog.reset_defaults()


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


def test_what_is_told_within_later_is_written_at_its_end(told: Any) -> None:
    """In order, with the time at which it happened, and also if the block fails; other threads do not wait."""
    log = structlog.get_logger()
    with pytest.raises(ZeroDivisionError), later:
        log.info("first", detail="x")
        try:
            raise ValueError("seen")
        except ValueError:
            log.exception("second")
        other = threading.Thread(target=lambda: log.warning("other"))
        other.start()
        other.join()
        assert [event["event"] for event in told()] == ["other"]
        raise ZeroDivisionError
    log.info("third")
    other, first, second, third = told()
    assert [each["event"] for each in (first, second, third)] == ["first", "second", "third"]
    assert first["timestamp"] < second["timestamp"] < other["timestamp"] < third["timestamp"]
    assert first["detail"] == "x" and first["node"] == "a" and "ValueError: seen" in second["exception"]
