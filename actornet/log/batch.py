"""Records of a log as they are sent to a backup."""

from __future__ import annotations

from actornet.engine.records import checked, verify_chain
from actornet.errors import LogDamagedError
from actornet.log.record import CHAIN_START, chain_of, decode
from actornet.log.store import Log


def read_batch(log: Log, first_lsn: int, last_lsn: int, bytes_max: int) -> list[bytes]:
    """The encoded records from `first_lsn` to `last_lsn`, no more than fit into `bytes_max` (but one), checked each.

    LogDamagedError: the first of them, or the one before it, is not what was logged; others end the batch.
    """
    records: list[bytes] = []
    size, expected = 0, first_lsn
    before = expected - 1
    chain = decode(log.read(before), before).chain if before >= max(1, log.first_lsn) else None
    if before == 0:
        chain = CHAIN_START
    try:
        for lsn, data in log.scan(first_lsn, last_lsn):
            if records and size + len(data) > bytes_max:
                break
            if lsn != expected:
                raise LogDamagedError(f"log {log.directory}: the record at LSN {expected} is missing")
            checked(data, lsn)
            chain = verify_chain(data, chain) if chain is not None else chain_of(data)
            records.append(data)
            size += len(data)
            expected += 1
    except LogDamagedError:
        if not records:
            raise
    return records
