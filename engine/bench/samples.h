/*
 * samples: measurements of one thing, and what is typical of them.
 * Thread: that of the owner.
 */
#ifndef ENGINE_BENCH_SAMPLES_H
#define ENGINE_BENCH_SAMPLES_H

#include "proto/base/memory.h"

struct samples {
    int64_t *values;
    size_t count, capacity;
};

void samples_add(struct samples *samples, int64_t value);
void samples_close(struct samples *samples);

/* The value that this share of the samples does not exceed: 0.5 is the median. There must be one. */
int64_t samples_quantile(struct samples *samples, double share);
/* The same of nanoseconds, in microseconds. */
double samples_quantile_us(struct samples *samples, double share);
double samples_median_us(struct samples *samples);

#endif
