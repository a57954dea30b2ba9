"""What the tests share."""

import os
import shutil

import pytest


@pytest.fixture(autouse=True)
def require_root(request: pytest.FixtureRequest) -> None:
    """Skip tests marked `root` where namespaces cannot be made."""
    if request.node.get_closest_marker("root") is None:
        return
    if os.geteuid() != 0:
        pytest.skip("needs root")
    if shutil.which("ip") is None:
        pytest.skip("needs `ip` (iproute2)")
