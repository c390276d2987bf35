/*
 * ref: the specification of every kernel, in plain C, one row and one column at a time.
 * What each computes is in kernels.h; in which order, here.
 */
#ifndef KERNELS_REF_REF_H
#define KERNELS_REF_REF_H

#include "kernels/kernels.h"

float exp_ref(float x);
float sum_lanes_ref(const float *lanes); /* [SUM_LANES] */

int64_t matrix_bytes_ref(enum tensor_type type, int32_t n, int32_t k);
void matrix_pack_ref(struct device *dev, struct matrix *w, int32_t at, int32_t n, const void *src,
                     int64_t src_row_bytes, int64_t k0);
void quantize_ref(struct device *dev, const struct activations *a);
void matmul_ref(struct device *dev, float *out, int64_t out_stride, const struct activations *a,
                const struct matrix *w);
void matmul_groups_ref(struct device *dev, double *sums, const struct activations *a,
                       const struct matrix *w, int32_t group_k);
void matmul_groups_float_ref(struct device *dev, float *out, const struct activations *a,
                             const struct matrix *w, int32_t group_k);
void embedding_ref(struct device *dev, float *out, const int32_t *ids, int32_t rows,
                   const struct matrix *w, int32_t first_id, float scale);
void rms_norm_ref(struct device *dev, float *out, int64_t out_stride, const float *x,
                  int64_t x_stride, const float *w, int32_t rows, int32_t n, float eps);
void add_exact_ref(struct device *dev, float *x, const double *sum, int32_t rows, int32_t n);
void add_ref(struct device *dev, float *x, const float *y, int32_t rows, int32_t n);
void round_exact_ref(struct device *dev, float *out, const double *sum, int64_t count);
void rope_ref(struct device *dev, float *x, int64_t stride, const int32_t *positions,
              const float *cos_sin, int32_t rows, int32_t num_heads, int32_t head_dim,
              int32_t rope_dim, bool adjacent);
void kv_store_ref(struct device *dev, const struct kv_layer *kv, const struct batch_view *batch,
                  const float *k, int64_t k_stride, const float *v, int64_t v_stride);
void attention_ref(struct device *dev, const struct attention_args *args);
void silu_mul_ref(struct device *dev, float *out, const float *gate, const float *up,
                  int64_t stride, int32_t rows, int32_t n);
void gelu_mul_ref(struct device *dev, float *out, const float *gate, const float *up,
                  int64_t stride, int32_t rows, int32_t n);
void gather_rows_ref(struct device *dev, float *out, const float *x, const int32_t *rows,
                     int32_t count, int32_t n);

extern const struct kernels kernels_ref;

#endif
