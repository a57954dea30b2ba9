/* Reassembly of IP fragments (RFC 791, RFC 8200 section 4.5), and the way back: a datagram that was put together leaves
 * in fragments no larger than those it came in.
 *
 * A datagram's fragments are parked in a list by offset until they cover it. Fragments that overlap, or contradict each
 * other about the end, are an attack or damage: the whole datagram is discarded, those that are still to come included
 * (RFC 5722, which is for IPv6; RFC 1858 and 3128 tell what attackers gain from them in IPv4). An exact duplicate is
 * dropped alone. All memory and time is bounded; whoever needs room takes it from the oldest datagram. Time is an
 * argument.
 */
#ifndef ACTORNET_FRAGMENTS_H
#define ACTORNET_FRAGMENTS_H

#include <errno.h>

#include "flow_table.h"
#include "parked.h"
#include "parse.h"

#define AN_DATAGRAM_BUCKETS 1024u
#define AN_DATAGRAM_BYTES_MAX (65535u + 14) /* with its headers, so that it fits where frames do */

/* What makes fragments belong together: addresses, identification, IPv4's protocol; and they share a port and VLAN. */
struct an_datagram_key {
    uint8_t source[16], destination[16];
    uint32_t id;
    uint8_t protocol, version, port, zero;
    uint8_t tags[8]; /* what VLAN tags there are */
};

_Static_assert(sizeof(struct an_datagram_key) == 48, "compared and hashed as bytes: no padding");

struct an_datagram {
    struct an_datagram_key key;
    struct an_parked *head, *tail; /* by offset; `need` holds it, and `out` the number of bytes */
    uint64_t deadline_ns;
    uint32_t bytes;      /* received so far */
    uint32_t total;      /* behind the last fragment; 0 while that is missing */
    uint32_t memory;
    uint16_t fragments;
    uint16_t largest;    /* IP packet, in bytes */
    uint8_t discarded;   /* its fragments are dropped as they come */
    uint8_t congested;   /* one was marked so (RFC 3168 section 5.3) */
    uint32_t next;       /* in its bucket, or of the free ones */
    uint32_t older, younger;
};

struct an_fragments {
    struct an_datagram *datagrams;
    uint32_t *buckets;
    uint32_t datagrams_max, fragments_max, memory_max;
    uint64_t life_ns, seed;
    uint32_t free, oldest, youngest;
    uint32_t memory, datagrams_waiting;
    /* packets */
    uint32_t waiting;
    uint64_t joined, overlap, expired, evicted;
};

/* 0, or -ENOMEM. */
static inline int an_fragments_init(struct an_fragments *f, uint32_t datagrams_max, uint32_t fragments_max,
                                    uint32_t memory_max, uint64_t life_ns, uint64_t seed)
{
    memset(f, 0, sizeof *f);
    f->datagrams = (struct an_datagram *)calloc(datagrams_max, sizeof *f->datagrams);
    f->buckets = (uint32_t *)malloc(AN_DATAGRAM_BUCKETS * sizeof *f->buckets);
    if (!f->datagrams || !f->buckets) {
        free(f->datagrams);
        free(f->buckets);
        memset(f, 0, sizeof *f);
        return -ENOMEM;
    }
    memset(f->buckets, 0xff, AN_DATAGRAM_BUCKETS * sizeof *f->buckets);
    for (uint32_t i = 0; i < datagrams_max; i++)
        f->datagrams[i].next = i + 1 < datagrams_max ? i + 1 : AN_NONE;
    f->datagrams_max = datagrams_max, f->fragments_max = fragments_max, f->memory_max = memory_max;
    f->life_ns = life_ns, f->seed = seed;
    f->oldest = f->youngest = AN_NONE;
    return 0;
}

static inline uint32_t *an_datagram_bucket(struct an_fragments *f, const struct an_datagram_key *key)
{
    uint64_t words[6], hash = f->seed;
    memcpy(words, key, sizeof words);
    for (int i = 0; i < 6; i += 2)
        hash = an_mix(hash ^ words[i] ^ 0xa0761d6478bd642full, words[i + 1] ^ 0xe7037ed1a0b428dbull);
    return &f->buckets[hash % AN_DATAGRAM_BUCKETS];
}

