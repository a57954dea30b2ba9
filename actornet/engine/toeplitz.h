/* Receive-side scaling in software: the Toeplitz hash as network cards compute it (Microsoft, "RSS
 * hashing functions"). */
#ifndef ACTORNET_TOEPLITZ_H
#define ACTORNET_TOEPLITZ_H

#include "checksum.h"

#define AN_RSS_KEY_BYTES 40

/* The key that Microsoft's published vectors are computed with, a common default of drivers. */
static const uint8_t AN_RSS_KEY_STANDARD[AN_RSS_KEY_BYTES] = {
    0x6d, 0x5a, 0x56, 0xda, 0x25, 0x5b, 0x0e, 0xc2, 0x41, 0x67, 0x25, 0x3d, 0x43, 0xa3, 0x8f, 0xb0,
    0xd0, 0xca, 0x2b, 0xcb, 0xae, 0x7b, 0x30, 0xb4, 0x77, 0xcb, 0x2d, 0xa3, 0x80, 0x30, 0xf2, 0x0c,
    0x6a, 0x42, 0xb7, 0x3b, 0xbe, 0xac, 0x01, 0xfa};

/* A key of period 16 bits sends both directions of a connection to one core (Woo and Park, "Scalable TCP session
 * monitoring with symmetric receive-side scaling", 2012). */
static const uint8_t AN_RSS_KEY_SYMMETRIC[AN_RSS_KEY_BYTES] = {
    0x6d, 0x5a, 0x6d, 0x5a, 0x6d, 0x5a, 0x6d, 0x5a, 0x6d, 0x5a, 0x6d, 0x5a, 0x6d, 0x5a, 0x6d, 0x5a,
    0x6d, 0x5a, 0x6d, 0x5a, 0x6d, 0x5a, 0x6d, 0x5a, 0x6d, 0x5a, 0x6d, 0x5a, 0x6d, 0x5a, 0x6d, 0x5a,
    0x6d, 0x5a, 0x6d, 0x5a, 0x6d, 0x5a, 0x6d, 0x5a};

/* `n` bytes of input (at most 36: IPv6 addresses and ports, in network order), a key of 40 bytes. */
static inline uint32_t an_toeplitz(const uint8_t *key40, const uint8_t *input, int n)
{
    uint64_t window = (uint64_t)__builtin_bswap32(an_load32(key40)) << 32;
    uint32_t hash = 0;
    for (int i = 0; i < n; i++) {
        window |= (uint64_t)key40[i + 4] << 24;
        for (int bit = 7; bit >= 0; bit--, window <<= 1)
            hash ^= (uint32_t)(window >> 32) & -(uint32_t)(input[i] >> bit & 1);
    }
    return hash;
}

/* an_toeplitz() of (source, destination, source port, destination port) with the symmetric key. Under that key every
 * 16-bit word of the input sees the same key bits and the hash is linear, so the words are combined first. */
static inline uint32_t an_rss_hash(const struct an_key *key)
{
    uint64_t words = an_load64(key->source) ^ an_load64(key->source + 8) ^ an_load64(key->destination) ^
                     an_load64(key->destination + 8);
    words ^= words >> 32;
    uint16_t word = an_swap16((uint16_t)(words ^ words >> 16)) ^ key->source_port ^ key->destination_port;
    uint32_t window = 0x6d5a6d5a, hash = 0;
    for (int bit = 15; bit >= 0; bit--, window = window << 1 | window >> 31)
        hash ^= window & -(uint32_t)(word >> bit & 1);
    return hash;
}

/* What network cards do with a hash: its low bits choose an entry of an indirection table. Each core has a stretch of
 * it, as `ethtool -X ... weight 1 1` makes it: so the highest of those bits tell, and they are the ones in which a key
 * for some fields alone can tell neighbouring addresses apart (rss.py). */
#define AN_RSS_TABLE 128u

static inline unsigned an_rss_core(unsigned entry, unsigned cores)
{
    return (entry * cores + cores - 1) / AN_RSS_TABLE;
}

/* The entry that a flow belongs to, the same for both directions. */
static inline unsigned an_rss_entry(const struct an_key *key)
{
    return an_rss_hash(key) % AN_RSS_TABLE;
}

/* The same under any key. As cards do, it takes the ports of TCP and UDP alone. */
static inline unsigned an_rss_entry_keyed(const uint8_t *key40, const struct an_key *key)
{
    uint8_t input[36];
    int bytes = key->version == 4 ? 4 : 16, n = 2 * bytes;
    uint16_t ports[2] = {an_swap16(key->source_port), an_swap16(key->destination_port)};
    memcpy(input, key->source, (size_t)bytes);
    memcpy(input + bytes, key->destination, (size_t)bytes);
    if (key->protocol == AN_TCP || key->protocol == AN_UDP) {
        memcpy(input + n, ports, 4);
        n += 4;
    }
    return an_toeplitz(key40, input, n) % AN_RSS_TABLE;
}

#endif
