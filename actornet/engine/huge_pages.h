/* Memory in huge pages, where the kernel has them: backed when touched, or ahead of that. */
#ifndef AN_HUGE_PAGES_H
#define AN_HUGE_PAGES_H

#include <stddef.h>
#include <stdint.h>
#include <sys/mman.h>

#define AN_HUGE_PAGE_BYTES (2ul << 20)
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23 /* Linux 5.14 */
#endif

static inline size_t an_huge_rounded(size_t bytes)
{
    return (bytes + AN_HUGE_PAGE_BYTES - 1) & ~(AN_HUGE_PAGE_BYTES - 1);
}

/* Zeroed memory that is backed when touched; NULL if there is none. */
static inline void *an_huge_map(size_t bytes)
{
    bytes = an_huge_rounded(bytes);
    uint8_t *raw = (uint8_t *)mmap(NULL, bytes + AN_HUGE_PAGE_BYTES, PROT_READ | PROT_WRITE,
                                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (raw == MAP_FAILED)
        return NULL;
    uint8_t *aligned = (uint8_t *)an_huge_rounded((uintptr_t)raw);
    if (aligned > raw)
        munmap(raw, (size_t)(aligned - raw));
    munmap(aligned + bytes, (size_t)(raw + AN_HUGE_PAGE_BYTES - aligned));
    madvise(aligned, bytes, MADV_HUGEPAGE); /* advice: kernels without huge pages refuse it, which costs only speed */
    return aligned;
}

static inline void an_huge_unmap(void *at, size_t bytes)
{
    if (at)
        munmap(at, an_huge_rounded(bytes));
}

/* Have page number `page` from `begin` on backed now. That is advice, too: without it the first touch does. */
static inline void an_huge_back(void *begin, size_t page)
{
    madvise((uint8_t *)begin + AN_HUGE_PAGE_BYTES * page, AN_HUGE_PAGE_BYTES, MADV_POPULATE_WRITE);
}

#endif
