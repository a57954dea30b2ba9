/* Packets that outlive their burst, and the queues in which they wait: a mailbox, for a neighbour, for the watermark.
 *
 * A parked packet has one owner: the queue it stands in, or who took it out. Whoever is given an `an_packet` with
 * AN_COPIED set frees it. */
#ifndef ACTORNET_PARKED_H
#define ACTORNET_PARKED_H

#include <stddef.h>
#include <stdlib.h>

#include "types.h"

#define AN_HEADROOM_BYTES 4 /* before a parked frame: for a VLAN tag that it may get */

struct an_parked {
    struct an_packet p; /* first: a parked packet is a packet */
    struct an_parked *next;
    void *flow;         /* owned reference, or NULL */
    uint64_t need;      /* committed sequence number that lets it go */
    uint64_t since_ns;  /* waits for it */
    uint64_t number;    /* for a backup that is to know of it, in the order of arrival; 0: none yet */
    int32_t out;        /* port to leave by; -1: a marker without a frame */
    uint8_t told;       /* a backup knows of it */
    uint8_t frame[];
};

struct an_queue {
    struct an_parked *head, *tail;
    uint32_t length;
};

/* A copy of the packet that outlives the burst; one that is parked already is itself. Without a packet, a marker. NULL
 * when there is no memory. */
static inline struct an_parked *an_park(struct an_packet *p)
{
    struct an_parked *item;
    if (p && p->flags & AN_COPIED)
        return (struct an_parked *)p;
    item = (struct an_parked *)malloc(sizeof *item + (p ? AN_HEADROOM_BYTES + p->length : 0));
    if (!item)
        return NULL;
    memset(item, 0, offsetof(struct an_parked, frame));
    if (p) {
        item->p = *p;
        item->p.data = item->frame + AN_HEADROOM_BYTES;
        item->p.flags |= AN_COPIED;
        memcpy(item->p.data, p->data, p->length);
    }
    return item;
}

static inline void an_queue_push(struct an_queue *q, struct an_parked *item)
{
    item->next = NULL;
    if (q->tail)
        q->tail->next = item;
    else
        q->head = item;
    q->tail = item;
    q->length++;
}

/* The oldest, which the caller now owns; NULL when there is none. */
static inline struct an_parked *an_queue_pop(struct an_queue *q)
{
    struct an_parked *item = q->head;
    if (!item)
        return NULL;
    q->head = item->next;
    if (!q->head)
        q->tail = NULL;
    q->length--;
    return item;
}

#endif
