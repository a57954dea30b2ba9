from collections.abc import Iterable

from actornet.engine.five_tuple import FiveTuple

INSIDE_DEFAULT: tuple[str, ...]

class Playback:
    readdressed: int
    forgotten: int
    def __init__(self, inside: Iterable[str] = ..., lan: int = 0, wan: int = 1, as_is: bool = False) -> None: ...
    def settle(self) -> None: ...
    def remember(self, flow: FiveTuple, answer: FiveTuple) -> None: ...
