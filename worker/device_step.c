#include "worker/state.h"

#include "proto/base/clock.h"
#include "proto/base/trace.h"

/* ---- what tokens are drawn from -------------------------------------------------------------- */

static int64_t logits_row_bytes(const struct worker *worker)
{
    return model_shard(worker->model)->num_tokens * (int64_t)sizeof(float);
}

static enum status make_logits(struct worker *worker)
{
    int64_t max_rows = worker->options.max_num_seqs;

    worker->rows = mem_new_array(struct sampler_row, max_rows);
    worker->results = mem_new_array(struct sampler_result, max_rows);
    if (device_kernels(worker->device)->draw)
        return OK;
    return device_mirror_open(worker->device, max_rows * logits_row_bytes(worker), "the logits", &worker->logits);
}

void worker_make_sampler(struct worker *worker)
{
    const struct worker_options *options = &worker->options;
    const struct shard *shard = model_shard(worker->model);

    if (!device_kernels(worker->device)->draw)
        worker->sampler = sampler_new(&(struct sampler_options){
            .vocab_size = model_file_config(worker->file)->vocab_size,
            .first_token = shard->first_token,
            .num_tokens = shard->num_tokens,
            .max_rows = options->max_num_seqs,
            .rank = options->rank,
            .world = options->world,
            .comm = worker->comm,
            .device = worker->device,
            .work = &worker->work,
        });
    worker->prompt_logprobs = prompt_logprobs_new(&(struct prompt_logprobs_options){
        .model = worker->model,
        .sampler = worker->sampler,
        .batch = worker->batch,
        .device = worker->device,
        .logits = &worker->logits,
        .max_rows = options->max_num_seqs,
        .vocab_size = model_file_config(worker->file)->vocab_size,
    });
}

static enum status make_device_draw(struct worker *worker)
{
    int32_t max_rows = worker->options.max_num_seqs, world = worker->options.world;
    AUTO_MEM int32_t *first_tokens = mem_new_array(int32_t, world + 1);

    worker->slots = mem_new_array(int32_t, max_rows);
    if (!device_kernels(worker->device)->draw_rows)
        return OK;
    for (int32_t rank = 0; rank < world; rank++) {
        struct shard shard;

        TRY(shard_init(model_file_config(worker->file), rank, world, &shard));
        first_tokens[rank] = shard.first_token;
        first_tokens[rank + 1] = shard.first_token + shard.num_tokens;
    }
    return device_draw_new(worker->device,
                           &(struct device_draw_limits){.rows = max_rows,
                                                        .slots = num_slots_for(max_rows),
                                                        .first_tokens = first_tokens,
                                                        .rank = worker->options.rank,
                                                        .world = world},
                           &worker->device_draw);
}

void worker_drop_sampler(struct worker *worker)
{
    prompt_logprobs_free(give(worker->prompt_logprobs));
    sampler_free(give(worker->sampler));
}

enum status worker_open_drawing(struct worker *worker)
{
    TRY(make_logits(worker));
    return make_device_draw(worker);
}

void worker_close_drawing(struct worker *worker)
{
    mem_free(worker->rows);
    mem_free(worker->results);
    mem_free(worker->slots);
    device_draw_free(worker->device_draw);
    if (worker->device)
        device_mirror_close(worker->device, &worker->logits);
}

/* ---- a step ----------------------------------------------------------------------------------- */

/* Ranks whose devices can't put their logits together leave it to the sampler. */
static bool can_draw_there(const struct worker *worker)
{
    return worker->device_draw && device_draw_can_meet(worker->device_draw, worker_layers_comm(worker));
}

/* Of this step, on the device alone? */
static bool are_tokens_there(const struct worker *worker, int64_t step)
{
    for (int32_t i = 0; i < worker->num_pending; i++)
        if (worker->pending[i]->step == step)
            return worker->steps[step & 1].is_drawn_there;
    return false;
}

static enum status execute_model(struct worker *worker, int64_t step)
{
    struct staged_step *staged = input_batch_staged(worker->batch, step);

    struct step_slot *slot = &worker->steps[step & 1];

    ASSERT(staged->step == step);
    if (are_tokens_there(worker, step - 1))
        input_batch_name_slots(worker->batch, staged);
    else
        input_batch_fill_ids(worker->batch, staged);
    slot->marks.step = step;
    device_mark(worker->device, &slot->marks.begin);
    if (can_draw_there(worker))
        model_read_last_tokens(worker->model, device_draw_last_tokens(worker->device_draw));
    TRY(model_forward(worker->model, &(struct model_step){
                                         .batch = staged->batch,
                                         .ids = staged->ids,
                                         .logit_rows = staged->sample_rows,
                                         .num_logit_rows = staged->num_samples,
                                         .keeps_rows = staged->num_prompt_runs > 0,
                                         .logits_out = (float *)worker->logits.device,
                                     }));
    device_mark(worker->device, &slot->marks.executed);
    return OK;
}

