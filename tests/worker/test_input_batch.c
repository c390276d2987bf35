#include "tests/support/expect.h"

#include "tests/support/plan_sheet.h"
#include "worker/input_batch.h"

enum { VOCAB = 100, NUM_BLOCKS = 16 };

static const int32_t prompt[200] = {10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25};
static const int32_t blocks[] = {3, 4, 5, 6, 7, 8, 9, 10, 11, 12};

static struct input_batch *new_batch(void)
{
    struct input_batch *batch;

    expect_ok(input_batch_new(&(struct input_batch_limits){.max_num_seqs = 4,
                                                           .max_batched_tokens = 64,
                                                           .max_model_len = 128,
                                                           .vocab_size = VOCAB},
                              &batch));
    input_batch_set_num_blocks(batch, NUM_BLOCKS);
    return batch;
}

/* Slot 0 has a prompt of 16 tokens in block 3, all computed; slot 1 one of 5 in block 8. */
static void stage_first(struct input_batch *batch, struct plan_sheet *sheet)
{
    plan_sheet_begin(sheet);
    plan_sheet_new(sheet,
                   &(struct new_request){.prompt_token_ids = prompt,
                                         .num_prompt_token_ids = 16,
                                         .block_ids = blocks,
                                         .num_block_ids = 1},
                   NULL, 16, true);
    plan_sheet_new(sheet,
                   &(struct new_request){.slot = 1,
                                         .prompt_token_ids = prompt,
                                         .num_prompt_token_ids = 5,
                                         .block_ids = blocks + 5,
                                         .num_block_ids = 1},
                   NULL, 5, true);
    expect_ok(input_batch_stage(batch, 0, &sheet->plan));
}

/* Then slot 0 goes on, slot 1 is over, and slot 2 is new: 10 of 12 prompt tokens, block 9. */
static void write_second(struct plan_sheet *sheet)
{
    plan_sheet_begin(sheet);
    plan_sheet_finish(sheet, 1);
    plan_sheet_row(sheet, 0, 16, 1, true, 4, 1);
    plan_sheet_new(sheet,
                   &(struct new_request){.slot = 2,
                                         .prompt_token_ids = prompt,
                                         .num_prompt_token_ids = 12,
                                         .block_ids = blocks + 6,
                                         .num_block_ids = 1},
                   NULL, 10, false);
}

static void a_plan_becomes_ids_positions_and_tables(void **state)
{
    AUTO_FREE(input_batch) struct input_batch *batch = new_batch();
    struct plan_sheet sheet;

    (void)state;
    stage_first(batch, &sheet);

    const struct staged_step *staged = input_batch_staged(batch, 0);
    const struct batch_view *view = &staged->batch;

    assert_int_equal(staged->step, 0);
    assert_int_equal(view->rows, 21);
    assert_int_equal(view->num_requests, 2);
    assert_int_equal(view->row_start[1], 16);
    assert_int_equal(view->row_start[2], 21);
    assert_int_equal(view->positions[15], 15);
    assert_int_equal(view->positions[16], 0);
    assert_memory_equal(staged->ids, prompt, 16 * sizeof *prompt);
    assert_memory_equal(staged->ids + 16, prompt, 5 * sizeof *prompt);
    assert_int_equal(view->block_tables[0], 3);
    assert_int_equal(view->block_tables[view->block_table_stride], 8);
    assert_int_equal(staged->num_samples, 2);
    assert_int_equal(staged->sample_rows[0], 15);
    assert_int_equal(staged->sample_rows[1], 20);
    assert_int_equal(staged->samples[1].slot, 1);
    assert_int_equal(staged->samples[1].position, 5);
}

