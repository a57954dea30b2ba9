from typing import Any

class Settling:
    @property
    def due(self) -> list[Any]: ...
    wait_ns: int
    def end(self) -> int: ...