static void note_device_step(struct worker *worker, int64_t step);

/* The columns of the answer while it grows. */
struct output_columns {
    int32_t *slots, *positions, *tokens, *logprob_counts, *ranks, *logprob_tokens;
    float *logprobs;
    int32_t num_logprobs;
};

static void add_logprobs(struct output_columns *columns, int32_t i,
                         const struct sampler_result *result)
{
    int32_t at = columns->num_logprobs;

    columns->logprob_counts[i] =
        sampler_result_write(result, columns->logprob_tokens + at, columns->logprobs + at);
    columns->ranks[i] = result->rank;
    columns->num_logprobs += columns->logprob_counts[i];
}

/* On a device that has no logits. The prompt takes part, for logits would tell it: greedy requests
 * whose tokens meet at one place must not go on as one. */
static struct sampler_result draw_row(const struct worker *worker,
                                      const struct staged_sample *sample,
                                      const struct sampler_row *row)
{
    const struct kernels *kernels = device_kernels(worker->device);
    uint64_t seed = input_batch_prompt_hash(worker->batch, sample->slot);

    if (!sampling_params_is_greedy(row->params))
        seed += (uint64_t)row->params->seed;
    return (struct sampler_result){
        .token = kernels->draw(
            worker->device,
            &(struct draw_args){
                .vocab_size = model_file_vocabulary(worker->file)->num_tokens,
                .seed = seed,
                .previous = row->prompt[sample->position - 1], /* the output follows the prompt */
                .position = sample->position,
                .bitmask = row->bitmask,
            }),
        .rank = 1,
    };
}

static struct sampler_row row_of(const struct worker *worker, const struct staged_sample *sample,
                                 const uint32_t *bitmask)
{
    int32_t num_prompt;
    const int32_t *tokens = input_batch_tokens(worker->batch, sample->slot, &num_prompt);

    return (struct sampler_row){
        .params = input_batch_params(worker->batch, sample->slot),
        .prompt = tokens,
        .num_prompt = num_prompt,
        .output = tokens + num_prompt,
        .num_output = sample->position - num_prompt,
        .position = sample->position,
        .bitmask = bitmask,
    };
}

static void make_rows(struct worker *worker, const struct staged_step *staged, const struct step_slot *slot)
{
    for (int32_t i = 0; i < staged->num_samples; i++)
        worker->rows[i] = row_of(worker, &staged->samples[i], slot->bitmasks[i]);
}

static bool is_to_be_drawn_there(const struct worker *worker, const struct staged_step *staged)
{
    return can_draw_there(worker) && staged->num_prompt_runs == 0 &&
           device_draw_can(worker->rows, staged->num_samples);
}

static enum status launch_draw(struct worker *worker, const struct staged_step *staged)
{
    for (int32_t i = 0; i < staged->num_samples; i++)
        worker->slots[i] = staged->samples[i].slot;
    return device_draw_launch(worker->device_draw, worker_layers_comm(worker), staged->step,
                              (float *)worker->logits.device, worker->rows, worker->slots, staged->num_samples);
}

/* Every rank draws every row's token: the same. */
static enum status draw_tokens(struct worker *worker, const struct staged_step *staged)
{
    int32_t n = staged->num_samples;

    for (int32_t i = 0; i < n && !worker->sampler; i++)
        worker->results[i] = draw_row(worker, &staged->samples[i], &worker->rows[i]);
    if (worker->sampler) {
        TRY(device_mirror_pull(worker->device, &worker->logits, n * logits_row_bytes(worker)));
        TRY(comm_check(worker_layers_comm(worker)));
        /* The step before may have been drawn on the device, and its tokens count here. */
        worker_answer_steps(worker);
        return sampler_run(worker->sampler, (float *)worker->logits.host, worker->rows, n, worker->results);
    }
    /* What the sampler's exchange would take. */
    return worker->comm ? comm_all_gather(worker->comm, NULL, 32 * n, 32 * n, NULL, NULL) : OK;
}

static int32_t count_logprobs(const struct worker *worker, const struct staged_step *staged)
{
    int32_t vocab_size = model_file_config(worker->file)->vocab_size, n = 0;

    for (int32_t i = 0; i < staged->num_samples; i++) {
        int32_t k = input_batch_params(worker->batch, staged->samples[i].slot)->logprobs;

        n += k < 0 ? 0 : 1 + MIN(k, vocab_size);
    }
    return n;
}

