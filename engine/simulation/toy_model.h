/*
 * toy_model: a model whose KV is one number a token, in which everything that came before takes
 * part.
 *
 * The KV of a position is made of the sum of all KV before it, as it is read at that moment, its
 * token and the position. So a block that is lost, shared wrongly, stale or not yet computed, and a
 * token out of its place, change every token that is sampled from then on.
 */
#ifndef ENGINE_SIMULATION_TOY_MODEL_H
#define ENGINE_SIMULATION_TOY_MODEL_H

#include "proto/wire/sampling_params.h"

/* context: the sum of what is read at all positions before. */
uint64_t toy_model_kv(uint64_t context, int32_t token, int32_t position);

/* What the KV of a position adds to a context: it counts where it stands. */
static inline uint64_t toy_model_read(uint64_t kv, int32_t position)
{
    return kv * (2 * (uint64_t)position + 1);
}

struct toy_row {
    uint64_t context; /* of all tokens before it */
    int32_t position; /* of the token that is drawn */
    int32_t num_output;
    const struct sampling_params *params;
    const uint32_t *bitmask; /* NULL: any token may come */
};

/* The token that is drawn; -1: none may come. */
int32_t toy_model_sample(const struct toy_row *row, int32_t vocab_size);

/* Logprob `i` of a token that was drawn with so many: 0 is its own, the others are the likeliest.
 */
float toy_model_logprob(int32_t token, int32_t i);

#endif
