#include "proto/wire/messages.h"

#include <inttypes.h>
#include <string.h>

/* ---- a step ---------------------------------------------------------------------------------- */

#define ROW(member, ...) FIELD_LIST(struct new_request, member, num_##member, __VA_ARGS__)
static const struct field new_request_fields[] = {
    FIELD(struct new_request, slot, FIELD_I32),
    FIELD_TEXT_OF(struct new_request, id, MAX_SHORT_TEXT),
    ROW(prompt_token_ids, FIELD_I32S, MAX_TOKENS, .is_private = true),
    ROW(output_token_ids, FIELD_I32S, MAX_TOKENS, .is_private = true),
    ROW(block_ids, FIELD_I32S, MAX_BLOCKS),
    FIELD_STRUCT(struct new_request, sampling_params, &sampling_params_type),
};
#undef ROW
const struct message_type new_request_type =
    MESSAGE_TYPE("new_request", 0, struct new_request, new_request_fields);

#define PLAN struct scheduler_output
static const struct field scheduler_output_fields[] = {
    FIELD_LIST(PLAN, finished_slots, num_finished_slots, FIELD_I32S, MAX_ROWS),
    FIELD_LIST(PLAN, new_requests, num_new_requests, FIELD_MESSAGES, MAX_ROWS,
               .type = &new_request_type),
    FIELD_LIST(PLAN, slots, num_rows, FIELD_I32S, MAX_ROWS),
    FIELD_COLUMN(PLAN, num_computed_tokens, num_rows, FIELD_I32S),
    FIELD_COLUMN(PLAN, num_scheduled_tokens, num_rows, FIELD_I32S),
    FIELD_COLUMN(PLAN, samples, num_rows, FIELD_BYTES),
    FIELD_COLUMN(PLAN, needs_bitmask, num_rows, FIELD_BYTES),
    FIELD_COLUMN(PLAN, new_block_counts, num_rows, FIELD_I32S),
    FIELD_LIST(PLAN, new_block_ids, num_new_block_ids, FIELD_I32S, MAX_BLOCKS),
    FIELD_LIST(PLAN, prompt_logprob_rows, num_prompt_logprob_rows, FIELD_I32S, MAX_ROWS),
    FIELD_COLUMN(PLAN, prompt_logprob_lengths, num_prompt_logprob_rows, FIELD_I32S),
    FIELD(PLAN, total_num_scheduled_tokens, FIELD_I32),
};
#undef PLAN
const struct message_type scheduler_output_type =
    MESSAGE_TYPE("prepare_inputs", MESSAGE_PREPARE_INPUTS, struct scheduler_output,
                 scheduler_output_fields);

static const struct field grammar_output_fields[] = {
    FIELD_LIST(struct grammar_output, slots, num_rows, FIELD_I32S, MAX_ROWS),
    FIELD_COLUMN(struct grammar_output, positions, num_rows, FIELD_I32S),
    FIELD_COLUMN(struct grammar_output, bitmask_rows, num_rows, FIELD_I32S),
    FIELD(struct grammar_output, num_bitmask_rows, FIELD_I32),
    FIELD(struct grammar_output, words_per_row, FIELD_I32),
    FIELD_LIST(struct grammar_output, bitmask, num_bitmask_bytes, FIELD_BYTES, MAX_BITMASK_BYTES),
};
const struct message_type grammar_output_type =
    MESSAGE_TYPE("sample", MESSAGE_SAMPLE, struct grammar_output, grammar_output_fields);

