#include "engine/token_logprobs.h"

#include <string.h>

struct token_logprobs token_logprobs_read(int32_t rank, int32_t count, const int32_t *tokens,
                                          const float *logprobs, struct arena *arena)
{
    int32_t num_top = count - 1;
    struct top_logprob *top = arena_alloc(arena, sizeof *top * (size_t)num_top);

    for (int32_t i = 0; i < num_top; i++)
        top[i] = (struct top_logprob){.token = tokens[1 + i], .logprob = logprobs[1 + i]};
    return (struct token_logprobs){
        .logprob = logprobs[0], .rank = rank, .num_top = num_top, .top = top};
}

struct token_logprobs token_logprobs_copy(const struct token_logprobs *from, struct arena *arena)
{
    size_t bytes = sizeof *from->top * (size_t)from->num_top;
    struct token_logprobs copy = *from;
    struct top_logprob *top = arena_alloc(arena, bytes);

    if (bytes > 0)
        memcpy(top, from->top, bytes);
    copy.top = top;
    return copy;
}
