from collections.abc import Callable, Iterable

from actornet.engine.port import Port
from actornet.ports.playback import Playback

class CaptureFeed:
    ports: list[CapturePort]
    playback: Playback | None
    suspended: Callable[[], bool] | None
    exhausted: bool
    packets: int
    total_bytes: int
    first_ns: int | None
    last_ns: int | None
    def __init__(
        self,
        sources: Iterable[tuple[Iterable[tuple[int, bytes, int]], int]],
        playback: Playback | None = None,
    ) -> None: ...

class CapturePort(Port):
    feed: CaptureFeed
    packets_in: int
    bytes_in: int
    packets_out: int
    bytes_out: int
    def __init__(
        self, name: str, feed: CaptureFeed, outlets: Iterable[list[tuple[int, bytes, int]]] = ()
    ) -> None: ...
