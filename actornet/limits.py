"""Every bound of actornet with its unit. A bound that is hit has a named counter or a typed error."""

BURST_PACKETS = 64
"""Packets that a core takes from a port at once."""

TURNS_MAX = 16
"""Bursts per port that a core takes, while they come full, before all else of its process has its turn."""

UNHEARD_MAX = 1024
"""Asks of a core that have failed and that somebody may yet await; those beyond it are told of as errors at once."""

FRAME_BYTES_MAX = 65_535 + 18
"""Largest frame that a port accepts: an IP packet of 64 KiB (GSO) behind Ethernet and one VLAN tag."""

FLOWS_MAX_DEFAULT = 1 << 20
"""Flow-table entries per core (one per bound key); beyond it new flows are dropped as `flow_table_full`."""

DATAGRAM_CUT_BYTES = 1280
"""IP packets of a network function's own payload that are larger than this, and than what they answer or replace, leave in
fragments: every link carries so much (RFC 8200 section 5)."""

FRAGMENTED_DATAGRAMS_MAX = 1024
FRAGMENTS_PER_DATAGRAM_MAX = 128
FRAGMENT_BYTES_MAX = 1 << 22
"""Per core: datagrams whose fragments are being put together, fragments of one, and memory for all. Whoever needs room takes
it from the oldest datagram (`fragment_evicted`); one of more fragments is discarded (`fragment_overlap`)."""

FRAGMENT_WAIT_S = 30
"""How long a datagram's fragments wait for the others; beyond it `fragment_expired`."""

MAILBOX_PACKETS_MAX = 64
"""Packets that wait behind a suspended handler of one flow; beyond it `mailbox_full`."""

HELD_PACKETS_MAX = 65_536
"""Packets per core that wait for the commit watermark (G3); beyond it `held_full`, and no flow is opened: its handlers would
decide, and log, about what cannot leave."""

RING_BYTES = 1 << 22
"""Shared-memory ring between a core and the owner system, each direction."""

PACKET_KEPT_BYTES_MAX = 1518
"""A flow's first packet is kept with its first ask, unless it is longer: then a takeover before the flow was saved leaves
what it asked for to nobody, until it comes again."""

MESSAGE_BYTES_MAX = 1 << 20
"""One owner message, reply, flow record or link frame."""

LOG_MAP_BYTES = 1 << 36
"""LMDB map size: address space only; the file grows with what is written."""

STATIONS_MAX = 4096
STATIONS_TOLD_S = 60
STATION_S = 3600
"""Stations behind transparent ports, of which switches hear after a takeover: those seen last (`stations_evicted` beyond it),
and within so long. A core tells the owner system of so many at most (`stations_untold` beyond it), and again after a while.
The time is long because packets of offloaded flows are not looked at; to announce a station that is gone harms nobody."""

STATIONS_PER_TURN = 64
"""Of these, what a core announces at once: packets go first."""

UNSENT_PACKETS_MAX = 8192
UNSENT_S = 10
"""Packets that wait in the primary's cores, of which a backup keeps a copy (`unsent_evicted` beyond it), to go on with them
after a takeover, and how old they may be then, in seconds. Those above PACKET_KEPT_BYTES_MAX are not among them."""

UNSENT_TOLD_BYTES = 1 << 15
"""A core tells of so many bytes of such packets in one message."""

NEIGHBOR_PACKETS_MAX = 64
"""Packets that wait for one neighbour's MAC address; beyond it `neighbor_full`."""

KEYS_PER_FLOW_MAX = 16
"""Keys (five-tuples on ports) that one flow actor may bind."""

PORT_NAME_BYTES_MAX = 64
"""Of a port's name in UTF-8: the log has it in every flow's record."""

PORTS_MAX = 16
"""Ports of one core."""

CORES_MAX = 64
"""Cores of one node."""

HEARTBEAT_MS = 5
SILENCE_MS_DEFAULT = 30
SILENCE_MS_MIN = 3 * HEARTBEAT_MS
SILENCE_MS_MAX = 10_000
"""Heartbeat interval of the link, the silence after which the peer counts as dead, and what may be configured."""

CALM_MS = 1_000
CALM_HEARTBEAT_MS = 100
"""A primary that no packet has come to, and that has logged nothing, for so long is calm: its heartbeats come at this interval,
and the limit of silence is longer by the difference, until something comes. Each of them wakes two processes."""

LINKS_LOOK_MS = 50
LINKS_DOWN_MS = 300
"""How often a node looks which of its interfaces have a link; a backup in sync that has had more of them than the primary for
so long asks to lead."""

HANDLER_INTERRUPT_S = 1.0
HANDLER_STALL_S = 2.0
"""A handler that has kept its core from turning for so long gets a HandlerStalled raised where it is (`handler_stalled`); a
core, or an owner system, that still does not turn after the second time is killed."""

