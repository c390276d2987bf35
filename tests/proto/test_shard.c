#include "tests/support/expect.h"

#include "proto/model/shard.h"

static const struct model_config smollm2 = {.num_heads = 9,
                                            .num_kv_heads = 3,
                                            .head_dim = 64,
                                            .intermediate_size = 1536,
                                            .vocab_size = 49152};
static const struct model_config gemma3 = {.num_heads = 4,
                                           .num_kv_heads = 1,
                                           .head_dim = 256,
                                           .intermediate_size = 2048,
                                           .vocab_size = 262144};

static struct shard shard_of(const struct model_config *config, int32_t rank, int32_t world)
{
    struct shard shard;

    expect_ok(shard_init(config, rank, world, &shard));
    return shard;
}

static void nine_heads_on_five_ranks_are_dealt_in_order(void **state)
{
    static const int32_t num_heads[] = {2, 2, 2, 2, 1};
    static const int32_t first_kv_head[] = {0, 0, 1, 2, 2};
    static const int32_t num_kv_heads[] = {1, 2, 1, 1, 1};

    (void)state;
    for (int32_t rank = 0; rank < 5; rank++) {
        struct shard shard = shard_of(&smollm2, rank, 5);

        assert_int_equal(shard.first_head, 2 * rank);
        assert_int_equal(shard.num_heads, num_heads[rank]);
        assert_int_equal(shard.first_kv_head, first_kv_head[rank]);
        assert_int_equal(shard.num_kv_heads, num_kv_heads[rank]);
    }
}

static void one_kv_head_is_replicated_to_every_rank(void **state)
{
    (void)state;
    for (int32_t rank = 0; rank < 4; rank++) {
        struct shard shard = shard_of(&gemma3, rank, 4);

        assert_int_equal(shard.num_heads, 1);
        assert_int_equal(shard.first_kv_head, 0);
        assert_int_equal(shard.num_kv_heads, 1);
    }
}

/* Every unit belongs to exactly one rank, every rank has some, and ranks follow one another. */
static void every_world_covers_the_model_once(void **state)
{
    struct model_config odd = smollm2;

    odd.vocab_size = 32 * 100 + 7;
    const struct model_config *configs[] = {&smollm2, &gemma3, &odd};

    (void)state;
    for (size_t c = 0; c < COUNT_OF(configs); c++) {
        for (int32_t world = 1; world <= shard_max_world(configs[c]); world++) {
            int32_t head = 0, group = 0, token = 0;

            for (int32_t rank = 0; rank < world; rank++) {
                struct shard shard = shard_of(configs[c], rank, world);

                assert_int_equal(shard.first_head, head);
                assert_int_equal(shard.first_group, group);
                assert_int_equal(shard.first_token, token);
                assert_true(shard.num_heads > 0 && shard.num_groups > 0 && shard.num_tokens > 0);
                assert_int_equal(shard.first_token % 32, 0);
                head += shard.num_heads;
                group += shard.num_groups;
                token += shard.num_tokens;
            }
            assert_int_equal(head, configs[c]->num_heads);
            assert_int_equal(group * shard_of(configs[c], 0, world).group_columns,
                             configs[c]->intermediate_size);
            assert_int_equal(token, configs[c]->vocab_size);
        }
    }
}

static void groups_depend_on_the_model_alone(void **state)
{
    static const struct {
        int32_t intermediate_size, group_columns;
    } rows[] = {{1536, 96}, {2048, 128}, {11008, 1376}, {14336, 896}, {4864, 608}, {32, 32}};

    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        struct model_config config = smollm2;

        config.intermediate_size = rows[i].intermediate_size;
        for (int32_t world = 1; world <= shard_max_world(&config); world++)
            assert_int_equal(shard_of(&config, world - 1, world).group_columns,
                             rows[i].group_columns);
    }
}

static void a_world_too_large_is_refused_with_the_largest(void **state)
{
    struct shard shard;

    (void)state;
    assert_int_equal(shard_max_world(&smollm2), 9);
    assert_int_equal(shard_max_world(&gemma3), 4);
    expect_fails(shard_init(&smollm2, 0, 10, &shard), ERR_INVALID, "at most 9 ranks");
    expect_fails(shard_init(&gemma3, 0, 5, &shard), ERR_INVALID, "at most 4 ranks");
    expect_fails(shard_init(&gemma3, 0, 0, &shard), ERR_INVALID, "--tp 0");
}

static void sizes_without_whole_units_are_refused_by_name(void **state)
{
    struct model_config config = smollm2;
    struct shard shard;

    (void)state;
    config.intermediate_size = 1531;
    expect_fails(shard_init(&config, 0, 1, &shard), ERR_UNSUPPORTED,
                 "intermediate size 1531 is not a multiple of 32");
    assert_int_equal(shard_max_world(&config), 0);

    config = smollm2;
    config.head_dim = 80;
    expect_fails(shard_init(&config, 0, 1, &shard), ERR_UNSUPPORTED, "80 dimensions");

    config = smollm2;
    config.num_kv_heads = 2;
    expect_fails(shard_init(&config, 0, 1, &shard), ERR_UNSUPPORTED,
                 "9 attention heads cannot share 2 KV heads");
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(nine_heads_on_five_ranks_are_dealt_in_order),
    cmocka_unit_test(one_kv_head_is_replicated_to_every_rank),
    cmocka_unit_test(every_world_covers_the_model_once),
    cmocka_unit_test(groups_depend_on_the_model_alone),
    cmocka_unit_test(a_world_too_large_is_refused_with_the_largest),
    cmocka_unit_test(sizes_without_whole_units_are_refused_by_name),
};

TEST_MAIN(tests)
