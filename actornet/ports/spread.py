"""The packet filter by which a core's packet socket takes the frames that the core is the home of, and no others.

Theory of operation. Every core has a socket of its own on the interface, and each socket's filter (a classic BPF program,
which every packet socket may have) computes the hash of `engine/toeplitz.h` from the frame: under the symmetric key, or
under those of the NF's `shards_by`. The Toeplitz hash is linear over GF(2): a bit of it is the parity of those bits of
addresses and ports at which the key, shifted, has a 1. So per hash bit that matters the program masks each word of the
input, adds up, and folds the sum to its parity; there is no loop, and no table.

What the program does not decide (frames that are not IP, or cut short) is the first core's. Packets in tunnels, ICMP
errors and IPv6 packets with extension headers are spread by their outer addresses; the core hands them on.

A PACKET_FANOUT program could say which socket of a group is to have a frame, but the kernel numbers a group's sockets in
the order in which they joined, and anew when one leaves: after a core's restart, or a link's, the numbers name others.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from actornet.engine.rss import TABLE_BITS, RssKeys
from actornet.engine.wire import RSS_KEY_SYMMETRIC

ALL = 0xFFFFFFFF
INSTRUCTION_BYTES = 8

_PORTS = 8
"""The scratch word of the ports, behind those of an IPv6 packet's addresses; the next one has the table's entry."""
_ENTRY = 9

_LD_LEN, _LDH_ABS, _LD_IND, _LDH_IND, _LDB_IND = 0x80, 0x28, 0x40, 0x48, 0x50
_LD_IMM, _LD_MEM, _LDX_IMM, _LDX_MEM, _ST = 0x00, 0x60, 0x01, 0x61, 0x02
_ADD_K, _ADD_X, _SUB_K, _SUB_X, _MUL_K, _AND_K, _LSH_K, _RSH_K = 0x04, 0x0C, 0x14, 0x1C, 0x24, 0x54, 0x64, 0x74
_OR_X, _XOR_X, _TAX, _RET_K = 0x4C, 0xAC, 0x07, 0x06
_JA, _JEQ_K, _JGE_K, _JGE_X, _JSET_K = 0x05, 0x15, 0x35, 0x3D, 0x45

_TCP, _UDP = 6, 17
_VLAN_TYPES = (0x8100, 0x88A8, 0x9100)
_OTHER, _TAKE = "other", "take"


def filter_for(core: int, cores: int, keys: tuple[RssKeys, RssKeys] | None = None, port: int = 0) -> bytes:
    """The program (an array of sock_filter) that passes what core number `core` of `cores` is the home of; empty: all.

    `keys` are those of the NF for IPv4 and IPv6, None the symmetric one; `port` is the index of the core's port.
    """
    assert 0 <= core < cores
    if cores == 1:
        return b""
    versions = [key.key(port) for key in keys] if keys is not None else [RSS_KEY_SYMMETRIC] * 2
    program = _Program()
    program.add(_LDX_IMM, 14)
    program.add(_LDH_ABS, 12)
    for tag in (1, 2):
        for kind in _VLAN_TYPES[:-1]:
            program.jump(_JEQ_K, kind, then=f"tag {tag}")
        program.jump(_JEQ_K, _VLAN_TYPES[-1], otherwise="type")
        program.label(f"tag {tag}")
        program.add(_LD_LEN)
        program.jump(_JGE_K, 14 + 4 * tag, otherwise=_OTHER)
        program.add(_LDX_IMM, 14 + 4 * tag)
        program.add(_LDH_ABS, 12 + 4 * tag)
    program.label("type")
    program.jump(_JEQ_K, 0x86DD, then="IPv6")
    program.jump(_JEQ_K, 0x0800, otherwise=_OTHER)
    _ipv4(program)
    _choose(program, versions[0], 2, core, cores)
    program.label("IPv6")
    _ipv6(program)
    _choose(program, versions[1], 8, core, cores)
    program.label(_OTHER)
    program.add(_RET_K, 0 if core else ALL)
    program.label(_TAKE)
    program.add(_RET_K, ALL)
    return program.assembled()


def _ipv4(p: _Program) -> None:
    """The addresses to words 0 and 1, the ports of TCP and UDP, unless in a fragment, to their word. X is the header."""
    _require(p, 20)
    _addresses(p, 12, 2)
    p.add(_LDH_IND, 6)
    p.jump(_JSET_K, 0x3FFF, then="hash 2")
    p.add(_LDB_IND, 9)
    p.jump(_JEQ_K, _TCP, then="ports 2")
    p.jump(_JEQ_K, _UDP, otherwise="hash 2")
    p.label("ports 2")
    p.add(_LDB_IND, 0)
    p.add(_AND_K, 15)
    p.add(_LSH_K, 2)
    p.add(_ADD_X)
    p.add(_TAX)
    _ports(p, "hash 2")


def _ipv6(p: _Program) -> None:
    _require(p, 40)
    _addresses(p, 8, 8)
    p.add(_LDB_IND, 6)
    p.jump(_JEQ_K, _TCP, then="ports 8")
    p.jump(_JEQ_K, _UDP, otherwise="hash 8")
    p.label("ports 8")
    p.add(_LD_IMM, 40)
    p.add(_ADD_X)
    p.add(_TAX)
    _ports(p, "hash 8")


def _require(p: _Program, header_bytes: int) -> None:
    """A load beyond the frame would end the program, and the frame would be nobody's."""
    p.add(_LD_LEN)
    p.add(_SUB_X)
    p.jump(_JGE_K, header_bytes, otherwise=_OTHER)


