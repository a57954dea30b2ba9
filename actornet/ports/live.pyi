from collections.abc import Callable
from typing import Literal

from actornet.engine.port import Port

class LivePort(Port):
    device: str
    ifindex: int
    cores: int
    core: int
    on_link: Callable[[LivePort, str], None] | None
    def __init__(
        self, name: str, interface: str, cores: int = 1, core: int = 0, mac: bytes | None = None
    ) -> None: ...
    @property
    def noun(self) -> str: ...
    @property
    def state(self) -> Literal["passive", "up", "down", "closed"]: ...
    def attached(self) -> bool: ...
    def deactivate(self) -> None: ...

def forward(first: Port, second: Port, packets: int = 0, seconds: float = 0.0) -> int: ...
