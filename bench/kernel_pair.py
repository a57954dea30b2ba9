"""The pair that Linux itself makes: two kernels that translate, keepalived (VRRP) and conntrackd, in `Lab.nat_pair`.

Set up as the conntrack-tools' own test case says (http://conntrack-tools.netfilter.org/testcase.html): the forward chain drops
what belongs to no connection and does not open one, source NAT to an address that moves with the primary (masquerade would
take the node's own address, which dies with it), conntrackd in FTFW mode on the dedicated link, and keepalived calling the
commands of conntrackd's primary-backup.sh at each transition. VRRP is version 3 (RFC 5798) on both sides, in one sync group,
without pre-emption. No TCP or UDP may enter the node itself: a new primary has the address a moment before it has the
connections, and its kernel would answer what comes for them by a reset.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from actornet.errors import ActornetError
from actornet.testing.netns import Lab

PROGRAMS = {"keepalived": "keepalived", "conntrackd": "conntrackd", "nft": "nftables"}
"""Command and Debian's package of it."""

READY_S = 20.0
HOSTS = {"a": 1, "b": 2}

RULES = """\
table ip nat {
    chain postrouting {
        type nat hook postrouting priority srcnat;
        ip saddr 10.0.0.0/24 oifname wan0 snat to 203.0.113.1
    }
}
table ip filter {
    chain forward {
        type filter hook forward priority filter; policy drop;
        ct state established,related accept
        iifname lan0 tcp flags & (fin|syn|rst|ack) == syn ct state new accept
        iifname lan0 ip protocol { udp, icmp } ct state new accept
    }
    chain input {
        type filter hook input priority filter; policy accept;
        iifname { lan0, wan0 } ip protocol { tcp, udp } drop
    }
}
"""

CONNTRACKD = """\
Sync {{
    Mode FTFW {{
        DisableExternalCache {warm}
    }}
    UDP {{
        IPv4_address 10.9.0.{own}
        IPv4_Destination_Address 10.9.0.{other}
        Port 3780
        Interface link0
        SndSocketBuffer 1249280
        RcvSocketBuffer 1249280
        Checksum on
    }}
}}
General {{
    HashSize 32768
    HashLimit 131072
    LogFile {directory}/{node}-conntrackd.log
    LockFile {directory}/{node}.lock
    UNIX {{
        Path {directory}/{node}.ctl
    }}
    NetlinkBufferSize 2097152
    NetlinkBufferSizeMaxGrowth 8388608
    Filter From Userspace {{
        Protocol Accept {{
            TCP
            UDP
        }}
        Address Ignore {{
            IPv4_address 127.0.0.1
            IPv4_address 10.9.0.1
            IPv4_address 10.9.0.2
            IPv4_address 10.0.0.25{own}
            IPv4_address 203.0.113.25{own}
        }}
    }}
}}
"""

KEEPALIVED = """\
global_defs {{
    router_id {node}
    script_user root
    vrrp_version 3
    vrrp_rt_priority 50
    vrrp_rlimit_rttime 1000000
}}
vrrp_sync_group pair {{
    group {{
        lan
        wan
    }}
    notify_master "{directory}/{node}.sh primary"
    notify_backup "{directory}/{node}.sh backup"
    notify_fault "{directory}/{node}.sh fault"
}}
vrrp_instance lan {{
    interface lan0
    state BACKUP
    nopreempt
    virtual_router_id 61
    priority {priority}
    advert_int {advert_s:g}
    virtual_ipaddress {{
        10.0.0.1/24
    }}
}}
vrrp_instance wan {{
    interface wan0
    state BACKUP
    nopreempt
    virtual_router_id 62
    priority {priority}
    advert_int {advert_s:g}
    virtual_ipaddress {{
        203.0.113.1/24
    }}
}}
"""

# The commands of primary-backup.sh in their order: commit the peer's connections, flush the caches, read the own table anew,
# send it; and: shorten the timers of what is left over, ask the peer for its connections.
NOTIFY = """\
#!/bin/sh
case "$1" in
primary) orders="-c -f -R -B" ;;
backup) orders="-t -n" ;;
*) orders="-t" ;;
esac
for order in $orders; do conntrackd -C {directory}/{node}.conf $order; done
echo "$1" >> {directory}/{node}.states
"""


