/*
 * input_batch: what a rank knows of the running requests, and the inputs of the next two steps.
 *
 * The wire thread stages the plan of step N into slot N & 1 while the device thread runs step N-1
 * from the other one. What both may touch is cut in two: a request's tokens below num_known came
 * over the wire and are the wire thread's to write, before the step that first uses them is handed over;
 * tokens from num_known on were sampled here and are the device thread's. The engine gives a request
 * slot away only when no step in flight names it.
 *
 * Thread: wire, but for input_batch_fill_ids, input_batch_name_slots and input_batch_append_token: device.
 */
#ifndef WORKER_INPUT_BATCH_H
#define WORKER_INPUT_BATCH_H

#include "kernels/kernels.h"
#include "proto/wire/messages.h"

struct input_batch;

struct input_batch_limits {
    int32_t max_num_seqs;
    int32_t max_batched_tokens;
    int32_t max_model_len;
    int32_t vocab_size;
};

/* One row to sample. */
struct staged_sample {
    int32_t row;      /* of the step: whose logits */
    int32_t slot;
    int32_t position; /* of the token that is drawn */
    bool needs_bitmask;
};

/* Rows of a prompt, whose next tokens' logprobs are wanted. */
struct staged_prompt_run {
    int32_t row; /* of the step: the first */
    int32_t slot;
    int32_t position; /* of the token that the first row foretells */
    int32_t length;
};

/* A step, ready to run. */
struct staged_step {
    int64_t step;
    struct batch_view batch;
    int32_t *ids; /* [rows]; -1 until input_batch_fill_ids: sampled by the step before */
    int32_t *row_slots; /* [num_requests] */
    struct staged_sample *samples;
    int32_t *sample_rows; /* [num_samples] the rows alone, as model_forward wants them */
    int32_t num_samples;
    struct staged_prompt_run *prompt_runs;
    int32_t num_prompt_runs;
    int64_t prepare_ns, execute_ns;
};

MUST_USE enum status input_batch_new(const struct input_batch_limits *limits,
                                     struct input_batch **out);
void input_batch_free(struct input_batch *batch); /* NULL is fine */
DEFINE_AUTO_FREE(input_batch)

/* Blocks ids below this are valid from now on. */
void input_batch_set_num_blocks(struct input_batch *batch, int32_t num_blocks);

/* No request is known any more, and no step is staged. */
void input_batch_forget(struct input_batch *batch);

/* Checks the plan against all that is known here, then takes it in: ERR_MISMATCH names the row and
 * both values, and nothing was changed. */
MUST_USE enum status input_batch_stage(struct input_batch *batch, int64_t step,
                                       const struct scheduler_output *plan);
/* Does the plan give a slot of the staged step to another request? */
bool input_batch_is_replaced(const struct input_batch *batch, int64_t step,
                             const struct scheduler_output *plan);
struct staged_step *input_batch_staged(struct input_batch *batch, int64_t step);

/* Puts the tokens that the step before sampled where the staged step lacks them. */
void input_batch_fill_ids(struct input_batch *batch, struct staged_step *staged);
/* The same where the device still has them: -1 - slot, by which it finds them. */
void input_batch_name_slots(struct input_batch *batch, struct staged_step *staged);
/* A token was drawn for this row; -1: there was none to draw. */
void input_batch_append_token(struct input_batch *batch, const struct staged_sample *sample,
                              int32_t token);

/* What the sampler needs of a request. */
const struct sampling_params *input_batch_params(const struct input_batch *batch, int32_t slot);
/* tokens: [position] prompt, then output. */
const int32_t *input_batch_tokens(const struct input_batch *batch, int32_t slot,
                                  int32_t *num_prompt_out);
/* The same for the same prompt, also when it comes back from preemption. */
uint64_t input_batch_prompt_hash(const struct input_batch *batch, int32_t slot);

#endif
