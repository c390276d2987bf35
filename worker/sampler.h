/*
 * sampler: one row of logits to one token.
 *
 * Stages in vLLM's order (V1 sampler): raw logprobs are taken from the logits as the model gave
 * them; then grammar bitmask, min_tokens, logit_bias, penalties; a temperature below 1e-5 takes
 * the arg max; else temperature, min_p, top_k, top_p, and a draw.
 *
 * The draw is the arg max of logit / temperature + Gumbel noise over the tokens that are left. The noise
 * of a token is a function of (seed, position, token) alone (philox.h), so the draw does not
 * depend on the batch, and a slice of the vocabulary can be drawn from by itself.
 *
 * Sums and exponentials are in double, in order of token ids: the same bits everywhere.
 *
 * Thread: the device thread.
 */
#ifndef WORKER_SAMPLER_H
#define WORKER_SAMPLER_H

#include "proto/base/memory.h"
#include "proto/wire/sampling_params.h"

#include <stdint.h>

struct sampler;

struct sampler *sampler_new(int32_t vocab_size);
void sampler_free(struct sampler *sampler); /* NULL is fine */
DEFINE_AUTO_FREE(sampler)

struct sampler_row {
    const struct sampling_params *params;
    const int32_t *prompt;
    int32_t num_prompt;
    const int32_t *output; /* generated so far */
    int32_t num_output;
    int64_t position;        /* of the token that is drawn: counts prompt and output */
    const uint32_t *bitmask; /* bit t % 32 of word t / 32 set: token t is allowed; NULL: all are */
};

struct sampler_result {
    int32_t token;        /* -1: no token is possible (all masked, or the logits are not numbers) */
    float logprob;        /* raw, of token; these three only when params->logprobs >= 0 */
    int32_t rank;         /* 1 + tokens that were more likely */
    int32_t num_top;
    const int32_t *top_tokens; /* [num_top] most likely first; valid until the next run */
    const float *top_logprobs;
};

/* Edits logits: [vocab_size] in place. */
void sampler_run(struct sampler *sampler, float *logits, const struct sampler_row *row,
                 struct sampler_result *out);

/* ---- the stages, for tests -------------------------------------------------------------------- */

struct candidate {
    int32_t token;
    float logit;
};

/* Everything up to the penalties. */
void sampler_edit_logits(struct sampler *sampler, float *logits, const struct sampler_row *row);
/* -1 when no logit is a number above -inf. The lowest id wins a tie. */
int32_t sampler_argmax(const float *logits, int32_t n);
/* The tokens that temperature, min_p, top_k and top_p leave, with logits divided by temperature.
 * The array belongs to the sampler until the next call. */
const struct candidate *sampler_keep(struct sampler *sampler, const float *logits,
                                     const struct sampling_params *params, int32_t *num_out);

#endif
