from collections.abc import Callable, Iterable

from actornet.engine.port import Port

class MemoryPort(Port):
    def __init__(self, name: str, sink: Callable[[list[tuple[int, bytes]]], object] | None = None) -> None: ...
    def __len__(self) -> int: ...
    def feed(self, frames: Iterable[tuple[int, bytes | bytearray | memoryview]]) -> None: ...
    def take(self) -> list[tuple[int, bytes]]: ...

class LoopPort(Port):
    received_packets: int
    sent_packets: int
    sent_bytes: int
    def __init__(
        self,
        name: str,
        template: bytes,
        frame_bytes: int,
        *,
        count: int | None = None,
        time_ns: int = 0,
        interval_ns: int = 0,
    ) -> None: ...
    def play(self, template: bytes) -> None: ...
