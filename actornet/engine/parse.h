/* From a frame's bytes to a described packet: offsets, flow key, and the reason when it is no packet of a flow.
 *
 * Lengths are validated once, here: a packet with reason AN_OK has its whole transport header inside its IP packet and
 * its whole IP packet inside the frame. Nothing beyond `length` is read. IPv4 header checksums are not verified.
 */
#ifndef ACTORNET_PARSE_H
#define ACTORNET_PARSE_H

#include "checksum.h"

#define AN_VLAN_TAGS_MAX 2
#define AN_EXTENSIONS_MAX 8 /* IPv6 extension headers in front of the transport header */

#define an_likely(x) __builtin_expect(!!(x), 1)
#define an_unlikely(x) __builtin_expect(!!(x), 0)

/* IPv6 extension headers */
#define AN_HOP_BY_HOP 0
#define AN_ROUTING 43
#define AN_FRAGMENT_HEADER 44
#define AN_AUTHENTICATION 51
#define AN_DESTINATION_OPTIONS 60

#define AN_GRE_PROTOCOL 47

/* Ports, protocol, version and arriving port: the key's last 8 bytes in one store. */
static inline uint64_t an_key_tail(uint16_t source_port, uint16_t destination_port, uint8_t protocol, uint8_t version,
                                   uint8_t port)
{
    return source_port | (uint64_t)destination_port << 16 | (uint64_t)protocol << 32 | (uint64_t)version << 40 |
           (uint64_t)port << 48;
}

/* Keys are stored by 8 bytes, as an_hash() and an_key_equal() load them: otherwise the loads wait for the stores. */
static inline void an_key_store(struct an_key *key, uint64_t source, uint64_t source_low, uint64_t destination,
                                uint64_t destination_low, uint64_t tail)
{
    an_store64(key->source, source);
    an_store64(key->source + 8, source_low);
    an_store64(key->destination, destination);
    an_store64(key->destination + 8, destination_low);
    an_store64(&key->source_port, tail);
}

/* The key of the IP header at `ip`, or of its other direction. */
static inline void an_key_set(struct an_key *key, const uint8_t *ip, int reversed, uint16_t source_port,
                              uint16_t destination_port, uint8_t protocol, uint8_t version, uint8_t port)
{
    uint32_t bytes = version == 4 ? 4 : 16;
    const uint8_t *source = ip + (version == 4 ? 12 : 8), *destination = source + bytes;
    if (reversed) {
        const uint8_t *address = source;
        uint16_t number = source_port;
        source = destination, destination = address;
        source_port = destination_port, destination_port = number;
    }
    uint64_t tail = an_key_tail(source_port, destination_port, protocol, version, port);
    if (version == 4)
        an_key_store(key, an_load32(source), 0, an_load32(destination), 0, tail);
    else
        an_key_store(key, an_load64(source), an_load64(source + 8), an_load64(destination), an_load64(destination + 8),
                     tail);
}

static inline int an_is_echo(uint8_t protocol, uint8_t type)
{
    return protocol == AN_ICMP ? type == 8 || type == 0 : type == 128 || type == 129;
}

/* Destination unreachable, source quench, time exceeded, parameter problem; ICMPv6 1..4. */
static inline int an_is_icmp_error(uint8_t protocol, uint8_t type)
{
    return protocol == AN_ICMP ? type == 3 || type == 4 || type == 11 || type == 12 : type >= 1 && type <= 4;
}

/* Walks IPv6 extension headers from `*at`, whose type is `*protocol`, to the transport header or to the first header
 * that is none of them. `*fragment` becomes the offset-and-more field of a fragment header unless it is an atomic
 * fragment (RFC 6946), which is a packet like any other; the walk ends at a true one. */
