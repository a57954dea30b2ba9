/* Carries out a rewrite on a parsed packet, in place, keeping every checksum as right or wrong as it was (RFC 1624). */
#ifndef ACTORNET_REWRITE_H
#define ACTORNET_REWRITE_H

#include <assert.h>

#include "parse.h"

/* The identifier that an echo gets: both port fields mean it. */
static inline uint16_t an_rewrite_identifier(const struct an_rewrite *r)
{
    return r->fields & AN_SET_SOURCE_PORT ? r->source_port : r->destination_port;
}

static inline const uint8_t *an_rewrite_source(const struct an_rewrite *r, uint8_t version, const uint8_t *addresses)
{
    assert(version == 4 || addresses);
    return version == 4 ? (const uint8_t *)&r->source : addresses;
}

static inline const uint8_t *an_rewrite_destination(const struct an_rewrite *r, uint8_t version,
                                                    const uint8_t *addresses)
{
    assert(version == 4 || addresses);
    return version == 4 ? (const uint8_t *)&r->destination : addresses + 16;
}

/* Computes the deltas of a rewrite of packets with key `from` once, so that a packet costs an addition per checksum.
 * `addresses`: the new IPv6 source[16] destination[16]; NULL for IPv4. */
static inline void an_rewrite_prepare(struct an_rewrite *r, const struct an_key *from, const uint8_t *addresses)
{
    uint32_t bytes = from->version == 4 ? 4 : 16;
    uint16_t addresses_delta = 0, ports = 0;
    if (r->fields & AN_SET_SOURCE)
        addresses_delta = an_sum_diff(from->source, an_rewrite_source(r, from->version, addresses), bytes);
    if (r->fields & AN_SET_DESTINATION)
        addresses_delta = an_sum_add(
            addresses_delta, an_sum_diff(from->destination, an_rewrite_destination(r, from->version, addresses), bytes));
    if (from->protocol == AN_ICMP || from->protocol == AN_ICMPV6) {
        if (r->fields & (AN_SET_SOURCE_PORT | AN_SET_DESTINATION_PORT))
            ports = an_sum_add(an_swap16(an_rewrite_identifier(r)), (uint16_t)~an_swap16(from->source_port));
    } else {
        if (r->fields & AN_SET_SOURCE_PORT)
            ports = an_sum_add(an_swap16(r->source_port), (uint16_t)~an_swap16(from->source_port));
        if (r->fields & AN_SET_DESTINATION_PORT)
            ports = an_sum_add(ports, an_sum_add(an_swap16(r->destination_port),
                                                 (uint16_t)~an_swap16(from->destination_port)));
    }
    r->addresses_delta = addresses_delta;
    r->l4_delta = from->protocol == AN_ICMP ? ports : an_sum_add(addresses_delta, ports);
}

/* The sum of (new - old) over what the IPv4 header checksum covers: the TTL is the low byte of a word. */
static inline uint16_t an_rewrite_l3_delta(const struct an_rewrite *r)
{
    return r->fields & AN_DECREMENT_TTL ? an_sum_add(r->addresses_delta, 0xfffe) : r->addresses_delta;
}

/* Writes an even number of bytes and adds the change to `*delta`. */
static inline void an_rewrite_put(uint8_t *at, const void *value, uint32_t bytes, uint16_t *delta)
{
    *delta = an_sum_add(*delta, an_sum_diff(at, value, bytes));
    memcpy(at, value, bytes);
}

static inline void an_rewrite_dscp(uint8_t *ip, uint8_t dscp)
{
    if (ip[0] >> 4 == 4) {
        uint16_t delta = 0;
        uint8_t word[2] = {ip[0], (uint8_t)(dscp << 2 | (ip[1] & 3))};
        an_rewrite_put(ip, word, 2, &delta);
        an_store16(ip + 10, an_csum_update(an_load16(ip + 10), delta));
    } else {
        ip[0] = (uint8_t)(0x60 | (dscp >> 2 & 15));
        ip[1] = (uint8_t)(dscp << 6 | (ip[1] & 0x3f));
    }
}

/* The transport checksum, or, of a packet whose checksum is still to be filled in, the pseudo-header sum
 * in its place. */
static inline void an_rewrite_csum(uint8_t *at, uint8_t protocol, int partial, uint16_t delta, uint16_t pseudo_delta)
{
    uint16_t csum = an_load16(at);
    if (an_unlikely(partial)) {
        csum = an_sum_add(csum, pseudo_delta);
    } else if (protocol == AN_UDP) {
        if (csum == 0)
            return; /* the sender computed none */
        csum = an_csum_update(csum, delta);
        csum = csum ? csum : 0xffff;
    } else {
        csum = an_csum_update(csum, delta);
    }
    an_store16(at, csum);
}

/* Ports or identifier of the transport header at `l4`, of which `room` bytes are there, and its checksum if it is among
 * them. `pseudo`: change of the addresses. Returns the change of all that it wrote. */
