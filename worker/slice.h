/*
 * slice: passes over one row's logits on one rank: those of its slice of the vocabulary.
 *
 * What a pass finds does not depend on where the slices begin, and what several ranks find can be
 * put together exactly: the best of bests, the sum of sums. Sums are of whole numbers: a token
 * whose logit is x weighs exp(x - max) in units of 2^-grid_bits, rounded. The arithmetic of single
 * tokens is in proto/base/sampling_law.h.
 *
 * Order of tokens: the larger logit first, the lower id of two equals. Logits that are -inf or not
 * a number belong to tokens that can't come.
 *
 * Thread: any (no state).
 */
#ifndef WORKER_SLICE_H
#define WORKER_SLICE_H

#include "proto/base/sampling_law.h"

struct slice {
    const float *logits; /* [num_tokens] */
    int32_t first_token, num_tokens;
    float temperature; /* divides the logits wherever they are spoken of below; 1: they are as they
                          are */
};

struct candidate {
    float logit;
    int32_t token; /* -1: none */
};

static inline bool candidate_comes_before(struct candidate a, struct candidate b)
{
    return a.logit != b.logit ? a.logit > b.logit : a.token < b.token;
}

/* How far down the order tokens are kept: to this one, itself included. */
#define KEEP_ALL ((struct candidate){-__builtin_inff(), INT32_MAX})
/* To the last of those that have this logit or a larger one. */
static inline struct candidate keep_from(float logit)
{
    return (struct candidate){logit, INT32_MAX};
}
static inline bool is_kept(struct candidate c, struct candidate cut)
{
    return !candidate_comes_before(cut, c);
}

/* The first in order; token -1: none can come. */
struct candidate slice_best(const struct slice *slice);

/* The k first in order, in no order, or all there are if fewer: how many. out: [num_tokens] at
 * least; the rest of it is scratch, and so is blocks: [slice_num_blocks]. Tokens before `cut` only.
 */
int32_t slice_top(const struct slice *slice, struct candidate cut, int32_t k, struct candidate *out,
                  struct candidate *blocks);
int32_t slice_num_blocks(int32_t first_token, int32_t num_tokens);
/* Moves the k first in order of n to the front, k <= n. */
void candidates_select(struct candidate *candidates, int32_t n, int32_t k);
/* First in order at [0]. */
void candidates_heapify(struct candidate *heap, int32_t n);
/* Moves the first of a heap of n behind it, to heap[n - 1]: popping again and again sorts the array
 * from its end. */
struct candidate candidates_pop(struct candidate *heap, int32_t n);

/* ---- weights -------------------------------------------------------------------------------- */

/* Of the tokens whose logit is `least` or larger. */
uint64_t slice_sum(const struct slice *slice, float least, float max, int32_t grid_bits);
/* Tokens with a larger logit. */
int32_t slice_count_above(const struct slice *slice, float logit);

enum { NUM_BINS = 256 };

struct bin {
    uint64_t weight;
    int64_t count;
};

/* bins: [NUM_BINS] += the tokens whose logit is `least` or larger and whose key begins as `prefix`
 * does, above its lowest `shift` + 8 bits, by their next 8 bits. shift: 24, 16, 8, 0. */
void slice_count_bins(const struct slice *slice, float least, uint32_t prefix, int32_t shift,
                      float max, int32_t grid_bits, struct bin *bins);
/* The count-th token from the front, by id, whose logit is this; -1: count is 0. There are so many.
 */
int32_t slice_nth_equal(const struct slice *slice, float logit, int32_t count);

/* ---- the draw ------------------------------------------------------------------------------- */

struct drawn {
    double value;  /* logit + noise; what is drawn is what has the most */
    int32_t token; /* -1: none */
};

static inline bool drawn_is_better(struct drawn a, struct drawn b)
{
    return b.token < 0
               ? a.token >= 0
               : a.token >= 0 && (a.value != b.value ? a.value > b.value : a.token < b.token);
}

/*
 * Among the tokens that are kept. The noise is Gumbel's, of (seed, position, token) alone, so that
 * the arg max over the vocabulary follows the softmax of its logits.
 */
struct drawn slice_draw(const struct slice *slice, struct candidate cut, uint64_t seed,
                        int64_t position);
struct drawn candidates_draw(const struct candidate *candidates, int32_t n, uint64_t seed,
                             int64_t position);

#endif
