"""What a node runs, made from its deployment: the shared memory and one plan per process."""

from __future__ import annotations

import os
import zlib

from actornet.engine.counters import PID_COUNTER
from actornet.engine.ring import ControlPage
from actornet.node.core_worker import CoreSpec
from actornet.node.deployment import Deployment
from actornet.node.fabric import Fabric
from actornet.node.network_function import load_nf
from actornet.node.owner_process import OWNER_PID_COUNTER
from actornet.node.owner_system import OwnerSpec
from actornet.node.plan import NodePlan, WorkerPlan
from actornet.node.witness import check_directory
from actornet.ports.drivers import check_captures


def assemble(deployment: Deployment) -> NodePlan:
    """The node's plan; called in the supervisor's process, which keeps the memory. UsageError: no such NF, setting or
    directory; CaptureError: no such capture."""
    load_nf(deployment.nf, deployment.settings)
    check_captures(deployment.ports)
    check_directory(deployment.witness or "")
    fabric = Fabric.create(deployment.cores)
    available = sorted(os.sched_getaffinity(0))
    cpus = deployment.cpus or available
    taken = [cpus[index % len(cpus)] for index in range(deployment.cores)]
    spare = tuple(cpu for cpu in available if cpu not in taken)  # a real-time thread would hold up the core beside it
    owner = OwnerSpec(
        name=deployment.name,
        role=deployment.role,
        node=deployment.node,
        nf=deployment.nf,
        settings=deployment.settings,
        ports=list(deployment.ports),
        log=str(deployment.log),
        links=deployment.links,
        listen=deployment.listen,
        durability=deployment.durability,
        without_backup=deployment.without_backup,
        fabric=fabric.spec,
        peers=deployment.peers,
        witness=deployment.witness,
        etcd=deployment.etcd,
        lease_ms=deployment.lease_ms,
        keep_records=deployment.keep_records,
        spins=bool(spare),
        keys_max=deployment.cores * deployment.flows_max,
        interfaces=[port.interface for port in deployment.ports.values() if port.interface is not None],
    )
    workers = [WorkerPlan("owner-system", "owner", "actornet.node.owner_process:run", owner, spare)]
    for index, cpu in enumerate(taken):
        core = CoreSpec(
            index=index,
            nf=deployment.nf,
            settings=deployment.settings,
            ports=deployment.ports,
            port_group=zlib.crc32(f"{deployment.name}/{os.getpid()}".encode()) & 0xFFFF,
            fabric=fabric.spec,
            poll=deployment.poll,
            flows_max=deployment.flows_max,
            follows=deployment.role == "backup",
            wire=zlib.crc32(str(deployment.key_file).encode()),
        )
        workers.append(WorkerPlan(f"core-{index}", "core", "actornet.node.core_worker:run", core, (cpu,)))
    return NodePlan(workers, "actornet.node.assembly:beats", (fabric.page.fd, deployment.cores), keep=fabric)


def beats(spec: tuple[int, int]) -> list[tuple[str, int, int]]:
    """(worker's name, pid, beat) of each worker that has begun to turn, from the control page."""
    fd, cores = spec
    page = ControlPage(fd, cores)
    found = [("owner-system", page.owner_counters()[OWNER_PID_COUNTER], page.owner_beat)]
    found += [(f"core-{core}", page.core_counters(core)[PID_COUNTER], page.core_beat(core)) for core in range(cores)]
    return [entry for entry in found if entry[1]]
