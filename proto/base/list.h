/*
 * list: a doubly linked list through a member of the things that are listed.
 *
 * The head is a node of its own; an empty list's head points to itself, and a removed node to nothing.
 *
 * Thread: that of the list's owner.
 */
#ifndef PROTO_BASE_LIST_H
#define PROTO_BASE_LIST_H

#include "proto/base/memory.h"

struct list_node {
    struct list_node *next, *previous;
};

static inline void list_init(struct list_node *head)
{
    head->next = head->previous = head;
}

static inline bool list_is_empty(const struct list_node *head)
{
    return head->next == head;
}

static inline void list_insert_before(struct list_node *at, struct list_node *node)
{
    ASSERT(!node->next && !node->previous, "already in a list");
    node->next = at;
    node->previous = at->previous;
    at->previous->next = node;
    at->previous = node;
}

static inline void list_push_back(struct list_node *head, struct list_node *node)
{
    list_insert_before(head, node);
}

static inline void list_push_front(struct list_node *head, struct list_node *node)
{
    list_insert_before(head->next, node);
}

static inline void list_remove(struct list_node *node)
{
    node->next->previous = node->previous;
    node->previous->next = node->next;
    node->next = node->previous = NULL;
}

/* The thing a node is a member of. */
#define LIST_ITEM(node, type, member) CONTAINER_OF(node, type, member)

/* NULL when empty. */
#define LIST_FIRST(head, type, member)                                                             \
    (list_is_empty(head) ? NULL : LIST_ITEM((head)->next, type, member))
#define LIST_LAST(head, type, member)                                                              \
    (list_is_empty(head) ? NULL : LIST_ITEM((head)->previous, type, member))

/* `item` may be removed from the list in the body. */
#define LIST_FOR_EACH(item, head, member)                                                          \
    for (typeof(item) next_##item = (item = LIST_ITEM((head)->next, typeof(*item), member),        \
                                     LIST_ITEM(item->member.next, typeof(*item), member));         \
         &item->member != (head);                                                                  \
         item = next_##item, next_##item = LIST_ITEM(item->member.next, typeof(*item), member))

#endif
