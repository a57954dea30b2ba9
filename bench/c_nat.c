/* How fast is a source NAT in plain C? The peer of actornet's compiled core: the same work per packet, nothing
 * general.
 *
 *   cc -O3 -std=gnu11 -o c_nat bench/c_nat.c && ./c_nat [flows [seconds]]
 *
 * Prints one JSON object with `mpps`, million packets per second of CPU time on one core, in memory. Like a network card, it
 * copies 64-byte frames (IPv4, UDP) from an array of templates, one per flow in random order, into a ring of buffers;
 * then, a burst of 32 at a time: parse, look up the five-tuple, rewrite source address and port, update both
 * checksums, take one off the TTL, count packets and bytes per flow.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#define BURST 32
#define FRAME_BYTES 64
#define RING_BUFFERS 1024
#define BUFFER_BYTES 2304 /* 2048 of data behind 256 of descriptor and headroom, as DPDK lays them out */

struct tuple {
    uint32_t source, destination; /* network order */
    uint32_t ports;               /* as they lie in the header */
    uint32_t protocol;
};

struct flow { /* one cache line */
    struct tuple tuple;
    uint32_t new_source;
    uint16_t new_port;
    uint16_t used;
    uint16_t ip_delta, udp_delta;
    uint64_t packets, bytes, last_seen_ns;
} __attribute__((aligned(64)));

static struct flow *flows_table;
static uint64_t flows_mask;
static uint64_t dropped;

static uint32_t load32(const void *at)
{
    uint32_t word;
    memcpy(&word, at, 4);
    return word;
}

static uint16_t load16(const void *at)
{
    uint16_t word;
    memcpy(&word, at, 2);
    return word;
}

static uint16_t fold(uint32_t sum)
{
    sum = (sum & 0xffff) + (sum >> 16);
    return (uint16_t)((sum & 0xffff) + (sum >> 16));
}

static uint16_t difference(uint32_t from, uint32_t to)
{
    return fold((uint16_t)~from + (uint32_t)(uint16_t)~(from >> 16) + (to & 0xffff) + (to >> 16));
}

static uint64_t hash(const struct tuple *t)
{
    uint64_t x = ((uint64_t)t->source << 32 | t->destination) * 0x9e3779b97f4a7c15u;
    x = (x ^ x >> 32 ^ ((uint64_t)t->ports << 8 | t->protocol)) * 0xd6e8feb86659fd93u;
    return x ^ x >> 32;
}

/* IPv4 without options and UDP or TCP; anything else is dropped. */
static int parse(const uint8_t *frame, uint32_t length, struct tuple *t)
{
    if (length < 14 + 20 + 20 || load16(frame + 12) != 0x0008 || frame[14] != 0x45 || (load16(frame + 20) & 0xff3f) ||
        (frame[23] != 6 && frame[23] != 17) || __builtin_bswap16(load16(frame + 16)) > length - 14)
        return 0;
    t->source = load32(frame + 26);
    t->destination = load32(frame + 30);
    t->ports = load32(frame + 34);
    t->protocol = frame[23];
    return 1;
}

static struct flow *find(const struct tuple *t, uint64_t at)
{
    for (;; at++) {
        struct flow *f = &flows_table[at & flows_mask];
        if (!f->used || memcmp(&f->tuple, t, sizeof *t) == 0)
            return f;
    }
}

static void insert(const struct tuple *t, uint32_t new_source, uint16_t new_port)
{
    struct flow *f = find(t, hash(t));
    f->tuple = *t;
    f->used = 1;
    f->new_source = new_source;
    f->new_port = new_port;
    f->ip_delta = fold(difference(t->source, new_source) + 0xfffeu); /* -1 of the TTL, the low byte of its word */
    f->udp_delta = fold(difference(t->source, new_source) + difference((uint16_t)t->ports, new_port));
}

static void update(uint8_t *csum, uint16_t delta)
{
    uint16_t updated = (uint16_t)~fold((uint32_t)(uint16_t)~load16(csum) + delta);
    memcpy(csum, &updated, 2);
}

static int rewrite(uint8_t *frame, uint32_t length, struct flow *f, uint64_t now_ns)
{
    if (frame[22] <= 1)
        return 0;
    frame[22]--;
    update(frame + 24, f->ip_delta);
    memcpy(frame + 26, &f->new_source, 4);
    memcpy(frame + 34, &f->new_port, 2);
    if (frame[23] == 6) {
        update(frame + 50, f->udp_delta);
    } else if (load16(frame + 40)) {
        update(frame + 40, f->udp_delta);
        if (!load16(frame + 40))
            memset(frame + 40, 0xff, 2);
    }
    f->packets++;
    f->bytes += length;
    f->last_seen_ns = now_ns;
    return 1;
}

static uint64_t burst(uint8_t **frames, uint64_t now_ns)
{
    struct tuple tuples[BURST];
    uint64_t hashes[BURST], sent = 0;
    int known[BURST];
    for (int i = 0; i < BURST; i++) {
        known[i] = parse(frames[i], FRAME_BYTES, &tuples[i]);
        if (!known[i])
            continue;
        hashes[i] = hash(&tuples[i]);
        __builtin_prefetch(&flows_table[hashes[i] & flows_mask], 1);
    }
    for (int i = 0; i < BURST; i++) {
        struct flow *f = known[i] ? find(&tuples[i], hashes[i]) : NULL;
        if (f && f->used && rewrite(frames[i], FRAME_BYTES, f, now_ns))
            sent++;
        else
            dropped++;
    }
    return sent;
}

