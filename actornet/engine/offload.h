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
#define AN_GENERAL (-1) /* not for the fast path: untouched, but `entry` is set */

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
    return e->generation != table->generation && e->rewrite.action != AN_SLOW && e->rewrite.action != AN_REDIRECT;
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
    if (an_unlikely(p->reason != AN_OK))
        return AN_GENERAL;
    p->entry = an_table_find_probed(table, &p->key, p->hash, probed);
    if (an_unlikely(p->entry == AN_NONE))
        return AN_GENERAL;
    e = &table->entries[p->entry];
    next_hop = &adjacencies[e->rewrite.adjacency];
    if (an_unlikely(e->rewrite.action != AN_FORWARD || e->state & (AN_BUSY | AN_HELD | AN_TERMS) ||
                    e->rewrite.fields & AN_SET_LINK || e->generation != table->generation || p->flags & AN_ICMP_ERROR ||
                    (e->state & AN_PUNT_TCP && p->tcp_flags & AN_TCP_SYN_FIN_RST) || !next_hop->resolved ||
                    an_rewrite_apply(p, &e->rewrite, an_addresses(e)) != 0))
        return AN_GENERAL;
    if (e->rewrite.adjacency)
        memcpy(p->data, next_hop, 12);
    e->packets++;
    e->bytes += p->length;
    e->last_seen_ns = now_ns;
    return e->rewrite.out_port;
}

/* The first entry from `index` on with which a flow was opened, or AN_NONE. */
static inline uint32_t an_flow_from(const struct an_table *table, uint32_t index)
{
    for (; index < table->touched; index++)
        if (table->entries[index].state & AN_PRIMARY)
            return index;
    return AN_NONE;
}

/* What the general path will touch of a flow that is not offloaded: its actor. */
static inline void an_prefetch_actor(const struct an_table *table, uint32_t index)
{
    if (index != AN_NONE && table->entries[index].rewrite.action == AN_SLOW) {
        const char *actor = table->entries[index].actor;
        __builtin_prefetch(actor - 16, 1);
        __builtin_prefetch(actor + 64, 1);
    }
}

#endif
