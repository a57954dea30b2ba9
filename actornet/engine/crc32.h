/* CRC-32 as zlib has it (ISO 3309), where the CPU multiplies without carry in a quarter of zlib's time.
 *
 * The folding is that of Gopal et al., "Fast CRC Computation for Generic Polynomials Using PCLMULQDQ Instruction" (Intel,
 * 2009), with its constants for this polynomial, bits reflected; 16 bytes at a time, which is enough for a log's records.
 */
#ifndef ACTORNET_CRC32_H
#define ACTORNET_CRC32_H

#include <stddef.h>
#include <stdint.h>

#ifdef __x86_64__
#include <immintrin.h>

/* Of `blocks` times 16 bytes, at least one; `crc` is that of what came before, not inverted. */
__attribute__((target("pclmul,sse4.1"))) static uint32_t an_crc32_folded(uint32_t crc, const uint8_t *at, size_t blocks)
{
    const __m128i by_128 = _mm_set_epi64x(0x0ccaa009e, 0x1751997d0); /* x^(128-32), x^(128+32) mod P */
    const __m128i by_64 = _mm_cvtsi64_si128(0x163cd6124);            /* x^64 mod P */
    const __m128i barrett = _mm_set_epi64x(0x1f7011641, 0x1db710641); /* x^64 / P, P */
    const __m128i low = _mm_set_epi32(0, -1, 0, -1);
    __m128i x = _mm_xor_si128(_mm_loadu_si128((const __m128i *)at), _mm_cvtsi32_si128((int)crc));
    while (--blocks) {
        at += 16;
        x = _mm_xor_si128(_mm_clmulepi64_si128(x, by_128, 0x00), _mm_clmulepi64_si128(x, by_128, 0x11));
        x = _mm_xor_si128(x, _mm_loadu_si128((const __m128i *)at));
    }
    x = _mm_xor_si128(_mm_srli_si128(x, 8), _mm_clmulepi64_si128(x, by_128, 0x10));
    x = _mm_xor_si128(_mm_srli_si128(x, 4), _mm_clmulepi64_si128(_mm_and_si128(x, low), by_64, 0x00));
    __m128i y = _mm_and_si128(_mm_clmulepi64_si128(_mm_and_si128(x, low), barrett, 0x10), low);
    return (uint32_t)_mm_extract_epi32(_mm_xor_si128(x, _mm_clmulepi64_si128(y, barrett, 0x00)), 1);
}
#endif

/* Of `length` bytes behind those whose CRC is `crc`; 0 to begin with. */
static inline uint32_t an_crc32(uint32_t crc, const uint8_t *at, size_t length)
{
    static const uint32_t of_nibble[16] = {
        0x00000000, 0x1db71064, 0x3b6e20c8, 0x26d930ac, 0x76dc4190, 0x6b6b51f4, 0x4db26158, 0x5005713c,
        0xedb88320, 0xf00f9344, 0xd6d6a3e8, 0xcb61b38c, 0x9b64c2b0, 0x86d3d2d4, 0xa00ae278, 0xbdbdf21c,
    };
    crc = ~crc;
#ifdef __x86_64__
    if (length >= 16 && __builtin_cpu_supports("pclmul") && __builtin_cpu_supports("sse4.1")) {
        crc = an_crc32_folded(crc, at, length / 16);
        at += length & ~(size_t)15;
        length &= 15;
    }
#endif
    while (length--) {
        crc ^= *at++;
        crc = crc >> 4 ^ of_nibble[crc & 15];
        crc = crc >> 4 ^ of_nibble[crc & 15];
    }
    return ~crc;
}

#endif