static void a_token_of_the_step_before_is_filled_in_when_it_is_there(void **state)
{
    AUTO_FREE(input_batch) struct input_batch *batch = new_batch();
    struct plan_sheet sheet;
    int32_t num_prompt;

    (void)state;
    stage_first(batch, &sheet);
    write_second(&sheet);
    expect_ok(input_batch_stage(batch, 1, &sheet.plan));

    struct staged_step *first = input_batch_staged(batch, 0), *second = input_batch_staged(batch, 1);

    assert_int_equal(first->step, 0); /* still whole */
    assert_int_equal(first->batch.rows, 21);
    assert_int_equal(second->ids[0], -1);
    assert_int_equal(second->batch.positions[0], 16);
    assert_int_equal(second->batch.block_tables[0], 3);
    assert_int_equal(second->batch.block_tables[1], 4);
    assert_int_equal(first->batch.block_tables[1], 0); /* as of that step */

    input_batch_append_token(batch, &first->samples[0], 77);
    input_batch_fill_ids(batch, second);
    assert_int_equal(second->ids[0], 77);
    assert_memory_equal(second->ids + 1, prompt, 10 * sizeof *prompt);
    assert_int_equal(input_batch_tokens(batch, 0, &num_prompt)[16], 77);
    assert_int_equal(num_prompt, 16);
}

static void a_row_that_drew_no_token_leaves_an_id_that_the_step_behind_can_look_up(void **state)
{
    AUTO_FREE(input_batch) struct input_batch *batch = new_batch();
    struct plan_sheet sheet;
    int32_t num_prompt;

    (void)state;
    stage_first(batch, &sheet);
    write_second(&sheet);
    expect_ok(input_batch_stage(batch, 1, &sheet.plan));

    struct staged_step *second = input_batch_staged(batch, 1);

    input_batch_append_token(batch, &input_batch_staged(batch, 0)->samples[0], -1);
    input_batch_fill_ids(batch, second);
    assert_in_range(second->ids[0], 0, VOCAB - 1);
    assert_in_range(input_batch_tokens(batch, 0, &num_prompt)[16], 0, VOCAB - 1);
}

static void a_slot_is_used_again_with_nothing_of_the_one_before(void **state)
{
    static const int32_t other[] = {50, 51, 52}, output[] = {60, 61};
    AUTO_FREE(input_batch) struct input_batch *batch = new_batch();
    struct sampling_params params;
    struct plan_sheet sheet;

    (void)state;
    stage_first(batch, &sheet);
    sampling_params_init(&params);
    params.all_stop_token_ids = (const int32_t[]){9};
    params.num_all_stop_token_ids = 1;
    params.seed = 42;
    plan_sheet_begin(&sheet);
    plan_sheet_finish(&sheet, 0);
    plan_sheet_new(&sheet,
                   &(struct new_request){.prompt_token_ids = other,
                                         .num_prompt_token_ids = 3,
                                         .output_token_ids = output,
                                         .num_output_token_ids = 2,
                                         .block_ids = blocks + 9,
                                         .num_block_ids = 1},
                   &params, 5, true);
    expect_ok(input_batch_stage(batch, 1, &sheet.plan));

    const struct staged_step *staged = input_batch_staged(batch, 1);
    int32_t num_prompt;

    assert_memory_equal(staged->ids, ((int32_t[]){50, 51, 52, 60, 61}), 5 * sizeof(int32_t));
    assert_int_equal(staged->batch.block_tables[0], 12);
    input_batch_tokens(batch, 0, &num_prompt);
    assert_int_equal(num_prompt, 3);
    assert_int_equal(input_batch_params(batch, 0)->seed, 42);
    assert_int_equal(input_batch_params(batch, 0)->all_stop_token_ids[0], 9);
    assert_ptr_not_equal(input_batch_params(batch, 0)->all_stop_token_ids,
                         params.all_stop_token_ids);
}

/* ---- refusals ------------------------------------------------------------------------------- */

