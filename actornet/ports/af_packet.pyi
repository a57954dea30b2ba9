from actornet.engine.rss import RssKeys
from actornet.ports.live import LivePort
from actornet.ports.live import forward as forward

class AfPacketPort(LivePort):
    def __init__(
        self,
        name: str,
        interface: str,
        cores: int = 1,
        core: int = 0,
        mac: bytes | None = None,
        rss_keys: tuple[RssKeys, RssKeys] | None = None,
    ) -> None: ...