static inline uint8_t an_skip_extensions(const uint8_t *d, uint32_t end, uint32_t *at, uint8_t *protocol,
                                         uint16_t *fragment)
{
    *fragment = 0;
    for (int count = 0; count <= AN_EXTENSIONS_MAX; count++) {
        uint8_t type = *protocol;
        if (type != AN_HOP_BY_HOP && type != AN_ROUTING && type != AN_FRAGMENT_HEADER && type != AN_AUTHENTICATION &&
            type != AN_DESTINATION_OPTIONS)
            return AN_OK;
        if (end - *at < 8)
            return AN_MALFORMED;
        const uint8_t *header = d + *at;
        uint32_t bytes = type == AN_FRAGMENT_HEADER ? 8 : type == AN_AUTHENTICATION ? (header[1] + 2) * 4u
                                                                                    : (header[1] + 1) * 8u;
        if (end - *at < bytes)
            return AN_MALFORMED;
        if (type == AN_ROUTING && header[3])
            return AN_UNTRACKED; /* segments left: checksums cover a destination that is not yet the header's */
        *at += bytes;
        *protocol = header[0];
        if (type == AN_FRAGMENT_HEADER) {
            *fragment = an_swap16(an_load16(header + 2)) & 0xfff9;
            if (*fragment)
                return AN_OK;
        }
    }
    return AN_MALFORMED;
}

/* Everything of a packet but its key, each field written once. */
static inline void an_packet_set(struct an_packet *p, uint8_t reason, uint8_t flags, uint32_t l3, uint32_t l4,
                                 uint32_t payload, uint32_t end, uint8_t ttl, uint8_t dscp, uint8_t tcp_flags)
{
    p->flags = flags;
    p->reason = reason;
    p->ttl = ttl;
    p->l3 = (uint16_t)l3;
    p->l4 = (uint16_t)l4;
    p->payload = (uint16_t)payload;
    p->l3_end = end > 0xffff ? 0xffff : (uint16_t)end;
    p->inner_l3 = p->inner_l4 = 0;
    p->tcp_flags = tcp_flags;
    p->dscp = dscp;
    p->hash = 0;
    p->entry = AN_NONE;
}

/* A frame that cannot be trusted or understood: its key holds only the arriving port. */
static __attribute__((noinline, cold, unused)) void an_parse_reject(struct an_packet *p, uint8_t reason, uint8_t flags,
                                                                    uint32_t l3)
{
    an_packet_set(p, reason, flags, l3, l3, l3, p->length, 0, 0, 0);
    an_key_store(&p->key, 0, 0, 0, 0, an_key_tail(0, 0, 0, 0, p->port));
}

/* What a transport header says. */
struct an_transport {
    uint8_t reason, flags, tcp_flags;
    uint32_t header_bytes, ports; /* source | destination << 16 */
};

/* TCP or UDP in the `bytes` bytes that the IP packet has at `l4`. */
static inline struct an_transport an_parse_transport(const uint8_t *l4, uint32_t bytes, uint8_t protocol)
{
    struct an_transport t = {AN_MALFORMED, 0, 0, 8, 0};
    if (protocol == AN_TCP) {
        if (an_unlikely(bytes < 20))
            return t;
        t.header_bytes = (l4[12] >> 4) * 4u;
        if (an_unlikely(t.header_bytes < 20 || t.header_bytes > bytes))
            return t;
        t.tcp_flags = l4[13];
    } else {
        if (an_unlikely(bytes < 8))
            return t;
        uint32_t udp_bytes = an_swap16(an_load16(l4 + 4));
        if (an_unlikely(udp_bytes < 8 || udp_bytes > bytes))
            return t;
        t.flags = an_load16(l4 + 6) ? 0 : AN_UDP_NO_CSUM;
    }
    uint32_t ports = __builtin_bswap32(an_load32(l4)); /* source << 16 | destination */
    t.ports = ports << 16 | ports >> 16;
    t.reason = AN_OK;
    return t;
}

/* The flow that an ICMP error speaks of: the key becomes that of the error's own direction, which is the reverse of the
 * embedded packet's. RFC 792 grants only 8 bytes of the embedded transport header: enough for ports and identifier. */
