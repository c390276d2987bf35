/*
 * wait_queue: requests that wait to be scheduled, first come first served or by priority.
 *
 * Order under priority: lower number first, then the order of submission. A preempted request
 * is older than those that wait, so it goes back to the head of its kind.
 *
 * A binary heap: with a hundred thousand requests inside, one that joins, leaves or comes back costs a
 * few steps all the same. It grows where wait_queue_reserve says so, and nowhere else.
 *
 * Thread: core only.
 */
#ifndef ENGINE_CORE_WAIT_QUEUE_H
#define ENGINE_CORE_WAIT_QUEUE_H

#include "engine/core/request.h"

enum scheduling_policy { POLICY_FCFS, POLICY_PRIORITY };

struct wait_queue {
    struct request **heap; /* [num_requests] none is before the one at (its place - 1) / 2 */
    enum scheduling_policy policy;
    int32_t num_requests, capacity;
    int32_t num_begun; /* of them: were scheduled before, and preempted */
};

void wait_queue_init(struct wait_queue *queue, enum scheduling_policy policy);
void wait_queue_close(struct wait_queue *queue);

/* Room for so many requests. */
void wait_queue_reserve(struct wait_queue *queue, int32_t num_requests);
/* In its place by the policy; there must be room. */
void wait_queue_add(struct wait_queue *queue, struct request *request);
/* The next in line; NULL when empty. */
struct request *wait_queue_first(const struct wait_queue *queue);
/* The next of those that have begun; NULL when there is none. Looks at all. */
struct request *wait_queue_first_begun(const struct wait_queue *queue);
void wait_queue_remove(struct wait_queue *queue, struct request *request);

/* true: `a` is to run before `b`. */
bool wait_queue_is_before(const struct wait_queue *queue, const struct request *a,
                          const struct request *b);

/* Asserts that places, order and counts agree. */
void wait_queue_check(const struct wait_queue *queue);

/* Every request, in no order; the queue must not change meanwhile. */
#define WAIT_QUEUE_FOR_EACH(request, queue)                                                        \
    for (int32_t place_ = 0;                                                                       \
         place_ < (queue)->num_requests && ((request) = (queue)->heap[place_], true); place_++)

#endif