HANDLER_SURE_S = 0.05
"""Apart in time, two looks must find the same handler before it is interrupted."""

SHUNNED_MAX = 64
SHUNNED_S = 600.0
"""Keys per core of flows whose handler was the end of its process, and for how long after their last packet they are shunned
(`shunned`, or `failed_open`); beyond it, the one that was silent for the longest time gives way."""

FLOW_KEEPS_BYTES_MAX = 1 << 24
"""What a flow's actor may keep unless its class sets `keeps_bytes_max`; beyond it `flow_too_large`, and the flow closes."""

FLOW_TASKS_MAX = 64
"""asyncio tasks that a flow's handlers have begun and that run; one more is an error of the handler. They end with the flow."""

KEEPS_LOOK_HANDLERS = 2048
"""Of so many handlers, one's actor is looked at for what it keeps, by chance."""

KEEPS_TRIES_MAX = 1 << 18
"""References that such a look follows to find out whether objects are held by a circle alone; beyond it they count as
shared."""

CAPTURE_RECORD_BYTES_MAX = 262_144
"""Largest record of a capture file (tcpdump's largest snap length): anything above is damage."""

CAPTURE_BLOCK_BYTES_MAX = 1 << 24
"""Largest pcapng block of any kind (name resolutions, secrets, comments): anything above is damage."""

MEMORY_FRAMES_MAX = 1 << 20
"""Frames that wait in a memory port in each direction; `feed` refuses more, sent ones count as `tx_full`."""

RECORDED_WAIT_MAX = 1024
"""Packets that wait in a core, for an owner or for the watermark, beyond which ports `pcap` and `memory` that are to be as fast
as it can give it no more."""

PCAP_SPEED_MAX = 1_000_000
"""How many times as fast as it was captured a port plays a capture."""

LOAD_PACKETS_PER_S_MAX = 1_000_000_000
"""Packets per second that a memory port is to offer."""

LOG_CHUNK_BYTES = 1 << 18
"""One chunk of a snapshot in the log, written in a transaction of its own while traffic runs (0.3 ms)."""

LOG_VERIFY_BYTES = 1 << 24
"""A log's file of up to this size is looked through at each start, page by page (0.7 s at most); a larger one only if whoever
opened it last did not live to see its end."""

LOG_PAGE_RECORDS = 1024
"""Records that one read transaction of a scan takes: a reader never pins the log's pages for longer."""

LOG_PRUNE_RECORDS = 1 << 14
"""Records that one call of prune or one transaction of truncate removes; bounds the pause of the writer."""

FLOWS_MAX = 1 << 28
"""Largest flow table that can be asked for."""

PLAYBACK_FLOWS_MAX = 1 << 20
"""Tuples whose outside address a capture's playback remembers; the oldest beyond it is forgotten."""

LINK_FRAME_BYTES_MAX = 2 * MESSAGE_BYTES_MAX
"""One frame of the link: a batch of records, of which one may be as large as a message."""

LINK_QUEUE_BYTES_MAX = 1 << 24
"""Bytes that wait in the link for the socket; beyond it the peer does not read and the link closes (`queue_full`)."""

LINK_BATCH_RECORDS = 256
LINK_BATCH_BYTES = 1 << 18
"""Records and bytes of one message: small enough that a backup applies and acknowledges it within `SILENCE_MS_DEFAULT`."""

LINK_WINDOW_RECORDS = 1 << 13
LINK_WINDOW_BYTES = 1 << 22
"""What the primary sends ahead of the backup's acknowledgement; the rest stays in the log."""

HANDSHAKES_MAX = 8
HANDSHAKE_MS = 1_000
"""Connections that have not yet shown the key, and how long each may take; beyond it the oldest is dropped."""

RECONNECT_MS_MIN = 5
RECONNECT_MS_MAX = 1_000
"""Pause of a backup between attempts to connect, doubled each time."""

GREETING_MS = 2_000
"""Silence after which a peer is given up that has connected, and does not say, or is not told, where its log stands."""

PATIENCE_MS = 30_000
"""Silence after which a peer that is not in sync yet is given up: it may be restoring a snapshot."""

ACK_STALL_MS = 1_000
"""A backup that is in sync, alive, and acknowledges nothing for this long no longer counts."""

SNAPSHOT_CHUNK_BYTES = 1 << 18
SNAPSHOT_BYTES_MAX = 1 << 31
"""A snapshot on its way to a backup."""

TAIL_RECORDS_MAX = 100_000
"""A new backup gets the whole log up to this many records, and a snapshot beyond it."""

YIELD_MS = 300
"""For which a backup leaves a takeover to the one that the primary named as it stopped."""

BACKUPS_MAX = 4
"""Backups of one primary."""

