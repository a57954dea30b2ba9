/* In software what an interface with offloads does to frames: completes a checksum, and cuts a large frame into segments.
 *
 * Frames from packet sockets and taps carry a virtio_net_hdr that says what is left to do (virtio 1.2, section 5.1.6).
 * AF_XDP has no such header: an_gso_find() sees from the frame what a virtual interface left undone, and an_gso_begin()
 * with an_gso_next() do what the header asks for before a frame leaves by AF_XDP. What is to be cut may be TCP in a tunnel
 * (`csum_start` lies behind the outer transport header): packet sockets and taps hand such frames over but do not take
 * them back, as the header cannot say where the tunnel begins; these are cut here as well.
 */
#ifndef ACTORNET_GSO_H
#define ACTORNET_GSO_H

#include <linux/virtio_net.h>

#include "parse.h"

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

/* The layout of the whole IP packet at `l3`, whatever it carries; -1 of fragments and anything else. */
static inline int an_gso_ip(const uint8_t *frame, uint32_t length, uint32_t type, uint32_t l3, struct an_gso_layout *at)
{
    const uint8_t *ip = frame + l3;
    uint32_t bytes;
    if (l3 + 20 > length)
        return -1;
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
    return at->end <= length ? 0 : -1;
}

/* The layout of the whole IP packet in the Ethernet frame that begins at `at`. */
static inline int an_gso_frame(const uint8_t *frame, uint32_t length, uint32_t at, struct an_gso_layout *layout)
{
    uint32_t l3 = at + AN_GSO_ETHERNET;
    if (length < l3 + 20)
        return -1;
    uint32_t type = an_gso_be16(frame + at + 12);
    for (int tags = 0; tags < 2 && (type == 0x8100 || type == 0x88a8 || type == 0x9100) && l3 + 24 <= length; tags++) {
        type = an_gso_be16(frame + l3 + 2);
        l3 += 4;
    }
    return an_gso_ip(frame, length, type, l3, layout);
}

/* Whether it is TCP or UDP, with its whole header. */
static inline int an_gso_transport(const struct an_gso_layout *at)
{
    return (at->protocol == AN_TCP || at->protocol == AN_UDP) && at->l4 + (at->protocol == AN_TCP ? 20u : 8u) <= at->end;
}

/* The layout of a whole TCP or UDP packet without IPv6 extension headers, not a fragment; -1 of anything else. */
static inline int an_gso_layout(const uint8_t *frame, uint32_t length, struct an_gso_layout *at)
{
    return an_gso_frame(frame, length, 0, at) == 0 && an_gso_transport(at) ? 0 : -1;
}

/* The layout of the TCP or UDP packet that `outer` carries in VXLAN, GTP-U or GRE; -1: it carries none. */
static inline int an_gso_inside(const uint8_t *frame, const struct an_gso_layout *outer, struct an_gso_layout *at)
{
    struct an_inside inside = {0, 0};
    if (outer->protocol == AN_UDP && outer->l4 + 8 <= outer->end) {
        enum an_tunnel tunnel = an_tunnel_at((uint16_t)an_gso_be16(frame + outer->l4 + 2));
        if (tunnel == AN_VXLAN)
            inside = an_parse_vxlan(frame, outer->l4 + 8, outer->end);
        else if (tunnel == AN_GTP_U)
            inside = an_parse_gtp_u(frame, outer->l4 + 8, outer->end);
    } else if (outer->protocol == AN_GRE_PROTOCOL) {
        inside = an_parse_gre(frame, outer->l4, outer->end);
    }
    if (!inside.type)
        return -1;
    uint32_t type = an_swap16(inside.type);
    int found = type == AN_TYPE_ETHERNET ? an_gso_frame(frame, outer->end, inside.at, at)
                                         : an_gso_ip(frame, outer->end, type, inside.at, at);
    return found == 0 && an_gso_transport(at) ? 0 : -1;
}

/* Whether the frame is to be cut inside a tunnel. */
static inline int an_gso_is_tunnel(const struct an_packet *p)
{
    struct virtio_net_hdr vnet;
    struct an_gso_layout outer, inner;
    if (!(p->flags & AN_CSUM_PARTIAL) || p->vnet[1] == VIRTIO_NET_HDR_GSO_NONE)
        return 0;
    memcpy(&vnet, p->vnet, sizeof vnet);
    return an_gso_frame(p->data, p->length, 0, &outer) == 0 && vnet.csum_start != outer.l4 &&
           an_gso_inside(p->data, &outer, &inner) == 0 && vnet.csum_start == inner.l4;
}