static void no_rows(struct plan_sheet *s) { plan_sheet_begin(s); }
static void other_computed(struct plan_sheet *s) { s->num_computed[0] = 15; }
static void unknown_slot(struct plan_sheet *s) { s->slots[0] = 3; }
static void slot_out_of_range(struct plan_sheet *s) { s->slots[0] = 8; }
static void row_of_finished(struct plan_sheet *s) { s->slots[0] = 1, s->num_computed[0] = 5; }
static void two_rows(struct plan_sheet *s) { plan_sheet_row(s, 0, 16, 1, true, 5, 1); }
static void too_many_tokens(struct plan_sheet *s)
{
    s->num_scheduled[1] = 64, s->plan.total_num_scheduled_tokens = 65;
}
static void beyond_known(struct plan_sheet *s)
{
    s->num_scheduled[0] = 2, s->plan.total_num_scheduled_tokens++;
}
static void beyond_prompt(struct plan_sheet *s)
{
    s->num_scheduled[1] = 13, s->plan.total_num_scheduled_tokens += 3;
}
static void samples_within_the_prompt(struct plan_sheet *s) { s->samples[1] = 1; }
static void block_missing(struct plan_sheet *s)
{
    s->block_counts[0] = 0, s->plan.num_new_block_ids = 0;
}
static void block_out_of_range(struct plan_sheet *s) { s->block_ids[0] = NUM_BLOCKS; }
static void finished_unknown(struct plan_sheet *s) { plan_sheet_finish(s, 5); }
static void finished_twice(struct plan_sheet *s) { plan_sheet_finish(s, 1); }
static void new_slot_in_use(struct plan_sheet *s)
{
    s->new_requests[0].slot = s->slots[1] = 0;
}
static void new_slot_out_of_range(struct plan_sheet *s) { s->new_requests[0].slot = -1; }
static void new_twice(struct plan_sheet *s)
{
    s->new_requests[1] = s->new_requests[0];
    s->plan.num_new_requests = 2;
}
static void new_without_row(struct plan_sheet *s)
{
    s->plan.num_rows = 1, s->plan.total_num_scheduled_tokens = 1;
}
static void no_prompt(struct plan_sheet *s) { s->new_requests[0].num_prompt_token_ids = 0; }
static void long_prompt(struct plan_sheet *s) { s->new_requests[0].num_prompt_token_ids = 129; }
static void too_many_blocks(struct plan_sheet *s) { s->new_requests[0].num_block_ids = 9; }
static void new_block_negative(struct plan_sheet *s)
{
    static const int32_t bad[] = {-1};

    s->new_requests[0].block_ids = bad;
}
static void token_out_of_vocabulary(struct plan_sheet *s)
{
    static const int32_t bad[] = {1, 2, 100, 4, 5, 6, 7, 8, 9, 10, 11, 12};

    s->new_requests[0].prompt_token_ids = bad;
}
static void output_out_of_vocabulary(struct plan_sheet *s)
{
    static const int32_t bad[] = {-1};

    s->new_requests[0].output_token_ids = bad, s->new_requests[0].num_output_token_ids = 1;
}
static void stop_out_of_vocabulary(struct plan_sheet *s)
{
    static const int32_t bad[] = {100};
    struct sampling_params *params = &s->new_requests[0].sampling_params;

    params->all_stop_token_ids = bad, params->num_all_stop_token_ids = 1;
}
static void bias_out_of_vocabulary(struct plan_sheet *s)
{
    static const int32_t bad[] = {-5};
    static const float value[] = {1};
    struct sampling_params *params = &s->new_requests[0].sampling_params;

    params->logit_bias_ids = bad, params->logit_bias_values = value, params->num_logit_bias = 1;
}

static void prompt_row_out_of_range(struct plan_sheet *s) { plan_sheet_prompt_logprobs(s, 2, 1); }
static void prompt_row_behind_the_prompt(struct plan_sheet *s)
{
    plan_sheet_prompt_logprobs(s, 0, 1);
}
static void prompt_row_over_its_end(struct plan_sheet *s)
{
    s->new_requests[0].num_prompt_token_ids = 10;
    s->new_requests[0].sampling_params.prompt_logprobs = 0;
    plan_sheet_prompt_logprobs(s, 1, 10);
}
static void prompt_row_unasked_for(struct plan_sheet *s) { plan_sheet_prompt_logprobs(s, 1, 10); }

