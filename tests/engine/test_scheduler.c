/*
 * The scheduler against a rank that is real but for its arithmetic: every plan is staged by the worker's
 * own input_batch, the KV cache holds token ids, and a sampled token is a hash of what the request's
 * block table leads to. So a plan that a worker would refuse, a block that is given away too early and
 * a prefix that is not what it seems all show as a wrong token.
 */
#include "tests/support/expect.h"

#include "engine/core/output_builder.h"
#include "engine/core/scheduler.h"
#include "worker/input_batch.h"

enum { BLOCK = KV_BLOCK_TOKENS, VOCAB = 1000, EOS = 2, MAX_REQUESTS = 512, MAX_OUTPUT = 128 };
enum { BY_HASH = -2 }; /* in place of a token: what the KV cache says */

struct outcome {
    int32_t tokens[MAX_OUTPUT];
    int32_t num_tokens;
    int32_t num_ends;
    enum finish_reason finish;
    int32_t stop_token;
    enum status error;
    char error_text[200];
    int32_t num_scheduled; /* tokens, over all steps */
};

struct bench {
    struct scheduler_options options;
    struct scheduler *scheduler;
    struct input_batch *batch;
    int32_t *kv; /* [num_blocks, BLOCK] */
    struct arena arenas[2];
    struct scheduler_output plans[2]; /* by step & 1 */
    int64_t next_step, next_answer;
    struct output_builder events;
    request_id last_id;
    int32_t id_of_slot[256];
    struct outcome outcomes[MAX_REQUESTS]; /* by id */
};

static const struct scheduler_options ROOMY = {
    .max_num_seqs = 16,
    .max_num_batched_tokens = 1024,
    .enable_chunked_prefill = true,
    .max_model_len = 2048,
    .num_blocks = 1000,
    .block_size = BLOCK,
    .vocab_size = VOCAB,
};

static struct bench *bench_new(const struct scheduler_options *options)
{
    struct bench *b = mem_new(struct bench);

    b->options = *options;
    b->scheduler = scheduler_new(options);
    expect_ok(input_batch_new(&(struct input_batch_limits){
                                  .max_num_seqs = options->max_num_seqs,
                                  .max_batched_tokens = options->max_num_batched_tokens,
                                  .max_model_len = options->max_model_len,
                                  .vocab_size = VOCAB,
                              },
                              &b->batch));
    input_batch_set_num_blocks(b->batch, options->num_blocks);
    b->kv = mem_new_array(int32_t, (size_t)options->num_blocks * BLOCK);
    return b;
}

/* Everything must be over, and nothing left behind. */
static void bench_free(struct bench *b)
{
    assert_false(scheduler_has_work(b->scheduler));
    assert_int_equal(scheduler_num_free_blocks(b->scheduler), b->options.num_blocks);
    scheduler_check(b->scheduler);
    scheduler_free(b->scheduler);
    input_batch_free(b->batch);
    arena_close(&b->arenas[0]);
    arena_close(&b->arenas[1]);
    mem_free(b->kv);
    mem_free(b);
}

/* ---- requests ------------------------------------------------------------------------------- */

struct wish {
    int32_t num_prompt;
    int32_t max_tokens, min_tokens;
    int32_t priority;
    int32_t stop_token; /* 0: none */
    bool ignore_eos;
    const int32_t *prompt; /* NULL: tokens that no other request has */
};

static struct request *make_request(struct bench *b, const struct wish *wish)
{
    static const token_id eos = EOS;
    token_id *prompt = mem_new_array(token_id, (size_t)wish->num_prompt);
    request_id id = ++b->last_id;
    struct sampling_params params;
    char name[24];

    assert_true(id < MAX_REQUESTS);
    sampling_params_init(&params);
    params.max_tokens = wish->max_tokens;
    params.min_tokens = wish->min_tokens;
    params.ignore_eos = wish->ignore_eos;
    params.stop_token_ids = &wish->stop_token;
    params.num_stop_token_ids = wish->stop_token > 0;
    for (int32_t i = 0; i < wish->num_prompt; i++)
        prompt[i] = wish->prompt ? wish->prompt[i] : (token_id)(10 + (id * 31 + i) % (VOCAB - 10));
    snprintf(name, sizeof name, "%ld", (long)id);

    struct request *request = request_new(id,
                                          &(struct submission){
                                              .name = name,
                                              .prompt = prompt,
                                              .num_prompt = wish->num_prompt,
                                              .params = &params,
                                              .priority = wish->priority,
                                              .eos_ids = &eos,
                                              .num_eos_ids = 1,
                                          },
                                          b->options.max_model_len, b->options.block_size);

    mem_free(prompt);
    return request;
}

static request_id add(struct bench *b, struct wish wish)
{
    scheduler_add(b->scheduler, make_request(b, &wish));
    return b->last_id;
}

static struct outcome *outcome_of(struct bench *b, request_id id)
{
    return &b->outcomes[id];
}

/* ---- steps ---------------------------------------------------------------------------------- */

