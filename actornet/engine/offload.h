/* The fast path: a packet whose flow is offloaded is matched, counted, rewritten and addressed here, or left untouched
 * for the core's general path. */
#ifndef ACTORNET_OFFLOAD_H
#define ACTORNET_OFFLOAD_H

#include <time.h>

#include "flow_table.h"
#include "link.h"
#include "parked.h"
#include "rewrite.h"
#include "terms.h"

#define AN_TCP_SYN_FIN_RST 0x07
#define AN_GENERAL (-1) /* not for the fast path: untouched, but `entry` is set, to AN_NONE if it has none */

/* The next hop's and the port's MAC addresses as they stand in the Ethernet header, and the packets that wait for them. */
struct an_adjacency {
    uint8_t destination[6], source[6];
    uint8_t resolved, attempts;
    struct an_queue waiting;
};

static inline uint64_t an_now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* Time that no operator sets. */
static inline uint64_t an_steady_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static inline const uint8_t *an_addresses(const struct an_entry *e)
{
    return e->extra ? e->extra->addresses : NULL;
}

/* Whether an offload stands that an owner has revoked since. */
static inline int an_revoked(const struct an_table *table, const struct an_entry *e)
{
    return e->rewrite.generation != table->generation && e->rewrite.action != AN_SLOW && e->rewrite.action != AN_REDIRECT;
}

/* Whether the entry's rewrite, rather than its flow's actor, decides about the packet. */
static inline int an_offloaded(const struct an_table *table, const struct an_entry *e, const struct an_packet *p)
{
    return e->rewrite.action != AN_SLOW && !an_revoked(table, e) &&
           !(e->state & AN_PUNT_TCP && p->tcp_flags & AN_TCP_SYN_FIN_RST);
}

/* Returns the port to leave by, or AN_GENERAL. `probed` is what an_table_probe() guessed. */
static inline int an_offload(struct an_table *table, struct an_packet *p, uint32_t probed, uint64_t now_ns,
                             const struct an_adjacency *adjacencies)
{
    struct an_entry *e;
    const struct an_adjacency *next_hop;
    p->entry = AN_NONE;
    if (an_unlikely(p->reason != AN_OK))
        return AN_GENERAL;
    p->entry = an_table_find_probed(table, &p->key, p->hash, probed);
    if (an_unlikely(p->entry == AN_NONE))
        return AN_GENERAL;
    e = &table->entries[p->entry];
    next_hop = &adjacencies[e->rewrite.adjacency];
    if (an_unlikely(e->rewrite.action != AN_FORWARD || e->state & (AN_BUSY | AN_HELD | AN_TERMS) ||
                    e->rewrite.fields & AN_SET_LINK || e->rewrite.generation != table->generation ||
                    p->flags & AN_ICMP_ERROR || (e->state & AN_PUNT_TCP && p->tcp_flags & AN_TCP_SYN_FIN_RST) ||
                    !next_hop->resolved || an_rewrite_apply(p, &e->rewrite, an_addresses(e)) != 0))
        return AN_GENERAL;
    if (e->rewrite.adjacency)
        memcpy(p->data, next_hop, 12);
    e->packets++;
    e->bytes += p->length;
    e->last_seen_ns = now_ns;
    return e->rewrite.out_port;
}

static inline uint32_t an_glance_hash(const struct an_glance *g, uint64_t seed)
{
    return (uint32_t)an_hash_words(g->addresses, g->tail, seed);
}

/* an_offload() for a packet that was only glanced at: the same decision, by constant offsets. AN_GENERAL leaves it
 * untouched: parse it, and ask an_offload(). */
