"""What an owner system says of itself in `actornet status`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from actornet.node.environment import Link
from actornet.replication.primary import Primary

if TYPE_CHECKING:
    from actornet.node.owner_system import OwnerSystem


def owner_status(system: OwnerSystem) -> dict[str, Any]:
    """Role, state, LSNs, lag and all else; read from another thread than the owner system's, so of about one instant."""
    machine, page, replica, leadership = system.machine, system.page, system.journal.replica, system.leadership
    primary = isinstance(machine, Primary)
    followed = machine.leading if isinstance(machine, Primary) else machine
    lag = followed.lag if followed is not None else None
    lag_ns = followed.lag_ns(system.environment.monotonic_ns()) if followed is not None else 0
    return {
        "role": "primary" if primary else "backup",
        "state": machine.state.value,
        "epoch": page.epoch,
        "lsn": system.journal.lsn,
        "logged_lsn": page.lsn_logged,
        "watermark": page.watermark if primary else None,
        "lag_records": lag,
        "rests": system.rests,
        "durability": system.spec.durability,
        "without_backup": system.spec.without_backup,
        "flows": len(replica.flows),
        "owners": sorted(replica.owners),
        "ports_without_link": machine.links_down,
        "stations": len(system.cores.stations),
        "stations_evicted": system.cores.stations.evicted,
        "unsent": len(system.unsent),
        "unsent_evicted": system.unsent.evicted,
        "takeover": system.takeover,
        **_replication(system),
        "lag_ms": round(lag_ns / 1e6, 3) if lag is not None else None,
        "launching": leadership.seeking,
        "upkeep": system.upkeep.status(),
        "witness": leadership.keeper.status() if leadership.keeper is not None else None,
        "link": _link(system.link) if system.link is not None else None,
    }


def _replication(system: OwnerSystem) -> dict[str, Any]:
    machine = system.machine
    if isinstance(machine, Primary):
        leading = machine.leading
        ack = leading.ack if leading is not None else None
        return {
            "sent_lsn": leading.sent_lsn if leading is not None else None,
            "backup_received_lsn": ack.received if ack is not None else None,
            "backup_durable_lsn": ack.durable if ack is not None else None,
            "backup_applied_lsn": ack.applied if ack is not None else None,
            "commits_alone": machine.commits_alone,
            "backups": [
                {
                    "node": feed.node,
                    "state": feed.state.value,
                    "lag_records": feed.lag if feed.welcome else None,
                    "sent_lsn": feed.sent_lsn,
                    "received_lsn": feed.ack.received,
                    "durable_lsn": feed.ack.durable,
                    "applied_lsn": feed.ack.applied,
                }
                for feed in list(machine.feeds.values())
            ],
        }
    return {
        "primary_lsn": machine.primary_lsn,
        "received_lsn": machine.received_lsn,
        "applied_lsn": machine.applied_lsn,
        "sync_epoch": machine.sync_epochs[-1] if machine.sync_epochs else None,
        "resyncs": len(system.following.resyncs),
    }


def _link(link: Link) -> dict[str, Any]:
    counts = {name: count for name, count in link.counters.items() if count}
    return {"address": link.address, "peer": link.peer if link.connected else None, **counts}
