#include "engine/core/wait_queue.h"

void wait_queue_init(struct wait_queue *queue, enum scheduling_policy policy)
{
    *queue = (struct wait_queue){.policy = policy};
}

void wait_queue_close(struct wait_queue *queue)
{
    mem_free(queue->heap);
}

bool wait_queue_is_before(const struct wait_queue *queue, const struct request *a,
                          const struct request *b)
{
    if (queue->policy == POLICY_PRIORITY && a->priority != b->priority)
        return a->priority < b->priority;
    return a->id < b->id;
}

static void put(struct wait_queue *queue, int32_t place, struct request *request)
{
    queue->heap[place] = request;
    request->wait_place = place;
}

/* The place is free: the request goes there, or further up or down, where it belongs. */
static void settle(struct wait_queue *queue, int32_t place, struct request *request)
{
    struct request **heap = queue->heap;
    int32_t n = queue->num_requests;

    while (place > 0 && wait_queue_is_before(queue, request, heap[(place - 1) / 2])) {
        put(queue, place, heap[(place - 1) / 2]);
        place = (place - 1) / 2;
    }
    for (int32_t child; (child = 2 * place + 1) < n; place = child) {
        if (child + 1 < n && wait_queue_is_before(queue, heap[child + 1], heap[child]))
            child++;
        if (!wait_queue_is_before(queue, heap[child], request))
            break;
        put(queue, place, heap[child]);
    }
    put(queue, place, request);
}

void wait_queue_reserve(struct wait_queue *queue, int32_t num_requests)
{
    if (num_requests <= queue->capacity)
        return;
    queue->capacity = MAX(num_requests, 2 * queue->capacity);
    queue->heap = mem_resize(queue->heap, (size_t)queue->capacity * sizeof *queue->heap);
}

void wait_queue_add(struct wait_queue *queue, struct request *request)
{
    ASSERT(queue->num_requests < queue->capacity);
    request->state = REQUEST_WAITING;
    queue->num_begun += request->scheduled_ns > 0;
    queue->num_requests++;
    settle(queue, queue->num_requests - 1, request);
}

struct request *wait_queue_first(const struct wait_queue *queue)
{
    return queue->num_requests > 0 ? queue->heap[0] : NULL;
}

struct request *wait_queue_first_begun(const struct wait_queue *queue)
{
    struct request *first = NULL, *request;

    if (queue->num_begun > 0)
        WAIT_QUEUE_FOR_EACH (request, queue)
            if (request->scheduled_ns > 0 &&
                (!first || wait_queue_is_before(queue, request, first)))
                first = request;
    return first;
}

void wait_queue_remove(struct wait_queue *queue, struct request *request)
{
    struct request *last = queue->heap[--queue->num_requests];

    ASSERT(request->state == REQUEST_WAITING && queue->heap[request->wait_place] == request);
    queue->num_begun -= request->scheduled_ns > 0;
    if (last != request)
        settle(queue, request->wait_place, last);
}

void wait_queue_check(const struct wait_queue *queue)
{
    const struct request *request;
    int32_t num_begun = 0;

    WAIT_QUEUE_FOR_EACH (request, queue) {
        const struct request *parent = queue->heap[MAX(0, place_ - 1) / 2];

        ASSERT(request->state == REQUEST_WAITING && request->wait_place == place_);
        ASSERT(!wait_queue_is_before(queue, request, parent));
        num_begun += request->scheduled_ns > 0;
    }
    ASSERT(num_begun == queue->num_begun);
}