static inline uint8_t an_parse_embedded(struct an_packet *p, uint32_t end, uint8_t version)
{
    const uint8_t *d = p->data;
    uint32_t inner = p->l4 + 8u, l4;
    uint16_t fragment;
    uint8_t protocol;
    if (version == 4) {
        if (end - inner < 20 || d[inner] >> 4 != 4 || (d[inner] & 15) < 5)
            return AN_MALFORMED;
        l4 = inner + (d[inner] & 15) * 4u;
        protocol = d[inner + 9];
        fragment = an_swap16(an_load16(d + inner + 6)) & 0x1fff;
    } else {
        if (end - inner < 40 || d[inner] >> 4 != 6)
            return AN_MALFORMED;
        l4 = inner + 40;
        protocol = d[inner + 6];
        uint8_t reason = an_skip_extensions(d, end, &l4, &protocol, &fragment);
        if (reason != AN_OK)
            return reason;
        fragment >>= 3;
    }
    int icmp = protocol == (version == 4 ? AN_ICMP : AN_ICMPV6);
    if (fragment || (protocol != AN_TCP && protocol != AN_UDP && !icmp))
        return AN_UNTRACKED;
    if (l4 > end || end - l4 < 8)
        return AN_MALFORMED;
    if (icmp && !an_is_echo(protocol, d[l4]))
        return AN_UNTRACKED;
    uint16_t source_port = an_swap16(an_load16(d + l4 + (icmp ? 4 : 0)));
    uint16_t destination_port = icmp ? source_port : an_swap16(an_load16(d + l4 + 2));
    an_key_set(&p->key, d + inner, 1, source_port, destination_port, protocol, version, p->port);
    p->inner_l3 = (uint16_t)inner;
    p->inner_l4 = (uint16_t)l4;
    p->flags |= AN_ICMP_ERROR;
    return AN_OK;
}

/* ICMP and ICMPv6: echo has an identifier, errors speak of another packet, the rest is untracked. */
static inline uint8_t an_parse_icmp(struct an_packet *p, uint32_t end, uint8_t version)
{
    const uint8_t *l4 = p->data + p->l4;
    uint8_t protocol = p->key.protocol;
    if (end - p->l4 < 4)
        return AN_MALFORMED;
    int error = an_is_icmp_error(protocol, l4[0]);
    if (!error && !an_is_echo(protocol, l4[0]))
        return AN_UNTRACKED;
    if (end - p->l4 < 8)
        return AN_MALFORMED;
    p->payload = (uint16_t)(p->l4 + 8);
    if (error)
        return an_parse_embedded(p, end, version);
    p->key.source_port = p->key.destination_port = an_swap16(an_load16(l4 + 4));
    return AN_OK;
}

/* `offset` in units of 8 bytes. A first fragment may hold its whole transport header: then p->payload lies behind it,
 * so that a rewrite finds it. */
static inline uint8_t an_parse_fragment(struct an_packet *p, uint32_t end, uint32_t offset)
{
    uint8_t protocol = p->key.protocol;
    if (offset * 8 + (end - p->l4) > 0xffff)
        return AN_MALFORMED;
    uint32_t header_bytes = protocol == AN_TCP ? 20 : 8;
    if (offset == 0 && an_csum_offset(protocol) >= 0 && end - p->l4 >= header_bytes) {
        p->payload = (uint16_t)(p->l4 + header_bytes);
        if (protocol == AN_UDP && an_load16(p->data + p->l4 + 6) == 0)
            p->flags |= AN_UDP_NO_CSUM;
    }
    return AN_FRAGMENT;
}

/* Fragments, ICMP, and all other protocols than TCP and UDP, behind a sound IP header. `fragment`: offset and
 * more-flag. */
