from typing import Literal

from actornet.errors import PortError
from actornet.ports.live import LivePort

class QueueBusyError(PortError): ...

class AfXdpPort(LivePort):
    queues: int
    def __init__(
        self,
        name: str,
        interface: str,
        group: int = 0,
        cores: int = 1,
        core: int = 0,
        mac: bytes | None = None,
        native: bool | None = None,
    ) -> None: ...
    @property
    def mode(self) -> Literal["native", "generic", ""]: ...
