/* In software what an interface with offloads does to frames: completes a checksum, and cuts a large frame into segments.
 *
 * Frames from packet sockets and taps carry a virtio_net_hdr that says what is left to do (virtio 1.2, section 5.1.6).
 * AF_XDP has no such header: an_gso_find() sees from the frame what a virtual interface left undone, and an_gso_begin()
 * with an_gso_next() do what the header asks for before a frame leaves by AF_XDP.
 */
#ifndef ACTORNET_GSO_H
#define ACTORNET_GSO_H

#include <linux/virtio_net.h>

#include "checksum.h"

#define AN_GSO_ETHERNET 14
#define AN_GSO_UDP_L4 5 /* VIRTIO_NET_HDR_GSO_UDP_L4, which older headers lack */

/* Where a frame's IP packet and transport segment lie. */
struct an_gso_layout {
    uint32_t l3, l4, end; /* `end`: behind the IP packet */
    uint8_t version, protocol;
};

static inline uint32_t an_gso_be16(const uint8_t *at)
{
    return (uint32_t)at[0] << 8 | at[1];
}

/* The layout of a whole TCP or UDP packet without IPv6 extension headers, not a fragment; -1 of anything else. */
static inline int an_gso_layout(const uint8_t *frame, uint32_t length, struct an_gso_layout *at)
{
    uint32_t l3 = AN_GSO_ETHERNET, bytes;
    if (length < AN_GSO_ETHERNET + 20)
        return -1;
    uint32_t type = an_gso_be16(frame + 12);
    for (int tags = 0; tags < 2 && (type == 0x8100 || type == 0x88a8 || type == 0x9100) && l3 + 24 <= length; tags++) {
        type = an_gso_be16(frame + l3 + 2);
        l3 += 4;
    }
    const uint8_t *ip = frame + l3;
    at->l3 = l3;
    if (type == 0x0800 && ip[0] >> 4 == 4) {
        uint32_t header = (ip[0] & 15) * 4u;
        bytes = an_gso_be16(ip + 2);
        if (header < 20 || bytes < header || (an_gso_be16(ip + 6) & 0x3fff))
            return -1;
        at->version = 4;
        at->protocol = ip[9];
        at->l4 = l3 + header;
    } else if (type == 0x86dd && length >= l3 + 40 && ip[0] >> 4 == 6) {
        bytes = 40 + an_gso_be16(ip + 4);
        at->version = 6;
        at->protocol = ip[6];
        at->l4 = l3 + 40;
    } else {
        return -1;
    }
    at->end = l3 + bytes;
    if (at->end > length || (at->protocol != AN_TCP && at->protocol != AN_UDP))
        return -1;
    return at->l4 + (at->protocol == AN_TCP ? 20u : 8u) <= at->end ? 0 : -1;
}

/* Marks what the sender left to an interface: a checksum field that holds the pseudo-header's sum alone, and a TCP packet
 * larger than `mtu`. A field that happens to equal that sum while the checksum is right is left alone, so only a frame
 * damaged in just this way, one in 65536 of those damaged, would be taken for one to be completed. */
static inline void an_gso_find(struct an_packet *p, uint32_t mtu)
{
    struct an_gso_layout at;
    struct virtio_net_hdr vnet = {0};
    if (an_gso_layout(p->data, p->length, &at) < 0)
        return;
    uint8_t *ip = p->data + at.l3, *l4 = p->data + at.l4;
    uint32_t bytes = at.end - at.l4, offset = at.protocol == AN_TCP ? 16 : 6;
    int large = at.protocol == AN_TCP && at.end - at.l3 > mtu;
    uint64_t pseudo = an_pseudo_sum(ip, at.protocol, bytes);
    uint16_t partial = an_fold(pseudo);
    if (large) {
        uint32_t header = at.l4 + (l4[12] >> 4) * 4u;
        if (header < at.l4 + 20 || header >= at.end || mtu <= header - at.l3)
            return;
        an_store16(l4 + offset, partial); /* none but its segments have a checksum */
        vnet.gso_type = at.version == 4 ? VIRTIO_NET_HDR_GSO_TCPV4 : VIRTIO_NET_HDR_GSO_TCPV6;
        vnet.gso_size = (uint16_t)(mtu - (header - at.l3));
        vnet.hdr_len = (uint16_t)header;
    } else if (an_load16(l4 + offset) != partial || an_fold(an_sum(l4, bytes, pseudo)) == 0xffff) {
        return;
    }
    vnet.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM;
    vnet.csum_start = (uint16_t)at.l4;
    vnet.csum_offset = (uint16_t)offset;
    memcpy(p->vnet, &vnet, sizeof vnet);
    p->flags |= AN_CSUM_PARTIAL;
}

/* A frame on its way out, segment by segment. */
struct an_gso {
    const uint8_t *frame;
    struct an_gso_layout at;
    uint32_t length;
    uint32_t header; /* bytes that every segment begins with; 0: the frame leaves as one */
    uint32_t size;   /* payload of a segment */
    uint32_t next;   /* offset of the payload yet to leave */
    uint32_t number;
    uint16_t csum_start, csum_offset; /* csum_offset 0: nothing to complete */
};

