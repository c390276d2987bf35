/*
 * arrays: random inputs of kernels, and the places they need.
 */
#ifndef TESTS_KERNELS_ARRAYS_H
#define TESTS_KERNELS_ARRAYS_H

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

/* Packs columns [k0, k0 + k) of rows [n0, n0 + n) of a tensor of `tensor_k` columns. */
void matrix_init(struct matrix *w, struct device *dev, enum tensor_type type, const void *tensor,
                 int32_t tensor_k, int32_t n0, int32_t n, int32_t k0, int32_t k);
void matrix_close(struct matrix *w, struct device *dev);

/* Instruction sets to hold against ref: those of this CPU, and emu512 on x86. NULL-terminated. */
const char *const *tested_isas(void);
struct device *open_device(const char *isa, int32_t num_threads);

/* Same bits, else the first difference is shown. */
void expect_same_floats(const char *what, const float *a, const float *b, int64_t count);

#endif
