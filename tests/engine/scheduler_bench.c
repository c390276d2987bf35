#include "tests/engine/scheduler_bench.h"

const struct scheduler_options ROOMY = {
    .max_num_seqs = 16,
    .max_num_batched_tokens = 1024,
    .enable_chunked_prefill = true,
    .max_model_len = 2048,
    .num_blocks = 1000,
    .block_size = BLOCK,
    .vocab_size = VOCAB,
};

struct bench *bench_new(const struct scheduler_options *options)
{
    struct bench *b = mem_new(struct bench);

    b->options = *options;
    b->scheduler = scheduler_new(options);
    expect_ok(input_batch_new(
        &(struct input_batch_limits){
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

void bench_free(struct bench *b)
{
    assert_int_equal(scheduler_num_unfinished(b->scheduler), 0);
    assert_int_equal(scheduler_num_free_blocks(b->scheduler), b->options.num_blocks);
    scheduler_check(b->scheduler);
    scheduler_free(b->scheduler);
    input_batch_free(b->batch);
    arena_close(&b->arenas[0]);
    arena_close(&b->arenas[1]);
    for (int i = 0; i < MAX_REQUESTS; i++)
        mem_free(b->prompts[i]);
    mem_free(b->kv);
    mem_free(b);
}

/* ---- requests ------------------------------------------------------------------------------- */

struct request *bench_make_request(struct bench *b, const struct wish *wish)
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
    params.prompt_logprobs = wish->wants_prompt_logprobs ? 2 : -1;
    params.stop_token_ids = &wish->stop_token;
    params.num_stop_token_ids = wish->stop_token > 0;
    params.allowed_token_ids = &wish->allowed_token;
    params.num_allowed_token_ids = wish->allowed_token > 0;
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
                                              .cache_salt = wish->cache_salt,
                                              .awaits_grammar = wish->awaits_grammar,
                                              .eos_ids = &eos,
                                              .num_eos_ids = 1,
                                          },
                                          b->options.max_model_len, b->options.block_size);

    b->prompts[id] = prompt;
    return request;
}

request_id bench_add(struct bench *b, struct wish wish)
{
    scheduler_add(b->scheduler, bench_make_request(b, &wish));
    return b->last_id;
}

struct outcome *bench_outcome(struct bench *b, request_id id)
{
    return &b->outcomes[id];
}

struct bench *bench_two_of_five_blocks(enum scheduling_policy policy, int32_t first_priority,
                                       int32_t second_priority)
{
    struct scheduler_options options = ROOMY;

    options.num_blocks = 10;
    options.policy = policy;
    struct bench *b = bench_new(&options);

    bench_add(b,
              (struct wish){.num_prompt = 5 * BLOCK, .max_tokens = 4, .priority = first_priority});
    bench_add(b,
              (struct wish){.num_prompt = 5 * BLOCK, .max_tokens = 4, .priority = second_priority});
    return b;
}

/* ---- steps ---------------------------------------------------------------------------------- */

/* What the bench's ranks tell of a prompt's token. */
static float prompt_logprob(int32_t position, int32_t token)
{
    return -(float)(position * VOCAB + token);
}

/* As the ranks told them, each once and in order. */
static void check_prompt_logprobs(const struct engine_event *event, const token_id *prompt)
{
    for (int32_t position = 1; position < event->num_prompt_tokens; position++) {
        const struct token_logprobs *of_token = &event->prompt_logprobs[position - 1];
        int32_t token = prompt[position];

        assert_float_equal(of_token->logprob, prompt_logprob(position, token), 0);
        assert_int_equal(of_token->rank, position);
        assert_int_equal(of_token->num_top, position % 3);
        for (int32_t k = 0; k < of_token->num_top; k++) {
            assert_int_equal(of_token->top[k].token, (token + k + 1) % VOCAB);
            assert_float_equal(of_token->top[k].logprob, -k, 0);
        }
    }
}

void bench_take_events(struct bench *b)
{
    struct output_node *node = output_builder_take(&b->events);

    if (!node)
        return;
    assert_true(node->output.num_events > 0); /* the front is not woken for nothing */
    for (int32_t i = 0; i < node->output.num_events; i++) {
        const struct engine_event *event = &node->output.events[i];
        struct outcome *outcome = bench_outcome(b, event->id);

        assert_int_equal(outcome->num_ends, 0); /* nothing comes behind the end */
        if (event->prompt_logprobs) {
            assert_false(outcome->has_prompt_logprobs || outcome->num_tokens > 0);
            assert_int_equal(event->num_tokens, 1);
            outcome->has_prompt_logprobs = true;
            check_prompt_logprobs(event, b->prompts[event->id]);
        }
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

const struct scheduler_output *bench_schedule(struct bench *b)
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
        bench_outcome(b, b->id_of_slot[plan->slots[row]])->num_scheduled +=
            plan->num_scheduled_tokens[row];
    return plan;
}

uint32_t bench_mix(uint32_t hash, int32_t token)
{
    return (hash ^ (uint32_t)token) * 16777619u;
}

int32_t bench_token_from(uint32_t hash)
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
        uint32_t hash = BENCH_FIRST_HASH;

        if (num_samples == staged->num_samples || sample->slot != staged->row_slots[i])
            continue;
        for (int32_t at = 0; at < sample->position; at++)
            hash = bench_mix(hash, b->kv[table[at / BLOCK] * BLOCK + at % BLOCK]);
        tokens_out[num_samples++] = token == BY_HASH ? bench_token_from(hash) : token;
        input_batch_append_token(b->batch, sample, tokens_out[num_samples - 1]);
    }
    assert_int_equal(num_samples, staged->num_samples);
}