static void take_events(struct bench *b)
{
    struct output_node *node = output_builder_take(&b->events);

    if (!node)
        return;
    assert_true(node->output.num_events > 0); /* the front is not woken for nothing */
    for (int32_t i = 0; i < node->output.num_events; i++) {
        const struct engine_event *event = &node->output.events[i];
        struct outcome *outcome = outcome_of(b, event->id);

        assert_int_equal(outcome->num_ends, 0); /* nothing comes behind the end */
        for (int32_t t = 0; t < event->num_tokens; t++) {
            assert_true(outcome->num_tokens < MAX_OUTPUT);
            outcome->tokens[outcome->num_tokens++] = event->tokens[t];
        }
        outcome->finish = event->finish;
        outcome->num_ends += event->finish != FINISH_NONE;
        outcome->stop_token = event->stop_token;
        outcome->error = event->error;
        if (event->error_text)
            snprintf(outcome->error_text, sizeof outcome->error_text, "%s", event->error_text);
    }
    engine_output_free(&node->output);
}

/* Schedules a step, as core does, and has it staged, as a worker does. */
static const struct scheduler_output *schedule(struct bench *b)
{
    struct scheduler_output *plan = &b->plans[b->next_step & 1];

    assert_true(b->next_step - b->next_answer < 2);
    arena_reset(&b->arenas[b->next_step & 1]);
    scheduler_schedule(b->scheduler, &b->arenas[b->next_step & 1], plan);
    scheduler_check(b->scheduler);
    if (plan->num_rows == 0)
        return plan;
    expect_ok(input_batch_stage(b->batch, b->next_step++, plan));
    for (int32_t i = 0; i < plan->num_new_requests; i++)
        b->id_of_slot[plan->new_requests[i].slot] = atoi(plan->new_requests[i].id);
    for (int32_t row = 0; row < plan->num_rows; row++)
        outcome_of(b, b->id_of_slot[plan->slots[row]])->num_scheduled +=
            plan->num_scheduled_tokens[row];
    return plan;
}

static uint32_t mix(uint32_t hash, int32_t token)
{
    return (hash ^ (uint32_t)token) * 16777619u;
}

static int32_t token_from(uint32_t hash)
{
    hash ^= hash >> 15;
    return hash % 23 == 0 ? EOS : (int32_t)(10 + hash % (VOCAB - 10));
}

/* Computes the oldest step in flight: KV in, then a token for each row that samples. */
static void run_step(struct bench *b, int32_t token, int32_t *tokens_out)
{
    struct staged_step *staged = input_batch_staged(b->batch, b->next_answer);
    const struct batch_view *view = &staged->batch;
    int32_t num_samples = 0;

    input_batch_fill_ids(b->batch, staged);
    for (int32_t i = 0; i < view->num_requests; i++) {
        const int32_t *table = view->block_tables + (int64_t)i * view->block_table_stride;

        for (int32_t row = view->row_start[i]; row < view->row_start[i + 1]; row++) {
            int32_t at = view->positions[row];

            b->kv[table[at / BLOCK] * BLOCK + at % BLOCK] = staged->ids[row];
        }
    }
    for (int32_t i = 0; i < view->num_requests; i++) {
        const int32_t *table = view->block_tables + (int64_t)i * view->block_table_stride;
        const struct staged_sample *sample = &staged->samples[num_samples];
        uint32_t hash = 2166136261u;

        if (num_samples == staged->num_samples || sample->slot != staged->row_slots[i])
            continue;
        for (int32_t at = 0; at < sample->position; at++)
            hash = mix(hash, b->kv[table[at / BLOCK] * BLOCK + at % BLOCK]);
        tokens_out[num_samples++] = token == BY_HASH ? token_from(hash) : token;
        input_batch_append_token(b->batch, sample, tokens_out[num_samples - 1]);
    }
    assert_int_equal(num_samples, staged->num_samples);
}

/* The columns of an answer, which tests may spoil. */
struct answer {
    int32_t slots[64], tokens[64], counts[64], ranks[64];
    struct model_runner_output output;
};

static void make_answer(struct bench *b, int32_t token, struct answer *answer)
{
    const struct staged_step *staged = input_batch_staged(b->batch, b->next_answer);

    *answer = (struct answer){0};
    assert_true(staged->num_samples <= 64);
    run_step(b, token, answer->tokens);
    for (int32_t i = 0; i < staged->num_samples; i++)
        answer->slots[i] = staged->samples[i].slot;
    answer->output = (struct model_runner_output){
        .num_rows = staged->batch.num_requests,
        .num_sampled = staged->num_samples,
        .slots = answer->slots,
        .sampled_token_ids = answer->tokens,
        .logprob_counts = answer->counts,
        .sampled_token_ranks = answer->ranks,
    };
}

