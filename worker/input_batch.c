#include "worker/input_batch.h"

#include "proto/base/clock.h"
#include "proto/base/rounding.h"

#include <inttypes.h>
#include <string.h>
#include <xxhash.h>

enum { NUM_STAGING = 2 };

/* One request, as this rank knows it. */
struct slot {
    bool is_used;
    int32_t num_prompt;
    uint64_t prompt_hash;
    int32_t num_known;    /* tokens that came over the wire */
    int32_t num_expected; /* num_known, and what the staged steps sample */
    int32_t num_computed; /* tokens whose KV is there once the staged steps have run */
    int32_t num_blocks;
    struct arena arena; /* what params points to */
    struct sampling_params params;
};

struct input_batch {
    struct input_batch_limits limits;
    int32_t num_slots;
    int32_t num_kv_blocks;
    int32_t max_blocks;    /* of one request */
    struct slot *slots;    /* [num_slots] */
    uint8_t *marks;        /* [num_slots] what the plan in hand says of a slot */
    int32_t *tokens;       /* [num_slots, max_model_len] */
    int32_t *block_tables; /* [num_slots, max_blocks] */
    size_t tokens_bytes, block_tables_bytes, staged_tables_bytes;
    struct staged_step staged[NUM_STAGING];
    int32_t *staged_tables[NUM_STAGING]; /* [max_num_seqs, max_blocks] as of that step */
    int32_t *row_starts[NUM_STAGING], *positions[NUM_STAGING];
};

static int32_t *tokens_of(const struct input_batch *batch, int32_t slot)
{
    return batch->tokens + (int64_t)slot * batch->limits.max_model_len;
}

static int32_t *block_table_of(const struct input_batch *batch, int32_t slot)
{
    return batch->block_tables + (int64_t)slot * batch->max_blocks;
}

enum status input_batch_new(const struct input_batch_limits *limits, struct input_batch **out)
{
    AUTO_FREE(input_batch) struct input_batch *batch = mem_new(struct input_batch);
    size_t num_slots = (size_t)num_slots_for(limits->max_num_seqs);
    size_t num_rows = (size_t)limits->max_batched_tokens, num_seqs = (size_t)limits->max_num_seqs;
    void *p;

    batch->limits = *limits;
    batch->num_slots = (int32_t)num_slots;
    batch->max_blocks = divide_up(limits->max_model_len, KV_BLOCK_TOKENS);
    batch->slots = mem_new_array(struct slot, num_slots);
    batch->marks = mem_new_array(uint8_t, num_slots);
    batch->tokens_bytes = num_slots * (size_t)limits->max_model_len * sizeof(int32_t);
    batch->block_tables_bytes = num_slots * (size_t)batch->max_blocks * sizeof(int32_t);
    batch->staged_tables_bytes = num_seqs * (size_t)batch->max_blocks * sizeof(int32_t);
    TRY(mem_map(batch->tokens_bytes, "the token table", &p));
    batch->tokens = p;
    TRY(mem_map(batch->block_tables_bytes, "the block tables", &p));
    batch->block_tables = p;
    for (int i = 0; i < NUM_STAGING; i++) {
        struct staged_step *staged = &batch->staged[i];

        TRY(mem_map(batch->staged_tables_bytes, "the staged block tables", &p));
        batch->staged_tables[i] = p;
        batch->row_starts[i] = mem_new_array(int32_t, num_seqs + 1);
        batch->positions[i] = mem_new_array(int32_t, num_rows);
        staged->step = -1;
        staged->ids = mem_new_array(int32_t, num_rows);
        staged->row_slots = mem_new_array(int32_t, num_seqs);
        staged->samples = mem_new_array(struct staged_sample, num_seqs);
        staged->sample_rows = mem_new_array(int32_t, num_seqs);
        staged->prompt_runs = mem_new_array(struct staged_prompt_run, num_seqs);
    }
    *out = give(batch);
    return OK;
}

void input_batch_free(struct input_batch *batch)
{
    if (!batch)
        return;
    for (int32_t slot = 0; batch->slots && slot < batch->num_slots; slot++)
        arena_close(&batch->slots[slot].arena);
    mem_free(batch->slots);
    mem_free(batch->marks);
    mem_unmap(batch->tokens, batch->tokens_bytes);
    mem_unmap(batch->block_tables, batch->block_tables_bytes);
    for (int i = 0; i < NUM_STAGING; i++) {
        mem_unmap(batch->staged_tables[i], batch->staged_tables_bytes);
        mem_free(batch->row_starts[i]);
        mem_free(batch->positions[i]);
        mem_free(batch->staged[i].ids);
        mem_free(batch->staged[i].row_slots);
        mem_free(batch->staged[i].samples);
        mem_free(batch->staged[i].sample_rows);
        mem_free(batch->staged[i].prompt_runs);
    }
    mem_free(batch);
}

