"""Capture files: pcap and pcapng read, pcap written, both also gzip-compressed, to and from files or pipes.

Formats: draft-ietf-opsawg-pcap and draft-ietf-opsawg-pcapng. A file is read a chunk at a time, never mapped: it may be
a pipe, or shrink while it is read. Every frame comes out as Ethernet; what was captured without an Ethernet header
(Linux "cooked", raw IP, BSD loopback) gets one with both addresses zero.
"""

from __future__ import annotations

import fcntl
import gzip
import os
import stat
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from errno import ENOSPC
from math import gcd
from pathlib import Path
from struct import Struct
from types import TracebackType
from typing import BinaryIO, NamedTuple, Self

from actornet.errors import CaptureError
from actornet.limits import CAPTURE_BLOCK_BYTES_MAX, CAPTURE_RECORD_BYTES_MAX, FRAME_BYTES_MAX
from actornet.ports.exclusive import exclude

NS = 1_000_000_000
TIME_NS_MAX = (1 << 63) - 1
CHUNK_BYTES = 1 << 18

PCAP_MAGIC = {
    b"\xd4\xc3\xb2\xa1": ("<", 1000),
    b"\xa1\xb2\xc3\xd4": (">", 1000),
    b"\x4d\x3c\xb2\xa1": ("<", 1),
    b"\xa1\xb2\x3c\x4d": (">", 1),
}
"""First bytes of a pcap file -> byte order, nanoseconds per unit of the time stamp's fraction."""

GZIP_MAGIC = b"\x1f\x8b"
SECTION_MAGIC = b"\x0a\x0d\x0d\x0a"
BYTE_ORDER = {b"\x4d\x3c\x2b\x1a": "<", b"\x1a\x2b\x3c\x4d": ">"}
SECTION, INTERFACE, OLD_PACKET, SIMPLE_PACKET, ENHANCED_PACKET = 0x0A0D0D0A, 1, 2, 3, 6
OPTION_TIME_RESOLUTION, OPTION_TIME_OFFSET = 9, 14

ETHERNET = 1
ZERO_MACS = bytes(12)
IPV4, IPV6, NO_ETHERTYPE = b"\x08\x00", b"\x86\xdd", b"\x00\x00"
LOOPBACK_FAMILIES = {2: IPV4, 10: IPV6, 24: IPV6, 28: IPV6, 30: IPV6}
"""AF_INET, and AF_INET6 of Linux, NetBSD/OpenBSD, FreeBSD and macOS."""


def _from_cooked(packet: bytes) -> bytes:
    return ZERO_MACS + packet[14:16].ljust(2, b"\0") + packet[16:]


def _from_cooked_v2(packet: bytes) -> bytes:
    return ZERO_MACS + packet[:2].ljust(2, b"\0") + packet[20:]


def _from_raw_ip(packet: bytes) -> bytes:
    version = packet[0] >> 4 if packet else 0
    return ZERO_MACS + {4: IPV4, 6: IPV6}.get(version, NO_ETHERTYPE) + packet


def _from_loopback(packet: bytes) -> bytes:
    # The family is in the byte order of the machine that captured; the real one is the small one of the two readings.
    family = min(int.from_bytes(packet[:4], "little"), int.from_bytes(packet[:4], "big"))
    return ZERO_MACS + LOOPBACK_FAMILIES.get(family, NO_ETHERTYPE) + packet[4:]


class Link(NamedTuple):
    """How frames of one link type become Ethernet frames."""

    convert: Callable[[bytes], bytes] | None
    header_bytes: int

    @property
    def grows_bytes(self) -> int:
        """By how much a converted frame is longer than what was captured."""
        return 14 - self.header_bytes if self.convert else 0


