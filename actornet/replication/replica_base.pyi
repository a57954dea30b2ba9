from collections.abc import Callable
from typing import Any, NamedTuple

from actornet.log.record import Body, FlowBody
from actornet.owner import Moment

Recorded = tuple[int, bytes, bytes, bytes]
"""An ask and its reply: number, target, args, reply."""

def error_reply(type_name: str, text: str) -> bytes: ...
def is_stale(incarnation: int, recorded: OpenAsks | None, saved: bytes | None) -> bool: ...

class Asked(NamedTuple):
    key: bytes
    before: int

class OpenAsks(list[Recorded]):
    highest: int
    newest: int
    packet: bytes
    @property
    def before(self) -> int: ...
    def __init__(self, incarnation: int, entry: Recorded, packet: bytes) -> None: ...
    def remember(self, incarnation: int, entry: Recorded, packet: bytes) -> None: ...

class ReplicaBase:
    lsn: int
    epoch: int
    time_ns: int
    flows: dict[bytes, bytes]
    asks: dict[bytes, OpenAsks]
    @property
    def unfinished(self) -> dict[bytes, OpenAsks]: ...
    def __init__(self, moment: Moment) -> None: ...
    @property
    def revocations(self) -> int: ...
    def execute_ask(self, request: bytes, time_ns: int) -> tuple[bytes | None, bytes]: ...
    def execute_save(self, body: bytes, time_ns: int) -> None: ...
    def apply_record(self, head: tuple[int, int, int, int, int, int], data: bytes) -> Body | Asked | bytes | None: ...
    def keep_asks(self, key: bytes, recorded: OpenAsks) -> None: ...
    def forget_asks(self, key: bytes) -> None: ...
    def _handle(
        self,
        target: bytes,
        run: Callable[..., Any],
        decode: Callable[[bytes], tuple[Any, ...]],
        normalise: Callable[[bytes], tuple[int, Any]] | None,
    ) -> None: ...
    def _apply_save(self, body: FlowBody) -> None: ...
    def _reply_to(
        self,
        key: bytes | None,
        target: bytes,
        args: bytes,
        incarnation: int,
        number: int,
        packet: bytes,
        lsn: int,
        time_ns: int,
    ) -> bytes: ...
