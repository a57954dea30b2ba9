/* A burst in and a burst out of a Linux packet socket (packet(7)).
 *
 * Frames are taken with recvmmsg rather than from a ring. TPACKET_V3 hands over the first packet of a quiet link only
 * when its block is retired, 1 ms later at best. TPACKET_V2 together with PACKET_VNET_HDR loses a ring slot for ever,
 * and with it the ring, as the kernel waits for that slot, when a frame comes whose segmentation the header cannot
 * express: a virtual machine's guest can send those at will.
 *
 * Every frame is preceded by the 10 bytes of a virtio_net_hdr (PACKET_VNET_HDR): virtual interfaces hand over frames of
 * up to 64 KiB that are yet to be cut, with checksums yet to be completed, and take them back so.
 */
#ifndef ACTORNET_AF_PACKET_H
#define ACTORNET_AF_PACKET_H

#include <errno.h>
#include <linux/filter.h>
#include <linux/if_packet.h>
#include <linux/virtio_net.h>
#include <poll.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>

#include "gso.h"

#define AN_VNET_BYTES sizeof(struct virtio_net_hdr)
#define AN_ETHERNET_BYTES 14
#define AN_VLAN_BYTES 4
#define AN_FRAME_OFFSET 66 /* of a frame in its room: behind a vnet header, with room for a VLAN tag, IP aligned */
#define AN_CONTROL_BYTES CMSG_SPACE(sizeof(struct tpacket_auxdata))
#define AN_TX_ATTEMPTS 4 /* of one burst while the kernel's queue is full */
#define AN_TX_WAIT_NS 50000

_Static_assert(AN_VNET_BYTES == 10, "the header that PACKET_VNET_HDR stands for");

/* Frames that did not go as they should. */
struct an_af_counts {
    uint64_t rx_truncated; /* longer than the room: BIG TCP */
    uint64_t rx_refused;   /* the kernel could not express them, or reported another error */
    uint64_t tx_full;      /* no room in the kernel after AN_TX_ATTEMPTS */
    uint64_t tx_oversized; /* longer than the interface's MTU */
    uint64_t tx_refused;   /* malformed, or forbidden by a filter */
};

struct an_af_packet {
    int fd;
    int burst;
    uint8_t *rooms; /* burst x room_bytes */
    size_t room_bytes;
    struct mmsghdr *rx;
    struct iovec *rx_at;
    uint8_t *control; /* burst x AN_CONTROL_BYTES */
    struct mmsghdr *tx;
    struct iovec *tx_at; /* two per frame: vnet header, frame */
    uint8_t *segment;    /* room_bytes */
    struct an_af_counts counts;
};

static inline int an_af_allocate(struct an_af_packet *s, int burst, size_t frame_bytes_max)
{
    /* An odd number of cache lines, so that the frames of a burst do not compete for the same sets of the cache. */
    s->room_bytes = ((AN_FRAME_OFFSET + frame_bytes_max + 63) / 64 | 1) * 64;
    s->burst = burst;
    s->rooms = mmap(NULL, burst * s->room_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE,
                    -1, 0);
    s->rx = calloc(burst, sizeof *s->rx);
    s->rx_at = calloc(burst, sizeof *s->rx_at);
    s->control = calloc(burst, AN_CONTROL_BYTES);
    s->tx = calloc(burst, sizeof *s->tx);
    s->tx_at = calloc(2 * burst, sizeof *s->tx_at);
    s->segment = malloc(s->room_bytes);
    if (!s->segment || s->rooms == MAP_FAILED || !s->rx || !s->rx_at || !s->control || !s->tx || !s->tx_at)
        return -ENOMEM;
    for (int i = 0; i < burst; i++) {
        s->rx_at[i].iov_base = s->rooms + i * s->room_bytes + AN_FRAME_OFFSET - AN_VNET_BYTES;
        s->rx_at[i].iov_len = AN_VNET_BYTES + frame_bytes_max;
        s->rx[i].msg_hdr.msg_iov = &s->rx_at[i];
        s->rx[i].msg_hdr.msg_iovlen = 1;
        s->rx[i].msg_hdr.msg_control = s->control + i * AN_CONTROL_BYTES;
        s->tx[i].msg_hdr.msg_iov = &s->tx_at[2 * i];
        s->tx[i].msg_hdr.msg_iovlen = 2;
    }
    return 0;
}

static inline void an_af_free(struct an_af_packet *s)
{
    if (s->rooms && s->rooms != MAP_FAILED)
        munmap(s->rooms, s->burst * s->room_bytes);
    free(s->rx);
    free(s->rx_at);
    free(s->control);
    free(s->tx);
    free(s->tx_at);
    free(s->segment);
}

/* The link is down or gone. */
static inline int an_af_link_error(int error)
{
    return error == ENETDOWN || error == ENXIO || error == ENODEV;
}

static inline void an_af_drain(int fd)
{
    uint8_t start[64];
    while (recv(fd, start, sizeof start, MSG_DONTWAIT) >= 0 || errno == EINVAL || errno == EINTR ||
           an_af_link_error(errno))
        ;
}

