/* One AF_XDP socket: its UMEM and its four rings, by the kernel's interface alone (Documentation/networking/af_xdp.rst).
 *
 * The UMEM's first half is for reception: its chunks are in the fill ring, in the RX ring, or with the core, which gives
 * them back before its next burst. The second half is for transmission: chunks are free, or with the kernel.
 */
#ifndef ACTORNET_XSK_H
#define ACTORNET_XSK_H

#include <errno.h>
#include <linux/if_ether.h>
#include <linux/if_xdp.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "gso.h"

#ifndef XDP_USE_SG
#define XDP_USE_SG (1 << 4)
#endif
#ifndef XDP_PKT_CONTD
#define XDP_PKT_CONTD (1 << 0)
#endif
#define AN_XSK_CHUNK 4096u
#define AN_XSK_TX_ATTEMPTS 64 /* wake-ups of the kernel for one burst: it takes some 32 frames at each */

/* Frames that did not go as they should. */
struct an_xsk_counts {
    uint64_t rx_truncated; /* in more chunks than a frame may have */
    uint64_t tx_full;      /* no room in the ring after AN_XSK_TX_ATTEMPTS */
    uint64_t tx_oversized; /* longer than the MTU, and not to be cut */
    uint64_t tx_refused;   /* shorter than an Ethernet header */
};

struct an_xsk_ring {
    uint32_t *producer, *consumer, *flags;
    void *descriptors;
    uint32_t mask;
    void *map;
    size_t map_bytes;
};

struct an_xsk {
    int fd;
    int many_chunks;   /* a frame may take several (XDP_USE_SG) */
    uint32_t queue, frames, burst;
    uint8_t *umem;
    uint8_t *whole;    /* burst x whole_bytes: frames that came in several chunks */
    uint8_t *scratch;  /* whole_bytes: a segment on its way to its chunks */
    uint32_t whole_bytes;
    uint64_t *held;    /* chunks of the last burst */
    uint32_t held_count, held_room;
    uint64_t *idle;    /* free chunks for transmission */
    uint32_t idle_count;
    struct an_xsk_ring fill, completion, rx, tx;
    struct an_xsk_counts counts;
};

static inline int an_xsk_map_ring(int fd, struct an_xsk_ring *ring, const struct xdp_ring_offset *at, uint32_t size,
                                  size_t descriptor_bytes, uint64_t page)
{
    ring->map_bytes = at->desc + size * descriptor_bytes;
    ring->map = mmap(NULL, ring->map_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, (off_t)page);
    if (ring->map == MAP_FAILED) {
        ring->map = NULL;
        return -errno;
    }
    ring->producer = (uint32_t *)((uint8_t *)ring->map + at->producer);
    ring->consumer = (uint32_t *)((uint8_t *)ring->map + at->consumer);
    ring->flags = (uint32_t *)((uint8_t *)ring->map + at->flags);
    ring->descriptors = (uint8_t *)ring->map + at->desc;
    ring->mask = size - 1;
    return 0;
}

static inline void an_xsk_close(struct an_xsk *s)
{
    struct an_xsk_ring *rings[] = {&s->fill, &s->completion, &s->rx, &s->tx};
    for (int i = 0; i < 4; i++)
        if (rings[i]->map)
            munmap(rings[i]->map, rings[i]->map_bytes);
    if (s->fd >= 0)
        close(s->fd);
    if (s->umem)
        munmap(s->umem, (size_t)2 * s->frames * AN_XSK_CHUNK);
    if (s->whole)
        munmap(s->whole, (size_t)(s->burst + 1) * s->whole_bytes);
    free(s->held);
    free(s->idle);
    memset(s, 0, sizeof *s);
    s->fd = -1;
}

/* Gives the chunk back to the kernel for reception. */
static inline void an_xsk_refill(struct an_xsk *s, uint64_t address)
{
    uint32_t at = *s->fill.producer;
    ((uint64_t *)s->fill.descriptors)[at & s->fill.mask] = address & ~(uint64_t)(AN_XSK_CHUNK - 1);
    __atomic_store_n(s->fill.producer, at + 1, __ATOMIC_RELEASE);
}

