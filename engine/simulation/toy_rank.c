#include "engine/simulation/toy_rank.h"

#include "engine/simulation/random.h"
#include "engine/simulation/toy_model.h"
#include "proto/base/rounding.h"

#include <inttypes.h>
#include <string.h>

enum { NUM_STEPS = 2 };
/* -1 is a token that was drawn where none may come: the engine ends its request. */
#define UNKNOWN_TOKEN INT32_MIN

/* One request, as this rank knows it. */
struct slot {
    bool is_used;
    int32_t num_prompt;
    int32_t num_expected; /* tokens that are known, and those that the steps in hand will draw */
    int32_t num_computed; /* once the steps in hand have run */
    int32_t num_blocks;
    int32_t *tokens;    /* [max_model_len] */
    int32_t *blocks;    /* [max_blocks] */
    struct arena arena; /* what params points to */
    struct sampling_params params;
};

struct row {
    int32_t slot, first, num_tokens;
    bool samples, needs_bitmask;
    const uint32_t *bitmask; /* of the slice; NULL: it needs none, or none came yet */
};

enum phase { EMPTY, PREPARED, EXECUTING, SAMPLING };
static const char *const phase_names[] = {"nowhere", "prepared", "executing", "sampling"};

struct toy_step {
    int64_t step;
    enum phase phase;
    struct row *rows; /* [max_num_seqs] */
    int32_t num_rows, num_samples;
    struct arena arena; /* of the bitmasks */
};

struct toy_rank {
    struct toy_rank_limits limits;
    int32_t num_slots, num_blocks, max_blocks;
    struct slot *slots;               /* [num_slots] */
    uint64_t *kv;                     /* [num_blocks, block_size] */
    int64_t *written_in;              /* [num_blocks] the last step that wrote to it */
    uint8_t *has_row;                 /* [num_slots] in the plan in hand */
    struct toy_step steps[NUM_STEPS]; /* by step & 1 */
    int64_t next_step;                /* -1: any may come first */
    int64_t oldest_step;              /* that is not over; -1: none came yet */
    uint64_t *contexts;               /* [max_num_seqs] of the step that was run last */
    struct arena answer;              /* of the last */
};

struct toy_rank *toy_rank_new(const struct toy_rank_limits *limits)
{
    struct toy_rank *rank = mem_new(struct toy_rank);
    size_t max_rows = (size_t)limits->max_num_seqs;

    rank->limits = *limits;
    rank->num_slots = num_slots_for(limits->max_num_seqs);
    rank->max_blocks = divide_up(limits->max_model_len, limits->block_size);
    rank->slots = mem_new_array(struct slot, (size_t)rank->num_slots);
    rank->has_row = mem_new_array(uint8_t, (size_t)rank->num_slots);
    rank->contexts = mem_new_array(uint64_t, max_rows);
    for (int32_t i = 0; i < rank->num_slots; i++) {
        rank->slots[i].tokens = mem_new_array(int32_t, (size_t)limits->max_model_len);
        rank->slots[i].blocks = mem_new_array(int32_t, (size_t)rank->max_blocks);
    }
    for (int32_t i = 0; i < NUM_STEPS; i++)
        rank->steps[i].rows = mem_new_array(struct row, max_rows);
    rank->next_step = rank->oldest_step = -1;
    return rank;
}

void toy_rank_free(struct toy_rank *rank)
{
    if (!rank)
        return;
    for (int32_t i = 0; i < rank->num_slots; i++) {
        mem_free(rank->slots[i].tokens);
        mem_free(rank->slots[i].blocks);
        arena_close(&rank->slots[i].arena);
    }
    for (int32_t i = 0; i < NUM_STEPS; i++) {
        mem_free(rank->steps[i].rows);
        arena_close(&rank->steps[i].arena);
    }
    mem_free(rank->slots);
    mem_free(rank->has_row);
    mem_free(rank->contexts);
    mem_free(rank->kv);
    mem_free(rank->written_in);
    arena_close(&rank->answer);
    mem_free(rank);
}

enum status toy_rank_initialize_kv_cache(struct toy_rank *rank, int32_t num_blocks)
{
    size_t num_positions = (size_t)num_blocks * (size_t)rank->limits.block_size;

