/* The few forms of msgpack that messages between cores and the owner system are made of, written and read with bounds.
 *
 * What is written is what msgspec writes for the same values: the shortest form. So equal values have equal bytes, and
 * bytes can be compared and looked up in place of values.
 */
#ifndef ACTORNET_MSGPACK_H
#define ACTORNET_MSGPACK_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define AN_MP_NIL 0xc0
#define AN_MP_ARRAY 0x90 /* + its length, up to 15 */
#define AN_MP_HEAD_MAX 9 /* bytes before a value's content, whatever the value */

static inline uint8_t *an_mp_big_endian(uint8_t *out, uint64_t value, int bytes)
{
    for (int i = bytes - 1; i >= 0; i--)
        *out++ = (uint8_t)(value >> 8 * i);
    return out;
}

static inline uint8_t *an_mp_head(uint8_t *out, uint8_t first, uint64_t value, int bytes)
{
    *out++ = first;
    return an_mp_big_endian(out, value, bytes);
}

static inline uint8_t *an_mp_uint(uint8_t *out, uint64_t value)
{
    if (value < 0x80)
        return an_mp_head(out, (uint8_t)value, 0, 0);
    if (value <= UINT8_MAX)
        return an_mp_head(out, 0xcc, value, 1);
    if (value <= UINT16_MAX)
        return an_mp_head(out, 0xcd, value, 2);
    return value <= UINT32_MAX ? an_mp_head(out, 0xce, value, 4) : an_mp_head(out, 0xcf, value, 8);
}

/* What comes before the content of a string: `first` 0xd9; of bytes: 0xc4. */
static inline uint8_t *an_mp_content_head(uint8_t *out, uint8_t first, uint32_t length)
{
    if (first == 0xd9 && length < 32)
        return an_mp_head(out, (uint8_t)(0xa0 | length), 0, 0);
    if (length <= UINT8_MAX)
        return an_mp_head(out, first, length, 1);
    return length <= UINT16_MAX ? an_mp_head(out, first + 1, length, 2) : an_mp_head(out, first + 2, length, 4);
}

static inline uint8_t *an_mp_bin_head(uint8_t *out, uint32_t length)
{
    return an_mp_content_head(out, 0xc4, length);
}

static inline uint8_t *an_mp_content(uint8_t *out, uint8_t first, const void *content, uint32_t length)
{
    out = an_mp_content_head(out, first, length);
    memcpy(out, content, length);
    return out + length;
}

static inline uint8_t *an_mp_str(uint8_t *out, const void *text, uint32_t length)
{
    return an_mp_content(out, 0xd9, text, length);
}

static inline uint8_t *an_mp_bin(uint8_t *out, const void *bytes, uint32_t length)
{
    return an_mp_content(out, 0xc4, bytes, length);
}

/* What is left to read; `at` NULL: what was read was not what was expected, and nothing more is. */
struct an_mp {
    const uint8_t *at, *end;
};

static inline uint64_t an_mp_take(struct an_mp *in, int bytes)
{
    uint64_t value = 0;
    if (!in->at || in->end - in->at < bytes) {
        in->at = NULL;
        return 0;
    }
    while (bytes--)
        value = value << 8 | *in->at++;
    return value;
}

static inline uint64_t an_mp_read_uint(struct an_mp *in)
{
    uint64_t first = an_mp_take(in, 1);
    if (first < 0x80)
        return first;
    if (first >= 0xcc && first <= 0xcf)
        return an_mp_take(in, 1 << (first - 0xcc));
    in->at = NULL;
    return 0;
}

/* The content of a string or of bytes, as above; its length goes to `length`. */
static inline const uint8_t *an_mp_read_content(struct an_mp *in, uint8_t kind, size_t *length)
{
    uint64_t first = an_mp_take(in, 1), size = 0;
    if (kind == 0xd9 && (first & 0xe0) == 0xa0)
        size = first & 0x1f;
    else if (first >= kind && first <= kind + 2u)
        size = an_mp_take(in, 1 << (first - kind));
    else
        in->at = NULL;
    if (!in->at || (uint64_t)(in->end - in->at) < size) {
        in->at = NULL;
        *length = 0;
        return NULL;
    }
    *length = (size_t)size;
    in->at += size;
    return in->at - size;
}

static inline const uint8_t *an_mp_read_str(struct an_mp *in, size_t *length)
{
    return an_mp_read_content(in, 0xd9, length);
}

static inline const uint8_t *an_mp_read_bin(struct an_mp *in, size_t *length)
{
    return an_mp_read_content(in, 0xc4, length);
}

/* Past the next value, whatever it is, and all that is in it. */
static inline void an_mp_skip(struct an_mp *in)
{
    uint64_t left = 1; /* values; each takes a byte or more, so there are no more steps than bytes */
    while (in->at && left) {
        uint64_t first = an_mp_take(in, 1), size = 0;
        left--;
        if (!in->at)
            return;
        if (first < 0x80 || first >= 0xe0 || (first >= 0xc0 && first <= 0xc3 && first != 0xc1))
            continue; /* small numbers, nil, false, true */
        if (first < 0x90)
            left += 2 * (first & 0x0f);
        else if (first < 0xa0)
            left += first & 0x0f;
        else if (first < 0xc0)
            size = first & 0x1f;
        else if (first >= 0xc4 && first <= 0xc6)
            size = an_mp_take(in, 1 << (first - 0xc4));
        else if (first >= 0xc7 && first <= 0xc9)
            size = an_mp_take(in, 1 << (first - 0xc7)) + 1;
        else if (first == 0xca || first == 0xcb)
            size = first == 0xca ? 4 : 8;
        else if (first >= 0xcc && first <= 0xd3)
            size = 1u << ((first - 0xcc) & 3);
        else if (first >= 0xd4 && first <= 0xd8)
            size = (1u << (first - 0xd4)) + 1;
        else if (first >= 0xd9 && first <= 0xdb)
            size = an_mp_take(in, 1 << (first - 0xd9));
        else if (first == 0xdc || first == 0xdd)
            left += an_mp_take(in, first == 0xdc ? 2 : 4);
        else if (first == 0xde || first == 0xdf)
            left += 2 * an_mp_take(in, first == 0xde ? 2 : 4);
        else
            in->at = NULL; /* 0xc1 is never used */
        if (!in->at || (uint64_t)(in->end - in->at) < size)
            in->at = NULL;
        else
            in->at += size;
    }
}

#endif
