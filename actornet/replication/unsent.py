"""The ring of packets that the primary's cores have taken and not sent: a backup that takes over goes on with them.

Soft state beside the log, which decides nothing: cores tell of packets that wait (`actornet.engine.unsent`), the primary
passes that on to the backups that count. What is to leave as it is does so only if all that it depends on is in the log here
(G3); else, like what had not been decided upon, it is treated as if it came now.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, NamedTuple

import msgspec

from actornet.engine.rss import TABLE_BITS
from actornet.limits import PORTS_MAX, UNSENT_PACKETS_MAX, UNSENT_S

Number = Annotated[int, msgspec.Meta(ge=0)]
Port = Annotated[int, msgspec.Meta(ge=0, lt=PORTS_MAX)]
Out = Annotated[int, msgspec.Meta(ge=-1, lt=PORTS_MAX)]
Packet = Annotated[bytes, msgspec.Meta(min_length=13)]
Entry = Annotated[int, msgspec.Meta(ge=0, lt=1 << TABLE_BITS)]


class Told(msgspec.Struct, array_like=True):
    """A core's word: of those that wait number, port to leave by or -1, port of arrival, packet, and the entry of the RSS table
    that its flow belongs to; who waits no longer."""

    waits: list[tuple[Number, Out, Port, Packet, Entry]]
    done: list[Number]


VOID = b"\xc0"
"""In place of an encoded Told, None: the core is no more, and its packets with it."""


class Leaving(NamedTuple):
    """A packet to send on behalf of the old primary. `entry`, of the RSS table, names the flow's home."""

    entry: int
    out: int
    packet: bytes


class Taken(NamedTuple):
    """A packet to treat that arrived at the old primary. `entry`: as in `Leaving`."""

    entry: int
    port: int
    packet: bytes


class _Packet:
    """One that waits: as it came, and as it is to leave once all up to `lsn` is in the log, in the `order` of being told."""

    __slots__ = ("leaving", "lsn", "order", "since_ns", "taken")

    def __init__(self, since_ns: int) -> None:
        self.since_ns = since_ns
        self.taken: Taken | None = None
        self.leaving: Leaving | None = None
        self.lsn = self.order = 0


class Unsent:
    """Of all cores of the primary together UNSENT_PACKETS_MAX; the oldest beyond that are `evicted`."""

    def __init__(self) -> None:
        self.evicted = 0
        self._packets: dict[tuple[int, int], _Packet] = {}
        self._told = 0

    def __len__(self) -> int:
        return len(self._packets)

    def hear(self, core: int, lsn: int, told: Told | None, now_ns: int) -> None:
        """A core's word, from when `lsn` was the primary's last; None: it is no more, and its packets with it."""
        packets = self._packets
        if told is None:
            self._packets = {key: packet for key, packet in packets.items() if key[0] != core}
            return
        for number, out, port, data, entry in told.waits:
            packet = packets.get((core, number))
            if packet is None:
                if len(packets) >= UNSENT_PACKETS_MAX:
                    del packets[next(iter(packets))]
                    self.evicted += 1
                packet = packets[core, number] = _Packet(now_ns)
            if out < 0:
                packet.taken = Taken(entry, port, data)
            else:
                self._told += 1
                packet.leaving, packet.lsn, packet.order = Leaving(entry, out, data), lsn, self._told
        for number in told.done:
            packets.pop((core, number), None)

    def forget(self) -> None:
        self._packets.clear()

    def left(self, lsn: int, asked: Iterable[tuple[int, bytes]], now_ns: int) -> tuple[list[Leaving], list[Taken]]:
        """What is to be sent, and then what is to be treated, where the log ends at `lsn`; nothing is left behind.

        `asked`: (port, packet) of those that are treated anew anyway, as their asks are in the log. What has waited for
        more than UNSENT_S is left out.
        """
        known = set(asked)
        # A flow's are on one core, and numbered there as they came; told of in another order where the backup joined meanwhile.
        packets = [packet for _, packet in sorted(self._packets.items())]
        self.forget()
        leaving, taken = [], []
        for packet in packets:
            if now_ns - packet.since_ns > UNSENT_S * 1_000_000_000:
                continue
            if packet.leaving is not None and packet.lsn <= lsn:
                leaving.append((packet.order, packet.leaving))
            elif packet.taken is not None and (packet.taken.port, packet.taken.packet) not in known:
                taken.append(packet.taken)
        return [made for _, made in sorted(leaving)], taken