/* The oldest step in flight comes back, every row with this token. */
static void answer(struct bench *b, int32_t token)
{
    struct answer answer;

    assert_true(b->next_answer < b->next_step);
    make_answer(b, token, &answer);
    expect_ok(scheduler_update_from_output(b->scheduler, &b->plans[b->next_answer & 1],
                                           &answer.output, &b->events));
    b->next_answer++;
    take_events(b);
    scheduler_check(b->scheduler);
}

static void run_to_the_end(struct bench *b)
{
    for (int i = 0; scheduler_has_work(b->scheduler) || b->next_answer < b->next_step; i++) {
        assert_true(i < 5000);
        if (b->next_answer == b->next_step)
            schedule(b);
        answer(b, BY_HASH);
    }
}

static void abort_request(struct bench *b, request_id id)
{
    scheduler_abort(b->scheduler, id, &b->events);
    take_events(b);
    scheduler_check(b->scheduler);
}

static void abort_all(struct bench *b)
{
    while (b->next_answer < b->next_step)
        answer(b, BY_HASH);
    scheduler_end_all(b->scheduler, ERR_ABORTED, "", &b->events);
    take_events(b);
}

#define expect_row(plan, row, id_wanted, num_tokens)                                               \
    do {                                                                                           \
        const struct scheduler_output *row_plan_ = (plan);                                         \
        assert_true((row) < row_plan_->num_rows);                                                  \
        assert_int_equal(b->id_of_slot[row_plan_->slots[row]], id_wanted);                         \
        assert_int_equal(row_plan_->num_scheduled_tokens[row], num_tokens);                        \
    } while (0)

/* The plan's rows are these counts of tokens, for requests 1, 2, 3 … */
#define expect_counts(plan, ...)                                                                   \
    do {                                                                                           \
        const struct scheduler_output *plan_ = (plan);                                             \
        const int32_t counts_[] = {__VA_ARGS__};                                                   \
        assert_int_equal(plan_->num_rows, COUNT_OF(counts_));                                      \
        for (int32_t row_ = 0; row_ < plan_->num_rows; row_++)                                     \
            expect_row(plan_, row_, row_ + 1, counts_[row_]);                                      \
    } while (0)

/* ---- order and budget ----------------------------------------------------------------------- */

static void prompts_that_fit_are_scheduled_whole_and_in_order(void **state)
{
    struct bench *b = bench_new(&ROOMY);

    (void)state;
    for (int i = 0; i < 10; i++)
        add(b, (struct wish){.num_prompt = 10 + i, .max_tokens = 4});
    assert_int_equal(scheduler_num_waiting(b->scheduler), 10);

    const struct scheduler_output *plan = schedule(b);

    expect_counts(plan, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19);
    assert_int_equal(plan->num_new_requests, 10);
    assert_int_equal(plan->total_num_scheduled_tokens, 145);
    assert_int_equal(scheduler_num_waiting(b->scheduler), 0);
    assert_int_equal(scheduler_num_running(b->scheduler), 10);
    abort_all(b);
    bench_free(b);
}

static void no_more_run_than_max_num_seqs(void **state)
{
    struct scheduler_options options = ROOMY;

    (void)state;
    options.max_num_seqs = 2;
    struct bench *b = bench_new(&options);

    for (int i = 0; i < 3; i++)
        add(b, (struct wish){.num_prompt = 10, .max_tokens = 1});
    expect_counts(schedule(b), 10, 10);
    answer(b, 50);
    expect_row(schedule(b), 0, 3, 10);
    answer(b, 50);
    bench_free(b);
}

static void partial_prompts_share_the_budget(void **state)
{
    struct scheduler_options options = ROOMY;

    (void)state;
    options.long_prefill_token_threshold = 400;
    struct bench *b = bench_new(&options);

    for (int i = 0; i < 3; i++)
        add(b, (struct wish){.num_prompt = 800, .max_tokens = 4});
    expect_counts(schedule(b), 400, 400, 224);
    answer(b, 50);
    expect_counts(schedule(b), 400, 400, 224);
    assert_int_equal(b->plans[1].samples[0] + b->plans[1].samples[1], 2);
    assert_int_equal(b->plans[1].samples[2], 0);
    answer(b, 50);
    expect_counts(schedule(b), 1, 1, 352);
    abort_all(b);
    bench_free(b);
}

static void a_long_prompt_that_is_alone_has_the_whole_budget(void **state)
{
    struct scheduler_options options = ROOMY;

    (void)state;
    options.long_prefill_token_threshold = 400;
    struct bench *b = bench_new(&options);

    add(b, (struct wish){.num_prompt = 1500, .max_tokens = 4});
    expect_counts(schedule(b), 1024);
    answer(b, 50);
    add(b, (struct wish){.num_prompt = 10, .max_tokens = 4});
    expect_counts(schedule(b), 400, 10);
    abort_all(b);
    bench_free(b);
}

