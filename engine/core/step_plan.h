/*
 * step_plan: the plan of a step while it grows, row by row.
 *
 * A row takes its tokens out of the budgets, and gives them back if it is taken out again. Which requests get how many is
 * the scheduler's business, and so are the budgets for tokens, which it sets before the first row.
 *
 * Thread: core only.
 */
#ifndef ENGINE_CORE_STEP_PLAN_H
#define ENGINE_CORE_STEP_PLAN_H

#include "engine/core/request.h"
#include "proto/wire/messages.h"

struct step_plan {
    struct request **rows;  /* this and all columns: [num_rows], room for max_rows, in the arena */
    int32_t *num_computed;  /* tokens before this step */
    int32_t *num_scheduled; /* tokens */
    int32_t *num_new_blocks;
    bool *is_new;
    bool *decodes; /* the token that the last step drew, and nothing else */
    int32_t num_rows;
    int32_t num_decoding;
    int32_t budget;         /* tokens left */
    int32_t prompt_budget;  /* of them for rows that do not decode; -1: not asked for yet */
    int64_t logprob_budget; /* of prompts */
    int32_t vocab_size;     /* and so many logprobs a token has at most */
};

/* No rows, no budgets for tokens. */
void step_plan_init(struct step_plan *plan, int32_t max_rows, int32_t vocab_size,
                    struct arena *arena);

/* Is there room for the logprobs that so many tokens of the request's prompt bring, at most? */
bool step_plan_has_room_for_scores(const struct step_plan *plan, const struct request *request,
                                   int32_t num_tokens);

/* So many tokens of the request are computed. num_new_blocks: at the end of its block table, those that workers do not
 * know. is_new: they do not know the request. */
void step_plan_add(struct step_plan *plan, struct request *request, int32_t num_tokens,
                   int32_t num_new_blocks, bool is_new);
/* Takes a request's row back out of the plan, if it has one. What the request has computed is for the caller to set. */
void step_plan_remove(struct step_plan *plan, const struct request *request);

/*
 * The plan as it goes over the wire, but for the slots that have finished. A request that comes back from preemption is
 * described anew, like one the workers have never seen. From now on the step is in flight: its requests count it, and the
 * tokens that it will sample. Pointers live in the arena, or in the requests.
 */
void step_plan_write(const struct step_plan *plan, struct arena *arena,
                     struct scheduler_output *out);

#endif
