/* Load and floor of `python -m bench.forward`.
 *
 *   c_traffic generate INTERFACE SECONDS FLOWS SOURCE-MAC DESTINATION-MAC [PER-SECOND]
 *                                        60-byte UDP, as fast as the kernel takes it or at that rate
 *   c_traffic af_packet FIRST SECOND     frames from one interface to the other as they are, by recvmmsg and sendmmsg
 *   c_traffic af_xdp FIRST SECOND        the same by AF_XDP, native if the driver can
 */
#include <arpa/inet.h>
#include <linux/bpf.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <poll.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>

#include "af_packet.h"
#include "xsk.h"

#define BURST 32
#define FRAME_BYTES_MAX 65553

static int fail(const char *what)
{
    perror(what);
    return 1;
}

static int packet_socket(const char *interface, int receives)
{
    struct sockaddr_ll address = {.sll_family = AF_PACKET, .sll_ifindex = (int)if_nametoindex(interface)};
    int fd = socket(AF_PACKET, SOCK_RAW, 0), on = 1, bytes = 1 << 23;
    struct packet_mreq promiscuous = {.mr_ifindex = address.sll_ifindex, .mr_type = PACKET_MR_PROMISC};
    address.sll_protocol = receives ? htons(ETH_P_ALL) : 0;
    setsockopt(fd, SOL_PACKET, PACKET_VNET_HDR, &on, sizeof on);
    setsockopt(fd, SOL_PACKET, PACKET_IGNORE_OUTGOING, &on, sizeof on);
    setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &bytes, sizeof bytes);
    setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &bytes, sizeof bytes);
    if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof address) < 0)
        return -1;
    setsockopt(fd, SOL_PACKET, PACKET_ADD_MEMBERSHIP, &promiscuous, sizeof promiscuous);
    return fd;
}

static int generate(const char *interface, double seconds, unsigned flows, const char *source, const char *destination,
                    double per_second)
{
    struct sockaddr_ll address = {.sll_family = AF_PACKET, .sll_ifindex = (int)if_nametoindex(interface)};
    int fd = socket(AF_PACKET, SOCK_RAW, 0), on = 1;
    setsockopt(fd, SOL_PACKET, PACKET_QDISC_BYPASS, &on, sizeof on);
    if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof address) < 0)
        return fail(interface);
    uint8_t(*frames)[60] = calloc(flows, 60);
    for (unsigned i = 0; i < flows; i++) {
        uint8_t *f = frames[i];
        sscanf(destination, "%hhx:%hhx:%hhx:%hhx:%hhx:%hhx", f, f + 1, f + 2, f + 3, f + 4, f + 5);
        sscanf(source, "%hhx:%hhx:%hhx:%hhx:%hhx:%hhx", f + 6, f + 7, f + 8, f + 9, f + 10, f + 11);
        static const uint8_t ip[] = {8, 0, 0x45, 0, 0, 46, 0, 0, 0x40, 0, 64, 17, 0, 0, 10, 0, 0, 2, 203, 0, 113, 254};
        memcpy(f + 12, ip, sizeof ip);
        an_store16(f + 24, (uint16_t)~an_fold(an_sum(f + 14, 20, 0)));
        an_store16(f + 34, htons((uint16_t)(1024 + i % 60000)));
        an_store16(f + 36, htons((uint16_t)(5000 + i / 60000)));
        an_store16(f + 38, htons(26)); /* without a checksum */
    }
    struct mmsghdr messages[64] = {0};
    struct iovec at[64];
    struct timespec begin, now;
    unsigned long sent = 0, next = 0;
    clock_gettime(CLOCK_MONOTONIC, &begin);
    do {
        for (int i = 0; i < 64; i++) {
            at[i] = (struct iovec){frames[next++ % flows], 60};
            messages[i].msg_hdr.msg_iov = &at[i];
            messages[i].msg_hdr.msg_iovlen = 1;
        }
        int n = sendmmsg(fd, messages, 64, 0);
        sent += n > 0 ? (unsigned long)n : 0;
        if (per_second > 0) {
            double due = (double)begin.tv_nsec / 1e9 + (double)next / per_second;
            struct timespec until = {begin.tv_sec + (time_t)due, (long)((due - (double)(time_t)due) * 1e9)};
            clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL);
        }
        clock_gettime(CLOCK_MONOTONIC, &now);
    } while ((double)(now.tv_sec - begin.tv_sec) + (double)(now.tv_nsec - begin.tv_nsec) / 1e9 < seconds);
    printf("%lu\n", sent);
    return 0;
}

