#include "tests/support/expect.h"

#include "engine/core/wait_queue.h"

enum { MOST = 300 };

static uint32_t random_below(uint32_t *seed, uint32_t n)
{
    *seed = *seed * 1664525u + 1013904223u;
    return (*seed >> 8) % n;
}

/* The one that should be first, looked for the slow way. */
static struct request *first_of(const struct wait_queue *queue, struct request *requests,
                                bool begun)
{
    struct request *first = NULL;

    for (int32_t i = 0; i < MOST; i++)
        if (requests[i].state == REQUEST_WAITING && (!begun || requests[i].scheduled_ns > 0) &&
            (!first || wait_queue_is_before(queue, &requests[i], first)))
            first = &requests[i];
    return first;
}

/* Requests that join, leave and come back at random. */
static void the_first_is_first_whatever_joins_and_leaves(void **state)
{
    (void)state;
    for (uint32_t round = 1; round <= 20; round++) {
        uint32_t seed = round;
        struct request *requests = mem_new_array(struct request, MOST);
        enum scheduling_policy policy = round & 1 ? POLICY_PRIORITY : POLICY_FCFS;
        struct wait_queue queue;

        wait_queue_init(&queue, policy);
        wait_queue_reserve(&queue, MOST);
        for (int32_t i = 0; i < MOST; i++) {
            requests[i].id = i + 1;
            requests[i].state = REQUEST_RUNNING;
            requests[i].priority = (int32_t)random_below(&seed, 5) - 2;
            requests[i].scheduled_ns = random_below(&seed, 3) == 0;
        }
        for (int turn = 0; turn < 2000; turn++) {
            struct request *request = &requests[random_below(&seed, MOST)];

            if (random_below(&seed, 4) == 0 && queue.num_requests > 0)
                request = wait_queue_first(&queue);
            if (request->state == REQUEST_WAITING) {
                wait_queue_remove(&queue, request);
                request->state = REQUEST_RUNNING;
            } else {
                wait_queue_add(&queue, request);
            }
            wait_queue_check(&queue);
            assert_ptr_equal(wait_queue_first(&queue), first_of(&queue, requests, false));
            assert_ptr_equal(wait_queue_first_begun(&queue), first_of(&queue, requests, true));
        }
        wait_queue_close(&queue);
        mem_free(requests);
    }
}

static void an_empty_queue_has_no_first(void **state)
{
    struct request request = {.id = 1};
    struct wait_queue queue;

    (void)state;
    wait_queue_init(&queue, POLICY_FCFS);
    assert_null(wait_queue_first(&queue));
    assert_null(wait_queue_first_begun(&queue));
    wait_queue_reserve(&queue, 1);
    wait_queue_add(&queue, &request);
    assert_ptr_equal(wait_queue_first(&queue), &request);
    assert_null(wait_queue_first_begun(&queue));
    wait_queue_remove(&queue, &request);
    assert_null(wait_queue_first(&queue));
    wait_queue_close(&queue);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(the_first_is_first_whatever_joins_and_leaves),
    cmocka_unit_test(an_empty_queue_has_no_first),
};
TEST_MAIN(tests)
