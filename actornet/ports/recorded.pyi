from collections.abc import Callable, Iterable, Sequence

from actornet.engine.five_tuple import FiveTuple
from actornet.engine.rss import RssKeys
from actornet.ports.live import LivePort
from actornet.ports.playback import Playback

class Share:
    def __init__(
        self, cores: int = 1, core: int = 0, rss_keys: tuple[RssKeys, RssKeys] | None = None
    ) -> None: ...

class Recording:
    playback: Playback | None
    def __init__(
        self,
        reads: Sequence[tuple[str, int | None]],
        share: Share,
        playback: Playback | None = None,
        speed: float = 1.0,
        group: int | None = None,
        follows: bool = False,
    ) -> None: ...
    def restored(self, flow: FiveTuple, port: int, bound: Iterable[tuple[FiveTuple, str]]) -> None: ...
    def play(self) -> None: ...
    def pause(self) -> None: ...
    def close(self) -> None: ...

class RecordedPort(LivePort):
    def wait_for(self, waiting: Callable[[], int]) -> None: ...

class PcapPort(RecordedPort):
    recording: Recording
    def __init__(
        self,
        name: str,
        index: int,
        recording: Recording,
        read: str | None = None,
        write: str | None = None,
    ) -> None: ...

class LoadPort(RecordedPort):
    def __init__(
        self,
        name: str,
        index: int,
        share: Share,
        read: str | None = None,
        packets_per_s: float | None = None,
        playback: Playback | None = None,
    ) -> None: ...
