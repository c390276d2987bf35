/*
 * recordings: forward passes of decode steps, recorded once and replayed, where a device can (a CUDA graph each).
 *
 * A step in which every request has one row and every row samples differs from another in nothing but what lies in the
 * arrays of its inputs, if their sizes are rounded up: to a number of rows and to a number of KV tiles that the longest
 * request has. Rows that are added are requests of one token, in a KV block that nobody else has; they change no bit of
 * the others. Passes of usual sizes are recorded before the first step, others when their sizes come for the first
 * time; those that were not used for long go.
 *
 * Thread: the device thread.
 */
#ifndef WORKER_MODELS_RECORDINGS_H
#define WORKER_MODELS_RECORDINGS_H

#include "kernels/kernels.h"

struct recordings;

/* Sizes of a decode step, rounded up. */
struct recording_sizes {
    int32_t rows, position; /* rows, and positions up to this one */
};

struct recordings *recordings_new(struct device *dev, int32_t max_rows, int32_t max_position);
void recordings_free(struct recordings *recordings); /* NULL is fine */
/* The device changes hands: see model_adopt. */
void recordings_adopt(struct recordings *recordings, struct device *dev);
/* Nothing that was recorded is valid any more: arrays have moved. */
void recordings_forget(struct recordings *recordings);

/* true: a step of these sizes can be recorded, as one of *out. */
bool recordings_round_up(const struct recordings *recordings, int32_t rows, int32_t position,
                         struct recording_sizes *out);
/* Of the usual sizes the i-th, the likeliest first; false: there are no more than i. There is room for all. */
bool recordings_usual(const struct recordings *recordings, int32_t i, struct recording_sizes *out);
/* NULL: there is none of these sizes yet. */
struct device_recording *recordings_find(struct recordings *recordings, const struct recording_sizes *sizes);
/* Takes it. */
void recordings_add(struct recordings *recordings, const struct recording_sizes *sizes,
                    struct device_recording *recording);

#endif
