/*
 * half_layout: how F16 and BF16 weights lie on a GPU, for the host that packs them and the kernels that read them:
 * columns of the matrix (rows of the file) one after another, their elements in order of k as the file has them,
 * then zeros up to a multiple of 32. Each begins at a multiple of 64 bytes, and so may a tensor beside others.
 *
 * Kept readable by C++ and nvcc.
 *
 * Thread: any (no state).
 */
#ifndef KERNELS_CUDA_HALF_LAYOUT_H
#define KERNELS_CUDA_HALF_LAYOUT_H

#include "proto/base/rounding.h"
#include "proto/model/quant.h"

#include <stdbool.h>
#include <stdint.h>

enum { HALF_BLOCK = 32, HALF_BYTES = 2 };

static inline bool half_has_layout(enum tensor_type type)
{
    return type == TYPE_F16 || type == TYPE_BF16;
}

/* Elements from a column to the next; its last ones from k on are zeros. */
static inline int64_t half_row_stride(int32_t k)
{
    return round_up(k, HALF_BLOCK);
}

static inline int64_t half_matrix_bytes(int32_t n, int32_t k)
{
    return n * half_row_stride(k) * HALF_BYTES;
}

#endif
