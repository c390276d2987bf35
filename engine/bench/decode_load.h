/*
 * decode_load: the real scheduler in the middle of its work, and workers that are made up.
 *
 * Every request runs and has computed its prompt of some 512 tokens, no two alike; each step computes one
 * token of each. Their lengths are staggered, so that in each step one of 16 opens a KV block.
 * Prefix caching is on.
 *
 * Thread: that of the owner.
 */
#ifndef ENGINE_BENCH_DECODE_LOAD_H
#define ENGINE_BENCH_DECODE_LOAD_H

#include "engine/core/output_builder.h"
#include "engine/core/scheduler.h"

/* One step on its way. */
struct decode_step {
    int64_t id;
    struct arena arena; /* the plan's and the answer's */
    struct scheduler_output plan;
    struct model_runner_output answer;
};

struct decode_load {
    struct scheduler *scheduler;
    struct decode_step steps[2]; /* by id & 1 */
    int64_t next_step;
    int64_t num_tokens; /* made up so far */
    struct output_builder events;
};

/* The requests go on for num_steps steps. */
MUST_USE enum status decode_load_open(int32_t num_running, int32_t num_steps,
                                      struct decode_load *out);
void decode_load_close(struct decode_load *load);

/* The next step, for scheduler_schedule; the one before the last must be back. */
struct decode_step *decode_load_begin(struct decode_load *load);
/* Fills in the answer to its plan. */
void decode_load_answer(struct decode_load *load, struct decode_step *step);
/* Throws away what the requests got. */
void decode_load_drop_events(struct decode_load *load);

/* What workers without a model would answer: each row that samples gets the next number. */
void make_up_answer(const struct scheduler_output *plan, struct arena *arena, int64_t *num_tokens,
                    struct model_runner_output *out);

/* A prompt like no other, for `seed` below MADE_UP_VOCAB. */
enum { MADE_UP_VOCAB = 32000, LOAD_BLOCK_SIZE = 16 };
void make_up_prompt(int32_t seed, int32_t num_tokens, token_id *out);

#endif
