/* What the workers are told about slots: each is forgotten before it is given away again. */
#include "tests/support/expect.h"

#include "engine/core/output_builder.h"
#include "engine/core/scheduler.h"

static const struct scheduler_options options = {
    .max_num_seqs = 4,
    .max_num_batched_tokens = 64,
    .enable_chunked_prefill = true,
    .max_model_len = 64,
    .num_blocks = 64,
    .block_size = 16,
    .vocab_size = 100,
};

static void add(struct scheduler *scheduler, request_id id, int32_t max_tokens)
{
    token_id prompt[] = {5, 6, 7};
    struct sampling_params params;

    sampling_params_init(&params);
    params.max_tokens = max_tokens;
    params.ignore_eos = true;
    struct submission submission = {.prompt = prompt, .num_prompt = 3, .params = &params};
    expect_ok(scheduler_add(
        scheduler, request_new(id, &submission, options.max_model_len, options.block_size)));
}

/* The step comes back with token 9 in every row that samples. */
static void bring_back(struct scheduler *scheduler, const struct scheduler_output *plan)
{
    struct output_builder events = {0};
    int32_t slots[8], tokens[8], counts[8] = {0}, ranks[8] = {0};
    struct model_runner_output output = {
        .num_rows = plan->num_rows,
        .slots = slots,
        .sampled_token_ids = tokens,
        .logprob_counts = counts,
        .sampled_token_ranks = ranks,
    };

    for (int32_t row = 0; row < plan->num_rows; row++) {
        if (!plan->samples[row])
            continue;
        slots[output.num_sampled] = plan->slots[row];
        tokens[output.num_sampled++] = 9;
    }
    expect_ok(scheduler_update_from_output(scheduler, plan, &output, &events));
    struct output_node *node = output_builder_take(&events);
    if (node)
        engine_output_free(&node->output);
}

static bool is_forgotten(const struct scheduler_output *plan, int32_t slot)
{
    for (int32_t i = 0; i < plan->num_finished_slots; i++)
        if (plan->finished_slots[i] == slot)
            return true;
    return false;
}

/* One request ends while the last token of the other is in flight: there is nothing to schedule,
 * and what the workers are to forget must not be lost with the plan that has no rows. */
static void an_empty_plan_loses_no_finished_slot(void **state)
{
    (void)state;
    AUTO_FREE(scheduler) struct scheduler *scheduler = scheduler_new(&options);
    AUTO_CLOSE(arena) struct arena arena = {0};
    struct scheduler_output first, second, none, next;

    add(scheduler, 1, 1);
    add(scheduler, 2, 2);
    scheduler_schedule(scheduler, &arena, &first);
    assert_int_equal(first.num_rows, 2);
    int32_t slot_of_1 = first.slots[0], slot_of_2 = first.slots[1];
    scheduler_schedule(scheduler, &arena, &second);
    assert_int_equal(second.num_rows, 1);
    bring_back(scheduler, &first);
    scheduler_schedule(scheduler, &arena, &none);
    assert_int_equal(none.num_rows, 0);
    bring_back(scheduler, &second);

    add(scheduler, 3, 1);
    scheduler_schedule(scheduler, &arena, &next);
    assert_int_equal(next.num_rows, 1);
    assert_true(is_forgotten(&next, slot_of_1));
    assert_true(is_forgotten(&next, slot_of_2));
    bring_back(scheduler, &next);
    assert_false(scheduler_has_work(scheduler));
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(an_empty_plan_loses_no_finished_slot),
};
TEST_MAIN(tests)