static uint64_t now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static uint64_t cpu(void) /* nanoseconds that this process has run: what others take of the machine does not count */
{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static uint16_t sum(const uint8_t *at, int bytes, uint32_t more)
{
    for (int i = 0; i < bytes; i += 2)
        more += load16(at + i);
    return fold(more);
}

static void template(uint8_t *frame, uint32_t number)
{
    static const uint8_t head[] = {2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0, 0x45, 0, 0, 50, 0, 1, 0x40, 0, 64, 17};
    uint32_t source = __builtin_bswap32(0x0a000000u + (number >> 4)), destination = __builtin_bswap32(0xc6336401u);
    uint16_t ports[4] = {__builtin_bswap16((uint16_t)(1024 + (number & 15))), __builtin_bswap16(53),
                         __builtin_bswap16(30), 0};
    memset(frame, 0, FRAME_BYTES);
    memcpy(frame, head, sizeof head);
    memcpy(frame + 26, &source, 4);
    memcpy(frame + 30, &destination, 4);
    memcpy(frame + 34, ports, 8);
    uint16_t ip = (uint16_t)~sum(frame + 14, 20, 0), udp = (uint16_t)~sum(frame + 26, 38, 0x1100 + 0x1e00);
    memcpy(frame + 24, &ip, 2);
    memcpy(frame + 40, &udp, 2);
}

static void *memory(size_t bytes)
{
    void *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED)
        exit((perror("c_nat: memory"), 1));
    madvise(at, bytes, MADV_HUGEPAGE);
    return at;
}

int main(int argc, char **argv)
{
    uint64_t flows = argc > 1 ? strtoull(argv[1], NULL, 10) : 1000;
    double seconds = argc > 2 ? atof(argv[2]) : 1.0;
    if (flows == 0 || flows > 1u << 24 || seconds <= 0)
        return fprintf(stderr, "usage: c_nat [flows, 1 to 16777216 [seconds]]\n"), 2;
    uint64_t slots = 64;
    while (slots < 2 * flows)
        slots *= 2;
    flows_mask = slots - 1;
    flows_table = memory(slots * sizeof *flows_table);
    uint8_t *templates = memory(flows * FRAME_BYTES), *ring = memory(RING_BUFFERS * BUFFER_BYTES);

    uint32_t *order = memory(flows * sizeof *order);
    uint64_t random = 88172645463325252u;
    for (uint32_t i = 0; i < flows; i++) {
        random ^= random << 13, random ^= random >> 7, random ^= random << 17;
        uint32_t other = (uint32_t)(random % (i + 1));
        order[i] = order[other];
        order[other] = i;
    }
    for (uint32_t i = 0; i < flows; i++) {
        struct tuple t;
        template(templates + (uint64_t)order[i] * FRAME_BYTES, i);
        parse(templates + (uint64_t)order[i] * FRAME_BYTES, FRAME_BYTES, &t);
        insert(&t, __builtin_bswap32(0xcb007101u + i / 60000), __builtin_bswap16((uint16_t)(1024 + i % 60000)));
    }

    uint64_t next = 0, slot = 0, packets = 0, begin_ns = 0, used_ns = 0, now_ns = 0, end_ns = UINT64_MAX;
    for (uint64_t bursts = 0; now_ns < end_ns; bursts++) {
        uint8_t *frames[BURST];
        if (bursts == 1000 + 2 * flows / BURST) { /* warm */
            begin_ns = now();
            used_ns = cpu();
            end_ns = begin_ns + (uint64_t)(seconds * 1e9);
            packets = 0;
        }
        for (int i = 0; i < BURST; i++) {
            frames[i] = ring + slot * BUFFER_BYTES + 256;
            memcpy(frames[i], templates + next * FRAME_BYTES, FRAME_BYTES);
            slot = slot + 1 == RING_BUFFERS ? 0 : slot + 1;
            next = next + 1 == flows ? 0 : next + 1;
        }
        now_ns = now();
        packets += burst(frames, now_ns);
    }
    used_ns = cpu() - used_ns;
    for (int i = 0; i < RING_BUFFERS; i++) { /* every frame left behind must be right */
        const uint8_t *frame = ring + (uint64_t)i * BUFFER_BYTES + 256;
        if (sum(frame + 14, 20, 0) != 0xffff || sum(frame + 26, 38, 0x1100 + 0x1e00) != 0xffff || frame[22] != 63)
            return fprintf(stderr, "c_nat: a rewritten frame is wrong\n"), 1;
    }
    printf("{\"name\": \"c_nat\", \"flows\": %llu, \"packets\": %llu, \"dropped\": %llu, \"seconds\": %.3f, "
           "\"mpps\": %.2f}\n",
           (unsigned long long)flows, (unsigned long long)packets, (unsigned long long)dropped,
           (double)used_ns / 1e9, (double)packets * 1e3 / (double)used_ns);
    return 0;
}
