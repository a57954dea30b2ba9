/* Mutates frames of captures, and makes some up, and runs each through the packet engine's headers. Every frame lies
 * in an allocation of exactly its size, so that AddressSanitizer sees the first byte read or written beyond it.
 *
 *   cc -g -O1 -std=gnu11 -fsanitize=address,undefined -fno-sanitize-recover=undefined -Iactornet/engine \
 *      -o fuzz_parse tests/fuzz/fuzz_parse.c && ./fuzz_parse ITERATIONS SEED [capture.pcap ...]
 *
 * Checked besides: offsets stay inside the frame, a rewrite keeps right checksums right and wrong ones wrong, it
 * writes what it was asked to, what is seen at a glance is what is parsed and leaves as if it had been, the flow table
 * finds what was put in, and fragments that were mutated, or not, are put
 * together to what fits their lengths, and come apart again. The same seed runs the same frames; a
 * failure names its iteration. Prints how many frames had which reason.
 */
#include <stdio.h>
#include <stdlib.h>

#include "flow_table.h"
#include "fragments.h"
#include "link.h"
#include "offload.h"
#include "rewrite.h"
#include "toeplitz.h"

#define SEEDS_MAX 8192
#define SEEDS_PER_CAPTURE 500
#define FRAME_BYTES_MAX 65553

static struct frame {
    uint32_t length;
    uint8_t *data;
} seeds[SEEDS_MAX];
static uint32_t seeds_count;
static uint64_t state, iteration, glanced_count;

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