static inline int an_offload_glanced(struct an_table *table, struct an_packet *p, const struct an_glance *g, uint32_t probed,
                                     uint64_t now_ns, const struct an_adjacency *adjacencies)
{
    uint8_t *ip = p->data + AN_GLANCE_L3, *l4 = p->data + AN_GLANCE_L4;
    if (an_unlikely(probed == AN_NONE))
        return AN_GENERAL;
    struct an_entry *e = &table->entries[probed];
    const struct an_rewrite *r = &e->rewrite;
    if (r->action != AN_FORWARD)
        return AN_GENERAL;
    if (an_unlikely((g->addresses ^ an_entry_addresses(e)) | (g->tail ^ an_entry_tail(e))))
        return AN_GENERAL;
    const struct an_adjacency *next_hop = &adjacencies[r->adjacency];
    uint8_t fields = r->fields, state = e->state, protocol = (uint8_t)(g->tail >> 32);
    uint8_t decrement = fields & AN_DECREMENT_TTL ? 1 : 0;
    if (an_unlikely(state & (AN_BUSY | AN_HELD | AN_TERMS) || fields & (AN_SET_LINK | AN_SET_DSCP) ||
                    r->generation != table->generation || !next_hop->resolved || ip[8] <= decrement))
        return AN_GENERAL;
    if (protocol == AN_TCP && state & AN_PUNT_TCP && l4[13] & AN_TCP_SYN_FIN_RST)
        return AN_GENERAL;

    uint32_t ports = an_load32(l4), ports_new = an_swap16(r->source_port) | (uint32_t)an_swap16(r->destination_port) << 16;
    uint32_t keep = (fields & AN_SET_SOURCE_PORT ? 0 : 0xffffu) | (fields & AN_SET_DESTINATION_PORT ? 0 : 0xffff0000u);
    ports = (ports & keep) | (ports_new & ~keep);
    uint32_t source = fields & AN_SET_SOURCE ? r->source : (uint32_t)g->addresses;
    uint32_t destination = fields & AN_SET_DESTINATION ? r->destination : (uint32_t)(g->addresses >> 32);
    uint16_t l3_delta = an_rewrite_l3_delta(r), l4_delta = r->l4_delta, addresses_delta = r->addresses_delta;
    int out = r->out_port;
    e->packets++;
    e->bytes += p->length;
    e->last_seen_ns = now_ns;
    if (an_unlikely(r->adjacency))
        memcpy(p->data, next_hop, 12);
    ip[8] -= decrement;
    an_store16(ip + 10, an_csum_update(an_load16(ip + 10), l3_delta));
    an_store64(ip + 12, source | (uint64_t)destination << 32);
    memcpy(l4, &ports, 4);
    an_rewrite_csum(l4 + (protocol == AN_TCP ? 16 : 6), protocol, an_csum_is_partial(p, l4), l4_delta,
                    addresses_delta);
    return out;
}

/* The first entry from `index` on with which a flow was opened, or AN_NONE. */
static inline uint32_t an_flow_from(const struct an_table *table, uint32_t index)
{
    for (; index < table->touched; index++)
        if (table->entries[index].state & AN_PRIMARY)
            return index;
    return AN_NONE;
}

/* What a packet needs besides the first line of its entry. */
enum an_needs { AN_WHOLE = 1, AN_ACTOR = 2 };

static inline void an_prefetch_lines(const void *begin, unsigned bytes)
{
    for (uintptr_t at = (uintptr_t)begin & ~(uintptr_t)63; at < (uintptr_t)begin + bytes; at += 64)
        __builtin_prefetch((const void *)at, 0, 1);
}

/* Says that, and has that fetched which lies beyond the entry: of a flow that is not offloaded the first `bytes` bytes of its
 * actor; else what only few offloads have. */
static inline int an_prefetch_beyond(const struct an_table *table, uint32_t index, unsigned bytes)
{
    if (index == AN_NONE)
        return 0;
    const struct an_entry *e = &table->entries[index];
    int whole = e->version == 4 ? 0 : AN_WHOLE;
    if (e->rewrite.action == AN_SLOW) {
        an_prefetch_lines(e->slow.actor, bytes);
        return AN_ACTOR | whole;
    }
    if (!whole && !(e->state & AN_TERMS || e->rewrite.fields & AN_SET_LINK))
        return 0;
    if (e->extra == NULL)
        return AN_WHOLE;
    if (e->state & AN_TERMS)
        an_prefetch_lines(&e->extra->terms, sizeof e->extra->terms);
    if (whole || e->rewrite.fields & AN_SET_LINK)
        an_prefetch_lines(e->extra, offsetof(struct an_extra, terms));
    return AN_WHOLE;
}

/* What is read of the verdict of a flow that is not offloaded. For a packet that is treated soon: a core has some twenty lines
 * under way at a time, and these are of pages that the burst has not seen. */
static inline void an_prefetch_verdict(const struct an_table *table, uint32_t index)
{
    if (index != AN_NONE && table->entries[index].rewrite.action == AN_SLOW)
        an_prefetch_lines(an_entry_verdict(&table->entries[index]), 128);
}

/* And what a handler will need, once its actor is here: the objects that its fields, at `from` to `to`, refer to. */
static inline void an_prefetch_fields(const struct an_table *table, uint32_t index, unsigned from, unsigned to)
{
    if (index == AN_NONE || table->entries[index].rewrite.action != AN_SLOW)
        return;
    const struct an_entry *e = &table->entries[index];
    const char *actor = e->version == 0xff ? NULL : e->slow.actor; /* 0xff: of a flow that has gone within this burst */
    for (unsigned at = from; actor && at < to; at += sizeof(void *))
        __builtin_prefetch(*(const char *const *)(actor + at), 1);
}

#endif
