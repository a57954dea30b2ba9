/* The flow table of one core: a seeded hash from keys to entries, and the wheel of the entries' idle timers.
 *
 * A bucket is one cache line: ten 16-bit tags, compared at once, and the ten entries that they stand for. A full bucket
 * spills into the next one and counts what it spilled, so that a search ends at the first bucket that never did, and a
 * removal leaves no tombstone (the scheme of Facebook's F14). Buckets are sized for at most half of their slots in use.
 *
 * Look up a burst in stages, so that its cache misses overlap: an_hash and an_table_prefetch for every packet, then
 * an_table_probe for every packet, then an_table_find.
 *
 * The wheel has AN_TIMER_SLOTS slots of AN_TIMER_TICK_NS; a deadline beyond its horizon comes due early and is armed
 * again by whom it concerns. Time is an argument everywhere.
 */
#ifndef ACTORNET_FLOW_TABLE_H
#define ACTORNET_FLOW_TABLE_H

#include <errno.h>
#include <sys/mman.h>
#ifdef __SSE2__
#include <emmintrin.h>
#endif

#include "checksum.h"
#include "huge_pages.h"

#define AN_BUCKET_SLOTS 10
#define AN_TIMER_TICK_SHIFT 24 /* 16.8 ms */
#define AN_TIMER_TICK_NS (1ull << AN_TIMER_TICK_SHIFT)
#define AN_TIMER_SLOTS (1u << 14) /* 275 s */
#define AN_TIMER_STEP_NS 1000000000ull /* a clock set back by more than this moves the wheel along */
#define AN_ENTRIES_MAX (1u << 28)
#define AN_AHEAD_ENTRIES (1u << 16) /* memory is backed for so many entries more, by a thread beside the core's */

struct an_bucket {
    uint16_t tags[AN_BUCKET_SLOTS]; /* 0: free */
    uint32_t spilled;               /* live entries that were pushed past this bucket */
    uint32_t entries[AN_BUCKET_SLOTS];
} __attribute__((aligned(64)));

_Static_assert(sizeof(struct an_bucket) == 64, "a bucket is one cache line");

struct an_table {
    struct an_entry *entries;
    struct an_bucket *buckets;
    uint32_t bucket_mask;
    uint32_t entries_max;
    uint64_t seed;
    uint32_t used;    /* live entries */
    uint32_t touched; /* entries [0, touched) were live once; the pages behind them are not backed yet */
    uint32_t free;    /* list of the removed ones, through next_key */
    uint32_t armed;   /* entries in the wheel */
    uint16_t generation; /* of the offloads that hold */
    uint32_t buckets_backed, entries_backed; /* huge pages */
    uint64_t tick;    /* all slots up to this one are empty */
    uint64_t now_ns;  /* latest time seen */
    uint64_t skew_ns; /* wheel time = time + skew: stays monotone when the clock is set back */
    uint32_t *slots;  /* first entry of each, or AN_NONE */
};

/* 64 x 64 -> 128 bit product, folded (wyhash's mixing step). */
static inline uint64_t an_mix(uint64_t a, uint64_t b)
{
    __uint128_t product = (__uint128_t)a * b;
    return (uint64_t)product ^ (uint64_t)(product >> 64);
}

/* Keyed with `seed`, which must be secret and random: senders choose keys (algorithmic-complexity attacks). The low and
 * the high half of the result are both well mixed. `addresses`: both of IPv4, or a digest of IPv6's; `tail`: the rest. */
static inline uint64_t an_hash_words(uint64_t addresses, uint64_t tail, uint64_t seed)
{
    uint64_t hash = an_mix(addresses ^ seed, tail ^ 0x1d8e4e27c47d124full ^ (seed << 32 | seed >> 32));
    return an_mix(hash ^ 0xeb44accab455d165ull, seed | 1);
}