TERM_EPOCHS = 100_000
"""Epochs of one term: a primary that goes on (restarted, or alone) takes the next epoch, a takeover the next term."""

ASKS_OPEN_PER_FLOW_MAX = 64
"""Owner messages of one flow since it was last saved, whose replies are kept for a takeover (G5); beyond it the flow
gets an error reply."""

SETTLE_MS = 50
SETTLE_FLOWS_PER_TURN = 32
"""A flow whose handlers ask owners and change nothing of it is saved within twice this time, so that after a takeover none of
its packets is given an earlier one's reply (G5); and how many of them in one turn of a core, each of some microseconds."""

CONTROL_STRANGERS_MAX = 64
CONTROL_GREETING_S = 5.0
"""Connections to one control listener that have not authenticated yet, and how long one may take; beyond it, the oldest
is closed and counted as refused."""

CONTROL_CALL_S = 10.0
"""Longest wait for a node's answer to a control request."""

COMMAND_S = 3.0
"""Longest wait for what an operator asked an owner system for, the watermark included."""

WORKER_RESTARTS_MAX = 5
WORKER_RESTARTS_S = 10.0
"""Restarts of one worker within the time; beyond it the node stops with an error."""

WORKER_STOP_S = 5.0
"""How long a worker may take to stop when told; beyond it, it is killed and the stop counts as failed."""

BEAT_CHECK_S = 0.1
"""Interval at which the monitor compares the workers' beats."""

MEMORY_CHECK_S = 1.0
CORES_MEMORY_SHARE = 0.5
MEMORY_TOLD_AGAIN = 1.25
"""How often a node looks what its cores take; of one that takes more than its part of this share of the host's memory, or than
`core_memory_mb`, it warns, and again when that has grown by this factor."""

CORE_ENDED_FIRST = 500
"""Where a host runs out of memory, the kernel ends a core, which comes back with its flows, rather than an owner system, with
which the node would stop (oom_score_adj)."""

PORT_QUEUE_BYTES = 1 << 23
"""Frames in the kernel that wait for a port's core, and for its interface; beyond it `rx_kernel_dropped` and `tx_full`."""

HANDLER_ERRORS_LOGGED_PER_S = 10
"""Tracebacks of handlers that a core logs per second; all are counted as `handler_error`."""

MISFITS_TOLD_MAX = 20
"""What a core logs of flow records that do not fit its code; all that it leaves out are counted as `flows_left_out`."""

FIELDS_CHECKED_FIRST = 64
FIELDS_CHECKED_EVERY = 256
"""Saves of a core at which a flow's fields are held against their hints: so many first ones, then one of so many."""

REPLY_BACKLOG_MAX = 1 << 20
"""Messages that wait in the owner system for room in a core's reply ring; beyond it the node stops."""

REQUESTS_PER_TURN = 512
"""Requests of one core that the owner system executes before it commits."""

LOG_SYNC_S = 1.0
"""How often the log is brought to the disk, off the hot path."""

LOG_READERS_S = 1.0
"""How often the log's readers are looked at: those that were killed pin pages."""

NEIGHBORS_MAX = 4096
"""Neighbours whose MAC addresses a core remembers, and that it asks for; beyond it the oldest goes (`neighbor_evicted`)."""

ICMP_ERRORS_PER_S = 100
"""ICMP errors that a core sends about packets passing through; beyond it `icmp_error_limited`."""

SPIN_US = 60
"""How long a core, right after a packet, looks for the owner system's answer before it sleeps, and an owner system for what
follows an answer: a flow's record, a backup's acknowledgement. To wake a sleeper takes 10 to 50 us, and a system call."""

SPIN_RESTED_US = 500
RESTED_US = 300
"""As SPIN_US, for who has just slept for RESTED_US or more: where little is to do, answers come late, as all that makes them
has to be woken and is in no cache; and nobody needs the CPU."""

ALERT_US = 2000
"""How long the cores of a backup that has lost its primary wait awake for the takeover."""

SENDERS_END_MS = 3
"""How long a node that takes over waits for the cores of a killed one on the same host to have ended."""

LINGER_US = 300
"""How long an owner system, after it has answered flows, waits for their records before it logs and sends the answers."""

OWNER_IDLE_MS = 20
OWNER_CALM_MS = 100
"""For how long an owner system sleeps at most, of which no peer waits for a sign of life; and if it is calm besides."""

OWNER_BUSY_MS = 5
OWNER_REST_SHARE = 0.07
"""An owner system that did not sleep for so long rests for this share of that time: its thread is a real-time one, of
which the kernel takes 50 ms away in one go, more than SILENCE_MS_DEFAULT, if it leaves less than 5 % of the time to others."""

STANDBY_BUSY_MS = 20
"""A standby core that did not sleep for so long restores many flows: until it sleeps again it is no real-time thread."""