#define OUTPUT struct model_runner_output
static const struct field model_runner_output_fields[] = {
    FIELD(OUTPUT, rank, FIELD_I32),
    FIELD(OUTPUT, num_rows, FIELD_I32),
    FIELD_LIST(OUTPUT, slots, num_sampled, FIELD_I32S, MAX_ROWS),
    FIELD_COLUMN(OUTPUT, positions, num_sampled, FIELD_I32S),
    FIELD_COLUMN(OUTPUT, sampled_token_ids, num_sampled, FIELD_I32S),
    FIELD_COLUMN(OUTPUT, logprob_counts, num_sampled, FIELD_I32S),
    FIELD_COLUMN(OUTPUT, sampled_token_ranks, num_sampled, FIELD_I32S),
    FIELD_LIST(OUTPUT, logprob_token_ids, num_logprobs, FIELD_I32S, MAX_TOKENS),
    FIELD_COLUMN(OUTPUT, logprobs, num_logprobs, FIELD_F32S),
    FIELD_LIST(OUTPUT, prompt_slots, num_prompt_runs, FIELD_I32S, MAX_ROWS),
    FIELD_COLUMN(OUTPUT, prompt_positions, num_prompt_runs, FIELD_I32S),
    FIELD_COLUMN(OUTPUT, prompt_lengths, num_prompt_runs, FIELD_I32S),
    FIELD_LIST(OUTPUT, prompt_ranks, num_prompt_tokens, FIELD_I32S, MAX_PROMPT_LOGPROBS),
    FIELD_COLUMN(OUTPUT, prompt_logprob_counts, num_prompt_tokens, FIELD_I32S),
    FIELD_LIST(OUTPUT, prompt_logprob_token_ids, num_prompt_logprobs, FIELD_I32S,
               MAX_PROMPT_LOGPROBS),
    FIELD_COLUMN(OUTPUT, prompt_logprobs, num_prompt_logprobs, FIELD_F32S),
    FIELD(OUTPUT, prepare_ns, FIELD_I64),
    FIELD(OUTPUT, execute_ns, FIELD_I64),
    FIELD(OUTPUT, sample_ns, FIELD_I64),
    FIELD(OUTPUT, idle_ns, FIELD_I64),
};
#undef OUTPUT
const struct message_type model_runner_output_type =
    MESSAGE_TYPE("model_runner_output", MESSAGE_MODEL_RUNNER_OUTPUT, struct model_runner_output,
                 model_runner_output_fields);

const struct message_type execute_model_type = {.name = "execute_model",
                                                .id = MESSAGE_EXECUTE_MODEL};
const struct message_type shutdown_type = {.name = "shutdown", .id = MESSAGE_SHUTDOWN};

/* ---- joining --------------------------------------------------------------------------------- */

static const struct field hello_fields[] = {
    FIELD(struct hello, rank, FIELD_I32),
    FIELD(struct hello, world, FIELD_I32),
    FIELD(struct hello, pid, FIELD_I32),
    FIELD_TEXT_OF(struct hello, host, MAX_SHORT_TEXT),
    FIELD_TEXT_OF(struct hello, boot_id, MAX_SHORT_TEXT),
    FIELD_TEXT_OF(struct hello, build_id, MAX_SHORT_TEXT),
};
const struct message_type hello_type =
    MESSAGE_TYPE("hello", MESSAGE_HELLO, struct hello, hello_fields);

static const struct field welcome_fields[] = {
    FIELD_TEXT_OF(struct welcome, refusal, MAX_LONG_TEXT),
    FIELD_TEXT_OF(struct welcome, config, MAX_LONG_TEXT),
};
const struct message_type welcome_type =
    MESSAGE_TYPE("welcome", MESSAGE_WELCOME, struct welcome, welcome_fields);

static const struct field ready_fields[] = {
    FIELD(struct ready, rank, FIELD_I32),
    FIELD_TEXT_OF(struct ready, fingerprint, MAX_SHORT_TEXT),
    FIELD(struct ready, weights_bytes, FIELD_I64),
    FIELD(struct ready, step_weights_bytes, FIELD_I64),
    FIELD(struct ready, free_bytes, FIELD_I64),
    FIELD(struct ready, kv_block_bytes, FIELD_I64),
    FIELD(struct ready, max_num_blocks, FIELD_I64),
    FIELD(struct ready, max_position, FIELD_I32),
    FIELD(struct ready, vocab_size, FIELD_I32),
    FIELD(struct ready, first_token, FIELD_I32),
    FIELD(struct ready, num_tokens, FIELD_I32),
    FIELD(struct ready, load_ms, FIELD_F64),
};
const struct message_type ready_type =
    MESSAGE_TYPE("ready", MESSAGE_READY, struct ready, ready_fields);

/* ---- the rest -------------------------------------------------------------------------------- */

static const struct field call_fields[] = {
    FIELD(struct call, id, FIELD_I64),
    FIELD_TEXT_OF(struct call, name, MAX_SHORT_TEXT),
    FIELD_TEXT_OF(struct call, args, MAX_LONG_TEXT),
};
const struct message_type call_type = MESSAGE_TYPE("call", MESSAGE_CALL, struct call, call_fields);