LINKS = {
    ETHERNET: Link(None, 14),
    0: Link(_from_loopback, 4),
    12: Link(_from_raw_ip, 0),
    14: Link(_from_raw_ip, 0),
    101: Link(_from_raw_ip, 0),
    108: Link(_from_loopback, 4),
    113: Link(_from_cooked, 16),
    228: Link(_from_raw_ip, 0),
    229: Link(_from_raw_ip, 0),
    276: Link(_from_cooked_v2, 20),
}
LINK_NAMES = {
    9: "PPP",
    105: "IEEE 802.11",
    127: "IEEE 802.11 with radiotap",
    147: "USER0",
    189: "Linux USB",
    195: "IEEE 802.15.4",
    201: "Bluetooth HCI",
    220: "Linux USB",
    227: "CAN",
    249: "USBPcap",
    253: "Netlink",
}


def read_capture(path: str | os.PathLike[str]) -> Capture:
    """Open the capture file at `path`, or the one on standard input if `path` is `-`.

    Raises CaptureError if it is missing, unreadable, empty, no capture, or of a link type that carries no IP.
    """
    return Capture(os.fspath(path))


class Capture:
    """One pass over a capture's packets: yields (time in ns since the epoch, Ethernet frame, original length in bytes).

    A frame shorter than its original length was cut by the capture's snap length (`snapped` counts them). Records
    larger than any frame are passed over (`oversized`). Damage never raises: what stands before it is delivered, then
    the iteration ends and `damage` says what is wrong at which byte. Times outside 0..2^63-1 ns are clamped to it.
    `position_bytes` of `total_bytes` of the file have been read; a pipe's total is None.
    """

    def __init__(self, path: str) -> None:
        self.name = "standard input" if path == "-" else path
        self.damage: str | None = None
        self.snapped = 0
        self.oversized = 0
        self._file, self.total_bytes = _open(path, self.name)
        self.position_bytes = 0
        self._base = 0  # offset in the (decompressed) capture of the first byte of the chunk at hand
        self._chunks = self._read()
        try:
            self._records = self._begin()
        except CaptureError:
            self.close()
            raise

    def __iter__(self) -> Iterator[tuple[int, bytes, int]]:
        return self._records

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; idempotent."""
        self._file.close()

    def _begin(self) -> Iterator[tuple[int, bytes, int]]:
        head = self._more(b"", 0, 24)
        magic = head[:4]
        if not head:
            raise CaptureError(f"{self.name}: {self.damage or 'the file is empty'}; give a pcap or pcapng file")
        if magic == SECTION_MAGIC:
            if len(head) < 12 or head[8:12] not in BYTE_ORDER:
                raise CaptureError(f"{self.name}: the pcapng section header is damaged; capture or copy the file again")
            return self._blocks(head)
        if magic not in PCAP_MAGIC:
            raise CaptureError(
                f"{self.name}: not a capture file (it begins with bytes {magic.hex(' ')}); give a pcap or pcapng file"
            )
        order, unit_ns = PCAP_MAGIC[magic]
        if len(head) < 24:
            raise CaptureError(f"{self.name}: the pcap header ends at byte {len(head)} of 24; copy the file again")
        major, link_type = Struct(order + "4xH14xI").unpack_from(head)
        if major != 2:
            raise CaptureError(f"{self.name}: pcap version {major} is unknown, only 2 exists; is the header damaged?")
        return self._packets(head, order, unit_ns, self._link(link_type & 0xFFFF))

    def _link(self, link_type: int) -> Link:
        if link_type not in LINKS:
            name = LINK_NAMES.get(link_type, "unknown")
            raise CaptureError(
                f"{self.name}: link type {link_type} ({name}) carries no frames that actornet reads; "
                "capture on an Ethernet, Linux cooked, raw IP or loopback interface"
            )
        return LINKS[link_type]

    def _packets(self, data: bytes, order: str, unit_ns: int, link: Link) -> Iterator[tuple[int, bytes, int]]:
        """The records of a pcap file, whose header is the first 24 bytes of `data`."""
        header = Struct(order + "IIII").unpack_from
        convert, grows = link.convert, link.grows_bytes
        frame_max = FRAME_BYTES_MAX - grows
        at, size = 24, len(data)
        while True:
            start = at + 16
            if start > size:
                data, at = self._more(data, at, 16), 0
                size = len(data)
                if size < 16:
                    return self._end(size, "packet header")
                start = 16
            seconds, fraction, captured, original = header(data, at)
            end = start + captured
            if end > size:
                if captured > CAPTURE_RECORD_BYTES_MAX:
                    return self._damaged(at, f"a packet of {captured} bytes is larger than any capture holds")
                data, at, start, end = self._more(data, at, end - at), 0, 16, 16 + captured
                size = len(data)
                if end > size:
                    return self._end(size, "packet")
            at = end
            if captured > frame_max:
                if captured > CAPTURE_RECORD_BYTES_MAX:
                    return self._damaged(start - 16, f"a packet of {captured} bytes is larger than any capture holds")
                self.oversized += 1
                continue
            frame = data[start:end]
            if convert is not None:
                frame = convert(frame)
                original += grows
                captured = len(frame)
            if captured < original:
                self.snapped += 1
            else:
                original = captured
            yield seconds * NS + fraction * unit_ns, frame, original

    def _blocks(self, data: bytes) -> Iterator[tuple[int, bytes, int]]:
        """The packets of a pcapng file, which begins with `data`."""
        reader = _Section("<")
        at, time_ns = 0, 0
        while True:
            if at + 12 > len(data):
                data, at = self._more(data, at, 12), 0
                if len(data) < 12:
                    return self._end(len(data), "block header")
            if data[at : at + 4] == SECTION_MAGIC:
                if data[at + 8 : at + 12] not in BYTE_ORDER:
                    return self._damaged(at, "the section header has no byte order")
                reader = _Section(BYTE_ORDER[data[at + 8 : at + 12]])
            kind, length = reader.head(data, at)
            if length < 12 or length % 4 or length > CAPTURE_BLOCK_BYTES_MAX:
                return self._damaged(at, f"a block cannot be {length} bytes long")
            if at + length > len(data):
                data, at = self._more(data, at, length), 0
                if length > len(data):
                    return self._end(len(data), "block")
            begin, body, end = at, at + 8, at + length - 4
            at += length
            if reader.word(data, end)[0] != length:
                return self._damaged(begin, "the two lengths of the block differ")
            try:
                if kind == ENHANCED_PACKET:
                    number, high, low, captured, original = reader.enhanced(data, body)
                    body += 20
                elif kind == SIMPLE_PACKET:
                    number, high, low, original = 0, 0, 0, reader.word(data, body)[0]
                    body += 4
                    captured = min(original, end - body, reader.interfaces[0].snap_bytes)
                elif kind == OLD_PACKET:
                    number, high, low, captured, original = reader.old(data, body)
                    body += 20
                else:
                    if kind == INTERFACE:
                        reader.interfaces.append(reader.interface(data[body:end]))
                    continue
                interface = reader.interfaces[number]
            except (IndexError, ValueError):
                return self._damaged(begin, "the block contradicts itself or names an interface that is not described")
            if body + captured > end:
                return self._damaged(begin, f"a packet of {captured} bytes does not fit its block")
            link = interface.link or self._link(interface.link_type)
            if captured > FRAME_BYTES_MAX - link.grows_bytes:
                self.oversized += 1
                continue
            frame = data[body : body + captured]
            if link.convert is not None:
                frame = link.convert(frame)
                original += link.grows_bytes
            if len(frame) < original:
                self.snapped += 1
            if kind != SIMPLE_PACKET:  # which has no time: the last one stands
                ticks = high << 32 | low
                time_ns = ticks * interface.ns_times // interface.ns_over + interface.offset_ns
                if not 0 <= time_ns <= TIME_NS_MAX:
                    time_ns = min(max(time_ns, 0), TIME_NS_MAX)
            yield time_ns, frame, max(original, len(frame))

    def _damaged(self, at: int, what: str) -> None:
        if self.damage is None:
            self.damage = f"{what} (at byte {self._base + at})"

    def _end(self, left: int, unit: str) -> None:
        """The data ran out with `left` bytes of a further `unit`, or none: the regular end."""
        if left and self.damage is None:
            self.damage = f"the file ends inside a {unit} (at byte {self._base})"

    def _more(self, data: bytes, at: int, need: int) -> bytes:
        """`data` from `at` on with further chunks behind it: at least `need` bytes, or all that is left."""
        self._base += at
        parts = [data[at:]]
        have = len(parts[0])
        while have < need and (chunk := next(self._chunks, b"")):
            parts.append(chunk)
            have += len(chunk)
        return b"".join(parts)

    def _read(self) -> Iterator[bytes]:
        """The file's bytes, decompressed; ends at the file's end or, with `damage` set, where it cannot be read."""
        try:
            chunk = self._input(2)
            if chunk.startswith(GZIP_MAGIC):
                yield from self._inflate(chunk)
            else:
                while chunk:
                    yield chunk
                    chunk = self._input(CHUNK_BYTES)
        except OSError as error:
            self.damage = f"cannot be read on after byte {self.position_bytes}: {error.strerror or error}"
        except zlib.error as error:
            self.damage = f"damaged gzip data before byte {self.position_bytes}: {error}"

    def _inflate(self, chunk: bytes) -> Iterator[bytes]:
        while chunk.startswith(GZIP_MAGIC):  # a gzip file is any number of members, one behind the other
            member = zlib.decompressobj(wbits=31)
            while not member.eof:
                if not chunk and not (chunk := self._input(CHUNK_BYTES)):
                    self.damage = f"the gzip data ends early (at byte {self.position_bytes})"
                    return
                # Bounded output: a damaged or hostile member neither costs memory nor hides what stands before it.
                plain = member.decompress(chunk, CHUNK_BYTES)
                chunk = member.unconsumed_tail
                if plain:
                    yield plain
            chunk = member.unused_data
            chunk += self._input(2 - len(chunk))

    def _input(self, size: int) -> bytes:
        chunk = self._file.read(size) if size > 0 else b""
        self.position_bytes += len(chunk)
        return chunk


class _Interface(NamedTuple):
    """What an interface description block says; a time stamp is ticks * ns_times // ns_over + offset_ns."""

    link_type: int
    link: Link | None
    snap_bytes: int
    ns_times: int
    ns_over: int
    offset_ns: int


