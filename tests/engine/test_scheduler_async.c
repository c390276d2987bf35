/* Two steps in flight: what the scheduler plans before it knows the tokens. */
#include "tests/engine/scheduler_bench.h"

static void a_request_goes_on_while_its_token_is_on_the_way(void **state)
{
    struct bench *b = bench_new(&ROOMY);

    (void)state;
    bench_add(b, (struct wish){.num_prompt = 10, .max_tokens = 3});
    expect_counts(bench_schedule(b), 10);
    bench_add(b, (struct wish){.num_prompt = 7, .max_tokens = 3});
    expect_counts(bench_schedule(b), 1, 7);
    assert_int_equal(b->plans[1].num_computed_tokens[0], 10);
    bench_answer(b, 50);
    expect_counts(bench_schedule(b), 1, 1);
    bench_end(b);
    bench_free(b);
}

static void no_token_is_computed_past_max_tokens(void **state)
{
    (void)state;
    for (int32_t max_tokens = 1; max_tokens <= 5; max_tokens++) {
        struct bench *b = bench_new(&ROOMY);
        struct outcome *outcome = bench_outcome(
            b, bench_add(b, (struct wish){.num_prompt = 10, .max_tokens = max_tokens}));

        bench_schedule(b);
        while (b->next_answer < b->next_step) {
            bench_schedule(b);
            bench_answer(b, 50);
        }
        assert_int_equal(outcome->num_tokens, max_tokens);
        assert_int_equal(outcome->num_scheduled, 10 + max_tokens - 1);
        bench_free(b);
    }
}

static void a_token_behind_the_end_is_dropped(void **state)
{
    struct bench *b = bench_new(&ROOMY);
    struct outcome *outcome =
        bench_outcome(b, bench_add(b, (struct wish){.num_prompt = 10, .max_tokens = 5}));

    (void)state;
    bench_schedule(b);
    bench_schedule(b); /* nobody knows yet that the first step's token ends it */
    bench_answer(b, EOS);
    assert_int_equal(outcome->finish, FINISH_STOP);
    bench_answer(b, 50);
    assert_int_equal(outcome->num_tokens, 1);
    bench_free(b);
}

static void workers_hear_of_free_slots_though_a_plan_without_rows_came_between(void **state)
{
    struct bench *b = bench_new(&ROOMY);

    (void)state;
    bench_add(b, (struct wish){.num_prompt = 5, .max_tokens = 1});
    bench_add(b, (struct wish){.num_prompt = 5, .max_tokens = 2});
    bench_schedule(b);
    bench_schedule(b);
    bench_answer(b, 50); /* the first ends */
    assert_int_equal(bench_schedule(b)->num_rows, 0);
    bench_answer(b, 50);
    bench_add(b, (struct wish){.num_prompt = 5, .max_tokens = 1});
    bench_add(b, (struct wish){.num_prompt = 5, .max_tokens = 1});
    assert_int_equal(bench_schedule(b)->num_finished_slots, 2);
    bench_answer(b, 50);
    bench_free(b);
}

static void each_aborted_request_keeps_the_tokens_that_it_had(void **state)
{
    static const request_id order[] = {1, 9, 4, 2, 7, 5, 3, 6, 8, 10};
    struct bench *b = bench_new(&ROOMY);

    (void)state;
    for (size_t i = 0; i < COUNT_OF(order); i++)
        bench_add(b, (struct wish){.num_prompt = 10, .max_tokens = 20});
    bench_schedule(b);
    for (int32_t i = 0; i < COUNT_OF(order); i++) {
        bench_schedule(b);
        bench_abort(b, order[i]); /* with a row in both steps */
        assert_int_equal(bench_outcome(b, order[i])->finish, FINISH_ABORT);
        bench_answer(b, 50 + i);
    }
    while (b->next_answer < b->next_step)
        bench_answer(b, 99);
    for (int32_t i = 0; i < COUNT_OF(order); i++) {
        const struct outcome *outcome = bench_outcome(b, order[i]);

        assert_int_equal(outcome->num_ends, 1);
        assert_int_equal(outcome->num_tokens, i);
        for (int32_t t = 0; t < i; t++)
            assert_int_equal(outcome->tokens[t], 50 + t);
    }
    bench_free(b);
}

static void slots_of_two_full_steps_are_told_apart(void **state)
{
    struct scheduler_options options = ROOMY;

    (void)state;
    options.max_num_seqs = 4;
    struct bench *b = bench_new(&options);

    /* All that run are aborted in flight, again and again: their slots are still the workers'. */
    for (int round = 0; round < 20; round++) {
        request_id first = b->last_id + 1;

        for (int i = 0; i < 4; i++)
            bench_add(b, (struct wish){.num_prompt = 5, .max_tokens = 9});
        bench_schedule(b);
        for (request_id id = first; id < first + 4; id++)
            bench_abort(b, id);
        if (round > 0)
            bench_answer(b, BY_HASH);
    }
    bench_answer(b, BY_HASH);
    bench_free(b);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(a_request_goes_on_while_its_token_is_on_the_way),
    cmocka_unit_test(no_token_is_computed_past_max_tokens),
    cmocka_unit_test(a_token_behind_the_end_is_dropped),
    cmocka_unit_test(workers_hear_of_free_slots_though_a_plan_without_rows_came_between),
    cmocka_unit_test(each_aborted_request_keeps_the_tokens_that_it_had),
    cmocka_unit_test(slots_of_two_full_steps_are_told_apart),
};
TEST_MAIN(tests)
