/* Prefix caching as requests meet it; what the cache itself promises is in test_prefix_cache.c. */
#include "tests/engine/scheduler_bench.h"

/* ---- prompts -------------------------------------------------------------------------------- */

static struct bench *open_bench(int32_t num_blocks)
{
    struct scheduler_options options = ROOMY;

    options.enable_prefix_caching = true;
    options.num_blocks = num_blocks;
    return bench_new(&options);
}

/* n tokens of one row of tokens, the same for the same `from`. */
static const int32_t *tokens(int32_t from, int32_t n)
{
    static int32_t out[512];

    for (int32_t i = 0; i < n; i++)
        out[i] = 10 + (from + i) % (VOCAB - 10);
    return out;
}

/* `common` tokens that all share, then some of its own. */
static const int32_t *forked(int32_t common, int32_t own, int32_t n)
{
    static int32_t out[512];

    memcpy(out, tokens(0, common), sizeof *out * (size_t)common);
    memcpy(out + common, tokens(own, n - common), sizeof *out * (size_t)(n - common));
    return out;
}

static request_id ask(struct bench *b, const int32_t *prompt, int32_t n, int32_t max_tokens)
{
    return bench_add(
        b, (struct wish){
               .num_prompt = n, .max_tokens = max_tokens, .prompt = prompt, .ignore_eos = true});
}

/* The new request of the plan: how many tokens it has to compute, and its blocks. */
static void expect_blocks(struct bench *b, const struct scheduler_output *plan, int32_t num_tokens,
                          const block_id *blocks, int32_t num_blocks)
{
    const struct new_request *request = &plan->new_requests[0];

    assert_int_equal(plan->num_new_requests, 1);
    expect_row(plan, plan->num_rows - 1, b->last_id, num_tokens);
    assert_int_equal(request->num_block_ids, num_blocks);
    assert_memory_equal(request->block_ids, blocks, sizeof *blocks * (size_t)num_blocks);
}

#define expect_new(plan, num_tokens, ...)                                                          \
    expect_blocks(b, plan, num_tokens, (const block_id[]){__VA_ARGS__},                            \
                  COUNT_OF(((const block_id[]){__VA_ARGS__})))

/* ---- hits ----------------------------------------------------------------------------------- */

static void full_blocks_are_shared_and_the_oldest_given_up_first(void **state)
{
    struct bench *b = open_bench(10);

    (void)state;
    ask(b, forked(48, 300, 55), 55, 2);
    expect_new(bench_schedule(b), 55, 0, 1, 2, 3);
    bench_answer(b, BY_HASH);
    ask(b, forked(48, 400, 53), 53, 2);
    expect_new(bench_schedule(b), 5, 0, 1, 2, 4); /* 3 blocks are found */
    bench_answer(b, BY_HASH);                     /* the first ends */
    bench_abort(b, 2);
    assert_int_equal(scheduler_num_free_blocks(b->scheduler), 10);

    ask(b, forked(48, 500, 54), 54, 1); /* found though nobody uses them */
    expect_new(bench_schedule(b), 6, 0, 1, 2, 4);
    bench_answer(b, BY_HASH);

    /* freed last, freed before, never used, then what is known: the tail of the prefix first */
    ask(b, tokens(600, 160), 160, 1);
    expect_new(bench_schedule(b), 160, 4, 3, 5, 6, 7, 8, 9, 2, 1, 0);
    bench_answer(b, BY_HASH);
    ask(b, forked(48, 300, 55), 55, 1);
    expect_row(bench_schedule(b), 0, 5, 55);
    bench_answer(b, BY_HASH);
    bench_free(b);
}

static void what_is_not_known_is_given_up_before_what_was_used_long_ago(void **state)
{
    struct bench *b = open_bench(10);

    (void)state;
    ask(b, tokens(0, 5 * BLOCK + 7), 5 * BLOCK + 7, 1);
    ask(b, tokens(300, 3 * BLOCK), 3 * BLOCK, 1);
    expect_counts(bench_schedule(b), 87, 48);
    bench_answer(b, BY_HASH);
    ask(b, tokens(0, 2 * BLOCK + 3), 2 * BLOCK + 3, 1);
    expect_new(bench_schedule(b), 3, 0, 1, 5);
    bench_answer(b, BY_HASH);
    ask(b, tokens(600, 160), 160, 1);
    expect_new(bench_schedule(b), 160, 5, 9, 4, 3, 2, 8, 7, 6, 1, 0);
    bench_answer(b, BY_HASH);
    bench_free(b);
}