/* Frees the fragments; returns how many there were. */
static inline uint32_t an_datagram_clear(struct an_fragments *f, struct an_datagram *d)
{
    uint32_t count = d->fragments;
    for (struct an_parked *item = d->head, *next; item; item = next) {
        next = item->next;
        free(item);
    }
    f->memory -= d->memory;
    f->waiting -= count;
    d->head = d->tail = NULL;
    d->memory = d->bytes = d->total = d->fragments = 0;
    return count;
}

static inline void an_datagram_remove(struct an_fragments *f, uint32_t index)
{
    struct an_datagram *d = &f->datagrams[index];
    uint32_t *link = an_datagram_bucket(f, &d->key);
    while (*link != index)
        link = &f->datagrams[*link].next;
    *link = d->next;
    *(d->older == AN_NONE ? &f->oldest : &f->datagrams[d->older].younger) = d->younger;
    *(d->younger == AN_NONE ? &f->youngest : &f->datagrams[d->younger].older) = d->older;
    d->next = f->free;
    f->free = index;
    f->datagrams_waiting--;
}

static inline void an_datagram_evict(struct an_fragments *f)
{
    f->evicted += an_datagram_clear(f, &f->datagrams[f->oldest]);
    an_datagram_remove(f, f->oldest);
}

/* Gives up what has waited for too long. */
static inline void an_fragments_expire(struct an_fragments *f, uint64_t now_ns)
{
    while (f->datagrams_waiting && f->datagrams[f->oldest].deadline_ns <= now_ns) {
        f->expired += an_datagram_clear(f, &f->datagrams[f->oldest]);
        an_datagram_remove(f, f->oldest);
    }
}

static inline void an_fragments_free(struct an_fragments *f)
{
    an_fragments_expire(f, UINT64_MAX);
    free(f->datagrams);
    free(f->buckets);
    memset(f, 0, sizeof *f);
}

/* The datagram with this key; makes it if need be. */
static inline uint32_t an_datagram_find(struct an_fragments *f, const struct an_datagram_key *key, uint64_t now_ns)
{
    uint32_t *bucket = an_datagram_bucket(f, key), index;
    for (index = *bucket; index != AN_NONE; index = f->datagrams[index].next)
        if (memcmp(&f->datagrams[index].key, key, sizeof *key) == 0)
            return index;
    if (f->free == AN_NONE)
        an_datagram_evict(f);
    index = f->free;
    struct an_datagram *d = &f->datagrams[index];
    f->free = d->next;
    memset(d, 0, sizeof *d);
    d->key = *key;
    d->next = *bucket;
    *bucket = index;
    d->older = f->youngest;
    d->younger = AN_NONE;
    *(f->youngest == AN_NONE ? &f->oldest : &f->datagrams[f->youngest].younger) = index;
    f->youngest = index;
    d->deadline_ns = now_ns + f->life_ns;
    if (d->older != AN_NONE && d->deadline_ns < f->datagrams[d->older].deadline_ns)
        d->deadline_ns = f->datagrams[d->older].deadline_ns; /* the clock was set back: the list stays in order */
    f->datagrams_waiting++;
    return index;
}

/* IPv6: the offset of the byte that names the header at `at`, which the walk from `l3` meets. */
static inline uint32_t an_next_header_at(const uint8_t *data, uint32_t l3, uint32_t at)
{
    uint32_t name = l3 + 6, header = l3 + 40;
    while (header < at) {
        uint8_t type = data[name];
        name = header;
        header += type == AN_FRAGMENT_HEADER  ? 8u /* an atomic one */
                  : type == AN_AUTHENTICATION ? (data[header + 1] + 2) * 4u
                                              : (data[header + 1] + 1) * 8u;
    }
    return name;
}

