/*
 * step_inputs: the arrays of a step where kernels can read them: the caller's own, or a copy in the device's memory
 * where it has one.
 *
 * The host writes two copies in turn: that of a step while the device may still read the one before. On the device the
 * arrays of steps of equal sizes lie at equal places, so that what reads them can be recorded.
 *
 * Thread: the device thread.
 */
#ifndef WORKER_MODELS_STEP_INPUTS_H
#define WORKER_MODELS_STEP_INPUTS_H

#include "worker/models/recordings.h"

struct step_inputs {
    struct device *dev;
    struct device_mirror mirrors[2]; /* whose second has its host's side alone */
    int32_t *end;       /* of what was written of this step; the host's */
    int32_t which;      /* the last step's */
    int32_t spare_block; /* of the KV cache: for rows that are nobody's */
};

/* Of a step, at most. */
struct step_inputs_limits {
    int32_t rows, requests, logit_rows, position;
};

MUST_USE enum status step_inputs_open(struct step_inputs *inputs, struct device *dev,
                                      const struct step_inputs_limits *limits);
void step_inputs_close(struct step_inputs *inputs); /* zeroed ones are fine */

/* The arrays of the next step, whose max_position is known: *batch and *ids become the device's. An id that is negative is last_tokens[-1 - id], the
 * device's; NULL: none is. sizes: NULL, or what a step of one row a request is rounded up to, with requests that are
 * nobody's. */
MUST_USE enum status step_inputs_put(struct step_inputs *inputs, struct batch_view *batch, const int32_t **ids,
                                     const int32_t *last_tokens, const struct recording_sizes *sizes);
/* One more batch of the step: the same. */
MUST_USE enum status step_inputs_put_batch(struct step_inputs *inputs, struct batch_view *batch);
/* An array more of the step: the same. all: rounded up to so many, those that are added are rows of the same number. */
MUST_USE enum status step_inputs_put_rows(struct step_inputs *inputs, const int32_t **rows, int32_t num_rows, int32_t all);

#endif
