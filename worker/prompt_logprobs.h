/*
 * prompt_logprobs: how likely the tokens of prompts were, where a request wants to know.
 *
 * The row of a prompt's token foretells the next one, as a row that is sampled does. There may be as
 * many as a step has tokens, so they are taken in pieces: of as many rows as the logits have room for,
 * behind the sampling, which needs the logits before.
 *
 * The logprobs have the same bits for any pieces, chunks of the prompt, batch and number of ranks.
 *
 * Thread: the device thread.
 */
#ifndef WORKER_PROMPT_LOGPROBS_H
#define WORKER_PROMPT_LOGPROBS_H

#include "worker/input_batch.h"
#include "worker/models/model.h"
#include "worker/sampler.h"

struct prompt_logprobs;

struct prompt_logprobs_options { /* all borrowed */
    struct model *model;
    struct sampler *sampler; /* NULL: the device has no logits, and every token is certain */
    struct input_batch *batch;
    struct device *device;
    const struct device_mirror *logits; /* [max_rows, the rank's slice of the vocabulary] */
    int32_t max_rows;
    int32_t vocab_size;
};

struct prompt_logprobs *prompt_logprobs_new(const struct prompt_logprobs_options *options);
void prompt_logprobs_free(struct prompt_logprobs *scorer); /* NULL is fine */
DEFINE_AUTO_FREE(prompt_logprobs)

/* Of the step that ran last. Every rank calls this; `out` (NULL: this rank tells nothing) gets the
 * prompts' columns, in the arena. ERR_ABORTED when a peer is gone. */
MUST_USE enum status prompt_logprobs_run(struct prompt_logprobs *scorer,
                                         const struct staged_step *staged, struct arena *arena,
                                         struct model_runner_output *out);

#endif
