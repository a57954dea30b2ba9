/* A burst in and a burst out of a tap device's queue (tuntap.rst): one system call per frame, there is no other way.
 *
 * Every frame is preceded by a virtio_net_hdr (IFF_VNET_HDR), as with packet sockets. */
#ifndef ACTORNET_TAP_H
#define ACTORNET_TAP_H

#include <errno.h>
#include <linux/virtio_net.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "gso.h"

#define AN_TAP_VNET_BYTES sizeof(struct virtio_net_hdr)
#define AN_TAP_FRAME_OFFSET 66 /* of a frame in its room: behind a vnet header, IP aligned */

struct an_tap_counts {
    uint64_t rx_truncated; /* longer than the room */
    uint64_t tx_full;      /* the kernel takes no more */
    uint64_t tx_refused;   /* malformed */
};

struct an_tap {
    int fd;
    int burst;
    uint8_t *rooms, *segment;
    size_t room_bytes, frame_bytes_max;
    struct an_tap_counts counts;
};

static inline int an_tap_allocate(struct an_tap *s, int burst, size_t frame_bytes_max)
{
    s->burst = burst;
    s->frame_bytes_max = frame_bytes_max;
    s->room_bytes = ((AN_TAP_FRAME_OFFSET + frame_bytes_max + 1 + 63) / 64 | 1) * 64;
    s->rooms = mmap(NULL, (size_t)burst * s->room_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (s->rooms == MAP_FAILED)
        s->rooms = NULL;
    s->segment = malloc(s->room_bytes);
    return s->rooms && s->segment ? 0 : -ENOMEM;
}

static inline void an_tap_free(struct an_tap *s)
{
    if (s->rooms)
        munmap(s->rooms, (size_t)s->burst * s->room_bytes);
    s->rooms = NULL;
    free(s->segment);
    s->segment = NULL;
}

/* EIO: the interface is down. EBADFD: it is gone. */
static inline int an_tap_link_error(int error)
{
    return error == EIO || error == EBADFD || error == ENXIO || error == ENODEV;
}

/* Takes up to `limit` frames. Returns how many, or -errno if the link went away. */
static inline int an_tap_rx(struct an_tap *s, struct an_packet *packets, int limit, uint8_t port)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    uint64_t time_ns = (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
    int n = 0;
    while (n < limit && n < s->burst) {
        uint8_t *at = s->rooms + (size_t)n * s->room_bytes + AN_TAP_FRAME_OFFSET - AN_TAP_VNET_BYTES;
        ssize_t bytes = read(s->fd, at, AN_TAP_VNET_BYTES + s->frame_bytes_max + 1);
        if (bytes < 0 && errno == EINTR)
            continue;
        if (bytes < 0)
            return n == 0 && an_tap_link_error(errno) ? -errno : n;
        if ((size_t)bytes <= AN_TAP_VNET_BYTES || (size_t)bytes > AN_TAP_VNET_BYTES + s->frame_bytes_max) {
            s->counts.rx_truncated++;
            continue;
        }
        struct an_packet *p = &packets[n++];
        p->data = at + AN_TAP_VNET_BYTES;
        p->length = (uint32_t)((size_t)bytes - AN_TAP_VNET_BYTES);
        p->port = port;
        p->time_ns = time_ns;
        memset(p->vnet, 0, sizeof p->vnet);
        memcpy(p->vnet, at, AN_TAP_VNET_BYTES);
        p->flags = at[0] & VIRTIO_NET_HDR_F_NEEDS_CSUM ? AN_CSUM_PARTIAL : 0;
    }
    return n;
}

/* Writes one frame behind a virtio header; 0, or an errno. */
static inline int an_tap_write(struct an_tap *s, const uint8_t *vnet, const uint8_t *frame, size_t length)
{
    struct iovec parts[] = {{(void *)vnet, AN_TAP_VNET_BYTES}, {(void *)frame, length}};
    ssize_t written;
    do
        written = writev(s->fd, parts, 2);
    while (written < 0 && errno == EINTR);
    return written < 0 ? errno : 0;
}

/* Sends `count` frames, counting those that cannot be. Returns how many left; sets `*error` if the link went away, and
 * `*at` to the first frame not treated then. */
static inline int an_tap_tx(struct an_tap *s, struct an_packet **packets, int count, int *at, int *error)
{
    static const uint8_t complete[AN_TAP_VNET_BYTES]; /* nothing left to do */
    int sent = 0;
    *error = 0;
    for (*at = 0; *at < count; ++*at) {
        struct an_packet *p = packets[*at];
        struct an_gso gso;
        uint32_t length;
        int failed = 0;
        if (!an_gso_is_tunnel(p))
            failed = an_tap_write(s, p->flags & AN_CSUM_PARTIAL ? p->vnet : complete, p->data, p->length);
        else if (an_gso_begin(&gso, p, (uint32_t)s->room_bytes) < 0)
            failed = EINVAL;
        else
            while (!failed && (length = an_gso_next(&gso, s->segment)))
                failed = an_tap_write(s, complete, s->segment, length);
        if (!failed) {
            sent++;
        } else if (an_tap_link_error(failed)) {
            *error = failed;
            return sent;
        } else {
            int full = failed == EAGAIN || failed == ENOBUFS || failed == ENOMEM;
            s->counts.tx_full += full;
            s->counts.tx_refused += !full;
        }
    }
    return sent;
}

#endif