static __attribute__((noinline, unused)) void an_parse_exception(struct an_packet *p, uint8_t flags, uint32_t l3,
                                                                 uint32_t l4, uint32_t end, uint8_t ttl, uint8_t dscp,
                                                                 uint8_t protocol, uint8_t version, int fragment,
                                                                 uint32_t offset)
{
    an_packet_set(p, AN_UNTRACKED, flags, l3, l4, l4, end, ttl, dscp, 0);
    an_key_set(&p->key, p->data + l3, 0, 0, 0, protocol, version, p->port);
    if (fragment)
        p->reason = an_parse_fragment(p, end, offset);
    else if (protocol == (version == 4 ? AN_ICMP : AN_ICMPV6))
        p->reason = an_parse_icmp(p, end, version);
    if (p->reason == AN_MALFORMED)
        an_parse_reject(p, AN_MALFORMED, flags, l3);
}

static inline void an_parse_ipv4(struct an_packet *p, uint8_t flags, uint32_t l3)
{
    const uint8_t *ip = p->data + l3;
    uint32_t room = p->length - l3, header_bytes = 20;
    if (an_unlikely(room < 20))
        return an_parse_reject(p, AN_TRUNCATED, flags, l3);
    if (an_unlikely(ip[0] != 0x45)) {
        header_bytes = (ip[0] & 15) * 4u;
        if (ip[0] >> 4 != 4 || header_bytes < 20)
            return an_parse_reject(p, AN_MALFORMED, flags, l3);
        if (header_bytes > room)
            return an_parse_reject(p, AN_TRUNCATED, flags, l3);
        flags |= AN_IP_OPTIONS;
    }
    uint32_t ip_bytes = an_swap16(an_load16(ip + 2));
    if (an_unlikely(ip_bytes > room))
        return an_parse_reject(p, AN_TRUNCATED, flags, l3);
    if (an_unlikely(ip_bytes < header_bytes))
        return an_parse_reject(p, AN_MALFORMED, flags, l3);

    uint8_t protocol = ip[9], ttl = ip[8], dscp = ip[1] >> 2;
    uint32_t l4 = l3 + header_bytes, end = l3 + ip_bytes;
    uint16_t fragment = an_load16(ip + 6) & an_swap16(0x3fff);
    if (an_unlikely(fragment || (protocol != AN_TCP && protocol != AN_UDP)))
        return an_parse_exception(p, flags, l3, l4, end, ttl, dscp, protocol, 4, fragment,
                                  an_swap16(fragment) & 0x1fff);
    struct an_transport t = an_parse_transport(p->data + l4, end - l4, protocol);
    if (an_unlikely(t.reason != AN_OK))
        return an_parse_reject(p, t.reason, flags, l3);
    an_key_store(&p->key, an_load32(ip + 12), 0, an_load32(ip + 16), 0,
                 an_key_tail((uint16_t)t.ports, (uint16_t)(t.ports >> 16), protocol, 4, p->port));
    an_packet_set(p, AN_OK, flags | t.flags, l3, l4, l4 + t.header_bytes, end, ttl, dscp, t.tcp_flags);
}

static inline void an_parse_ipv6(struct an_packet *p, uint8_t flags, uint32_t l3)
{
    const uint8_t *ip = p->data + l3;
    uint32_t room = p->length - l3;
    if (room < 40)
        return an_parse_reject(p, AN_TRUNCATED, flags, l3);
    if (ip[0] >> 4 != 6)
        return an_parse_reject(p, AN_MALFORMED, flags, l3);
    uint32_t l4 = l3 + 40, end = l4 + an_swap16(an_load16(ip + 4));
    if (end > p->length)
        return an_parse_reject(p, AN_TRUNCATED, flags, l3);

    uint8_t protocol = ip[6], ttl = ip[7], dscp = (uint8_t)((ip[0] & 15) << 2 | ip[1] >> 6);
    uint16_t fragment;
    uint8_t reason = an_skip_extensions(p->data, end, &l4, &protocol, &fragment);
    if (reason == AN_MALFORMED)
        return an_parse_reject(p, reason, flags, l3);
    if (l4 != l3 + 40)
        flags |= AN_IP_OPTIONS;
    if (reason != AN_OK || fragment || (protocol != AN_TCP && protocol != AN_UDP))
        return an_parse_exception(p, flags, l3, l4, end, ttl, dscp, protocol, 6, fragment, fragment >> 3);
    struct an_transport t = an_parse_transport(p->data + l4, end - l4, protocol);
    if (t.reason != AN_OK)
        return an_parse_reject(p, t.reason, flags, l3);
    an_key_set(&p->key, ip, 0, (uint16_t)t.ports, (uint16_t)(t.ports >> 16), protocol, 6, p->port);
    an_packet_set(p, AN_OK, flags | t.flags, l3, l4, l4 + t.header_bytes, end, ttl, dscp, t.tcp_flags);
}

