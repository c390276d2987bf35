/*
 * arrays: matrices, what comes of them and devices, for tests of kernels, beside the random inputs of kernels/bench.
 */
#ifndef TESTS_KERNELS_ARRAYS_H
#define TESTS_KERNELS_ARRAYS_H

#include "kernels/bench/arrays.h"

/* Packs columns [k0, k0 + k) of rows [n0, n0 + n) of a tensor of `tensor_k` columns. */
void matrix_init(struct matrix *w, struct device *dev, enum tensor_type type, const void *tensor,
                 int32_t tensor_k, int32_t n0, int32_t n, int32_t k0, int32_t k);
void matrix_close(struct matrix *w, struct device *dev);

/* Of F8_E4M3, as fp8_pack has them. */
struct fp8_weights {
    int32_t n, k;
    bool has_blocks;
    uint8_t *codes; /* [n, k] */
    float *scales;  /* [n], or [n / 128, k / 128], rounded up */
};

/* n, k and has_blocks are there: zeros to be codes, and scales at random. */
void fp8_weights_init(struct fp8_weights *weights, struct random *random);
void fp8_weights_close(struct fp8_weights *weights);
int64_t fp8_num_scales(const struct fp8_weights *weights);
float fp8_scale_at(const struct fp8_weights *weights, int32_t column, int32_t k);
/* In two parts, the second first, where they can be. */
void matrix_init_fp8(struct matrix *w, struct device *dev, const struct fp8_weights *weights);

/* What a device makes of activations and a matrix in each of its ways. */
struct products {
    int32_t rows, n;
    float *out, *alone; /* [rows, n]: matmul, matmul_groups_float */
    double *sums;       /* [rows, n]: matmul_groups */
};

/* x: [rows, w->k]. group_k 0: no groups, zeros in their place. skew: floats before the results of matmul and behind
 * each row of them, which must stay as they are. */
void products_init(struct products *products, struct device *dev, const struct matrix *w, const float *x, int32_t rows,
                   int32_t group_k, int32_t skew);
void products_close(struct products *products);
/* Same bits? Both have the same shape. */
bool products_are_same(const struct products *a, const struct products *b);

/* Memory of a device, for device_free; from: what it holds, or NULL. */
void *device_array(struct device *dev, const void *from, int64_t bytes);

/* Instruction sets to hold against ref: those of this CPU (under TSan the best alone), with emu512 and emuamx for
 * AVX-512 and AMX where they are not; and "cuda" where the environment names a module, TANDEM_TEST_CUDA_MODULE: that of
 * emulated GPUs, or the real one where a GPU is. NULL-terminated. */
const char *const *tested_isas(void);
/* "cuda": a GPU; "cuda:1": the second one, if has_gpu_of_less_shared_memory. */
struct device *open_device(const char *isa, int32_t num_threads);
/* Is there an emulated one that offers blocks less of it than the first? Says so if not. */
bool has_gpu_of_less_shared_memory(void);

/* Same bits, else the first difference is shown. */
void expect_same_floats(const char *what, const float *a, const float *b, int64_t count);

#endif
