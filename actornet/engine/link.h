/* Changes a parsed packet's Ethernet header: MAC addresses, and the outermost VLAN tag (IEEE 802.1Q). */
#ifndef ACTORNET_LINK_H
#define ACTORNET_LINK_H

#include "parse.h"

#define AN_TAG_BYTES 4

/* Whether the change needs AN_TAG_BYTES of room before the frame. */
static inline int an_link_grows(const struct an_packet *p, const struct an_link *link)
{
    return link->fields & AN_LINK_VLAN && link->vlan && !(p->flags & AN_VLAN);
}

/* The frame began `bytes` earlier or, negative, later: every offset into it follows, the virtio header's too. */
static inline void an_link_shift(struct an_packet *p, int bytes)
{
    p->data -= bytes;
    p->length = (uint32_t)((int)p->length + bytes);
    p->l3 = (uint16_t)(p->l3 + bytes);
    p->l4 = (uint16_t)(p->l4 + bytes);
    p->payload = (uint16_t)(p->payload + bytes);
    if (p->l3_end != 0xffff)
        p->l3_end = (uint16_t)(p->l3_end + bytes);
    if (p->inner_l3) {
        p->inner_l3 = (uint16_t)(p->inner_l3 + bytes);
        p->inner_l4 = (uint16_t)(p->inner_l4 + bytes);
    }
    if (p->tunnel) {
        p->outer_l3 = (uint16_t)(p->outer_l3 + bytes);
        p->outer_l4 = (uint16_t)(p->outer_l4 + bytes);
    }
    if (p->flags & AN_CSUM_PARTIAL) {
        uint16_t header_bytes = an_load16(p->vnet + 2), csum_start = an_load16(p->vnet + 6);
        if (header_bytes)
            an_store16(p->vnet + 2, (uint16_t)(header_bytes + bytes));
        an_store16(p->vnet + 6, (uint16_t)(csum_start + bytes));
    }
}

/* `p` is a packet of a flow, so its Ethernet header is there, with the tags that AN_VLAN tells of; if an_link_grows(),
 * there is room before it. A tag keeps its priority bits when only its identifier changes. */
static inline void an_link_apply(struct an_packet *p, const struct an_link *link)
{
    if (link->fields & AN_LINK_VLAN) {
        if (an_link_grows(p, link)) {
            an_link_shift(p, AN_TAG_BYTES);
            memmove(p->data, p->data + AN_TAG_BYTES, 12);
            an_store16(p->data + 12, an_swap16(0x8100));
            an_store16(p->data + 14, an_swap16(link->vlan));
            p->flags |= AN_VLAN;
        } else if (link->vlan) {
            uint16_t tag = an_swap16(an_load16(p->data + 14));
            an_store16(p->data + 14, an_swap16((uint16_t)((tag & 0xf000) | link->vlan)));
        } else if (p->flags & AN_VLAN) {
            memmove(p->data + AN_TAG_BYTES, p->data, 12);
            an_link_shift(p, -AN_TAG_BYTES);
            uint16_t type = an_load16(p->data + 12);
            if (!an_is_vlan(type)) /* one may be left */
                p->flags &= (uint8_t)~AN_VLAN;
        }
    }
    if (link->fields & AN_LINK_DESTINATION)
        memcpy(p->data, link->destination, 6);
    if (link->fields & AN_LINK_SOURCE)
        memcpy(p->data + 6, link->source, 6);
}

#endif