void input_batch_set_num_blocks(struct input_batch *batch, int32_t num_blocks)
{
    batch->num_kv_blocks = num_blocks;
}

void input_batch_forget(struct input_batch *batch)
{
    for (int32_t slot = 0; slot < batch->num_slots; slot++)
        batch->slots[slot].is_used = false;
    for (int i = 0; i < NUM_STAGING; i++)
        batch->staged[i].step = -1;
}

/* ---- does the plan fit? --------------------------------------------------------------------- */

enum mark { IS_FINISHED = 1, IS_NEW = 2, HAS_ROW = 4 };

/* false: it was said before. */
static bool mark(const struct input_batch *batch, int32_t slot, enum mark mark)
{
    bool is_first = !(batch->marks[slot] & mark);

    batch->marks[slot] |= mark;
    return is_first;
}

static enum status check_ids(const int32_t *ids, int32_t n, int32_t limit, const char *what,
                             int32_t slot)
{
    for (int32_t i = 0; i < n; i++)
        if (ids[i] < 0 || ids[i] >= limit)
            return fail(ERR_MISMATCH, "slot %d: %s %d is not in [0, %d)", slot, what, ids[i],
                        limit);
    return OK;
}

static enum status check_finished(const struct input_batch *batch, int32_t slot)
{
    if (!batch->slots[slot].is_used)
        return fail(ERR_MISMATCH, "slot %d is to be forgotten, and is not known here", slot);
    if (!mark(batch, slot, IS_FINISHED))
        return fail(ERR_MISMATCH, "slot %d is to be forgotten twice", slot);
    return OK;
}

static enum status check_new(const struct input_batch *batch, const struct new_request *request)
{
    const struct input_batch_limits *limits = &batch->limits;
    int32_t slot = request->slot;

    if (batch->slots[slot].is_used && !(batch->marks[slot] & IS_FINISHED))
        return fail(ERR_MISMATCH, "slot %d is given to a new request while it is in use", slot);
    if (!mark(batch, slot, IS_NEW))
        return fail(ERR_MISMATCH, "slot %d is given to two new requests", slot);
    if (request->num_prompt_token_ids < 1 ||
        (int64_t)request->num_prompt_token_ids + request->num_output_token_ids >
            limits->max_model_len)
        return fail(ERR_MISMATCH, "slot %d: %d prompt and %d output tokens, at most %d in all", slot,
                    request->num_prompt_token_ids, request->num_output_token_ids,
                    limits->max_model_len);
    if (request->num_block_ids > batch->max_blocks)
        return fail(ERR_MISMATCH, "slot %d: %d blocks, at most %d", slot, request->num_block_ids,
                    batch->max_blocks);
    TRY(check_ids(request->prompt_token_ids, request->num_prompt_token_ids, limits->vocab_size,
                  "token", slot));
    TRY(check_ids(request->output_token_ids, request->num_output_token_ids, limits->vocab_size,
                  "token", slot));
    TRY(check_ids(request->sampling_params.all_stop_token_ids,
                  request->sampling_params.num_all_stop_token_ids, limits->vocab_size, "stop token",
                  slot));
    TRY(check_ids(request->sampling_params.logit_bias_ids, request->sampling_params.num_logit_bias,
                  limits->vocab_size, "biased token", slot));
    if (sampling_params_check_ids(&request->sampling_params, limits->vocab_size) != OK)
        return fail(ERR_MISMATCH, "slot %d: %s", slot, fail_text());
    return check_ids(request->block_ids, request->num_block_ids, batch->num_kv_blocks, "KV block",
                     slot);
}

/* Are these tokens of the slot there, and is what is sampled the one behind them all? */
static enum status check_tokens(const struct scheduler_output *plan, int32_t row, int64_t end,
                                int32_t num_expected)
{
    if (end > num_expected)
        return fail(ERR_MISMATCH,
                    "row %d: %" PRId64 " tokens of slot %d are wanted, %d are known or on their way",
                    row, end, plan->slots[row], num_expected);
    if (plan->samples[row] && end != num_expected)
        return fail(ERR_MISMATCH, "row %d: slot %d samples behind %" PRId64 " tokens of %d", row,
                    plan->slots[row], end, num_expected);
    return OK;
}

