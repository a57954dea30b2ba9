/* The terms of an offload: until when, how fast, and which packets its flow's actor sees as well. */
#ifndef ACTORNET_TERMS_H
#define ACTORNET_TERMS_H

#include "types.h"

#define AN_SECOND_NS 1000000000ull
#define AN_BURST_MAX (1ull << 33) /* so that a full bucket, in billionths, plus what is added to it, is below 2^64 */

/* A bucket is full at first: after a takeover, too. */
static inline void an_terms_begin(struct an_terms *t, uint64_t now_ns)
{
    t->tokens = t->burst * AN_SECOND_NS;
    t->filled_ns = now_ns;
    t->packets = t->bytes = 0;
}

static inline int an_terms_expired(const struct an_terms *t, uint64_t now_ns)
{
    return t->until_ns && now_ns >= t->until_ns;
}

/* Whether the meter lets a packet of so many bytes pass: the committed bucket of RFC 2697, colour-blind. A clock set
 * back adds nothing. */
static inline int an_terms_conform(struct an_terms *t, uint32_t bytes, uint64_t now_ns)
{
    if (!t->rate)
        return 1;
    uint64_t full = t->burst * AN_SECOND_NS, cost = (t->meter_bytes ? bytes : 1) * AN_SECOND_NS;
    uint64_t elapsed = now_ns > t->filled_ns ? now_ns - t->filled_ns : 0;
    t->filled_ns = now_ns;
    if (elapsed > full / t->rate) /* beyond it the product could overflow */
        t->tokens = full;
    else
        t->tokens = t->tokens + elapsed * t->rate < full ? t->tokens + elapsed * t->rate : full;
    if (t->tokens < cost)
        return 0;
    t->tokens -= cost;
    return 1;
}

/* Whether the actor sees this packet, which is counted here. */
static inline int an_terms_mirror(struct an_terms *t, uint32_t bytes)
{
    int mirror = t->packets < t->mirror_packets || t->bytes < t->mirror_bytes ||
                 (t->mirror_every && (t->packets + 1) % t->mirror_every == 0);
    t->packets++;
    t->bytes += bytes;
    return mirror;
}

#endif
