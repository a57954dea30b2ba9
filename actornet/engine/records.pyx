"""A log record's header, written and checked: see `actornet.log.record`, which has the layout."""

from zlib import crc32

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from xxhash import xxh3_64_intdigest

cdef enum:
    VERSION_HERE = 0xA1
    PREFIX = 24                  # what the chain covers, besides the body
    CRC_AT = 32
    HEADER = 40

VERSION = VERSION_HERE
HEADER_BYTES = HEADER


cdef uint8_t *little_endian(uint8_t *out, uint64_t value, int bytes) noexcept:
    cdef int i
    for i in range(bytes):
        out[i] = <uint8_t>(value >> 8 * i)
    return out + bytes


def seal(uint8_t kind, uint16_t core, uint32_t epoch, uint64_t lsn, uint64_t time_ns, bytes body not None,
         uint64_t chain_previous) -> tuple:
    """The bytes of a record whose body is encoded already, and its chain."""
    cdef uint64_t chain = chain_previous
    return sealed(kind, core, epoch, lsn, time_ns, body, &chain), chain


cdef bytes sealed(uint8_t kind, uint16_t core, uint32_t epoch, uint64_t lsn, uint64_t time_ns, bytes body, uint64_t *chain):
    """The record; `chain`, of the record before it, becomes its own. 0.4 us for an ask."""
    cdef Py_ssize_t length = PyBytes_GET_SIZE(body)
    cdef const char *content = PyBytes_AS_STRING(body)
    cdef bytes chained = PyBytes_FromStringAndSize(NULL, PREFIX + length)
    cdef bytes record = PyBytes_FromStringAndSize(NULL, HEADER + length)
    cdef uint8_t *prefix = <uint8_t *>PyBytes_AS_STRING(chained)
    cdef uint8_t *out = <uint8_t *>PyBytes_AS_STRING(record)
    prefix[0], prefix[1] = VERSION_HERE, kind
    little_endian(little_endian(little_endian(little_endian(
        prefix + 2, core, 2), epoch, 4), lsn, 8), time_ns, 8)
    memcpy(prefix + PREFIX, content, length)
    chain[0] = xxh3_64_intdigest(chained, chain[0])
    memcpy(out, prefix, PREFIX)
    little_endian(little_endian(out + PREFIX, chain[0], 8), 0, 4)
    little_endian(out + CRC_AT + 4, <uint32_t>length, 4)
    memcpy(out + HEADER, content, length)
    little_endian(out + CRC_AT, <uint32_t>crc32(record), 4)  # nobody else has the record yet
    return record