/* Opens a socket with `frames` (a power of two) chunks in each direction, not bound yet. -errno if the kernel refuses. */
static inline int an_xsk_open(struct an_xsk *s, uint32_t frames, uint32_t burst, uint32_t frame_bytes_max)
{
    struct xdp_umem_reg umem = {.len = (uint64_t)2 * frames * AN_XSK_CHUNK, .chunk_size = AN_XSK_CHUNK};
    struct xdp_mmap_offsets at;
    socklen_t at_bytes = sizeof at;
    int error = 0;
    memset(s, 0, sizeof *s);
    s->frames = frames;
    s->burst = burst;
    s->whole_bytes = (frame_bytes_max + 63) & ~63u;
    s->held_room = frames;
    s->fd = socket(AF_XDP, SOCK_RAW | SOCK_CLOEXEC, 0);
    if (s->fd < 0)
        return -errno;
    s->umem = mmap(NULL, umem.len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    s->whole = mmap(NULL, (size_t)(burst + 1) * s->whole_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    s->held = calloc(s->held_room, sizeof *s->held);
    s->idle = calloc(frames, sizeof *s->idle);
    if (s->umem == MAP_FAILED)
        s->umem = NULL;
    if (s->whole == MAP_FAILED)
        s->whole = NULL;
    s->scratch = s->whole ? s->whole + (size_t)burst * s->whole_bytes : NULL;
    if (!s->umem || !s->whole || !s->held || !s->idle)
        error = -ENOMEM;
    umem.addr = (uint64_t)(uintptr_t)s->umem;
    if (!error && (setsockopt(s->fd, SOL_XDP, XDP_UMEM_REG, &umem, sizeof umem) < 0 ||
                   setsockopt(s->fd, SOL_XDP, XDP_UMEM_FILL_RING, &frames, sizeof frames) < 0 ||
                   setsockopt(s->fd, SOL_XDP, XDP_UMEM_COMPLETION_RING, &frames, sizeof frames) < 0 ||
                   setsockopt(s->fd, SOL_XDP, XDP_RX_RING, &frames, sizeof frames) < 0 ||
                   setsockopt(s->fd, SOL_XDP, XDP_TX_RING, &frames, sizeof frames) < 0 ||
                   getsockopt(s->fd, SOL_XDP, XDP_MMAP_OFFSETS, &at, &at_bytes) < 0))
        error = -errno;
    if (!error && at_bytes != sizeof at)
        error = -ENOPROTOOPT; /* before need-wakeup, Linux 5.4 */
    if (!error)
        error = an_xsk_map_ring(s->fd, &s->fill, &at.fr, frames, 8, XDP_UMEM_PGOFF_FILL_RING);
    if (!error)
        error = an_xsk_map_ring(s->fd, &s->completion, &at.cr, frames, 8, XDP_UMEM_PGOFF_COMPLETION_RING);
    if (!error)
        error = an_xsk_map_ring(s->fd, &s->rx, &at.rx, frames, sizeof(struct xdp_desc), XDP_PGOFF_RX_RING);
    if (!error)
        error = an_xsk_map_ring(s->fd, &s->tx, &at.tx, frames, sizeof(struct xdp_desc), XDP_PGOFF_TX_RING);
    if (error) {
        an_xsk_close(s);
        return error;
    }
    for (uint32_t i = 0; i < frames; i++) {
        an_xsk_refill(s, (uint64_t)i * AN_XSK_CHUNK);
        s->idle[s->idle_count++] = (uint64_t)(frames + i) * AN_XSK_CHUNK;
    }
    return 0;
}

/* Binds to a queue of the interface; the kernel takes its driver's zero-copy mode where there is one. */
static inline int an_xsk_bind(struct an_xsk *s, uint32_t ifindex, uint32_t queue)
{
    struct sockaddr_xdp address = {.sxdp_family = AF_XDP, .sxdp_ifindex = ifindex, .sxdp_queue_id = queue};
    static const uint16_t flags[] = {XDP_USE_NEED_WAKEUP | XDP_USE_SG, XDP_USE_NEED_WAKEUP}; /* SG: Linux 6.6 */
    for (int i = 0; i < 2; i++) {
        address.sxdp_flags = flags[i];
        if (bind(s->fd, (struct sockaddr *)&address, sizeof address) == 0) {
            s->queue = queue;
            s->many_chunks = flags[i] & XDP_USE_SG;
            return 0;
        }
        if (errno != EINVAL && errno != EOPNOTSUPP)
            break;
    }
    return -errno;
}

/* How much the kernel may hold of frames on their way: by default it stops after some hundred. */
static inline void an_xsk_send_queue(const struct an_xsk *s, int bytes)
{
    if (setsockopt(s->fd, SOL_SOCKET, SO_SNDBUFFORCE, &bytes, sizeof bytes) < 0)
        setsockopt(s->fd, SOL_SOCKET, SO_SNDBUF, &bytes, sizeof bytes);
}

/* Frames that the kernel had no room for, so far. */
static inline uint64_t an_xsk_dropped(const struct an_xsk *s)
{
    struct xdp_statistics statistics = {0};
    socklen_t bytes = sizeof statistics;
    if (getsockopt(s->fd, SOL_XDP, XDP_STATISTICS, &statistics, &bytes) < 0)
        return 0;
    return statistics.rx_dropped + statistics.rx_ring_full;
}

static inline void an_xsk_release_burst(struct an_xsk *s)
{
    for (uint32_t i = 0; i < s->held_count; i++)
        an_xsk_refill(s, s->held[i]);
    s->held_count = 0;
}

/* Copies a frame's chunks, from descriptor `at` on, to one place. Returns how many there are, 0 if not all are ready yet;
 * `*length` is beyond `whole_bytes` if they are too much for it. */
static inline uint32_t an_xsk_join(struct an_xsk *s, uint32_t at, uint32_t ready, uint8_t *data, uint32_t *length)
{
    const struct xdp_desc *descriptors = s->rx.descriptors;
    *length = 0;
    for (uint32_t i = at; i != ready; i++) {
        const struct xdp_desc *part = &descriptors[i & s->rx.mask];
        if (*length + part->len <= s->whole_bytes)
            memcpy(data + *length, s->umem + part->addr, part->len);
        *length += part->len;
        if (!(part->options & XDP_PKT_CONTD))
            return i - at + 1;
    }
    return 0;
}

/* Takes up to `limit` frames; those of the burst before are the kernel's again. */
static inline int an_xsk_rx(struct an_xsk *s, struct an_packet *packets, int limit, uint8_t port, uint32_t mtu)
{
    uint32_t at = *s->rx.consumer, ready = __atomic_load_n(s->rx.producer, __ATOMIC_ACQUIRE);
    const struct xdp_desc *descriptors = s->rx.descriptors;
    int n = 0;
    an_xsk_release_burst(s);
    if (limit > (int)s->burst)
        limit = (int)s->burst;
    if (at == ready) {
        if (__atomic_load_n(s->fill.flags, __ATOMIC_RELAXED) & XDP_RING_NEED_WAKEUP)
            recvfrom(s->fd, NULL, 0, MSG_DONTWAIT, NULL, NULL);
        return 0;
    }
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    uint64_t time_ns = (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
    while (n < limit && at != ready) {
        const struct xdp_desc *d = &descriptors[at & s->rx.mask];
        uint32_t length = d->len, chunks = 1;
        uint8_t *data = s->umem + d->addr;
        if (d->options & XDP_PKT_CONTD) {
            data = s->whole + (size_t)n * s->whole_bytes;
            chunks = an_xsk_join(s, at, ready, data, &length);
            if (!chunks) /* the kernel publishes a frame's chunks together */
                break;
        }
        if (s->held_count + chunks > s->held_room)
            break;
        for (uint32_t i = 0; i < chunks; i++, at++)
            s->held[s->held_count++] = descriptors[at & s->rx.mask].addr;
        if (length > s->whole_bytes) {
            s->counts.rx_truncated++;
            continue;
        }
        struct an_packet *p = &packets[n++];
        p->data = data;
        p->length = length;
        p->port = port;
        p->flags = 0;
        p->time_ns = time_ns;
        memset(p->vnet, 0, sizeof p->vnet);
        an_gso_find(p, mtu);
    }
    __atomic_store_n(s->rx.consumer, at, __ATOMIC_RELEASE);
    return n;
}

/* Forgets what waits. */
static inline void an_xsk_drain(struct an_xsk *s)
{
    struct an_packet packets[32];
    while (an_xsk_rx(s, packets, 32, 0, 65535) > 0)
        ;
    an_xsk_release_burst(s);
}

static inline void an_xsk_reap(struct an_xsk *s)
{
    uint32_t at = *s->completion.consumer, ready = __atomic_load_n(s->completion.producer, __ATOMIC_ACQUIRE);
    for (; at != ready && s->idle_count < s->frames; at++)
        s->idle[s->idle_count++] = ((uint64_t *)s->completion.descriptors)[at & s->completion.mask];
    __atomic_store_n(s->completion.consumer, at, __ATOMIC_RELEASE);
}

/* Asks the kernel to send what is in the ring. 0, EAGAIN if it did not take all, or what is wrong with the link. */
static inline int an_xsk_kick(struct an_xsk *s)
{
    if (!(__atomic_load_n(s->tx.flags, __ATOMIC_RELAXED) & XDP_RING_NEED_WAKEUP))
        return 0;
    if (sendto(s->fd, NULL, 0, MSG_DONTWAIT, NULL, 0) >= 0)
        return 0;
    return errno == EBUSY || errno == EINTR || errno == ENOBUFS ? EAGAIN : errno;
}

/* One free chunk; asks the kernel to send what is queued, to get one. AN_NONE if it gives none, `*state` says why. */
static inline uint32_t an_xsk_chunk(struct an_xsk *s, int *attempts, int *state)
{
    while (!s->idle_count && *attempts > 0) {
        --*attempts;
        *state = an_xsk_kick(s);
        an_xsk_reap(s);
        if (*state && *state != EAGAIN)
            return AN_NONE;
    }
    return s->idle_count ? (uint32_t)s->idle[--s->idle_count] : AN_NONE;
}

/* Queues one frame of the wire, in as many chunks as it takes; 0 if there is no room for all of it. */
static inline int an_xsk_queue(struct an_xsk *s, const uint8_t *frame, uint32_t length, int *attempts, int *state)
{
    struct xdp_desc *descriptors = s->tx.descriptors;
    uint32_t producer = *s->tx.producer, first = producer;
    for (uint32_t done = 0; done < length;) {
        uint32_t part = length - done < AN_XSK_CHUNK ? length - done : AN_XSK_CHUNK;
        uint32_t chunk = an_xsk_chunk(s, attempts, state);
        if (chunk == AN_NONE) {
            while (producer != first)
                s->idle[s->idle_count++] = descriptors[--producer & s->tx.mask].addr;
            return 0;
        }
        memcpy(s->umem + chunk, frame + done, part);
        done += part;
        descriptors[producer++ & s->tx.mask] =
            (struct xdp_desc){.addr = chunk, .len = part, .options = done < length ? XDP_PKT_CONTD : 0};
    }
    __atomic_store_n(s->tx.producer, producer, __ATOMIC_RELEASE);
    return 1;
}

/* The link went away before the kernel took anything that was queued from `first` on: take it back. */
static inline int an_xsk_retract(struct an_xsk *s, uint32_t first)
{
    struct xdp_desc *descriptors = s->tx.descriptors;
    uint32_t producer = *s->tx.producer;
    if (__atomic_load_n(s->tx.consumer, __ATOMIC_ACQUIRE) != first)
        return 0;
    while (producer != first)
        s->idle[s->idle_count++] = descriptors[--producer & s->tx.mask].addr;
    __atomic_store_n(s->tx.producer, first, __ATOMIC_RELEASE);
    return 1;
}

/* Sends `count` frames, cut and completed as they need it, counting those that cannot be. Returns how many left. Sets
 * `*error` if the link went away, and `*at` to the first frame not treated then. */
static inline int an_xsk_tx(struct an_xsk *s, struct an_packet **packets, int count, uint32_t mtu, int *at, int *error)
{
    uint32_t first = *s->tx.producer;
    int sent = 0, attempts = AN_XSK_TX_ATTEMPTS, state = 0;
    *error = 0;
    an_xsk_reap(s);
    for (*at = 0; *at < count; ++*at) {
        const struct an_packet *p = packets[*at];
        struct an_gso gso;
        int tagged = p->length > 14 && (p->data[12] == 0x81 || p->data[12] == 0x88) && (p->data[13] & 0x57) == 0;
        uint32_t limit = mtu + (tagged ? 18 : 14), length, ok = 1;
        if (limit > (s->many_chunks ? s->whole_bytes : AN_XSK_CHUNK))
            limit = s->many_chunks ? s->whole_bytes : AN_XSK_CHUNK;
        if (an_gso_begin(&gso, p, limit) < 0) {
            s->counts.tx_oversized += p->length >= AN_GSO_ETHERNET;
            s->counts.tx_refused += p->length < AN_GSO_ETHERNET;
            continue;
        }
        if (!gso.header && !gso.csum_offset)
            ok = an_xsk_queue(s, p->data, p->length, &attempts, &state);
        else
            while (ok && (length = an_gso_next(&gso, s->scratch)))
                ok = an_xsk_queue(s, s->scratch, length, &attempts, &state);
        if (state && state != EAGAIN)
            break;
        sent += ok;
        s->counts.tx_full += !ok;
    }
    while (!state || state == EAGAIN) {
        state = an_xsk_kick(s);
        if (state != EAGAIN || --attempts <= 0)
            break;
    }
    if (!state || state == EAGAIN)
        return sent;
    *error = state;
    if (an_xsk_retract(s, first)) {
        *at = 0;
        return 0;
    }
    return sent;
}

#endif