/* All fragments are there: the datagram as if it had come in one piece. NULL when there is no memory. */
static inline struct an_parked *an_datagram_join(const struct an_datagram *d)
{
    const struct an_packet *first = &d->head->p;
    uint32_t header_end = first->l4 - (d->key.version == 6 ? 8u : 0u), ip_bytes = header_end - first->l3 + d->total;
    struct an_parked *whole = (struct an_parked *)malloc(sizeof *whole + AN_HEADROOM_BYTES + header_end + d->total);
    if (!whole)
        return NULL;
    memset(whole, 0, offsetof(struct an_parked, frame));
    uint8_t *data = whole->frame + AN_HEADROOM_BYTES, *ip = data + first->l3;
    memcpy(data, first->data, header_end);
    for (const struct an_parked *item = d->head; item; item = item->next)
        memcpy(data + header_end + item->need, item->p.data + item->p.l4, (uint32_t)item->out);
    whole->p = *first;
    whole->p.data = data;
    whole->p.length = header_end + d->total;
    whole->p.flags = AN_COPIED | AN_REASSEMBLED;
    whole->p.fragment_bytes = d->largest;
    whole->p.fragment_id = d->key.id;
    memset(whole->p.vnet, 0, sizeof whole->p.vnet);
    if (d->key.version == 4) {
        an_store16(ip + 2, an_swap16((uint16_t)ip_bytes));
        an_store16(ip + 6, an_load16(ip + 6) & an_swap16(0x4000));
        ip[1] |= d->congested ? 3 : 0;
        an_store16(ip + 10, 0);
        an_store16(ip + 10, (uint16_t)~an_fold(an_sum(ip, header_end - first->l3, 0)));
    } else {
        data[an_next_header_at(data, first->l3, header_end)] = first->data[header_end];
        an_store16(ip + 4, an_swap16((uint16_t)(ip_bytes - 40)));
        ip[1] |= d->congested ? 0x30 : 0;
    }
    return whole;
}

/* Where a fragment belongs, if it does: behind `*after` (NULL: first). 0; 1 for an exact duplicate; -1 if it contradicts
 * what is there. */
static inline int an_datagram_place(const struct an_datagram *d, const struct an_packet *p, uint32_t begin, uint32_t bytes,
                                    int more, struct an_parked **after)
{
    struct an_parked *next = d->head;
    *after = NULL;
    if (d->total ? begin + bytes > d->total || (more ? begin + bytes == d->total : begin + bytes != d->total)
                 : !more && d->tail && d->tail->need + (uint32_t)d->tail->out > begin + bytes)
        return -1;
    if (d->tail && d->tail->need + (uint32_t)d->tail->out <= begin)
        *after = d->tail, next = NULL; /* they mostly come in order */
    for (; next && next->need < begin; next = next->next)
        *after = next;
    if (next && next->need == begin && (uint32_t)next->out == bytes &&
        memcmp(next->p.data + next->p.l4, p->data + p->l4, bytes) == 0)
        return 1;
    if ((*after && (*after)->need + (uint32_t)(*after)->out > begin) || (next && next->need < begin + bytes))
        return -1;
    return 0;
}

/* Takes the fragment `p`, which it copies unless AN_COPIED says that it is given away. Returns 0 when others are missing
 * or the fragment was dropped and counted here, 1 with the whole datagram in `*whole`, -EINVAL when it is malformed and
 * the caller is to drop it. */