static int forward_af_packet(const char *const *interfaces)
{
    static struct an_af_packet ports[2];
    static struct an_packet burst[BURST];
    struct an_packet *out[BURST];
    struct pollfd waits[2];
    for (int side = 0; side < 2; side++) {
        if (an_af_allocate(&ports[side], BURST, FRAME_BYTES_MAX) < 0)
            return fail("memory");
        waits[side] = (struct pollfd){.fd = ports[side].fd = packet_socket(interfaces[side], 1), .events = POLLIN};
        if (waits[side].fd < 0)
            return fail(interfaces[side]);
    }
    for (int i = 0; i < BURST; i++)
        out[i] = &burst[i];
    puts("ready");
    fflush(stdout);
    for (;;) {
        int taken = 0, at, error;
        for (int side = 0; side < 2; side++) {
            int n = an_af_rx(&ports[side], burst, BURST, 0);
            if (n > 0)
                an_af_tx(&ports[!side], out, n, &at, &error);
            taken += n > 0 ? n : 0;
        }
        if (!taken)
            poll(waits, 2, 100);
    }
}

static int attach(unsigned ifindex, int socket)
{
    union bpf_attr map = {.map_type = BPF_MAP_TYPE_XSKMAP, .key_size = 4, .value_size = 4, .max_entries = 1};
    int map_fd = (int)syscall(SYS_bpf, BPF_MAP_CREATE, &map, sizeof map), key = 0;
    struct bpf_insn program[] = {
        {.code = 0x61, .dst_reg = 2, .src_reg = 1, .off = 16}, {.code = 0x18, .dst_reg = 1, .src_reg = 1, .imm = map_fd},
        {0}, {.code = 0xb7, .dst_reg = 3, .imm = XDP_PASS}, {.code = 0x85, .imm = BPF_FUNC_redirect_map}, {.code = 0x95}};
    union bpf_attr load = {.prog_type = BPF_PROG_TYPE_XDP, .insn_cnt = 6, .insns = (uint64_t)(uintptr_t)program,
                           .license = (uint64_t)(uintptr_t)"MIT"};
    int program_fd = (int)syscall(SYS_bpf, BPF_PROG_LOAD, &load, sizeof load);
    for (unsigned flags = 4; flags >= 2; flags -= 2) { /* in the driver, or generic */
        union bpf_attr link = {.link_create = {.prog_fd = (uint32_t)program_fd, .target_ifindex = ifindex,
                                               .attach_type = BPF_XDP, .flags = flags}};
        if (syscall(SYS_bpf, BPF_LINK_CREATE, &link, sizeof link) >= 0)
            break;
        if (flags == 2)
            return -1;
    }
    union bpf_attr update = {.map_fd = (uint32_t)map_fd, .key = (uint64_t)(uintptr_t)&key,
                             .value = (uint64_t)(uintptr_t)&socket};
    return (int)syscall(SYS_bpf, BPF_MAP_UPDATE_ELEM, &update, sizeof update);
}

static int forward_af_xdp(const char *const *interfaces)
{
    static struct an_xsk ports[2];
    static struct an_packet burst[BURST];
    struct an_packet *out[BURST];
    struct pollfd waits[2];
    for (int side = 0; side < 2; side++) {
        unsigned ifindex = if_nametoindex(interfaces[side]);
        if (packet_socket(interfaces[side], 0) < 0 || an_xsk_open(&ports[side], 2048, BURST, FRAME_BYTES_MAX) < 0 ||
            an_xsk_bind(&ports[side], ifindex, 0) < 0 || attach(ifindex, ports[side].fd) < 0)
            return fail(interfaces[side]);
        an_xsk_send_queue(&ports[side], 1 << 23);
        waits[side] = (struct pollfd){.fd = ports[side].fd, .events = POLLIN};
    }
    for (int i = 0; i < BURST; i++)
        out[i] = &burst[i];
    puts("ready");
    fflush(stdout);
    for (;;) {
        int taken = 0, at, error;
        for (int side = 0; side < 2; side++) {
            int n = an_xsk_rx(&ports[side], burst, BURST, 0, 1500);
            if (n > 0)
                an_xsk_tx(&ports[!side], out, n, 1500, &at, &error);
            taken += n;
        }
        if (!taken)
            poll(waits, 2, 100);
    }
}

int main(int argc, char **argv)
{
    const char *const *interfaces = (const char *const *)argv + 2;
    if ((argc == 7 || argc == 8) && !strcmp(argv[1], "generate"))
        return generate(argv[2], atof(argv[3]), (unsigned)atoi(argv[4]), argv[5], argv[6], argc == 8 ? atof(argv[7]) : 0);
    if (argc == 4 && !strcmp(argv[1], "af_packet"))
        return forward_af_packet(interfaces);
    if (argc == 4 && !strcmp(argv[1], "af_xdp"))
        return forward_af_xdp(interfaces);
    return 2;
}