static void a_long_prompt_leads_and_short_ones_wait_behind_it(void **state)
{
    static const struct {
        bool chunked;
        int32_t threshold, num_rows, second; /* tokens of the second row */
    } rows[] = {
        {true, 0, 2, 224},
        {false, 0, 1, 0},
        {false, 400, 1, 0}, /* without chunks there is no part of a prompt */
    };

    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        struct scheduler_options options = ROOMY;

        options.enable_chunked_prefill = rows[i].chunked;
        options.long_prefill_token_threshold = rows[i].threshold;
        struct bench *b = bench_new(&options);

        for (int r = 0; r < 4; r++)
            add(b, (struct wish){.num_prompt = r < 2 ? 800 : 10, .max_tokens = 4});

        const struct scheduler_output *plan = schedule(b);

        assert_int_equal(plan->num_rows, rows[i].num_rows);
        expect_row(plan, 0, 1, 800);
        if (rows[i].second)
            expect_row(plan, 1, 2, rows[i].second);
        abort_all(b);
        bench_free(b);
    }
}

/* ---- ends ----------------------------------------------------------------------------------- */

static void requests_end_where_they_should(void **state)
{
    static const struct {
        struct wish wish;
        int32_t tokens[4]; /* what is sampled, step by step */
        int32_t num_tokens;
        enum finish_reason finish;
        int32_t stop_token;
    } rows[] = {
        {{.num_prompt = 5, .max_tokens = 4}, {50, EOS}, 2, FINISH_STOP, EOS},
        {{.num_prompt = 5, .max_tokens = 4, .stop_token = 42}, {50, 60, 42}, 3, FINISH_STOP, 42},
        {{.num_prompt = 5, .max_tokens = 2}, {50, 60}, 2, FINISH_LENGTH, -1},
        {{.num_prompt = 5, .max_tokens = 2}, {50, EOS}, 2, FINISH_STOP, EOS}, /* before the length */
        {{.num_prompt = 5, .max_tokens = 3, .ignore_eos = true}, {EOS, 50, EOS}, 3, FINISH_LENGTH, -1},
        {{.num_prompt = 5, .max_tokens = 3, .ignore_eos = true, .stop_token = 42},
         {EOS, 42}, 2, FINISH_STOP, 42},
        /* the sampler keeps these away before min_tokens; one that comes all the same counts */
        {{.num_prompt = 5, .max_tokens = 4, .min_tokens = 3}, {EOS}, 1, FINISH_STOP, EOS},
        {{.num_prompt = 5, .max_tokens = 1, .min_tokens = 1}, {50}, 1, FINISH_LENGTH, -1},
        {{.num_prompt = 2046, .max_tokens = 9}, {50, 60}, 2, FINISH_LENGTH, -1}, /* the model's */
    };

    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        struct bench *b = bench_new(&ROOMY);
        struct outcome *outcome = outcome_of(b, add(b, rows[i].wish));

        while (scheduler_has_work(b->scheduler)) {
            schedule(b);
            assert_true(outcome->num_tokens < 4);
            answer(b, rows[i].tokens[outcome->num_tokens]);
        }
        assert_int_equal(outcome->num_ends, 1);
        assert_int_equal(outcome->finish, rows[i].finish);
        assert_int_equal(outcome->num_tokens, rows[i].num_tokens);
        assert_memory_equal(outcome->tokens, rows[i].tokens,
                            sizeof(int32_t) * (size_t)rows[i].num_tokens);
        assert_int_equal(outcome->stop_token, rows[i].stop_token);
        bench_free(b);
    }
}

static void a_row_without_a_token_ends_with_an_error_alone(void **state)
{
    struct bench *b = bench_new(&ROOMY);
    struct answer spoiled;
    request_id bad = add(b, (struct wish){.num_prompt = 5, .max_tokens = 4});
    request_id good = add(b, (struct wish){.num_prompt = 5, .max_tokens = 1});

    (void)state;
    schedule(b);
    make_answer(b, 50, &spoiled);
    spoiled.tokens[0] = -1;
    expect_ok(scheduler_update_from_output(b->scheduler, &b->plans[0], &spoiled.output,
                                           &b->events));
    b->next_answer++;
    take_events(b);
    assert_int_equal(outcome_of(b, bad)->finish, FINISH_ERROR);
    assert_non_null(strstr(outcome_of(b, bad)->error_text, "no token can be sampled"));
    assert_int_equal(outcome_of(b, good)->finish, FINISH_LENGTH);
    bench_free(b);
}

static void a_request_that_can_never_fit_is_refused_with_the_numbers(void **state)
{
    struct scheduler_options options = ROOMY;

    (void)state;
    options.num_blocks = 4;
    struct bench *b = bench_new(&options);
    AUTO_FREE(request) struct request *fits =
        make_request(b, &(struct wish){.num_prompt = 60, .max_tokens = 5});
    AUTO_FREE(request) struct request *too_long =
        make_request(b, &(struct wish){.num_prompt = 60, .max_tokens = 6});

    expect_ok(request_check_fits(fits, 4, BLOCK)); /* the 65th token is never computed */
    expect_fails(request_check_fits(too_long, 4, BLOCK), ERR_INVALID,
                 "needs 5 KV blocks of 16 tokens for 60 prompt and 6 output tokens; the KV cache "
                 "has 4");
    bench_free(b);
}

