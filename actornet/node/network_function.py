"""The network function of a node, with its settings in force."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from actornet.flow import FlowActor
from actornet.load import load_nf as _load
from actornet.setting import Value, assign, resolve


def load_nf(path: str, settings: Mapping[str, Any]) -> tuple[type[FlowActor], dict[str, Value]]:
    """The class at `module:Class`, ready to run, and its resolved settings. UsageError: no such class or setting."""
    nf = _load(path)
    values = resolve(nf, settings)
    assign(nf, values)
    nf.prepare()
    return nf, values
