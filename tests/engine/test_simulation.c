/* The whole core under a simulated world: every token is that of the oracle, whatever comes. */
#include "tests/support/expect.h"

#include "engine/simulation/simulation.h"
#include "engine/simulation/toy_rank.h"
#include "proto/base/clock.h"
#include "proto/base/log.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || !defined(__OPTIMIZE__)
enum { NUM_STEPS = 200000 };
#else
enum { NUM_STEPS = 1000000 };
#endif

static void print_difference(void *user, const struct scenario *scenario, int32_t setup,
                             const char *sentence)
{
    (void)user;
    print_message("# seed %lu, setup %d: %s\n", (unsigned long)scenario->seed, setup, sentence);
}

static struct simulation_result simulate(uint64_t seed, int64_t num_steps)
{
    struct simulation_result result;

    log_set_level(LOG_NONE);
    simulation_run(&(struct simulation_options){.seed = seed,
                                                .num_steps = num_steps,
                                                .report = print_difference},
                   &result);
    log_set_level(LOG_INFO);
    return result;
}

/* ---- the promise ---------------------------------------------------------------------------- */

static void every_token_is_right_and_everything_has_happened(void **state)
{
    struct simulation_result result = simulate(1, NUM_STEPS);
    const struct run_totals *totals = &result.totals;

    (void)state;
    assert_int_equal(result.num_differences, 0);
    assert_true(totals->num_steps >= NUM_STEPS);

    /* A simulation in which nothing happens proves nothing. */
    assert_true(totals->num_preemptions > 0 && totals->num_cached_tokens > 0);
    assert_true(totals->num_late_masks > 0);
    assert_true(totals->num_masked_tokens > 0 && totals->num_masked_tokens < totals->num_tokens);
    assert_true(totals->num_orders_done > 0 && totals->num_orders_refused > 0);
    assert_true(totals->num_refused > 0 && totals->num_epochs_ended > 0);
    assert_true(totals->num_recoveries > 0);
    for (int reason = FINISH_STOP; reason <= FINISH_ERROR; reason++)
        assert_true(totals->num_finished[reason] > 0);
    for (int kind = FAULT_NONE + 1; kind < NUM_FAULT_KINDS; kind++)
        if (totals->num_faults[kind] == 0)
            fail_msg("there was never %s", fault_name(kind));
    print_message("# %ld steps in %ld runs: %ld requests, %ld tokens (%ld masked, %ld cached), "
                  "%ld preemptions, %ld late masks, %ld engines that failed, %ld recoveries\n",
                  (long)totals->num_steps, (long)totals->num_runs, (long)totals->num_requests,
                  (long)totals->num_tokens, (long)totals->num_masked_tokens,
                  (long)totals->num_cached_tokens, (long)totals->num_preemptions,
                  (long)totals->num_late_masks,
                  (long)totals->num_epochs_ended, (long)totals->num_recoveries);
}

static void one_seed_is_one_simulation(void **state)
{
    struct simulation_result first = simulate(77, 5000), second = simulate(77, 5000);
    struct simulation_result other = simulate(78, 5000);

    (void)state;
    assert_memory_equal(&first, &second, sizeof first);
    assert_memory_not_equal(&first, &other, sizeof first);
}

/* ---- it can fail ---------------------------------------------------------------------------- */

/* One whose clients are never disturbed, from this seed on. */
static void draw_calm(uint64_t seed, struct scenario *out)
{
    do
        scenario_draw(seed++, out);
    while (out->setups[0].num_faults > 0 || out->num_orders > 0 || out->clients[0].num_tokens < 2 ||
           out->clients[0].abort_after_ns != NEVER_NS || out->clients[0].grammar_fails ||
           out->setups[0].num_blocks * out->block_size < out->max_model_len);
}

