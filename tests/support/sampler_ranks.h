/*
 * sampler_ranks: samples rows on ranks that are threads of this process, each with a slice of the
 * vocabulary, and sees to it that all end with the same.
 *
 * Thread: the test's.
 */
#ifndef TESTS_SUPPORT_SAMPLER_RANKS_H
#define TESTS_SUPPORT_SAMPLER_RANKS_H

#include "worker/sampler.h"

struct sampler_ranks;

/* cuts: [world + 1] where slices begin, 0 and vocab_size included. max_candidates: see
 * sampler_limit_candidates; 0: as they are. */
struct sampler_ranks *sampler_ranks_new(int32_t world, const int32_t *cuts, int32_t max_rows,
                                        int32_t max_candidates);
void sampler_ranks_free(struct sampler_ranks *ranks); /* NULL is fine */
DEFINE_AUTO_FREE(sampler_ranks)

/*
 * logits: [num_rows, vocab_size]; bitmasks of rows are of the whole vocabulary. results: rank 0's,
 * valid until the next run; it is asserted that the others' are the same. kept: NULL, or [num_rows,
 * vocab_size], see sampler_kept.
 */
void sampler_ranks_run(struct sampler_ranks *ranks, const float *logits,
                       const struct sampler_row *rows, int32_t num_rows,
                       struct sampler_result *results, float *kept);
/* The same for sampler_logprobs. */
void sampler_ranks_logprobs(struct sampler_ranks *ranks, const float *logits,
                            const struct logprob_query *queries, int32_t num_rows,
                            struct sampler_result *results);

#endif
