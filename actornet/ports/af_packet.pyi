from actornet.ports.live import LivePort
from actornet.ports.live import forward as forward

class AfPacketPort(LivePort):
    def __init__(
        self,
        name: str,
        interface: str,
        fanout_group: int = 0,
        cores: int = 1,
        core: int = 0,
        mac: bytes | None = None,
    ) -> None: ...
