"""How a node's packets are spread over its cores, from its status; a skew is named, with what to do about it."""

from __future__ import annotations

from typing import Any

SKEW_RATIO = 1.5
"""A core that treats more than this many times its even share of the packets is hot."""

HANDED_OVER_SHARE = 0.25
"""From this share of packets that came to another core than their flow's on, the card's spreading is worth a change."""

PACKETS_MIN = 10_000
FLOWS_MIN = 64
"""Of fewer packets nothing is said; nor of how so few flows are spread, which is chance."""

Load = dict[str, Any]


def load_of(status: dict[str, Any]) -> Load | None:
    """`cores`, each with its `core`, `packets` (that it treated), `share` of them, live `flows` and packets `handed_over` to
    other cores, since it started; `skew`: what is wrong with the spreading and what to do, or None.

    None of a node with one core, or if a core gives no answer.
    """
    workers = [worker for worker in status["workers"] if worker["name"].startswith("core-")]
    if len(workers) < 2 or any("counters" not in (worker["status"] or {}) for worker in workers):
        return None
    cores = []
    for worker in workers:
        counters = worker["status"]["counters"]
        handed_over = counters.get("handed_off", 0)  # received here and, once more, where they were handed to
        packets = max(0, counters.get("rx_packets", 0) - handed_over)
        flows = counters.get("live_flows", 0)
        cores.append({"core": worker["name"], "packets": packets, "flows": flows, "handed_over": handed_over})
    total = sum(core["packets"] for core in cores)
    for core in cores:
        core["share"] = round(core["packets"] / total, 4) if total else 0.0
    return {"cores": cores, "skew": _skew(cores, total)}


def _skew(cores: list[dict[str, Any]], total: int) -> str | None:
    if total < PACKETS_MIN:
        return None
    found = []
    hot = max(cores, key=lambda core: int(core["packets"]))
    if hot["packets"] * len(cores) > SKEW_RATIO * total:
        flows = sum(core["flows"] for core in cores)
        where = f"{hot['core']} treats {hot['share']:.0%} of the packets with {hot['flows']} of {flows} flows"
        if flows >= FLOWS_MIN and hot["flows"] * len(cores) > SKEW_RATIO * flows:
            advice = "its flows agree in what is hashed: have shards_by name more fields, or none"
        else:
            advice = "few flows are heavy: offload them, or give this core a CPU of its own (cpus)"
        found.append(f"{where}: {advice}")
    handed_over = sum(core["handed_over"] for core in cores)
    if handed_over > HANDED_OVER_SHARE * total:
        found.append(
            f"{handed_over / total:.0%} of the packets came to another core than their flow's: "
            "`actornet rss NF` says how to set the card's RSS key"
        )
    return "; ".join(found) or None