#define CHECK(condition)                                                                                       \
    do {                                                                                                       \
        if (!(condition)) {                                                                                    \
            fprintf(stderr, "fuzz_parse: iteration %llu: %s\n", (unsigned long long)iteration, #condition);    \
            abort();                                                                                           \
        }                                                                                                      \
    } while (0)

static void read_capture(const char *path)
{
    uint32_t header[6], record[4];
    FILE *file = fopen(path, "rb");
    if (!file || fread(header, sizeof header, 1, file) != 1 || (header[0] != 0xa1b2c3d4 && header[0] != 0xa1b23c4d) ||
        header[5] != 1) {
        fprintf(stderr, "fuzz_parse: %s is no little-endian pcap file of Ethernet frames\n", path);
        exit(2);
    }
    for (int i = 0; i < SEEDS_PER_CAPTURE && seeds_count < SEEDS_MAX && fread(record, sizeof record, 1, file) == 1 && record[2] <= FRAME_BYTES_MAX; i++) {
        struct frame *f = &seeds[seeds_count];
        f->length = record[2];
        f->data = malloc(f->length ? f->length : 1);
        if (fread(f->data, 1, f->length, file) != f->length)
            break;
        seeds_count++;
    }
    fclose(file);
}

/* A frame to mutate: one of a capture, or noise behind a header that leads the parser somewhere. */
static uint32_t make_frame(uint8_t *data)
{
    static const uint16_t types[] = {0x0800, 0x86dd, 0x8100, 0x88a8};
    static const uint8_t protocols[] = {0, 1, 6, 17, 43, 44, 47, 51, 58, 60};
    if (seeds_count && below(4)) {
        const struct frame *f = &seeds[below(seeds_count)];
        memcpy(data, f->data, f->length);
        return f->length;
    }
    uint32_t length = below(200);
    for (uint32_t i = 0; i < length; i++)
        data[i] = below(3) ? (uint8_t)next_random() : 0;
    uint32_t at = 12;
    for (int tags = (int)below(4) - 1; at + 6 < length && tags >= 0; tags--, at += 4)
        an_store16(data + at, an_swap16(types[below(4)]));
    if (at + 60 < length) {
        int six = (int)below(2);
        uint32_t l3 = at + 2, room = length - l3;
        an_store16(data + at, an_swap16(types[six]));
        data[l3] = six ? 0x60 : below(4) ? 0x45 : (uint8_t)(0x40 | below(16));
        an_store16(data + l3 + (six ? 4 : 2), an_swap16((uint16_t)(six ? room - 40 : room)));
        data[l3 + (six ? 6 : 9)] = protocols[below(sizeof protocols)];
        if (!six && below(4))
            an_store16(data + l3 + 6, 0);
        for (uint32_t i = l3 + (six ? 40 : 20); six && i < length; i += 8)
            data[i] = protocols[below(sizeof protocols)];
    }
    return length;
}

/* An ICMP error about the IP packet in `data`, so that embedded headers are mutated too. */
static uint32_t make_icmp_error(uint8_t *data, uint32_t length)
{
    struct an_packet p = {.data = data, .length = length};
    an_parse(&p);
    if (p.key.version == 0)
        return length;
    int six = p.key.version == 6;
    uint32_t header_bytes = six ? 40 : 20, embedded = length - p.l3;
    if (embedded > 300)
        embedded = 300;
    if (below(2) && embedded > header_bytes + 8)
        embedded = header_bytes + 8 + below(embedded - header_bytes - 8);
    uint8_t outer[48] = {0};
    memcpy(outer, data + p.l3, header_bytes);
    outer[0] = six ? 0x60 : 0x45;
    an_store16(outer + (six ? 4 : 2), an_swap16((uint16_t)(8 + embedded + (six ? 0 : 20))));
    outer[six ? 6 : 9] = six ? AN_ICMPV6 : AN_ICMP;
    if (!six) {
        an_store16(outer + 6, 0);
        an_store16(outer + 10, 0);
        an_store16(outer + 10, (uint16_t)~an_fold(an_sum(outer, 20, 0)));
    }
    outer[header_bytes] = six ? 1 : 3;
    memmove(data + 14 + header_bytes + 8, data + p.l3, embedded);
    an_store16(data + 12, an_swap16(six ? 0x86dd : 0x0800));
    memcpy(data + 14, outer, header_bytes + 8);
    uint8_t *icmp = data + 14 + header_bytes;
    uint64_t pseudo = six ? an_pseudo_sum(data + 14, AN_ICMPV6, 8 + embedded) : 0;
    an_store16(icmp + 2, (uint16_t)~an_fold(an_sum(icmp, 8 + embedded, pseudo)));
    return 14 + header_bytes + 8 + embedded;
}

static uint32_t mutate(uint8_t *data, uint32_t length)
{
    for (uint32_t changes = below(5); changes && length; changes--) {
        uint32_t at = below(3) ? below(length < 120 ? length : 120) : below(length);
        switch (below(5)) {
        case 0: data[at] = (uint8_t)next_random(); break;
        case 1: data[at] ^= (uint8_t)(1u << below(8)); break;
        case 2: data[at] = below(2) ? 0xff : 0; break;
        case 3: data[at] = (uint8_t)(data[at] + (below(2) ? 1 : -1)); break;
        default: length = below(2) ? at : length; break;
        }
    }
    return length;
}

static void check_offsets(const struct an_packet *p)
{
    CHECK(p->reason < AN_REASONS);
    CHECK(p->l3 <= p->l4 && p->l4 <= p->payload && p->payload <= p->l3_end && p->l3_end <= p->length);
    CHECK((p->key.version == 0) == (p->reason == AN_MALFORMED || p->reason == AN_TRUNCATED || p->reason == AN_NOT_IP));
    CHECK(!(p->flags & AN_ICMP_ERROR) ||
          (p->inner_l3 > p->l4 && p->inner_l4 > p->inner_l3 && p->inner_l4 + 8 <= p->l3_end));
}

static void check_table(struct an_table *t, const struct an_key *key)
{
    uint32_t hash = (uint32_t)an_hash(key, t->seed), index = an_table_find(t, key, hash), due[8];
    an_table_prefetch(t, hash);
    CHECK(an_table_find_probed(t, key, hash, an_table_probe(t, hash, (int)below(2))) == index);
    if (index == AN_NONE) {
        index = an_table_insert(t, key, hash);
        CHECK((index == AN_NONE) == (t->used == t->entries_max && an_table_find(t, key, hash) == AN_NONE));
    } else if (below(3) == 0) {
        an_table_remove(t, index);
        CHECK(an_table_find(t, key, hash) == AN_NONE);
        return;
    }
    if (index != AN_NONE) {
        struct an_key its = an_entry_key(&t->entries[index]);
        CHECK(an_key_equal(&its, key));
        an_timer_arm(t, index, t->now_ns + below(UINT32_MAX) * (uint64_t)below(200));
    }
    uint32_t count = an_timer_advance(t, t->now_ns + below(UINT32_MAX), due, 8);
    for (uint32_t i = 0; i < count; i++)
        an_table_remove(t, due[i]);
}

/* Rewrites a copy of the packet, and looks at what came out. */
static void check_rewrite(const struct an_packet *original, const uint8_t *addresses)
{
    struct an_packet p = *original;
    struct an_rewrite r = {.fields = (uint8_t)below(64), .dscp = (uint8_t)below(64)};
    r.source_port = (uint16_t)next_random();
    r.destination_port = below(8) ? (uint16_t)next_random() : r.source_port;
    memcpy(&r.source, addresses, 4);
    memcpy(&r.destination, addresses + 16, 4);
    if (p.key.version)
        an_rewrite_prepare(&r, &p.key, addresses);
    p.data = malloc(p.length ? p.length : 1);
    memcpy(p.data, original->data, p.length);
    int before = an_csum_verify(&p), expired = an_rewrite_apply(&p, &r, addresses);
    if (expired || p.key.version == 0) {
        CHECK(memcmp(p.data, original->data, p.length) == 0);
        CHECK(!expired || (r.fields & AN_DECREMENT_TTL && original->ttl <= 1));
    } else {
        CHECK(an_csum_verify(&p) == before);
        CHECK(memcmp(p.data + p.l3_end, original->data + p.l3_end, p.length - p.l3_end) == 0);
        struct an_packet again = p;
        an_parse(&again);
        CHECK(again.reason == p.reason && again.inner_l4 == p.inner_l4);
        CHECK(again.l4 == p.l4 && again.payload == p.payload);
        CHECK(again.ttl == p.ttl - !!(r.fields & AN_DECREMENT_TTL));
        CHECK(again.dscp == (r.fields & AN_SET_DSCP ? r.dscp : p.dscp));
        uint32_t bytes = p.key.version == 4 ? 4 : 16;
        const uint8_t *source = r.fields & AN_SET_SOURCE ? addresses : p.key.source;
        const uint8_t *destination = r.fields & AN_SET_DESTINATION ? addresses + 16 : p.key.destination;
        CHECK(memcmp(again.key.source, source, bytes) == 0 && memcmp(again.key.destination, destination, bytes) == 0);
        CHECK(again.key.protocol == p.key.protocol);
        if (p.reason == AN_OK && (p.key.protocol == AN_TCP || p.key.protocol == AN_UDP)) {
            CHECK(again.key.source_port == (r.fields & AN_SET_SOURCE_PORT ? r.source_port : p.key.source_port));
            CHECK(again.key.destination_port ==
                  (r.fields & AN_SET_DESTINATION_PORT ? r.destination_port : p.key.destination_port));
        }
    }
    free(p.data);
}

/* What a glance at a frame tells of it, parsing it does, too, and its offload does the same either way. */
static void check_glance(struct an_table *t, const struct an_packet *p)
{
    struct an_glance g;
    struct an_packet one = *p, other = *p;
    struct an_adjacency adjacencies[2] = {{.resolved = 1}, {.resolved = (uint8_t)below(2), .source = {2}, .destination = {4}}};
    if (!an_glance(p, &g))
        return;
    CHECK(p->reason == AN_OK && p->l3 == AN_GLANCE_L3 && p->l4 == AN_GLANCE_L4 && !(p->flags & AN_ICMP_ERROR));
    CHECK(an_glance_hash(&g, t->seed) == (uint32_t)an_hash(&p->key, t->seed));
    CHECK(g.tail == an_load64(&p->key.source_port) && (uint32_t)g.addresses == an_load32(p->key.source) &&
          g.addresses >> 32 == an_load32(p->key.destination));

    uint32_t hash = an_glance_hash(&g, t->seed), index = an_table_find(t, &p->key, hash);
    if (index == AN_NONE)
        return;
    struct an_entry *e = &t->entries[index], before, after;
    e->rewrite = (struct an_rewrite){
        .action = below(8) ? AN_FORWARD : (uint8_t)below(4),
        .fields = (uint8_t)(below(128) & (below(8) ? 0xff & ~AN_SET_LINK : 0xff)),
        .out_port = (uint8_t)below(16),
        .dscp = (uint8_t)below(64),
        .source_port = (uint16_t)next_random(),
        .destination_port = (uint16_t)next_random(),
        .source = (uint32_t)next_random(),
        .destination = (uint32_t)next_random(),
        .adjacency = (uint16_t)below(2),
    };
    an_rewrite_prepare(&e->rewrite, &p->key, NULL);
    e->state = (uint8_t)(AN_LIVE | (below(2) ? AN_PUNT_TCP : 0) | (below(8) ? 0 : below(64)));
    e->rewrite.generation = t->generation;
    before = *e;
    one.data = malloc(p->length), other.data = malloc(p->length);
    memcpy(one.data, p->data, p->length);
    memcpy(other.data, p->data, p->length);
    int out = an_offload(t, &one, index, 77, adjacencies);
    after = *e;
    *e = before;
    int glanced = an_offload_glanced(t, &other, &g, index, 77, adjacencies);
    if (glanced == AN_GENERAL) { /* allowed, if nothing was touched: DSCP */
        CHECK(memcmp(&before, e, sizeof before) == 0 && memcmp(other.data, p->data, p->length) == 0);
        CHECK(out == AN_GENERAL || e->rewrite.fields & AN_SET_DSCP || p->ttl == 0);
    } else {
        CHECK(glanced == out && memcmp(&after, e, sizeof after) == 0 && memcmp(one.data, other.data, p->length) == 0);
        glanced_count++;
    }
    e->state = AN_LIVE | (before.state & AN_PRIMARY);
    e->rewrite.action = AN_SLOW;
    free(one.data);
    free(other.data);
}

/* Whatever the Ethernet header becomes, the parser finds the same packet behind it, where the offsets say. */
static void check_link(struct an_packet *p)
{
    struct an_link link = {.vlan = (uint16_t)(below(3) ? below(4095) : 0), .fields = (uint8_t)below(8)};
    for (int i = 0; i < 6; i++)
        link.source[i] = link.destination[i] = (uint8_t)next_random();
    if (p->reason != AN_OK)
        return;
    int tagged = p->flags & AN_VLAN;
    uint16_t outer = an_load16(p->data + 12);
    struct an_parked *item = an_park(p);
    struct an_packet *q = &item->p;
    an_link_apply(q, &link);
    CHECK(!(link.fields & AN_LINK_SOURCE) || memcmp(q->data + 6, link.source, 6) == 0);
    CHECK(!(link.fields & AN_LINK_DESTINATION) || memcmp(q->data, link.destination, 6) == 0);
    CHECK(q->length - q->l3 == p->length - p->l3 && memcmp(q->data + q->l3, p->data + p->l3, q->length - q->l3) == 0);
    if (link.fields & AN_LINK_VLAN && link.vlan) {
        CHECK(q->flags & AN_VLAN && an_load16(q->data + 12) == (tagged ? outer : an_swap16(0x8100)));
        CHECK((an_swap16(an_load16(q->data + 14)) & 0xfff) == link.vlan);
    }
    struct an_packet again = *q;
    an_parse(&again);
    CHECK(again.reason == AN_OK && again.flags == q->flags && an_key_equal(&again.key, &p->key));
    CHECK(again.l3 == q->l3 && again.l4 == q->l4 && again.payload == q->payload && again.l3_end == q->l3_end);
    CHECK(again.inner_l3 == q->inner_l3 && again.inner_l4 == q->inner_l4);
    free(item);
}

/* Wraps the frame into a tunnel of some kind, so that mutations meet what is in its headers. */
static uint32_t make_tunnel(uint8_t *data, uint32_t length)
{
    static uint8_t copy[FRAME_BYTES_MAX + 64];
    uint32_t kind = below(4), six = below(4) == 0, ip_bytes = six ? 40 : 20, bytes = 0;
    uint8_t head[40] = {0}, outer[40] = {0};
    if (length < 34 || length > 1600)
        return length;
    int frame = kind == 0 || kind == 3; /* an Ethernet frame inside, or an IP packet */
    uint32_t from = frame ? 0 : 14, protocol = kind < 2 ? AN_UDP : AN_GRE_PROTOCOL;
    if (kind == 0) { /* VXLAN */
        head[8] = 0x08, bytes = 16;
    } else if (kind == 1) { /* GTP-U */
        uint32_t options = below(8), extensions = options & 4 ? below(3) : 0;
        head[8] = (uint8_t)(0x30 | options), head[9] = 255;
        bytes = 16;
        if (options) {
            bytes = 20;
            head[19] = extensions ? 0x85 : 0;
            for (uint32_t i = 0; i < extensions; i++, bytes += 4)
                head[bytes] = 1, head[bytes + 3] = i + 1 < extensions ? 0x40 : 0;
        }
    } else { /* GRE */
        head[0] = (uint8_t)(below(8) << 4 & 0xb0), bytes = 4u + (head[0] & 0x80 ? 4 : 0) + (head[0] & 0x20 ? 4 : 0);
        bytes += head[0] & 0x10 ? 4 : 0;
        an_store16(head + 2, frame ? an_swap16(AN_TYPE_ETHERNET) : an_load16(data + 12));
    }
    length -= from;
    memcpy(copy, data + from, length);
    outer[0] = six ? 0x60 : 0x45, outer[six ? 7 : 8] = 64, outer[six ? 6 : 9] = (uint8_t)protocol;
    an_store16(outer + (six ? 4 : 2), an_swap16((uint16_t)(bytes + length + (six ? 0 : 20))));
    if (!six)
        an_store16(outer + 10, (uint16_t)~an_fold(an_sum(outer, 20, 0)));
    if (kind < 2) {
        an_store16(head + 2, an_swap16(kind == 0 ? 4789 : 2152));
        an_store16(head + 4, an_swap16((uint16_t)(bytes + length)));
    }
    an_store16(data + 12, an_swap16(six ? 0x86dd : 0x0800));
    memcpy(data + 14, outer, ip_bytes);
    memcpy(data + 14 + ip_bytes, head, bytes);
    memcpy(data + 14 + ip_bytes + bytes, copy, length);
    uint8_t *l4 = data + 14 + ip_bytes;
    uint16_t *at = kind < 2 ? (uint16_t *)(void *)(l4 + 6) : head[0] & 0x80 ? (uint16_t *)(void *)(l4 + 4) : NULL;
    if (at && below(4)) {
        uint64_t pseudo = kind < 2 ? an_pseudo_sum(data + 14, AN_UDP, bytes + length) : 0;
        uint16_t sum = (uint16_t)~an_fold(an_sum(l4, bytes + length, pseudo));
        an_store16(at, kind < 2 && sum == 0 ? 0xffff : sum);
    }
    return 14 + ip_bytes + bytes + length;
}

/* Whether the carrier's own checksums are right. `p` was parsed without a look inside. */
static int carrier_right(const struct an_packet *p)
{
    if (p->key.protocol == AN_GRE_PROTOCOL && p->data[p->l4] & 0x80 &&
        an_fold(an_sum(p->data + p->l4, an_ip_end(p->data, p->l3) - p->l4, 0)) != 0xffff)
        return 0;
    return an_csum_verify(p);
}

/* Looks inside, and rewrites what is there: the carrier's checksum is as right as it was. */
static void check_tunnel(const struct an_packet *outer, const uint8_t *addresses, uint64_t *counts, uint64_t *about_carriers)
{
    struct an_packet p = *outer;
    an_parse_inner(&p, 0xff);
    counts[p.tunnel]++;
    check_offsets(&p);
    if (!p.tunnel) {
        int about_carrier = outer->flags & AN_ICMP_ERROR && !(p.flags & AN_ICMP_ERROR);
        CHECK(p.l3 == outer->l3 && p.reason == (about_carrier ? AN_UNTRACKED : outer->reason));
        *about_carriers += about_carrier;
        return;
    }
    CHECK(p.outer_l3 == outer->l3 && p.outer_l4 == outer->l4 && p.l3 > p.outer_l4);
    CHECK(p.l3_end <= outer->l3_end && (p.flags & AN_VLAN) == (outer->flags & AN_VLAN));
    struct an_rewrite r = {.fields = (uint8_t)below(64), .dscp = (uint8_t)below(64)};
    r.source_port = (uint16_t)next_random();
    r.destination_port = below(8) ? (uint16_t)next_random() : r.source_port;
    memcpy(&r.source, addresses, 4);
    memcpy(&r.destination, addresses + 16, 4);
    if (p.key.version)
        an_rewrite_prepare(&r, &p.key, addresses);
    p.data = malloc(p.length);
    memcpy(p.data, outer->data, p.length);
    struct an_packet carrier = *outer;
    carrier.data = p.data;
    int before = an_csum_verify(&p), carrier_before = carrier_right(&carrier), expired = an_rewrite_apply(&p, &r, addresses);
    if (expired || p.key.version == 0) {
        CHECK(memcmp(p.data, outer->data, p.length) == 0);
    } else {
        if (!(p.flags & AN_CSUM_PARTIAL)) {
            CHECK(an_csum_verify(&p) == before);
            CHECK(carrier_right(&carrier) == carrier_before);
        }
        CHECK(memcmp(p.data, outer->data, p.outer_l4) == 0);
        CHECK(memcmp(p.data + p.l3_end, outer->data + p.l3_end, p.length - p.l3_end) == 0);
        struct an_packet again = *outer;
        again.data = p.data;
        an_parse(&again);
        an_parse_inner(&again, 0xff);
        CHECK(again.tunnel == p.tunnel && again.reason == p.reason && again.l3 == p.l3 && again.l4 == p.l4);
    }
    free(p.data);
}

/* What an_cut_next() makes of the packet is put together to the packet again. */
static void check_cut(const struct an_packet *p, uint32_t bytes)
{
    struct an_fragments f;
    struct an_cut cut;
    struct an_parked *whole = NULL, *pieces[AN_DATAGRAM_BYTES_MAX / 8 + 1];
    uint32_t count = 0;
    if (!an_cut_begin(&cut, p, bytes, 77))
        return;
    while ((pieces[count] = an_cut_next(&cut, p)) != NULL) {
        CHECK(pieces[count]->p.length <= cut.l3 + bytes);
        count++;
    }
    CHECK(cut.at == cut.end && count > 1);
    CHECK(an_fragments_init(&f, 2, count, UINT32_MAX, 1, 7) == 0);
    for (uint32_t i = count; i > 1; i--) { /* in any order */
        uint32_t other = below(i);
        struct an_parked *last = pieces[i - 1];
        pieces[i - 1] = pieces[other], pieces[other] = last;
    }
    for (uint32_t i = 0; i < count; i++) {
        an_parse(&pieces[i]->p);
        if (pieces[i]->p.reason != AN_FRAGMENT) { /* a header that does not bear the walk, or more headers than are walked */
            free(pieces[i]);
            continue;
        }
        CHECK(whole == NULL);
        int status = an_fragments_add(&f, &pieces[i]->p, 0, &whole);
        CHECK(status >= 0);
    }
    if (whole) {
        uint32_t end = an_ip_end(p->data, cut.l3);
        CHECK(f.joined == count && f.waiting == 0 && f.memory == 0 && f.datagrams_waiting == 0);
        CHECK(whole->p.length == end && memcmp(whole->p.data + cut.header_end, p->data + cut.header_end, end - cut.header_end) == 0);
        free(whole);
    }
    an_fragments_free(&f);
}

/* A fragment arrives, whatever it says of itself. */
static void check_fragment(struct an_fragments *f, const struct an_packet *original, uint64_t *joined)
{
    struct an_packet p = *original;
    struct an_parked *whole = NULL;
    uint64_t before = f->joined + f->overlap + f->expired + f->evicted + f->waiting;
    int status = an_fragments_add(f, &p, iteration * 1000, &whole);
    CHECK((status == 1) == (whole != NULL));
    CHECK(f->joined + f->overlap + f->expired + f->evicted + f->waiting == before + (status >= 0));
    CHECK(f->memory <= f->memory_max && f->datagrams_waiting <= f->datagrams_max);
    if (!whole)
        return;
    ++*joined;
    CHECK(whole->p.length <= AN_DATAGRAM_BYTES_MAX && whole->p.flags == (AN_COPIED | AN_REASSEMBLED));
    an_parse(&whole->p);
    check_offsets(&whole->p);
    CHECK(whole->p.reason != AN_TRUNCATED && whole->p.reason != AN_NOT_IP);
    CHECK(whole->p.reason != AN_FRAGMENT || whole->p.key.version == 6);
    check_cut(&whole->p, whole->p.fragment_bytes);
    free(whole);
}

/* Few addresses and identifications, so that fragments meet. */
static uint32_t make_fragment(uint8_t *data)
{
    static const uint8_t protocols[] = {17, 17, 17, 6, 1, 58, 60, 44};
    uint32_t bytes = below(8) ? 8 * below(6) : below(50), offset = below(6), more = below(3) > 0, six = below(2);
    uint8_t protocol = protocols[below(sizeof protocols)];
    if (below(8)) /* well cut */
        offset = 2 * below(3), more = offset < 4, bytes = more ? 16 : below(20);
    memset(data, 0, 54 + 8 + bytes);
    an_store16(data + 12, an_swap16(six ? 0x86dd : 0x0800));
    uint8_t *ip = data + 14, *l4 = ip + (six ? 48 : 20);
    if (six) {
        ip[0] = 0x60, ip[6] = AN_FRAGMENT_HEADER, ip[40] = protocol;
        an_store16(ip + 4, an_swap16((uint16_t)(8 + bytes)));
        an_store16(ip + 42, an_swap16((uint16_t)(offset << 3 | more)));
        ip[47] = (uint8_t)(iteration / 128);
    } else {
        ip[0] = 0x45, ip[9] = protocol;
        an_store16(ip + 2, an_swap16((uint16_t)(20 + bytes)));
        an_store16(ip + 6, an_swap16((uint16_t)(offset | more << 13)));
        ip[5] = (uint8_t)(iteration / 128);
    }
    ip[six ? 7 : 8] = 64;
    if (below(16)) /* what a datagram carries at an offset is mostly the same */
        for (uint32_t i = 0; i < bytes; i++)
            l4[i] = (uint8_t)(offset * 8 + i);
    return (uint32_t)(l4 - data) + bytes;
}

int main(int argc, char **argv)
{
    static uint8_t work[FRAME_BYTES_MAX + 64];
    static const char *const names[] = {"ok", "malformed", "truncated", "not_ip", "fragment", "untracked"};
    uint64_t counts[AN_REASONS] = {0}, errors = 0, joined = 0, tunnels[AN_TUNNELS] = {0}, about_carriers = 0;
    struct an_table table;
    struct an_fragments fragments;
    if (argc < 3)
        return fprintf(stderr, "usage: fuzz_parse ITERATIONS SEED [capture.pcap ...]\n"), 2;
    uint64_t iterations = strtoull(argv[1], NULL, 10);
    state = strtoull(argv[2], NULL, 10);
    for (int i = 3; i < argc; i++)
        read_capture(argv[i]);
    if (an_table_init(&table, 500, next_random(), 0) != 0)
        return perror("fuzz_parse: table"), 1;
    if (an_fragments_init(&fragments, 40, 8, 4200, 130000, next_random()) != 0)
        return perror("fuzz_parse: fragments"), 1;

    for (iteration = 0; iteration < iterations; iteration++) {
        int fragment = below(5) < 2;
        uint32_t length = fragment ? make_fragment(work) : make_frame(work);
        if (below(3) == 0)
            length = make_icmp_error(work, length);
        if (!fragment && below(3) == 0) {
            length = make_tunnel(work, length);
            if (below(4) == 0)
                length = make_icmp_error(work, length);
        }
        if (below(2))
            length = mutate(work, length);
        struct an_packet p = {.data = malloc(length ? length : 1), .length = length, .port = (uint8_t)below(fragment ? 1 : 16)};
        if (length)
            memcpy(p.data, work, length);
        p.flags = below(8) ? 0 : AN_CSUM_PARTIAL;
        an_parse(&p);
        counts[p.reason]++;
        errors += !!(p.flags & AN_ICMP_ERROR);
        check_offsets(&p);
        CHECK(an_rss_core(an_rss_entry(&p.key), 1 + below(64)) < 64);
        check_table(&table, &p.key);
        uint8_t addresses[32];
        for (int i = 0; i < 32; i++)
            addresses[i] = (uint8_t)next_random();
        check_rewrite(&p, addresses);
        check_glance(&table, &p);
        check_link(&p);
        check_tunnel(&p, addresses, tunnels, &about_carriers);
        check_cut(&p, below(4) ? 60 + below(600) : below(100));
        if (p.reason == AN_FRAGMENT)
            check_fragment(&fragments, &p, &joined);
        free(p.data);
    }
    for (int reason = 0; reason < AN_REASONS; reason++)
        printf("%s %llu\n", names[reason], (unsigned long long)counts[reason]);
    printf("gre %llu\nvxlan %llu\ngtp_u %llu\n", (unsigned long long)tunnels[AN_GRE],
           (unsigned long long)tunnels[AN_VXLAN], (unsigned long long)tunnels[AN_GTP_U]);
    printf("icmp_error %llu\nabout_carrier %llu\n", (unsigned long long)errors, (unsigned long long)about_carriers);
    printf("glanced %llu\n", (unsigned long long)glanced_count);
    printf("joined %llu\noverlap %llu\nexpired %llu\nevicted %llu\n", (unsigned long long)joined,
           (unsigned long long)fragments.overlap, (unsigned long long)fragments.expired,
           (unsigned long long)fragments.evicted);
    an_fragments_free(&fragments);
    an_table_free(&table);
    for (uint32_t i = 0; i < seeds_count; i++)
        free(seeds[i].data);
    return 0;
}