def _addresses(p: _Program, offset: int, words: int) -> None:
    for word in range(words):
        p.add(_LD_IND, offset + 4 * word)
        p.add(_ST, word)
    p.add(_LD_IMM, 0)
    p.add(_ST, _PORTS)


def _ports(p: _Program, done: str) -> None:
    """X is the transport header."""
    p.add(_LD_LEN)
    p.add(_SUB_K, 4)
    p.jump(_JGE_X, 0, otherwise=done)
    p.add(_LD_IND, 0)
    p.add(_ST, _PORTS)


def _choose(p: _Program, key: bytes, words: int, core: int, cores: int) -> None:
    """End the program: all of the frame if its entry of the indirection table is the core's, else nothing."""
    p.label(f"hash {words}")
    p.add(_LD_IMM, 0)
    p.add(_ST, _ENTRY)
    bits = int.from_bytes(key, "big")
    lowest = TABLE_BITS - (cores - 1).bit_length() if cores & (cores - 1) == 0 else 0  # lower bits do not matter then
    for bit in range(max(lowest, 0), TABLE_BITS):
        masks = [(bits >> (len(key) * 8 - 32 * word - 63 + bit)) & ALL for word in range(words + 1)]
        _parity(p, [(word, mask) for word, mask in zip([*range(words), _PORTS], masks, strict=True) if mask])
        p.add(_LSH_K, bit)
        p.add(_LDX_MEM, _ENTRY)
        p.add(_OR_X)
        p.add(_ST, _ENTRY)
    p.add(_LD_MEM, _ENTRY)
    p.add(_MUL_K, cores)
    p.add(_ADD_K, cores - 1)
    p.add(_RSH_K, TABLE_BITS)
    p.jump(_JEQ_K, core, then=_TAKE)
    p.add(_RET_K, 0)


def _parity(p: _Program, masked: list[tuple[int, int]]) -> None:
    """A becomes the sum over GF(2) of the words' bits under their masks."""
    p.add(_LD_IMM, 0)
    for word, mask in masked:
        p.add(_TAX)
        p.add(_LD_MEM, word)
        p.add(_AND_K, mask)
        p.add(_XOR_X)
    for shift in (16, 8, 4, 2, 1):
        p.add(_TAX)
        p.add(_RSH_K, shift)
        p.add(_XOR_X)
    p.add(_AND_K, 1)


class _Program:
    """Instructions, of which those that jump forwards do so to labels: by an unconditional jump, which alone goes far."""

    def __init__(self) -> None:
        self._code: list[Callable[[], tuple[int, int, int, int]]] = []
        self._labels: dict[str, int] = {}

    def add(self, code: int, k: int = 0) -> None:
        self._code.append(lambda: (code, 0, 0, k))

    def label(self, name: str) -> None:
        self._labels[name] = len(self._code)

    def jump(self, code: int, k: int, *, then: str = "", otherwise: str = "") -> None:
        """If the condition holds go to `then`, if not to `otherwise`; the other way leads on."""
        name, at = then or otherwise, len(self._code) + 1
        self._code.append(lambda: (code, 0 if then else 1, 1 if then else 0, k))
        self._code.append(lambda: (_JA, 0, 0, self._labels[name] - at - 1))

    def assembled(self) -> bytes:
        return b"".join(struct.pack("HBBI", *instruction()) for instruction in self._code)