/* Begins a frame; no segment of it will be longer than `frame_bytes_max`. -1: the frame is larger and cannot be cut, or
 * its header makes no sense. */
static inline int an_gso_begin(struct an_gso *g, const struct an_packet *p, uint32_t frame_bytes_max)
{
    struct virtio_net_hdr vnet;
    memset(g, 0, sizeof *g);
    g->frame = p->data;
    g->length = p->length;
    if (p->length < AN_GSO_ETHERNET)
        return -1;
    if (!(p->flags & AN_CSUM_PARTIAL))
        return p->length <= frame_bytes_max ? 0 : -1;
    memcpy(&vnet, p->vnet, sizeof vnet);
    uint8_t type = vnet.gso_type & (uint8_t)~VIRTIO_NET_HDR_GSO_ECN;
    if (type == VIRTIO_NET_HDR_GSO_NONE) {
        g->csum_start = vnet.csum_start;
        g->csum_offset = vnet.csum_offset;
        if (!g->csum_offset || g->csum_start + g->csum_offset + 2u > p->length)
            return -1;
        return p->length <= frame_bytes_max ? 0 : -1;
    }
    if (an_gso_layout(p->data, p->length, &g->at) < 0 || !vnet.gso_size)
        return -1;
    uint32_t l4_header = g->at.protocol == AN_UDP ? 8 : (p->data[g->at.l4 + 12] >> 4) * 4u;
    if ((g->at.protocol == AN_UDP) != (type == AN_GSO_UDP_L4) || l4_header < (g->at.protocol == AN_UDP ? 8 : 20))
        return -1;
    g->header = g->next = g->at.l4 + l4_header;
    g->size = vnet.gso_size;
    if (g->header >= g->at.end || g->header >= frame_bytes_max)
        return -1;
    if (g->header + g->size > frame_bytes_max) {
        if (g->at.protocol == AN_UDP)
            return -1; /* datagrams keep their size */
        g->size = frame_bytes_max - g->header;
    }
    return 0;
}

static inline void an_gso_complete(uint8_t *l4, uint32_t bytes, uint32_t offset, uint64_t pseudo, int udp)
{
    uint16_t csum = (uint16_t)~an_fold(an_sum(l4, bytes, pseudo));
    an_store16(l4 + offset, udp && csum == 0 ? 0xffff : csum);
}

/* Writes the next segment to `out`, with every checksum right; returns its length, 0 behind the last. */
static inline uint32_t an_gso_next(struct an_gso *g, uint8_t *out)
{
    if (!g->header) {
        if (g->number++)
            return 0;
        memcpy(out, g->frame, g->length);
        if (g->csum_offset) { /* the field holds the sum of the pseudo-header */
            uint32_t end = g->length;
            struct an_gso_layout at;
            if (an_gso_layout(out, g->length, &at) == 0 && at.l4 == g->csum_start)
                end = at.end; /* not the padding */
            an_gso_complete(out + g->csum_start, end - g->csum_start, g->csum_offset, 0, g->csum_offset == 6);
        }
        return g->length;
    }
    if (g->next >= g->at.end)
        return 0;
    uint32_t payload = g->at.end - g->next < g->size ? g->at.end - g->next : g->size;
    uint32_t bytes = g->header - g->at.l4 + payload; /* of the transport segment */
    int last = g->next + payload == g->at.end;
    memcpy(out, g->frame, g->header);
    memcpy(out + g->header, g->frame + g->next, payload);
    uint8_t *ip = out + g->at.l3, *l4 = out + g->at.l4;
    if (g->at.version == 4) {
        uint32_t header = g->at.l4 - g->at.l3, id = an_gso_be16(ip + 4) + g->number;
        an_store16(ip + 2, an_swap16((uint16_t)(header + bytes)));
        an_store16(ip + 4, an_swap16((uint16_t)id));
        an_store16(ip + 10, 0);
        an_store16(ip + 10, (uint16_t)~an_fold(an_sum(ip, header, 0)));
    } else {
        an_store16(ip + 4, an_swap16((uint16_t)bytes));
    }
    uint64_t pseudo = an_pseudo_sum(ip, g->at.protocol, bytes);
    if (g->at.protocol == AN_TCP) {
        uint32_t sequence = __builtin_bswap32(an_load32(l4 + 4)) + (g->next - g->header);
        sequence = __builtin_bswap32(sequence);
        memcpy(l4 + 4, &sequence, 4);
        if (!last)
            l4[13] &= (uint8_t)~0x09; /* FIN, PSH */
        if (g->number)
            l4[13] &= (uint8_t)~0x80; /* CWR: RFC 3168 section 6.1.2 */
        an_store16(l4 + 16, 0);
        an_gso_complete(l4, bytes, 16, pseudo, 0);
    } else {
        an_store16(l4 + 4, an_swap16((uint16_t)bytes));
        an_store16(l4 + 6, 0);
        an_gso_complete(l4, bytes, 6, pseudo, 1);
    }
    g->next += payload;
    g->number++;
    return g->header + payload;
}

#endif
