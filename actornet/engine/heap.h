/* Arenas for Python's small objects, in huge pages: actors, their fields, and whatever else handlers make.
 *
 * One stretch of addresses is reserved; arenas are cut from it in order, two from a page, and those given back are used
 * again first. What was never touched, or was given back, takes no memory. */
#ifndef AN_HEAP_H
#define AN_HEAP_H

#include "huge_pages.h"

#define AN_ARENA_BYTES (AN_HUGE_PAGE_BYTES / 2) /* what CPython asks for, from 3.10 on */
#define AN_ARENAS (1u << 16)
#define AN_PAGES_AHEAD 2u

struct an_heap {
    uint8_t *base;             /* NULL: nothing is reserved */
    uint32_t used;             /* arenas that were given out at some time */
    uint32_t pages_backed;     /* ahead, from `base` on */
    uint32_t returned;         /* how many were given back */
    uint32_t again[AN_ARENAS]; /* and which */
};

/* Reserve the addresses; 0 where the process may not have as many. */
static inline int an_heap_reserve(struct an_heap *h)
{
    h->base = (uint8_t *)an_huge_map(AN_ARENAS * AN_ARENA_BYTES);
    return h->base != NULL;
}

/* An arena; NULL where all are in use. */
static inline void *an_heap_alloc(struct an_heap *h)
{
    if (h->returned)
        return h->base + AN_ARENA_BYTES * h->again[--h->returned];
    if (h->used == AN_ARENAS)
        return NULL;
    __atomic_store_n(&h->used, h->used + 1, __ATOMIC_RELAXED);
    return h->base + AN_ARENA_BYTES * (h->used - 1);
}

static inline int an_heap_has(const struct an_heap *h, const void *at)
{
    return h->base != NULL && (uintptr_t)at - (uintptr_t)h->base < AN_ARENAS * AN_ARENA_BYTES;
}

/* Take an arena back, and let its memory go: whoever gets it again waits for the pages, as with those of CPython itself. */
static inline void an_heap_free(struct an_heap *h, void *at)
{
    madvise(at, AN_ARENA_BYTES, MADV_DONTNEED);
    h->again[h->returned++] = (uint32_t)((size_t)((uint8_t *)at - h->base) / AN_ARENA_BYTES);
}

/* Whether fewer than half of the pages that should be backed ahead are: asked by who takes arenas. */
static inline int an_heap_wants(const struct an_heap *h)
{
    uint32_t backed = __atomic_load_n(&h->pages_backed, __ATOMIC_RELAXED);
    return h->base != NULL && backed < (h->used + 1) / 2 + AN_PAGES_AHEAD / 2;
}

/* Back the next page; 0: there are enough. By one other thread, while arenas are taken. */
static inline int an_heap_back(struct an_heap *h)
{
    uint32_t touched = (__atomic_load_n(&h->used, __ATOMIC_RELAXED) + 1) / 2;
    uint32_t next = h->pages_backed > touched ? h->pages_backed : touched;
    if (h->base == NULL || next >= touched + AN_PAGES_AHEAD || next >= AN_ARENAS / 2)
        return 0;
    an_huge_back(h->base, next);
    __atomic_store_n(&h->pages_backed, next + 1, __ATOMIC_RELAXED);
    return 1;
}

#endif
