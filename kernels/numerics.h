/*
 * numerics: the constants that fix the bits of a result, shared by ref/ and cpu/.
 *
 * Thread: any (no state).
 */
#ifndef KERNELS_NUMERICS_H
#define KERNELS_NUMERICS_H

#include "kernels/kernels.h"

enum {
    /* Sums over a row: element i adds to partial sum i % 16 in order of i; then halves are added
     * to each other, 8, 4, 2, 1. Whole numbers of vectors on every instruction set. */
    SUM_LANES = 16,
    /* Attention: positions [256 t, 256 t + 256) are one tile. Each tile has a softmax of its own, and
     * they are merged in order of position: several threads can share a long request, a tile each. */
    KV_TILE_TOKENS = 256,
};

/* Attention: the maximum of no scores. Finite, so that no difference of two maxima is NaN. */
#define NO_SCORE -0x1.fffffep127f

/* The scale of KV_FP8. */
#define FP8_SCALE 256.0f

/* Adding and subtracting this rounds a double to a multiple of EXACT_GRID, half to even, up to
 * 2^27: 1.5 * 2^52 of them, where a double counts in units of the grid. */
#define EXACT_MAGIC (6755399441055744.0 * EXACT_GRID)

/* quantize and KV_INT8: a block whose max|x| is below this counts as zeros, since 127 / max would overflow. */
#define SMALLEST_MAX 0x1p-100f

/*
 * exp(x) = 2^n * (1 + r + r² * P(r)), n = round(x / ln 2), r = x - n * ln 2 in two parts.
 * P is the minimax polynomial of Cephes (S. Moshier, expf.c). Largest error found over all floats:
 * 1 ulp (tests/kernels/test_rows.c). Below EXP_LOWEST the result is 0, from EXP_HIGHEST on it stays.
 */
#define EXP_LOWEST    -87.0f
#define EXP_HIGHEST   88.0f
#define EXP_LOG2_E    1.44269504088896341f
#define EXP_LN2_HIGH  0.693359375f
#define EXP_LN2_LOW   -2.12194440e-4f
#define EXP_ROUND     12582912.0f /* 1.5 * 2^23: the low bits of x + this are round(x) */
#define EXP_P0        1.9875691500e-4f
#define EXP_P1        1.3981999507e-3f
#define EXP_P2        8.3334519073e-3f
#define EXP_P3        4.1665795894e-2f
#define EXP_P4        1.6666665459e-1f
#define EXP_P5        5.0000001201e-1f

/* gelu(g) = g / (1 + exp(-2 u)), u = GELU_SCALE * (g + GELU_CUBE * g³), which is the tanh form. */
#define GELU_SCALE 0.797884560802865356f /* sqrt(2 / pi) */
#define GELU_CUBE  0.044715f

#endif
