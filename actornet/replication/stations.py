"""Stations, and the port that each is behind: what switches are to be told after a takeover.

Soft state, which decides nothing and is in no log: cores see it, the primary tells its backups. A station is a number; see
`actornet.engine.sightings`.
"""

from __future__ import annotations

from collections.abc import Iterator

from actornet.limits import STATION_S, STATIONS_MAX


class Stations:
    """The STATIONS_MAX that were seen last. `number` counts what was learned; `evicted`, what had to go for that."""

    def __init__(self) -> None:
        self.number = 0
        self.evicted = 0
        self._known: dict[int, tuple[int, int, int]] = {}  # station -> port, number, when; in order of the number

    def __len__(self) -> int:
        return len(self._known)

    def learn(self, port: int, station: int, now_ns: int) -> None:
        """A frame of the station came in at this port."""
        self._known.pop(station, None)
        if len(self._known) >= STATIONS_MAX:
            del self._known[next(iter(self._known))]
            self.evicted += 1
        self.number += 1
        self._known[station] = (port, self.number, now_ns)

    def since(self, number: int, now_ns: int) -> list[tuple[int, int]]:
        """(port, station) of what was learned after so many and not too long ago, the last first."""
        return list(self._since(number, now_ns - STATION_S * 1_000_000_000))

    def _since(self, number: int, oldest_ns: int) -> Iterator[tuple[int, int]]:
        for station in reversed(self._known):
            port, learned, seen_ns = self._known[station]
            if learned <= number or seen_ns < oldest_ns:
                return
            yield port, station
