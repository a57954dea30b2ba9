"""The XDP program that gives an interface's packets to AF_XDP sockets, by bpf(2) alone.

The program is five instructions: look the RX queue up in a map of sockets and hand the packet over, or let it pass to the
kernel where the map has none. It is attached by a BPF link, which the kernel dissolves when its last descriptor is
closed: no exit, kill -9 included, leaves a program behind. All cores of a node share one program, map and link, of which
each holds descriptors of its own; whoever comes second finds them by the program's name, so nobody has to come first.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import time
import zlib
from typing import Literal

from actornet.errors import PortError
from actornet.limits import XDP_QUEUES_MAX

Mode = Literal["native", "generic"]

_CALL = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "ppc64le": 361, "s390x": 351}
_MAP_CREATE, _MAP_UPDATE, _MAP_DELETE, _PROG_LOAD = 0, 2, 3, 5
_MAP_FD_BY_ID, _PROG_FD_BY_ID, _INFO_BY_FD, _LINK_CREATE, _LINK_FD_BY_ID, _LINK_NEXT_ID = 14, 13, 15, 28, 30, 31
_MAP_TYPE_XSK, _PROG_TYPE_XDP, _ATTACH_XDP, _LINK_TYPE_XDP = 17, 6, 37, 6
_HAS_FRAGS = 1 << 5
"""The program may see the first part of a large frame only (Linux 5.18)."""

_FLAGS: dict[Mode, int] = {"generic": 1 << 1, "native": 1 << 2}
_ATTR_BYTES = 144
_JOIN_S = 0.5

_libc = ctypes.CDLL(None, use_errno=True)


class Attachment:
    """The program on one interface. `mode` is how: in the driver, or by the kernel's generic hook behind it."""

    def __init__(self, link_fd: int, map_fd: int, mode: Mode) -> None:
        self._link_fd = link_fd
        self._map_fd = map_fd
        self.mode = mode

    def give(self, queue: int, socket_fd: int) -> None:
        """From now on packets of this RX queue go to the socket. OSError if the kernel refuses."""
        key, value = ctypes.c_uint32(queue), ctypes.c_uint32(socket_fd)
        _bpf(_MAP_UPDATE, struct.pack("I4xQQQ", self._map_fd, ctypes.addressof(key), ctypes.addressof(value), 0))

    def take_back(self, queue: int) -> None:
        """From now on packets of this RX queue pass to the kernel."""
        key = ctypes.c_uint32(queue)
        try:
            _bpf(_MAP_DELETE, struct.pack("I4xQ", self._map_fd, ctypes.addressof(key)))
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.EINVAL):
                raise

    def close(self) -> None:
        """Let go of the program; the last to do so detaches it. Idempotent."""
        for fd in (self._link_fd, self._map_fd):
            if fd >= 0:
                os.close(fd)
        self._link_fd = self._map_fd = -1


def attach(ifindex: int, group: int, mode: Mode | None = None) -> Attachment:
    """Attach to the interface, in `mode` or else natively if the driver can; or join who has attached as `group`.

    PortError says why not; where the interface lies is left to the caller to say.
    """
    modes: tuple[Mode, ...] = (mode,) if mode else ("native", "generic")
    deadline = time.monotonic() + _JOIN_S
    while True:
        joined = _join(ifindex, group, modes)
        if joined is not None:
            return joined
        refused: OSError | None = None
        for each in modes:
            try:
                return _create(ifindex, group, each)
            except OSError as error:
                refused = error
                if error.errno in (errno.EBUSY, errno.EEXIST):
                    break
        assert refused is not None
        if refused.errno in (errno.EPERM, errno.EACCES):
            raise PortError("XDP programs need root, or CAP_BPF, CAP_NET_ADMIN and CAP_SYS_ADMIN; run as root")
        if refused.errno not in (errno.EBUSY, errno.EEXIST):
            raise PortError(
                f"no XDP program can be attached ({refused.strerror}): with driver af_packet the interface works; the "
                "kernel has to be Linux 5.9 or later, and the MTU one that its driver can do XDP with"
            )
        if time.monotonic() > deadline:
            raise PortError(
                "another XDP program is attached; `ip link set dev INTERFACE xdp off` removes it. Is it that of another "
                "node? Two nodes share an interface by af_packet only"
            )
        time.sleep(0.005)  # another core has just attached it, or one that is going has not let go yet


