/* A ring of variable-length messages between one producer and one consumer in different processes.
 *
 * The shared file is one page of indices and `capacity` bytes of messages. The messages are mapped twice in a row, so
 * that one that passes the end of the file goes on in the second mapping: every message is contiguous in memory.
 *
 *     page: identity | tail, full | head | sleep          data: ... header 8 | message | pad to 8 ...
 *
 * `head` and `tail` count bytes and never wrap; the offset in the data is their low bits. A message exists from the
 * moment that `tail` passes it and until `head` does: each is one store, so a process killed at any instruction leaves
 * whole messages only, and its successor continues at the index that it finds. A handle keeps no index of its own side
 * and takes what it remembers of the other side for a lower bound: it is never out of date, even across a fork.
 *
 * Nothing read from the shared page is trusted: an index or header that cannot be true gives AN_RING_DAMAGED, and no
 * access leaves the two mappings. Each word is read once, so that what was checked is what is used.
 */
#ifndef ACTORNET_RING_H
#define ACTORNET_RING_H

#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define AN_LINE 128 /* x86-64 fetches lines of 64 bytes in pairs; some arm64 cores have lines of 128 */

#define AN_RING_MAGIC UINT64_C(0x31676e6972746361) /* "actring1" */
#define AN_RING_HEADER_BYTES 8
#define AN_RING_NAME_BYTES 56

enum { AN_RING_DAMAGED = -1, AN_RING_TOO_LARGE = -2 };

struct an_ring_page {
    uint64_t magic;
    char name[AN_RING_NAME_BYTES];
    _Alignas(AN_LINE) uint64_t tail; /* written by the producer */
    uint64_t full;                   /* pushes refused for want of room */
    _Alignas(AN_LINE) uint64_t head; /* written by the consumer */
    _Alignas(AN_LINE) uint64_t sleep; /* odd: the consumer sleeps. Each sleep has another number. */
};

/* One process's handle. */
struct an_ring {
    struct an_ring_page *page;
    uint8_t *data;
    uint64_t capacity;
    uint64_t head_seen, tail_seen; /* the other side's index when last read: saves its cache line */
    uint64_t span;                 /* bytes that the peeked message takes; 0: none peeked */
};

_Static_assert(sizeof(struct an_ring_page) <= 4096, "the indices fit in the smallest page");

/* Maps the file. 0, or -1 with errno; EINVAL: its size or first word is not that of a ring. */
static inline int an_ring_map(struct an_ring *ring, int fd)
{
    struct stat file;
    size_t page_bytes = (size_t)sysconf(_SC_PAGESIZE);
    if (fstat(fd, &file) < 0)
        return -1;
    size_t capacity = (size_t)file.st_size - page_bytes;
    if (file.st_size < (off_t)(2 * page_bytes) || file.st_size > INT32_MAX || (capacity & (capacity - 1))) {
        errno = EINVAL;
        return -1;
    }
    /* Reserve the addresses first: the fixed mappings then replace nothing but our own. */
    uint8_t *base = mmap(NULL, page_bytes + 2 * capacity, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED)
        return -1;
    uint8_t *again = base + page_bytes + capacity;
    int shared = MAP_SHARED | MAP_FIXED, access = PROT_READ | PROT_WRITE, error = 0;
    if (mmap(base, page_bytes + capacity, access, shared, fd, 0) == MAP_FAILED
        || mmap(again, capacity, access, shared, fd, (off_t)page_bytes) == MAP_FAILED)
        error = errno;
    else if (((struct an_ring_page *)base)->magic != AN_RING_MAGIC)
        error = EINVAL;
    if (error) {
        munmap(base, page_bytes + 2 * capacity);
        errno = error;
        return -1;
    }
    *ring = (struct an_ring){.page = (struct an_ring_page *)base, .data = base + page_bytes, .capacity = capacity};
    return 0;
}

