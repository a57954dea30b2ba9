/* UDP datagrams that are made of a received one: its headers with another payload, on its way or back to its sender. */
#ifndef ACTORNET_DATAGRAM_H
#define ACTORNET_DATAGRAM_H

#include "checksum.h"
#include "parked.h"

#define AN_ANSWER_TTL 64 /* RFC 1700's default, which hosts begin with */

/* Bytes of the frame before the payload. */
static inline uint32_t an_datagram_head(const struct an_packet *p, int back)
{
    if (!back)
        return p->l4 + 8u;
    return p->l3 + (p->key.version == 4 ? 20u : 40u) + 8u; /* options and extension headers were for the way here */
}

/* May this packet be made anew with so many bytes of payload? It is UDP, parsed, whole, and in no tunnel. */
static inline int an_datagram_fits(const struct an_packet *p, int back, uint32_t bytes)
{
    uint32_t ip_bytes = an_datagram_head(p, back) - p->l3 + bytes;
    return bytes <= 65535 - 8 && ip_bytes <= 65535u + (p->key.version == 6 ? 40u : 0u);
}

/* The datagram, parked, which the caller owns; NULL without memory. */
static inline struct an_parked *an_datagram_make(const struct an_packet *p, int back, const uint8_t *payload, uint32_t bytes)
{
    uint32_t head = an_datagram_head(p, back), length = head + bytes;
    struct an_parked *item = (struct an_parked *)malloc(sizeof *item + AN_HEADROOM_BYTES + length);
    if (!item)
        return NULL;
    memset(item, 0, offsetof(struct an_parked, frame));
    uint8_t *data = item->frame + AN_HEADROOM_BYTES, *ip = data + p->l3, *l4 = data + head - 8;
    const uint8_t *from = p->data, *from_ip = from + p->l3, *from_l4 = from + p->l4;
    item->p.data = data;
    item->p.length = length;
    item->p.port = p->port;
    item->p.flags = AN_COPIED;
    item->p.time_ns = p->time_ns;
    if (!back) {
        memcpy(data, from, head);
    } else {
        memcpy(data, from + 6, 6);
        memcpy(data + 6, from, 6);
        memcpy(data + 12, from + 12, p->l3 - 12u);
        memcpy(l4, from_l4 + 2, 2);
        memcpy(l4 + 2, from_l4, 2);
        if (p->key.version == 4) {
            memcpy(ip, from_ip, 8);
            ip[0] = 0x45;
            an_store16(ip + 4, 0);                    /* an identification that nobody looks at (RFC 6864) ... */
            an_store16(ip + 6, an_swap16(0x4000));    /* ... for this is not to be cut */
            ip[8] = AN_ANSWER_TTL;
            ip[9] = AN_UDP;
            memcpy(ip + 12, from_ip + 16, 4);
            memcpy(ip + 16, from_ip + 12, 4);
        } else {
            memcpy(ip, from_ip, 4);
            ip[6] = AN_UDP;
            ip[7] = AN_ANSWER_TTL;
            memcpy(ip + 8, from_ip + 24, 16);
            memcpy(ip + 24, from_ip + 8, 16);
        }
    }
    if (bytes)
        memcpy(data + head, payload, bytes);
    if (p->key.version == 4) {
        an_store16(ip + 2, an_swap16((uint16_t)(length - p->l3)));
        an_store16(ip + 10, 0);
        an_store16(ip + 10, (uint16_t)~an_fold(an_sum(ip, (ip[0] & 15) * 4u, 0)));
    } else {
        an_store16(ip + 4, an_swap16((uint16_t)(length - p->l3 - 40)));
    }
    an_store16(l4 + 4, an_swap16((uint16_t)(bytes + 8)));
    an_store16(l4 + 6, 0);
    uint16_t sum = (uint16_t)~an_fold(an_sum(l4, bytes + 8, an_pseudo_sum(ip, AN_UDP, bytes + 8)));
    an_store16(l4 + 6, sum ? sum : 0xffff);
    return item;
}

/* Let it be cut into IP packets of at most `bytes` when it leaves. */
static inline void an_datagram_cut(struct an_packet *q, uint32_t bytes, uint32_t id)
{
    uint8_t *ip = q->data + q->l3;
    q->flags |= AN_REASSEMBLED;
    q->fragment_bytes = (uint16_t)bytes;
    q->fragment_id = id;
    if (ip[0] >> 4 == 4 && an_load16(ip + 6) & an_swap16(0x4000)) {
        an_store16(ip + 6, 0);
        an_store16(ip + 10, 0);
        an_store16(ip + 10, (uint16_t)~an_fold(an_sum(ip, (ip[0] & 15) * 4u, 0)));
    }
}

#endif
