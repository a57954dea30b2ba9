/* Frames of any kind, with virtio headers of any kind, through software segmentation and checksum completion. Every frame
 * and every segment lies in an allocation of exactly its room, so that AddressSanitizer sees the first byte beyond it.
 *
 *   cc -g -O1 -std=gnu11 -fsanitize=address,undefined -fno-sanitize-recover=undefined -Iactornet/engine -Iactornet/ports \
 *      -o fuzz_gso tests/fuzz/fuzz_gso.c && ./fuzz_gso ITERATIONS SEED
 *
 * Checked besides: no segment is longer than asked, those of a sound TCP or UDP frame carry its payload in order with right
 * checksums, and what an_gso_find() marks, an_gso_begin() takes. Prints how many frames came to which end.
 */
#include <stdio.h>
#include <stdlib.h>

#include "gso.h"

#define CHECK(condition) \
    do \
        if (!(condition)) { \
            fprintf(stderr, "iteration %llu: %s\n", (unsigned long long)iteration, #condition); \
            exit(1); \
        } \
    while (0)

static uint64_t state, iteration;

static uint64_t next_random(void) /* splitmix64 */
{
    uint64_t z = state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

static uint32_t below(uint32_t bound)
{
    return (uint32_t)(next_random() % bound);
}

static void put16(uint8_t *at, uint32_t value)
{
    at[0] = (uint8_t)(value >> 8);
    at[1] = (uint8_t)value;
}

/* A sound frame with the pseudo-header's sum for a checksum; returns its length, sets where its payload begins. */
static uint32_t make(uint8_t *f, uint32_t *payload_at, int *tcp)
{
    int six = (int)below(2);
    uint32_t l3 = 14 + 4 * below(3), payload = below(3) ? below(3000) : below(60000);
    for (uint32_t i = 0; i < 12; i++)
        f[i] = (uint8_t)next_random();
    for (uint32_t at = 12; at < l3 - 2; at += 4) {
        put16(f + at, 0x8100);
        put16(f + at + 2, below(4096));
    }
    put16(f + l3 - 2, six ? 0x86dd : 0x0800);
    uint8_t *ip = f + l3;
    uint32_t header = six ? 40 : 20 + 4 * below(11);
    *tcp = (int)below(2);
    uint32_t l4_bytes = *tcp ? 20 + 4 * below(11) : 8;
    memset(ip, 1, header + l4_bytes);
    ip[0] = (uint8_t)(six ? 0x60 : 0x40 | header / 4);
    put16(ip + (six ? 4 : 2), (six ? 0 : header) + l4_bytes + payload);
    ip[six ? 6 : 9] = *tcp ? AN_TCP : AN_UDP;
    if (!six)
        put16(ip + 6, 0x4000);
    uint8_t *l4 = ip + header;
    if (*tcp)
        l4[12] = (uint8_t)(l4_bytes / 4 << 4);
    else
        put16(l4 + 4, l4_bytes + payload);
    *payload_at = l3 + header + l4_bytes;
    for (uint32_t i = 0; i < payload; i++)
        f[*payload_at + i] = (uint8_t)next_random();
    an_store16(l4 + (*tcp ? 16 : 6), an_fold(an_pseudo_sum(ip, ip[six ? 6 : 9], l4_bytes + payload)));
    return *payload_at + payload;
}

/* Puts the frame into a tunnel, and returns its new length; its tunnel's checksum, where there is one, is not 0. */
static uint32_t wrap(uint8_t *f, uint32_t length, uint32_t *payload_at)
{
    static uint8_t inner[70000];
    uint32_t kind = below(3), six = below(2), l3 = 14, skip;
    struct an_gso_layout at;
    an_gso_frame(f, length, 0, &at);
    skip = kind == 0 ? 0 : at.l3; /* GTP-U and GRE carry IP */
    memcpy(inner, f + skip, length - skip);
    uint32_t checksum = kind == 2 && below(2), head = kind == 0 ? 16 : kind == 1 ? 16 : checksum ? 8 : 4;
    uint32_t l4 = l3 + (six ? 40 : 20), end = l4 + head + length - skip;
    if (end - l3 > 65535)
        return length;
    put16(f + 12, six ? 0x86dd : 0x0800);
    memset(f + l3, 3, l4 + head - l3);
    f[l3] = six ? 0x60 : 0x45;
    put16(f + l3 + (six ? 4 : 2), six ? end - l4 : end - l3);
    f[l3 + (six ? 6 : 9)] = kind == 2 ? 47 : AN_UDP;
    if (!six)
        put16(f + l3 + 6, 0);
    if (kind == 2) {
        put16(f + l4, checksum ? 0x8000 : 0);
        put16(f + l4 + 2, at.version == 4 ? 0x0800 : 0x86dd);
    } else {
        put16(f + l4 + 2, kind ? 2152 : 4789);
        put16(f + l4 + 4, end - l4);
        put16(f + l4 + 6, below(2) * 0x1234);
        f[l4 + 8] = kind ? 0x30 : 0x08;
        f[l4 + 9] = kind ? 255 : 0;
        put16(f + l4 + 10, end - l4 - 16);
    }
    memcpy(f + l4 + head, inner, length - skip);
    *payload_at += l4 + head - skip;
    return end;
}

/* What carries a segment adds up. */
static void check_carrier(const uint8_t *out, uint32_t length, int had_checksum)
{
    struct an_gso_layout outer, inner;
    CHECK(an_gso_frame(out, length, 0, &outer) == 0 && outer.end == length);
    CHECK(outer.version == 6 || an_fold(an_sum(out + outer.l3, outer.l4 - outer.l3, 0)) == 0xffff);
    CHECK(an_gso_inside(out, &outer, &inner) == 0 && inner.end == length);
    const uint8_t *l4 = out + outer.l4;
    if (outer.protocol == AN_UDP) {
        CHECK(an_gso_be16(l4 + 4) == length - outer.l4);
        CHECK(an_gso_be16(l4 + 2) != 2152 || an_gso_be16(l4 + 10) == length - outer.l4 - 16);
        CHECK(!had_checksum == !an_load16(l4 + 6));
        CHECK(!had_checksum ||
              an_fold(an_sum(l4, length - outer.l4, an_pseudo_sum(out + outer.l3, AN_UDP, length - outer.l4))) == 0xffff);
    } else {
        CHECK(!(l4[0] & 0x80) || an_fold(an_sum(l4, length - outer.l4, 0)) == 0xffff);
    }
}

int main(int argc, char **argv)
{
    uint64_t iterations = argc > 1 ? strtoull(argv[1], NULL, 10) : 1000;
    state = argc > 2 ? strtoull(argv[2], NULL, 10) : 1;
    static uint8_t work[70000];
    unsigned long whole = 0, cut = 0, refused = 0, marked = 0, sound = 0, tunnels = 0;
    for (iteration = 0; iteration < iterations; iteration++) {
        uint32_t payload_at, limit = 60 + below(below(4) ? 1500 : 66000);
        int tcp, wild = (int)below(2);
        uint32_t length = make(work, &payload_at, &tcp), plain = length;
        if (tcp && below(2))
            length = wrap(work, length, &payload_at);
        int wrapped = length != plain, had_checksum = 0;
        if (wild) {
            length = below(4) ? length : below(length + 1);
            for (uint32_t i = below(6); i && length; i--)
                work[below(length < 120 ? length : 120)] = (uint8_t)next_random();
        }
        struct an_packet p = {.data = malloc(length ? length : 1), .length = length};
        memcpy(p.data, work, length);
        if (below(2)) {
            an_gso_find(&p, below(4) ? 1500 : below(66000));
            marked += p.flags & AN_CSUM_PARTIAL;
        } else {
            struct virtio_net_hdr vnet = {.flags = 1, .gso_size = (uint16_t)(below(2) ? 1 + below(2000) : next_random())};
            static const uint8_t types[] = {0, 1, 4, 5};
            vnet.gso_type = wild ? (uint8_t)next_random() : types[tcp ? 1 + below(2) : 3];
            vnet.csum_start = (uint16_t)(below(2) ? payload_at : next_random());
            if (!wild) {
                struct an_gso_layout outer, inner;
                CHECK(an_gso_frame(work, length, 0, &outer) == 0);
                CHECK(!wrapped || an_gso_inside(work, &outer, &inner) == 0);
                vnet.csum_start = (uint16_t)(wrapped ? inner.l4 : outer.l4);
            }
            vnet.csum_offset = (uint16_t)(below(2) ? 16 : next_random());
            memcpy(p.vnet, &vnet, sizeof vnet);
            p.flags = AN_CSUM_PARTIAL;
        }
        struct an_gso gso;
        if (an_gso_begin(&gso, &p, limit) < 0) {
            refused++;
            free(p.data);
            continue;
        }
        int segmented = gso.header != 0;
        if (gso.outer.l4 && !wild)
            had_checksum = an_load16(p.data + gso.outer.l4 + 6) != 0;
        CHECK(!segmented || wild || wrapped == (gso.outer.l4 != 0));
        uint32_t segment, done = 0;
        uint8_t *out = malloc(limit);
        cut += segmented;
        whole += !segmented;
        while ((segment = an_gso_next(&gso, out))) {
            CHECK(segment <= limit);
            struct an_gso_layout outer, at;
            if (!segmented || wild)
                continue;
            if (wrapped)
                check_carrier(out, segment, had_checksum);
            CHECK(an_gso_frame(out, segment, 0, &outer) == 0);
            at = outer;
            CHECK(!wrapped || an_gso_inside(out, &outer, &at) == 0);
            CHECK(at.end == segment);
            CHECK(an_fold(an_sum(out + at.l4, at.end - at.l4, an_pseudo_sum(out + at.l3, at.protocol, at.end - at.l4))) ==
                  0xffff);
            CHECK(at.version == 6 || an_fold(an_sum(out + at.l3, at.l4 - at.l3, 0)) == 0xffff);
            CHECK(!memcmp(out + payload_at, work + payload_at + done, segment - payload_at));
            done += segment - payload_at;
        }
        if (segmented && !wild) {
            CHECK(done == length - payload_at);
            sound++;
            tunnels += wrapped;
        }
        free(out);
        free(p.data);
    }
    printf("whole %lu\ncut %lu\nrefused %lu\nmarked %lu\nsound %lu\ntunnels %lu\n", whole, cut, refused, marked, sound,
           tunnels);
    return 0;
}