static inline uint64_t an_hash(const struct an_key *key, uint64_t seed)
{
    uint64_t source = an_load64(key->source), destination = an_load64(key->destination);
    uint64_t addresses = source | destination << 32;
    if (__builtin_expect(key->version != 4, 0))
        addresses = an_mix(source ^ seed ^ 0xa0761d6478bd642full,
                           an_load64(key->source + 8) ^ seed ^ 0xe7037ed1a0b428dbull) ^
                    an_mix(destination ^ seed ^ 0x8ebc6af09c88c6e3ull,
                           an_load64(key->destination + 8) ^ seed ^ 0x589965cc75374cc3ull);
    return an_hash_words(addresses, an_load64(&key->source_port), seed);
}

static inline int an_key_equal(const struct an_key *a, const struct an_key *b)
{
    return !((an_load64(a->source) ^ an_load64(b->source)) | (an_load64(a->source + 8) ^ an_load64(b->source + 8)) |
             (an_load64(a->destination) ^ an_load64(b->destination)) |
             (an_load64(a->destination + 8) ^ an_load64(b->destination + 8)) |
             (an_load64(&a->source_port) ^ an_load64(&b->source_port)));
}

/* A key's ports, protocol, version and port, where an entry has its state besides (little endian, as all of this). */
#define AN_TAIL 0x00ffffffffffffffull

static inline uint64_t an_entry_addresses(const struct an_entry *e)
{
    return an_load64(e);
}

static inline uint64_t an_entry_tail(const struct an_entry *e)
{
    return an_load64(&e->source_port) & AN_TAIL;
}

static inline void an_entry_set_key(struct an_entry *e, const struct an_key *key)
{
    memcpy(e->source, key->source, 4);
    memcpy(e->destination, key->destination, 4);
    memcpy(e->source_rest, key->source + 4, 12);
    memcpy(e->destination_rest, key->destination + 4, 12);
    e->source_port = key->source_port;
    e->destination_port = key->destination_port;
    e->protocol = key->protocol;
    e->version = key->version;
    e->port = key->port;
}

static inline struct an_key an_entry_key(const struct an_entry *e)
{
    struct an_key key;
    memcpy(key.source, e->source, 4);
    memcpy(key.destination, e->destination, 4);
    memcpy(key.source + 4, e->source_rest, 12);
    memcpy(key.destination + 4, e->destination_rest, 12);
    an_store64(&key.source_port, an_entry_tail(e));
    return key;
}

/* From now on packets of this key come to its flow's actor. */
static inline void an_entry_begin_slow(struct an_entry *e)
{
    e->slow = (struct an_slow){.action = AN_SLOW, .actor = e->actor};
}

/* Where the verdict is that the handler has returned last for this key, in order to have it fetched: most return the same
 * one again. Objects begin at multiples of 16, and this one is mostly less than 64 GiB away from the actor. */
static inline const char *an_entry_verdict(const struct an_entry *e)
{
    return (const char *)(((uintptr_t)e->slow.actor & ~(uintptr_t)0xfffffffffu) | (uintptr_t)e->slow.verdict << 4);
}

static inline void an_entry_returned(struct an_entry *e, const void *verdict)
{
    if (e->rewrite.action == AN_SLOW)
        e->slow.verdict = (uint32_t)((uintptr_t)verdict >> 4);
}

static inline int an_entry_has(const struct an_entry *e, const struct an_key *key)
{
    uint64_t addresses = an_load32(key->source) | (uint64_t)an_load32(key->destination) << 32;
    return !((an_entry_addresses(e) ^ addresses) | (an_entry_tail(e) ^ an_load64(&key->source_port))) &&
           (__builtin_expect(key->version == 4, 1) ||
            !(memcmp(e->source_rest, key->source + 4, 12) | memcmp(e->destination_rest, key->destination + 4, 12)));
}

static inline void an_table_free(struct an_table *t)
{
    an_huge_unmap(t->entries, (size_t)t->entries_max * sizeof *t->entries);
    an_huge_unmap(t->buckets, ((size_t)t->bucket_mask + 1) * sizeof *t->buckets);
    an_huge_unmap(t->slots, AN_TIMER_SLOTS * sizeof *t->slots);
    memset(t, 0, sizeof *t);
}

