from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

cdef extern from "types.h" nogil:
    uint32_t AN_NONE
    enum:
        AN_OK, AN_MALFORMED, AN_TRUNCATED, AN_NOT_IP, AN_FRAGMENT, AN_UNTRACKED, AN_REASONS
        AN_CSUM_PARTIAL, AN_IP_OPTIONS, AN_ICMP_ERROR, AN_VLAN, AN_UDP_NO_CSUM, AN_COPIED, AN_HANDED
        AN_REASSEMBLED
        AN_NO_TUNNEL, AN_GRE, AN_VXLAN, AN_GTP_U, AN_TUNNELS
        AN_SLOW, AN_FORWARD, AN_DROP, AN_REDIRECT
        AN_SET_SOURCE, AN_SET_SOURCE_PORT, AN_SET_DESTINATION, AN_SET_DESTINATION_PORT, AN_DECREMENT_TTL, AN_SET_DSCP
        AN_SET_LINK, AN_LINK_SOURCE, AN_LINK_DESTINATION, AN_LINK_VLAN
        AN_LIVE, AN_HELD, AN_PUNT_TCP, AN_PRIMARY, AN_BUSY, AN_TERMS

    struct an_key:
        uint8_t source[16]
        uint8_t destination[16]
        uint16_t source_port
        uint16_t destination_port
        uint8_t protocol
        uint8_t version
        uint8_t port
        uint8_t zero

    struct an_packet:
        uint8_t *data
        uint32_t length
        uint8_t port
        uint8_t flags
        uint8_t reason
        uint8_t ttl
        uint64_t time_ns
        uint16_t l3
        uint16_t l4
        uint16_t payload
        uint16_t l3_end
        uint16_t inner_l3
        uint16_t inner_l4
        uint8_t tcp_flags
        uint8_t dscp
        uint8_t vnet[12]
        uint16_t fragment_bytes
        uint32_t fragment_id
        uint16_t outer_l3
        uint16_t outer_l4
        uint8_t tunnel
        an_key key
        uint32_t hash
        uint32_t entry

    struct an_rewrite:
        uint8_t action
        uint8_t fields
        uint8_t out_port
        uint8_t dscp
        uint16_t source_port
        uint16_t destination_port
        uint32_t source
        uint32_t destination
        uint16_t addresses_delta
        uint16_t l4_delta
        uint16_t adjacency
        uint16_t generation

    struct an_slow:
        uint8_t action
        void *actor
        uint32_t verdict

    struct an_link:
        uint8_t destination[6]
        uint8_t source[6]
        uint16_t vlan
        uint8_t fields

    struct an_terms:
        uint64_t until_ns
        uint64_t rate
        uint64_t burst
        uint64_t tokens
        uint64_t filled_ns
        uint64_t mirror_packets
        uint64_t mirror_bytes
        uint64_t packets
        uint64_t bytes
        uint32_t mirror_every
        uint8_t meter_bytes

    struct an_extra:
        uint8_t addresses[32]
        an_link link
        an_terms terms

    struct an_entry:
        uint8_t version
        uint8_t port
        uint8_t state
        an_rewrite rewrite
        an_slow slow
        uint64_t packets
        uint64_t bytes
        uint64_t last_seen_ns
        void *actor
        an_extra *extra
        uint32_t hash
        uint32_t next_key
        uint32_t timer_next
        uint32_t timer_prev
        uint32_t timer_slot