static void a_block_is_known_when_it_is_full_and_not_before(void **state)
{
    struct bench *b = open_bench(100);
    struct outcome *outcome = bench_outcome(b, 1);
    int32_t chat[65];

    (void)state;
    memcpy(chat, tokens(0, 55), sizeof *chat * 55);
    chat[63] = chat[64] = 11;
    ask(b, chat, 55, 12);
    expect_new(bench_schedule(b), 55, 0, 1, 2, 3);
    bench_answer(b, BY_HASH);
    for (int32_t computed = 55; computed < 62; computed++) {
        assert_int_equal(bench_schedule(b)->new_block_counts[0], 0);
        bench_answer(b, BY_HASH);
    }
    memcpy(chat + 55, outcome->tokens, sizeof *chat * 8);
    ask(b, chat, 65, 1);
    expect_row(bench_schedule(b), 1, 2, 65 - 48); /* of the fourth block 63 tokens are computed */
    bench_answer(b, BY_HASH);

    memcpy(chat + 55, outcome->tokens, sizeof *chat * 9);
    ask(b, chat, 65, 1);
    expect_row(bench_schedule(b), 1, 3, 1); /* the 64th is in this step */
    bench_answer(b, BY_HASH);
    assert_int_equal(bench_schedule(b)->new_block_counts[0], 1);
    bench_answer(b, BY_HASH);
    bench_run(b);
    bench_free(b);
}

static void the_same_prompt_twice_in_a_step_is_computed_once(void **state)
{
    struct bench *b = open_bench(100);
    const struct scheduler_output *plan;

    (void)state;
    ask(b, tokens(0, 100), 100, 8);
    ask(b, tokens(0, 100), 100, 8);
    plan = bench_schedule(b);
    expect_counts(plan, 100, 4);
    assert_memory_equal(plan->new_requests[0].block_ids, plan->new_requests[1].block_ids,
                        6 * sizeof(block_id)); /* all but the last */
    assert_int_not_equal(plan->new_requests[0].block_ids[6], plan->new_requests[1].block_ids[6]);
    bench_answer(b, BY_HASH);
    bench_run(b);
    assert_memory_equal(bench_outcome(b, 1)->tokens, bench_outcome(b, 2)->tokens,
                        8 * sizeof(int32_t));
    bench_free(b);
}

static void the_next_turn_of_a_chat_finds_prompt_and_answer(void **state)
{
    struct bench *b = open_bench(100);
    int32_t chat[200], n = 40;

    (void)state;
    memcpy(chat, tokens(0, n), sizeof *chat * (size_t)n);
    for (request_id turn = 1; turn <= 3; turn++) {
        int32_t num_cached =
            turn == 1 ? 0 : (n - 10 - 1) / BLOCK * BLOCK; /* but the last said token */

        ask(b, chat, n, 30);
        expect_row(bench_schedule(b), 0, turn, n - num_cached);
        bench_answer(b, BY_HASH);
        bench_run(b);
        memcpy(chat + n, bench_outcome(b, turn)->tokens, sizeof *chat * 30);
        n += 30;
        memcpy(chat + n, tokens(500 + (int32_t)turn, 10),
               sizeof *chat * 10); /* what is asked next */
        n += 10;
    }
    bench_free(b);
}

static void a_found_block_is_not_handed_out_to_its_finder(void **state)
{
    struct bench *b = open_bench(2);

    (void)state;
    ask(b, tokens(0, 16), 16, 1);
    ask(b, tokens(300, 16), 16, 1);
    expect_counts(bench_schedule(b), 16, 16);
    bench_answer(b, BY_HASH); /* block 0 is unused for longest, and would be the next */
    ask(b, forked(16, 500, 32), 32, 1);
    expect_new(bench_schedule(b), 16, 0, 1);
    bench_answer(b, BY_HASH);
    bench_free(b);
}