    if (rank->num_blocks > 0 || num_blocks < 1)
        return fail(ERR_MISMATCH, "%d KV blocks, %d before", num_blocks, rank->num_blocks);
    rank->num_blocks = num_blocks;
    rank->kv = mem_new_array(uint64_t, num_positions);
    rank->written_in = mem_new_array(int64_t, (size_t)num_blocks);
    /* What was never computed is no zero, and the same nowhere. */
    for (size_t i = 0; i < num_positions; i++)
        rank->kv[i] = mix(i + 1);
    memset(rank->written_in, 0xff, (size_t)num_blocks * sizeof *rank->written_in);
    return OK;
}

/* ---- does the plan fit? --------------------------------------------------------------------- */

static enum status check_ids(const char *what, int32_t slot, const int32_t *ids, int32_t n,
                             int32_t limit)
{
    for (int32_t i = 0; i < n; i++)
        if (ids[i] < 0 || ids[i] >= limit)
            return fail(ERR_MISMATCH, "slot %d: %s %d is not in [0, %d)", slot, what, ids[i],
                        limit);
    return OK;
}

static enum status check_new(const struct toy_rank *rank, const struct new_request *request)
{
    const struct toy_rank_limits *limits = &rank->limits;
    const struct sampling_params *params = &request->sampling_params;
    int32_t slot = request->slot;

    if (rank->slots[slot].is_used)
        return fail(ERR_MISMATCH, "slot %d is given away while it is in use", slot);
    if (request->num_prompt_token_ids < 1 ||
        (int64_t)request->num_prompt_token_ids + request->num_output_token_ids >
            limits->max_model_len)
        return fail(ERR_MISMATCH, "slot %d: %d prompt and %d output tokens, at most %d", slot,
                    request->num_prompt_token_ids, request->num_output_token_ids,
                    limits->max_model_len);
    if (request->num_block_ids > rank->max_blocks)
        return fail(ERR_MISMATCH, "slot %d: %d blocks, at most %d", slot, request->num_block_ids,
                    rank->max_blocks);
    TRY(check_ids("prompt token", slot, request->prompt_token_ids, request->num_prompt_token_ids,
                  limits->vocab_size));
    TRY(check_ids("output token", slot, request->output_token_ids, request->num_output_token_ids,
                  limits->vocab_size));
    TRY(check_ids("stop token", slot, params->all_stop_token_ids, params->num_all_stop_token_ids,
                  limits->vocab_size));
    return check_ids("KV block", slot, request->block_ids, request->num_block_ids,
                     rank->num_blocks);
}

static void keep_params(struct slot *slot, const struct sampling_params *params)
{
    size_t bytes = (size_t)params->num_all_stop_token_ids * sizeof(int32_t);
    int32_t *stop = arena_alloc(&slot->arena, bytes);

    if (bytes > 0)
        memcpy(stop, params->all_stop_token_ids, bytes);
    slot->params = *params;
    slot->params.all_stop_token_ids = stop;
}

static void append(int32_t *to, int32_t *num_to, const int32_t *from, int32_t n)
{
    if (n > 0)
        memcpy(to + *num_to, from, (size_t)n * sizeof *to);
    *num_to += n;
}

static void add_request(struct toy_rank *rank, const struct new_request *request)
{
    struct slot *slot = &rank->slots[request->slot];

    slot->is_used = true;
    slot->num_prompt = request->num_prompt_token_ids;
    slot->num_computed = -1; /* its row says */
    slot->num_expected = slot->num_blocks = 0;
    append(slot->tokens, &slot->num_expected, request->prompt_token_ids,
           request->num_prompt_token_ids);
    append(slot->tokens, &slot->num_expected, request->output_token_ids,
           request->num_output_token_ids);
    for (int32_t i = slot->num_expected; i < rank->limits.max_model_len; i++)
        slot->tokens[i] = UNKNOWN_TOKEN;
    append(slot->blocks, &slot->num_blocks, request->block_ids, request->num_block_ids);
    arena_reset(&slot->arena);
    keep_params(slot, &request->sampling_params);
}

static bool is_in_flight(const struct toy_rank *rank, int32_t slot)
{
    for (int32_t i = 0; i < NUM_STEPS; i++)
        for (int32_t r = 0; rank->steps[i].phase != EMPTY && r < rank->steps[i].num_rows; r++)
            if (rank->steps[i].rows[r].slot == slot)
                return true;
    return false;
}

