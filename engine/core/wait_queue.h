/*
 * wait_queue: requests that wait to be scheduled, first come first served or by priority.
 *
 * Order under priority: lower number first, then the order of submission. A preempted request
 * is older than those that wait, so it goes back to the head of its kind.
 *
 * Thread: core only.
 */
#ifndef ENGINE_CORE_WAIT_QUEUE_H
#define ENGINE_CORE_WAIT_QUEUE_H

#include "engine/core/request.h"

enum scheduling_policy { POLICY_FCFS, POLICY_PRIORITY };

struct wait_queue {
    struct list_node requests;
    enum scheduling_policy policy;
    int32_t num_requests;
};

void wait_queue_init(struct wait_queue *queue, enum scheduling_policy policy);
/* In its place by the policy. */
void wait_queue_add(struct wait_queue *queue, struct request *request);
/* NULL when empty. */
struct request *wait_queue_first(const struct wait_queue *queue);
void wait_queue_remove(struct wait_queue *queue, struct request *request);

/* true: `a` is to run before `b`. */
bool wait_queue_is_before(const struct wait_queue *queue, const struct request *a,
                          const struct request *b);

#endif