/* 802.1Q, 802.1ad, and the number that QinQ had before it was standardised; as loaded. */
static inline int an_is_vlan(uint16_t type)
{
    return type == an_swap16(0x8100) || type == an_swap16(0x88a8) || type == an_swap16(0x9100);
}

/* Behind up to AN_VLAN_TAGS_MAX tags, which begin 2 bytes before `l3` would be without, IPv6, or what is not IP. */
static __attribute__((noinline, unused)) void an_parse_tagged(struct an_packet *p, uint8_t flags, uint32_t l3)
{
    uint16_t type = an_load16(p->data + l3 - 2);
    for (int tags = 0; tags < AN_VLAN_TAGS_MAX && an_is_vlan(type); tags++) {
        if (p->length < l3 + 4)
            return an_parse_reject(p, AN_TRUNCATED, flags, l3);
        flags |= AN_VLAN;
        type = an_load16(p->data + l3 + 2);
        l3 += 4;
    }
    if (type == an_swap16(0x0800))
        an_parse_ipv4(p, flags, l3);
    else if (type == an_swap16(0x86dd))
        an_parse_ipv6(p, flags, l3);
    else
        an_parse_reject(p, AN_NOT_IP, flags, l3);
}

/* ARP, or ICMPv6 by which hosts of a link find each other and their routers (RFC 4861), of a parsed packet. */
static inline int an_is_discovery(const struct an_packet *p)
{
    if (p->tunnel)
        return 0;
    if (p->reason == AN_NOT_IP)
        return p->l3 >= 14 && p->l3 <= p->length && an_load16(p->data + p->l3 - 2) == an_swap16(0x0806);
    return p->reason == AN_UNTRACKED && p->key.protocol == AN_ICMPV6 && p->ttl == 255 && p->l4 < p->length &&
           p->data[p->l4] >= 133 && p->data[p->l4] <= 136;
}

/* Fills everything of *p behind `time_ns` but `vnet`, from data, length, port and the flags that are not its own.
 *
 * AN_NOT_IP, AN_MALFORMED, AN_TRUNCATED: `l3` is the offset behind the Ethernet header and VLAN tags that are there,
 * l4 and payload equal it, the key holds only the arriving port. AN_FRAGMENT, AN_UNTRACKED: the key holds addresses
 * and protocol.
 */
static inline void an_parse(struct an_packet *p)
{
    uint8_t flags = p->flags & (uint8_t)~(AN_IP_OPTIONS | AN_ICMP_ERROR | AN_VLAN | AN_UDP_NO_CSUM);
    if (an_unlikely(p->length < 14))
        return an_parse_reject(p, AN_TRUNCATED, flags, 0);
    if (an_likely(an_load16(p->data + 12) == an_swap16(0x0800)))
        an_parse_ipv4(p, flags, 14);
    else
        an_parse_tagged(p, flags, 14);
}

/* The offset behind the IP packet; an_packet.l3_end is too small for the largest ones. */
static inline uint32_t an_ip_end(const uint8_t *data, uint32_t l3)
{
    return data[l3] >> 4 == 4 ? l3 + an_swap16(an_load16(data + l3 + 2)) : l3 + 40u + an_swap16(an_load16(data + l3 + 4));
}

/* What a tunnel's header says of the packet inside: where it begins, and what with. */
struct an_inside {
    uint32_t at;
    uint16_t type; /* EtherType as loaded; 0x6558 for an Ethernet frame; 0 when there is no packet inside */
};

