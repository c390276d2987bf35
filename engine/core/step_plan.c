#include "engine/core/step_plan.h"

#include "engine/grammar/grammar.h"

#include <string.h>

void step_plan_init(struct step_plan *plan, int32_t max_rows, int32_t vocab_size,
                    struct arena *arena)
{
    size_t n = (size_t)max_rows;

    *plan = (struct step_plan){
        .rows = arena_alloc(arena, n * sizeof *plan->rows),
        .num_computed = arena_alloc(arena, n * sizeof *plan->num_computed),
        .num_scheduled = arena_alloc(arena, n * sizeof *plan->num_scheduled),
        .num_new_blocks = arena_alloc(arena, n * sizeof *plan->num_new_blocks),
        .is_new = arena_alloc(arena, n * sizeof *plan->is_new),
        .decodes = arena_alloc(arena, n * sizeof *plan->decodes),
        .logprob_budget = MAX_PROMPT_LOGPROBS,
        .vocab_size = vocab_size,
    };
}

/* Logprobs that so many tokens of the request bring, at most. */
static int64_t count_scores(const struct step_plan *plan, const struct request *request,
                            int32_t num_tokens)
{
    int64_t each = 1 + (int64_t)MIN(request->params.prompt_logprobs, plan->vocab_size);

    return request_wants_scores(request) ? MIN(num_tokens, request->num_prompt) * each : 0;
}

bool step_plan_has_room_for_scores(const struct step_plan *plan, const struct request *request,
                                   int32_t num_tokens)
{
    return count_scores(plan, request, num_tokens) <= plan->logprob_budget;
}

void step_plan_add(struct step_plan *plan, struct request *request, int32_t num_tokens,
                   int32_t num_new_blocks, bool is_new)
{
    bool is_decoding = !is_new && request_decodes(request);

    plan->rows[plan->num_rows] = request;
    plan->num_computed[plan->num_rows] = request->num_computed;
    plan->num_scheduled[plan->num_rows] = num_tokens;
    plan->num_new_blocks[plan->num_rows] = num_new_blocks;
    plan->is_new[plan->num_rows] = is_new;
    plan->decodes[plan->num_rows] = is_decoding;
    plan->num_rows++;
    plan->num_decoding += is_decoding;
    plan->budget -= num_tokens;
    if (!is_decoding)
        plan->prompt_budget -= num_tokens;
    plan->logprob_budget -= count_scores(plan, request, num_tokens);
    request->num_computed += num_tokens;
}

#define REMOVE_ITEM(array, at, count)                                                              \
    memmove((array) + (at), (array) + (at) + 1, sizeof *(array) * (size_t)((count) - (at) - 1))

void step_plan_remove(struct step_plan *plan, const struct request *request)
{
    for (int32_t row = plan->num_rows; row-- > 0;)
        if (plan->rows[row] == request) {
            plan->budget += plan->num_scheduled[row];
            plan->num_decoding -= plan->decodes[row];
            if (!plan->decodes[row])
                plan->prompt_budget += plan->num_scheduled[row];
            plan->logprob_budget += count_scores(plan, request, plan->num_scheduled[row]);
            REMOVE_ITEM(plan->rows, row, plan->num_rows);
            REMOVE_ITEM(plan->num_computed, row, plan->num_rows);
            REMOVE_ITEM(plan->num_scheduled, row, plan->num_rows);
            REMOVE_ITEM(plan->num_new_blocks, row, plan->num_rows);
            REMOVE_ITEM(plan->is_new, row, plan->num_rows);
            REMOVE_ITEM(plan->decodes, row, plan->num_rows);
            plan->num_rows--;
            return;
        }
}

/* Rows of prompts whose logprobs are wanted, as far as they have not been told. */
static void write_prompt_rows(const struct step_plan *plan, struct arena *arena,
                              struct scheduler_output *out)
{
    int32_t most = 0, n = 0;

    for (int32_t row = 0; row < plan->num_rows; row++)
        most += request_wants_scores(plan->rows[row]);

    int32_t *rows = arena_new_array(arena, int32_t, (size_t)most);
    int32_t *lengths = arena_new_array(arena, int32_t, (size_t)most);

    for (int32_t row = 0; row < plan->num_rows && most > 0; row++) {
        const struct request *request = plan->rows[row];
        int32_t first = plan->num_computed[row];
        int32_t end = MIN(first + plan->num_scheduled[row], request->num_prompt - 1);

        if (!request_wants_scores(request) || end <= MAX(first, request->prompt_scores->num_told))
            continue;
        rows[n] = row;
        lengths[n++] = end - first;
    }
    out->prompt_logprob_rows = rows;
    out->num_prompt_logprob_rows = n;
    out->prompt_logprob_lengths = lengths;
}

void step_plan_write(const struct step_plan *plan, struct arena *arena,
                     struct scheduler_output *out)
{
    int32_t n = plan->num_rows, num_block_ids = 0, num_new = 0;

    for (int32_t row = 0; row < n; row++) {
        num_new += plan->is_new[row];
        num_block_ids += plan->is_new[row] ? 0 : plan->num_new_blocks[row];
    }

    int32_t *slots = arena_new_array(arena, int32_t, (size_t)n);
    int32_t *block_counts = arena_new_array(arena, int32_t, (size_t)n);
    int32_t *block_ids = arena_new_array(arena, int32_t, (size_t)num_block_ids);
    uint8_t *samples = arena_new_array(arena, uint8_t, (size_t)n);
    uint8_t *needs_bitmask = arena_new_array(arena, uint8_t, (size_t)n);
    struct new_request *new_requests = arena_new_array(arena, struct new_request, (size_t)num_new);

    *out = (struct scheduler_output){
        .new_requests = new_requests,
        .num_new_requests = num_new,
        .num_rows = n,
        .slots = slots,
        .num_computed_tokens = plan->num_computed,
        .num_scheduled_tokens = plan->num_scheduled,
        .samples = samples,
        .needs_bitmask = needs_bitmask,
        .new_block_counts = block_counts,
        .new_block_ids = block_ids,
        .num_new_block_ids = num_block_ids,
    };
    write_prompt_rows(plan, arena, out);

    for (int32_t row = 0; row < n; row++) {
        struct request *request = plan->rows[row];

        slots[row] = request->slot;
        if (plan->is_new[row]) {
            *new_requests++ = request_describe(request);
        } else {
            int32_t count = plan->num_new_blocks[row];

            block_counts[row] = count;
            memcpy(block_ids, request->blocks + request->num_blocks - count,
                   (size_t)count * sizeof *block_ids);
            block_ids += count;
        }
        request->num_in_flight++;
        samples[row] = request->num_computed == request_num_expected(request);
        needs_bitmask[row] = samples[row] && request->grammar;
        if (plan->is_new[row] && request->grammar)
            grammar_begin_mask(request->grammar); /* beside the forward pass of its prompt */
        request->num_placeholders += samples[row];
        out->total_num_scheduled_tokens += plan->num_scheduled[row];
    }
}
