from collections.abc import Callable

from actornet.engine.core import Core
from actornet.engine.five_tuple import FiveTuple

def restore_plain(
    core: Core,
    flow: FiveTuple,
    port: int,
    incarnation: int,
    asks: int,
    state: bytes,
    tell: Callable[[str], None] | None,
) -> bool: ...
