from actornet.log.store import Log
from actornet.replication.replica import Replica

class JournalBase:
    log: Log | None
    replica: Replica
    chain: int
    _queue: list[tuple[int, bytes]]
    def ask(self, core: int, request: bytes, time_ns: int) -> bytes: ...
    def save(self, core: int, body: bytes, time_ns: int) -> None: ...
