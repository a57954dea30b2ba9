"""The terms of an offload: how fast its packets may go, and which of them the flow's actor sees as well."""

from __future__ import annotations

import msgspec

from actornet.errors import UsageError

RATE_MAX = 1 << 40
BURST_MAX = 1 << 33
COUNT_MAX = (1 << 32) - 1


class Meter(msgspec.Struct, frozen=True, kw_only=True):
    """A token bucket (RFC 2697's committed one): what exceeds it is dropped as `dropped_by_meter`.

    One of `packets_per_s` and `bytes_per_s`, a whole number, and `burst` in the same unit: what may pass at once after a
    pause, for bytes at least the longest packet. Bytes are those of the frame as received. Each offloaded key has a bucket
    of its own, which is full at first, and again after a takeover. Raises UsageError for values that no bucket can have.
    """

    burst: int
    packets_per_s: int = 0
    bytes_per_s: int = 0

    def __post_init__(self) -> None:
        if bool(self.packets_per_s) == bool(self.bytes_per_s):
            raise UsageError("meter: give one of packets_per_s and bytes_per_s")
        for name, value, most in (
            ("burst", self.burst, BURST_MAX),
            ("rate", self.packets_per_s or self.bytes_per_s, RATE_MAX),
        ):
            if not isinstance(value, int) or not 1 <= value <= most:
                raise UsageError(f"meter: {name} must be a whole number from 1 to {most}, not {value!r}")


class Mirror(msgspec.Struct, frozen=True, kw_only=True):
    """Which packets of an offloaded key the flow's actor sees as well, in `on_mirror`, before they leave.

    Each `every`-th one, the first `packets`, those that begin within the first `bytes`: what any of them says. Counted
    from when the offload was installed, and anew after a takeover. Raises UsageError for values that say nothing.
    """

    every: int = 0
    packets: int = 0
    bytes: int = 0

    def __post_init__(self) -> None:
        values = (self.every, self.packets, self.bytes)
        if not all(isinstance(value, int) and 0 <= value <= COUNT_MAX for value in values) or not any(values):
            raise UsageError(f"mirror: give every, packets or bytes from 1 to {COUNT_MAX}, not {self!r}")