static inline uint16_t an_rewrite_transport(uint8_t *l4, uint32_t room, uint8_t protocol, int partial, int set_source,
                                            uint16_t source_port, int set_destination, uint16_t destination_port,
                                            uint16_t pseudo)
{
    int offset = an_csum_offset(protocol);
    int echo = protocol == AN_ICMP || protocol == AN_ICMPV6;
    uint16_t first = an_swap16(set_source || !echo ? source_port : destination_port);
    uint16_t second = an_swap16(destination_port);
    uint16_t ports = 0, written;
    if (echo) {
        if (set_source || set_destination)
            an_rewrite_put(l4 + 4, &first, 2, &ports);
    } else {
        if (set_source)
            an_rewrite_put(l4, &first, 2, &ports);
        if (set_destination)
            an_rewrite_put(l4 + 2, &second, 2, &ports);
    }
    if (protocol == AN_ICMP)
        pseudo = 0;
    written = ports;
    if (offset >= 0 && (uint32_t)offset + 2 <= room) {
        uint16_t before = an_load16(l4 + offset);
        an_rewrite_csum(l4 + offset, protocol, partial, an_sum_add(pseudo, ports), pseudo);
        written = an_sum_add(written, an_sum_diff(&before, l4 + offset, 2));
    }
    return written;
}

/* The packet inside an ICMP error went the other way: its destination becomes the rewrite's source. Returns the
 * change of all that it wrote, for the ICMP checksum. */
static inline uint16_t an_rewrite_embedded(struct an_packet *p, const struct an_rewrite *r, const uint8_t *addresses)
{
    uint8_t *ip = p->data + p->inner_l3;
    int four = p->key.version == 4;
    uint32_t bytes = four ? 4 : 16, at = four ? 12 : 8;
    uint32_t end = p->l3 + (four ? an_swap16(an_load16(p->data + p->l3 + 2))
                                 : 40u + an_swap16(an_load16(p->data + p->l3 + 4)));
    uint16_t pseudo = 0, written;
    if (r->fields & AN_SET_SOURCE)
        an_rewrite_put(ip + at + bytes, an_rewrite_source(r, p->key.version, addresses), bytes, &pseudo);
    if (r->fields & AN_SET_DESTINATION)
        an_rewrite_put(ip + at, an_rewrite_destination(r, p->key.version, addresses), bytes, &pseudo);
    written = pseudo;
    if (four) {
        uint16_t csum = an_csum_update(an_load16(ip + 10), pseudo);
        an_rewrite_put(ip + 10, &csum, 2, &written);
    }
    return an_sum_add(written, an_rewrite_transport(p->data + p->inner_l4, end - p->inner_l4, p->key.protocol, 0,
                                                    r->fields & AN_SET_DESTINATION_PORT, r->destination_port,
                                                    r->fields & AN_SET_SOURCE_PORT, r->source_port, pseudo));
}

/* What the prepared deltas do not describe: ICMP errors, whose outer source may be any router, fragments, and protocols
 * without ports. Computes every change from the bytes that are there. */
static __attribute__((noinline, unused)) int an_rewrite_exception(struct an_packet *p, const struct an_rewrite *r,
                                                                  const uint8_t *addresses)
{
    uint8_t *ip = p->data + p->l3, *l4 = p->data + p->l4;
    int four = p->key.version == 4, partial = an_csum_is_partial(p, l4);
    uint32_t bytes = four ? 4 : 16, at = four ? 12 : 8;
    uint8_t *ttl = ip + (four ? 8 : 7);
    uint16_t pseudo = 0;
    if (p->key.version == 0)
        return 0;
    if (r->fields & AN_DECREMENT_TTL && *ttl <= 1)
        return 1;
    if (r->fields & AN_SET_SOURCE)
        an_rewrite_put(ip + at, an_rewrite_source(r, p->key.version, addresses), bytes, &pseudo);
    if (r->fields & AN_SET_DESTINATION)
        an_rewrite_put(ip + at + bytes, an_rewrite_destination(r, p->key.version, addresses), bytes, &pseudo);
    uint16_t header = pseudo;
    if (r->fields & AN_DECREMENT_TTL) {
        *ttl -= 1;
        header = an_sum_add(header, 0xfffe);
    }
    if (four)
        an_store16(ip + 10, an_csum_update(an_load16(ip + 10), header));
    if (r->fields & AN_SET_DSCP)
        an_rewrite_dscp(ip, r->dscp);

    if (p->flags & AN_ICMP_ERROR) {
        uint16_t embedded = an_rewrite_embedded(p, r, addresses);
        uint16_t delta = four ? 0 : pseudo;
        an_rewrite_csum(l4 + 2, AN_ICMP, partial, an_sum_add(delta, embedded), delta);
    } else if (p->payload > p->l4 && p->reason == AN_FRAGMENT) {
        an_rewrite_transport(l4, p->payload - p->l4, p->key.protocol, partial, r->fields & AN_SET_SOURCE_PORT,
                             r->source_port, r->fields & AN_SET_DESTINATION_PORT, r->destination_port, pseudo);
    }
    return 0;
}

static inline int an_rewrite_apply(struct an_packet *p, const struct an_rewrite *r, const uint8_t *addresses);

