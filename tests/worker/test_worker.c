/* One rank through its door, on a tiny model, with a real device thread. */
#include "tests/support/expect.h"

#include "tests/support/plan_sheet.h"
#include "proto/base/clock.h"
#include "proto/base/cpus.h"
#include "proto/base/rounding.h"
#include "tests/support/tiny_model.h"
#include "worker/worker.h"

#include <dirent.h>
#include <poll.h>
#include <sched.h>
#include <stdlib.h>
#include <unistd.h>

enum { NUM_BLOCKS = 16, NUM_PROMPT = 20 };

static char model_path[64];
static int32_t prompt[NUM_PROMPT];
static const int32_t blocks[] = {0, 1, 2, 3, 4, 5, 6, 7};

static int make_model(void **state)
{
    (void)state;
    snprintf(model_path, sizeof model_path, "/tmp/tandem-test-worker-%d.gguf", (int)getpid());
    tiny_model_write(model_path, NULL);
    for (int32_t i = 0; i < NUM_PROMPT; i++)
        prompt[i] = 40 + i * 3;
    return 0;
}

static int remove_model(void **state)
{
    (void)state;
    return unlink(model_path);
}

struct rank {
    struct model_file *file;
    struct worker *worker;
};

static void start_loading(struct rank *rank)
{
    expect_ok(model_file_open(model_path, &rank->file));
    expect_ok(worker_new(&(struct worker_options){.world = 1,
                                                  .num_threads = 1,
                                                  .max_num_seqs = 4,
                                                  .max_batched_tokens = 64,
                                                  .max_model_len = 128},
                         rank->file, &rank->worker));
}

static void start(struct rank *rank)
{
    struct worker_memory memory;

    start_loading(rank);
    expect_ok(worker_wait_loaded(rank->worker, &memory));
    assert_true(memory.weight_bytes > 0 && memory.kv_block_bytes > 0);
    expect_ok(worker_initialize_kv_cache(rank->worker, NUM_BLOCKS));
}

static void stop(struct rank *rank)
{
    worker_free(rank->worker);
    model_file_free(rank->file);
}

/* Step 0: one request, its whole prompt. */
static void write_prefill(struct plan_sheet *sheet, const struct sampling_params *params)
{
    plan_sheet_begin(sheet);
    plan_sheet_new(sheet,
                   &(struct new_request){.prompt_token_ids = prompt,
                                         .num_prompt_token_ids = NUM_PROMPT,
                                         .block_ids = blocks,
                                         .num_block_ids = 4},
                   params, NUM_PROMPT, true);
}

/* Step n > 0: its token n. */
static void write_decode(struct plan_sheet *sheet, int64_t step)
{
    plan_sheet_begin(sheet);
    plan_sheet_row(sheet, 0, NUM_PROMPT + (int32_t)step - 1, 1, true, 0, 0);
}

static void write_step(struct plan_sheet *sheet, int64_t step)
{
    if (step == 0)
        write_prefill(sheet, NULL);
    else
        write_decode(sheet, step);
}

static int32_t collect(struct rank *rank, int64_t step)
{
    const struct model_runner_output *output;
    int64_t answered;

    expect_ok(worker_collect(rank->worker, true, &answered, &output));
    assert_int_equal(answered, step);
    expect_ok(model_runner_output_check(output));
    assert_int_equal(output->num_sampled, 1);
    assert_int_equal(output->slots[0], 0);
    return output->sampled_token_ids[0];
}

static void prepare_and_execute(struct rank *rank, int64_t step)
{
    struct plan_sheet sheet;

    write_step(&sheet, step);
    expect_ok(worker_prepare_inputs(rank->worker, step, &sheet.plan));
    plan_sheet_begin(&sheet); /* it has copied what it needs */
    expect_ok(worker_execute_model(rank->worker, step));
}