/* ---- steps in flight ------------------------------------------------------------------------ */

static void a_request_goes_on_while_its_token_is_on_the_way(void **state)
{
    struct bench *b = bench_new(&ROOMY);

    (void)state;
    add(b, (struct wish){.num_prompt = 10, .max_tokens = 3});
    expect_counts(schedule(b), 10);
    add(b, (struct wish){.num_prompt = 7, .max_tokens = 3});
    expect_counts(schedule(b), 1, 7);
    assert_int_equal(b->plans[1].num_computed_tokens[0], 10);
    answer(b, 50);
    expect_counts(schedule(b), 1, 1);
    abort_all(b);
    bench_free(b);
}

static void no_token_is_computed_past_max_tokens(void **state)
{
    (void)state;
    for (int32_t max_tokens = 1; max_tokens <= 5; max_tokens++) {
        struct bench *b = bench_new(&ROOMY);
        struct outcome *outcome =
            outcome_of(b, add(b, (struct wish){.num_prompt = 10, .max_tokens = max_tokens}));

        schedule(b);
        while (b->next_answer < b->next_step) {
            schedule(b);
            answer(b, 50);
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
        outcome_of(b, add(b, (struct wish){.num_prompt = 10, .max_tokens = 5}));

    (void)state;
    schedule(b);
    schedule(b); /* nobody knows yet that the first step's token ends it */
    answer(b, EOS);
    assert_int_equal(outcome->finish, FINISH_STOP);
    answer(b, 50);
    assert_int_equal(outcome->num_tokens, 1);
    bench_free(b);
}

static void workers_hear_of_free_slots_though_a_plan_without_rows_came_between(void **state)
{
    struct bench *b = bench_new(&ROOMY);

    (void)state;
    add(b, (struct wish){.num_prompt = 5, .max_tokens = 1});
    add(b, (struct wish){.num_prompt = 5, .max_tokens = 2});
    schedule(b);
    schedule(b);
    answer(b, 50); /* the first ends */
    assert_int_equal(schedule(b)->num_rows, 0);
    answer(b, 50);
    add(b, (struct wish){.num_prompt = 5, .max_tokens = 1});
    add(b, (struct wish){.num_prompt = 5, .max_tokens = 1});
    assert_int_equal(schedule(b)->num_finished_slots, 2);
    answer(b, 50);
    bench_free(b);
}

/* ---- preemption ----------------------------------------------------------------------------- */

static struct bench *two_of_five_blocks(enum scheduling_policy policy, int32_t first_priority,
                                        int32_t second_priority)
{
    struct scheduler_options options = ROOMY;

    options.num_blocks = 10;
    options.policy = policy;
    struct bench *b = bench_new(&options);

    add(b, (struct wish){.num_prompt = 5 * BLOCK, .max_tokens = 4, .priority = first_priority});
    add(b, (struct wish){.num_prompt = 5 * BLOCK, .max_tokens = 4, .priority = second_priority});
    return b;
}

static void a_request_preempted_in_flight_keeps_its_late_token(void **state)
{
    struct bench *b = two_of_five_blocks(POLICY_FCFS, 0, 0);

    (void)state;
    expect_counts(schedule(b), 80, 80);
    expect_counts(schedule(b), 1); /* the first needs a block, which the second gives */
    assert_int_equal(scheduler_num_waiting(b->scheduler), 1);
    answer(b, 42);
    assert_int_equal(outcome_of(b, 2)->num_tokens, 1);
    assert_int_equal(outcome_of(b, 2)->tokens[0], 42);
    run_to_the_end(b);
    assert_int_equal(outcome_of(b, 2)->num_ends, 1);
    bench_free(b);
}

static void a_preempted_request_is_computed_again_when_blocks_are_back(void **state)
{
    struct bench *b = two_of_five_blocks(POLICY_FCFS, 0, 0);
    struct scheduler_stats stats;

    (void)state;
    expect_counts(schedule(b), 80, 80);
    answer(b, 50);
    for (int i = 0; i < 3; i++) {
        expect_counts(schedule(b), 1); /* a step that preempts admits nobody; then no room */
        answer(b, 51);
    }
    assert_int_equal(outcome_of(b, 1)->finish, FINISH_LENGTH);

    const struct scheduler_output *plan = schedule(b);

    expect_row(plan, 0, 2, 81); /* the prompt and the token it had, in one go */
    assert_int_equal(plan->num_new_requests, 1);
    assert_int_equal(plan->new_requests[0].num_output_token_ids, 1);
    assert_int_equal(plan->new_requests[0].output_token_ids[0], 50);
    scheduler_get_stats(b->scheduler, &stats);
    assert_int_equal(stats.num_preemptions, 1);
    answer(b, 52);
    run_to_the_end(b);
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
        struct bench *b = two_of_five_blocks(POLICY_PRIORITY, rows[i].first, rows[i].second);

        assert_int_equal(schedule(b)->num_rows, 2);
        answer(b, 50);

        const struct scheduler_output *plan = schedule(b);

        assert_int_equal(plan->num_rows, 1);
        expect_row(plan, 0, rows[i].winner, 1);
        answer(b, 50);
        run_to_the_end(b);
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
    add(b, (struct wish){.num_prompt = 40, .max_tokens = 9, .priority = 9});
    add(b, (struct wish){.num_prompt = 31, .max_tokens = 20, .priority = 1});
    schedule(b); /* 32 of the first */
    answer(b, 50);
    schedule(b); /* 8 of the first, 24 of the second */
    answer(b, 50);
    schedule(b); /* 1 and 7 */
    answer(b, 50);
    schedule(b); /* 1 and 1 */
    answer(b, 50);

    const struct scheduler_output *plan = schedule(b); /* position 32 of the second: a third block */

    while (plan->num_rows == 2) {
        answer(b, 50);
        plan = schedule(b);
    }
    assert_int_equal(plan->num_rows, 1);
    expect_row(plan, 0, 2, 1);
    assert_int_equal(plan->total_num_scheduled_tokens, 1);
    answer(b, 50);
    run_to_the_end(b);
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
            add(b, (struct wish){
                       .num_prompt = 5, .max_tokens = 1, .priority = rows[i].priorities[r]});
        for (int r = 0; r < 5; r++) {
            expect_row(schedule(b), 0, rows[i].order[r], 5);
            answer(b, 50);
        }
        bench_free(b);
    }
}

static void nobody_is_preempted_while_there_is_room(void **state)
{
    struct scheduler_options options = ROOMY;
    struct scheduler_stats stats;

    (void)state;
    options.policy = POLICY_PRIORITY;
    struct bench *b = bench_new(&options);

    add(b, (struct wish){.num_prompt = 30, .max_tokens = 4, .priority = 5});
    schedule(b);
    answer(b, 50);
    add(b, (struct wish){.num_prompt = 30, .max_tokens = 4, .priority = 0});
    expect_counts(schedule(b), 1, 30);
    scheduler_get_stats(b->scheduler, &stats);
    assert_int_equal(stats.num_preemptions, 0);
    answer(b, 50);
    run_to_the_end(b);
    bench_free(b);
}

/* ---- aborts and failures -------------------------------------------------------------------- */

static void an_aborted_request_ends_at_once_wherever_it_is(void **state)
{
    struct scheduler_options options = ROOMY;

    (void)state;
    options.max_num_seqs = 2;
    struct bench *b = bench_new(&options);
    request_id idle = add(b, (struct wish){.num_prompt = 5, .max_tokens = 9});
    request_id flying = add(b, (struct wish){.num_prompt = 5, .max_tokens = 9});
    request_id waiting = add(b, (struct wish){.num_prompt = 5, .max_tokens = 9});

    schedule(b);
    answer(b, 50);
    abort_request(b, waiting);
    assert_int_equal(outcome_of(b, waiting)->finish, FINISH_ABORT);
    assert_int_equal(outcome_of(b, waiting)->num_tokens, 0);
    abort_request(b, idle);
    assert_int_equal(outcome_of(b, idle)->finish, FINISH_ABORT);

    schedule(b);
    abort_request(b, flying);
    assert_int_equal(outcome_of(b, flying)->finish, FINISH_ABORT);
    assert_int_equal(scheduler_num_free_blocks(b->scheduler), options.num_blocks);
    answer(b, 51); /* late: nobody's */
    assert_int_equal(outcome_of(b, flying)->num_tokens, 1);

    abort_request(b, flying);
    abort_request(b, 99);
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
            add(b, (struct wish){.num_prompt = 5, .max_tokens = 9});
        schedule(b);
        for (request_id id = first; id < first + 4; id++)
            abort_request(b, id);
        if (round > 0)
            answer(b, BY_HASH);
    }
    answer(b, BY_HASH);
    bench_free(b);
}