static inline int an_fragments_add(struct an_fragments *f, struct an_packet *p, uint64_t now_ns, struct an_parked **whole)
{
    const uint8_t *ip = p->data + p->l3;
    struct an_datagram_key key;
    struct an_parked *after, *item;
    uint32_t end = an_ip_end(p->data, p->l3), bytes = end - p->l4, tags = p->l3 - 14u;
    uint16_t field = an_swap16(an_load16(p->key.version == 4 ? ip + 6 : p->data + p->l4 - 6));
    uint32_t begin = p->key.version == 4 ? (field & 0x1fffu) * 8u : field & 0xfff8u;
    int more = p->key.version == 4 ? field >> 13 & 1 : field & 1;
    if (bytes == 0 || (more && bytes % 8) || begin + bytes > AN_DATAGRAM_BYTES_MAX || p->flags & AN_CSUM_PARTIAL ||
        tags > sizeof key.tags)
        return -EINVAL;

    an_fragments_expire(f, now_ns);
    memset(&key, 0, sizeof key);
    memcpy(key.source, p->key.source, 16);
    memcpy(key.destination, p->key.destination, 16);
    key.id = p->key.version == 4 ? an_load16(ip + 4) : an_load32(p->data + p->l4 - 4);
    key.protocol = p->key.version == 4 ? p->key.protocol : 0;
    key.version = p->key.version;
    key.port = p->port;
    memcpy(key.tags, p->data + 12, tags);
    uint32_t index = an_datagram_find(f, &key, now_ns), memory = (uint32_t)sizeof *item + p->length;
    struct an_datagram *d = &f->datagrams[index];
    int place = d->discarded || d->fragments >= f->fragments_max ? -1 : an_datagram_place(d, p, begin, bytes, more, &after);
    while (place == 0 && f->memory + memory > f->memory_max && f->oldest != index)
        an_datagram_evict(f);
    item = place != 0 || f->memory + memory > f->memory_max ? NULL : an_park(p);
    if (!item) {
        *(place ? &f->overlap : &f->evicted) += 1 + (place < 0 ? an_datagram_clear(f, d) : 0);
        d->discarded |= place < 0;
        if (p->flags & AN_COPIED)
            free(p);
        return 0;
    }
    item->need = begin;
    item->out = (int32_t)bytes;
    item->next = after ? after->next : d->head;
    *(after ? &after->next : &d->head) = item;
    if (!item->next)
        d->tail = item;
    f->memory += memory, d->memory += memory;
    f->waiting++, d->fragments++;
    d->bytes += bytes;
    d->total = more ? d->total : begin + bytes;
    d->largest = end - p->l3 > d->largest ? (uint16_t)(end - p->l3 > 0xffff ? 0xffff : end - p->l3) : d->largest;
    d->congested |= (key.version == 4 ? (ip[1] & 3) == 3 : (ip[1] & 0x30) == 0x30);
    if (d->bytes != d->total)
        return 0;
    *whole = d->head->p.l4 + d->total > AN_DATAGRAM_BYTES_MAX ? NULL : an_datagram_join(d);
    uint32_t count = an_datagram_clear(f, d);
    an_datagram_remove(f, index);
    *(*whole ? &f->joined : &f->overlap) += count;
    return *whole != NULL;
}

/* IPv4 options that are not to be copied into later fragments become no-operations there (RFC 791 section 3.1). */
static inline void an_options_blank(uint8_t *ip, uint32_t header_bytes)
{
    for (uint32_t at = 20; at < header_bytes && ip[at] != 0;) {
        uint32_t bytes = ip[at] == 1 ? 1 : at + 1 < header_bytes ? ip[at + 1] : 0;
        if (bytes == 0 || (ip[at] != 1 && bytes < 2) || at + bytes > header_bytes)
            return; /* malformed: whoever reads it will see */
        if (!(ip[at] & 0x80))
            memset(ip + at, 1, bytes);
        at += bytes;
    }
}

/* How a datagram is cut. */
struct an_cut {
    uint32_t l3, header_end; /* headers [0, header_end) are of every fragment */
    uint32_t end, piece;     /* bytes of a fragment but the last, a multiple of 8 */
    uint32_t id;             /* as it stands in the header */
    uint32_t at;             /* what follows */
    uint8_t version;
};

