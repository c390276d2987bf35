/*
 * cpu: the kernels that cpu/ compiles once per instruction set. Contracts are in kernels.h.
 */
#ifndef KERNELS_CPU_CPU_H
#define KERNELS_CPU_CPU_H

#include "kernels/cpu/device.h"
#include "kernels/cpu/vec.h"

void SHARED(matrix_pack)(struct device *dev, struct matrix *w, int32_t at, int32_t n, const void *src,
                         int64_t src_row_bytes, int64_t k0);
void SHARED(quantize)(struct device *dev, const struct activations *a);
void MATMUL(matmul)(struct device *dev, float *out, int64_t out_stride, const struct activations *a,
                    const struct matrix *w);
void MATMUL(matmul_groups)(struct device *dev, double *sums, const struct activations *a,
                           const struct matrix *w, int32_t group_k);
void MATMUL(matmul_groups_float)(struct device *dev, float *out, const struct activations *a,
                                 const struct matrix *w, int32_t group_k);
void SHARED(embedding)(struct device *dev, float *out, const int32_t *ids, int32_t rows,
                       const struct matrix *w, int32_t first_id, float scale);
void SHARED(add_norm)(struct device *dev, const struct add_norm_args *args);
void SHARED(rope_store)(struct device *dev, const struct rope_args *args);
void ATTENTION(attention)(struct device *dev, const struct attention_args *args);
void SHARED(silu_mul)(struct device *dev, const struct activations *out, const float *gate,
                      const float *up, int64_t stride);
void SHARED(gelu_mul)(struct device *dev, const struct activations *out, const float *gate,
                      const float *up, int64_t stride);
void MATMUL(matmul_silu_mul)(struct device *dev, const struct activations *out, const struct activations *a,
                             const struct matrix *w);
void MATMUL(matmul_gelu_mul)(struct device *dev, const struct activations *out, const struct activations *a,
                             const struct matrix *w);

#endif
