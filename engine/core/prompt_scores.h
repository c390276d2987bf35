/*
 * prompt_scores: the logprobs of one request's prompt, gathered while it is computed in chunks.
 *
 * They come in order. A request that was preempted is computed again from its first token, so what has
 * been told comes a second time, with the same bits, and is passed over.
 *
 * Thread: core only.
 */
#ifndef ENGINE_CORE_PROMPT_SCORES_H
#define ENGINE_CORE_PROMPT_SCORES_H

#include "engine/engine.h"
#include "proto/wire/messages.h"

struct prompt_scores {
    int32_t num_wanted; /* the prompt's tokens but the first, which nothing foretells */
    int32_t num_told;
    struct token_logprobs *tokens; /* [num_wanted] those told */
    struct arena arena;            /* their tops */
};

struct prompt_scores *prompt_scores_new(int32_t num_prompt);
void prompt_scores_free(struct prompt_scores *scores); /* NULL is fine */
DEFINE_AUTO_FREE(prompt_scores)

static inline bool prompt_scores_are_complete(const struct prompt_scores *scores)
{
    return scores->num_told == scores->num_wanted;
}

/* Where the next run begins in the columns of an answer. */
struct prompt_place {
    int32_t run, token, logprob;
};

/* Moves on behind the run. scores: who wants it; NULL: nobody. The answer has been checked. */
void prompt_scores_take(struct prompt_scores *scores, const struct model_runner_output *output,
                        struct prompt_place *place);

/* All of them, when they are complete, in another arena. */
const struct token_logprobs *prompt_scores_copy(const struct prompt_scores *scores,
                                                struct arena *arena);

#endif
