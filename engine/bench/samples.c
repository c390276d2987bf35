#include "engine/bench/samples.h"

#include <stdlib.h>

void samples_add(struct samples *samples, int64_t value)
{
    if (samples->count == samples->capacity) {
        samples->capacity = samples->capacity ? samples->capacity * 2 : 1024;
        samples->values =
            mem_resize(samples->values, samples->capacity * sizeof *samples->values);
    }
    samples->values[samples->count++] = value;
}

void samples_close(struct samples *samples)
{
    mem_free(samples->values);
    *samples = (struct samples){0};
}

static int compare(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;

    return (x > y) - (x < y);
}

int64_t samples_quantile(struct samples *samples, double share)
{
    ASSERT(samples->count > 0 && share >= 0 && share <= 1);
    qsort(samples->values, samples->count, sizeof *samples->values, compare);
    return samples->values[(size_t)(share * (double)(samples->count - 1))];
}

double samples_quantile_us(struct samples *samples, double share)
{
    return (double)samples_quantile(samples, share) / 1e3;
}

double samples_median_us(struct samples *samples)
{
    return samples_quantile_us(samples, 0.5);
}
