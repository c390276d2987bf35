/*
 * token_logprobs: what is known of one token's likelihood, on its way from the ranks to the clients.
 *
 * Thread: any; the arena is the caller's.
 */
#ifndef ENGINE_TOKEN_LOGPROBS_H
#define ENGINE_TOKEN_LOGPROBS_H

#include "engine/engine.h"

/* From the columns of an answer, `count` entries long: the token itself, then its likeliest rivals, which go
 * to the arena. */
struct token_logprobs token_logprobs_read(int32_t rank, int32_t count, const int32_t *tokens,
                                          const float *logprobs, struct arena *arena);
/* With rivals of its own, in the arena. */
struct token_logprobs token_logprobs_copy(const struct token_logprobs *from, struct arena *arena);

#endif
