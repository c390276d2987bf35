/*
 * fp8_codes: weights that are codes of 8 bits (e4m3) with scales, on their way to an mma of bf16: each becomes the bits
 * that fp8_to_bf16 (proto/model/quant.h) gives. How they lie is in fp8_layout.h.
 */
#ifndef KERNELS_CUDA_FP8_CODES_CUH
#define KERNELS_CUDA_FP8_CODES_CUH

#include "kernels/cuda/simt.h"

/* Four codes, the first in the low byte: their values, exactly; NaN is NaN. */
static __device__ __forceinline__ void floats_of_fp8(float out[4], uint32_t codes)
{
#ifdef HAS_FP8_HALVES
    uint32_t pairs[2];

    half_pairs_of_fp8(pairs, codes);
#pragma unroll
    for (int i = 0; i < 4; i++)
        out[i] = float_of_half((uint16_t)(pairs[i / 2] >> i % 2 * 16));
#else
    /* A half with the bits of a code has its value but for a factor of 256, which half's exponent has room for. */
    const uint32_t signs = 0x80008000, magnitudes = 0x3f803f80, infinite = 0x40004000;
    const uint32_t factors = 0x5c005c00, minus_0 = 0x80008000;
    const uint32_t nan = (codes & 0x7f7f7f7f) + 0x01010101; /* the highest bit of a byte: it is */
    uint32_t even = (codes << 8 & signs) | (codes << 7 & magnitudes) | (nan << 7 & infinite);
    uint32_t odd = (codes & signs) | (codes >> 1 & magnitudes) | (nan >> 1 & infinite);

    even = half_pair_fma(even, factors, minus_0);
    odd = half_pair_fma(odd, factors, minus_0);
    out[0] = float_of_half((uint16_t)even);
    out[1] = float_of_half((uint16_t)odd);
    out[2] = float_of_half((uint16_t)(even >> 16));
    out[3] = float_of_half((uint16_t)(odd >> 16));
#endif
}

/* A word of a column: elements 2t, 2t + 1 of 16, and 8 + 2t, 9 + 2t. A product is rounded to a float first. */
static __device__ __forceinline__ void bf16_pairs_of_fp8(uint32_t pairs[2], uint32_t codes, float scale)
{
    float values[4];

    floats_of_fp8(values, codes);
    pairs[0] = bf16_pair_of_floats(values[0] * scale, values[1] * scale);
    pairs[1] = bf16_pair_of_floats(values[2] * scale, values[3] * scale);
}

#endif
