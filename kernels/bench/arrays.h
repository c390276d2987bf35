/*
 * arrays: random inputs of kernels, and the places they need: for benches and tests.
 *
 * Thread: any (no state).
 */
#ifndef KERNELS_BENCH_ARRAYS_H
#define KERNELS_BENCH_ARRAYS_H

#include "kernels/kernels.h"

struct random {
    uint64_t state;
};

uint32_t random_u32(struct random *random);
float random_float(struct random *random, float low, float high);
/* Values of a few scales, with rare outliers, as hidden states have. */
void random_hidden(struct random *random, float *out, int64_t count);
/* `rows` rows of `k` elements in the file's layout of `type`, weights of about 1 / sqrt(k). */
void *random_weights(struct random *random, enum tensor_type type, int32_t rows, int32_t k);

/* Memory for activations of rows × k, all of it owned; x is filled at random. */
void activations_init(struct activations *a, struct random *random, int32_t rows, int32_t k);
void activations_close(struct activations *a);

#endif