/* 0, -EINVAL (entries_max is 0 or beyond AN_ENTRIES_MAX) or -ENOMEM. */
static inline int an_table_init(struct an_table *t, uint32_t entries_max, uint64_t seed, uint64_t now_ns)
{
    memset(t, 0, sizeof *t);
    if (entries_max == 0 || entries_max > AN_ENTRIES_MAX)
        return -EINVAL;
    uint32_t buckets = 1;
    while ((uint64_t)buckets * (AN_BUCKET_SLOTS / 2) < entries_max)
        buckets *= 2;
    t->bucket_mask = buckets - 1;
    t->entries_max = entries_max;
    t->seed = seed;
    t->free = AN_NONE;
    t->tick = now_ns >> AN_TIMER_TICK_SHIFT;
    t->now_ns = now_ns;
    t->entries = (struct an_entry *)an_huge_map((size_t)entries_max * sizeof *t->entries);
    t->buckets = (struct an_bucket *)an_huge_map((size_t)buckets * sizeof *t->buckets);
    t->slots = (uint32_t *)an_huge_map(AN_TIMER_SLOTS * sizeof *t->slots);
    if (!t->entries || !t->buckets || !t->slots) {
        an_table_free(t);
        return -ENOMEM;
    }
    memset(t->slots, 0xff, AN_TIMER_SLOTS * sizeof *t->slots);
    return 0;
}

/* Has the kernel back a huge page that will be needed soon: to clear one in the midst of a burst is a pause (milliseconds
 * on a virtual machine). For one thread beside the table's own. Returns 0 when there is nothing to back. */
static inline int an_table_back(struct an_table *t)
{
    size_t buckets = ((size_t)t->bucket_mask + 1) * sizeof *t->buckets, entries = t->entries_max;
    size_t ahead = (size_t)__atomic_load_n(&t->touched, __ATOMIC_RELAXED) + AN_AHEAD_ENTRIES;
    if (entries > ahead)
        entries = ahead;
    entries *= sizeof *t->entries;
    if (t->entries_backed * AN_HUGE_PAGE_BYTES < entries)
        an_huge_back(t->entries, t->entries_backed++);
    else if (t->buckets_backed * AN_HUGE_PAGE_BYTES < buckets)
        an_huge_back(t->buckets, t->buckets_backed++);
    else
        return 0;
    return 1;
}

/* Whether half of what was backed ahead is used up: asked by the table's own thread. */
static inline int an_table_wants(const struct an_table *t)
{
    size_t entries = (size_t)t->touched + AN_AHEAD_ENTRIES / 2;
    if (entries > t->entries_max)
        entries = t->entries_max;
    return __atomic_load_n(&t->entries_backed, __ATOMIC_RELAXED) * AN_HUGE_PAGE_BYTES < entries * sizeof *t->entries;
}

/* The hash's high half, never 0; its low bits choose the bucket. */
static inline uint16_t an_table_tag(uint32_t hash)
{
    uint16_t tag = (uint16_t)(hash >> 16);
    return tag ? tag : 1;
}

/* One bit per slot of the bucket whose tag is `tag`. */
static inline uint32_t an_bucket_match(const struct an_bucket *b, uint16_t tag)
{
#ifdef __SSE2__
    __m128i wanted = _mm_set1_epi16((short)tag);
    __m128i low = _mm_cmpeq_epi16(_mm_load_si128((const __m128i *)b), wanted);
    __m128i high = _mm_cmpeq_epi16(_mm_load_si128((const __m128i *)b + 1), wanted);
    return (uint32_t)_mm_movemask_epi8(_mm_packs_epi16(low, high)) & ((1u << AN_BUCKET_SLOTS) - 1);
#else
    uint32_t mask = 0;
    for (int slot = 0; slot < AN_BUCKET_SLOTS; slot++)
        mask |= (uint32_t)(b->tags[slot] == tag) << slot;
    return mask;
#endif
}