/* A packet in a tunnel: rewritten as any other is; then the checksum of the tunnel, which covers it, follows. */
static __attribute__((noinline, unused)) int an_rewrite_tunnel(struct an_packet *p, const struct an_rewrite *r,
                                                               const uint8_t *addresses)
{
    struct an_packet inner = *p;
    uint32_t last = (p->inner_l4 ? p->inner_l4 : p->l4) + 20u;
    int partial = p->flags & AN_CSUM_PARTIAL, inside = partial && an_load16(p->vnet + 6) == p->l4;
    uint8_t *l4 = p->data + p->l4, *outer = p->data + p->outer_l4;
    int offset = an_csum_offset(p->key.protocol);
    if (p->key.version == 0)
        return 0;
    if (last > an_ip_end(p->data, p->l3))
        last = an_ip_end(p->data, p->l3);
    inner.tunnel = AN_NO_TUNNEL;
    if (!inside)
        inner.flags &= (uint8_t)~AN_CSUM_PARTIAL; /* that of the tunnel is to be completed, if any */
    uint16_t header = an_fold(an_sum(p->data + p->l3, p->l4 - p->l3, 0)), segment = an_fold(an_sum(l4, last - p->l4, 0));
    uint16_t field = inside && offset >= 0 ? an_load16(l4 + offset) : 0;
    if (an_rewrite_apply(&inner, r, addresses) != 0)
        return 1;
    uint16_t delta = an_sum_add(an_fold(an_sum(p->data + p->l3, p->l4 - p->l3, 0)), (uint16_t)~header);
    if (inside && offset >= 0) /* when its checksum is filled in, the segment's sum is the complement of the pseudo-header's */
        delta = an_sum_add(delta, an_sum_add(field, (uint16_t)~an_load16(l4 + offset)));
    else
        delta = an_sum_add(delta, an_sum_add(an_fold(an_sum(l4, last - p->l4, 0)), (uint16_t)~segment));
    if (p->tunnel == AN_GRE) {
        if (outer[0] & 0x80)
            an_store16(outer + 4, an_csum_update(an_load16(outer + 4), delta));
    } else if (!partial || inside) { /* a partial one of the tunnel's holds its pseudo-header alone */
        an_rewrite_csum(outer + 6, AN_UDP, 0, delta, 0);
    }
    return 0;
}

/* 0, or 1 when the TTL or hop limit expires here, and then the packet is untouched. `r` was prepared for the packet's
 * key; `addresses` as for an_rewrite_prepare(). Fragments: the addresses, and in a first one its ports and checksum.
 * Protocols without ports: the addresses. */
static inline int an_rewrite_apply(struct an_packet *p, const struct an_rewrite *r, const uint8_t *addresses)
{
    if (an_unlikely(p->tunnel))
        return an_rewrite_tunnel(p, r, addresses);
    if (an_unlikely(p->reason != AN_OK || p->flags & AN_ICMP_ERROR))
        return an_rewrite_exception(p, r, addresses);
    uint8_t *ip = p->data + p->l3, *l4 = p->data + p->l4;
    uint8_t fields = r->fields, protocol = p->key.protocol;
    uint8_t decrement = fields & AN_DECREMENT_TTL ? 1 : 0;
    if (an_likely(p->key.version == 4)) {
        if (an_unlikely(decrement && ip[8] <= 1))
            return 1;
        uint32_t source = fields & AN_SET_SOURCE ? r->source : an_load32(ip + 12);
        uint32_t destination = fields & AN_SET_DESTINATION ? r->destination : an_load32(ip + 16);
        ip[8] -= decrement;
        an_store16(ip + 10, an_csum_update(an_load16(ip + 10), an_rewrite_l3_delta(r)));
        memcpy(ip + 12, &source, 4);
        memcpy(ip + 16, &destination, 4);
    } else {
        if (decrement && ip[7] <= 1)
            return 1;
        ip[7] -= decrement;
        if (fields & AN_SET_SOURCE)
            memcpy(ip + 8, addresses, 16);
        if (fields & AN_SET_DESTINATION)
            memcpy(ip + 24, addresses + 16, 16);
    }
    if (an_unlikely(fields & AN_SET_DSCP))
        an_rewrite_dscp(ip, r->dscp);

    int partial = an_csum_is_partial(p, l4);
    if (an_likely(protocol == AN_TCP || protocol == AN_UDP)) {
        uint16_t ports[2];
        memcpy(ports, l4, 4);
        ports[0] = fields & AN_SET_SOURCE_PORT ? an_swap16(r->source_port) : ports[0];
        ports[1] = fields & AN_SET_DESTINATION_PORT ? an_swap16(r->destination_port) : ports[1];
        memcpy(l4, ports, 4);
        an_rewrite_csum(l4 + (protocol == AN_TCP ? 16 : 6), protocol, partial, r->l4_delta, r->addresses_delta);
    } else {
        if (fields & (AN_SET_SOURCE_PORT | AN_SET_DESTINATION_PORT))
            an_store16(l4 + 4, an_swap16(an_rewrite_identifier(r)));
        an_rewrite_csum(l4 + 2, protocol, partial, r->l4_delta, protocol == AN_ICMP ? 0 : r->addresses_delta);
    }
    return 0;
}

#endif