static void a_step_staged_while_another_runs_has_its_token(void **state)
{
    enum { NUM_STEPS = 24 };
    struct rank alone = {0}, ahead = {0};
    int32_t tokens[NUM_STEPS];

    (void)state;
    start(&alone);
    for (int64_t step = 0; step < NUM_STEPS; step++) {
        prepare_and_execute(&alone, step);
        expect_ok(worker_sample(alone.worker, step, NULL));
        tokens[step] = collect(&alone, step);
    }
    stop(&alone);

    start(&ahead);
    prepare_and_execute(&ahead, 0);
    expect_ok(worker_sample(ahead.worker, 0, NULL));
    for (int64_t step = 1; step < NUM_STEPS; step++) {
        prepare_and_execute(&ahead, step); /* nobody knows the token of the step before */
        assert_int_equal(collect(&ahead, step - 1), tokens[step - 1]);
        expect_ok(worker_sample(ahead.worker, step, NULL));
    }
    assert_int_equal(collect(&ahead, NUM_STEPS - 1), tokens[NUM_STEPS - 1]);
    stop(&ahead);
}

static void calls_out_of_order_are_refused_and_do_no_harm(void **state)
{
    const struct model_runner_output *output;
    struct rank rank = {0};
    struct plan_sheet sheet;
    struct worker_memory memory;
    int64_t step;

    (void)state;
    start_loading(&rank);
    assert_false(worker_is_loaded(rank.worker));
    expect_fails(worker_initialize_kv_cache(rank.worker, NUM_BLOCKS), ERR_MISMATCH, "after loading");
    expect_ok(worker_wait_loaded(rank.worker, &memory));
    assert_true(worker_is_loaded(rank.worker));
    write_prefill(&sheet, NULL);
    expect_fails(worker_prepare_inputs(rank.worker, 0, &sheet.plan), ERR_MISMATCH,
                 "before the KV cache was sized");
    expect_fails(worker_initialize_kv_cache(rank.worker, 0), ERR_MISMATCH, "1 block or more");
    expect_ok(worker_initialize_kv_cache(rank.worker, NUM_BLOCKS));
    expect_fails(worker_initialize_kv_cache(rank.worker, NUM_BLOCKS - 1), ERR_MISMATCH, "once");

    expect_fails(worker_prepare_inputs(rank.worker, -1, &sheet.plan), ERR_MISMATCH, "step -1");
    expect_fails(worker_execute_model(rank.worker, 0), ERR_MISMATCH,
                 "execute_model of step 0, which is not due");
    expect_fails(worker_sample(rank.worker, 0, NULL), ERR_MISMATCH,
                 "sample of step 0, which is not due");
    expect_ok(worker_prepare_inputs(rank.worker, 0, &sheet.plan));
    expect_fails(worker_prepare_inputs(rank.worker, 0, &sheet.plan), ERR_MISMATCH,
                 "step 0 is prepared, step 1 is next");
    expect_fails(worker_sample(rank.worker, 0, NULL), ERR_MISMATCH, "sample of step 0");
    expect_fails(worker_execute_model(rank.worker, 2), ERR_MISMATCH, "execute_model of step 2");
    expect_ok(worker_execute_model(rank.worker, 0));
    expect_fails(worker_execute_model(rank.worker, 0), ERR_MISMATCH, "execute_model of step 0");

    write_decode(&sheet, 1);
    expect_ok(worker_prepare_inputs(rank.worker, 1, &sheet.plan));
    write_decode(&sheet, 2);
    expect_fails(worker_prepare_inputs(rank.worker, 2, &sheet.plan), ERR_MISMATCH,
                 "step 2 is prepared while step 0 runs");
    expect_ok(worker_collect(rank.worker, false, &step, &output));
    assert_null(output);

    expect_ok(worker_sample(rank.worker, 0, NULL));
    collect(&rank, 0);
    expect_ok(worker_execute_model(rank.worker, 1));
    expect_ok(worker_sample(rank.worker, 1, NULL));
    collect(&rank, 1);
    stop(&rank);
}

static void a_refused_plan_leaves_the_step_to_be_prepared(void **state)
{
    struct rank rank = {0};
    struct plan_sheet sheet;

    (void)state;
    start(&rank);
    write_prefill(&sheet, NULL);
    sheet.new_requests[0].slot = sheet.slots[0] = 99;
    expect_fails(worker_prepare_inputs(rank.worker, 0, &sheet.plan), ERR_MISMATCH, "slot 99");
    prepare_and_execute(&rank, 0);
    expect_ok(worker_sample(rank.worker, 0, NULL));
    collect(&rank, 0);
    stop(&rank);
}

/* ---- slots ---------------------------------------------------------------------------------- */