/* Closes the gate in front of the socket: a filter refuses every frame, and what waits is thrown away. That is a short
 * system call; binding late would be as short, but a bound socket can only be unbound by closing it, which waits for the
 * kernel's grace period, milliseconds. */
static inline int an_af_close_gate(int fd)
{
    struct sock_filter refuse = {.code = BPF_RET | BPF_K, .k = 0};
    struct sock_fprog program = {.len = 1, .filter = &refuse};
    if (setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program) < 0)
        return -errno;
    an_af_drain(fd);
    return 0;
}

/* Opens a closed gate for what the filter `code` of `count` instructions passes. Without one for all: to detach a filter
 * takes a fifth of the time that it takes to attach one. */
static inline int an_af_open_gate(int fd, const void *code, int count)
{
    struct sock_fprog program = {.len = (unsigned short)count, .filter = (struct sock_filter *)code};
    an_af_drain(fd);
    if (count ? setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program) < 0
              : setsockopt(fd, SOL_SOCKET, SO_DETACH_FILTER, &count, sizeof count) < 0 && errno != ENOENT)
        return -errno;
    return 0;
}

static inline uint16_t an_af_be16(const uint8_t *at)
{
    return (uint16_t)(at[0] << 8 | at[1]);
}

/* Whether csum_start was counted without the tag that now stands in the frame: older kernels do, newer ones do not.
 * The transport header lies a multiple of 4 bytes (IPv4: the header's length, IPv6: 8) behind the IP header. */
static inline int an_af_start_lacks_tag(const uint8_t *frame, uint32_t length, uint16_t start)
{
    uint32_t l3 = AN_ETHERNET_BYTES;
    uint16_t type = an_af_be16(frame + 12);
    for (int tags = 0; tags < 3 && (type == 0x8100 || type == 0x88a8) && l3 + AN_VLAN_BYTES < length; tags++) {
        type = an_af_be16(frame + l3 + 2);
        l3 += AN_VLAN_BYTES;
    }
    if (type == 0x86dd)
        return (start - l3) % 8 == 4;
    return l3 < length && start + 4u == l3 + (frame[l3] & 15) * 4u;
}

/* Puts back the tag that the kernel took out of the frame (802.1Q 9.3: behind the addresses). */
static inline void an_af_insert_tag(struct an_packet *p, uint16_t tpid, uint16_t tci)
{
    struct virtio_net_hdr vnet;
    if (p->length < AN_ETHERNET_BYTES)
        return;
    p->data -= AN_VLAN_BYTES;
    p->length += AN_VLAN_BYTES;
    memmove(p->data, p->data + AN_VLAN_BYTES, 12);
    p->data[12] = tpid >> 8;
    p->data[13] = tpid & 255;
    p->data[14] = tci >> 8;
    p->data[15] = tci & 255;
    memcpy(&vnet, p->vnet, sizeof vnet);
    if (p->flags & AN_CSUM_PARTIAL && an_af_start_lacks_tag(p->data, p->length, vnet.csum_start)) {
        vnet.csum_start += AN_VLAN_BYTES;
        vnet.hdr_len += AN_VLAN_BYTES;
        memcpy(p->vnet, &vnet, sizeof vnet);
    }
}

static inline void an_af_describe(struct an_packet *p, const struct mmsghdr *message, uint8_t port, uint64_t time_ns)
{
    p->data = (uint8_t *)message->msg_hdr.msg_iov->iov_base + AN_VNET_BYTES;
    p->length = message->msg_len - AN_VNET_BYTES;
    p->port = port;
    p->time_ns = time_ns;
    memcpy(p->vnet, p->data - AN_VNET_BYTES, AN_VNET_BYTES);
    memset(p->vnet + AN_VNET_BYTES, 0, sizeof p->vnet - AN_VNET_BYTES);
    p->flags = p->vnet[0] & VIRTIO_NET_HDR_F_NEEDS_CSUM ? AN_CSUM_PARTIAL : 0;
    const struct cmsghdr *control = CMSG_FIRSTHDR(&message->msg_hdr);
    if (control && control->cmsg_level == SOL_PACKET && control->cmsg_type == PACKET_AUXDATA) {
        const struct tpacket_auxdata *aux = (const void *)CMSG_DATA(control);
        if (aux->tp_status & TP_STATUS_VLAN_VALID)
            an_af_insert_tag(p, aux->tp_status & TP_STATUS_VLAN_TPID_VALID ? aux->tp_vlan_tpid : 0x8100,
                             aux->tp_vlan_tci);
    }
}