static void write_answer(const struct worker *worker, const struct staged_step *staged,
                         struct answer *answer)
{
    struct arena *arena = &answer->arena;
    size_t n = (size_t)staged->num_samples, max_logprobs = (size_t)count_logprobs(worker, staged);
    struct output_columns columns = {
        .slots = arena_alloc(arena, n * sizeof(int32_t)),
        .positions = arena_alloc(arena, n * sizeof(int32_t)),
        .tokens = arena_alloc(arena, n * sizeof(int32_t)),
        .logprob_counts = arena_alloc(arena, n * sizeof(int32_t)),
        .ranks = arena_alloc(arena, n * sizeof(int32_t)),
        .logprob_tokens = arena_alloc(arena, max_logprobs * sizeof(int32_t)),
        .logprobs = arena_alloc(arena, max_logprobs * sizeof(float)),
    };

    for (int32_t i = 0; i < staged->num_samples; i++) {
        const struct sampler_result *result = &worker->results[i];

        columns.slots[i] = staged->samples[i].slot;
        columns.positions[i] = staged->samples[i].position;
        columns.tokens[i] = result->token;
        columns.logprob_counts[i] = columns.ranks[i] = 0;
        if (input_batch_params(worker->batch, staged->samples[i].slot)->logprobs >= 0)
            add_logprobs(&columns, i, result);
    }
    answer->output.slots = columns.slots;
    answer->output.positions = columns.positions;
    answer->output.num_sampled = staged->num_samples;
    answer->output.sampled_token_ids = columns.tokens;
    answer->output.logprob_counts = columns.logprob_counts;
    answer->output.sampled_token_ranks = columns.ranks;
    answer->output.logprob_token_ids = columns.logprob_tokens;
    answer->output.logprobs = columns.logprobs;
    answer->output.num_logprobs = columns.num_logprobs;
}

static void append_tokens(struct worker *worker, const struct staged_step *staged)
{
    for (int32_t i = 0; i < staged->num_samples; i++)
        input_batch_append_token(worker->batch, &staged->samples[i], worker->results[i].token);
}

static enum status sample(struct worker *worker, int64_t step)
{
    struct staged_step *staged = input_batch_staged(worker->batch, step);
    struct step_slot *slot = &worker->steps[step & 1];

    ASSERT(staged->step == step);
    arena_reset(&slot->answer.arena);
    slot->answer.output = (struct model_runner_output){
        .rank = worker->options.rank,
        .num_rows = staged->batch.num_requests,
    };
    device_mark(worker->device, &slot->marks.sample_begin);
    make_rows(worker, staged, slot);
    slot->is_drawn_there = is_to_be_drawn_there(worker, staged);
    if (slot->is_drawn_there) {
        TRY(launch_draw(worker, staged));
        device_mark(worker->device, &slot->marks.end);
        return OK;
    }
    TRY(draw_tokens(worker, staged));
    if (worker->options.rank == 0)
        write_answer(worker, staged, &slot->answer);
    TRY(prompt_logprobs_run(worker->prompt_logprobs, staged, &slot->answer.arena,
                            worker->options.rank == 0 ? &slot->answer.output : NULL));
    append_tokens(worker, staged);
    device_mark(worker->device, &slot->marks.end);
    return OK;
}

/* The device has passed the end of the step: its tokens are there, if no rank was lost on the way. */
static enum status take_drawn_tokens(struct worker *worker, struct step_slot *slot)
{
    const struct staged_step *staged = input_batch_staged(worker->batch, slot->answer.step);
    const int32_t *tokens = device_draw_tokens(worker->device_draw, slot->answer.step);

    TRY(comm_check(worker_layers_comm(worker)));
    for (int32_t i = 0; i < staged->num_samples; i++)
        worker->results[i] = (struct sampler_result){.token = tokens[i]};
    if (worker->options.rank == 0)
        write_answer(worker, staged, &slot->answer);
    append_tokens(worker, staged);
    return OK;
}

/* Rank 0's answers have tokens, so they wait for the device; the others only say that they are in step, and wait
 * where they have yet to learn the tokens. */
static bool is_due(const struct worker *worker, const struct answer *answer, int64_t *ns_out)
{
    bool has_passed = device_has_passed(worker->device, &worker->steps[answer->step & 1].marks.end, ns_out);

    return has_passed || (worker->options.rank > 0 && !worker->steps[answer->step & 1].is_drawn_there);
}

/* When the device got to a mark that it has passed. */
static int64_t passed_ns(const struct worker *worker, const struct device_mark *mark)
{
    int64_t ns;

    device_has_passed(worker->device, mark, &ns);
    return ns;
}

/* Where the time of a step went, by the device's own clock. */
static void note_times(struct worker *worker, const struct step_marks *marks, int64_t end_ns,
                       struct model_runner_output *output)
{
    /* What is known of that clock may have become another since the last: the order is certain. */
    int64_t begin_ns = MAX(passed_ns(worker, &marks->begin), worker->last_end_ns);
    int64_t executed_ns = MAX(passed_ns(worker, &marks->executed), begin_ns);
    int64_t sample_begin_ns = MAX(passed_ns(worker, &marks->sample_begin), executed_ns);