static inline void an_table_prefetch(const struct an_table *t, uint32_t hash)
{
    __builtin_prefetch(&t->buckets[hash & t->bucket_mask], 0, 3);
    __asm__ volatile(""); /* or a compiler takes the function for one without effect and drops the call */
}

/* The entry that the key with this hash most likely has, its first cache line, or the `whole` entry, on its way; AN_NONE when
 * the bucket has no such tag. Only an_table_find knows for sure. */
static inline uint32_t an_table_probe(const struct an_table *t, uint32_t hash, int whole)
{
    const struct an_bucket *b = &t->buckets[hash & t->bucket_mask];
    uint32_t mask = an_bucket_match(b, an_table_tag(hash));
    if (__builtin_expect(mask == 0, 0))
        return AN_NONE;
    uint32_t index = b->entries[__builtin_ctz(mask)];
    const char *entry = (const char *)&t->entries[index];
    /* Into L2: 64 prefetches of a burst exceed what L1 can have under way, and are then dropped (measured on Zen 4: a
     * packet costs 46 cycles instead of 140 at 100,000 flows). */
    __builtin_prefetch(entry, 0, 1);
    if (whole)
        __builtin_prefetch(entry + 64, 0, 1);
    __asm__ volatile("");
    return index;
}

/* The live entry of the key, or AN_NONE. */
static inline uint32_t an_table_find(const struct an_table *t, const struct an_key *key, uint32_t hash)
{
    uint16_t tag = an_table_tag(hash);
    for (uint32_t at = hash & t->bucket_mask, walked = 0; walked <= t->bucket_mask; walked++) {
        const struct an_bucket *b = &t->buckets[at];
        for (uint32_t mask = an_bucket_match(b, tag); mask; mask &= mask - 1) {
            uint32_t index = b->entries[__builtin_ctz(mask)];
            if (__builtin_expect(an_entry_has(&t->entries[index], key), 1))
                return index;
        }
        if (__builtin_expect(b->spilled == 0, 1))
            return AN_NONE;
        at = (at + 1) & t->bucket_mask;
    }
    return AN_NONE;
}

/* an_table_find() for a key whose entry was guessed by an_table_probe() earlier in the burst: mostly the guess is
 * right, and the bucket is not read again. Entries may have come and gone in between. */
static inline uint32_t an_table_find_probed(const struct an_table *t, const struct an_key *key, uint32_t hash,
                                            uint32_t probed)
{
    if (__builtin_expect(probed != AN_NONE && an_entry_has(&t->entries[probed], key), 1))
        return probed;
    return an_table_find(t, key, hash);
}

/* A new live entry for a key that is not in the table, alone in its ring, without timer; AN_NONE when the table is
 * full. */
static inline uint32_t an_table_insert(struct an_table *t, const struct an_key *key, uint32_t hash)
{
    if (t->used == t->entries_max)
        return AN_NONE;
    uint32_t index = t->free;
    if (index == AN_NONE)
        index = t->touched++;
    else
        t->free = t->entries[index].next_key;
    t->used++;

    struct an_entry *e = &t->entries[index];
    memset(e, 0, sizeof *e);
    an_entry_set_key(e, key);
    e->hash = hash;
    e->state = AN_LIVE;
    e->next_key = index;
    e->timer_slot = AN_NONE;

    uint32_t at = hash & t->bucket_mask, free;
    while ((free = an_bucket_match(&t->buckets[at], 0)) == 0) {
        t->buckets[at].spilled++;
        at = (at + 1) & t->bucket_mask;
    }
    int slot = __builtin_ctz(free);
    t->buckets[at].entries[slot] = index;
    t->buckets[at].tags[slot] = an_table_tag(hash);
    return index;
}