/* The engine may know from rank 0 that a step is over which this rank has not quite left. */
static void a_slot_is_another_requests_when_its_step_is_collected(void **state)
{
    struct rank rank = {0};
    struct plan_sheet same, other;

    (void)state;
    start(&rank);
    write_prefill(&same, NULL);
    prepare_and_execute(&rank, 0);
    plan_sheet_begin(&other);
    plan_sheet_new(&other,
                   &(struct new_request){.slot = 1,
                                         .prompt_token_ids = prompt,
                                         .num_prompt_token_ids = NUM_PROMPT,
                                         .block_ids = blocks + 4,
                                         .num_block_ids = 4},
                   NULL, NUM_PROMPT, true);
    assert_false(worker_awaits_collect(rank.worker, 1, &same.plan)); /* nor is it over, anywhere */
    expect_ok(worker_sample(rank.worker, 0, NULL));
    assert_true(worker_awaits_collect(rank.worker, 1, &same.plan));
    assert_false(worker_awaits_collect(rank.worker, 1, &other.plan));
    assert_true(worker_awaits_collect(rank.worker, 2, &other.plan)); /* the staging slot */
    collect(&rank, 0);
    assert_false(worker_awaits_collect(rank.worker, 1, &same.plan));

    plan_sheet_finish(&same, 0);
    expect_ok(worker_prepare_inputs(rank.worker, 1, &same.plan));
    expect_ok(worker_execute_model(rank.worker, 1));
    expect_ok(worker_sample(rank.worker, 1, NULL));
    collect(&rank, 1);
    stop(&rank);
}

/* ---- prompts' logprobs ------------------------------------------------------------------------ */

enum { NUM_SCORED = NUM_PROMPT - 1, NUM_TOPS = 3 };

struct scores {
    int32_t ranks[NUM_SCORED], ids[NUM_SCORED * (1 + NUM_TOPS)];
    float logprobs[NUM_SCORED * (1 + NUM_TOPS)];
    int32_t num_tokens;
    int32_t drawn;
};

static void take_scores(const struct model_runner_output *output, int32_t position, int32_t length,
                        struct scores *scores)
{
    size_t first = (size_t)scores->num_tokens * (1 + NUM_TOPS), n = (size_t)length * (1 + NUM_TOPS);

    expect_ok(model_runner_output_check(output));
    assert_int_equal(output->num_prompt_runs, 1);
    assert_int_equal(output->prompt_slots[0], 0);
    assert_int_equal(output->prompt_positions[0], position);
    assert_int_equal(output->prompt_lengths[0], length);
    assert_int_equal(output->num_prompt_logprobs, n);
    memcpy(scores->ranks + scores->num_tokens, output->prompt_ranks,
           sizeof *scores->ranks * (size_t)length);
    memcpy(scores->ids + first, output->prompt_logprob_token_ids, sizeof *scores->ids * n);
    memcpy(scores->logprobs + first, output->prompt_logprobs, sizeof *scores->logprobs * n);
    scores->num_tokens += length;
}

/* The prompt in chunks of so many tokens, on a rank whose logits have room for 4 rows. */
static void score_prompt(int32_t chunk, struct scores *scores)
{
    const struct model_runner_output *output;
    struct sampling_params params;
    struct plan_sheet sheet;
    struct rank rank = {0};
    int64_t step = 0, answered;

    sampling_params_init(&params);
    params.temperature = 0;
    params.logprobs = 0;
    params.prompt_logprobs = NUM_TOPS;
    *scores = (struct scores){0};
    start(&rank);
    for (int32_t from = 0; from < NUM_PROMPT; from += chunk, step++) {
        int32_t n = MIN(chunk, NUM_PROMPT - from), scored = MIN(n, NUM_SCORED - from);
        bool is_last = from + n == NUM_PROMPT;

        plan_sheet_begin(&sheet);
        if (from == 0)
            plan_sheet_new(&sheet,
                           &(struct new_request){.prompt_token_ids = prompt,
                                                 .num_prompt_token_ids = NUM_PROMPT,
                                                 .block_ids = blocks,
                                                 .num_block_ids = 4},
                           &params, n, is_last);
        else
            plan_sheet_row(&sheet, 0, from, n, is_last, 0, 0);
        if (scored > 0)
            plan_sheet_prompt_logprobs(&sheet, 0, scored);
        expect_ok(worker_prepare_inputs(rank.worker, step, &sheet.plan));
        expect_ok(worker_execute_model(rank.worker, step));
        expect_ok(worker_sample(rank.worker, step, NULL));
        expect_ok(worker_collect(rank.worker, true, &answered, &output));
        if (scored > 0)
            take_scores(output, from + 1, scored, scores);
        if (is_last)
            scores->drawn = output->sampled_token_ids[0];
    }
    stop(&rank);
}

