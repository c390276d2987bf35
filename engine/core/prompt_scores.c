#include "engine/core/prompt_scores.h"

#include "engine/token_logprobs.h"

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
    scores->tokens[scores->num_told++] = token_logprobs_read(
        output->prompt_ranks[token], output->prompt_logprob_counts[token],
        output->prompt_logprob_token_ids + first, output->prompt_logprobs + first, &scores->arena);
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
    struct token_logprobs *copy = arena_alloc(arena, sizeof *copy * (size_t)scores->num_wanted);

    ASSERT(prompt_scores_are_complete(scores), "%d of %d prompt tokens have logprobs",
           scores->num_told, scores->num_wanted);
    for (int32_t i = 0; i < scores->num_wanted; i++)
        copy[i] = token_logprobs_copy(&scores->tokens[i], arena);
    return copy;
}
