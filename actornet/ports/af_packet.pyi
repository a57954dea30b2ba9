from typing import Literal

from actornet.engine.port import Port

class AfPacketPort(Port):
    device: str
    ifindex: int
    def __init__(
        self,
        name: str,
        interface: str,
        fanout_group: int = 0,
        cores: int = 1,
        core: int = 0,
        mac: bytes | None = None,
    ) -> None: ...
    @property
    def state(self) -> Literal["passive", "up", "down", "closed"]: ...
    def deactivate(self) -> None: ...

def forward(first: Port, second: Port, packets: int = 0, seconds: float = 0.0) -> int: ...
