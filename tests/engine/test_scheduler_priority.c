/* Who gives way when blocks run out, and who is served first. */
#include "tests/engine/scheduler_bench.h"

/* ---- preemption ----------------------------------------------------------------------------- */

static void a_request_preempted_in_flight_keeps_its_late_token(void **state)
{
    struct bench *b = bench_two_of_five_blocks(POLICY_FCFS, 0, 0);

    (void)state;
    expect_counts(bench_schedule(b), 80, 80);
    expect_counts(bench_schedule(b), 1); /* the first needs a block, which the second gives */
    assert_int_equal(scheduler_num_waiting(b->scheduler), 1);
    bench_answer(b, 42);
    assert_int_equal(bench_outcome(b, 2)->num_tokens, 1);
    assert_int_equal(bench_outcome(b, 2)->tokens[0], 42);
    bench_run(b);
    assert_int_equal(bench_outcome(b, 2)->num_ends, 1);
    bench_free(b);
}

static void a_preempted_request_is_computed_again_when_blocks_are_back(void **state)
{
    struct bench *b = bench_two_of_five_blocks(POLICY_FCFS, 0, 0);
    struct scheduler_stats stats;

    (void)state;
    expect_counts(bench_schedule(b), 80, 80);
    bench_answer(b, 50);
    for (int i = 0; i < 3; i++) {
        expect_counts(bench_schedule(b), 1); /* a step that preempts admits nobody; then no room */
        bench_answer(b, 51);
    }
    assert_int_equal(bench_outcome(b, 1)->finish, FINISH_LENGTH);

    const struct scheduler_output *plan = bench_schedule(b);

    expect_row(plan, 0, 2, 81); /* the prompt and the token it had, in one go */
    assert_int_equal(plan->num_new_requests, 1);
    assert_int_equal(plan->new_requests[0].num_output_token_ids, 1);
    assert_int_equal(plan->new_requests[0].output_token_ids[0], 50);
    scheduler_get_stats(b->scheduler, &stats);
    assert_int_equal(stats.num_preemptions, 1);
    bench_answer(b, 52);
    bench_run(b);
    bench_free(b);
}

static void the_least_important_request_gives_way(void **state)
{
    static const struct {
        int32_t first, second; /* priorities */
        request_id winner;
    } rows[] = {
        {0, 1, 1}, {1, 0, 2}, {5, 5, 1}, /* the later one, if they are equal */
    };

    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        struct bench *b = bench_two_of_five_blocks(POLICY_PRIORITY, rows[i].first, rows[i].second);

        assert_int_equal(bench_schedule(b)->num_rows, 2);
        bench_answer(b, 50);

        const struct scheduler_output *plan = bench_schedule(b);

        assert_int_equal(plan->num_rows, 1);
        expect_row(plan, 0, rows[i].winner, 1);
        bench_answer(b, 50);
        bench_run(b);
        bench_free(b);
    }
}

static void a_victim_gives_its_tokens_of_this_step_back(void **state)
{
    struct scheduler_options options = ROOMY;

    (void)state;
    options.num_blocks = 5;
    options.policy = POLICY_PRIORITY;
    options.max_num_batched_tokens = 32;
    struct bench *b = bench_new(&options);

    /* Admitted first, so its row comes first: then it gives way. */
    bench_add(b, (struct wish){.num_prompt = 40, .max_tokens = 9, .priority = 9});
    bench_add(b, (struct wish){.num_prompt = 31, .max_tokens = 20, .priority = 1});
    bench_schedule(b); /* 32 of the first */
    bench_answer(b, 50);
    bench_schedule(b); /* 8 of the first, 24 of the second */
    bench_answer(b, 50);
    bench_schedule(b); /* 1 and 7 */
    bench_answer(b, 50);
    bench_schedule(b); /* 1 and 1 */
    bench_answer(b, 50);

    const struct scheduler_output *plan =
        bench_schedule(b); /* position 32 of the second: a third block */

    while (plan->num_rows == 2) {
        bench_answer(b, 50);
        plan = bench_schedule(b);
    }
    assert_int_equal(plan->num_rows, 1);
    expect_row(plan, 0, 2, 1);
    assert_int_equal(plan->total_num_scheduled_tokens, 1);
    bench_answer(b, 50);
    bench_run(b);
    bench_free(b);
}

/* ---- priority ------------------------------------------------------------------------------- */

static void the_queue_is_in_the_policys_order(void **state)
{
    static const struct {
        enum scheduling_policy policy;
        int32_t priorities[5];
        int32_t order[5]; /* ids */
    } rows[] = {
        {POLICY_FCFS, {3, 1, 2, 1, 0}, {1, 2, 3, 4, 5}},
        {POLICY_PRIORITY, {2, 0, 1, 0, 2}, {2, 4, 3, 1, 5}},
        {POLICY_PRIORITY, {7, 7, 7, 7, 7}, {1, 2, 3, 4, 5}},
        {POLICY_PRIORITY, {0, 0, 0, 0, -1}, {5, 1, 2, 3, 4}},
    };

    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        struct scheduler_options options = ROOMY;

        options.policy = rows[i].policy;
        options.max_num_seqs = 1;
        struct bench *b = bench_new(&options);

        for (int r = 0; r < 5; r++)
            bench_add(b, (struct wish){
                             .num_prompt = 5, .max_tokens = 1, .priority = rows[i].priorities[r]});
        for (int r = 0; r < 5; r++) {
            expect_row(bench_schedule(b), 0, rows[i].order[r], 5);
            bench_answer(b, 50);
        }
        bench_free(b);
    }
}