class _Section:
    """The structures of a pcapng section in its byte order, and its interfaces."""

    def __init__(self, order: str) -> None:
        self.interfaces: list[_Interface] = []
        self.head = Struct(order + "II").unpack_from
        self.word = Struct(order + "I").unpack_from
        self.enhanced = Struct(order + "IIIII").unpack_from
        self.old = Struct(order + "H2xIIII").unpack_from
        self._interface = Struct(order + "H2xI")
        self._option = Struct(order + "HH")
        self._seconds = Struct(order + "q")

    def interface(self, body: bytes) -> _Interface:
        """Raises ValueError if the block is too short."""
        if len(body) < self._interface.size:
            raise ValueError("interface description too short")
        link_type, snap_bytes = self._interface.unpack_from(body)
        resolution, offset_s = 6, 0
        at = self._interface.size
        while at + 4 <= len(body):
            code, length = self._option.unpack_from(body, at)
            value = body[at + 4 : at + 4 + length]
            if code == OPTION_TIME_RESOLUTION and len(value) == 1:
                resolution = value[0]
            elif code == OPTION_TIME_OFFSET and len(value) == 8:
                (offset_s,) = self._seconds.unpack(value)
            elif code == 0:
                break
            at += 4 + (length + 3 & ~3)
        ticks_per_s = 2 ** (resolution & 0x7F) if resolution & 0x80 else 10**resolution
        common = gcd(NS, ticks_per_s)
        return _Interface(
            link_type,
            LINKS.get(link_type),
            snap_bytes or CAPTURE_RECORD_BYTES_MAX,
            NS // common,
            ticks_per_s // common,
            offset_s * NS,
        )


