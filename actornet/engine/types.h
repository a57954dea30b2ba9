/* Data structures of the packet engine, shared by its headers and the Cython modules.
 *
 * One `an_packet` describes a frame in flight; parse.h fills what follows `time_ns`. One `an_entry` per key stands in
 * the flow table (flow_table.h): two cache lines, of which an offloaded IPv4 packet needs the first alone.
 */
#ifndef ACTORNET_TYPES_H
#define ACTORNET_TYPES_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define AN_NONE UINT32_MAX

/* The five-tuple of one direction on the port it arrives at. IPv4 addresses lie in the first 4 bytes, the rest is 0.
 * Addresses are in network order, ports in host order. For ICMP echo both ports are the identifier. */
struct an_key {
    uint8_t source[16];
    uint8_t destination[16];
    uint16_t source_port;
    uint16_t destination_port;
    uint8_t protocol;
    uint8_t version; /* 4 or 6 */
    uint8_t port;    /* index of the port that the packet arrives at */
    uint8_t zero;
};

/* Why a frame is not an ordinary packet of a flow; each has a counter of that name. */
enum an_reason {
    AN_OK = 0,
    AN_MALFORMED,       /* a length or header field that contradicts the frame */
    AN_TRUNCATED,       /* the capture or frame ends inside a header or before the IP packet does */
    AN_NOT_IP,          /* ARP, LLDP, ... */
    AN_FRAGMENT,        /* a fragment: ports unknown (later ones) or payload incomplete (first) */
    AN_UNTRACKED,       /* IP, but a protocol without ports that is not ICMP echo or error */
    AN_REASONS
};

/* How a packet may be wrapped; only of those that the network function asks for (parse.h, an_parse_inner()). */
enum an_tunnel { AN_NO_TUNNEL = 0, AN_GRE, AN_VXLAN, AN_GTP_U, AN_TUNNELS };

/* an_packet.flags */
#define AN_CSUM_PARTIAL 0x01 /* L4 checksum holds only the pseudo-header sum (virtio/veth offload) */
#define AN_IP_OPTIONS 0x02   /* IPv4 options or IPv6 extension headers present */
#define AN_ICMP_ERROR 0x04   /* key is the reversed five-tuple of the packet embedded in the ICMP error */
#define AN_VLAN 0x08
#define AN_UDP_NO_CSUM 0x10  /* UDP with checksum 0: stays 0 */
#define AN_COPIED 0x20       /* data is a private heap copy */
#define AN_HANDED 0x40       /* came from a sibling core: never hand it off again */
#define AN_REASSEMBLED 0x80  /* of fragments: is cut again when it leaves */

struct an_packet {
    uint8_t *data;    /* the Ethernet header */
    uint32_t length;  /* bytes valid at data */
    uint8_t port;     /* index of the port it arrived at */
    uint8_t flags;
    uint8_t reason;   /* enum an_reason */
    uint8_t ttl;      /* TTL or hop limit */
    uint64_t time_ns; /* arrival, since the Unix epoch */
    uint16_t l3;      /* offset of the IP header */
    uint16_t l4;      /* offset of the transport header */
    uint16_t payload; /* offset of the first byte behind the transport header */
    uint16_t l3_end;  /* offset behind the IP packet (frames may be padded); 0xffff if larger */
    uint16_t inner_l3; /* ICMP errors: offset of the embedded IP header */
    uint16_t inner_l4; /* and of its transport header */
    uint8_t tcp_flags;
    uint8_t dscp;
    uint8_t vnet[12]; /* virtio_net_hdr_v1 as received (af_packet), passed through to transmission */
    uint16_t fragment_bytes; /* AN_REASSEMBLED: the largest fragment's IP packet */
    uint32_t fragment_id;    /* and their identification, as in the header */
    uint16_t outer_l3, outer_l4; /* in a tunnel: offsets of the outer IP header, and of what is behind it */
    uint8_t tunnel;          /* enum an_tunnel: then all else describes the packet inside */
    uint8_t pad[3];          /* the key lies on 8 bytes */
    struct an_key key;
    uint32_t hash;
    uint32_t entry;   /* index in the flow table, or AN_NONE */
};

/* What to do with a packet. AN_SLOW hands it to the flow's actor. */
enum an_action { AN_SLOW = 0, AN_FORWARD, AN_DROP, AN_REDIRECT };

/* an_rewrite.fields */
#define AN_SET_SOURCE 0x01
#define AN_SET_SOURCE_PORT 0x02
#define AN_SET_DESTINATION 0x04
#define AN_SET_DESTINATION_PORT 0x08
#define AN_DECREMENT_TTL 0x10
#define AN_SET_DSCP 0x20
#define AN_SET_LINK 0x40 /* what an_link says */