static inline void an_timer_disarm(struct an_table *t, uint32_t index)
{
    struct an_entry *e = &t->entries[index];
    if (e->timer_slot == AN_NONE)
        return;
    if (e->timer_prev == AN_NONE)
        t->slots[e->timer_slot] = e->timer_next;
    else
        t->entries[e->timer_prev].timer_next = e->timer_next;
    if (e->timer_next != AN_NONE)
        t->entries[e->timer_next].timer_prev = e->timer_prev;
    e->timer_slot = AN_NONE;
    t->armed--;
}

/* Arms or re-arms: the entry comes due at the first advance that is a tick or more past the deadline, or at the
 * horizon. */
static inline void an_timer_arm(struct an_table *t, uint32_t index, uint64_t deadline_ns)
{
    an_timer_disarm(t, index);
    uint64_t wheel_ns = deadline_ns + t->skew_ns < deadline_ns ? UINT64_MAX : deadline_ns + t->skew_ns;
    uint64_t tick = (wheel_ns >> AN_TIMER_TICK_SHIFT) + 1;
    if (tick <= t->tick)
        tick = t->tick + 1;
    if (tick >= t->tick + AN_TIMER_SLOTS)
        tick = t->tick + AN_TIMER_SLOTS - 1;
    uint32_t slot = (uint32_t)tick & (AN_TIMER_SLOTS - 1);
    struct an_entry *e = &t->entries[index];
    e->timer_slot = slot;
    e->timer_prev = AN_NONE;
    e->timer_next = t->slots[slot];
    if (e->timer_next != AN_NONE)
        t->entries[e->timer_next].timer_prev = index;
    t->slots[slot] = index;
    t->armed++;
}

/* Moves the wheel to `now_ns` and takes out up to `max` entries that came due on the way, disarmed, into `due`;
 * returns how many. When it returns `max`, more may wait: call again. Visits each slot at most once, however far the
 * clock jumps; a clock set back keeps the time that every armed entry still had. */
static inline uint32_t an_timer_advance(struct an_table *t, uint64_t now_ns, uint32_t *due, uint32_t max)
{
    if (now_ns + AN_TIMER_STEP_NS < t->now_ns) {
        t->skew_ns += t->now_ns - now_ns;
        t->now_ns = now_ns;
    } else if (now_ns > t->now_ns) {
        t->now_ns = now_ns;
    }
    uint64_t target = (now_ns + t->skew_ns) >> AN_TIMER_TICK_SHIFT;
    if (t->armed == 0) {
        if (target > t->tick)
            t->tick = target;
        return 0;
    }
    if (target > t->tick + AN_TIMER_SLOTS)
        t->tick = target - AN_TIMER_SLOTS;
    uint32_t count = 0;
    while (t->tick < target) {
        uint32_t slot = (uint32_t)(t->tick + 1) & (AN_TIMER_SLOTS - 1), index;
        while ((index = t->slots[slot]) != AN_NONE) {
            if (count == max)
                return count;
            an_timer_disarm(t, index);
            due[count++] = index;
        }
        t->tick++;
    }
    return count;
}

/* Forgets a live entry; its index may be given out again at once. The caller has unlinked it from its ring. */
static inline void an_table_remove(struct an_table *t, uint32_t index)
{
    struct an_entry *e = &t->entries[index];
    an_timer_disarm(t, index);
    uint16_t tag = an_table_tag(e->hash);
    for (uint32_t at = e->hash & t->bucket_mask;; at = (at + 1) & t->bucket_mask) {
        struct an_bucket *b = &t->buckets[at];
        for (uint32_t mask = an_bucket_match(b, tag); mask; mask &= mask - 1) {
            int slot = __builtin_ctz(mask);
            if (b->entries[slot] == index) {
                b->tags[slot] = 0;
                e->version = 0xff; /* equals no key any more */
                e->state = 0;
                e->next_key = t->free;
                t->free = index;
                t->used--;
                return;
            }
        }
        b->spilled--;
    }
}

#endif
