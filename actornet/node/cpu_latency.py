"""How long the host's CPUs may take to wake up: a request to the kernel's power management (PM QoS).

To wake a process whose CPU sleeps takes 10 to 100 us and more, in a virtual machine most of all; a packet that waits for a
backup meets four sleepers. No CPU sleeps deeper than the strictest of all requests allows (Linux, power/pm_qos_interface).
"""

from __future__ import annotations

import os
import struct
from pathlib import Path

from actornet.errors import UsageError

DEVICE = Path("/dev/cpu_dma_latency")

ANY_US = 2_000_000_000
"""No request (PM_QOS_CPU_LATENCY_DEFAULT_VALUE)."""

_VALUE = struct.Struct("i")


def problem(us: int | None) -> str | None:
    """What is wrong with such a request, or None."""
    if us is None or 0 <= us < ANY_US:
        return None
    return f"`cpu_latency_us` = {us}: microseconds for a CPU to wake, 0 or more; or leave it out"


class CpuLatency:
    """A request of `us` microseconds, made and withdrawn by `hold`; the kernel withdraws it where the process ends.

    0: CPUs without work look for some. UsageError: this kernel takes no request from this process.
    """

    def __init__(self, us: int) -> None:
        if wrong := problem(us):
            raise UsageError(wrong)
        self.us = us
        self.held = False
        try:
            self._fd = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise UsageError(
                f"`cpu_latency_us` = {us}: {DEVICE}: {(error.strerror or str(error)).lower()}. It takes root, and a kernel "
                "with CONFIG_CPU_IDLE; without the key CPUs sleep as they like"
            ) from None

    def hold(self, held: bool) -> None:
        """Ask the kernel, or ask no more."""
        if held != self.held:
            os.write(self._fd, _VALUE.pack(self.us if held else ANY_US))
            self.held = held

    def close(self) -> None:
        os.close(self._fd)
        self.held = False


def strictest_us() -> int:
    """What the kernel heeds at the moment, of all requests on this host; ANY_US: there is none."""
    with DEVICE.open("rb", buffering=0) as device:
        return int(_VALUE.unpack(device.read(_VALUE.size))[0])