static enum status check_row(const struct input_batch *batch, const struct scheduler_output *plan,
                             int32_t row, const int32_t *new_block_ids)
{
    int32_t id = plan->slots[row];
    const struct slot *slot = &batch->slots[id];
    const struct new_request *request = scheduler_output_find_new(plan, id);
    int32_t num_blocks = request ? request->num_block_ids : slot->num_blocks;
    int64_t end = (int64_t)plan->num_computed_tokens[row] + plan->num_scheduled_tokens[row];

    if (!mark(batch, id, HAS_ROW))
        return fail(ERR_MISMATCH, "row %d: slot %d has a row already", row, id);
    if (!request && (!slot->is_used || (batch->marks[id] & IS_FINISHED)))
        return fail(ERR_MISMATCH, "row %d: slot %d is not known here", row, id);
    if (!request && slot->num_computed != plan->num_computed_tokens[row])
        return fail(ERR_MISMATCH, "row %d: %d tokens of slot %d are computed here, the plan says %d",
                    row, slot->num_computed, id, plan->num_computed_tokens[row]);
    TRY(check_tokens(plan, row, end,
                     request ? request->num_prompt_token_ids + request->num_output_token_ids
                             : slot->num_expected));
    if (plan->new_block_counts[row] > batch->max_blocks - num_blocks)
        return fail(ERR_MISMATCH, "row %d: %d blocks more than %d, at most %d", row,
                    plan->new_block_counts[row], num_blocks, batch->max_blocks);
    num_blocks += plan->new_block_counts[row];
    if (end > batch->limits.max_model_len)
        return fail(ERR_MISMATCH, "row %d: %" PRId64 " tokens, at most %d", row, end,
                    batch->limits.max_model_len);
    if (end > (int64_t)num_blocks * KV_BLOCK_TOKENS)
        return fail(ERR_MISMATCH, "row %d: %" PRId64 " tokens do not fit in %d blocks", row, end,
                    num_blocks);
    return check_ids(new_block_ids, plan->new_block_counts[row], batch->num_kv_blocks, "KV block",
                     id);
}

/* Are there such tokens in the prompt, and were their logprobs asked for? */
static enum status check_prompt_row(const struct input_batch *batch,
                                    const struct scheduler_output *plan, int32_t i)
{
    int32_t row = plan->prompt_logprob_rows[i], slot = plan->slots[row];
    const struct new_request *request = scheduler_output_find_new(plan, slot);
    const struct sampling_params *params =
        request ? &request->sampling_params : &batch->slots[slot].params;
    int32_t num_prompt = request ? request->num_prompt_token_ids : batch->slots[slot].num_prompt;
    int64_t end = (int64_t)plan->num_computed_tokens[row] + plan->prompt_logprob_lengths[i];

    if (end >= num_prompt)
        return fail(ERR_MISMATCH,
                    "row %d: the logprob of prompt token %" PRId64 " of slot %d is wanted, it has %d",
                    row, end, slot, num_prompt);
    if (params->prompt_logprobs < 0)
        return fail(ERR_MISMATCH, "row %d: slot %d did not ask for its prompt's logprobs", row, slot);
    return OK;
}

static enum status check_plan(const struct input_batch *batch, const struct scheduler_output *plan)
{
    const int32_t *block_ids = plan->new_block_ids;

    TRY(scheduler_output_check(plan, batch->num_slots, batch->limits.max_batched_tokens));
    if (plan->num_rows < 1)
        return fail(ERR_MISMATCH, "a step without rows");
    if (plan->num_rows > batch->limits.max_num_seqs)
        return fail(ERR_MISMATCH, "%d rows, at most %d", plan->num_rows,
                    batch->limits.max_num_seqs);
    memset(batch->marks, 0, (size_t)batch->num_slots);
    for (int32_t i = 0; i < plan->num_finished_slots; i++)
        TRY(check_finished(batch, plan->finished_slots[i]));
    for (int32_t i = 0; i < plan->num_new_requests; i++)
        TRY(check_new(batch, &plan->new_requests[i]));
    for (int32_t row = 0; row < plan->num_rows; row++) {
        TRY(check_row(batch, plan, row, block_ids));
        block_ids += plan->new_block_counts[row];
    }
    for (int32_t i = 0; i < plan->num_prompt_logprob_rows; i++)
        TRY(check_prompt_row(batch, plan, i));
    for (int32_t i = 0; i < plan->num_new_requests; i++)
        if (!(batch->marks[plan->new_requests[i].slot] & HAS_ROW))
            return fail(ERR_MISMATCH, "slot %d is new and has no row", plan->new_requests[i].slot);
    return OK;
}

