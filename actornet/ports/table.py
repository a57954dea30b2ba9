"""What a port is attached to and how, as the deployment file and the command line say it."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import msgspec

from actornet.errors import UsageError
from actornet.limits import LOAD_PACKETS_PER_S_MAX, PCAP_SPEED_MAX

Driver = Literal["af_packet", "af_xdp", "tap", "pcap", "memory"]
DRIVERS: tuple[Driver, ...] = get_args(Driver)

INTERFACE_CHARACTERS_MAX = 15
"""IFNAMSIZ without the terminating zero."""

RECORDED: dict[str, tuple[str, ...]] = {"pcap": ("read", "write", "speed"), "memory": ("read", "packets_per_s")}
"""Drivers without an interface, each with its keys."""

_INTERFACE_KEYS = ("interface", "address", "gateway", "mac")
_NUMBERS = ("speed", "packets_per_s")


class PortTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A `[ports.NAME]` table.

    `driver` is how the port is attached to `interface`. `address` "A.B.C.D/len" makes it routed (answers ARP and ping);
    without it the port is transparent. `gateway` is the next hop of everything outside the address's network. `mac` moves
    with the primary.

    Drivers `pcap` and `memory` need no interface. Frames come from the capture `read`: by `pcap` once, `speed` times as fast
    as they were captured (0: as fast as the core takes them), and what leaves is appended to the capture `write`; by `memory`
    over and over, `packets_per_s` by all cores together (None: as fast as they take them), and what leaves is let go.
    """

    interface: str | None = None
    driver: Driver = "af_packet"
    address: str | None = None
    gateway: str | None = None
    mac: str | None = None
    read: str | None = None
    write: str | None = None
    speed: float | None = None
    packets_per_s: float | None = None

    @property
    def place(self) -> str:
        """The interface, or the capture that is read, else the one that is written."""
        return self.interface or self.read or self.write or ""

    def within(self, directory: Path) -> PortTable:
        """The same with paths relative to `directory`."""
        paths = {key: str(directory / path) for key in ("read", "write") if (path := getattr(self, key)) is not None}
        return msgspec.structs.replace(self, **paths)


def table_values(text: str, driver: str | None = None) -> dict[str, Any]:
    """Keys of a port's table, of PLACE[,KEY=VALUE...]: the place is the interface, or the capture to read. UsageError says
    what is wrong."""
    place, *options = text.split(",")
    values: dict[str, Any] = {"driver": driver} if driver else {}
    for option in options:
        key, equals, value = option.partition("=")
        if not equals or key not in PortTable.__struct_fields__ or key == "interface":
            known = ", ".join(each for each in PortTable.__struct_fields__ if each != "interface")
            raise UsageError(f"{key!r} is not one of {known}")
        try:
            values[key] = float(value) if key in _NUMBERS else value
        except ValueError:
            raise UsageError(f"{key} = {value!r}: write a number") from None
    if place:
        values["read" if values.get("driver") in RECORDED else "interface"] = place
    return values


def problem_of(ports: Mapping[str, PortTable]) -> str | None:
    """What is wrong with the ports' tables: "NAME.KEY` ...", or None."""
    for name, port in ports.items():
        problem = _foreign_key(port) or (_recorded_problem(port) if port.driver in RECORDED else _live_problem(port))
        if problem:
            return f"{name}.{problem}"
    interfaces = [port.interface for port in ports.values()]
    reads = [(port.driver, port.read) for port in ports.values()]
    writes = [port.write for port in ports.values() if port.write is not None]
    speeds = [port.speed for port in ports.values() if port.driver == "pcap" and port.read is not None]
    for name, port in ports.items():
        if port.interface is not None and interfaces.count(port.interface) > 1:
            where = f"{name}.interface` = {port.interface!r}"
            return f"{where}: two ports cannot share an interface, what left by one would come back by the other"
        if port.read is not None and reads.count((port.driver, port.read)) > 2:
            return f"{name}.read` = {port.read!r}: two ports, inside and outside, can share a capture"
        if port.read is not None and port.read in writes:
            return f"{name}.read` = {port.read!r}: it is written as well; write to another file"
        if port.driver == "pcap" and port.read is not None and port.speed != speeds[0]:
            return f"{name}.speed`: all pcap ports play at one speed; give each the same"
    if len({port.read for name, port in ports.items() if port.driver == "pcap" and sharing(ports, name)}) > 1:
        return f"{next(iter(ports))}.read`: only one capture can be shared by two ports"
    return None


def sharing(ports: Mapping[str, PortTable], name: str) -> tuple[int, int] | None:
    """The indices of the two ports, inside and outside, that share the capture that this port reads."""
    table = ports[name]
    found = [
        index
        for index, each in enumerate(ports.values())
        if table.read is not None and (each.driver, each.read) == (table.driver, table.read)
    ]
    return (found[0], found[1]) if len(found) == 2 else None


def _foreign_key(port: PortTable) -> str | None:
    """A key that does not go with the driver."""
    known = RECORDED.get(port.driver, _INTERFACE_KEYS)
    for key in (*_INTERFACE_KEYS, "read", "write", "speed", "packets_per_s"):
        if key not in known and getattr(port, key) is not None:
            return f"{key}`: driver {port.driver} has no such key; it has {', '.join(known)}"
    return None


def _recorded_problem(port: PortTable) -> str | None:
    if port.speed is not None and not 0 <= port.speed <= PCAP_SPEED_MAX:
        return f"speed` = {port.speed:g}: choose 0 (as fast as the core takes packets) to {PCAP_SPEED_MAX}"
    if port.packets_per_s is not None and not 0 < port.packets_per_s <= LOAD_PACKETS_PER_S_MAX:
        return f"packets_per_s` = {port.packets_per_s:g}: choose up to {LOAD_PACKETS_PER_S_MAX}, or leave it out"
    for key in ("speed", "packets_per_s"):
        if getattr(port, key) is not None and port.read is None:
            return f"{key}`: say of what, too: `read` = a capture"
    return None


def _live_problem(port: PortTable) -> str | None:
    if port.interface is None:
        return "interface` is missing: write it in the deployment file, or give it by a flag"
    if not re.fullmatch(r"[^\s/]+", port.interface) or len(port.interface) > INTERFACE_CHARACTERS_MAX:
        return f"interface` = {port.interface!r}: no such name of an interface can exist"
    try:
        address = ipaddress.ip_interface(port.address) if port.address is not None else None
    except ValueError:
        return f'address` = {port.address!r}: write an address and its prefix length, say "10.0.0.1/24"'
    if address is not None and "/" not in str(port.address):
        return f'address` = {port.address!r}: add the prefix length, say "{port.address}/24"'
    if port.gateway is not None:
        if address is None:
            return "gateway`: only a routed port has one: set its `address` too"
        try:
            gateway = ipaddress.ip_address(port.gateway)
        except ValueError:
            return f"gateway` = {port.gateway!r}: write an IP address"
        if gateway not in address.network or gateway == address.ip:
            return f"gateway` = {port.gateway!r}: it has to be another host of the port's network {address.network}"
    if port.mac is not None and (
        not re.fullmatch(r"[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){5}", port.mac) or int(port.mac[:2], 16) & 1
    ):
        return f'mac` = {port.mac!r}: write a unicast MAC address, say "02:00:5e:00:53:01"'
    return None