static enum status forget(struct toy_rank *rank, int32_t slot)
{
    if (!rank->slots[slot].is_used)
        return fail(ERR_MISMATCH, "slot %d is to be forgotten, and is not known here", slot);
    if (is_in_flight(rank, slot))
        return fail(ERR_MISMATCH, "slot %d is to be forgotten, and has a row in flight", slot);
    rank->slots[slot].is_used = false;
    return OK;
}

/* The row's new blocks are in its table. */
static enum status check_row(const struct toy_rank *rank, const struct scheduler_output *plan,
                             int32_t row)
{
    const struct slot *slot = &rank->slots[plan->slots[row]];
    int64_t end = (int64_t)plan->num_computed_tokens[row] + plan->num_scheduled_tokens[row];

    if (slot->num_computed >= 0 && slot->num_computed != plan->num_computed_tokens[row])
        return fail(ERR_MISMATCH,
                    "row %d: %d tokens of slot %d are computed here, the plan says %d", row,
                    slot->num_computed, plan->slots[row], plan->num_computed_tokens[row]);
    if (end > slot->num_expected)
        return fail(ERR_MISMATCH, "row %d: %" PRId64 " tokens of slot %d are wanted, of %d", row,
                    end, plan->slots[row], slot->num_expected);
    if (plan->samples[row] && end != slot->num_expected)
        return fail(ERR_MISMATCH, "row %d: slot %d samples behind %" PRId64 " tokens of %d", row,
                    plan->slots[row], end, slot->num_expected);
    if (plan->samples[row] && slot->params.max_tokens > 0 &&
        end - slot->num_prompt >= slot->params.max_tokens)
        return fail(ERR_MISMATCH,
                    "row %d: slot %d has %" PRId64 " output tokens, and wants no more", row,
                    plan->slots[row], end - slot->num_prompt);
    if (!plan->samples[row] && end == slot->num_expected)
        return fail(ERR_MISMATCH,
                    "row %d: slot %d has all of its %" PRId64
                    " tokens computed, and does not sample",
                    row, plan->slots[row], end);
    if (end > (int64_t)slot->num_blocks * rank->limits.block_size)
        return fail(ERR_MISMATCH, "row %d: %" PRId64 " tokens do not fit in %d blocks", row, end,
                    slot->num_blocks);
    return OK;
}

/* Each block that the row writes to is its own in this step. */
static enum status claim_blocks(struct toy_rank *rank, int64_t step, const struct slot *slot,
                                int32_t first, int32_t end)
{
    for (int32_t i = first / rank->limits.block_size; i <= (end - 1) / rank->limits.block_size;
         i++) {
        if (rank->written_in[slot->blocks[i]] == step)
            return fail(ERR_MISMATCH, "two rows of step %" PRId64 " write to KV block %d", step,
                        slot->blocks[i]);
        rank->written_in[slot->blocks[i]] = step;
    }
    return OK;
}

static enum status stage_row(struct toy_rank *rank, struct toy_step *step,
                             const struct scheduler_output *plan, int32_t row,
                             const int32_t *new_blocks)
{
    struct slot *slot = &rank->slots[plan->slots[row]];
    int32_t first = plan->num_computed_tokens[row], n = plan->num_scheduled_tokens[row];
    int32_t num_new = plan->new_block_counts[row];

    if (!slot->is_used)
        return fail(ERR_MISMATCH, "row %d: slot %d is not known here", row, plan->slots[row]);
    if (rank->has_row[plan->slots[row]]++)
        return fail(ERR_MISMATCH, "row %d: slot %d has a row already", row, plan->slots[row]);
    if (num_new > rank->max_blocks - slot->num_blocks)
        return fail(ERR_MISMATCH, "row %d: %d blocks more than %d, at most %d", row, num_new,
                    slot->num_blocks, rank->max_blocks);
    TRY(check_ids("KV block", plan->slots[row], new_blocks, num_new, rank->num_blocks));
    append(slot->blocks, &slot->num_blocks, new_blocks, num_new);
    TRY(check_row(rank, plan, row));
    TRY(claim_blocks(rank, step->step, slot, first, first + n));
    slot->num_computed = first + n;
    slot->num_expected += plan->samples[row];
    step->num_samples += plan->samples[row];
    step->rows[row] = (struct row){
        .slot = plan->slots[row],
        .first = first,
        .num_tokens = n,
        .samples = plan->samples[row],
        .needs_bitmask = plan->needs_bitmask[row],
    };
    return OK;
}

