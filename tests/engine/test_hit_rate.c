#include "tests/support/expect.h"

#include "engine/core/hit_rate.h"

static void expect_rate(const struct hit_rate *rate, int64_t hits, int64_t queries)
{
    assert_int_equal(rate->hits, hits);
    assert_int_equal(rate->queries, queries);
}

static void the_rate_is_that_of_the_last_requests(void **state)
{
    struct hit_rate rate = {0};

    (void)state;
    hit_rate_observe(&rate, 20, 9);
    expect_rate(&rate, 9, 20);
    for (int i = 0; i < 4; i++)
        hit_rate_observe(&rate, 20, 4);
    expect_rate(&rate, 25, 100);

    for (int i = 5; i < HIT_RATE_REQUESTS; i++)
        hit_rate_observe(&rate, 10, 2);
    expect_rate(&rate, 25 + 995 * 2, 100 + 995 * 10);
    hit_rate_observe(&rate, 10, 2); /* one more: the first is forgotten */
    expect_rate(&rate, 25 - 9 + 996 * 2, 100 - 20 + 996 * 10);

    hit_rate_clear(&rate);
    hit_rate_observe(&rate, 10, 5);
    expect_rate(&rate, 5, 10);
}

static void no_query_is_not_the_same_as_no_hit(void **state)
{
    struct hit_rate rate = {0};

    (void)state;
    expect_rate(&rate, 0, 0);
    hit_rate_observe(&rate, 10, 0);
    expect_rate(&rate, 0, 10);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(the_rate_is_that_of_the_last_requests),
    cmocka_unit_test(no_query_is_not_the_same_as_no_hit),
};
TEST_MAIN(tests)
