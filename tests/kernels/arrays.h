/*
 * arrays: matrices and devices of kernel tests, beside the random inputs of kernels/bench.
 */
#ifndef TESTS_KERNELS_ARRAYS_H
#define TESTS_KERNELS_ARRAYS_H

#include "kernels/bench/arrays.h"

/* Packs columns [k0, k0 + k) of rows [n0, n0 + n) of a tensor of `tensor_k` columns. */
void matrix_init(struct matrix *w, struct device *dev, enum tensor_type type, const void *tensor,
                 int32_t tensor_k, int32_t n0, int32_t n, int32_t k0, int32_t k);
/* Of F8_E4M3: n x k codes, and scales as fp8_pack has them; in two parts, the second first, where they can be. */
void matrix_init_codes(struct matrix *w, struct device *dev, int32_t n, int32_t k, bool has_blocks,
                       const uint8_t *codes, const float *scales);
void matrix_close(struct matrix *w, struct device *dev);

/* Memory of a device, for device_free; from: what it holds, or NULL. */
void *device_array(struct device *dev, const void *from, int64_t bytes);

/* Instruction sets to hold against ref: those of this CPU (under TSan the best alone), with emu512 for AVX-512 where it
 * is not; and "cuda" where the environment names a module, TANDEM_TEST_CUDA_MODULE: that of emulated GPUs, or the real
 * one where a GPU is. NULL-terminated. */
const char *const *tested_isas(void);
/* "cuda": a GPU; "cuda:1": the second one, if has_gpu_of_less_shared_memory. */
struct device *open_device(const char *isa, int32_t num_threads);
/* Is there an emulated one that offers blocks less of it than the first? Says so if not. */
bool has_gpu_of_less_shared_memory(void);

/* Same bits, else the first difference is shown. */
void expect_same_floats(const char *what, const float *a, const float *b, int64_t count);

#endif
