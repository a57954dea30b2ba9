/* Two ways to receive from a packet socket, for bench/receive.py: recvmmsg as ports/af_packet.h does it, and a TPACKET_V3 ring.
 *
 *   c_receive mmsg|ring INTERFACE SECONDS
 *
 * Prints how many frames came in the time, and how long the process used a CPU for them. With SECONDS 0 it answers instead:
 * each frame is sent back as it is, one at a time, until it is killed; what that takes shows how soon a frame is seen. */
#include <arpa/inet.h>
#include <errno.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define BURST 32
#define BLOCK_BYTES (1u << 18)
#define BLOCKS 32u
#define RETIRE_MS 1 /* the least that the kernel takes */

static double now_s(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

static void answer(int fd, const uint8_t *frame, size_t length)
{
    uint8_t copy[2048];
    if (length > sizeof copy || length < 14)
        return;
    memcpy(copy, frame + 6, 6);
    memcpy(copy + 6, frame, 6);
    memcpy(copy + 12, frame + 12, length - 12);
    if (send(fd, copy, length, 0) < 0)
        perror("send");
}

static unsigned long by_mmsg(int fd, double seconds)
{
    static uint8_t rooms[BURST][2048];
    struct mmsghdr messages[BURST] = {0};
    struct iovec at[BURST];
    unsigned long frames = 0;
    for (int i = 0; i < BURST; i++) {
        at[i] = (struct iovec){rooms[i], sizeof rooms[i]};
        messages[i].msg_hdr.msg_iov = &at[i];
        messages[i].msg_hdr.msg_iovlen = 1;
    }
    for (double end = now_s() + seconds; !seconds || now_s() < end;) {
        int n = recvmmsg(fd, messages, BURST, MSG_DONTWAIT, NULL);
        if (n <= 0)
            poll(&(struct pollfd){.fd = fd, .events = POLLIN}, 1, 10);
        for (int i = 0; i < n; i++, frames++)
            if (!seconds)
                answer(fd, rooms[i], messages[i].msg_len);
    }
    return frames;
}

static unsigned long by_ring(int fd, double seconds)
{
    int version = TPACKET_V3;
    struct tpacket_req3 ring = {.tp_block_size = BLOCK_BYTES, .tp_block_nr = BLOCKS, .tp_frame_size = 2048,
                                .tp_frame_nr = BLOCK_BYTES / 2048 * BLOCKS, .tp_retire_blk_tov = RETIRE_MS};
    if (setsockopt(fd, SOL_PACKET, PACKET_VERSION, &version, sizeof version) < 0 ||
        setsockopt(fd, SOL_PACKET, PACKET_RX_RING, &ring, sizeof ring) < 0) {
        perror("TPACKET_V3");
        exit(1);
    }
    uint8_t *blocks = mmap(NULL, (size_t)BLOCK_BYTES * BLOCKS, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (blocks == MAP_FAILED)
        exit(1);
    unsigned long frames = 0;
    unsigned current = 0;
    for (double end = now_s() + seconds; !seconds || now_s() < end;) {
        struct tpacket_block_desc *block = (void *)(blocks + (size_t)current * BLOCK_BYTES);
        if (!(__atomic_load_n(&block->hdr.bh1.block_status, __ATOMIC_ACQUIRE) & TP_STATUS_USER)) {
            poll(&(struct pollfd){.fd = fd, .events = POLLIN}, 1, 10);
            continue;
        }
        struct tpacket3_hdr *frame = (void *)((uint8_t *)block + block->hdr.bh1.offset_to_first_pkt);
        for (unsigned i = 0; i < block->hdr.bh1.num_pkts; i++, frames++) {
            if (!seconds)
                answer(fd, (uint8_t *)frame + frame->tp_mac, frame->tp_snaplen);
            frame = (void *)((uint8_t *)frame + frame->tp_next_offset);
        }
        __atomic_store_n(&block->hdr.bh1.block_status, TP_STATUS_KERNEL, __ATOMIC_RELEASE);
        current = (current + 1) % BLOCKS;
    }
    return frames;
}

int main(int argc, char **argv)
{
    if (argc != 4)
        return 2;
    int fd = socket(AF_PACKET, SOCK_RAW, 0), bytes = 1 << 23, on = 1;
    struct sockaddr_ll address = {.sll_family = AF_PACKET, .sll_protocol = htons(ETH_P_ALL),
                                  .sll_ifindex = (int)if_nametoindex(argv[2])};
    double seconds = atof(argv[3]);
    if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &bytes, sizeof bytes) < 0 ||
        setsockopt(fd, SOL_PACKET, PACKET_IGNORE_OUTGOING, &on, sizeof on) < 0) {
        perror("packet socket");
        return 1;
    }
    int ring = !strcmp(argv[1], "ring");
    if (bind(fd, (struct sockaddr *)&address, sizeof address) < 0) {
        perror(argv[2]);
        return 1;
    }
    unsigned long frames = ring ? by_ring(fd, seconds) : by_mmsg(fd, seconds);
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    printf("%lu %.3f\n", frames, (double)(used.ru_utime.tv_sec + used.ru_stime.tv_sec) +
                                     (double)(used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6);
    return 0;
}
