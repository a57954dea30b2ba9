"""A pair whose witness is a real etcd on a third host, which both nodes reach by the same network as each other."""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path
from typing import Any, Self

from actornet.errors import ActornetError, WitnessError
from actornet.node.witness import EtcdWitness
from actornet.testing.netns import Lab
from actornet.testing.pair import READY_S, Pair

HOST, PORT = "10.9.0.3", 2379


class EtcdPair(Pair):
    """As a Pair, in the namespaces of `Lab.nat_trio`; ActornetError without etcd (Debian: etcd-server)."""

    def __init__(self, directory: Path, **options: Any) -> None:
        if shutil.which("etcd") is None:
            raise ActornetError("etcd is not installed (Debian: etcd-server)")
        super().__init__(directory, witness=f"etcd:{HOST}:{PORT}", **options)

    @staticmethod
    def _lab() -> Lab:
        return Lab.nat_trio()

    def __enter__(self) -> Self:
        super().__enter__()
        client, peer = f"http://{HOST}:{PORT}", f"http://{HOST}:{PORT + 1}"
        argv = ["etcd", "--data-dir", str(self.directory / "etcd"), "--unsafe-no-fsync", "--log-level=error"]
        argv += [f"--{kind}-client-urls={client}" for kind in ("listen", "advertise")]
        argv += [f"--listen-peer-urls={peer}", f"--initial-advertise-peer-urls={peer}"]
        argv += [f"--initial-cluster=default={peer}"]
        self.lab.popen("c", argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        witness, deadline = EtcdWitness(HOST, PORT, "ready"), time.monotonic() + READY_S
        while True:
            try:
                self.lab.call("c", witness.look)
                return self
            except WitnessError:
                if time.monotonic() > deadline:
                    self.lab.close()
                    raise
                time.sleep(0.05)