#define AN_TYPE_ETHERNET 0x6558 /* transparent Ethernet bridging */

/* VXLAN (RFC 7348 section 5). */
static inline struct an_inside an_parse_vxlan(const uint8_t *d, uint32_t at, uint32_t end)
{
    struct an_inside inside = {at + 8, 0};
    if (end - at >= 8 && d[at] & 0x08)
        inside.type = an_swap16(AN_TYPE_ETHERNET);
    return inside;
}

/* GTP-U (3GPP TS 29.281 section 5): a G-PDU, behind whatever extension headers. */
static inline struct an_inside an_parse_gtp_u(const uint8_t *d, uint32_t at, uint32_t end)
{
    struct an_inside inside = {at + 8, 0};
    if (end - at < 8 || (d[at] & 0xf0) != 0x30 || d[at + 1] != 255)
        return inside;
    if (d[at] & 7) {
        uint32_t next = at + 11;
        inside.at += 4;
        if (end - at < 12)
            return inside;
        for (int count = 0; d[at] & 4 && d[next]; count++) {
            uint32_t bytes = inside.at < end ? d[inside.at] * 4u : 0;
            if (bytes == 0 || end - inside.at < bytes || count == AN_EXTENSIONS_MAX)
                return inside;
            next = inside.at + bytes - 1;
            inside.at += bytes;
        }
    }
    if (inside.at < end)
        inside.type = an_swap16(d[inside.at] >> 4 == 6 ? 0x86dd : 0x0800);
    return inside;
}

/* GRE (RFC 2784, 2890), with IP or Ethernet inside. */
static inline struct an_inside an_parse_gre(const uint8_t *d, uint32_t at, uint32_t end)
{
    struct an_inside inside = {at + 4, 0};
    if (end - at < 4 || d[at] & 0x4f || d[at + 1] & 0x7f) /* routing present, or not version 0 */
        return inside;
    inside.at += (d[at] & 0x80 ? 4u : 0) + (d[at] & 0x20 ? 4u : 0) + (d[at] & 0x10 ? 4u : 0);
    uint16_t type = an_load16(d + at + 2);
    if (inside.at < end && (type == an_swap16(0x0800) || type == an_swap16(0x86dd) || type == an_swap16(AN_TYPE_ETHERNET)))
        inside.type = type;
    return inside;
}

static inline enum an_tunnel an_tunnel_at(uint16_t udp_port)
{
    return udp_port == 4789 ? AN_VXLAN : udp_port == 2152 ? AN_GTP_U : AN_NO_TUNNEL;
}

/* An ICMP error about a carrier is for the end of the tunnel, which tells those inside (RFC 2003 section 5), and so of no flow. */
static inline void an_parse_carrier_error(struct an_packet *p, uint8_t tunnels)
{
    uint8_t version = p->key.version;
    if (p->key.protocol != AN_UDP || !(tunnels >> an_tunnel_at(p->key.source_port) & 1)) /* its key is the reverse one */
        return;
    an_key_set(&p->key, p->data + p->l3, 0, 0, 0, version == 4 ? AN_ICMP : AN_ICMPV6, version, p->port);
    p->flags &= (uint8_t)~AN_ICMP_ERROR;
    p->reason = AN_UNTRACKED;
    p->inner_l3 = p->inner_l4 = 0;
}

/* After an_parse(): if the packet is of one of these tunnels (bits of enum an_tunnel) and carries another, describes that
 * one, within the outer packet. AN_VLAN stays about the frame. One level: what is inside is not unwrapped again. */