static void an_answer_that_does_not_fit_is_refused_and_changes_nothing(void **state)
{
    static const struct {
        const char *words;
        int kind;
    } rows[] = {
        {"the answer is about 3 rows, the plan has 2", 0},
        {"the answer lacks the token of row 1, slot 1", 1},
        {"the answer lacks the token of row 0, slot 0", 2},
        {"token 1000 for slot 1, the vocabulary 1000 tokens", 3},
        {"logprobs", 4},
        {"3 of 2 rows were sampled", 5},
        {"sampled row 1 has -1 logprobs", 6},
    };

    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        struct bench *b = bench_new(&ROOMY);
        struct answer good, bad;

        add(b, (struct wish){.num_prompt = 5, .max_tokens = 1});
        add(b, (struct wish){.num_prompt = 5, .max_tokens = 1});
        schedule(b);
        make_answer(b, 50, &good);
        bad = good;
        bad.output.slots = bad.slots;
        bad.output.sampled_token_ids = bad.tokens;
        bad.output.logprob_counts = bad.counts;
        switch (rows[i].kind) {
        case 0: bad.output.num_rows = 3; break;
        case 1: bad.output.num_sampled = 1; break;
        case 2: bad.slots[0] = 1, bad.slots[1] = 0; break;
        case 3: bad.tokens[1] = VOCAB; break;
        case 4: bad.counts[1] = 1; break;
        case 5: bad.output.num_sampled = 3; break;
        case 6: bad.counts[1] = -1; break;
        }
        expect_fails(scheduler_update_from_output(b->scheduler, &b->plans[0], &bad.output,
                                                  &b->events),
                     ERR_MISMATCH, rows[i].words);
        assert_null(output_builder_take(&b->events));
        assert_int_equal(scheduler_num_running(b->scheduler), 2);

        expect_ok(scheduler_update_from_output(b->scheduler, &b->plans[0], &good.output,
                                               &b->events));
        b->next_answer++;
        take_events(b);
        assert_int_equal(outcome_of(b, 2)->finish, FINISH_LENGTH);
        bench_free(b);
    }
}

