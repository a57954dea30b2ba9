"""What a core counts. The compiled core has the same names, in the same order, in counters.pxd."""

COUNTERS = (
    "flows_opened",
    "flows_closed",
    "flows_refused",
    "flows_restored",
    "offloaded",
    "handled",
    "suspended",
    "asks",
    "held",
    "handed_off",
    "answered",
    "resumed",
    "reassembled",
    "fragments_joined",
    "refragmented",
    "fragments_made",
    "malformed",
    "truncated",
    "not_ip",
    "fragment",
    "untracked",
    "fragment_overlap",
    "fragment_expired",
    "fragment_evicted",
    "other_host",
    "icmp_error_unmatched",
    "dropped_by_nf",
    "rejected_by_nf",
    "dropped_by_offload",
    "ttl_expired",
    "flow_table_full",
    "mailbox_full",
    "held_full",
    "held_fenced",
    "handler_error",
    "no_route",
    "neighbor_full",
    "neighbor_unresolved",
    "handoff_full",
    "handoff_stale",
    "tx_failed",
    "rx_packets",
    "rx_bytes",
    "tx_packets",
    "tx_bytes",
    "live_flows",
)
"""Names of a core's counters, in the order of its counter block. Counts of packets unless the name says otherwise."""

DROPS = COUNTERS[COUNTERS.index("malformed") : COUNTERS.index("tx_failed") + 1]
"""The counters that count packets dropped."""

PID_COUNTER = 63
"""The last word of a core's counter block: its process."""
