from typing import TypedDict

from actornet.engine.five_tuple import FiveTuple

RSS_KEY_STANDARD: bytes
RSS_KEY_SYMMETRIC: bytes
TUNNELS: tuple[str, ...]
REASONS: tuple[str, ...]

class Parsed(TypedDict):
    reason: str
    flow: FiveTuple | None
    port: int
    l3: int
    l4: int
    payload: int
    l3_end: int
    inner_l3: int
    inner_l4: int
    tunnel: str | None
    ttl: int
    dscp: int
    tcp_flags: int
    ip_options: bool
    icmp_error: bool
    vlan: bool
    udp_no_csum: bool

def parse(frame: bytes, port: int = 0, inner: tuple[str, ...] = ()) -> Parsed: ...
def rewrite(
    frame: bytes,
    *,
    source: str | None = None,
    source_port: int | None = None,
    destination: str | None = None,
    destination_port: int | None = None,
    decrement_ttl: bool = False,
    dscp: int | None = None,
    csum_partial: bool = False,
    csum_start: int | None = None,
    inner: tuple[str, ...] = (),
) -> bytes | None: ...
def checksums_right(frame: bytes, csum_partial: bool = False, inner: tuple[str, ...] = ()) -> bool: ...
def toeplitz(key: bytes, data: bytes) -> int: ...
def rss_hash(flow: FiveTuple) -> int: ...
def rss_core(flow: FiveTuple, cores: int, rss_key: bytes | None = None) -> int: ...
def rss_entry_core(entry: int, cores: int) -> int: ...

class Table:
    def __init__(self, entries_max: int, seed: int = 0, now_ns: int = 0, hash_mask: int = 0xFFFFFFFF) -> None: ...
    def __len__(self) -> int: ...
    @property
    def armed(self) -> int: ...
    @property
    def spilled(self) -> int: ...
    def find(self, flow: FiveTuple, port: int = 0, probed: int | None = None) -> int | None: ...
    def insert(self, flow: FiveTuple, port: int = 0) -> int | None: ...
    def remove(self, index: int) -> None: ...
    def flow(self, index: int) -> FiveTuple: ...
    def arm(self, index: int, deadline_ns: int) -> None: ...
    def disarm(self, index: int) -> None: ...
    def advance(self, now_ns: int, limit: int = 4096) -> list[int]: ...
