/*
 * kv_store: keys and values of some rows of a step, in its type, to their places in the cache.
 */
#ifndef KERNELS_CPU_KV_STORE_H
#define KERNELS_CPU_KV_STORE_H

#include "kernels/cpu/vec.h"

struct kv_rows {
    const struct kv_layer *kv;
    const struct batch_view *batch;
    const float *k, *v; /* [rows, num_kv_heads * head_dim] */
    int64_t k_stride, v_stride;
};

/* Rows [first, end). *request: that of an earlier row, moved on to that of the last. Rows that fill
 * a block are best stored together. */
void KERNEL(kv_store_rows)(const struct kv_rows *rows, int64_t first, int64_t end, int32_t *request);

#endif
