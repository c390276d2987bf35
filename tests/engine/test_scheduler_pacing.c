/* Prompts beside requests that decode: bench_answer tells the scheduler what each step took. */
#include "tests/engine/scheduler_bench.h"

#include "engine/bench/toy_grammar.h"

static struct bench *paced_bench(void)
{
    struct scheduler_options options = ROOMY;

    options.decode_slowdown = 2;
    return bench_new(&options);
}

/* So many requests that decode, and have for a while. */
static void begin_streams(struct bench *b, int32_t n)
{
    for (int32_t i = 0; i < n; i++)
        bench_add(b, (struct wish){.num_prompt = 20, .max_tokens = 120, .ignore_eos = true});
    for (int i = 0; i < 10; i++) {
        bench_schedule(b);
        bench_answer(b, 50);
    }
}

static void a_prompt_comes_in_small_chunks_while_others_decode(void **state)
{
    (void)state;
    for (int32_t depth = 1; depth <= 2; depth++) {
        struct bench *b = paced_bench();
        int32_t num_steps = 0, most = 0;

        begin_streams(b, 8);
        int64_t decode_ns = bench_cost_ns(&b->plans[(b->next_step - 1) & 1]);

        request_id id = bench_add(b, (struct wish){.num_prompt = 300, .max_tokens = 2});

        while (bench_outcome(b, id)->num_ends == 0) {
            while (b->next_step - b->next_answer < depth) {
                const struct scheduler_output *plan = bench_schedule(b);

                if (++num_steps > 4)
                    assert_true(bench_cost_ns(plan) <= 2 * decode_ns);
                assert_in_range(plan->num_rows, 8, 9); /* nobody who decodes is left out */
                most = MAX(most, plan->total_num_scheduled_tokens);
            }
            bench_answer(b, 50);
        }
        assert_int_equal(bench_outcome(b, id)->num_tokens, 2);
        assert_in_range(num_steps, 10, 60);
        assert_in_range(most, 10, 60);
        bench_end(b);
        bench_free(b);
    }
}

static void a_prompt_has_the_budget_when_nothing_decodes(void **state)
{
    struct bench *b = paced_bench();
    struct scheduler_stats stats;

    (void)state;
    begin_streams(b, 2);
    bench_abort(b, 1);
    bench_abort(b, 2);
    bench_add(b, (struct wish){.num_prompt = 1500, .max_tokens = 4});
    expect_row(bench_schedule(b), 0, 3, 1024);
    scheduler_get_stats(b->scheduler, &stats);
    assert_int_equal(stats.prompt_limit, -1);
    assert_true(stats.decode_ns > 0);
    bench_end(b);
    bench_free(b);
}

static void prompts_that_are_computed_whole_are_not_limited(void **state)
{
    struct scheduler_options options = ROOMY;

    (void)state;
    options.decode_slowdown = 2;
    options.enable_chunked_prefill = false;
    struct bench *b = bench_new(&options);

    begin_streams(b, 2);
    bench_add(b, (struct wish){.num_prompt = 1000, .max_tokens = 4});
    expect_counts(bench_schedule(b), 1, 1, 1000);
    bench_end(b);
    bench_free(b);
}

/* Those ahead of them in the row would have taken it all. */
static void room_for_those_that_decode_is_left_in_the_budget(void **state)
{
    struct scheduler_options options = ROOMY;
    struct bench *b;

    (void)state;
    options.decode_slowdown = 1000;
    options.max_num_batched_tokens = 40;
    b = bench_new(&options);
    bench_add(b, (struct wish){.num_prompt = 20, .max_tokens = 100, .ignore_eos = true});
    bench_add(b, (struct wish){.num_prompt = 1200, .max_tokens = 100, .ignore_eos = true});
    for (int i = 0; i < 25; i++) {
        const struct scheduler_output *plan = bench_schedule(b);

        expect_row(plan, 0, 1, i == 0 ? 20 : 1);
        assert_true(plan->total_num_scheduled_tokens <= 40);
        bench_answer(b, 50);
    }
    bench_end(b);
    bench_free(b);
}

