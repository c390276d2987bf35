/* Pauses, and what a reset of the prefix cache does to those that run. */
#include "tests/engine/scheduler_bench.h"

/* ---- pause ---------------------------------------------------------------------------------- */

static void a_pause_of_newcomers_lets_the_others_end(void **state)
{
    struct bench *b = bench_new(&ROOMY);

    (void)state;
    bench_add(b, (struct wish){.num_prompt = 10, .max_tokens = 2});
    bench_schedule(b);
    bench_answer(b, 50);
    bench_add(b,
              (struct wish){.num_prompt = 10, .max_tokens = 2}); /* inside, and never scheduled */
    scheduler_set_pause(b->scheduler, PAUSED_NEW);
    bench_add(b, (struct wish){.num_prompt = 10, .max_tokens = 2});
    assert_true(scheduler_has_work(b->scheduler));
    assert_false(scheduler_is_drained(b->scheduler));
    expect_counts(bench_schedule(b), 1);
    bench_answer(b, 50);
    assert_int_equal(bench_outcome(b, 1)->finish, FINISH_LENGTH);

    assert_true(scheduler_is_drained(b->scheduler));
    assert_false(scheduler_has_work(b->scheduler));
    assert_int_equal(bench_schedule(b)->num_rows, 0);
    assert_int_equal(scheduler_num_waiting(b->scheduler), 2);

    scheduler_set_pause(b->scheduler, UNPAUSED);
    expect_row(bench_schedule(b), 0, 2, 10);
    bench_answer(b, 50);
    bench_run(b);
    bench_free(b);
}

static void a_preempted_request_is_no_newcomer(void **state)
{
    struct scheduler_options options = ROOMY;

    (void)state;
    options.num_blocks = 10;
    options.policy = POLICY_PRIORITY;
    struct bench *b = bench_new(&options);

    bench_add(b, (struct wish){.num_prompt = 5 * BLOCK, .max_tokens = 4, .priority = 3});
    bench_add(b, (struct wish){.num_prompt = 5 * BLOCK, .max_tokens = 4, .priority = 3});
    bench_schedule(b);
    bench_answer(b, 50);
    scheduler_set_pause(b->scheduler, PAUSED_NEW);
    bench_add(b, (struct wish){.num_prompt = 5, .max_tokens = 4}); /* before it in the queue */
    while (bench_outcome(b, 1)->num_ends == 0) {                   /* the second gives way */
        expect_counts(bench_schedule(b), 1);
        bench_answer(b, 50);
    }
    assert_false(scheduler_is_drained(b->scheduler));
    while (scheduler_has_work(b->scheduler)) {
        assert_int_equal(bench_schedule(b)->num_rows, 1);
        bench_answer(b, 50);
    }
    assert_int_equal(bench_outcome(b, 2)->finish, FINISH_LENGTH);
    assert_true(scheduler_is_drained(b->scheduler));
    scheduler_set_pause(b->scheduler, UNPAUSED);
    bench_run(b);
    bench_free(b);
}

static void a_frozen_scheduler_schedules_nothing_and_goes_on_where_it_was(void **state)
{
    struct bench *b = bench_new(&ROOMY);

    (void)state;
    bench_add(b, (struct wish){.num_prompt = 10, .max_tokens = 4});
    bench_schedule(b);
    bench_schedule(b);
    scheduler_set_pause(b->scheduler, PAUSED_ALL);
    bench_add(b, (struct wish){.num_prompt = 10, .max_tokens = 4});
    bench_answer(b, 50); /* steps in flight come back all the same */
    bench_answer(b, 51);
    assert_int_equal(bench_outcome(b, 1)->num_tokens, 2);
    assert_int_equal(bench_schedule(b)->num_rows, 0);
    assert_false(scheduler_has_work(b->scheduler));
    assert_int_equal(scheduler_num_running(b->scheduler), 1);
    bench_abort(b, 2);

    scheduler_set_pause(b->scheduler, UNPAUSED);
    expect_counts(bench_schedule(b), 1);
    assert_int_equal(b->plans[0].num_computed_tokens[0], 11);
    bench_answer(b, 52);
    bench_run(b);
    bench_free(b);
}

/* ---- reset ---------------------------------------------------------------------------------- */

static void a_reset_is_refused_while_requests_run(void **state)
{
    struct scheduler_options options = ROOMY;

    (void)state;
    options.enable_prefix_caching = true;
    struct bench *b = bench_new(&options);

    bench_add(b, (struct wish){.num_prompt = 50, .max_tokens = 3});
    bench_schedule(b);
    assert_false(scheduler_reset_prefix_cache(b->scheduler, false));
    bench_answer(b, 50);
    assert_false(scheduler_reset_prefix_cache(b->scheduler, false));
    expect_counts(bench_schedule(b), 1); /* nothing was done */
    bench_answer(b, 50);
    bench_run(b);
    assert_true(scheduler_reset_prefix_cache(b->scheduler, false));
    bench_free(b);
}