static void a_token_that_differs_is_told(void **state)
{
    struct run_totals totals = {0};
    struct scenario scenario = {0};
    token_id *tokens;

    (void)state;
    for (uint64_t seed = 1; seed < 500; seed += 20) {
        draw_calm(seed, &scenario);
        expect_ok(run_setup(&scenario, &scenario.setups[1], &totals));
        tokens = (token_id *)(uintptr_t)scenario.clients[0].tokens;
        tokens[1]++;
        expect_fails(run_setup(&scenario, &scenario.setups[1], &totals), ERR_MISMATCH,
                     "client 0: token 1 of");
        tokens[1]--;
        scenario.clients[0].num_tokens--;
        expect_fails(run_setup(&scenario, &scenario.setups[1], &totals), ERR_MISMATCH,
                     "client 0: ");
    }
    scenario_close(&scenario);
}

static void a_rank_that_dies_ends_its_epoch_and_the_next_goes_on(void **state)
{
    struct run_totals totals = {0};
    struct scenario scenario = {0};

    (void)state;
    log_set_level(LOG_NONE);
    draw_calm(1, &scenario);
    /* Frame 3 is on the way to READY: the engine must fail once, and the next one goes on. */
    scenario.setups[0].faults[0] = (struct planned_fault){.kind = FAULT_RANK_DIES, .at_frame = 3};
    scenario.setups[0].num_faults = 1;
    expect_ok(run_setup(&scenario, &scenario.setups[0], &totals));
    assert_int_equal(totals.num_epochs_ended, 1);
    assert_int_equal(totals.num_faults[FAULT_RANK_DIES], 1);

    /* In the midst of steps, and where ranks are replaced: nobody notices. */
    scenario.setups[0].faults[0].at_frame = 40;
    scenario.setups[0].replaces_ranks = true;
    expect_ok(run_setup(&scenario, &scenario.setups[0], &totals));
    assert_int_equal(totals.num_epochs_ended, 1);
    assert_int_equal(totals.num_recoveries, 1);
    log_set_level(LOG_INFO);
    scenario_close(&scenario);
}

/* ---- the ranks believe nothing -------------------------------------------------------------- */

struct small_plan {
    struct scheduler_output plan;
    struct new_request requests[2];
    int32_t tokens[4], blocks[2], slots[2], computed[2], scheduled[2], counts[2];
    uint8_t samples[2], masks[2];
};

/* Two requests of 4 tokens, each in a block of its own. */
static void make_plan(struct small_plan *small)
{
    *small = (struct small_plan){
        .tokens = {1, 2, 3, 4},
        .blocks = {0, 1},
        .slots = {0, 1},
        .scheduled = {4, 4},
        .samples = {1, 1},
    };
    for (int32_t i = 0; i < 2; i++)
        small->requests[i] = (struct new_request){.slot = i,
                                                  .id = "",
                                                  .prompt_token_ids = small->tokens,
                                                  .num_prompt_token_ids = 4,
                                                  .block_ids = &small->blocks[i],
                                                  .num_block_ids = 1};
    small->plan = (struct scheduler_output){
        .new_requests = small->requests,
        .num_new_requests = 2,
        .num_rows = 2,
        .slots = small->slots,
        .num_computed_tokens = small->computed,
        .num_scheduled_tokens = small->scheduled,
        .samples = small->samples,
        .needs_bitmask = small->masks,
        .new_block_counts = small->counts,
        .total_num_scheduled_tokens = 8,
    };
}

static struct toy_rank *make_rank(void)
{
    struct toy_rank *rank = toy_rank_new(&(struct toy_rank_limits){.max_num_seqs = 2,
                                                                   .max_num_batched_tokens = 16,
                                                                   .max_model_len = 16,
                                                                   .vocab_size = 10,
                                                                   .block_size = 4});

    expect_ok(toy_rank_initialize_kv_cache(rank, 4));
    return rank;
}