/* Prepares to cut `p` into IP packets of at most `bytes`; 0 when it fits into one or cannot be cut. */
static inline int an_cut_begin(struct an_cut *cut, const struct an_packet *p, uint32_t bytes, uint32_t id)
{
    uint32_t l3 = 14;
    while (l3 < 14 + 4 * AN_VLAN_TAGS_MAX && p->length > l3 + 4 && an_is_vlan(an_load16(p->data + l3 - 2)))
        l3 += 4; /* in a tunnel p->l3 is inside */
    if (p->length < l3 + 40)
        return 0;
    const uint8_t *ip = p->data + l3;
    cut->version = ip[0] >> 4;
    cut->l3 = l3;
    cut->end = an_ip_end(p->data, l3);
    if ((cut->version != 4 && cut->version != 6) || cut->end > p->length || cut->end < l3 + 40 || cut->end - l3 <= bytes)
        return 0;
    if (cut->version == 4) {
        cut->header_end = l3 + (ip[0] & 15) * 4u;
    } else { /* hop-by-hop options, and all up to a routing header, are every router's business */
        uint32_t at = l3 + 40;
        cut->header_end = at;
        for (uint8_t type = ip[6]; at + 8 <= cut->end && (type == AN_HOP_BY_HOP || type == AN_ROUTING ||
                                                          type == AN_DESTINATION_OPTIONS);) {
            uint32_t next = at + (p->data[at + 1] + 1) * 8u;
            if (next > cut->end)
                break;
            if (type != AN_DESTINATION_OPTIONS)
                cut->header_end = next;
            type = p->data[at];
            at = next;
        }
    }
    uint32_t header_bytes = cut->header_end - l3 + (cut->version == 6 ? 8u : 0u);
    if (header_bytes < 20 || bytes < header_bytes + 8 || cut->header_end >= cut->end)
        return 0;
    cut->piece = (bytes - header_bytes) & ~7u;
    cut->id = id;
    cut->at = cut->header_end;
    return 1;
}

/* The next fragment, which the caller owns; NULL behind the last one, or, with cut->at < cut->end, without memory. */
static inline struct an_parked *an_cut_next(struct an_cut *cut, const struct an_packet *p)
{
    if (cut->at >= cut->end)
        return NULL;
    uint32_t bytes = cut->end - cut->at < cut->piece ? cut->end - cut->at : cut->piece;
    uint32_t extra = cut->version == 6 ? 8 : 0, header_end = cut->header_end + extra;
    uint32_t offset = cut->at - cut->header_end, more = cut->at + bytes < cut->end;
    struct an_parked *item = (struct an_parked *)malloc(sizeof *item + header_end + bytes);
    if (!item)
        return NULL;
    memset(item, 0, offsetof(struct an_parked, frame));
    uint8_t *data = item->frame, *ip = data + cut->l3;
    item->p.data = data;
    item->p.length = header_end + bytes;
    item->p.port = p->port;
    item->p.flags = AN_COPIED;
    item->p.time_ns = p->time_ns;
    item->p.key = p->key;
    memcpy(data, p->data, cut->header_end);
    memcpy(data + header_end, p->data + cut->at, bytes);
    if (cut->version == 4) {
        uint32_t header_bytes = cut->header_end - cut->l3;
        if (offset)
            an_options_blank(ip, header_bytes);
        an_store16(ip + 2, an_swap16((uint16_t)(header_bytes + bytes)));
        an_store16(ip + 4, (uint16_t)cut->id);
        an_store16(ip + 6, an_swap16((uint16_t)((an_swap16(an_load16(ip + 6)) & 0x4000) | more << 13 | offset / 8)));
        an_store16(ip + 10, 0);
        an_store16(ip + 10, (uint16_t)~an_fold(an_sum(ip, header_bytes, 0)));
    } else {
        uint8_t *name = data + an_next_header_at(data, cut->l3, cut->header_end), *header = data + cut->header_end;
        header[0] = *name;
        header[1] = 0;
        an_store16(header + 2, an_swap16((uint16_t)(offset | more)));
        memcpy(header + 4, &cut->id, 4);
        *name = AN_FRAGMENT_HEADER;
        an_store16(ip + 4, an_swap16((uint16_t)(header_end - cut->l3 - 40 + bytes)));
    }
    cut->at += bytes;
    return item;
}

#endif