/* ---- staging -------------------------------------------------------------------------------- */

static void copy_i32(int32_t *to, const int32_t *from, int32_t n)
{
    if (n > 0)
        memcpy(to, from, (size_t)n * sizeof *to);
}

static const void *keep(struct arena *arena, const void *array, int32_t n)
{
    int32_t *copy = arena_alloc(arena, (size_t)n * sizeof *copy);

    copy_i32(copy, array, n);
    return copy;
}

static void add_request(struct input_batch *batch, const struct new_request *request)
{
    struct slot *slot = &batch->slots[request->slot];
    struct sampling_params *params = &slot->params;
    int32_t *tokens = tokens_of(batch, request->slot);

    arena_reset(&slot->arena);
    slot->is_used = true;
    slot->num_prompt = request->num_prompt_token_ids;
    slot->prompt_hash = XXH3_64bits(request->prompt_token_ids,
                                    (size_t)slot->num_prompt * sizeof *request->prompt_token_ids);
    slot->num_known = request->num_prompt_token_ids + request->num_output_token_ids;
    slot->num_expected = slot->num_known;
    slot->num_blocks = request->num_block_ids;
    copy_i32(tokens, request->prompt_token_ids, request->num_prompt_token_ids);
    copy_i32(tokens + slot->num_prompt, request->output_token_ids, request->num_output_token_ids);
    copy_i32(block_table_of(batch, request->slot), request->block_ids, request->num_block_ids);

    *params = request->sampling_params;
    params->all_stop_token_ids =
        keep(&slot->arena, params->all_stop_token_ids, params->num_all_stop_token_ids);
    params->logit_bias_ids = keep(&slot->arena, params->logit_bias_ids, params->num_logit_bias);
    params->logit_bias_values =
        keep(&slot->arena, params->logit_bias_values, params->num_logit_bias);
    params->allowed_token_ids =
        keep(&slot->arena, params->allowed_token_ids, params->num_allowed_token_ids);
    params->bad_words_token_ids =
        keep(&slot->arena, params->bad_words_token_ids, params->num_bad_words_token_ids);
    params->bad_words_counts =
        keep(&slot->arena, params->bad_words_counts, params->num_bad_words_counts);
}

/* A row's tokens, positions and block table go into the staged step behind what is there. */
static void stage_row(struct input_batch *batch, struct staged_step *staged,
                      const struct scheduler_output *plan, int32_t row)
{
    int32_t slot_id = plan->slots[row], first = plan->num_computed_tokens[row];
    int32_t n = plan->num_scheduled_tokens[row], at = staged->batch.rows;
    struct slot *slot = &batch->slots[slot_id];
    const int32_t *tokens = tokens_of(batch, slot_id);
    int which = staged->step & 1;

    for (int32_t i = 0; i < n; i++) {
        batch->positions[which][at + i] = first + i;
        staged->ids[at + i] = first + i < slot->num_known ? tokens[first + i] : -1;
    }
    copy_i32(batch->staged_tables[which] + (int64_t)row * batch->max_blocks,
             block_table_of(batch, slot_id), slot->num_blocks);
    staged->row_slots[row] = slot_id;
    slot->num_computed = first + n;
    staged->batch.rows = batch->row_starts[which][row + 1] = at + n;

    if (plan->samples[row]) {
        slot->num_expected = first + n + 1;
        staged->sample_rows[staged->num_samples] = at + n - 1;
        staged->samples[staged->num_samples++] =
            (struct staged_sample){.row = at + n - 1,
                                   .slot = slot_id,
                                   .position = first + n,
                                   .needs_bitmask = plan->needs_bitmask[row]};
    }
}

static void stage_prompt_runs(struct staged_step *staged, const struct scheduler_output *plan)
{
    staged->num_prompt_runs = plan->num_prompt_logprob_rows;
    for (int32_t i = 0; i < plan->num_prompt_logprob_rows; i++) {
        int32_t row = plan->prompt_logprob_rows[i];

        staged->prompt_runs[i] = (struct staged_prompt_run){
            .row = staged->batch.row_start[row],
            .slot = plan->slots[row],
            .position = plan->num_computed_tokens[row] + 1,
            .length = plan->prompt_logprob_lengths[i],
        };
    }
}

