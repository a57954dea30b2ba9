"""What a node runs, made from its deployment: the shared memory and one plan per process."""

from __future__ import annotations

import os
import zlib
from typing import Any

import msgspec

from actornet.engine.black_box import BlackBox
from actornet.engine.counters import PID_COUNTER
from actornet.engine.handlers import HANDLERS
from actornet.engine.ring import ControlPage
from actornet.limits import CORES_MEMORY_SHARE
from actornet.node.core_worker import CoreSpec
from actornet.node.deployment import Deployment
from actornet.node.fabric import Fabric
from actornet.node.network_function import load_nf
from actornet.node.owner_process import OWNER_PID_COUNTER
from actornet.node.owner_system import OwnerSpec
from actornet.node.plan import NodePlan, WorkerPlan
from actornet.node.process import host_bytes
from actornet.node.witness import check_directory
from actornet.ports.drivers import check_captures


class BeatsSpec(msgspec.Struct, frozen=True):
    """What it takes to see that a node's workers live, and what a core was at that does not."""

    page: int
    boxes: int
    cores: int
    nf: str
    ports: list[str]


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
        silence_ms=deployment.silence_ms,
        lease_ms=deployment.lease_ms,
        keep_records=deployment.keep_records,
        spins=bool(spare),
        keys_max=deployment.cores * deployment.flows_max,
        interfaces=[port.interface for port in deployment.ports.values() if port.interface is not None],
        wire=deployment.wire,
        cpu_latency_us=deployment.cpu_latency_us,
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
            wire=deployment.wire,
        )
        workers.append(WorkerPlan(f"core-{index}", "core", "actornet.node.core_worker:run", core, (cpu,)))
    spec = BeatsSpec(fabric.page.fd, fabric.boxes.fd, deployment.cores, deployment.nf, list(deployment.ports))
    core_bytes = deployment.core_memory_mb << 20 or int(host_bytes() * CORES_MEMORY_SHARE) // deployment.cores
    return NodePlan(
        workers,
        "actornet.node.assembly:beats",
        spec,
        "actornet.node.assembly:last_handler",
        core_bytes_max=core_bytes,
        keep=fabric,
    )


def beats(spec: BeatsSpec) -> list[tuple[str, int, int, int]]:
    """(worker's name, pid, beat, work) of each worker that has begun to turn, from the control page."""
    page = ControlPage(spec.page, spec.cores)
    counts = page.owner_counters()
    found = [("owner-system", counts[OWNER_PID_COUNTER], page.owner_beat, sum(counts))]
    for core in range(spec.cores):
        counts = page.core_counters(core)
        found.append((f"core-{core}", counts[PID_COUNTER], page.core_beat(core), sum(counts)))
    return [entry for entry in found if entry[1]]


def last_handler(spec: BeatsSpec, name: str) -> dict[str, Any] | None:
    """The handler that ran when the core of this name ended: its function, flow and port."""
    last = BlackBox(spec.boxes, spec.cores).last(int(name.removeprefix("core-")))
    if last is None:
        return None
    phase, flow, port = last
    return {"nf": spec.nf, "handler": HANDLERS[phase], "flow": str(flow), "port": spec.ports[port]}