static void a_reset_may_send_all_that_run_back_in_their_order(void **state)
{
    struct scheduler_options options = ROOMY;

    (void)state;
    options.enable_prefix_caching = true;
    struct bench *b = bench_new(&options);

    for (int i = 0; i < 10; i++)
        bench_add(b, (struct wish){.num_prompt = 32 + i, .max_tokens = 4});
    bench_schedule(b);
    bench_answer(b, 50);
    bench_add(b, (struct wish){.num_prompt = 32, .max_tokens = 4}); /* behind them */
    assert_true(scheduler_reset_prefix_cache(b->scheduler, true));
    assert_int_equal(scheduler_num_running(b->scheduler), 0);
    assert_int_equal(scheduler_num_waiting(b->scheduler), 11);
    assert_int_equal(scheduler_num_free_blocks(b->scheduler), options.num_blocks);
    /* all of it, and the token that each has said: nothing is found any more */
    expect_counts(bench_schedule(b), 33, 34, 35, 36, 37, 38, 39, 40, 41, 42, 32);
    assert_int_equal(b->plans[1].new_requests[9].num_output_token_ids, 1);
    bench_answer(b, 51);
    assert_int_equal(bench_outcome(b, 10)->num_tokens, 2);
    assert_int_equal(bench_outcome(b, 10)->tokens[0], 50);
    bench_run(b);
    bench_free(b);
}

/* Frozen, its KV given up, and computed again when it goes on: what was said stays said. */
static void frozen_requests_survive_the_loss_of_their_kv(void **state)
{
    struct scheduler_options options = ROOMY;

    (void)state;
    options.enable_prefix_caching = true;
    struct bench *b = bench_new(&options);

    bench_add(b, (struct wish){.num_prompt = 40, .max_tokens = 4});
    bench_schedule(b);
    bench_answer(b, 50);
    scheduler_set_pause(b->scheduler, PAUSED_ALL);
    bench_add(b, (struct wish){.num_prompt = 10, .max_tokens = 4});
    assert_true(scheduler_reset_prefix_cache(b->scheduler, true));
    assert_int_equal(bench_schedule(b)->num_rows, 0);
    scheduler_set_pause(b->scheduler, UNPAUSED);
    expect_counts(bench_schedule(b), 41, 10); /* first in line again */
    bench_answer(b, 51);
    assert_int_equal(bench_outcome(b, 1)->num_tokens, 2);
    bench_run(b);
    bench_free(b);
}

/* The second was preempted with a token on its way, then comes the reset: both tokens of the step
 * in flight are of the old KV. */
static void tokens_in_flight_at_a_reset_are_drawn_again(void **state)
{
    struct scheduler_options options = ROOMY;

    (void)state;
    options.num_blocks = 10;
    options.enable_prefix_caching = true;
    struct bench *b = bench_new(&options);

    bench_add(b, (struct wish){.num_prompt = 5 * BLOCK, .max_tokens = 4});
    bench_add(b, (struct wish){.num_prompt = 5 * BLOCK, .max_tokens = 4});
    expect_counts(bench_schedule(b), 80, 80);
    expect_counts(bench_schedule(b), 1); /* preempts the second */
    assert_true(scheduler_reset_prefix_cache(b->scheduler, true));
    scheduler_check(b->scheduler);
    bench_answer(b, 40);
    assert_int_equal(bench_schedule(b)->num_rows, 0); /* the first still has a row in flight */
    bench_answer(b, 41);
    for (request_id id = 1; id <= 2; id++)
        assert_int_equal(bench_outcome(b, id)->num_tokens, 0);

    expect_counts(bench_schedule(b), 80, 80);
    bench_answer(b, 60);
    for (request_id id = 1; id <= 2; id++) {
        assert_int_equal(bench_outcome(b, id)->num_tokens, 1);
        assert_int_equal(bench_outcome(b, id)->tokens[0], 60);
    }
    bench_run(b);
    bench_free(b);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(a_pause_of_newcomers_lets_the_others_end),
    cmocka_unit_test(a_preempted_request_is_no_newcomer),
    cmocka_unit_test(a_frozen_scheduler_schedules_nothing_and_goes_on_where_it_was),
    cmocka_unit_test(a_reset_is_refused_while_requests_run),
    cmocka_unit_test(a_reset_may_send_all_that_run_back_in_their_order),
    cmocka_unit_test(frozen_requests_survive_the_loss_of_their_kv),
    cmocka_unit_test(tokens_in_flight_at_a_reset_are_drawn_again),
};
TEST_MAIN(tests)
