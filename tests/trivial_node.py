"""A node of trivial workers for the tests of supervision: each beats in shared memory and does what it is told."""

import ctypes
import mmap
import os
import struct
import time
from pathlib import Path

from actornet.errors import PortError
from actornet.node.plan import NodePlan, WorkerPlan

SLOT = struct.Struct("<QQ")  # pid, beat


def plan(argument):
    """`argument`: {"cores": n, "core": function's name, "directory": where workers leave traces, "stall_s": s}."""
    if argument.get("error"):
        raise PortError(argument["error"])
    if argument.get("bug"):
        raise ZeroDivisionError("in the factory")
    beats = os.memfd_create("beats")
    os.ftruncate(beats, mmap.PAGESIZE)
    names = [f"core-{number}" for number in range(argument.get("cores", 1))] + ["owners"]
    cpu = max(os.sched_getaffinity(0))
    workers = [
        WorkerPlan(
            name,
            "owner" if name == "owners" else "core",
            "trivial_node:" + ("beat" if name == "owners" else argument.get("core", "beat")),
            {"beats": beats, "slot": slot, "directory": argument["directory"], "name": name},
            () if name == "owners" else (cpu,),
        )
        for slot, name in enumerate(names)
    ]
    return NodePlan(
        workers,
        "trivial_node:" + argument.get("beats", "read_beats"),
        (beats, names),
        stall_s=argument.get("stall_s", 2.0),
        core_bytes_max=argument.get("core_bytes_max"),
    )


def read_beats(spec):
    beats, names = spec
    return [(name, *SLOT.unpack(os.pread(beats, SLOT.size, slot * SLOT.size)), 0) for slot, name in enumerate(names)]


def beat(spec, stop_event, report):
    """A data plane that beats every millisecond until it is stopped, and then leaves a trace."""
    beats, offset = spec["beats"], spec["slot"] * SLOT.size
    commands = []

    def command(name, arguments):
        if name == "refuse":
            raise PortError("not now")
        if name == "bug":
            raise KeyError(name)
        commands.append(name)
        return {"did": name, **arguments}

    report.on_status(lambda: {"beat": count, "commands": commands, "key_bytes": len(report.key)})
    report.on_command(command)
    count = 0
    report.ready()
    while not stop_event.wait(0.001):
        count += 1
        if "stall" not in commands:
            os.pwrite(beats, SLOT.pack(os.getpid(), count), offset)
        if "raise" in commands:
            raise ValueError("a bug in the data plane")
        if "crash" in commands:
            ctypes.string_at(0)  # reads address 0
    with (Path(spec["directory"]) / "stopped").open("a") as trace:
        trace.write(f"{spec['name']} {report.stop_reason}\n")


def fail_at_once(spec, stop_event, report):
    report.ready()
    raise ValueError("every time")


def cannot_start(spec, stop_event, report):
    raise PortError("interface wan0 is absent: create it, or name another")


def return_early(spec, stop_event, report):
    return


def ignore_stop(spec, stop_event, report):
    report.ready()
    while True:
        time.sleep(1)


def plan_of_deployment(deployment):
    """For `actornet launch`: leaves its traces where the log would be."""
    deployment.log.mkdir(parents=True, exist_ok=True)
    return plan({"cores": deployment.cores, "directory": str(deployment.log)})
