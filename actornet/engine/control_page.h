/* The words that a node's processes share: how far the log is committed, who is primary, who is alive, counters.
 *
 * Each word has one writer. Words of one writer that are written together share a line; no line has two writers.
 */
#ifndef ACTORNET_CONTROL_PAGE_H
#define ACTORNET_CONTROL_PAGE_H

#include <stdint.h>
#include <time.h>

#include "ring.h" /* AN_LINE */

#define AN_CONTROL_MAGIC UINT64_C(0x316c727463746361) /* "actctrl1" */
#define AN_CORE_COUNTERS 128 /* more than there are, and the last one is the process */
#define AN_OWNER_COUNTERS 32

#define AN_NO_LEASE UINT64_MAX

enum an_role { AN_PASSIVE = 0, AN_ACTIVE, AN_FENCED };

struct an_core_words {
    _Alignas(AN_LINE) uint64_t committed; /* owner system: the core's requests up to this number are committed */
    _Alignas(AN_LINE) uint64_t beat;      /* core: turns of its loop */
    uint64_t counters[AN_CORE_COUNTERS];  /* core */
};

struct an_control_page {
    uint64_t magic, cores;
    /* Owner system: seldom written and read by every core at every burst, so apart from what changes. */
    _Alignas(AN_LINE) uint64_t role; /* enum an_role */
    uint64_t epoch;
    uint64_t followed; /* whether a backup counts, so that cores tell what waits in them; see unsent.pyx */
    uint64_t lease_until_ns; /* of CLOCK_BOOTTIME: no packet may leave from then on; AN_NO_LEASE: no witness limits it */
    uint64_t alert_until_ns; /* of CLOCK_MONOTONIC: until then a takeover may follow at once, and cores wait awake */
    _Alignas(AN_LINE) uint64_t watermark; /* owner system: the LSN that the durability mode asks for */
    uint64_t lsn_logged, lsn_applied;
    _Alignas(AN_LINE) uint64_t beat; /* owner system: turns of its loop */
    uint64_t counters[AN_OWNER_COUNTERS];
    struct an_core_words core[];
};

/* What the writer did before the store is seen by who reads the stored value. */
static inline uint64_t an_word_load(const uint64_t *word)
{
    return __atomic_load_n(word, __ATOMIC_ACQUIRE);
}

static inline void an_word_store(uint64_t *word, uint64_t value)
{
    __atomic_store_n(word, value, __ATOMIC_RELEASE);
}

/* Whether packets may leave (G7). Whoever wakes from any sleep asks before it sends: the word's writer may sleep, too. */
static inline int an_lease_holds(const uint64_t *lease_until_ns)
{
    uint64_t until_ns = an_word_load(lease_until_ns);
    struct timespec now;

    if (until_ns == AN_NO_LEASE)
        return 1;
    clock_gettime(CLOCK_BOOTTIME, &now);
    return (uint64_t)now.tv_sec * UINT64_C(1000000000) + (uint64_t)now.tv_nsec < until_ns;
}

/* For the word's only writer: no locked instruction needed. */
static inline void an_word_add(uint64_t *word, uint64_t value)
{
    __atomic_store_n(word, __atomic_load_n(word, __ATOMIC_RELAXED) + value, __ATOMIC_RELAXED);
}

#endif