/* an_link.fields */
#define AN_LINK_SOURCE 0x01
#define AN_LINK_DESTINATION 0x02
#define AN_LINK_VLAN 0x04

/* What a rewrite changes in the Ethernet header. */
struct an_link {
    uint8_t destination[6], source[6];
    uint16_t vlan; /* identifier of the tag that the packet leaves with; 0: without one */
    uint8_t fields;
    uint8_t pad;
};

/* What an offload says about when, beyond what it says to do (terms.h). */
struct an_terms {
    uint64_t until_ns;      /* hard time-out; 0: none */
    uint64_t rate, burst;   /* token bucket: units per second, units; rate 0: no meter */
    uint64_t tokens;        /* billionths of a unit */
    uint64_t filled_ns;     /* when they were that many */
    uint64_t mirror_packets, mirror_bytes; /* mirror the first ones; 0: none */
    uint64_t packets, bytes;               /* carried out since it was installed */
    uint32_t mirror_every;  /* mirror each n-th; 0: none */
    uint8_t meter_bytes;    /* a unit is a byte, not a packet */
    uint8_t pad[3];
};

/* What only few entries have. */
struct an_extra {
    uint8_t addresses[32]; /* IPv6 rewrite: source[16] destination[16] */
    struct an_link link;
    struct an_terms terms;
};

/* A decision that the compiled core can carry out alone. IPv4 addresses are held here; IPv6 ones in the entry's `extra`. */
struct an_rewrite {
    uint8_t action;      /* enum an_action */
    uint8_t fields;
    uint8_t out_port;    /* index of the port to leave by (AN_FORWARD) or core (AN_REDIRECT) */
    uint8_t dscp;
    uint16_t source_port, destination_port; /* host order */
    uint32_t source, destination;           /* IPv4, network order as loaded */
    uint16_t addresses_delta; /* one's complement sum of (new - old) over the addresses */
    uint16_t l4_delta;        /* the same over what the transport checksum covers: addresses and ports */
    uint16_t adjacency;       /* index of the next hop's MAC addresses on out_port; 0 = leave Ethernet header as is */
    uint16_t generation;      /* of an entry's: void once the table has another */
};

/* In its place, what a packet for the flow's actor needs of the entry. */
struct an_slow {
    uint8_t action;   /* AN_SLOW */
    uint8_t pad[7];
    void *actor;      /* as an_entry.actor */
    uint32_t verdict; /* a guess where the next verdict is, see an_entry_verdict() */
    uint32_t zero;    /* where a rewrite has `adjacency` and `generation` */
};

/* an_entry.state */
#define AN_LIVE 0x01
#define AN_HELD 0x02    /* outputs of its flow wait for the watermark: join them (G3, order G1) */
#define AN_PUNT_TCP 0x04 /* TCP packets with SYN, FIN or RST go to the actor even when offloaded */
#define AN_PRIMARY 0x08 /* the key that the flow was opened with: carries the idle timer */
#define AN_TERMS 0x20   /* its offload has terms: `extra` is there */
#define AN_BUSY 0x10    /* a handler of its flow is suspended: packets join the mailbox (G1) */

/* Its key is in two parts, see an_entry_key(): what IPv4 has of it, and the rest of IPv6 addresses. */
struct an_entry {
    uint8_t source[4], destination[4];
    uint16_t source_port, destination_port;
    uint8_t protocol, version, port;
    uint8_t state;             /* where a key has a 0 */
    union {
        struct an_rewrite rewrite;
        struct an_slow slow; /* of AN_SLOW */
    };
    uint64_t packets, bytes;
    uint64_t last_seen_ns;     /* end of first line */
    uint8_t source_rest[12], destination_rest[12];
    void *actor;               /* borrowed: PyObject* of the flow actor */
    struct an_extra *extra;    /* or NULL */
    uint32_t hash;
    uint32_t next_key;         /* ring of the flow's entries */
    uint32_t timer_next, timer_prev;
    uint32_t timer_slot;       /* AN_NONE when not armed */
} __attribute__((aligned(64)));

_Static_assert(sizeof(struct an_key) == 40, "a key is 40 bytes");
_Static_assert(sizeof(struct an_rewrite) == 24, "a rewrite is 24 bytes");
_Static_assert(sizeof(struct an_slow) == 24, "in the place of a rewrite");
_Static_assert(sizeof(struct an_entry) == 128, "an entry is two cache lines");
_Static_assert(offsetof(struct an_entry, source_rest) == 64, "the first one ends with what every packet counts");
_Static_assert(offsetof(struct an_entry, state) == offsetof(struct an_entry, source_port) + 7, "see AN_TAIL");

#endif
