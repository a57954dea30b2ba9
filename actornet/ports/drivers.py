"""The ports of a core, by the drivers that the deployment file and the command line choose."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from contextlib import ExitStack

from actornet.engine.rss import RssKeys
from actornet.ports.live import LivePort
from actornet.ports.pcap import CaptureAppender, read_capture
from actornet.ports.playback import INSIDE_DEFAULT, Playback
from actornet.ports.recorded import LoadPort, PcapPort, Recording, Share
from actornet.ports.table import PortTable, sharing


def open_ports(
    tables: Mapping[str, PortTable],
    *,
    group: int = 0,
    cores: int = 1,
    core: int = 0,
    rss_keys: tuple[RssKeys, RssKeys] | None = None,
    wire: int | None = None,
    follows: bool = False,
) -> list[LivePort]:
    """One core's ports, passive. `group` is the first of one number per port, the same for all cores and for nobody else.

    Where the driver chooses the core of a frame in software it does so by `rss_keys`, for IPv4 and IPv6, or symmetrically.
    `wire` is the same for all nodes that play captures together; who `follows` takes over from another.
    Raises PortError and CaptureError as the drivers do.
    """
    share = Share(cores, core, rss_keys)
    ports: list[LivePort] = []
    with ExitStack() as opened:
        recording = _recording(tables, share, wire, follows)
        if recording is not None:
            opened.callback(recording.close)
        for number, (name, table) in enumerate(tables.items()):
            port = _open_port(number, name, table, group + number, cores, core, rss_keys, share, recording, tables)
            opened.callback(port.close)
            if table.address is not None:
                port.interface = ipaddress.ip_interface(table.address)
            if table.gateway is not None:
                port.gateway = ipaddress.ip_address(table.gateway)
            ports.append(port)
        opened.pop_all()
    return ports


def check_captures(tables: Mapping[str, PortTable]) -> None:
    """Raise CaptureError if a port's captures cannot be read or written; before there is a core that would find that."""
    for table in tables.values():
        if table.read is not None:
            read_capture(table.read).close()
        if table.write is not None:
            CaptureAppender(table.write).close()


def _open_port(
    number: int,
    name: str,
    table: PortTable,
    group: int,
    cores: int,
    core: int,
    rss_keys: tuple[RssKeys, RssKeys] | None,
    share: Share,
    recording: Recording | None,
    tables: Mapping[str, PortTable],
) -> LivePort:
    mac = bytes.fromhex(table.mac.replace(":", "")) if table.mac else None
    match table.driver:
        case "af_packet":
            from actornet.ports.af_packet import AfPacketPort

            return AfPacketPort(name, table.place, cores=cores, core=core, mac=mac, rss_keys=rss_keys)
        case "af_xdp":
            from actornet.ports.af_xdp import AfXdpPort

            return AfXdpPort(name, table.place, group=group, cores=cores, core=core, mac=mac)
        case "tap":
            from actornet.ports.tap import TapPort

            return TapPort(name, table.place, cores=cores, core=core, mac=mac)
        case "pcap":
            assert recording is not None
            return PcapPort(name, number, recording, table.read, table.write)
        case "memory":
            both = sharing(tables, name)
            playback = Playback(INSIDE_DEFAULT, both[0], both[1], as_is=True) if both else None
            return LoadPort(name, number, share, table.read, table.packets_per_s, playback)


def _recording(tables: Mapping[str, PortTable], share: Share, wire: int | None, follows: bool) -> Recording | None:
    """What the pcap ports read, if there are any."""
    pcap = [(index, name) for index, name in enumerate(tables) if tables[name].driver == "pcap"]
    if not pcap:
        return None
    reads: dict[str, int | None] = {}
    playback = speed = None
    for index, name in pcap:
        if (path := tables[name].read) is not None:
            speed = tables[name].speed
            both = sharing(tables, name)
            reads[path] = None if both else index
            playback = Playback(INSIDE_DEFAULT, both[0], both[1]) if both else playback
    return Recording([*reads.items()], share, playback, 1.0 if speed is None else speed, wire, follows)
