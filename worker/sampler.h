/*
 * sampler: rows of logits to tokens, on ranks that each hold a slice of the vocabulary.
 *
 * Stages in vLLM's order (V1 sampler): raw logprobs are of the logits as the model gave them; the
 * edits of logit_edits.h; a temperature below 1e-5 takes the arg max; else temperature, min_p,
 * top_k, top_p, and a draw: the arg max of logit / temperature + Gumbel noise (slice.h) over the
 * tokens that are left.
 *
 * No rank sees another's logits. Each passes over its own and tells the others what it found, which
 * is small; then all know the same, and end with the same token. One exchange serves all rows of a
 * step:
 *
 *   1  best      greedy and plain temperature: a token each, done. min_p or top_p without top_k:
 * the max. 2  sums      top_p without top_k: the weight of all tokens. min_p alone: a token each,
 * done. 3  first     top_k, top_p: each rank's first in order, MAX_CANDIDATES at most. Where the
 * last token that is kept is among them, all ranks draw from them. Done. 4  rounds    else (a flat
 * distribution, a top_k over MAX_CANDIDATES, many equals): the logit at which the cut lies is found
 * 8 bits of it at a time, by counts and weights of 256 bins, four exchanges for top_k and four for
 * top_p; one tells who holds how many of its equals, and in the last each rank tells the token that
 * it drew from what it keeps.
 *
 * A stage that no row needs is passed over. Logprobs take two more: the max, and the logit of the
 * token that was drawn; then sums, how many are likelier, and each rank's first k.
 *
 * Counts and weights are whole numbers, so nothing depends on who adds up what: the tokens have the
 * same bits for any number of ranks and any batch, and by rounds as without.
 *
 * What a rank looks for in its slice of a row is looked for by the threads of its device, several rows at a
 * time; the rest is little.
 *
 * A step allocates nothing, unless more logprobs are wanted than ever before.
 *
 * Thread: the device thread.
 */
#ifndef WORKER_SAMPLER_H
#define WORKER_SAMPLER_H

#include "kernels/kernels.h"
#include "worker/logit_edits.h"
#include "worker/work_count.h"

struct sampler;

struct sampler_options {
    int32_t vocab_size;
    int32_t first_token, num_tokens; /* this rank's slice; ranks' slices are in order of ranks */
    int32_t max_rows;
    int32_t rank, world;
    struct comm *comm; /* borrowed; NULL when alone */
    struct device *device; /* borrowed; NULL: the caller's thread does all */
    struct work_count *work; /* borrowed; adds for each stage, before its exchange; may be NULL */
};

struct sampler *sampler_new(const struct sampler_options *options);
void sampler_free(struct sampler *sampler); /* NULL is fine */
DEFINE_AUTO_FREE(sampler)

struct sampler_result {
    int32_t token; /* -1: no token is possible (all masked, or the logits are not numbers) */
    float logprob; /* raw, of token; these three only when params->logprobs >= 0 */
    int32_t rank;  /* 1 + tokens that were more likely */
    int32_t num_top;
    const int32_t *top_tokens; /* [num_top] most likely first; valid until the next run */
    const float *top_logprobs;
};

/* Writes the token and its likeliest rivals, as an answer has them; returns how many entries those are. */
int32_t sampler_result_write(const struct sampler_result *result, int32_t *tokens_out,
                             float *logprobs_out);

/* logits: [num_rows, num_tokens]; results: [num_rows]. Every rank calls this with the same rows,
 * each with its own logits and bitmasks. ERR_ABORTED when a peer is gone. */
MUST_USE enum status sampler_run(struct sampler *sampler, const float *logits,
                                 const struct sampler_row *rows, int32_t num_rows,
                                 struct sampler_result *results);

/* A token whose logprob is wanted though it was not drawn: of a prompt. */
struct logprob_query {
    int32_t token;
    int32_t num_top; /* likeliest tokens beside it; LOGPROBS_ALL */
};

/* Fills in all of results[i] for queries[i] and row i of the logits, whose raw logprobs these are.
 * As for sampler_run, all ranks call this alike. */
MUST_USE enum status sampler_logprobs(struct sampler *sampler, const float *logits,
                                      const struct logprob_query *queries, int32_t num_rows,
                                      struct sampler_result *results);

/* ---- for tests ------------------------------------------------------------------------------ */

/* The distribution that row i of the last run was drawn from: each token's logit / temperature,
 * -inf where it was dropped. out: [num_tokens], this rank's slice. The run's logits and rows are
 * still there. */
void sampler_kept(struct sampler *sampler, int32_t i, float *out);
/* Stage 3 takes so many candidates at most, so that stage 4 can be had from a small vocabulary. */
void sampler_limit_candidates(struct sampler *sampler, int32_t max_candidates);

#endif
