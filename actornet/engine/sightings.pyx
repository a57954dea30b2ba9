"""Which stations are behind which port: switches are to be told of them after a takeover.

A switch learns where a station is from the source addresses of frames. Of those, a core looks at the ones that open a flow or
find neighbours, and tells the owner system what is new; so offloaded packets cost nothing, and a station that has nothing
but offloaded flows is told once. For a station is a number: its MAC address, VLAN and that one's tag (`station_of`).
"""

from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memset

from actornet.engine.core cimport Core
from actornet.engine.types cimport an_packet

from actornet.limits import STATIONS_MAX, STATIONS_TOLD_S

cdef uint32_t stations_max = STATIONS_MAX
cdef uint64_t told_again_ns = STATIONS_TOLD_S * 1_000_000_000


cdef class Sightings:
    """What a core has told of stations."""

    def __cinit__(self):
        self.left = stations_max

    cdef int look(self, const an_packet *p) except -1:
        """A frame as it came in at one of two ports."""
        cdef Core core
        cdef uint64_t station, sighting
        cdef uint64_t *told
        if not self.on:
            return 0
        station = station_of(p.data, p.length)
        if station == 0:
            return 0
        core = <Core>self.core
        if core.now_ns - self.begun_ns >= told_again_ns:  # also when the clock went back
            memset(self.told, 0, sizeof(self.told))
            self.begun_ns, self.left = core.now_ns, stations_max
        sighting = station | <uint64_t>1 << 62 | <uint64_t>p.port << 63
        told = &self.told[(station * <uint64_t>0x9E3779B97F4A7C15) >> 52]
        if told[0] == sighting:
            return 0
        if self.left == 0:
            self.untold += 1
            return 0
        self.left -= 1
        told[0] = sighting
        core.submitted = True
        core.link.seen(p.port, station)
        return 0


cdef uint64_t station_of(const uint8_t *frame, uint32_t length) noexcept:
    """Bits 0-47 the source address, 48-59 the VLAN, 60: its tag is a provider's (IEEE 802.1ad). 0: it tells of no station."""
    cdef uint64_t station = 0, vlan
    cdef int i
    if length < 14 or frame[6] & 1:
        return 0
    for i in range(6, 12):
        station = station << 8 | frame[i]
    if station and length >= 18 and (
            frame[12] == 0x81 and frame[13] == 0x00 or frame[12] == 0x88 and frame[13] == 0xa8):
        vlan = <uint64_t>(frame[14] & 15) << 8 | frame[15]
        if vlan:
            station |= vlan << 48 | <uint64_t>(frame[12] == 0x88) << 60
    return station