def _create(ifindex: int, group: int, mode: Mode) -> Attachment:
    map_fd = _bpf(_MAP_CREATE, struct.pack("IIII", _MAP_TYPE_XSK, 4, 4, XDP_QUEUES_MAX))
    try:
        program_fd = _load(map_fd, _name(ifindex, group, mode))
        try:
            link_fd = _bpf(_LINK_CREATE, struct.pack("IIII", program_fd, ifindex, _ATTACH_XDP, _FLAGS[mode]))
        finally:
            os.close(program_fd)
    except BaseException:
        os.close(map_fd)
        raise
    return Attachment(link_fd, map_fd, mode)


def _load(map_fd: int, name: bytes) -> int:
    program = b"".join(
        struct.pack("<BBhi", *instruction)
        for instruction in (
            (0x61, 0x12, 16, 0),  # r2 = context->rx_queue_index
            (0x18, 0x11, 0, map_fd),  # r1 = map, in two slots
            (0x00, 0x00, 0, 0),
            (0xB7, 0x03, 0, 2),  # r3 = XDP_PASS
            (0x85, 0x00, 0, 51),  # r0 = bpf_redirect_map(r1, r2, r3)
            (0x95, 0x00, 0, 0),  # return r0
        )
    )
    code, licence = ctypes.create_string_buffer(program), ctypes.create_string_buffer(b"MIT")
    for flags in (_HAS_FRAGS, 0):
        attributes = struct.pack(
            "IIQQIIQII16s",
            _PROG_TYPE_XDP,
            len(program) // 8,
            ctypes.addressof(code),
            ctypes.addressof(licence),
            0,
            0,
            0,
            0,
            flags,
            name,
        )
        try:
            return _bpf(_PROG_LOAD, attributes)
        except OSError as error:
            if not flags or error.errno != errno.EINVAL:
                raise
    raise AssertionError


def _join(ifindex: int, group: int, modes: tuple[Mode, ...]) -> Attachment | None:
    """The attachment that a sibling core has made."""
    names = {_name(ifindex, group, mode): mode for mode in modes}
    for link_fd in _links():
        try:
            kind, _, program_id, linked = struct.unpack("II I4xI", _info(link_fd, 20))
            if kind != _LINK_TYPE_XDP or linked != ifindex:
                continue
            found = _program(program_id)
            if found is None or found[0] not in names:
                continue
            return Attachment(os.dup(link_fd), _bpf(_MAP_FD_BY_ID, struct.pack("I", found[1])), names[found[0]])
        except OSError:  # it went away meanwhile
            continue
        finally:
            os.close(link_fd)
    return None


def _links() -> list[int]:
    """A descriptor of every BPF link."""
    found: list[int] = []
    number = 0
    while True:
        attributes = ctypes.create_string_buffer(struct.pack("I", number), _ATTR_BYTES)
        if _libc.syscall(_CALL[platform.machine()], _LINK_NEXT_ID, attributes, _ATTR_BYTES) < 0:
            return found
        number = struct.unpack_from("I", attributes, 4)[0]
        try:
            found.append(_bpf(_LINK_FD_BY_ID, struct.pack("I", number)))
        except OSError:
            continue


def _program(number: int) -> tuple[bytes, int] | None:
    """Name, and number of the only map, of a program."""
    program_fd = _bpf(_PROG_FD_BY_ID, struct.pack("I", number))
    try:
        maps = (ctypes.c_uint32 * 1)()
        # bpf_prog_info: map_ids at 56, their number at 52, name at 64.
        asked = struct.pack("52xIQ", 1, ctypes.addressof(maps))
        info = _info(program_fd, 80, asked)
        count = struct.unpack_from("I", info, 52)[0]
        return (info[64:80].rstrip(b"\0"), maps[0]) if count == 1 else None
    finally:
        os.close(program_fd)


def _info(fd: int, length: int, asked: bytes = b"") -> bytes:
    buffer = ctypes.create_string_buffer(asked, length)
    _bpf(_INFO_BY_FD, struct.pack("IIQ", fd, length, ctypes.addressof(buffer)))
    return buffer.raw


def _name(ifindex: int, group: int, mode: Mode) -> bytes:
    """Of the program: at most 15 characters that tell interface, network namespace and node."""
    namespace = os.stat("/proc/thread-self/ns/net").st_ino
    return b"an_%s_%08x" % (mode[:1].encode(), zlib.crc32(f"{namespace}/{ifindex}/{group}".encode()))


def _bpf(command: int, attributes: bytes) -> int:
    number = _CALL.get(platform.machine())
    if number is None:
        raise OSError(errno.ENOSYS, f"bpf(2) of {platform.machine()} is not known")
    buffer = ctypes.create_string_buffer(attributes, _ATTR_BYTES)
    result: int = _libc.syscall(number, command, buffer, _ATTR_BYTES)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
