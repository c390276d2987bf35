#include "tests/support/expect.h"

#include "engine/core/block_pool.h"

enum { BLOCK = 4 };

static struct block_hash hash_of(const struct prefix_cache *cache, const struct block_hash *parent,
                                 const int32_t *tokens)
{
    return prefix_cache_hash(cache, parent, tokens, "");
}

static void a_block_is_found_by_its_tokens_behind_its_prefix(void **state)
{
    (void)state;
    AUTO_FREE(prefix_cache) struct prefix_cache *cache = prefix_cache_new(8, BLOCK);
    const int32_t a[BLOCK] = {1, 2, 3, 4}, b[BLOCK] = {5, 6, 7, 8};
    struct block_hash ha = hash_of(cache, NULL, a), hab = hash_of(cache, &ha, b);
    struct block_hash hb = hash_of(cache, NULL, b);

    prefix_cache_add(cache, 3, &ha, a);
    prefix_cache_add(cache, 5, &hab, b);
    assert_int_equal(prefix_cache_find(cache, &ha, a), 3);
    assert_int_equal(prefix_cache_find(cache, &hab, b), 5);
    assert_int_equal(prefix_cache_find(cache, &hb, b), -1); /* same tokens, other prefix */
    assert_int_equal(prefix_cache_find(cache, &ha, b), -1); /* a collision is no hit */
    prefix_cache_remove(cache, 3);
    prefix_cache_remove(cache, 3);
    assert_int_equal(prefix_cache_find(cache, &ha, a), -1);
    assert_int_equal(prefix_cache_num_blocks(cache), 1);
}

static void doubles_are_dealt_with_one_by_one(void **state)
{
    (void)state;
    AUTO_FREE(prefix_cache) struct prefix_cache *cache = prefix_cache_new(8, BLOCK);
    const int32_t a[BLOCK] = {1, 2, 3, 4};
    struct block_hash ha = hash_of(cache, NULL, a);

    prefix_cache_add(cache, 1, &ha, a);
    prefix_cache_add(cache, 2, &ha, a);
    assert_int_equal(prefix_cache_find(cache, &ha, a), 2);
    prefix_cache_remove(cache, 2);
    assert_int_equal(prefix_cache_find(cache, &ha, a), 1);
}

static void salts_and_engines_do_not_share_hashes(void **state)
{
    (void)state;
    AUTO_FREE(prefix_cache) struct prefix_cache *cache = prefix_cache_new(8, BLOCK);
    AUTO_FREE(prefix_cache) struct prefix_cache *other = prefix_cache_new(8, BLOCK);
    const int32_t a[BLOCK] = {1, 2, 3, 4};
    struct block_hash plain = prefix_cache_hash(cache, NULL, a, "");
    struct block_hash salted = prefix_cache_hash(cache, NULL, a, "tenant");
    struct block_hash elsewhere = prefix_cache_hash(other, NULL, a, "");

    assert_memory_not_equal(&plain, &salted, sizeof plain);
    assert_memory_not_equal(&plain, &elsewhere, sizeof plain);

    /* and what follows is apart too */
    plain = prefix_cache_hash(cache, &plain, a, "");
    salted = prefix_cache_hash(cache, &salted, a, "");
    assert_memory_not_equal(&plain, &salted, sizeof plain);
}

/* ---- with the pool -------------------------------------------------------------------------- */

static void know(struct prefix_cache *cache, block_id id)
{
    const int32_t tokens[BLOCK] = {id, id, id, id};
    struct block_hash hash = hash_of(cache, NULL, tokens);

    prefix_cache_add(cache, id, &hash, tokens);
}

static void cached_blocks_are_handed_out_last_and_tails_before_heads(void **state)
{
    (void)state;
    AUTO_FREE(prefix_cache) struct prefix_cache *cache = prefix_cache_new(6, BLOCK);
    AUTO_FREE(block_pool) struct block_pool *pool = block_pool_new(6);
    block_id ids[6], more[6];

    block_pool_use_cache(pool, cache);
    expect_ok(block_pool_take(pool, 5, ids)); /* 0 1 2 | 3 4 */
    know(cache, 0);
    know(cache, 1);
    know(cache, 3);
    block_pool_drop(pool, 3, ids);     /* 1 and 0 cached, 2 plain */
    block_pool_drop(pool, 2, ids + 3); /* 3 cached, 4 plain */
    block_pool_check(pool);

    expect_ok(block_pool_take(pool, 6, more));
    assert_int_equal(more[0], 4); /* the last freed whose contents nobody knows */
    assert_int_equal(more[1], 2);
    assert_int_equal(more[2], 5); /* never used */
    assert_int_equal(more[3], 1); /* the tail of the first, unused for longest */
    assert_int_equal(more[4], 0);
    assert_int_equal(more[5], 3);
    assert_int_equal(prefix_cache_num_blocks(cache), 0);
    block_pool_check(pool);
}

static void a_cached_block_is_revived_and_then_not_handed_out(void **state)
{
    (void)state;
    AUTO_FREE(prefix_cache) struct prefix_cache *cache = prefix_cache_new(2, BLOCK);
    AUTO_FREE(block_pool) struct block_pool *pool = block_pool_new(2);
    block_id ids[2], more[2];

    block_pool_use_cache(pool, cache);
    expect_ok(block_pool_take(pool, 2, ids));
    know(cache, 0);
    know(cache, 1);
    block_pool_drop(pool, 2, ids);
    block_pool_share(pool, 1);
    assert_int_equal(block_pool_num_free(pool), 1);
    assert_false(block_pool_reset_cache(pool)); /* one is in use */
    expect_fails(block_pool_take(pool, 2, more), ERR_FULL, "2 KV blocks wanted, 1 free");
    expect_ok(block_pool_take(pool, 1, more));
    assert_int_equal(more[0], 0);
    assert_true(prefix_cache_has(cache, 1));
    block_pool_drop(pool, 1, more);
    block_pool_drop(pool, 1, (block_id[]){1});
    assert_true(block_pool_reset_cache(pool));
    assert_int_equal(prefix_cache_num_blocks(cache), 0);
    block_pool_check(pool);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(a_block_is_found_by_its_tokens_behind_its_prefix),
    cmocka_unit_test(doubles_are_dealt_with_one_by_one),
    cmocka_unit_test(salts_and_engines_do_not_share_hashes),
    cmocka_unit_test(cached_blocks_are_handed_out_last_and_tails_before_heads),
    cmocka_unit_test(a_cached_block_is_revived_and_then_not_handed_out),
};
TEST_MAIN(tests)