static void a_prompts_logprobs_have_the_same_bits_in_any_chunks(void **state)
{
    struct scores whole, chunked;

    (void)state;
    score_prompt(NUM_PROMPT, &whole);
    assert_int_equal(whole.num_tokens, NUM_SCORED);
    for (int32_t i = 0; i < NUM_SCORED; i++) {
        const float *logprobs = whole.logprobs + i * (1 + NUM_TOPS);
        const int32_t *ids = whole.ids + i * (1 + NUM_TOPS);

        assert_int_equal(ids[0], prompt[i + 1]);
        assert_true(whole.ranks[i] >= 1 && logprobs[0] < 0);
        for (int32_t k = 2; k <= NUM_TOPS; k++)
            assert_true(logprobs[k] <= logprobs[k - 1]);
        if (whole.ranks[i] <= NUM_TOPS) {
            assert_int_equal(ids[whole.ranks[i]], ids[0]);
            assert_memory_equal(&logprobs[whole.ranks[i]], &logprobs[0], sizeof *logprobs);
        } else {
            assert_true(logprobs[0] <= logprobs[NUM_TOPS]);
        }
    }
    for (int32_t chunk = 1; chunk < NUM_PROMPT; chunk += 3) {
        score_prompt(chunk, &chunked);
        assert_memory_equal(&chunked, &whole, sizeof whole);
    }
}

/* ---- masks ---------------------------------------------------------------------------------- */

static void nothing_is_sampled_without_the_mask_that_is_due(void **state)
{
    struct rank rank = {0};
    struct plan_sheet sheet;

    (void)state;
    start(&rank);

    int32_t vocab_size = model_file_config(rank.file)->vocab_size, words = divide_up(vocab_size, 32);
    int32_t slot = 0, allowed = 77, position = NUM_PROMPT, mask = 0;
    uint32_t *bits = mem_new_array(uint32_t, (size_t)words);
    struct grammar_output grammar = {.slots = &slot,
                                     .num_rows = 1,
                                     .positions = &position,
                                     .bitmask_rows = &mask,
                                     .num_bitmask_rows = 1,
                                     .words_per_row = words,
                                     .bitmask = (const uint8_t *)bits,
                                     .num_bitmask_bytes = words * 4};
    struct grammar_output none = {0};

    bits[allowed / 32] = 1u << (allowed % 32);
    write_prefill(&sheet, NULL);
    sheet.needs_bitmask[0] = 1;
    expect_ok(worker_prepare_inputs(rank.worker, 0, &sheet.plan));
    expect_ok(worker_execute_model(rank.worker, 0));
    expect_fails(worker_sample(rank.worker, 0, NULL), ERR_MISMATCH,
                 "no bitmask came for slot 0, which needs one");
    expect_fails(worker_sample(rank.worker, 0, &none), ERR_MISMATCH, "no bitmask came for slot 0");
    slot = 1;
    expect_fails(worker_sample(rank.worker, 0, &grammar), ERR_MISMATCH,
                 "no bitmask came for slot 0");
    slot = 0;
    grammar.words_per_row--;
    expect_fails(worker_sample(rank.worker, 0, &grammar), ERR_MISMATCH, "words a row");
    grammar.words_per_row++;
    mask++;
    expect_fails(worker_sample(rank.worker, 0, &grammar), ERR_MISMATCH, "slot 0 has mask 1 of 1");
    mask--;
    position++;
    expect_fails(worker_sample(rank.worker, 0, &grammar), ERR_MISMATCH,
                 "the bitmask of slot 0 is for position");
    position--;
    expect_ok(worker_sample(rank.worker, 0, &grammar));
    memset(bits, 0xff, (size_t)words * 4); /* it was copied */
    assert_int_equal(collect(&rank, 0), allowed);

    write_decode(&sheet, 1);
    expect_ok(worker_prepare_inputs(rank.worker, 1, &sheet.plan));
    expect_ok(worker_execute_model(rank.worker, 1));
    expect_fails(worker_sample(rank.worker, 1, &grammar), ERR_MISMATCH,
                 "a bitmask came for slot 0, which needs none");
    expect_ok(worker_sample(rank.worker, 1, NULL));
    collect(&rank, 1);
    mem_free(bits);
    stop(&rank);
}