/* Marks what is left to do for the packet `at` in the frame's outer packet, which may be the same; whether there is. */
static inline int an_gso_mark(struct an_packet *p, const struct an_gso_layout *outer, const struct an_gso_layout *at,
                              uint32_t mtu)
{
    struct virtio_net_hdr vnet = {0};
    uint8_t *ip = p->data + at->l3, *l4 = p->data + at->l4;
    uint32_t bytes = at->end - at->l4, offset = at->protocol == AN_TCP ? 16 : 6;
    int large = at->protocol == AN_TCP && outer->end - outer->l3 > mtu;
    uint64_t pseudo = an_pseudo_sum(ip, at->protocol, bytes);
    uint16_t partial = an_fold(pseudo);
    if (large) {
        uint32_t header = at->l4 + (l4[12] >> 4) * 4u;
        if (header < at->l4 + 20 || header >= at->end || mtu <= header - outer->l3)
            return 0;
        an_store16(l4 + offset, partial); /* none but its segments have a checksum */
        vnet.gso_type = at->version == 4 ? VIRTIO_NET_HDR_GSO_TCPV4 : VIRTIO_NET_HDR_GSO_TCPV6;
        vnet.gso_size = (uint16_t)(mtu - (header - outer->l3));
        vnet.hdr_len = (uint16_t)header;
    } else if (an_load16(l4 + offset) != partial || an_fold(an_sum(l4, bytes, pseudo)) == 0xffff) {
        return 0;
    }
    vnet.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM;
    vnet.csum_start = (uint16_t)at->l4;
    vnet.csum_offset = (uint16_t)offset;
    memcpy(p->vnet, &vnet, sizeof vnet);
    p->flags |= AN_CSUM_PARTIAL;
    return 1;
}

/* Marks what the sender left to an interface: a checksum field that holds the pseudo-header's sum alone, and a TCP packet
 * larger than `mtu`. A field that happens to equal that sum while the checksum is right is left alone, so only a frame
 * damaged in just this way, one in 65536 of those damaged, would be taken for one to be completed. */
static inline void an_gso_find(struct an_packet *p, uint32_t mtu)
{
    struct an_gso_layout outer, at;
    if (an_gso_frame(p->data, p->length, 0, &outer) < 0)
        return;
    int inside = an_gso_inside(p->data, &outer, &at) == 0;
    int cut_inside = inside && at.protocol == AN_TCP && outer.end - outer.l3 > mtu;
    if (!cut_inside && an_gso_transport(&outer) && an_gso_mark(p, &outer, &outer, mtu))
        return;
    if (inside)
        an_gso_mark(p, &outer, &at, mtu);
}

/* A frame on its way out, segment by segment. */
struct an_gso {
    const uint8_t *frame;
    struct an_gso_layout at;    /* of what is cut */
    struct an_gso_layout outer; /* of the packet that carries it, where it is in a tunnel; else `l4` is 0 */
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
    struct an_gso_layout outer, inner;
    if (an_gso_frame(p->data, p->length, 0, &outer) < 0 || !vnet.gso_size)
        return -1;
    g->at = outer;
    if (vnet.csum_start != outer.l4 && an_gso_inside(p->data, &outer, &inner) == 0 && inner.l4 == vnet.csum_start) {
        /* Numbers of a tunnel's packets (RFC 2890, TS 29.281) are its sender's: nobody else can give segments their own. */
        const uint8_t *tunnel = p->data + outer.l4;
        int gtp_u = outer.protocol == AN_UDP && an_gso_be16(tunnel + 2) == 2152;
        if (inner.end != outer.end || inner.protocol != AN_TCP || (outer.protocol == AN_GRE_PROTOCOL && tunnel[0] & 0x10) ||
            (gtp_u && tunnel[8] & 2))
            return -1;
        g->outer = outer;
        g->at = inner;
    }
    if (!an_gso_transport(&g->at))
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

/* Writes the length of a segment's IP packet, of `bytes` behind its header, and the identifier of the IPv4 one. */
static inline void an_gso_header(uint8_t *ip, const struct an_gso_layout *at, uint32_t bytes, uint32_t number)
{
    if (at->version == 4) {
        uint32_t header = at->l4 - at->l3, id = an_gso_be16(ip + 4) + number;
        an_store16(ip + 2, an_swap16((uint16_t)(header + bytes)));
        an_store16(ip + 4, an_swap16((uint16_t)id));
        an_store16(ip + 10, 0);
        an_store16(ip + 10, (uint16_t)~an_fold(an_sum(ip, header, 0)));
    } else {
        an_store16(ip + 4, an_swap16((uint16_t)bytes));
    }
}

/* What carries a segment follows it: lengths, and the checksum if it had one. */
static inline void an_gso_carrier(const struct an_gso *g, uint8_t *out, uint32_t length)
{
    uint8_t *ip = out + g->outer.l3, *l4 = out + g->outer.l4;
    uint32_t bytes = length - g->outer.l4;
    an_gso_header(ip, &g->outer, bytes, g->number);
    if (g->outer.protocol == AN_UDP) {
        if (an_gso_be16(l4 + 2) == 2152)
            an_store16(l4 + 10, an_swap16((uint16_t)(bytes - 16)));
        an_store16(l4 + 4, an_swap16((uint16_t)bytes));
        if (an_load16(l4 + 6) == 0)
            return; /* RFC 768: none */
        an_store16(l4 + 6, 0);
        an_gso_complete(l4, bytes, 6, an_pseudo_sum(ip, AN_UDP, bytes), 1);
    } else if (l4[0] & 0x80) { /* GRE's covers no pseudo-header (RFC 2784 section 2.4) */
        an_store16(l4 + 4, 0);
        an_gso_complete(l4, bytes, 4, 0, 0);
    }
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
    an_gso_header(ip, &g->at, bytes, g->number);
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
    if (g->outer.l4)
        an_gso_carrier(g, out, g->header + payload);
    g->next += payload;
    g->number++;
    return g->header + payload;
}

#endif
