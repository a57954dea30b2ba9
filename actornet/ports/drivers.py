"""The drivers of live ports by name, as the deployment file and the command line choose them."""

from __future__ import annotations

from typing import Literal, get_args

from actornet.engine.rss import RssKeys
from actornet.errors import UsageError
from actornet.ports.live import LivePort

Driver = Literal["af_packet", "af_xdp", "tap"]
DRIVERS: tuple[Driver, ...] = get_args(Driver)


def open_port(
    driver: Driver,
    name: str,
    interface: str,
    *,
    group: int = 0,
    cores: int = 1,
    core: int = 0,
    mac: bytes | None = None,
    rss_keys: tuple[RssKeys, RssKeys] | None = None,
) -> LivePort:
    """One core's port, passive; `group` is the same for all cores' ports on the interface and for nobody else's.

    Where the driver chooses the core of a frame in software it does so by `rss_keys`, for IPv4 and IPv6, or symmetrically.

    Raises PortError as the driver does, and UsageError if there is no such driver.
    """
    match driver:
        case "af_packet":
            from actornet.ports.af_packet import AfPacketPort

            return AfPacketPort(name, interface, cores=cores, core=core, mac=mac, rss_keys=rss_keys)
        case "af_xdp":
            from actornet.ports.af_xdp import AfXdpPort

            return AfXdpPort(name, interface, group=group, cores=cores, core=core, mac=mac)
        case "tap":
            from actornet.ports.tap import TapPort

            return TapPort(name, interface, cores=cores, core=core, mac=mac)
    raise UsageError(f"port {name}: there is no driver {driver!r}; there are {', '.join(DRIVERS)}")
