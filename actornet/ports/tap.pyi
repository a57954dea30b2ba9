from actornet.ports.live import LivePort

class TapPort(LivePort):
    def __init__(
        self, name: str, interface: str, cores: int = 1, core: int = 0, mac: bytes | None = None
    ) -> None: ...