/* A request that was preempted comes back among those that decode: as a prompt, in small chunks. */
static void a_preempted_request_comes_back_in_small_chunks(void **state)
{
    struct scheduler_options options = ROOMY;
    struct scheduler_stats stats;

    (void)state;
    options.decode_slowdown = 2;
    options.num_blocks = 24;
    for (int i = 0; i < 4; i++) {
        options.policy = i & 1 ? POLICY_PRIORITY : POLICY_FCFS;
        options.enable_prefix_caching = i & 2;
        struct bench *b = bench_new(&options);

        for (int32_t n = 0; n < 4; n++)
            bench_add(b, (struct wish){.num_prompt = 60, .max_tokens = 100, .ignore_eos = true,
                                       .priority = n});
        for (int step = 0; scheduler_num_unfinished(b->scheduler) > 0; step++) {
            assert_true(step < 2000);
            if (bench_schedule(b)->num_rows > 0)
                bench_answer(b, BY_HASH);
        }
        for (request_id id = 1; id <= 4; id++)
            assert_int_equal(bench_outcome(b, id)->num_tokens, 100);
        scheduler_get_stats(b->scheduler, &stats);
        assert_true(stats.num_preemptions > 0);
        bench_free(b);
    }
}

static void a_prefix_that_is_cached_is_no_part_of_the_limit(void **state)
{
    struct scheduler_options options = ROOMY;
    int32_t prompt[1000];

    (void)state;
    for (int32_t i = 0; i < 1000; i++)
        prompt[i] = 10 + i % 700;
    options.decode_slowdown = 2;
    options.enable_prefix_caching = true;
    struct bench *b = bench_new(&options);

    bench_add(b, (struct wish){.num_prompt = 996, .max_tokens = 1, .prompt = prompt});
    bench_run(b);
    begin_streams(b, 8);
    bench_add(b, (struct wish){.num_prompt = 996, .max_tokens = 2, .prompt = prompt});

    const struct scheduler_output *plan = bench_schedule(b);

    assert_int_equal(plan->num_rows, 9);
    assert_int_equal(plan->num_computed_tokens[8], 62 * BLOCK);
    assert_int_equal(plan->num_scheduled_tokens[8], 4);
    bench_end(b);
    bench_free(b);
}

static void a_prompt_with_a_grammar_is_masked_when_its_last_chunk_is_there(void **state)
{
    struct bench *b = paced_bench();

    (void)state;
    begin_streams(b, 8);
    request_id id =
        bench_add(b, (struct wish){.num_prompt = 100, .max_tokens = 3, .awaits_grammar = true});

    scheduler_set_grammar(b->scheduler, id,
                          toy_grammar_new(&(struct toy_grammar_options){.vocab_size = VOCAB}), OK,
                          NULL, &b->events);
    for (int32_t num_tokens = 0; num_tokens < 100;) {
        const struct scheduler_output *plan = bench_schedule(b);

        assert_int_equal(plan->num_rows, 9);
        num_tokens += plan->num_scheduled_tokens[8];
        assert_int_equal(plan->needs_bitmask[8], num_tokens == 100);
        if (num_tokens < 100)
            bench_answer(b, 50);
    }
    bench_end(b);
    bench_free(b);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(a_prompt_comes_in_small_chunks_while_others_decode),
    cmocka_unit_test(a_prompt_has_the_budget_when_nothing_decodes),
    cmocka_unit_test(prompts_that_are_computed_whole_are_not_limited),
    cmocka_unit_test(room_for_those_that_decode_is_left_in_the_budget),
    cmocka_unit_test(a_preempted_request_comes_back_in_small_chunks),
    cmocka_unit_test(a_prefix_that_is_cached_is_no_part_of_the_limit),
    cmocka_unit_test(a_prompt_with_a_grammar_is_masked_when_its_last_chunk_is_there),
};
TEST_MAIN(tests)