static void a_block_that_was_handed_out_again_is_forgotten(void **state)
{
    struct bench *b = open_bench(2);

    (void)state;
    ask(b, tokens(0, 17), 17, 1);
    bench_schedule(b);
    bench_answer(b, BY_HASH);
    ask(b, tokens(300, 20), 20, 1);
    bench_schedule(b);
    bench_answer(b, BY_HASH);
    ask(b, tokens(0, 17), 17, 1);
    expect_row(bench_schedule(b), 0, 3, 17);
    bench_answer(b, BY_HASH);
    bench_free(b);
}

static void a_request_that_has_no_room_leaves_the_cache_as_it_was(void **state)
{
    struct bench *b = open_bench(10);

    (void)state;
    ask(b, tokens(0, 48), 48, 1);
    bench_schedule(b);
    bench_answer(b, BY_HASH);
    ask(b, tokens(300, 6 * BLOCK), 6 * BLOCK, 2);
    ask(b, forked(48, 500, 6 * BLOCK), 6 * BLOCK, 1);
    for (int i = 0; i < 2; i++) {
        const struct scheduler_output *plan = bench_schedule(b);

        /* 3 blocks are found and not in use, 3 are missing: 4 or fewer are free */
        assert_int_equal(plan->num_rows, 1);
        expect_row(plan, 0, 2, i == 0 ? 6 * BLOCK : 1);
        assert_int_equal(scheduler_num_free_blocks(b->scheduler), 4 - i);
        bench_answer(b, BY_HASH);
    }
    expect_row(bench_schedule(b), 0, 3, 3 * BLOCK);
    bench_answer(b, BY_HASH);
    bench_free(b);
}

static void salts_keep_tenants_apart(void **state)
{
    static const struct {
        const char *salt;
        int32_t num_tokens; /* to compute */
    } rows[] = {
        {"salt1", 55}, {"salt1", 7}, {"salt2", 55}, {"", 55}, {NULL, 7}, {"salt1", 7},
    };
    struct bench *b = open_bench(100);

    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        request_id id = bench_add(b, (struct wish){.num_prompt = 55,
                                                   .max_tokens = 1,
                                                   .prompt = tokens(0, 55),
                                                   .cache_salt = rows[i].salt});

        expect_row(bench_schedule(b), 0, id, rows[i].num_tokens);
        bench_answer(b, BY_HASH);
    }
    bench_free(b);
}

static void nothing_is_found_where_caching_is_off(void **state)
{
    struct bench *b = bench_new(&ROOMY);
    struct scheduler_stats stats;

    (void)state;
    for (request_id id = 1; id <= 2; id++) {
        ask(b, tokens(0, 55), 55, 1);
        expect_row(bench_schedule(b), 0, id, 55);
        assert_int_equal(scheduler_num_free_blocks(b->scheduler), ROOMY.num_blocks - 4);
        bench_answer(b, BY_HASH);
    }
    scheduler_get_stats(b->scheduler, &stats);
    assert_int_equal(stats.at_first.requests + stats.at_first.queries + stats.at_first.hits, 0);
    assert_int_equal(stats.again.requests + stats.recent_queries, 0);
    assert_int_equal(stats.num_prompt_tokens, 110);
    bench_free(b);
}

static void a_reset_forgets_all_prefixes(void **state)
{
    struct scheduler_options options = ROOMY;
    int32_t prompt[50];

    (void)state;
    options.enable_prefix_caching = true;
    struct bench *b = bench_new(&options);

    for (int32_t i = 0; i < 50; i++)
        prompt[i] = 100 + i;
    bench_add(b, (struct wish){.num_prompt = 50, .max_tokens = 1, .prompt = prompt});
    bench_add(b, (struct wish){.num_prompt = 48, .max_tokens = 1, .prompt = prompt});
    /* In the same step already; the last token is computed always. */
    expect_counts(bench_schedule(b), 50, 16);
    bench_answer(b, BY_HASH);
    bench_add(b, (struct wish){.num_prompt = 50, .max_tokens = 1, .prompt = prompt});
    expect_row(bench_schedule(b), 0, 3, 2);
    bench_answer(b, BY_HASH);
    assert_int_equal(bench_outcome(b, 1)->tokens[0], bench_outcome(b, 3)->tokens[0]);

    assert_true(scheduler_reset_prefix_cache(b->scheduler, false));
    bench_add(b, (struct wish){.num_prompt = 50, .max_tokens = 1, .prompt = prompt});
    expect_row(bench_schedule(b), 0, 4, 50);
    assert_false(scheduler_reset_prefix_cache(b->scheduler, false)); /* one runs */
    bench_answer(b, BY_HASH);
    bench_free(b);
}