static inline void an_parse_inner(struct an_packet *p, uint8_t tunnels)
{
    enum an_tunnel tunnel = AN_NO_TUNNEL;
    struct an_inside inside = {0, 0};
    uint32_t end;
    p->tunnel = AN_NO_TUNNEL;
    if (p->key.version == 0)
        return;
    if (p->flags & AN_ICMP_ERROR)
        return an_parse_carrier_error(p, tunnels);
    if (p->reason == AN_OK && p->key.protocol == AN_UDP) {
        end = p->l4 + an_swap16(an_load16(p->data + p->l4 + 4));
        tunnel = an_tunnel_at(p->key.destination_port);
        if (tunnel == AN_VXLAN)
            inside = an_parse_vxlan(p->data, p->payload, end);
        else if (tunnel == AN_GTP_U)
            inside = an_parse_gtp_u(p->data, p->payload, end);
    } else if (p->reason == AN_UNTRACKED && p->key.protocol == AN_GRE_PROTOCOL) {
        end = an_ip_end(p->data, p->l3);
        tunnel = AN_GRE, inside = an_parse_gre(p->data, p->l4, end);
    }
    if (inside.type == 0 || !(tunnels >> tunnel & 1) || (p->l4 - p->l3) & 1)
        return;

    uint32_t length = p->length;
    uint16_t outer_l3 = p->l3, outer_l4 = p->l4;
    uint8_t tagged = p->flags & AN_VLAN;
    uint8_t flags = p->flags & (uint8_t)~(AN_IP_OPTIONS | AN_VLAN | AN_UDP_NO_CSUM);
    p->length = end;
    if (inside.type == an_swap16(0x0800))
        an_parse_ipv4(p, flags, inside.at);
    else if (inside.type == an_swap16(0x86dd))
        an_parse_ipv6(p, flags, inside.at);
    else if (end - inside.at < 14)
        an_parse_reject(p, AN_TRUNCATED, flags, inside.at);
    else
        an_parse_tagged(p, flags, inside.at + 14);
    p->length = length;
    p->flags = (uint8_t)((p->flags & ~AN_VLAN) | tagged);
    p->tunnel = (uint8_t)tunnel;
    p->outer_l3 = outer_l3;
    p->outer_l4 = outer_l4;
}

/* What is known of a packet at first glance: its key in two words. */
struct an_glance {
    uint64_t addresses; /* IPv4: source | destination << 32, as loaded */
    uint64_t tail;      /* an_key_tail() */
};

/* Whether the frame is what nearly all are: IPv4 without tags, options or fragments, with TCP or UDP, 54 bytes or more.
 * Of such a one an_parse() says AN_OK and this key; the IP header is at AN_GLANCE_L3, the transport header at
 * AN_GLANCE_L4. It writes nothing: the descriptor is filled only for packets that the fast path cannot treat. */
#define AN_GLANCE_L3 14
#define AN_GLANCE_L4 34
#define AN_GLANCE_BYTES 54
static inline int an_glance(const struct an_packet *p, struct an_glance *g)
{
    const uint8_t *ip = p->data + AN_GLANCE_L3, *l4 = p->data + AN_GLANCE_L4;
    if (an_unlikely(p->length < AN_GLANCE_BYTES))
        return 0;
    uint32_t l4_bytes = an_swap16(an_load16(ip + 2)) - 20u; /* wraps when there are fewer */
    uint8_t protocol = ip[9];
    if (an_unlikely(an_load16(ip - 2) != an_swap16(0x0800) || ip[0] != 0x45 || an_load16(ip + 6) & an_swap16(0x3fff) ||
                    l4_bytes > p->length - AN_GLANCE_L4))
        return 0;
    if (protocol == AN_UDP) {
        uint32_t udp_bytes = an_swap16(an_load16(l4 + 4));
        if (an_unlikely(udp_bytes < 8 || udp_bytes > l4_bytes))
            return 0;
    } else {
        uint32_t header_bytes = (l4[12] >> 4) * 4u;
        if (an_unlikely(protocol != AN_TCP || header_bytes < 20 || header_bytes > l4_bytes))
            return 0;
    }
    uint32_t ports = __builtin_bswap32(an_load32(l4)); /* source << 16 | destination */
    g->addresses = an_load64(ip + 12);
    g->tail = an_key_tail((uint16_t)(ports >> 16), (uint16_t)ports, protocol, 4, p->port);
    return 1;
}

#endif
