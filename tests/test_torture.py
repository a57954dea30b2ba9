"""A few rounds of failover and failback under many connections; `python -m actornet.testing.torture` does more."""

import os
import random
from pathlib import Path

import pytest

from actornet.testing.torture import torture

pytestmark = pytest.mark.root

SEED = int(os.environ.get("KILL_SEED", "0")) or random.SystemRandom().getrandbits(32)


def test_connections_outlive_any_number_of_takeovers(tmp_path: Path) -> None:
    """G3, G5, G6, G8: none is reset or closed, no byte is wrong, nothing is replayed, and both logs are sound."""
    result = torture(tmp_path / "pair", rounds=6, connections=200, seed=SEED)
    assert result.good and result.exchanges > 200, (SEED, result)