static const struct field reply_fields[] = {
    FIELD(struct reply, id, FIELD_I64),
    FIELD(struct reply, rank, FIELD_I32),
    FIELD(struct reply, status, FIELD_I32),
    FIELD_TEXT_OF(struct reply, text, MAX_LONG_TEXT),
};
const struct message_type reply_type =
    MESSAGE_TYPE("reply", MESSAGE_REPLY, struct reply, reply_fields);

static const struct field fault_fields[] = {
    FIELD(struct fault, rank, FIELD_I32),
    FIELD(struct fault, code, FIELD_I32),
    FIELD_TEXT_OF(struct fault, text, MAX_LONG_TEXT),
};
const struct message_type fault_type =
    MESSAGE_TYPE("fault", MESSAGE_FAULT, struct fault, fault_fields);

static const struct field memory_held_fields[] = {
    FIELD(struct memory_held, weights_bytes, FIELD_I64),
    FIELD(struct memory_held, kv_cache_bytes, FIELD_I64),
    FIELD(struct memory_held, workspace_bytes, FIELD_I64),
    FIELD(struct memory_held, free_bytes, FIELD_I64),
    FIELD(struct memory_held, total_bytes, FIELD_I64),
};
const struct message_type memory_held_type = MESSAGE_TYPE("memory_held", 0, struct memory_held, memory_held_fields);

