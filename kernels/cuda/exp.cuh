/*
 * exp: the exponential of ref/exp.c on a GPU, the same bits. Its constants are in kernels/numerics.h.
 */
#ifndef KERNELS_CUDA_EXP_CUH
#define KERNELS_CUDA_EXP_CUH

#include "kernels/cuda/simt.h"
#include "kernels/numerics.h"

static __device__ __forceinline__ float exp_cuda(float x)
{
    /* A NaN passes both comparisons, and stays one. */
    float bounded = x > EXP_HIGHEST ? EXP_HIGHEST : x;
    float shifted = fmaf(bounded, EXP_LOG2_E, EXP_ROUND), n = shifted - EXP_ROUND;
    float r = fmaf(n, -EXP_LN2_LOW, fmaf(n, -EXP_LN2_HIGH, bounded));
    float p = EXP_P0;

    p = fmaf(p, r, EXP_P1);
    p = fmaf(p, r, EXP_P2);
    p = fmaf(p, r, EXP_P3);
    p = fmaf(p, r, EXP_P4);
    p = fmaf(p, r, EXP_P5);
    p = fmaf(p, r * r, r) + 1.0f;

    /* 2^n: the low bits of `shifted` are n. */
    float power = __uint_as_float((__float_as_uint(shifted) + 127) << 23);

    return x < EXP_LOWEST ? 0.0f : p * power;
}

#endif