static void steps_that_never_come_back_leave_nothing_behind(void **state)
{
    struct bench *b = two_of_five_blocks(POLICY_FCFS, 0, 0);
    request_id last = add(b, (struct wish){.num_prompt = 5, .max_tokens = 4});

    (void)state;
    schedule(b);
    abort_request(b, last);
    schedule(b); /* preempts the second, whose row is in flight */
    scheduler_forget_in_flight(b->scheduler);
    scheduler_end_all(b->scheduler, ERR_CLOSED, "rank 1 has died", &b->events);
    take_events(b);
    for (request_id id = 1; id < last; id++) {
        assert_int_equal(outcome_of(b, id)->finish, FINISH_ERROR);
        assert_int_equal(outcome_of(b, id)->error, ERR_CLOSED);
        assert_string_equal(outcome_of(b, id)->error_text, "rank 1 has died");
    }
    bench_free(b);
}

/* ---- prefixes ------------------------------------------------------------------------------- */

static void a_prefix_in_the_cache_is_not_computed_again(void **state)
{
    struct scheduler_options options = ROOMY;
    int32_t prompt[50];

    (void)state;
    options.enable_prefix_caching = true;
    struct bench *b = bench_new(&options);

    for (int32_t i = 0; i < 50; i++)
        prompt[i] = 100 + i;
    add(b, (struct wish){.num_prompt = 50, .max_tokens = 1, .prompt = prompt});
    add(b, (struct wish){.num_prompt = 48, .max_tokens = 1, .prompt = prompt});
    /* In the same step already; the last token is computed always. */
    expect_counts(schedule(b), 50, 16);
    answer(b, BY_HASH);
    add(b, (struct wish){.num_prompt = 50, .max_tokens = 1, .prompt = prompt});
    expect_row(schedule(b), 0, 3, 2);
    answer(b, BY_HASH);
    assert_int_equal(outcome_of(b, 1)->tokens[0], outcome_of(b, 3)->tokens[0]);

    assert_true(scheduler_reset_prefix_cache(b->scheduler));
    add(b, (struct wish){.num_prompt = 50, .max_tokens = 1, .prompt = prompt});
    expect_row(schedule(b), 0, 4, 50);
    assert_false(scheduler_reset_prefix_cache(b->scheduler)); /* one runs */
    answer(b, BY_HASH);
    bench_free(b);
}

/* ---- at random ------------------------------------------------------------------------------ */

static uint32_t random_below(uint32_t *seed, uint32_t n)
{
    *seed = *seed * 1664525u + 1013904223u;
    return (*seed >> 8) % n;
}

/* What a request answers, whatever happens around it: its tokens alone decide. */
static int32_t answer_alone(const struct wish *wish, int32_t *tokens_out)
{
    uint32_t hash = 2166136261u;
    int32_t n = 0;

    for (int32_t i = 0; i < wish->num_prompt; i++)
        hash = mix(hash, wish->prompt[i]);
    do {
        tokens_out[n] = token_from(hash);
        hash = mix(hash, tokens_out[n]);
    } while (tokens_out[n++] != EOS && n < wish->max_tokens);
    return n;
}

struct simulation {
    uint32_t seed;
    int32_t depth; /* steps in flight */
    struct wish wishes[MAX_REQUESTS];
    int32_t prompts[MAX_REQUESTS][100];
    bool aborted[MAX_REQUESTS];
};

static void add_at_random(struct bench *b, struct simulation *sim)
{
    request_id id = b->last_id + 1;
    int32_t family = (int32_t)random_below(&sim->seed, 3);
    struct wish *wish = &sim->wishes[id];

    *wish = (struct wish){
        .num_prompt = 1 + (int32_t)random_below(&sim->seed, 90),
        .max_tokens = 1 + (int32_t)random_below(&sim->seed, 40),
        .priority = (int32_t)random_below(&sim->seed, 3),
        .prompt = sim->prompts[id],
    };
    /* Families share the beginnings of their prompts. */
    for (int32_t i = 0; i < wish->num_prompt; i++)
        sim->prompts[id][i] = i < 40 ? 10 + family * 100 + i : (int32_t)(10 + (id * 7 + i) % 900);
    add(b, *wish);
}

