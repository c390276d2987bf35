/*
 * scheduler_bench: the scheduler against a rank that is real but for its arithmetic.
 *
 * Every plan is staged by the worker's own input_batch, the KV cache holds token ids, and a sampled
 * token is a hash of what the request's block table leads to. So a plan that a worker would refuse, a
 * block that is given away too early and a prefix that is not what it seems all show as a wrong token.
 */
#ifndef TESTS_ENGINE_SCHEDULER_BENCH_H
#define TESTS_ENGINE_SCHEDULER_BENCH_H

#include "tests/support/expect.h"

#include "engine/core/output_builder.h"
#include "engine/core/scheduler.h"
#include "worker/input_batch.h"

enum { BLOCK = KV_BLOCK_TOKENS, VOCAB = 1000, EOS = 2, MAX_REQUESTS = 512, MAX_OUTPUT = 128 };
enum { BY_HASH = -2 }; /* in place of a token: what the KV cache says */

struct outcome {
    int32_t tokens[MAX_OUTPUT];
    int32_t num_tokens;
    int32_t num_ends;
    enum finish_reason finish;
    int32_t stop_token;
    enum status error;
    char error_text[200];
    int32_t num_scheduled; /* tokens, over all steps */
    bool has_prompt_logprobs; /* they came with the first token */
};

struct bench {
    struct scheduler_options options;
    struct scheduler *scheduler;
    struct input_batch *batch;
    int32_t *kv; /* [num_blocks, BLOCK] */
    struct arena arenas[2];
    struct scheduler_output plans[2]; /* by step & 1 */
    int64_t next_step, next_answer;
    struct output_builder events;
    request_id last_id;
    int32_t id_of_slot[256];
    struct outcome outcomes[MAX_REQUESTS]; /* by id */
    token_id *prompts[MAX_REQUESTS];       /* by id */
};

/* 16 requests, 1024 tokens, 1000 blocks; no prefix cache. */
extern const struct scheduler_options ROOMY;

struct bench *bench_new(const struct scheduler_options *options);
/* Everything must be over, and nothing left behind. */
void bench_free(struct bench *b);

/* ---- requests ------------------------------------------------------------------------------- */

struct wish {
    int32_t num_prompt;
    int32_t max_tokens, min_tokens;
    int32_t priority;
    int32_t stop_token; /* 0: none */
    int32_t allowed_token; /* the only one; 0: any */
    bool ignore_eos;
    bool awaits_grammar;
    bool wants_prompt_logprobs; /* and two more of each token */
    const int32_t *prompt; /* NULL: tokens that no other request has */
    const char *cache_salt;
};

/* It belongs to the caller; its id is the next. */
struct request *bench_make_request(struct bench *b, const struct wish *wish);
/* The same, to the scheduler. */
request_id bench_add(struct bench *b, struct wish wish);
/* 10 blocks and two prompts of 5: who goes on takes a block of the other's. */
struct bench *bench_two_of_five_blocks(enum scheduling_policy policy, int32_t first_priority,
                                       int32_t second_priority);
/* What has become of it. */
struct outcome *bench_outcome(struct bench *b, request_id id);

/* ---- steps ---------------------------------------------------------------------------------- */

/* Schedules a step, as core does, and has it staged, as a worker does. */
const struct scheduler_output *bench_schedule(struct bench *b);

/* The columns of an answer, which tests may spoil. */
struct answer {
    int32_t slots[64], positions[64], tokens[64], counts[64], ranks[64];
    int32_t *prompt; /* every column of the prompts' */
    struct model_runner_output output;
};

void answer_close(struct answer *answer);

/* What a step takes, as bench_answer tells the scheduler: 1 ms, and 0.1 ms for each token. */
int64_t bench_cost_ns(const struct scheduler_output *plan);

/* Computes the oldest step in flight: every row that samples gets this token. */
void bench_make_answer(struct bench *b, int32_t token, struct answer *answer);
/* It comes back to the scheduler. */
void bench_answer(struct bench *b, int32_t token);
/* One step at a time, until all is over. */
void bench_run(struct bench *b);

/* After each change that the test makes itself: the events reach the outcomes. */
void bench_take_events(struct bench *b);
void bench_abort(struct bench *b, request_id id);
/* The steps in flight come back, and whatever is left is aborted. */
void bench_end(struct bench *b);

/* The token that follows these, and the hash to go on from. */
uint32_t bench_mix(uint32_t hash, int32_t token);
int32_t bench_token_from(uint32_t hash);
#define BENCH_FIRST_HASH 2166136261u

#define expect_row(plan, row, id_wanted, num_tokens)                                               \
    do {                                                                                           \
        const struct scheduler_output *row_plan_ = (plan);                                         \
        assert_true((row) < row_plan_->num_rows);                                                  \
        assert_int_equal(b->id_of_slot[row_plan_->slots[row]], id_wanted);                         \
        assert_int_equal(row_plan_->num_scheduled_tokens[row], num_tokens);                        \
    } while (0)

/* The plan's rows are these counts of tokens, for requests 1, 2, 3 … */
#define expect_counts(plan, ...)                                                                   \
    do {                                                                                           \
        const struct scheduler_output *plan_ = (plan);                                             \
        const int32_t counts_[] = {__VA_ARGS__};                                                   \
        assert_int_equal(plan_->num_rows, COUNT_OF(counts_));                                      \
        for (int32_t row_ = 0; row_ < plan_->num_rows; row_++)                                     \
            expect_row(plan_, row_, row_ + 1, counts_[row_]);                                      \
    } while (0)

#endif
