"""What the tests share."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked `root` where namespaces cannot be made."""
    if os.geteuid() != 0:
        reason = "needs root"
    elif shutil.which("ip") is None:
        reason = "needs `ip` (iproute2)"
    else:
        return
    for item in items:
        if item.get_closest_marker("root") is not None:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture
def nat(tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Makes NATs with a log each; all are checked at the end."""
    from tests.nat_bench import Nat

    made: list[Nat] = []

    def make(**settings: Any) -> Nat:
        made.append(Nat(tmp_path / f"log{len(made)}", **settings))
        return made[-1]

    yield make
    for one in made:
        one.finish()
