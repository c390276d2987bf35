/*
 * logit_edits: what a request's parameters do to its logits before temperature and the rest, in
 * vLLM's order: grammar bitmask, allowed_token_ids, bad_words, min_tokens, logit_bias, penalties.
 *
 * The logits of a rank's slice of the vocabulary; ids outside of it are some other rank's.
 *
 * Thread: the device thread.
 */
#ifndef WORKER_LOGIT_EDITS_H
#define WORKER_LOGIT_EDITS_H

#include "proto/base/memory.h"
#include "proto/wire/sampling_params.h"

struct sampler_row {
    const struct sampling_params *params;
    const int32_t *prompt;
    int32_t num_prompt;
    const int32_t *output; /* generated so far */
    int32_t num_output;
    int64_t position; /* of the token that is drawn: counts prompt and output */
    /*
     * Bit t % 32 of word t / 32 - first_token / 32 set: token t is allowed; NULL: all are. It has
     * the stop tokens right: min_tokens is not applied to a row that has one, since a grammar that
     * has come to its end may allow nothing else, and the engine knows.
     */
    const uint32_t *bitmask;
};

struct logit_edits;

/* Would anything be changed but by the bitmask? The tokens of the row need not be known. */
bool logit_edits_are_more_than_a_mask(const struct sampler_row *row);

struct logit_edits *logit_edits_new(int32_t first_token, int32_t num_tokens);
void logit_edits_free(struct logit_edits *edits); /* NULL is fine */
DEFINE_AUTO_FREE(logit_edits)

/* logits: [num_tokens], which stay as they are. Returns them, where the row changes nothing, or a
 * copy with the changes, which is valid until the next call. */
const float *logit_edits_apply(struct logit_edits *edits, const float *logits,
                               const struct sampler_row *row);

#endif