static void simulate(const struct scheduler_options *options, uint32_t seed, int32_t depth)
{
    struct simulation *sim = mem_new(struct simulation);
    struct bench *b = bench_new(options);
    int32_t num_requests = 150, expected[MAX_OUTPUT];
    struct scheduler_stats stats;

    sim->seed = seed;
    sim->depth = depth;
    while (b->last_id < num_requests || scheduler_has_work(b->scheduler) ||
           b->next_answer < b->next_step) {
        assert_true(b->next_step < 20000);
        while (b->last_id < num_requests && random_below(&sim->seed, 4) == 0)
            add_at_random(b, sim);
        if (b->last_id > 0 && random_below(&sim->seed, 40) == 0) {
            request_id id = 1 + random_below(&sim->seed, (uint32_t)b->last_id);

            sim->aborted[id] = sim->aborted[id] || outcome_of(b, id)->num_ends == 0;
            abort_request(b, id);
        }
        if (b->next_step - b->next_answer < sim->depth)
            schedule(b);
        if (b->next_answer < b->next_step &&
            (b->next_step - b->next_answer == sim->depth || random_below(&sim->seed, 3) == 0))
            answer(b, BY_HASH);
    }
    for (request_id id = 1; id <= num_requests; id++) {
        const struct outcome *outcome = outcome_of(b, id);
        int32_t n = answer_alone(&sim->wishes[id], expected);

        assert_int_equal(outcome->num_ends, 1);
        assert_true(sim->aborted[id] ? outcome->finish == FINISH_ABORT && outcome->num_tokens <= n
                                     : outcome->num_tokens == n);
        assert_memory_equal(outcome->tokens, expected,
                            sizeof *expected * (size_t)outcome->num_tokens);
    }
    scheduler_get_stats(b->scheduler, &stats);
    assert_true(stats.num_preemptions > 0);
    bench_free(b);
    mem_free(sim);
}

static void whatever_happens_each_request_answers_as_if_it_were_alone(void **state)
{
    (void)state;
    for (uint32_t i = 0; i < 64; i++)
        simulate(&(struct scheduler_options){
                     .max_num_seqs = i & 1 ? 8 : 3,
                     .max_num_batched_tokens = i & 8 ? 150 : 20,
                     .long_prefill_token_threshold = i & 2 ? 12 : 0,
                     .enable_chunked_prefill = !(i & 8),
                     .enable_prefix_caching = i & 4,
                     .max_model_len = 140,
                     .num_blocks = 10,
                     .block_size = BLOCK,
                     .vocab_size = VOCAB,
                     .policy = i & 2 ? POLICY_PRIORITY : POLICY_FCFS,
                 },
                 1000 + i, i & 1 ? 2 : 1);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(prompts_that_fit_are_scheduled_whole_and_in_order),
    cmocka_unit_test(no_more_run_than_max_num_seqs),
    cmocka_unit_test(partial_prompts_share_the_budget),
    cmocka_unit_test(a_long_prompt_that_is_alone_has_the_whole_budget),
    cmocka_unit_test(a_long_prompt_leads_and_short_ones_wait_behind_it),
    cmocka_unit_test(requests_end_where_they_should),
    cmocka_unit_test(a_row_without_a_token_ends_with_an_error_alone),
    cmocka_unit_test(a_request_that_can_never_fit_is_refused_with_the_numbers),
    cmocka_unit_test(a_request_goes_on_while_its_token_is_on_the_way),
    cmocka_unit_test(no_token_is_computed_past_max_tokens),
    cmocka_unit_test(a_token_behind_the_end_is_dropped),
    cmocka_unit_test(workers_hear_of_free_slots_though_a_plan_without_rows_came_between),
    cmocka_unit_test(a_request_preempted_in_flight_keeps_its_late_token),
    cmocka_unit_test(a_preempted_request_is_computed_again_when_blocks_are_back),
    cmocka_unit_test(the_least_important_request_gives_way),
    cmocka_unit_test(a_victim_gives_its_tokens_of_this_step_back),
    cmocka_unit_test(the_queue_is_in_the_policys_order),
    cmocka_unit_test(nobody_is_preempted_while_there_is_room),
    cmocka_unit_test(an_aborted_request_ends_at_once_wherever_it_is),
    cmocka_unit_test(slots_of_two_full_steps_are_told_apart),
    cmocka_unit_test(an_answer_that_does_not_fit_is_refused_and_changes_nothing),
    cmocka_unit_test(steps_that_never_come_back_leave_nothing_behind),
    cmocka_unit_test(a_prefix_in_the_cache_is_not_computed_again),
    cmocka_unit_test(whatever_happens_each_request_answers_as_if_it_were_alone),
};
TEST_MAIN(tests)