def _open(path: str, name: str) -> tuple[BinaryIO, int | None]:
    """The open file and its size, None if it has none (a pipe)."""
    try:
        if path == "-":
            if sys.stdin.isatty():
                raise CaptureError("standard input is a terminal; pipe a capture into it or name a file")
            file = open(0, "rb", buffering=0, closefd=False)  # noqa: SIM115
        else:
            file = open(path, "rb", buffering=0)  # noqa: SIM115
        status = os.fstat(file.fileno())
    except FileNotFoundError:
        raise CaptureError(f"{name}: no such file; check the path") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CaptureError(f"{name}: cannot be opened: {reason}; give a file that you may read") from None
    return file, status.st_size if stat.S_ISREG(status.st_mode) else None


class CaptureWriter:
    """Writes Ethernet frames as pcap, gzip-compressed if the name ends in `.gz`, to standard output if it is `-`.

    A regular file stands under its name only when it is complete: until `close` it has `.part` behind its name, and
    `discard` (or an exception in a `with` block) removes that. Every method raises CaptureError if the disk is full or
    the file cannot be written; nothing is left then, and `close` does nothing.
    """

    def __init__(self, path: str | os.PathLike[str], nanoseconds: bool = True) -> None:
        self.name = os.fspath(path)
        self.packets = 0
        self._divisor = 1 if nanoseconds else 1000
        self._pack = Struct("<IIII").pack
        magic = 0xA1B23C4D if nanoseconds else 0xA1B2C3D4
        self._buffer = bytearray(Struct("<IHHiIII").pack(magic, 2, 4, 0, 0, CAPTURE_RECORD_BYTES_MAX, ETHERNET))
        self._target: Path | None = None
        self._part: Path | None = None
        self._raw: BinaryIO | None = None
        try:
            self._raw = self._create()
        except OSError as error:
            raise self._failed(error) from None
        self._file: BinaryIO = self._raw
        if self.name.endswith(".gz"):
            # No time stamp or name inside: the same packets give the same file.
            self._file = gzip.GzipFile("", "wb", compresslevel=1, fileobj=self._raw, mtime=0)  # type: ignore[assignment]

    def _create(self) -> BinaryIO:
        if self.name == "-":
            return os.fdopen(os.dup(sys.stdout.fileno()), "wb", buffering=0)
        target = Path(self.name).resolve()
        if target.is_dir():
            raise IsADirectoryError(0, "it is a directory")
        if target.exists() and not target.is_file():
            return open(target, "wb", buffering=0)  # a device or named pipe
        self._target, self._part = target, target.with_name(target.name + ".part")
        return open(self._part, "wb", buffering=0)

    def write(self, time_ns: int, frame: bytes | memoryview, original_length: int | None = None) -> None:
        """Append a frame; `original_length` is its length on the wire if that was more than `frame` holds."""
        self.write_burst([(time_ns, frame, original_length or 0)])

    def write_burst(self, frames: Sequence[tuple[int, bytes | memoryview, int]]) -> None:
        """Append frames, each with its time in ns and its length on the wire."""
        buffer, pack, divisor = self._buffer, self._pack, self._divisor
        for time_ns, frame, original_length in frames:
            length = len(frame)
            seconds, fraction_ns = divmod(time_ns, NS)
            buffer += pack(
                seconds & 0xFFFFFFFF,
                fraction_ns // divisor,
                length,
                original_length if original_length > length else length,
            )
            buffer += frame
        self.packets += len(frames)
        if len(buffer) >= CHUNK_BYTES:
            self.flush()

    def flush(self) -> None:
        """Hand what is buffered to the operating system (or the compressor)."""
        if self._raw is None:
            return
        try:
            view = memoryview(self._buffer)
            while view:
                view = view[self._file.write(view) :]
            self._buffer = bytearray()
        except OSError as error:
            raise self._failed(error) from None

    def close(self) -> None:
        """Write out the rest and give the file its name; idempotent."""
        self.flush()
        if self._raw is None:
            return
        try:
            if self._file is not self._raw:
                self._file.close()
            self._raw.close()
            if self._part is not None and self._target is not None:
                self._part.replace(self._target)
        except OSError as error:
            raise self._failed(error) from None
        self._raw = None

    def discard(self) -> None:
        """Give up: nothing is left under the name or beside it; idempotent, and without effect after `close`."""
        if self._raw is None:
            return
        raw, self._raw = self._raw, None
        try:
            raw.close()
        finally:
            if self._part is not None:
                self._part.unlink(missing_ok=True)

    def _failed(self, error: OSError) -> CaptureError:
        self.discard()
        self._buffer = bytearray()
        reason = error.strerror or str(error)
        return CaptureError(f"{self.name}: cannot be written: {reason}; free space or write elsewhere")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is None:
            self.close()
        else:
            self.discard()