static void a_mask_that_allows_nothing_samples_no_token(void **state)
{
    struct rank rank = {0};
    struct plan_sheet sheet;
    int32_t slot = 0, position = NUM_PROMPT, mask = 0;

    (void)state;
    start(&rank);

    int32_t words = divide_up(model_file_config(rank.file)->vocab_size, 32);
    uint32_t *bits = mem_new_array(uint32_t, (size_t)words);

    write_prefill(&sheet, NULL);
    sheet.needs_bitmask[0] = 1;
    expect_ok(worker_prepare_inputs(rank.worker, 0, &sheet.plan));
    expect_ok(worker_execute_model(rank.worker, 0));
    /* The next step is under way when the row turns out to have no token. */
    write_decode(&sheet, 1);
    expect_ok(worker_prepare_inputs(rank.worker, 1, &sheet.plan));
    expect_ok(worker_sample(rank.worker, 0,
                            &(struct grammar_output){.slots = &slot,
                                                     .num_rows = 1,
                                                     .positions = &position,
                                                     .bitmask_rows = &mask,
                                                     .num_bitmask_rows = 1,
                                                     .words_per_row = words,
                                                     .bitmask = (const uint8_t *)bits,
                                                     .num_bitmask_bytes = words * 4}));
    assert_int_equal(collect(&rank, 0), -1);
    expect_ok(worker_execute_model(rank.worker, 1));
    expect_ok(worker_sample(rank.worker, 1, NULL));
    collect(&rank, 1);
    mem_free(bits);
    stop(&rank);
}

/* ---- a device that runs behind -------------------------------------------------------------- */

static char sim_path[64];

static void start_behind(struct rank *rank, double kernel_overhead_ns)
{
    struct sim_device is_like = {.memory_bytes = 1e9, .kernel_overhead_ns = kernel_overhead_ns};
    struct worker_memory memory;

    expect_ok(model_file_open(sim_path, &rank->file));
    expect_ok(worker_new(&(struct worker_options){.world = 1,
                                                  .sim = &is_like,
                                                  .max_num_seqs = 4,
                                                  .max_batched_tokens = 64,
                                                  .max_model_len = 128},
                         rank->file, &rank->worker));
    expect_ok(worker_wait_loaded(rank->worker, &memory));
    expect_ok(worker_initialize_kv_cache(rank->worker, NUM_BLOCKS));
}

static void write_sim_file(void)
{
    FILE *f;

    snprintf(sim_path, sizeof sim_path, "/tmp/tandem-test-worker-%d.json", (int)getpid());
    f = fopen(sim_path, "w");
    assert_non_null(f);
    fputs("{\"device\":{\"memory_gb\":1,\"memory_gb_per_s\":0,\"tflops\":0,"
          "\"kernel_overhead_us\":0,\"link_latency_us\":0,\"link_gb_per_s\":0},"
          "\"model\":{\"weight_type\":\"BF16\",\"num_layers\":1,\"hidden_size\":64,"
          "\"intermediate_size\":64,\"num_heads\":2,\"num_kv_heads\":2,\"head_dim\":32,"
          "\"vocab_size\":300,\"max_position\":128},\"tp\":1}",
          f);
    assert_int_equal(fclose(f), 0);
}

static void the_next_step_is_launched_and_none_is_answered_before_its_time(void **state)
{
    struct rank rank = {0};

    (void)state;
    write_sim_file();
    start_behind(&rank, 3600e9); /* an hour a kernel */
    prepare_and_execute(&rank, 0);
    expect_ok(worker_sample(rank.worker, 0, NULL));
    prepare_and_execute(&rank, 1);
    expect_ok(worker_sample(rank.worker, 1, NULL));

    struct pollfd fd = {.fd = worker_output_fd(rank.worker), .events = POLLIN};

    assert_int_equal(poll(&fd, 1, 100), 0);
    stop(&rank); /* and nobody waits for the hours */
    unlink(sim_path);
}