/* ---- numbers -------------------------------------------------------------------------------- */

static void a_request_counts_once_however_long_it_waits(void **state)
{
    struct bench *b = open_bench(10);
    struct scheduler_stats stats;

    (void)state;
    ask(b, tokens(0, 8 * BLOCK), 8 * BLOCK, 6);
    ask(b, forked(2 * BLOCK, 300, 8 * BLOCK), 8 * BLOCK,
        1); /* looked up in each step, without room */
    while (bench_outcome(b, 1)->num_ends == 0) {
        assert_int_equal(bench_schedule(b)->num_rows, 1);
        bench_answer(b, BY_HASH);
        scheduler_get_stats(b->scheduler, &stats);
        assert_int_equal(stats.at_first.requests, 1);
        assert_int_equal(stats.at_first.queries, 8 * BLOCK);
    }
    bench_run(b);
    scheduler_get_stats(b->scheduler, &stats);
    assert_int_equal(stats.at_first.requests, 2);
    assert_int_equal(stats.at_first.queries, 16 * BLOCK);
    assert_int_equal(stats.at_first.hits, 2 * BLOCK);
    assert_int_equal(stats.recent_queries, 16 * BLOCK);
    assert_int_equal(stats.recent_hits, 2 * BLOCK);
    assert_int_equal(stats.num_prompt_tokens, 16 * BLOCK);
    bench_free(b);
}

static void a_preempted_request_counts_apart_when_it_comes_back(void **state)
{
    struct scheduler_options options = ROOMY;
    struct scheduler_stats stats;

    (void)state;
    options.enable_prefix_caching = true;
    options.num_blocks = 10;
    struct bench *b = bench_new(&options);

    ask(b, tokens(0, 5 * BLOCK), 5 * BLOCK, 4);
    ask(b, tokens(300, 5 * BLOCK), 5 * BLOCK, 4);
    bench_schedule(b);
    bench_answer(b, BY_HASH);
    bench_run(b);
    scheduler_get_stats(b->scheduler, &stats);
    assert_int_equal(stats.num_preemptions, 1);
    assert_int_equal(stats.at_first.requests, 2);
    assert_int_equal(stats.at_first.queries, 10 * BLOCK);
    assert_int_equal(stats.at_first.hits, 0);
    assert_int_equal(stats.again.requests, 1);
    assert_int_equal(stats.again.queries, 5 * BLOCK + 1); /* and the token that it had */
    assert_int_equal(stats.again.hits, 4 * BLOCK); /* its own, but for a block that was taken */
    assert_int_equal(stats.recent_queries, 10 * BLOCK);
    assert_int_equal(stats.num_prompt_tokens, 10 * BLOCK);
    bench_free(b);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(full_blocks_are_shared_and_the_oldest_given_up_first),
    cmocka_unit_test(what_is_not_known_is_given_up_before_what_was_used_long_ago),
    cmocka_unit_test(a_block_is_known_when_it_is_full_and_not_before),
    cmocka_unit_test(the_same_prompt_twice_in_a_step_is_computed_once),
    cmocka_unit_test(the_next_turn_of_a_chat_finds_prompt_and_answer),
    cmocka_unit_test(a_found_block_is_not_handed_out_to_its_finder),
    cmocka_unit_test(a_block_that_was_handed_out_again_is_forgotten),
    cmocka_unit_test(a_request_that_has_no_room_leaves_the_cache_as_it_was),
    cmocka_unit_test(salts_keep_tenants_apart),
    cmocka_unit_test(nothing_is_found_where_caching_is_off),
    cmocka_unit_test(a_reset_forgets_all_prefixes),
    cmocka_unit_test(a_request_counts_once_however_long_it_waits),
    cmocka_unit_test(a_preempted_request_counts_apart_when_it_comes_back),
};
TEST_MAIN(tests)