static void a_rank_refuses_what_contradicts_itself(void **state)
{
    static const struct grammar_output no_masks;
    struct small_plan small;
    struct toy_rank *rank = make_rank();

    (void)state;
    make_plan(&small);
    small.blocks[1] = 0;
    expect_fails(toy_rank_prepare_inputs(rank, 0, &small.plan), ERR_MISMATCH,
                 "two rows of step 0 write to KV block 0");
    toy_rank_free(rank);

    rank = make_rank();
    make_plan(&small);
    small.masks[1] = 1;
    expect_ok(toy_rank_prepare_inputs(rank, 0, &small.plan));
    expect_fails(toy_rank_sample(rank, 0, &no_masks), ERR_MISMATCH, "which is not due");
    expect_ok(toy_rank_execute_model(rank, 0));
    expect_fails(toy_rank_sample(rank, 0, &no_masks), ERR_MISMATCH,
                 "no bitmask came for slot 1, which needs one");
    expect_fails(toy_rank_prepare_inputs(rank, 2, &small.plan), ERR_MISMATCH,
                 "step 2 is prepared, step 1 is next");
    toy_rank_free(rank);
}

static void two_ranks_compute_the_same_and_another_prompt_another(void **state)
{
    static const struct grammar_output no_masks;
    const uint64_t *contexts[2];
    struct small_plan small;
    int32_t n;

    (void)state;
    make_plan(&small);
    struct toy_rank *ranks[] = {make_rank(), make_rank()};

    for (int i = 0; i < 2; i++) {
        assert_int_equal(toy_rank_due_step(ranks[i]), -1);
        expect_ok(toy_rank_prepare_inputs(ranks[i], 7, &small.plan));
        expect_ok(toy_rank_execute_model(ranks[i], 7));
        expect_ok(toy_rank_sample(ranks[i], 7, &no_masks));
        assert_int_equal(toy_rank_due_step(ranks[i]), 7);
        expect_ok(toy_rank_run(ranks[i], &contexts[i], &n));
        assert_int_equal(n, 2);
        assert_true(contexts[i][0] == contexts[i][1]); /* of the same tokens, in other blocks */
        small.tokens[2] = 9;
    }
    assert_true(contexts[0][0] != contexts[1][0]);
    toy_rank_free(ranks[0]);
    toy_rank_free(ranks[1]);
}

/* ---- time ----------------------------------------------------------------------------------- */

static void note(void *owner, const struct event *event)
{
    struct bytes *order = owner;

    bytes_printf(order, "%d", event->who);
}

static void events_happen_in_order_of_time_and_then_of_number(void **state)
{
    static const int64_t times[] = {50, 20, 50, 10, 20, 50};
    AUTO_CLOSE(agenda) struct agenda agenda = {0};
    AUTO_CLOSE(bytes) struct bytes order = {0};
    struct bytes nobody = {0};

    (void)state;
    for (int32_t i = 0; i < 6; i++)
        agenda_add(&agenda,
                   &(struct event){.at_ns = times[i], .happen = note, .owner = &order, .who = i});
    agenda_add(&agenda, &(struct event){.at_ns = 15, .happen = note, .owner = &nobody});
    agenda_forget(&agenda, &nobody);
    clock_simulate(&agenda.now_ns);
    while (agenda_next_ns(&agenda) != INT64_MAX) {
        agenda_step(&agenda);
        assert_int_equal(clock_now_ns(), agenda.now_ns);
    }
    assert_int_equal(clock_deadline_ns(2), 2000050);
    clock_simulate(NULL);
    assert_true(clock_now_ns() > 1000);
    assert_string_equal(bytes_text(&order), "314025");
    assert_null(nobody.data);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_token_is_right_and_everything_has_happened),
        cmocka_unit_test(one_seed_is_one_simulation),
        cmocka_unit_test(a_token_that_differs_is_told),
        cmocka_unit_test(a_rank_that_dies_ends_its_epoch_and_the_next_goes_on),
        cmocka_unit_test(a_rank_refuses_what_contradicts_itself),
        cmocka_unit_test(two_ranks_compute_the_same_and_another_prompt_another),
        cmocka_unit_test(events_happen_in_order_of_time_and_then_of_number),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
