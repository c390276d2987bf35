#include "tests/support/expect.h"

#include "engine/core/block_pool.h"

static void take_is_all_or_nothing(void **state)
{
    (void)state;
    AUTO_FREE(block_pool) struct block_pool *pool = block_pool_new(4);
    block_id ids[5];

    expect_ok(block_pool_take(pool, 3, ids));
    expect_fails(block_pool_take(pool, 2, ids + 3), ERR_FULL, "2 KV blocks wanted, 1 free");
    assert_int_equal(block_pool_num_free(pool), 1);

    block_pool_drop(pool, 3, ids);
    assert_int_equal(block_pool_num_free(pool), 4);
    block_pool_check(pool);
}

static void fresh_blocks_come_after_freed_ones(void **state)
{
    (void)state;
    AUTO_FREE(block_pool) struct block_pool *pool = block_pool_new(10);
    block_id ids[10];

    expect_ok(block_pool_take(pool, 4, ids));
    assert_int_equal(ids[3], 3);
    block_pool_drop(pool, 2, ids + 1);
    expect_ok(block_pool_take(pool, 3, ids + 4));
    assert_int_equal(ids[4], 1); /* of those the last of the list is dropped first */
    assert_int_equal(ids[5], 2);
    assert_int_equal(ids[6], 4);
    block_pool_check(pool);
}

static void a_drained_pool_fills_again(void **state)
{
    (void)state;
    AUTO_FREE(block_pool) struct block_pool *pool = block_pool_new(5);
    block_id ids[5], again[5];

    for (int round = 0; round < 3; round++) {
        expect_ok(block_pool_take(pool, 5, ids));
        expect_fails(block_pool_take(pool, 1, again), ERR_FULL, "1 KV blocks wanted, 0 free");
        expect_ok(block_pool_take(pool, 0, again));
        block_pool_drop(pool, 2, ids);
        block_pool_drop(pool, 3, ids + 2);
        block_pool_check(pool);
        expect_ok(block_pool_take(pool, 5, again)); /* what was dropped last comes first */
        for (int i = 0; i < 3; i++)
            assert_int_equal(again[i], ids[2 + i]);
        assert_int_equal(again[3], ids[0]);
        block_pool_drop(pool, 5, again);
        block_pool_check(pool);
    }
}

static void a_shared_block_is_free_when_its_last_user_drops_it(void **state)
{
    (void)state;
    AUTO_FREE(block_pool) struct block_pool *pool = block_pool_new(2);
    block_id id;

    expect_ok(block_pool_take(pool, 1, &id));
    block_pool_share(pool, id);
    block_pool_drop(pool, 1, &id);
    assert_int_equal(block_pool_num_free(pool), 1);
    block_pool_drop(pool, 1, &id);
    assert_int_equal(block_pool_num_free(pool), 2);
    block_pool_check(pool);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(take_is_all_or_nothing),
    cmocka_unit_test(fresh_blocks_come_after_freed_ones),
    cmocka_unit_test(a_drained_pool_fills_again),
    cmocka_unit_test(a_shared_block_is_free_when_its_last_user_drops_it),
};
TEST_MAIN(tests)