static inline void an_ring_unmap(struct an_ring *ring)
{
    if (ring->page)
        munmap(ring->page, (size_t)(ring->data - (uint8_t *)ring->page) + 2 * ring->capacity);
    ring->page = NULL;
}

static inline uint64_t an_ring_span(uint64_t length)
{
    return AN_RING_HEADER_BYTES + ((length + 7) & ~UINT64_C(7));
}

/* The header holds the length, and beside it a word that depends on length and position: stale or foreign bytes where a
 * header should be are found, not followed. */
static inline uint64_t an_ring_header(uint64_t position, uint32_t length)
{
    return (uint64_t)((uint32_t)(position >> 3) ^ length ^ UINT32_C(0x52494e47)) << 32 | length;
}

/* Producer: appends one message made of two parts (`b` may be empty). 1, 0 when full, AN_RING_TOO_LARGE when it could
 * never fit, AN_RING_DAMAGED. */
static inline int an_ring_push(struct an_ring *ring, const uint8_t *a, size_t a_bytes, const uint8_t *b, size_t b_bytes)
{
    struct an_ring_page *page = ring->page;
    uint64_t capacity = ring->capacity;
    if (a_bytes > capacity || b_bytes > capacity || an_ring_span(a_bytes + b_bytes) > capacity)
        return AN_RING_TOO_LARGE;
    uint64_t span = an_ring_span(a_bytes + b_bytes);
    uint64_t tail = __atomic_load_n(&page->tail, __ATOMIC_RELAXED);
    if (tail - ring->head_seen > capacity - span) {
        ring->head_seen = __atomic_load_n(&page->head, __ATOMIC_ACQUIRE);
        if (tail - ring->head_seen > capacity)
            return AN_RING_DAMAGED;
        if (tail - ring->head_seen > capacity - span) {
            __atomic_store_n(&page->full, __atomic_load_n(&page->full, __ATOMIC_RELAXED) + 1, __ATOMIC_RELAXED);
            return 0;
        }
    }
    if (tail & 7)
        return AN_RING_DAMAGED;
    uint8_t *to = ring->data + (tail & (capacity - 1));
    *(uint64_t *)to = an_ring_header(tail, (uint32_t)(a_bytes + b_bytes));
    if (a_bytes)
        memcpy(to + AN_RING_HEADER_BYTES, a, a_bytes);
    if (b_bytes)
        memcpy(to + AN_RING_HEADER_BYTES + a_bytes, b, b_bytes);
    __atomic_store_n(&page->tail, tail + span, __ATOMIC_RELEASE);
    return 1;
}

/* Consumer: the index of the oldest message. */
static inline uint64_t an_ring_head(const struct an_ring *ring)
{
    return __atomic_load_n(&ring->page->head, __ATOMIC_RELAXED);
}

/* Consumer: the message at a position that `an_ring_head` gave, or that many spans behind it. Returns its span, 0 when
 * there is none, or AN_RING_DAMAGED. The message stays until its position is released. */
static inline int64_t an_ring_read(struct an_ring *ring, uint64_t position, const uint8_t **message, size_t *length)
{
    uint64_t used = ring->tail_seen - position;
    if (used - 1 >= ring->capacity) { /* none that we know of (0), or what we know is older than `position` */
        ring->tail_seen = __atomic_load_n(&ring->page->tail, __ATOMIC_ACQUIRE);
        used = ring->tail_seen - position;
        if (used == 0)
            return 0;
    }
    if (used > ring->capacity || (position | used) & 7)
        return AN_RING_DAMAGED;
    const uint8_t *from = ring->data + (position & (ring->capacity - 1));
    uint64_t header = __atomic_load_n((const uint64_t *)from, __ATOMIC_RELAXED);
    uint64_t span = an_ring_span((uint32_t)header);
    if (header != an_ring_header(position, (uint32_t)header) || span > used)
        return AN_RING_DAMAGED;
    *message = from + AN_RING_HEADER_BYTES;
    *length = (uint32_t)header;
    return (int64_t)span;
}