#define PASSES(member) \
    {.name = "passes_" #member, .kind = FIELD_I64, .offset = offsetof(struct heartbeat, passes.member)}
static const struct field heartbeat_fields[] = {
    FIELD(struct heartbeat, rank, FIELD_I32),
    FIELD(struct heartbeat, seq, FIELD_I64),
    FIELD(struct heartbeat, step, FIELD_I64),
    FIELD(struct heartbeat, ms_in_step, FIELD_I64),
    FIELD(struct heartbeat, progress, FIELD_I64),
    FIELD(struct heartbeat, waits_for, FIELD_I32),
    FIELD_STRUCT(struct heartbeat, memory, &memory_held_type),
    PASSES(recorded_first),
    PASSES(recorded_later),
    PASSES(replayed),
    PASSES(launched),
};
#undef PASSES
const struct message_type heartbeat_type =
    MESSAGE_TYPE("heartbeat", MESSAGE_HEARTBEAT, struct heartbeat, heartbeat_fields);

static const struct field control_request_fields[] = {
    FIELD(struct control_request, id, FIELD_I64),
    FIELD_TEXT_OF(struct control_request, command, MAX_COMMAND_TEXT),
    FIELD_TEXT_OF(struct control_request, args, MAX_COMMAND_ARGS),
};
const struct message_type control_request_type = MESSAGE_TYPE(
    "control_request", MESSAGE_CONTROL_REQUEST, struct control_request, control_request_fields);

static const struct field control_reply_fields[] = {
    FIELD(struct control_reply, id, FIELD_I64),
    FIELD(struct control_reply, status, FIELD_I32),
    FIELD_TEXT_OF(struct control_reply, text, MAX_LONG_TEXT),
};
const struct message_type control_reply_type = MESSAGE_TYPE(
    "control_reply", MESSAGE_CONTROL_REPLY, struct control_reply, control_reply_fields);

static const struct message_type *const schema[] = {
    &hello_type,         &welcome_type,        &ready_type,
    &scheduler_output_type, &execute_model_type, &grammar_output_type,
    &model_runner_output_type, &call_type,     &reply_type,
    &fault_type,         &heartbeat_type,      &shutdown_type,
    &control_request_type, &control_reply_type,
};

const struct message_type *message_type_of(int32_t id)
{
    for (size_t i = 0; i < COUNT_OF(schema); i++)
        if (schema[i]->id == id)
            return schema[i];
    return NULL;
}

const struct message_type *message_type_named(const char *name)
{
    for (size_t i = 0; i < COUNT_OF(schema); i++)
        if (strcmp(schema[i]->name, name) == 0)
            return schema[i];
    return NULL;
}

/* ---- do the columns add up? ------------------------------------------------------------------ */

static enum status check_row(const struct scheduler_output *plan, int32_t row, int32_t max_slots,
                             int32_t max_tokens)
{
    if (plan->slots[row] < 0 || plan->slots[row] >= max_slots)
        return fail(ERR_MISMATCH, "row %d has slot %d; slots are 0 to %d", row, plan->slots[row],
                    max_slots - 1);
    if (plan->num_computed_tokens[row] < 0)
        return fail(ERR_MISMATCH, "row %d has %d computed tokens", row,
                    plan->num_computed_tokens[row]);
    if (plan->num_scheduled_tokens[row] < 1 || plan->num_scheduled_tokens[row] > max_tokens)
        return fail(ERR_MISMATCH, "row %d schedules %d tokens; a step has 1 to %d", row,
                    plan->num_scheduled_tokens[row], max_tokens);
    if (plan->new_block_counts[row] < 0)
        return fail(ERR_MISMATCH, "row %d has %d new blocks", row, plan->new_block_counts[row]);
    if (plan->needs_bitmask[row] && !plan->samples[row])
        return fail(ERR_MISMATCH, "row %d needs a bitmask and does not sample", row);
    return OK;
}

static enum status check_sum(const char *what, int64_t sum, int64_t wanted)
{
    if (sum != wanted)
        return fail(ERR_MISMATCH, "the rows have %" PRId64 " %s, the step %" PRId64, sum, what,
                    wanted);
    return OK;
}

/* Rows in order, each foretelling some of what it schedules. */
static enum status check_prompt_rows(const struct scheduler_output *plan)
{
    int32_t before = -1;

    for (int32_t i = 0; i < plan->num_prompt_logprob_rows; i++) {
        int32_t row = plan->prompt_logprob_rows[i], length = plan->prompt_logprob_lengths[i];

        if (row <= before || row >= plan->num_rows)
            return fail(ERR_MISMATCH, "row %d comes after row %d of %d where prompts' logprobs are "
                        "wanted", row, before, plan->num_rows);
        if (length < 1 || length > plan->num_scheduled_tokens[row])
            return fail(ERR_MISMATCH, "row %d schedules %d tokens, the logprobs of %d are wanted", row,
                        plan->num_scheduled_tokens[row], length);
        before = row;
    }
    return OK;
}

enum status scheduler_output_check(const struct scheduler_output *plan, int32_t max_slots,
                                   int32_t max_tokens)
{
    int64_t num_scheduled = 0, num_blocks = 0;

    for (int32_t row = 0; row < plan->num_rows; row++) {
        TRY(check_row(plan, row, max_slots, max_tokens));
        num_scheduled += plan->num_scheduled_tokens[row];
        num_blocks += plan->new_block_counts[row];
    }
    if (num_scheduled > max_tokens)
        return fail(ERR_MISMATCH, "the step has %" PRId64 " tokens, at most %d fit", num_scheduled,
                    max_tokens);
    TRY(check_sum("scheduled tokens", num_scheduled, plan->total_num_scheduled_tokens));
    TRY(check_sum("new blocks", num_blocks, plan->num_new_block_ids));
    TRY(check_prompt_rows(plan));
    for (int32_t i = 0; i < plan->num_new_requests; i++)
        if (plan->new_requests[i].slot < 0 || plan->new_requests[i].slot >= max_slots)
            return fail(ERR_MISMATCH, "new request %s has slot %d; slots are 0 to %d",
                        plan->new_requests[i].id, plan->new_requests[i].slot, max_slots - 1);
    for (int32_t i = 0; i < plan->num_finished_slots; i++)
        if (plan->finished_slots[i] < 0 || plan->finished_slots[i] >= max_slots)
            return fail(ERR_MISMATCH, "slot %d is to be forgotten; slots are 0 to %d",
                        plan->finished_slots[i], max_slots - 1);
    return OK;
}

const struct new_request *scheduler_output_find_new(const struct scheduler_output *plan, int32_t slot)
{
    for (int32_t i = 0; i < plan->num_new_requests; i++)
        if (plan->new_requests[i].slot == slot)
            return &plan->new_requests[i];
    return NULL;
}

enum status grammar_output_check(const struct grammar_output *grammar, int32_t first_token,
                                 int32_t num_tokens)
{
    int32_t words = grammar_words_for(first_token, num_tokens);
    int64_t bytes = (int64_t)grammar->num_bitmask_rows * words * 4;

    if (grammar->num_bitmask_rows < 0 || grammar->num_bitmask_rows > grammar->num_rows)
        return fail(ERR_MISMATCH, "%d masks for %d rows", grammar->num_bitmask_rows,
                    grammar->num_rows);
    if (grammar->num_rows > 0 && grammar->words_per_row != words)
        return fail(ERR_MISMATCH, "the bitmask has %d words a row, %d tokens from %d on need %d",
                    grammar->words_per_row, num_tokens, first_token, words);
    if (grammar->num_bitmask_bytes != bytes)
        return fail(ERR_MISMATCH, "the bitmask has %d bytes, %d rows of %d words have %" PRId64,
                    grammar->num_bitmask_bytes, grammar->num_bitmask_rows, words, bytes);
    for (int32_t row = 0; row < grammar->num_rows; row++)
        if (grammar->bitmask_rows[row] < 0 ||
            grammar->bitmask_rows[row] >= grammar->num_bitmask_rows)
            return fail(ERR_MISMATCH, "slot %d has mask %d of %d", grammar->slots[row],
                        grammar->bitmask_rows[row], grammar->num_bitmask_rows);
    return OK;
}

enum status grammar_output_slice(const struct grammar_output *whole, int32_t first_token,
                                 int32_t num_tokens, struct arena *arena,
                                 struct grammar_output *out)
{
    int32_t words = grammar_words_for(first_token, num_tokens), first_word = first_token / 32;
    int64_t whole_words = whole->words_per_row, rows = whole->num_bitmask_rows;
    size_t row_bytes = (size_t)words * 4;
    uint8_t *bits;

    if (first_word + words > whole_words || rows < 0 ||
        whole->num_bitmask_bytes != rows * whole_words * 4)
        return fail(ERR_MISMATCH,
                    "masks of %" PRId64 " rows of %" PRId64
                    " words in %d bytes; a rank needs words "
                    "%d to %d",
                    rows, whole_words, whole->num_bitmask_bytes, first_word, first_word + words);
    bits = arena_alloc(arena, row_bytes * (size_t)rows);
    for (int64_t row = 0; row < rows; row++)
        memcpy(bits + (size_t)row * row_bytes,
               whole->bitmask + (row * whole_words + first_word) * 4, row_bytes);
    *out = *whole;
    out->words_per_row = words;
    out->bitmask = bits;
    out->num_bitmask_bytes = (int32_t)(row_bytes * (size_t)rows);
    return OK;
}

static enum status check_prompt_runs(const struct model_runner_output *output)
{
    int64_t num_tokens = 0, num_logprobs = 0;

    for (int32_t i = 0; i < output->num_prompt_runs; i++) {
        if (output->prompt_lengths[i] < 1)
            return fail(ERR_MISMATCH, "the answer has the logprobs of %d prompt tokens of slot %d",
                        output->prompt_lengths[i], output->prompt_slots[i]);
        num_tokens += output->prompt_lengths[i];
    }
    TRY(check_sum("prompt tokens with logprobs", num_tokens, output->num_prompt_tokens));
    for (int32_t i = 0; i < output->num_prompt_tokens; i++) {
        if (output->prompt_logprob_counts[i] < 1)
            return fail(ERR_MISMATCH, "prompt token %d has %d logprobs", i,
                        output->prompt_logprob_counts[i]);
        num_logprobs += output->prompt_logprob_counts[i];
    }
    return check_sum("prompt logprobs", num_logprobs, output->num_prompt_logprobs);
}

enum status model_runner_output_check(const struct model_runner_output *output)
{
    int64_t num_logprobs = 0;

    if (output->num_sampled > output->num_rows)
        return fail(ERR_MISMATCH, "%d of %d rows were sampled", output->num_sampled,
                    output->num_rows);
    for (int32_t i = 0; i < output->num_sampled; i++) {
        if (output->logprob_counts[i] < 0)
            return fail(ERR_MISMATCH, "sampled row %d has %d logprobs", i,
                        output->logprob_counts[i]);
        num_logprobs += output->logprob_counts[i];
    }
    TRY(check_sum("logprobs", num_logprobs, output->num_logprobs));
    return check_prompt_runs(output);
}

enum status heartbeat_check(const struct heartbeat *heartbeat)
{
    static const int64_t max_bytes = (int64_t)1 << 50;
    const struct memory_held *memory = &heartbeat->memory;
    const int64_t sizes[] = {memory->weights_bytes, memory->kv_cache_bytes, memory->workspace_bytes,
                             memory->free_bytes, memory->total_bytes}; /* in order of the fields */

    for (size_t i = 0; i < COUNT_OF(sizes); i++)
        if (sizes[i] < 0 || sizes[i] > max_bytes)
            return fail(ERR_MISMATCH, "%s of a heartbeat is %" PRId64 "; 0 to %" PRId64 " can be",
                        memory_held_fields[i].name, sizes[i], max_bytes);
    return OK;
}
