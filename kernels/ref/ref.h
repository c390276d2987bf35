/*
 * ref: the specification of every kernel, in plain C, one row and one column at a time.
 * What each computes is in kernels.h; in which order, here.
 */
#ifndef KERNELS_REF_REF_H
#define KERNELS_REF_REF_H

#include "kernels/kernels.h"

float exp_ref(float x);
float sum_lanes_ref(const float *lanes); /* [SUM_LANES] */
/* One row of n; out may be x. */
void rms_norm_ref(float *out, const float *x, const float *w, int32_t n, float eps);
/* x as row `row` of a, in the forms that are wanted. */
void put_row_ref(const struct activations *a, int64_t row, const float *x);

int64_t matrix_bytes_ref(enum tensor_type type, int32_t n, int32_t k);
void matrix_pack_ref(struct device *dev, struct matrix *w, int32_t at, int32_t n, const void *src,
                     int64_t src_row_bytes, int64_t k0);
float *matrix_steps_ref(const struct matrix *w); /* [n], of SCALE_WHOLE; else NULL */
void quantize_ref(struct device *dev, const struct activations *a);
void matmul_ref(struct device *dev, float *out, int64_t out_stride, const struct activations *a,
                const struct matrix *w);
void matmul_groups_ref(struct device *dev, double *sums, const struct activations *a,
                       const struct matrix *w, int32_t group_k);
void matmul_groups_float_ref(struct device *dev, float *out, const struct activations *a,
                             const struct matrix *w, int32_t group_k);
void embedding_ref(struct device *dev, float *out, const int32_t *ids, int32_t rows,
                   const struct matrix *w, int32_t first_id, float scale);
void take_rows_ref(struct device *dev, const struct take_rows_args *args);
void add_norm_ref(struct device *dev, const struct add_norm_args *args);
void rope_store_ref(struct device *dev, const struct rope_args *args);
/* k, v: [rows, num_kv_heads * head_dim] at their row strides, into the slots of their positions. */
void kv_store_ref(const struct kv_layer *kv, const struct batch_view *batch, const float *k,
                  int64_t k_stride, const float *v, int64_t v_stride);
void attention_ref(struct device *dev, const struct attention_args *args);
void silu_mul_ref(struct device *dev, const struct activations *out, const float *gate,
                  const float *up, int64_t stride);
void gelu_mul_ref(struct device *dev, const struct activations *out, const float *gate,
                  const float *up, int64_t stride);

extern const struct kernels kernels_ref;

#endif