enum status input_batch_stage(struct input_batch *batch, int64_t step,
                              const struct scheduler_output *plan)
{
    struct staged_step *staged = &batch->staged[step & 1];
    const int32_t *block_ids = plan->new_block_ids;
    int64_t start_ns = clock_now_ns();
    int which = step & 1;

    TRY(check_plan(batch, plan));

    for (int32_t i = 0; i < plan->num_finished_slots; i++)
        batch->slots[plan->finished_slots[i]].is_used = false;
    for (int32_t i = 0; i < plan->num_new_requests; i++)
        add_request(batch, &plan->new_requests[i]);

    staged->step = step;
    staged->num_samples = 0;
    staged->batch = (struct batch_view){
        .num_requests = plan->num_rows,
        .row_start = batch->row_starts[which],
        .positions = batch->positions[which],
        .block_tables = batch->staged_tables[which],
        .block_table_stride = batch->max_blocks,
    };
    for (int32_t row = 0; row < plan->num_rows; row++) {
        struct slot *slot = &batch->slots[plan->slots[row]];

        copy_i32(block_table_of(batch, plan->slots[row]) + slot->num_blocks, block_ids,
                 plan->new_block_counts[row]);
        slot->num_blocks += plan->new_block_counts[row];
        block_ids += plan->new_block_counts[row];
        stage_row(batch, staged, plan, row);
    }
    stage_prompt_runs(staged, plan);
    staged->prepare_ns = clock_now_ns() - start_ns;
    return OK;
}

bool input_batch_is_replaced(const struct input_batch *batch, int64_t step,
                             const struct scheduler_output *plan)
{
    const struct staged_step *staged = &batch->staged[step & 1];

    if (staged->step != step || plan->num_new_requests == 0)
        return false;
    memset(batch->marks, 0, (size_t)batch->num_slots);
    for (int32_t i = 0; i < staged->batch.num_requests; i++)
        batch->marks[staged->row_slots[i]] = HAS_ROW;
    for (int32_t i = 0; i < plan->num_new_requests; i++) {
        int32_t slot = plan->new_requests[i].slot;

        if (slot >= 0 && slot < batch->num_slots && batch->marks[slot])
            return true;
    }
    return false;
}

struct staged_step *input_batch_staged(struct input_batch *batch, int64_t step)
{
    return &batch->staged[step & 1];
}

/* ---- device thread -------------------------------------------------------------------------- */

void input_batch_fill_ids(struct input_batch *batch, struct staged_step *staged)
{
    for (int32_t i = 0; i < staged->batch.num_requests; i++)
        for (int32_t row = staged->batch.row_start[i]; row < staged->batch.row_start[i + 1]; row++)
            if (staged->ids[row] < 0)
                staged->ids[row] =
                    tokens_of(batch, staged->row_slots[i])[staged->batch.positions[row]];
}

void input_batch_name_slots(struct input_batch *batch, struct staged_step *staged)
{
    (void)batch;
    for (int32_t i = 0; i < staged->batch.num_requests; i++)
        for (int32_t row = staged->batch.row_start[i]; row < staged->batch.row_start[i + 1]; row++)
            if (staged->ids[row] < 0)
                staged->ids[row] = -1 - staged->row_slots[i];
}

void input_batch_append_token(struct input_batch *batch, const struct staged_sample *sample,
                              int32_t token)
{
    /* The last token that fits is sampled, and never computed. Where none could be drawn the
     * request is over, but the step behind is on its way already and looks tokens up by id. */
    if (sample->position < batch->limits.max_model_len)
        tokens_of(batch, sample->slot)[sample->position] = MAX(0, token);
}

const struct sampling_params *input_batch_params(const struct input_batch *batch, int32_t slot)
{
    return &batch->slots[slot].params;
}

const int32_t *input_batch_tokens(const struct input_batch *batch, int32_t slot,
                                  int32_t *num_prompt_out)
{
    *num_prompt_out = batch->slots[slot].num_prompt;
    return tokens_of(batch, slot);
}

uint64_t input_batch_prompt_hash(const struct input_batch *batch, int32_t slot)
{
    return batch->slots[slot].prompt_hash;
}