    end_ns = MAX(end_ns, sample_begin_ns);
    output->execute_ns = executed_ns - begin_ns;
    output->sample_ns = end_ns - sample_begin_ns;
    output->idle_ns = sample_begin_ns - executed_ns;
    if (worker->last_end_ns > 0)
        output->idle_ns += begin_ns - worker->last_end_ns;
    worker->last_end_ns = end_ns;
    if (!trace_is_on())
        return;
    trace_add("execute_model", begin_ns, executed_ns, marks->step);
    trace_add("sample", sample_begin_ns, end_ns, marks->step);
}

/* Tells the times of steps that were answered before their end; says when to look for the next one. */
static int64_t note_late_times(struct worker *worker)
{
    struct model_runner_output answered;
    int64_t ns;

    while (worker->num_late > 0) {
        if (!device_has_passed(worker->device, &worker->late[0].end, &ns))
            return ns;
        note_times(worker, &worker->late[0], ns, &answered);
        worker->late[0] = worker->late[1];
        worker->num_late--;
    }
    return INT64_MAX;
}

/* For the trace; of more the oldest is not told. */
static void keep_late(struct worker *worker, const struct step_marks *marks)
{
    if (!trace_is_on())
        return;
    if (worker->num_late == NUM_STEPS)
        worker->late[0] = worker->late[--worker->num_late];
    worker->late[worker->num_late++] = *marks;
}

int64_t worker_answer_steps(struct worker *worker)
{
    int64_t ns = INT64_MAX, late_ns = note_late_times(worker);

    while (worker->num_pending > 0 && is_due(worker, worker->pending[0], &ns)) {
        struct answer *answer = worker->pending[0];
        struct step_slot *slot = &worker->steps[answer->step & 1];
        enum status status = OK;

        worker->pending[0] = worker->pending[1];
        worker->num_pending--;
        answer->output.prepare_ns = input_batch_staged(worker->batch, answer->step)->prepare_ns;
        /* Ranks above 0 do not wait for it. A simulated device knows its times in advance. */
        if (device_has_passed(worker->device, &slot->marks.end, &ns) || !device_has_own_memory(worker->device)) {
            note_late_times(worker); /* of earlier steps, so these have ended */
            note_times(worker, &slot->marks, ns, &answer->output);
        } else {
            keep_late(worker, &slot->marks);
            late_ns = ns;
        }
        if (slot->is_drawn_there)
            status = take_drawn_tokens(worker, slot);
        if (atomic_load_explicit(&worker->device_step, memory_order_relaxed) == answer->step)
            note_device_step(worker, -1); /* nothing behind it was launched */
        worker_reply(worker, answer, answer->step, status);
        ns = INT64_MAX;
    }
    if (worker->num_pending + worker->num_late > 0 && device_check(worker->device) != OK) {
        if (worker->num_pending > 0)
            worker_reply(worker, worker->pending[0], worker->pending[0]->step, ERR_INTERNAL);
        worker->num_pending = worker->num_late = 0;
        return INT64_MAX;
    }
    return MIN(ns, worker->num_late > 0 ? late_ns : INT64_MAX);
}

/* For heartbeats: the step that is on the device, -1: none. */
static void note_device_step(struct worker *worker, int64_t step)
{
    if (atomic_load_explicit(&worker->device_step, memory_order_relaxed) != step)
        atomic_store_explicit(&worker->device_since_ns, clock_now_ns(), memory_order_relaxed);
    atomic_store_explicit(&worker->device_step, step, memory_order_relaxed);
}

void worker_run_step(struct worker *worker, const struct command *command)
{
    struct step_slot *slot = &worker->steps[command->step & 1];
    bool executes = command->verb == VERB_EXECUTE_MODEL;
    enum status status;

    if (worker->has_failed)
        return; /* the engine has been told: it ends this rank, or has it reset */
    note_device_step(worker, command->step);
    status = injected_fault_strike(&worker->options.fault, worker->options.rank, command->step,
                                   executes ? FAULT_IN_EXECUTE_MODEL : FAULT_IN_SAMPLE);
    if (status == OK) {
        device_begin_range(worker->device, executes ? "execute_model" : "sample", command->step);
        status = executes ? execute_model(worker, command->step) : sample(worker, command->step);
        device_end_range(worker->device);
    }
    if (!device_has_own_memory(worker->device) || status != OK)
        note_device_step(worker, -1);
    if (status != OK) {
        worker_reply(worker, &slot->answer, command->step, status);
    } else if (!executes) {
        slot->answer.step = command->step;
        ASSERT(worker->num_pending < NUM_STEPS);
        worker->pending[worker->num_pending++] = &slot->answer;
    }
}
