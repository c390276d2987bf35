#include "engine/core/prompt_scores.h"

#include <string.h>

struct prompt_scores *prompt_scores_new(int32_t num_prompt)
{
    struct prompt_scores *scores = mem_new(struct prompt_scores);

    ASSERT(num_prompt > 0);
    scores->num_wanted = num_prompt - 1;
    scores->tokens = mem_new_array(struct token_logprobs, (size_t)scores->num_wanted);
    return scores;
}

void prompt_scores_free(struct prompt_scores *scores)
{
    if (!scores)
        return;
    arena_close(&scores->arena);
    mem_free(scores->tokens);
    mem_free(scores);
}

/* The token whose entries begin at `first`. */
static void take_token(struct prompt_scores *scores, const struct model_runner_output *output,
                       int32_t token, int32_t first)
{
    int32_t num_top = output->prompt_logprob_counts[token] - 1;
    struct top_logprob *top = arena_alloc(&scores->arena, sizeof *top * (size_t)num_top);

    for (int32_t i = 0; i < num_top; i++)
        top[i] = (struct top_logprob){.token = output->prompt_logprob_token_ids[first + 1 + i],
                                      .logprob = output->prompt_logprobs[first + 1 + i]};
    scores->tokens[scores->num_told++] = (struct token_logprobs){
        .logprob = output->prompt_logprobs[first],
        .rank = output->prompt_ranks[token],
        .num_top = num_top,
        .top = top,
    };
}

void prompt_scores_take(struct prompt_scores *scores, const struct model_runner_output *output,
                        struct prompt_place *place)
{
    int32_t position = output->prompt_positions[place->run];
    int32_t length = output->prompt_lengths[place->run++];

    ASSERT(!scores || position <= scores->num_told + 1, "prompt token %d comes behind token %d",
           position, scores->num_told);
    for (int32_t i = 0; i < length; i++) {
        if (scores && position + i == scores->num_told + 1)
            take_token(scores, output, place->token, place->logprob);
        place->logprob += output->prompt_logprob_counts[place->token++];
    }
}

const struct token_logprobs *prompt_scores_copy(const struct prompt_scores *scores,
                                                struct arena *arena)
{
    size_t bytes = sizeof(struct token_logprobs) * (size_t)scores->num_wanted;
    struct token_logprobs *copy = arena_alloc(arena, bytes);

    ASSERT(prompt_scores_are_complete(scores), "%d of %d prompt tokens have logprobs",
           scores->num_told, scores->num_wanted);
    if (bytes > 0)
        memcpy(copy, scores->tokens, bytes);
    for (int32_t i = 0; i < scores->num_wanted; i++) {
        size_t top_bytes = sizeof *copy[i].top * (size_t)copy[i].num_top;
        struct top_logprob *top = arena_alloc(arena, top_bytes);

        if (top_bytes > 0)
            memcpy(top, scores->tokens[i].top, top_bytes);
        copy[i].top = top;
    }
    return copy;
}