/* A rank that refuses a plan ends, so unlike a real one it may be left half changed. */
static enum status stage(struct toy_rank *rank, struct toy_step *step,
                         const struct scheduler_output *plan)
{
    const int32_t *new_blocks = plan->new_block_ids;

    TRY(scheduler_output_check(plan, rank->num_slots, rank->limits.max_num_batched_tokens));
    if (plan->num_rows < 1 || plan->num_rows > rank->limits.max_num_seqs)
        return fail(ERR_MISMATCH, "%d rows, a step has 1 to %d", plan->num_rows,
                    rank->limits.max_num_seqs);
    for (int32_t i = 0; i < plan->num_finished_slots; i++)
        TRY(forget(rank, plan->finished_slots[i]));
    for (int32_t i = 0; i < plan->num_new_requests; i++) {
        TRY(check_new(rank, &plan->new_requests[i]));
        add_request(rank, &plan->new_requests[i]);
    }
    memset(rank->has_row, 0, (size_t)rank->num_slots);
    step->num_rows = plan->num_rows;
    step->num_samples = 0;
    for (int32_t row = 0; row < plan->num_rows; row++) {
        TRY(stage_row(rank, step, plan, row, new_blocks));
        new_blocks += plan->new_block_counts[row];
    }
    for (int32_t i = 0; i < plan->num_new_requests; i++)
        if (!rank->has_row[plan->new_requests[i].slot])
            return fail(ERR_MISMATCH, "slot %d is new and has no row", plan->new_requests[i].slot);
    return OK;
}

/* ---- the verbs ------------------------------------------------------------------------------ */

enum status toy_rank_prepare_inputs(struct toy_rank *rank, int64_t step,
                                    const struct scheduler_output *plan)
{
    struct toy_step *staged = &rank->steps[step & 1];

    if (rank->num_blocks == 0)
        return fail(ERR_MISMATCH, "step %" PRId64 " came before the KV cache was sized", step);
    if (step < 0 || (rank->next_step >= 0 && step != rank->next_step))
        return fail(ERR_MISMATCH, "step %" PRId64 " is prepared, step %" PRId64 " is next", step,
                    rank->next_step);
    if (staged->phase != EMPTY)
        return fail(ERR_MISMATCH, "step %" PRId64 " is prepared while step %" PRId64 " is %s", step,
                    staged->step, phase_names[staged->phase]);
    staged->step = step;
    TRY(stage(rank, staged, plan));
    staged->phase = PREPARED;
    rank->next_step = step + 1;
    if (rank->oldest_step < 0)
        rank->oldest_step = step;
    return OK;
}

static enum status advance(struct toy_rank *rank, int64_t step, enum phase from, const char *verb)
{
    struct toy_step *staged = &rank->steps[step & 1];

    if (staged->step != step || staged->phase != from)
        return fail(ERR_MISMATCH,
                    "%s of step %" PRId64 ", which is not due: step %" PRId64 " is %s", verb, step,
                    staged->step, phase_names[staged->phase]);
    staged->phase = from + 1;
    return OK;
}

enum status toy_rank_execute_model(struct toy_rank *rank, int64_t step)
{
    return advance(rank, step, PREPARED, "execute_model");
}

/* Nothing is sampled unmasked where a mask was due. */
static enum status take_masks(struct toy_step *step, const struct grammar_output *grammar)
{
    uint32_t *bits = arena_alloc(&step->arena, (size_t)grammar->num_bitmask_bytes);
    int32_t num_due = 0;

    if (grammar->num_bitmask_bytes > 0)
        memcpy(bits, grammar->bitmask, (size_t)grammar->num_bitmask_bytes);
    for (int32_t i = 0; i < step->num_rows; i++) {
        struct row *row = &step->rows[i];

        if (!row->needs_bitmask)
            continue;
        if (num_due == grammar->num_rows || grammar->slots[num_due] != row->slot)
            return fail(ERR_MISMATCH, "no bitmask came for slot %d, which needs one", row->slot);
        if (grammar->positions[num_due] != row->first + row->num_tokens)
            return fail(ERR_MISMATCH,
                        "the bitmask of slot %d is for position %d, its token comes at %d",
                        row->slot, grammar->positions[num_due], row->first + row->num_tokens);
        row->bitmask = bits + grammar->bitmask_rows[num_due++] * grammar->words_per_row;
    }
    if (num_due != grammar->num_rows)
        return fail(ERR_MISMATCH, "%d bitmasks came, %d were due", grammar->num_rows, num_due);
    return OK;
}

