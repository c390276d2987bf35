/*
 * fp8_layout: how codes of 8 bits (e4m3) and their scales lie on a GPU, for the host that packs them, the kernels that
 * read them and cuBLASLt:
 *
 *   codes   columns of the matrix (rows of the file) one after another, then zeros up to a multiple of 32 of k. Each
 *           16 of k lie as 0 1 8 9, 2 3 10 11, 4 5 12 13, 6 7 14 15: a word is what a lane of mma_bf16_k16 has of a
 *           column. cuBLASLt, which takes them for a matrix in order of k, gets rows of activations in the same order
 *   scales  from a multiple of 256 bytes on, floats: one of each column; or for each 128 columns those of each 128
 *           of k, and zeros up to a multiple of 4
 *
 * Kept readable by C++ and nvcc.
 *
 * Thread: any (no state).
 */
#ifndef KERNELS_CUDA_FP8_LAYOUT_H
#define KERNELS_CUDA_FP8_LAYOUT_H

#include "kernels/quant_block.h"
#include "proto/base/rounding.h"

#include <stdbool.h>
#include <stdint.h>

enum {
    FP8_PAD = 32,
    FP8_ORDERED = 16, /* of k, which have an order of their own */
    FP8_BLOCK = 128,
    FP8_COLUMNS = 16, /* cuBLASLt wants a multiple */
    FP8_SCALES_ALIGN = 256,
};

/* Where element k of a column is. */
static QUANT_CONSTANT int32_t fp8_place(int32_t k)
{
    return (k & -FP8_ORDERED) | (k & 6) << 1 | (k & 8) >> 2 | (k & 1);
}

static inline int64_t fp8_row_stride(int32_t k)
{
    return round_up(k, FP8_PAD);
}

static inline int64_t fp8_scales_at(int32_t n, int32_t k)
{
    return round_up(n * fp8_row_stride(k), FP8_SCALES_ALIGN);
}

static inline int32_t fp8_num_blocks(int32_t items)
{
    return divide_up(items, FP8_BLOCK);
}

/* From the scales of 128 columns to those of the next. */
static inline int32_t fp8_block_stride(int32_t k)
{
    return divide_up(fp8_num_blocks(k), 4) * 4;
}

static inline int64_t fp8_matrix_bytes(int32_t n, int32_t k, bool has_blocks)
{
    return fp8_scales_at(n, k) + 4 * (has_blocks ? (int64_t)fp8_num_blocks(n) * fp8_block_stride(k) : n);
}

#endif