HANDOVER_S = 2.0
"""How long a primary that stops waits for its backup's last acknowledgement."""

ADJACENCIES_MAX = 65_535
"""Next hops that one core sends to, each for good; what is for one more is dropped as `no_route`."""

AWAIT_DEADLINE_S = 10.0
"""How long a handler waits at one `await` unless its class sets `deadline_s`; beyond it `deadline_passed`, and the handler
gets a TimeoutError."""

LEASE_MS_DEFAULT = 250
LEASE_MS_MIN = 20
LEASE_MS_MAX = 60_000
"""How long a primary may emit after it began to renew its lease with the witness, and what may be configured."""

LEASE_GUARD = 0.1
"""Share of the lease's time by which the holder stops sooner than others may take it."""

LEASE_RENEWALS = 4
LEASE_LOOKS = 20
LEASE_CLAIM_LOOKS = 100
"""How often in a lease's time the holder renews it, a backup looks at it, and one that wants it does."""

WITNESS_TIMEOUT_MS = 1_000
"""Longest wait for a witness's answer; beyond it the request counts as failed."""

UPKEEP_MS = 2
"""The owner system works on its log's upkeep once in this time, for a slice (0.1 to 0.5 ms)."""

AUDIT_RECORDS = 10_000
AUDIT_S_MIN = 1.0
AUDIT_SHARE = 0.05
"""Both nodes hash their whole state after so many records, but not more often, nor for a larger share of the time."""

SNAPSHOT_RECORDS = 100_000
SNAPSHOT_S_MIN = 10.0
"""A snapshot is stored after so many records, but not more often than that; what is older may then be pruned."""

LOG_KEEP_RECORDS_DEFAULT = 1_000_000
"""Records that stay in the log for replay, beyond what the newest snapshot and the backup need."""

LOG_PRUNE_SLICE = 1024
"""Records that one slice of upkeep removes."""

RESYNCS_MAX = 3
RESYNCS_S = 60.0
"""How often within the time a backup whose log or state proves wrong begins anew; beyond it the node stops."""

LAUNCH_PROBE_MS = 300
"""How long a node that is launched as primary waits for the other node to say that it leads."""

EVICTION_CANDIDATES = 32
EVICTION_WALK = 512
"""Flows that are compared to find the one to evict, and entries that are looked at for that."""

XDP_QUEUES_MAX = 256
"""RX queues of one interface that AF_XDP serves; packets of queues beyond it pass to the kernel."""

XSK_FRAMES = 2048
"""Frames of 4096 bytes per AF_XDP socket and direction, and slots of its rings; beyond it `rx_kernel_dropped`, `tx_full`."""

UPKEEP_PAUSE_MS_MAX = 60
"""A state that takes longer to be held still (some 3 million entries in owners' states) is neither audited nor stored while
traffic runs: it would come too near to LEASE_MS_DEFAULT. The log then grows until the next clean stop."""

PAUSE_TOLD_MS = 1
PAUSE_MARGIN = 4
PAUSE_MS_MAX = 1_000
"""A peer is told of a longer pause before it begins: so many times the estimate, since others may want the CPU, and bounded."""

STREAM_QUEUE_BYTES_MAX = 1 << 18
STREAM_QUEUE_SEGMENTS_MAX = 512
"""What waits for a gap in one direction of a TCP connection; beyond it an inline actor's packet is dropped as `stream_full`
(its sender repeats it), and a passive one's gap is given up (`stream_gaps`)."""

STREAM_KEPT_BYTES_MAX = 1 << 20
"""Bytes that an inline actor has passed and the receiver has not acknowledged, kept to compare retransmissions with; beyond
it the oldest are forgotten."""

STREAM_EDITS_MAX = 256
STREAM_EDIT_BYTES_MAX = 1 << 18
"""Edits of one direction that are not acknowledged, and the bytes that they insert; beyond it `stream_full`."""

CHAIN_MEMBERS_MAX = 16
"""Network functions in one chain."""

BALANCE_S = 1.0
BALANCE_BUSY = 0.6
BALANCE_GAP = 0.25
"""Twice, once in this time each, one core was busy for at least this share of it, and by this much more than another: then
it gives flows away."""

MOVE_SAMPLE_PACKETS = 4096
MOVE_FLOWS_MAX = 64
MOVE_TURNS_MAX = 10_000
"""Packets by which a core chooses the flows that go, how many go at a time, and for how many turns of its loop it waits for
those to come to rest."""

FLOWS_PER_FEED = 1024
"""Flows that an owner system sends to cores that begin, at a step."""

SNAPSHOT_SLICES = 8
"""Slices of a snapshot for a backup that begins, 256 flows or so each, which its primary encodes at a step: some 2 ms."""