static void steps_launched_ahead_have_the_tokens_of_steps_alone(void **state)
{
    enum { NUM_STEPS = 24 };
    struct rank alone = {0}, ahead = {0};
    int32_t tokens[NUM_STEPS];

    (void)state;
    write_sim_file();
    start_behind(&alone, 50e3);
    for (int64_t step = 0; step < NUM_STEPS; step++) {
        int64_t start_ns = clock_now_ns(), answered;
        const struct model_runner_output *output;

        prepare_and_execute(&alone, step);
        expect_ok(worker_sample(alone.worker, step, NULL));
        expect_ok(worker_collect(alone.worker, true, &answered, &output));
        assert_int_equal(answered, step);
        tokens[step] = output->sampled_token_ids[0];
        /* A layer has more than 10 kernels. */
        assert_true(output->execute_ns > 10 * 50000 && output->idle_ns >= 0);
        assert_true(clock_now_ns() - start_ns >= output->execute_ns + output->sample_ns);
    }
    stop(&alone);

    start_behind(&ahead, 50e3);
    for (int64_t step = 0; step < NUM_STEPS; step++) {
        prepare_and_execute(&ahead, step);
        expect_ok(worker_sample(ahead.worker, step, NULL)); /* before the last is answered */
        if (step > 0)
            assert_int_equal(collect(&ahead, step - 1), tokens[step - 1]);
    }
    assert_int_equal(collect(&ahead, NUM_STEPS - 1), tokens[NUM_STEPS - 1]);
    stop(&ahead);
    unlink(sim_path);
}

/* ---- life ----------------------------------------------------------------------------------- */

static void every_layer_and_every_stage_of_sampling_is_progress(void **state)
{
    struct rank rank = {0};
    struct worker_progress progress;
    int64_t before, num_layers;

    (void)state;
    start(&rank);
    num_layers = model_file_config(rank.file)->num_layers;
    progress = worker_progress(rank.worker);
    assert_int_equal(progress.step, -1);
    assert_int_equal(progress.ns_in_step, 0);
    assert_int_equal(progress.waits_for, -1);
    assert_true(progress.num_done >= num_layers); /* that it loaded */
    for (int64_t step = 0; step < 4; step++) {
        before = worker_progress(rank.worker).num_done;
        prepare_and_execute(&rank, step);
        expect_ok(worker_sample(rank.worker, step, NULL));
        collect(&rank, step);
        progress = worker_progress(rank.worker);
        assert_int_equal(progress.step, -1);
        assert_true(progress.num_done >= before + num_layers + 1);
    }
    stop(&rank);
}

static void the_answer_is_announced_by_the_descriptor(void **state)
{
    struct rank rank = {0};
    struct sampling_params params;
    struct plan_sheet sheet;
    const struct model_runner_output *output;
    int64_t step;

    (void)state;
    start(&rank);
    sampling_params_init(&params);
    params.logprobs = 3;
    write_prefill(&sheet, &params);
    expect_ok(worker_prepare_inputs(rank.worker, 0, &sheet.plan));
    expect_ok(worker_execute_model(rank.worker, 0));
    expect_ok(worker_sample(rank.worker, 0, NULL));

    struct pollfd fd = {.fd = worker_output_fd(rank.worker), .events = POLLIN};

    assert_int_equal(poll(&fd, 1, 20000), 1);
    expect_ok(worker_collect(rank.worker, false, &step, &output));
    assert_non_null(output);
    expect_ok(model_runner_output_check(output));
    assert_int_equal(output->logprob_counts[0], 4);
    assert_int_equal(output->logprob_token_ids[0], output->sampled_token_ids[0]);
    assert_true(output->sampled_token_ranks[0] >= 1);
    assert_true(output->logprobs[1] >= output->logprobs[2]);
    assert_true(output->execute_ns > 0 && output->sample_ns > 0 && output->prepare_ns > 0);
    assert_int_equal(poll(&fd, 1, 0), 0);
    stop(&rank);
}

static void a_worker_may_be_freed_at_any_moment(void **state)
{
    (void)state;
    for (int moment = 0; moment < 6; moment++) {
        struct rank rank = {0};
        struct plan_sheet sheet;

        if (moment == 0) {
            start_loading(&rank);
        } else {
            start(&rank);
            write_prefill(&sheet, NULL);
            if (moment > 1)
                expect_ok(worker_prepare_inputs(rank.worker, 0, &sheet.plan));
            if (moment > 2)
                expect_ok(worker_execute_model(rank.worker, 0));
            if (moment > 3)
                expect_ok(worker_sample(rank.worker, 0, NULL));
            if (moment > 4)
                prepare_and_execute(&rank, 1);
        }
        stop(&rank);
    }
    worker_free(NULL);
}