void toy_rank_slice(const struct toy_rank_limits *limits, int32_t *first_token_out,
                    int32_t *num_tokens_out)
{
    int32_t share = MAX(limits->vocab_size / 5, 1);

    *first_token_out = MIN(limits->rank * share, limits->vocab_size - 1);
    *num_tokens_out =
        limits->rank == 0 ? limits->vocab_size : MIN(share, limits->vocab_size - *first_token_out);
}

enum status toy_rank_sample(struct toy_rank *rank, int64_t step,
                            const struct grammar_output *grammar)
{
    struct toy_step *staged = &rank->steps[step & 1];
    int32_t first_token, num_tokens;

    TRY(advance(rank, step, EXECUTING, "sample"));
    toy_rank_slice(&rank->limits, &first_token, &num_tokens);
    TRY(grammar_output_check(grammar, first_token, num_tokens));
    arena_reset(&staged->arena);
    return take_masks(staged, grammar);
}

/* ---- the device ----------------------------------------------------------------------------- */

int64_t toy_rank_due_step(const struct toy_rank *rank)
{
    const struct toy_step *step = &rank->steps[rank->oldest_step & 1];

    return rank->oldest_step >= 0 && step->step == rank->oldest_step && step->phase == SAMPLING
               ? step->step
               : -1;
}

static uint64_t *kv_at(const struct toy_rank *rank, const struct slot *slot, int32_t position)
{
    int32_t block_size = rank->limits.block_size;

    return &rank->kv[(int64_t)slot->blocks[position / block_size] * block_size +
                     position % block_size];
}

/* What is read at the first `end` positions. */
static uint64_t read_context(const struct toy_rank *rank, const struct slot *slot, int32_t end)
{
    int32_t block_size = rank->limits.block_size;
    uint64_t context = 0;

    for (int32_t at = 0; at < end; at += block_size) {
        const uint64_t *kv = kv_at(rank, slot, at);
        int32_t n = MIN(block_size, end - at);

        for (int32_t i = 0; i < n; i++)
            context += toy_model_read(kv[i], at + i);
    }
    return context;
}

/* Computes the row's tokens; its context with them. */
static enum status run_row(const struct toy_rank *rank, const struct row *row,
                           uint64_t *context_out)
{
    const struct slot *slot = &rank->slots[row->slot];
    uint64_t context = read_context(rank, slot, row->first);

    for (int32_t at = row->first; at < row->first + row->num_tokens; at++) {
        uint64_t kv = toy_model_kv(context, slot->tokens[at], at);

        if (slot->tokens[at] == UNKNOWN_TOKEN)
            return fail(ERR_MISMATCH, "slot %d: nobody knows token %d, which is to be computed",
                        row->slot, at);
        *kv_at(rank, slot, at) = kv;
        context += toy_model_read(kv, at);
    }
    *context_out = context;
    return OK;
}

enum status toy_rank_run(struct toy_rank *rank, const uint64_t **contexts_out, int32_t *num_out)
{
    const struct toy_step *step = &rank->steps[rank->oldest_step & 1];
    int32_t num_samples = 0;

    ASSERT(toy_rank_due_step(rank) == rank->oldest_step);
    for (int32_t i = 0; i < step->num_rows; i++) {
        uint64_t context;

        TRY(run_row(rank, &step->rows[i], &context));
        if (step->rows[i].samples)
            rank->contexts[num_samples++] = context;
    }
    *contexts_out = rank->contexts;
    *num_out = num_samples;
    return OK;
}

/* The columns of the answer while it grows. */
struct columns {
    int32_t *slots, *positions, *tokens, *ranks, *logprob_counts, *logprob_tokens;
    float *logprobs;
    int32_t num_sampled, num_logprobs;
};

/* 0: none are wanted. */
static int32_t num_logprobs_of(const struct sampling_params *params)
{
    return 1 + MAX(-1, MIN(params->logprobs, MAX_LOGPROBS));
}

