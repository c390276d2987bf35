/*
 * device_draw: tokens that are drawn where the logits lie, on devices with memory of their own.
 *
 * Such a device runs behind its caller: nobody waits for the tokens of step N before step N + 1 is launched. They stay
 * on the device, by slot, for the next step to read, and come to the host when the device has passed a mark behind them.
 *
 * Only rows whose parameters need nothing but the logits and a mask are drawn here (greedy, temperature, top_k,
 * top_p, min_p); steps with others are the sampler's, and tokens are the same either way.
 *
 * Of several ranks each has the logits of a slice of the vocabulary. What rows' masks forbid there becomes -inf,
 * the ranks put their logits together, some rows at a time, and each draws every token: the same.
 *
 * Thread: the device thread.
 */
#ifndef WORKER_DEVICE_DRAW_H
#define WORKER_DEVICE_DRAW_H

#include "kernels/kernels.h"
#include "worker/logit_edits.h"

struct device_draw;

struct device_draw_limits {
    int32_t rows;  /* of a step */
    int32_t slots; /* of requests */
    const int32_t *first_tokens; /* [world + 1]: of each rank's slice, and the end of the last */
    int32_t rank, world;
};

MUST_USE enum status device_draw_new(struct device *dev, const struct device_draw_limits *limits,
                                     struct device_draw **out);
void device_draw_free(struct device_draw *draw); /* NULL is fine */
DEFINE_AUTO_FREE(device_draw)

/* Can rows be drawn here, of ranks that meet by this comm (NULL: this one is alone)? The same for all ranks. */
bool device_draw_can_meet(const struct device_draw *draw, const struct comm *comm);
/* Can all these rows be drawn here? */
bool device_draw_can(const struct sampler_row *rows, int32_t num_rows);

/* The tokens of a step, slots: [num_rows] of its rows. logits: the device's, [num_rows, tokens of this rank's
 * slice]; what is forbidden in them may be overwritten. Every rank calls it with the same rows. ERR_ABORTED when a
 * peer is gone. */
MUST_USE enum status device_draw_launch(struct device_draw *draw, struct comm *comm, int64_t step, float *logits,
                                        const struct sampler_row *rows, const int32_t *slots, int32_t num_rows);
/* [num_rows], once the device has passed a mark made behind the launch; until that of the step after the next. -1: no
 * token is possible. */
const int32_t *device_draw_tokens(const struct device_draw *draw, int64_t step);

/* The device's: [slots], the last token of each. */
const int32_t *device_draw_last_tokens(const struct device_draw *draw);

#endif