static void a_rank_that_cannot_load_says_why(void **state)
{
    struct rank rank = {0};
    struct worker_memory memory;

    (void)state;
    expect_ok(model_file_open(model_path, &rank.file));
    expect_ok(worker_new(&(struct worker_options){.world = 1,
                                                  .num_threads = 1,
                                                  .isa = "abacus",
                                                  .max_num_seqs = 4,
                                                  .max_batched_tokens = 64,
                                                  .max_model_len = 128},
                         rank.file, &rank.worker));
    assert_int_not_equal(worker_wait_loaded(rank.worker, &memory), OK);
    assert_non_null(strstr(fail_text(), "abacus"));
    assert_false(worker_is_loaded(rank.worker));
    stop(&rank);
}

/* Threads of this process that may not run on all that it may. */
static int count_bound_threads(void)
{
    DIR *folder = opendir("/proc/self/task");
    cpu_set_t ours, set;
    int count = 0;

    assert_non_null(folder);
    assert_int_equal(sched_getaffinity(0, sizeof ours, &ours), 0);
    for (struct dirent *entry; (entry = readdir(folder));)
        if (entry->d_name[0] != '.' &&
            sched_getaffinity(atoi(entry->d_name), sizeof set, &set) == 0)
            count += !CPU_EQUAL(&set, &ours);
    closedir(folder);
    return count;
}

static void threads_that_fill_the_cores_are_bound_and_the_caller_is_not(void **state)
{
    AUTO_FREE(cpus) struct cpus *cpus = NULL;
    struct worker_memory memory;
    struct rank rank;
    cpu_set_t before, after, set;

    (void)state;
    expect_ok(cpus_open(NULL, &cpus));

    int32_t num_threads = cpus_num_cores(cpus);

    if (num_threads < 2 || !cpus_place(cpus, 0, num_threads, 1, &set))
        return; /* one core, or a quota: there is nothing to bind to */
    assert_int_equal(sched_getaffinity(0, sizeof before, &before), 0);
    for (int binds = 0; binds < 2; binds++) {
        expect_ok(model_file_open(model_path, &rank.file));
        expect_ok(worker_new(&(struct worker_options){.world = 1,
                                                      .num_threads = num_threads,
                                                      .binds_threads = binds,
                                                      .max_num_seqs = 4,
                                                      .max_batched_tokens = 64,
                                                      .max_model_len = 128},
                             rank.file, &rank.worker));
        expect_ok(worker_wait_loaded(rank.worker, &memory));
        assert_int_equal(count_bound_threads(), binds * num_threads);
        assert_int_equal(sched_getaffinity(0, sizeof after, &after), 0);
        assert_true(CPU_EQUAL(&before, &after));
        stop(&rank);
    }
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(threads_that_fill_the_cores_are_bound_and_the_caller_is_not),
    cmocka_unit_test(a_step_staged_while_another_runs_has_its_token),
    cmocka_unit_test(calls_out_of_order_are_refused_and_do_no_harm),
    cmocka_unit_test(a_refused_plan_leaves_the_step_to_be_prepared),
    cmocka_unit_test(a_slot_is_another_requests_when_its_step_is_collected),
    cmocka_unit_test(a_prompts_logprobs_have_the_same_bits_in_any_chunks),
    cmocka_unit_test(nothing_is_sampled_without_the_mask_that_is_due),
    cmocka_unit_test(a_mask_that_allows_nothing_samples_no_token),
    cmocka_unit_test(the_next_step_is_launched_and_none_is_answered_before_its_time),
    cmocka_unit_test(steps_launched_ahead_have_the_tokens_of_steps_alone),
    cmocka_unit_test(every_layer_and_every_stage_of_sampling_is_progress),
    cmocka_unit_test(the_answer_is_announced_by_the_descriptor),
    cmocka_unit_test(a_worker_may_be_freed_at_any_moment),
    cmocka_unit_test(a_rank_that_cannot_load_says_why),
};

int main(void)
{
    return cmocka_run_group_tests(tests, make_model, remove_model);
}