static int32_t count_logprobs(const struct toy_rank *rank, const struct toy_step *step)
{
    int32_t n = 0;

    for (int32_t i = 0; i < step->num_rows; i++)
        n += step->rows[i].samples ? num_logprobs_of(&rank->slots[step->rows[i].slot].params) : 0;
    return n;
}

static void add_token(struct columns *columns, int32_t slot, int32_t position, int32_t token,
                      int32_t num_logprobs)
{
    columns->slots[columns->num_sampled] = slot;
    columns->positions[columns->num_sampled] = position;
    columns->tokens[columns->num_sampled] = token;
    columns->ranks[columns->num_sampled] = num_logprobs > 0;
    columns->logprob_counts[columns->num_sampled++] = num_logprobs;
    for (int32_t i = 0; i < num_logprobs; i++) {
        columns->logprob_tokens[columns->num_logprobs] = MAX(token, 0);
        columns->logprobs[columns->num_logprobs++] = toy_model_logprob(token, i);
    }
}

void toy_rank_draw(struct toy_rank *rank, struct model_runner_output *out)
{
    const struct toy_step *step = &rank->steps[rank->oldest_step & 1];
    struct arena *arena = &rank->answer;
    size_t n = (size_t)step->num_samples * sizeof(int32_t);
    size_t num_logprobs = (size_t)count_logprobs(rank, step);

    arena_reset(arena);
    struct columns columns = {
        .slots = arena_alloc(arena, n),
        .positions = arena_alloc(arena, n),
        .tokens = arena_alloc(arena, n),
        .ranks = arena_alloc(arena, n),
        .logprob_counts = arena_alloc(arena, n),
        .logprob_tokens = arena_alloc(arena, num_logprobs * sizeof(int32_t)),
        .logprobs = arena_alloc(arena, num_logprobs * sizeof(float)),
    };

    for (int32_t i = 0; i < step->num_rows; i++) {
        const struct row *row = &step->rows[i];
        const struct slot *slot = &rank->slots[row->slot];
        int32_t position = row->first + row->num_tokens;
        struct toy_row drawn = {.context = rank->contexts[columns.num_sampled],
                                .position = position,
                                .num_output = position - slot->num_prompt,
                                .params = &slot->params,
                                .bitmask = row->bitmask};

        if (!row->samples)
            continue;
        add_token(&columns, row->slot, position, toy_model_sample(&drawn, rank->limits.vocab_size),
                  num_logprobs_of(&slot->params));
    }
    *out = (struct model_runner_output){
        .num_rows = step->num_rows,
        .slots = columns.slots,
        .positions = columns.positions,
        .num_sampled = columns.num_sampled,
        .sampled_token_ids = columns.tokens,
        .logprob_counts = columns.logprob_counts,
        .sampled_token_ranks = columns.ranks,
        .logprob_token_ids = columns.logprob_tokens,
        .num_logprobs = columns.num_logprobs,
        .logprobs = columns.logprobs,
    };
}

/* Does the mask of this rank's slice allow what was drawn? Masks that differ between ranks do not.
 */
static enum status check_drawn(const struct toy_rank *rank, const struct row *row, int32_t token)
{
    int32_t first_token, num_tokens;

    toy_rank_slice(&rank->limits, &first_token, &num_tokens);
    if (!row->bitmask || token < first_token || token >= first_token + num_tokens)
        return OK;
    token -= first_token / 32 * 32;
    if (!(row->bitmask[token / 32] >> (token % 32) & 1))
        return fail(ERR_INTERNAL, "slot %d was given a token that its mask does not allow", row->slot);
    return OK;
}

enum status toy_rank_take_tokens(struct toy_rank *rank, const struct model_runner_output *drawn)
{
    struct toy_step *step = &rank->steps[rank->oldest_step & 1];
    int32_t num_taken = 0;

    for (int32_t i = 0; i < step->num_rows; i++) {
        const struct row *row = &step->rows[i];
        int32_t position = row->first + row->num_tokens;

        if (!row->samples)
            continue;
        TRY(check_drawn(rank, row, drawn->sampled_token_ids[num_taken]));
        /* The last token that fits is sampled, and never computed. */
        if (position < rank->limits.max_model_len)
            rank->slots[row->slot].tokens[position] = drawn->sampled_token_ids[num_taken];
        num_taken++;
    }
    step->phase = EMPTY;
    rank->oldest_step++;
    return OK;
}
