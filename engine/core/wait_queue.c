#include "engine/core/wait_queue.h"

void wait_queue_init(struct wait_queue *queue, enum scheduling_policy policy)
{
    list_init(&queue->requests);
    queue->policy = policy;
    queue->num_requests = 0;
}

bool wait_queue_is_before(const struct wait_queue *queue, const struct request *a,
                          const struct request *b)
{
    if (queue->policy == POLICY_PRIORITY && a->priority != b->priority)
        return a->priority < b->priority;
    return a->id < b->id;
}

void wait_queue_add(struct wait_queue *queue, struct request *request)
{
    struct list_node *at = &queue->requests;

    /* From the end: a newcomer seldom goes before anybody. */
    while (at->previous != &queue->requests &&
           wait_queue_is_before(queue, request, LIST_ITEM(at->previous, struct request, link)))
        at = at->previous;
    list_insert_before(at, &request->link);
    request->state = REQUEST_WAITING;
    queue->num_requests++;
}

struct request *wait_queue_first(const struct wait_queue *queue)
{
    return LIST_FIRST(&queue->requests, struct request, link);
}

void wait_queue_remove(struct wait_queue *queue, struct request *request)
{
    list_remove(&request->link);
    queue->num_requests--;
}