class CaptureAppender:
    """Appends Ethernet frames, as they stand in a pcap file (nanoseconds, little-endian), to the file at `path`, to which
    other cores and nodes append as well. One who is killed while it writes leaves part of a record: the next one removes it.

    Raises CaptureError if the file is there, and no such one, and if it cannot be written.
    """

    HEADER = Struct("<IHHiIII").pack(0xA1B23C4D, 2, 4, 0, 0, CAPTURE_RECORD_BYTES_MAX, ETHERNET)

    def __init__(self, path: str) -> None:
        self.name = path
        self._whole = len(self.HEADER)  # up to there the file is known to be whole
        if path.endswith(".gz"):
            raise CaptureError(f"{path}: what is appended to cannot be compressed; name a file without .gz")
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise self._failed(error) from None
        try:
            self._begin()
        except BaseException:
            self.close()
            raise

    def append(self, records: bytes) -> None:
        """Write whole records; all of them, or none."""
        if not records:
            return
        alone = exclude(self._file)
        try:
            if alone:
                self._repair()
            written = os.write(self._file, records)
            if written < len(records):
                os.ftruncate(self._file, os.fstat(self._file).st_size - written)
                raise OSError(ENOSPC, os.strerror(ENOSPC))
            self._whole += len(records) if alone else 0
        except OSError as error:
            raise self._failed(error) from None
        finally:
            if alone:
                fcntl.flock(self._file, fcntl.LOCK_UN)

    def close(self) -> None:
        """Idempotent."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _begin(self) -> None:
        try:
            if not stat.S_ISREG(os.fstat(self._file).st_mode):
                raise CaptureError(f"{self.name}: no regular file, which several cores could append to; name another")
            fcntl.flock(self._file, fcntl.LOCK_EX)
            try:
                if os.fstat(self._file).st_size == 0:
                    os.write(self._file, self.HEADER)
                if os.pread(self._file, len(self.HEADER), 0) != self.HEADER:
                    raise CaptureError(f"{self.name}: a file that is no capture of a port's is there; name another")
                self._repair()
            finally:
                fcntl.flock(self._file, fcntl.LOCK_UN)
        except OSError as error:
            raise self._failed(error) from None

    def _repair(self) -> None:
        """Look through what others have written, and cut off what is not whole at the end."""
        size = os.fstat(self._file).st_size
        length = Struct("<8xI4x").unpack_from
        while self._whole < size:
            data = os.pread(self._file, CHUNK_BYTES + CAPTURE_RECORD_BYTES_MAX, self._whole)
            at, end = 0, len(data)
            while at + 16 <= end and (following := at + 16 + length(data, at)[0]) <= end:
                at = following
            if at + 16 <= end and length(data, at)[0] > CAPTURE_RECORD_BYTES_MAX:
                raise CaptureError(f"{self.name}: damaged at byte {self._whole + at}; name another file")
            if at == 0:
                os.ftruncate(self._file, self._whole)
                return
            self._whole += at

    def _failed(self, error: OSError) -> CaptureError:
        return CaptureError(f"{self.name}: cannot be written: {error.strerror or error}; free space or write elsewhere")
