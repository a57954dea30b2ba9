"""What the tests share."""

import os
import shutil

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
