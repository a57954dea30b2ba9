/* Internet checksums (RFC 1071) and their incremental update (RFC 1624).
 *
 * Sums are kept as 16-bit words are loaded: the one's complement sum commutes with byte order (RFC 1071, 2.B), so
 * nothing is swapped. A `delta` is the one's complement sum of (new - old) over the words that changed.
 */
#ifndef ACTORNET_CHECKSUM_H
#define ACTORNET_CHECKSUM_H

#include "types.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "keys and odd trailing bytes are composed for little endian");

#define AN_ICMP 1
#define AN_TCP 6
#define AN_UDP 17
#define AN_ICMPV6 58

static inline uint16_t an_load16(const void *at)
{
    uint16_t word;
    memcpy(&word, at, 2);
    return word;
}

static inline uint32_t an_load32(const void *at)
{
    uint32_t word;
    memcpy(&word, at, 4);
    return word;
}

static inline uint64_t an_load64(const void *at)
{
    uint64_t word;
    memcpy(&word, at, 8);
    return word;
}

static inline void an_store16(void *at, uint16_t word)
{
    memcpy(at, &word, 2);
}

static inline void an_store64(void *at, uint64_t word)
{
    memcpy(at, &word, 8);
}

/* Network to host order and back. */
static inline uint16_t an_swap16(uint16_t word)
{
    return __builtin_bswap16(word);
}

static inline uint16_t an_fold(uint64_t sum)
{
    sum = (sum & 0xffffffff) + (sum >> 32);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    return (uint16_t)((sum & 0xffff) + (sum >> 16));
}

/* Unfolded sum of `bytes` bytes added to `sum`; an odd last byte is padded with zero. */
static inline uint64_t an_sum(const uint8_t *at, uint32_t bytes, uint64_t sum)
{
    for (; bytes >= 4; at += 4, bytes -= 4)
        sum += an_load32(at);
    if (bytes >= 2) {
        sum += an_load16(at);
        at += 2;
    }
    if (bytes & 1)
        sum += *at;
    return sum;
}

/* What replacing the words at `from` by those at `to` adds to a sum over them. `bytes` is even. */
static inline uint16_t an_sum_diff(const void *from, const void *to, uint32_t bytes)
{
    uint64_t sum = 0;
    for (uint32_t i = 0; i < bytes; i += 2)
        sum += (uint16_t)~an_load16((const uint8_t *)from + i) + (uint32_t)an_load16((const uint8_t *)to + i);
    return an_fold(sum);
}

/* one's complement a + b */
static inline uint16_t an_sum_add(uint16_t a, uint16_t b)
{
    uint32_t sum = (uint32_t)a + b;
    return (uint16_t)((sum & 0xffff) + (sum >> 16));
}

/* RFC 1624, equation 3: HC' = ~(~HC + ~m + m'). */
static inline uint16_t an_csum_update(uint16_t csum, uint16_t delta)
{
    return (uint16_t)~an_sum_add((uint16_t)~csum, delta);
}

/* Sum of the pseudo-header (RFC 768, 793; RFC 8200 section 8.1) of the IP packet at `ip`. */
static inline uint64_t an_pseudo_sum(const uint8_t *ip, uint8_t protocol, uint32_t l4_bytes)
{
    uint64_t sum = (uint64_t)an_swap16(protocol) + __builtin_bswap32(l4_bytes);
    return ip[0] >> 4 == 6 ? an_sum(ip + 8, 32, sum) : an_sum(ip + 12, 8, sum);
}

/* Offset of the checksum in the transport header, or -1 where this engine knows none. */
static inline int an_csum_offset(uint8_t protocol)
{
    switch (protocol) {
    case AN_TCP: return 16;
    case AN_UDP: return 6;
    case AN_ICMP: case AN_ICMPV6: return 2;
    default: return -1;
    }
}

/* Is it the packet's own transport checksum that the interface completes, and not that of a packet in it, which nobody looks
 * into here? */
static inline int an_csum_is_partial(const struct an_packet *p, const uint8_t *l4)
{
    return p->flags & AN_CSUM_PARTIAL && an_load16(p->vnet + 6) < l4 - p->data + 8;
}

/* Is every checksum of a parsed packet right? IPv4 header, TCP, UDP, ICMP, and the IPv4 header embedded in an ICMP
 * error. Fragments and untracked protocols: the IPv4 header only. AN_CSUM_PARTIAL: the field must hold the
 * pseudo-header sum. */
static inline int an_csum_verify(const struct an_packet *p)
{
    const uint8_t *ip = p->data + p->l3, *l4 = p->data + p->l4;
    if (p->key.version == 0)
        return 0;
    if (p->key.version == 4 && an_fold(an_sum(ip, (ip[0] & 15) * 4u, 0)) != 0xffff)
        return 0;
    if (p->reason != AN_OK)
        return 1;
    uint8_t protocol = p->key.protocol;
    if (p->flags & AN_ICMP_ERROR) {
        const uint8_t *inner = p->data + p->inner_l3;
        protocol = p->key.version == 4 ? AN_ICMP : AN_ICMPV6;
        if (p->key.version == 4 && an_fold(an_sum(inner, (inner[0] & 15) * 4u, 0)) != 0xffff)
            return 0;
    }
    uint32_t bytes = protocol == AN_UDP ? an_swap16(an_load16(l4 + 4))
                     : p->key.version == 4 ? an_swap16(an_load16(ip + 2)) - (uint32_t)(p->l4 - p->l3)
                                           : an_swap16(an_load16(ip + 4)) + 40u - (uint32_t)(p->l4 - p->l3);
    uint64_t pseudo = protocol == AN_ICMP ? 0 : an_pseudo_sum(ip, protocol, bytes);
    if (an_csum_is_partial(p, l4))
        return an_load16(l4 + an_csum_offset(protocol)) % 0xffff == an_fold(pseudo) % 0xffff; /* 0 has two forms */
    if (protocol == AN_UDP && p->flags & AN_UDP_NO_CSUM)
        return 1;
    return an_fold(an_sum(l4, bytes, pseudo)) == 0xffff;
}

#endif