/* Consumer: gives back the room before `position`. */
static inline void an_ring_release(struct an_ring *ring, uint64_t position)
{
    __atomic_store_n(&ring->page->head, position, __ATOMIC_RELEASE);
    ring->span = 0;
}

/* Consumer: the oldest message: 1, 0 when there is none, or AN_RING_DAMAGED. */
static inline int an_ring_peek(struct an_ring *ring, const uint8_t **message, size_t *length)
{
    int64_t span = an_ring_read(ring, an_ring_head(ring), message, length);
    ring->span = span > 0 ? (uint64_t)span : 0;
    return span > 0 ? 1 : (int)span;
}

/* Consumer: drops the message that was peeked last; without one does nothing. */
static inline void an_ring_advance(struct an_ring *ring)
{
    an_ring_release(ring, an_ring_head(ring) + ring->span);
}

/* Consumer: drops every message, damaged ones included. 0, or AN_RING_DAMAGED: `tail` itself is no index. */
static inline int an_ring_clear(struct an_ring *ring)
{
    uint64_t tail = __atomic_load_n(&ring->page->tail, __ATOMIC_ACQUIRE);
    if (tail & 7)
        return AN_RING_DAMAGED;
    an_ring_release(ring, tail);
    return 0;
}

/* Anyone: bytes used by messages; exact for producer and consumer. */
static inline uint64_t an_ring_used(const struct an_ring *ring)
{
    uint64_t head = __atomic_load_n(&ring->page->head, __ATOMIC_ACQUIRE); /* first: `tail` is then not behind it */
    uint64_t used = __atomic_load_n(&ring->page->tail, __ATOMIC_ACQUIRE) - head;
    return used < ring->capacity ? used : ring->capacity;
}

/* Sleeping. The consumer says that it sleeps and then looks for messages; the producer publishes messages and then looks
 * for a sleeper. With a full fence between the two on both sides, at least one of them sees the other.
 *
 * The producer ends the sleep that it saw only after it has written the eventfd: killed in between, it leaves the sleep
 * declared for its successor. Sleeps are numbered, so a late producer cannot end the next one. */

/* Consumer: 1: now wait on the eventfd, then call an_ring_sleep_end; 0: messages wait, do not sleep. */
static inline int an_ring_sleep_begin(struct an_ring *ring)
{
    uint64_t number = (__atomic_load_n(&ring->page->sleep, __ATOMIC_RELAXED) | 1) + 2;
    __atomic_store_n(&ring->page->sleep, number, __ATOMIC_RELAXED);
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    if (__atomic_load_n(&ring->page->tail, __ATOMIC_RELAXED) == an_ring_head(ring))
        return 1;
    __atomic_store_n(&ring->page->sleep, number + 1, __ATOMIC_RELAXED);
    return 0;
}

/* Consumer: awake; also empties the eventfd. */
static inline void an_ring_sleep_end(struct an_ring *ring, int wake_fd)
{
    uint64_t number = __atomic_load_n(&ring->page->sleep, __ATOMIC_RELAXED), writes;
    if (number & 1)
        __atomic_store_n(&ring->page->sleep, number + 1, __ATOMIC_RELAXED);
    if (read(wake_fd, &writes, sizeof writes) < 0) {
        /* EAGAIN: woken by something else */
    }
}

/* Producer, once behind a burst of pushes: 1 if it had to wake the consumer. */
static inline int an_ring_wake(struct an_ring *ring, int wake_fd)
{
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    uint64_t number = __atomic_load_n(&ring->page->sleep, __ATOMIC_RELAXED), one = 1;
    if (!(number & 1))
        return 0;
    if (write(wake_fd, &one, sizeof one) < 0) {
        /* EAGAIN: the eventfd's count is at its maximum, so it is readable */
    }
    __atomic_compare_exchange_n(&ring->page->sleep, &number, number + 1, 0, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
    return 1;
}

#endif
