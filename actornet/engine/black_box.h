/* What a core is at, in memory that outlives its process: which handler runs, for which key; and the keys that it shuns,
 * because a handler of theirs was the end of a process before.
 *
 * The core alone writes; who buries its process reads. `handler` is written behind the key, so it is never of another one.
 */
#ifndef ACTORNET_BLACK_BOX_H
#define ACTORNET_BLACK_BOX_H

#include <stdint.h>

#include "ring.h" /* AN_LINE */
#include "types.h"

#define AN_SHUNNED 64

struct an_shunned {
    struct an_key key;
    uint64_t seen_ns; /* its last packet; 0: no key */
    uint64_t due;     /* its flow is still to be closed: 1 + the phase of the handler */
};

struct an_black_box {
    _Alignas(AN_LINE) uint64_t handler; /* 1 + the phase of the handler that runs; 0: none */
    struct an_key key;
    _Alignas(AN_LINE) uint64_t fatal; /* handlers that were the end of a process */
    uint64_t shunned_count; /* slots that were ever used */
    struct an_shunned shunned[AN_SHUNNED];
};

static inline void an_black_box_enter(struct an_black_box *box, const struct an_key *key, int phase)
{
    box->key = *key;
    __atomic_store_n(&box->handler, (uint64_t)phase + 1, __ATOMIC_RELEASE);
}

static inline void an_black_box_leave(struct an_black_box *box)
{
    __atomic_store_n(&box->handler, 0, __ATOMIC_RELEASE);
}

#endif
