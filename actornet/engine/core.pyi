import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from actornet.engine.five_tuple import FiveTuple
from actornet.engine.handoff import Handoff
from actornet.engine.port import Port
from actornet.engine.ring import ControlPage, Ring

HANDLERS: tuple[str, ...]
FRAGMENT_POLICIES: tuple[str, ...]

class Core:
    nf: Any
    ports: list[Port]
    index: int
    cores: int
    link: Any
    host: Any
    on_error: Callable[[FiveTuple | None, str, BaseException], None] | None
    siblings: Sequence[Handoff | None]
    incarnation_next: int
    @property
    def now_ns(self) -> int: ...
    @property
    def suspended(self) -> int: ...
    @property
    def on_loop(self) -> int: ...
    @property
    def waiting_fragments(self) -> int: ...
    @property
    def held(self) -> int: ...
    @property
    def entries(self) -> int: ...
    def __init__(
        self,
        nf: Any,
        ports: list[Port],
        *,
        index: int = 0,
        cores: int = 1,
        flows_max: int = ...,
        loop: asyncio.AbstractEventLoop | None = None,
        host: Any = None,
        link: Any = None,
        virtual_time: bool = False,
        now_ns: int = 0,
        incarnation_first: int = 1,
    ) -> None: ...
    def breathe(self) -> int: ...
    def close_all(self, reason: str = "shutdown") -> int: ...
    def resume(self, port: int, packet: bytes) -> None: ...
    def announce(self) -> None: ...
    def share(self, page: ControlPage, replies: Ring) -> None: ...
    def drop_held(self) -> None: ...
    def commit_to(self, sequence: int) -> None: ...
    def redirect(self, flow: FiveTuple, port: str, core: int) -> None: ...
    def redirect_end(self, flow: FiveTuple, port: str) -> None: ...
    def restore(
        self,
        flow: FiveTuple,
        port: str,
        incarnation: int,
        asks: int,
        fields: list[tuple[str, Any]],
        keys: list[Any],
        idle_ns: int,
    ) -> None: ...
    def forget(self, flow: FiveTuple, port: str) -> None: ...
    def tell(self, flow: FiveTuple, message: Any, reply: Callable[[Any], None] | None = None) -> None: ...
    def actors(self) -> list[Any]: ...
    def count(self) -> dict[str, int]: ...