static void a_plan_that_does_not_fit_is_refused_and_changes_nothing(void **state)
{
    static const struct {
        void (*spoil)(struct plan_sheet *sheet);
        const char *words;
    } rows[] = {
        {no_rows, "a step without rows"},
        {other_computed, "row 0: 16 tokens of slot 0 are computed here, the plan says 15"},
        {unknown_slot, "row 0: slot 3 is not known here"},
        {slot_out_of_range, "row 0 has slot 8; slots are 0 to 7"},
        {row_of_finished, "row 0: slot 1 is not known here"},
        {two_rows, "row 2: slot 0 has a row already"},
        {too_many_tokens, "the step has 65 tokens, at most 64 fit"},
        {beyond_known, "row 0: 18 tokens of slot 0 are wanted, 17 are known or on their way"},
        {beyond_prompt, "row 1: 13 tokens of slot 2 are wanted, 12 are known or on their way"},
        {samples_within_the_prompt, "row 1: slot 2 samples behind 10 tokens of 12"},
        {block_missing, "row 0: 17 tokens do not fit in 1 blocks"},
        {block_out_of_range, "slot 0: KV block 16 is not in [0, 16)"},
        {finished_unknown, "slot 5 is to be forgotten, and is not known here"},
        {finished_twice, "slot 1 is to be forgotten twice"},
        {new_slot_in_use, "slot 0 is given to a new request while it is in use"},
        {new_slot_out_of_range, "slot -1; slots are 0 to 7"},
        {new_twice, "slot 2 is given to two new requests"},
        {new_without_row, "slot 2 is new and has no row"},
        {no_prompt, "slot 2: 0 prompt and 0 output tokens, at most 128 in all"},
        {long_prompt, "slot 2: 129 prompt and 0 output tokens, at most 128 in all"},
        {too_many_blocks, "slot 2: 9 blocks, at most 8"},
        {new_block_negative, "slot 2: KV block -1 is not in [0, 16)"},
        {token_out_of_vocabulary, "slot 2: token 100 is not in [0, 100)"},
        {output_out_of_vocabulary, "slot 2: token -1 is not in [0, 100)"},
        {stop_out_of_vocabulary, "slot 2: stop token 100 is not in [0, 100)"},
        {bias_out_of_vocabulary, "slot 2: biased token -5 is not in [0, 100)"},
        {prompt_row_out_of_range, "row 2 comes after row -1 of 2"},
        {prompt_row_behind_the_prompt,
         "row 0: the logprob of prompt token 17 of slot 0 is wanted, it has 16"},
        {prompt_row_over_its_end,
         "row 1: the logprob of prompt token 10 of slot 2 is wanted, it has 10"},
        {prompt_row_unasked_for, "row 1: slot 2 did not ask for its prompt's logprobs"},
    };
    AUTO_FREE(input_batch) struct input_batch *batch = new_batch();
    struct plan_sheet sheet;

    (void)state;
    stage_first(batch, &sheet);
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        write_second(&sheet);
        rows[i].spoil(&sheet);
        expect_fails(input_batch_stage(batch, 1, &sheet.plan), ERR_MISMATCH, rows[i].words);
        assert_int_equal(input_batch_staged(batch, 1)->step, -1);
    }
    write_second(&sheet);
    expect_ok(input_batch_stage(batch, 1, &sheet.plan));
}

static void more_rows_than_max_num_seqs_are_refused(void **state)
{
    AUTO_FREE(input_batch) struct input_batch *batch = new_batch();
    struct plan_sheet sheet;

    (void)state;
    plan_sheet_begin(&sheet);
    for (int32_t slot = 0; slot < 5; slot++)
        plan_sheet_new(&sheet,
                       &(struct new_request){.slot = slot,
                                             .prompt_token_ids = prompt,
                                             .num_prompt_token_ids = 2,
                                             .block_ids = blocks + slot,
                                             .num_block_ids = 1},
                       NULL, 2, true);
    expect_fails(input_batch_stage(batch, 0, &sheet.plan), ERR_MISMATCH, "5 rows, at most 4");
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(a_plan_becomes_ids_positions_and_tables),
    cmocka_unit_test(a_token_of_the_step_before_is_filled_in_when_it_is_there),
        cmocka_unit_test(a_row_that_drew_no_token_leaves_an_id_that_the_step_behind_can_look_up),
    cmocka_unit_test(a_slot_is_used_again_with_nothing_of_the_one_before),
    cmocka_unit_test(a_plan_that_does_not_fit_is_refused_and_changes_nothing),
    cmocka_unit_test(more_rows_than_max_num_seqs_are_refused),
};
TEST_MAIN(tests)
