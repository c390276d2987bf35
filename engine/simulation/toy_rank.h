/*
 * toy_rank: a rank that computes the toy model, and believes nothing.
 *
 * It knows its requests by what came over the wire alone, and refuses a message that does not fit
 * what it knows, as real ranks do: ERR_MISMATCH says what differs. Beyond them it watches that two
 * rows of a step never write the same KV block.
 *
 * Steps come as on a real rank: prepared, told to execute, told to sample; two at a time.
 *
 * Thread: that of the simulation.
 */
#ifndef ENGINE_SIMULATION_TOY_RANK_H
#define ENGINE_SIMULATION_TOY_RANK_H

#include "proto/wire/messages.h"

struct toy_rank;

struct toy_rank_limits {
    int32_t rank;
    int32_t max_num_seqs, max_num_batched_tokens, max_model_len;
    int32_t vocab_size, block_size;
};

struct toy_rank *toy_rank_new(const struct toy_rank_limits *limits);
void toy_rank_free(struct toy_rank *rank); /* NULL is fine */
DEFINE_AUTO_FREE(toy_rank)

/* The tokens whose masks it wants: rank 0, which draws, all; the others a part each, to check what
 * was drawn. */
void toy_rank_slice(const struct toy_rank_limits *limits, int32_t *first_token_out,
                    int32_t *num_tokens_out);

/* Once, before the first step. */
MUST_USE enum status toy_rank_initialize_kv_cache(struct toy_rank *rank, int32_t num_blocks);

MUST_USE enum status toy_rank_prepare_inputs(struct toy_rank *rank, int64_t step,
                                             const struct scheduler_output *plan);
MUST_USE enum status toy_rank_execute_model(struct toy_rank *rank, int64_t step);
MUST_USE enum status toy_rank_sample(struct toy_rank *rank, int64_t step,
                                     const struct grammar_output *grammar);

/* The oldest step that was told all, or -1. */
int64_t toy_rank_due_step(const struct toy_rank *rank);

/* Runs that step up to its contexts, one a row that samples: they must be the same on every rank.
 */
MUST_USE enum status toy_rank_run(struct toy_rank *rank, const uint64_t **contexts_out,
                                  int32_t *num_out);
/* Rank 0: draws a token for each, and fills in the answer, which lives until the next. */
void toy_rank_draw(struct toy_rank *rank, struct model_runner_output *out);
/* Every rank: these were drawn, in order of the rows that sample. The step is over. */
MUST_USE enum status toy_rank_take_tokens(struct toy_rank *rank, const struct model_runner_output *drawn);

#endif