class KernelPair:
    """Nodes `a` (primary) and `b` (backup). `advert_s` is VRRP's Advertisement_Interval, 0.01 s at least.

    `warm`: the backup's conntrackd puts connections into its kernel at once instead of when it takes over. Raises ActornetError
    if a program is missing or does not start.
    """

    def __init__(self, directory: Path, advert_s: float, warm: bool) -> None:
        missing = [package for command, package in PROGRAMS.items() if shutil.which(command) is None]
        if missing:
            raise ActornetError(
                f"keepalived and conntrackd need programs that are not here: apt-get install {' '.join(missing)}"
            )
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.lab = Lab.nat_pair()
        self._processes: dict[str, list[subprocess.Popen[Any]]] = {}
        for node, own in HOSTS.items():
            about: dict[str, Any] = {"node": node, "own": own, "other": 3 - own, "directory": directory}
            about |= {"advert_s": advert_s, "priority": 300 - 50 * own, "warm": "On" if warm else "Off"}
            for suffix, text in (("conf", CONNTRACKD), ("vrrp", KEEPALIVED), ("sh", NOTIFY)):
                (directory / f"{node}.{suffix}").write_text(text.format(**about))
            (directory / f"{node}.sh").chmod(0o700)

    def __enter__(self) -> Self:
        self.lab.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.lab.close()

    def start(self) -> None:
        """Start both; returns when `a` is the primary and `b` its backup."""
        self._start("a")
        self._wait(lambda: self.states("a") == ["backup", "primary"], "a did not become primary")
        self._start("b")
        self._wait(lambda: self.states("b") == ["backup"], "b did not become backup")

    def states(self, node: str) -> list[str]:
        """The states (primary, backup, fault) whose scripts keepalived has run, in order."""
        with suppress(FileNotFoundError):
            return (self.directory / f"{node}.states").read_text().split()
        return []

    def wait_takeover(self, node: str) -> None:
        """Wait until the node's script for a primary is done."""
        self._wait(lambda: self.states(node)[-1] == "primary", f"{node} did not take over")

    def kill(self, node: str) -> None:
        """kill -9 of keepalived and conntrackd. The kernel goes on forwarding, as a dead host's would not: cut it off, too."""
        victims = [process.pid for process in self._processes[node]]
        for pid in victims:
            children = Path(f"/proc/{pid}/task/{pid}/children")
            with suppress(OSError):
                victims += map(int, children.read_text().split())
        # Stopped first: keepalived's child learns of its parent's death, and would tell its peer that it leaves.
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for pid in victims:
                with suppress(ProcessLookupError):
                    os.kill(pid, number)

    def stop(self, node: str) -> None:
        """End keepalived cleanly: it tells its peer, and gives the addresses up."""
        keeper = self._processes[node][0]
        keeper.terminate()
        keeper.wait(READY_S)

    def _start(self, node: str) -> None:
        own, files = HOSTS[node], self.directory / node
        self.lab.ip(
            node,
            "link set lan0 arp on",
            "link set wan0 arp on",
            f"addr add 10.0.0.25{own}/24 dev lan0",
            f"addr add 203.0.113.25{own}/24 dev wan0",
        )
        self.lab.run(node, ["sysctl", "-qw", "net.ipv4.ip_forward=1"])
        self.lab.run(node, ["nft", RULES])
        with files.with_suffix(".log").open("ab") as file:
            tracker = self.lab.popen(node, ["conntrackd", "-C", f"{files}.conf"], stdout=file, stderr=file)
            self._wait(files.with_suffix(".ctl").exists, f"conntrackd of {node} did not start")
            argv = ["keepalived", "--dont-fork", "--vrrp", "--log-console", "--log-detail"]
            argv += ["--use-file", f"{files}.vrrp", "--pid", f"{files}.pid", "--vrrp_pid", f"{files}-vrrp.pid"]
            keeper = self.lab.popen(node, argv, stdout=file, stderr=file)
        self._processes[node] = [keeper, tracker]

    def _wait(self, done: Callable[[], bool], otherwise: str) -> None:
        deadline = time.monotonic() + READY_S
        while not done():
            if time.monotonic() > deadline:
                printed = "".join(path.read_text()[-1500:] for path in sorted(self.directory.glob("*.log")))
                raise ActornetError(f"{otherwise} within {READY_S:g} s:\n{printed}")
            time.sleep(0.01)
