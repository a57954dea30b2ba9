VERSION: int
HEADER_BYTES: int

def seal(
    kind: int, core: int, epoch: int, lsn: int, time_ns: int, body: bytes, chain_previous: int
) -> tuple[bytes, int]: ...