/* Of each token its own logprob, and up to two more. */
static void tell_prompts(struct bench *b, const struct staged_step *staged, struct answer *answer)
{
    struct model_runner_output *output = &answer->output;
    int32_t num_runs = staged->num_prompt_runs, num_tokens = 0, n = 0, at = 0;

    for (int32_t i = 0; i < num_runs; i++)
        num_tokens += staged->prompt_runs[i].length;

    int32_t *slots = answer->prompt = mem_new_array(int32_t, (size_t)(3 * num_runs + 8 * num_tokens));
    int32_t *positions = slots + num_runs, *lengths = positions + num_runs;
    int32_t *ranks = lengths + num_runs, *counts = ranks + num_tokens, *ids = counts + num_tokens;
    float *logprobs = (float *)(ids + 3 * num_tokens);

    for (int32_t i = 0; i < num_runs; i++) {
        const struct staged_prompt_run *run = &staged->prompt_runs[i];
        int32_t num_prompt;
        const int32_t *prompt = input_batch_tokens(b->batch, run->slot, &num_prompt);

        slots[i] = run->slot;
        positions[i] = run->position;
        lengths[i] = run->length;
        for (int32_t p = run->position; p < run->position + run->length; p++, n++) {
            assert_in_range(p, 1, num_prompt - 1);
            assert_int_equal(staged->batch.positions[run->row + p - run->position], p - 1);
            ranks[n] = p;
            counts[n] = 1 + p % 3;
            ids[at] = prompt[p];
            logprobs[at++] = prompt_logprob(p, prompt[p]);
            for (int32_t k = 0; k < p % 3; k++, at++) {
                ids[at] = (prompt[p] + k + 1) % VOCAB;
                logprobs[at] = -(float)k;
            }
        }
    }
    output->prompt_slots = slots;
    output->num_prompt_runs = num_runs;
    output->prompt_positions = positions;
    output->prompt_lengths = lengths;
    output->prompt_ranks = ranks;
    output->num_prompt_tokens = num_tokens;
    output->prompt_logprob_counts = counts;
    output->prompt_logprob_token_ids = ids;
    output->num_prompt_logprobs = at;
    output->prompt_logprobs = logprobs;
}

void answer_close(struct answer *answer)
{
    mem_free(answer->prompt);
}

void bench_make_answer(struct bench *b, int32_t token, struct answer *answer)
{
    const struct staged_step *staged = input_batch_staged(b->batch, b->next_answer);

    *answer = (struct answer){0};
    assert_true(staged->num_samples <= 64);
    run_step(b, token, answer->tokens);
    for (int32_t i = 0; i < staged->num_samples; i++) {
        answer->slots[i] = staged->samples[i].slot;
        answer->positions[i] = staged->samples[i].position;
    }
    answer->output = (struct model_runner_output){
        .num_rows = staged->batch.num_requests,
        .num_sampled = staged->num_samples,
        .slots = answer->slots,
        .positions = answer->positions,
        .sampled_token_ids = answer->tokens,
        .logprob_counts = answer->counts,
        .sampled_token_ranks = answer->ranks,
    };
    tell_prompts(b, staged, answer);
}

int64_t bench_cost_ns(const struct scheduler_output *plan)
{
    return 1000000 + 100000 * (int64_t)plan->total_num_scheduled_tokens;
}

void bench_answer(struct bench *b, int32_t token)
{
    AUTO_CLOSE(answer) struct answer answer;
    const struct scheduler_output *plan = &b->plans[b->next_answer & 1];

    assert_true(b->next_answer < b->next_step);
    bench_make_answer(b, token, &answer);
    scheduler_observe(b->scheduler, bench_cost_ns(plan));
    expect_ok(scheduler_update_from_output(b->scheduler, plan, &answer.output, &b->events));
    b->next_answer++;
    bench_take_events(b);
    scheduler_check(b->scheduler);
}

void bench_run(struct bench *b)
{
    for (int i = 0; scheduler_has_work(b->scheduler) || b->next_answer < b->next_step; i++) {
        assert_true(i < 5000);
        if (b->next_answer == b->next_step)
            bench_schedule(b);
        bench_answer(b, BY_HASH);
    }
}

void bench_abort(struct bench *b, request_id id)
{
    scheduler_abort(b->scheduler, id, &b->events);
    bench_take_events(b);
    scheduler_check(b->scheduler);
}

void bench_end(struct bench *b)
{
    while (b->next_answer < b->next_step)
        bench_answer(b, BY_HASH);
    scheduler_end_all(b->scheduler, ERR_ABORTED, "", &b->events);
    bench_take_events(b);
}