/* Takes up to `limit` frames. Returns how many, or -errno if the link went away. */
static inline int an_af_rx(struct an_af_packet *s, struct an_packet *packets, int limit, uint8_t port)
{
    if (limit > s->burst)
        limit = s->burst;
    for (int i = 0; i < limit; i++)
        s->rx[i].msg_hdr.msg_controllen = AN_CONTROL_BYTES;
    int received = recvmmsg(s->fd, s->rx, limit, MSG_DONTWAIT, NULL);
    if (received < 0) {
        if (an_af_link_error(errno))
            return -errno;
        if (errno != EAGAIN && errno != EINTR)
            s->counts.rx_refused++;
        return 0;
    }
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    uint64_t time_ns = now.tv_sec * 1000000000ull + now.tv_nsec;
    int n = 0;
    for (int i = 0; i < received; i++) {
        if (s->rx[i].msg_hdr.msg_flags & MSG_TRUNC || s->rx[i].msg_len < AN_VNET_BYTES)
            s->counts.rx_truncated++;
        else
            an_af_describe(&packets[n++], &s->rx[i], port, time_ns);
    }
    return n;
}

static inline void an_af_prepare(struct an_af_packet *s, struct an_packet **packets, int count)
{
    static const uint8_t complete[AN_VNET_BYTES]; /* nothing left to do for the interface */
    for (int i = 0; i < count; i++) {
        struct iovec *at = &s->tx_at[2 * i];
        at[0].iov_base = packets[i]->flags & AN_CSUM_PARTIAL ? packets[i]->vnet : (void *)complete;
        at[0].iov_len = AN_VNET_BYTES;
        at[1].iov_base = packets[i]->data;
        at[1].iov_len = packets[i]->length;
    }
}

/* Counts a frame that the kernel does not take, and says whether that is because the link went away. */
static inline int an_af_refused(struct an_af_packet *s, int error)
{
    s->counts.tx_full += error == EAGAIN || error == ENOBUFS;
    s->counts.tx_oversized += error == EMSGSIZE;
    s->counts.tx_refused += error != EAGAIN && error != ENOBUFS && error != EMSGSIZE && !an_af_link_error(error);
    return an_af_link_error(error);
}

/* Sends a frame that is to be cut inside its tunnel. Returns whether all of it left; sets `*error` if the link went away. */
static inline int an_af_cut(struct an_af_packet *s, const struct an_packet *p, int *error)
{
    static const uint8_t complete[AN_VNET_BYTES];
    struct iovec parts[2] = {{(void *)complete, AN_VNET_BYTES}, {s->segment, 0}};
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = 2};
    struct an_gso gso;
    int attempts = AN_TX_ATTEMPTS;
    if (an_gso_begin(&gso, p, (uint32_t)s->room_bytes) < 0) {
        s->counts.tx_refused++;
        return 0;
    }
    while ((parts[1].iov_len = an_gso_next(&gso, s->segment))) {
        while (sendmsg(s->fd, &message, MSG_DONTWAIT) < 0) {
            if (errno == EINTR)
                continue;
            if ((errno != EAGAIN && errno != ENOBUFS) || --attempts <= 0) {
                *error = an_af_refused(s, errno) ? errno : 0;
                return 0;
            }
            ppoll(&(struct pollfd){.fd = s->fd, .events = POLLOUT}, 1, &(struct timespec){.tv_nsec = AN_TX_WAIT_NS}, NULL);
        }
    }
    return 1;
}

/* How many of these frames the kernel itself can cut, up to the first that it cannot. */
static inline int an_af_run(struct an_packet **packets, int count)
{
    int n = 0;
    while (n < count && !an_gso_is_tunnel(packets[n]))
        n++;
    return n;
}

/* Sends `count` frames, counting those that cannot be. Returns how many left; sets `*error` if the link went away, and
 * `*at` to the first frame not treated then. */
static inline int an_af_tx(struct an_af_packet *s, struct an_packet **packets, int count, int *at, int *error)
{
    int sent = 0, attempts = AN_TX_ATTEMPTS;
    *error = 0;
    for (*at = 0; *at < count;) {
        int chunk = an_af_run(packets + *at, count - *at < s->burst ? count - *at : s->burst), done = 0;
        if (!chunk) {
            sent += an_af_cut(s, packets[*at], error);
            if (*error)
                return sent;
            ++*at;
            continue;
        }
        an_af_prepare(s, packets + *at, chunk);
        while (done < chunk) {
            int n = sendmmsg(s->fd, s->tx + done, chunk - done, MSG_DONTWAIT);
            if (n > 0) {
                sent += n;
                done += n;
            } else if (errno == EINTR) {
                continue;
            } else if (errno == EAGAIN || errno == ENOBUFS) {
                /* The interface is behind: wait for it a little, for the core has other ports. */
                if (--attempts <= 0) {
                    s->counts.tx_full += count - *at - done;
                    *at = count;
                    return sent;
                }
                if (errno == EAGAIN)
                    ppoll(&(struct pollfd){.fd = s->fd, .events = POLLOUT}, 1,
                          &(struct timespec){.tv_nsec = AN_TX_WAIT_NS}, NULL);
                else
                    sched_yield();
            } else if (an_af_link_error(errno)) {
                *error = errno;
                *at += done;
                return sent;
            } else {
                s->counts.tx_oversized += errno == EMSGSIZE;
                s->counts.tx_refused += errno != EMSGSIZE;
                done++;
            }
        }
        *at += chunk;
    }
    return sent;
}

#endif
