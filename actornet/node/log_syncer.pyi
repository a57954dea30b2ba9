from actornet.errors import LogError
from actornet.log.store import Log

class LogSyncer:
    error: LogError | None
    synced: int
    syncs: int
    def __init__(self, log: Log) -> None: ...
    def soon(self) -> int: ...
    def close(self) -> None: ...