static void a_long_queue_is_in_order_however_it_was_filled(void **state)
{
    struct scheduler_options options = ROOMY;
    enum { NUM = 100 };
    int32_t priorities[NUM + 1] = {0}, last = -1;
    request_id last_id = 0;

    (void)state;
    options.max_num_seqs = 1;
    options.policy = POLICY_PRIORITY;
    struct bench *b = bench_new(&options);

    for (int i = 1; i <= NUM; i++) {
        priorities[i] = i * 37 % 11;
        bench_add(b, (struct wish){.num_prompt = 5, .max_tokens = 1, .priority = priorities[i]});
        if (i % 3 == 0)
            bench_abort(b, i - 1);
    }
    for (int i = 0; i < NUM - NUM / 3; i++) {
        const struct scheduler_output *plan = bench_schedule(b);
        request_id id = b->id_of_slot[plan->slots[0]];

        assert_true(priorities[id] > last || (priorities[id] == last && id > last_id));
        last = priorities[id];
        last_id = id;
        bench_answer(b, 50);
    }
    bench_free(b);
}

static void an_important_newcomer_waits_for_room_all_the_same(void **state)
{
    struct scheduler_options options = ROOMY;

    (void)state;
    options.policy = POLICY_PRIORITY;
    options.max_num_seqs = 2;
    struct bench *b = bench_new(&options);

    bench_add(b, (struct wish){.num_prompt = 10, .max_tokens = 3, .priority = 4});
    bench_add(b, (struct wish){.num_prompt = 10, .max_tokens = 3, .priority = 5});
    expect_counts(bench_schedule(b), 10, 10);
    bench_answer(b, 50);
    bench_add(b, (struct wish){.num_prompt = 10, .max_tokens = 3, .priority = 1});
    bench_add(b, (struct wish){.num_prompt = 10, .max_tokens = 3, .priority = 0});
    expect_counts(bench_schedule(b), 1, 1); /* the slots are taken, nobody is sent away for them */
    bench_answer(b, 50);
    expect_counts(bench_schedule(b), 1, 1);
    bench_answer(b, 50);

    const struct scheduler_output *plan = bench_schedule(b);

    expect_row(plan, 0, 4, 10);
    expect_row(plan, 1, 3, 10);
    bench_answer(b, 50);
    bench_run(b);
    bench_free(b);
}

/* Under pressure, with two steps in flight: no token is lost, none told twice, and all end. */
static void requests_that_push_each_other_out_all_end(void **state)
{
    struct scheduler_options options = ROOMY;
    struct scheduler_stats stats;

    (void)state;
    options.num_blocks = 8;
    struct bench *b = bench_new(&options);

    for (int i = 0; i < 4; i++)
        bench_add(b, (struct wish){.num_prompt = 20 + i, .max_tokens = 70, .ignore_eos = true});
    for (int turn = 0; scheduler_has_work(b->scheduler) || b->next_answer < b->next_step; turn++) {
        assert_true(turn < 1000);
        bench_schedule(b);
        if (b->next_step - b->next_answer == 2 || b->plans[b->next_answer & 1].num_rows == 0 ||
            turn % 3 == 0)
            if (b->next_answer < b->next_step)
                bench_answer(b, 100 + (int32_t)b->next_answer % 800);
    }
    for (request_id id = 1; id <= 4; id++) {
        const struct outcome *outcome = bench_outcome(b, id);

        assert_int_equal(outcome->num_ends, 1);
        assert_int_equal(outcome->num_tokens, 70);
        for (int32_t i = 1; i < 70; i++) /* steps only go on */
            assert_true(outcome->tokens[i] > outcome->tokens[i - 1]);
    }
    scheduler_get_stats(b->scheduler, &stats);
    assert_true(stats.num_preemptions > 0);
    bench_free(b);
}

static void nobody_is_preempted_while_there_is_room(void **state)
{
    struct scheduler_options options = ROOMY;
    struct scheduler_stats stats;

    (void)state;
    options.policy = POLICY_PRIORITY;
    struct bench *b = bench_new(&options);

    bench_add(b, (struct wish){.num_prompt = 30, .max_tokens = 4, .priority = 5});
    bench_schedule(b);
    bench_answer(b, 50);
    bench_add(b, (struct wish){.num_prompt = 30, .max_tokens = 4, .priority = 0});
    expect_counts(bench_schedule(b), 1, 30);
    scheduler_get_stats(b->scheduler, &stats);
    assert_int_equal(stats.num_preemptions, 0);
    bench_answer(b, 50);
    bench_run(b);
    bench_free(b);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(a_request_preempted_in_flight_keeps_its_late_token),
    cmocka_unit_test(a_preempted_request_is_computed_again_when_blocks_are_back),
    cmocka_unit_test(the_least_important_request_gives_way),
    cmocka_unit_test(a_victim_gives_its_tokens_of_this_step_back),
    cmocka_unit_test(the_queue_is_in_the_policys_order),
    cmocka_unit_test(a_long_queue_is_in_order_however_it_was_filled),
    cmocka_unit_test(an_important_newcomer_waits_for_room_all_the_same),
    cmocka_unit_test(requests_that_push_each_other_out_all_end),
    cmocka_unit_test(nobody_is_preempted_while_there_is_room),
};
TEST_MAIN(tests)
